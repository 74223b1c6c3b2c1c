"""The verbs of the core without a policy, an engine or a trace: what the gate and a real server may do to a world."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.core.core import Core, SimulatedCore
from sim.core.kv import KvMoves
from sim.core.record.recorder import Recorder
from sim.core.state.instance import PENDING, READY, STATUSES, Instance, Model
from sim.core.state.machines import Placement
from sim.core.state.request import COMPLETED, IMPOSSIBLE, LOAD_WAIT, QUEUED, REJECTED, TIMED_OUT, UNFINISHED, Request
from sim.core.state.residency import Residency
from sim.core.world import Changes
from sim.engine.build_cluster import build_cluster
from sim.profiles.library import Library
from tests.support.scenarios import scenario, synthetic


@pytest.fixture
def core() -> SimulatedCore:
    of = scenario()
    cluster = build_cluster(of, Library(Path(synthetic())))

    def turn() -> None:
        made.plan()

    made = SimulatedCore(cluster, of.engine, of.sharing, Recorder(), turn)
    return made


def request(core: SimulatedCore, prompt_tokens: int = 10, output_tokens: int = 5) -> Request:
    return Request(core.recorder.arrived, core.cluster.models[0], core.now_s, prompt_tokens, output_tokens)


def load(core: SimulatedCore) -> Instance:
    model = core.cluster.models[0]
    whole = model.residency(model.weights.layers)
    return core.load(model, Placement((core.cluster.gpus[0],)), whole, model.max_context, 8)


def until(core: SimulatedCore, instance: Instance, status: int) -> None:
    while instance.status != status:
        assert core.clock.step(), STATUSES[instance.status]


def test_a_request_goes_from_its_arrival_to_its_end(core: SimulatedCore) -> None:
    instance, served = load(core), request(core)
    assert core.arrive(served)
    assert core.take_back(served)
    core.route(served, instance)
    assert (served.phase, served.cold, instance.load) == (LOAD_WAIT, True, 1)
    core.check(1)
    core.clock.run()
    assert served.outcome == COMPLETED
    changes = core.take_changes(Changes())
    assert (changes.arrived, changes.loaded, changes.finished) == ([served], [instance], [served])
    assert not core.changed
    core.check(0)


def test_what_no_machine_can_serve_has_ended(core: SimulatedCore) -> None:
    long = request(core, core.cluster.models[0].max_context, 1)
    assert not core.arrive(long)
    assert (long.outcome, core.recorder.arrived, core.changed) == (IMPOSSIBLE, 1, False)
    assert "max_context" in long.reason
    assert not core.take_back(long)


def test_who_waits_can_be_taken_back_from_either_queue(core: SimulatedCore) -> None:
    instance, waits = load(core), request(core)
    core.arrive(waits)
    assert core.take_back(waits)
    assert not core.take_back(waits)
    core.route(waits, instance)
    assert core.take_back(waits)
    assert (waits.phase, waits.instance, instance.load) == (QUEUED, None, 0)
    core.end(waits, REJECTED, "why not")
    assert (waits.outcome, waits.reason) == (REJECTED, "why not")
    core.check(0)


def test_preempt_resize_stop_and_close(core: SimulatedCore) -> None:
    instance, runs, last = load(core), request(core, output_tokens=50), request(core)
    core.arrive(runs)
    core.take_back(runs)
    core.route(runs, instance)
    until(core, instance, READY)
    while not runs.started:
        core.clock.step()
    core.preempt(runs, instance, "save")
    core.plan()
    while runs.index not in runs.model.waiting:
        core.clock.step()
    assert runs.kv_node is instance.node
    core.resize(instance, instance.model.residency(2))
    core.plan()
    while instance.residency.layers != 2:
        core.clock.step()
    core.stop(instance, "drain")
    last.index = core.recorder.arrived
    core.arrive(last)
    core.check(2)
    core.wake()
    assert core.take_changes(Changes()).woken
    core.close([runs, last])
    assert runs.outcome == last.outcome == UNFINISHED
    assert core.recorder.output_tokens >= runs.produced > 0


def test_kv_on_its_way_out_keeps_its_place_until_it_is_there(core: SimulatedCore) -> None:
    instance, leaves = load(core), request(core, output_tokens=50)
    core.arrive(leaves)
    core.take_back(leaves)
    core.route(leaves, instance)
    while not leaves.started:
        core.clock.step()
    core.preempt(leaves, instance, "save")
    core.plan()
    while not instance.saving:
        core.clock.step()
    core.end(leaves, TIMED_OUT, "its client left")
    assert instance.node.memory.saved_kv_bytes > 0
    core.clock.run()
    assert instance.node.memory.saved_kv_bytes == 0
    core.check(0)


class Told:
    """Batches and loads of somebody else: a list of what they were told."""

    def __init__(self, kv: KvMoves) -> None:
        self.kv = kv
        self.told: list[str] = []

    def enqueue(self, request: Request, instance: Instance) -> None:
        request.instance = instance
        self.told.append(f"enqueue {request.index}")

    def withdraw(self, request: Request) -> None:
        self.told.append(f"withdraw {request.index}")

    def load(
        self, model: Model, placement: Placement, residency: Residency, kv_tokens: int, max_sequences: int
    ) -> Instance:
        self.told.append(f"load {residency.layers}")
        return Instance(1, model, placement, residency, kv_tokens // 16, 16, max_sequences)

    def resize(self, instance: Instance, residency: Residency) -> None:
        self.told.append(f"resize {residency.layers}")

    def stop(self, instance: Instance, mode: str) -> None:
        self.told.append(mode)


def test_others_may_run_the_batches_and_the_loads(core: SimulatedCore) -> None:
    told = Told(core.serving.kv)
    real = Core(core.world, told, told)
    model = core.cluster.models[0]
    instance = real.load(model, Placement((core.cluster.gpus[0],)), model.residency(3), 64, 2)
    assert instance.status == PENDING
    served = request(core)
    assert real.arrive(served)
    assert real.take_back(served)
    real.route(served, instance)
    instance.push_waiting(served, 0)
    assert real.take_back(served)
    real.resize(instance, model.residency(2))
    real.stop(instance, "abort")
    assert told.told == ["load 3", "enqueue 0", "withdraw 0", "resize 2", "abort"]
