"""Small experiments with one answer each, for mistakes of the engine that no other test would notice quickly.

Each kills a mutant (tools/mutants.py). Hardware: start 1 s, fixed 0.5 s, reload 8 GB/s, free 0.25 s, KV 4 and 6 GB/s.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sim.core.state.kv_blocks import sequence_blocks
from sim.core.state.request import OUTCOMES, REJECTED, TIMED_OUT, Request
from sim.policy import Action, Load, Preempt, Reject, Resize, Route, Stop, View, Wake
from sim.policy.interface.estimates import Estimates
from sim.results.summary import _loads
from sim.scenario.scenario import PredictorOptions
from sim.workload.draws import whole
from tests.support.loading_cases import load, script, switches
from tests.support.scenarios import (
    GB,
    columns,
    load_all,
    nodes,
    play,
    prefill_s,
    scenario,
    serve_all,
    step_s,
    synthetic,
    trace,
)

SLOW_KV = "0,0,8.0,0.001,0.002,0,0"  # KV at 1 and 2 MB/s


def test_memory_that_a_load_waits_for_is_nobody_elses() -> None:
    # `a` (4 GB) drains, `b` waits for 5 GB of it; what is then available to others is what is left of both.
    of = scenario(models={"a": "four", "b": "giant"})
    left: list[int] = []

    def swap(view: View) -> Iterator[Action]:
        gpu, (a, b) = view.gpus[0], view.models
        yield Stop(view.instances[0], "drain")
        yield Load(b, gpu, 5)
        left.append(gpu.available_bytes - (gpu.capacity_bytes - b.gpu_bytes(5)))
        assert not gpu.takes(a, 4)

    play(of, script({3.0: swap}, load((0, 0, 4))), trace(of, [(0, "a", 10, 200), (50, "b", 10, 1)]))
    assert left == [0]


def test_memory_given_back_is_available_once() -> None:
    of = scenario(models={"a": "four"})
    seen: list[int] = []

    def stop(view: View) -> Iterator[Action]:
        yield Stop(view.instances[0])

    def look(view: View) -> Iterator[Action]:
        seen.append(view.gpus[0].available_bytes - view.gpus[0].capacity_bytes)
        yield from load((0, 0, 4))(view)

    play(of, script({3.0: stop, 4.0: look}, load((0, 0, 4))), trace(of, [(50, "a", 10, 1)]))
    assert seen == [0]


@pytest.mark.parametrize("context", [15, 16, 17, 32])
def test_a_sequence_holds_the_blocks_of_its_context_and_the_token_to_come(context: int) -> None:
    of = scenario(engine={"max_sequences": 8, "block_tokens": 16})
    seen: list[int] = []

    def look(view: View) -> Iterator[Action]:
        instance = view.instances[0]
        seen.append((instance.kv_tokens - instance.free_kv_tokens) // 16)
        yield from ()

    # Its prompt is being computed a millisecond after it arrived.
    play(of, script({10.001: look}, load_all), trace(of, [(10.0, "a", context, 30)]))
    assert seen == [sequence_blocks(context, 16)] == [context // 16 + 1]


@pytest.mark.parametrize("mode", ["save", "recompute"])
def test_a_preempted_sequence_keeps_every_token(mode: Any) -> None:
    # 11 s into the run it has been decoding for a while; the token under way is finished before it leaves.
    of = scenario(profiles=synthetic(SLOW_KV))
    produced: list[int] = []

    def preempt(view: View) -> Iterator[Action]:
        (request,) = view.instances[0].running
        yield Preempt(request, mode)

    def decide(view: View) -> Iterator[Action]:
        produced.extend(request.produced_tokens for request in view.requeued)
        yield from serve_all(view)

    engine = play(of, script({10.2: preempt}, load_all, decide), trace(of, [(10.0, "a", 10, 50)]))
    spent_s, tokens = prefill_s(4, 4, 10), 1
    while spent_s < 0.2:
        spent_s += step_s(4, 4, 1, 10 + tokens)
        tokens += 1
    assert produced == [tokens]
    assert columns(engine)["produced_tokens"].tolist() == [50]


def test_who_has_no_token_when_patience_ends_leaves_then() -> None:
    of = scenario(service_classes=[{"name": "default", "patience_s": 1.25}])
    rows = columns(play(of, script({}, load((0, 0, 4))), trace(of, [(0.5, "a", 10, 20), (2.5, "a", 10, 400)])))
    assert rows["outcome"].tolist() == [TIMED_OUT, OUTCOMES.index("completed")]  # the second gets tokens for 4 s
    assert rows["end_s"][0] == 1.75


def test_a_rejected_request_gives_its_saved_kv_back() -> None:
    of = scenario()
    saved: list[int] = []

    def preempt(view: View) -> Iterator[Action]:
        (request,) = view.instances[0].running
        yield Preempt(request, "save")

    def refuse(view: View) -> Iterator[Action]:
        for request in view.requeued:
            assert request.saved_on is not None
            yield Reject(request, "changed its mind")
            saved.append(1)
        if not view.requeued:
            yield from serve_all(view)

    rows = [(10.0, "a", 10, 50), (20.0, "a", 10, 2)]
    engine = play(of, script({10.2: preempt}, load_all, refuse), trace(of, rows))
    assert saved == [1]
    assert columns(engine)["outcome"].tolist() == [REJECTED, 0]
    assert engine.world.cluster.nodes[0].memory.saved_kv_bytes == 0


@pytest.mark.parametrize("recompute", [False, True])
def test_a_route_that_recomputes_drops_what_was_saved(recompute: bool) -> None:
    of = scenario()

    def preempt(view: View) -> Iterator[Action]:
        (request,) = view.instances[0].running
        yield Preempt(request, "save")

    def decide(view: View) -> Iterator[Action]:
        for request in view.waiting:
            yield Route(request, view.instances[0], recompute=recompute)

    engine = play(of, script({10.2: preempt}, load_all, decide), trace(of, [(10.0, "a", 10, 50)]))
    rows = columns(engine)
    assert (rows["recompute_s"][0] > 0) == recompute
    assert (len(switches(engine, "kv_restore")) == 1) == (not recompute)


def test_a_stop_takes_no_more_requests() -> None:
    of = scenario()
    accepts: list[bool] = []

    def stop(view: View) -> Iterator[Action]:
        yield Stop(view.instances[0], "preempt")
        accepts.append(view.instances[0].accepts)

    def later(view: View) -> Iterator[Action]:
        yield from load((0, 0, 4))(view)

    play(of, script({10.2: stop, 20.0: later}, load_all), trace(of, [(10.0, "a", 10, 50)]))
    assert accepts == [False]


def test_a_wake_asked_for_twice_comes_once() -> None:
    of = scenario()
    woken: list[float] = []

    def start(view: View) -> Iterator[Action]:
        yield from load_all(view)
        yield Wake(5.0)
        yield Wake(5.0)

    def decide(view: View) -> Iterator[Action]:
        if view.now_s == 5.0:
            woken.append(view.now_s)
        yield from serve_all(view)

    engine = play(of, script({}, start, decide), trace(of, [(10.0, "a", 10, 2)]))
    twin = play(of, script({5.0: lambda view: iter(())}, load_all), trace(of, [(10.0, "a", 10, 2)]))
    assert woken == [5.0]
    assert engine.clock.events == twin.clock.events


def test_a_request_that_waits_for_its_load_is_cold() -> None:
    of = scenario()
    rows = columns(play(of, script({}, load_all), trace(of, [(0.5, "a", 10, 2), (10.0, "a", 10, 2)])))
    assert rows["cold"].tolist() == [True, False]
    assert rows["load_wait_s"][0] > 1
    assert rows["load_wait_s"][1] == 0


def test_a_gpu_that_loads_is_not_idle() -> None:
    of = scenario()
    engine = play(of, script({}, load_all), trace(of, [(10.0, "a", 10, 2)]))
    gpu = engine.world.cluster.gpus[0]
    assert gpu.activity_s["loading"] == pytest.approx(1.0 + 0.5 + 4 * GB / (8 * GB))
    assert gpu.activity_s["computing"] == pytest.approx(prefill_s(4, 4, 10) + step_s(4, 4, 1, 11))
    assert sum(gpu.activity_s.values()) == pytest.approx(engine.clock.now_s)


def test_several_saves_at_once_are_one_stretch_of_time() -> None:
    # Two of three are asked out at boundaries a few iterations apart; the first save is still moving (1 MB/s).
    of = scenario(profiles=synthetic(SLOW_KV), cluster=nodes(("small", 1)))

    def preempt(view: View) -> Iterator[Action]:
        yield Stop(view.instances[0], "preempt")

    rows = [(10.0, "a", 100, 500), (10.0, "a", 100, 500)]
    engine = play(of, script({10.2: preempt, 30.0: load((0, 0, 4))}, load_all), trace(of, rows))
    saves = switches(engine, "kv_save")
    assert len(saves) == 1
    restores = switches(engine, "kv_restore")
    assert len(restores) == 1  # both come back over one link: one stretch, with the bytes of both
    assert restores[0]["bytes"] == saves[0]["bytes"]
    assert np.isclose(restores[0]["kv_restore_s"], restores[0]["bytes"] / 2e6)


@pytest.mark.parametrize(("first", "then"), [(4, 2), (2, 4)])
def test_an_elastic_resize_moves_the_kv_in_use_with_its_layers(first: int, then: int) -> None:
    of = scenario(profiles=synthetic("0,0,8.0,0.001,6.0,0,0"), engine={"max_sequences": 8, "resize": "elastic"})
    held: list[int] = []

    def resize(view: View) -> Iterator[Action]:
        (instance,) = view.instances
        held.append(instance.kv_tokens - instance.free_kv_tokens)
        yield Resize(instance, then)

    rows = [(10.0, "a", 1000, 20), (30.0, "a", 10, 2)]
    engine = play(of, script({10.2: resize}, load((0, 0, first))), trace(of, rows))
    (row,) = switches(engine, "resize")
    kv_bytes = held[0] * 2500 * 2
    assert held[0] >= 1000
    assert row["bytes"] == kv_bytes + (2 * GB if then > first else 0)
    if then < first:
        assert row["kv_save_s"] == pytest.approx(kv_bytes / 1e6)


def test_tokens_count_at_the_residency_that_they_were_made_at() -> None:
    of = scenario(profiles=synthetic("0,0,8.0,4.0,6.0,0,0"), engine={"max_sequences": 8, "resize": "elastic"})

    def grow(view: View) -> Iterator[Action]:
        yield Resize(view.instances[0], 4)

    engine = play(of, script({10.5: grow}, load((0, 0, 2))), trace(of, [(10.0, "a", 10, 200)]))
    recorder, rows = engine.world.recorder, columns(engine)
    below = recorder.tokens_below_full_residency
    assert 10 < below < 190
    assert rows["mean_residency"][0] == pytest.approx((0.5 * below + (200 - below)) / 200)


def test_who_comes_back_stands_where_it_arrived() -> None:
    of = scenario(engine={"max_sequences": 1})
    seen: list[list[int]] = []

    def preempt(view: View) -> Iterator[Action]:
        yield Preempt(view.instances[0].running[0], "recompute")

    def decide(view: View) -> Iterator[Action]:
        if view.requeued:
            seen.append([request.number for request in view.models[0].waiting])
        if not view.instances[0].load and view.models[0].oldest is not None:
            yield Route(view.models[0].oldest, view.instances[0])

    rows = [(10.0, "a", 10, 50), (10.1, "a", 10, 5), (10.1, "a", 10, 5)]
    play(of, script({10.2: preempt}, load_all, decide), trace(of, rows))
    assert seen == [[0, 1, 2]]


def test_a_stop_sends_back_who_waits_there_at_once() -> None:
    of = scenario(engine={"max_sequences": 1})
    back: list[int] = []

    def stop(view: View) -> Iterator[Action]:
        yield Stop(view.instances[0], "drain")
        back.extend(request.number for request in view.models[0].waiting)

    def decide(view: View) -> Iterator[Action]:
        if view.now_s < 10.2:
            yield from serve_all(view)
        elif not view.instances:
            yield from load_all(view)
        else:
            yield from serve_all(view)

    rows = [(10.0, "a", 10, 50), (10.1, "a", 10, 5)]
    play(of, script({10.2: stop}, load_all, decide), trace(of, rows))
    assert back == [1]


def test_a_policy_learns_lengths_from_who_finished_only() -> None:
    of = scenario(predictor={"kind": "running-mean", "prior_tokens": 77})
    seen: list[tuple[float, float]] = []

    def decide(view: View) -> Iterator[Action]:
        for request in view.arrived:
            seen.append((request.expected_output_tokens, request.model.expected_output_tokens))
            yield Reject(request, "too late") if request.number == 1 else Route(request, view.instances[0])

    rows = [(10.0, "a", 10, 7), (20.0, "a", 10, 400), (30.0, "a", 10, 5)]
    play(of, script({}, load_all, decide), trace(of, rows))
    assert seen == [(77, 77), (7, 7), (7, 7)]


def test_the_longest_request_is_as_long_as_the_context() -> None:
    of = scenario()
    longest = of.models[0].max_context
    assert longest == 1024
    rows = [(10.0, "a", longest - 20, 20), (10.0, "a", longest - 20, 21), (10.0, "a", longest - 19, 20)]
    outcomes = columns(play(of, script({}, load_all), trace(of, rows)))["outcome"].tolist()
    assert [OUTCOMES[outcome] for outcome in outcomes] == ["completed", "impossible", "impossible"]


def test_memory_that_is_being_freed_when_its_gpu_fails_is_freed_once() -> None:
    failure = {"kind": "gpu_failure", "gpu": "box-1/small-0", "at_s": 10.3, "repair_s": 0.5}
    of = scenario(faults={"events": [failure]})

    def stop(view: View) -> Iterator[Action]:
        yield Stop(view.instances[0])

    engine = play(of, script({10.2: stop, 12.0: load((0, 0, 4))}, load((0, 0, 4))), trace(of, [(20.0, "a", 10, 2)]))
    assert columns(engine)["outcome"].tolist() == [0]
    assert engine.world.cluster.gpus[0].releasing_bytes == 0


@pytest.mark.parametrize("resize", ["none", "sleep"])
def test_who_is_about_to_restart_or_sleep_takes_no_requests(resize: str) -> None:
    of = scenario(engine={"max_sequences": 8, "resize": resize})
    accepts: list[bool] = []

    def change(view: View) -> Iterator[Action]:
        (instance,) = view.instances
        assert instance.running  # so that it has to come to a boundary first
        yield Resize(instance, 0 if resize == "sleep" else 3)
        accepts.append(instance.accepts)

    def decide(view: View) -> Iterator[Action]:
        yield from serve_all(view)
        if view.instances and view.instances[0].status == "asleep":
            yield Resize(view.instances[0], 4)

    play(of, script({10.2: change}, load_all, decide), trace(of, [(10.0, "a", 10, 50)]))
    assert accepts == [False]


def test_tokens_are_rounded_to_the_nearest() -> None:
    assert whole(np.array([0.2, 1.4, 1.6, 2.5, 7.0]), "test").tolist() == [1, 1, 2, 2, 7]


def test_what_arrives_at_one_instant_is_one_decision() -> None:
    of = scenario(models={"a": "two", "b": "two"})
    seen: list[tuple[float, list[int]]] = []

    def decide(view: View) -> Iterator[Action]:
        if view.arrived:
            seen.append((view.now_s, [request.number for request in view.arrived]))
        yield from serve_all(view)

    play(of, script({}, load((0, 0, 2), (1, 0, 2)), decide), trace(of, [(10.0, "a", 10, 5), (10.0, "b", 10, 5)]))
    assert seen == [(10.0, [0, 1])]


def test_a_wake_counts_among_the_loads_of_its_model() -> None:
    def sleep(view: View) -> Iterator[Action]:
        yield Resize(view.instances[0], 0)

    def wake(view: View) -> Iterator[Action]:
        yield Resize(view.instances[0], 4)

    of = scenario(engine={"resize": "sleep", "max_sequences": 8})
    engine = play(
        of, script({5.0: sleep, 8.0: wake}, load((0, 0, 4)), serve_all), trace(of, [(0, "a", 1, 1), (20, "a", 1, 1)])
    )
    kinds = [row["kind"] for row in (*switches(engine, "load"), *switches(engine, "wake"))]
    assert kinds == ["load", "wake"]
    assert _loads(engine.world) == {"a": 2}  # type: ignore[arg-type]  # of an outcome it asks cluster and recorder


def test_guesses_err_by_factors_around_one() -> None:
    estimates = Estimates(PredictorOptions(kind="noisy-oracle", sigma=0.5), 1, 1)
    errors = []
    for number in range(400):
        request = Request(number, SimpleNamespace(index=0), 0.0, 1, 10_000)  # type: ignore[arg-type]
        estimates.arrived(request)
        errors.append(np.log(estimates.output_tokens(request) / 10_000))
    assert abs(np.mean(errors)) < 0.1
    assert np.std(errors) == pytest.approx(0.5, rel=0.15)


def test_who_outgrew_its_estimate_may_go_on_for_a_while() -> None:
    estimates = Estimates(PredictorOptions(kind="running-mean", prior_tokens=100.0), 1, 1)
    request = Request(0, SimpleNamespace(index=0), 0.0, 1, 1000)  # type: ignore[arg-type]
    assert [estimates.remaining_tokens(request, produced) for produced in (0, 99, 100, 500)] == [100, 1, 25, 25]
