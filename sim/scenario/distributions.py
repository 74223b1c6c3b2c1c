"""How a generated workload is described, number by number: laws of lengths and times, arrivals, rates, popularity.

Nothing is drawn here: `draws`, `rates`, `arrivals` and `popularity` do that. `workload.py` makes streams of them.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from sim.scenario.fields import Frozen, Name, NonNegative, Positive, Share

MOST_STEPS = 100_000


# --- laws of numbers


class _Law(Frozen):
    """A distribution of numbers of at least 0; what is drawn outside `min` to `max` becomes the nearer one."""

    min: NonNegative | None = Field(None, description="what is drawn below is raised to this")
    max: Positive | None = Field(None, description="what is drawn above is lowered to this")

    @model_validator(mode="after")
    def _ordered(self) -> _Law:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min must not be above max")
        return self


class Fixed(_Law):
    """Always the same number."""

    law: Literal["fixed"] = "fixed"
    value: NonNegative = Field(description="the number")


class Uniform(_Law):
    """Every number from low to high with the same probability."""

    law: Literal["uniform"] = "uniform"
    low: NonNegative = Field(description="the smallest")
    high: NonNegative = Field(description="the largest")

    @model_validator(mode="after")
    def _rises(self) -> Uniform:
        if self.low > self.high:
            raise ValueError("low must not be above high")
        return self


class Exponential(_Law):
    """Exponential with the given mean."""

    law: Literal["exponential"] = "exponential"
    mean: Positive = Field(description="the mean before any cut")


class Geometric(_Law):
    """Whole numbers from 1 on, each further one with the same probability: turns of a session."""

    law: Literal["geometric"] = "geometric"
    mean: Annotated[float, Field(ge=1, le=1e6)] = Field(description="the mean before any cut, at least 1")


class Pareto(_Law):
    """P(more than x) = (low / x)^exponent: a heavy tail; the mean is finite for exponents above 1."""

    law: Literal["pareto"] = "pareto"
    low: Positive = Field(description="the smallest")
    exponent: Annotated[float, Field(gt=0, le=100)] = Field(description="smaller is heavier")


class LogNormal(_Law):
    """exp of a normal variable: the median, and either the mean (median * exp(sigma^2 / 2)) or sigma."""

    law: Literal["log-normal"] = "log-normal"
    median: Positive = Field(description="the median before any cut")
    mean: Positive | None = Field(None, description="the mean before any cut, at least the median")
    sigma: Annotated[float, Field(ge=0, le=20)] | None = Field(None, description="standard deviation of the logarithm")

    @model_validator(mode="after")
    def _one_spread(self) -> LogNormal:
        if (self.mean is None) == (self.sigma is None):
            raise ValueError("give a log-normal law its mean or its sigma, one of the two")
        if self.mean is not None and self.mean < self.median:
            raise ValueError("a log-normal law has a mean of at least its median")
        return self

    @property
    def log_deviation(self) -> float:
        """The standard deviation of the logarithm."""
        return self.sigma if self.mean is None else math.sqrt(2 * math.log(self.mean / self.median))  # type: ignore[return-value]


def _pairs(value: Any) -> Any:
    return sorted(value.items(), key=lambda pair: _number_or(pair[0])) if isinstance(value, dict) else value


def _number_or(key: Any) -> float:
    try:
        return float(key)
    except (TypeError, ValueError):
        return math.inf


class Quantiles(_Law):
    """An empirical distribution: {probability: value}, from 0 to 1.

    Between two points on a straight line: of the logarithm when all values are above 0, of the value otherwise.
    """

    law: Literal["quantiles"] = "quantiles"
    quantiles: Annotated[tuple[tuple[Share, NonNegative], ...], BeforeValidator(_pairs)] = Field(
        description="{probability: value}, with the probabilities 0 and 1 among them"
    )

    @model_validator(mode="after")
    def _whole_and_rising(self) -> Quantiles:
        points = self.quantiles
        if len(points) < 2 or points[0][0] != 0 or points[-1][0] != 1:
            raise ValueError("give the quantiles 0 (the least) and 1 (the most) too")
        for (before, low), (after, high) in pairwise(points):
            if before >= after or low > high:
                raise ValueError(f"quantile {after:g} ({high:g}) must be above quantile {before:g} ({low:g})")
        return self


def _law_in_full(value: Any) -> Any:
    """A number alone is fixed; a mapping without its law is known by the field that only one law has."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"law": "fixed", "value": value}
    if isinstance(value, dict) and "law" not in value:
        for mark, law in (("quantiles", "quantiles"), ("median", "log-normal"), ("value", "fixed")):
            if mark in value:
                return {"law": law, **value}
    return value


_AnyLaw = Fixed | Uniform | Exponential | Geometric | Pareto | LogNormal | Quantiles
Law = Annotated[_AnyLaw, Field(discriminator="law"), BeforeValidator(_law_in_full)]


# --- arrivals


class _Process(Frozen):
    per: Literal["stream", "model"] = Field(
        "stream", description="stream: one process, each arrival draws its model; model: every model has its own"
    )


class Poisson(_Process):
    """Arrivals without memory."""

    process: Literal["poisson"] = "poisson"
    rate_per_s: Positive = Field(description="mean arrivals a second")


class Gamma(_Process):
    """Independent gaps with a Gamma law: CV below 1 regular, above 1 bursty."""

    process: Literal["gamma"] = "gamma"
    rate_per_s: Positive = Field(description="mean arrivals a second")
    cv: Law = Field(description="standard deviation / mean of the gaps, 0.01 to 100; a law is drawn once per process")


class Weibull(_Process):
    """Independent gaps with a Weibull law."""

    process: Literal["weibull"] = "weibull"
    rate_per_s: Positive = Field(description="mean arrivals a second")
    cv: Law = Field(description="standard deviation / mean of the gaps, 0.05 to 50; a law is drawn once per process")


class State(Frozen):
    """One state of a Markov-modulated process."""

    rate_per_s: NonNegative = Field(description="arrivals a second in this state")
    dwell_s: Positive = Field(description="mean stay, exponentially distributed")


class Mmpp(_Process):
    """A Markov-modulated process: a stay in a state, then any other state with the same probability."""

    process: Literal["mmpp"] = "mmpp"
    states: tuple[State, ...] = Field(description="at least two")
    rate_per_s: Positive | None = Field(None, description="the mean over all states; None: as the states say")
    cv: Law = Field(Fixed(value=1), description="CV of the gaps within a state; 1 is Poisson")

    @model_validator(mode="after")
    def _moves(self) -> Mmpp:
        if len(self.states) < 2 or not any(state.rate_per_s for state in self.states):
            raise ValueError("give mmpp at least two states, one of them with a rate above 0")
        return self


class OnOff(_Process):
    """Bursts and lulls of random length."""

    process: Literal["on-off"] = "on-off"
    rate_per_s: Positive = Field(description="mean arrivals a second, over bursts and lulls")
    on_s: Positive = Field(description="mean length of a burst")
    off_s: Positive = Field(description="mean length of a lull")
    off_share: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="rate in a lull / rate in a burst")
    lengths: Literal["exponential", "pareto"] = Field(
        "exponential",
        description="law of both lengths; pareto (exponent 1.5) has a heavy tail and long-range dependence",
    )
    cv: Law = Field(Fixed(value=1), description="CV of the gaps within a burst or lull; 1 is Poisson")


class Frames(_Process):
    """A fixed rate, as of a camera: frame n arrives at phase + n * period + jitter."""

    process: Literal["frames"] = "frames"
    period_s: Positive = Field(description="seconds from one frame to the next")
    jitter_s: NonNegative = Field(0.0, description="each frame is late by 0 to this, uniformly; at most the period")
    phase_s: NonNegative | None = Field(None, description="time of the first frame; None: anywhere in the first period")
    sources: Annotated[int, Field(ge=1, le=10_000)] = Field(1, description="how many cameras, each with its own phase")

    @model_validator(mode="after")
    def _in_order(self) -> Frames:
        if self.jitter_s > self.period_s:
            raise ValueError("jitter_s must not be above period_s")
        return self


Arrivals = Annotated[Poisson | Gamma | Weibull | Mmpp | OnOff | Frames, Field(discriminator="process")]


# --- rates that change


class Diurnal(Frozen):
    """A cosine over the day with mean 1."""

    peak_to_trough: Annotated[float, Field(ge=1, le=1e6)] = Field(description="highest rate / lowest rate")
    peak_hour: Annotated[float, Field(ge=0, lt=24)] = Field(14.0, description="hour of the highest rate")


class Wander(Frozen):
    """A random walk that returns: exp of a first-order autoregressive process, with mean 1."""

    sigma: Annotated[float, Field(gt=0, le=5)] = Field(description="standard deviation of the logarithm")
    half_life_s: Positive = Field(description="after so long half of a deviation is left")
    every_s: Positive = Field(60.0, description="seconds between two changes")


class RateShape(Frozen):
    """Factors on the arrival rate; those given multiply."""

    diurnal: Diurnal | None = Field(None, description="a cosine over the day")
    hourly: tuple[NonNegative, ...] | None = Field(None, description="24 factors, one an hour, scaled to mean 1")
    weekly: tuple[NonNegative, ...] | None = Field(None, description="7 factors, one a day, scaled to mean 1")
    steps: tuple[tuple[NonNegative, NonNegative], ...] = Field((), description="[from_s, factor], taken as they are")
    wander: Wander | None = Field(None, description="slow random change")
    start_hour: Annotated[float, Field(ge=0, lt=168)] = Field(0.0, description="hour of the week at time 0")

    @model_validator(mode="after")
    def _lengths(self) -> RateShape:
        for name, values, count in (("hourly", self.hourly, 24), ("weekly", self.weekly, 7)):
            if values is not None and (len(values) != count or not sum(values) > 0):
                raise ValueError(f"{name} needs {count} factors, at least one above 0")
        starts = [start for start, _ in self.steps]
        if len(starts) > MOST_STEPS or any(a >= b for a, b in pairwise(starts)):
            order = "in order of time, each later than the one before"
            raise ValueError(f"steps must come {order}, at most {MOST_STEPS:,}")
        return self


# --- which model


class Regimes(Frozen):
    """From time to time the models change places."""

    mean_s: Positive = Field(description="mean time between changes, exponentially distributed")
    change: Literal["shuffle", "rotate"] = Field(
        "shuffle", description="shuffle: all ranks anew; rotate: the most popular goes to the end"
    )


class Scheduled(Frozen):
    """Shares that hold from a time on."""

    from_s: NonNegative = Field(description="when they begin")
    shares: dict[Name, NonNegative] = Field(description="{model: weight}; models not named get none")


class Popularity(Frozen):
    """How the requests of a stream are spread over its models: a law, and how it changes.

    zipf: the model at rank r (from 1, in the order listed) has weight 1 / (r + shift)^exponent.
    """

    law: Literal["zipf", "uniform", "shares"] = Field("zipf", description="zipf, uniform, or shares as given")
    exponent: Annotated[float, Field(ge=0, le=100)] = Field(1.0, description="zipf: the slope; 0 is uniform")
    shift: NonNegative = Field(0.0, description="zipf: flattens the head (Zipf-Mandelbrot)")
    shares: dict[Name, NonNegative] | None = Field(None, description="shares: {model: weight}")
    drift: Wander | None = Field(None, description="each model's weight wanders by itself")
    regimes: Regimes | None = Field(None, description="sudden changes of rank")
    schedule: tuple[Scheduled, ...] = Field((), description="other shares from given times on, in order of time")
    stay: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="probability that a request asks for the model of the one before it"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Popularity:
        if (self.law == "shares") != (self.shares is not None):
            raise ValueError("give shares: {model: weight} with law: shares, and only then")
        for shares in [self.shares, *(item.shares for item in self.schedule)]:
            if shares is not None and not 0 < sum(shares.values()) < math.inf:
                raise ValueError("shares need at least one weight above 0")
        starts = [item.from_s for item in self.schedule]
        if any(a >= b for a, b in pairwise(starts)):
            raise ValueError("schedule must come in order of time, each later than the one before")
        if self.schedule and self.regimes is not None:
            raise ValueError("give schedule or regimes, one of the two")
        return self


def _popularity_in_full(value: Any) -> Any:
    if isinstance(value, dict) and "shares" in value and "law" not in value:
        return {"law": "shares", **value}
    return value


PopularityField = Annotated[Popularity, BeforeValidator(_popularity_in_full)]
