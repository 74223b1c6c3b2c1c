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

from pydantic import ConfigDict, Field, ValidationError

from sim import costs
from sim.actions import Action, Load, Preempt, Reject, Resize, Route, Stop, Wake
from sim.boxes import Box, FrontDoor, IdleTimers, known_models, most_layers
from sim.combinations import combinations_of
from sim.costs import ArrivalRates
from sim.decision import View
from sim.errors import ConfigError, PolicyError, SimError, did_you_mean, message_of, shown
from sim.eviction import least_recent_first, longest_waiting_first, lru_victims
from sim.fairness import TokenCounters, max_min_shares
from sim.feedback import FeedbackQueues, Job
from sim.future import Future
from sim.keepalive import KeepAlive, KeepAliveChoice
from sim.knapsack import choose_options
from sim.machine_views import GpuView, NodeView
from sim.pressure import PressureRoom, least_pressed, pressure_moves, pressure_rooms
from sim.prices import Option, Prices, Queue
from sim.reading import plain_bytes
from sim.replicas import Placement, ReplicaQueues, Traffic, full_batch_s, matched, traffic_seen
from sim.request_view import RequestView
from sim.sequencing import least_violation
from sim.slack import SlackQueue
from sim.spec import is_code
from sim.standing import Standing
from sim.swap_queue import SwapQueue
from sim.swapping import Alarms, bring, holders, leave, resident, switch_s
from sim.turns import Batch, Group, Turns, TurnWorker
from sim.views import InstanceView, ModelView
from sim.virtual_queues import RequestGroup, VirtualQueue, WaitingTimes, in_time_order
from sim.watch import Overtime, not_for_ever
from sim.workloads.fields import Checked

__all__ = [
    "Action",
    "Alarms",
    "ArrivalRates",
    "Batch",
    "Box",
    "FeedbackQueues",
    "Field",
    "FrontDoor",
    "Future",
    "GpuView",
    "Group",
    "IdleTimers",
    "InstanceView",
    "Job",
    "KeepAlive",
    "KeepAliveChoice",
    "Load",
    "ModelView",
    "NodeView",
    "Option",
    "Placement",
    "Policy",
    "PolicyParameters",
    "Preempt",
    "PressureRoom",
    "Prices",
    "Queue",
    "Reject",
    "ReplicaQueues",
    "RequestGroup",
    "RequestView",
    "Resize",
    "Route",
    "SlackQueue",
    "Standing",
    "Stop",
    "SwapQueue",
    "TokenCounters",
    "Traffic",
    "TurnWorker",
    "Turns",
    "View",
    "VirtualQueue",
    "WaitingTimes",
    "Wake",
    "bring",
    "choose_options",
    "combinations_of",
    "costs",
    "full_batch_s",
    "holders",
    "in_time_order",
    "known_models",
    "least_pressed",
    "least_recent_first",
    "least_violation",
    "leave",
    "load_policy",
    "longest_waiting_first",
    "lru_victims",
    "matched",
    "max_min_shares",
    "most_layers",
    "policy_names",
    "pressure_moves",
    "pressure_rooms",
    "resident",
    "switch_s",
    "traffic_seen",
]

IDEAL_WORLDS = ("memory", "switches")
_MOST_BYTES = 16 << 20  # of a policy's file


class PolicyParameters(Checked):
    """A policy's parameters: typed, with defaults, checked when the scenario is read; every number is finite."""

    model_config = ConfigDict(frozen=True)


class Policy:
    """A cluster scheduler. Subclass it, with a nested `Parameters(PolicyParameters)` if it has any."""

    Parameters: ClassVar[type[PolicyParameters]] = PolicyParameters
    tier: ClassVar[str] = "other"  # naive, production, research, ours or oracle: where it stands on the ladder
    oracle: ClassVar[str] = ""  # what it knows that no scheduler can know; such a policy is marked in every table
    foresees: ClassVar[bool] = False  # does the engine give it the whole trace (`self.future`) before the start?
    ideal: ClassVar[tuple[str, ...]] = ()  # the ideal world that it runs in, of EngineOptions.ideal

    # For the checks that every policy gets: a model that finds no room at the start is never served, by its rule; and
    # settings (parameter=value) with which it turns nobody away who can be served, if with its defaults it may.
    keeps_placement: ClassVar[bool] = False
    patient: ClassVar[tuple[str, ...]] = ()

    # Is it to be asked when requests finish although nobody waits and no instance fell idle? Most have nothing to say.
    follows_every_finish: ClassVar[bool] = True

    def __init__(self, parameters: Any = None) -> None:
        self.parameters: Any = parameters if parameters is not None else self.Parameters()
        self._future: Future | None = None

    @property
    def future(self) -> Future:
        """All requests of the run. Raises PolicyError: the class does not say that it foresees."""
        if self._future is None:
            raise PolicyError("the future is for policies whose class says foresees = True and what it knows (oracle)")
        return self._future

    def foresee(self, future: Future) -> None:
        """The engine calls it before `start`, if the class foresees."""
        self._future = future

    def parts(self) -> tuple[str, ...]:
        """Hashes of the further files that this policy is made of: they are part of what names a run."""
        return ()

    def start(self, view: View) -> Iterable[Action]:
        """Before the first arrival, at time 0: what to load in advance."""
        return ()

    def decide(self, view: View) -> Iterable[Action]:
        """At the end of every instant in which something happened that a policy may see."""
        raise NotImplementedError("a policy needs a method decide(self, view)")


def policies_folder() -> Path:
    """Where the policies of the project lie. Raises PolicyError."""
    spec = importlib.util.find_spec("policies")
    if spec is None or not spec.submodule_search_locations:
        raise PolicyError("the package 'policies' is missing; install the project again")
    return Path(next(iter(spec.submodule_search_locations)))


def policy_names() -> list[str]:
    """Every policy that can be chosen by name: those of the project and of installed entry points."""
    files = [path.stem.replace("_", "-") for path in policies_folder().glob("*.py") if not path.stem.startswith("_")]
    return sorted([*files, *(entry.name for entry in importlib.metadata.entry_points(group="sim.policies"))])


def policy_class(name: str) -> tuple[type[Policy], str]:
    """The class of a policy given by name or path, and the hash of its source.

    Raises PolicyError: no such policy, a file that does not import, or one without exactly one policy.
    """
    if is_code(name):
        path = Path(name)
        if not path.is_file():
            raise PolicyError(f"{name}: no such policy file; give a path to a .py file, or a name from: sim policies")
        if path.suffix != ".py":
            raise PolicyError(f"{name}: no Python file; a policy is a file whose name ends in .py")
        return _class_in_file(path)
    path = policies_folder() / f"{name.replace('-', '_')}.py"
    if path.is_file() and not path.stem.startswith("_"):
        return _class_in_file(path)
    for entry in importlib.metadata.entry_points(group="sim.policies"):
        if entry.name == name:
            return _class_in_file(Path(inspect.getfile(entry.load())))
    raise PolicyError(f"unknown policy '{name}'; {did_you_mean(name, policy_names())}")


def _class_in_file(path: Path) -> tuple[type[Policy], str]:
    try:
        source = plain_bytes(path, _MOST_BYTES)
    except OSError as error:
        raise PolicyError(f"{path}: cannot read the policy ({error.strerror}); check the path") from None
    digest = hashlib.sha256(source).hexdigest()
    spec = importlib.util.spec_from_file_location(f"_policy_{path.stem}_{digest[:8]}", path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pydantic looks up the types of its parameters
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nothing beside the user's own file
    try:
        with not_for_ever(lambda: 1, lambda reason: f"{path}: cannot import the policy ({reason})"):
            spec.loader.exec_module(module)
    except KeyboardInterrupt as error:
        error.add_note(f"{path} was being imported")
        raise
    except SimError:
        raise
    except BaseException as error:  # a policy file may fail in any way; that is its author's to mend
        raise PolicyError(f"{path}: cannot import the policy ({type(error).__name__}: {message_of(error)})") from error
    finally:
        sys.dont_write_bytecode = writes_bytecode
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Policy) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        names = f" ({', '.join(cls.__name__ for cls in found[:5])})" if found else ""
        raise PolicyError(
            f"{path}: a policy file defines exactly one subclass of sim.policy.Policy, not {len(found)}{names}"
        )
    if reason := _why_no_policy(found[0]) or why_not_marked(found[0]):
        raise PolicyError(f"{path}: {reason}")
    return found[0], digest


def _why_no_policy(policy: type[Policy]) -> str:
    """Empty if what a policy's class says of itself is of the kind that it has to be."""
    name = policy.__name__
    if not (isinstance(policy.Parameters, type) and issubclass(policy.Parameters, PolicyParameters)):
        return f"{name}.Parameters is no subclass of PolicyParameters"
    for method in ("decide", "start", "parts"):
        if not callable(getattr(policy, method)):
            return f"{name}.{method} is no method, but {shown(getattr(policy, method))}"
        if inspect.iscoroutinefunction(getattr(policy, method)) or inspect.isasyncgenfunction(getattr(policy, method)):
            return f"{name}.{method} is async; write it with def, without await"
    kinds: dict[str, type] = {"tier": str, "oracle": str, "ideal": tuple, "patient": tuple}
    kinds |= dict.fromkeys(("foresees", "keeps_placement", "follows_every_finish"), bool)
    for field, kind in kinds.items():
        value = getattr(policy, field)
        if not isinstance(value, kind):
            return f"{name}.{field} is {shown(value)}, not a {kind.__name__}"
    unknown = [world for world in policy.ideal if world not in IDEAL_WORLDS]
    if unknown:
        return f"{name}.ideal has {shown(unknown[0])}; known: {', '.join(IDEAL_WORLDS)}"
    return ""


def why_not_marked(policy: type[Policy] | Policy) -> str:
    """Empty if the policy says of itself all that no scheduler can know or have."""
    if policy.oracle:
        return ""
    if policy.foresees:
        return "it foresees, but has no `oracle` text; say there what it knows that no scheduler can know"
    if policy.ideal:
        return "it asks for an ideal world, but has no `oracle` text; say there what no machine can do"
    return ""


def load_policy(name: str, parameters: dict[str, Any] | None = None) -> tuple[Policy, str]:
    """A policy by name or path with its checked parameters, and the hash of its source.

    Raises PolicyError (no such policy) or ConfigError (an unknown or bad parameter).
    """
    cls, digest = policy_class(name)
    return policy_of(cls, name, parameters), digest


def policy_of(cls: type[Policy], name: str, parameters: dict[str, Any] | None = None) -> Policy:
    """A policy of a class with its checked parameters. Raises ConfigError: an unknown or bad parameter."""
    try:
        checked = cls.Parameters.model_validate(parameters or {})
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(str(step) for step in problem["loc"])
        if problem["type"] == "extra_forbidden":
            hint = did_you_mean(field, cls.Parameters.model_fields)
            raise ConfigError(f"policy '{name}' has no parameter '{field}'; {hint}") from None
        raise ConfigError(f"policy '{name}', parameter '{field}': {problem['msg'].lower()}") from None
    except SimError:
        raise
    except Exception as error:  # its own validators may fail in any way
        raise PolicyError(_unmade(name, error)) from error
    try:
        made = cls(checked)
    except ValueError as error:  # what the policy itself finds wrong with them
        raise ConfigError(f"policy '{name}': {message_of(error)}") from None
    except (SimError, KeyboardInterrupt, Overtime):  # SimError: of another policy that it makes inside
        raise
    except BaseException as error:
        raise PolicyError(_unmade(name, error)) from error
    if not hasattr(made, "_future"):
        raise PolicyError(f"policy '{name}': its __init__ must call super().__init__(parameters)")
    return made


def _unmade(name: str, error: BaseException) -> str:
    return f"policy '{name}' cannot be made ({type(error).__name__}: {message_of(error)})"
