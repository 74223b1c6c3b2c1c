"""Which model a request asks for: shares of a stream's models that may drift, change places or follow a schedule.

The shares over time are drawn once per stream from its own random numbers, whatever the requests. Called by `arrivals`
(every model its own process) and by `flows` and `sessions` (each request draws its model).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from sim.scenario.distributions import Popularity
from sim.workload.rates import MOST_STEPS, StepFunction, Wandering, too_often

Floats = NDArray[np.float64]


class Shares:
    """The shares of models over time: `starts[k]` and cumulative shares `edges[k, model]`, as far as asked for."""

    def __init__(self, law: Popularity, models: Sequence[str], streams: Callable[[str], np.random.Generator]) -> None:
        self._law, self.models = law, tuple(models)
        self._base = _base_weights(law, self.models)
        self._ranks = np.arange(len(self.models))
        self._drift = None if law.drift is None else Wandering(law.drift, len(self.models), streams("drift"))
        self._turns = streams("regimes")
        self._changes: list[tuple[float, Floats]] = []  # (start, weights) of regimes or schedule, in order of time
        self._next_s = math.inf if law.regimes is None else 0.0
        for item in law.schedule:
            self._changes.append((item.from_s, _named_weights(item.shares, self.models)))
        self.known_s = 0.0
        self._drift_steps = 0
        self.starts, self.edges = np.zeros(0), np.zeros((0, len(self.models)))

    @property
    def typical_s(self) -> float:
        """About how long shares stay as they are."""
        drift = math.inf if self._law.drift is None else self._law.drift.every_s
        regimes = math.inf if self._law.regimes is None else self._law.regimes.mean_s
        return min(drift, regimes)

    def until(self, end_s: float) -> None:
        """Make sure that the shares before end_s are known. Raises ConfigError: far too many changes."""
        while self.known_s < end_s:
            steps = max(64, min(len(self.starts), 4096))
            start_s = self.known_s
            stop_s = start_s + steps * self.typical_s if self.typical_s < math.inf else math.inf
            while self._next_s < stop_s:
                self._turn()
            edges_s = [start_s, *(at for at, _ in self._changes if start_s < at < stop_s)]
            drifts = np.zeros((1, len(self.models)))
            if self._drift is not None and self._law.drift is not None:
                count = math.ceil(stop_s / self._law.drift.every_s) - self._drift_steps
                drifts = self._drift.steps(count)
                times = (self._drift_steps + np.arange(count)) * self._law.drift.every_s
                self._drift_steps += count
                stop_s = self._drift_steps * self._law.drift.every_s
                while self._next_s < stop_s:
                    self._turn()
                edges_s = [*times.tolist(), *(at for at, _ in self._changes if start_s < at < stop_s)]
            starts = np.unique(np.array(edges_s))
            self._append(starts, drifts, start_s)
            self.known_s = stop_s
            past = sum(at <= stop_s for at, _ in self._changes)
            self._changes = self._changes[max(past - 1, 0) :]

    def _append(self, starts: Floats, drifts: Floats, start_s: float) -> None:
        """Shares from each of the starts on. `drifts[k]`: the walks at the k-th step of drift from start_s on."""
        weights = np.empty((len(starts), len(self.models)))
        begins = np.array([at for at, _ in self._changes])
        which = np.searchsorted(begins, starts, side="right") - 1
        for number, change in enumerate(which.tolist()):
            weights[number] = self._base if change < 0 else self._changes[change][1]
        if self._law.drift is not None:
            steps = np.minimum(((starts - start_s) / self._law.drift.every_s + 1e-9).astype(np.int64), len(drifts) - 1)
            weights = weights * np.exp(drifts[steps])
        cumulative = np.cumsum(weights, axis=1)
        self.starts = np.concatenate([self.starts, starts])
        self.edges = np.concatenate([self.edges, cumulative / cumulative[:, -1:]])
        if self.edges.size > MOST_STEPS:
            raise too_often("a popularity", self.typical_s)

    def _turn(self) -> None:
        """The next change of regime."""
        assert self._law.regimes is not None
        self._next_s += float(self._turns.exponential(self._law.regimes.mean_s))
        if self._law.regimes.change == "shuffle":
            self._ranks = self._turns.permutation(len(self.models))
        else:
            self._ranks = (self._ranks - 1) % len(self.models)
        self._changes.append((self._next_s, self._base[self._ranks]))

    def choose(self, times_s: Floats, uniforms: Floats) -> NDArray[np.int64]:
        """The models (positions in `models`) of requests at these times, one uniform number each."""
        if len(self.models) == 1 or not len(times_s):
            return np.zeros(len(times_s), dtype=np.int64)
        self.until(float(times_s.max()) * (1 + 1e-12) + 1e-9)
        steps = np.searchsorted(self.starts, times_s, side="right") - 1
        chosen = np.empty(len(times_s), dtype=np.int64)
        for step in np.unique(steps).tolist():
            here = steps == step if len(self.starts) > 1 else slice(None)
            chosen[here] = np.searchsorted(self.edges[step], uniforms[here], side="right")
        return np.minimum(chosen, len(self.models) - 1)


class ShareOf(StepFunction):
    """One model's share of a stream, as a factor on its rate."""

    def __init__(self, shares: Shares, model: int) -> None:
        super().__init__(shares.typical_s)
        self._shares, self._model = shares, model

    def _more(self, count: int) -> tuple[Floats, Floats, float]:
        known = len(self.starts)
        wanted_s = self.known_s + count * self.typical_s if self.typical_s < math.inf else math.inf
        self._shares.until(wanted_s)
        edges = self._shares.edges[known:]
        below = edges[:, self._model - 1] if self._model else 0.0
        return self._shares.starts[known:], edges[:, self._model] - below, self._shares.known_s


def _base_weights(law: Popularity, models: tuple[str, ...]) -> Floats:
    if law.shares is not None:
        return _named_weights(law.shares, models)
    exponent = 0.0 if law.law == "uniform" else law.exponent
    logs = -exponent * np.log(np.arange(1, len(models) + 1) + law.shift)
    return np.asarray(np.exp(logs - logs.max()))


def _named_weights(shares: dict[str, float], models: tuple[str, ...]) -> Floats:
    weights = np.array([shares.get(model, 0.0) for model in models])
    assert weights.sum() > 0, "checked with the stream"
    return weights
