"""What every change of what is loaded shares: the status of an instance, its claims on memory, and the load itself.

A load waits for memory that others give back, pays the engine's fixed costs, then moves its layers over the slowest
stage (model.md section 6). loading.py and resizing.py say when to load and what else happens; faults break loads off.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sim.core.state.in_progress import LoadInProgress
from sim.core.state.instance import ASLEEP, GONE, LOADING, PENDING, READY, STARTING, Instance
from sim.core.state.links import Link
from sim.core.state.machines import Gpu, Placement
from sim.core.state.request import LOAD_WAIT, QUEUED
from sim.core.transfers import Transfers
from sim.core.world import World


class Lifecycle:
    """From the wait for memory to the end of all instances."""

    def __init__(self, world: World, transfers: Transfers) -> None:
        self.world = world
        self.transfers = transfers
        self.loads: dict[int, LoadInProgress] = {}
        # Weights that have their place in a node's host memory, but have not been read from disk yet.
        self.arriving: dict[tuple[int, tuple[str, str]], bool] = {}
        self.fails: Callable[[Gpu], bool] | None = None  # is the load that ends now on this GPU one that fails?
        self.on_failed: Callable[[Instance, LoadInProgress], None] = lambda instance, load: None

    @property
    def _now_s(self) -> float:
        return self.world.clock.now_s

    def become(self, instance: Instance, status: int) -> None:
        """Its status from now on."""
        instance.status = status
        self.world.recorder.note(instance, self._now_s)

    def take_host_kv(self, instance: Instance, size: int) -> None:
        """Host memory for the KV of layers outside the GPU, which the gate has seen to be there."""
        taken = instance.node.memory.take_instance_kv(size)
        assert taken, (instance.number, size)

    def pin(self, instance: Instance) -> None:
        """Keep a host copy of the weights for as long as the instance lives."""
        weights, node = instance.model.weights, instance.node
        if weights.key not in node.memory.cached:
            self.arriving[node.index, weights.key] = True
        cached = node.memory.cache(weights.key, weights.total_bytes)
        assert cached, "the gate checks host memory"
        node.memory.pin(weights.key)
        instance.pins_weights = True

    def unpin(self, instance: Instance) -> None:
        """It needs no host copy of its weights any more."""
        instance.node.memory.unpin(instance.model.weights.key)
        instance.pins_weights = False

    # --- loads

    def load(self, instance: Instance, wake: bool = False) -> None:
        """Load the layers that it has by its residency, once there is memory for them."""
        self.become(instance, PENDING)
        instance.changed()
        instance.model.loading[instance.number] = instance
        self.loads[instance.number] = LoadInProgress(self._now_s, wake)
        instance.placement.wait(instance)
        instance.claim(instance.gpu_bytes)
        self._start_pending(instance.placement)

    def _start_pending(self, placement: Placement) -> None:
        for gpu in placement.gpus:
            self.start_pending(gpu)

    def start_pending(self, gpu: Gpu) -> None:
        """Start waiting loads in order, as far as memory is really free."""
        while gpu.pending and gpu.pending[0].placement.is_free_for(gpu.pending[0]):
            instance = gpu.pending[0]
            instance.placement.stop_waiting(instance)
            instance.claim(0)
            instance.placement.take(instance.gpu_bytes, self._now_s)
            instance.placement.count_loads(1, self._now_s)
            load = self.loads[instance.number]
            switch = instance.profile.switch
            load.begun_s = self._now_s
            load.start_s = 0.0 if load.wake else switch.start_s
            load.fixed_s = switch.wake_fixed_s if load.wake else switch.reload_fixed_s
            self.become(instance, STARTING)
            instance.version += 1
            self.world.clock.at(self._now_s + load.start_s + load.fixed_s, self._on_started, instance, instance.version)

    def _on_started(self, subject: Any, version: int) -> None:
        instance: Instance = subject
        if version != instance.version:
            return
        self.become(instance, LOADING)
        load = self.loads[instance.number]
        weights, residency, node = instance.model.weights, instance.residency, instance.node
        key, size = weights.key, float(residency.gpu_weight_bytes)
        load.from_disk = not node.memory.touch(key) or (node.index, key) in self.arriving
        links = self.transfers.to_gpus(instance.placement)
        sizes: list[tuple[float, tuple[Link, ...]]] = [(size, links)]
        if load.from_disk:
            if node.memory.cache(key, weights.total_bytes):
                self.arriving[node.index, key] = True
            # The disk is read while the link sends; the layers that stay in host memory are read too.
            sizes = [(size, (*links, *self.transfers.disk(node)))]
            if residency.host_weight_bytes:
                sizes.append((float(residency.host_weight_bytes), self.transfers.disk(node)))
        load.open_transfers = len(sizes)
        limit = instance.profile.switch.reload_bytes_per_s

        def done() -> None:
            load.open_transfers -= 1
            if not load.open_transfers:
                self._on_loaded(instance, load)

        load.transfers = [self.transfers.start(size, path, limit, "weights", done) for size, path in sizes]

    def _on_loaded(self, instance: Instance, load: LoadInProgress) -> None:
        now_s, placement = self._now_s, instance.placement
        if load.from_disk:
            self.arriving.pop((instance.node.index, instance.model.weights.key), None)
        del self.loads[instance.number]
        placement.count_loads(-1, now_s)
        if self.fails is not None and True in [self.fails(gpu) for gpu in placement.gpus]:
            self.on_failed(instance, load)
            return
        self.become(instance, READY)
        instance.ready_s = instance.last_used_s = now_s
        del instance.model.loading[instance.number]
        instance.changed()
        self.world.recorder.counts["loads"] += 1
        self.world.recorder.switch(
            now_s,
            "wake" if load.wake else "load",
            instance,
            wait_s=load.begun_s - load.asked_s,
            start_s=load.start_s,
            reload_s=now_s - load.begun_s - load.start_s,
            bytes=float(instance.residency.gpu_weight_bytes),
            from_disk=load.from_disk,
        )
        for request in instance.waiting.in_order():
            if request.phase == LOAD_WAIT:
                request.enter(QUEUED, now_s)
        self.world.changes.loaded.append(instance)
        self.world.touch(instance)

    def record_end(self, instance: Instance, load: LoadInProgress, kind: str) -> None:
        """What a load that came to nothing has cost so far."""
        spent_s = self._now_s - load.begun_s
        moved = sum([transfer.size - transfer.remaining for transfer in load.transfers], 0.0)
        self.world.recorder.switch(
            self._now_s,
            kind,
            instance,
            wait_s=load.begun_s - load.asked_s,
            start_s=min(spent_s, load.start_s),
            reload_s=max(0.0, spent_s - load.start_s),
            bytes=moved,
            from_disk=load.from_disk,
        )

    # --- the end

    def send_back_waiting(self, instance: Instance) -> None:
        """Whoever only waits there goes back to the cluster's queue."""
        for request in instance.waiting.in_order():
            if request.phase == LOAD_WAIT:
                request.enter(QUEUED, self._now_s)
            instance.waiting.remove(request.index)
            self.world.requeue(request)

    def vanish(self, instance: Instance) -> None:
        """It is gone, and what it held of the host with it; of the GPU's memory the caller has taken care."""
        if instance.host_kv_bytes and instance.status != ASLEEP:
            self.take_host_kv(instance, -instance.host_kv_bytes)
        if instance.pins_weights:
            self.unpin(instance)
        self.become(instance, GONE)
        instance.model.ranking.drop(instance.number)
        instance.version += 1
        instance.placement.remove(instance)
        del instance.model.instances[instance.number]
        del self.world.cluster.instances[instance.number]
        self.freed(instance.placement)

    def freed(self, placement: Placement) -> None:
        """There is more memory than before, for who waits for it and for the policy to decide on."""
        for gpu in placement.gpus:
            if not gpu.down:
                self.world.changes.freed.append(gpu)
                self.start_pending(gpu)
