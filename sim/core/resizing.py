"""Changes the layers of a loaded instance: a restart, a sleep, or an elastic move of only what changes.

Which of them a resize means is the engine's capability (`resize: none | sleep | elastic`), an experimental factor. The
gate has checked the room; memory that a resize will need is claimed when it is accepted. loading.py calls it.
"""

from __future__ import annotations

from sim.core.lifecycle import Lifecycle
from sim.core.state.instance import ASLEEP, Instance
from sim.core.state.request import LOAD_WAIT, QUEUED
from sim.core.state.under_way import ResizeUnderWay
from sim.core.transfers import Transfers
from sim.core.world import World


class Resizing:
    """Every resize but the wake from sleep, which is a load."""

    def __init__(self, world: World, transfers: Transfers, lifecycle: Lifecycle) -> None:
        self.world = world
        self.transfers = transfers
        self.lifecycle = lifecycle

    @property
    def _now_s(self) -> float:
        return self.world.clock.now_s

    def begin(self, instance: Instance, layers: int) -> None:
        """Start a resize to `layers`; under `sleep` that is always to nothing."""
        if self.world.options.resize == "elastic":
            self._move_layers(instance, layers)
            return
        if self.world.options.resize == "sleep":
            instance.stop_mode = "sleep"
            instance.changed()
            instance.gpu.release_later(instance.gpu_bytes)
        else:
            instance.stop_mode = "restart"
            instance.changed()
            instance.next_layers = layers
            instance.claim(max(0, instance.gpu_bytes_at(layers) - instance.gpu_bytes))
            self._hold_host_kv(instance, layers)
            if layers < instance.model.weights.layers and not instance.pins_weights:
                self.lifecycle.pin(instance)
        self.world.touch(instance)

    def _hold_host_kv(self, instance: Instance, layers: int) -> None:
        """Until it restarts, an instance holds the host memory of the larger of its two layouts."""
        more = instance.host_kv_bytes_at(layers) - instance.host_kv_bytes_at(instance.layers)
        self.lifecycle.take_host_kv(instance, max(0, more))

    def restart(self, instance: Instance) -> None:
        """The process ended; start again with the new layers, its sequences still waiting for it."""
        before, after = instance.layers, instance.next_layers
        instance.gpu.take(-instance.gpu_bytes, self._now_s)
        instance.claim(0)
        less = instance.host_kv_bytes_at(before) - instance.host_kv_bytes_at(after)
        self.lifecycle.take_host_kv(instance, -max(0, less))
        instance.layers = after
        if after == instance.model.weights.layers and instance.pins_weights:
            self.lifecycle.unpin(instance)
        for request in instance.waiting.in_order():
            if request.phase == QUEUED:
                request.enter(LOAD_WAIT, self._now_s)
        self.lifecycle.load(instance)

    def sleep(self, instance: Instance) -> None:
        """Only the process and the host copy of the weights stay; of that copy too, if it drops them, only what the
        host's cache happens to keep."""
        gpu = instance.gpu
        gpu.take(-instance.gpu_bytes, self._now_s)
        gpu.release_later(-instance.gpu_bytes)
        self.lifecycle.take_host_kv(instance, -instance.host_kv_bytes_at(instance.layers))
        if instance.drops_weights:
            self.lifecycle.unpin(instance)
        self.lifecycle.become(instance, ASLEEP)
        instance.changed()
        self.lifecycle.send_back_waiting(instance)
        self.world.changes.freed.append(gpu)
        self.lifecycle.start_pending(gpu)

    def _move_layers(self, instance: Instance, layers: int) -> None:
        """Elastic: grow over the link to the GPU; shrink for free but for the KV of the shed layers."""
        weights, gpu = instance.model.weights, instance.gpu
        kv_bytes = instance.kv_layer_bytes
        grow = layers > instance.layers
        moved_layers = abs(layers - instance.layers)
        delta_bytes = instance.gpu_bytes_at(layers) - instance.gpu_bytes
        resize = ResizeUnderWay(
            layers,
            extra_gpu_bytes=max(0, delta_bytes),
            extra_host_bytes=0 if grow else moved_layers * kv_bytes,
            started_s=self._now_s,
        )
        instance.resizing = resize
        self.world.recorder.note(instance, self._now_s)
        if grow:
            gpu.take(resize.extra_gpu_bytes, self._now_s)
        else:
            gpu.release_later(-delta_bytes)
            self.lifecycle.take_host_kv(instance, resize.extra_host_bytes)
        used_blocks = instance.blocks_after(instance.ahead(self._now_s))  # the running leap is not settled
        used_bytes = instance.model.kv_layer_bytes(used_blocks * instance.block_tokens) * moved_layers
        size = used_bytes + (weights.gpu_bytes(layers) - weights.gpu_bytes(instance.layers) if grow else 0)
        switch = instance.profile.switch

        resize.bytes = float(size)
        gpu.account(self._now_s)
        gpu.transfers += 1

        def done() -> None:
            gpu.account(self._now_s)
            gpu.transfers -= 1
            resize.moved = True
            resize.seconds = self._now_s - resize.started_s
            if self.world.recorder.timeline is not None:
                self.world.recorder.timeline.moved(instance, "resize", resize.started_s, self._now_s, resize.bytes)
            self.world.touch(instance)

        if size == 0:
            done()
            if instance.leap is None and not instance.sequences:
                self.apply(instance)  # nothing runs that would have to come to a boundary
        elif grow:
            links = self.transfers.to_gpu(gpu)
            resize.transfer = self.transfers.start(size, links, switch.reload_bytes_per_s, "resize", done)
        else:
            links = self.transfers.from_gpu(gpu)
            resize.transfer = self.transfers.start(size, links, switch.kv_save_bytes_per_s, "resize", done)

    def break_off(self, instance: Instance) -> None:
        """Its GPU is gone: what it holds of the host for another layout than the present one goes back."""
        resize, gpu = instance.resizing, instance.gpu
        if resize is not None:
            if resize.transfer is not None and resize.transfer.under_way:
                self.transfers.cancel(resize.transfer)
                gpu.account(self._now_s)
                gpu.transfers -= 1
                moved = resize.transfer.size - resize.transfer.remaining
                if self.world.recorder.timeline is not None:
                    self.world.recorder.timeline.moved(instance, "resize", resize.started_s, self._now_s, moved)
            self.lifecycle.take_host_kv(instance, -resize.extra_host_bytes)
            instance.resizing = None
        elif self.world.options.resize == "none":
            more = instance.host_kv_bytes_at(instance.next_layers) - instance.host_kv_bytes_at(instance.layers)
            self.lifecycle.take_host_kv(instance, -max(0, more))

    def apply(self, instance: Instance) -> None:
        """At a boundary: if a move is through, iterations run with the new layers from here on."""
        resize = instance.resizing
        if resize is None or not resize.moved:
            return
        gpu, memory = instance.gpu, instance.gpu.node.memory
        before_bytes = instance.gpu_bytes
        instance.settle_residency()
        grew = resize.layers > instance.layers
        if grew:
            memory.take_instance_kv(-(resize.layers - instance.layers) * instance.kv_layer_bytes)
        instance.layers = resize.layers
        instance.changed()
        instance.resizing = None
        self.world.recorder.note(instance, self._now_s)
        instance.composition += 1
        if not grew:
            freed = before_bytes - instance.gpu_bytes
            gpu.take(-freed, self._now_s)
            gpu.release_later(-freed)
            self.world.changes.freed.append(gpu)
            self.lifecycle.start_pending(gpu)
        self.world.recorder.switch(
            self._now_s,
            "resize",
            instance,
            bytes=resize.bytes,
            reload_s=resize.seconds if grew else 0.0,
            kv_save_s=0.0 if grew else resize.seconds,
        )
        self.world.changes.loaded.append(instance)
