"""Native files written and read back: every column, in every format, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from sim.common.errors import TraceError
from sim.traces import stream as trace_stream
from sim.traces.extras import EXTRAS, arrow_type
from sim.traces.files import SUFFIXES
from sim.traces.stream import NameTable, TraceStream, gather, read_stream, read_trace, stream_of
from sim.traces.trace import Trace, TraceDigest, join
from sim.traces.write import read_recipe, write_stream, write_trace
from tests.support.full_traces import HEADER, full_trace, outcome, plain, small_pieces

__all__ = ["small_pieces"]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("count", "size"), [(1, 7), (1, 1 << 16), (50, 7), (300, 64), (700, 1 << 16)])
def test_all_columns_come_back_whatever_the_pieces(
    tmp_path: Path, small_pieces: Any, suffix: str, count: int, size: int
) -> None:
    trace = full_trace(count, seed=count)
    path = tmp_path / f"t{suffix}"
    write_trace(trace, path)
    before = path.read_bytes()
    small_pieces(size)
    stream = read_stream(path, strict=True)
    again = gather(stream)
    assert plain(again) == plain(trace)
    assert again.digest() == trace.digest()
    assert stream.notices == []
    assert stream.rows == (count if suffix == ".parquet" else None)
    if suffix != ".parquet" or size == 1 << 16:  # Parquet's groups are as large as GROUP_ROWS says
        assert write_stream(read_stream(path), path) == count
        assert path.read_bytes() == before


# --- closed loops, deadlines, extras

NEW_COLUMNS: list[tuple[str, str, str]] = [
    ("think_s", "0,a,1,1,s,\n1,a,1,1,s,-1\n", "row 3: column 'think_s' is '-1'; give seconds from 0"),
    ("think_s", "0,a,1,1,s,\n1,a,1,1,s,nan\n", "row 3: column 'think_s' is 'nan'"),
    ("think_s", "0,a,1,1,s,\n1,a,1,1,,2\n", "row 3: column 'think_s' is 2, but the request has no session; leave"),
    ("think_s", "0,a,1,1,s,\n1,a,1,1,t,2\n", "row 3: column 'think_s' is 2, but the request is the first of its"),
    ("think_s", "1,a,1,1,s,\n0,a,1,1,s,2\n", "row 3: column 'think_s' is 2, but the request is the first of its"),
    ("deadline_s", "0,a,1,1,s,0\n", "row 2: column 'deadline_s' is '0'; give seconds above 0"),
    ("deadline_s", "0,a,1,1,s,inf\n", "row 2: column 'deadline_s' is 'inf'"),
    ("turn", "0,a,1,1,s,1.5\n", "row 2: column 'turn' is '1.5'; give a whole number, or nothing"),
    ("turn", "0,a,1,1,s,1\n0,a,1,1,s,1e30\n", "row 3: column 'turn' is '1e30'"),
    ("prefix_blocks", "0,a,1,1,s,7\n", "row 2: column 'prefix_blocks' is '7'; give whole numbers as"),
    ("prefix_blocks", '0,a,1,1,s,"[1,null]"\n', "row 2: column 'prefix_blocks' is '[1,null]'"),
    ("prefix_blocks", '0,a,1,1,s,"[1,99999999999999999999]"\n', "row 2: column 'prefix_blocks' is"),
    ("source", "0,a,1,1,s,a\x07b\n", r"row 2: column 'source' is 'a\x07b'; give one line of text"),
]


@pytest.mark.parametrize(("column", "rows", "problem"), NEW_COLUMNS)
def test_mistakes_in_optional_columns(tmp_path: Path, column: str, rows: str, problem: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(HEADER.rstrip() + f",session,{column}\n" + rows, encoding="utf-8")
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert problem in str(caught.value)
    assert str(caught.value).startswith(f"{path}: row ")


def test_closed_loops_look_back_across_chunks(tmp_path: Path, small_pieces: Any) -> None:
    path = tmp_path / "t.csv"
    text = HEADER.rstrip() + ",session,think_s\n0,a,1,1,s,\n1,a,1,1,t,\n2,a,1,1,s,0\n3,a,1,1,t,4\n"
    path.write_text(text, encoding="utf-8")
    small_pieces(1)
    trace = read_trace(path)
    assert trace.think_s is not None
    assert np.nan_to_num(trace.think_s, nan=-1).tolist() == [-1, -1, 0, 4]


def test_columns_that_say_nothing_are_no_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(HEADER.rstrip() + ",think_s,deadline_s\n0,a,1,1,,\n1,a,1,1,,\n", encoding="utf-8")
    trace = read_trace(path, strict=True)
    bare = replace(trace, think_s=None, deadline_s=None)
    assert trace.digest() == bare.digest()
    assert trace.digest() == replace(trace, deadline_s=np.full(2, np.nan), extras={"turn": pa.array([1, 2])}).digest()
    told = {replace(trace, deadline_s=np.array(pair)).digest() for pair in ([1, np.nan], [np.nan, 1], [1, 1], [2, 1])}
    assert len({*told, trace.digest()}) == 5
    write_trace(trace, path)
    assert path.read_text(encoding="utf-8").startswith(HEADER)


@given(cuts=st.lists(st.integers(0, 200), max_size=6), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=40)
def test_a_digest_taken_in_pieces_is_the_digest(cuts: list[int], seed: int) -> None:
    trace = full_trace(200, seed, ties=True)
    edges = sorted({0, 200, *cuts})
    pieces = [trace.select(slice(a, b)) for a, b in pairwise(edges)]
    digest = TraceDigest()
    for piece in pieces:
        digest.add(piece)
    assert digest.hexdigest() == trace.digest()
    assert join(pieces).digest() == trace.digest()
    assert plain(join(pieces)) == plain(trace)


def test_parquet_keeps_any_extra_and_the_recipe(tmp_path: Path) -> None:
    kinds = pa.array([{"x": 1}, None], pa.struct([("x", pa.int8())]))
    trace = replace(full_trace(2), extras={"anything": kinds, "turn": pa.array([1, None], pa.int16())})
    path = tmp_path / "t.parquet"
    recipe = {"steps": [{"thin": 0.5}], "name": "é"}
    assert write_stream(stream_of(trace), path, recipe) == 2
    again = read_trace(path, strict=True)
    assert again.extras["anything"].equals(kinds)
    assert again.extras["turn"].to_pylist() == [1, None]
    assert read_recipe(path) == recipe
    with pytest.raises(TraceError, match="text file cannot keep the extra column 'anything'"):
        write_trace(trace, tmp_path / "t.csv")
    write_trace(full_trace(2), path)
    assert read_recipe(path) is None
    with pytest.raises(TraceError, match="no such file"):
        read_recipe(tmp_path / "absent.parquet")
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.parquet"]


def test_selecting_takes_all_columns() -> None:
    trace = full_trace(9)
    rows = plain(trace)
    assert plain(trace.select(slice(2, 5))) == rows[2:5]
    assert plain(trace.select(slice(1, None, 3))) == rows[1::3]
    assert plain(trace.select(np.array([0, 4, 4]))) == [rows[0], rows[4], rows[4]]
    assert plain(trace.select(trace.prompt_tokens % 2 == 0)) == [row for row in rows if row[1] % 2 == 0]


def test_names_keep_their_codes() -> None:
    names = NameTable()
    assert names.codes(np.array([1, 0, -1]), ["b", "a"]).tolist() == [1, 0, -1]
    assert names.codes(np.array([0, 1, -1]), ["c", "a"]).tolist() == [2, 1, -1]
    assert names.codes(np.array([-1]), []).tolist() == [-1]
    assert names.names() == ("b", "a", "c")
    assert names.code("d") == 3
    assert names.names() == ("b", "a", "c", "d")


# --- nothing by halves


def failing(trace: Trace) -> Iterator[Trace]:
    yield trace
    raise TraceError("here: row 7: a mistake")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("held", [0, 1000])
def test_a_stream_that_fails_leaves_no_file(tmp_path: Path, small_pieces: Any, suffix: str, held: int) -> None:
    path = tmp_path / f"t{suffix}"
    small_pieces(10, held)
    with pytest.raises(TraceError, match="row 7"):
        write_stream(TraceStream(failing(full_trace(30)), "here"), path)
    assert list(tmp_path.iterdir()) == []
    path.write_bytes(b"before")
    with pytest.raises(TraceError, match="row 7"):
        write_stream(TraceStream(failing(full_trace(30)), "here"), path)
    assert path.read_bytes() == b"before"


def test_a_file_cut_off_in_any_place_is_one_line(tmp_path: Path, small_pieces: Any) -> None:
    trace = full_trace(60)
    small_pieces(200)
    for suffix in (".parquet", ".csv.gz", ".jsonl.gz"):
        path = tmp_path / f"t{suffix}"
        write_trace(trace, path)
        data = path.read_bytes()
        for size in range(0, len(data) - 1, len(data) // 25):
            path.write_bytes(data[:size])
            problem = outcome(path)
            assert isinstance(problem, str), (suffix, size)
            assert problem.startswith(f"{path}: ")


def test_a_sorted_parquet_file_is_not_sorted_again(
    tmp_path: Path, small_pieces: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = full_trace(90)
    path = tmp_path / "t.parquet"
    write_trace(trace, path)
    small_pieces(8, held=20)
    monkeypatch.setattr(trace_stream, "in_time_order", lambda chunks, where: pytest.fail("sorted"))
    assert plain(gather(read_stream(path, sort=True))) == plain(trace)
    unsorted = pa.concat_tables([parquet.read_table(path), parquet.read_table(path).slice(0, 1)])
    parquet.write_table(unsorted, path)
    with pytest.raises(pytest.fail.Exception, match="sorted"):
        gather(read_stream(path, sort=True))


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_extras_of_every_kind_come_back(tmp_path: Path, suffix: str) -> None:
    kinds = {
        "whole": [1, None, -(2**63), 2**63 - 1],
        "number": [0.1, None, -1e-300, 5.0],
        "text": ["a b", None, 'x,"y"', "[1]"],
        "wholes": [[1, 2], None, [], [-5, 2**62]],
    }
    extras = {name: pa.array(kinds[kind], arrow_type(kind)) for name, kind in EXTRAS.items()}
    assert {EXTRAS[name] for name in extras} == set(kinds)
    write_trace(replace(full_trace(4), extras=extras), tmp_path / f"t{suffix}")
    again = read_trace(tmp_path / f"t{suffix}", strict=True).extras
    assert {name: column.to_pylist() for name, column in again.items()} == {n: kinds[k] for n, k in EXTRAS.items()}
