"""Residency-aware scheduling: every way to serve a waiting model is priced on one scale, seconds of delay.

Source: the project's own proposal (policies.md section 5). Models with waiting requests come in the order of their
set-up index (requests finished per second and byte, the load included; 5.3). Each is priced: join an instance; wake or
grow one; load with the layers that free memory holds; load after evicting idle instances (their return, as likely as
they are wanted again), preempting those that run (5.5), or once they are through. Evicting is what the engine does
best: shedding only the layers that are needed, sleep, or a stop. Prices come from measured curves, so a partly resident
model pays for its own slowness and for its neighbours'. Memory that is left goes to whole models by a multiple-choice
knapsack (5.4). A wait beyond max_wait_s counts tenfold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from math import inf

from sim import policy
from sim.policy import Action, Field, GpuView, InstanceView, ModelView, Policy, PolicyParameters, View


class ResidencyAware(Policy):
    """Cheapest of join, load, evict, shrink, preempt and wait, priced in seconds of delay."""

    tier = "ours"
    follows_every_finish = False

    class Parameters(PolicyParameters):
        horizon_s: float = Field(30.0, gt=0, description="how far ahead expected arrivals count")
        rate_memory_s: float = Field(300.0, gt=0, description="memory of the arrival-rate estimate")
        max_wait_s: float = Field(120.0, gt=0, description="starvation guard: a longer wait counts tenfold")
        margin: float = Field(1.2, ge=1, description="a second copy must be cheaper than joining by this factor")
        tolerance: float = Field(1.3, ge=1, description="join without further thought if slowed by at most this factor")
        reconsider_s: float = Field(5.0, ge=0, description="time between two thoughts about a second copy of a model")
        rewait_s: float = Field(1.0, ge=0, description="a decision to wait is not thought over again for this long")
        hysteresis: float = Field(1.0, ge=0, description="multiplies what evicting an idle model costs")
        partial: bool = Field(True, description="load a part of a model where the whole does not fit")
        preempt: bool = Field(True, description="may running models be preempted (or shrunk)?")
        interference: bool = Field(True, description="are neighbours on a GPU or CPU thought to slow one another?")
        preempt_margin: float = Field(2.0, ge=1, description="what preempting costs others counts so many times")
        partial_margin: float = Field(1.1, ge=1, description="a part of a model must be cheaper by this factor")
        theta: float = Field(
            0.0, ge=0, description="expect to wait as long again as was waited, times this; 0: by length"
        )
        replicate: bool = Field(True, description="may a model be loaded a second time?")
        index: bool = Field(True, description="serve models by requests finished per second and byte, else by arrival")
        redirect: bool = Field(True, description="may who waits at one copy be sent to another that is idle?")
        many_copies: int = Field(8, ge=1, description="with so many copies, no other is loaded while one is idle")
        preload: bool = Field(True, description="load models before they are asked for, while memory is free")

    def __init__(self, parameters: Parameters | None = None) -> None:
        super().__init__(parameters)
        asked = self.parameters
        self.rates = policy.ArrivalRates(asked.rate_memory_s)
        told = asked.model_dump(include={field.name for field in fields(policy.Prices)})
        self.prices = policy.Prices(self.rates, **told)
        self._waits: dict[ModelView, tuple[int, float]] = {}  # how many it was decided to let wait, and when
        self._thought_s: dict[ModelView, float] = {}  # when a second copy was last found not worth it

    def start(self, view: View) -> Iterator[Action]:
        """Spread the models, largest first, whole where they fit; the rest waits until it is asked for."""
        if self.parameters.preload:
            for model in sorted(view.models, key=lambda model: -model.total_bytes):
                fitting = [gpu for gpu in view.gpus if gpu.takes(model, model.layers)]
                if fitting:
                    yield policy.Load(model, max(fitting, key=lambda gpu: gpu.available_bytes), model.layers)

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
                yield from (policy.Route(request, free) for request in model.waiting)
        if len(queues) > 1 and self.parameters.index:
            queues.sort(key=lambda queue: -self._index(view, queue))
        for queue in queues:
            yield from self._serve(view, queue.model)
        for instance in view.idled if self.parameters.redirect else ():
            yield from self._redirect(instance)
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

    def _index(self, view: View, queue: policy.Queue) -> float:
        """Requests finished per second and byte if it got a GPU now, set-up included (5.3)."""
        model = queue.model
        gpu = view.largest_gpu
        layers = model.layers_within(gpu.capacity_bytes)
        setup_s = 0.0 if model.instances else model.load_s(gpu, layers)
        work_s = policy.costs.service_s(model, gpu, layers, queue.length, queue.tokens)
        return queue.urgency * queue.length / ((setup_s + work_s) * model.gpu_bytes(layers))

    def _serve(self, view: View, model: ModelView) -> Iterator[Action]:
        """A batch of its requests after the other: each goes where it costs least, or all wait."""
        while model.waiting_count and not any(instance.resizing for instance in model.instances):
            queue = self.prices.queue(view, model)
            target: InstanceView | policy.Load | None
            target, join_price, slowed = self.prices.best_join(view, queue)
            option = None
            if target is None or (slowed > self.parameters.tolerance and self._thinks_again(view, model)):
                places = view.shortlist() if target is None else self._better_places(view, target)
                option = self.prices.best_load(view, queue, places, join_price / self.parameters.margin)
                if option is None:
                    self._thought_s[model] = view.now_s
            if option is None and target is None:
                self._waits[model] = (model.waiting_count, view.now_s)
                if relief := policy.costs.host_relief(view, model):
                    yield policy.Stop(relief)
                return
            if option is not None:
                made: list[InstanceView | policy.Load] = []
                if not option.wait:
                    yield from self._make(view, model, option, made)
                if not made:  # it comes once the victims are through, there is room, or the layers are there
                    self._waits[model] = (model.waiting_count, view.now_s)
                    return
                target = made[0]
            assert target is not None
            yield from (policy.Route(request, target) for request in model.first_waiting(queue.length))

    def _make(
        self, view: View, model: ModelView, option: policy.Option, made: list[InstanceView | policy.Load]
    ) -> Iterator[Action]:
        """Carry out an option; `made` gets what serves then."""
        own, gpu = option.own, option.gpu
        grows = own is not None and own.ready and view.resize == "elastic"
        needed = model.gpu_bytes(option.layers) - (own.gpu_bytes if own is not None and grows else 0)
        if own is not None and own.ready and not grows:
            yield policy.Stop(own, "preempt")
        for victim in option.victims:
            yield from self._evict(view, victim, needed - gpu.available_bytes)
        if own is not None and grows:
            if own.takes_resize(option.layers):  # else its memory comes when those who run have shed theirs
                yield policy.Resize(own, option.layers)
        elif own is not None and own.status == "asleep" and own.takes_resize(option.layers):
            made.append(own)
            yield policy.Resize(own, option.layers)
        elif gpu.takes(model, option.layers):  # else layers that were shed took the host memory: room is still to come
            load = policy.Load(model, gpu, option.layers)
            made.append(load)
            yield load

    def _redirect(self, instance: InstanceView) -> Iterator[Action]:
        """Who waits at another copy comes to one that has nothing to do."""
        if instance.idle and instance.accepts and instance.model.instance_count > 1:
            for other in instance.model.quietest(2 * self.parameters.many_copies):
                if other is not instance and other.layers <= instance.layers:
                    for request in other.waiting[: instance.max_sequences - instance.load]:
                        yield policy.Route(request, instance)

    def _better_places(self, view: View, instance: InstanceView) -> list[GpuView]:
        """Its own GPU where there may be no second copy; everywhere for a model that is there in part; else only GPUs
        that are not more crowded can be better."""
        if not self.parameters.replicate:
            return [instance.gpu]
        if instance.layers < instance.model.layers:
            return view.shortlist()
        crowd = instance.gpu.crowd(instance)[0]
        return [gpu for gpu in view.shortlist() if gpu is not instance.gpu and gpu.crowd()[0] <= crowd]

    def _thinks_again(self, view: View, model: ModelView) -> bool:
        """Something better than joining is looked for, but not all the time. Where there are many copies and one of
        them is idle, the crowd on its GPU is what slows: more copies would only crowd other GPUs."""
        least = model.least_loaded
        if least is not None and least.idle and model.instance_count >= self.parameters.many_copies:
            return False
        since_s = self._thought_s.get(model, -inf)
        return since_s == view.now_s or view.now_s - since_s >= float(self.parameters.reconsider_s)

    def _evict(self, view: View, victim: InstanceView, needed: float) -> Iterator[Action]:
        """Take so many bytes of its memory, or all of it, in the engine's gentlest way."""
        if view.resize == "elastic":
            keep = victim.model.layers_within(max(0.0, victim.gpu_bytes - needed), victim.kv_tokens)
            if victim.takes_resize(keep):
                yield policy.Resize(victim, keep)
                return
        if view.resize == "sleep" and victim.takes_resize(0):
            yield policy.Resize(victim, 0)
            return
        dear = 2 * policy.costs.save_s(victim) > policy.costs.recompute_s(victim)
        yield policy.Stop(victim, "abort" if dear else "preempt")

    # --- memory that is left

    def _grow(self, view: View, gpu: GpuView) -> Iterator[Action]:
        """Where the engine can, give free memory back to models that are there in part, the most wanted first."""
        if view.resize == "elastic":
            parts = [i for i in gpu.instances if i.ready and not i.resizing and i.layers < i.model.layers]
            for instance in sorted(parts, key=lambda i: (-i.load, -self.prices.future(view, i.model), i.number)):
                room = instance.gpu_bytes + gpu.growth_bytes
                layers = instance.model.layers_within(room, instance.kv_tokens)
                if layers > instance.layers and instance.takes_resize(layers):
                    yield policy.Resize(instance, layers)

    def _fill(self, view: View, gpu: GpuView) -> Iterator[Action]:
        """Give free memory to models that are loaded nowhere: knapsack over (bytes, delay saved)."""
        absent, groups = [], []
        for model in view.models:
            if not model.instances and gpu.takes(model, model.layers):
                wanted = max(self.prices.future(view, model), 0.1)
                absent.append(model)
                value = wanted * model.load_s(gpu, model.layers)
                groups.append([(0.0, 0.0), (float(model.gpu_bytes(model.layers)), value)])
        if not groups:
            return
        for model, taken in zip(absent, policy.choose_options(groups, gpu.available_bytes), strict=True):
            if taken and gpu.takes(model, model.layers):
                yield policy.Load(model, gpu, model.layers)
