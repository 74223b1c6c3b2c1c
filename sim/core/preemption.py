"""Takes single sequences out of a batch: for lack of KV memory, or because the policy asked.

Their KV is saved to host memory or dropped, to be computed again; which of them is the engine's option or the policy's
choice. Serving calls in at iteration boundaries. Preempting whole models is loading.py's.
"""

from __future__ import annotations

from collections.abc import Callable

from sim.core.kv import KvMoves
from sim.core.state.instance import READY, Instance
from sim.core.state.kv_blocks import sequence_blocks
from sim.core.state.request import KV_TRANSFER, PREEMPTED, Request
from sim.core.world import World


class Preemption:
    """Preemption of sequences on all instances."""

    def __init__(self, world: World, kv: KvMoves, enqueue: Callable[[Request, Instance], None]) -> None:
        self.world = world
        self.clock = world.clock
        self.options = world.options
        self.recorder = world.recorder
        self.kv = kv
        self._enqueue = enqueue

    def make_room(self, instance: Instance) -> None:
        """Preempt sequences, last admitted (or least urgent) first, until the next iteration has its blocks."""
        if instance.blocks.free >= 0:
            return
        size = instance.blocks.tokens  # KV on its way out counts as gone: the next iteration waits for it
        while instance.blocks.free + sum(sequence_blocks(r.context, size) for r in instance.saving.values()) < 0:
            self._save(instance, self._preempt(instance, self._victim(instance), None), None)
            instance.preempted_s = self.clock.now_s

    def as_asked(self, instance: Instance) -> None:
        """Preempt the sequences that the policy asked for; they wait in the cluster's queue for its next decision.
        The batch waits for the last of them, so their KV leaves as one."""
        if not instance.preempt_next:
            return
        asked, instance.preempt_next = instance.preempt_next, {}
        found = [request for request in (*instance.decoding.values(), *instance.prefilling) if request.index in asked]
        saved: list[Request] = []
        for request in found:
            saved += self._preempt(instance, request, asked[request.index])
        self._save(instance, saved, "save")

    def _victim(self, instance: Instance) -> Request:
        candidates = [*instance.decoding.values(), *instance.prefilling]
        if self.options.sequence_order == "priority":
            return max(candidates, key=lambda request: (request.priority, request.index))
        return max(candidates, key=lambda request: request.order)

    def _preempt(self, instance: Instance, request: Request, asked: str | None) -> list[Request]:
        """Take one sequence out of the batch and drop its KV; or return it, if that is to be saved to host memory.

        `asked`: the way that a policy asked for, whose sequence goes to the cluster's queue; None: for lack of memory.
        """
        save = asked == "save" or (asked is None and self.options.sequence_preemption == "swap")
        now_s = self.clock.now_s
        if self.recorder.timeline is not None:
            self.recorder.timeline.preempted(instance, request, asked, now_s)
        self.recorder.counts["sequence_preemptions"] += 1
        request.sequence_preemptions += 1
        instance.composition += 1
        if request.index not in instance.decoding:
            instance.prefilling.remove(request)
            instance.sequences -= 1
            request.computed_tokens = 0
            request.enter(PREEMPTED, now_s)
        elif save and self.kv.hold(instance, request):
            instance.leave_decoding(request, KV_TRANSFER, now_s)
            instance.saving[request.index] = request
            return [request]
        else:
            instance.leave_decoding(request, PREEMPTED, now_s)
            instance.sequences -= 1
        instance.blocks.release(request.context)
        self.line_up_again(request, instance, asked)
        return []

    def _save(self, instance: Instance, requests: list[Request], asked: str | None) -> None:
        if requests:
            self.kv.save(instance, requests, lambda: self._swapped_out(instance, requests, asked))

    def remove(self, instance: Instance, request: Request) -> int:
        """Out of the batch in the middle of an iteration; so many tokens of KV on the GPU are lost with that. Saved KV
        on its way in stays saved."""
        now_s = self.clock.now_s
        lost = 0
        if request.index in instance.decoding:
            instance.leave_decoding(request, PREEMPTED, now_s)
            lost = request.context
        elif request.index in instance.restoring:
            self.kv.cancel_restore(instance, request)
            del instance.restoring[request.index]
        elif request in instance.joining:
            instance.joining.remove(request)
            lost = request.context
        else:
            instance.prefilling.remove(request)
            instance.chunks = [chunk for chunk in instance.chunks if chunk[0] is not request]
            lost, request.computed_tokens = request.computed_tokens, 0
        if request.phase != PREEMPTED:
            request.enter(PREEMPTED, now_s)
        instance.blocks.release(request.context)
        instance.sequences -= 1
        instance.composition += 1
        instance.preempt_next.pop(request.index, None)
        instance.changed()
        return lost

    def is_out(self, request: Request) -> bool:
        """Its KV is in host memory now, where it waits to be restored; or, if its client has left, is dropped."""
        if request.outcome >= 0:
            self.kv.drop(request)
            return False
        request.enter(PREEMPTED, self.clock.now_s)
        return True

    def line_up_again(self, request: Request, instance: Instance, asked: str | None = None) -> None:
        """A preempted sequence waits at its instance, or, if that takes no one any more, in the cluster's queue."""
        if asked is None and instance.status == READY and instance.stop_mode in (None, "restart", "sleep"):
            self._enqueue(request, instance)
        else:
            self.world.requeue(request)

    def _swapped_out(self, instance: Instance, requests: list[Request], asked: str | None) -> None:
        for request in requests:
            del instance.saving[request.index]
            instance.sequences -= 1
            instance.blocks.release(request.context)
            if self.is_out(request):
                self.line_up_again(request, instance, asked)
            else:
                instance.changed()
                if instance.idle:
                    self.world.changes.idled.append(instance)
        if not instance.saving:
            self.world.touch(instance)
            instance.preempted_s = -1.0
            instance.stalled_s += self.clock.now_s - instance.blocked_since_s
            instance.blocked_since_s = -1.0
