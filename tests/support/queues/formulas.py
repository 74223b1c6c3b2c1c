"""Queueing theory: laws of service on a lattice of tokens, formulas for queues in their long run, control variates.

Pure mathematics, with its sources; nothing here knows the simulator. cases.py measures against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, factorial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

Floats = NDArray[np.float64]


# --- laws of service


@dataclass(frozen=True)
class Service:
    """A law of whole tokens (at least 1), each of which takes `tick_s`: `chances[n]` is that of n tokens.

    It is exactly what the workload draws: a continuous law rounded to the nearest token, and to 1 below that.
    """

    chances: Floats
    tick_s: float

    def moment(self, power: int) -> float:
        """Mean of the service time to this power, s**power."""
        return float(((np.arange(len(self.chances)) * self.tick_s) ** power) @ self.chances)

    @property
    def mean_s(self) -> float:
        return self.moment(1)

    def mixed(self, share: float, other: Service) -> Service:
        """`share` of the requests are of this law, the rest of the other."""
        assert self.tick_s == other.tick_s
        width = max(len(self.chances), len(other.chances))
        own, its = (np.pad(law.chances, (0, width - len(law.chances))) for law in (self, other))
        return Service(share * own + (1 - share) * its, self.tick_s)

    def with_extra(self, ticks: int, chance: float) -> Service:
        """So many ticks more with this chance, independently."""
        wide = np.pad(self.chances, (0, ticks))
        return Service((1 - chance) * wide + chance * np.roll(wide, ticks), self.tick_s)


def rounded(law: dict[str, Any], tick_s: float) -> Service:
    """The lattice of a law as a scenario names it: fixed, exponential, uniform or log-normal."""
    kind = law["law"]
    if kind == "fixed":
        certain: Floats = np.eye(int(law["value"]) + 1)[-1]
        return Service(certain, tick_s)
    below: Callable[[Floats], Floats]
    if kind == "exponential":
        below, most = lambda x: -np.expm1(-x / law["mean"]), 25 * law["mean"]
    elif kind == "uniform":
        below, most = stats.uniform(law["low"], law["high"] - law["low"]).cdf, law["high"] + 1
    else:
        assert kind == "log-normal"
        below, most = stats.lognorm(law["sigma"], scale=law["median"]).cdf, law["max"]
    edges: Floats = np.arange(int(most) + 1, dtype=np.float64) + 0.5
    cumulative = below(edges).astype(np.float64)
    if "max" in law:
        cumulative[-1] = 1.0  # what is drawn above is lowered to it
    chances: Floats = np.diff(cumulative, prepend=0.0)
    chances[1] += chances[0]
    chances[0] = 0.0
    shares: Floats = np.asarray(chances / chances.sum(), dtype=np.float64)
    return Service(shares, tick_s)


# --- formulas; times in s, rates a second. Kleinrock, Queueing Systems I and II, unless said otherwise.


def pollaczek_khinchine_s(rate: float, service: Service) -> float:
    """Mean wait of M/G/1, first come first served."""
    return rate * service.moment(2) / (2 * (1 - rate * service.mean_s))


def erlang_c_wait_s(rate: float, mean_s: float, servers: int) -> float:
    """Mean wait of M/M/c."""
    offered = rate * mean_s
    blocked = erlang_b(offered, servers)
    waits = blocked / (1 - offered / servers * (1 - blocked))
    return waits * mean_s / (servers - offered)


def erlang_b(offered: float, servers: int) -> float:
    """The share of requests that a loss system turns away, whatever the law of service."""
    terms = [offered**n / factorial(n) for n in range(servers + 1)]
    return terms[-1] / sum(terms)


def finite_room(load: float, room: int) -> list[float]:
    """M/M/1/K: the chances of 0 to K requests in the system."""
    weights = [load**n for n in range(room + 1)]
    return [weight / sum(weights) for weight in weights]


def priority_waits_s(rates: Sequence[float], services: Sequence[Service]) -> list[float]:
    """Mean wait of each class, the most urgent first; who is served stays (Cobham)."""
    residual_s = sum(rate * service.moment(2) for rate, service in zip(rates, services, strict=True)) / 2
    waits_s, above = [], 0.0
    for rate, service in zip(rates, services, strict=True):
        here = above + rate * service.mean_s
        waits_s.append(residual_s / ((1 - above) * (1 - here)))
        above = here
    return waits_s


def preemptive_times_s(rates: Sequence[float], services: Sequence[Service]) -> list[float]:
    """Mean time in the system of each class, the most urgent first; who is interrupted goes on later (resume)."""
    times_s, above, residual_s = [], 0.0, 0.0
    for rate, service in zip(rates, services, strict=True):
        residual_s += rate * service.moment(2) / 2
        here = above + rate * service.mean_s
        times_s.append(service.mean_s / (1 - above) + residual_s / ((1 - above) * (1 - here)))
        above = here
    return times_s


def set_up_wait_s(rate: float, service: Service, set_up_s: float) -> float:
    """M/G/1 whose server is switched off when idle, and takes set_up_s to come back (Welch; Takagi, Vacation I)."""
    extra_s = (2 * set_up_s + rate * set_up_s**2) / (2 * (1 + rate * set_up_s))
    return pollaczek_khinchine_s(rate, service) + extra_s


def polling_wait_s(loads: Sequence[float], rate: float, service: Service, switch_s: float) -> float:
    """Mean wait, weighted by load, of queues served until empty in turn, each switch taking switch_s; all requests have
    the same law. The pseudo-conservation law (Boxma and Groenendijk 1987); with equal loads it is everybody's mean."""
    load, cycle_s = sum(loads), len(loads) * switch_s
    spread = load**2 - sum(own**2 for own in loads)
    return rate * service.moment(2) / (2 * (1 - load)) + cycle_s / 2 + cycle_s / (2 * (1 - load)) * spread / load


# --- control variates: functions of a run's own arrivals and services whose mean is known

Controls = list[tuple[Floats, float]]  # values by request, and their mean


def plain_controls(arrival_s: Floats, service_s: Floats, rate: float, service: Service) -> Controls:
    """Gaps and services, and their squares."""
    gap_s = np.diff(arrival_s, prepend=0.0)
    own = [(service_s**power, service.moment(power)) for power in (1, 2)] if service_s.std() > 0 else []
    return [(gap_s, 1 / rate), (gap_s**2, 2 / rate**2), *own]


def window_controls(
    arrival_s: Floats, service_s: Floats, rate: float, service: Service, windows: Sequence[int]
) -> Controls:
    """The work found by a request if the queue had been empty so many requests ago.

    Their means: Spitzer's identity, E[W_m] = sum over k <= m of E[(S_1 + .. + S_k - A_1 - .. - A_k)+] / k.
    """
    gap_s = np.diff(arrival_s, prepend=0.0)
    found: Controls = []
    work_s, mean_s = np.zeros(len(gap_s)), 0.0
    chances = np.ones(1)
    for window in range(1, max(windows) + 1):
        before_s = np.concatenate([[0.0], (work_s + service_s)[:-1]])
        work_s = np.maximum(0.0, before_s - gap_s)
        chances = _fold(chances, service.chances)
        total_s = np.arange(len(chances)) * service.tick_s
        # E[(x - Erlang(k))+] = x P(Erlang(k) < x) - k / rate P(Erlang(k + 1) < x)
        left_s = total_s * special.gammainc(window, rate * total_s)
        left_s -= window / rate * special.gammainc(window + 1, rate * total_s)
        mean_s += float(left_s @ chances) / window
        if window in windows:
            found.append((work_s.copy(), mean_s))
    return found


def _fold(left: Floats, right: Floats) -> Floats:
    """The law of a sum, without the part of its tail that nobody will see."""
    size = len(left) + len(right) - 1
    both = np.maximum(np.fft.irfft(np.fft.rfft(left, 2 * size) * np.fft.rfft(right, 2 * size), 2 * size)[:size], 0.0)
    last = int(np.searchsorted(np.cumsum(both), 1 - 1e-12)) + 1
    return np.asarray(both[:last])


def crowd_controls(arrival_s: Floats, service_s: Floats, offered: float, counts: Sequence[int]) -> Controls:
    """Would a request find at least so many others, were there a server for everybody? Theirs is Poisson's law."""
    gone_s = np.sort(arrival_s + service_s)
    order = np.searchsorted(gone_s, arrival_s, side="right")
    crowd = np.arange(len(arrival_s)) - order
    chances = [exp(-offered) * offered**n / factorial(n) for n in range(max(counts) + 1)]
    found: Controls = [(crowd.astype(float), offered)]
    return [*found, *((np.asarray(crowd >= n, dtype=float), 1 - sum(chances[:n])) for n in counts)]


# --- estimates

BATCHES = 100
FIRST = 256  # so many requests at the start are left out: the queue was empty then


@dataclass(frozen=True)
class Estimate:
    """A mean, and half its 95 % confidence interval."""

    mean: float
    half_width: float
    error: float  # one standard error
    freedom: int  # degrees of freedom of its t

    def wide(self, chance: float) -> float:
        """Half of the interval that misses the truth with this chance."""
        return float(stats.t.ppf(1 - chance / 2, self.freedom)) * self.error


def estimate(values: Floats, controls: Controls = [], among: NDArray[np.bool_] | None = None) -> Estimate:  # noqa: B006
    """The mean of values (those `among` them) by batch means, with what the controls explain taken out by regression.

    The intercept of a least-squares fit of the batch means of the values to those of the controls less their known
    means is the estimate; its standard error is the fit's.
    """
    values = np.asarray(values, dtype=float)[FIRST:]
    if among is not None:  # a ratio of means, made linear
        chosen = among[FIRST:]
        middle = values[chosen].mean()
        values = middle + chosen * (values - middle) / chosen.mean()
    size = len(values) // BATCHES

    def means(column: Floats) -> Floats:
        return np.asarray(column[len(column) - size * BATCHES :].reshape(BATCHES, size).mean(axis=1))

    known = [means(column[FIRST:]) - mean for column, mean in controls]
    design = np.column_stack([np.ones(BATCHES), *known])
    solution, _, rank, _ = np.linalg.lstsq(design, means(values), rcond=None)
    residual = means(values) - design @ solution
    freedom = BATCHES - int(rank)
    variance = residual @ residual / freedom * np.linalg.pinv(design.T @ design)[0, 0]
    error = float(np.sqrt(variance))
    return Estimate(float(solution[0]), float(stats.t.ppf(0.975, freedom)) * error, error, freedom)
