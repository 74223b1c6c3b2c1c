"""Several traces in one: a union in time order whose sessions and prefix blocks stay apart; mixing and repeating."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.common.errors import ConfigError, TraceError
from sim.traces.overlay import mix_shares, overlay, repeat
from sim.traces.trace import Trace
from tests.support.trace_cases import SIZES, Row, in_chunks, rows_of, trace_of, traces

FEW = settings(deadline=None, max_examples=60)


def renamed(row: Row, label: str, count: int, number: int) -> Row:
    session = None if row.session is None else f"{label}/{row.session}"
    blocks = None if row.blocks is None else tuple(block * count + number for block in row.blocks)
    return replace(row, session=session, blocks=blocks)


@FEW
@given(st.lists(st.tuples(traces(most=15), SIZES), min_size=2, max_size=4))
def test_an_overlay_is_the_union_in_order(sources: list[tuple[Trace, list[int]]]) -> None:
    labels = [f"f{number}" for number in range(len(sources))]
    together = rows_of(overlay([in_chunks(trace, sizes) for trace, sizes in sources], labels))
    expected = [
        renamed(row, label, len(sources), number)
        for number, ((trace, _), label) in enumerate(zip(sources, labels, strict=True))
        for row in rows_of(in_chunks(trace))
    ]
    assert together == sorted(expected, key=lambda row: row.arrival_s)  # stable: ties in the order of the sources
    shared = rows_of(overlay([in_chunks(trace, sizes) for trace, sizes in sources], labels, apart=False))
    plain = [row for trace, _ in sources for row in rows_of(in_chunks(trace))]
    assert shared == sorted(plain, key=lambda row: row.arrival_s)


def test_many_requests_at_one_instant_keep_the_order_of_the_sources() -> None:
    traces = [trace_of([Row(1.0, "a", 10 * source + number + 1, 1) for number in range(5)]) for source in range(3)]
    together = rows_of(overlay([in_chunks(trace, [2]) for trace in traces], ["x", "y", "z"]))
    assert [row.prompt for row in together] == [10 * source + number + 1 for source in range(3) for number in range(5)]


def test_a_column_of_two_kinds_is_refused() -> None:
    numbers = trace_of([Row(0.0, "a", 1, 1, client=1)])
    lists = replace(numbers, extras={"client": pa.array([[1]], pa.list_(pa.int64()))})
    with pytest.raises(TraceError, match=r"one \+ two: columns of one name and different kinds \(.*\); rename one"):
        rows_of(overlay([in_chunks(numbers, where="one"), in_chunks(lists, where="two")], ["1", "2"]))


def test_block_ids_too_large_to_keep_apart_are_refused() -> None:
    trace = trace_of([Row(0.0, "a", 1, 1, blocks=(2**62,))])
    with pytest.raises(TraceError, match=r"prefix_blocks: ids beyond 2\^63 / 3 cannot be kept apart"):
        rows_of(overlay([in_chunks(trace)] * 1 + [in_chunks(trace), in_chunks(trace)], ["1", "2", "3"]))


def test_blocks_of_slices_and_empty_lists_keep_their_places() -> None:
    rows = [Row(float(n), "a", 1, 1, blocks=blocks) for n, blocks in enumerate([(1, 2), (), None, (3,), (4, 5, 6)])]
    other = trace_of([Row(9.0, "a", 1, 1)])
    for sizes in ([1], [2], [5]):
        found = rows_of(overlay([in_chunks(trace_of(rows), sizes), in_chunks(other)], ["1", "2"]))
        assert [row.blocks for row in found] == [(2, 4), (), None, (6,), (8, 10, 12), None]


@FEW
@given(traces(), SIZES, st.integers(1, 3))
def test_repeating_is_the_trace_again_and_again(trace: Trace, sizes: list[int], times: int) -> None:
    span_s = float(trace.arrival_s[-1] - trace.arrival_s[0])
    period_s = span_s + 1.0
    found = rows_of(repeat(lambda: in_chunks(trace, sizes), times, period_s))
    expected = [
        replace(
            renamed(row, str(turn + 1), times, turn) if times > 1 else row, arrival_s=row.arrival_s + turn * period_s
        )
        for turn in range(times)
        for row in rows_of(in_chunks(trace))
    ]
    assert found == expected


def test_a_repetition_goes_on_at_the_same_rate() -> None:
    trace = trace_of([Row(float(number) + 5, "a", 1, 1) for number in range(4)])
    found = rows_of(repeat(lambda: in_chunks(trace), 2, None))
    assert [row.arrival_s for row in found] == [5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0]


def test_repetitions_that_would_overlap_are_refused() -> None:
    trace = trace_of([Row(0.0, "a", 1, 1), Row(4.0, "a", 1, 1)])
    with pytest.raises(TraceError, match="period_s 3 is shorter than the trace; give at least 4"):
        rows_of(repeat(lambda: in_chunks(trace), 2, 3.0))
    at_once = trace_of([Row(0.0, "a", 1, 1)] * 2)
    with pytest.raises(TraceError, match="all requests arrive at once; give period_s"):
        rows_of(repeat(lambda: in_chunks(at_once), 2, None))


def test_mixing_keeps_as_much_as_the_shares_allow() -> None:
    assert mix_shares([100, 100], [3, 1]) == pytest.approx([1, 1 / 3])
    assert mix_shares([1000, 10], [1, 1]) == pytest.approx([0.01, 1])
    with pytest.raises(ConfigError, match="no requests"):
        mix_shares([10, 0], [1, 1])
