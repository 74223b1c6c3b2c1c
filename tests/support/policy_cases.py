"""What the tests of single policies share: a policy by name, its decisions told, traces with service classes.

Nothing here asserts anything but that a question was answered.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np

from sim.core.record.recorder import SWITCH_COLUMNS
from sim.core.state.request import COMPLETED
from sim.engine.engine import Engine
from sim.policy import Action, Policy, View, load_policy
from sim.scenario.scenario import Scenario
from sim.traces.trace import Trace
from tests.support.scenarios import Row, Script, play, trace

LOAD_S = 1.5 + 4 / 8


def made(name: str, **parameters: Any) -> Any:
    """A policy of this name; Any, since its class is in a file that is found by name."""
    return load_policy(name, parameters)[0]


def home(policy: Policy) -> ModuleType:
    """The module that the policy's file became."""
    return sys.modules[type(policy).__module__]


class Told(Policy):
    """Another policy's decisions; `tell` is called after each with the view and its actions."""

    def __init__(self, inner: Policy, tell: Callable[[View, list[Action]], None]) -> None:
        super().__init__()
        self.inner = inner
        self.tell = tell

    def start(self, view: View) -> Iterable[Action]:
        return self.inner.start(view)

    def decide(self, view: View) -> Iterator[Action]:
        actions = []
        for action in self.inner.decide(view):
            actions.append(action)
            yield action
        self.tell(view, actions)


def asked(of: Scenario, question: Callable[[View], None]) -> None:
    """Answer a question that needs a view and nothing else."""
    answered = []

    def at_start(view: View) -> Iterator[Action]:
        question(view)
        answered.append(True)
        return iter(())

    play(of, Script(lambda view: (), at_start), trace(replaced(of, horizon_s=1.0), []))
    assert answered


def replaced(of: Scenario, **fields: Any) -> Scenario:
    return of.model_copy(update=fields)


def classes(of: Scenario, rows: list[Row], names: list[str]) -> Trace:
    """A trace whose requests have these service classes."""
    known = [c.name for c in of.service_classes]
    return replace(trace(of, rows), service_class=np.array([known.index(name) for name in names], dtype=np.int32))


def switches(engine: Engine, kind: str) -> list[dict[str, Any]]:
    rows = [dict(zip(SWITCH_COLUMNS, row, strict=True)) for row in engine.world.recorder.switches]
    return [row for row in rows if row["kind"] == kind]


def completed(engine: Engine) -> int:
    return int(engine.world.recorder.ended[COMPLETED])
