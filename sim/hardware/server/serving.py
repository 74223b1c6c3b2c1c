"""Continuous batching of server.py: who enters a batch, what one iteration computes, what came out of it.

Its own code and not the simulator's serving, so that `validate` compares two things. Calls are made in the control
thread; the work is done by the instance's threads. Records and their accounts are those of sim/core/state/instance.py.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop
from typing import Any

import torch

from sim.core.kv import KvMoves
from sim.core.state.instance import DRAINING, READY, STOPPING, Instance
from sim.core.state.kv_blocks import sequence_blocks
from sim.core.state.request import COMPLETED, KV_TRANSFER, PREEMPTED, PREFILL, QUEUED, RECOMPUTE, Request
from sim.core.world import World
from sim.hardware.model.transformer import Item
from sim.hardware.server.live_instances import LiveInstance, LiveInstances


class SavedKv(KvMoves):
    """KV in host memory: the accounts of the simulator, and the tensors."""

    def __init__(self, world: World) -> None:
        super().__init__(world, None)  # type: ignore[arg-type]  # the bytes are moved by real threads
        self.buffers: dict[int, torch.Tensor] = {}

    def drop(self, request: Request) -> None:
        self.buffers.pop(request.index, None)
        super().drop(request)


class LiveServing:
    """The batches of all instances."""

    def __init__(self, live: LiveInstances) -> None:
        self.live = live
        self.world = live.world
        self.clock = live.world.clock
        self.options = live.world.options
        self.recorder = live.world.recorder
        self.kv = SavedKv(live.world)
        self.ends: Callable[[Instance], bool] = lambda instance: False  # does it stop at this boundary? set by loading
        # Iterations without a prompt, alone on the GPU: model, layers there, batch, mean context, seconds.
        self.steps: list[tuple[str, int, int, float, float]] = []

    # --- requests come and go

    def enqueue(self, request: Request, instance: Instance) -> None:
        """The request waits at this instance from now on."""
        request.instance = instance
        instance.push_waiting(request, request.priority if self.options.sequence_order == "priority" else 0)
        self.world.touch(instance)

    def withdraw(self, request: Request) -> None:
        """Take a waiting request out of its instance's queue."""
        instance = request.instance
        assert instance is not None
        instance.waiting.remove(request.index)
        instance.changed()
        request.instance = None
        if instance.idle:
            self.world.changes.idled.append(instance)
        self.world.touch(instance)

    # --- an iteration boundary

    def begin(self, instance: Instance) -> None:
        """If nothing runs there: stop, preempt, admit, and start the next iteration."""
        if instance.status not in (READY, DRAINING, STOPPING):
            return
        side = self.live.side(instance)
        if side.busy or instance.saving:
            return
        for request in instance.joining:
            instance.start_decoding(request, self.clock.now_s)
        instance.joining.clear()
        self._preempt_as_asked(instance, side)
        if instance.saving or self.ends(instance):
            return
        if instance.status == READY:
            self._admit(instance, side)
        self._iterate(instance, side)

    def _admit(self, instance: Instance, side: LiveInstance) -> None:
        """Waiting sequences enter in their order while there is a slot, KV memory and room in the iteration."""
        chunked = self.options.prefill == "chunked"
        budget = self.options.prefill_tokens - (len(instance.decoding) if chunked else 0)
        budget -= sum(request.context - request.computed_tokens for request in instance.prefilling)
        while instance.waiting.size and side.free_slots and instance.sequences < instance.max_sequences:
            request = instance.waiting.first()
            free = instance.blocks.free - sequence_blocks(request.context, instance.blocks.tokens)
            saved = request.kv_node is not None
            full = budget <= 0 or (not chunked and bool(instance.prefilling) and request.context > budget)
            if free < (self.options.watermark * instance.blocks.total if instance.sequences else 0) or (
                full and not saved
            ):
                return
            instance.waiting.remove(request.index)
            slot = side.take_slot(request)
            instance.sequences += 1
            instance.blocks.hold(request.context)
            if saved:
                self._restore(instance, side, request, slot)
                continue
            budget -= request.context
            request.computed_tokens = 0
            request.enter(RECOMPUTE if request.started else PREFILL, self.clock.now_s)
            instance.prefilling.append(request)

    def _chunks(self, instance: Instance) -> list[tuple[Request, int]]:
        """Prompt tokens to compute now."""
        if self.options.prefill == "first":
            return [(request, request.context) for request in instance.prefilling]
        left, chunks = self.options.prefill_tokens - len(instance.decoding), []
        for request in instance.prefilling:
            tokens = min(left, request.context - request.computed_tokens)
            if tokens > 0:
                chunks.append((request, tokens))
                left -= tokens
        return chunks

    def _iterate(self, instance: Instance, side: LiveInstance) -> None:
        chunks = self._chunks(instance)
        decoding = [] if chunks and self.options.prefill == "first" else list(instance.decoding.values())
        if not chunks and not decoding:
            self._rest(instance)
            return
        texts = self.live.texts
        items = []
        for request, tokens in chunks:
            begin = request.computed_tokens
            items.append(Item(side.slots[request.index], texts[request.index][begin : begin + tokens], begin))
        for request in decoding:
            text = texts[request.index]
            items.append(Item(side.slots[request.index], text[-1:], len(text) - 1))
        side.busy = True
        instance.last_used_s = self.clock.now_s
        self._compute(instance, len(decoding))
        alone = not chunks and len(instance.placement.first.active) == 1
        context = instance.context_sum / max(1, len(decoding))
        step = (instance.model.spec.model, instance.residency.layers, len(decoding), context)

        def done(tokens: list[int], seconds: float) -> None:
            if alone and len(instance.placement.first.active) == 1:
                self.steps.append((*step, seconds))
            self._done(instance, side, chunks, decoding, tokens, seconds)

        side.compute.do(lambda: side.real.forward(items), done)

    def _done(
        self,
        instance: Instance,
        side: LiveInstance,
        chunks: list[tuple[Request, int]],
        decoding: list[Request],
        tokens: list[int],
        seconds: float,
    ) -> None:
        """An iteration has ended: tokens for those who decode, progress for prompts."""
        now_s = self.clock.now_s
        side.busy = False
        if decoding:
            for request, token in zip(decoding, tokens[len(chunks) :], strict=True):
                self.live.texts[request.index].append(token)
                gap_s = now_s - instance.fresh.get(request.index, instance.last_decode_end_s)
                self.recorder.latencies.add(1, 1, gap_s, gap_s)
            instance.fresh.clear()
            instance.last_decode_end_s = now_s
            instance.advance(1)
            self.recorder.tokens(len(decoding), instance.residency.share)
        else:
            instance.stalled_s += seconds
        while instance.decoding and instance.next_finish() == 0:
            request = heappop(instance.finishes)[3]
            instance.leave_decoding(request, QUEUED, now_s)
            self._complete(instance, side, request)
        for (request, number), token in zip(chunks, tokens, strict=False):
            request.computed_tokens += number
            if request.computed_tokens == request.context:
                instance.prefilling.remove(request)
                self._first_token(instance, side, request, token)
        self.world.touch(instance)

    def _first_token(self, instance: Instance, side: LiveInstance, request: Request, token: int) -> None:
        now_s = self.clock.now_s
        self.live.texts[request.index].append(token)
        instance.blocks.release(request.context)
        if request.started:
            gap_s = now_s - request.last_token_s
            self.recorder.latencies.add(1, 1, gap_s, gap_s)
        else:
            request.first_token_s = now_s
        request.last_token_s = now_s
        request.produced += 1
        request.residency_tokens += instance.residency.share
        request.computed_tokens = 0
        self.recorder.tokens(1, instance.residency.share)
        instance.blocks.hold(request.context)
        if request.produced == request.output_tokens:
            self._complete(instance, side, request)
        else:
            instance.start_decoding(request, now_s)

    def _complete(self, instance: Instance, side: LiveInstance, request: Request) -> None:
        instance.blocks.release(request.context)
        instance.sequences -= 1
        side.drop_slot(request)
        instance.changed()
        instance.last_used_s = self.clock.now_s
        request.instance = None
        self.recorder.end(request, COMPLETED, self.clock.now_s)
        self.world.changes.finished.append(request)
        if not instance.sequences and not instance.waiting.size:
            self.world.changes.idled.append(instance)

    # --- what policies see of who computes

    def _compute(self, instance: Instance, batch: int) -> None:
        """It computes from now on: its shares of GPU and host are what its profile says of such iterations."""
        context = instance.context_sum / batch if batch else 0.0
        if batch:
            gpu_s, host_s = instance.decode_curve(batch).at(context)
        else:
            gpu_s, host_s = instance.prefill_curve().origin
        instance.placement.start_computing(instance, self.clock.now_s)
        instance.gpu_share, instance.host_share = gpu_s / (gpu_s + host_s), host_s / (gpu_s + host_s)
        if instance.host_share:
            instance.node.active[instance.number] = instance

    def _rest(self, instance: Instance) -> None:
        """It computes nothing now."""
        if instance.placement.computes(instance):
            instance.placement.stop_computing(instance, self.clock.now_s)
            instance.node.active.pop(instance.number, None)
            instance.gpu_share = instance.host_share = 0.0

    # --- KV moves

    def _preempt_as_asked(self, instance: Instance, side: LiveInstance) -> None:
        """Take out the sequences that the policy wants out; they wait in the cluster's queue."""
        asked, instance.preempt_next = instance.preempt_next, {}
        found = [request for request in (*instance.decoding.values(), *instance.prefilling) if request.index in asked]
        for request in found:
            self.recorder.counts["sequence_preemptions"] += 1
            request.sequence_preemptions += 1
            if request.index not in instance.decoding:
                instance.prefilling.remove(request)
                request.computed_tokens = 0
                request.enter(PREEMPTED, self.clock.now_s)
            elif asked[request.index] == "save" and self.kv.hold(instance, request):
                instance.leave_decoding(request, KV_TRANSFER, self.clock.now_s)
                instance.saving[request.index] = request
                self.save(instance, [request], self._out)
                continue
            else:
                instance.leave_decoding(request, PREEMPTED, self.clock.now_s)
            self._leave(instance, request)
            self.world.requeue(request)

    def _leave(self, instance: Instance, request: Request) -> None:
        instance.blocks.release(request.context)
        instance.sequences -= 1
        self.live.side(instance).drop_slot(request)

    def _out(self, instance: Instance, requests: list[Request]) -> None:
        for request in requests:
            del instance.saving[request.index]
            self._leave(instance, request)
            request.enter(PREEMPTED, self.clock.now_s)
            self.world.requeue(request)
        self.world.touch(instance)

    def save(self, instance: Instance, requests: list[Request], then: Any) -> None:
        """Copy the device's part of their KV to host memory; then(instance, requests)."""
        side = self.live.side(instance)
        jobs = []
        for request in requests:
            tokens = len(self.live.texts[request.index]) - 1  # the last one has no KV yet
            jobs.append((request, side.slots[request.index], tokens))
        self._moving(instance, 1)

        def copy() -> None:
            for request, slot, tokens in jobs:
                buffer = side.real.kv_buffer(tokens)
                side.real.save_kv(slot, tokens, buffer)
                self.kv.buffers[request.index] = buffer

        def done(_: Any, seconds: float) -> None:
            self._moving(instance, -1)
            self.recorder.switch(self.clock.now_s, "kv_save", instance, kv_save_s=seconds)
            then(instance, requests)

        side.mover.do(copy, done)

    def _restore(self, instance: Instance, side: LiveInstance, request: Request, slot: int) -> None:
        request.enter(KV_TRANSFER, self.clock.now_s)
        instance.restoring[request.index] = request
        buffer = self.kv.buffers[request.index]
        tokens = buffer.shape[-2]
        self._moving(instance, 1)

        def done(_: Any, seconds: float) -> None:
            self._moving(instance, -1)
            self.recorder.switch(self.clock.now_s, "kv_restore", instance, kv_restore_s=seconds)
            if instance.restoring.pop(request.index, None) is not None:
                self.kv.drop(request)
                instance.joining.append(request)
                self.world.touch(instance)

        side.mover.do(lambda: side.real.restore_kv(slot, tokens, buffer), done)

    def _moving(self, instance: Instance, change: int) -> None:
        instance.placement.count_transfers(change, self.clock.now_s)
