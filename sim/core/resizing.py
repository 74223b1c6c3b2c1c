"""Changes the layers of a loaded instance: a restart, a sleep, or an elastic move of only what changes.

Which of them a resize means is the engine's capability (`resize: none | sleep | elastic`), an experimental factor. The
gate has checked the room; memory that a resize will need is claimed when it is accepted. loading.py calls it.
"""

from __future__ import annotations

from sim.core.lifecycle import Lifecycle
from sim.core.state.in_progress import ResizeInProgress
from sim.core.state.instance import ASLEEP, Instance
from sim.core.state.request import LOAD_WAIT, QUEUED
from sim.core.state.residency import Residency
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

    def begin(self, instance: Instance, residency: Residency) -> None:
        """Start a resize; under `sleep` that is always to nothing."""
        if self.world.options.resize == "elastic":
            self._move_layers(instance, residency)
            return
        if self.world.options.resize == "sleep":
            instance.stop_mode = "sleep"
            instance.changed()
            instance.placement.release_later(instance.gpu_bytes)
        else:
            instance.stop_mode = "restart"
            instance.changed()
            instance.next_residency = residency
            instance.claim(max(0, residency.gpu_bytes(instance.kv_layer_bytes) - instance.gpu_bytes))
            self.lifecycle.take_host_kv(instance, _more_host_kv(instance))
            if not residency.whole and not instance.pins_weights:
                self.lifecycle.pin(instance)
        self.world.touch(instance)

    def restart(self, instance: Instance) -> None:
        """The process ended; start again with the new layers, its sequences still waiting for it."""
        instance.placement.take(-instance.gpu_bytes, self._now_s)
        instance.claim(0)
        before_bytes, instance.residency = instance.host_kv_bytes, instance.next_residency
        self.lifecycle.take_host_kv(instance, -max(0, before_bytes - instance.host_kv_bytes))
        if instance.residency.whole and instance.pins_weights:
            self.lifecycle.unpin(instance)
        for request in instance.waiting.in_order():
            if request.phase == QUEUED:
                request.enter(LOAD_WAIT, self._now_s)
        self.lifecycle.load(instance)

    def sleep(self, instance: Instance) -> None:
        """Only the process and the host copy of the weights stay; of that copy too, if it drops them, only what the
        host's cache happens to keep."""
        instance.placement.take(-instance.gpu_bytes, self._now_s)
        instance.placement.release_later(-instance.gpu_bytes)
        self.lifecycle.take_host_kv(instance, -instance.host_kv_bytes)
        if instance.drops_weights:
            self.lifecycle.unpin(instance)
        self.lifecycle.become(instance, ASLEEP)
        instance.changed()
        self.lifecycle.send_back_waiting(instance)
        self.lifecycle.freed(instance.placement)

    def _move_layers(self, instance: Instance, residency: Residency) -> None:
        """Elastic: grow over the link to the GPU; shrink for free but for the KV of the shed layers."""
        placement, present = instance.placement, instance.residency
        grow = residency.layers > present.layers
        delta_bytes = residency.gpu_bytes(instance.kv_layer_bytes) - instance.gpu_bytes
        resize = ResizeInProgress(
            residency,
            extra_gpu_bytes=max(0, delta_bytes),
            extra_host_bytes=max(0, residency.host_kv_bytes(instance.kv_layer_bytes) - instance.host_kv_bytes),
            started_s=self._now_s,
        )
        instance.resizing = resize
        self.world.recorder.note(instance, self._now_s)
        if grow:
            placement.take(resize.extra_gpu_bytes, self._now_s)
        else:
            placement.release_later(-delta_bytes)
            self.lifecycle.take_host_kv(instance, resize.extra_host_bytes)
        used_blocks = instance.blocks_after(instance.ahead(self._now_s))  # the running leap is not settled
        used_layer_bytes = instance.model.kv_layer_bytes(used_blocks * instance.blocks.tokens)
        size = abs(residency.gpu_kv_bytes(used_layer_bytes) - present.gpu_kv_bytes(used_layer_bytes))
        size += residency.gpu_weight_bytes - present.gpu_weight_bytes if grow else 0
        switch = instance.profile.switch

        resize.bytes = float(size)
        placement.count_transfers(1, self._now_s)

        def done() -> None:
            placement.count_transfers(-1, self._now_s)
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
            links = self.transfers.to_gpus(placement)
            resize.transfer = self.transfers.start(size, links, switch.reload_bytes_per_s, "resize", done)
        else:
            links = self.transfers.from_gpus(placement)
            resize.transfer = self.transfers.start(size, links, switch.kv_save_bytes_per_s, "resize", done)

    def break_off(self, instance: Instance) -> None:
        """Its GPU is gone: what it holds of the host for another layout than the present one goes back."""
        resize = instance.resizing
        if resize is not None:
            if resize.transfer is not None and resize.transfer.under_way:
                self.transfers.cancel(resize.transfer)
                instance.placement.count_transfers(-1, self._now_s)
                moved = resize.transfer.size - resize.transfer.remaining
                if self.world.recorder.timeline is not None:
                    self.world.recorder.timeline.moved(instance, "resize", resize.started_s, self._now_s, moved)
            self.lifecycle.take_host_kv(instance, -resize.extra_host_bytes)
            instance.resizing = None
        elif self.world.options.resize == "none":
            self.lifecycle.take_host_kv(instance, -_more_host_kv(instance))

    def apply(self, instance: Instance) -> None:
        """At a boundary: if a move is through, iterations run with the new layers from here on."""
        resize = instance.resizing
        if resize is None or not resize.moved:
            return
        before_bytes, before_host_bytes = instance.gpu_bytes, instance.host_kv_bytes
        instance.settle_residency()
        grew = resize.residency.layers > instance.residency.layers
        instance.residency = resize.residency
        if grew:
            self.lifecycle.take_host_kv(instance, instance.host_kv_bytes - before_host_bytes)
        instance.changed()
        instance.resizing = None
        self.world.recorder.note(instance, self._now_s)
        instance.composition += 1
        if not grew:
            freed = before_bytes - instance.gpu_bytes
            instance.placement.take(-freed, self._now_s)
            instance.placement.release_later(-freed)
            self.lifecycle.freed(instance.placement)
        self.world.recorder.switch(
            self._now_s,
            "resize",
            instance,
            bytes=resize.bytes,
            reload_s=resize.seconds if grew else 0.0,
            kv_save_s=0.0 if grew else resize.seconds,
        )
        self.world.changes.loaded.append(instance)


def _more_host_kv(instance: Instance) -> int:
    """Until it restarts, an instance holds the host memory of the larger of its two layouts: so much more."""
    return max(0, instance.next_residency.host_kv_bytes(instance.kv_layer_bytes) - instance.host_kv_bytes)
