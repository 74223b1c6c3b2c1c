"""A policy that does anything legal, drawn from its own seeded stream: the attack on the engine that has no plan.

It asks the views alone whether an action is legal, so a PolicyError in a run of it is a bug of a view or of the gate.
After `calm_s` it serves whoever waits, one model after the other, so that whatever it left behind must still let every
request end. With `actions` it draws nothing and plays these again; with `inner` another policy decides. With `audit`
it keeps accounts of its own. `--policy FILE` plays it as any other.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import islice
from typing import Any

from sim.policy import (
    Action,
    Field,
    Future,
    GpuView,
    InstanceView,
    Load,
    ModelView,
    NodeView,
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
    load_policy,
)

KINDS = ("load", "route", "resize", "stop", "preempt", "reject", "wake", "bring")
STUCK = "host memory is full of saved KV"
LOT = "drawn by lot"
WAKES_S = (1e-9, 0.0071, 0.053, 0.5, 3.0)
MOST_INSTANCES = 20
MOST_ACTIONS = 400  # from then on it does not look again of its own accord

Intent = tuple[str, int, int, int]  # a kind of action, and three numbers that choose among what is there at the time
Entry = tuple[float, int, str, int, int, int]  # when, the how-manieth decision of that instant, and the intent


class Hand:
    """Turns intents into actions that the views say are legal; what cannot be done now is left undone."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()  # what was done, to whom
        self.loaded: list[Load] = []  # in this decision
        self.next_wake_s = 0.0

    def act(self, view: View, intent: Intent) -> Action | None:
        kind, *numbers = intent
        action: Action | None = getattr(self, f"_{kind}")(view, *numbers)
        return action

    def _load(self, view: View, which: int, where: int, how: int) -> Action | None:
        model, gpu = _one(view.models, which), _one(view.gpus, where)
        layers = model.layers if how % 2 == 0 else (how // 2) % (model.layers + 1)
        kv_tokens = (None, model.max_context, model.default_kv_tokens + how % 1000)[(how // 50) % 3]
        sequences = None if how % 5 else 1 + how % view.max_sequences
        if len(view.instances) >= MOST_INSTANCES or not gpu.takes(model, layers, kv_tokens):
            return None
        self.seen[f"load {'whole' if layers == model.layers else 'in part' if layers else 'outside the GPU'}"] += 1
        load = Load(model, gpu, layers, kv_tokens, sequences)
        self.loaded.append(load)
        return load

    def _bring(self, view: View, which: int, _where: int, _how: int) -> Action | None:
        """Somebody to what this decision loads."""
        if not self.loaded:
            return None
        load = self.loaded[-1]
        waiting = load.model.waiting
        self.seen["route to a load of the same decision"] += bool(waiting)
        return Route(_one(waiting, which), load) if waiting else None

    def _route(self, view: View, who: int, where: int, how: int) -> Action | None:
        request = self._waiting(view, who, how)
        targets = [i for i in request.model.instances if i.accepts] if request is not None else []
        if request is None or not targets:
            return None
        instance = _one(targets, where)
        recompute = how % 5 == 4
        saved = request.saved_on
        if saved is not None:
            way = "dropped" if recompute else "on its node" if saved is instance.gpu.node else "from another node"
            self.seen[f"route with saved KV, {way}"] += 1
        self.seen[f"route {'again ' if request.instance else ''}to {instance.status}"] += 1
        return Route(request, instance, recompute=recompute)

    def _waiting(self, view: View, who: int, how: int) -> RequestView | None:
        """One who waits in the cluster's queue, or at an instance."""
        found = list(view.waiting)
        if not found or how % 6 == 5:
            found += [r for instance in view.instances for r in islice(instance.requests, instance.waiting_count)]
        return _one(found, who) if found else None

    def _resize(self, view: View, which: int, how: int, drop: int) -> Action | None:
        if not view.instances:
            return None
        instance = _one(view.instances, which)
        fewest = instance.model.profile(instance.gpu).fewest_layers
        asleep = instance.status == "asleep"
        layers = fewest + how % (instance.model.layers + 1 - fewest)
        if view.resize == "sleep":
            layers = instance.layers if asleep else 0
        if not instance.takes_resize(layers):
            return None
        drops = view.resize == "sleep" and not asleep and drop % 3 == 2
        what = "wake" if asleep else "more" if layers > instance.layers else "fewer"
        self.seen[f"resize {view.resize}: {what}{', weights dropped' if drops else ''}"] += 1
        self.seen["resize of a running instance"] += bool(instance.running_count)
        return Resize(instance, layers, drop_weights=drops)

    def _stop(self, view: View, which: int, how: int, _: int) -> Action | None:
        found = [i for i in view.instances if (i.accepts and not i.resizing) or i.status == "asleep"]
        if not found:
            return None
        instance = _one(found, which)
        modes: tuple[Any, ...] = ("drain", "preempt", "abort")
        mode = _one(modes, how)
        busy = " with sequences" if instance.running_count else ""
        self.loaded = []  # it may be the one that is stopped
        self.seen[f"stop {mode}, {instance.status}{busy}"] += 1
        return Stop(instance, mode)

    def _preempt(self, view: View, who: int, how: int, _: int) -> Action | None:
        running = [request for i in view.instances for request in i.requests if request.running]
        if not running:
            return None
        request = _one(running, who)
        modes: tuple[Any, ...] = ("save", "recompute")
        mode = _one(modes, how)
        self.seen[f"preempt {mode}, {'decoding' if request.produced_tokens else 'in its prompt'}"] += 1
        return Preempt(request, mode)

    def _reject(self, view: View, who: int, how: int, _: int) -> Action | None:
        request = self._waiting(view, who, how)
        if request is None or how % 4:
            return None
        self.seen[f"reject {'with saved KV' if request.saved_on else 'somebody'}"] += 1
        return Reject(request, LOT)

    def _wake(self, view: View, how: int, _second: int, _third: int) -> Action | None:
        if self.next_wake_s > view.now_s:
            return None
        self.next_wake_s = view.now_s + _one(WAKES_S, how)
        return Wake(self.next_wake_s)


@cache
def _class_of(name: str) -> type[Policy]:
    """Read once a process: many plays of it follow."""
    return type(load_policy(name)[0])


def _one(options: Any, number: int) -> Any:
    return options[number % len(options)]


class Audit:
    """Accounts of bytes, sequences and tokens kept from what the views say, and from nothing else."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.in_flight: dict[int, RequestView] = {}
        self.produced: dict[int, int] = {}
        self.host_bytes: dict[str, int] = {}  # capacities, seen before anything was there

    def look(self, view: View, follows: bool = True) -> None:
        """Assert what must hold now. follows: is it asked whenever a request ends?"""
        assert view.now_s >= self.now_s, f"time ran back from {self.now_s!r} to {view.now_s!r}"
        self.now_s = view.now_s
        for node in view.nodes:
            self.host_bytes.setdefault(node.name, node.host_available_bytes)
        for gpu in view.gpus:
            self._gpu(gpu)
        for instance in view.instances:
            self._instance(instance)
        found = [*view.waiting, *(request for instance in view.instances for request in instance.requests)]
        self._requests(view, found, follows)
        for node in view.nodes:
            self._node(view, node, found)

    def _gpu(self, gpu: GpuView) -> None:
        held = [i for i in gpu.instances if i.status not in ("pending", "asleep")]
        used = sum(_weight_bytes(i) + i.layers * i.kv_tokens * i.model.kv_layer_bytes for i in held)
        assert 0 <= used <= gpu.capacity_bytes, f"{gpu.name} holds {used} of {gpu.capacity_bytes} bytes"
        if not any(i.resizing for i in held):
            assert gpu.free_bytes == gpu.capacity_bytes - used, f"{gpu.name}: {gpu.free_bytes} free beside {used}"
        assert 0 <= gpu.free_bytes <= gpu.capacity_bytes - used, f"{gpu.name}: {gpu.free_bytes} free beside {used}"

    def _instance(self, instance: InstanceView) -> None:
        running = instance.running
        assert len(running) <= instance.running_count <= instance.max_sequences, f"{instance} runs {len(running)}"
        if instance.status in ("pending", "starting", "loading", "asleep"):
            assert not instance.running_count, f"{instance} runs {instance.running_count} while {instance.status}"
        context = sum(request.context_tokens for request in running)
        taken = instance.kv_tokens - instance.free_kv_tokens
        assert context <= taken, f"{instance}: {context} tokens of context in {taken} of KV"

    def _requests(self, view: View, found: list[RequestView], follows: bool) -> None:
        """Everybody who came and has not ended is in one place, and keeps what tokens it has."""
        self.in_flight.update((request.number, request) for request in view.arrived)
        for request in view.finished:
            self.in_flight.pop(request.number, None)
            self.produced.pop(request.number, None)
        numbers = [request.number for request in found]
        assert len(numbers) == len(set(numbers)), f"somebody is in two places: {sorted(numbers)}"
        if follows:
            gone = [number for number in self.in_flight if number not in numbers]
            assert all(number in self.in_flight for number in numbers), f"{numbers}, but in flight are {self.in_flight}"
            assert all(_is_leaving(self.in_flight[number]) for number in gone), f"{gone} are nowhere"
        for request in found:
            produced = request.produced_tokens
            assert produced >= self.produced.get(request.number, 0), f"{request} lost tokens: {produced} are left"
            self.produced[request.number] = produced
            assert not (request.running and request.saved_on), f"{request} runs, and its KV is saved (law 3)"
            assert request.arrival_s <= view.now_s

    def _node(self, view: View, node: NodeView, found: list[RequestView]) -> None:
        """What is not available holds pinned weights, KV of layers outside GPUs, and saved KV."""
        taken = self.host_bytes[node.name] - node.host_available_bytes
        assert node.host_available_bytes >= 0, f"{node.name} lacks {-node.host_available_bytes} bytes"
        held = [instance for gpu in node.gpus for instance in gpu.instances]
        if any(i.resizing or i.status in ("stopping", "freeing") for i in held):
            return  # which of its two layouts an instance holds does not show
        kv = sum(_outside_kv_bytes(i) for i in held if i.status != "asleep")
        kv += sum(
            request.context_tokens * request.model.kv_layer_bytes * request.model.layers
            for request in found
            if request.saved_on is node
        )
        pinning = [i.model for i in held if view.resize != "none" or i.layers < i.model.layers]
        awake = [i.model for i in held if (view.resize != "none" or i.layers < i.model.layers) and i.status != "asleep"]
        # Models of one kind share their weights, or have their own, and who sleeps may have let them go.
        least = sum({model.total_bytes: model.total_bytes for model in awake}.values())
        most = sum({model.name: model.total_bytes for model in pinning}.values())
        # Of who was cancelled while their KV was on its way out, it is held until it is there.
        most += sum(_hidden(i) * i.model.max_context * i.model.kv_layer_bytes * i.model.layers for i in held)
        assert least + kv <= taken <= most + kv, f"{node.name}: {taken} taken; {least} to {most} pinned, {kv} of KV"


def _is_leaving(request: RequestView) -> bool:
    """Is its KV being saved because its whole instance stops? Then it is in no queue and in no batch."""
    instance = request.instance
    return instance is not None and instance.status == "stopping" and request.saved_on is not None


def _hidden(instance: InstanceView) -> int:
    """Sequences that have ended and still have a place in the batch: no view shows them."""
    return instance.running_count + instance.waiting_count - len([*instance.requests])


def _weight_bytes(instance: InstanceView) -> int:
    model = instance.model
    if instance.layers == model.layers:
        return model.total_bytes
    return instance.layers * model.layer_bytes


def _outside_kv_bytes(instance: InstanceView) -> int:
    model = instance.model
    return (model.layers - instance.layers) * instance.kv_tokens * model.kv_layer_bytes


class RandomPolicy(Policy):
    """Any legal action, now and then; calm in the end."""

    class Parameters(PolicyParameters):
        stream: int = Field(1, description="seed of its own choices")
        calm_s: float = Field(60.0, description="from here on it serves")
        rejects: bool = Field(True, description="may it turn requests away?")
        actions: tuple[Entry, ...] | None = Field(None, description="these, instead of what it would draw")
        wakes: tuple[float, ...] = Field((), description="when to look again, besides")
        inner: str | None = Field(None, description="another policy that decides")
        audit: bool = Field(True, description="keep accounts?")

    def __init__(self, parameters: Parameters | None = None) -> None:
        super().__init__(parameters)
        self.random = random.Random(self.parameters.stream)
        # Each seed has its own character: some kinds of action are frequent, some never happen.
        self.weights = [self.random.choice((0.0, 1.0, 1.0, 4.0)) for _ in KINDS]
        self.weights[0] = max(1.0, self.weights[0])
        self.weights[1] = max(3.0, self.weights[1])  # most of the rest needs requests at instances
        self.eager = self.random.choice((1, 2, 6))
        self.slow = self.random.choice((0.0, 0.0, 0.7))  # how often it lets a decision pass
        self.pulse = self.random.choice((None, 1, 2, 3, 3, 4))  # of WAKES_S: how soon it looks again, whatever happens
        self.hand = Hand()
        self.audit = Audit()
        self.log: list[Entry] = []  # what it did, to be played again
        self.decided = [(-1.0, 0)]  # of each decision the time, and the how-manieth of that instant it is
        self.left = list(self.parameters.actions or ())
        self.inner = _class_of(self.parameters.inner)() if self.parameters.inner else None
        if self.inner is not None:
            for name in ("ideal", "oracle", "foresees", "follows_every_finish"):
                setattr(self, name, getattr(self.inner, name))

    def foresee(self, future: Future) -> None:
        assert self.inner is not None
        self.inner.foresee(future)

    def start(self, view: View) -> Iterator[Action]:
        self._begin(view)
        if self.inner is not None:
            yield from self.inner.start(view)
            return
        yield Wake(self.parameters.calm_s)
        for at_s in self.parameters.wakes:
            yield Wake(at_s)
        yield from self._play(view)

    def decide(self, view: View) -> Iterator[Action]:
        self._begin(view)
        if self.inner is not None:
            yield from self.inner.decide(view)
        elif view.now_s < self.parameters.calm_s:
            yield from self._play(view)
        else:
            yield from self._serve(view)

    def _begin(self, view: View) -> None:
        self.decided.append((view.now_s, self.decided[-1][1] + 1 if view.now_s == self.decided[-1][0] else 0))
        self.hand.loaded = []
        if self.parameters.audit:
            self.audit.look(view, self.follows_every_finish)

    # --- anything

    def _play(self, view: View) -> Iterator[Action]:
        for intent in self.intents(view):
            action = self.hand.act(view, intent)
            if action is not None:
                self.log.append((*self.decided[-1], *intent))
                yield action

    def intents(self, view: View) -> Iterable[Intent]:
        """What it would like to do in this decision."""
        if self.parameters.actions is None:
            return self._drawn()
        number = sum(entry[:2] <= self.decided[-1] for entry in self.left)
        due, self.left = self.left[:number], self.left[number:]
        return [entry[2:] for entry in due]

    def _drawn(self) -> Iterator[Intent]:
        number = self.random.randrange
        if self.random.random() >= self.slow:
            for _ in range(self.random.randint(0, self.eager)):
                (kind,) = self.random.choices(KINDS, self.weights)
                tired = kind == "wake" and len(self.log) >= MOST_ACTIONS
                if not tired and (kind != "reject" or self.parameters.rejects):
                    yield kind, number(1000), number(1000), number(1000)
                if kind == "load":
                    yield "bring", number(1000), 0, 0
        if self.pulse is not None and len(self.log) < MOST_ACTIONS:
            yield "wake", self.pulse, 0, 0

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
