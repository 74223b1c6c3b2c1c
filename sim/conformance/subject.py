"""The policy that is checked, and one run of it: a fresh policy object each time, the laws held, no run without an end.

What goes wrong in a run is raised as Failed, with the scenario and the requests that show it. Called by checks.py.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sim.common.errors import SimError
from sim.common.time_limit import limited
from sim.conformance.hardware import Row, play, scenario, trace
from sim.conformance.laws import assert_laws
from sim.engine.engine import Engine
from sim.policy.interface.policy import Policy
from sim.policy.loader import policy_of, read_policy
from sim.scenario.scenario import Scenario, is_code, override

LONGEST_S = 20.0  # of computing, for 100 requests at most: about twenty times what the slowest of ours takes


@dataclass(frozen=True)
class Play:
    """A run as it can be played again: the scenario, and the requests in order of arrival."""

    scenario: Scenario
    rows: Sequence[Row]


class Failed(Exception):
    """The policy does not pass. `plays`: the runs that show it."""

    def __init__(self, reason: str, *plays: Play) -> None:
        super().__init__(reason)
        self.plays = plays


class Endless(Failed):
    """A run computes and computes; so will the others."""


class NotApplicable(Exception):
    """The check asks for what this policy does not claim."""


class TooLong(SimError):
    """Raised in the middle of such a run."""


@dataclass(frozen=True)
class Subject:
    """A policy by name or path, with parameters for all runs."""

    name: str
    cls: type[Policy]
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return Path(inspect.getfile(self.cls))

    def patient(self) -> Subject:
        """With the parameters under which it says that it turns nobody away, but for those that were given."""
        return Subject(self.name, self.cls, {**override({}, self.cls.patient), **self.parameters})

    def fresh(self, parameters: Mapping[str, Any]) -> Policy:
        return policy_of(self.cls, self.name, dict(parameters))

    def scenario(self, resize: str, **changes: Any) -> Scenario:
        """A scenario for this policy on the synthetic machines."""
        name = str(self.file) if is_code(self.name) else self.name
        policy = {"name": name, **self.parameters}
        engine = {"max_sequences": 4, "resize": resize}
        return scenario(**{"engine": engine, "horizon_s": 5000.0, "policy": policy, **changes})


def subject(name: str, parameters: Mapping[str, Any] | None = None) -> Subject:
    """The policy of that name, path or entry point. Raises PolicyError (not there) and ConfigError (parameters)."""
    with limited(LONGEST_S, TooLong):
        cls, _ = read_policy(name)
        found = Subject(name, cls, dict(parameters or {}))
        found.fresh(found.parameters)
    return found


def run(policy: Subject, of: Scenario, rows: Sequence[Row], chosen: Policy | None = None) -> Engine:
    """Play the requests to the end, the laws held at every instant and after it. `chosen`: instead of a fresh object.

    Raises Failed.
    """
    try:
        with limited(LONGEST_S, TooLong):
            engine = play(of, chosen or policy.fresh(of.policy.parameters), trace(of, rows))
        assert_laws(engine, len(rows))
    except SimError as error:
        kind = Endless if isinstance(error, TooLong) or isinstance(error.__cause__, TooLong) else Failed
        raise kind(str(error), Play(of, rows)) from error
    except Exception as error:  # a law that is broken, or a fault of the engine: either is the simulator's own
        raise Failed(_fault(error), Play(of, rows)) from error
    return engine


def _fault(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name}, line {place.lineno}: {place.line}"
    what = "a law of the model is broken" if isinstance(error, AssertionError) else "the simulator failed"
    return f"{what}, please report it: {type(error).__name__} {error} ({where})"
