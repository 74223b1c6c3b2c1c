"""When requests come: renewal processes under a changing rate, bursts, and frames at a fixed rate.

Every source gives its arrivals window by window, the same ones however the windows are cut. Called by `flows` and
`sessions`; rates over time are `rates`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sim.common.errors import ConfigError
from sim.scenario.distributions import Arrivals, Fixed, Frames, Gamma, Mmpp, OnOff, Poisson, Weibull
from sim.scenario.workload import StreamSpec
from sim.workload import draws
from sim.workload.rates import Given, Jumps, OperationalTime, StepFunction, shape_steps

Floats = NDArray[np.float64]
Streams = Callable[[str], np.random.Generator]  # the random numbers of one process for the purpose named

MOST_AHEAD = 1 << 16  # gaps drawn at a time


class ArrivalSource(Protocol):
    """Arrivals in order of time."""

    def until(self, end_s: float) -> Floats:
        """Those before end_s that have not been given yet, float64[n] in s, in order."""
        ...

    def expected(self, end_s: float) -> float:
        """About how many there will have been at end_s."""
        ...


class Renewal:
    """Independent gaps of mean 1 in operational time, begun in the long-run state, so that the rate holds from 0 on."""

    def __init__(self, clock: OperationalTime, cv: float, weibull: bool, generator: np.random.Generator) -> None:
        self._clock, self._generator = clock, generator
        self._gaps, first = _gaps(cv, weibull)
        self._mass = first(generator)  # of the next arrival that has no moment yet
        self._ready = np.zeros(0)
        self._over = False

    def until(self, end_s: float) -> Floats:
        parts = [self._ready]
        while not self._over and not (len(parts[-1]) and parts[-1][-1] >= end_s):
            missing = self._clock.expected(end_s) - self._mass
            count = int(min(max(1.02 * missing + 4 * math.sqrt(max(missing, 0.0)), 64), MOST_AHEAD))
            masses = np.cumsum(np.concatenate([[self._mass], self._gaps(self._generator, count)]))
            self._mass = float(masses[-1])
            moments_s = self._clock.moments(masses[:-1])
            if moments_s[-1] == math.inf:
                self._over = True
                moments_s = moments_s[: np.searchsorted(moments_s, math.inf)]
            parts.append(moments_s)
        ready = np.concatenate(parts) if len(parts) > 1 else parts[0]
        cut = int(np.searchsorted(ready, end_s))
        self._ready = ready[cut:]
        return ready[:cut]

    def expected(self, end_s: float) -> float:
        return self._clock.expected(end_s)


def _gaps(
    cv: float, weibull: bool
) -> tuple[Callable[[np.random.Generator, int], Floats], Callable[[np.random.Generator], float]]:
    """Gaps of mean 1 with this CV, and the wait from a random moment to the next arrival.

    That wait is a uniform part of a gap drawn in proportion to its length (renewal theory: inspection paradox).
    """
    if cv == 1:
        return lambda generator, count: generator.standard_exponential(count), lambda g: float(g.standard_exponential())
    if not weibull:
        shape = 1 / cv**2
        return (
            lambda generator, count: generator.standard_gamma(shape, count) / shape,
            lambda generator: float(generator.standard_gamma(shape + 1) / shape * generator.random()),
        )
    shape = weibull_shape(cv)
    mean = math.gamma(1 + 1 / shape)
    return (
        lambda generator, count: generator.standard_exponential(count) ** (1 / shape) / mean,
        lambda g: float(g.standard_gamma(1 + 1 / shape) ** (1 / shape) / mean * g.random()),
    )


def weibull_shape(cv: float) -> float:
    """The shape of a Weibull law with this CV: CV^2 + 1 = Gamma(1 + 2/k) / Gamma(1 + 1/k)^2, by bisection."""
    low, high = 0.05, 200.0
    for _ in range(100):
        middle = math.sqrt(low * high)
        spread = math.expm1(math.lgamma(1 + 2 / middle) - 2 * math.lgamma(1 + 1 / middle))
        low, high = (middle, high) if spread > cv**2 else (low, middle)
    return math.sqrt(low * high)


class Camera:
    """One source of frames."""

    def __init__(self, law: Frames, span_s: tuple[float, float], generator: np.random.Generator) -> None:
        self._law, self._generator = law, generator
        start_s, self._end_s = span_s
        phase_s = float(generator.random()) * law.period_s if law.phase_s is None else law.phase_s
        self._first_s = start_s + phase_s
        self._next = 0
        self._ready = np.zeros(0)

    def until(self, end_s: float) -> Floats:
        end_s = min(end_s, self._end_s)
        last = max(math.ceil((end_s - self._first_s) / self._law.period_s) + 1, self._next)
        due_s = self._first_s + np.arange(self._next, last) * self._law.period_s
        self._next = last
        due_s += self._generator.random(len(due_s)) * self._law.jitter_s
        ready = np.concatenate([self._ready, np.maximum.accumulate(due_s)])
        cut = int(np.searchsorted(ready, end_s))
        self._ready = ready[cut:]
        return ready[:cut]

    def expected(self, end_s: float) -> float:
        return max(min(end_s, self._end_s) - self._first_s, 0.0) / self._law.period_s


def source(stream: StreamSpec, end_s: float, streams: Streams, share: StepFunction | None) -> ArrivalSource:
    """The arrivals of one process of a stream before end_s; `share`: the part of the rate that is one model's.

    Raises ConfigError: a CV drawn from a law that no process can have.
    """
    process = stream.arrivals
    span_s = (stream.from_s, min(end_s, stream.until_s or math.inf))
    if isinstance(process, Frames):
        return Camera(process, span_s, streams("arrivals"))
    shape = stream.rate_shape
    if shape.steps and shape.steps[-1][1] == 0:
        span_s = (span_s[0], min(span_s[1], shape.steps[-1][0]))
    factors = shape_steps(shape, streams("wander"))
    if stream.from_s:
        factors.append(Given([(0.0, 0.0), (stream.from_s, 1.0)]))
    if share is not None:
        factors.append(share)
    rate_per_s, phases = _phases(process, streams("phases"))
    clock = OperationalTime(rate_per_s, [*factors, *phases], max(span_s[1], 1e-9))
    return Renewal(clock, _cv(stream, streams), isinstance(process, Weibull), streams("arrivals"))


def nominal_rate(process: Arrivals) -> float:
    """Arrivals a second that a process is meant to bring on average; of one model, when frames are per model."""
    if isinstance(process, Frames):
        return process.sources / process.period_s
    if isinstance(process, Mmpp) and process.rate_per_s is None:
        stays_s = sum(state.dwell_s for state in process.states)
        return sum(state.rate_per_s * state.dwell_s for state in process.states) / stays_s
    assert process.rate_per_s is not None
    return process.rate_per_s


def _phases(
    process: Poisson | Gamma | Weibull | Mmpp | OnOff, generator: np.random.Generator
) -> tuple[float, Sequence[StepFunction]]:
    """The constant part of the rate, and the random states that change it."""
    if isinstance(process, Mmpp):
        stays_s = [state.dwell_s for state in process.states]
        rates = [state.rate_per_s for state in process.states]
        mean = nominal_rate(process.model_copy(update={"rate_per_s": None}))
        scale = 1.0 if process.rate_per_s is None else process.rate_per_s / mean
        return scale, [Jumps(rates, stays_s, False, generator)]
    if isinstance(process, OnOff):
        whole_s = process.on_s + process.off_s
        burst = whole_s / (process.on_s + process.off_share * process.off_s)
        rates = [burst, burst * process.off_share]
        return process.rate_per_s, [Jumps(rates, [process.on_s, process.off_s], process.lengths == "pareto", generator)]
    return process.rate_per_s, []


def _cv(stream: StreamSpec, streams: Streams) -> float:
    law = getattr(stream.arrivals, "cv", Fixed(value=1))
    cv = float(draws.values(law, streams("cv").standard_normal(1))[0])
    low, high = (0.05, 50) if isinstance(stream.arrivals, Weibull) else (0.01, 100)
    if not low <= cv <= high:
        mend = f"keep it from {low:g} to {high:g} with min and max"
        raise ConfigError(f"workload: stream '{stream.name}': its law gave a CV of {cv:.3g}; {mend}")
    return cv
