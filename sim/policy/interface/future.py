"""What no scheduler can know: the whole trace before it is played, for policies that foresee (oracles, marked as such).

The engine makes it of the run's own requests, all in memory, and gives it to a policy whose class says `foresees`;
no other policy gets to it. A request of a closed loop (think_s) has only its earliest time here: when it really comes
depends on when the one before it ends, which nobody knows before the policy has decided.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING

import numpy as np

from sim.policy.interface.models import ModelView
from sim.policy.interface.requests import RequestView

if TYPE_CHECKING:
    from sim.traces.trace import Trace


class Future:
    """All requests of a run.

    chunks: the trace as it is played, in order of arrival, with the scenario's models. closed_loop: how many of the
    requests have only their earliest time.
    """

    def __init__(self, chunks: Sequence[Trace], models: Sequence[str]) -> None:
        self.chunks = tuple(chunks)
        self.requests = sum(len(chunk) for chunk in self.chunks)
        self.closed_loop = sum(int((~np.isnan(c.think_s)).sum()) for c in self.chunks if c.think_s is not None)
        self._arrivals_s: dict[str, list[float]] = {}
        for code, name in enumerate(models):
            parts = [chunk.arrival_s[chunk.model == code] for chunk in self.chunks]
            self._arrivals_s[name] = np.concatenate(parts).tolist() if parts else []

    def arrivals_s(self, model: ModelView) -> Sequence[float]:
        """When the requests of this model come, in order (those of a closed loop at the earliest)."""
        return self._arrivals_s[model.name]

    def next_arrival_s(self, model: ModelView, after_s: float) -> float:
        """The first arrival of the model after this time; infinity: none comes. By bisection."""
        arrivals_s = self._arrivals_s[model.name]
        place = bisect_right(arrivals_s, after_s)
        return arrivals_s[place] if place < len(arrivals_s) else inf

    def output_tokens(self, request: RequestView) -> int:
        """How many tokens the request's whole answer will have."""
        return request._of.output_tokens

    def remaining_tokens(self, request: RequestView) -> int:
        """How many tokens of its answer are still to come."""
        return request._of.output_tokens - request.produced_tokens
