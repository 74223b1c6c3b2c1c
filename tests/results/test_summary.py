"""summary.py: numbers that can be checked by hand, a naive second reckoning of a real run, and the empty cases."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sim.common.data_files import data_folder
from sim.core.record.recorder import REQUEST_COLUMNS, Recorder
from sim.core.state.request import COMPLETED, IMPOSSIBLE, OUTCOMES, PHASES, REJECTED, TIMED_OUT, UNFINISHED
from sim.engine.build_cluster import build_cluster
from sim.engine.engine import Outcome, simulate
from sim.profiles.library import Library
from sim.results.summary import spread, summarize
from sim.scenario.scenario import load_scenario, parse_scenario
from tests.support.cli_cases import scenario_data

NAN = math.nan


def request(outcome: int, arrival_s: float, first_token_s: float, end_s: float, **values: Any) -> dict[str, Any]:
    """A row of the recorder; 10 of 10 tokens when completed."""
    row = dict.fromkeys(REQUEST_COLUMNS, 0)
    done = outcome == COMPLETED
    row |= {"outcome": outcome, "arrival_s": arrival_s, "first_token_s": first_token_s, "end_s": end_s}
    row |= {"deadline_s": NAN, "prompt_tokens": 100, "output_tokens": 10, "produced_tokens": 10 if done else 0}
    row |= {"mean_residency": 1.0 if done else NAN}
    return row | values


def outcome_of(rows: list[dict[str, Any]], end_s: float = 100.0, **changes: Any) -> Outcome:
    """A finished run that saw just these requests."""
    scenario = parse_scenario(scenario_data(**changes), "test")
    recorder = Recorder()
    for index, row in enumerate(rows):
        recorder.columns.add([tuple((row | {"request": index}).values())])
        recorder.ended[row["outcome"]] += 1
        recorder.output_tokens += row["produced_tokens"]
    recorder.arrived = len(rows)
    cluster = build_cluster(scenario, Library())
    return Outcome(
        scenario,
        "0" * 16,
        "hand",
        "",
        (),
        cluster,
        recorder,
        {"box.h2d": {"weights": 5.0}},
        7,
        end_s,
        0.5,
    )


def test_latencies_by_hand() -> None:
    rows = [
        request(COMPLETED, 0.0, 1.0, 10.0, queued_s=0.25, load_wait_s=0.5, decode_s=9.0),
        request(COMPLETED, 10.0, 13.0, 13.0, output_tokens=1, produced_tokens=1, queued_s=2.0),
        request(UNFINISHED, 20.0, 25.0, 100.0, produced_tokens=4, mean_residency=0.5),
        request(TIMED_OUT, 30.0, NAN, 40.0),
    ]
    summary = summarize(outcome_of(rows))
    assert summary["requests"] == {
        "arrived": 4,
        "completed": 2,
        "rejected": 0,
        "impossible": 0,
        "timed_out": 1,
        "failed": 0,
        "unfinished": 1,
    }
    assert summary["ttft_s"]["count"] == 3
    assert summary["ttft_s"]["mean"] == pytest.approx(3.0)
    assert summary["ttft_s"]["max"] == 5.0
    assert summary["tpot_s"] == {"count": 1, **dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "max"), 1.0)}
    assert (summary["e2e_s"]["count"], summary["e2e_s"]["mean"]) == (2, 6.5)
    assert summary["queue_s"]["mean"] == pytest.approx((0.75 + 2.0) / 2)
    assert summary["normalised_s_per_token"]["mean"] == pytest.approx((1.0 + 3.0) / 2)
    assert summary["tokens"] == {"prompt": 300, "output": 15}
    assert summary["throughput"] == {"requests_per_s": 0.02, "output_tokens_per_s": 0.15}
    assert summary["longest_wait_s"] == 10.0
    assert summary["time_budget_s"] == {
        **dict.fromkeys(PHASES, 0.0),
        "queued": 2.25,
        "load_wait": 0.5,
        "decode": 9.0,
    }
    assert summary["models"]["chat"]["mean_residency"] == pytest.approx((10 + 1 + 4 * 0.5) / 15)


def test_attainment_counts_everyone_who_arrived() -> None:
    rows = [
        request(COMPLETED, 0.0, 5.0, 5.9),  # exactly at its limit of 5 s, TPOT exactly at 0.1 s
        request(COMPLETED, 0.0, 5.001, 5.9),  # TTFT too long
        request(COMPLETED, 0.0, 1.0, 1.91),  # TPOT too long
        request(COMPLETED, 0.0, 1.0, 1.0, output_tokens=1, produced_tokens=1),  # no TPOT to be too long
        request(REJECTED, 0.0, NAN, 0.0),
        request(UNFINISHED, 0.0, 1.0, 1.5, produced_tokens=2),
        request(IMPOSSIBLE, 0.0, NAN, 0.0),
        request(COMPLETED, 0.0, 0.1, 0.9),
    ]
    rows[0]["end_s"] = 5.0 + 9 * 0.1 * (1 - 1e-12)
    slo = summarize(outcome_of(rows, end_s=10.0))["slo"]
    assert slo == {"attained": 3, "attainment": 3 / 8, "goodput_rps": 0.3}


def test_a_deadline_is_a_limit_of_one_request() -> None:
    rows = [
        request(COMPLETED, 10.0, 10.5, 10.9, deadline_s=0.9 + 1e-12),
        request(COMPLETED, 10.0, 10.5, 10.9, deadline_s=0.8),
        request(COMPLETED, 10.0, 10.5, 10.9),
        request(TIMED_OUT, 10.0, NAN, 10.1, deadline_s=5.0),
    ]
    assert summarize(outcome_of(rows))["slo"]["attained"] == 2


def test_each_class_has_its_own_limits() -> None:
    classes = [{"name": "fast", "e2e_s": 2}, {"name": "slow"}]
    workload = {"duration_s": 60, "traffic": [{"model": "chat", "rate_per_s": 0.1, "service_class": "slow"}]}
    rows = [request(COMPLETED, 0.0, 1.0, 3.0, service_class=code) for code in (0, 1, 1)]
    summary = summarize(outcome_of(rows, service_classes=classes, workload=workload))
    assert [row["slo"]["attained"] for row in summary["classes"].values()] == [0, 2]
    assert [row["requests"]["arrived"] for row in summary["classes"].values()] == [1, 2]
    assert summary["classes"]["fast"]["limits"]["e2e_s"] == 2
    assert summary["slo"]["attained"] == 2


def test_starved_are_those_without_a_token_for_long_whatever_became_of_them() -> None:
    rows = [
        request(COMPLETED, 0.0, 31.0, 32.0),
        request(COMPLETED, 0.0, 30.0, 32.0),
        request(UNFINISHED, 10.0, NAN, 100.0),
        request(UNFINISHED, 0.0, 1.0, 100.0, produced_tokens=3, mean_residency=1.0),
        request(TIMED_OUT, 0.0, NAN, 30.5),
        request(IMPOSSIBLE, 50.0, NAN, 50.0),
    ]
    summary = summarize(outcome_of(rows, starvation_s=30))
    assert summary["switching"]["starved"] == 3
    assert summary["longest_wait_s"] == 90.0
    assert any("3 requests waited longer than 30 s" in notice for notice in summary["notices"])


@pytest.mark.parametrize(
    ("e2e_s", "expected"),
    [((4.0, 4.0), 1.0), ((4.0, None), 0.5), ((1.0, 2.0), (1 + 0.5) ** 2 / (2 * (1 + 0.25)))],
    ids=["alike", "one gets nothing", "twice as fast"],
)
def test_fairness(e2e_s: tuple[float | None, ...], expected: float) -> None:
    rows = [
        request(UNFINISHED, 0.0, NAN, 100.0, model=code) if s is None else request(COMPLETED, 0.0, 0.5, s, model=code)
        for code, s in enumerate(e2e_s)
    ]
    assert summarize(outcome_of(rows))["fairness_jain"] == pytest.approx(expected)


def test_a_model_that_nobody_could_serve_is_no_unfairness() -> None:
    rows = [request(COMPLETED, 0.0, 1.0, 2.0), request(IMPOSSIBLE, 0.0, NAN, 0.0, model=1)]
    assert summarize(outcome_of(rows))["fairness_jain"] == 1.0


def test_nothing_happened() -> None:
    summary = summarize(outcome_of([], end_s=0.0))
    text = json.dumps(summary, allow_nan=False)
    assert '"arrived": 0' in text
    assert summary["slo"] == {"attained": 0, "attainment": None, "goodput_rps": None}
    assert summary["gpus"][0]["busy_fraction"] is None
    assert summary["fairness_jain"] is None
    for key in ("ttft_s", "tpot_s", "itl_s", "e2e_s", "queue_s"):
        assert summary[key] == {"count": 0, **dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "max"))}, key


def test_cost_needs_every_price() -> None:
    outcome = outcome_of([request(COMPLETED, 0.0, 1.0, 2.0)], end_s=1800.0)
    gpu = outcome.cluster.gpus[0]
    gpu.kind = replace(gpu.kind, usd_per_hour=3.0)
    assert summarize(outcome)["cost"] == {"usd": 1.5, "output_tokens_per_usd": pytest.approx(10 / 1.5)}
    gpu.kind = replace(gpu.kind, usd_per_hour=0.0)
    assert summarize(outcome)["cost"] == {"usd": None, "output_tokens_per_usd": None}


def test_reasons_are_counted_by_outcome() -> None:
    outcome = outcome_of(
        [
            request(IMPOSSIBLE, 0.0, NAN, 0.0, reason=1),
            request(REJECTED, 0.0, NAN, 0.0, reason=2),
            request(REJECTED, 0.0, NAN, 0.0, reason=2),
        ]
    )
    outcome.recorder.reasons = {"": 0, "too long": 1, "queue full": 2}
    summary = summarize(outcome)
    assert summary["reasons"] == [
        {"outcome": "rejected", "reason": "queue full", "requests": 2},
        {"outcome": "impossible", "reason": "too long", "requests": 1},
    ]
    assert "2 requests rejected: queue full" in summary["notices"]


def test_tokens_out_of_nowhere_are_our_fault() -> None:
    outcome = outcome_of([request(COMPLETED, 0.0, 1.0, 2.0)])
    outcome.recorder.output_tokens += 1
    with pytest.raises(AssertionError, match="conserved"):
        summarize(outcome)


@pytest.fixture(scope="module")
def real() -> Outcome:
    """A run in which models are switched and the horizon cuts some requests off."""
    workload = scenario_data()["workload"] | {"duration_s": 400}
    data = scenario_data(workload=workload, horizon_s=350, cluster=_small_gpus())
    return simulate(parse_scenario(data, "test"), check=True)


def _small_gpus() -> dict[str, Any]:
    return {"nodes": [{"host": "tr-pro-5995wx", "gpus": [{"gpu": "rtx-4090"}]}], "gpu_reserve_gib": 2}


def test_a_real_run_reckoned_again(real: Outcome) -> None:
    summary = summarize(real)
    rows = [
        dict(zip(real.recorder.columns, values, strict=True))
        for values in zip(*real.recorder.columns.values(), strict=True)
    ]
    done = [row for row in rows if row["outcome"] == COMPLETED]
    assert 50 < len(done) < len(rows)
    assert summary["requests"]["arrived"] == sum(summary["requests"][name] for name in OUTCOMES) == len(rows)
    tpot_s = [(r["end_s"] - r["first_token_s"]) / (r["output_tokens"] - 1) for r in done if r["output_tokens"] > 1]
    assert summary["tpot_s"]["mean"] == pytest.approx(sum(tpot_s) / len(tpot_s), rel=1e-12)
    e2e_s = sorted(row["end_s"] - row["arrival_s"] for row in done)
    assert summary["e2e_s"]["mean"] == pytest.approx(sum(e2e_s) / len(e2e_s), rel=1e-12)
    assert e2e_s[int(0.9 * (len(e2e_s) - 1))] <= summary["e2e_s"]["p90"] <= e2e_s[int(0.9 * (len(e2e_s) - 1)) + 1]
    lived_s = sum(row["end_s"] - row["arrival_s"] for row in rows)
    assert sum(summary["time_budget_s"].values()) == pytest.approx(lived_s, rel=1e-9)
    assert summary["tokens"]["output"] == sum(row["produced_tokens"] for row in rows)
    kept = [
        row
        for row in done
        if row["first_token_s"] - row["arrival_s"] <= 5
        and (row["output_tokens"] == 1 or (row["end_s"] - row["first_token_s"]) / (row["output_tokens"] - 1) <= 0.1)
    ]
    assert 0 < len(kept) < len(done)
    assert summary["slo"]["attainment"] == len(kept) / len(rows)
    assert "horizon" in " ".join(summary["notices"])


def test_parts_add_up_to_the_whole(real: Outcome) -> None:
    summary = summarize(real)
    for parts in (summary["models"], summary["classes"]):
        for name in summary["requests"]:
            assert sum(part["requests"][name] for part in parts.values()) == summary["requests"][name]
        assert sum(part["slo"]["attained"] for part in parts.values()) == summary["slo"]["attained"]
    assert sum(part["loads"] for part in summary["models"].values()) == summary["switching"]["loads"] > 0
    assert sum(part["output_tokens"] for part in summary["models"].values()) == summary["tokens"]["output"]
    for gpu in summary["gpus"]:
        names = ("busy_fraction", "loading_fraction", "transferring_fraction", "idle_fraction")
        assert sum(gpu[name] for name in names) == pytest.approx(1.0, abs=1e-9)
        assert 0 < gpu["mean_memory_bytes"] <= gpu["peak_memory_bytes"] <= gpu["usable_memory_bytes"]


def test_token_latencies_span_first_to_last_token() -> None:
    outcome = simulate(parse_scenario(scenario_data(), "test"))
    itl_s = summarize(outcome)["itl_s"]
    columns = outcome.recorder.columns
    gaps = sum(tokens - 1 for tokens in columns["output_tokens"])
    spans_s = sum(end - first for end, first in zip(columns["end_s"], columns["first_token_s"], strict=True))
    assert itl_s["count"] == gaps
    assert itl_s["mean"] * gaps == pytest.approx(spans_s, rel=1e-9)


def test_a_model_that_fits_nowhere_is_noticed_with_numbers() -> None:
    models = [{"name": "chat", "model": "Qwen2.5-3B"}, {"name": "code", "model": "Qwen3-32B", "quantization": "FP16"}]
    nodes = [{"host": "tr-pro-5995wx", "memory_gib": 20, "gpus": [{"gpu": "rtx-a6000"}]}]
    data = scenario_data(models=models, cluster={"nodes": nodes})
    summary = summarize(simulate(parse_scenario(data, "test")))
    counts = summary["models"]["code"]["requests"]
    assert counts["impossible"] == counts["arrived"] > 0
    assert summary["models"]["chat"]["requests"]["impossible"] == 0
    assert any("code fits nowhere" in notice and "GiB" in notice for notice in summary["notices"])


def test_bytes_by_link_and_cause_add_up() -> None:
    summary = summarize(simulate(load_scenario(data_folder("traces") / "scenarios" / "desktop.yaml")))
    for cause, size in summary["switching"]["bytes_by_cause"].items():
        over_gpus = sum(moved.get(cause, 0.0) for name, moved in summary["links"].items() if "/" in name)
        over_nodes = sum(moved.get(cause, 0.0) for name, moved in summary["links"].items() if "/" not in name)
        assert over_gpus == over_nodes == size
    assert summary["links"]["desktop/rtx-4090-0.h2d"]["weights"] > 0


def test_each_quantile_is_its_own() -> None:
    assert spread(np.arange(101.0)) == {
        "count": 101,
        "mean": 50,
        "p50": 50,
        "p90": 90,
        "p95": 95,
        "p99": 99,
        "max": 100,
    }


def test_who_has_no_answer_counts_until_the_end_and_who_could_have_none_does_not() -> None:
    rows = [
        request(COMPLETED, 0.0, 1.0, 10.0),
        request(UNFINISHED, 20.0, NAN, 100.0),
        request(TIMED_OUT, 30.0, NAN, 40.0),
        request(IMPOSSIBLE, 50.0, NAN, 50.0),
    ]
    found = summarize(outcome_of(rows))["e2e_all_s"]
    assert (found["count"], found["mean"], found["max"]) == (3, pytest.approx((10 + 80 + 70) / 3), 80)


def test_who_arrives_in_the_warm_up_is_in_no_number_of_requests() -> None:
    rows = [request(COMPLETED, at_s, at_s + 1, at_s + 5) for at_s in (0.0, 9.99, 10.0, 50.0)]
    summary = summarize(outcome_of(rows, warm_up_s=10.0))
    assert summary["requests"]["arrived"] == summary["e2e_s"]["count"] == 2
    assert summary["tokens"]["output"] == 20
    assert summary["throughput"]["requests_per_s"] == pytest.approx(2 / 90)
    assert summary["warm_up"]["requests_before"] == 2
