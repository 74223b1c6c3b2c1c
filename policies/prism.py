"""Prism: place models by KV pressure, order requests by slack, put idle models to sleep.

Source: Yu et al., arXiv 2505.04021, and ovg-project/kvcached e8e64063, controller/sleep_manager.py. Placement: models
by rate / SLO, the largest first, each on the GPU with the lowest KV pressure ratio KVPR = sum(rate / SLO) / (memory -
sum of weights) that still fits it; one that has a place moves only if its ratio improves by more than tau. On a GPU
the largest set of requests that can get their first token in time comes first (Moore-Hodgson on prefill and load
times), the rest after it, each by deadline. A model idle for 300 s goes; under pressure the one idle for longest goes
at once. Running sequences are never interrupted: where only they are in the way, nobody behind the blocked request is
admitted.
KV is elastic only as far as the engine lets: an instance's pool is fixed when it is loaded, so there is no memory
pool common to KV and weights, and pressure enters by placement alone. Idle models sleep (weights in host memory)
under `resize: sleep`; else they are stopped. Left out: tensor parallelism, kvcached's minimum sleep of 60 s (it wakes
on request anyway), and the evolved placement that minimises the resulting ratio.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

from policies._parts.prism_pressure import PressureRoom, least_pressed, pressure_moves, pressure_rooms
from policies._parts.prism_slack import SlackQueue
from sim import policy
from sim.policy import Action, Field, GpuView, InstanceView, ModelView, Policy, PolicyParameters, RequestView, View


class Prism(Policy):
    """Placement by KV pressure ratio, slack-aware order, idle eviction."""

    tier = "research"

    class Parameters(PolicyParameters):
        tau: float = Field(0.2, ge=0, description="move a model only if its KVPR falls by more than this share of it")
        plan_s: float = Field(60.0, gt=0, description="time between two placements")
        idle_s: float = Field(300.0, gt=0, description="an instance idle for so long leaves its GPU (kvcached: 300)")
        slo_s: float = Field(10.0, gt=0, description="first-token promise of classes that make none")
        rate_memory_s: float = Field(300.0, gt=0, description="memory of the arrival-rate estimate")

    def __init__(self, parameters: Parameters | None = None) -> None:
        super().__init__(parameters)
        self.homes: dict[ModelView, GpuView] = {}
        self.queues: dict[GpuView, SlackQueue] = {}
        self._rates = policy.ArrivalRates(self.parameters.rate_memory_s)
        self._slo_s: dict[ModelView, float] = {}  # the tightest promise seen
        self._idle: dict[InstanceView, float] = {}  # since when, the longest first
        self._alarms = policy.Alarms()
        self._planned_s = 0.0

    def decide(self, view: View) -> Iterator[Action]:
        touched = dict.fromkeys([i.gpu for i in (*view.loaded, *view.idled)])
        for gpu in view.freed:
            touched.update(dict.fromkeys(gpu.node.gpus))
        for request in view.finished:
            if (home := self.homes.get(request.model)) is not None:
                self.queues[home].drop(request)
                touched[home] = None
        moved: list[RequestView] = []
        for gpu in [gpu for gpu in view.failed if not gpu.up]:
            for model in [model for model, home in self.homes.items() if home is gpu]:
                del self.homes[model]
                moved += self.queues[gpu].take(model)
        for request in view.arrived:
            self._rates.saw(request.model, view.now_s)
            promise_s = self._due_s(request) - request.arrival_s
            self._slo_s[request.model] = min(self._slo_s.get(request.model, promise_s), promise_s)
        for request in (*moved, *view.arrived, *view.requeued):
            touched[self._queue(view, request)] = None
        if view.now_s >= self._planned_s + float(self.parameters.plan_s):
            self._planned_s = view.now_s
            demands = {model: self._demand(view, model) for model in self.homes}
            for model, gpu in pressure_moves(view.gpus, self.homes, demands, float(self.parameters.tau)):
                touched.update(dict.fromkeys([self.homes[model], gpu]))
                yield from self._move(view, model, gpu)
        for gpu in touched:
            yield from self._admit(view, gpu)
        yield from self._put_to_sleep(view)

    # --- placement

    def _demand(self, view: View, model: ModelView) -> float:
        return self._rates.per_s(model, view.now_s) / self._slo_s[model]

    def _queue(self, view: View, request: RequestView) -> GpuView:
        model = request.model
        if model not in self.homes:
            demands = {other: self._demand(view, other) for other in self.homes}
            rooms = pressure_rooms(policy.holders(view, model), self.homes, demands)
            self.homes[model] = (least_pressed(rooms, model) or min(rooms, key=PressureRoom.rank)).gpu
        home = self.homes[model]
        self.queues.setdefault(home, SlackQueue(self._due_s)).add(request)
        return home

    def _move(self, view: View, model: ModelView, gpu: GpuView) -> Iterator[Action]:
        """The old instance finishes what runs; who waits goes to the new place, where it is loaded for them."""
        old = self.homes[model]
        instance = next((i for i in old.instances if i.model is model), None)
        if instance is not None and (instance.accepts or instance.status == "asleep"):
            yield policy.Stop(instance)
        self.homes[model] = gpu
        target = self.queues.setdefault(gpu, SlackQueue(self._due_s))
        for request in self.queues[old].take(model):
            target.add(request)

    # --- one GPU

    def _due_s(self, request: RequestView) -> float:
        return request.arrival_s + (request.ttft_slo_s or request.e2e_slo_s or float(self.parameters.slo_s))

    def _admit(self, view: View, gpu: GpuView) -> Iterator[Action]:
        """Requests in the order of their slack, as far as batches and memory take them."""
        queue = self.queues.get(gpu)
        room: dict[ModelView, int] = {}
        setup_s: dict[ModelView, float] = {}  # of models that are not there
        for model in queue.models() if queue else ():
            instance = policy.resident(model, gpu)
            room[model] = view.max_sequences - (instance.load if instance else 0)
            setup_s[model] = 0.0 if instance else policy.switch_s(model, gpu)
        if queue is None or not any(places > 0 for places in room.values()):
            return

        def prefill_s(request: RequestView) -> float:
            layers = gpu.layers_when_empty(request.model) or 0
            return request.model.profile(gpu).prefill_s(layers, request.prompt_tokens)

        order = iter(queue.by_slack(view.now_s, prefill_s, setup_s))
        while True:
            request = next(order, None) or queue.first_late([model for model in room if room[model] > 0])
            if request is None:
                return
            if room[request.model] > 0:
                if not (yield from self._let_in(view, gpu, request)):
                    return  # nobody behind it, so that what is in its way drains
                queue.drop(request)
                room[request.model] -= 1

    def _let_in(self, view: View, gpu: GpuView, request: RequestView) -> Generator[Action, None, bool]:
        idle = [i for i in gpu.instances if i.idle and i.model is not request.model]
        idle.sort(key=lambda instance: (instance.last_used_s, instance.number))
        target = yield from policy.bring(view, request.model, gpu, idle)
        if target is None:
            return False
        yield policy.Route(request, target)
        if isinstance(target, InstanceView):
            self._idle.pop(target, None)
        return True

    def _put_to_sleep(self, view: View) -> Iterator[Action]:
        for instance in (*view.idled, *view.loaded):
            if instance.idle and instance not in self._idle:
                self._idle[instance] = view.now_s
        for instance, since_s in list(self._idle.items()):
            due_s = since_s + float(self.parameters.idle_s)
            if view.now_s < due_s:
                yield from self._alarms.set(view, instance.gpu, due_s)
                return
            del self._idle[instance]
            if instance.idle and not instance.model.waiting_count:
                yield from policy.leave(view, instance)
                self.homes.pop(instance.model, None)
            self._alarms.rung(view)
