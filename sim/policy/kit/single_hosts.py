"""What policies share that were made for one machine (Ollama, llama-swap, LM Studio and the like): boxes, a front door
that deals requests to them, and idle timers that wake the policy only when one is due.

A box is one such server with its GPUs: those of a node, or one GPU where the product would spread a model over all of
them and the simulator cannot. Nothing here decides what is loaded or evicted. Policies import it from sim.policy.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from heapq import heappop, heappush
from math import inf
from typing import Literal

from sim.common.errors import did_you_mean
from sim.policy.interface.actions import Action, Load, Reject, Route, Stop, Wake
from sim.policy.interface.machines import GpuView, NodeView
from sim.policy.interface.models import InstanceView, ModelView
from sim.policy.interface.requests import RequestView
from sim.policy.interface.view import View

Extent = Literal["node", "gpu"]


class Box:
    """One server: its GPUs, and the requests dealt to it that are not routed yet."""

    def __init__(self, number: int, gpus: list[GpuView]) -> None:
        self.number = number
        self.gpus = gpus
        self.waiting: dict[ModelView, dict[int, RequestView]] = {}  # by request number, in order of arrival
        self.fresh: list[RequestView] = []  # of the waiting, those that came with this decision
        self.moved = False  # did one of its requests or instances, or those of its node, end or become ready?
        self.dealt: dict[ModelView, int] = {}  # requests that were dealt to it and have not ended, by model
        self.requests = 0  # the sum of these

    @property
    def node(self) -> NodeView:
        return self.gpus[0].node

    @property
    def instances(self) -> list[InstanceView]:
        """All that are on its GPUs, those on their way out among them."""
        if len(self.gpus) == 1:
            return self.gpus[0].instances
        found = [instance for gpu in self.gpus for instance in gpu.instances]
        return sorted(found, key=lambda instance: instance.number)

    @property
    def loaded(self) -> list[InstanceView]:
        """Those that take requests, or will when they are loaded, in order of their loads."""
        return [instance for instance in self.instances if instance.accepts]

    def instance(self, model: ModelView) -> InstanceView | None:
        """The model's instance here, unless it is on its way out."""
        return next((i for gpu in self.gpus for i in gpu.instances if i.model is model and i.accepts), None)

    def place(self, model: ModelView, kv_tokens: int | None = None, spare: float = 0.0) -> tuple[GpuView, int] | None:
        """The GPU that takes most of the model's layers beside what is on it and `spare` bytes, then the one with most
        memory available; and the layers. None if no Load is legal now."""
        best: tuple[GpuView, int] | None = None
        for gpu in self.gpus:
            layers = model.layers_within(max(0.0, gpu.available_bytes - spare), kv_tokens)
            if not gpu.takes(model, layers, kv_tokens):
                continue
            if best is None or (layers, gpu.available_bytes) > (best[1], best[0].available_bytes):
                best = (gpu, layers)
        return best

    def relief(
        self, model: ModelView, keeps: Callable[[InstanceView], bool] | None = None
    ) -> tuple[InstanceView | None, bool]:
        """When `place` finds nothing: the idle instance of the node to stop for its host memory, if that is what lacks
        (used longest ago; never one that `keeps` says is kept), and whether to wait at all."""
        if not all(gpu.up for gpu in self.gpus):
            return None, True
        around = [instance for gpu in self.node.gpus for instance in gpu.instances]
        if any(instance.status in ("draining", "stopping", "freeing") for instance in around):
            return None, True
        if self._lacks_host_memory(model):
            idle = [i for i in around if i.idle and not (keeps is not None and keeps(i))]
            if idle:
                return min(idle, key=lambda instance: (instance.last_used_s, instance.number)), True
        return None, any(instance.load or instance.loading for instance in around)

    def load(
        self, model: ModelView, reason: str, keeps: Callable[[InstanceView], bool] | None = None
    ) -> Generator[Action, None, Load | None]:
        """Load the model where most of its layers fit beside what is there. If none do: stop an idle instance for host
        memory and wait, or just wait (None); with nothing to wait for, all its requests are refused for the reason."""
        place = self.place(model)
        if place is not None:
            load = Load(model, *place)
            yield load
            return load
        idle, waits = self.relief(model, keeps)
        if idle is not None:
            yield Stop(idle)
        elif not waits:
            yield from self.refuse(model, reason)
        return None

    def refuse(self, model: ModelView, reason: str) -> Iterator[Reject]:
        """Refuse all that wait here for the model."""
        for request in list(self.waiting.get(model, {}).values()):
            self.forget(request)
            yield Reject(request, reason)

    @property
    def wanted(self) -> list[ModelView]:
        """The models that are waited for here, the longest waited for first."""
        return sorted(self.waiting, key=lambda model: next(iter(self.waiting[model])))

    def _lacks_host_memory(self, model: ModelView) -> bool:
        for gpu in self.gpus:
            layers = model.layers_within(max(0, gpu.available_bytes))
            if layers >= model.profile(gpu).fewest_layers and gpu.lacks_host_bytes(model, layers):
                return True
        return False

    @property
    def oldest(self) -> RequestView | None:
        """Who has waited longest."""
        firsts = [next(iter(requests.values())) for requests in self.waiting.values()]
        return min(firsts, key=lambda request: request.number, default=None)

    @property
    def waiting_count(self) -> int:
        return sum([len(requests) for requests in self.waiting.values()])

    def add(self, request: RequestView) -> None:
        """It waits here from now on."""
        requests = self.waiting.setdefault(request.model, {})
        came_back = bool(requests) and next(reversed(requests)) > request.number
        requests[request.number] = request
        if came_back:
            self.waiting[request.model] = {number: requests[number] for number in sorted(requests)}

    def forget(self, request: RequestView) -> None:
        """It is routed or rejected, or its client left."""
        requests = self.waiting.get(request.model)
        if requests is not None and requests.pop(request.number, None) is not None and not requests:
            del self.waiting[request.model]

    def send(self, model: ModelView, target: InstanceView | Load) -> Iterator[Route]:
        """Route all that wait here for the model."""
        for request in list(self.waiting.get(model, {}).values()):
            self.forget(request)
            yield Route(request, target)


class FrontDoor:
    """Deals each request to a box: to the one that has its model, or waits for it, with the fewest requests for it.
    From `spill` of these on, and for a model that is nowhere, to the box that can hold most of its layers, then has the
    fewest requests, then the most available memory. Of many GPUs it looks at a shortlist."""

    def __init__(self, view: View, extent: Extent, spill: int) -> None:
        self.spill = spill
        self.boxes: list[Box] = []
        self._box_of_gpu: dict[GpuView, Box] = {}
        self._box_of: dict[int, Box] = {}  # by the number of a request that has not ended
        self._homes: dict[ModelView, dict[int, Box]] = {}  # boxes with such requests, by their number
        self._most_layers = most_layers(view)
        for node in view.nodes:
            for gpus in [node.gpus] if extent == "node" else [[gpu] for gpu in node.gpus]:
                box = Box(len(self.boxes), gpus)
                self.boxes.append(box)
                self._box_of_gpu.update((gpu, box) for gpu in gpus)

    def admit(self, view: View) -> list[Box]:
        """Deal the new requests and forget those that ended. The boxes for which anything has changed, in order."""
        touched: dict[int, Box] = {}
        for gpu in [*view.freed, *(i.gpu for i in view.loaded), *(i.gpu for i in view.idled)]:
            for neighbour in gpu.node.gpus:  # host memory is the node's
                box = self._box_of_gpu[neighbour]
                box.moved = True
                touched[box.number] = box
        for request in view.finished:
            ended = self._box_of.pop(request.number, None)
            if ended is not None:
                self._leaves(ended, request)
                ended.moved = True
                touched[ended.number] = ended
        for request in [*self._evacuated(view), *view.requeued, *view.arrived]:
            box = self._box_of.get(request.number) or self._deal(view, request)
            box.add(request)
            box.fresh.append(request)
            touched[box.number] = box
        return [touched[number] for number in sorted(touched)]

    def _evacuated(self, view: View) -> list[RequestView]:
        """Those that waited at a box that has failed; who was routed there comes back by itself. All are dealt anew."""
        waited: list[RequestView] = []
        for box in dict.fromkeys(self._box_of_gpu[gpu] for gpu in view.failed):
            if not any(gpu.up for gpu in box.gpus):
                waiting = [request for requests in box.waiting.values() for request in requests.values()]
                routed = [request for request in view.requeued if self._box_of.get(request.number) is box]
                for request in (*waiting, *routed):
                    del self._box_of[request.number]
                    self._leaves(box, request)
                waited += waiting
        return waited

    def done(self, boxes: Iterable[Box]) -> None:
        """The policy has dealt with them."""
        for box in boxes:
            box.fresh = []
            box.moved = False

    def box_of(self, gpu: GpuView) -> Box:
        """The box that commands it."""
        return self._box_of_gpu[gpu]

    def best_box(self, view: View, model: ModelView) -> Box | None:
        """Where the model would go if it were nowhere. None: no box can hold it."""
        best: Box | None = None
        best_rank = (0, 0, 0, 0)
        for gpu in view.shortlist():
            box, layers = self._box_of_gpu[gpu], self._most_layers[gpu.node.name, gpu.kind, model]
            rank = (-layers, box.requests, -gpu.available_bytes, box.number)
            if layers >= 0 and (best is None or rank < best_rank):
                best, best_rank = box, rank
        if best is None:  # nowhere as things are: where it can be again when that is repaired
            able = [gpu for gpu in view.down if self._most_layers[gpu.node.name, gpu.kind, model] >= 0]
            best = self._box_of_gpu[able[0]] if able else None
        return best

    def _deal(self, view: View, request: RequestView) -> Box:
        model = request.model
        homes = dict(self._homes.get(model, {}))
        for instance in model.quietest(8):
            if instance.accepts:
                box = self._box_of_gpu[instance.gpu]
                homes[box.number] = box
        home = min(homes.values(), key=lambda box: (box.dealt.get(model, 0), box.number), default=None)
        if home is None or home.dealt.get(model, 0) >= self.spill:
            best = self.best_box(view, model)
            assert home or best, model  # a model that fits nowhere is refused before a policy hears of it
            if home is None or (best is not None and best.requests < home.dealt.get(model, 0)):
                home = best
        assert home is not None
        self._box_of[request.number] = home
        home.dealt[model] = home.dealt.get(model, 0) + 1
        home.requests += 1
        self._homes.setdefault(model, {})[home.number] = home
        return home

    def _leaves(self, box: Box, request: RequestView) -> None:
        model = request.model
        box.forget(request)
        box.requests -= 1
        box.dealt[model] -= 1
        if not box.dealt[model]:
            del box.dealt[model]
            del self._homes[model][box.number]


def most_layers(view: View) -> dict[tuple[str, str, ModelView], int]:
    """By node, kind of GPU and model, the most layers that an empty GPU there takes; -1: none, whatever is tried. To be
    asked at time 0, when all is empty."""
    found: dict[tuple[str, str, ModelView], int] = {}
    for node in view.nodes:
        for gpu in {gpu.kind: gpu for gpu in node.gpus}.values():
            for model in view.models:
                layers = model.layers_within(gpu.capacity_bytes)
                found[node.name, gpu.kind, model] = layers if gpu.takes(model, layers) else -1
    return found


class IdleTimers:
    """Which instances have been idle for as long as they may. At most one wake-up is under way, and only for a timer
    that is really due then, so that an idle cluster is left alone."""

    def __init__(self, limit_s: Callable[[InstanceView], float | None]) -> None:
        self._limit_s = limit_s  # how long it may be idle; None or infinity: for ever
        self._due: list[tuple[float, int, InstanceView]] = []
        self._armed: dict[int, bool] = {}
        self._woken_s: float | None = None

    def expired(self, view: View) -> list[InstanceView]:
        """Those whose time is up. To be asked in every decision, after new requests have been routed."""
        for instance in [*view.idled, *view.loaded]:
            self.arm(instance)
        found: list[InstanceView] = []
        while self._due and self._due[0][0] <= view.now_s:
            _, number, instance = heappop(self._due)
            del self._armed[number]
            due_s = self._due_s(instance)
            if due_s is not None and due_s <= view.now_s:
                found.append(instance)
            else:
                self.arm(instance)
        return found

    def arm(self, instance: InstanceView) -> None:
        """Watch an instance that may be idle from now on."""
        due_s = self._due_s(instance)
        if due_s is not None and instance.number not in self._armed:
            self._armed[instance.number] = True
            heappush(self._due, (due_s, instance.number, instance))

    def wake(self, view: View) -> Iterator[Wake]:
        """At the end of a decision: be asked again when the next timer is due."""
        while self._due and self._due_s(self._due[0][2]) != self._due[0][0]:  # used since, busy or gone
            _, number, instance = heappop(self._due)
            del self._armed[number]
            self.arm(instance)
        if self._woken_s is not None and self._woken_s <= view.now_s:
            self._woken_s = None
        if self._due and (self._woken_s is None or self._due[0][0] < self._woken_s):
            self._woken_s = self._due[0][0]
            yield Wake(self._woken_s)

    def _due_s(self, instance: InstanceView) -> float | None:
        limit_s = self._limit_s(instance)
        if limit_s is None or limit_s == inf or not instance.idle:
            return None
        return instance.last_used_s + limit_s


def known_models(view: View, field: str, names: Iterable[str]) -> dict[str, ModelView]:
    """The models of those names. Raises ValueError naming the parameter and the nearest name that there is."""
    models = {model.name: model for model in view.models}
    for name in names:
        if name not in models:
            raise ValueError(f"{field}: no model '{name}'; {did_you_mean(name, models)}")
    return {name: models[name] for name in names}
