"""Changes what is loaded: load, resize, stop, and what each costs (model.md section 6).

A load waits for memory that others give back, pays the engine's fixed costs, then moves its layers over the slowest
stage. A stop drains, preempts (saves KV) or aborts. A resize is a restart, a sleep or wake, or a move of only those
layers that change, as the engine can. Actions come from the gate, already checked; serving calls in at boundaries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sim.core.resizing import Resizing
from sim.core.serving import Serving
from sim.core.state.instance import (
    ASLEEP,
    DRAINING,
    FREEING,
    GONE,
    LOADING,
    PENDING,
    READY,
    STARTING,
    STOPPING,
    Instance,
    Model,
)
from sim.core.state.links import Link, Transfer
from sim.core.state.machines import Gpu
from sim.core.state.request import KV_TRANSFER, LOAD_WAIT, PREEMPTED, QUEUED, Request
from sim.core.transfers import Transfers
from sim.core.world import World


@dataclass
class LoadInProgress:
    """A load under way: what it waits for, and when its parts began. `wake` loads have no engine start to pay."""

    asked_s: float
    wake: bool = False
    start_s: float = 0.0
    fixed_s: float = 0.0
    begun_s: float = 0.0
    from_disk: bool = False
    size: float = 0.0
    open_transfers: int = 0
    transfers: list[Transfer] | None = None


class Loading:
    """The life of all instances."""

    def __init__(self, world: World, transfers: Transfers, serving: Serving) -> None:
        self.world = world
        self.transfers = transfers
        self.serving = serving
        self._number = 0
        self.loads: dict[int, LoadInProgress] = {}
        # Weights that have their place in a node's host memory, but have not been read from disk yet.
        self.arriving: dict[tuple[int, tuple[str, str]], bool] = {}
        self.resizing = Resizing(world, transfers, self)
        serving.takes_over = self._take_over
        self.fails: Callable[[Gpu], bool] | None = None  # is the load that ends now on this GPU one that fails?
        self.on_failed: Callable[[Instance, LoadInProgress], None] = lambda instance, load: None

    @property
    def _now_s(self) -> float:
        return self.world.clock.now_s

    # --- load

    def load(self, model: Model, gpu: Gpu, layers: int, kv_tokens: int, max_sequences: int) -> Instance:
        """A new instance, which waits for its memory and then loads."""
        self._number += 1
        block = self.world.options.block_tokens
        instance = Instance(self._number, model, gpu, layers, -(-kv_tokens // block), block, max_sequences)
        if layers < model.weights.layers or self.world.options.resize != "none":
            self.pin(instance)
        self.take_host_kv(instance, instance.host_kv_bytes_at(layers))
        self.world.cluster.instances[instance.number] = instance
        gpu.instances[instance.number] = instance
        model.instances[instance.number] = instance
        self.wait_for_memory(instance, LoadInProgress(self._now_s))
        return instance

    def resize(self, instance: Instance, layers: int) -> None:
        """Change the layers on the GPU, as the engine can: restart, sleep or wake, or move only what changes."""
        self.world.recorder.counts["resizes"] += 1
        if instance.status == ASLEEP:
            instance.layers = layers
            if not instance.pins_weights:
                self.pin(instance)
            self.take_host_kv(instance, instance.host_kv_bytes_at(layers))
            self.wait_for_memory(instance, LoadInProgress(self._now_s, wake=True))
        else:
            self.resizing.begin(instance, layers)

    def become(self, instance: Instance, status: int) -> None:
        """Its status from now on."""
        instance.status = status
        self.world.recorder.note(instance, self._now_s)

    def take_host_kv(self, instance: Instance, size: int) -> None:
        """Host memory for the KV of layers outside the GPU, which the gate has seen to be there."""
        taken = instance.gpu.node.memory.take_instance_kv(size)
        assert taken, (instance.number, size)

    def pin(self, instance: Instance) -> None:
        """Keep a host copy of the weights for as long as the instance lives."""
        weights, node = instance.model.weights, instance.gpu.node
        if weights.key not in node.memory.cached:
            self.arriving[node.index, weights.key] = True
        cached = node.memory.cache(weights.key, weights.total_bytes)
        assert cached, "the gate checks host memory"
        node.memory.pin(weights.key)
        instance.pins_weights = True

    def wait_for_memory(self, instance: Instance, load: LoadInProgress) -> None:
        self.become(instance, PENDING)
        instance.changed()
        instance.model.loading[instance.number] = instance
        self.loads[instance.number] = load
        instance.gpu.pending.append(instance)
        instance.claim(instance.gpu_bytes)
        self.start_pending(instance.gpu)

    def start_pending(self, gpu: Gpu) -> None:
        """Start waiting loads in order, as far as memory is really free."""
        while not gpu.down and gpu.pending and gpu.pending[0].gpu_bytes <= gpu.capacity_bytes - gpu.used_bytes:
            instance = gpu.pending.pop(0)
            instance.claim(0)
            gpu.take(instance.gpu_bytes, self._now_s)
            gpu.account(self._now_s)
            gpu.loads += 1
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
        weights, gpu, node = instance.model.weights, instance.gpu, instance.gpu.node
        key = weights.key
        load.size = float(weights.gpu_bytes(instance.layers))
        load.from_disk = not node.memory.touch(key) or (node.index, key) in self.arriving
        links = self.transfers.to_gpu(gpu)
        sizes: list[tuple[float, tuple[Link, ...]]] = [(load.size, links)]
        if load.from_disk:
            if node.memory.cache(key, weights.total_bytes):
                self.arriving[node.index, key] = True
            # The disk is read while the link sends; the layers that stay in host memory are read too.
            sizes = [(load.size, (*links, *self.transfers.disk(node)))]
            if weights.host_bytes(instance.layers):
                sizes.append((float(weights.host_bytes(instance.layers)), self.transfers.disk(node)))
        load.open_transfers = len(sizes)
        limit = instance.profile.switch.reload_bytes_per_s

        def done() -> None:
            load.open_transfers -= 1
            if not load.open_transfers:
                self._on_loaded(instance, load)

        load.transfers = [self.transfers.start(size, path, limit, "weights", done) for size, path in sizes]

    def _on_loaded(self, instance: Instance, load: LoadInProgress) -> None:
        now_s, gpu = self._now_s, instance.gpu
        weights = instance.model.weights
        if load.from_disk:
            self.arriving.pop(self._arriving_key(instance), None)
        del self.loads[instance.number]
        gpu.account(now_s)
        gpu.loads -= 1
        if self.fails is not None and self.fails(gpu):
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
            bytes=float(weights.gpu_bytes(instance.layers)),
            from_disk=load.from_disk,
        )
        for request in instance.waiting.in_order():
            if request.phase == LOAD_WAIT:
                request.enter(QUEUED, now_s)
        self.world.changes.loaded.append(instance)
        self.world.touch(instance)

    def _arriving_key(self, instance: Instance) -> tuple[int, tuple[str, str]]:
        weights = instance.model.weights
        return instance.gpu.node.index, weights.key

    def restart(self, instance: Instance) -> None:
        """Load an instance anew, with the layers that it now has."""
        self.wait_for_memory(instance, LoadInProgress(self._now_s))

    # --- stop

    def stop(self, instance: Instance, mode: str) -> None:
        """drain, preempt or abort; whoever only waits there goes back to the cluster's queue at once."""
        if self.world.recorder.timeline is not None:
            self.world.recorder.timeline.instant(instance, f"stop: {mode}", {}, self._now_s)
        self.send_back_waiting(instance)
        if instance.status in (PENDING, STARTING, LOADING):
            self.cancel_load(instance)
            return
        instance.gpu.release_later(instance.gpu_bytes if instance.status != ASLEEP else 0)
        if instance.status == ASLEEP:
            self.vanish(instance)
            return
        if mode == "drain":
            self.become(instance, DRAINING)
        else:
            self.become(instance, STOPPING)
            instance.stop_mode = mode
        instance.changed()
        if instance.leap is None and not instance.sequences:
            self._free(instance)
        else:
            self.world.touch(instance)

    def send_back_waiting(self, instance: Instance) -> None:
        for request in instance.waiting.in_order():
            if request.phase == LOAD_WAIT:
                request.enter(QUEUED, self._now_s)
            instance.waiting.remove(request.index)
            self.world.requeue(request)

    def cancel_load(self, instance: Instance) -> None:
        """Break a load off, under way or waiting for memory, and with it the instance."""
        gpu = instance.gpu
        load = self.loads.pop(instance.number)
        del instance.model.loading[instance.number]
        instance.version += 1
        if instance.status == PENDING:
            gpu.pending.remove(instance)
            instance.claim(0)
        else:
            for transfer in load.transfers or []:
                if transfer.under_way:
                    self.transfers.cancel(transfer)
            self.record_end(instance, load, "broken-off load")
            gpu.account(self._now_s)
            gpu.loads -= 1
            gpu.take(-instance.gpu_bytes, self._now_s)
        self.vanish(instance)

    def record_end(self, instance: Instance, load: LoadInProgress, kind: str) -> None:
        """What a load that came to nothing has cost so far."""
        spent_s = self._now_s - load.begun_s
        moved = sum([transfer.size - transfer.remaining for transfer in load.transfers or []], 0.0)
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

    def close(self) -> None:
        """The run ends here: loads under way have cost what they have cost."""
        for number, load in self.loads.items():
            instance = self.world.cluster.instances[number]
            if instance.status != PENDING:
                self.record_end(instance, load, "broken-off load")

    def _take_over(self, instance: Instance) -> bool:
        """At an iteration boundary: is there something to do that ends or changes this instance?"""
        if instance.stop_mode is not None:
            if instance.status in (STOPPING, READY):
                self._evacuate(instance, instance.stop_mode)
            return True
        if instance.status == DRAINING and not instance.sequences:
            self._free(instance)
            return True
        self.resizing.apply(instance)
        return instance.status not in (READY, DRAINING)

    def _evacuate(self, instance: Instance, mode: str) -> None:
        """Take every sequence out; then free. `restart` and `sleep` keep their sequences waiting at the instance."""
        self.become(instance, STOPPING)
        instance.changed()
        if instance.sequences:
            self.world.recorder.counts["model_preemptions"] += 1
            if self.world.recorder.timeline is not None:
                preempted = {"sequences": instance.sequences, "mode": mode}
                self.world.recorder.timeline.instant(instance, "model preempted", preempted, self._now_s)
        if mode not in ("restart", "sleep"):
            self.send_back_waiting(instance)
        leaving = self._drop_unfinished(instance)
        saved: list[Request] = []
        for request in list(instance.decoding.values()):
            request.model_preemptions += 1
            if mode != "abort" and self.serving.kv.hold(instance, request):
                instance.leave_decoding(request, KV_TRANSFER, self._now_s)
                saved.append(request)
            else:
                instance.leave_decoding(request, PREEMPTED, self._now_s)
                leaving.append(request)
            instance.release(request.context)
            instance.sequences -= 1
        instance.composition += 1
        self._send_back(instance, leaving, mode)
        instance.stop_mode = None

        def done() -> None:
            left = [request for request in saved if self.serving.preemption.is_out(request)]
            self._send_back(instance, left, mode)
            self._free(instance, mode)

        if saved:
            self.serving.kv.save(instance, saved, done)
        else:
            self._free(instance, mode)

    def _drop_unfinished(self, instance: Instance) -> list[Request]:
        """Prompts under way lose their work; KV on its way in is still in host memory, or is put back there."""
        leaving: list[Request] = []
        for request in instance.prefilling:
            request.computed_tokens = 0
            request.model_preemptions += 1
            instance.release(request.context)
            leaving.append(request)
        instance.prefilling = []
        for request in instance.restoring.values():
            self.serving.kv.cancel_restore(instance, request)
            instance.release(request.context)
            leaving.append(request)
        instance.restoring = {}
        instance.sequences -= len(leaving)
        for request in leaving:
            request.enter(PREEMPTED, self._now_s)
        return leaving

    def _send_back(self, instance: Instance, requests: list[Request], mode: str) -> None:
        for request in requests:
            if mode in ("restart", "sleep"):
                self.serving.enqueue(request, instance)
            else:
                self.world.requeue(request)

    def _free(self, instance: Instance, mode: str = "stop") -> None:
        """Give the GPU memory back, after the time that takes."""
        self.become(instance, FREEING)
        instance.version += 1
        free_s = instance.profile.switch.free_s
        if mode != "restart":
            self.world.recorder.counts["evictions"] += 1
        self.world.recorder.switch(self._now_s, "free", instance, free_s=free_s, bytes=float(instance.gpu_bytes))
        finish: dict[str, Callable[[Instance], None]] = {
            "restart": self.resizing.restart,
            "sleep": self.resizing.sleep,
        }
        action = finish.get(mode, self._freed)
        if free_s == 0:
            action(instance)
            return

        def later(subject: Any, version: int) -> None:
            if version == subject.version:
                action(subject)

        self.world.clock.at(self._now_s + free_s, later, instance, instance.version)

    def _freed(self, instance: Instance) -> None:
        gpu = instance.gpu
        gpu.take(-instance.gpu_bytes, self._now_s)
        gpu.release_later(-instance.gpu_bytes)
        self.vanish(instance)

    def vanish(self, instance: Instance) -> None:
        """It is gone, and what it held of the host with it; of the GPU's memory the caller has taken care."""
        gpu, memory = instance.gpu, instance.gpu.node.memory
        host_kv_bytes = instance.host_kv_bytes_at(instance.layers)
        if host_kv_bytes and instance.status != ASLEEP:
            memory.take_instance_kv(-host_kv_bytes)
        if instance.pins_weights:
            weights = instance.model.weights
            memory.unpin(weights.key)
        self.become(instance, GONE)
        instance.model.ranking.drop(instance.number)
        gpu.peers.idle.drop(instance.number)
        instance.version += 1
        del gpu.instances[instance.number]
        del instance.model.instances[instance.number]
        del self.world.cluster.instances[instance.number]
        if not gpu.down:
            self.world.changes.freed.append(gpu)
            self.start_pending(gpu)
