"""Operational time: how many arrivals a changing rate brings until a moment, and back.

A process that is regular or bursty in operational time (gaps of mean 1) keeps that character under any rate. Rates are
products of step functions, known or random, each drawn from its own random numbers and only as far as needed; results
do not depend on how far anybody looks ahead. Called by `arrivals`; `popularity` adds the shares of models.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sim.common.errors import ConfigError
from sim.scenario.distributions import Diurnal, RateShape, Wander

MOST_STEPS = 20_000_000
FURTHEST_S = 1e12  # nothing arrives later
DAY_S = 86_400.0
_MORE = 256  # steps drawn at a time at first; then as many as there are
_PARETO = 1.5  # exponent of heavy-tailed stays: finite mean, infinite variance

Floats = NDArray[np.float64]


class StepFunction(ABC):
    """A function of time that is constant between its starts; `starts[0]` is 0.

    `typical_s` is about how long a step lasts.
    """

    def __init__(self, typical_s: float) -> None:
        self.typical_s = typical_s
        self.known_s = 0.0  # starts before this are all there
        self.starts, self.values = np.zeros(0), np.zeros(0)

    def until(self, end_s: float) -> None:
        """Make sure that every start before end_s is there. Raises ConfigError: far too many."""
        while self.known_s < end_s:
            starts, values, self.known_s = self._more(max(_MORE, len(self.starts)))
            self.starts, self.values = np.concatenate([self.starts, starts]), np.concatenate([self.values, values])
            if len(self.starts) > MOST_STEPS:
                raise too_often("a rate", self.typical_s)

    def at(self, times_s: Floats) -> Floats:
        """The values at times that `until` has covered."""
        return np.asarray(self.values[np.searchsorted(self.starts, times_s, side="right") - 1])

    @abstractmethod
    def _more(self, count: int) -> tuple[Floats, Floats, float]:
        """About `count` further (starts, values), and the time up to which all are known then."""


class Given(StepFunction):
    """Starts and values as given; 1 before the first."""

    def __init__(self, steps: Sequence[tuple[float, float]]) -> None:
        super().__init__(math.inf)
        before = [] if steps[0][0] == 0 else [(0.0, 1.0)]
        self._steps = np.array([*before, *steps], dtype=np.float64)

    def _more(self, count: int) -> tuple[Floats, Floats, float]:
        return self._steps[:, 0], self._steps[:, 1], math.inf


class Periodic(StepFunction):
    """Equal steps that repeat, scaled to a mean of 1; time 0 is `offset_s` into the period."""

    def __init__(self, factors: Sequence[float], step_s: float, offset_s: float) -> None:
        super().__init__(step_s)
        self._factors = np.array(factors) / np.mean(factors)
        self._step_s, self._offset_s = step_s, offset_s

    def _more(self, count: int) -> tuple[Floats, Floats, float]:
        first = len(self.starts) + math.floor(self._offset_s / self._step_s)
        numbers = np.arange(first, first + count)
        starts = np.maximum(numbers * self._step_s - self._offset_s, 0.0)
        return starts, self._factors[numbers % len(self._factors)], (first + count) * self._step_s - self._offset_s


def diurnal(law: Diurnal, offset_s: float) -> Periodic:
    """A cosine in steps of a minute."""
    swing = (law.peak_to_trough - 1) / (law.peak_to_trough + 1)
    hours = (np.arange(1440) + 0.5) / 60
    return Periodic((1 + swing * np.cos(2 * np.pi * (hours - law.peak_hour) / 24)).tolist(), 60.0, offset_s)


class Wandering:
    """First-order autoregressive walks, one a column, begun in their long-run state."""

    def __init__(self, law: Wander, columns: int, generator: np.random.Generator) -> None:
        self._keep = 0.5 ** (law.every_s / law.half_life_s)
        self._sigma, self._generator = law.sigma, generator
        self._now = law.sigma * generator.standard_normal(columns)

    def steps(self, count: int) -> Floats:
        """float64[count, columns]: the walks at the next `count` steps."""
        pushes = self._sigma * math.sqrt(1 - self._keep**2) * self._generator.standard_normal((count, len(self._now)))
        walks = np.empty_like(pushes)
        for number in range(count):
            walks[number] = self._now
            self._now = self._keep * self._now + pushes[number]
        return walks


class WanderingRate(StepFunction):
    """A rate factor that wanders around 1."""

    def __init__(self, law: Wander, generator: np.random.Generator) -> None:
        super().__init__(law.every_s)
        self._walk, self._sigma = Wandering(law, 1, generator), law.sigma

    def _more(self, count: int) -> tuple[Floats, Floats, float]:
        starts = np.arange(len(self.starts), len(self.starts) + count) * self.typical_s
        factors = np.exp(np.asarray(self._walk.steps(count)[:, 0], dtype=np.float64) - self._sigma**2 / 2)
        return starts.astype(np.float64), factors.astype(np.float64), (len(self.starts) + count) * self.typical_s


class Jumps(StepFunction):
    """Random stays in states, each followed by any other state with the same probability.

    At time 0 the state is one of the long run. A heavy-tailed stay begins then: what is left of one at a random moment
    has no mean, and one run in a hundred would be nothing else.
    """

    def __init__(self, rates: Sequence[float], stays_s: Sequence[float], heavy: bool, generator: np.random.Generator):
        super().__init__(float(np.mean(stays_s)))
        self._rates, self._stays_s = np.array(rates), np.array(stays_s)
        self._heavy, self._generator, self._hop = heavy, generator, 0
        share = self._stays_s / self._stays_s.sum()
        self._state = int(np.searchsorted(np.cumsum(share)[:-1], generator.random(), side="right"))

    def _more(self, count: int) -> tuple[Floats, Floats, float]:
        states = len(self._rates)
        uniforms = 1.0 - self._generator.random((count, 2))
        hops = np.minimum(np.floor(uniforms[:, 0] * (states - 1)) + 1, states - 1).astype(np.int64)
        # A hop follows its stay: the last one here is the first one next time.
        before = np.concatenate([[self._hop], hops[:-1]])
        visited = (self._state + np.cumsum(before)) % states
        self._state, self._hop = int(visited[-1]), int(hops[-1])
        means = self._stays_s[visited]
        if self._heavy:
            stays = means * (1 - 1 / _PARETO) * uniforms[:, 1] ** (-1 / _PARETO)
        else:
            stays = -means * np.log(uniforms[:, 1])
        ends = np.cumsum(np.concatenate([[self.known_s], stays]))
        return ends[:-1], self._rates[visited], float(ends[-1])


def shape_steps(shape: RateShape, generator: np.random.Generator) -> list[StepFunction]:
    """The factors of a rate shape; the generator serves what wanders."""
    offset_s = shape.start_hour * 3600.0
    factors: list[StepFunction] = []
    if shape.diurnal is not None:
        factors.append(diurnal(shape.diurnal, offset_s))
    if shape.hourly is not None:
        factors.append(Periodic(shape.hourly, 3600.0, offset_s))
    if shape.weekly is not None:
        factors.append(Periodic(shape.weekly, DAY_S, offset_s))
    if shape.steps:
        factors.append(Given(shape.steps))
    if shape.wander is not None:
        factors.append(WanderingRate(shape.wander, generator))
    return factors


class OperationalTime:
    """Expected arrivals since time 0 of a rate that is the product of a constant and step functions, up to end_s.

    Raises ConfigError, here or later: a rate that changes far too often.
    """

    def __init__(self, rate_per_s: float, factors: Sequence[StepFunction], end_s: float) -> None:
        self._rate_per_s, self._factors, self._end_s = rate_per_s, factors, end_s
        step_s = min((factor.typical_s for factor in factors), default=math.inf)
        if end_s < FURTHEST_S and end_s > MOST_STEPS * step_s:
            raise too_often("a rate", step_s)
        self._block_s = min(1024 * step_s, FURTHEST_S)
        self._blocks = 0
        self._edges_s, self._mass = np.zeros(1), np.zeros(1)

    def moments(self, mass: Floats) -> Floats:
        """Seconds at which so many arrivals are expected to have come (rising numbers); inf from the end on."""
        self._extend(self._end_s, float(mass[-1]))
        moments_s = np.asarray(np.interp(mass, self._mass, self._edges_s))
        moments_s[(mass >= self._mass[-1]) | (moments_s >= self._end_s)] = math.inf
        passed = max(int(np.searchsorted(self._mass, mass[-1])) - 1, 0)
        if passed > 1 << 16:  # what has been passed is not asked for again
            self._edges_s, self._mass = self._edges_s[passed:], self._mass[passed:]
        return moments_s

    def expected(self, until_s: float) -> float:
        """Arrivals expected from time 0 to until_s; about, where `moments` is already far beyond it."""
        until_s = min(until_s, self._end_s)
        self._extend(until_s, math.inf)
        return float(np.interp(until_s, self._edges_s, self._mass))

    def _extend(self, until_s: float, mass: float) -> None:
        """Whole blocks of a fixed length, so that sums depend neither on who asked first nor on the end."""
        edges_s, masses = [self._edges_s], [self._mass]
        while edges_s[-1][-1] < until_s and masses[-1][-1] <= mass:
            start_s, stop_s = self._block_s * self._blocks, self._block_s * (self._blocks + 1)
            self._blocks += 1
            starts: list[Floats] = [np.array([start_s])]
            for factor in self._factors:
                factor.until(stop_s)
                inside = factor.starts[np.searchsorted(factor.starts, start_s, side="right") :]
                starts.append(inside[: np.searchsorted(inside, stop_s)])
            edges = np.unique(np.concatenate(starts))
            rates = np.full(len(edges), self._rate_per_s)
            for factor in self._factors:
                rates *= factor.at(edges)
            ends = np.append(edges[1:], stop_s)
            edges_s.append(ends)
            masses.append(np.cumsum(np.concatenate([masses[-1][-1:], rates * (ends - edges)]))[1:])
        if len(edges_s) > 1:
            self._edges_s, self._mass = np.concatenate(edges_s), np.concatenate(masses)


def too_often(what: str, step_s: float) -> ConfigError:
    """The error for changes that nobody could hold in memory."""
    return ConfigError(f"workload: {what} that changes every {step_s:.3g} s changes too often; slow it")
