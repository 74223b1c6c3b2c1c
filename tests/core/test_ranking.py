"""ranking.py against sorting everything, and the rankings that the cluster keeps against a look at all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.core.state.ranking import Rank, Ranking
from sim.policy import Load, Route, Stop, View
from tests.support.scenarios import Script, load_all, nodes, play, scenario, trace


class Member:
    def __init__(self, number: int, weight: float | None) -> None:
        self.number = number
        self.weight = weight

    def rank(self) -> Rank | None:
        return None if self.weight is None else (self.weight, 0, self.number)


weights = st.one_of(st.none(), st.sampled_from([0.0, 1.0, 2.5, -1.0, 7.0]))


@given(
    st.lists(weights, max_size=12), st.lists(st.tuples(st.integers(0, 11), weights, st.integers(0, 14)), max_size=80)
)
def test_the_first_are_those_that_sorting_would_give(start: list[Any], steps: list[tuple[int, Any, int]]) -> None:
    ranking = Ranking(Member.rank)
    members = [Member(number, weight) for number, weight in enumerate(start)]
    for member in members:
        ranking.mark(member.number, member)
    for number, weight, count in steps:
        if number < len(members):
            members[number].weight = weight
            ranking.mark(number, members[number])
        ranks = sorted(rank for member in members if (rank := member.rank()) is not None)
        assert [member.rank() for member in ranking.first(count)] == ranks[:count]
        least = ranking.least()
        assert (least.rank() if least else None) == (ranks[0] if ranks else None)


def test_old_entries_do_not_pile_up() -> None:
    ranking = Ranking(Member.rank)
    members = [Member(number, float(number)) for number in range(10)]
    for step in range(5000):
        member = members[step % 10]
        member.weight = float(step * 37 % 101)
        ranking.mark(member.number, member)
        ranking.first(3)
    assert len(ranking._heap) < 200


@pytest.mark.parametrize("count", [1, 3, 30])
def test_the_clusters_rankings_show_what_a_look_at_everything_shows(count: int) -> None:
    of = scenario(
        cluster=nodes(("large", 5), ("small", 4)), models={"a": "four", "b": "two"}, engine={"max_sequences": 4}
    )
    looked = 0

    def decide(view: View) -> Iterator[Any]:
        nonlocal looked
        looked += 1
        for model in view.models:
            taking = [i for i in model.instances if i.accepts]
            order = sorted(taking, key=lambda i: (i.load, -i.layers, i.number))
            if len(model.instances) > count:
                assert model.quietest(count) == order[:count]
            assert model.least_loaded == (order[0] if order else None)
            assert model.loading == any(i.loading for i in model.instances)
        shortlist = view.shortlist(count)
        assert [gpu.index for gpu in shortlist] == sorted(gpu.index for gpu in shortlist)
        for kind in ("large", "small"):
            gpus = [gpu for gpu in view.gpus if gpu.kind == kind]
            assert max(gpus, key=lambda gpu: (gpu.available_bytes, -gpu.index)) in shortlist
            assert min(gpus, key=lambda gpu: (len(gpu.running), -gpu.available_bytes, gpu.index)) in shortlist
            idle = [i for gpu in gpus for i in gpu.instances if i.idle]
            if idle:
                assert min(idle, key=lambda i: (i.last_used_s, i.number)).gpu in shortlist
        # Something to change all of it: loads, stops, and requests that run.
        for request in view.arrived:
            model = request.model
            if request.number % 7 == 6 and model.least_loaded and model.least_loaded.ready and len(model.instances) > 2:
                yield Stop(model.least_loaded, "preempt")
            roomiest = max(view.gpus, key=lambda gpu: (gpu.available_bytes, -gpu.index))
            if request.number % 3 == 0 and roomiest.takes(model, model.layers):
                yield Load(model, roomiest, model.layers)
        for request in view.waiting:
            target = request.model.least_loaded
            if target is not None:
                yield Route(request, target)

    rows = [(0.3 * n, "ab"[n % 5 == 0], 50 + n, 20 + 13 * n % 90) for n in range(120)]
    engine = play(of, Script(decide, load_all), trace(of, rows))
    assert engine.world.recorder.ended[0] == 120
    assert looked > 200
