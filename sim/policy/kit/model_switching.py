"""How schedulers that hold a model on a GPU wholly or not at all bring one in: who leaves, who sleeps, who is woken.

It asks for actions and decides nothing: which model, which GPU and who may leave is the policy's. A model that no empty
GPU takes whole comes with the most layers that one takes. Policies import it from sim.policy.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from heapq import heappop, heappush
from math import inf

from sim.policy.interface.actions import Action, Load, Resize, Stop, Wake
from sim.policy.interface.machines import GpuView
from sim.policy.interface.models import InstanceView, ModelView
from sim.policy.interface.view import View

_ALIVE = ("pending", "starting", "loading", "ready", "asleep")


def resident(model: ModelView, gpu: GpuView) -> InstanceView | None:
    """The model's instance on this GPU that takes requests."""
    return next((instance for instance in gpu.instances if instance.model is model and instance.accepts), None)


def holders(view: View, model: ModelView, others: Sequence[GpuView] = ()) -> list[GpuView]:
    """GPUs that could hold the model if they were empty: of a shortlist and `others`; of all if none of these could; of
    those that are down if they are the only ones."""
    looked_at = {gpu.index: gpu for gpu in (*view.shortlist(), *others) if gpu.up}
    found = [gpu for _, gpu in sorted(looked_at.items()) if gpu.layers_when_empty(model) is not None]
    for gpus in (view.gpus, view.down):
        found = found or [gpu for gpu in gpus if gpu.layers_when_empty(model) is not None]
    return found


def fullest_layers(view: View, model: ModelView, gpu: GpuView) -> int | None:
    """All layers; of a model that fits nowhere whole the largest part; None where a larger GPU takes more of it."""
    layers = model.layers_within(gpu.capacity_bytes)
    return layers if layers == model.layers_within(view.largest_gpu.capacity_bytes) else None


def switch_s(model: ModelView, gpu: GpuView) -> float:
    """Seconds to bring the model in, from the tables: a wake where it sleeps, else a load."""
    layers = gpu.layers_when_empty(model) or 0
    load_s = model.load_s(gpu, layers)
    if any(instance.model is model and instance.status == "asleep" for instance in gpu.instances):
        switch = model.profile(gpu).switch
        return load_s - switch.start_s - switch.reload_fixed_s + switch.wake_fixed_s
    return load_s


def leave(view: View, instance: InstanceView) -> Iterator[Action]:
    """Off the GPU, the KV of its sequences saved: asleep where the engine can, else stopped. Nothing if it is going."""
    if instance.status not in _ALIVE or instance.resizing:
        return
    if view.resize == "sleep" and instance.takes_resize(0):
        yield Resize(instance, 0)
    elif instance.status != "asleep":
        yield Stop(instance, "preempt")


def bring(
    view: View, model: ModelView, gpu: GpuView, leaving: Sequence[InstanceView] = (), relieve: bool = True
) -> Generator[Action, None, InstanceView | Load | None]:
    """Get the model onto the GPU; of `leaving`, the first as far as their memory is needed go. With `relieve`, who only
    sleeps or idles on the node goes where host memory is short.

    Returns what requests can be routed to; None: not now, something is still on its way out or host memory is short.
    """
    own = [instance for instance in gpu.instances if instance.model is model]
    found = next((instance for instance in own if instance.accepts), None)
    if found is not None:
        return found
    sleeper = next((instance for instance in own if instance.status == "asleep"), None)
    layers = sleeper.layers if sleeper else gpu.layers_when_empty(model)
    if layers is None or (own and not sleeper):
        return None
    needed = model.gpu_bytes(layers, sleeper.kv_tokens if sleeper else None)
    able = [i for i in leaving if i.status in _ALIVE and i.status != "asleep" and not i.resizing]
    if gpu.available_bytes + sum(instance.gpu_bytes for instance in able) < needed:
        return None
    for instance in able:
        if gpu.available_bytes >= needed:
            break
        yield from leave(view, instance)
    if relieve and not _takes(model, gpu, layers, sleeper):
        yield from _relieve_host(model, gpu, layers, sleeper)
    if not _takes(model, gpu, layers, sleeper):
        return None
    if sleeper is not None:
        yield Resize(sleeper, layers)
        return sleeper
    load = Load(model, gpu, layers)
    yield load
    return load


def _takes(model: ModelView, gpu: GpuView, layers: int, sleeper: InstanceView | None) -> bool:
    return gpu.takes(model, layers) if sleeper is None else sleeper.takes_resize(layers)


def _relieve_host(model: ModelView, gpu: GpuView, layers: int, sleeper: InstanceView | None) -> Iterator[Action]:
    """Host memory is short: end the sleepers of the node, last used first to go; then one idle instance, whose room
    comes later."""
    others = [i for other in gpu.node.gpus for i in other.instances if i.model is not model]
    others.sort(key=lambda instance: (instance.last_used_s, instance.number))
    for instance in others:
        if instance.status == "asleep" and not instance.resizing:
            yield Stop(instance)
            if _takes(model, gpu, layers, sleeper):
                return
    idle = next((instance for instance in others if instance.idle and not instance.resizing), None)
    if idle is not None:
        yield Stop(idle)


class Alarms:
    """The wakes of a policy, one a GPU: it decides again there at this time even if nothing happens until then."""

    def __init__(self) -> None:
        self._due_s: dict[GpuView, float] = {}
        self._heap: list[tuple[float, int, GpuView]] = []

    def set(self, view: View, gpu: GpuView, at_s: float) -> Iterator[Action]:
        """Not later than this. A wake that was to come earlier stays."""
        if view.now_s < at_s < self._due_s.get(gpu, inf):
            self._due_s[gpu] = at_s
            heappush(self._heap, (at_s, gpu.index, gpu))
            yield Wake(at_s)

    def rung(self, view: View) -> list[GpuView]:
        """The GPUs whose time has come."""
        found = []
        while self._heap and self._heap[0][0] <= view.now_s:
            at_s, _, gpu = heappop(self._heap)
            if self._due_s.get(gpu) == at_s:
                del self._due_s[gpu]
                found.append(gpu)
        return found
