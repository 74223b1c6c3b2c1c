"""The column store against plain lists, for any sizes of blocks and any limit; and what it leaves behind: nothing."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.common import column_store
from sim.common.column_store import ColumnStore, rows_checksum
from sim.common.errors import ConfigError
from tests.support.places import ROOT

QUICK = settings(derandomize=True, deadline=None, print_blob=True, max_examples=120)
KINDS = {"number": "i", "wide": "q", "seconds": "d", "flag": "?"}

Row = tuple[int, int, float, bool]

numbers = st.integers(0, 40)
values = st.tuples(
    st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0]), st.booleans()
)


def filled(rows: list[Row], cuts: list[int], key: str | None, most_rows: int) -> ColumnStore:
    """A store that got these rows in blocks that end at the cuts."""
    store = ColumnStore(KINDS, key, most_rows=most_rows)
    edges = sorted({0, len(rows), *(cut % (len(rows) + 1) for cut in cuts)})
    for low, high in pairwise(edges):
        store.add(rows[low:high])
    return store


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of 4 rows, so that a few rows fill several."""
    monkeypatch.setattr(column_store, "_GROUP_ROWS", 4)


@pytest.mark.usefixtures("small_groups")
@pytest.mark.parametrize("key", [None, "number"])
def test_a_store_is_like_a_list_of_rows(key: str | None) -> None:
    @QUICK
    @given(
        drawn=st.lists(st.tuples(numbers, values), max_size=60),
        cuts=st.lists(st.integers(0, 60), max_size=12),
        most_rows=st.sampled_from([0, 1, 5, 13, 1000]),
        rows_each=st.integers(1, 50),
    )
    def check(drawn: list[tuple[int, Any]], cuts: list[int], most_rows: int, rows_each: int) -> None:
        rows: list[Row] = [(number, *rest) for number, rest in drawn]
        store = filled(rows, cuts, key, most_rows)
        assert store.rows == len(rows)
        for at, name in enumerate(KINDS):
            column = [row[at] for row in rows]
            assert store[name].tobytes() == np.array(column, dtype=store.types[name]).tobytes(), name
            assert [value for part in store.parts() for value in part[name].tolist()] == column
        in_order = sorted(rows, key=lambda row: row[0]) if key else rows
        keys = [row[0] for row in in_order] if key else range(len(rows))
        expected: dict[int, list[Row]] = {}
        for row, at in zip(in_order, keys, strict=True):
            expected.setdefault(at // rows_each, []).append(row)
        blocks = [
            list(zip(*(block[name].tolist() for name in KINDS), strict=True)) for block in store.blocks(rows_each)
        ]
        assert blocks == (list(expected.values()) or [[]])

    check()


@pytest.mark.usefixtures("small_groups")
def test_reading_does_not_end_the_writing() -> None:
    store = ColumnStore(KINDS, "number", most_rows=3)
    rows = [(number, number, number / 8, number % 2 == 0) for number in range(50)]
    for low in range(0, 50, 2):
        store.add(rows[low : low + 2])
        assert store["number"].tolist() == list(range(low + 2))
    assert [block["wide"].tolist() for block in store.blocks(20)] == [[*range(20)], [*range(20, 40)], [*range(40, 50)]]


@pytest.mark.parametrize("row", [(2**31, 0, 0.0, True), (0, 2**63, 0.0, True), (0.5, 0, 0.0, True)])
def test_what_a_column_cannot_hold_is_not_cut(row: Any) -> None:
    with pytest.raises(struct.error):
        ColumnStore(KINDS).add([row])


# --- the checksum

triples = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(1, 10**9), st.integers(1, 10**9)), max_size=30)


def checksum(rows: list[tuple[int, int, int]], dtype: str = "i8") -> int:
    first, second, third = np.array(rows, dtype=dtype).reshape(-1, 3).T
    return rows_checksum(first, second, third)


@QUICK
@given(rows=triples, draws=st.randoms(use_true_random=False), cut=st.integers(0, 30))
def test_a_checksum_knows_neither_order_nor_parts(rows: list[tuple[int, int, int]], draws: Any, cut: int) -> None:
    shuffled = list(rows)
    draws.shuffle(shuffled)
    assert checksum(shuffled, "i4") == checksum(rows)
    assert (checksum(rows[:cut]) + checksum(rows[cut:])) % 2**64 == checksum(rows)


@QUICK
@given(rows=triples.filter(len), at=st.integers(0, 29), field=st.integers(0, 2), change=st.integers(1, 1000))
def test_a_checksum_sees_every_number(rows: list[tuple[int, int, int]], at: int, field: int, change: int) -> None:
    at %= len(rows)
    changed = list(rows[at])
    changed[field] += change
    assert checksum([*rows[:at], tuple(changed), *rows[at + 1 :]]) != checksum(rows)  # type: ignore[list-item]


def test_a_checksum_sees_exchanged_columns_and_rows() -> None:
    assert checksum([(1, 2, 3)]) != checksum([(1, 3, 2)])
    assert checksum([(1, 5, 5), (2, 6, 6)]) != checksum([(1, 6, 6), (2, 5, 5)])
    assert checksum([(1, 5, 6), (2, 6, 5)]) != checksum([(1, 6, 5), (2, 5, 6)])


# --- the temporary file

SPILLING = """
import os, signal, sys
from sim.common.column_store import ColumnStore
store = ColumnStore({"number": "i", "seconds": "d"}, "number", most_rows=1000)
for low in range(0, 20_000, 500):
    store.add([(number, number * 0.1) for number in range(low, low + 500)])
file = os.fstat(store._spill._file.fileno())
assert file.st_size > 50_000 and file.st_nlink == 0, file
"""


def program(text: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text)],
        check=False,
        timeout=120,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


@pytest.mark.skipif(os.name != "posix", reason="elsewhere the system deletes the file when it is closed")
@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("assert store['number'].tolist() == list(range(20_000))", 0),
        ("raise SystemExit(3)", 3),
        ("raise OSError('of another kind')", 1),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_nothing_is_left_however_a_run_ends(tmp_path: Path, end: str, status: int) -> None:
    done = program(SPILLING + end, TMPDIR=str(tmp_path))
    assert done.returncode in (status, 128 - status), done.stderr
    assert "ignored" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_memory_is_emptied_into_the_given_folder(tmp_path: Path) -> None:
    store = ColumnStore(KINDS, scratch=tmp_path / "absent", most_rows=0)
    with pytest.raises(ConfigError, match=r"absent: cannot set aside .*No such file.* --out DIR .* TMPDIR"):
        store.add([(1, 2, 3.0, True)])


@contextmanager
def _tiny_disk(place: Path) -> Iterator[None]:
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], check=False, capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"no small file system can be made here: {mount.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


SMALL_RUN = """
import resource, sys
from functools import partial
from sim.cli.main import main
from sim.core.record import recorder
from sim.engine import engine
from sim.runs import run_one
recorder._ROWS = 50
engine.Recorder = run_one.Recorder = partial(recorder.Recorder, most_rows=100)
"""


def run_of(scenario: Path, *options: str) -> str:
    return f"main(['run', {str(scenario)!r}, *{options!r}])"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can make a small file system")
@pytest.mark.parametrize("out", [True, False])
def test_a_full_disk_is_said_in_one_line(tmp_path: Path, out: bool) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with _tiny_disk(disk):
        # What fits is set aside; then the disk is full.
        text = SMALL_RUN + run_of(ROOT / "traces" / "scenarios" / "default.yaml", *(["--out", str(disk / "run")] * out))
        done = program(text, TMPDIR=str(tmp_path if out else disk))
        assert (done.returncode, done.stdout) == (2, "")
        last = done.stderr.splitlines()[-1]
        assert last.startswith(f"error: {disk}: cannot set aside"), done.stderr
        assert "No space left on device" in last
        assert "ignored" not in done.stderr
        assert "Traceback" not in done.stderr
        assert list(disk.iterdir()) == []
    assert list(tmp_path.iterdir()) == [disk]


@pytest.mark.skipif(os.name != "posix", reason="no limits of a process there")
def test_a_file_that_may_not_grow_is_said_in_one_line(tmp_path: Path) -> None:
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
    text = SMALL_RUN + limit + run_of(ROOT / "traces" / "scenarios" / "default.yaml")
    done = program(text, TMPDIR=str(tmp_path))
    assert done.returncode == 2, done.stderr
    assert f"error: {tmp_path}: cannot set aside there what the run has seen so far (File too large)" in done.stderr
    assert "ignored" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="no such signals there")
def test_ctrl_c_in_the_middle_of_a_run(tmp_path: Path) -> None:
    text = (
        SMALL_RUN
        + """
        import os, signal
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins by ignoring it
        class Interrupted(recorder.Recorder):
            def _turn_rows(self):
                super()._turn_rows()
                if self._requests.rows > 300:
                    os.kill(os.getpid(), signal.SIGINT)
        run_one.Recorder = partial(Interrupted, most_rows=100)
        """.replace("\n        ", "\n")
        + "\n"
        + run_of(ROOT / "traces" / "scenarios" / "default.yaml", "--out", str(tmp_path / "run"))
    )
    done = program(text)
    assert done.returncode == 130, done.stderr
    assert done.stderr.splitlines()[-1].endswith("nothing was kept")
    assert "ignored" not in done.stderr
    assert list(tmp_path.iterdir()) == []
