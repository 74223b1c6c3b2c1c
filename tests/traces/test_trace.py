"""The native trace: exact round trips, row-numbered errors, sorting, statistics."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.common.errors import TraceError
from sim.traces.describe.trace_statistics import describe
from sim.traces.files import SUFFIXES
from sim.traces.stream import read_trace
from sim.traces.trace import Row, Signs, Trace
from sim.traces.write import write_trace

HEADER = "arrival_s,model,prompt_tokens,output_tokens\n"


def make_trace(rows: list[tuple[float, str, int, int, str, str | None, int]]) -> Trace:
    """A trace of rows (arrival_s, model, prompt, output, class, session, priority), given in time order."""
    columns = list(zip(*rows, strict=True))

    def coded(values: tuple[Any, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
        names = list(dict.fromkeys(value for value in values if value is not None))
        return np.array([-1 if value is None else names.index(value) for value in values]), tuple(names)

    (model, models), (classes, class_names), (session, sessions) = map(coded, (columns[1], columns[4], columns[5]))
    return Trace(
        arrival_s=np.array(columns[0], dtype=np.float64),
        model=model.astype(np.int32),
        models=models,
        prompt_tokens=np.array(columns[2], dtype=np.int64),
        output_tokens=np.array(columns[3], dtype=np.int64),
        service_class=classes.astype(np.int32),
        service_classes=class_names,
        session=session.astype(np.int64),
        sessions=sessions,
        priority=np.array(columns[6], dtype=np.int32),
    )


def plain(trace: Trace) -> list[tuple[Any, ...]]:
    """Every request with names instead of codes."""
    return [
        (
            row.arrival_s,
            trace.models[row.model],
            row.prompt_tokens,
            row.output_tokens,
            trace.service_classes[row.service_class],
            None if row.session < 0 else trace.sessions[row.session],
            row.priority,
        )
        for row in trace.rows()
    ]


def save(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def printable(text: str) -> str:
    name = "".join(letter for letter in text if letter.isprintable()).strip()
    return "x" if name in ("", "-1") else name


NAMES = st.text(st.sampled_from("ab,\"'\\;/ éλ模\t") | st.characters(codec="utf-8"), max_size=12).map(printable)
ROWS = st.lists(
    st.tuples(
        st.floats(0, 1e12),
        NAMES,
        st.integers(1, 10**9),
        st.integers(1, 10**9),
        st.one_of(st.just("default"), NAMES),
        st.one_of(st.none(), NAMES),
        st.integers(-(10**9), 10**9) | st.just(0),
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("suffix", SUFFIXES)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_round_trip_is_exact(
    tmp_path: Path, suffix: str, rows: list[tuple[float, str, int, int, str, str | None, int]]
) -> None:
    trace = make_trace(sorted(rows, key=lambda row: row[0]))
    path = tmp_path / f"t{suffix}"
    write_trace(trace, path)
    again = read_trace(path, strict=True)
    assert plain(again) == plain(trace)
    assert again.digest() == trace.digest()
    assert again.models == trace.models
    assert again.notices == ()
    before = path.read_bytes()
    write_trace(again, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_plain_traces_have_plain_columns(tmp_path: Path) -> None:
    trace = make_trace([(0.1, "a", 1, 2, "default", None, 0)])
    write_trace(trace, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_bytes() == (HEADER + "0.1,a,1,2\n").encode()
    write_trace(trace, tmp_path / "t.jsonl")
    assert json.loads((tmp_path / "t.jsonl").read_text()) == {
        "arrival_s": 0.1,
        "model": "a",
        "prompt_tokens": 1,
        "output_tokens": 2,
    }


def test_digest_sees_content_and_not_numbering() -> None:
    rows = [(0.0, "a", 5, 6, "default", None, 0), (1.0, "b", 7, 8, "fast", "s", 1)]
    trace = make_trace(rows)
    renumbered = Trace(
        **{
            **vars(trace),
            "models": ("unused", "b", "a"),
            "model": np.array([2, 1], dtype=np.int32),
            "notices": ("something",),
        }
    )
    assert renumbered.digest() == trace.digest()
    for column, value in enumerate((1.5, "a", 9, 9, "default", None, 0)):
        changed = [rows[0], (*rows[1][:column], value, *rows[1][column + 1 :])]
        assert make_trace(changed).digest() != trace.digest(), column  # type: ignore[list-item]


def test_reads_optional_columns_blanks_and_sessions(tmp_path: Path) -> None:
    text = (
        "model,arrival_s,output_tokens,prompt_tokens,session,service_class,priority\n"
        'm1,0,5,10,42,,\n"m,2",0.5,6,11,,fast,-3\nm1,1e0, 7 ,512.0,alice,default,2\nm1,2,1,1,-1,fast,0\n'
    )
    trace = read_trace(save(tmp_path, text))
    assert plain(trace) == [
        (0.0, "m1", 10, 5, "default", "42", 0),
        (0.5, "m,2", 11, 6, "fast", None, -3),
        (1.0, "m1", 512, 7, "default", "alice", 2),
        (2.0, "m1", 1, 1, "fast", None, 0),
    ]
    assert trace.sessions == ("42", "alice")
    assert trace.session.tolist() == [0, -1, 1, -1]


@pytest.mark.parametrize("text", [HEADER + "0,a,1,2\n1,b,3,4", (HEADER + "0,a,1,2\n1,b,3,4\n").replace("\n", "\r\n")])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_byte_order_mark(tmp_path: Path, text: str, mark: str) -> None:
    trace = read_trace(save(tmp_path, mark + text), strict=True)
    assert plain(trace) == [(0.0, "a", 1, 2, "default", None, 0), (1.0, "b", 3, 4, "default", None, 0)]


def test_jsonl_accepts_numbers_of_any_form_and_null(tmp_path: Path) -> None:
    lines = [
        '{"arrival_s": 0, "model": "a", "prompt_tokens": 5.0, "output_tokens": 1, "session": 7}',
        "",
        '{"arrival_s": 1.5, "model": "b", "prompt_tokens": 5, "output_tokens": "2", "session": null}\r',
        '{"arrival_s": 1.5, "model": "b", "prompt_tokens": 5, "output_tokens": 2, "session": "x"}',
    ]
    trace = read_trace(save(tmp_path, "\n".join(lines), "t.jsonl"))
    assert plain(trace) == [
        (0.0, "a", 5, 1, "default", "7", 0),
        (1.5, "b", 5, 2, "default", None, 0),
        (1.5, "b", 5, 2, "default", "x", 0),
    ]
    assert trace.file_rows is not None
    assert trace.file_rows.tolist() == [1, 3, 4]


def test_unsorted_rows_are_sorted_stably_with_a_notice(tmp_path: Path) -> None:
    path = save(tmp_path, HEADER + "5,a,1,1\n\n1,b,2,2\n5,c,3,3\n1,d,4,4\n")
    trace = read_trace(path)
    assert [trace.models[code] for code in trace.model.tolist()] == ["b", "d", "a", "c"]
    assert trace.models == ("b", "d", "a", "c")
    assert trace.notices == ("left out 1 blank row", "sorted 2 rows that were out of order")
    assert trace.file_rows is not None
    assert trace.file_rows.tolist() == [4, 6, 2, 5]
    with pytest.raises(TraceError, match=r"t\.csv: row 4: arrives at 1\.0 s.*sort"):
        read_trace(path, strict=True)


def test_many_equal_times_keep_their_order(tmp_path: Path) -> None:
    rows = "".join(f"{n % 3},a,{n + 1},1\n" for n in range(3000))
    trace = read_trace(save(tmp_path, HEADER + rows))
    assert trace.prompt_tokens.tolist() == [n + 1 for time in range(3) for n in range(time, 3000, 3)]


def test_unknown_columns_are_ignored_with_a_hint(tmp_path: Path) -> None:
    path = save(tmp_path, "arrival_s,model,prompt_tokens,output_tokens,sesion\n0,a,1,1,x\n")
    assert read_trace(path).notices == ("ignored the column 'sesion'; did you mean 'session'?",)
    with pytest.raises(TraceError, match="unknown column 'sesion'"):
        read_trace(path, strict=True)


def test_write_refuses_what_it_could_not_read_back(tmp_path: Path) -> None:
    good = make_trace([(0.0, "a", 1, 1, "default", None, 0)])
    cases: list[tuple[Trace, Path, str]] = [
        (good, tmp_path / "t.xls", "unknown kind of file"),
        (good, tmp_path / "absent" / "t.csv", "cannot write"),
        (make_trace([(0.0, "a\nb", 1, 1, "default", None, 0)]), tmp_path / "t.csv", "'model' is 'a"),
        (make_trace([(0.0, "a", 1, 1, "default", "-1", 0)]), tmp_path / "t.csv", "'session' is '-1'"),
        (good.select(slice(0, 0)), tmp_path / "t.csv", "no requests"),
    ]
    for trace, path, problem in cases:
        with pytest.raises(TraceError, match=problem):
            write_trace(trace, path)
    assert not list(tmp_path.iterdir())


def test_out_of_order_arrivals_are_a_fault_of_the_maker() -> None:
    with pytest.raises(AssertionError):
        make_trace([(1.0, "a", 1, 1, "default", None, 0), (0.0, "a", 1, 1, "default", None, 0)])


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_rows_are_plain_python_whatever_the_chunk(chunk: int) -> None:
    trace = make_trace([(float(n), "ab"[n % 2], n + 1, n + 2, "default", None, -n) for n in range(7)])
    rows = list(trace.rows(chunk))
    assert [row[:7] for row in rows] == [(float(n), n % 2, n + 1, n + 2, 0, -n, -1) for n in range(7)]
    assert all(math.isnan(row.think_s) and math.isnan(row.deadline_s) for row in rows)
    assert [type(value) for value in rows[0]] == [float, int, int, int, int, int, int, float, float, tuple]
    trace = replace(trace, think_s=np.arange(7.0), deadline_s=np.arange(7.0) + 0.5)
    assert [(row.think_s, row.deadline_s) for row in trace.rows(chunk)] == [(float(n), n + 0.5) for n in range(7)]


def test_describe_by_hand() -> None:
    arrivals = [0.0, 10.0, 40.0, 70.0, 239.0, 240.0]
    models = ["a", "b", "a", "a", "b", "a"]
    trace = make_trace(
        [(t, m, 10 * (n + 1), n + 1, "default", None, 0) for n, (t, m) in enumerate(zip(arrivals, models, strict=True))]
    )
    numbers = describe(trace)
    assert numbers["rows"] == 6
    assert numbers["span_s"] == 240.0
    assert numbers["rate_per_s"] == pytest.approx(6 / 240)
    gaps = np.array([10, 30, 30, 169, 1.0])
    assert numbers["iat_cv"] == pytest.approx(gaps.std() / gaps.mean())
    assert numbers["prompt_tokens"] == pytest.approx(
        {"mean": 35, "p50": 35, "p90": 55, "p99": 59.5, "max": 60, "min": 10}
    )
    assert numbers["output_tokens"]["mean"] == 3.5
    assert numbers["models"] == {
        "a": {"requests": 4, "share": pytest.approx(4 / 6)},
        "b": {"requests": 2, "share": pytest.approx(2 / 6)},
    }
    assert numbers["popularity_slope"] == pytest.approx(-1.0)  # 4 and 2: half the share at twice the rank
    counts = np.array([3, 1, 0, 1])  # the request at 240 s begins a minute that is not whole
    assert numbers["per_minute"] == pytest.approx(
        {"mean": 1.25, "max": 3, "cv": counts.std() / counts.mean(), "empty_share": 0.25}
    )
    json.dumps(numbers, allow_nan=False)


def test_describe_of_one_request_has_no_rates() -> None:
    numbers = describe(make_trace([(3.0, "a", 1, 1, "default", None, 0)]))
    assert numbers["rate_per_s"] is numbers["iat_cv"] is numbers["per_minute"] is None
    assert numbers["popularity_slope"] is None


def remarks(trace: Trace) -> tuple[str, ...]:
    signs = Signs()
    for start in range(0, len(trace), 7):
        signs.add(trace.select(slice(start, start + 7)))
    return signs.remarks()


@pytest.mark.parametrize(
    ("arrival", "remark"),
    [
        (lambda n: 1.7e9 + n, "the first request arrives at 1.7e+09 s"),
        (lambda n: float(n // 4), "arrive at the same time as the one before"),
        (lambda n: n / 5000, "5,2"),
        (lambda n: n * 5000.0, "is arrival_s in milliseconds?"),
    ],
)
def test_signs_of_a_wrong_clock(arrival: Callable[[int], float], remark: str) -> None:
    trace = make_trace([(arrival(n), "a", 1, 1, "default", None, 0) for n in range(24)])
    assert [remark in text for text in remarks(trace)] == [True]


def test_signs_are_silent_about_an_ordinary_trace() -> None:
    assert remarks(make_trace([(n * 0.7, "a", 1, 1, "default", None, 0) for n in range(24)])) == ()


def test_a_row_has_names_and_a_place_for_the_prefix(tmp_path: Path) -> None:
    text = "arrival_s,model,prompt_tokens,output_tokens,session,deadline_s\n1,b,7,3,,\n2,a,8,4,s,9\n"
    first, second = read_trace(save(tmp_path, text)).rows()
    assert (first.arrival_s, first.model, first.prompt_tokens, first.output_tokens) == (1.0, 0, 7, 3)
    assert first.session == -1
    assert math.isnan(first.think_s)
    assert math.isnan(first.deadline_s)
    assert (second.session, second.deadline_s, second.priority) == (0, 9.0, 0)
    assert first.prefix_blocks == second.prefix_blocks == Row(*second[:9]).prefix_blocks == ()
