"""Streams of a workload: each process has the statistics it is named for, and nothing depends on anything beside it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from sim.common.errors import ConfigError
from sim.traces.trace import Trace
from sim.workload.arrivals import weibull_shape
from sim.workload.generate import generate
from tests.support.generated import arrivals, counts, cv, drawn, window_cvs, workload

POISSON = {"process": "poisson", "rate_per_s": 5.0}


# --- arrivals


@pytest.mark.parametrize("process", ["gamma", "weibull"])
@pytest.mark.parametrize("of", [0.2, 1.0, 3.0])
def test_a_renewal_process_has_its_rate_its_cv_and_its_law(process: str, of: float) -> None:
    gaps = np.diff(arrivals(40_000, arrivals={"process": process, "rate_per_s": 5.0, "cv": of}))
    assert 1 / gaps.mean() == pytest.approx(5.0, rel=5 * of / math.sqrt(len(gaps)))
    assert cv(gaps) == pytest.approx(of, rel=0.05)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.02, "independent gaps"
    from scipy import stats  # noqa: PLC0415

    law = stats.gamma(1 / of**2, scale=0.2 * of**2)
    if process == "weibull":
        shape = weibull_shape(of)
        law = stats.weibull_min(shape, scale=0.2 / math.gamma(1 + 1 / shape))
    for quantile in (0.1, 0.5, 0.9, 0.99):
        assert np.mean(gaps < law.ppf(quantile)) == pytest.approx(quantile, abs=0.01)


def test_gamma_and_weibull_of_one_cv_are_not_the_same() -> None:
    share = [
        np.mean(np.diff(arrivals(20_000, arrivals={"process": process, "rate_per_s": 5, "cv": 3})) < 1e-4)
        for process in ("gamma", "weibull")
    ]
    assert share[0] > 1.5 * share[1]


@pytest.mark.parametrize("of", [0.05, 0.3, 1.0, 5.0, 50.0])
def test_the_weibull_shape_gives_the_cv(of: float) -> None:
    shape = weibull_shape(of)
    first, second = math.lgamma(1 + 1 / shape), math.lgamma(1 + 2 / shape)
    assert math.sqrt(math.expm1(second - 2 * first)) == pytest.approx(of, rel=1e-6)


@pytest.mark.parametrize("of", [0.2, 4.0])
def test_the_rate_holds_from_the_first_moment_on(of: float) -> None:
    """A process that began with an arrival, or with a whole gap, would have another mean count in a short time."""
    found = [
        len(
            generate(
                workload(2.0, {"arrivals": {"process": "gamma", "rate_per_s": 1, "cv": of}}, FILL), seed, ["default"]
            )
        )
        - FILL_ROWS
        for seed in range(1500)
    ]
    assert np.mean(found) == pytest.approx(2.0, abs=4.5 * np.std(found) / math.sqrt(len(found)))


FILL = {"arrivals": {"process": "frames", "period_s": 1.0, "phase_s": 0.5}}  # so that no run is empty
FILL_ROWS = 2


def test_cv_within_windows_survives_a_changing_rate() -> None:
    """Time rescaling: the rate changes by 20 between day and night, the burstiness in a window does not."""
    shape = {"diurnal": {"peak_to_trough": 20, "peak_hour": 12}}
    times = arrivals(86_400, arrivals={"process": "gamma", "rate_per_s": 5, "cv": 3}, rate_shape=shape)
    hours = [times[(times >= hour * 3600) & (times < hour * 3600 + 3600)] for hour in range(24)]
    sizes = [len(hour) for hour in hours]
    assert int(np.argmax(sizes)) in (11, 12)
    assert max(sizes) / min(sizes) == pytest.approx(20, rel=0.35)
    assert len(times) == pytest.approx(5 * 86_400, rel=0.03)
    assert all(cv(np.diff(hour)) == pytest.approx(3, rel=0.25) for hour in hours)


def test_hours_days_steps_and_the_start_of_the_week() -> None:
    hourly = [0.0] * 8 + [1.0] * 16
    shape = {"hourly": hourly, "weekly": [1, 1, 1, 1, 1, 0, 0], "start_hour": 96.0}  # Friday, midnight
    times = arrivals(4 * 86_400, arrivals=POISSON, rate_shape=shape)
    days, hours = times // 86_400, times % 86_400 // 3600
    assert sorted(dict.fromkeys(days.tolist())) == [0.0, 3.0]
    assert hours.min() == 8.0
    assert np.sum(days == 0) == pytest.approx(5 * 86_400 * 7 / 5, rel=0.02)
    times = arrivals(
        300, arrivals={"process": "poisson", "rate_per_s": 100}, rate_shape={"steps": [[100, 3], [200, 0]]}
    )
    assert counts(times, 100, 300).tolist() == pytest.approx([10_000, 30_000, 0], rel=0.05)


def test_a_wandering_rate_has_its_spread_and_its_memory() -> None:
    shape = {"wander": {"sigma": 0.5, "half_life_s": 600, "every_s": 60}}
    rates = (
        counts(arrivals(600_000, arrivals={"process": "poisson", "rate_per_s": 4}, rate_shape=shape), 60, 600_000) / 240
    )
    assert rates.mean() == pytest.approx(1, rel=0.1)
    spread = rates.var() - 1 / 240  # without the Poisson part
    assert spread == pytest.approx(math.exp(0.25) - 1, rel=0.25)
    after = np.mean((rates[10:] - rates.mean()) * (rates[:-10] - rates.mean())) / spread
    assert after == pytest.approx((math.exp(0.125) - 1) / (math.exp(0.25) - 1), abs=0.1)


def test_a_modulated_process_stays_in_its_states() -> None:
    states = [{"rate_per_s": 1, "dwell_s": 300}, {"rate_per_s": 20, "dwell_s": 60}, {"rate_per_s": 100, "dwell_s": 20}]
    times = arrivals(200_000, arrivals={"process": "mmpp", "states": states})
    mean = (1 * 300 + 20 * 60 + 100 * 20) / 380
    assert len(times) / 200_000 == pytest.approx(mean, rel=0.08)
    per_second = counts(times, 1, 200_000)
    assert np.mean(per_second > 60) == pytest.approx(20 / 380, rel=0.15)
    assert np.mean(per_second < 6) == pytest.approx(300 / 380, rel=0.05)
    scaled = arrivals(200_000, arrivals={"process": "mmpp", "states": states, "rate_per_s": 2.0})
    assert len(scaled) / 200_000 == pytest.approx(2.0, rel=0.08)


@pytest.mark.parametrize(("off_share", "lengths"), [(0.0, "exponential"), (0.1, "exponential"), (0.0, "pareto")])
def test_bursts_and_lulls(off_share: float, lengths: str) -> None:
    law = {"process": "on-off", "rate_per_s": 20, "on_s": 10, "off_s": 40, "off_share": off_share, "lengths": lengths}
    times = arrivals(100_000, arrivals=law)
    assert len(times) / 100_000 == pytest.approx(20, rel=0.25 if lengths == "pareto" else 0.08)
    per_second = counts(times, 1, 100_000)
    burst = 20 * 50 / (10 + off_share * 40)
    assert np.mean(per_second > burst / 2) == pytest.approx(0.2, rel=0.25 if lengths == "pareto" else 0.12)
    assert per_second[per_second > burst / 2].mean() == pytest.approx(burst, rel=0.05)


def test_heavy_tailed_bursts_are_rough_on_every_scale() -> None:
    """The index of dispersion grows far beyond the mean cycle for Pareto stays, not for exponential ones."""
    growth = []
    for lengths in ("exponential", "pareto"):
        law = {"process": "on-off", "rate_per_s": 5, "on_s": 2, "off_s": 8, "lengths": lengths}
        dispersion = []
        for width in (100, 2000):
            each = [counts(arrivals(60_000, seed, arrivals=law), width, 60_000) for seed in range(6)]
            dispersion.append(np.mean([part.var() / part.mean() for part in each]))
        growth.append(dispersion[1] / dispersion[0])
    assert growth[0] < 1.5
    assert growth[1] > 1.6 * growth[0]


def test_frames_come_at_their_rate() -> None:
    exact = arrivals(100, arrivals={"process": "frames", "period_s": 0.1, "phase_s": 0.05})
    assert np.allclose(exact, 0.05 + 0.1 * np.arange(1000))
    late = arrivals(100, arrivals={"process": "frames", "period_s": 0.1, "phase_s": 0, "jitter_s": 0.1})
    over = late - 0.1 * np.arange(len(late))
    assert 0 <= over.min() < 0.002
    assert 0.098 < over.max() <= 0.1
    assert np.mean(over) == pytest.approx(0.05, abs=0.005)
    many = arrivals(100, arrivals={"process": "frames", "period_s": 1.0, "sources": 50})
    assert counts(many, 1, 100).tolist() == [50] * 100
    assert len(np.unique(np.round(many % 1.0, 6))) == 50, "each camera has its own phase"


def test_a_stream_has_its_time() -> None:
    times = arrivals(100, arrivals=POISSON, from_s=20.0, until_s=60.0)
    assert times[0] >= 20
    assert times[-1] < 60
    assert len(times) == pytest.approx(200, abs=64)
    frames = arrivals(100, arrivals={"process": "frames", "period_s": 1, "phase_s": 0}, from_s=20.0, until_s=60.0)
    assert frames.tolist() == list(range(20, 60))


# --- lengths


def lengths(seed: int = 1, **fields: Any) -> Trace:
    return drawn(workload(10_000, {"arrivals": {"process": "poisson", "rate_per_s": 10}, **fields}), seed)


@pytest.mark.parametrize(
    ("law", "quantiles"),
    [
        ({"quantiles": {0: 1, 0.5: 100, 0.9: 1000, 1: 8000}}, {0.5: 100, 0.9: 1000, 0.7: math.sqrt(100 * 1000)}),
        ({"quantiles": {0: 0, 0.5: 100, 1: 300}}, {0.25: 50, 0.75: 200}),
        ({"median": 300, "mean": 500}, {0.5: 300, 0.841345: 300 * math.exp(math.sqrt(2 * math.log(5 / 3)))}),
        ({"median": 300, "sigma": 0.5}, {0.5: 300, 0.158655: 300 * math.exp(-0.5)}),
        ({"law": "exponential", "mean": 400}, {0.5: 400 * math.log(2), 0.99: 400 * math.log(100)}),
        ({"law": "uniform", "low": 100, "high": 300}, {0.1: 120, 0.9: 280}),
        ({"law": "pareto", "low": 100, "exponent": 2}, {0.5: 100 * math.sqrt(2), 0.99: 1000}),
        ({"law": "geometric", "mean": 1000}, {0.5: 693, 0.9: 2302}),
        (77, {0.01: 77, 0.99: 77}),
        ({"median": 300, "sigma": 2, "min": 200, "max": 400}, {0.01: 200, 0.99: 400}),
    ],
)
def test_lengths_follow_their_law(law: Any, quantiles: dict[float, float]) -> None:
    trace = lengths(prompt=law, output=law)
    for tokens in (trace.prompt_tokens, trace.output_tokens):
        for probability, value in quantiles.items():
            assert np.quantile(tokens, probability) == pytest.approx(value, rel=0.05)
    assert law == 77 or abs(np.corrcoef(trace.prompt_tokens, trace.output_tokens)[0, 1]) < 0.02


@pytest.mark.parametrize("correlation", [-0.6, 0.0, 0.9])
def test_prompt_and_output_are_correlated_whatever_their_laws(correlation: float) -> None:
    output = {"quantiles": {0: 1, 0.5: 100, 1: 4000}}
    trace = lengths(prompt={"median": 300, "mean": 600}, output=output, correlation=correlation)
    from scipy.stats import spearmanr  # noqa: PLC0415

    rank = spearmanr(trace.prompt_tokens, trace.output_tokens)[0]
    assert rank == pytest.approx(6 / math.pi * math.asin(correlation / 2), abs=0.02)
    assert np.median(trace.output_tokens) == pytest.approx(100, rel=0.05), "the laws stay as they are"
    assert np.array_equal(trace.prompt_tokens, lengths(prompt={"median": 300, "mean": 600}).prompt_tokens)


def test_models_have_their_own_lengths() -> None:
    own = {"b": {"prompt": 7}, "c": {"output": {"median": 1000, "sigma": 0.1}}}
    trace = lengths(models=["a", "b", "c"], per_model=own, prompt=50, output=60)
    seen = [
        (np.median(trace.prompt_tokens[trace.model == code]), np.median(trace.output_tokens[trace.model == code]))
        for code in range(3)
    ]
    assert seen == [(50, 60), (7, 60), (50, pytest.approx(1000, rel=0.02))]


# --- classes


def test_classes_have_shares_priorities_and_deadlines() -> None:
    stream = {
        "arrivals": {"process": "poisson", "rate_per_s": 10},
        "service_class": {"gold": 3, "batch": 1},
        "priority": 2,
        "deadline_s": 5.0,
        "deadline_per_token_s": 0.1,
        "output": 20,
        "per_class": {"batch": {"priority": 9, "deadline_s": 60.0}},
    }
    trace = drawn(workload(2000, stream), classes=("batch", "default", "gold"))
    gold = trace.service_class == 2
    assert np.mean(gold) == pytest.approx(0.75, abs=0.02)
    assert not (trace.service_class == 1).any()
    assert trace.priority[gold].tolist() == [2] * int(gold.sum())
    assert sorted(dict.fromkeys(trace.priority[~gold].tolist())) == [9]
    assert trace.deadline_s is not None
    assert np.allclose(trace.deadline_s[gold], 7.0)
    assert np.allclose(trace.deadline_s[~gold], 62.0)
    without = drawn(workload(100, {"arrivals": POISSON}), classes=("only",))
    assert without.deadline_s is None
    assert without.think_s is None
    assert without.service_classes == ("only",)


@pytest.mark.parametrize(
    ("stream", "problem"),
    [
        ({"prompt": {"median": 1e8, "sigma": 5}}, "tokens were drawn, the most is 1,000,000,000; give the law a max"),
        ({"arrivals": {"process": "gamma", "rate_per_s": 1, "cv": {"median": 900, "sigma": 0}}}, "gave a CV of 900"),
        ({"rate_shape": {"wander": {"sigma": 1, "half_life_s": 1e-9, "every_s": 1e-9}}}, "changes too often"),
        (
            {"arrivals": {"process": "frames", "period_s": 1e-9}},
            "about 1e+11 requests, the most is 10,000,000,000; lower",
        ),
        ({"popularity": {"regimes": {"mean_s": 1e-6}}, "models": ["a", "b"]}, "changes too often"),
        ({"service_class": "gold"}, "unknown service class 'gold'; known: default"),
        ({"arrivals": {"process": "poisson", "rate_per_s": 1e-9}}, "no request falls within duration_s"),
    ],
)
def test_what_shows_only_when_drawing_is_said_in_one_line(stream: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        drawn(workload(100, {"arrivals": {"process": "poisson", "rate_per_s": 5}, **stream}))
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_more_than_fits_into_memory_is_refused_before_anything_is_drawn() -> None:
    with pytest.raises(ConfigError, match=r"about 1e\+08 requests, the most is 50,000,000"):
        generate(workload(100, {"arrivals": {"process": "poisson", "rate_per_s": 1e6}}), 1, ["default"])
    talks = {"arrivals": {"process": "poisson", "rate_per_s": 1e3}, "sessions": {"turns": 1000, "think_s": 1}}
    with pytest.raises(ConfigError, match=r"about 1e\+08 requests"):
        generate(workload(100, talks), 1, ["default"])


def test_window_cvs_is_what_it_says() -> None:
    times = np.concatenate([np.arange(20) * 1.0, 100 + np.cumsum(np.tile([0.0, 2.0], 10)), [300.0]])
    assert window_cvs(times, 100.0).tolist() == pytest.approx([0.0, 1.0], abs=0.06)
