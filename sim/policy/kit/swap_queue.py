"""llama-swap's scheduler, which its group and matrix planners share: first come, first served, but a request for a
model that is ready never waits, so that A B C A B C is served A A B B C C. And its servers, with all that both have.

Source: mostlygeek/llama-swap 0bdb3720, internal/router/scheduler/fifo.go. The planner says whom a model would evict;
what runs is never interrupted. Policies import it from sim.policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from pydantic import Field

from sim.policy.interface.actions import Action, Reject, Route, Stop
from sim.policy.interface.models import InstanceView, ModelView
from sim.policy.interface.view import View
from sim.policy.kit.single_hosts import Box, FrontDoor, IdleTimers, known_models
from sim.scenario.fields import Checked

# Whom a box would have to evict for the model, of the instances that are loaded there.
Planner = Callable[[Box, ModelView, list[InstanceView]], list[InstanceView]]


class SwapQueue:
    """The queue and the swaps under way of every box.

    limit: the most requests that a model's process handles at once; who is granted beyond it is refused, as with HTTP
    status 429. priorities: of models in the queue, the larger first; 0 unless named. keeps: instances that are not
    even stopped for host memory.
    """

    def __init__(
        self,
        planner: Planner,
        limit: int,
        priorities: Mapping[ModelView, int],
        keeps: Callable[[InstanceView], bool],
    ) -> None:
        self._planner = planner
        self._limit = limit
        self._priorities = priorities
        self._keeps = keeps
        self._swaps: dict[int, dict[ModelView, list[ModelView]]] = {}  # by box: who is being loaded, whom it evicts

    def serve(self, box: Box) -> Iterator[Action]:
        """What follows from the box's new requests, and from what has ended or become ready there."""
        if box.moved:
            yield from self._end_swaps(box)
            # The queue: whoever waits longest for a model stands for all who wait for it.
            for model in sorted(box.wanted, key=lambda model: -self._priorities.get(model, 0)):
                yield from self._handle(box, model)
        else:
            for model in {request.model: True for request in box.fresh}:
                yield from self._handle(box, model)

    def _handle(self, box: Box, model: ModelView) -> Iterator[Action]:
        """The scheduler's decision tree for the requests that wait for the model."""
        swaps = self._swaps.setdefault(box.number, {})
        if model in swaps:
            yield from self._join(box, model)
            return
        loaded = box.loaded
        own = next((instance for instance in loaded if instance.model is model), None)
        evicted = self._planner(box, model, [instance for instance in loaded if instance is not own])
        if self._collides(model, [instance.model for instance in evicted], swaps):
            return
        if own is not None and own.ready and not evicted:
            yield from self._grant(box, model, own)
            return
        if any(not instance.idle for instance in evicted):
            return
        for instance in evicted:
            yield Stop(instance)
        if own is not None:
            yield from self._grant(box, model, own)
            return
        swaps[model] = [instance.model for instance in evicted]
        yield from self._start(box, model)

    def _collides(self, model: ModelView, evicted: list[ModelView], swaps: dict[ModelView, list[ModelView]]) -> bool:
        """Does a swap under way load whom this one would evict, evict this model, or evict the same?"""
        return any(
            other in evicted or model in others or any(victim in evicted for victim in others)
            for other, others in swaps.items()
        )

    def _start(self, box: Box, model: ModelView) -> Iterator[Action]:
        """Load it with the layers that fit beside what is there (llama.cpp's fit); a load that cannot is an error."""
        load = yield from box.load(model, "its process cannot start: no memory beside what is kept loaded", self._keeps)
        if load is not None:
            yield from self._join(box, model)
        elif model not in box.waiting:
            del self._swaps[box.number][model]

    def _join(self, box: Box, model: ModelView) -> Iterator[Action]:
        """Wait for a swap under way: at its process as far as that will take them, the others here."""
        instance = box.instance(model)
        if instance is None:
            return
        for request in list(box.waiting.get(model, {}).values())[: max(0, self._limit - instance.load)]:
            box.forget(request)
            yield Route(request, instance)

    def _grant(self, box: Box, model: ModelView, instance: InstanceView) -> Iterator[Action]:
        for request in list(box.waiting.get(model, {}).values()):
            box.forget(request)
            if instance.load < self._limit:
                yield Route(request, instance)
            else:
                yield Reject(request, f"too many requests (429): {self._limit} are in flight for its model")

    def _end_swaps(self, box: Box) -> Iterator[Action]:
        swaps = self._swaps.get(box.number, {})
        for model in list(swaps):
            instance = box.instance(model)
            if instance is None:
                yield from self._start(box, model)  # its victims were still giving host memory back
            elif instance.ready:
                del swaps[model]
                yield from self._grant(box, model, instance)


class SwapServerParameters(Checked):
    """What both planners' servers are told."""

    ttl_s: float = Field(0.0, ge=0, description="seconds idle before a model is unloaded; 0: never (globalTTL)")
    ttl_by_model: dict[str, float] = Field({}, description="model -> ttl in seconds instead; 0: never")
    priorities: dict[str, int] = Field({}, description="model -> priority in the queue, larger first; default 0")
    concurrency_limit: int = Field(10, ge=1, description="requests in flight per model and server; more get a 429")
    server_per: Literal["gpu", "node"] = Field("gpu", description="what one llama-swap server commands")
    spill_requests: int | None = Field(
        None, ge=1, description="requests for a model at its server before another loads it; null: concurrency_limit"
    )


class SwapServers:
    """Servers behind their front door: each with its queue and swaps, and what is idle for its ttl is unloaded."""

    def __init__(self, view: View, asked: Any, planner: Planner, keeps: Callable[[InstanceView], bool]) -> None:
        known_models(view, "ttl_by_model", asked.ttl_by_model)
        named = known_models(view, "priorities", asked.priorities)
        self._asked = asked
        self._door = FrontDoor(view, asked.server_per, asked.spill_requests or asked.concurrency_limit)
        self._timers = IdleTimers(self._ttl_s)
        priorities = {model: asked.priorities[name] for name, model in named.items()}
        self._swaps = SwapQueue(planner, asked.concurrency_limit, priorities, keeps)

    def decide(self, view: View) -> Iterator[Action]:
        """What follows from all that has happened."""
        boxes = self._door.admit(view)
        for box in boxes:
            yield from self._swaps.serve(box)
        self._door.done(boxes)
        for instance in self._timers.expired(view):
            yield Stop(instance)
        yield from self._timers.wake(view)

    def _ttl_s(self, instance: InstanceView) -> float | None:
        return self._asked.ttl_by_model.get(instance.model.name, self._asked.ttl_s) or None
