"""Drawn workloads: rates, burstiness, lengths, independence of streams, popularity laws."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.common.errors import ConfigError
from sim.scenario.scenario import GenerateWorkload, ModelTraffic
from sim.traces.compose.assign import Assignment
from sim.traces.describe.trace_statistics import describe
from sim.traces.stream import read_trace
from sim.traces.trace import Trace
from sim.workload.generate import MOST_REQUESTS, generate
from tests.support.places import ROOT

SMALL = ROOT / "traces" / "small.csv"


def workload(duration_s: float, *traffic: dict[str, Any]) -> GenerateWorkload:
    return GenerateWorkload(duration_s=duration_s, traffic=tuple(ModelTraffic(**item) for item in traffic))


def drawn(duration_s: float, *traffic: dict[str, Any], seed: int = 1) -> Trace:
    return generate(workload(duration_s, *traffic), seed, ["default"])


def of_model(trace: Trace, name: str) -> list[tuple[float, int, int]]:
    code = trace.models.index(name)
    return [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in trace.rows() if r.model == code]


@pytest.mark.parametrize("idle_share", [0.0, 0.5])
@pytest.mark.parametrize("burst_factor", [1.0, 4.0, 20.0])
def test_mean_rate_holds_whatever_the_bursts(burst_factor: float, idle_share: float) -> None:
    """Counts of independent runs against the exact mean, and their spread against the exact variance."""
    duration_s, rate, burst_s, runs = 2000.0, 1.0, 10.0, 200
    traffic = {"model": "a", "rate_per_s": rate, "burst_factor": burst_factor, "burst_s": burst_s}
    traffic["idle_share"] = idle_share
    counts = [len(drawn(duration_s, traffic, seed=seed)) for seed in range(runs)]
    # Variance of a Markov-modulated Poisson count: Poisson part + that of the integrated two-state rate,
    # whose autocovariance is variance * exp(-t * (1 / burst + 1 / idle)).
    variance = rate * duration_s
    if burst_factor > 1:
        share = (1 - idle_share) / (burst_factor - idle_share)
        decay = (1 / burst_s) / (1 - share)  # 1 / burst + 1 / idle, where idle = burst * (1 - share) / share
        rate_variance = share * (1 - share) * (rate * (burst_factor - idle_share)) ** 2
        span = decay * duration_s
        variance += 2 * rate_variance / decay**2 * (span - 1 + math.exp(-span))
    mean_error = math.sqrt(variance / runs)
    assert abs(np.mean(counts) - rate * duration_s) < 4.5 * mean_error
    assert 0.6 < np.var(counts) / variance < 1.6  # 200 runs: 4 standard errors of a variance


def test_the_first_seconds_are_like_all_others() -> None:
    """Runs much shorter than a burst: the share that starts in one must be the long-run share."""
    traffic = {"model": "a", "rate_per_s": 500.0, "burst_factor": 10.0, "burst_s": 1000.0, "idle_share": 0.1}
    counts = np.array([len(drawn(1.0, traffic, seed=seed)) for seed in range(600)])
    share = 0.9 / 9.9
    assert np.mean(counts > 1000) == pytest.approx(share, abs=4.5 * math.sqrt(share * (1 - share) / 600))
    assert counts[counts > 1000].mean() == pytest.approx(5000, rel=0.05)
    assert counts[counts <= 1000].mean() == pytest.approx(50, rel=0.05)


def test_plain_poisson_gaps_are_exponential() -> None:
    trace = drawn(20_000, {"model": "a", "rate_per_s": 2.0})
    gaps = np.diff(trace.arrival_s)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.03)
    for quantile in (0.1, 0.5, 0.9):
        assert np.mean(gaps < -math.log(1 - quantile) / 2.0) == pytest.approx(quantile, abs=0.01)


def test_burstiness_grows_with_burst_factor() -> None:
    variations = []
    for factor in (1.0, 2.0, 5.0, 20.0):
        traffic = {"model": "a", "rate_per_s": 2.0, "burst_factor": factor, "burst_s": 20.0}
        variations.append(describe(drawn(40_000, traffic))["per_minute"]["cv"])
    assert variations == sorted(variations)
    assert variations[-1] > 4 * variations[0]


def test_rate_inside_and_outside_of_bursts() -> None:
    """idle_share 0: silence between bursts; inside, requests come at burst_factor times the mean rate."""
    traffic = {"model": "a", "rate_per_s": 1.0, "burst_factor": 50.0, "burst_s": 30.0, "idle_share": 0.0}
    gaps = np.diff(drawn(100_000, traffic).arrival_s)
    inside = gaps[gaps < 1.0]  # a gap of 1 s inside a burst has probability exp(-50)
    assert 1 / inside.mean() == pytest.approx(50.0, rel=0.02)
    outside = gaps[gaps >= 1.0]
    assert outside.mean() == pytest.approx(30.0 * 49, rel=0.5)  # about 66 silences


@pytest.mark.parametrize(("median", "mean"), [(512.0, 800.0), (100.0, 100.0), (20.0, 60.0)])
def test_lengths_have_the_median_and_mean_asked_for(median: float, mean: float) -> None:
    traffic = {"model": "a", "rate_per_s": 100.0, "prompt_median": median, "prompt_mean": mean}
    traffic |= {"output_median": median, "output_mean": mean, "prompt_max": 10**9, "output_max": 10**9}
    trace = drawn(2000, traffic)
    assert len(trace) > 190_000
    for tokens in (trace.prompt_tokens, trace.output_tokens):
        assert np.median(tokens) == pytest.approx(median, rel=0.02)
        assert tokens.mean() == pytest.approx(mean, rel=0.03)
    if mean > median:
        one_sigma_up = np.quantile(trace.prompt_tokens, 0.841345)
        assert np.log(one_sigma_up / median) == pytest.approx(math.sqrt(2 * math.log(mean / median)), rel=0.02)
        assert abs(np.corrcoef(trace.prompt_tokens, trace.output_tokens)[0, 1]) < 0.02


def test_lengths_are_cut_to_their_limits() -> None:
    traffic = {"model": "a", "rate_per_s": 10.0, "prompt_median": 2, "prompt_mean": 20, "prompt_max": 30}
    trace = drawn(1000, traffic | {"output_median": 0.1, "output_mean": 0.1})
    assert trace.prompt_tokens.min() == 1
    assert trace.prompt_tokens.max() == 30
    assert set(trace.output_tokens.tolist()) == {1}


A = {"model": "a", "rate_per_s": 3.0, "burst_factor": 4.0, "burst_s": 5.0}
B = {"model": "b", "rate_per_s": 2.0}


def test_models_do_not_touch_each_other() -> None:
    both = drawn(300, A, B)
    assert of_model(both, "a") == of_model(drawn(300, A), "a")
    assert of_model(both, "b") == of_model(drawn(300, {**A, "rate_per_s": 9.0}, B), "b")
    assert of_model(both, "b") == of_model(drawn(300, B, A), "b")
    assert of_model(both, "a") != of_model(drawn(300, A, seed=2), "a")


def test_purposes_do_not_touch_each_other() -> None:
    plain, longer = drawn(300, A), drawn(300, {**A, "prompt_mean": 2000})
    assert plain.arrival_s.tolist() == longer.arrival_s.tolist()
    assert plain.output_tokens.tolist() == longer.output_tokens.tolist()
    assert plain.prompt_tokens.tolist() != longer.prompt_tokens.tolist()


def test_one_model_may_have_two_kinds_of_traffic() -> None:
    slow = {
        "model": "b",
        "rate_per_s": 1.0,
        "service_class": "batch",
        "prompt_median": 4000,
        "prompt_mean": 4000,
    }
    trace = generate(workload(400, B, slow, A), 1, ["batch", "default"])
    assert trace.models == ("b", "a")
    assert trace.service_classes == ("batch", "default")
    kinds = {(trace.models[row.model], trace.service_classes[row.service_class]) for row in trace.rows()}
    assert kinds == {("b", "default"), ("b", "batch"), ("a", "default")}
    batch = trace.service_class == 0
    assert set(trace.prompt_tokens[batch].tolist()) == {4000}
    together = drawn(400, B, B)
    assert len(np.unique(together.arrival_s)) == len(together), "two equal kinds of traffic must be two draws"


def test_same_seed_same_digest() -> None:
    assert drawn(500, A, B).digest() == drawn(500, A, B).digest()
    assert drawn(500, A, B).digest() != drawn(500, A, B, seed=2).digest()


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**63 - 1),
    duration_s=st.floats(0.5, 500),
    rate=st.floats(0.5, 20),
    factor=st.floats(1, 1000),
    burst_s=st.floats(0.01, 1000),
    idle_share=st.floats(0, 0.99),
)
def test_any_traffic_gives_a_valid_trace(
    seed: int, duration_s: float, rate: float, factor: float, burst_s: float, idle_share: float
) -> None:
    traffic = {
        "model": "a",
        "rate_per_s": rate,
        "burst_factor": factor,
        "burst_s": burst_s,
        "idle_share": idle_share,
    }
    try:
        trace = drawn(duration_s, traffic, B, seed=seed)
    except ConfigError:
        assert (rate + 2.0) * duration_s < 60, "so many expected requests cannot all be missing"
        return
    assert 0 <= trace.arrival_s[0] <= trace.arrival_s[-1] < duration_s
    assert trace.prompt_tokens.min() >= 1
    assert 0 <= trace.model.min() <= trace.model.max() <= 1


@pytest.mark.parametrize(
    ("duration_s", "traffic", "problem"),
    [
        (1e9, {"rate_per_s": 1000.0}, "the most is 50,000,000; lower"),
        (1e-9, {"rate_per_s": 1.0}, "no request falls within duration_s"),
        (1e6, {"rate_per_s": 1.0, "burst_factor": 2.0, "burst_s": 1e-6}, "burst_s 1e-06 of 'a' is too short"),
        (10, {"rate_per_s": 1.0, "service_class": "zz"}, "unknown service class 'zz'; known: default"),
    ],
)
def test_mistakes(duration_s: float, traffic: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        drawn(duration_s, {"model": "a", **traffic})
    assert problem in str(caught.value)
    assert MOST_REQUESTS == 50_000_000


def test_zipf_follows_its_law_and_leaves_the_rest_alone() -> None:
    trace = drawn(10_000, {"model": "x", "rate_per_s": 10.0})
    models = [f"m{n}" for n in range(5)]
    assigned = Assignment("zipf:1.0", models, seed=3).apply(trace)
    weights = 1 / np.arange(1, 6)
    expected = weights / weights.sum() * len(trace)
    counts = np.bincount(assigned.model, minlength=5)
    assert (np.abs(counts - expected) < 4.5 * np.sqrt(expected)).all()
    assert assigned.models == tuple(models)
    assert replace(assigned, model=trace.model, models=trace.models).digest() == trace.digest()
    same = np.mean(assigned.model[1:] == assigned.model[:-1])  # independent draws: the sum of squared shares
    assert same == pytest.approx(float(((weights / weights.sum()) ** 2).sum()), abs=0.01)
    assert Assignment("zipf:1.0", models, seed=3).apply(trace).digest() == assigned.digest()
    assert Assignment("zipf:1.0", models, seed=4).apply(trace).digest() != assigned.digest()
    assert describe(assigned)["popularity_slope"] == pytest.approx(-1.0, abs=0.05)


def test_uniform_and_round_robin() -> None:
    trace = drawn(3000, {"model": "x", "rate_per_s": 10.0})
    even = np.bincount(Assignment("uniform", ["a", "b", "c"], seed=1).apply(trace).model)
    assert (np.abs(even - len(trace) / 3) < 4.5 * math.sqrt(len(trace) / 3)).all()
    assert even.tolist() == np.bincount(Assignment("zipf:0", ["a", "b", "c"], seed=1).apply(trace).model).tolist()
    turns = Assignment("round-robin", ["a", "b", "c"], seed=1).apply(trace).model
    assert turns.tolist() == [n % 3 for n in range(len(trace))]
    steep = Assignment("zipf:100", ["a", "b"], seed=1).apply(trace)
    assert set(steep.model.tolist()) == {0}


@pytest.mark.parametrize("law", ["zip:1", "zipf", "zipf:", "zipf:x", "zipf:-1", "zipf:nan", "zipf:1e9", "", "Uniform"])
def test_bad_laws_are_named_with_the_good_ones(law: str) -> None:
    trace = drawn(100, B)
    with pytest.raises(ConfigError, match=r"zipf:1\.0") as caught:
        Assignment(law, ["a"], seed=1).apply(trace)
    assert law in str(caught.value)
    with pytest.raises(ConfigError, match="no models"):
        Assignment("uniform", [], seed=1).apply(trace)


def test_the_small_trace_is_what_its_readme_says() -> None:
    """The command in traces/README.md makes traces/small.csv."""
    text = (SMALL.parent / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(compile(code.replace("write_trace(", "keep = ("), "traces/README.md", "exec"), names)
    made, path = names["keep"]
    assert path == Path("traces/small.csv")
    stored = read_trace(SMALL, strict=True)
    assert len(stored) == len(made)
    # A last-digit difference of another machine's exp or log may move a rounded time or length by one step.
    assert np.abs(stored.arrival_s - made.arrival_s).max() <= 1.1e-6
    assert np.abs(stored.prompt_tokens - made.prompt_tokens).max() <= 1
    assert np.abs(stored.output_tokens - made.output_tokens).max() <= 1
    assert [stored.models[m] for m in stored.model] == [made.models[m] for m in made.model]
