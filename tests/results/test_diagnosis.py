"""diagnosis.py: what has gone wrong is named with its numbers, a healthy run is left alone, and every run ends."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.api.simulate import simulate
from sim.common.errors import PolicyError
from sim.policy import Action, Load, Policy, Route, Stop, View, Wake, load_policy
from sim.report.write import report
from sim.results import diagnosis
from sim.results.diagnosis import QueueGrowth, coming_back, queue_of
from sim.runs.run_one import RunOptions, run
from tests.support import scenarios as parts
from tests.support.cli_cases import invoke, scenario_data, write_scenario
from tests.support.places import ROOT
from tests.support.scenarios import Script

SCENARIOS = ROOT / "traces" / "scenarios"
DAY_S = 86_400


def workload(chat: float, code: float, duration_s: float = 600) -> dict[str, Any]:
    traffic = [{"model": "chat", "rate_per_s": chat}, {"model": "code", "rate_per_s": code}]
    return {"duration_s": duration_s, "traffic": traffic}


def kinds(summary: dict[str, Any]) -> list[str]:
    return [problem["kind"] for problem in summary.get("problems", [])]


def text_of(summary: dict[str, Any], kind: str) -> str:
    return next(str(problem["text"]) for problem in summary["problems"] if problem["kind"] == kind)


class Quarrel(Policy):
    """Whoever has a request throws the other model out once that has been there for a second."""

    def __init__(self) -> None:
        super().__init__()
        self._since_s: dict[int, float] = {}

    def decide(self, view: View) -> Iterator[Action]:
        for model in view.waiting_models:
            own = [instance for instance in model.instances if instance.accepts]
            if own:
                yield from (Route(request, own[0]) for request in list(model.waiting))
            elif not view.instances:
                yield Load(model, view.gpus[0], model.layers)
                return
            else:
                for other in [other for other in view.instances if other.ready]:
                    if view.now_s - self._since_s.setdefault(other.number, view.now_s) >= 1:
                        yield Stop(other, "preempt")
                    else:
                        yield Wake(view.now_s + 1)


def test_two_models_that_evict_each_other_are_thrashing() -> None:
    played = simulate(scenario_data(workload=workload(0.4, 0.4)), policy=Quarrel())
    assert "thrashing" in kinds(played.summary)
    problem = next(problem for problem in played.summary["problems"] if problem["kind"] == "thrashing")
    spent = [gpu.activity_s for gpu in played.outcome.cluster.gpus]
    switching_s = sum(gpu["loading"] + gpu["transferring"] for gpu in spent)
    assert problem["switching_s"] == pytest.approx(switching_s)
    assert problem["share"] == pytest.approx(switching_s / (switching_s + sum(gpu["computing"] for gpu in spent)))
    assert problem["loads"] == played.summary["switching"]["loads"]
    assert problem["soon"] > 0.9 * problem["loads"] - 2
    text = problem["text"]
    assert f"{problem['soon']:,} of {problem['loads']:,} loads" in text
    assert "named from 40% on" in text


@pytest.mark.parametrize("policy", ["residency-aware", "lru-swap", "least-loaded", "static-split", "qlm"])
def test_healthy_runs_have_no_problems(policy: str) -> None:
    for data in (scenario_data(workload=workload(0.5, 0.1, 900)), scenario_data()):
        summary = simulate(data, policy=policy).summary
        assert "problems" not in summary, summary["problems"]


@pytest.mark.parametrize("scenario", ["default", "lab"])
def test_bundled_scenarios_are_healthy_under_our_policy(scenario: str) -> None:
    summary = run(RunOptions(scenario=SCENARIOS / f"{scenario}.yaml"))
    assert "problems" not in summary, summary["problems"]


def test_a_day_of_three_times_the_capacity(tmp_path: Path) -> None:
    """The run ends, and says what was wrong with it: in the summary, in print, in the report."""
    models = [{"name": "chat", "model": "Llama-3-70B", "quantization": "Q4_K_M"}]
    engine = {"max_sequences": 1}
    traffic = {"duration_s": DAY_S, "traffic": [{"model": "chat", "rate_per_s": 0.2}]}
    data = scenario_data(models=models, workload=traffic, engine=engine)
    played = simulate(data, policy="least-loaded")
    summary = played.summary
    arrived = summary["requests"]["arrived"]
    assert arrived > 10_000
    assert summary["requests"]["completed"] == arrived - summary["requests"]["impossible"]
    assert kinds(summary)[0] == "queue-growth"
    assert "starvation" in kinds(summary)
    problem = summary["problems"][0]
    assert problem["backlog_end"] > 0.5 * arrived
    assert problem["arriving_per_s"] == pytest.approx(0.2, rel=0.1)
    end_s = summary["engine"]["sim_s"]
    capacity = arrived / end_s  # it was busy all the time
    assert problem["leaving_per_s"] == pytest.approx(capacity, rel=0.1)
    assert 0.2 / capacity > 3
    played.save(tmp_path / "run")
    page = report(tmp_path / "run", tmp_path / "page.md").read_text()
    assert "Problem: the queue grows: " in page


def test_problems_are_printed(tmp_path: Path) -> None:
    asked = ("run", write_scenario(tmp_path, workload=workload(0.4, 0.4)), "--policy", "exclusive-swap")
    summary = json.loads(invoke(*asked, "--set", "starvation_s=1", "--json").stdout)
    result = invoke(*asked, "--set", "starvation_s=1")
    assert ("Problems" in result.stdout) == bool(kinds(summary))
    assert "starvation" in kinds(summary)
    said = " ".join(result.stdout.split())
    for problem in summary["problems"]:
        assert problem["text"] in said
    assert "Problems" not in invoke("run", write_scenario(tmp_path)).stdout


def test_memory_grows_with_what_waits_and_not_with_what_is_over() -> None:
    def peak_bytes(duration_s: float) -> int:
        data = scenario_data(workload=workload(1.0, 0.2, duration_s))
        tracemalloc.start()
        try:
            assert "problems" not in simulate(data, policy="lru-swap").summary
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak_bytes(60)  # what is loaded once
    short, long = peak_bytes(600), peak_bytes(2400)
    # A row of a request that is over is about 170 bytes, and columns are put together once more for the summary.
    assert long - short < 1.2 * 1800 * 1500, (short, long)


# --- what is named, and from where on


def test_queue_growth_is_not_named_for_a_burst_that_passes() -> None:
    chance = np.random.default_rng(1)
    arrival_s = np.sort(chance.uniform(0, 1000, 1000))
    steady = queue_of(arrival_s, arrival_s + 50)
    assert steady is not None
    assert not steady.grows  # they wait long, but no longer and longer
    late = queue_of(arrival_s, arrival_s * 3)
    assert late is not None
    assert late.grows
    assert late.came == pytest.approx(500, rel=0.1)
    assert late.left == pytest.approx(late.came / 3, rel=0.1)
    burst = np.sort(np.concatenate([arrival_s, chance.uniform(450, 550, 500)]))
    passing = queue_of(burst, np.where((burst > 450) & (burst < 650), burst + 150, burst + 1))
    assert passing is not None
    assert not passing.grows
    assert queue_of(np.zeros(5), np.ones(5)) is None
    assert queue_of(np.zeros(0), np.zeros(0)) is None


def test_one_starved_model_among_many_is_named() -> None:
    def unfair(view: View) -> Iterator[Action]:
        first = view.models[0]
        for instance in first.instances:
            yield from (Route(request, instance) for request in list(first.waiting) if instance.accepts)

    def load(view: View) -> Iterator[Action]:
        yield Load(view.models[0], view.gpus[0], view.models[0].layers)

    summary = simulate(scenario_data(workload=workload(0.5, 0.2)), policy=Script(unfair, load)).summary
    assert kinds(summary) == ["queue-growth", "unanswered", "starvation"]
    codes = summary["models"]["code"]["requests"]["arrived"]
    assert "the queue of code grows" in text_of(summary, "queue-growth") or "code " in text_of(summary, "queue-growth")
    assert "nothing is carried" in text_of(summary, "queue-growth") or "0/s left" in text_of(summary, "queue-growth")
    assert f"code {codes:,} of {codes:,}" in text_of(summary, "unanswered")


def test_who_serves_nobody_comes_to_an_end() -> None:
    summary = simulate(scenario_data(), policy=Script(lambda _: ())).summary
    assert summary["requests"]["completed"] == 0
    assert "nobody got an answer" in text_of(summary, "unanswered")


def test_requests_just_before_the_horizon_are_no_problem() -> None:
    summary = simulate(scenario_data(horizon_s=20), policy="lru-swap").summary
    assert summary["requests"]["unfinished"] > 0
    assert "problems" not in summary


# --- every run ends


def load_and_stop(view: View) -> Iterator[Action]:
    there = list(view.instances)
    yield from (Stop(instance, "abort") for instance in there)
    if not there:
        yield Load(view.models[0], view.gpus[0], view.models[0].layers)


@pytest.mark.parametrize(
    ("decide", "ideal", "message"),
    [
        (load_and_stop, [], "20000 times in a row while no request arrived, got a token or ended"),
        (load_and_stop, ["switches"], "20000 times in a row while no request arrived, got a token or ended"),
        (lambda view: [Wake(view.now_s + 1e-3)], [], "it asked to be woken 10000 times in a row"),
    ],
    ids=["for ever", "in no time", "waiting for nothing"],
)
def test_a_policy_that_gets_nowhere_is_stopped(decide: Any, ideal: list[str], message: str) -> None:
    with pytest.raises(PolicyError, match=message):
        simulate(scenario_data(engine={"ideal": ideal}), policy=Script(decide))


def test_thresholds_stand_in_the_texts() -> None:
    """Who changes a threshold changes what is said of it."""
    for value, text in ((diagnosis.SWITCHING, "40%"), (diagnosis.STARVED, "1%"), (diagnosis.LEAVING, "90%")):
        assert diagnosis._percent(value) == text


def test_a_queue_grows_only_quarter_after_quarter() -> None:
    assert QueueGrowth((10, 20, 60, 120), came=200, left=100, half_s=1.0).grows
    assert not QueueGrowth((100, 20, 10, 120), came=200, left=100, half_s=1.0).grows


def test_a_model_that_was_away_for_long_does_not_come_back_soon() -> None:
    """Two models by turns, once a second or once in five minutes."""
    found = []
    for every_s in (1.0, 300.0):
        rows = [(number * every_s, "ab"[number % 2], 10, 2) for number in range(12)]
        of = parts.scenario(models={"a": "four", "b": "eight"})
        engine = parts.play(of, load_policy("exclusive-swap")[0], parts.trace(of, rows))
        found.append(coming_back(engine.world)[:2])  # type: ignore[arg-type]  # of an outcome it asks the recorder
    (often, soon), (rarely, late) = found
    assert often > 2
    assert soon > often / 2
    assert rarely == 12
    assert late == 0
