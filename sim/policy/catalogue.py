"""What policies there are to choose from, and what each says of itself: plain data for `python -m sim policies`."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from sim.common.errors import PolicyError
from sim.policy.interface.policy import Policy
from sim.policy.loader import policy_class, policy_names

# The steps of the ladder, from the bottom up; what says nothing of itself, or something else, is on none.
TIERS = ("naive", "production", "research", "ours", "oracle", "other")


@dataclass(frozen=True)
class ParameterFacts:
    """One parameter of a policy: its type, default and limits as text."""

    name: str
    kind: str
    default: str
    description: str


@dataclass(frozen=True)
class PolicyFacts:
    """`line`: what it does, in a line. `text`: how, with its source. `problem`: why it cannot be loaded, or empty."""

    name: str
    tier: str
    line: str
    text: str
    oracle: str
    parameters: tuple[ParameterFacts, ...]
    problem: str = ""


def policy_catalogue() -> list[PolicyFacts]:
    """All policies that can be chosen by name, tier by tier; one that cannot be loaded is listed with its problem."""
    found = []
    for name in policy_names():
        try:
            found.append(policy_facts(name))
        except PolicyError as error:
            found.append(PolicyFacts(name, "other", "", "", "", (), str(error)))
    return sorted(found, key=lambda facts: (TIERS.index(facts.tier), facts.name))


def policy_facts(name: str) -> PolicyFacts:
    """What a policy says of itself. Raises PolicyError: no such policy, or a file that cannot be loaded."""
    cls, _ = policy_class(name)
    own = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
    module = inspect.cleandoc(_module_text(cls))
    line = (own or module or "(no docstring)").splitlines()[0]
    fields = cls.Parameters.model_fields.items()
    return PolicyFacts(
        name,
        cls.tier if cls.tier in TIERS else TIERS[-1],
        line,
        "\n\n".join(part for part in (own, module) if part),
        cls.oracle,
        tuple(
            ParameterFacts(
                field_name,
                _kind(field.annotation, field.metadata),
                "required" if field.is_required() else str(field.default),
                field.description or "",
            )
            for field_name, field in fields
        ),
    )


def _module_text(cls: type[Policy]) -> str:
    """The docstring of the policy's file: the file is not an imported module, but its functions know it."""
    scope = getattr(cls.decide, "__globals__", {})
    return str(scope.get("__doc__") or "") if scope.get("__name__") == cls.__module__ else ""


def _kind(annotation: Any, limits: list[Any]) -> str:
    name = annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [f"{signs[key]} {getattr(limit, key):g}" for limit in limits for key in signs if hasattr(limit, key)]
    return ", ".join([name, *bounds])
