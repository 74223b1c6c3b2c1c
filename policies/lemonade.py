"""Lemonade's eviction engine: under pressure the idle model goes that is cheapest to load again for how long it idles.

Source: lemonade-sdk/lemonade 0b93e9f8, src/cpp/server/eviction_engine.cpp (pull request 2183). Every 5 s, per server:
a model idle for `evict_idle_s` is unloaded; and while the GPUs' memory is filled to `threshold`, one model that is not
in use, the one with the largest idle time / (its measured load time x its weight). Pinned models stay. A request loads
its model beside the others while that stays below the threshold, else one model after another goes by the same score,
and it waits while all are in use. A model alone is loaded whatever it fills, with the layers that fit, so one that
fills more than the threshold is unloaded as soon as it idles. With `auto_evict` off, and when `max_loaded_models` are
loaded, the least recently used goes; a load that fails then unloads all and is tried again.
The product's defaults, auto_evict off and 1 model, make it a cache of one; here the engine is on and has no limit.
One server a GPU (or a node) behind a front door, which sends a request to the server that has its model, from
`spill_requests` on also to the next with the fewest requests.
Left out: downsizing after 60 s (it frees nothing with llama.cpp), limits by model type, exclusive jobs.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from math import ceil, floor
from typing import Literal

from sim import policy
from sim.policy import Action, Field, InstanceView, ModelView, Policy, PolicyParameters, View

UNKNOWN_LOAD_S = 1.0
FAILED = "its model failed to load: not enough memory beside what is pinned"


class Lemonade(Policy):
    """Eviction by idle time over reload cost."""

    tier = "production"

    class Parameters(PolicyParameters):
        auto_evict: bool = Field(True, description="the eviction engine is on (the product's default: off)")
        threshold: float = Field(0.90, gt=0, le=1, description="share of GPU memory in use that counts as pressure")
        evict_idle_s: float = Field(300.0, gt=0, description="seconds idle before a model is unloaded")
        interval_s: float = Field(5.0, gt=0, description="seconds between two passes of the engine")
        weights: dict[str, float] = Field({}, description="model -> evict_weight_factor, larger is kept; default 1")
        pinned: list[str] = Field([], description="models that are never evicted")
        max_loaded_models: int = Field(0, ge=0, description="models per server; 0: no limit (the product's default: 1)")
        server_per: Literal["gpu", "node"] = Field("gpu", description="what one Lemonade server commands")
        spill_requests: int = Field(64, ge=1, description="requests for a model at its server before another loads it")

    def start(self, view: View) -> Iterator[Action]:
        self._pinned = dict.fromkeys(policy.known_models(view, "pinned", self.parameters.pinned).values(), True)
        for name in policy.known_models(view, "weights", self.parameters.weights):
            if self.parameters.weights[name] <= 0:
                raise ValueError(f"weights: {name} must be above 0")
        self._door = policy.FrontDoor(view, self.parameters.server_per, self.parameters.spill_requests)
        self._timers = policy.IdleTimers(self._idle_limit_s)
        # Of a server and a model: when its load was asked for, and how long the last one took.
        self._asked_s: dict[tuple[policy.Box, ModelView], float] = {}
        self._load_s: dict[tuple[policy.Box, ModelView], float] = {}
        self._pressed: dict[int, policy.Box] = {}  # servers to look at in the next pass
        self._pass_s = -1.0  # when that is
        yield from ()

    def decide(self, view: View) -> Iterator[Action]:
        for instance in view.loaded:
            key = (self._door.box_of(instance.gpu), instance.model)
            self._load_s[key] = view.now_s - self._asked_s[key]
        boxes = self._door.admit(view)
        for box in boxes:
            for model in box.wanted:
                yield from self._serve(view, box, model)
        self._door.done(boxes)
        if self.parameters.auto_evict:
            for instance in self._timers.expired(view):
                yield policy.Stop(instance)
            yield from self._timers.wake(view)
            yield from self._passes(view, boxes)

    def _serve(self, view: View, box: policy.Box, model: ModelView) -> Iterator[Action]:
        target: InstanceView | policy.Load | None = box.instance(model)
        if target is None:
            has_room = yield from self._make_room(view, box, model)
            if not has_room:
                return
            target = yield from box.load(model, FAILED, lambda instance: instance.model in self._pinned)
            if target is None:
                return
            self._asked_s[box, model] = view.now_s
        yield from box.send(model, target)

    def _make_room(self, view: View, box: policy.Box, model: ModelView) -> Generator[Action, None, bool]:
        """Evict what has to go. May the model be loaded now, or does it wait for somebody to become idle?"""
        most = self.parameters.max_loaded_models
        if most and len(self._others(box)) >= most:
            idle = policy.least_recent_first(i for i in self._others(box) if i.idle)
            if not idle:
                return False
            yield policy.Stop(idle[0])
        while (others := self._others(box)) and not self._fits(box, model):
            idle = [instance for instance in others if instance.idle]
            if not idle or (len(idle) < len(others) and not self.parameters.auto_evict):
                return False
            for instance in [self._most_disposable(view, box)] if self.parameters.auto_evict else idle:
                yield policy.Stop(instance)
        return True

    def _fits(self, box: policy.Box, model: ModelView) -> bool:
        """Whole (or as much as an empty GPU takes), without bringing about pressure."""
        limit = self.parameters.threshold if self.parameters.auto_evict else 1.0
        for gpu in box.gpus:
            layers = model.layers_within(gpu.capacity_bytes)
            used_bytes = gpu.capacity_bytes - gpu.available_bytes + model.gpu_bytes(layers)
            if used_bytes <= limit * gpu.capacity_bytes:
                return True
        return False

    def _passes(self, view: View, boxes: list[policy.Box]) -> Iterator[Action]:
        """Every so often, while memory is under pressure: one model that is not in use goes."""
        for box in boxes:
            if self._under_pressure(box):
                self._pressed[box.number] = box
        if self._pass_s == view.now_s:
            for number, box in list(self._pressed.items()):
                if self._under_pressure(box):
                    yield policy.Stop(self._most_disposable(view, box))
                if not self._under_pressure(box):
                    del self._pressed[number]
        if self._pressed and self._pass_s <= view.now_s:
            interval_s = float(self.parameters.interval_s)
            self._pass_s = (floor(view.now_s / interval_s) + 1) * interval_s
            yield policy.Wake(self._pass_s)

    def _under_pressure(self, box: policy.Box) -> bool:
        """Is memory filled to the threshold, by somebody who may go now?"""
        capacity = sum([gpu.capacity_bytes for gpu in box.gpus])
        used = capacity - sum([gpu.available_bytes for gpu in box.gpus])
        return used >= self.parameters.threshold * capacity and any(i.idle for i in self._others(box))

    def _most_disposable(self, view: View, box: policy.Box) -> InstanceView:
        """Of the idle ones that with the largest idle time over what a reload costs; the first loaded of equals."""

        def score(instance: InstanceView) -> float:
            load_s = self._load_s.get((box, instance.model)) or UNKNOWN_LOAD_S
            weight = float(self.parameters.weights.get(instance.model.name, 1.0))
            return (view.now_s - instance.last_used_s) / (load_s * weight)

        return max((instance for instance in self._others(box) if instance.idle), key=score)

    def _others(self, box: policy.Box) -> list[InstanceView]:
        """Who is loaded and may be evicted at all."""
        return [instance for instance in box.loaded if instance.model not in self._pinned]

    def _idle_limit_s(self, instance: InstanceView) -> float | None:
        """Up to the pass in which it is seen to have been idle for long enough."""
        if instance.model in self._pinned:
            return None
        interval_s = float(self.parameters.interval_s)
        seen_s = ceil((instance.last_used_s + float(self.parameters.evict_idle_s)) / interval_s) * interval_s
        return seen_s - instance.last_used_s
