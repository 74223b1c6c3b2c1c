"""The base of all views: holds what it shows, lets nothing be set. It knows neither who makes views nor what they show:
the views of `sim.policy.interface` build on it and say of which kind these are.
"""

from __future__ import annotations

from typing import Any

from sim.common.errors import PolicyError


class Facade:
    """A live, read-only look at one object of the state."""

    __slots__ = ("_of", "_views")

    def __init__(self, of: Any, views: Any) -> None:
        object.__setattr__(self, "_of", of)
        object.__setattr__(self, "_views", views)

    def __setattr__(self, name: str, value: object) -> None:
        raise PolicyError(f"a policy may look but not touch: '{name}' cannot be set; return an action instead")

    def __delattr__(self, name: str) -> None:
        raise PolicyError(f"a policy may look but not touch: '{name}' cannot be deleted; return an action instead")
