"""Changes what is loaded: load, resize, stop, and what each costs (model.md section 6).

A load is lifecycle.py's. A stop drains, preempts (saves KV) or aborts. A resize is a restart, a sleep or wake, or a
move of only those layers that change, as the engine can (resizing.py). Actions come from the gate, already checked;
serving calls in at boundaries.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sim.core.lifecycle import Lifecycle
from sim.core.resizing import Resizing
from sim.core.serving import Serving
from sim.core.state.instance import (
    ASLEEP,
    DRAINING,
    FREEING,
    LOADING,
    PENDING,
    READY,
    STARTING,
    STOPPING,
    Instance,
    Model,
)
from sim.core.state.machines import Placement
from sim.core.state.request import KV_TRANSFER, PREEMPTED, Request
from sim.core.state.residency import Residency
from sim.core.transfers import Transfers
from sim.core.world import World


class Loading:
    """When instances come, change and go."""

    def __init__(self, world: World, transfers: Transfers, serving: Serving) -> None:
        self.world = world
        self.transfers = transfers
        self.serving = serving
        self.lifecycle = Lifecycle(world, transfers)
        self.resizing = Resizing(world, transfers, self.lifecycle)
        self._number = 0
        serving.takes_over = self._take_over

    @property
    def _now_s(self) -> float:
        return self.world.clock.now_s

    # --- load

    def load(
        self, model: Model, placement: Placement, residency: Residency, kv_tokens: int, max_sequences: int
    ) -> Instance:
        """A new instance, which waits for its memory and then loads."""
        self._number += 1
        block = self.world.options.block_tokens
        blocks = -(-kv_tokens // block)
        instance = Instance(self._number, model, placement, residency, blocks, block, max_sequences)
        if not residency.whole or self.world.options.resize != "none":
            self.lifecycle.pin(instance)
        self.lifecycle.take_host_kv(instance, instance.host_kv_bytes)
        self.world.cluster.instances[instance.number] = instance
        placement.add(instance)
        model.instances[instance.number] = instance
        self.lifecycle.load(instance)
        return instance

    def resize(self, instance: Instance, residency: Residency) -> None:
        """Change what is on the GPU, as the engine can: restart, sleep or wake, or move only what changes."""
        self.world.recorder.counts["resizes"] += 1
        if instance.status == ASLEEP:
            instance.residency = residency
            if not instance.pins_weights:
                self.lifecycle.pin(instance)
            self.lifecycle.take_host_kv(instance, instance.host_kv_bytes)
            self.lifecycle.load(instance, wake=True)
        else:
            self.resizing.begin(instance, residency)

    # --- stop

    def stop(self, instance: Instance, mode: str) -> None:
        """drain, preempt or abort; whoever only waits there goes back to the cluster's queue at once."""
        if self.world.recorder.timeline is not None:
            self.world.recorder.timeline.instant(instance, f"stop: {mode}", {}, self._now_s)
        self.lifecycle.send_back_waiting(instance)
        if instance.status in (PENDING, STARTING, LOADING):
            self.cancel_load(instance)
            return
        instance.placement.release_later(instance.gpu_bytes if instance.status != ASLEEP else 0)
        if instance.status == ASLEEP:
            self.lifecycle.vanish(instance)
            return
        if mode == "drain":
            self.lifecycle.become(instance, DRAINING)
        else:
            self.lifecycle.become(instance, STOPPING)
            instance.stop_mode = mode
        instance.changed()
        if instance.leap is None and not instance.sequences:
            self._free(instance)
        else:
            self.world.touch(instance)

    def cancel_load(self, instance: Instance) -> None:
        """Break a load off, under way or waiting for memory, and with it the instance."""
        placement = instance.placement
        load = self.lifecycle.loads.pop(instance.number)
        del instance.model.loading[instance.number]
        instance.version += 1
        if instance.status == PENDING:
            placement.stop_waiting(instance)
            instance.claim(0)
        else:
            for transfer in load.transfers:
                if transfer.under_way:
                    self.transfers.cancel(transfer)
            self.lifecycle.record_end(instance, load, "broken-off load")
            placement.count_loads(-1, self._now_s)
            placement.take(-instance.gpu_bytes, self._now_s)
        self.lifecycle.vanish(instance)

    def close(self) -> None:
        """The run ends here: loads under way have cost what they have cost."""
        for number, load in self.lifecycle.loads.items():
            instance = self.world.cluster.instances[number]
            if instance.status != PENDING:
                self.lifecycle.record_end(instance, load, "broken-off load")

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
        self.lifecycle.become(instance, STOPPING)
        instance.changed()
        if instance.sequences:
            self.world.recorder.counts["model_preemptions"] += 1
            if self.world.recorder.timeline is not None:
                preempted = {"sequences": instance.sequences, "mode": mode}
                self.world.recorder.timeline.instant(instance, "model preempted", preempted, self._now_s)
        if mode not in ("restart", "sleep"):
            self.lifecycle.send_back_waiting(instance)
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
            instance.blocks.release(request.context)
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
            instance.blocks.release(request.context)
            leaving.append(request)
        instance.prefilling = []
        for request in instance.restoring.values():
            self.serving.kv.cancel_restore(instance, request)
            instance.blocks.release(request.context)
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
        self.lifecycle.become(instance, FREEING)
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
        instance.placement.take(-instance.gpu_bytes, self._now_s)
        instance.placement.release_later(-instance.gpu_bytes)
        self.lifecycle.vanish(instance)
