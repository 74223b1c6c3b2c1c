"""Host memory: cached weights, pins and KV under one capacity; and that the gate's promise of room holds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.common.errors import PolicyError
from sim.core.state.host_memory import HostMemory
from sim.policy import Action, Load, Stop, View, Wake
from tests.support.scenarios import GB, Script, nodes, play, scenario, serve_all, trace

A, B, C = (("a", "FP16"), ("b", "FP16"), ("c", "FP16"))


def test_the_least_recently_used_weights_leave_first_and_pinned_ones_stay() -> None:
    memory = HostMemory(100, None)
    assert memory.cache(A, 40)
    assert memory.cache(B, 40)
    assert memory.touch(A)
    assert memory.cache(C, 50)
    assert list(memory.cached) == [A, C]
    memory.pin(A)
    assert not memory.cache(B, 70)  # only C could go
    assert list(memory.cached) == [A, C]
    assert memory.take_saved_kv(60)
    assert list(memory.cached) == [A]
    assert not memory.take_instance_kv(1)
    memory.check()


def test_the_cache_limit_holds_below_the_capacity() -> None:
    memory = HostMemory(100, 50)
    assert memory.cache(A, 30)
    assert memory.cache(B, 30)
    assert list(memory.cached) == [B]
    assert not memory.cache(C, 51)
    assert memory.free == 70


def test_weights_that_are_to_be_pinned_cannot_make_room_for_their_own_kv() -> None:
    memory = HostMemory(100, None)
    memory.cache(A, 60)
    assert memory.room_for(A, 60, 40) <= 0
    assert memory.room_for(A, 60, 50) == 10


@settings(derandomize=True, deadline=None)
@given(
    capacity=st.integers(1, 60),
    limit=st.none() | st.integers(0, 60),
    steps=st.lists(st.tuples(st.sampled_from("cpkus"), st.sampled_from([A, B, C]), st.integers(0, 40)), max_size=30),
    kv=st.integers(0, 60),
    weights=st.integers(0, 40),
)
def test_room_for_tells_the_truth(
    capacity: int, limit: int | None, steps: list[tuple[str, tuple[str, str], int]], kv: int, weights: int
) -> None:
    """Whatever happened before: when room_for says yes, caching, pinning and holding succeed; the account holds."""
    memory = HostMemory(capacity, limit)
    sizes = {A: 7, B: 13, C: 22}
    for what, key, size in steps:
        if what == "c":
            memory.cache(key, sizes[key])
        elif what == "p" and key in memory.cached:
            memory.pin(key)
        elif what == "u" and memory.pins.get(key):
            memory.unpin(key)
        elif what == "k":
            memory.take_instance_kv(size)
        elif what == "s":
            memory.take_saved_kv(size)
        memory.check()
    sizes[B] = sizes[B] if B in memory.cached else weights
    missing = memory.room_for(B, sizes[B], kv)
    if missing <= 0:
        assert memory.cache(B, sizes[B])
        memory.pin(B)
        assert memory.take_instance_kv(kv)
        memory.check()


def test_a_load_whose_host_memory_does_not_suffice_is_refused() -> None:
    # 4 GB of weights, to be pinned, and 3/4 of the KV of 100,000 tokens (1 GB) do not fit into 4.2 GB.
    of = scenario(cluster=nodes(("small", 1), memory_gib=4.2 * GB / 2**30))
    with pytest.raises(PolicyError, match="host memory of box-1 lacks"):
        play(
            of,
            Script(serve_all, lambda view: [Load(view.models[0], view.gpus[0], 1, kv_tokens=100_000)]),
            trace(of, [(0, "a", 10, 5)]),
        )


def test_a_cancelled_read_from_disk_leaves_no_weights_behind() -> None:
    # 1 s start + 0.5 s fixed; then 4 GB at the disk's 2 GB/s. Cancelled after 0.1 s of reading, asked again at once.
    of = scenario(cluster=nodes(("small", 1), cache_at_start="none"))
    stopped: list[float] = []

    def decide(view: View) -> Iterator[Action]:
        if view.now_s == 1.6 and not stopped:
            stopped.append(view.now_s)
            yield Stop(view.instances[0])
            yield Load(view.models[0], view.gpus[0], 4)
        elif view.now_s == 0.0:
            yield Wake(1.6)
        yield from serve_all(view)

    engine = play(
        of, Script(decide, lambda view: [Load(view.models[0], view.gpus[0], 4)]), trace(of, [(0, "a", 10, 5)])
    )
    loads = [row for row in engine.world.recorder.switches if row[1] == "load"]
    assert [(row[0], row[13]) for row in loads] == [(pytest.approx(1.6 + 1.5 + 2.0), True)]
