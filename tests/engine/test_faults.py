"""What one fault does, worked out by hand on the synthetic machines (scenarios.py), and what a policy sees of it.

`four` on a `small` GPU: 4 layers of 1 GB, 1.5 s to start, 0.5 s to load at 8 GB/s; a prompt of n tokens takes
10 ms + n x 0.1 ms, a step 10 ms + context x 1 us.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sim.common.errors import PolicyError
from sim.conformance.laws import assert_laws, assert_settled
from sim.core.state.request import FAILED, TIMED_OUT, UNFINISHED
from sim.engine.engine import Engine
from sim.policy import Action, Load, Preempt, Route, Stop, View, load_policy
from tests.support.loading_cases import load, script, switches
from tests.support.scenarios import GB, Script, columns, nodes, play, prefill_s, scenario, serve_all, synthetic, trace

GPU = "box-1/small-0"
Rows = list[tuple[Any, ...]]


def down(at_s: float, repair_s: float | None = None, gpu: str = GPU) -> dict[str, Any]:
    return {"kind": "gpu_failure", "at_s": at_s, "gpu": gpu, "repair_s": repair_s}


def lost(at_s: float, repair_s: float | None = None, node: str = "box-1") -> dict[str, Any]:
    return {"kind": "node_loss", "at_s": at_s, "node": node, "repair_s": repair_s}


def run(events: list[dict[str, Any]], rows: Rows, policy: Any = "lru-swap", **changes: Any) -> Engine:
    """Play with the laws held; `retries` is one of the faults' options."""
    faults = {"events": events, **({"retries": changes.pop("retries")} if "retries" in changes else {})}
    of = scenario(faults=faults, **changes)
    chosen = load_policy(policy)[0] if isinstance(policy, str) else policy
    engine = play(of, chosen, trace(of, rows))
    if not engine.world.recorder.ended[UNFINISHED]:
        assert_laws(engine, len(rows))
        assert_settled(engine)
    return engine


def record(engine: Engine) -> Any:
    found = engine.world.recorder.faults
    assert found is not None
    return found


# --- GPUs


def test_work_on_a_gpu_that_fails_goes_on_when_it_is_repaired() -> None:
    engine = run([down(5.0, 10.0)], [(0.0, "a", 100, 500)])
    calm = run([], [(0.0, "a", 100, 500)])
    row, calm_row = columns(engine), columns(calm)
    gpu = engine.world.cluster.gpus[0]
    assert row["produced_tokens"].tolist() == [500]
    assert gpu.activity_s["down"] == 10.0
    # Ready again 2 s after the repair, then prompt and answer so far are computed at once.
    restarted_s = 17.0
    got = sum(1 for _ in range(500) if _token_s(_) <= 5.0)
    recompute_s = prefill_s(4, 4, 100 + got)
    assert row["recompute_s"][0] == pytest.approx(recompute_s)
    assert row["first_token_s"][0] == calm_row["first_token_s"][0] == pytest.approx(2.02)
    # The recompute gives one token, for which the undisturbed run took a step.
    left_s = _token_s(499) - _token_s(got)
    assert row["end_s"][0] == pytest.approx(restarted_s + recompute_s + left_s)
    faults = record(engine)
    assert (faults.retried, faults.retries, faults.kv_tokens) == (1, 1, 100 + got)
    assert faults.recompute_s == pytest.approx(recompute_s)
    assert faults.step_s == pytest.approx(5.0 - _token_s(got - 1))
    assert len(switches(engine, "load")) == 2


def _token_s(number: int) -> float:
    """When token `number` (from 0) comes on a calm day: the first after load and prompt."""
    return 2.02 + sum(0.010 + (100 + got) * 1e-6 for got in range(1, number + 1))


@pytest.mark.parametrize("at_s", [0.7, 1.6, 2.0, 2.01, 2.02, 2.5])
def test_a_failure_at_any_moment_costs_no_token(at_s: float) -> None:
    """While it starts, while it loads, at its end, in a prompt, at its end, in a step."""
    engine = run([down(at_s, 1.0)], [(0.0, "a", 100, 300), (0.1, "a", 50, 20)])
    assert columns(engine)["produced_tokens"].tolist() == [300, 20]
    assert engine.world.cluster.gpus[0].activity_s["down"] == 1.0
    assert record(engine).retries == (2 if at_s < 2.3 else 1)  # the short answer takes 0.25 s


def test_retries_have_an_end() -> None:
    rows: Rows = [(0.0, "a", 100, 900)]
    events = [down(5.0, 1.0), down(10.0, 1.0), down(15.0, 1.0)]
    for retries, ended in ((0, 5.0), (1, 10.0), (2, 15.0)):
        engine = run(events, rows, retries=retries)
        found = columns(engine)
        assert found["outcome"].tolist() == [FAILED]
        assert found["end_s"].tolist() == [ended]
        reason = list(engine.world.recorder.reasons)[found["reason"][0]]
        assert reason == "its GPU failed" + ("", " after 1 retry", " after 2 retries")[retries]
        assert record(engine).wasted_tokens == found["produced_tokens"][0] > 0
    assert columns(run(events, rows, retries=3))["produced_tokens"].tolist() == [900]
    assert columns(run(events, rows, retries=None))["produced_tokens"].tolist() == [900]


def test_overlapping_reasons_to_be_down_add_up() -> None:
    events = [down(5.0, 10.0), lost(8.0, 20.0), down(9.0, 1.0)]
    engine = run(events, [(0.0, "a", 100, 500)])
    assert engine.world.cluster.gpus[0].activity_s["down"] == 23.0
    assert record(engine).retries == 1
    assert not engine.world.cluster.down


def test_the_others_take_over() -> None:
    rows: Rows = [(0.0, "a", 100, 500)]
    engine = run([down(5.0)], rows, cluster=nodes(("small", 2)))
    assert columns(engine)["end_s"][0] < 30.0
    assert [gpu.activity_s["down"] > 0 for gpu in engine.world.cluster.gpus] == [True, False]


def test_without_any_gpu_requests_stay_and_nobody_is_blamed() -> None:
    engine = run([down(5.0)], [(0.0, "a", 100, 500), (6.0, "a", 1, 1)])
    assert engine.world.recorder.ended[UNFINISHED] == 2
    engine = run([down(5.0, 200_000.0)], [(0.0, "a", 100, 500)])
    assert columns(engine)["produced_tokens"].tolist() == [500]


# --- hosts


def saved_then_back(at_s: float) -> Script:
    """The sequence is saved at 3 s, and comes back at `at_s`."""

    def save(view: View) -> Iterator[Action]:
        yield Preempt(view.instances[0].running[0])

    def again(view: View) -> Iterator[Action]:
        yield from (Load(view.models[0], gpu, 4) for gpu in view.gpus if not gpu.instances)

    def route(view: View) -> Iterator[Action]:
        if view.now_s < 2.5 or view.now_s >= at_s:
            yield from serve_all(view)

    return script({3.0: save, at_s: again, at_s + 1: lambda _: iter(())}, load((0, 0, 4)), route)


def test_saved_kv_survives_its_gpu_but_not_its_node() -> None:
    rows: Rows = [(0.0, "a", 100, 500)]
    kept = columns(run([down(5.0, 1.0)], rows, saved_then_back(10.0)))
    assert kept["kv_transfer_s"][0] > 0
    assert kept["recompute_s"][0] == 0
    engine = run([lost(5.0, 1.0)], rows, saved_then_back(10.0))
    gone = columns(engine)
    assert gone["recompute_s"][0] > 0
    assert gone["produced_tokens"].tolist() == [500]
    assert record(engine).retries == 0  # it was in no instance
    assert record(engine).kv_tokens > 100


def test_a_lost_node_forgets_its_weights() -> None:
    rows: Rows = [(0.0, "a", 100, 500)]
    for event, from_disk in ((down(5.0, 1.0), [False, False]), (lost(5.0, 1.0), [False, True])):
        assert [row["from_disk"] for row in switches(run([event], rows), "load")] == from_disk


def test_kv_on_its_way_from_a_node_that_is_lost_is_computed_again() -> None:
    two = {"nodes": [*nodes(("small", 1))["nodes"], *nodes(("small", 1))["nodes"]], "gpu_reserve_gib": 0}

    def save(view: View) -> Iterator[Action]:
        yield Preempt(view.instances[0].running[0])

    def elsewhere(view: View) -> Iterator[Action]:
        yield from (Route(request, view.instances[1]) for request in view.waiting)

    def first(view: View) -> Iterator[Action]:
        if view.now_s < 2.5:
            yield from (Route(request, view.instances[0]) for request in view.waiting)
        elif view.now_s > 4.0:
            yield from (Route(request, view.instances[-1]) for request in view.waiting)

    policy = script({3.0: save, 4.0: elsewhere}, load((0, 0, 4), (0, 1, 4)), first)
    # About 500 tokens x 4 layers x 2500 B: 5 MB over the network's 1 GB/s take 2 ms or so.
    engine = run([lost(4.0005, 1.0)], [(0.0, "a", 400, 500)], policy, cluster=two)
    found = columns(engine)
    assert found["recompute_s"][0] > 0
    assert found["kv_transfer_s"][0] > 0.0005
    assert record(engine).retries == 0


# --- loads and links


def test_a_failed_load_takes_its_time_and_frees_its_memory() -> None:
    events = [{"kind": "load_failure", "at_s": 0.0, "gpu": GPU}]
    seen: list[tuple[float, int, int]] = []

    def decide(view: View) -> Iterator[Action]:
        seen.extend((view.now_s, len(view.lost), gpu.free_bytes) for gpu in view.freed)
        for model in view.waiting_models:
            target = model.least_loaded
            if target is None:
                target_load = Load(model, view.gpus[0], model.layers)
                yield target_load
                yield from (Route(request, target_load) for request in model.waiting)

    engine = run(events, [(0.0, "a", 100, 5)], Script(decide))
    assert seen == [(2.0, 1, 8 * 2**30)]
    assert [row["time_s"] for row in switches(engine, "failed load")] == [2.0]
    assert [row["time_s"] for row in switches(engine, "load")] == [4.0]
    assert (record(engine).events["load_failure"], record(engine).load_s, record(engine).retries) == (1, 2.0, 1)


def test_a_slow_link_slows_what_is_under_way_and_nothing_is_lost() -> None:
    """4 GB at 8 GB/s from 1.5 s; from 1.75 s at 2.5 GB/s, for 0.4 s: 2 + 1 + 1 GB."""
    slow = {"kind": "slow_link", "at_s": 1.75, "gpu": GPU, "factor": 0.25, "for_s": 0.4, "links": ["h2d"]}
    engine = run([slow], [(0.0, "a", 100, 5)])
    assert switches(engine, "load")[0]["time_s"] == pytest.approx(1.75 + 0.4 + 0.125)
    assert engine.transfers.bytes_by_link() == {f"{GPU}.h2d": {"weights": 4 * GB}, "box-1.h2d": {"weights": 4 * GB}}
    assert engine.world.cluster.gpus[0].h2d_factor == 1.0
    worse = {**slow, "at_s": 1.8, "factor": 0.5, "for_s": 100.0}  # the worst of two counts, then the other
    engine = run([slow, worse], [(0.0, "a", 100, 5)])
    assert switches(engine, "load")[0]["time_s"] == pytest.approx(1.75 + 0.4 + 1 / 5)


def test_links_of_a_node() -> None:
    """4 GB from the disk at 2 GB/s, a quarter of it for 4 s."""
    slow = {"kind": "slow_link", "at_s": 1.5, "node": "box-1", "factor": 0.25, "for_s": 4.0}
    engine = run([slow], [(0.0, "a", 100, 5)], cluster=nodes(("small", 1), cache_at_start="none"))
    assert switches(engine, "load")[0]["time_s"] == pytest.approx(1.5 + 4.0 + 1.0)


def test_streamed_weights_cross_the_slow_link_too() -> None:
    def one(events: list[dict[str, Any]]) -> float:
        streaming = nodes(("small-s", 1), host="wide")
        policy = script({}, load((0, 0, 7)))
        engine = run(events, [(0.0, "a", 10, 50)], policy, cluster=streaming, models={"a": "giant"})
        return float(columns(engine)["decode_s"][0])

    name = "wide-1/small-s-0"
    slow = {"kind": "slow_link", "at_s": 0.0, "gpu": name, "factor": 0.5}
    calm_s, slow_s = one([]), one([slow])
    # Of a step, 9/16 of what is not the GPU's part of the full model's 10 ms is the link's, which takes twice as long.
    assert calm_s < slow_s < 2 * calm_s


# --- clients


@pytest.mark.parametrize(
    ("at_s", "phase"),
    [
        (0.5, "load_wait"),
        (2.01, "prefill"),
        (2.5, "decode"),
        (3.2, "kv_transfer"),
        (3.8, "preempted"),
        (4.1, "kv_transfer"),
        (4.5, "decode"),
    ],
)
def test_a_client_may_leave_at_any_moment(at_s: float, phase: str) -> None:
    """Loading until 2 s, prompt until 2.05 s, saved from 3 to 3.5 s, restored from 4 to 4.25 s; beside another."""

    def save(view: View) -> Iterator[Action]:
        yield from (Preempt(request) for request in view.instances[0].running if request.number == 0)

    def route(view: View) -> Iterator[Action]:
        if not 3.0 <= view.now_s < 4.0:
            yield from serve_all(view)

    policy = script({3.0: save, 4.0: lambda _: iter(())}, load((0, 0, 4)), route)
    rows: Rows = [(0.0, "a", 400, 500), (0.0, "a", 20, 300)]
    slow_kv = synthetic("1.0,0.5,8.0,0.01,0.02,0.25,0.125")
    engine = run([{"kind": "cancellation", "at_s": at_s, "request": 0}], rows, policy, profiles=slow_kv)
    found = columns(engine)
    assert found["outcome"].tolist() == [TIMED_OUT, 0]
    assert found["end_s"][0] == at_s
    assert found["produced_tokens"][1] == 300
    reasons = list(engine.world.recorder.reasons)
    assert reasons[found["reason"][0]] == "the client cancelled it"
    assert record(engine).cancelled == 1
    assert found[f"{phase}_s"][0] > 0
    if at_s == 4.1:
        # It began at the end of an iteration, a little after 4 s.
        assert 0.09 * 0.02 * GB < switches(engine, "kv_restore")[0]["bytes"] < 0.1 * 0.02 * GB


def test_who_has_gone_or_not_come_cannot_be_cancelled() -> None:
    events = [{"kind": "cancellation", "at_s": at_s, "request": 0} for at_s in (0.5, 9.0)]
    assert record(run(events, [(1.0, "a", 10, 10)])).cancelled == 0


# --- what a policy sees


def test_a_policy_sees_the_event_and_only_what_is_up() -> None:
    seen: list[tuple[Any, ...]] = []

    def decide(view: View) -> Iterator[Action]:
        if view.failed or view.repaired:
            names = ([gpu.index for gpu in group] for group in (view.gpus, view.down, view.failed, view.repaired))
            seen.append((view.now_s, *names, [gpu.index for node in view.nodes for gpu in node.gpus]))
            for gpu in view.down:
                assert not gpu.up
                assert (gpu.free_bytes, gpu.available_bytes, gpu.growth_bytes, gpu.instances) == (0, 0, 0, [])
                assert not gpu.takes(view.models[0], 4)
            assert view.shortlist() == view.gpus
            assert view.largest_gpu.up
        yield from serve_all(view)

    two = {"nodes": [*nodes(("large", 1), ("small", 1))["nodes"], *nodes(("small", 1))["nodes"]], "gpu_reserve_gib": 0}
    events = [down(5.0, 5.0, "box-1/large-0"), lost(20.0, 5.0), lost(40.0, 20.0), lost(45.0, 5.0, "box-2")]
    policy = Script(decide, load((0, 2, 4)))
    run(events, [(0.0, "a", 100, 500), (70.0, "a", 1, 1)], policy, cluster=two, horizon_s=100.0)
    assert seen == [
        (5.0, [1, 2], [0], [0], [], [1, 2]),
        (10.0, [0, 1, 2], [], [], [0], [0, 1, 2]),
        (20.0, [2], [0, 1], [0, 1], [], [2]),
        (25.0, [0, 1, 2], [], [], [0, 1], [0, 1, 2]),
        (40.0, [2], [0, 1], [0, 1], [], [2]),
        (50.0, [2], [0, 1], [2], [2], [2]),  # nobody asked while none was up
        (60.0, [0, 1, 2], [], [], [0, 1], [0, 1, 2]),
    ]


def test_what_happened_while_no_gpu_was_up_is_told_when_one_is() -> None:
    told: list[tuple[Any, ...]] = []

    def decide(view: View) -> Iterator[Action]:
        groups = (view.arrived, view.requeued, view.finished)
        told.append((view.now_s, *([request.number for request in group] for group in groups)))
        if not view.instances:
            yield Load(view.models[0], view.gpus[0], 4)
        yield from serve_all(view)

    rows: Rows = [(0.0, "a", 10, 300), (6.0, "a", 10, 10), (7.0, "a", 10, 10)]
    events = [down(5.0, 10.0), {"kind": "cancellation", "at_s": 8.0, "request": 1}]
    engine = run(events, rows, Script(decide, load((0, 0, 4))))
    assert (15.0, [2], [0], []) in told  # who came and left in between was never there
    assert not [entry for entry in told if 5.0 <= entry[0] < 15.0]
    assert columns(engine)["produced_tokens"].tolist() == [300, 0, 10]


def test_nothing_can_be_loaded_on_a_gpu_that_is_down() -> None:
    def decide(view: View) -> Iterator[Action]:
        yield from (Load(view.models[0], gpu, 4) for gpu in view.down)

    with pytest.raises(PolicyError, match=r"refused: box-1/small-0 is down; view.gpus has those that are up"):
        run([down(5.0)], [(0.0, "a", 10, 10)], Script(decide), cluster=nodes(("small", 2)), horizon_s=9.0)


def test_an_instance_that_is_gone_takes_no_action() -> None:
    kept: list[Any] = []

    def decide(view: View) -> Iterator[Action]:
        kept.extend(view.instances)
        if view.lost:
            assert [(i.status, i.accepts, i.gpu.up) for i in view.lost] == [("gone", False, False)]
            yield Stop(kept[0])

    policy = Script(decide, load((0, 0, 4)))
    with pytest.raises(PolicyError, match="refused: the instance is gone"):
        run([down(5.0)], [(0.0, "a", 10, 10)], policy, cluster=nodes(("small", 2)), horizon_s=9.0)


def test_who_is_given_up_leaves_no_saved_kv_behind() -> None:
    """It waits with its saved KV for a load, whose GPU fails."""

    def save(view: View) -> Iterator[Action]:
        yield Preempt(view.instances[0].running[0])

    def elsewhere(view: View) -> Iterator[Action]:
        target = Load(view.models[0], view.gpus[1], 4)
        yield target
        yield from (Route(request, target) for request in view.waiting)

    def route(view: View) -> Iterator[Action]:
        if view.now_s < 2.5:
            yield from serve_all(view)

    policy = script({3.0: save, 4.0: elsewhere}, load((0, 0, 4)), route)
    events = [down(5.0, gpu="box-1/small-1")]
    engine = run(events, [(0.0, "a", 100, 500)], policy, retries=0, cluster=nodes(("small", 2)))
    assert columns(engine)["outcome"].tolist() == [FAILED]
    assert engine.world.cluster.nodes[0].memory.saved_kv_bytes == 0
    assert record(engine).wasted_tokens == columns(engine)["produced_tokens"][0] > 50


def test_a_request_is_retried_once_and_its_retries_are_all_counted() -> None:
    engine = run([down(3.0, 1.0), down(7.0, 1.0)], [(0.0, "a", 100, 500)])
    assert (record(engine).retried, record(engine).retries) == (1, 2)


def test_a_run_in_which_nothing_more_can_happen_ends_with_the_last_that_did() -> None:
    """Not with the timer of a batch that is no more."""
    engine = run([down(5.0)], [(0.0, "a", 100, 900)], retries=None)
    assert engine.world.recorder.ended[UNFINISHED] == 1
    assert engine.clock.now_s == 5.0
