"""Policies that turn a GPU into a queue of the textbooks. Each is a scheduler like any other: views in, actions out."""

from __future__ import annotations

from collections.abc import Iterator

from sim.policy import (
    Action,
    Field,
    InstanceView,
    Load,
    ModelView,
    Policy,
    PolicyParameters,
    Preempt,
    Reject,
    Route,
    Stop,
    View,
)


class Servers(Policy):
    """One queue for `servers` instances of the only model, each of which serves one request at a time.

    They lie on GPUs in turn. `room`: requests that find so many in the system are turned away; 0: there is no limit.
    """

    class Parameters(PolicyParameters):
        servers: int = Field(1, ge=1, description="how many instances")
        room: int = Field(0, ge=0, description="requests in the system at most, those served among them; 0: no limit")

    def start(self, view: View) -> Iterator[Action]:
        for number in range(self.parameters.servers):
            model = view.models[0]
            yield Load(model, view.gpus[number % len(view.gpus)], model.layers, max_sequences=1)

    def decide(self, view: View) -> Iterator[Action]:
        free = [instance for instance in view.instances if instance.load == 0 and instance.accepts]
        ahead = len(view.instances) - len(free)  # in the system, before the next one that waits
        for request in view.waiting:
            if free:
                yield Route(request, free.pop(0))
            elif not self.parameters.room:
                return
            elif ahead >= self.parameters.room:
                yield Reject(request, "there is no room")
                continue
            ahead += 1


class PreemptivePriority(Policy):
    """One instance; the most urgent request interrupts whoever is less urgent, whose KV is kept."""

    def start(self, view: View) -> Iterator[Action]:
        model = view.models[0]
        yield Load(model, view.gpus[0], model.layers, max_sequences=1)

    def decide(self, view: View) -> Iterator[Action]:
        instance = view.instances[0]
        if not view.waiting:
            return
        first = min(view.waiting, key=lambda request: (request.priority, request.number))
        if instance.load == 0:
            yield Route(first, instance)
            return
        running = next((request for request in instance.running), None)
        if running is not None and running.priority > first.priority:
            yield Preempt(running)


class OffWhenIdle(Policy):
    """The only model is unloaded as soon as nobody needs it, and loaded when somebody does."""

    def decide(self, view: View) -> Iterator[Action]:
        model = view.models[0]
        target: InstanceView | Load | None = next((i for i in model.instances if i.accepts), None)
        if target is None and model.waiting_count:
            target = Load(model, view.gpus[0], model.layers, max_sequences=1)
            yield target
        for request in model.waiting:
            assert target is not None
            yield Route(request, target)
        for instance in model.instances:
            if instance.idle and not isinstance(target, Load):
                yield Stop(instance)


class Polling(Policy):
    """The models take turns on the only GPU: each is served until nobody waits for it, then the next one is loaded,
    whether somebody waits for that or not."""

    def start(self, view: View) -> Iterator[Action]:
        yield self._load(view, view.models[0])

    def decide(self, view: View) -> Iterator[Action]:
        instance = view.instances[0]
        model = instance.model
        for request in model.waiting:
            yield Route(request, instance)
        if instance.idle:
            yield Stop(instance)
            yield self._load(view, view.models[(view.models.index(model) + 1) % len(view.models)])

    def _load(self, view: View, model: ModelView) -> Load:
        return Load(model, view.gpus[0], model.layers, max_sequences=1)
