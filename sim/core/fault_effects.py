"""What a fault takes away, at once and with every account balanced: GPUs, nodes, loads, and requests whose client left.

Whose GPU, node or load failed goes back to the cluster's queue, or is given up when its retries are used up. KV on a
GPU that failed is computed again; KV saved in host memory survives a GPU, not its node. faults.py says what happens
when; nothing here knows time or chance.
"""

from __future__ import annotations

from sim.core.core import SimulatedCore
from sim.core.record.recorder import FaultRecord
from sim.core.state.in_progress import LoadInProgress
from sim.core.state.instance import ASLEEP, LOADING, PENDING, STARTING, Instance
from sim.core.state.machines import Gpu, Node
from sim.core.state.request import FAILED, LOAD_WAIT, QUEUED, TIMED_OUT, Request
from sim.profiles.profile import Profile


class Losses:
    """Carries faults out. `retries`: how often a request may lose its instance and go on; None: always."""

    def __init__(self, core: SimulatedCore, record: FaultRecord, retries: int | None) -> None:
        self.core = core
        self.world = core.world
        self.serving = core.serving
        self.loading = core.loading
        self.kv = core.serving.kv
        self.record = record
        self.retries = retries
        self.lifecycle = core.loading.lifecycle
        self.lifecycle.on_failed = self.load_failed

    @property
    def _now_s(self) -> float:
        return self.core.now_s

    # --- GPUs and nodes

    def gpu_down(self, gpu: Gpu, why: str = "its GPU failed") -> None:
        """The GPU is gone, with all that was on it. It may be down for several reasons, and is up when none is left."""
        gpu.account(self._now_s)
        gpu.down += 1
        if gpu.down > 1:
            return
        self.core.cluster.down[gpu.index] = gpu
        losers: list[Request] = []
        for instance in list(gpu.instances.values()):
            losers += self._end_instance(instance)
        gpu.take(-gpu.used_bytes, self._now_s)
        gpu.release_later(-gpu.releasing_bytes)
        held = (gpu.claimed_bytes, gpu.loads, gpu.transfers, len(gpu.active), len(gpu.pending))
        assert not any(held), (gpu.name, held)
        self.world.changes.failed.append(gpu)
        self._give_back(losers, why)

    def gpu_up(self, gpu: Gpu) -> None:
        """One reason less for the GPU to be down."""
        gpu.account(self._now_s)
        gpu.down -= 1
        if not gpu.down:
            del self.core.cluster.down[gpu.index]
            gpu.changed()
            self.world.changes.repaired.append(gpu)
            self.world.changes.freed.append(gpu)

    def node_down(self, node: Node) -> None:
        """Its GPUs are gone, and what was in host memory: cached weights and saved KV."""
        for gpu in node.gpus:
            self.gpu_down(gpu, "its node was lost")
        for request in list(node.saved.values()):
            self._forget_saved(request)
        for key in [key for key in self.lifecycle.arriving if key[0] == node.index]:
            del self.lifecycle.arriving[key]
        node.memory.lose()

    def node_up(self, node: Node) -> None:
        """One reason less for its GPUs to be down. Its host memory is empty."""
        for gpu in node.gpus:
            self.gpu_up(gpu)

    def _forget_saved(self, request: Request) -> None:
        """Its saved KV is gone. An instance elsewhere that was about to get it has it wait, to compute it again."""
        assert request.kv_node is not None
        profile = request.model.profiles[request.kv_node.gpus[0].kinds]
        self._count_lost(profile, request.model.weights.layers, request.kv_tokens)
        instance = request.instance
        restoring = instance is not None and request.index in instance.restoring
        if instance is not None and restoring:
            self.serving.preemption.remove(instance, request)
            self.world.touch(instance)
        self.kv.drop(request)
        if instance is not None and restoring:
            self.serving.preemption.line_up_again(request, instance)

    # --- instances

    def load_failed(self, instance: Instance, load: LoadInProgress) -> None:
        """A load took its time, and there is nothing to show for it."""
        del instance.model.loading[instance.number]
        self.lifecycle.record_end(instance, load, "failed load")
        self.record.load_s += self._now_s - load.begun_s
        losers = self._take_waiting(instance)
        instance.placement.take(-instance.gpu_bytes, self._now_s)
        self.lifecycle.vanish(instance)
        self.world.changes.lost.append(instance)
        self._give_back(losers, "its model could not be loaded")

    def _end_instance(self, instance: Instance) -> list[Request]:
        """The instance is no more, nor what it was doing; who waited and ran there."""
        self.world.changes.lost.append(instance)
        if instance.status in (PENDING, STARTING, LOADING):
            losers = self._take_waiting(instance)
            if instance.status != PENDING:
                self.record.load_s += self._now_s - self.lifecycle.loads[instance.number].begun_s
            self.loading.cancel_load(instance)
            return losers
        losers = []
        if instance.status != ASLEEP:
            losers = self._take_batch(instance)
            instance.claim(0)
            self.loading.resizing.break_off(instance)
        losers += self._take_waiting(instance)
        self.lifecycle.vanish(instance)
        return losers

    def _take_waiting(self, instance: Instance) -> list[Request]:
        waiting: list[Request] = instance.waiting.in_order()
        for request in waiting:
            if request.phase == LOAD_WAIT:
                request.enter(QUEUED, self._now_s)
            instance.waiting.remove(request.index)
        return waiting

    def _take_batch(self, instance: Instance) -> list[Request]:
        """Everyone out of the batch. KV on the GPU, or on its way from there, is lost; KV on its way in is not."""
        self.record.step_s += self.serving.halt(instance)
        losers: list[Request] = []
        for request in self.kv.cancel_saves(instance):
            if request.index in instance.saving:
                instance.blocks.release(request.context)
                instance.sequences -= 1
            self._count_lost(instance.profile, instance.residency.layers, request.kv_tokens)
            if self.serving.preemption.is_out(request):
                losers.append(request)
                self.kv.drop(request)
        instance.saving = {}
        batch = [*instance.prefilling, *instance.joining, *instance.decoding.values(), *instance.restoring.values()]
        for request in batch:
            tokens = self.serving.preemption.remove(instance, request)
            self._count_lost(instance.profile, instance.residency.layers, tokens)
        assert instance.sequences == instance.blocks.used == 0, (instance.sequences, instance.blocks.used)
        return losers + batch

    def _count_lost(self, profile: Profile, layers: int, tokens: int) -> None:
        """So many tokens of one sequence are to be computed again, which takes so long alone with so many layers."""
        if tokens:
            self.record.kv_tokens += tokens
            self.record.recompute_s += profile.prefill_s(layers, tokens)

    # --- requests

    def _give_back(self, requests: list[Request], why: str) -> None:
        """To the cluster's queue, or away where this was one time too many."""
        for request in sorted(requests, key=lambda request: request.index):
            request.instance = None
            request.retries += 1
            if self.retries is None or request.retries <= self.retries:
                self.record.retries += 1
                if request.retries == 1:
                    self.record.retried += 1
                self.world.requeue(request)
                continue
            self.record.wasted_tokens += request.produced
            again = f" after {self.retries} {'retry' if self.retries == 1 else 'retries'}" if self.retries else ""
            self.core.end(request, FAILED, why + again)

    def cancel(self, request: Request, reason: str) -> None:
        """Its client leaves, wherever the request is. An iteration under way goes on to its end without it, and KV on
        its way out gets there before it is dropped."""
        instance = request.instance
        if not self.core.take_back(request) and instance is not None and not self._is_leaving(instance, request):
            self.serving.abandon(request)
            if request.outcome >= 0:
                return  # this very instant was its last anyway
        self.record.cancelled += 1
        self.core.end(request, TIMED_OUT, reason)

    def _is_leaving(self, instance: Instance, request: Request) -> bool:
        return any(request in requests for _, requests in instance.saves.values())
