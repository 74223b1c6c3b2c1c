"""What a policy may know: live, read-only facades of the state, and what changed since its last decision.

The true output length and future arrivals are not here, and no attribute can be set. Views of models, GPUs, instances
and requests stay the same objects for a whole run, so that a policy may keep them as keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from sim.core.state.facade import Facade
from sim.core.state.instance import ASLEEP, LOADING, PENDING, READY, STARTING, STATUSES, Instance, Model
from sim.core.state.machines import Cluster, Gpu, Node
from sim.core.state.memory_fit import need, why_not_resize
from sim.core.state.request import Request
from sim.core.world import World
from sim.policy.interface.estimates import Estimates
from sim.policy.interface.machines import GpuView, NodeView
from sim.policy.interface.requests import RequestView
from sim.profiles.profile import Profile


class ModelView(Facade):
    """A model: what it weighs, who waits for it, where it is loaded."""

    __slots__ = ()
    _of: Model
    _views: Views

    def __repr__(self) -> str:
        return f"model {self._of.name}"

    @property
    def name(self) -> str:
        return self._of.name

    @property
    def layers(self) -> int:
        """All its layers: full residency."""
        return self._of.weights.layers

    @property
    def total_bytes(self) -> int:
        return self._of.weights.total_bytes

    @property
    def layer_bytes(self) -> int:
        return self._of.weights.layer_bytes

    @property
    def kv_layer_bytes(self) -> int:
        """KV bytes of one token in one layer."""
        return self._of.weights.kv_bytes_per_token_layer

    @property
    def max_context(self) -> int:
        return self._of.max_context

    @property
    def weight(self) -> float:
        return self._of.spec.weight

    @property
    def default_kv_tokens(self) -> int:
        """The KV pool that a Load without kv_tokens gets."""
        return self._of.spec.kv_tokens or self._of.max_context

    def gpu_bytes(self, layers: int, kv_tokens: int | None = None) -> int:
        """What an instance with so many layers and such a KV pool takes on a GPU."""
        return need(self._of, self._of.residency(layers), kv_tokens or self.default_kv_tokens, self._views.options).gpu

    def layers_within(self, gpu_bytes: float, kv_tokens: int | None = None) -> int:
        """The most layers, with their KV pool, that fit into so many bytes of GPU memory."""
        if self.gpu_bytes(self.layers, kv_tokens) <= gpu_bytes:
            return self.layers
        per_layer = self.gpu_bytes(1, kv_tokens) if self.layers > 1 else self.layer_bytes
        return max(0, min(self.layers - 1, int(gpu_bytes // per_layer)))

    @property
    def waiting(self) -> list[RequestView]:
        """Requests that are not routed, in order of arrival."""
        return [self._views.request(request) for request in self._of.queue().values()]

    def first_waiting(self, count: int) -> list[RequestView]:
        """The first so many of the waiting, without looking at the others."""
        return [self._views.request(request) for request in islice(self._of.queue().values(), count)]

    @property
    def oldest(self) -> RequestView | None:
        """The first of the waiting, without looking at the others."""
        return next((self._views.request(request) for request in self._of.queue().values()), None)

    @property
    def waiting_count(self) -> int:
        return len(self._of.waiting)

    @property
    def instances(self) -> list[InstanceView]:
        """In order of their loads."""
        return [self._views.instance(instance) for instance in self._of.instances.values()]

    @property
    def instance_count(self) -> int:
        return len(self._of.instances)

    def quietest(self, count: int) -> list[InstanceView]:
        """All its instances when there are at most `count`; else those that take requests and have the fewest, the
        fewest first."""
        if len(self._of.instances) <= count:
            return self.instances
        return [self._views.instance(instance) for instance in self._of.ranking.first(count)]

    @property
    def least_loaded(self) -> InstanceView | None:
        """Of the instances that take requests the one with the fewest, then the most layers, then the oldest."""
        instance = self._of.ranking.least()
        return None if instance is None else self._views.instance(instance)

    @property
    def loading(self) -> bool:
        """Is one of its instances not ready yet?"""
        return bool(self._of.loading)

    @property
    def expected_output_tokens(self) -> float:
        """Mean output of its finished requests; the predictor's prior before the first."""
        return self._views.estimates.model_tokens(self._of.index)

    def profile(self, gpu: GpuView) -> Profile:
        """Its tables on that kind of GPU: step_s, prefill_s, load_s and switch costs."""
        return self._of.profiles[gpu._of.kinds]

    def load_s(self, gpu: GpuView, layers: int) -> float:
        """Seconds to load on an idle link, engine start included, with weights where they are now."""
        profile, node = self.profile(gpu), gpu._of.node
        rate = gpu.h2d_bytes_per_s
        if not gpu.node.has_weights(self):
            rate = min(rate, node.kind.disk_bytes_per_s)
        return profile.load_s(layers, rate)


class InstanceView(Facade):
    """A loaded (or loading) model on a GPU, and its batch."""

    __slots__ = ()
    _of: Instance
    _views: Views

    def __repr__(self) -> str:
        return f"instance {self._of.number} ({self._of.model.name} on {self._of.placement.name})"

    @property
    def number(self) -> int:
        return self._of.number

    @property
    def model(self) -> ModelView:
        return self._views.model(self._of.model)

    @property
    def gpu(self) -> GpuView:
        """Where it is; of several GPUs the first."""
        return self._views.gpu(self._of.placement.first)

    @property
    def gpus(self) -> list[GpuView]:
        """All GPUs of one node that it is on; today always one."""
        return [self._views.gpu(gpu) for gpu in self._of.placement.gpus]

    @property
    def layers(self) -> int:
        return self._of.residency.layers

    @property
    def residency(self) -> float:
        return self._of.residency.share

    @property
    def gpu_bytes(self) -> int:
        """What it takes on the GPU; nothing while asleep."""
        return 0 if self._of.status == ASLEEP else self._of.gpu_bytes

    @property
    def status(self) -> str:
        """pending, starting, loading, ready, draining, stopping, freeing, asleep or gone."""
        return STATUSES[self._of.status]

    @property
    def ready(self) -> bool:
        return self._of.status == READY

    @property
    def accepts(self) -> bool:
        """May requests be routed here, now or for when it is loaded?"""
        return self._of.accepts

    @property
    def loading(self) -> bool:
        return self._of.status in (PENDING, STARTING, LOADING)

    @property
    def resizing(self) -> bool:
        return self._of.resizing is not None or self._of.stop_mode in ("restart", "sleep")

    def takes_resize(self, layers: int) -> bool:
        """Would a Resize to so many layers be legal now?"""
        return not why_not_resize(self._of, layers, self._views.options)

    @property
    def idle(self) -> bool:
        """Ready, and nobody runs or waits here."""
        return self._of.idle

    @property
    def running_count(self) -> int:
        """Sequences in the batch."""
        return self._of.sequences

    @property
    def waiting_count(self) -> int:
        return len(self._of.waiting)

    @property
    def shares(self) -> tuple[float, float]:
        """How much of its GPU and of its node's CPU its present iterations ask for, 0 to 1; nothing while it rests."""
        return self._of.gpu_share, self._of.host_share

    @property
    def alone(self) -> bool:
        """Does nobody else compute on its GPU now?"""
        for gpu in self._of.placement.gpus:
            if gpu.active and (len(gpu.active) > 1 or self._of.number not in gpu.active):
                return False
        return True

    @property
    def load(self) -> int:
        """Requests that run or wait here."""
        return self._of.load

    def longest_left_tokens(self, count: int) -> float:
        """The most tokens that one of the first `count` of its batch is expected to get yet; 0 when nobody runs."""
        of, estimates = self._of, self._views.estimates
        ahead = of.ahead(self._views.clock.now_s)
        most = 0.0
        for request in islice(of.decoding.values(), count):
            most = max(most, estimates.remaining_tokens(request, of.tokens_of(request) + ahead))
        for request in of.prefilling[:count]:
            most = max(most, estimates.remaining_tokens(request, request.produced))
        return most

    @property
    def weight(self) -> float:
        """The weight of the first in its batch: class times model; the model's when nobody runs."""
        of = self._of
        first = next(iter(of.decoding.values()), None) or (of.prefilling[0] if of.prefilling else None)
        return of.model.spec.weight if first is None else self._views.request(first).weight

    @property
    def max_sequences(self) -> int:
        """The most sequences in its batch."""
        return self._of.max_sequences

    @property
    def running(self) -> list[RequestView]:
        """Those in its batch that compute their prompt or decode."""
        of = self._of
        return [self._views.request(request) for request in [*of.prefilling, *of.decoding.values()]]

    @property
    def waiting(self) -> list[RequestView]:
        """Those routed here that are not in its batch yet, in the order in which they enter."""
        return [self._views.request(request) for request in self._of.waiting.in_order()]

    @property
    def requests(self) -> Iterator[RequestView]:
        """Everyone routed here, as they are now: the waiting in order, then the running."""
        return iter([self._views.request(request) for request in self._of.requests()])

    @property
    def kv_tokens(self) -> int:
        """The size of its KV pool."""
        return self._of.blocks.total * self._of.blocks.tokens

    @property
    def free_kv_tokens(self) -> int:
        instance = self._of
        used_blocks = instance.blocks_after(instance.ahead(self._views.clock.now_s))
        return (instance.blocks.total - used_blocks) * instance.blocks.tokens

    @property
    def ready_s(self) -> float:
        """When it was last loaded."""
        return self._of.ready_s

    @property
    def last_used_s(self) -> float:
        """When it last started or finished work."""
        return self._of.last_used_s


class Views:
    """Makes one facade an object, once."""

    def __init__(self, world: World, estimates: Estimates) -> None:
        self.cluster: Cluster = world.cluster
        self.options = world.options
        self.contention: str = world.sharing.contention
        self.clock = world.clock
        self.estimates = estimates

    def request(self, of: Request) -> RequestView:
        view = of.view
        if isinstance(view, RequestView):
            return view
        made = of.view = RequestView(of, self)
        return made

    def model(self, of: Model) -> ModelView:
        view = of.view
        if isinstance(view, ModelView):
            return view
        made = of.view = ModelView(of, self)
        return made

    def instance(self, of: Instance) -> InstanceView:
        view = of.view
        if isinstance(view, InstanceView):
            return view
        made = of.view = InstanceView(of, self)
        return made

    def gpu(self, of: Gpu) -> GpuView:
        view = of.view
        if isinstance(view, GpuView):
            return view
        made = of.view = GpuView(of, self)
        return made

    def node(self, of: Node) -> NodeView:
        view = of.view
        if isinstance(view, NodeView):
            return view
        made = of.view = NodeView(of, self)
        return made
