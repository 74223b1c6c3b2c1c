"""Residency-aware scheduling: every way to serve a waiting model is priced on one scale, seconds of delay.

Source: the project's own proposal (policies.md section 5, first version). Models with waiting requests come in the
order of their set-up index (requests finished per second and byte, the load included; 5.3). Each is priced: join an
instance; load with the layers that free memory holds; load after evicting idle instances (their reload, as likely as
they are wanted again), shrinking them where the engine is elastic; preempt those that run (5.5), or wait for them.
Prices come from measured curves, so a partly resident model pays for its own slowness and a busy GPU for its
neighbours'. Memory that is left goes to models by a multiple-choice knapsack (5.4). A wait beyond max_wait_s counts
tenfold. Left out: link ordering, redirection of running work between nodes, the threshold for unknown lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from sim.policy import (
    Action,
    ArrivalRates,
    Field,
    GpuView,
    InstanceView,
    Load,
    ModelView,
    Policy,
    PolicyParameters,
    Prices,
    Queue,
    Resize,
    Route,
    Stop,
    View,
    choose_options,
    costs,
)


class ResidencyAware(Policy):
    """Cheapest of join, load, evict, shrink, preempt and wait, priced in seconds of delay."""

    tier = "ours"
    follows_every_finish = False

    class Parameters(PolicyParameters):
        horizon_s: float = Field(60.0, gt=0, description="how far ahead expected arrivals count")
        rate_memory_s: float = Field(300.0, gt=0, description="memory of the arrival-rate estimate")
        max_wait_s: float = Field(120.0, gt=0, description="starvation guard: a longer wait counts tenfold")
        margin: float = Field(1.2, ge=1, description="a second copy must be cheaper than joining by this factor")
        tolerance: float = Field(1.3, ge=1, description="join without further thought if slowed by at most this factor")
        reconsider_s: float = Field(5.0, ge=0, description="time between two thoughts about a second copy of a model")
        rewait_s: float = Field(1.0, ge=0, description="a decision to wait is not thought over again for this long")
        hysteresis: float = Field(1.0, ge=0, description="multiplies what evicting an idle model costs")
        partial: bool = Field(True, description="load a part of a model where the whole does not fit")
        preempt: bool = Field(True, description="may running models be preempted (or shrunk)?")
        replicate: bool = Field(True, description="may a model be loaded a second time?")
        many_copies: int = Field(8, ge=1, description="with so many copies, no other is loaded while one is idle")
        preload: bool = Field(True, description="load models before they are asked for, while memory is free")

    def __init__(self, parameters: Parameters | None = None) -> None:
        super().__init__(parameters)
        asked = self.parameters
        self.rates = ArrivalRates(asked.rate_memory_s)
        self.prices = Prices(
            self.rates, asked.horizon_s, asked.max_wait_s, asked.hysteresis, asked.partial, asked.preempt
        )
        self._waits: dict[ModelView, tuple[int, float]] = {}  # how many it was decided to let wait, and when
        self._thought_s: dict[ModelView, float] = {}  # when a second copy was last found not worth it

    def start(self, view: View) -> Iterator[Action]:
        """Spread the models, largest first, whole where they fit; the rest share what is left."""
        if self.parameters.preload:
            for model in sorted(view.models, key=lambda model: -model.total_bytes):
                fitting = [gpu for gpu in view.gpus if gpu.takes(model, model.layers)]
                if fitting:
                    yield Load(model, max(fitting, key=lambda gpu: gpu.available_bytes), model.layers)
            for gpu in view.gpus:
                yield from self._fill(view, gpu)

    def decide(self, view: View) -> Iterator[Action]:
        for request in view.arrived:
            self.rates.saw(request.model, view.now_s)
        queues = []
        for model in view.waiting_models:
            if self._waits_on(view, model):
                continue
            free = self.prices.free_lane(view, model, self.parameters.tolerance)
            if free is None:
                queues.append(self.prices.queue(view, model))
            else:
                yield from (Route(request, free) for request in model.waiting)
        if len(queues) > 1:
            queues.sort(key=lambda queue: -self._index(view, queue))
        for queue in queues:
            yield from self._serve(view, queue)
        for gpu in view.freed:
            yield from self._grow(view, gpu)
            if self.parameters.preload and not view.waiting_models:
                yield from self._fill(view, gpu)

    # --- one model's waiting requests

    def _waits_on(self, view: View, model: ModelView) -> bool:
        """It was decided to wait, and nothing has happened since that could change that."""
        length, since_s = self._waits.get(model, (0, 0.0))
        if length != model.waiting_count or view.freed or view.loaded or view.idled:
            return False
        return view.now_s - since_s < float(self.parameters.rewait_s)

    def _index(self, view: View, queue: Queue) -> float:
        """Requests finished per second and byte if it got a GPU now, set-up included (5.3)."""
        model = queue.model
        gpu = view.largest_gpu
        layers = model.layers_within(gpu.capacity_bytes)
        setup_s = 0.0 if model.instances else model.load_s(gpu, layers)
        work_s = costs.service_s(model, gpu, layers, queue.batch, queue.tokens, (0.0, 0.0))
        return queue.urgency * queue.batch / ((setup_s + work_s) * model.gpu_bytes(layers))

    def _serve(self, view: View, queue: Queue) -> Iterator[Action]:
        model = queue.model
        target, join_price, slowed = self.prices.best_join(view, queue)
        if target is None or (slowed > self.parameters.tolerance and self._may_copy(view, model)):
            limit = join_price / self.parameters.margin
            places = view.shortlist() if target is None else self._better_places(view, target)
            best = self.prices.best_load(view, queue, places, limit)
            if best is not None and not best.wait:
                grown = target if view.resize == "elastic" and target in best.victims else None
                needed = model.gpu_bytes(best.layers) - (grown.gpu_bytes if grown else 0)
                for victim in best.victims:
                    if victim is not grown:
                        yield from self._evict(view, victim, needed - best.gpu.available_bytes)
                if grown:
                    yield from (Route(request, grown) for request in model.waiting)
                    yield from self._grow(view, best.gpu)
                    return
                if not best.gpu.takes(model, best.layers):
                    return  # layers that were shed took the host memory; their room on the GPU is still to come
                load = Load(model, best.gpu, best.layers)
                yield load
                yield from (Route(request, load) for request in model.waiting)
                return
            self._thought_s[model] = view.now_s
            if target is None:
                self._waits[model] = (queue.length, view.now_s)
                if best is None and (relief := costs.host_relief(view, model)):
                    yield Stop(relief)
        if target is not None:
            yield from (Route(request, target) for request in model.waiting)

    def _better_places(self, view: View, instance: InstanceView) -> list[GpuView]:
        """Everywhere for a model that is there in part; else only GPUs that are not more crowded can be better."""
        if instance.layers < instance.model.layers:
            return view.shortlist()
        crowd = instance.gpu.crowd(instance)[0]
        return [gpu for gpu in view.shortlist() if gpu is not instance.gpu and gpu.crowd()[0] <= crowd]

    def _may_copy(self, view: View, model: ModelView) -> bool:
        """A second copy is thought about while none is on its way, and not all the time. Where there are many and
        one of them is idle, the crowd on its GPU is what slows: more copies would only crowd other GPUs."""
        if not self.parameters.replicate or model.loading:
            return False
        least = model.least_loaded
        if least is not None and least.idle and model.instance_count >= self.parameters.many_copies:
            return False
        return view.now_s - self._thought_s.get(model, -inf) >= float(self.parameters.reconsider_s)

    def _evict(self, view: View, victim: InstanceView, needed: float) -> Iterator[Action]:
        if view.resize == "elastic" and not victim.idle and victim.gpu_bytes > needed > 0:
            keep = victim.model.layers_within(victim.gpu_bytes - needed, victim.kv_tokens)
            if 0 < keep < victim.layers and victim.takes_resize(keep):
                yield Resize(victim, keep)
                return
        yield Stop(victim, "preempt")

    # --- memory that is left

    def _grow(self, view: View, gpu: GpuView) -> Iterator[Action]:
        """Where the engine can, give free memory back to models that are there in part, the most wanted first."""
        if view.resize == "elastic":
            parts = [i for i in gpu.instances if i.ready and not i.resizing and i.layers < i.model.layers]
            for instance in sorted(parts, key=lambda i: (-self.prices.future(view, i.model), i.number)):
                room = instance.gpu_bytes + gpu.growth_bytes
                layers = instance.model.layers_within(room, instance.kv_tokens)
                if layers > instance.layers and instance.takes_resize(layers):
                    yield Resize(instance, layers)

    def _fill(self, view: View, gpu: GpuView) -> Iterator[Action]:
        """Give free memory to models that are loaded nowhere: knapsack over (bytes, delay saved)."""
        absent, groups = [], []
        for model in view.models:
            options = self._parts(view, model, gpu) if not model.instances else []
            if options:
                absent.append((model, [0, *(layers for layers, _ in options)]))
                groups.append([(0.0, 0.0), *((float(model.gpu_bytes(layers)), value) for layers, value in options)])
        if not groups:
            return
        for (model, layers), taken in zip(absent, choose_options(groups, gpu.available_bytes), strict=True):
            if taken and gpu.takes(model, layers[taken]):
                yield Load(model, gpu, layers[taken])

    def _parts(self, view: View, model: ModelView, gpu: GpuView) -> list[tuple[int, float]]:
        """Up to eight numbers of layers that fit, and the delay that each would save within the horizon."""
        profile, most = model.profile(gpu), model.layers_within(gpu.available_bytes)
        whole = model.layers_within(gpu.capacity_bytes)
        wanted = max(self.prices.future(view, model), 0.1)
        cold_s, none_s = model.load_s(gpu, whole), profile.step_s(0)
        # A part that is slow would only draw requests to it, unless the engine can let it grow in place.
        slowest_s = none_s if view.resize == "elastic" else self.parameters.tolerance * profile.step_s(whole)
        found = []
        for layers in range(most, 0, -max(1, most // 8)):
            step_s = profile.step_s(layers)
            if step_s <= slowest_s and gpu.takes(model, layers):
                found.append((layers, wanted * (cold_s + model.expected_output_tokens * (none_s - step_s))))
        return found
