"""The world behind its verbs: requests arrive, are routed, preempted and end; instances load, resize and stop.

The gate, the engine and faults act through these alone. `Core` leaves open who runs batches and who loads: in a
simulation (`SimulatedCore`) serving.py and loading.py, on real hardware a server's own. Nothing is checked here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from sim.core.clock import SimClock
from sim.core.loading import Loading
from sim.core.record.recorder import Recorder
from sim.core.serving import Serving
from sim.core.state.instance import READY, Instance, Model
from sim.core.state.machines import Cluster, Placement
from sim.core.state.request import IMPOSSIBLE, KV_TRANSFER, LOAD_WAIT, QUEUED, UNFINISHED, Request
from sim.core.state.residency import Residency
from sim.core.transfers import Transfers
from sim.core.world import Changes, World
from sim.scenario.scenario import EngineOptions, SharingOptions


class SavedCopies(Protocol):
    """The KV that was saved of requests."""

    def drop(self, request: Request) -> None: ...


class Batches(Protocol):
    """Who runs the batches of instances: a request begins or ends to wait for its place in one."""

    @property
    def kv(self) -> SavedCopies: ...

    def enqueue(self, request: Request, instance: Instance) -> None: ...

    def withdraw(self, request: Request) -> None: ...


class Loads(Protocol):
    """Who loads, resizes and stops instances."""

    def load(
        self, model: Model, placement: Placement, residency: Residency, kv_tokens: int, max_sequences: int
    ) -> Instance: ...

    def resize(self, instance: Instance, residency: Residency) -> None: ...

    def stop(self, instance: Instance, mode: str) -> None: ...


class Core:
    """What may be done to a world."""

    def __init__(self, world: World, batches: Batches, loads: Loads) -> None:
        self.world = world
        self.cluster = world.cluster
        self.options = world.options
        self.recorder = world.recorder
        self._batches = batches
        self._loads = loads

    @property
    def now_s(self) -> float:
        return self.world.clock.now_s

    # --- requests

    def arrive(self, request: Request) -> bool:
        """Into the cluster's queue; False: no machine here can ever serve it, so it has ended."""
        self.recorder.arrived += 1
        model = request.model
        request.reason = model.fits_nowhere
        if not request.reason and request.prompt_tokens + request.output_tokens > model.max_context:
            request.reason = f"needs more than {model.name}'s max_context of {model.max_context} tokens"
        if request.reason:
            self.recorder.end(request, IMPOSSIBLE, self.now_s)
            return False
        self.cluster.wait(request)
        self.world.changes.arrived.append(request)
        return True

    def take_back(self, request: Request) -> bool:
        """Out of the queue it waits in, the cluster's or an instance's; False when it does not wait."""
        if request.index in request.model.waiting:
            self.cluster.unwait(request)
        elif request.instance is not None and request.instance.waiting.has(request.index):
            self._batches.withdraw(request)
            if request.phase == LOAD_WAIT:
                request.enter(QUEUED, self.now_s)
        else:
            return False
        return True

    def route(self, request: Request, instance: Instance, recompute: bool = False) -> None:
        """A request that waits nowhere waits at this instance; `recompute`: without its saved KV."""
        if recompute:
            self._batches.kv.drop(request)
        if instance.status != READY and request.phase == QUEUED:
            request.cold = True
            request.enter(LOAD_WAIT, self.now_s)
        self._batches.enqueue(request, instance)

    def preempt(self, request: Request, instance: Instance, mode: str) -> None:
        """Out of its batch at the next iteration boundary, into the cluster's queue. mode: save or recompute."""
        instance.preempt_next[request.index] = mode
        self.world.touch(instance)

    def end(self, request: Request, outcome: int, reason: str) -> None:
        """A request that is neither in a queue nor in a batch has ended, unanswered."""
        if request.phase != KV_TRANSFER:  # else its KV is on its way out, and is dropped when it is there
            self._batches.kv.drop(request)
        request.reason = reason
        self.recorder.end(request, outcome, self.now_s)
        self.world.changes.finished.append(request)

    # --- instances

    def load(
        self, model: Model, placement: Placement, residency: Residency, kv_tokens: int, max_sequences: int
    ) -> Instance:
        """A new instance, to which requests may be routed at once."""
        return self._loads.load(model, placement, residency, kv_tokens, max_sequences)

    def resize(self, instance: Instance, residency: Residency) -> None:
        """Change what is on the GPU, as the engine can: by a restart, a sleep or wake, or a move of what changes."""
        self._loads.resize(instance, residency)

    def stop(self, instance: Instance, mode: str) -> None:
        """drain, preempt or abort; whoever only waits there goes back to the cluster's queue at once."""
        self._loads.stop(instance, mode)

    # --- what happened

    @property
    def changed(self) -> bool:
        """Has anything happened that a policy may want to decide on?"""
        return self.world.changes.any()

    def wake(self) -> None:
        """It is the time at which the policy wanted to decide."""
        self.world.changes.woken = True

    def take_changes(self, fresh: Changes) -> Changes:
        """What has happened since this was last asked; what happens from now on is noted in `fresh`."""
        changes, self.world.changes = self.world.changes, fresh
        return changes


class SimulatedCore(Core):
    """A simulated world at time 0. turn: called after the last event of each instant."""

    def __init__(
        self,
        cluster: Cluster,
        options: EngineOptions,
        sharing: SharingOptions,
        recorder: Recorder,
        turn: Callable[[], None],
    ) -> None:
        self.clock = SimClock(turn)
        world = World(self.clock, cluster, options, sharing, recorder)
        self.transfers = Transfers(world)
        self.serving = Serving(world, self.transfers)
        self.loading = Loading(world, self.transfers, self.serving)
        super().__init__(world, self.serving, self.loading)
        for gpu in cluster.gpus:
            gpu.timeline = recorder.timeline
        if recorder.series is not None or recorder.timeline is not None:
            self.clock.watch(lambda now_s: recorder.look(now_s, cluster))

    @property
    def unplanned(self) -> bool:
        return self.world.unplanned()

    def plan(self) -> None:
        """At the end of an instant: start, cut and time the iterations of all that was touched in it."""
        self.serving.plan()

    def check(self, in_flight: int) -> None:
        """Assert the laws that hold at every instant; so many requests have not ended."""
        self.cluster.check()
        arrived, ended = self.recorder.arrived, self.recorder.all_ended
        assert arrived == ended + in_flight, (arrived, ended, in_flight)
        for instance in self.cluster.instances.values():
            if instance.leap is None and instance.status == READY and not instance.saving:
                assert not instance.decoding, f"{instance.number} decodes nothing (law 7)"

    def close(self, in_flight: Iterable[Request]) -> None:
        """The run ends here: book what is under way, and end who has not ended."""
        now_s = self.now_s
        for instance in list(self.cluster.instances.values()):
            self.serving.close(instance)
        for request in in_flight:
            if request.outcome < 0:
                self.recorder.end(request, UNFINISHED, now_s)
        self.transfers.close()
        self.loading.close()
        for gpu in self.cluster.gpus:
            gpu.account(now_s)
            gpu.take(0, now_s)
        if self.recorder.timeline is not None:
            self.recorder.timeline.close(self.cluster, now_s)
