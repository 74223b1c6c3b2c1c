"""The decision turn: who is told what, when, and what a policy may then see. Every case once went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sim.common.errors import PolicyError
from sim.core.state.request import OUTCOMES
from sim.policy import Action, Load, Preempt, Reject, Resize, Route, Stop, View, Wake
from tests.support.scenarios import (
    FREE_OF_COST,
    Script,
    accepting,
    columns,
    nodes,
    play,
    scenario,
    serve_all,
    step_s,
    synthetic,
    trace,
)


def serve_on_demand(view: View) -> Iterator[Action]:
    """Load a model whole on the first GPU when it is asked for, and route to it."""
    for model in view.waiting_models:
        target: Any = accepting(model)
        if target is None and not model.instances:
            target = Load(model, view.gpus[0], model.layers)
            yield target
        if target is not None:
            yield from (Route(request, target) for request in list(model.waiting))


def ended(engine: Any) -> dict[str, int]:
    return {name: n for name, n in zip(OUTCOMES, engine.world.recorder.ended, strict=True) if n}


def test_a_rejected_request_has_left_the_engine() -> None:
    of = scenario()
    engine = play(of, Script(lambda view: [Reject(r, "full") for r in view.arrived]), trace(of, [(0, "a", 10, 10)]))
    assert ended(engine) == {"rejected": 1}


@pytest.mark.parametrize("way", ["preempt", "stop"])
def test_a_request_that_a_boundary_gives_back_is_decided_on_at_that_instant(way: str) -> None:
    # The boundary comes without an arrival, an end or a load; the policy must hear of it all the same.
    of = scenario(profiles=synthetic(FREE_OF_COST))
    requeued_s: list[float] = []
    asked: list[float] = []

    def decide(view: View) -> Iterator[Action]:
        requeued_s.extend(view.now_s for _ in view.requeued)
        if view.now_s == 2.0:
            asked.append(view.now_s)
            instance = view.instances[0]
            yield Stop(instance, "abort") if way == "stop" else Preempt(next(instance.requests), "recompute")
        yield from serve_on_demand(view)
        if view.now_s == 0.0:
            yield Wake(2.0)

    play(of, Script(decide), trace(of, [(0, "a", 10, 500)]))
    assert asked == [2.0]
    assert len(requeued_s) == 1
    assert 2.0 <= requeued_s[0] < 2.0 + 2 * step_s(4, 4, 1, 500)


def test_a_view_counts_the_tokens_of_finished_iterations() -> None:
    # Ready at 0.31 s (two layers and the head, no fixed costs), a token after the prompt of 100, then one each 11 ms.
    of = scenario(models={"a": "two"}, profiles=synthetic(FREE_OF_COST))
    seen: list[tuple[int, int]] = []

    def decide(view: View) -> Iterator[Action]:
        for instance in view.instances:
            seen.extend((request.produced_tokens, instance.free_kv_tokens) for request in instance.requests)
        yield from serve_on_demand(view)
        if view.now_s < 3.0:
            yield Wake(view.now_s + 1.0)

    play(of, Script(decide), trace(of, [(0, "a", 100, 500)]))
    produced = [tokens for tokens, _ in seen if tokens]
    assert produced == sorted(produced)
    assert 60 < produced[0] < produced[-1] < 300
    assert all(free <= 1024 - (100 + tokens) for tokens, free in seen if tokens)


def test_a_client_that_left_teaches_the_predictor_nothing() -> None:
    of = scenario(service_classes=[{"name": "default", "patience_s": 1.0}])
    seen: list[float] = []

    def decide(view: View) -> Iterator[Action]:
        seen.append(view.models[0].expected_output_tokens)
        return iter(())

    engine = play(of, Script(decide), trace(of, [(0, "a", 10, 777), (5, "a", 10, 777)]))
    assert ended(engine) == {"timed_out": 2}
    assert seen == [of.predictor.prior_tokens] * len(seen)


def test_a_run_ends_with_its_last_request() -> None:
    # Not with a patience that no longer matters, nor with a wake-up.
    of = scenario(service_classes=[{"name": "default", "patience_s": 1000.0}])

    def decide(view: View) -> Iterator[Action]:
        yield from serve_on_demand(view)
        yield Wake(500.0) if view.now_s < 500 else Wake(view.now_s + 1)

    engine = play(of, Script(decide), trace(of, [(0, "a", 10, 5)]))
    assert ended(engine) == {"completed": 1}
    assert engine.clock.now_s == columns(engine)["end_s"][0] < 5.0


def test_a_policy_that_never_lets_an_instant_end_is_named() -> None:
    of = scenario()

    def decide(view: View) -> Iterator[Action]:
        assert len(calls) < 50_000, "the engine should have stopped this long ago"
        calls.append(view.now_s)
        for instance in view.instances:
            yield Stop(instance)
        yield Load(view.models[0], view.gpus[0], 4)

    calls: list[float] = []
    with pytest.raises(PolicyError, match="lru-swap"):
        play(of, Script(decide), trace(of, [(0, "a", 10, 5)]), check=False)
    assert len(calls) < 50_000


@pytest.mark.parametrize("contention", ["proportional", "processor_sharing", "time_slice"])
def test_growing_to_full_residency_leaves_the_cpu_to_the_others(contention: str) -> None:
    # Both compute three of four layers on the CPU until `a` has all its layers on its own GPU.
    of = scenario(
        models={"a": "four", "b": "four"},
        cluster=nodes(("small", 2)),
        engine={"max_sequences": 8, "resize": "elastic"},
        sharing={"contention": contention},
    )
    done: list[float] = []

    def start(view: View) -> Iterator[Action]:
        yield Load(view.models[0], view.gpus[0], 1)
        yield Load(view.models[1], view.gpus[1], 1)

    def decide(view: View) -> Iterator[Action]:
        yield from serve_all(view)
        if view.now_s == 8.0:
            done.append(view.now_s)
            yield Resize(view.instances[0], 4)
        elif not done:
            yield Wake(8.0)

    engine = play(of, Script(decide, start), trace(of, [(5, "a", 10, 1000), (5, "b", 10, 1000)]))
    alone_s = sum(step_s(1, 4, 1, context) for context in range(11, 1010))
    assert columns(engine)["end_s"][1] < 8.5 + alone_s


def test_a_resize_counts_as_a_transfer_of_its_gpu_and_names_its_bytes() -> None:
    of = scenario(engine={"max_sequences": 8, "resize": "elastic"}, profiles=synthetic(FREE_OF_COST))

    def decide(view: View) -> Iterator[Action]:
        if view.loaded and view.instances[0].layers == 1:
            yield Resize(view.instances[0], 4)
        elif view.loaded:
            yield from serve_all(view)

    engine = play(of, Script(decide, lambda view: [Load(view.models[0], view.gpus[0], 1)]), trace(of, [(0, "a", 9, 9)]))
    activity = engine.world.cluster.gpus[0].activity_s
    assert activity["transferring"] == pytest.approx(3 / 8)  # 3 GB at the reload's 8 GB/s
    resize = next(row for row in engine.world.recorder.switches if row[1] == "resize")
    assert resize[12] == 3e9


def test_nothing_happens_after_the_horizon() -> None:
    # A wake-up at the very horizon is before it in the queue; what its decision asks for must not come any more.
    of = scenario(horizon_s=3.0)
    decided_s: list[float] = []

    def decide(view: View) -> Iterator[Action]:
        decided_s.append(view.now_s)
        yield from serve_on_demand(view)
        yield Wake(view.now_s + 0.5)

    engine = play(of, Script(decide, lambda view: [Wake(3.0)]), trace(of, [(0, "a", 10, 900), (3.2, "a", 10, 5)]))
    assert max(decided_s) <= 3.0
    assert engine.clock.now_s == 3.0
    assert ended(engine) == {"unfinished": 1}


def preempt_once(view: View, done: list[float]) -> Iterator[Action]:
    """At 2 s the policy takes the only running sequence out, to be recomputed."""
    yield from serve_on_demand(view)
    if view.now_s == 0.0:
        yield Wake(2.0)
    if view.now_s == 2.0 and not done:
        done.append(view.now_s)
        yield Preempt(next(r for r in view.instances[0].requests if r.running), "recompute")


def test_who_waits_takes_the_place_of_the_preempted() -> None:
    of = scenario(engine={"max_sequences": 1}, profiles=synthetic(FREE_OF_COST))
    done: list[float] = []

    def decide(view: View) -> Iterator[Action]:
        if view.requeued:
            return  # it stays where it is, so that nothing but the boundary itself starts the other
        yield from preempt_once(view, done)

    engine = play(of, Script(decide), trace(of, [(0, "a", 10, 900), (0, "a", 10, 5)]))
    rows = columns(engine)
    assert ended(engine) == {"completed": 2}
    assert 2.0 < rows["first_token_s"][1] < 2.1


def test_an_instance_that_drains_is_through_when_its_last_sequence_is_preempted() -> None:
    of = scenario(profiles=synthetic(FREE_OF_COST), horizon_s=60.0)
    done: list[float] = []

    def decide(view: View) -> Iterator[Action]:
        if view.now_s == 2.0 and not done:
            yield Stop(view.instances[0], "drain")
        yield from preempt_once(view, done)

    engine = play(of, Script(decide), trace(of, [(0, "a", 10, 900)]))
    assert ended(engine) == {"completed": 1}


def test_a_load_of_no_bytes_can_be_cancelled_while_it_waits_for_its_link() -> None:
    # Serial links: the second load has nothing to send, and still waits behind the first.
    of = scenario(models={"a": "four", "b": "four"}, sharing={"links": "serial"}, profiles=synthetic(FREE_OF_COST))

    def start(view: View) -> Iterator[Action]:
        yield Load(view.models[0], view.gpus[0], 4)
        yield Load(view.models[1], view.gpus[0], 0)
        yield Wake(0.25)

    def decide(view: View) -> Iterator[Action]:
        if view.now_s == 0.25 and len(view.instances) == 2:
            yield Stop(view.instances[1])
        yield from serve_all(view)

    engine = play(of, Script(decide, start), trace(of, [(1, "a", 10, 5)]))
    assert engine.world.recorder.counts["loads"] == 1


def test_a_policy_that_exits_or_loops_or_reaches_behind_its_views_is_named() -> None:
    of = scenario(models={"a": "two"})

    def leaves(view: View) -> Iterator[Action]:
        raise SystemExit(0)

    def cheats(view: View) -> Iterator[Action]:
        for request in view.arrived:
            request._of.output_tokens = 1
        yield from serve_on_demand(view)

    def swaps(view: View) -> Iterator[Action]:
        for instance in view.instances:
            if instance.ready:
                yield Stop(instance)
        if not view.instances:
            yield Load(view.models[0], view.gpus[0], view.models[0].layers)

    for decide, words in ((leaves, "SystemExit"), (cheats, "behind its views"), (swaps, "20000 times in a row")):
        with pytest.raises(PolicyError, match=words):
            play(of, Script(decide), trace(of, [(0, "a", 10, 5)]))


def test_who_leaves_a_queue_lets_the_next_in_at_once() -> None:
    # The first runs, the second does not fit beside it, the third would: it waits for the second alone.
    of = scenario(models={"a": "two"}, profiles=synthetic(FREE_OF_COST))
    asked = []

    def decide(view: View) -> Iterator[Action]:
        for instance in view.instances:
            for request in list(instance.requests):
                if request.number == 1 and view.now_s >= 3.0 and not asked:
                    asked.append(view.now_s)
                    yield Reject(request, "in the way")
        yield from serve_on_demand(view)
        if view.now_s < 3.0:
            yield Wake(3.0)

    engine = play(of, Script(decide), trace(of, [(0, "a", 100, 800), (1.0, "a", 900, 20), (2.0, "a", 20, 20)]))
    seen = columns(engine)
    third = list(seen["request"]).index(2)
    assert asked == [3.0]
    assert 3.0 < seen["first_token_s"][third] < 3.2
