"""Runs the instances: iteration-level continuous batching, one event per change of a batch (model.md section 4).

At an iteration boundary finished sequences leave, memory is made, waiting sequences enter, and a leap starts; the end
of an instant plans all instances touched in it and sets the stretches that sharing brings (section 5). Loading
takes over an instance at a boundary when it is to stop or to change its layers.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop
from typing import Any

from sim.core.kv import KvMoves
from sim.core.preemption import Preemption
from sim.core.sharing import Sharing
from sim.core.state.instance import READY, Instance
from sim.core.state.kv_blocks import sequence_blocks
from sim.core.state.leap import (
    NEGLIGIBLE,
    DecodeLeap,
    LeapProgress,
    PromptLeap,
    prompt_steps,
)
from sim.core.state.request import COMPLETED, DECODE, KV_TRANSFER, PREFILL, QUEUED, RECOMPUTE, Request
from sim.core.transfers import Transfers
from sim.core.world import World


class Serving:
    """The batches of all instances."""

    def __init__(self, world: World, transfers: Transfers) -> None:
        self.world = world
        self.clock = world.clock
        self.options = world.options
        self.recorder = world.recorder
        self.kv = KvMoves(world, transfers)
        self.preemption = Preemption(world, self.kv, self.enqueue)
        self.sharing = Sharing(world, self._settle, self._schedule)
        self.takes_over: Callable[[Instance], bool] = lambda instance: False
        self._order = 0

    # --- requests come and go

    def enqueue(self, request: Request, instance: Instance) -> None:
        """The request waits at this instance from now on."""
        request.instance = instance
        urgency = request.priority if self.options.sequence_order == "priority" else 0
        instance.push_waiting(request, urgency)
        self.world.touched[instance.number] = instance

    def withdraw(self, request: Request) -> None:
        """Take a waiting request out of its instance's queue."""
        instance = request.instance
        assert instance is not None
        instance.waiting.remove(request.index)
        instance.changed()
        request.instance = None
        if instance.idle:
            self.world.changes.idled.append(instance)
        self.world.touch(instance)  # it may have kept out others that fit

    # --- the end of an instant

    def plan(self) -> None:
        """Start or cut leaps of all touched instances, then share GPUs and CPUs anew where that changed."""
        touched = self.world.touched
        while self.world.unplanned():
            if touched:
                instances = [touched[number] for number in sorted(touched)] if len(touched) > 1 else [*touched.values()]
                touched.clear()
                for instance in instances:
                    if instance.leap is None:
                        self._begin(instance)
                    elif self._boundary_needed(instance):
                        self._cut(instance)
            if not touched:
                self.sharing.update()

    def _boundary_needed(self, instance: Instance) -> bool:
        """Would the next iteration boundary change anything?"""
        if instance.stop_mode is not None or instance.resizing is not None or instance.joining:
            return True
        if instance.preempt_next:
            return True
        if not instance.waiting.size or instance.status != READY:
            return False
        self._settle(instance)
        return instance.leap is None or self._fits(instance, instance.waiting.first())

    def _cut(self, instance: Instance) -> None:
        """End the leap at the next iteration boundary."""
        self._settle(instance)
        leap = instance.leap
        if leap is None:
            self._begin(instance)
            return
        if leap.fraction <= NEGLIGIBLE:
            self._end_leap(instance)
            self._begin(instance)
        elif leap.steps > leap.done + 1:
            leap.steps = leap.done + 1
            self._schedule(instance)

    def _begin(self, instance: Instance) -> None:
        """An iteration boundary: stop, make room, admit, and start the next leap."""
        if instance.saving:
            return
        for request in instance.joining:
            instance.start_decoding(request, self.clock.now_s)
            instance.composition += 1
        instance.joining.clear()
        self.preemption.as_asked(instance)
        if not instance.saving and self.takes_over(instance):
            self.sharing.deactivate(instance)
            return
        self.preemption.make_room(instance)
        if instance.saving:
            instance.blocked_since_s = self.clock.now_s
            self.sharing.deactivate(instance)
            return
        preempted = instance.preempted_s == self.clock.now_s
        if instance.waiting.size and instance.status == READY and not preempted:
            self._admit(instance)
        self._start_leap(instance)
        if preempted and instance.leap is not None:
            instance.leap.steps = 1  # who was kept out may enter after one iteration

    # --- admission

    def _fits(self, instance: Instance, request: Request) -> bool:
        """Is there a place and KV memory for it at the next boundary?"""
        if instance.sequences >= instance.max_sequences:
            return False
        free = instance.blocks.free - sequence_blocks(request.context, instance.blocks.tokens)
        if instance.leap is not None and instance.decoding:
            free -= instance.blocks.crossing(instance.iterations)
        return free >= (self.options.watermark * instance.blocks.total if instance.sequences else 0)

    def _admit(self, instance: Instance) -> None:
        """Waiting sequences enter in order while there is room; the first that does not fit blocks the others."""
        chunked = self.options.prefill == "chunked"
        budget = self.options.prefill_tokens
        if chunked:
            budget -= len(instance.decoding)
        budget -= sum(request.context - request.computed_tokens for request in instance.prefilling)
        while instance.waiting.size:
            request = instance.waiting.first()
            if not self._fits(instance, request):
                return
            if request.kv_node is None:
                if budget <= 0 or (not chunked and instance.prefilling and request.context > budget):
                    return
                budget -= request.context
            instance.waiting.remove(request.index)
            self._enter(instance, request)

    def _enter(self, instance: Instance, request: Request) -> None:
        self._order += 1
        request.order = self._order
        instance.sequences += 1
        instance.blocks.hold(request.context)
        now_s = self.clock.now_s
        if request.kv_node is None:
            request.computed_tokens = 0
            request.enter(RECOMPUTE if request.started else PREFILL, now_s)
            instance.prefilling.append(request)
            instance.composition += 1
        else:
            request.enter(KV_TRANSFER, now_s)
            instance.restoring[request.index] = request
            self.kv.restore(instance, request)

    # --- leaps

    def _start_leap(self, instance: Instance) -> None:
        now_s = self.clock.now_s
        decoding = len(instance.decoding)
        instance.chunks = []
        if instance.prefilling:
            self._start_prompt_leap(instance, decoding)
        elif decoding:
            steps = instance.next_finish()
            if instance.blocks.free < decoding * (steps // instance.blocks.tokens + 1):
                steps = min(steps, instance.blocks.steps_until_full(instance.iterations))
            curve = instance.decode_curve(decoding)
            instance.leap = DecodeLeap(curve, instance.context_sum / decoding, decoding, steps)
        else:
            self.sharing.deactivate(instance)
            return
        instance.settled_s = now_s
        instance.last_used_s = now_s
        if self.recorder.timeline is not None:
            self.recorder.timeline.leap(instance, now_s)
        batch: object = instance.composition
        if instance.chunks:
            batch = (instance.composition, [(request.index, tokens) for request, tokens in instance.chunks])
        self.sharing.activate(instance, batch)

    def _start_prompt_leap(self, instance: Instance, decoding: int) -> None:
        prefill = instance.prefill_curve()
        if self.options.prefill == "first":
            instance.chunks = [(request, request.context) for request in instance.prefilling]
            chunks = [(0, tokens) for _, tokens in instance.chunks]
            instance.leap = PromptLeap(prompt_steps(prefill, chunks, None, 0.0), 0)
            return
        budget = self.options.prefill_tokens - decoding
        left = budget
        for request in instance.prefilling:
            tokens = min(left, request.context - request.computed_tokens)
            if tokens > 0:
                instance.chunks.append((request, tokens))
                left -= tokens
        request, tokens = instance.chunks[0]
        repeats = 1
        if tokens == budget:
            # The prompt fills whole iterations for a while: leap over them, as long as the decode batch stays.
            repeats = max(1, (request.context - request.computed_tokens) // tokens)
            if decoding:
                full = instance.blocks.steps_until_full(instance.iterations)
                repeats = min(repeats, instance.next_finish(), full)
        curve = instance.decode_curve(decoding) if decoding else None
        context = instance.context_sum / decoding if decoding else 0.0
        chunks = [(request.computed_tokens, tokens) for request, tokens in instance.chunks]
        instance.leap = PromptLeap(prompt_steps(prefill, chunks, curve, context, repeats), decoding)

    def _schedule(self, instance: Instance) -> None:
        """Set the timer for the end of the leap under the present stretches."""
        leap = instance.leap
        assert leap is not None
        instance.end_s = instance.settled_s + leap.seconds_left(instance.gpu_stretch, instance.host_stretch)
        self._wait_for_end(instance)

    def _wait_for_end(self, instance: Instance) -> None:
        """See that a call comes by the end of the leap. One that comes too early, since the end has moved, looks again:
        a batch that is cut short or slowed down over and over makes few calls."""
        end_s, timers = instance.end_s, instance.timers
        if timers and timers[-1] <= end_s:
            return
        timers.append(end_s)
        self.clock.at(end_s, self._on_timer, instance, 0)

    def _on_timer(self, subject: Any, _: int) -> None:
        instance: Instance = subject
        due_s = instance.timers.pop()
        assert due_s == self.clock.now_s, (due_s, self.clock.now_s)
        leap = instance.leap
        if leap is None or instance.begun:
            self.clock.stale()
            return
        if instance.end_s > self.clock.now_s:
            self.clock.stale()
            self._wait_for_end(instance)
            return
        assert instance.end_s == self.clock.now_s, (instance.end_s, self.clock.now_s)
        self._account(instance, leap.finish(instance.gpu_stretch, instance.host_stretch))
        self._end_leap(instance)
        self.world.touched[instance.number] = instance

    def _settle(self, instance: Instance) -> None:
        """Bring the leap's position to now."""
        leap = instance.leap
        seconds = self.clock.now_s - instance.settled_s
        if leap is None or instance.begun or seconds <= 0:
            return
        self._account(instance, leap.advance(seconds, instance.gpu_stretch, instance.host_stretch))
        if leap.done == leap.steps:
            self._end_leap(instance)
            self.world.touch(instance)

    def _account(self, instance: Instance, progress: LeapProgress) -> None:
        """Book finished iterations: tokens, blocks, prompt chunks, latencies, stalls."""
        leap = instance.leap
        assert leap is not None
        if progress.completed:
            for request, tokens in instance.chunks:
                request.computed_tokens += tokens * progress.completed
            if leap.batch:
                self._account_tokens(instance, progress, leap.batch)
        instance.stalled_s += progress.stalled_s
        instance.settled_s = self.clock.now_s

    def _account_tokens(self, instance: Instance, progress: LeapProgress, batch: int) -> None:
        instance.advance(progress.completed)
        self.recorder.tokens(progress.completed * batch, instance.residency.share)
        end_s = instance.settled_s + progress.first_end_s
        for last_token_s in instance.fresh.values():
            self.recorder.latencies.add(1, 1, end_s - last_token_s, end_s - last_token_s)
        if batch > len(instance.fresh):
            gap_s = end_s - instance.last_decode_end_s
            self.recorder.latencies.add(batch - len(instance.fresh), 1, gap_s, gap_s)
        instance.fresh.clear()
        for steps in progress.later:
            self.recorder.latencies.add(batch, steps.number, steps.first_s, steps.last_s)
            end_s += steps.number * (steps.first_s + steps.last_s) / 2
        instance.last_decode_end_s = end_s

    def _end_leap(self, instance: Instance) -> None:
        """The leap is over: finished prompts give their token, finished sequences leave."""
        now_s = self.clock.now_s
        if self.recorder.timeline is not None:
            self.recorder.timeline.leap_ended(instance, now_s)
        instance.leap = None
        while instance.decoding and instance.next_finish() == 0:
            request = heappop(instance.finishes)[3]
            instance.leave_decoding(request, QUEUED, now_s)
            self._complete(instance, request)
        for request, _ in instance.chunks:
            if request.computed_tokens >= request.context:
                assert request.computed_tokens == request.context, request.index
                instance.prefilling.remove(request)
                self._emit_first(instance, request)
        instance.chunks = []

    def _emit_first(self, instance: Instance, request: Request) -> None:
        """The token at the end of a prompt (or of a recompute)."""
        now_s = self.clock.now_s
        instance.blocks.release(request.context)
        if request.started:
            self.recorder.latencies.add(1, 1, now_s - request.last_token_s, now_s - request.last_token_s)
        else:
            request.first_token_s = now_s
        request.last_token_s = now_s
        request.produced += 1
        request.residency_tokens += instance.residency.share
        request.computed_tokens = 0
        self.recorder.tokens(1, instance.residency.share)
        instance.blocks.hold(request.context)
        instance.composition += 1
        if request.produced == request.output_tokens:
            self._complete(instance, request)
        else:
            instance.start_decoding(request, now_s)

    def _complete(self, instance: Instance, request: Request) -> None:
        instance.blocks.release(request.context)
        instance.sequences -= 1
        instance.changed()
        instance.composition += 1
        instance.last_used_s = self.clock.now_s
        request.instance = None
        self.recorder.end(request, COMPLETED, self.clock.now_s)
        self.world.changes.finished.append(request)
        if not instance.sequences and not instance.waiting.size:
            self.world.changes.idled.append(instance)

    def halt(self, instance: Instance) -> float:
        """Its GPU is gone: the iteration under way is never finished. The seconds of GPU work that were put into it."""
        self._settle(instance)
        self._note_stall(instance)
        leap, wasted_s = instance.leap, 0.0
        if leap is not None:
            wasted_s = leap.fraction * leap.first_work()[0]
            if self.recorder.timeline is not None:
                self.recorder.timeline.leap_ended(instance, self.clock.now_s)
            instance.leap = None
            instance.chunks = []
        self.sharing.deactivate(instance)
        return wasted_s

    def abandon(self, request: Request) -> None:
        """Take a request out of its batch at once, unless it ends now; the iteration under way runs to its end."""
        instance = request.instance
        assert instance is not None
        self._settle(instance)
        if request.outcome >= 0:
            return
        self._note_stall(instance)
        leap = instance.leap
        if leap is not None and leap.batch and request.index in instance.decoding:
            leap.batch -= 1
        self.preemption.remove(instance, request)
        if leap is not None:
            instance.preempt_next[request.index] = "gone"  # what has its place may run from the next boundary on
        request.instance = None
        if instance.idle:
            self.world.changes.idled.append(instance)
        self.world.touch(instance)

    def _note_stall(self, instance: Instance) -> None:
        """Whoever leaves now has been held up until now."""
        if instance.blocked_since_s >= 0:
            instance.stalled_s += self.clock.now_s - instance.blocked_since_s
            instance.blocked_since_s = self.clock.now_s

    def close(self, instance: Instance) -> None:
        """The run ends here: book what the running leap did, and take its sequences out as they are."""
        now_s = self.clock.now_s
        self._settle(instance)
        self._note_stall(instance)
        for request in list(instance.decoding.values()):
            instance.leave_decoding(request, DECODE, now_s)
            instance.sequences -= 1
