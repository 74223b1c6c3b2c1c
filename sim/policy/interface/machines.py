"""What a policy may know of the machines: read-only facades of GPUs and nodes. models.py has the rest and makes them
all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sim.core.state.facade import Facade
from sim.core.state.machines import Gpu, Node
from sim.core.state.memory_fit import host_missing, need, why_not_layers

if TYPE_CHECKING:
    from sim.policy.interface.models import InstanceView, ModelView, Views


class Crowd(NamedTuple):
    """What others ask for of a GPU and of its node's CPU: shares of one; or, where each is served as if it asked for
    all (contention: time_slice), their numbers."""

    gpu: float
    host: float
    law: str  # of contention

    def stretch(self, gpu_share: float, host_share: float) -> tuple[float, float]:
        """By how much one that asks for these shares is slowed in its GPU and CPU parts, beside them."""
        if self.law == "proportional":
            return max(1.0, gpu_share + self.gpu), max(1.0, host_share + self.host)
        return 1.0 + self.gpu, 1.0 + self.host

    def joined(self, gpu_share: float, host_share: float) -> Crowd:
        """The crowd with one more."""
        if self.law == "time_slice":
            gpu_share, host_share = float(gpu_share > 0), float(host_share > 0)
        return Crowd(self.gpu + gpu_share, self.host + host_share, self.law)


class GpuView(Facade):
    """A GPU: memory, and who is on it."""

    __slots__ = ()
    _of: Gpu
    _views: Views

    def __repr__(self) -> str:
        return self._of.name

    @property
    def index(self) -> int:
        return self._of.index

    @property
    def name(self) -> str:
        return self._of.name

    @property
    def kind(self) -> str:
        return self._of.kind.gpu

    @property
    def node(self) -> NodeView:
        return self._views.node(self._of.node)

    @property
    def capacity_bytes(self) -> int:
        """Usable memory: the GPU's less the reserve."""
        return self._of.capacity_bytes

    @property
    def up(self) -> bool:
        """Not while a fault keeps it down: then nothing is on it, and nothing can be loaded."""
        return not self._of.down

    @property
    def free_bytes(self) -> int:
        return 0 if self._of.down else self._of.capacity_bytes - self._of.used_bytes

    @property
    def available_bytes(self) -> int:
        """What a Load may ask for now: free and being freed, less what other loads wait for."""
        return self._of.available_bytes

    @property
    def h2d_bytes_per_s(self) -> float:
        """Its link from host memory, as fast as it is now."""
        return self._of.kind.h2d_bytes_per_s * self._of.h2d_factor

    @property
    def d2h_bytes_per_s(self) -> float:
        """Its link to host memory, as fast as it is now."""
        return self._of.kind.d2h_bytes_per_s * self._of.d2h_factor

    @property
    def growth_bytes(self) -> int:
        """What an elastic resize may take now: memory that is free already and that no load waits for."""
        return self._of.growth_bytes

    def lacks_host_bytes(self, model: ModelView, layers: int) -> int:
        """What its node's host memory lacks for such a load with the model's default KV pool; 0 when it has enough."""
        needed = need(model._of, model._of.residency(layers), model.default_kv_tokens, self._views.options)
        return max(0, host_missing(model._of, self._of.node, needed.host_weights, needed.host_kv))

    def takes(self, model: ModelView, layers: int, kv_tokens: int | None = None, freed_bytes: int = 0) -> bool:
        """Would a Load be legal now (or once `freed_bytes` more are available), in GPU and host memory?"""
        needed = need(model._of, model._of.residency(layers), kv_tokens or model.default_kv_tokens, self._views.options)
        if self._of.down:
            return False
        if needed.gpu > self._of.available_bytes + freed_bytes or why_not_layers(model._of, self._of, layers):
            return False
        return host_missing(model._of, self._of.node, needed.host_weights, needed.host_kv) <= 0

    def layers_when_empty(self, model: ModelView) -> int | None:
        """The most layers of the model that this GPU and its host could ever hold, with nothing else there, and its
        default KV pool; None: it cannot be loaded here."""
        memory, fewest = self._of.node.memory, model.profile(self).fewest_layers
        for layers in range(model.layers_within(self._of.capacity_bytes), fewest - 1, -1):
            needed = need(model._of, model._of.residency(layers), model.default_kv_tokens, self._views.options)
            if needed.host_weights + needed.host_kv <= memory.capacity and needed.host_weights <= memory.cache_limit:
                return layers
        return None

    @property
    def instances(self) -> list[InstanceView]:
        return [self._views.instance(instance) for instance in self._of.instances.values()]

    @property
    def models(self) -> list[ModelView]:
        """The models of its instances, each as often as it has one here."""
        return [self._views.model(instance.model) for instance in self._of.instances.values()]

    @property
    def running(self) -> list[InstanceView]:
        """The instances that compute on it now."""
        return [self._views.instance(instance) for instance in self._of.active.values()]

    def crowd(self, *but: InstanceView) -> Crowd:
        """How much of this GPU and of its node's CPU the running instances (but some) ask for."""
        spared = [instance._of for instance in but]
        gpu_shares = [i.gpu_share for i in self._of.active.values() if i not in spared and i.gpu_share]
        host_shares = [i.host_share for i in self._of.node.active.values() if i not in spared]
        law = self._views.contention
        if law == "time_slice":
            return Crowd(float(len(gpu_shares)), float(len(host_shares)), law)
        return Crowd(sum(gpu_shares, 0.0), sum(host_shares, 0.0), law)

    @property
    def incoming_count(self) -> int:
        """Transfers to it that are under way."""
        return len(self._of.link_rates)

    @property
    def neighbours(self) -> list[InstanceView]:
        """The instances that compute on it, or on its node's CPU, now."""
        found = {**self._of.active, **self._of.node.active}
        return [self._views.instance(found[number]) for number in sorted(found)]

    @property
    def loading(self) -> bool:
        """Is a load under way or waiting for memory?"""
        return bool(self._of.loads or self._of.pending)


class NodeView(Facade):
    """A host and its GPUs that are up."""

    __slots__ = ()
    _of: Node
    _views: Views

    def __repr__(self) -> str:
        return self._of.name

    @property
    def name(self) -> str:
        return self._of.name

    @property
    def gpus(self) -> list[GpuView]:
        return [self._views.gpu(gpu) for gpu in self._of.gpus if not gpu.down]

    @property
    def cpu_bytes_per_s(self) -> float:
        """The memory bandwidth that all layers computed there share, and that loads from there use too."""
        return self._of.kind.cpu_bytes_per_s

    @property
    def disk_bytes_per_s(self) -> float:
        return self._of.kind.disk_bytes_per_s

    @property
    def host_available_bytes(self) -> int:
        """Host memory that is free or holds weights that may be evicted."""
        return self._of.memory.available

    def has_weights(self, model: ModelView) -> bool:
        """Are the model's weights in host memory?"""
        weights = model._of.weights
        return weights.key in self._of.memory.cached
