"""What attacks have found or were thought to find (tools/fuzz.py, test_machine.py), as small plays that show it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sim.common.errors import PolicyError
from sim.core.state.request import COMPLETED, UNFINISHED
from sim.engine.engine import Engine
from sim.policy import Action, Load, Preempt, Resize, Route, View, Wake, choose_options, load_policy, policy_names
from sim.scenario.scenario import GIB
from tests.support.laws import assert_laws
from tests.support.scenarios import GB, Script, nodes, play, scenario, serve_all, trace


@pytest.mark.parametrize("layers", [(4, 1), (1, 4)])
def test_an_elastic_resize_moves_the_kv_that_is_there_not_that_of_the_last_boundary(layers: tuple[int, int]) -> None:
    """A leap under way has produced tokens that are not booked yet; their KV moves, too."""
    before, after = layers
    context: list[int] = []

    def start(view: View) -> Iterator[Action]:
        yield Load(view.models[0], view.gpus[0], before)
        yield Wake(10.0)

    def decide(view: View) -> Iterator[Action]:
        yield from serve_all(view)
        if view.now_s == 10.0:
            instance = view.instances[0]
            context.extend(request.context_tokens for request in instance.running)
            yield Resize(instance, after)

    of = scenario(engine={"resize": "elastic", "block_tokens": 16, "max_sequences": 8})
    engine = play(of, Script(decide, start), trace(of, [(3.0, "a", 100, 900)]))
    weights = max(0, after - before) * GB
    (moved,) = [row for row in engine.world.recorder.switches if row[1] == "resize"]
    assert context[0] > 200, "it decodes for a while before"
    blocks = -(-context[0] // 16)
    # The last token's own KV is only written by the next iteration: it may or may not have its block yet.
    assert moved[12] - weights in [3 * 2500 * 16 * number for number in (blocks, blocks + 1)]


def wake_up(wake_s: float, insists: bool) -> tuple[Engine, list[bool]]:
    """`a` sleeps without its weights; the KV of a sequence of `b` is saved into the room that they left, from 8 s to
    20 s. At `wake_s` somebody wakes `a`, if the views say that this is legal or all the same. What they say."""
    said: list[bool] = []

    def start(view: View) -> Iterator[Action]:
        for model, gpu in zip(view.models, view.gpus, strict=True):
            yield Load(model, gpu, model.layers)
        for at_s in (5.0, 8.0, 20.0, wake_s):
            yield Wake(at_s)

    def decide(view: View) -> Iterator[Action]:
        a, b = view.instances
        if view.now_s == 5.0:
            yield Resize(a, 0, drop_weights=True)
        elif view.now_s == 8.0:
            yield from [Preempt(request) for request in b.running]
        elif view.now_s == wake_s:
            said.append(a.takes_resize(a.layers))
            if said[0] or insists:
                yield Resize(a, a.layers)
        if view.now_s < 8.0 or view.now_s >= 20.0:
            yield from [Route(request, b) for request in view.waiting]

    spare = 0.002 * GB  # less than the KV that is saved
    cluster = nodes(("small", 2), memory_gib=(4 * GB + 2.5 * GB + spare) / GIB)
    of = scenario(models={"a": "four", "b": "two"}, cluster=cluster, engine={"resize": "sleep", "max_sequences": 8})
    return play(of, Script(decide, start), trace(of, [(4.0, "b", 500, 500), (40.0, "b", 1, 1)])), said


def test_saved_kv_in_the_place_of_weights_keeps_a_sleeper_asleep() -> None:
    """The gate refuses what would find no room, with the reason; nothing pinned is pushed out, nothing fails inside."""
    with pytest.raises(PolicyError, match=r"host memory of box-1 lacks 0\.01 GiB for it"):
        wake_up(12.0, insists=True)
    engine, said = wake_up(12.0, insists=False)
    assert said == [False]
    assert engine.world.recorder.ended[COMPLETED] == 2


def test_when_the_kv_is_back_the_sleeper_wakes() -> None:
    engine, said = wake_up(20.1, insists=True)
    assert said == [True]
    assert [row[1] for row in engine.world.recorder.switches].count("wake") == 1


def test_clockwork_swaps_no_two_models_for_ever_where_that_takes_no_time() -> None:
    """A third one runs; of two others each was loaded in place of the other, idle and asked for, in one instant."""
    models = [
        {"name": name, "model": of, "engine": "quick", "max_context": longest}
        for name, of, longest in (("a", "eight", 1024), ("b", "two", 256), ("c", "four", 256))
    ]
    of = scenario(
        models=models,
        cluster=nodes(("small", 1), memory_gib=3.958),
        engine={"ideal": ["switches"], "max_sequences": 2},
        service_classes=[{"name": "default", "ttft_s": 0.5}],
        horizon_s=100.0,
    )
    rows = [(0.0, "b", 255, 1), (0.0, "a", 1023, 1), (0.0, "c", 255, 1)]
    assert_laws(play(of, load_policy("clockwork")[0], trace(of, rows)), 3)


def test_who_is_cancelled_while_their_kv_is_saved_leaves_an_idle_instance_behind() -> None:
    """When the last byte is out: policies are told, and rankings count one request less."""
    idled_s: list[float] = []

    def start(view: View) -> Iterator[Action]:
        yield Load(view.models[0], view.gpus[0], view.models[0].layers)
        yield Wake(8.0)

    def decide(view: View) -> Iterator[Action]:
        idled_s.extend(view.now_s for _ in view.idled)
        yield from serve_all(view)
        if view.now_s == 8.0:
            yield from [Preempt(request) for request in view.instances[0].running]

    slow = {"kind": "slow_link", "at_s": 7.0, "gpu": "box-1/small-0", "factor": 1e-4, "for_s": 100.0}
    cancelled = {"kind": "cancellation", "at_s": 9.0, "request": 0}
    of = scenario(engine={"max_sequences": 8}, faults={"events": [slow, cancelled]})
    engine = play(of, Script(decide, start), trace(of, [(4.0, "a", 500, 500), (300.0, "a", 1, 1)]))
    (saved,) = [row for row in engine.world.recorder.switches if row[1] == "kv_save"]
    assert saved[0] > 10.0, "the save is still under way when its client leaves"
    assert idled_s[0] == saved[0]
    assert engine.world.recorder.ended[COMPLETED] == 1


def test_memory_without_an_end_is_shared_out_as_what_all_need() -> None:
    options = [[(0.0, 0.0), (5 * GB, 3.0)], [(0.0, 0.0), (2 * GB, 1.0), (9 * GB, 1.5)]]
    assert choose_options(options, 2.0**60) == choose_options(options, 16 * GB) == [1, 2]
    assert choose_options(options, 8 * GB) == [1, 1]
    assert choose_options([], 2.0**60) == []


@pytest.mark.parametrize("ideal", [("memory",), ("switches",), ("memory", "switches")], ids=" ".join)
@pytest.mark.parametrize("name", policy_names())
def test_every_policy_lives_in_an_ideal_world(name: str, ideal: tuple[str, ...]) -> None:
    """With a KV pool as large as what is left of its memory, and turns that cost nothing to change."""
    kinds = (("a", "two"), ("b", "eight"), ("c", "four"))
    models = [{"name": model, "model": of, "engine": "quick", "max_context": 256} for model, of in kinds]
    engine = {"ideal": list(ideal), "max_sequences": 2, "resize": "sleep"}
    of = scenario(models=models, cluster=nodes(("small-s", 1)), engine=engine, horizon_s=500.0)
    rows = [(number * 0.3, "abc"[number % 3], 20, 10 + 30 * (number % 4)) for number in range(12)]
    played = play(of, load_policy(name)[0], trace(of, rows))
    assert_laws(played, 12)
    assert not played.world.recorder.ended[UNFINISHED]  # some policies refuse requests


def test_aegaeon_waits_for_a_prompt_that_lost_its_place() -> None:
    """It has been served for as long as it takes, on a GPU that failed: there is nobody to preempt until it runs."""
    kinds = {"m0": ("eight", 64), "m1": ("two", 256), "m2": ("four", 256), "m3": ("two", 256)}
    models = [
        {"name": name, "model": of, "engine": "quick", "max_context": longest} for name, (of, longest) in kinds.items()
    ]
    node = {"name": "n0", "host": "wide", "gpus": [{"gpu": "small"}, {"gpu": "small"}], "cache_at_start": "none"}
    outages = {"mean_between_s": 20.0, "mean_repair_s": 3.0}
    lost = {"mean_between_s": 60.0, "repair_s": 5.0}
    of = scenario(
        models=models,
        cluster={"nodes": [node]},
        engine={"prefill": "chunked", "prefill_tokens": 64, "block_tokens": 1, "max_sequences": 8},
        faults={"random": {"gpu_failure": outages, "node_loss": lost, "load_failure": {"probability": 0.2}}},
        seed=28,
    )
    rows = [(0.867421, name, 1, 1) for name in ("m1", "m3", "m0", "m2")]
    rows += [(2.3856954000000004, "m3", 255, 1), (2.3856954000000004, "m1", 1, 1)]
    assert_laws(play(of, load_policy("aegaeon")[0], trace(of, rows)), 6)
