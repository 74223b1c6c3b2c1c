"""The base of all views: holds what it shows, lets nothing be set. views.py and machine_views.py build on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim.common.errors import PolicyError

if TYPE_CHECKING:
    from sim.policy.interface.models import Views


class Facade:
    """A live, read-only look at one object of the state."""

    __slots__ = ("_of", "_views")
    _views: Views

    def __init__(self, of: Any, views: Views) -> None:
        object.__setattr__(self, "_of", of)
        object.__setattr__(self, "_views", views)

    def __setattr__(self, name: str, value: object) -> None:
        raise PolicyError(f"a policy may look but not touch: '{name}' cannot be set; return an action instead")

    def __delattr__(self, name: str) -> None:
        raise PolicyError(f"a policy may look but not touch: '{name}' cannot be deleted; return an action instead")
