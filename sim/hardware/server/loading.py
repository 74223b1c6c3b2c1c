"""Loads, stops and restarts instances of server.py: real memory taken and given back, real weights moved.

A load waits until the memory that others give back is really free. A stop drains, preempts (KV saved to host memory) or
aborts. The engine is one process, so a load starts none; a resize is a restart. Called in the control thread.
"""

from __future__ import annotations

from typing import Any

from sim.core.state import instance as phase
from sim.core.state.instance import Instance, Model
from sim.core.state.machines import Gpu, Placement
from sim.core.state.request import KV_TRANSFER, LOAD_WAIT, PREEMPTED, QUEUED, Request
from sim.core.state.residency import Residency
from sim.hardware.server.live_instances import LiveInstances
from sim.hardware.server.serving import LiveServing


class LiveLoading:
    """The life of all instances."""

    def __init__(self, live: LiveInstances, serving: LiveServing) -> None:
        assert live.world.options.resize == "none", "this server resizes by a restart: engine.resize must be none"
        self.live, self.serving = live, serving
        self.world = live.world
        self.recorder = live.world.recorder
        serving.ends = self.ends
        self._number = 0
        self._asked_s: dict[int, float] = {}
        self._cancelled: dict[int, Instance] = {}  # stopped while their weights were on the way

    @property
    def _now_s(self) -> float:
        return self.world.clock.now_s

    def load(
        self, model: Model, placement: Placement, residency: Residency, kv_tokens: int, max_sequences: int
    ) -> Instance:
        """A new instance, which waits for its memory and then loads."""
        self._number += 1
        block = self.world.options.block_tokens
        blocks = -(-kv_tokens // block)
        instance = Instance(self._number, model, placement, residency, blocks, block, max_sequences)
        self._hold_host_memory(instance)
        self.world.cluster.instances[instance.number] = instance
        placement.add(instance)
        model.instances[instance.number] = instance
        self._wait_for_memory(instance)
        return instance

    def _hold_host_memory(self, instance: Instance) -> None:
        """What stays outside the device, weights and KV, is held in host memory."""
        memory, weights = instance.node.memory, instance.model.weights
        if not instance.residency.whole:
            cached = memory.cache(weights.key, weights.total_bytes)
            assert cached, "the gate checks host memory"
            memory.pin(weights.key)
            instance.pins_weights = True
        taken = memory.take_instance_kv(instance.host_kv_bytes)
        assert taken, "the gate checks host memory"

    def _drop_host_memory(self, instance: Instance) -> None:
        memory = instance.node.memory
        memory.take_instance_kv(-instance.host_kv_bytes)
        if instance.pins_weights:
            memory.unpin(instance.model.weights.key)
            instance.pins_weights = False

    def resize(self, instance: Instance, residency: Residency) -> None:
        """A restart with other layers; its sequences wait there meanwhile."""
        self.recorder.counts["resizes"] += 1
        instance.next_residency = residency
        instance.stop_mode = "restart"
        instance.placement.release_later(instance.gpu_bytes)
        instance.changed()
        self.world.touch(instance)

    def _wait_for_memory(self, instance: Instance) -> None:
        instance.status = phase.PENDING
        instance.changed()
        instance.model.loading[instance.number] = instance
        instance.placement.wait(instance)
        instance.claim(instance.gpu_bytes)
        self._asked_s[instance.number] = self._now_s
        self._start_pending(instance.placement.first)

    def _start_pending(self, gpu: Gpu) -> None:
        while gpu.pending and gpu.pending[0].placement.is_free_for(gpu.pending[0]):
            instance = gpu.pending[0]
            instance.placement.stop_waiting(instance)
            instance.claim(0)
            instance.placement.take(instance.gpu_bytes, self._now_s)
            instance.placement.count_loads(1, self._now_s)
            instance.status = phase.STARTING
            begun_s = self._now_s
            side = self.live.side(instance)

            def reserved(_: Any, seconds: float, instance: Instance = instance) -> None:
                if instance.status == phase.STARTING:
                    instance.status = phase.LOADING

            def loaded(_: Any, seconds: float, instance: Instance = instance, begun_s: float = begun_s) -> None:
                self._on_loaded(instance, begun_s)

            side.mover.do(side.real.reserve, reserved)
            side.mover.do(side.real.copy_weights, loaded)

    def _on_loaded(self, instance: Instance, begun_s: float) -> None:
        now_s, placement = self._now_s, instance.placement
        if instance.number in self._cancelled:
            del self._cancelled[instance.number]
            placement.count_loads(-1, now_s)
            self._free(instance)
            return
        del instance.model.loading[instance.number]
        placement.count_loads(-1, now_s)
        instance.status = phase.READY
        instance.ready_s = instance.last_used_s = now_s
        instance.changed()
        self.recorder.counts["loads"] += 1
        size, wait_s = float(instance.residency.gpu_weight_bytes), begun_s - self._asked_s.pop(instance.number)
        self.recorder.switch(now_s, "load", instance, wait_s=wait_s, reload_s=now_s - begun_s, bytes=size)
        for request in instance.waiting.in_order():
            if request.phase == LOAD_WAIT:
                request.enter(QUEUED, now_s)
        self.world.changes.loaded.append(instance)
        self.world.touch(instance)

    # --- stop

    def stop(self, instance: Instance, mode: str) -> None:
        """drain, preempt or abort; whoever only waits there goes back to the cluster's queue at once."""
        self._send_back_waiting(instance)
        if instance.status == phase.PENDING:
            instance.placement.stop_waiting(instance)
            instance.claim(0)
            del instance.model.loading[instance.number]
            self._vanish(instance)
            return
        instance.placement.release_later(instance.gpu_bytes)
        if instance.status in (phase.STARTING, phase.LOADING):
            # A copy under way cannot be called back: its memory is free when it has ended.
            instance.status = phase.STOPPING
            del instance.model.loading[instance.number]
            self._cancelled[instance.number] = instance
            instance.changed()
            return
        instance.status = phase.DRAINING if mode == "drain" else phase.STOPPING
        instance.stop_mode = None if mode == "drain" else mode
        instance.changed()
        self.world.touch(instance)

    def _send_back_waiting(self, instance: Instance) -> None:
        for request in list(instance.waiting.in_order()):
            if request.phase == LOAD_WAIT:
                request.enter(QUEUED, self._now_s)
            instance.waiting.remove(request.index)
            self.world.requeue(request)

    def ends(self, instance: Instance) -> bool:
        """At an iteration boundary: does the instance end, or change its layers, here?"""
        if instance.number in self._cancelled:
            return True
        if instance.stop_mode is not None:
            self._evacuate(instance, instance.stop_mode)
            return True
        if instance.status == phase.DRAINING and not instance.sequences:
            self._free(instance)
            return True
        return False

    def _evacuate(self, instance: Instance, mode: str) -> None:
        """Take every sequence out, saving KV unless it aborts; then free."""
        now_s, serving = self._now_s, self.serving
        instance.status = phase.STOPPING
        if instance.sequences:
            self.recorder.counts["model_preemptions"] += 1
        side = self.live.side(instance)
        leaving = [*instance.prefilling, *instance.restoring.values()]
        instance.prefilling, instance.restoring = [], {}
        for request in leaving:
            request.computed_tokens = 0
            request.model_preemptions += 1
            request.enter(PREEMPTED, now_s)
        saved: list[Request] = []
        for request in list(instance.decoding.values()):
            request.model_preemptions += 1
            if mode != "abort" and serving.kv.hold(instance, request):
                instance.leave_decoding(request, KV_TRANSFER, now_s)
                saved.append(request)
            else:
                instance.leave_decoding(request, PREEMPTED, now_s)
                leaving.append(request)
        for request in (*leaving, *saved):
            instance.blocks.release(request.context)
            instance.sequences -= 1
        self._send_back(instance, leaving, mode)
        serving._rest(instance)

        def done(_: Instance, requests: list[Request]) -> None:
            for request in requests:
                request.enter(PREEMPTED, self._now_s)
            self._send_back(instance, requests, mode)
            self._free(instance, mode)

        instance.stop_mode = None
        instance.changed()
        if saved:
            serving.save(instance, saved, done)
        else:
            self._free(instance, mode)
        side.busy = True  # nothing runs there any more

    def _send_back(self, instance: Instance, requests: list[Request], mode: str) -> None:
        for request in requests:
            if mode == "restart":
                self.serving.enqueue(request, instance)
            else:
                self.world.requeue(request)

    def _free(self, instance: Instance, mode: str = "stop") -> None:
        """Give the device memory back; what waits for it starts when it is really free."""
        instance.status = phase.FREEING
        if mode != "restart":
            self.recorder.counts["evictions"] += 1
        self.serving._rest(instance)
        side = self.live.side(instance)

        def freed(_: Any, seconds: float) -> None:
            self.recorder.switch(
                self._now_s, "free", instance, free_s=seconds, bytes=float(instance.gpu_bytes), mode=mode
            )
            instance.placement.take(-instance.gpu_bytes, self._now_s)
            instance.placement.release_later(-instance.gpu_bytes)
            self.live.forget(instance)
            if mode == "restart":
                self._restart(instance)
            else:
                self._vanish(instance)

        side.mover.do(side.real.free, freed)

    def _restart(self, instance: Instance) -> None:
        self._drop_host_memory(instance)
        instance.residency = instance.next_residency
        self._hold_host_memory(instance)
        self._wait_for_memory(instance)
        self.world.changes.freed.extend(instance.placement.gpus)

    def _vanish(self, instance: Instance) -> None:
        self._drop_host_memory(instance)
        instance.status = phase.GONE
        instance.model.ranking.drop(instance.number)
        instance.placement.remove(instance)
        del instance.model.instances[instance.number]
        del self.world.cluster.instances[instance.number]
        self.world.changes.freed.extend(instance.placement.gpus)
        self._start_pending(instance.placement.first)
