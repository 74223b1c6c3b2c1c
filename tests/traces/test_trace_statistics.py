"""Descriptions: every number against numpy on the whole trace, whatever the chunks; and bounded memory."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.traces.describe import streaming_statistics
from sim.traces.describe.streaming_statistics import Concurrency, Histogram, Moments, Spread, TimeBins, Windows
from sim.traces.describe.trace_statistics import Prefixes, Service, describe, describe_stream
from sim.traces.trace import Trace
from tests.support.trace_cases import SIZES, Row, in_chunks, trace_of, traces

FEW = settings(deadline=None, max_examples=60)


def facts_of(trace: Trace, sizes: list[int] | None = None) -> dict[str, Any]:
    return describe_stream(in_chunks(trace, sizes or ())).facts()


def close(found: Any, expected: Any) -> bool:
    """Equal up to the rounding of sums; dicts and lists by their parts."""
    if isinstance(found, dict):
        return found.keys() == expected.keys() and all(close(found[name], expected[name]) for name in found)
    if isinstance(found, float) and isinstance(expected, float | int):
        return found == pytest.approx(expected, rel=1e-9, abs=1e-9)
    return bool(found == expected)


@FEW
@given(traces(), SIZES)
def test_chunks_do_not_matter(trace: Trace, sizes: list[int]) -> None:
    assert close(facts_of(trace, sizes), facts_of(trace))
    json.dumps(facts_of(trace, sizes), allow_nan=False)


@FEW
@given(traces(), SIZES)
def test_against_numpy(trace: Trace, sizes: list[int]) -> None:
    facts = facts_of(trace, sizes)
    gaps = np.diff(trace.arrival_s)
    span_s = float(trace.arrival_s[-1] - trace.arrival_s[0])
    assert facts["rows"] == len(trace)
    assert facts["span_s"] == pytest.approx(span_s)
    if span_s:
        assert facts["iat_cv"] == pytest.approx(gaps.std() / gaps.mean())
        assert facts["iat"]["zero_share"] == pytest.approx((gaps == 0).mean())
        assert facts["tokens"]["output_per_s"] == pytest.approx(trace.output_tokens.sum() / span_s)
    for name in ("prompt_tokens", "output_tokens"):
        column = getattr(trace, name)
        p50, p90, p99 = np.percentile(column, (50, 90, 99))
        expected = {"mean": column.mean(), "p50": p50, "p90": p90, "p99": p99, "max": column.max(), "min": column.min()}
        assert facts[name] == pytest.approx(expected)
    names = [trace.models[code] for code in trace.model.tolist()]
    assert {name: row["requests"] for name, row in facts["models"].items()} == Counter(names)
    if len(names) > 1:
        again = sum(a == b for a, b in pairwise(names)) / (len(names) - 1)
        assert facts["popularity"]["same_model_share"] == pytest.approx(again)
    if trace.output_tokens.std() > 0 and trace.prompt_tokens.std() > 0:
        correlation = np.corrcoef(trace.prompt_tokens, trace.output_tokens)[0, 1]
        assert facts["tokens"]["correlation"] == pytest.approx(correlation, abs=1e-9)
    else:
        assert facts["tokens"]["correlation"] is None


@FEW
@given(traces(), SIZES)
def test_sessions_and_concurrency_by_hand(trace: Trace, sizes: list[int]) -> None:
    facts = describe_stream(in_chunks(trace, sizes), Service(4.0, 2.0)).facts()
    ends = trace.arrival_s + trace.prompt_tokens / 4.0 + trace.output_tokens / 2.0
    # Row i sees itself and all before it that are not over.
    seen = [int((ends[: n + 1] > arrival_s).sum()) for n, arrival_s in enumerate(trace.arrival_s)]
    assert facts["concurrency"]["max"] == max(seen)
    assert facts["concurrency"]["p50"] == pytest.approx(np.percentile(seen, 50))
    turns = Counter(trace.session[trace.session >= 0].tolist())
    if not turns:
        assert facts["sessions"] is None
        return
    sessions = facts["sessions"]
    assert (sessions["sessions"], sessions["requests"]) == (len(turns), sum(turns.values()))
    assert sessions["turns"]["max"] == max(turns.values())
    gaps = [gap for code in turns for gap in np.diff(trace.arrival_s[trace.session == code]).tolist()]
    assert (sessions["gap_s"] is None) == (not gaps)
    if gaps:
        assert sessions["gap_s"]["mean"] == pytest.approx(np.mean(gaps), abs=1e-12)
        assert sessions["gap_s"]["p50"] == pytest.approx(np.percentile(gaps, 50))
    waiting = 0 if trace.think_s is None else int((~np.isnan(trace.think_s)).sum())
    assert sessions["closed_loop_requests"] == waiting


def test_windows_by_hand() -> None:
    # Two whole windows of 10 s: 12 requests a second apart within 0.5 s steps, then a silent one, then the open end.
    times = np.concatenate([np.arange(12) * 0.5, [10.0 + 0.1 * n**1.5 for n in range(12)], [31.0]])
    for size in (1, 5, 30):
        windows = Windows(10.0, fewest=10)
        for start in range(0, len(times), size):
            piece = times[start : start + size]
            windows.add(piece, np.full(len(piece), 3))
        assert windows.per_window(31.0) == pytest.approx(
            {"mean": 8.0, "max": 12, "cv": np.std([12, 12, 0]) / 8.0, "empty_share": 1 / 3}
        )
        second = np.diff(times[12:24])
        assert windows.variations.moments.count == 2
        assert windows.variations.quantiles(0.0, 1.0) == pytest.approx([0.0, second.std() / second.mean()], abs=1e-6)
        assert windows.most_tokens == 36


@FEW
@given(st.lists(st.lists(st.integers(0, 2**40) | st.integers(0, 50), min_size=1, max_size=9), min_size=1, max_size=5))
def test_a_histogram_is_exact(pieces: list[list[int]]) -> None:
    histogram = Histogram()
    for piece in pieces:
        histogram.add(np.array(piece, dtype=np.int64))
    everything = np.array([number for piece in pieces for number in piece])
    shares = (0.0, 0.1, 0.5, 0.77, 0.99, 1.0)
    assert histogram.quantiles(*shares) == pytest.approx(np.quantile(everything, shares).tolist(), rel=1e-14)
    values, counts = histogram.table()
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == Counter(everything.tolist())
    assert histogram.total == int(everything.sum())


@FEW
@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=6), min_size=1, max_size=5))
def test_moments_are_those_of_all(pieces: list[list[float]]) -> None:
    moments = Moments()
    for piece in pieces:
        moments.add(np.array(piece))
    everything = np.array([number for piece in pieces for number in piece])
    assert moments.count == len(everything)
    if len(everything):
        assert moments.mean == pytest.approx(everything.mean(), rel=1e-9, abs=1e-6)
        assert moments.squares == pytest.approx(((everything - everything.mean()) ** 2).sum(), rel=1e-9, abs=1e-3)


def test_a_spread_beyond_its_memory_is_right_to_a_fifth_of_a_per_cent(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.abs(np.random.Generator(np.random.PCG64(1)).lognormal(0, 3, 20_000))
    numbers[:200] = 0
    exact = Spread()
    exact.add(numbers)
    monkeypatch.setattr(streaming_statistics, "MOST_KEPT", 500)
    binned = Spread()
    for piece in np.split(numbers, 40):
        binned.add(piece)
    assert (exact.approximate, binned.approximate) == (False, True)
    shares = (0.001, 0.02, 0.1, 0.5, 0.9, 0.999)
    assert exact.quantiles(*shares) == pytest.approx(np.quantile(numbers, shares).tolist())
    assert binned.quantiles(*shares) == pytest.approx(exact.quantiles(*shares), rel=0.0021)
    assert binned.zeros == exact.zeros == 200
    assert binned.facts()["max"] == numbers.max()  # type: ignore[index]


@FEW
@given(st.lists(st.floats(0, 5e4), min_size=1, max_size=50), st.integers(1, 9))
def test_time_bins_lose_nothing_when_they_widen(times: list[float], size: int) -> None:
    times.sort()
    bins = TimeBins(bins=16, width_s=0.5)
    for start in range(0, len(times), size):
        bins.add(np.array(times[start : start + size]))
    assert int(bins._counts.sum()) == len(times)
    assert times[-1] < 16 * bins.width_s
    index = (np.array(times) / bins.width_s).astype(int)
    assert bins._counts.tolist() == np.bincount(index, minlength=16).tolist()


def test_concurrency_counts_what_is_not_over() -> None:
    concurrency = Concurrency()
    concurrency.add(np.array([0.0, 1.0]), np.array([1.0, 5.0]))  # the first is over when the second comes
    concurrency.add(np.array([2.0, 2.0, 9.0]), np.array([1.0, 1.0, 1.0]))
    values, counts = concurrency.seen.table()
    assert dict(zip(values.tolist(), counts.tolist(), strict=True)) == {1: 3, 2: 1, 3: 1}
    assert len(concurrency._ends_s) == 1  # what is over is forgotten


def test_prefix_hits_are_leading_blocks_seen_before(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [(1, 2, 3), (1, 2, 4), (9, 1, 2), (), (1, 9, 2)]
    trace = trace_of([Row(float(n), "a", 1, 1, blocks=each) for n, each in enumerate(blocks)])
    for sizes in ([1], [2], [9]):
        assert facts_of(trace, sizes)["prefixes"] == {"requests": 4, "blocks": 12, "hit_share": (0 + 2 + 0 + 3) / 12}
    monkeypatch.setattr("sim.traces.describe.trace_statistics.MOST_BLOCKS", 3)
    prefixes = Prefixes()
    prefixes.add(trace)
    assert prefixes.facts() == {"requests": 4, "blocks": 12, "hit_share": None}


def test_hours_of_the_day_from_two_days_on() -> None:
    busy = [Row(day * 86400.0 + 3 * 3600 + minute, "a", 1, 1) for day in range(3) for minute in range(30)]
    calm = [Row(day * 86400.0 + hour * 3600, "a", 1, 1) for day in range(3) for hour in range(4, 24)]
    rows = sorted(busy + calm, key=lambda row: row.arrival_s)
    assert facts_of(trace_of(rows))["day"] == {"quietest_hour": 0, "busiest_hour": 3, "quietest_of_busiest": 0.0}
    assert facts_of(trace_of(rows[:20]))["day"] is None


def test_one_request_and_ties_alone_have_no_rates() -> None:
    for rows in ([Row(3.0, "a", 1, 1)], [Row(3.0, "a", 1, 1), Row(3.0, "b", 2, 2)]):
        facts = describe(trace_of(rows))
        assert facts["rate_per_s"] is facts["iat_cv"] is facts["per_minute"] is None
        json.dumps(facts, allow_nan=False)
