"""statistics.py: intervals by hand and by simulation, p values, ratios, Holm, the Pareto front, MSER-5, coverage."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from sim.common.statistics import (
    FEWEST_TO_RESAMPLE,
    Interval,
    difference,
    estimate,
    holm,
    mser5,
    p_value,
    pareto_front,
    ratio,
)
from sim.conformance import hardware
from sim.scenario.scenario import Scenario
from tests.support.scenarios import (
    FREE_OF_COST,
    Row,
    Script,
    columns,
    load_all,
    nodes,
    play,
    scenario,
    serve_all,
    trace,
    write_profiles,
)

Floats = NDArray[np.float64]

# --- one sample


def test_the_t_interval_is_the_textbook_s() -> None:
    # Ten numbers whose mean is 5.5 and variance 55/6; t(0.975, 9) = 2.2621572.
    seen = estimate(list(range(1, 11)))
    half = 2.2621572 * math.sqrt(55 / 6 / 10)
    assert (seen.mean, seen.known, seen.missing) == (5.5, 10, 0)
    assert seen.t is not None
    assert (seen.t.low, seen.t.high) == pytest.approx((5.5 - half, 5.5 + half), abs=1e-6)
    assert seen.t.half == pytest.approx(half)
    assert seen.bootstrap is not None
    assert seen.bootstrap.low < 5.5 < seen.bootstrap.high


@pytest.mark.parametrize("confidence", [0.8, 0.99])
def test_more_confidence_is_wider(confidence: float) -> None:
    wide, usual = estimate(list(range(10)), confidence), estimate(list(range(10)))
    assert wide.t is not None
    assert usual.t is not None
    assert wide.bootstrap is not None
    assert usual.bootstrap is not None
    assert (wide.t.half > usual.t.half) == (confidence > 0.95)
    assert (wide.bootstrap.half > usual.bootstrap.half) == (confidence > 0.95)


def test_one_number_has_no_interval_and_none_has_no_mean() -> None:
    assert estimate([3.0]) == estimate(np.array([3.0]))
    assert (estimate([3.0]).mean, estimate([3.0]).t, estimate([3.0]).bootstrap) == (3.0, None, None)
    for empty in ([], [None, None], [math.nan, math.inf, -math.inf]):
        seen = estimate(empty)
        assert (seen.mean, seen.t, seen.bootstrap, seen.known) == (None, None, None, 0)
        assert seen.missing == len(empty)


def test_missing_numbers_are_counted_not_averaged() -> None:
    seen = estimate([1.0, None, 3.0, math.nan, math.inf])
    assert (seen.mean, seen.known, seen.missing) == (2.0, 2, 3)
    assert seen.t is not None
    assert seen.t.half == pytest.approx(12.7062047 * math.sqrt(2) / math.sqrt(2), rel=1e-6)


@pytest.mark.parametrize("value", [0.0, 7.25, -1e-300, 1e300])
def test_equal_numbers_leave_no_doubt(value: float) -> None:
    seen = estimate([value] * 6)
    assert seen.t == Interval(seen.mean, seen.mean)  # type: ignore[arg-type]
    assert seen.bootstrap == Interval(seen.mean, seen.mean)  # type: ignore[arg-type]
    assert seen.mean == pytest.approx(value)


def test_few_numbers_are_not_resampled() -> None:
    few, enough = list(range(FEWEST_TO_RESAMPLE - 1)), list(range(FEWEST_TO_RESAMPLE))
    assert estimate(few).bootstrap is None
    assert estimate(enough).bootstrap is not None


def test_the_bootstrap_says_the_same_every_time_and_knows_skew() -> None:
    numbers = np.random.default_rng(1).exponential(size=30)
    first, second = estimate(numbers).bootstrap, estimate(numbers.copy()).bootstrap
    assert first == second
    assert first is not None
    assert first.high - numbers.mean() > 1.1 * (numbers.mean() - first.low)  # the long tail is on the right


@pytest.mark.parametrize("outlier", [1.0, 1e6])
def test_all_but_one_number_alike_still_gives_an_interval(outlier: float) -> None:
    seen = estimate([0.0] * 9 + [outlier])
    assert seen.bootstrap is not None
    assert 0 <= seen.bootstrap.low <= outlier / 10 <= seen.bootstrap.high <= outlier


# --- pairs


def test_pairing_takes_out_what_pairs_share() -> None:
    draws = np.random.default_rng(2)
    shared = draws.normal(100, 20, size=10)
    first, second = shared + 1 + draws.normal(0, 0.1, size=10), shared
    gap = difference(first, second)
    assert gap.estimate.mean == pytest.approx(1, abs=0.1)
    assert gap.estimate.t is not None
    assert gap.estimate.t.half < 0.15
    assert gap.p is not None
    assert gap.p < 1e-6
    assert (gap.below, gap.above, gap.equal) == (0, 10, 0)
    assert gap.p == pytest.approx(stats.ttest_rel(first, second).pvalue)
    assert gap.p == p_value(first, second)
    assert stats.ttest_ind(first, second).pvalue > 0.5


def test_a_pair_with_a_missing_number_is_no_pair() -> None:
    gap = difference([1.0, None, 5.0, math.inf], [0.0, 1.0, math.nan, 1.0])
    assert (gap.estimate.mean, gap.estimate.known, gap.estimate.missing) == (1.0, 1, 3)
    assert gap.p is None
    assert p_value([None], [1.0]) is None


def test_equal_differences_are_judged_by_their_signs() -> None:
    # t would be sure of anything: its deviation is zero. Ten equal signs by chance: 2 / 2^10.
    assert difference([2.0] * 10, [1.0] * 10).p == pytest.approx(2 / 2**10)
    assert difference([2.0, 2.0], [1.0, 1.0]).p == pytest.approx(0.5)
    same = difference([2.0] * 10, [2.0] * 10)
    assert (same.p, same.estimate.t, same.equal) == (1.0, Interval(0.0, 0.0), 10)


def test_rounding_is_no_difference() -> None:
    gap = difference([0.1 + 0.2] * 5, [0.3] * 5)
    assert (gap.estimate.mean, gap.p, gap.equal) == (0.0, 1.0, 5)


@settings(derandomize=True, deadline=None, max_examples=50)
@given(values=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=12), shift=st.floats(-1e3, 1e3))
def test_a_difference_turns_its_sign_with_its_sides(values: list[float], shift: float) -> None:
    other = [value * 0.5 + shift for value in values]
    there, back = difference(values, other), difference(other, values)
    assert there.p == pytest.approx(back.p)
    assert (there.below, there.above) == (back.above, back.below)
    assert there.estimate.mean == pytest.approx(-(back.estimate.mean or 0.0))
    assert there.estimate.t is not None
    assert back.estimate.t is not None
    assert there.estimate.t.low == pytest.approx(-back.estimate.t.high, rel=1e-9, abs=1e-9)


def test_a_ratio_of_means_and_its_interval() -> None:
    draws = np.random.default_rng(3)
    below = draws.normal(10, 1, size=(400, 10))
    above = 2 * below + draws.normal(0, 1, size=(400, 10))
    covered = 0
    for first, second in zip(above, below, strict=True):
        seen = ratio(first, second)
        assert seen.mean == pytest.approx(first.mean() / second.mean())
        assert seen.t is not None
        covered += seen.t.low <= 2 <= seen.t.high
    assert 0.93 * 400 <= covered <= 0.97 * 400


@pytest.mark.parametrize("baseline", [[0.0] * 5, [1.0, -1.0, 1.0, 1.0, 1.0], [], [None] * 5])
def test_there_is_no_ratio_to_what_may_be_nothing(baseline: list[float | None]) -> None:
    seen = ratio([1.0] * len(baseline), baseline)
    assert (seen.mean, seen.t, seen.bootstrap) == (None, None, None)


# --- many at once


def test_holm_by_hand() -> None:
    # 4 tests: 0.01 * 4, 0.02 * 3, then 0.03 * 2 = 0.06 and never less than before it, 0.6.
    assert holm([0.03, 0.01, None, 0.6, 0.02]) == pytest.approx([0.06, 0.04, None, 0.6, 0.06])
    assert holm([None]) == [None]
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_holm_keeps_false_claims_rare() -> None:
    """20 policies that are all the same as the baseline: in about 95 % of experiments none is said to differ."""
    draws = np.random.default_rng(4)
    wrong = 0
    for _ in range(200):
        baseline = draws.normal(size=10)
        found = holm([p_value(draws.normal(size=10), baseline) for _ in range(20)])
        wrong += min(p for p in found if p is not None) < 0.05
    assert wrong <= 0.09 * 200


def test_the_front_is_what_nobody_beats() -> None:
    points = [(1.0, 5.0), (2.0, 2.0), (5.0, 1.0), (5.0, 5.0), (2.0, 3.0), (2.0, 2.0)]
    assert pareto_front(points) == [True, True, True, False, False, True]
    assert pareto_front([(3.0,), (1.0,)]) == [False, True]
    assert pareto_front([]) == []


# --- warm-up


def test_mser_cuts_the_beginning_that_is_different() -> None:
    steady = np.random.default_rng(5).normal(10, 1, size=2000)
    late = steady.copy()
    late[:300] += np.linspace(30, 0, 300)
    cut = mser5(late)
    assert cut is not None
    assert 200 <= cut <= 350
    assert cut % 5 == 0
    untouched = mser5(steady)
    assert untouched is not None
    assert untouched <= 200


def test_mser_says_when_a_series_does_not_settle() -> None:
    assert mser5(np.linspace(0, 100, 1000)) is None
    assert mser5([0.0] * 600 + [50.0] * 400) is None
    assert mser5([1.0] * 19) == 0
    assert mser5([]) == 0
    assert mser5([2.0] * 500) == 0


def test_mser_is_what_its_definition_says() -> None:
    series = np.random.default_rng(6).exponential(size=203) + np.exp(-np.arange(203) / 10)
    means = series[:200].reshape(40, 5).mean(axis=1)
    scores = [means[cut:].var() / (40 - cut) for cut in range(35)]
    best = int(np.argmin(scores))
    assert mser5(series) == (None if best > 20 else best * 5)


# --- coverage: a queue whose mean is known


def stationary_waits(load: float, runs: int, requests: int, draws: np.random.Generator) -> Floats:
    """Mean waits of many M/M/1 queues with a mean service of 1, by Lindley's recursion from the steady state."""
    ahead = draws.geometric(1 - load, size=runs) - 1
    waits = np.where(ahead > 0, draws.gamma(np.maximum(ahead, 1)), 0.0)
    waits = np.maximum(0.0, waits - draws.exponential(1 / load, size=runs))
    total = np.zeros(runs)
    for _ in range(requests):
        total += waits
        gaps = draws.exponential(1 / load, size=runs)
        waits = np.maximum(0.0, waits + draws.exponential(size=runs) - gaps)
    return total / requests


@pytest.mark.parametrize("seeds", [10, 20])
def test_95_percent_intervals_cover_the_mean_wait_of_a_queue(seeds: int) -> None:
    """400 experiments of so many runs of 4,000 requests at load 0.5: mean wait rho / (1 - rho) = 1 service time.

    That the engine's waits are those of the recursion is shown in test_laws.py.
    """
    means = stationary_waits(0.5, 400 * seeds, 4000, np.random.default_rng(7)).reshape(400, seeds)
    assert_covered(means, 1.0)


def assert_covered(means: Floats, truth: float) -> None:
    """Both intervals hold the truth in 93 to 97 % of the experiments, the rows."""
    for way in ("t", "bootstrap"):
        found = [getattr(estimate(row), way) for row in means]
        covered = np.mean([interval.low <= truth <= interval.high for interval in found])
        assert 0.93 <= covered <= 0.97, (way, covered)


STEP_S, LOAD, TOKENS, REQUESTS, QUEUES = 0.01, 0.2, 150, 60, 40


def test_95_percent_intervals_cover_what_the_engine_measures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same through the engine: 400 experiments of 8 runs of 60 requests, 40 queues side by side in each play.

    Each queue begins in the steady state: with a geometric number of requests, of which none has begun (service has no
    memory). Its mean time in the system is 1 / (1 - rho) service times; a service is a geometric number of tokens,
    which is within 0.3 % of exponential.
    """
    monkeypatch.setattr(hardware, "step_s", lambda layers, of, batch, context: STEP_S * batch)
    monkeypatch.setattr(hardware, "prefill_s", lambda layers, of, tokens: STEP_S)
    monkeypatch.setattr(hardware, "BATCHES", (1, 512))
    profiles = str(write_profiles(tmp_path / "constant", switch=FREE_OF_COST))
    names = [f"m{number}" for number in range(QUEUES)]
    of = scenario(
        profiles=profiles,
        cluster=nodes(("small", QUEUES)),
        models=[{"name": name, "model": "four", "engine": "quick", "max_context": 4096} for name in names],
        engine={"max_sequences": 1, "watermark": 0},
    )
    draws = np.random.default_rng(8)
    means = np.concatenate([_times_in_system(of, names, draws) for _ in range(400 * 8 // QUEUES)])
    assert_covered(means.reshape(400, 8), 1 / (1 - LOAD))


def _times_in_system(of: Scenario, names: list[str], draws: np.random.Generator) -> Floats:
    """The mean time in the system of each queue's requests, in mean services."""
    service_s, start_s = TOKENS * STEP_S, 60.0
    rows: list[Row] = []
    for name in names:
        ahead = int(draws.geometric(1 - LOAD)) - 1
        gaps_s = draws.exponential(service_s / LOAD, REQUESTS)
        arrivals_s = [*[start_s] * ahead, *(start_s + np.cumsum(gaps_s)).tolist()]
        tokens = draws.geometric(1 / TOKENS, len(arrivals_s)).tolist()
        rows += [(arrival_s, name, 1, min(count, 4000)) for arrival_s, count in zip(arrivals_s, tokens, strict=True)]
    rows.sort(key=lambda row: row[0])
    seen = columns(play(of, Script(serve_all, load_all), trace(of, rows), check=False))
    lasted_s, later = seen["end_s"] - seen["arrival_s"], seen["arrival_s"] > start_s
    models = np.array([names.index(row[1]) for row in rows])
    return np.array([lasted_s[later & (models == number)].mean() for number in range(len(names))]) / service_s
