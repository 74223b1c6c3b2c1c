"""Traces in pieces: where a file is cut must not matter, mistakes come in the file's order, and memory stays flat."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from sim.common.errors import TraceError
from sim.traces import blocks as trace_blocks
from sim.traces import order as trace_order
from sim.traces.stream import TraceStream, gather, in_time_order, read_stream, read_trace
from sim.traces.trace import Trace
from sim.traces.write import write_stream
from tests.support.full_traces import HEADER, full_trace, outcome, plain, small_pieces
from tests.support.places import ROOT

__all__ = ["small_pieces"]

SLOW = settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])


LINES = st.lists(
    st.sampled_from(
        [
            *(f"{n},m{n % 3},{n + 1},2" for n in range(6)),
            '3,"a,b",1,1',
            '3.5,"a""b",1,1',
            "5,é模,1,1",
            "",
            ",,,",
            "  ",
            "0,late,1,1",
            "1,a,x,1",
            "1,a,1",
            "1,a,1,1,1",
            '1,"a,1,1',
            '1,a"b,1,1',
            "-1,a,1,1",
            "1,\udcff,1,1",
            '"1\n",a,1,1',
        ]
    ),
    max_size=9,
)


@SLOW
@given(lines=LINES, end=st.sampled_from(["\n", "\r\n", "\r"]), mark=st.booleans(), last=st.booleans(), data=st.data())
def test_where_a_csv_file_is_cut_does_not_matter(
    tmp_path: Path, small_pieces: Any, lines: list[str], end: str, mark: bool, last: bool, data: st.DataObject
) -> None:
    text = HEADER.rstrip() + end + end.join(lines) + (end if last else "")
    raw = (b"\xef\xbb\xbf" if mark else b"") + text.encode("utf-8", "surrogateescape")
    zipped = data.draw(st.booleans())
    path = tmp_path / ("t.csv.gz" if zipped else "t.csv")
    raw = gzip.compress(raw) if zipped else raw
    path.write_bytes(raw[: -data.draw(st.integers(1, 30))] if zipped and data.draw(st.booleans()) else raw)
    strict = data.draw(st.booleans())
    small_pieces(1 << 21)
    whole = outcome(path, strict)
    for size in (1, 5, data.draw(st.integers(2, 90))):
        small_pieces(size)
        assert outcome(path, strict) == whole, size


OBJECTS = st.lists(
    st.sampled_from(
        [
            *(json.dumps({"arrival_s": n, "model": "a", "prompt_tokens": 1, "output_tokens": 2}) for n in range(4)),
            '{"arrival_s": 1.5, "model": "b", "prompt_tokens": "3", "output_tokens": 2, "session": 7}',
            '{"arrival_s": 2, "model": "b", "prompt_tokens": 3, "output_tokens": 2, "session": 7, "think_s": 1}',
            '{"arrival_s": 2, "model": "b", "prompt_tokens": 3, "output_tokens": 2, "deadline_s": 0.5, "turn": 2}',
            '{"arrival_s": 2, "model": "b", "prompt_tokens": 3, "output_tokens": 2, "prefix_blocks": [1, 2]}',
            '{"arrival_s": 2, "model": "b", "prompt_tokens": 3, "output_tokens": 2, "colour": 1}',
            '{"arrival_s": 2, "model": "b", "prompt_tokens": 3, "output_tokens": 2, "prefix_blocks": [1, null]}',
            '{"arrival_s": -2, "model": "b", "prompt_tokens": 3, "output_tokens": 2}',
            '{"arrival_s": 2, "model": "b", "prompt_tokens": 3}',
            '{"arrival_s": 2, "model": "b",',
            "",
            "[1]",
        ]
    ),
    max_size=7,
)


@SLOW
@given(lines=OBJECTS, size=st.integers(2, 200), strict=st.booleans())
def test_where_a_jsonl_file_is_cut_does_not_matter(
    tmp_path: Path, small_pieces: Any, lines: list[str], size: int, strict: bool
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    small_pieces(1 << 21)
    whole = outcome(path, strict)
    for piece in (1, size):
        small_pieces(piece)
        assert outcome(path, strict) == whole, piece


@SLOW
@given(
    times=st.lists(st.integers(0, 9), min_size=1, max_size=40),
    size=st.integers(1, 9),
    held=st.sampled_from([0, 3, 10, 1000]),
)
def test_any_order_is_made_time_order(
    tmp_path: Path, small_pieces: Any, times: list[int], size: int, held: int
) -> None:
    """A stable sort, through temporary files where `held` is small; the chunks need only be in order themselves."""
    trace = full_trace(len(times), seed=3)
    pieces = []
    for start in range(0, len(times), size):
        part = np.arange(start, min(start + size, len(times)))
        arrival_s = np.sort(np.array(times, dtype=float)[part])
        piece = replace(trace.select(part), arrival_s=arrival_s, file_rows=part + 1)
        pieces.append(replace(piece, extras={}, think_s=None) if start % 2 else piece)
    small_pieces(size, held)
    ordered = list(in_time_order(iter(pieces), "here"))
    together = [row for piece in pieces for row in plain(piece)]
    expected = sorted(together, key=lambda row: row[0])
    assert plain(gather(TraceStream(iter(ordered), "here"))) == expected
    gather_rows = [row for chunk in ordered for row in (chunk.file_rows if chunk.file_rows is not None else [])]
    assert sorted(gather_rows) == list(range(1, len(times) + 1))
    assert_is_stream(ordered)


def assert_is_stream(chunks: list[Trace]) -> None:
    assert all(len(chunk) for chunk in chunks)
    for a, b in pairwise(chunks):
        assert a.arrival_s[-1] <= b.arrival_s[0]
        for (_, before), (_, after) in zip(a.named().values(), b.named().values(), strict=True):
            assert after[: len(before)] == before


def test_order_that_is_there_is_left_alone() -> None:
    pieces = [full_trace(5), replace(full_trace(5, seed=1), arrival_s=np.arange(200.0, 205.0))]
    ordered = list(in_time_order(iter(pieces), "here"))
    assert [id(chunk) for chunk in ordered] == [id(piece) for piece in pieces]


def test_a_long_file_out_of_order_is_refused_or_sorted(tmp_path: Path, small_pieces: Any) -> None:
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "".join(f"{n},m{n},1,1\n" for n in range(100)) + "50,x,1,1\n", encoding="utf-8")
    small_pieces(64, held=20)
    with pytest.raises(TraceError, match=r"t\.csv: row 102: arrives at 50\.0 s, before .*trace import .*--out sorted"):
        gather(read_stream(path))
    with pytest.raises(TraceError, match=r"t\.csv: row 102: arrives at 50\.0 s, before the row above it; sort"):
        gather(read_stream(path, strict=True, sort=True))
    stream = read_stream(path, sort=True)
    chunks = list(stream.chunks)
    assert_is_stream(chunks)
    assert stream.notices == ["sorted 1 row that was out of order"]
    trace = gather(TraceStream(iter(chunks), "t"))
    assert trace.arrival_s.tolist() == sorted([*range(100), 50])
    assert trace.models[trace.model[51]] == "x"
    assert read_trace(path).digest() == trace.digest()


def test_a_stream_is_lazy(tmp_path: Path, small_pieces: Any) -> None:
    """The first chunks of a long file come before its end, and a mistake there, has been read."""
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "".join(f"{n},m,1,1\n" for n in range(1000)) + "1000,m,x,1\n", encoding="utf-8")
    small_pieces(64, held=50)
    chunks = read_stream(path).chunks
    assert next(chunks).arrival_s[0] == 0
    with pytest.raises(TraceError, match="row 1002: column 'prompt_tokens' is 'x'"):
        list(chunks)


def test_a_row_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_blocks, "MOST_RECORD_BYTES", 1 << 16)
    monkeypatch.setattr(trace_blocks, "BLOCK_BYTES", 1 << 12)
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "0,a,1,1\n" + "9" * (1 << 18), encoding="utf-8")
    assert "row 3: is longer than 0 MiB" in outcome(path)
    path.write_text(HEADER + '0,"a,1,1\n' + "1,a,1,1\n" * (1 << 15), encoding="utf-8")
    assert "row 2: a quote is opened but not closed" in outcome(path)
    path.write_bytes(b" \n" * (1 << 17))
    assert "the file is empty" in outcome(path)


def test_temporary_files_that_cannot_be_written_are_one_line(
    tmp_path: Path, small_pieces: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_pieces(5, held=5)
    monkeypatch.setattr(trace_order.tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(TraceError, match=r"cannot write a temporary file to sort here .*TMPDIR"):
        list(in_time_order(iter([full_trace(9)]), "here"))


# --- memory

MEASURE = """
import resource, sys
from pathlib import Path
from sim.traces.stream import read_stream
from sim.traces.write import write_stream

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

source, target = map(Path, sys.argv[1:3])
first = next(read_stream(source).chunks)  # what the libraries and one chunk take
before = peak()
print(write_stream(read_stream(source), target), peak() - before)
"""


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_memory_does_not_grow_with_what_has_passed(tmp_path: Path, suffix: str) -> None:
    count = 2_000_000
    part = full_trace(20_000)
    part = replace(part, extras={}, think_s=None, sessions=part.sessions[:50], session=part.session % 50)
    span_s = float(part.arrival_s[-1]) + 1
    chunks = (replace(part, arrival_s=part.arrival_s + n * span_s) for n in range(count // len(part)))
    source = tmp_path / f"t{suffix}"
    write_stream(TraceStream(chunks, "here"), source)
    command = [sys.executable, "-c", MEASURE, str(source), str(tmp_path / "again.parquet")]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
    rows, grown_mib = map(int, printed.stdout.split())
    assert rows == count
    assert parquet.read_metadata(tmp_path / "again.parquet").num_rows == count
    assert grown_mib < 250, "all of it takes 128 MB of columns, and as text 100 MB more"
