"""What makes qlm and prism themselves: groups and violations, pressure and slack.

Real engine, synthetic hardware of scenarios.py: on a `small` GPU a load of `four` takes 1.5 s + 4 GB / 8 GB/s = 2 s.
"""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import pytest

from policies._parts.prism_pressure import pressure_moves
from policies._parts.qlm_queues import RequestGroup
from sim.policy import View
from tests.support.policy_cases import LOAD_S, Told, asked, classes, completed, made, switches
from tests.support.scenarios import Row, columns, nodes, play, scenario, step_s, trace

# --- qlm

TWO = {"a": "four", "b": "eight"}
URGENT = [{"name": "calm"}, {"name": "urgent", "ttft_s": 5.0}]
ONE_S = 100 * step_s(4, 4, 1, 1024)  # 100 tokens of one sequence of `four` at the context that is taken for typical


def test_qlm_adds_the_swap_time_at_every_change_of_model() -> None:
    def question(view: View) -> None:
        policy = made("qlm", tokens_per_request=100, swap_time_s=7)
        a, b = view.models
        gpu = view.gpus[0]

        def group(model: Any, requests: int) -> Any:
            waiting: Any = dict.fromkeys(range(requests))
            return RequestGroup(model, inf, gpu, waiting=waiting)

        def work_s(layers: int, requests: int) -> float:
            return 100 * step_s(layers, layers, requests, 1024)  # all of them in one batch

        waits_s = policy.times.waits_s(gpu, [group(a, 1), group(a, 4), group(b, 2), group(a, 1)])
        steps_s = [7 + work_s(4, 1), work_s(4, 4), 7 + work_s(8, 2), 7 + work_s(4, 1)]
        assert waits_s == pytest.approx(np.cumsum(steps_s))
        measured = made("qlm", tokens_per_request=100)
        assert measured.times.waits_s(gpu, [group(a, 1)]) == pytest.approx([LOAD_S + work_s(4, 1)])

    asked(scenario(models=TWO), question)


@pytest.mark.parametrize(("slack_s", "replans"), [(-0.01, True), (0.01, False)])
def test_qlm_plans_anew_exactly_when_a_group_would_violate(slack_s: float, replans: bool) -> None:
    # At 1 s: a's group is being served, b's new group is through after both and a swap.
    through_s = ONE_S + 7 + 100 * step_s(8, 8, 1, 1024)
    of = scenario(models=TWO, service_classes=[{"name": "calm"}, {"name": "urgent", "ttft_s": through_s + slack_s}])
    policy = made("qlm", tokens_per_request=100, swap_time_s=7)
    seen: dict[float, int] = {}
    told = Told(policy, lambda view, actions: seen.update({view.now_s: policy.replans}))
    play(of, told, classes(of, [(0.0, "a", 10, 900), (1.0, "b", 10, 5)], ["calm", "urgent"]))
    assert seen[0.0] == 0
    assert bool(seen[1.0]) is replans


@pytest.mark.parametrize(("promise_s", "order", "loads"), [(5.0, ["b", "a"], 3), (500.0, ["a", "b"], 2)])
def test_qlm_lets_the_urgent_group_pass_and_evicts_who_runs(promise_s: float, order: list[str], loads: int) -> None:
    of = scenario(models=TWO, service_classes=[{"name": "calm"}, {"name": "urgent", "ttft_s": promise_s}])
    rows: list[Row] = [(0.0, "a", 10, 900), (5.0, "b", 10, 5)]
    engine = play(of, made("qlm"), classes(of, rows, ["calm", "urgent"]))
    ends_s = dict(zip("ab", columns(engine)["end_s"], strict=True))
    assert sorted(ends_s, key=ends_s.__getitem__) == order
    assert engine.world.recorder.counts["loads"] == loads
    assert completed(engine) == 2


def test_qlm_serves_groups_and_not_requests_in_turn() -> None:
    rows = [(0.1 * number, "ab"[number % 2], 10, 20) for number in range(20)]
    of = scenario(models=TWO)
    assert play(of, made("qlm"), trace(of, rows)).world.recorder.counts["loads"] == 2
    assert play(of, made("qlm", group_size=1), trace(of, rows)).world.recorder.counts["loads"] == 20


def test_qlm_with_the_programme_is_less_late_than_by_deadlines() -> None:
    # By deadline the models alternate; side by side they need two loads less.
    promises = [{"name": f"c{number}", "ttft_s": 20.0 + number} for number in range(4)]
    of = scenario(models=TWO, service_classes=promises)
    rows: list[Row] = [(0.01 * n, "ab"[n % 2], 10, 200) for n in range(4)]
    late_s = {}
    for planner in ("edf", "ilp"):
        policy = made("qlm", planner=planner, tokens_per_request=200, swap_time_s=12)
        engine = play(of, policy, classes(of, rows, [f"c{n}" for n in range(4)]))
        assert bool(policy.replans) is (planner == "ilp")  # they come in the order of their deadlines
        late_s[planner] = engine.world.recorder.counts["loads"]
    assert late_s == {"edf": 4, "ilp": 2}


# --- prism

PAIR = nodes(("small", 2))
THREE = {"a": "four", "b": "four", "c": "four"}


def test_prism_places_by_kv_pressure() -> None:
    # a is asked for most: it has a GPU to itself, and the two others share the one with less demand.
    of = scenario(models=THREE, cluster=PAIR)
    rows = [(0.01 * n, "a", 10, 5) for n in range(10)] + [(0.2, "b", 10, 5), (0.3, "c", 10, 5)]
    policy = made("prism")
    play(of, policy, trace(of, rows))
    homes = {model.name: gpu.index for model, gpu in policy.homes.items()}
    assert homes == {"a": 0, "b": 1, "c": 1}


@pytest.mark.parametrize(("tau", "moves"), [(0.05, ["b"]), (0.2, [])])
def test_prism_moves_a_model_only_for_more_than_tau(tau: float, moves: list[str]) -> None:
    # a and b on one GPU, c on the other; the pressures without b are 10 to 9: b would gain a tenth.
    def question(view: View) -> None:
        policy = made("prism", tau=tau)
        a, b, c = view.models
        for model, rate, gpu in ((a, 10, 0), (b, 1, 0), (c, 9, 1)):
            policy.homes[model] = view.gpus[gpu]
            policy._slo_s[model] = 1.0
            for _ in range(rate):
                policy._rates.saw(model, view.now_s)
        demands = {model: policy._demand(view, model) for model in policy.homes}
        planned = pressure_moves(view.gpus, policy.homes, demands, policy.parameters.tau)
        assert [model.name for model, _ in planned] == moves

    asked(scenario(models=THREE, cluster=PAIR), question)


def test_prism_evicts_who_was_idle_for_so_long_and_not_before() -> None:
    of = scenario(models={"a": "four", "b": "four"})
    engine = play(of, made("prism", idle_s=50), trace(of, [(0.0, "a", 10, 5), (30.0, "b", 10, 5), (200.0, "b", 10, 5)]))
    ends_s = columns(engine)["end_s"]
    assert [row["time_s"] for row in switches(engine, "free")][:2] == pytest.approx((ends_s[:2] + 50).tolist())


def test_prism_puts_the_idle_to_sleep_where_the_engine_can() -> None:
    of = scenario(engine={"max_sequences": 8, "resize": "sleep"})
    engine = play(of, made("prism", idle_s=50), trace(of, [(0.0, "a", 10, 5), (200.0, "a", 10, 5)]))
    assert len(switches(engine, "wake")) == 1
    assert engine.world.recorder.counts["loads"] == 2


def test_prism_serves_those_first_whose_promise_can_be_kept() -> None:
    # One place in the batch. The long prompt cannot be in time any more, the short ones behind it can.
    of = scenario(engine={"max_sequences": 1}, service_classes=[{"name": "default", "ttft_s": 1.0}])
    rows: list[Row] = [(0.0, "a", 10, 1), (10.0, "a", 10, 120), (10.1, "a", 900, 1), (11.05, "a", 10, 1)]
    engine = play(of, made("prism"), trace(of, rows))
    ends_s = columns(engine)["end_s"]
    assert ends_s[3] < ends_s[2]
