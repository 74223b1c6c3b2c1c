"""Drawn requests: whole workloads from rates and length laws, and models for traces that name none.

Every model and purpose has its own named random stream, so that changing one model's traffic changes nothing
of the others'. Called by `workload` and by the command line.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sim import rng
from sim.errors import ConfigError, did_you_mean
from sim.spec import GenerateWorkload, ModelTraffic
from sim.trace import Trace

MOST_REQUESTS = 50_000_000  # a few GB of columns

Streams = Callable[[str], np.random.Generator]  # the stream of one model's traffic for the purpose named

_LAWS = "zipf:S (for example zipf:1.0), round-robin, uniform"


def assign_models(trace: Trace, law: str, models: Sequence[str], seed: int) -> Trace:
    """The same requests with their models replaced by the given ones, by a popularity law.

    "zipf:S": each request draws model i (from 0) with weight 1 / (i + 1)^S. "uniform": each with the same
    weight. "round-robin": in turn. Arrivals and lengths stay as they are. Raises ConfigError: an unknown law,
    no models.
    """
    if not models:
        raise ConfigError("assign: there are no models to assign; give at least one")
    count = len(models)
    if law == "round-robin":
        chosen = np.arange(len(trace)) % count
    else:
        log_weights = -_zipf_exponent(law) * np.log(np.arange(1, count + 1))
        edges = np.cumsum(np.exp(log_weights))
        draws = rng.stream(seed, "assign").random(len(trace)) * edges[-1]
        chosen = np.minimum(np.searchsorted(edges, draws, side="right"), count - 1)
    return replace(trace, model=chosen.astype(np.int32), models=tuple(models))


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


def generate(workload: GenerateWorkload, seed: int, service_classes: Sequence[str]) -> Trace:
    """The requests of all models in [0, duration_s) by arrival; `ModelTraffic` says how each is drawn.

    Models are numbered in the order in which the traffic first names them. Raises ConfigError: an unknown
    service class, more than MOST_REQUESTS expected, or none drawn.
    """
    expected = sum(traffic.rate_per_s for traffic in workload.traffic) * workload.duration_s
    _affordable(expected)
    models = tuple(dict.fromkeys(traffic.model for traffic in workload.traffic))
    classes = tuple(service_classes)
    seen: Counter[str] = Counter()
    parts: list[tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]] = []
    owners: list[tuple[int, int]] = []
    for traffic in workload.traffic:
        if traffic.service_class not in classes:
            hint = did_you_mean(traffic.service_class, classes)
            raise ConfigError(f"workload: unknown service class '{traffic.service_class}'; {hint}")
        # A model may have several kinds of traffic: counting its own keeps other models out of it.
        streams = partial(rng.stream, seed, "generate", traffic.model, seen[traffic.model])
        parts.append(_draw(traffic, workload.duration_s, streams))
        seen[traffic.model] += 1
        owners.append((models.index(traffic.model), classes.index(traffic.service_class)))
    sizes = [len(arrivals) for arrivals, _, _ in parts]
    if not sum(sizes):
        raise ConfigError("workload: no request falls within duration_s; make it longer or raise rate_per_s")
    arrival_s = np.concatenate([arrivals for arrivals, _, _ in parts])
    order = np.argsort(arrival_s, kind="stable")
    return Trace(
        arrival_s=arrival_s[order],
        model=np.repeat([model for model, _ in owners], sizes).astype(np.int32)[order],
        models=models,
        prompt_tokens=np.concatenate([prompts for _, prompts, _ in parts])[order],
        output_tokens=np.concatenate([outputs for _, _, outputs in parts])[order],
        service_class=np.repeat([owner for _, owner in owners], sizes).astype(np.int32)[order],
        service_classes=classes,
        session=np.full(len(order), -1, dtype=np.int64),
        sessions=(),
        priority=np.zeros(len(order), dtype=np.int32),
    )


def _affordable(expected: float) -> None:
    if not expected <= MOST_REQUESTS:
        about = f"about {expected:.3g} requests, the most is {MOST_REQUESTS:,}"
        raise ConfigError(f"workload: {about}; lower rate_per_s or duration_s")


def _draw(
    traffic: ModelTraffic, duration_s: float, streams: Streams
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Arrivals in s, prompt tokens and output tokens of one model's traffic."""
    arrival_s = _arrivals(traffic, duration_s, streams)
    count = len(arrival_s)
    prompts = _lengths(streams("prompt"), count, (traffic.prompt_median, traffic.prompt_mean), traffic.prompt_max)
    outputs = _lengths(streams("output"), count, (traffic.output_median, traffic.output_mean), traffic.output_max)
    return arrival_s, prompts, outputs


def _arrivals(traffic: ModelTraffic, duration_s: float, streams: Streams) -> NDArray[np.float64]:
    """A Poisson process in operational time, mapped back through the integrated rate of the on/off process.

    With burst rate f * r and idle rate q * r, the mean stays r when the share of time in bursts is (1-q) /
    (f-q).
    """
    edges_s, in_burst = _phases(traffic, duration_s, streams("phases"))
    rates = traffic.rate_per_s * np.where(in_burst, traffic.burst_factor, traffic.idle_share)
    mass = np.concatenate([[0.0], np.cumsum(rates * np.diff(edges_s))])
    _affordable(float(mass[-1]))
    generator = streams("arrivals")
    count = int(generator.poisson(mass[-1]))
    if not count:
        return np.zeros(0)
    arrival_s: NDArray[np.float64] = np.interp(np.sort(generator.random(count)) * mass[-1], mass, edges_s)
    return np.minimum(arrival_s, np.nextafter(duration_s, 0))


def _phases(
    traffic: ModelTraffic, duration_s: float, generator: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Edges in s (from 0 to duration_s) and, for each phase between them, whether it is a burst.

    Exponential lengths and a start in the long-run state, so that the mean rate holds from time 0 on.
    """
    if traffic.burst_factor == 1:
        return np.array([0.0, duration_s]), np.array([True])
    share = (1 - traffic.idle_share) / (traffic.burst_factor - traffic.idle_share)
    cycle_s = traffic.burst_s / share
    if not duration_s / cycle_s <= MOST_REQUESTS:
        raise ConfigError(f"workload: burst_s {traffic.burst_s:g} of '{traffic.model}' is too short; raise it")
    starts_in_burst = bool(generator.random() < share)
    means = np.array([traffic.burst_s, cycle_s - traffic.burst_s])
    edges = np.zeros(1)
    while edges[-1] < duration_s:
        more = 2 * (int((duration_s - edges[-1]) / cycle_s * 1.1) + 8)
        lengths = generator.exponential(size=more) * np.resize(means if starts_in_burst else means[::-1], more)
        edges = np.concatenate([edges, edges[-1] + np.cumsum(lengths)])
    inside = np.append(edges[edges < duration_s], duration_s)
    return inside, (np.arange(len(inside) - 1) % 2 == 0) == starts_in_burst


def _lengths(
    generator: np.random.Generator, count: int, median_mean: tuple[float, float], most: int
) -> NDArray[np.int64]:
    """Log-normal tokens, rounded and cut to 1..most; mean = median * exp(sigma^2 / 2) before the cut."""
    median, mean = median_mean
    sigma = math.sqrt(2 * math.log(mean / median))
    drawn = np.exp(math.log(median) + sigma * generator.standard_normal(count))
    return np.clip(np.rint(drawn), 1, most).astype(np.int64)
