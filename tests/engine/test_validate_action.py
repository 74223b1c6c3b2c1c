"""Every illegal action is refused with a PolicyError that names policy, time, action and reason; nothing else
changes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from math import inf, nan
from typing import Any

import pytest

from sim.common.errors import PolicyError
from sim.policy import Action, Load, Preempt, Reject, Resize, Route, Stop, View, Wake
from tests.support.scenarios import FREE_OF_COST, GB, Script, nodes, play, scenario, serve_all, synthetic, trace

# Two small GPUs; at 2 s `a` is whole and runs request 0, request 1 waits (b is not loaded), request 2, for `a`, is new.
# Each row: what the policy asks for at 2 s, and the reason that it must be given.
Case = Callable[[View], Any]


def first(view: View) -> Any:
    return view.instances[0]


def running(view: View) -> Any:
    return next(iter(first(view).requests))


def waits(view: View) -> Any:
    return next(iter(view.models[1].waiting))


def load_then_resize(view: View) -> Iterator[Action]:
    yield Load(view.models[1], view.gpus[1], 4)
    yield Resize(view.instances[1], 2)


ILLEGAL: dict[str, tuple[Case, str]] = {
    "not an action": (lambda view: [42], "42 is not an action; return Load, Route"),
    "none": (lambda view: [None], "None is not an action"),
    "a class": (lambda view: [Load], "is not an action"),
    "load: a name": (lambda view: [Load("b", view.gpus[0], 4)], "the model must be taken from the view, not 'b'"),
    "load: no GPU": (lambda view: [Load(view.models[1], 0, 4)], "the GPU must be taken from the view, not 0"),
    "load: too many layers": (lambda view: [Load(view.models[1], view.gpus[1], 5)], "a whole number from 0 to 4"),
    "load: below zero": (lambda view: [Load(view.models[1], view.gpus[1], -1)], "a whole number from 0 to 4"),
    "load: half a layer": (lambda view: [Load(view.models[1], view.gpus[1], 2.0)], "a whole number from 0 to 4"),
    "load: small pool": (lambda view: [Load(view.models[1], view.gpus[1], 4, 99)], "cannot hold one request of max_co"),
    "load: no pool": (lambda view: [Load(view.models[1], view.gpus[1], 4, 0)], "cannot hold one request of max_co"),
    "load: half a token": (lambda view: [Load(view.models[1], view.gpus[1], 4, 5e4)], "a KV pool of 50000.0 tokens"),
    "load: no GPU memory": (lambda view: [Load(view.models[2], view.gpus[1], 9)], "it needs .* GiB on box-1/small-1"),
    "load: twice": (
        lambda view: [Load(view.models[1], view.gpus[1], 4), Load(view.models[2], view.gpus[1], 5)],
        "on box-1/small-1 and .* are available",
    ),
    "load: no host memory": (lambda view: [Load(view.models[2], view.gpus[1], 1)], "host memory of box-1 lacks"),
    "route: no request": (lambda view: [Route("r", first(view))], "the request must be taken from the view"),
    "route: no instance": (lambda view: [Route(waits(view), view.gpus[0])], "the instance must be taken from the view"),
    "route: wrong model": (lambda view: [Route(waits(view), first(view))], "the instance serves a"),
    "route: it runs": (lambda view: [Route(running(view), first(view))], "is not waiting: it runs, or its KV"),
    "route: a load never asked": (
        lambda view: [Route(waits(view), Load(view.models[1], view.gpus[1], 4))],
        "its Load must come before it in the same decision",
    ),
    "route: to a stopped one": (
        lambda view: [Stop(first(view), "drain"), Route(KEPT["late"], first(view))],
        "the instance is draining",
    ),
    "route: after a rejection": (
        lambda view: [Reject(KEPT["late"], "no"), Route(KEPT["late"], first(view))],
        "the request has ended",
    ),
    "resize: as it is": (lambda view: [Resize(first(view), 4)], "it has that many layers already"),
    "resize: too many": (lambda view: [Resize(first(view), 5)], "a whole number from 0 to 4"),
    "resize: no instance": (lambda view: [Resize(view.models[0], 2)], "the instance must be taken from the view"),
    "resize: drop what stays": (
        lambda view: [Resize(first(view), 2, drop_weights=True)],
        "drop_weights is for an instance that is put to sleep",
    ),
    "load: no batch": (
        lambda view: [Stop(first(view)), Load(view.models[1], view.gpus[1], 4, max_sequences=0)],
        "max_sequences must be a whole number from 1 to the engine's 1",
    ),
    "load: a larger batch": (
        lambda view: [Load(view.models[1], view.gpus[1], 4, max_sequences=2)],
        "max_sequences must be a whole number from 1 to the engine's 1",
    ),
    "resize: twice": (lambda view: [Resize(first(view), 2), Resize(first(view), 3)], "the instance is being resized"),
    "resize: while it loads": (
        load_then_resize,
        "the instance is (pending|starting)",
    ),
    "stop: unknown mode": (lambda view: [Stop(first(view), "kill")], "mode must be drain, preempt or abort"),
    "stop: twice": (lambda view: [Stop(first(view)), Stop(first(view))], "the instance is draining"),
    "stop: while resized": (lambda view: [Resize(first(view), 2), Stop(first(view))], "the instance is being resized"),
    "stop: no instance": (lambda view: [Stop(None)], "the instance must be taken from the view"),
    "preempt: it waits": (lambda view: [Preempt(waits(view))], "the request does not run"),
    "preempt: unknown mode": (lambda view: [Preempt(running(view), "drop")], "mode must be save or recompute"),
    "preempt: no request": (lambda view: [Preempt(first(view))], "the request must be taken from the view"),
    "reject: it runs": (lambda view: [Reject(running(view), "no")], "is not waiting: it runs"),
    "reject: no reason": (lambda view: [Reject(waits(view), "")], "give the reason for the rejection"),
    "reject: a number": (lambda view: [Reject(waits(view), 7)], "give the reason for the rejection"),
    "reject: twice": (lambda view: [Reject(waits(view), "no"), Reject(KEPT["b"], "no")], "the request has ended"),
    "wake: now": (lambda view: [Wake(view.now_s)], "at_s must lie in the future"),
    "wake: before": (lambda view: [Wake(1.0)], "at_s must lie in the future"),
    "wake: never": (lambda view: [Wake(inf)], "at_s must be a finite time"),
    "wake: nan": (lambda view: [Wake(nan)], "at_s must be a finite time"),
    "wake: a text": (lambda view: [Wake("3")], "at_s must be a finite time"),
}
KEPT: dict[str, Any] = {}


def attempt(case: Case, resize: str = "none") -> None:
    """Play until 2 s, then do it."""
    models = [
        {"name": name, "model": of, "engine": "quick", "max_context": 1024}
        for name, of in (("a", "four"), ("b", "four"), ("c", "giant"))
    ]
    of = scenario(
        models=models,
        cluster=nodes(("small", 2), memory_gib=(4 + 4 + 0.02) * GB / 2**30),
        engine={"max_sequences": 1, "resize": resize},
        profiles=synthetic(FREE_OF_COST),
    )
    # `c` fits nowhere here, and still has a view that a policy may try to load.
    asked: list[bool] = []

    def decide(view: View) -> Iterator[Action]:
        if view.now_s == 0.0:
            yield Wake(2.0)
        if view.now_s == 2.0 and not asked:
            asked.append(True)
            KEPT["late"] = next(iter(view.models[0].waiting))
            KEPT["b"] = next(iter(view.models[1].waiting))
            yield from case(view)
        elif view.now_s < 2.0:
            yield from (action for action in serve_all(view))

    rows = [(0.0, "a", 10, 900), (0.0, "b", 10, 5), (2.0, "a", 10, 5)]
    play(of, Script(decide, lambda view: [Load(view.models[0], view.gpus[0], 4)]), trace(of, rows))
    assert asked, "the decision at 2 s never came"


@pytest.mark.parametrize("name", ILLEGAL)
def test_an_illegal_action_is_refused_by_name(name: str) -> None:
    case, reason = ILLEGAL[name]
    with pytest.raises(PolicyError, match=reason) as caught:
        attempt(case)
    message = str(caught.value)
    assert message.startswith("policy 'lru-swap' at t=2.000000 s: ")
    assert "\n" not in message
    assert " object at 0x" not in message
    kind = name.partition(":")[0].capitalize()
    if ":" in name:
        assert re.search(rf"s: {kind}\(.*\) refused: ", message), message


SLEEPING: dict[str, tuple[Case, str]] = {
    "partly": (lambda view: [Resize(first(view), 2)], "can only go to 0 layers here"),
    "twice": (lambda view: [Resize(first(view), 0), Resize(first(view), 0)], "being resized"),
    "stop": (lambda view: [Resize(first(view), 0), Stop(first(view))], "being resized"),
    "route": (lambda view: [Resize(first(view), 0), Route(KEPT["late"], first(view))], "being resized"),
}


@pytest.mark.parametrize("name", SLEEPING)
def test_an_engine_that_sleeps_does_nothing_else(name: str) -> None:
    case, reason = SLEEPING[name]
    with pytest.raises(PolicyError, match=reason):
        attempt(case, "sleep")


def test_elastic_growth_needs_memory_that_is_free_at_once() -> None:
    # 4 GB of 8.6 are being given back by a draining neighbour: a load may wait for them, growth may not.
    of = scenario(models={"a": "four", "b": "giant"}, engine={"max_sequences": 8, "resize": "elastic"})

    def start(view: View) -> Iterator[Action]:
        yield Load(view.models[0], view.gpus[0], 4)
        yield Load(view.models[1], view.gpus[0], 1)

    def decide(view: View) -> Iterator[Action]:
        yield from serve_all(view)
        if view.now_s == 5.0:
            yield Stop(view.instances[0], "drain")
            yield Resize(view.instances[1], 5)
        elif view.now_s < 5.0:
            yield Wake(5.0)

    with pytest.raises(PolicyError, match=r"it needs 3\.\d+ GiB more on box-1/small-0 and \d\.\d+ GiB are available"):
        play(of, Script(decide, start), trace(of, [(0, "a", 10, 900), (0, "b", 10, 900)]))


def test_a_policy_that_fails_is_named_with_the_place() -> None:
    of = scenario()

    def decide(view: View) -> Iterator[Action]:
        raise KeyError("oops")

    with pytest.raises(PolicyError, match=r"policy 'lru-swap' failed at t=0\.000000 s: KeyError: 'oops' \(test_val"):
        play(of, Script(decide), trace(of, [(0, "a", 10, 5)]))


def test_what_is_no_iterable_of_actions_is_named() -> None:
    of = scenario()
    with pytest.raises(PolicyError, match="its decision is 7; yield actions"):
        play(of, Script(lambda view: 7), trace(of, [(0, "a", 10, 5)]))  # type: ignore[arg-type, return-value]
