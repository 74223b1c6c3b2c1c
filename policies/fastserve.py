"""FastServe's skip-join multi-level feedback queue, extended across models that share a GPU.

Source: LLMServe/FastServe 187a2742, fastserve/scheduler.py (class MLFQ), and Wu et al., arXiv 2305.05920. Queue i has
a quantum of 10 ms x 2^i. A request enters the first queue whose quantum is at least its profiled prefill time and
goes down one when it was served longer than its queue's quantum; who was not run for 3 s is promoted to the first
queue. The batch is the head of the queues; who falls out of it leaves with its KV saved.
Across models (policies.md P20): a GPU runs the model of the first request, and of one level the resident model comes
first; a switch is charged to the request that causes it: its entry quantum covers prefill and switch, and a promoted
one may be served for the switch time before it goes down, so that one switch is amortised by its quantum.
Not as published: KV is swapped out when its request leaves the batch and in when it enters, not ahead; who computes
its prompt is not interrupted; the 1000 iterations between two looks for starving requests are counted in predicted
step times. Where there are several GPUs, a request goes to the one with the fewest, a batch more counted where its
model has to be loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from math import inf

from sim.policy import (
    Action,
    Alarms,
    Field,
    GpuView,
    InstanceView,
    ModelView,
    Policy,
    PolicyParameters,
    Preempt,
    RequestView,
    Route,
    View,
    bring,
    holders,
    resident,
    switch_s,
)


@dataclass(eq=False)
class Job:
    """A request in the queues. `served_s`: of it so far, `since_s`: when it came to this level."""

    request: RequestView
    gpu: GpuView
    level: int
    last_run_s: float
    served_s: float = 0.0
    since_s: float = 0.0
    gone: bool = False

    @property
    def rank(self) -> tuple[int, int]:
        return self.level, self.request.number


@dataclass(eq=False)
class Queues:
    """The feedback queues of a GPU: who was routed to its instances, and by model a heap of those who wait."""

    routed: dict[int, Job] = field(default_factory=dict)
    waiting: dict[ModelView, list[tuple[int, int, Job]]] = field(default_factory=dict)
    length: int = 0
    looked_s: float = 0.0  # when starving requests were last looked for

    def push(self, job: Job) -> None:
        heappush(self.waiting.setdefault(job.request.model, []), (*job.rank, job))

    def first(self, model: ModelView) -> Job | None:
        """The first of those who wait for this model."""
        heap = self.waiting[model]
        while heap and heap[0][-1].gone:
            heappop(heap)
        return heap[0][-1] if heap else None

    def pop(self, model: ModelView, most: int) -> list[Job]:
        """Take out the first of those who wait for this model."""
        found: list[Job] = []
        while len(found) < most and (job := self.first(model) if model in self.waiting else None) is not None:
            found.append(job)
            heappop(self.waiting[model])
        return found


class FastServe(Policy):
    """Skip-join MLFQ with preemption at token level; swap-aware."""

    tier = "research"

    class Parameters(PolicyParameters):
        quantum_s: float = Field(0.01, gt=0, description="quantum of the first queue; each next one has twice as much")
        starvation_s: float = Field(3.0, gt=0, description="promote a request that was not run for so long")
        starvation_period: int = Field(1000, ge=1, description="iterations between two looks for such requests")
        skip_join: bool = Field(True, description="enter by prefill time; off: every request enters the first queue")
        charge_swaps: bool = Field(True, description="charge a switch of models to the request that causes it")

    def __init__(self, parameters: Parameters | None = None) -> None:
        super().__init__(parameters)
        self.jobs: dict[int, Job] = {}
        self.queues: dict[GpuView, Queues] = {}
        self._alarms = Alarms()

    def decide(self, view: View) -> Iterator[Action]:
        touched = dict.fromkeys([*self._alarms.rung(view), *(i.gpu for i in (*view.loaded, *view.idled))], True)
        for gpu in view.freed:
            touched.update(dict.fromkeys(gpu.node.gpus, True))
        for request in view.finished:
            job = self.jobs.pop(request.number)
            job.gone = True
            self.queues[job.gpu].routed.pop(request.number, None)
            self.queues[job.gpu].length -= 1
            touched[job.gpu] = True
        for request in view.requeued:
            job = self.jobs[request.number]
            self._age(view, job)
            del self.queues[job.gpu].routed[request.number]
            self.queues[job.gpu].push(job)
            touched[job.gpu] = True
        for request in view.arrived:
            touched[self._enter(view, request)] = True
        for gpu in sorted(touched, key=lambda gpu: gpu.index):
            if gpu in self.queues:
                yield from self._schedule(view, gpu, self.queues[gpu])

    # --- levels

    def quantum_s(self, level: int) -> float:
        return float(self.parameters.quantum_s) * 2.0**level

    def entry_level(self, seconds: float) -> int:
        """The first queue whose quantum is at least so long."""
        level = 0
        while self.quantum_s(level) < seconds:
            level += 1
        return level

    def _enter(self, view: View, request: RequestView) -> GpuView:
        model = request.model

        def queue_length(gpu: GpuView) -> tuple[int, int]:
            cold = 0 if resident(model, gpu) else view.max_sequences
            return (self.queues[gpu].length if gpu in self.queues else 0) + cold, gpu.index

        gpu = min(holders(view, model, [i.gpu for i in model.quietest(8)]), key=queue_length)
        layers = gpu.layers_when_empty(model) or 0
        seconds = model.profile(gpu).prefill_s(layers, request.prompt_tokens) if self.parameters.skip_join else 0.0
        level = self.entry_level(seconds + self._charge_s(gpu, model))
        job = self.jobs[request.number] = Job(request, gpu, level, view.now_s)
        queues = self.queues.setdefault(gpu, Queues(looked_s=view.now_s))
        queues.length += 1
        queues.push(job)
        return gpu

    def _charge_s(self, gpu: GpuView, model: ModelView) -> float:
        charged = self.parameters.charge_swaps and resident(model, gpu) is None
        return switch_s(model, gpu) if charged else 0.0

    def _age(self, view: View, job: Job) -> None:
        """Down for each used quantum."""
        served_s = job.request.served_s
        if served_s > job.served_s:
            job.served_s, job.last_run_s = served_s, view.now_s
        while served_s - job.since_s > self.quantum_s(job.level):
            job.since_s += self.quantum_s(job.level)
            job.level += 1

    def _promote(self, view: View, gpu: GpuView, queues: Queues) -> None:
        """Everybody who waits and was not run for long goes to the first queue; those of an absent model may be served
        for the switch time on top of its quantum."""
        queues.looked_s = view.now_s
        for model, heap in queues.waiting.items():
            charge_s = self._charge_s(gpu, model)
            for *_, job in heap:
                if view.now_s >= job.last_run_s + float(self.parameters.starvation_s):
                    job.level, job.since_s = 0, job.served_s + charge_s
            queues.waiting[model] = [(*job.rank, job) for *_, job in heap if not job.gone]
            heapify(queues.waiting[model])

    # --- the batch

    def _schedule(self, view: View, gpu: GpuView, queues: Queues) -> Iterator[Action]:
        for job in queues.routed.values():
            self._age(view, job)
        waiting = [model for model in queues.waiting if queues.first(model) is not None]
        if waiting and view.now_s >= queues.looked_s + self._period_s(view, gpu):
            self._promote(view, gpu, queues)
        firsts = [first for model in waiting if (first := queues.first(model)) is not None]
        heads = [*queues.routed.values(), *firsts]
        if not heads:
            return
        here = {instance.model: True for instance in gpu.instances if instance.accepts}
        model = min(heads, key=lambda job: (job.level, job.request.model not in here, job.request.number)).request.model
        mine = [job for job in queues.routed.values() if job.request.model is model]
        mine += queues.pop(model, view.max_sequences)
        mine.sort(key=lambda job: job.rank)
        batch, over = mine[: view.max_sequences], mine[view.max_sequences :]
        target = yield from bring(view, model, gpu, [i for i in gpu.instances if i.model is not model])
        for job in batch:
            if job.request.number not in queues.routed:
                if target is None:
                    queues.push(job)
                else:
                    yield Route(job.request, target)
                    queues.routed[job.request.number] = job
        for job in over:
            if job.request.number not in queues.routed:
                queues.push(job)
        if isinstance(target, InstanceView) and target.ready:
            for job in [*over, *(job for job in queues.routed.values() if job.request.model is not model)]:
                # A prompt under way would have to be computed again.
                if job.request.running and job.request.produced_tokens:
                    yield Preempt(job.request)
        if any(queues.first(other) for other in queues.waiting):
            yield from self._alarms.set(view, gpu, self._next_s(view, gpu, queues))

    def _period_s(self, view: View, gpu: GpuView) -> float:
        """What so many iterations take as its batches are now; starving requests are not looked for more often."""
        steps_s = [
            instance.model.profile(gpu).step_s(instance.layers, min(max(1, instance.running_count), view.max_sequences))
            for instance in gpu.instances
            if instance.accepts
        ]
        return max(int(self.parameters.starvation_period) * max(steps_s, default=0.0), 1e-3)

    def _next_s(self, view: View, gpu: GpuView, queues: Queues) -> float:
        """When the order may change although nobody comes or goes: someone who runs has come down to the level of the
        first who wait, or it is time to look for starving requests."""
        next_s = queues.looked_s + self._period_s(view, gpu)
        soonest_s = next_s if next_s > view.now_s else inf
        lowest = min(first.level for model in queues.waiting if (first := queues.first(model)) is not None)
        for job in queues.routed.values():
            instance = job.request.instance
            if instance is not None and instance.ready:
                levels = range(job.level, max(lowest, job.level + 1))
                left_s = sum([self.quantum_s(level) for level in levels], 0.0) - (job.served_s - job.since_s)
                soonest_s = min(soonest_s, view.now_s + max(left_s, 0.0) + float(self.parameters.quantum_s) / 10)
        return soonest_s
