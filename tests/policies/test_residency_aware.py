"""What makes residency-aware itself, on synthetic hardware: when it preempts, waits, takes a part, grows, sleeps,
copies and redirects; and that parts of it can be switched off.
"""

from __future__ import annotations

from typing import Any

import pytest

from sim.engine.engine import Engine
from sim.policy import load_policy
from sim.scenario.scenario import Scenario
from tests.support.loading_cases import switches
from tests.support.scenarios import columns, nodes, play, scenario, synthetic, trace

FAST_KV = ",0,8.0,1000,1000,0,0"  # after the engine start: 8 GB/s for weights, KV for nothing
STEP_S = 0.010 + 1024e-6  # of a decode iteration alone at the context that estimates assume


def small(count: int) -> dict[str, Any]:
    """So many GPUs that hold one model and three of the four layers of another."""
    return {**nodes(("small", count)), "gpu_reserve_gib": 1.0}


def world(names: str = "ab", of: str = "four", **changes: Any) -> Scenario:
    models = [{"name": name, "model": of, "engine": "quick", "max_context": 4096} for name in names]
    one = {"models": models, "cluster": small(1), "predictor": {"kind": "oracle"}}
    return scenario(**{**one, **changes})


def run(of: Scenario, rows: list[tuple[Any, ...]], **parameters: Any) -> Engine:
    plain = {"preload": False, "horizon_s": 1e-6, "preempt_margin": 1.0, "partial_margin": 1.0}
    policy = load_policy("residency-aware", {**plain, **parameters})[0]
    return play(of, policy, trace(of, rows))


@pytest.mark.parametrize(("reload_s", "threshold_s"), [(2.6, 10.2), (4.0, 13.0), (7.3, 19.6)])
@pytest.mark.parametrize("share", [0.96, 1.04])
def test_it_preempts_beyond_the_break_even_of_the_paper(reload_s: float, threshold_s: float, share: float) -> None:
    # policies.md 5.5: with a service of 5 s, preempting pays when the running one has more than 5 + 2c left.
    of = world(profiles=synthetic(f"{reload_s - 0.5}{FAST_KV}"))
    left = round(share * threshold_s / STEP_S)
    first_s = reload_s + 0.011
    arrival_s = 3 * reload_s
    before = round((arrival_s - first_s) / 0.0105)
    engine = run(of, [(0.0, "a", 10, before + left), (arrival_s, "b", 10, 487)], partial=False)
    assert columns(engine)["model_preemptions"].tolist() == [int(share > 1), 0]


def test_without_preemption_it_waits() -> None:
    of = world(profiles=synthetic(f"2.1{FAST_KV}"))
    engine = run(of, [(0.0, "a", 10, 3000), (7.0, "b", 10, 100)], partial=False, preempt=False)
    rows = columns(engine)
    assert rows["model_preemptions"].tolist() == [0, 0]
    assert rows["first_token_s"][1] > rows["end_s"][0]


@pytest.mark.parametrize(("tokens", "layers"), [(10, 3), (2000, 4)])
def test_a_few_tokens_are_served_in_part_and_many_after_a_wait(tokens: int, layers: int) -> None:
    # `a` and its pool leave room for 3 of the 4 layers of `b`; a token there costs twice as much as whole.
    of = world(profiles=synthetic(f"0.1{FAST_KV}"))
    engine = run(of, [(0.0, "a", 10, 400), (3.0, "b", 10, tokens)], preempt=False)
    loads = switches(engine, "load")
    assert [(load["model"], load["layers"]) for load in loads] == [("a", 4), ("b", layers)]


def test_it_waits_for_a_load_that_is_under_way() -> None:
    # Both at once: there is room for one. The other is not started in part beside a load that will soon be through.
    of = world(profiles=synthetic(f"0.1{FAST_KV}"))
    engine = run(of, [(0.0, "a", 10, 50), (0.0, "b", 10, 500)])
    assert [load["layers"] for load in switches(engine, "load")] == [4, 4]


def test_it_puts_idle_models_to_sleep_where_the_engine_can() -> None:
    of = world(engine={"max_sequences": 8, "resize": "sleep"})
    engine = run(of, [(0.0, "a", 10, 5), (5.0, "b", 10, 5), (10.0, "a", 10, 5)], partial=False)
    assert [load["model"] for load in switches(engine, "load")] == ["a", "b"]
    (wake,) = switches(engine, "wake")
    assert (wake["model"], wake["start_s"]) == ("a", 0)


def test_an_elastic_engine_starts_each_model_once_and_moves_layers() -> None:
    of = world(engine={"max_sequences": 8, "resize": "elastic"})
    rows = [(10.0 * turn, "ab"[turn % 2], 10, 100) for turn in range(6)]
    engine = run(of, rows)
    assert len(switches(engine, "load")) == 2
    assert len(switches(engine, "resize")) >= 4
    assert columns(engine)["mean_residency"].min() == 1.0


def test_a_long_queue_is_split_over_several_copies_at_once() -> None:
    of = world("a", cluster=small(3), engine={"max_sequences": 4})
    engine = run(of, [(0.0, "a", 10, 400)] * 12)
    assert sorted(load["gpu"] for load in switches(engine, "load")) == [f"box-1/small-{gpu}" for gpu in range(3)]
    assert not switches(run(of, [(0.0, "a", 10, 400)] * 12, replicate=False), "load")[1:]


def test_who_waits_at_one_copy_is_sent_to_an_idle_one() -> None:
    # Nobody knows lengths: half of them wait behind the long ones.
    of = world("a", cluster=small(2), engine={"max_sequences": 1}, predictor={"kind": "running-mean"})
    rows = [(0.0, "a", 10, tokens) for tokens in (3000, 20, 20, 20, 20, 20)]
    with_it, without = run(of, rows), run(of, rows, redirect=False)
    assert columns(with_it)["end_s"].max() <= columns(without)["end_s"].max()
    assert columns(with_it)["end_s"].sum() < columns(without)["end_s"].sum()


def test_classes_that_weigh_more_come_first() -> None:
    models = [
        {"name": name, "model": "four", "engine": "quick", "max_context": 4096, "weight": weight}
        for name, weight in (("a", 1.0), ("b", 1.0), ("c", 50.0))
    ]
    of = world(models=models)
    engine = run(of, [(0.0, "a", 10, 300), (1.5, "b", 10, 50), (1.5, "c", 10, 50)], preempt=False, partial=False)
    first_s = columns(engine)["first_token_s"]
    assert first_s[2] < first_s[1]


def test_a_starving_model_gets_its_turn() -> None:
    # `a` is asked for without end, so that it never falls idle; `b` waits until the guard makes it urgent.
    of = world()
    rows = [(0.5 * turn, "a", 10, 200) for turn in range(400)]
    rows.append((5.0, "b", 10, 20))
    engine = run(of, sorted(rows), partial=False, max_wait_s=30.0)
    (b,) = [index for index, row in enumerate(sorted(rows)) if row[1] == "b"]
    waited_s = columns(engine)["first_token_s"][b] - 5.0
    assert waited_s < 60.0
