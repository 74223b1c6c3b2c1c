"""Bringing models in and out: who has to leave, sleepers that are woken, host memory that is short, and alarms.

Real engine, synthetic hardware of scenarios.py: on a `small` GPU a load of `four` takes 1.5 s + 4 GB / 8 GB/s = 2 s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sim.policy import Action, Alarms, Load, Resize, Stop, View, bring, holders, leave, resident, switch_s
from tests.support.policy_cases import LOAD_S, asked
from tests.support.scenarios import Script, nodes, play, scenario, trace

# Six of the eight GiB each: only one of them is in memory at a time.
LARGE = [{"name": n, "model": "four", "engine": "quick", "max_context": 1024, "kv_tokens": 200_000} for n in "ab"]


def steps(of: Any, *at: tuple[float, Callable[[View], Iterator[Action]]]) -> list[tuple[float, list[Action]]]:
    """What each of these does at its time, in a run whose only requests come at these times, for model a."""
    todo = list(at)
    seen: list[tuple[float, list[Action]]] = []

    def decide(view: View) -> Iterator[Action]:
        if todo and view.now_s >= todo[0][0]:
            taken: list[Action] = []
            seen.append((view.now_s, taken))
            for action in todo.pop(0)[1](view):
                taken.append(action)
                yield action

    rows = [(time_s, "a", 10, 1) for time_s, _ in at]
    play(of.model_copy(update={"horizon_s": at[-1][0] + 20.0}), Script(decide), trace(of, rows))
    assert not todo
    return seen


def bringing(name: str, evict: bool = True) -> Callable[[View], Iterator[Action]]:
    """Bring this model onto the first GPU, in place of whoever is there."""

    def step(view: View) -> Iterator[Action]:
        model = next(model for model in view.models if model.name == name)
        gpu = view.gpus[0]
        yield from bring(view, model, gpu, [i for i in gpu.instances if i.model is not model] if evict else [])

    return step


def test_it_loads_into_free_memory_and_finds_what_is_there() -> None:
    def again(view: View) -> Iterator[Action]:
        instance = resident(view.models[0], view.gpus[0])
        assert instance is not None
        way = bring(view, view.models[0], view.gpus[0])
        with pytest.raises(StopIteration) as end:
            next(way)
        assert end.value.value is instance
        return iter(())

    seen = steps(scenario(models=LARGE), (0.0, bringing("a")), (5.0, again))
    assert [type(action) for action in seen[0][1]] == [Load]


def test_who_is_in_the_way_leaves_and_nobody_else() -> None:
    tight = steps(scenario(models=LARGE), (0.0, bringing("a")), (5.0, bringing("b")))
    assert [type(action) for action in tight[1][1]] == [Stop, Load]
    roomy = steps(scenario(models={"a": "four", "b": "two"}), (0.0, bringing("a")), (5.0, bringing("b")))
    assert [type(action) for action in roomy[1][1]] == [Load]
    kept = steps(scenario(models=LARGE), (0.0, bringing("a")), (5.0, bringing("b", evict=False)))
    assert kept[1][1] == []


def test_sleepers_are_woken_and_a_wake_costs_less_than_a_load() -> None:
    of = scenario(models=LARGE, engine={"max_sequences": 8, "resize": "sleep"})
    costs_s: list[float] = []

    def wake(view: View) -> Iterator[Action]:
        costs_s.append(switch_s(view.models[0], view.gpus[0]))
        yield from bringing("a")(view)

    def first(view: View) -> Iterator[Action]:
        costs_s.append(switch_s(view.models[0], view.gpus[0]))
        yield from bringing("a")(view)

    seen = steps(of, (0.0, first), (5.0, bringing("b")), (20.0, wake))
    assert [type(action) for action in seen[1][1]] == [Resize, Load]
    assert [type(action) for action in seen[2][1]] == [Resize, Resize]
    assert costs_s[0] == pytest.approx(LOAD_S)
    assert costs_s[1] < costs_s[0]


def test_who_is_going_already_is_not_asked_again() -> None:
    def twice(view: View) -> Iterator[Action]:
        instance = view.gpus[0].instances[0]
        yield from leave(view, instance)
        assert list(leave(view, instance)) == []

    seen = steps(scenario(models=LARGE), (0.0, bringing("a")), (5.0, twice))
    assert [type(action) for action in seen[1][1]] == [Stop]


def test_holders_are_the_gpus_that_could_take_the_model_alone() -> None:
    of = scenario(models={"a": "two", "b": "giant"}, cluster=nodes(("small", 1), ("large", 1)))

    def question(view: View) -> None:
        for model in view.models:
            able = [gpu for gpu in view.gpus if gpu.layers_when_empty(model) is not None]
            assert holders(view, model) == able
            assert view.gpus[1] in able

    asked(of, question)


def test_an_alarm_rings_once_at_the_earliest_time_asked_for() -> None:
    alarms = Alarms()
    rung: list[tuple[float, int]] = []

    def decide(view: View) -> Iterator[Action]:
        rung.extend((view.now_s, gpu.index) for gpu in alarms.rung(view))
        if view.arrived:
            for at_s in (7.0, 3.0, 5.0):
                yield from alarms.set(view, view.gpus[0], at_s)
            yield from alarms.set(view, view.gpus[1], 4.0)

    of = scenario(cluster=nodes(("small", 2)))
    play(of.model_copy(update={"horizon_s": 10.0}), Script(decide), trace(of, [(0.0, "a", 10, 1)]))
    assert rung == [(3.0, 0), (4.0, 1)]
