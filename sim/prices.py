"""The menu of a scheduler that shares GPUs, on one scale: what each way to serve waiting requests costs in seconds.

Join an instance, or load one: into free memory, in place of idle instances, of running ones that are preempted, or once
these are through (policies.md 5.4 and 5.5). A price is the delay of those who wait, of those expected within the
horizon, and of everybody who is put out or slowed by it. Estimates are those of costs.py; policies import this from
sim.policy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, inf

from sim import costs
from sim.costs import ArrivalRates
from sim.decision import View
from sim.machine_views import GpuView
from sim.views import InstanceView, ModelView

URGENT = 10.0  # how much more the delay of a starving request counts
COPIES = 8  # of a model that are looked at where there are more: the quietest
COPY_DISCOUNT = 0.2  # evicting one of several copies costs little


@dataclass(frozen=True)
class Queue:
    """A model's waiting requests, as the prices see them."""

    model: ModelView
    length: int
    batch: int
    tokens: tuple[float, float]  # prompt and expected output of the oldest
    urgency: float
    future: float  # requests expected within the horizon

    def delay_s(self, wait_s: float, served_s: float) -> float:
        """Seconds that those who wait and those to come spend, if the first start after wait_s."""
        return self.urgency * self.length * (wait_s + served_s) + self.future * served_s


@dataclass(frozen=True)
class Option:
    """A load that could be made, and its price in seconds of delay. `wait`: only once the victims are through."""

    price: float
    gpu: GpuView
    layers: int
    victims: tuple[InstanceView, ...]
    wait: bool


@dataclass(frozen=True)
class Victim:
    """An instance that might go, and what that costs: `price` now, `idle_price` once its load is through."""

    instance: InstanceView
    size: int
    load: int
    save_s: float
    drain_s: float
    idle_price: float
    price: float


@dataclass(frozen=True)
class Prices:
    """Prices under a policy's settings.

    `hysteresis` multiplies what evicting an idle instance costs; without `partial` a model is loaded with all layers
    that the GPU could hold, or not; without `preempt` running instances are only waited for.
    """

    rates: ArrivalRates
    horizon_s: float
    max_wait_s: float
    hysteresis: float
    partial: bool
    preempt: bool

    def queue(self, view: View, model: ModelView) -> Queue:
        """The waiting requests of a model that has some. Who waits longer than max_wait_s makes it urgent."""
        oldest, length = model.oldest, model.waiting_count
        assert oldest is not None, model
        late = view.now_s - oldest.arrival_s > self.max_wait_s
        urgency = (URGENT if late else 1.0) * model.weight
        batch = min(length, view.max_sequences)
        tokens = (oldest.prompt_tokens, oldest.expected_output_tokens)
        return Queue(model, length, batch, tokens, urgency, self.future(view, model))

    def future(self, view: View, model: ModelView) -> float:
        """Requests expected within the horizon."""
        return self.rates.per_s(model, view.now_s) * self.horizon_s

    def free_lane(self, view: View, model: ModelView, tolerance: float) -> InstanceView | None:
        """An instance that nothing can beat: whole, alone on its GPU, with a batch that is slower for those who wait by
        at most this factor."""
        waiting = model.waiting_count
        for instance in model.quietest(COPIES):
            if instance.ready and instance.alone and instance.accepts and instance.layers == model.layers:
                batch = instance.load + waiting
                if batch <= view.max_sequences and not instance.waiting_count:
                    profile = model.profile(instance.gpu)
                    if profile.step_s(model.layers, batch) <= tolerance * profile.step_s(model.layers):
                        return instance
        return None

    def best_join(self, view: View, queue: Queue) -> tuple[InstanceView | None, float, float]:
        """The instance to join, its price, and by what factor those who join are slowed; None if there is none."""
        best: InstanceView | None = None
        best_price = best_slowed = inf
        for instance in queue.model.quietest(COPIES):
            if instance.accepts:
                price, slowed = self.join(view, queue, instance, best_price)
                if price < best_price:
                    best, best_price, best_slowed = instance, price, slowed
        return best, best_price, best_slowed

    def join(self, view: View, queue: Queue, instance: InstanceView, limit: float) -> tuple[float, float]:
        """What joining costs, and by what factor batch, crowd, offload and waiting slow those who join; infinite where
        it costs `limit` or more."""
        model, gpu = queue.model, instance.gpu
        load = instance.load + queue.length
        batch = min(load, view.max_sequences)
        served_s = costs.service_s(model, gpu, instance.layers, batch, queue.tokens, gpu.crowd(instance))
        if instance.loading:
            wait_s = costs.reload_s(instance) + served_s * max(0, load - view.max_sequences) / view.max_sequences
        else:  # who waits there already waits for a place or for KV memory
            beyond = max(instance.waiting_count, load - view.max_sequences)
            wait_s = served_s * beyond / max(1, instance.running_count)
        price = queue.delay_s(wait_s, served_s)
        if price >= limit:
            return inf, inf
        lost_s = 0.0 if instance.running_count else self._neighbours_lose(gpu, served_s)
        ideal_s = costs.service_s(model, gpu, model.layers, queue.batch, queue.tokens, (0.0, 0.0))
        return price + lost_s, (wait_s + served_s) / ideal_s

    def _neighbours_lose(self, gpu: GpuView, busy_s: float) -> float:
        """Whoever runs on the GPU is held up while both run."""
        return sum([i.running_count * min(busy_s, costs.drain_s(i)) for i in gpu.running], 0.0)

    def best_load(self, view: View, queue: Queue, places: list[GpuView], limit: float) -> Option | None:
        """The cheapest load on any of these GPUs, if it costs less than `limit`.

        GPUs come in the order of what a load there costs at least: the whole model with nobody to evict.
        """
        best: Option | None = None
        for bound, _, gpu in sorted((self._bound(queue, gpu), gpu.index, gpu) for gpu in places):
            if bound >= limit:
                break
            for option in self._loads(view, queue, gpu):
                if option.price < limit:
                    best, limit = option, option.price
        return best

    def _bound(self, queue: Queue, gpu: GpuView) -> float:
        model = queue.model
        if any(instance.model is model for instance in gpu.instances):
            return 0.0  # growing where it is may even hasten those who run
        most = model.layers_within(gpu.capacity_bytes)
        best_s = costs.service_s(model, gpu, most, queue.batch, queue.tokens, gpu.crowd())
        return queue.delay_s(model.load_s(gpu, most), best_s)

    def _loads(self, view: View, queue: Queue, gpu: GpuView) -> Iterator[Option]:
        """Loads with growing sets of victims, the cheapest per byte first; running victims preempted or waited for.

        A smaller part of the model that is on this GPU is the first victim: that is how it grows where the engine
        cannot resize in place.
        """
        model = queue.model
        most = model.layers_within(gpu.capacity_bytes)
        crowd = gpu.crowd()
        held = gpu.instances
        own = [instance for instance in held if instance.model is model]
        if any(instance.layers >= most or not self.evictable(view, instance) for instance in own):
            return
        others = [self._victim(view, i) for i in held if i.model is not model and self.evictable(view, i)]
        others.sort(key=lambda victim: (victim.price / max(1, victim.size), victim.instance.number))
        staying = [(i, i.running_count, costs.drain_s(i)) for i in gpu.running if i not in own]
        available = gpu.available_bytes
        for number in range(len(others) + 1):
            victims = others[:number]
            freed = sum(victim.size for victim in victims) + sum(instance.gpu_bytes for instance in own)
            layers = model.layers_within(available + freed)
            worth = layers == most or (self.partial and all(layers > instance.layers for instance in own))
            if worth and gpu.takes(model, layers, freed_bytes=freed):
                served_s = costs.service_s(model, gpu, layers, queue.batch, queue.tokens, crowd)
                gone = [victim.instance for victim in victims]
                lost_s = sum([count * min(served_s, drain_s) for i, count, drain_s in staying if i not in gone], 0.0)
                # An elastic instance goes on while its other layers come.
                setup_s = 0.0 if own and view.resize == "elastic" else model.load_s(gpu, layers)
                for price, wait in self._ways(queue, victims, own, layers, setup_s, served_s):
                    yield Option(price + lost_s, gpu, layers, (*own, *gone), wait)
            if layers == model.layers:
                return

    def _ways(
        self,
        queue: Queue,
        victims: list[Victim],
        own: list[InstanceView],
        layers: int,
        setup_s: float,
        served_s: float,
    ) -> Iterator[tuple[float, bool]]:
        """(price, wait) of preempting the victims that run, and of waiting for them."""
        running = [victim for victim in victims if victim.load]
        if not running or self.preempt:
            out_s = setup_s + max((victim.save_s for victim in running), default=0.0)
            away_s = out_s + queue.length * served_s / queue.batch
            lost_s = sum([victim.price + victim.load * away_s for victim in victims], 0.0)
            lost_s += sum([i.load * (out_s - self._hastened_s(i, layers)) for i in own], 0.0)
            yield queue.delay_s(out_s, served_s) + lost_s, False
        if running:
            wait_s = setup_s + max(victim.drain_s for victim in running)
            yield queue.delay_s(wait_s, served_s) + sum([victim.idle_price for victim in victims], 0.0), True

    def _victim(self, view: View, instance: InstanceView) -> Victim:
        load, size, idle_price = instance.load, instance.gpu_bytes, self._idle_price(view, instance)
        if not load:
            return Victim(instance, size, 0, 0.0, 0.0, idle_price, idle_price)
        # Those who run pay for saving, reloading and restoring (5.5).
        save_s = costs.save_s(instance)
        price = load * (save_s * 2 + costs.reload_s(instance))
        return Victim(instance, size, load, save_s, costs.drain_s(instance), idle_price, price)

    def _hastened_s(self, instance: InstanceView, layers: int) -> float:
        """By how much earlier, on average, its present load would be through with so many layers."""
        now_s, then_s = costs.drain_s(instance), costs.drain_s(instance, layers)
        return (now_s - then_s) / 2

    def evictable(self, view: View, instance: InstanceView) -> bool:
        """Nothing that was loaded a moment ago is taken from the GPU again while it runs."""
        held_s = view.now_s - instance.ready_s
        return not instance.resizing and (instance.idle or (instance.ready and held_s > costs.reload_s(instance)))

    def _idle_price(self, view: View, instance: InstanceView) -> float:
        """The reload, as likely as a request comes within the horizon, for all who come while it lasts."""
        reload_s, future = costs.reload_s(instance), self.future(view, instance.model)
        copies = sum(1 for other in instance.model.quietest(2) if other.accepts)
        wanted = (1.0 - exp(-future)) * (1.0 if copies == 1 else COPY_DISCOUNT)
        queued = 1.0 + future * reload_s / self.horizon_s
        return self.hysteresis * wanted * reload_s * queued
