"""The base class of all policies, and of their parameters: what a policy is asked, and what it says of itself."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from pydantic import ConfigDict

from sim.common.errors import PolicyError
from sim.policy.interface.actions import Action
from sim.policy.interface.future import Future
from sim.policy.interface.view import View
from sim.scenario.fields import Checked

IDEAL_WORLDS = ("memory", "switches")


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
