"""Clockwork: predictable work in the order of its latest start; what cannot be on time is dropped, not delayed.

Source: Gujarati et al., "Serving DNNs like Clockwork" (OSDI 2020); code malixian/clockwork 59176203,
src/clockwork/controller/infer5; policies.md P13. INFER: a GPU runs one model at a time and takes the batch with the
earliest latest start = deadline - execution time, as large a batch as its first request allows; a request whose latest
start has passed is dropped. LOAD: an absent model with the most unmet demand (work of its requests whose deadline a
load could still keep, less what the GPUs that hold it can do of it), one load a link. EVICT: the least recently used
idle model, those without demand first.

For language models: execution time is that of the first token (prompts of the batch) where the class promises a time
to first token, else that of the whole answer, prefill + E[tokens] x step time, where it promises that or the request
has a deadline; else `slo_s` promises the first token. Until an answer of the model has been seen one token stands for
E[tokens], or a wrong guess would drop them all for ever. Without any promise a request is never dropped and starts in
the order of arrival after those that have one (published: everything is promised within 0.1 s). Requests of the model
that runs may join its batch, as engines batch continuously. A model that fits nowhere whole is loaded with the largest
part. Left out: the 99th percentile of ten measurements (times come from the tables), the look-ahead of 10 ms and the
windows of its actions (a decision is carried out at once), GPU clock and network.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from math import inf, nextafter
from typing import ClassVar

from sim import policy
from sim.policy import Action, Field, GpuView, InstanceView, ModelView, Policy, PolicyParameters, RequestView, View

COPIES = 8  # instances of a model that are looked at where there are more: the quietest


class Clockwork(Policy):
    """Earliest latest start, drop what is too late, load by unmet demand."""

    tier: ClassVar[str] = "research"

    class Parameters(PolicyParameters):
        slo_s: float | None = Field(
            None, gt=0, description="TTFT promised where a class promises nothing (published: 0.1)"
        )
        max_batch: int = Field(16, ge=1, description="largest batch")
        buffer_s: float = Field(0.005, ge=0, description="seconds by which work is to be done before its deadline")
        load_share: float = Field(0.15, ge=0, description="share of its promise for which a request asks for a load")
        capacity_s: float = Field(10.0, gt=0, description="seconds of work that a GPU does in time (published: 0.1)")

    def __init__(self, parameters: Parameters | None = None) -> None:
        super().__init__(parameters)
        self._waiting: dict[int, RequestView] = {}
        self._starts: list[tuple[float, int, RequestView]] = []  # latest starts: a heap
        self._asks: list[tuple[float, int]] = []  # until when a request asks for a load: a heap
        self._asking: dict[int, ModelView] = {}
        self._demand: dict[ModelView, int] = {}  # how many ask
        self._known: dict[ModelView, bool] = {}  # has one of its answers been seen?

    def decide(self, view: View) -> Iterator[Action]:
        for request in (*view.arrived, *view.requeued):
            self._enter(view, request)
        for request in view.finished:
            self._leave(request.number)
            self._known[request.model] = self._known.get(request.model, False) or request.first_token_s is not None
        yield from self._drop(view)
        concerned = self._concerned(view)
        yield from self._infer(view, concerned)
        yield from self._load(view, concerned)
        if self._starts and self._starts[0][0] < inf:
            yield policy.Wake(nextafter(self._starts[0][0], inf))

    def _enter(self, view: View, request: RequestView) -> None:
        model, start_s = request.model, self._latest_start_s(view, request, 1)
        self._waiting[request.number] = request
        heappush(self._starts, (start_s, request.number, request))
        load_s = model.load_s(view.largest_gpu, model.layers_within(view.largest_gpu.capacity_bytes))
        asks_s = max(start_s - load_s, view.now_s + float(self.parameters.load_share) * (start_s - view.now_s))
        heappush(self._asks, (asks_s, request.number))
        self._asking[request.number] = model
        self._demand[model] = self._demand.get(model, 0) + 1

    def _concerned(self, view: View) -> list[ModelView]:
        """Whose requests may start or load now: everybody's after a change of the machines, else those of new and of
        dropped requests and of the models beside them."""
        served = any(request.first_token_s is not None for request in view.finished)
        if served or view.idled or view.loaded or view.freed or view.requeued:
            return view.waiting_models
        found = dict.fromkeys(request.model for request in (*view.arrived, *view.finished))
        for model in list(found):
            found.update((m, None) for instance in model.quietest(COPIES) for m in instance.gpu.models)
        return [model for model in found if model.waiting_count]

    def _leave(self, number: int) -> None:
        """The request waits no more."""
        self._waiting.pop(number, None)
        self._ask_no_more(number)

    def _ask_no_more(self, number: int) -> None:
        model = self._asking.pop(number, None)
        if model is not None:
            self._demand[model] -= 1

    # --- estimates

    def _execution_s(self, request: RequestView, gpu: GpuView, layers: int, batch: int, whole: bool) -> float:
        """Seconds of a batch of such requests: the prompts alone, or the `whole` answer."""
        model = request.model
        profile = model.profile(gpu)
        prefill_s = profile.prefill_s(layers, min(request.prompt_tokens, model.max_context)) * batch
        if not whole:
            return prefill_s
        tokens = request.expected_remaining_tokens if self._known.get(model) else 1.0
        context = min(request.prompt_tokens + tokens / 2, model.max_context)
        return prefill_s + tokens * profile.step_s(layers, batch, context)

    def _latest_start_s(self, view: View, request: RequestView, batch: int, at: InstanceView | None = None) -> float:
        """Deadline less execution time, at an instance (else on the largest GPU); infinite without a promise."""
        gpu = at.gpu if at else view.largest_gpu
        layers = at.layers if at else request.model.layers_within(gpu.capacity_bytes)
        ttft_s = request.ttft_slo_s
        ends_s = [limit_s for limit_s in (request.e2e_slo_s, request.deadline_s) if limit_s is not None]
        if ttft_s is None and not ends_s:
            ttft_s = self.parameters.slo_s
        due_s = request.arrival_s - float(self.parameters.buffer_s)
        if request.first_token_s is not None:
            return inf  # it was preempted by its engine: dropping it now would waste what it has
        if ttft_s is not None:
            return due_s + ttft_s - self._execution_s(request, gpu, layers, batch, False)
        if ends_s:
            return due_s + min(ends_s) - self._execution_s(request, gpu, layers, batch, True)
        return inf

    # --- INFER

    def _drop(self, view: View) -> Iterator[Action]:
        """Those who cannot be on time even if they start now, alone."""
        while self._starts and (self._starts[0][0] < view.now_s or self._starts[0][1] not in self._waiting):
            _, number, request = heappop(self._starts)
            if number in self._waiting:
                latest_s = self._latest_start_s(view, request, 1)  # the estimate of its tokens may have changed
                if latest_s < view.now_s:
                    self._leave(number)
                    yield policy.Reject(request, "it cannot meet its deadline any more")
                else:
                    heappush(self._starts, (latest_s, number, request))

    def _infer(self, view: View, models: list[ModelView]) -> Iterator[Action]:
        """Batches in the order of their latest start. A GPU that the first of them needs starts no other."""
        taken: dict[GpuView, ModelView] = {}
        fronts = [model.oldest for model in models if model.instance_count]
        waiting = [(self._latest_start_s(view, front, 1), front.number, front.model) for front in fronts if front]
        for _, _, model in sorted(waiting, key=lambda front: front[:2]):
            for instance in model.quietest(COPIES):
                if not (instance.ready and instance.accepts and taken.setdefault(instance.gpu, model) is model):
                    continue
                if all(other is instance or not other.load for other in instance.gpu.instances):
                    yield from self._start(view, instance)
                if not model.waiting_count:
                    break

    def _start(self, view: View, instance: InstanceView) -> Iterator[Action]:
        """The largest batch with which its first request is still on time, and for which there is KV memory."""
        front = request = instance.model.oldest
        if instance.waiting_count:
            return  # for KV memory, after a preemption
        joined, free_tokens = 0, float(instance.free_kv_tokens)
        while front is not None and request is not None:
            batch = instance.load + 1
            if batch > min(self.parameters.max_batch, instance.max_sequences):
                return
            if joined and self._latest_start_s(view, front, batch, instance) < view.now_s:
                return
            free_tokens -= request.context_tokens + request.expected_remaining_tokens
            if instance.load and free_tokens < 0:
                return
            self._leave(request.number)
            yield policy.Route(request, instance)
            joined, request = joined + 1, instance.model.oldest

    # --- LOAD and EVICT

    def _load(self, view: View, models: list[ModelView]) -> Iterator[Action]:
        while self._asks and self._asks[0][0] < view.now_s:
            self._ask_no_more(heappop(self._asks)[1])
        wanted = {model: self._priority(view, model) for model in models if self._demand.get(model)}
        work_s = {gpu: _work_s(gpu) for gpu in view.shortlist() if not gpu.loading} if any(wanted.values()) else {}
        for gpu in sorted(work_s, key=lambda gpu: (work_s[gpu] > 0, -gpu.available_bytes, gpu.index)):
            spare = work_s[gpu] < self.parameters.capacity_s  # else a further copy there would serve nobody
            held = gpu.models
            absent = [m for m, p in wanted.items() if p > 0 and (spare or not m.instance_count) and m not in held]
            for model in sorted(absent, key=lambda model: -wanted[model]):
                layers = policy.fullest_layers(view, model, gpu)
                if layers is not None and (victims := self._victims(view, gpu, model, layers)) is not None:
                    yield from (policy.Stop(victim) for victim in victims)
                    yield policy.Load(model, gpu, layers)
                    wanted[model] = self._priority(view, model)
                    break
        stuck = next((model for model, p in wanted.items() if p > 0 and not model.instance_count), None)
        if stuck is not None and (relief := policy.costs.host_relief(view, stuck)):
            yield policy.Stop(relief)

    def _priority(self, view: View, model: ModelView) -> float:
        """Seconds of its outstanding work that the GPUs which hold it, or will, do not get done; at least 0."""
        front, gpu = model.oldest, view.largest_gpu
        holders = [instance for instance in model.quietest(COPIES) if instance.accepts]
        if front is None or sum(not instance.load for instance in holders) >= min(COPIES, self._demand[model]):
            return 0.0  # each has a copy to wait for; a request is no faster on two GPUs than on one
        layers = model.layers_within(gpu.capacity_bytes)
        demand_s = self._demand[model] * self._execution_s(front, gpu, layers, 1, True)
        share_s, served_s = demand_s / max(1, model.instance_count), 0.0
        for instance in holders:
            outstanding_s = share_s + _work_s(instance.gpu)
            served_s += share_s * min(1.0, float(self.parameters.capacity_s) / max(outstanding_s, 1e-9))
        return max(0.0, demand_s - served_s * model.instance_count / max(1, len(holders)) - 1e-9)

    def _victims(self, view: View, gpu: GpuView, model: ModelView, layers: int) -> list[InstanceView] | None:
        """Idle models that make room, those without demand first, then the least recently used; None: no room."""
        idle = [instance for instance in gpu.instances if instance.idle and not instance.resizing]
        # Not who came this very instant for requests that wait: where a load takes no time, two would swap for ever.
        idle = [i for i in idle if i.ready_s < view.now_s or not i.model.waiting_count]
        idle.sort(key=lambda i: (i.model.waiting_count > 0, i.last_used_s, i.number))
        needed, freed = model.gpu_bytes(layers) - gpu.available_bytes, 0
        victims: list[InstanceView] = []
        while needed > freed and len(victims) < len(idle):
            freed += idle[len(victims)].gpu_bytes
            victims.append(idle[len(victims)])
        return victims if gpu.takes(model, layers, freed_bytes=freed) else None


def _work_s(gpu: GpuView) -> float:
    """Seconds of work that are outstanding on a GPU."""
    return sum([policy.costs.drain_s(instance) for instance in gpu.instances], 0.0)
