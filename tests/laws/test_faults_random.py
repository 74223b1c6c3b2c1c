"""Faults by chance: the same under every policy, the same every time, harmless to every law, and over at some time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim.conformance.cases import FAULTS, FOUR, requests
from sim.conformance.laws import assert_laws, assert_rankings, assert_settled
from sim.core.state.request import UNFINISHED
from sim.engine.engine import Engine, Outcome, simulate
from sim.policy import Policy, load_policy
from sim.results.summary import summarize
from sim.scenario.scenario import Scenario, load_scenario
from tests.support.fuzzing.random_cases import Seeded, random_case
from tests.support.places import ROOT
from tests.support.scenarios import Script, columns, nodes, play, scenario, trace

HARD = FAULTS["hard-times"]["faults"]
POLICIES = ("residency-aware", "lru-swap", "serverless-llm", "muxserve", "vllm-sleep")


def played(of: Scenario, rows: list[Any], policy: str | Policy = "lru-swap") -> Engine:
    return play(of, load_policy(policy)[0] if isinstance(policy, str) else policy, trace(of, rows))


@pytest.mark.parametrize("seed", range(30))
def test_laws_hold_in_hard_times(seed: int) -> None:
    """Random machines, models, engine options and requests, with every kind of fault."""
    draws = Seeded(1000 + seed)
    retries = draws.pick((0, 1, 3, None))
    often = draws.pick((3.0, 20.0, 100.0))
    random = {
        "gpu_failure": {"mean_between_s": often, "mean_repair_s": draws.pick((0.1, 2.0, 20.0))},
        "node_loss": {"mean_between_s": 3 * often, "repair_s": draws.pick((0.5, 10.0))},
        "slow_link": {"mean_between_s": 2.0, "mean_for_s": 2.0, "factor": draws.pick((0.01, 0.5))},
        "load_failure": {"probability": draws.pick((0.0, 0.3))},
        "cancellation": {"probability": draws.pick((0.0, 0.5)), "mean_after_s": draws.pick((0.1, 10.0))},
    }
    kept = {name: random[name] for name in random if draws.number(0, 3)}
    of, rows = random_case(draws, faults={"retries": retries, "random": kept}, horizon_s=2000.0)
    engine = played(of, rows, POLICIES[seed % len(POLICIES)])
    assert_laws(engine, len(rows))
    assert_rankings(engine)
    if not engine.world.recorder.ended[UNFINISHED]:
        assert_settled(engine)


def test_the_same_faults_meet_every_policy() -> None:
    of = scenario(models=FOUR, cluster=nodes(("small", 3)), faults=HARD, horizon_s=500.0)
    rows = [*requests(FOUR, 40, 0.5), (500.0, "a", 1, 1)]  # so that all runs last to the horizon
    seen = []
    for policy in POLICIES:
        engine = played(of, rows, policy)
        faults = engine.world.recorder.faults
        assert faults is not None
        assert engine.clock.now_s == 500.0
        events = {kind: number for kind, number in faults.events.items() if kind != "load_failure"}
        seen.append((events, [gpu.activity_s["down"] for gpu in engine.world.cluster.gpus]))
    assert all(one[0] == seen[0][0] for one in seen)
    for _, down_s in seen:
        assert down_s == pytest.approx(seen[0][1], rel=1e-12)
    assert min(seen[0][0][kind] for kind in ("gpu_failure", "node_loss", "slow_link")) > 0


def test_who_would_cancel_is_the_same_under_every_policy() -> None:
    """Only whether the answer was there before depends on the policy: later is cancelled more."""
    faults = {"random": {"cancellation": {"probability": 0.5, "mean_after_s": 5.0}}}
    rows = requests(FOUR, 60, 0.3)
    gone = []
    for count in (1, 4):
        of = scenario(models=FOUR, cluster=nodes(("small", count)), faults=faults)
        found = columns(played(of, rows))
        gone.append(
            dict(zip(found["request"][found["outcome"] == 3], found["end_s"][found["outcome"] == 3], strict=True))
        )
    crowded, roomy = gone
    both = [number for number in roomy if number in crowded]
    assert len(both) > 5
    assert [roomy[number] for number in both] == [crowded[number] for number in both]
    assert len(crowded) >= len(roomy)


def test_the_same_seed_gives_the_same_run_and_another_another() -> None:
    rows = requests(FOUR, 40, 0.5)
    runs = []
    for seed in (1, 1, 2):
        of = scenario(**{**FAULTS["hard-times"], "seed": seed})
        runs.append(columns(played(of, rows)))
    assert all(np.array_equal(runs[0][name], runs[1][name], equal_nan=True) for name in runs[0])
    assert not np.array_equal(runs[0]["end_s"], runs[2]["end_s"])


@pytest.mark.parametrize("policy", POLICIES)
def test_faults_that_do_not_come_change_nothing(policy: str) -> None:
    never = {"mean_between_s": 1e11, "repair_s": 1.0}
    rare = {"gpu_failure": never, "node_loss": never, "load_failure": {"probability": 0.0}}
    rows = requests(FOUR, 40, 0.5)
    calm = played(scenario(models=FOUR, cluster=nodes(("small", 2))), rows, policy)
    ready = played(scenario(models=FOUR, cluster=nodes(("small", 2)), faults={"random": rare}), rows, policy)
    one, other = columns(calm), columns(ready)
    assert all(np.array_equal(one[name], other[name], equal_nan=True) for name in one)
    assert calm.clock.events == ready.clock.events
    assert calm.transfers.bytes_by_link() == ready.transfers.bytes_by_link()


def test_faults_alone_keep_no_run_going() -> None:
    """Somebody waits whom nobody serves; GPUs fail and come back for ever."""
    idle = Script(lambda view: ())
    random = {"gpu_failure": {"mean_between_s": 50.0, "repair_s": 1.0}, "slow_link": {**_spells(9.0), "factor": 0.5}}
    engine = played(scenario(faults={"random": random}), [(0.0, "a", 1, 1)], idle)
    assert engine.world.recorder.ended[UNFINISHED] == 1
    assert engine.clock.events < 10_000
    # So many that one of them is always being repaired: a day without a token is the end.
    many = scenario(faults={"random": random}, cluster=nodes(("small", 400)))
    engine = played(many, [(0.0, "a", 1, 1)], idle)
    assert engine.world.recorder.ended[UNFINISHED] == 1


def _spells(mean_s: float) -> dict[str, float]:
    return {"mean_between_s": mean_s, "mean_for_s": mean_s}


def test_availability_is_what_renewal_theory_says() -> None:
    """Up for 30 s and down for 10 s on average: 3/4 of the time."""
    random = {"gpu_failure": {"mean_between_s": 30.0, "mean_repair_s": 10.0}}
    of = scenario(faults={"retries": None, "random": random}, cluster=nodes(("small", 40)), horizon_s=4000.0)
    engine = played(of, [(3999.0, "a", 1, 1)], Script(lambda view: ()))
    down_s = sum(gpu.activity_s["down"] for gpu in engine.world.cluster.gpus)
    assert len({gpu.activity_s["down"] for gpu in engine.world.cluster.gpus}) == 40, "each GPU has its own fate"
    cycles = 40 * 4000.0 / 40.0
    # Of a cycle the down time's part has a standard deviation of about 0.27 of a cycle's mean length.
    assert down_s / (40 * 4000.0) == pytest.approx(0.25, abs=4 * 0.27 / cycles**0.5)


def outcome(**faults: Any) -> Outcome:
    settings = [f"faults={faults}".replace("'", '"')] if faults else []
    return simulate(load_scenario(ROOT / "traces" / "scenarios" / "desktop.yaml", settings), check=True)


def test_the_summary_tells_of_faults_where_there_may_be_some() -> None:
    assert "faults" not in summarize(outcome())
    events = [{"kind": "gpu_failure", "at_s": 30.0, "gpu": "desktop/rtx-4090-0", "repair_s": 50.0}]
    summary = summarize(outcome(events=events))
    found, (gpu,) = summary["faults"], summary["gpus"]
    assert found["events"] == {"gpu_failure": 1, "node_loss": 0, "slow_link": 0, "load_failure": 0}
    assert found["down_gpu_s"] == 50.0
    assert found["availability"] == gpu["availability"] == pytest.approx(1 - 50.0 / summary["engine"]["sim_s"])
    parts = ("busy", "loading", "transferring", "idle", "down")
    assert sum(gpu[f"{part}_fraction"] for part in parts) == pytest.approx(1.0)
    assert found["requests"]["retries"] >= found["requests"]["retried"] > 0
    lost = found["lost"]
    assert lost["gpu_s"] == pytest.approx(lost["recompute_s"] + lost["unfinished_steps_s"] + lost["loads_s"])
    assert lost["kv_tokens"] > 0


def test_availability_is_of_all_gpus() -> None:
    path = ROOT / "traces" / "scenarios" / "desktop.yaml"
    events = '[{"kind": "gpu_failure", "at_s": 30.0, "gpu": "desktop/rtx-4090-0", "repair_s": 50.0}]'
    two = load_scenario(path, ["cluster.nodes.0.gpus.0.count=2", f'faults={{"events": {events}}}'])
    summary = summarize(simulate(two, check=True))
    assert summary["faults"]["availability"] == pytest.approx(1 - 25.0 / summary["engine"]["sim_s"])


def test_as_many_clients_cancel_as_are_to() -> None:
    """All that do leave before their answer."""
    for probability, low, high in ((0.0, 0, 0), (0.3, 15, 45), (1.0, 100, 100)):
        faults = {"random": {"cancellation": {"probability": probability, "mean_after_s": 0.001}}}
        of = scenario(models=FOUR, cluster=nodes(("small", 2)), faults=faults)
        engine = played(of, requests(FOUR, 100, 0.5))
        assert engine.world.recorder.faults is not None
        assert low <= engine.world.recorder.faults.cancelled <= high
