"""Names the runs of many tasks before they run: what the tasks share, such as tables and traces, is read only once.

The names are those of engine.identify. Called by execute.play; nothing is kept from one call to the next, since files
may change in between.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.common.errors import SimError
from sim.engine.engine import prepare
from sim.engine.ideal_hardware import in_its_world
from sim.policy.interface.policy import Policy
from sim.policy.loader import asked_policy
from sim.profiles.library import Library
from sim.runs.task import Task
from sim.scenario.scenario import Scenario, TraceWorkload, resolved, run_id
from sim.workload.requests import open_workload


@dataclass(frozen=True)
class Identified:
    """A task and the name of its run. error: why it cannot even begin; the name is then that of its scenario alone."""

    task: Task
    run_id: str
    error: str | None = None
    ingredients: tuple[tuple[str, str], ...] = ()  # as in Outcome


class Registry:
    """Names runs. One pass over the requests of each different workload, one look at each different cluster."""

    def __init__(self) -> None:
        self._digests: dict[str, str | SimError] = {}
        self._ingredients: dict[str, tuple[Policy, list[tuple[str, str]]] | SimError] = {}
        self._libraries: dict[str | None, Library] = {}

    def identify(self, task: Task) -> Identified:
        """The name of a task's run. Reads its trace if no other task of the same workload has been here."""
        scenario = task.scenario
        try:
            digest = self._digest(scenario)
            policy, ingredients = self._prepared(scenario)
            ingredients = [("trace", digest), *ingredients]
            name = run_id(in_its_world(scenario, policy), ingredients)
        except SimError as error:
            return Identified(task, run_id(scenario, [("unidentified", "")]), " ".join(str(error).split()))
        return Identified(task, name, ingredients=tuple(ingredients))

    def _digest(self, scenario: Scenario) -> str:
        key = workload_key(scenario)
        if key not in self._digests:
            try:
                self._digests[key] = open_workload(scenario).digest()
            except SimError as error:
                self._digests[key] = error
        found = self._digests[key]
        if isinstance(found, SimError):
            raise found
        return found

    def _prepared(self, scenario: Scenario) -> tuple[Policy, list[tuple[str, str]]]:
        data = resolved(scenario)
        for name in ("name", "description", "seed", "workload", "horizon_s", "warm_up_s", "starvation_s"):
            del data[name]
        key = _key(data)
        if key not in self._ingredients:
            try:
                if scenario.profiles not in self._libraries:
                    self._libraries[scenario.profiles] = Library(Path(scenario.profiles) if scenario.profiles else None)
                asked = asked_policy(scenario.policy.name, scenario.policy.parameters)
                policy, _, ingredients = prepare(scenario, self._libraries[scenario.profiles], asked)
                self._ingredients[key] = policy, ingredients
            except SimError as error:
                self._ingredients[key] = error
        found = self._ingredients[key]
        if isinstance(found, SimError):
            raise found
        return found


def workload_key(scenario: Scenario) -> str:
    """The same for scenarios that play the same requests, as long as no file changes."""
    data = resolved(scenario)
    drawn = not isinstance(scenario.workload, TraceWorkload) or scenario.workload.assign is not None
    names = [[part["name"] for part in data[group]] for group in ("models", "service_classes")]
    return _key([data["workload"], data["seed"] if drawn else None, *names])


def _key(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
