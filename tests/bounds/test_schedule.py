"""The plan of a small instance: below every run and every order of its requests, and not far below."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

from sim.bounds.alone import alone_of
from sim.bounds.demand import requests_of
from sim.bounds.machines import BoundMachines
from sim.bounds.places import PlanOptions
from sim.bounds.schedule import optimal_schedule
from sim.common.errors import ConfigError
from sim.conformance import hardware
from sim.core.state.request import COMPLETED
from sim.policy import load_policy
from sim.scenario.scenario import Scenario
from sim.workload.requests import workload_of
from tests.bounds.test_bounds import drawn
from tests.support.fuzzing.random_cases import Seeded, random_case
from tests.support.scenarios import Row, columns, nodes, play, scenario, trace, write_profiles


def planned(of: Scenario, rows: list[Row], **options: Any) -> Any:
    return optimal_schedule(of, workload_of(trace(of, rows)), PlanOptions(**options))


TINY: dict[str, Any] = {"models": {"a": "four", "b": "eight"}, "engine": {"max_sequences": 1}}


def test_a_plan_is_between_every_policy_and_the_best_order_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One GPU that holds one of two models whole, on a host whose CPU is no use: every order of four requests, one at a
    # time, each run to its end, with loads that cost what they do.
    monkeypatch.setattr(hardware, "step_s", lambda layers, of, batch, context: 0.010 + 1e4 * (layers < of))
    monkeypatch.setattr(hardware, "prefill_s", lambda layers, of, tokens: 0.010 + 1e4 * (layers < of))
    of = scenario(
        profiles=str(write_profiles(tmp_path / "tables")),
        models={"a": "four", "b": "giant"},
        cluster={**nodes(("large", 1)), "gpu_reserve_gib": 6.0},
        engine={"max_sequences": 1},
    )
    rows: list[Row] = [(0.0, "a", 10, 300), (0.1, "b", 10, 100), (0.2, "a", 10, 50)]
    machines = BoundMachines(of)
    alone = alone_of(machines, requests_of(machines, workload_of(trace(of, rows)))).e2e_s
    load_s = {"a": 1.5 + 4 / 8, "b": 1.5 + 16 / 8}
    best = min(
        serial_mean_s(of, [(rows[i][0], rows[i][1], alone[i]) for i in order], load_s)
        for order in permutations(range(3))
    )
    plan = planned(of, rows, slot_s=0.25, levels=2, limit_s=10)
    assert plan.bound_s <= best + 1e-6
    # Two loads, each rounded by up to two slots in which the one that goes may still run, and a stop that is free.
    assert plan.bound_s >= best - 5 * 0.25
    assert plan.mean_s is not None
    assert plan.mean_s >= plan.bound_s
    for name in ("lru-swap", "exclusive-swap", "residency-aware", "belady"):
        ended = columns(play(of, load_policy(name)[0], trace(of, rows)))
        assert (ended["end_s"] - ended["arrival_s"]).mean() >= plan.bound_s - 1e-9, name
    assert {stay.model for stay in plan.stays} == {"a", "b"}


def serial_mean_s(of: Scenario, order: list[tuple[float, str, float]], load_s: dict[str, float]) -> float:
    now_s, total_s, loaded = 0.0, 0.0, ""
    for arrival_s, model, seconds in order:
        if model != loaded:
            now_s += load_s[model] + (0.25 if loaded else 0.0)
            loaded = model
        now_s = max(now_s, arrival_s) + seconds
        total_s += now_s - arrival_s
    return total_s / len(order)


@pytest.mark.parametrize("seed", [1, 3, 4, 6, 8])
def test_no_run_passes_the_bound_of_its_plan(seed: int) -> None:
    draws = Seeded(seed)
    of, rows = random_case(draws)
    rows = rows[:6]
    ended = columns(play(of, drawn(draws), trace(of, rows), check=False))
    done = ended["outcome"] == COMPLETED
    plan = optimal_schedule(of, workload_of(trace(of, rows).select(done)), PlanOptions(1.0, 5.0, 2))
    assert (ended["end_s"] - ended["arrival_s"])[done].mean() >= plan.bound_s * (1 - 1e-9)
    assert plan.mean_s is None or plan.mean_s >= plan.bound_s


def test_a_plan_of_one_request_waits_for_its_load_and_no_longer() -> None:
    of = scenario(models={"a": "four"}, engine={"max_sequences": 1})
    plan = planned(of, [(0.0, "a", 10, 100)], slot_s=0.1, levels=5, limit_s=10)
    machines = BoundMachines(of)
    alone_s = float(alone_of(machines, requests_of(machines, workload_of(trace(of, [(0.0, "a", 10, 100)])))).e2e_s[0])
    ended = columns(play(of, load_policy("lru-swap")[0], trace(of, [(0.0, "a", 10, 100)])))
    assert alone_s + 0.5 < plan.bound_s <= ended["end_s"][0]
    assert plan.stays[0].model == "a"


def test_a_plan_that_is_too_large_is_refused_with_numbers() -> None:
    of = scenario(**TINY)
    with pytest.raises(ConfigError, match="41 requests, at most 40"):
        planned(of, [(0.0, "a", 10, 10)] * 41)
    with pytest.raises(ConfigError, match="levels"):
        planned(of, [(0.0, "a", 10, 10)], levels=1)
    with pytest.raises(ConfigError, match=r"slots of 0\.001 s is too long"):
        planned(of, [(0.0, "a", 10, 10)] * 3, slot_s=0.001)
