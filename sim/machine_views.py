"""What a policy may know of the machines: read-only facades of GPUs and nodes. views.py has the rest and makes them
all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.cluster import Gpu, Node
from sim.facade import Facade
from sim.room import growth_room, host_missing, need, why_not_layers

if TYPE_CHECKING:
    from sim.views import InstanceView, ModelView


class GpuView(Facade):
    """A GPU: memory, and who is on it."""

    __slots__ = ()
    _of: Gpu

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
    def free_bytes(self) -> int:
        return self._of.capacity_bytes - self._of.used_bytes

    @property
    def available_bytes(self) -> int:
        """What a Load may ask for now: free and being freed, less what other loads wait for."""
        return self._of.available_bytes

    @property
    def h2d_bytes_per_s(self) -> float:
        """Its link from host memory."""
        return self._of.kind.h2d_bytes_per_s

    @property
    def d2h_bytes_per_s(self) -> float:
        """Its link to host memory."""
        return self._of.kind.d2h_bytes_per_s

    @property
    def growth_bytes(self) -> int:
        """What an elastic resize may take now: memory that is free already and that no load waits for."""
        return growth_room(self._of)

    def lacks_host_bytes(self, model: ModelView, layers: int) -> int:
        """What its node's host memory lacks for such a load with the model's default KV pool; 0 when it has enough."""
        needed = need(model._of, layers, model.default_kv_tokens, self._views.options)
        return max(0, host_missing(model._of, self._of, needed.host_weights, needed.host_kv))

    def takes(self, model: ModelView, layers: int, kv_tokens: int | None = None, freed_bytes: int = 0) -> bool:
        """Would a Load be legal now (or once `freed_bytes` more are available), in GPU and host memory?"""
        needed = need(model._of, layers, kv_tokens or model.default_kv_tokens, self._views.options)
        if needed.gpu > self._of.available_bytes + freed_bytes or why_not_layers(model._of, self._of, layers):
            return False
        return host_missing(model._of, self._of, needed.host_weights, needed.host_kv) <= 0

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

    def crowd(self, but: InstanceView | None = None) -> tuple[float, float]:
        """How much of this GPU and of its node's CPU the running instances (but one) ask for, as shares of one each."""
        spared = None if but is None else but._of
        gpu_share = sum([i.gpu_share for i in self._of.active.values() if i is not spared], 0.0)
        return gpu_share, sum([i.host_share for i in self._of.node.active.values() if i is not spared], 0.0)

    @property
    def loading(self) -> bool:
        """Is a load under way or waiting for memory?"""
        return bool(self._of.loads or self._of.pending)


class NodeView(Facade):
    """A host and its GPUs."""

    __slots__ = ()
    _of: Node

    def __repr__(self) -> str:
        return self._of.name

    @property
    def name(self) -> str:
        return self._of.name

    @property
    def gpus(self) -> list[GpuView]:
        return [self._views.gpu(gpu) for gpu in self._of.gpus]

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
