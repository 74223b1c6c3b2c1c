"""A policy that does anything legal, drawn from its own seeded stream: the attack on the engine that has no plan.

It asks the views alone whether an action is legal, so a PolicyError in a run of it is a bug of a view or of the gate.
After `calm_s` it serves whoever waits, one model after the other, so that whatever it left behind must still let every
request end. A file like any other policy's: `policy: tests/random_policy.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

from sim.policy import (
    Action,
    Field,
    GpuView,
    InstanceView,
    Load,
    ModelView,
    Policy,
    PolicyParameters,
    Preempt,
    Reject,
    RequestView,
    Resize,
    Route,
    Stop,
    View,
    Wake,
)

KINDS = ("load", "route", "resize", "stop", "preempt", "reject", "wake")
STUCK = "host memory is full of saved KV"


class RandomPolicy(Policy):
    """Any legal action, now and then; calm in the end."""

    class Parameters(PolicyParameters):
        stream: int = Field(1, description="seed of its own choices")
        calm_s: float = Field(60.0, description="from here on it serves")
        rejects: bool = Field(True, description="may it turn requests away?")

    def __init__(self, parameters: Parameters | None = None) -> None:
        super().__init__(parameters)
        self.random = random.Random(self.parameters.stream)
        # Each seed has its own character: some kinds of action are frequent, some never happen.
        self.weights = [self.random.choice((0.0, 1.0, 1.0, 4.0)) for _ in KINDS]
        self.weights[0] = max(1.0, self.weights[0])
        self.weights[1] = max(1.0, self.weights[1])
        if not self.parameters.rejects:
            self.weights[KINDS.index("reject")] = 0.0
        self.eager = self.random.choice((1, 2, 6))
        self.next_wake_s = 0.0

    def start(self, view: View) -> Iterator[Action]:
        yield Wake(self.parameters.calm_s)
        yield from self._play(view)

    def decide(self, view: View) -> Iterator[Action]:
        if view.now_s < self.parameters.calm_s:
            yield from self._play(view)
        else:
            yield from self._serve(view)

    # --- anything

    def _play(self, view: View) -> Iterator[Action]:
        for _ in range(self.random.randint(0, self.eager)):
            (kind,) = self.random.choices(KINDS, self.weights)
            yield from getattr(self, f"_{kind}")(view)

    def _load(self, view: View) -> Iterator[Action]:
        model, gpu = self.random.choice(view.models), self.random.choice(view.gpus)
        kv_tokens = self.random.choice((None, model.max_context, model.default_kv_tokens + self.random.randint(0, 999)))
        layers = self.random.choice((model.layers, self.random.randint(0, model.layers)))
        if len(view.instances) > 20 or not gpu.takes(model, layers, kv_tokens):
            return
        load = Load(model, gpu, layers, kv_tokens)
        yield load
        for request in list(model.waiting):
            if self.random.random() < 0.3:
                yield Route(request, load)

    def _route(self, view: View) -> Iterator[Action]:
        request = self._waiting(view)
        if request is not None:
            targets = [instance for instance in request.model.instances if instance.accepts]
            if targets:
                yield Route(request, self.random.choice(targets), recompute=self.random.random() < 0.2)

    def _waiting(self, view: View) -> RequestView | None:
        """One who waits in the cluster's queue, or at an instance."""
        found = list(view.waiting)
        if not found or self.random.random() < 0.2:
            found += [r for instance in view.instances for r in islice(instance.requests, instance.waiting_count)]
        return self.random.choice(found) if found else None

    def _resize(self, view: View) -> Iterator[Action]:
        ready = [i for i in view.instances if (i.ready and i.accepts and not i.resizing) or i.status == "asleep"]
        if not ready:
            return
        instance = self.random.choice(ready)
        if view.resize == "sleep":
            if instance.status != "asleep":
                yield Resize(instance, 0)
            elif instance.gpu.takes(instance.model, instance.layers, instance.kv_tokens):
                yield Resize(instance, instance.layers)
            return
        layers = self.random.randint(instance.model.profile(instance.gpu).fewest_layers, instance.model.layers)
        if layers != instance.layers and self._room(view, instance, layers):
            yield Resize(instance, layers)

    def _room(self, view: View, instance: InstanceView, layers: int) -> bool:
        """Is a resize to so many layers surely legal? The views know the GPU's free bytes and, of the host, loads."""
        gpu, model = instance.gpu, instance.model
        grow = model.gpu_bytes(layers, instance.kv_tokens) - instance.gpu_bytes
        others = [i for i in gpu.instances if i is not instance]
        if view.resize == "elastic":
            claimed = sum(i.gpu_bytes for i in others if i.status == "pending")
            if grow > min(gpu.free_bytes - claimed, gpu.available_bytes):
                return False
        elif grow > gpu.available_bytes:
            return False
        return gpu.takes(model, layers, instance.kv_tokens, freed_bytes=gpu.capacity_bytes * 2)

    def _stop(self, view: View) -> Iterator[Action]:
        instance = self._stoppable(view)
        if instance is not None:
            yield Stop(instance, self.random.choice(("drain", "preempt", "abort")))

    def _stoppable(self, view: View) -> InstanceView | None:
        found = [i for i in view.instances if (i.accepts and not i.resizing) or i.status == "asleep"]
        return self.random.choice(found) if found else None

    def _preempt(self, view: View) -> Iterator[Action]:
        running = [request for i in view.instances for request in i.requests if request.running]
        if running:
            yield Preempt(self.random.choice(running), self.random.choice(("save", "recompute")))

    def _reject(self, view: View) -> Iterator[Action]:
        request = self._waiting(view)
        if request is not None and self.random.random() < 0.2:
            yield Reject(request, "drawn by lot")

    def _wake(self, view: View) -> Iterator[Action]:
        if self.next_wake_s <= view.now_s:
            self.next_wake_s = view.now_s + self.random.choice((1e-9, 0.01, 0.5, 3.0))
            yield Wake(self.next_wake_s)

    # --- calm

    def _serve(self, view: View) -> Iterator[Action]:
        """The first who waits is served next; for whom there is no room, whatever is idle is stopped."""
        for request in list(view.waiting):
            target = next((i for i in request.model.instances if i.accepts), None)
            if target is None:
                place = self._place(view, request.model)
                if place is None:
                    yield from self._clear(view, request)
                    return
                load = Load(request.model, *place)
                yield load
                yield Route(request, load)
            else:
                yield Route(request, target)

    def _place(self, view: View, model: ModelView) -> tuple[GpuView, int] | None:
        """Most layers first, and only where they are really free."""
        for layers in range(model.layers, -1, -1):
            for gpu in view.gpus:
                if gpu.takes(model, layers) and not gpu.loading:
                    return gpu, layers
        return None

    def _clear(self, view: View, request: RequestView) -> Iterator[Action]:
        busy = False
        for instance in view.instances:
            if (instance.idle and not instance.resizing) or instance.status == "asleep":
                yield Stop(instance)
                busy = True
            elif instance.status != "asleep":
                busy = True
        if not busy:
            yield Reject(request, STUCK)
