"""FastServe's skip-join multi-level feedback queue, extended across models that share a GPU.

Source: LLMServe/FastServe 187a2742, fastserve/scheduler.py (class MLFQ), and Wu et al., arXiv 2305.05920. Queue i has
a quantum of 10 ms x 2^i. A request enters the first queue whose quantum is at least its profiled prefill time and
goes down one when it was served longer than its queue's quantum, to the front: at one level, who runs stays. Who was
not run for 3 s is promoted to the first queue. The batch is the head of the queues; who falls out leaves with its KV
saved.
Across models (policies.md P20): a GPU runs the model of the first request, and of one level the resident model comes
first. Switches are charged to those who cause them (`charge_swaps`): a request's entry quantum covers prefill and
switch, and a promoted one runs for the quantum of the level that it comes from, and the switch if its model is absent,
before it goes on down from there. As published it would get 10 ms and begin anew: KV stays on the GPU there when its
request falls out, here it leaves, and would be on its way for most of the time.
Not as published: KV is swapped out when its request leaves the batch and in when it enters, not ahead; who computes
its prompt is not interrupted; the 1000 iterations between two looks for starving requests are counted in predicted
step times; they are promoted in the order in which they last ran. Where there are several GPUs, a request goes to the
one with the fewest, a batch more counted where its model has to be loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from policies._parts.fastserve_queues import FeedbackQueues, Job
from sim import policy
from sim.policy import Action, Field, GpuView, InstanceView, ModelView, Policy, PolicyParameters, RequestView, View

_UNSEEN_STEPS = 8  # nothing tells when KV is back and its request runs: look again after so many iterations


class FastServe(Policy):
    """Skip-join MLFQ with preemption at token level; swap-aware."""

    tier = "research"

    class Parameters(PolicyParameters):
        quantum_s: float = Field(0.01, gt=0, description="quantum of the first queue; each next one has twice as much")
        starvation_s: float = Field(3.0, gt=0, description="promote a request that was not run for so long")
        starvation_period: int = Field(1000, ge=1, description="iterations between two looks for such requests")
        skip_join: bool = Field(True, description="enter by prefill time; off: every request enters the first queue")
        charge_swaps: bool = Field(True, description="quanta cover the switches of models and KV that they cause")

    def __init__(self, parameters: Parameters | None = None) -> None:
        super().__init__(parameters)
        self.jobs: dict[int, tuple[Job, GpuView]] = {}
        self.queues: dict[GpuView, FeedbackQueues] = {}
        self._alarms = policy.Alarms()

    def decide(self, view: View) -> Iterator[Action]:
        touched = dict.fromkeys([*self._alarms.rung(view), *(i.gpu for i in (*view.loaded, *view.idled))])
        touched.update(dict.fromkeys(gpu for freed in view.freed for gpu in freed.node.gpus))
        for request in view.finished:
            job, gpu = self.jobs.pop(request.number)
            self.queues[gpu].leave(job)
            touched[gpu] = None
        moved = []
        for gpu in [gpu for gpu in view.failed if not gpu.up and gpu in self.queues]:
            del self.queues[gpu]
            moved += [job.request for job, place in self.jobs.values() if place is gpu]
        homeless = dict.fromkeys([request.number for request in moved])
        for request in view.requeued:
            if request.number not in homeless:
                job, gpu = self.jobs[request.number]
                self.queues[gpu].come_back(job, view.now_s)
                touched[gpu] = None
        for request in (*moved, *view.arrived):
            touched[self._enter(view, request)] = None
        for gpu in sorted(touched, key=lambda gpu: gpu.index):
            if gpu in self.queues:
                yield from self._schedule(view, gpu, self.queues[gpu])

    def _enter(self, view: View, request: RequestView) -> GpuView:
        model = request.model

        def queue_length(gpu: GpuView) -> tuple[int, int]:
            cold = 0 if policy.resident(model, gpu) else view.max_sequences
            return (self.queues[gpu].length if gpu in self.queues else 0) + cold, gpu.index

        gpu = min(policy.holders(view, model, [i.gpu for i in model.quietest(8)]), key=queue_length)
        layers = gpu.layers_when_empty(model) or 0
        seconds = model.profile(gpu).prefill_s(layers, request.prompt_tokens) if self.parameters.skip_join else 0.0
        if gpu not in self.queues:
            self.queues[gpu] = FeedbackQueues(float(self.parameters.quantum_s), view.now_s)
        job = self.queues[gpu].enter(request, seconds + self._charge_s(gpu, model), view.now_s)
        self.jobs[request.number] = job, gpu
        return gpu

    def _charge_s(self, gpu: GpuView, model: ModelView) -> float:
        charged = self.parameters.charge_swaps and policy.resident(model, gpu) is None
        return policy.switch_s(model, gpu) if charged else 0.0

    def _promote(self, view: View, gpu: GpuView, queues: FeedbackQueues) -> None:
        """Everybody who waits and was not run for long goes to the first queue."""
        queues.looked_s = view.now_s
        for job in queues.starving(view.now_s - float(self.parameters.starvation_s)):
            if self.parameters.charge_swaps:
                queues.promote(job, job.quantum_s + self._charge_s(gpu, job.model), job.level + 1)
            else:
                queues.promote(job, queues.quantum_of(0), 1)

    # --- the batch

    def _schedule(self, view: View, gpu: GpuView, queues: FeedbackQueues) -> Iterator[Action]:
        for job in queues.routed.values():
            queues.age(job, view.now_s)
        firsts = queues.firsts()
        step_s = self._step_s(view, gpu) if firsts else 0.0
        look_s = queues.looked_s + int(self.parameters.starvation_period) * step_s
        if firsts and view.now_s >= look_s:
            self._promote(view, gpu, queues)
            firsts, look_s = queues.firsts(), view.now_s + int(self.parameters.starvation_period) * step_s
        heads = [*queues.routed.values(), *firsts]
        if not heads:
            return
        here = [instance.model for instance in gpu.instances if instance.accepts]
        model = min(heads, key=lambda job: (job.level, job.model not in here, job.entry > 0, job.last_run_s)).model
        target = yield from policy.bring(view, model, gpu, [i for i in gpu.instances if i.model is not model])
        if target is not None:
            yield from self._fill(view, queues, model, target)
        if firsts := queues.firsts():
            yield from self._alarms.set(view, gpu, min(look_s, self._next_s(view, queues, firsts, step_s)))

    def _fill(
        self, view: View, queues: FeedbackQueues, model: ModelView, target: InstanceView | policy.Load
    ) -> Iterator[Action]:
        """The first who wait take free places, and the places of those who have gone down below them."""
        ready = isinstance(target, InstanceView) and target.ready
        others = [job for job in queues.routed.values() if job.model is not model] if ready else []
        for job in [job for job in others if job.preemptible]:
            job.leaving = True
            yield policy.Preempt(job.request)
        staying = [job for job in queues.routed.values() if job.model is model and not job.leaving]
        free = view.max_sequences - len(staying)
        lowest = sorted(staying, key=lambda job: (job.level, job.last_run_s)) if ready else []
        while (first := queues.first(model)) is not None:
            if free > 0:
                free -= 1
            else:
                while lowest and lowest[-1].level > first.level and not lowest[-1].preemptible:
                    lowest.pop()
                if not lowest or lowest[-1].level <= first.level:
                    return
                lowest[-1].leaving = True
                yield policy.Preempt(lowest.pop().request)
            yield policy.Route(first.request, target)
            queues.route(first)

    def _step_s(self, view: View, gpu: GpuView) -> float:
        """Of an iteration of its batches as they are now."""
        steps_s = [
            instance.model.profile(gpu).step_s(instance.layers, min(max(1, instance.running_count), view.max_sequences))
            for instance in gpu.instances
            if instance.accepts
        ]
        return max([1e-3, *steps_s])

    def _next_s(self, view: View, queues: FeedbackQueues, firsts: list[Job], step_s: float) -> float:
        """When the order may change although nobody comes or goes: one of a full batch has come down below the first
        who waits for its model, or all of them below the first who waits for another."""
        running = [job for job in queues.routed.values() if not job.leaving]
        next_s = inf
        for first in firsts:
            waits_s = [
                max(queues.left_s(job, first.level), step_s if job.request.running else _UNSEEN_STEPS * step_s)
                for job in running
            ]
            if waits_s:
                same = any(job.model is first.model for job in running)
                next_s = min(next_s, view.now_s + (min(waits_s) if same else max(waits_s)))
        return next_s
