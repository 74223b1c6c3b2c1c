"""All that a policy may import: views, actions, the base class; and how a policy is found.

A policy is one file with one subclass of `Policy` and one method, `decide(view) -> actions`. Its file name is its name
on the command line (residency_aware.py: residency-aware). Policies are looked for in the source tree or the installed
package, in entry points of the group `sim.policies`, and by the path of a file; only a path runs code from elsewhere.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sim import costs
from sim.actions import Action, Load, Preempt, Reject, Resize, Route, Stop, Wake
from sim.costs import ArrivalRates
from sim.decision import View
from sim.errors import ConfigError, PolicyError, did_you_mean
from sim.knapsack import choose_options
from sim.machine_views import GpuView, NodeView
from sim.prices import Option, Prices, Queue
from sim.request_view import RequestView
from sim.views import InstanceView, ModelView

__all__ = [
    "Action",
    "ArrivalRates",
    "Field",
    "GpuView",
    "InstanceView",
    "Load",
    "ModelView",
    "NodeView",
    "Option",
    "Policy",
    "PolicyParameters",
    "Preempt",
    "Prices",
    "Queue",
    "Reject",
    "RequestView",
    "Resize",
    "Route",
    "Stop",
    "View",
    "Wake",
    "choose_options",
    "costs",
    "load_policy",
    "policy_names",
]


class PolicyParameters(BaseModel):
    """A policy's parameters: typed, with defaults, checked when the scenario is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Policy:
    """A cluster scheduler. Subclass it, with a nested `Parameters(PolicyParameters)` if it has any."""

    Parameters: ClassVar[type[PolicyParameters]] = PolicyParameters
    tier: ClassVar[str] = "other"  # naive, production, research, ours or oracle: where it stands on the ladder
    oracle: ClassVar[str] = ""  # what it knows that no scheduler can know; such a policy is marked in every table

    # Is it to be asked when requests finish although nobody waits and no instance fell idle? Most have nothing to say.
    follows_every_finish: ClassVar[bool] = True

    def __init__(self, parameters: Any = None) -> None:
        self.parameters: Any = parameters if parameters is not None else self.Parameters()

    def start(self, view: View) -> Iterable[Action]:
        """Before the first arrival, at time 0: what to load in advance."""
        return ()

    def decide(self, view: View) -> Iterable[Action]:
        """At the end of every instant in which something happened that a policy may see."""
        raise NotImplementedError("a policy needs a method decide(self, view)")


def _folder() -> Path:
    spec = importlib.util.find_spec("policies")
    if spec is None or not spec.submodule_search_locations:
        raise PolicyError("the package 'policies' is missing; install the project again")
    return Path(next(iter(spec.submodule_search_locations)))


def policy_names() -> list[str]:
    """Every policy that can be chosen by name: those of the project and of installed entry points."""
    files = [path.stem.replace("_", "-") for path in _folder().glob("*.py") if not path.stem.startswith("_")]
    return sorted([*files, *(entry.name for entry in importlib.metadata.entry_points(group="sim.policies"))])


def policy_class(name: str) -> tuple[type[Policy], str]:
    """The class of a policy given by name or path, and the hash of its source.

    Raises PolicyError: no such policy, a file that does not import, or one without exactly one policy.
    """
    if name.endswith(".py") or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise PolicyError(f"{name}: no such policy file; give a path to a .py file, or a name from: sim policies")
        return _class_in_file(path)
    path = _folder() / f"{name.replace('-', '_')}.py"
    if path.is_file() and not path.stem.startswith("_"):
        return _class_in_file(path)
    for entry in importlib.metadata.entry_points(group="sim.policies"):
        if entry.name == name:
            return _class_in_file(Path(inspect.getfile(entry.load())))
    raise PolicyError(f"unknown policy '{name}'; {did_you_mean(name, policy_names())}")


def _class_in_file(path: Path) -> tuple[type[Policy], str]:
    source = path.read_bytes()
    digest = hashlib.sha256(source).hexdigest()
    spec = importlib.util.spec_from_file_location(f"_policy_{path.stem}_{digest[:8]}", path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pydantic looks up the types of its parameters
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nothing beside the user's own file
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a policy file may fail in any way; that is its author's to mend
        raise PolicyError(f"{path}: cannot import the policy ({type(error).__name__}: {error})") from error
    finally:
        sys.dont_write_bytecode = writes_bytecode
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Policy) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise PolicyError(f"{path}: a policy file defines exactly one subclass of sim.policy.Policy, not {len(found)}")
    return found[0], digest


def load_policy(name: str, parameters: dict[str, Any] | None = None) -> tuple[Policy, str]:
    """A policy by name or path with its checked parameters, and the hash of its source.

    Raises PolicyError (no such policy) or ConfigError (an unknown or bad parameter).
    """
    cls, digest = policy_class(name)
    try:
        checked = cls.Parameters(**(parameters or {}))
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(step) for step in problem["loc"])
        if problem["type"] == "extra_forbidden":
            hint = did_you_mean(field, cls.Parameters.model_fields)
            raise ConfigError(f"policy '{name}' has no parameter '{field}'; {hint}") from None
        raise ConfigError(f"policy '{name}', parameter '{field}': {problem['msg'].lower()}") from None
    return cls(checked), digest
