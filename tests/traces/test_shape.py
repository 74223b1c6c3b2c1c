"""Reshaping streams: times, cuts, thinning, splitting; nothing lost, nothing made up, whatever the chunks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.common import rng
from sim.common.errors import TraceError
from sim.traces.shape import Draws, limit, part_by_model, part_by_share, part_by_time, shift, thin, time_scale, window
from sim.traces.stream import TraceStream, TurnOrder
from sim.traces.trace import Trace
from tests.support.trace_cases import SIZES, Row, in_chunks, rows_of, trace_of, traces

FEW = settings(deadline=None, max_examples=60)


def draws(whole: bool = False, seed: int = 1) -> Draws:
    return Draws(rng.stream(seed, "test"), whole)


def plain(rows: list[Row]) -> list[Row]:
    """Rows without what a cut may change."""
    return [replace(row, think_s=None) for row in rows]


def legal(stream: TraceStream) -> list[Row]:
    """The rows of a stream, checked as a reader checks closed loops."""
    turns = TurnOrder()

    def checked() -> object:
        for chunk in stream.chunks:
            turns.check(chunk, "t")
            yield chunk

    return rows_of(TraceStream(checked(), "t", stream.rows))  # type: ignore[arg-type]


# --- when


@FEW
@given(traces(), SIZES, st.sampled_from([0.5, 1.0, 3.0]))
def test_time_scale_keeps_all_but_time(trace: Trace, sizes: list[int], factor: float) -> None:
    before, after = rows_of(in_chunks(trace)), rows_of(time_scale(in_chunks(trace, sizes), factor))
    assert [row.arrival_s for row in after] == [row.arrival_s / factor for row in before]
    assert [row.think_s for row in after] == [None if r.think_s is None else r.think_s / factor for r in before]
    still = [replace(row, arrival_s=0.0, think_s=None) for row in after]
    assert still == [replace(row, arrival_s=0.0, think_s=None) for row in before]
    kept = rows_of(time_scale(in_chunks(trace, sizes), factor, think=False))
    assert [row.think_s for row in kept] == [row.think_s for row in before]


@FEW
@given(traces(), SIZES)
def test_shift_moves_and_can_begin_at_zero(trace: Trace, sizes: list[int]) -> None:
    first_s = float(trace.arrival_s[0])
    moved = rows_of(shift(in_chunks(trace, sizes), 12.5))
    assert [row.arrival_s for row in moved] == (trace.arrival_s + 12.5).tolist()
    begun = rows_of(shift(in_chunks(trace, sizes), None))
    assert [row.arrival_s for row in begun] == (trace.arrival_s - first_s).tolist()


def test_times_that_cannot_be_are_refused() -> None:
    trace = trace_of([Row(5.0, "a", 1, 1), Row(9.0, "a", 1, 1)])
    with pytest.raises(TraceError, match=r"t: shift -6: the first request would arrive at -1 s; shift by at least -5"):
        rows_of(shift(in_chunks(trace), -6.0))
    with pytest.raises(TraceError, match="lose their decimals"):
        rows_of(shift(in_chunks(trace), 1e13))
    with pytest.raises(TraceError, match="time_scale 1e-300"):
        rows_of(time_scale(in_chunks(trace), 1e-300))


# --- which


@FEW
@given(traces(), SIZES, st.floats(0, 40), st.floats(0.1, 40))
def test_a_window_holds_exactly_its_requests(trace: Trace, sizes: list[int], start_s: float, length_s: float) -> None:
    end_s = start_s + length_s
    expected = [row for row in rows_of(in_chunks(trace)) if start_s <= row.arrival_s < end_s]
    assert plain(legal(window(in_chunks(trace, sizes), start_s, end_s, rebase=False))) == plain(expected)
    rebased = legal(window(in_chunks(trace, sizes), start_s, end_s))
    assert [row.arrival_s for row in rebased] == [row.arrival_s - start_s for row in expected]


@FEW
@given(traces(), SIZES, st.integers(1, 40))
def test_a_limit_is_the_beginning(trace: Trace, sizes: list[int], rows: int) -> None:
    assert rows_of(limit(in_chunks(trace, sizes), rows)) == rows_of(in_chunks(trace))[:rows]


def is_subset(part: list[Row], whole: list[Row]) -> bool:
    rest = iter(whole)
    return all(row in rest for row in part)  # `in` reads on: an ordered subset


@FEW
@given(traces(), SIZES, st.floats(0.05, 1), st.booleans())
def test_thinning_keeps_an_ordered_subset_whatever_the_chunks(
    trace: Trace, sizes: list[int], share: float, whole: bool
) -> None:
    before = rows_of(in_chunks(trace))
    thinned = legal(thin(in_chunks(trace, sizes), share, draws(whole)))
    assert is_subset(plain(thinned), plain(before))
    assert thinned == rows_of(thin(in_chunks(trace), share, draws(whole)))
    if whole:
        kept = {row.session for row in thinned} - {None}
        assert [row for row in thinned if row.session] == [row for row in before if row.session in kept]
    if share == 1:
        assert thinned == before


def test_thinning_keeps_the_share_asked_for() -> None:
    count = 20_000
    trace = trace_of([Row(float(number), "a", 1, 1, f"s{number % 4000}") for number in range(200)])
    big = replace(
        trace,
        **{name: np.resize(getattr(trace, name), count) for name in ("model", "prompt_tokens", "output_tokens")},
        **{name: np.resize(getattr(trace, name), count) for name in ("service_class", "priority")},
        arrival_s=np.arange(count, dtype=np.float64),
        session=np.arange(count) % 4000,
        sessions=tuple(f"s{number}" for number in range(4000)),
    )
    for whole, units in ((False, count), (True, 4000)):
        kept = sum(len(chunk) for chunk in thin(in_chunks(big, [3000]), 0.3, draws(whole)).chunks)
        assert abs(kept / count - 0.3) < 4.5 * np.sqrt(0.3 * 0.7 / units)


@FEW
@given(traces(), SIZES, st.lists(st.floats(0.1, 5), min_size=2, max_size=4), st.booleans())
def test_random_parts_are_a_partition(trace: Trace, sizes: list[int], shares: list[float], whole: bool) -> None:
    parts = [legal(part_by_share(in_chunks(trace, sizes), shares, n, draws(whole))) for n in range(len(shares))]
    _is_partition(parts, trace)
    if whole:
        named = [{row.session for row in part} - {None} for part in parts]
        assert sum(map(len, named)) == len(set().union(*named))


@FEW
@given(traces(), SIZES, st.lists(st.sampled_from([0.5, 1.0, 4.0, 20.0, 99.0]), min_size=1, max_size=3, unique=True))
def test_parts_in_time_are_a_partition(trace: Trace, sizes: list[int], cuts: list[float]) -> None:
    cuts.sort()
    parts = [legal(part_by_time(in_chunks(trace, sizes), cuts, n, False)) for n in range(len(cuts) + 1)]
    _is_partition(parts, trace)


@FEW
@given(traces(), SIZES)
def test_parts_by_model_are_a_partition(trace: Trace, sizes: list[int]) -> None:
    groups = [["a", "unused"], ["b", "c"]]
    parts = [legal(part_by_model(in_chunks(trace, sizes), groups, n)) for n in range(2)]
    _is_partition(parts, trace)
    assert {row.model for row in parts[0]} <= {"a"}


def test_a_model_in_no_part_is_named() -> None:
    trace = trace_of([Row(0.0, "chat", 1, 1)])
    with pytest.raises(TraceError, match=r"model 'chat' is in no part of the split; add it \(did you mean 'chap'\?\)"):
        rows_of(part_by_model(in_chunks(trace), [["chap"]], 0))


def _is_partition(parts: list[list[Row]], trace: Trace) -> None:
    before = plain(rows_of(in_chunks(trace)))
    together = [row for part in parts for row in plain(part)]
    assert sorted(together, key=repr) == sorted(before, key=repr)
    assert all(is_subset(plain(part), before) for part in parts)


# --- closed loops


def test_think_times_of_what_is_left_out_are_added() -> None:
    thinks = [None, 1.0, 2.0, 4.0, None, 8.0]
    rows = [Row(float(number), "ab"[number in (1, 2, 4)], 1, 1, "s", think) for number, think in enumerate(thinks)]
    kept = rows_of(part_by_model(in_chunks(trace_of(rows), [2]), [["a"], ["b"]], 0))
    # Rows 0, 3 and 5 stay: 3 waits for 0 now, with the think times of 1 and 2; 4 was open and adds none to 5.
    assert [(row.arrival_s, row.think_s) for row in kept] == [(0.0, None), (3.0, 7.0), (5.0, 8.0)]
    others = rows_of(part_by_model(in_chunks(trace_of(rows), [1]), [["a"], ["b"]], 1))
    # Nobody is left before 1, so it is sent at its arrival.
    assert [(row.arrival_s, row.think_s) for row in others] == [(1.0, None), (2.0, 2.0), (4.0, None)]


def test_a_session_cut_by_a_window_opens_at_its_arrival() -> None:
    rows = [Row(0.0, "a", 1, 1, "s"), Row(5.0, "a", 1, 1, "s", 3.0), Row(6.0, "a", 1, 1, "s", 1.0)]
    kept = legal(window(in_chunks(trace_of(rows), [1]), 4.0, 9.0))
    assert [(row.arrival_s, row.think_s) for row in kept] == [(1.0, None), (2.0, 1.0)]


@FEW
@given(traces(), SIZES, st.floats(0.1, 0.9))
def test_mended_think_times_do_not_depend_on_chunks(trace: Trace, sizes: list[int], share: float) -> None:
    ways = [rows_of(thin(in_chunks(trace, cut), share, draws())) for cut in (sizes, [1], [100])]
    assert ways[0] == ways[1] == ways[2]
