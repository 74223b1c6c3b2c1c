"""The menu of a scheduler that shares GPUs, on one scale: what each way to serve waiting requests costs in seconds.

Join an instance, wake or grow one, or load one: into free memory, in place of idle instances, of running ones that are
preempted, or once these are through (policies.md 5.4 and 5.5). A price is the delay of those who wait, of those
expected within the horizon, and of everybody who is put out or slowed by it. Estimates are those of costs.py; policies
import this from sim.policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, inf

from sim.policy.interface.machines import GpuView
from sim.policy.interface.models import InstanceView, ModelView
from sim.policy.interface.view import View
from sim.policy.kit import costs
from sim.policy.kit.costs import ArrivalRates

URGENT = 10.0  # how much more the delay of a starving request counts
COPIES = 8  # of a model that are looked at where there are more: the quietest
COPY_DISCOUNT = 0.2  # evicting one of several copies costs little


@dataclass(frozen=True)
class Queue:
    """A model's waiting requests, as the prices see them: at most a batch of them."""

    model: ModelView
    length: int
    tokens: tuple[float, float]  # prompt and expected output of the oldest
    urgency: float
    future: float  # requests expected within the horizon
    waited_s: float  # the oldest, so far

    def delay_s(self, wait_s: float, served_s: float) -> float:
        """Seconds that those who wait and those to come spend, if the first start after wait_s."""
        return self.urgency * self.length * (wait_s + served_s) + self.future * served_s


@dataclass(frozen=True)
class Option:
    """A load, a wake or a growth that could be made, and its price in seconds of delay.

    own: the model's instance on that GPU that would wake or grow; None: a new one. wait: only once the victims are
    through.
    """

    price: float
    gpu: GpuView
    layers: int
    own: InstanceView | None
    victims: tuple[InstanceView, ...]
    wait: bool


@dataclass(frozen=True)
class Victim:
    """An instance that might go: what that costs now, and how long until it is through."""

    instance: InstanceView
    size: int
    load: int
    weight: float
    away_s: float  # lost by each of its sequences, beside the time that the newcomer holds the memory
    drain_s: float
    idle_price: float


@dataclass(frozen=True)
class Prices:
    """Prices under a policy's settings.

    `hysteresis` multiplies what evicting an idle instance costs; without `partial` a model is loaded with all layers
    that the GPU could hold, or not, and with it a part must be cheaper by `partial_margin`; without `preempt` running
    instances are only waited for, and with it what preempting costs them counts `preempt_margin` times; without
    `interference` nobody is thought to slow anybody. Who waits is expected to wait at least `theta` times as long again
    as the oldest has waited (ski rental; 0: only expected lengths count).
    """

    rates: ArrivalRates
    horizon_s: float
    max_wait_s: float
    hysteresis: float
    partial: bool
    preempt: bool
    interference: bool
    theta: float
    preempt_margin: float
    partial_margin: float

    def queue(self, view: View, model: ModelView) -> Queue:
        """The waiting requests of a model that has some. Who waits longer than max_wait_s makes it urgent."""
        oldest = model.oldest
        assert oldest is not None, model
        late = view.now_s - oldest.arrival_s > self.max_wait_s
        length = min(model.waiting_count, view.max_sequences)
        urgency = (URGENT if late else 1.0) * oldest.weight
        tokens = (oldest.prompt_tokens, oldest.expected_output_tokens)
        waited_s = view.now_s - oldest.arrival_s
        return Queue(model, length, tokens, urgency, self.future(view, model), waited_s)

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
                if batch <= instance.max_sequences and not instance.waiting_count:
                    profile = model.profile(instance.gpu)
                    if profile.step_s(model.layers, batch) <= tolerance * profile.step_s(model.layers):
                        return instance
        return None

    # --- joining

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
        batch = min(load, instance.max_sequences)
        served_s = self._served_s(queue, gpu, instance.layers, batch, [instance])
        if instance.loading:
            rounds = max(0, load - instance.max_sequences) / instance.max_sequences
            wait_s = costs.return_s(view, instance) + served_s * rounds
        else:  # who waits there already waits for a place or for KV memory
            beyond = max(instance.waiting_count, load - instance.max_sequences)
            wait_s = served_s * beyond / max(1, instance.running_count)
        price = queue.delay_s(wait_s, served_s)
        if price >= limit:
            return inf, inf
        lost_s = 0.0
        if not instance.running_count:
            lost_s = self._neighbours_lose(queue, gpu, instance.layers, served_s, [instance])
        ideal_s = costs.service_s(model, gpu, model.layers, queue.length, queue.tokens)
        return price + lost_s, (wait_s + served_s) / ideal_s

    def _served_s(self, queue: Queue, gpu: GpuView, layers: int, batch: int, gone: Sequence[InstanceView]) -> float:
        """Seconds to serve one of the queue beside those who stay."""
        crowd = gpu.crowd(*gone) if self.interference else costs.NOBODY
        return costs.service_s(queue.model, gpu, layers, batch, queue.tokens, crowd)

    def _neighbours_lose(
        self, queue: Queue, gpu: GpuView, layers: int, busy_s: float, gone: Sequence[InstanceView]
    ) -> float:
        """Whoever computes on the GPU, or on its node's CPU, is held up while both run."""
        if not self.interference:
            return 0.0
        mine = costs.shares(queue.model, gpu, layers, queue.length)
        lost_s = 0.0
        for other in gpu.neighbours:
            if other in gone:
                continue
            theirs, crowd = other.shares, other.gpu.crowd(other)
            here = mine if other.gpu is gpu else (0.0, mine[1])
            before, after = crowd.stretch(*theirs), crowd.joined(*here).stretch(*theirs)
            slower = theirs[0] * (after[0] - before[0]) + theirs[1] * (after[1] - before[1])
            if slower > 0:
                lost_s += other.weight * other.running_count * slower * min(busy_s, costs.drain_s(other))
        return lost_s

    # --- loading

    def best_load(self, view: View, queue: Queue, places: list[GpuView], limit: float) -> Option | None:
        """The cheapest load on any of these GPUs, if it costs less than `limit`.

        GPUs come in the order of what a load there costs at least: the whole model with nobody to evict.
        """
        best: Option | None = None
        for bound, _, gpu in sorted((self._bound(queue, gpu), gpu.index, gpu) for gpu in places):
            if bound >= limit:
                break
            for option in self._options(view, queue, gpu):
                if option.price < limit:
                    best, limit = option, option.price
        return best

    def _bound(self, queue: Queue, gpu: GpuView) -> float:
        model = queue.model
        if model in gpu.models:
            return -inf  # growing where it is may even hasten those who run
        most = model.layers_within(gpu.capacity_bytes)
        best_s = costs.service_s(model, gpu, most, queue.length, queue.tokens)
        return queue.delay_s(model.load_s(gpu, most), best_s)

    def _options(self, view: View, queue: Queue, gpu: GpuView) -> Iterator[Option]:
        """What could be done there: with growing sets of victims, the cheapest per byte first; or wait for some."""
        model = queue.model
        most = model.layers_within(gpu.capacity_bytes)
        held = gpu.instances
        mine = [instance for instance in held if instance.model is model]
        own = mine[0] if mine else None
        if own is not None:
            asleep = own.status == "asleep"
            if len(mine) > 1 or not (asleep or (own.ready and not own.resizing)):
                return
            if asleep:
                most = own.layers
            elif own.layers >= most or (view.resize == "none" and not self.evictable(view, own)):
                return
        others = [i for i in held if i is not own and i.gpu_bytes]
        victims = [self._victim(view, i) for i in others]
        now = [v for v in victims if self.evictable(view, v.instance) and (self.preempt or not v.load)]
        now.sort(key=lambda v: (self._now_price(v, 0.0) / v.size, v.instance.number))
        own_bytes = 0 if own is None else own.gpu_bytes
        for number in range(len(now) + 1):
            chosen = now[:number]
            layers = self._layers(queue, gpu, own, own_bytes, most, chosen)
            if layers >= 0:
                yield self._priced(view, queue, gpu, layers, own, chosen, False)
                if layers >= most:
                    break
        victims.sort(key=lambda v: (v.drain_s, v.instance.number))
        for number in range(1, len(victims) + 1):
            layers = self._layers(queue, gpu, own, own_bytes, most, victims[:number])
            if layers >= most:
                if victims[number - 1].drain_s > 0:
                    yield self._priced(view, queue, gpu, layers, own, victims[:number], True)
                return

    def _layers(
        self, queue: Queue, gpu: GpuView, own: InstanceView | None, own_bytes: int, most: int, victims: list[Victim]
    ) -> int:
        """The layers that the model could have there without the victims; -1: not worth it, or not possible."""
        freed = own_bytes + sum([victim.size for victim in victims])
        layers = min(most, queue.model.layers_within(gpu.available_bytes + freed))
        if layers < most and (not self.partial or (own is not None and layers <= own.layers)):
            return -1
        if own is not None and own.status == "asleep":
            return layers if layers == most else -1
        return layers if own is not None or gpu.takes(queue.model, layers, freed_bytes=freed) else -1

    def _priced(
        self,
        view: View,
        queue: Queue,
        gpu: GpuView,
        layers: int,
        own: InstanceView | None,
        victims: list[Victim],
        wait: bool,
    ) -> Option:
        gone = [victim.instance for victim in victims]
        gone = gone if own is None else [*gone, own]
        batch = queue.length + (own.load if own is not None else 0)
        served_s = self._served_s(queue, gpu, layers, min(batch, view.max_sequences), gone)
        setup_s = self._setup_s(view, queue, gpu, layers, own)
        lost_s = 0.0
        if wait:
            setup_s += max(self.theta * queue.waited_s, *(victim.drain_s for victim in victims))
            lost_s += sum([victim.idle_price for victim in victims], 0.0)
        else:
            setup_s += max((costs.save_s(victim.instance) for victim in victims if victim.load), default=0.0)
            lost_s += sum([self._now_price(victim, setup_s + served_s) for victim in victims], 0.0)
        lost_s += self._neighbours_lose(queue, gpu, layers, served_s, gone)
        if own is not None and own.load:
            # Those who run there are held up while it restarts, and faster from then on.
            held_up_s = 0.0 if view.resize == "elastic" else setup_s
            lost_s += own.weight * own.load * (held_up_s - (costs.drain_s(own) - costs.drain_s(own, layers)) / 2)
        price = queue.delay_s(setup_s, served_s)
        if layers < queue.model.layers_within(gpu.capacity_bytes):
            price *= self.partial_margin
        return Option(price + lost_s, gpu, layers, own, tuple(v.instance for v in victims), wait)

    def _setup_s(self, view: View, queue: Queue, gpu: GpuView, layers: int, own: InstanceView | None) -> float:
        """Seconds until it runs with so many layers, from what is there."""
        model = queue.model
        switch = model.profile(gpu).switch
        fixed_s = switch.start_s + switch.reload_fixed_s
        moved_s = model.load_s(gpu, layers) - fixed_s
        if self.interference:
            moved_s *= 1 + gpu.incoming_count
        if own is None or view.resize == "none":
            return fixed_s + moved_s
        if view.resize == "sleep":
            return moved_s + switch.wake_fixed_s
        return moved_s * (layers - own.layers) / max(1, layers)

    # --- victims

    def _victim(self, view: View, instance: InstanceView) -> Victim:
        load = instance.load
        kept_s = min(costs.save_s(instance) * 2, costs.recompute_s(instance)) if load else 0.0
        away_s = kept_s + costs.return_s(view, instance) if load else 0.0
        return Victim(
            instance,
            instance.gpu_bytes,
            load,
            instance.weight,
            away_s,
            costs.drain_s(instance),
            self._idle_price(view, instance),
        )

    def _now_price(self, victim: Victim, held_s: float) -> float:
        """Of taking its memory now, for so long: those who run pay for saving, reloading and restoring (5.5)."""
        if not victim.load:
            return victim.idle_price
        return self.preempt_margin * victim.weight * victim.load * (victim.away_s + held_s)

    def evictable(self, view: View, instance: InstanceView) -> bool:
        """Nothing that was loaded a moment ago is taken from the GPU again while it runs."""
        held_s = view.now_s - instance.ready_s
        return not instance.resizing and (instance.idle or (instance.ready and held_s > costs.reload_s(instance)))

    def _idle_price(self, view: View, instance: InstanceView) -> float:
        """The reload, as likely as a request comes within the horizon, for all who come while it lasts."""
        back_s, future = costs.return_s(view, instance), self.future(view, instance.model)
        copies = sum(1 for other in instance.model.quietest(2) if other.accepts)
        wanted = (1.0 - exp(-future)) * (1.0 if copies == 1 else COPY_DISCOUNT)
        queued = 1.0 + future * back_s / self.horizon_s
        return self.hysteresis * instance.model.weight * wanted * back_s * queued
