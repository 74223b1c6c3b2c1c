"""Another policy, unchanged, in a world with the real memory and free switches: what switching costs it.

Source: Clockwork++ (the AlpaServe paper, OSDI 2023, compares with a Clockwork that swaps for nothing), policies.md O3.
Loads, stops, resizes, engine starts, KV saves and restores take no time; memory is what it is. The gap between a policy
and itself in here is reload cost; what is left to infinite-memory is lack of memory. The inner policy is asked exactly
as it would be, and sees costs of (nearly) zero wherever it asks what a switch would take. `parameters` are its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sim.policy import Action, Field, Policy, PolicyParameters, View, load_policy


class ZeroSwitchCost(Policy):
    """A realisable policy (`inner`) for whom every switch is free."""

    tier = "oracle"
    oracle = "loads, stops, resizes and KV transfers take no time"
    ideal = ("switches",)

    class Parameters(PolicyParameters):
        inner: str = Field("lru-swap", description="the policy that decides: a name, or the path of its file")
        parameters: dict[str, Any] = Field({}, description="its own parameters")

    def __init__(self, parameters: Parameters | None = None) -> None:
        super().__init__(parameters)
        self._inner, digest = load_policy(self.parameters.inner, self.parameters.parameters)
        if self._inner.oracle:
            raise ValueError(f"inner: {self.parameters.inner} is an oracle itself; choose a policy that can be done")
        self._digests = (digest, *self._inner.parts())

    def parts(self) -> tuple[str, ...]:
        return self._digests

    def start(self, view: View) -> Iterable[Action]:
        return self._inner.start(view)

    def decide(self, view: View) -> Iterable[Action]:
        return self._inner.decide(view)
