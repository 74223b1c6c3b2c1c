"""Models for requests that name none of ours: a popularity law, applied as the requests pass.

Called by `workload`, for a scenario's `assign`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sim.common import rng
from sim.common.errors import ConfigError
from sim.traces.trace import Trace

_LAWS = "zipf:S (for example zipf:1.0), round-robin, uniform"


class Assignment:
    """One pass of giving requests new models; the pieces' sizes do not change who gets which.

    "zipf:S": each request draws model i (from 0) with weight 1 / (i + 1)^S. "uniform": each with the same weight.
    "round-robin": in turn. Raises ConfigError: an unknown law, no models.
    """

    def __init__(self, law: str, models: Sequence[str], seed: int) -> None:
        if not models:
            raise ConfigError("assign: there are no models to assign; give at least one")
        self._models = tuple(models)
        self._count = 0
        self._edges: NDArray[np.float64] | None = None
        if law != "round-robin":
            log_weights = -_zipf_exponent(law) * np.log(np.arange(1, len(models) + 1))
            self._edges = np.cumsum(np.exp(log_weights))
        self._draws = rng.stream(seed, "assign")

    def apply(self, chunk: Trace) -> Trace:
        """The next requests with their models replaced; arrivals and lengths stay as they are."""
        count = len(self._models)
        if self._edges is None:
            chosen = np.arange(self._count, self._count + len(chunk)) % count
        else:
            draws = self._draws.random(len(chunk)) * self._edges[-1]
            chosen = np.minimum(np.searchsorted(self._edges, draws, side="right"), count - 1)
        self._count += len(chunk)
        return replace(chunk, model=chosen.astype(np.int32), models=self._models)


def _zipf_exponent(law: str) -> float:
    if law == "uniform":
        return 0.0
    name, _, text = law.partition(":")
    if name == "zipf":
        try:
            exponent = float(text)
        except ValueError:
            exponent = math.nan
        if not 0 <= exponent <= 100:
            raise ConfigError(f"assign: '{law}' needs an exponent from 0 to 100, for example zipf:1.0")
        return exponent
    raise ConfigError(f"assign: unknown law '{law}'; the laws are {_LAWS}")
