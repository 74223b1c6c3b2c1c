"""One decision's view of everything: the way into the facades of models.py, and what changed since the last decision.

Valid until `decide` returns; asking an old one is a PolicyError, so that a policy cannot live on what is no longer
true.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import merge

from sim.common.errors import PolicyError
from sim.core.state.request import Request
from sim.core.world import Changes, World
from sim.policy.interface.machines import GpuView, NodeView
from sim.policy.interface.models import InstanceView, ModelView, Views
from sim.policy.interface.requests import RequestView

LOOKED_AT = 24  # GPUs for one load, where there are more; smaller clusters are seen whole


class View:
    """One decision's view of everything. Valid until `decide` returns."""

    __slots__ = ("_changes", "_valid", "_views", "_world")

    def __init__(self, world: World, views: Views, changes: Changes) -> None:
        self._world = world
        self._views = views
        self._changes = changes
        self._valid = True

    def expire(self) -> None:
        """The decision is over."""
        self._valid = False

    def _check(self) -> Views:
        if not self._valid:
            raise PolicyError("a view is valid for one decision only; do not keep it, ask the one passed to decide")
        return self._views

    @property
    def now_s(self) -> float:
        self._check()
        return self._world.clock.now_s

    @property
    def resize(self) -> str:
        """The engine's capability: none, sleep or elastic."""
        return self._world.options.resize

    @property
    def contention(self) -> str:
        """How instances that compute on one GPU share it: proportional, processor_sharing or time_slice."""
        return self._world.sharing.contention

    @property
    def max_sequences(self) -> int:
        """The most sequences in one instance's batch."""
        return self._world.options.max_sequences

    @property
    def service_classes(self) -> list[str]:
        """The names of all service classes."""
        return [service_class.name for service_class in self._world.cluster.service_classes]

    @property
    def models(self) -> list[ModelView]:
        views = self._check()
        return [views.model(model) for model in self._world.cluster.models]

    @property
    def gpus(self) -> list[GpuView]:
        """Those that are up. There is always one: while there is none, no policy is asked."""
        views = self._check()
        return [views.gpu(gpu) for gpu in self._world.cluster.up]

    def shortlist(self, count: int = LOOKED_AT) -> list[GpuView]:
        """All GPUs that are up when there are at most `count`; else about so many that a load might go to: of every
        kind the roomiest, the quietest, and those of the instances that have been idle for longest. In order of index.
        """
        views = self._check()
        return [views.gpu(gpu) for gpu in self._world.cluster.shortlist(count)]

    @property
    def largest_gpu(self) -> GpuView:
        """The first of those that are up with the most memory."""
        views, cluster = self._check(), self._world.cluster
        largest = cluster.largest_gpu
        return views.gpu(max(cluster.up, key=lambda gpu: gpu.capacity_bytes) if largest.down else largest)

    @property
    def nodes(self) -> list[NodeView]:
        """Those with a GPU that is up."""
        views, cluster = self._check(), self._world.cluster
        return [views.node(node) for node in cluster.nodes if not cluster.down or node.up]

    @property
    def down(self) -> list[GpuView]:
        """GPUs that a fault keeps down, the first to fail first."""
        views = self._check()
        return [views.gpu(gpu) for gpu in self._world.cluster.down.values()]

    @property
    def failed(self) -> list[GpuView]:
        """GPUs that went down since the last decision. Their requests are among `requeued`."""
        views = self._check()
        return [views.gpu(gpu) for gpu in self._changes.failed]

    @property
    def repaired(self) -> list[GpuView]:
        """GPUs that came up again since the last decision, empty; they are among `freed`, too."""
        views = self._check()
        return [views.gpu(gpu) for gpu in self._changes.repaired]

    @property
    def lost(self) -> list[InstanceView]:
        """Instances that ended since the last decision although nobody stopped them: their GPU or their load failed."""
        views = self._check()
        return [views.instance(instance) for instance in self._changes.lost]

    @property
    def instances(self) -> list[InstanceView]:
        """In order of their loads."""
        views = self._check()
        return [views.instance(instance) for instance in self._world.cluster.instances.values()]

    @property
    def waiting_models(self) -> list[ModelView]:
        """Models with requests that are not routed."""
        views = self._check()
        return [views.model(model) for model in self._world.cluster.waiting_models.values()]

    @property
    def waiting(self) -> list[RequestView]:
        """Every request that is not routed, in order of arrival."""
        views = self._check()
        queues = [model.queue().values() for model in self._world.cluster.waiting_models.values()]
        return [views.request(request) for request in merge(*queues, key=lambda request: request.index)]

    @property
    def oldest(self) -> RequestView | None:
        """The first of all that are not routed, without looking at the others."""
        oldest = [model.oldest for model in self.waiting_models]
        return min((request for request in oldest if request), key=lambda request: request.number, default=None)

    @property
    def arrived(self) -> list[RequestView]:
        """New requests since the last decision."""
        return self._requests(self._changes.arrived)

    @property
    def requeued(self) -> list[RequestView]:
        """Requests that came back to the cluster's queue since the last decision."""
        return self._requests(self._changes.requeued)

    @property
    def finished(self) -> list[RequestView]:
        """Requests that ended since the last decision."""
        return self._requests(self._changes.finished)

    def _requests(self, requests: Iterable[Request]) -> list[RequestView]:
        views = self._check()
        return [views.request(request) for request in requests]

    @property
    def loaded(self) -> list[InstanceView]:
        """Instances that became ready, or got their new layers, since the last decision."""
        views = self._check()
        return [views.instance(instance) for instance in self._changes.loaded]

    @property
    def idled(self) -> list[InstanceView]:
        """Instances whose last request finished since the last decision."""
        views = self._check()
        return [views.instance(instance) for instance in self._changes.idled]

    @property
    def freed(self) -> list[GpuView]:
        """GPUs that got memory back since the last decision."""
        views = self._check()
        return [views.gpu(gpu) for gpu in self._changes.freed if not gpu.down]
