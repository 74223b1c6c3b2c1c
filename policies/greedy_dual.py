"""GreedyDual: the GPU as a cache of models with sizes and costs; what is worth least for its size makes room.

Source: Young, "On-line file caching" (SODA 1998, Landlord); Cao and Irani, "Cost-aware WWW proxy caching algorithms"
(USITS 1997, GreedyDual-Size); Fuerst and Sharma, "FaasCache" (ASPLOS 2021, with frequency); policies.md P12. On every
use H = clock + frequency x reload seconds / GB; a miss evicts idle models by the least H until the new one fits, and
the clock rises to the H of the last victim. Landlord that gives full credit on a hit is `greedy-dual-size`. As in
FaasCache a model that is busy up to its batch limit misses too: a further copy is loaded where there is room, and the
frequency of a model whose last copy goes begins anew.

Each GPU is a cache with its own clock; a miss goes to the GPU where the victims have the least credit (H - clock) x GB
left and decoding is fastest. A model that fits nowhere whole is loaded with the largest part that a GPU holds.
`granularity: layer` (not published; policies.md) caches blocks of layers, each worth the token time that it saves for
the tokens of a use. With an elastic engine idle victims shed only as many layers as are needed, and a model that is
used again grows back. Other engines shed nothing without a restart, so there the newcomer gets fewer layers where the
token time lost is worth less than the credit of further victims; it keeps them until it is evicted. Left out:
FaasCache's server provisioning. Queues are not looked at: running work is never stopped, and who misses waits for it.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from sim import policy
from sim.policy import Action, Field, GpuView, InstanceView, ModelView, Policy, PolicyParameters, View

GB = 1e9


@dataclass(frozen=True)
class LoadPlace:
    """Where a model could be loaded: with so many layers, once these victims keep no more than so many of theirs."""

    price: float
    gpu: GpuView
    layers: int
    victims: tuple[tuple[InstanceView, int], ...]


class GreedyDual(Policy):
    """Evict the idle model, or the layers, with the least clock + frequency x cost / size."""

    tier: ClassVar[str] = "research"
    follows_every_finish = False

    class Parameters(PolicyParameters):
        rule: Literal["faascache", "greedy-dual-size"] = Field(
            "faascache", description="faascache multiplies cost by the uses of a model while it is loaded; else 1"
        )
        granularity: Literal["model", "layer"] = Field("model", description="what is evicted: whole models or layers")
        keep_alive: policy.KeepAliveChoice = Field(
            "never", description="unload an idle model: never, after so many seconds, histogram or ski-rental"
        )
        histogram_bin_s: float = Field(60.0, gt=0, description="width of the bins of keep_alive: histogram")

    def __init__(self, parameters: Parameters | None = None) -> None:
        super().__init__(parameters)
        self.by_layer = self.parameters.granularity == "layer"
        self.timers = policy.KeepAlive(self.parameters.keep_alive, self.parameters.histogram_bin_s)
        self.clock: dict[GpuView, float] = {}
        self.value: dict[InstanceView, float] = {}  # H
        self.uses: dict[ModelView, int] = {}  # while it is loaded
        self._stuck: dict[ModelView, bool] = {}  # without a place, until something falls idle or is freed

    def decide(self, view: View) -> Iterator[Action]:
        self.timers.observe(view)
        if view.freed or view.idled or view.loaded:
            self._stuck.clear()
        for model in policy.longest_waiting_first(view.waiting_models):
            yield from self._serve(view, model)
        for gpu in view.freed:
            for instance in gpu.instances:
                yield from self._grow(view, instance)
        for instance in self.timers.expired(view):
            yield from self._evict(instance, 0)
        for model in self.timers.to_warm(view):
            place = self._best_place(view, model, evict=False)
            if place is not None:
                yield policy.Load(model, place.gpu, place.layers)
        yield from self.timers.wakes(view)

    def _serve(self, view: View, model: ModelView) -> Iterator[Action]:
        while (request := model.oldest) is not None:
            target = model.least_loaded
            if target is None or target.load >= target.max_sequences:
                target = (yield from self._miss(view, model)) or target
            if target is None:
                return
            yield policy.Route(request, target)
            self.uses[model] = self.uses.get(model, 0) + 1
            self.value[target] = self.clock.get(target.gpu, 0.0) + self._worth(target.model, target.gpu, target.layers)
            yield from self._regrow(view, target)

    # --- H

    def _frequency(self, model: ModelView) -> int:
        return max(1, self.uses.get(model, 0)) if self.parameters.rule == "faascache" else 1

    def _worth(self, model: ModelView, gpu: GpuView, layers: int) -> float:
        """frequency x cost / size, in seconds per GB."""
        cost_s, size = model.load_s(gpu, layers), model.gpu_bytes(layers)
        profile = model.profile(gpu)
        if self.by_layer and layers > profile.fewest_layers:
            saved_s = profile.step_s(layers - 1) - profile.step_s(layers)
            cost_s, size = saved_s * model.expected_output_tokens, size - model.gpu_bytes(layers - 1)
        return self._frequency(model) * cost_s * GB / max(1, size)

    # --- a miss

    def _miss(self, view: View, model: ModelView) -> Generator[Action, None, InstanceView | None]:
        """Make room by rising H, then load. None: there is no room yet."""
        if model in self._stuck:
            return None
        place = self._best_place(view, model, evict=True)
        if place is not None:
            for victim, keep in place.victims:
                self.clock[place.gpu] = max(self.clock.get(place.gpu, 0.0), self.value.get(victim, 0.0))
                yield from self._evict(victim, keep)
            if place.gpu.takes(model, place.layers):  # layers that were shed may have taken the host memory
                yield policy.Load(model, place.gpu, place.layers)
                return model.instances[-1]
        self._stuck[model] = True
        if place is None and not model.instances and (relief := policy.costs.host_relief(view, model)):
            yield from self._evict(relief, 0)
        return None

    def _best_place(self, view: View, model: ModelView, evict: bool) -> LoadPlace | None:
        places: list[LoadPlace] = []
        for gpu in view.shortlist():
            if model not in gpu.models:
                places += self._places(view, model, gpu, evict)
        return min(places, key=lambda place: (place.price, -place.gpu.available_bytes, place.gpu.index), default=None)

    def _places(self, view: View, model: ModelView, gpu: GpuView, evict: bool) -> Iterator[LoadPlace]:
        """Loads with growing sets of victims, by rising H."""
        most = model.layers_within(gpu.capacity_bytes)
        if most < model.layers <= model.layers_within(view.largest_gpu.capacity_bytes):
            return  # it belongs where it fits whole
        needed, tokens = model.gpu_bytes(most), self._frequency(model) * model.expected_output_tokens
        idle = [instance for instance in gpu.instances if instance.idle and not instance.resizing] if evict else []
        idle.sort(key=lambda instance: (self.value.get(instance, 0.0), instance.number))
        sheds = self.by_layer and view.resize == "elastic"
        victims: list[tuple[InstanceView, int]] = []
        freed, lost_s = 0, 0.0
        for number in range(len(idle) + 1):
            room = gpu.available_bytes + freed
            layers = model.layers_within(room) if self.by_layer and not sheds else most
            if layers >= (1 if most else 0) and gpu.takes(model, layers, freed_bytes=freed):
                price = lost_s + tokens * model.profile(gpu).step_s(layers)
                yield LoadPlace(price, gpu, layers, tuple(victims))
            if needed <= room or number == len(idle):
                return
            victim = idle[number]
            keep = _keep(victim, needed - room) if sheds else 0
            size = victim.gpu_bytes - (victim.model.gpu_bytes(keep, victim.kv_tokens) if keep else 0)
            victims.append((victim, keep))
            freed += size
            lost_s += max(0.0, self.value.get(victim, 0.0) - self.clock.get(gpu, 0.0)) * size / GB

    def _evict(self, victim: InstanceView, keep: int) -> Iterator[Action]:
        if keep:
            yield policy.Resize(victim, keep)
            return
        self.value.pop(victim, None)
        if victim.model.instance_count == 1:
            self.uses.pop(victim.model, None)
        yield policy.Stop(victim)

    # --- layers that come back (granularity: layer, elastic engines)

    def _regrow(self, view: View, instance: InstanceView) -> Iterator[Action]:
        """A hit on a model that is there in part is a miss of its other blocks: idle neighbours shed theirs."""
        if not self._partial(view, instance):
            return
        gpu, model = instance.gpu, instance.model
        whole = model.gpu_bytes(model.layers_within(gpu.capacity_bytes), instance.kv_tokens)
        lacking = whole - instance.gpu_bytes - gpu.available_bytes
        idle = [i for i in gpu.instances if i.idle and not i.resizing and i is not instance]
        for victim in sorted(idle, key=lambda other: (self.value.get(other, 0.0), other.number)):
            if lacking > 0 and self.value.get(victim, 0.0) <= self.value[instance]:
                self.clock[gpu] = max(self.clock.get(gpu, 0.0), self.value.get(victim, 0.0))
                lacking -= victim.gpu_bytes
                yield from self._evict(victim, _keep(victim, lacking + victim.gpu_bytes))
        yield from self._grow(view, instance)

    def _grow(self, view: View, instance: InstanceView) -> Iterator[Action]:
        if instance.load and self._partial(view, instance):
            layers = instance.model.layers_within(instance.gpu_bytes + instance.gpu.growth_bytes, instance.kv_tokens)
            if layers > instance.layers and instance.takes_resize(layers):
                yield policy.Resize(instance, layers)

    def _partial(self, view: View, instance: InstanceView) -> bool:
        elastic = self.by_layer and view.resize == "elastic"
        return elastic and instance.ready and not instance.resizing and instance.layers < instance.model.layers


def _keep(victim: InstanceView, lacking: float) -> int:
    """The most layers that a victim may keep if it is to give so many bytes; 0: all of it must go."""
    keep = victim.model.layers_within(victim.gpu_bytes - lacking, victim.kv_tokens)
    return keep if 0 < keep < victim.layers and victim.takes_resize(keep) else 0
