"""What loading, stopping, resizing and moving KV cost, every second by hand; and the paper's preemption costs.

Synthetic hardware (scenarios.py): start 1 s, fixed 0.5 s, reload 8 GB/s (link 10, node cap 12, disk 2), KV out 4 GB/s
and in 6 GB/s, free 0.25 s, wake 0.125 s. Published times: arXiv 2605.19593, through the shipped profiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sim.engine.engine import Engine
from sim.policy import Action, Load, Resize, Route, Stop, View
from tests.support.loading_cases import Decide, load, script, switches
from tests.support.scenarios import FREE_OF_COST, GB, columns, nodes, play, prefill_s, scenario, synthetic, trace

SLOW_KV = "1.0,0.5,8.0,0.001,0.002,0.25,0.125"  # KV at 1 and 2 MB/s, so that it can be seen
KV_TOKEN = 2500 * 4  # bytes of a token of `four`


LATE = [(50.0, "a", 10, 1)]


def loads(start: Decide, **changes: Any) -> list[dict[str, Any]]:
    """The loads of a run that ends with one late request."""
    of = scenario(**changes)
    return switches(play(of, script({}, start), trace(of, LATE)), "load")


# --- loads


@pytest.mark.parametrize(
    ("changes", "layers", "ready_s"),
    [
        ({}, 4, 1.5 + 4 / 8),
        ({}, 3, 1.5 + 3 / 8),
        ({}, 0, 1.5),
        ({"models": {"a": "two"}}, 2, 1.5 + 2.5 / 8),  # the head goes with the last layer
        ({"models": {"a": "two"}}, 1, 1.5 + 1.0 / 8),
        ({"cluster": nodes(("small", 1), cache_at_start="none")}, 4, 1.5 + 4 / 2),
        # Both parts come from disk, and share it: 3 GB for the GPU, 1 GB that stays, so all is read after 2 s.
        ({"cluster": nodes(("small", 1), cache_at_start="none")}, 3, 1.5 + 4 / 2),
        ({"profiles": synthetic(FREE_OF_COST)}, 4, 0.5),
        ({"profiles": synthetic("1,0.5,50,4,6,0,0")}, 4, 1.5 + 4 / 10),  # the link is slower than the engine
    ],
)
def test_a_load_takes_start_fixed_and_bytes_over_the_slowest_stage(
    changes: dict[str, Any], layers: int, ready_s: float
) -> None:
    (row,) = loads(load((0, 0, layers)), **changes)
    assert row["time_s"] == pytest.approx(ready_s, rel=1e-12)
    assert row["start_s"] + row["reload_s"] == pytest.approx(ready_s, rel=1e-12)
    assert row["wait_s"] == 0


@pytest.mark.parametrize(
    ("links", "ready_s"),
    [
        # 12 GB/s for two: 6 each for 2.5 s / 6 (the smaller), then the larger has 8 alone.
        ("fair", [1.5 + 2.5 / 6, 1.5 + 2.5 / 6 + 1.5 / 8]),
        # Each GPU's link serves one at a time, and each has one: the cap has no queue, it is shared all the same.
        ("serial", [1.5 + 2.5 / 6, 1.5 + 2.5 / 6 + 1.5 / 8]),
    ],
)
def test_two_loads_share_the_cap_of_their_node(links: str, ready_s: list[float]) -> None:
    rows = loads(
        load((0, 0, 4), (1, 1, 2)),
        models={"a": "four", "b": "two"},
        cluster=nodes(("small", 2)),
        sharing={"links": links},
    )
    assert [row["time_s"] for row in rows] == pytest.approx(ready_s, rel=1e-12)


def test_a_load_waits_for_memory_that_a_draining_neighbour_gives_back() -> None:
    # `a` and `b` do not fit together into 8.6 GB with 5 layers of `giant`. `a` drains until its request is through.
    of = scenario(models={"a": "four", "b": "giant"})

    def swap(view: View) -> Iterator[Action]:
        yield Stop(view.instances[0], "drain")
        yield Load(view.models[1], view.gpus[0], 5)
        assert view.instances[1].status == "pending"

    engine = play(of, script({3.0: swap}, load((0, 0, 4))), trace(of, [(0, "a", 10, 200), (50, "b", 10, 1)]))
    end_s = columns(engine)["end_s"][0]
    assert end_s > 4.0
    row = switches(engine, "load")[1]
    assert row["wait_s"] == pytest.approx(end_s + 0.25 - 3.0, rel=1e-12)
    assert row["time_s"] == pytest.approx(end_s + 0.25 + 1.5 + 5 / 8, rel=1e-12)


@pytest.mark.parametrize("when_s", [0.5, 1.7])
def test_a_cancelled_load_gives_its_memory_back_at_once(when_s: float) -> None:
    # In the engine's start, and while its bytes move; those that moved are counted.
    of = scenario()
    free: list[int] = []

    def cancel(view: View) -> Iterator[Action]:
        yield Stop(view.instances[0])
        free.append(view.gpus[0].free_bytes - view.gpus[0].capacity_bytes)

    engine = play(of, script({when_s: cancel, 49.0: load((0, 0, 4))}, load((0, 0, 4))), trace(of, LATE))
    assert free == [0]
    assert len(switches(engine, "load")) == 1
    moved = max(0.0, when_s - 1.5) * 8 * GB
    assert engine.world.recorder.bytes_by_cause["weights"] == pytest.approx(moved + 4 * GB)


def test_the_host_forgets_the_least_recently_used_weights() -> None:
    # Room for two of three; loading c drops a, so a comes from disk again.
    of = scenario(
        models={"a": "four", "b": "two", "c": "eight"},
        cluster=nodes(("large", 1), memory_gib=8.5 * GB / 2**30, cache_at_start="none"),
    )
    times: dict[float, Decide] = {10.0: load((1, 0, 2)), 20.0: load((2, 0, 8))}
    times[30.0] = load((0, 0, 4))
    times[40.0] = load((2, 0, 8))
    engine = play(of, script(times, load((0, 0, 4))), trace(of, [*LATE]))
    rows = switches(engine, "load")
    assert [(row["model"], row["from_disk"]) for row in rows] == [
        ("a", True),
        ("b", True),
        ("c", True),
        ("a", True),
        ("c", False),
    ]


@pytest.mark.parametrize("own_weights", [False, True])
def test_a_fine_tuned_model_shares_no_weights_with_others_of_its_kind(own_weights: bool) -> None:
    kind = {"model": "two", "engine": "quick", "max_context": 1024, "own_weights": own_weights}
    of = scenario(
        models=[{"name": "a", **kind}, {"name": "b", **kind}], cluster=nodes(("large", 1), cache_at_start="none")
    )
    engine = play(of, script({10.0: load((1, 0, 2))}, load((0, 0, 2))), trace(of, [*LATE]))
    assert [(row["model"], row["from_disk"]) for row in switches(engine, "load")] == [("a", True), ("b", own_weights)]
    assert len(engine.world.cluster.nodes[0].memory.cached) == 1 + own_weights


# --- stops


def stopped(mode: str) -> Engine:
    """`a` runs a request from 2 s on; at 4 s its instance is stopped, loaded anew, and served on."""
    # With a KV pool of 1 GB a second instance does not fit beside the first.
    model = {"name": "a", "model": "four", "engine": "quick", "max_context": 1024, "kv_tokens": 100_000}
    of = scenario(models=[model], profiles=synthetic(SLOW_KV))

    def stop(view: View) -> Iterator[Action]:
        yield Stop(view.instances[0], mode)  # type: ignore[arg-type]
        yield Load(view.models[0], view.gpus[0], 4)

    return play(of, script({4.0: stop}, load((0, 0, 4))), trace(of, [(0, "a", 100, 400)]))


def test_a_drain_lets_what_runs_end() -> None:
    engine = stopped("drain")
    rows = columns(engine)
    assert rows["model_preemptions"][0] == 0
    assert rows["preempted_s"][0] == rows["kv_transfer_s"][0] == rows["recompute_s"][0] == 0
    assert not switches(engine, "kv_save")


def test_a_preempted_model_saves_frees_reloads_and_restores() -> None:
    engine = stopped("preempt")
    rows = columns(engine)
    (save,), (free,), (restore,) = (switches(engine, kind) for kind in ("kv_save", "free", "kv_restore"))
    reload = switches(engine, "load")[1]
    size = save["bytes"]
    assert size == restore["bytes"]
    assert size % KV_TOKEN == 0
    assert 100 * KV_TOKEN < size < 500 * KV_TOKEN
    assert save["kv_save_s"] == pytest.approx(size / 1e6, rel=1e-9)
    assert free["free_s"] == 0.25
    assert reload["start_s"] + reload["reload_s"] == pytest.approx(1.5 + 0.5, rel=1e-9)
    assert restore["kv_restore_s"] == pytest.approx(size / 2e6, rel=1e-9)
    seconds = engine.world.recorder.seconds
    assert seconds["kv_save_s"] + seconds["free_s"] + seconds["kv_restore_s"] == pytest.approx(size * 1.5e-6 + 0.25)
    assert rows["kv_transfer_s"][0] == pytest.approx(size * 1.5e-6, rel=1e-9)
    # Between the save and the restore it waits out the free (0.25), start and fixed (1.5) and the bytes (0.5).
    assert rows["preempted_s"][0] == pytest.approx(0.25 + 2.0, rel=1e-9)
    assert (rows["model_preemptions"][0], rows["produced_tokens"][0]) == (1, 400)


def test_an_aborted_model_recomputes_prompt_and_tokens() -> None:
    engine = stopped("abort")
    rows = columns(engine)
    assert not switches(engine, "kv_save")
    assert rows["preempted_s"][0] == pytest.approx(0.25 + 2.0, rel=1e-9)
    saved_tokens = switches(stopped("preempt"), "kv_save")[0]["bytes"] / KV_TOKEN
    assert rows["recompute_s"][0] == pytest.approx(prefill_s(4, 4, saved_tokens), rel=1e-9)
    assert rows["produced_tokens"][0] == 400


@pytest.mark.parametrize("recompute", [False, True])
def test_work_preempted_on_one_node_resumes_on_another(recompute: bool) -> None:
    # The KV crosses the network (1 GB/s of `box`) only at the restore's 2 MB/s; or it is computed again.
    of = scenario(
        profiles=synthetic(SLOW_KV),
        cluster={"nodes": [{"host": "box", "gpus": [{"gpu": "small"}]}] * 2, "gpu_reserve_gib": 0},
    )

    def route(view: View) -> Iterator[Action]:
        for model in view.waiting_models:
            for request in list(model.waiting):
                target = next((i for i in model.instances if i.accepts and (not stopping or i.gpu.index == 1)), None)
                if target is not None:
                    yield Route(request, target, recompute=recompute)

    stopping: list[bool] = []

    def stop(view: View) -> Iterator[Action]:
        stopping.append(True)
        yield Stop(view.instances[0], "preempt")

    engine = play(of, script({4.0: stop}, load((0, 0, 4), (0, 1, 4)), route), trace(of, [(0, "a", 100, 400)]))
    rows = columns(engine)
    (save,) = switches(engine, "kv_save")
    if recompute:
        assert not switches(engine, "kv_restore")
        assert rows["recompute_s"][0] == pytest.approx(prefill_s(4, 4, save["bytes"] / KV_TOKEN), rel=1e-9)
    else:
        (restore,) = switches(engine, "kv_restore")
        assert restore["bytes"] == save["bytes"]
        assert restore["kv_restore_s"] == pytest.approx(save["bytes"] / 2e6, rel=1e-9)
        network = engine.transfers.links[0].network
        assert network.bytes_by_cause["kv_restore"] == save["bytes"]
        assert restore["gpu"] == "box-2/small-0"
    assert rows["produced_tokens"][0] == 400
    assert all(node.memory.saved_kv_bytes == 0 for node in engine.world.cluster.nodes)


# --- resizes, of an idle instance with 1 of 4 layers that is to have all, or the other way round


def resized(capability: str, first: int, then: int) -> Engine:
    of = scenario(engine={"max_sequences": 8, "resize": capability})
    times = {10.0: lambda view: iter([Resize(view.instances[0], then)])}
    return play(of, script(times, load((0, 0, first))), trace(of, LATE))


@pytest.mark.parametrize(("first", "then"), [(1, 4), (4, 1)])
def test_without_a_capability_a_resize_is_a_restart(first: int, then: int) -> None:
    engine = resized("none", first, then)
    assert switches(engine, "load")[1]["time_s"] == pytest.approx(10 + 0.25 + 1.5 + then / 8, rel=1e-12)
    assert switches(engine, "load")[1]["layers"] == then


def test_a_sleeping_engine_wakes_without_its_start() -> None:
    of = scenario(engine={"max_sequences": 8, "resize": "sleep"})
    seen: list[tuple[str, int]] = []

    def look(view: View) -> Iterator[Action]:
        seen.append((view.instances[0].status, view.gpus[0].capacity_bytes - view.gpus[0].free_bytes))
        yield from ()

    def wake(view: View) -> Iterator[Action]:
        yield Resize(view.instances[0], 4)

    times: dict[float, Decide] = {10.0: lambda view: iter([Resize(view.instances[0], 0)]), 11.0: look, 20.0: wake}
    engine = play(of, script(times, load((0, 0, 4))), trace(of, LATE))
    assert seen == [("asleep", 0)]
    (row,) = switches(engine, "wake")
    assert row["time_s"] == pytest.approx(20 + 0.125 + 4 / 8, rel=1e-12)
    assert row["start_s"] == 0


@pytest.mark.parametrize(("drop", "another", "read"), [(False, False, False), (True, False, False), (True, True, True)])
def test_who_sleeps_without_its_host_copy_reads_the_disk_if_others_took_its_place(
    drop: bool, another: bool, read: bool
) -> None:
    # The host has room for one model's weights: 4 GB of `a`, 2 GB of `b`.
    of = scenario(
        engine={"max_sequences": 8, "resize": "sleep"},
        models={"a": "four", "b": "two"},
        cluster=nodes(("small", 2), memory_gib=4.5 * GB / 2**30, cache_at_start="none"),
    )
    times: dict[float, Decide] = {
        10.0: lambda view: iter([Resize(view.instances[0], 0, drop_weights=drop)]),
        20.0: lambda view: iter([Load(view.models[1], view.gpus[1], view.models[1].layers)] if another else []),
        30.0: lambda view: iter([Stop(i) for i in view.instances[1:]]),
        40.0: lambda view: iter([Resize(view.instances[0], 4)]),
    }
    engine = play(of, script(times, load((0, 0, 4))), trace(of, LATE))
    (row,) = switches(engine, "wake")
    assert row["from_disk"] == read
    assert row["time_s"] == pytest.approx(40 + 0.125 + 4 / (2 if read else 8), rel=1e-12)


@pytest.mark.parametrize(("first", "then", "seconds"), [(1, 4, 3 / 8), (4, 1, 0.0)])
def test_an_elastic_engine_moves_only_what_changes(first: int, then: int, seconds: float) -> None:
    engine = resized("elastic", first, then)
    (row,) = switches(engine, "resize")
    assert row["time_s"] == pytest.approx(10 + seconds, rel=1e-12)
    assert row["layers"] == then
    assert len(switches(engine, "load")) == 1
