"""Small rules that several policies evict and queue by: who waits longest, who was used longest ago.

Pure questions to views; nothing here acts. Policies import it from sim.policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sim.policy.interface.machines import GpuView
from sim.policy.interface.models import InstanceView, ModelView
from sim.policy.interface.view import View

Stays = Callable[[InstanceView], bool]
LruPlace = tuple[GpuView, int, list[InstanceView]]


def longest_waiting_first(models: Iterable[ModelView]) -> list[ModelView]:
    """Models with requests that wait to be routed, in the order of the oldest of these."""
    return sorted(models, key=lambda model: model.oldest.number if model.oldest else 0)


def least_recent_first(instances: Iterable[InstanceView]) -> list[InstanceView]:
    """In the order in which they were last used."""
    return sorted(instances, key=lambda instance: (instance.last_used_s, instance.number))


def lru_victims(gpu: GpuView, needed_bytes: int, stays: Stays | None = None) -> list[InstanceView] | None:
    """The idle instances to evict, least recently used first, until so many bytes are available; never one that `stays`
    or is being resized. None when that does not make enough room."""
    room, victims = gpu.available_bytes, []
    for instance in least_recent_first(i for i in gpu.instances if i.idle and not i.resizing):
        if room >= needed_bytes:
            break
        if stays is None or not stays(instance):
            victims.append(instance)
            room += instance.gpu_bytes
    return victims if room >= needed_bytes else None


def lru_place(view: View, model: ModelView, stays: Stays | None = None) -> LruPlace | None:
    """Where to load the model, with how many layers, in place of whom: on the GPU that takes the most of its layers,
    then the one whose victims were used longest ago; none at all is best. None: it has to wait."""
    places = []
    for gpu in view.shortlist():
        layers = model.layers_within(gpu.capacity_bytes)
        victims = lru_victims(gpu, model.gpu_bytes(layers), stays)
        if victims is not None and gpu.takes(model, layers, freed_bytes=sum([v.gpu_bytes for v in victims])):
            places.append((gpu, layers, victims))
    return min(places, key=lambda place: (-place[1], place[2][-1].last_used_s if place[2] else -1.0), default=None)
