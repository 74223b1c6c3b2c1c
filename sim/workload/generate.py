"""Drawn requests: whole workloads from streams, presets or rates.

Processes (`flows`, `sessions`, and the older `traffic` here) give their requests window by window; `merging` makes a
trace of them, so that memory holds a window and what is in flight. Every process and purpose has its own named random
numbers: neither the windows, nor the order of streams, nor another stream changes anything of one. Called by `workload`
and by the command line.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.common import rng
from sim.common.errors import ConfigError
from sim.common.yaml_files import read_yaml
from sim.scenario.presets import default_models, preset_names
from sim.scenario.scenario import override
from sim.scenario.workload import DEFAULT_CLASS, GenerateWorkload, ModelTraffic, StreamSpec, parse_workload
from sim.traces.stream import CHUNK_ROWS, TraceStream, gather
from sim.traces.trace import Trace
from sim.workload import draws
from sim.workload.arrivals import ArrivalSource, Streams, nominal_rate
from sim.workload.flows import Flow, Names, Parts, Plain, flows
from sim.workload.merge import Merge, optional_columns
from sim.workload.prefixes import Rows
from sim.workload.rates import FURTHEST_S
from sim.workload.sessions import Conversations

MOST_REQUESTS = 50_000_000  # at once in memory: a few GB of columns
MOST_STREAMED = 10_000_000_000  # more is a slip of the pen


def generate(
    workload: GenerateWorkload, seed: int, service_classes: Sequence[str], models: Sequence[str] | None = None
) -> Trace:
    """The requests of `generate_stream` as one trace. Raises ConfigError: also more than MOST_REQUESTS."""
    _affordable(nominal_rows(workload))
    return gather(_limited(generate_stream(workload, seed, service_classes, models)))


def generate_stream(
    workload: GenerateWorkload,
    seed: int,
    service_classes: Sequence[str],
    models: Sequence[str] | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> TraceStream:
    """The requests of a workload in order of arrival, in chunks of at most chunk_rows.

    models: those of the scenario, which `models: all` stands for; None: those that the workload names, in the order
    in which it does. Requests with equal arrivals come in the order of `traffic`, then by the streams' names. Extras:
    `turn` (from 1) with sessions, `prefix_blocks` with prefixes. Raises ConfigError, here or while the chunks are read:
    a model or class that is not there, lengths no request can have, nothing drawn.
    """
    if models is None:
        models = tuple(dict.fromkeys(name for _, name in workload.models_named()))
        unnamed = next((stream.name for stream in workload.streams if stream.models is None), None)
        if unnamed is not None and not models:
            asks = "asks for all models of a scenario; give it models: [NAME, ...]"
            raise ConfigError(f"workload: stream '{unnamed}' {asks}")
    names = Names(tuple(models), tuple(service_classes))
    end_s = workload.duration_s or FURTHEST_S
    sources: list[tuple[str, Flow]] = []
    seen: Counter[str] = Counter()
    _affordable(sum(traffic.rate_per_s for traffic in workload.traffic) * (workload.duration_s or 0.0))
    _affordable(nominal_rows(workload), MOST_STREAMED)
    for traffic in workload.traffic:
        # A model may have several kinds of traffic: counting its own keeps other models out of it.
        streams = partial(rng.stream, seed, "generate", traffic.model, seen[traffic.model])
        seen[traffic.model] += 1
        sources.append(("", _Traffic(traffic, end_s, names, streams)))
    for stream in sorted(workload.streams, key=lambda stream: stream.name or ""):
        found = flows(stream, names, end_s, partial(_streams, seed, stream.name or ""), partial(_flow, end_s=end_s))
        labels = [stream.name or ""] if len(found) == 1 else [f"{stream.name}/{number}" for number in range(len(found))]
        sources += zip(labels, found, strict=True)
    merge = Merge(sources, names, end_s, workload.rows, optional_columns(workload))
    return TraceStream(merge.chunks(chunk_rows), "workload")


def _streams(seed: int, name: str, *process: str | int) -> Streams:
    return partial(rng.stream, seed, "workload", name, *process)


def _flow(stream: StreamSpec, arrivals: ArrivalSource, parts: Parts, end_s: float) -> Flow:
    if stream.sessions is None:
        return Plain(stream, arrivals, parts)
    return Conversations(stream, arrivals, parts, end_s)


def stream_from_file(
    what: str, settings: Sequence[str] = (), seed: int | None = None, rows: int | None = None
) -> tuple[TraceStream, dict[str, Any]]:
    """The requests that a preset's name or a YAML file describes, and the plain data that remakes them (`from_recipe`).

    The file holds a workload, or a scenario with one. settings: a.b=c, paths inside the workload. seed: None: the
    scenario's, or 1. rows: at most so many. Raises ConfigError.
    """
    if what in preset_names() and not Path(what).is_file():
        data: Any = {"preset": what}
    elif Path(what).suffix in (".yaml", ".yml") or Path(what).exists():
        data = read_yaml(Path(what))
    else:
        raise ConfigError(f"'{what}' is neither a file nor a preset; the presets are {', '.join(preset_names())}")
    whole = data if isinstance(data, dict) and "workload" in data else {}
    data = whole.get("workload", data)
    if not isinstance(data, dict):
        raise ConfigError(f"{what}: a workload is a mapping with duration_s and streams, or with preset")
    data = override(data, settings)
    if rows is not None:
        data["rows"] = rows
    workload = parse_workload(data, what)
    recipe: dict[str, Any] = {"generate": workload.model_dump(mode="json"), **_beside(workload, data, whole)}
    recipe["seed"] = whole.get("seed", 1) if seed is None else seed
    if isinstance(recipe["seed"], bool) or not isinstance(recipe["seed"], int) or not 0 <= recipe["seed"] < 2**63:
        raise ConfigError(f"{what}: a seed is a whole number from 0 to 2^63 - 1, not {recipe['seed']!r}")
    return replace(from_recipe(recipe), where=what), recipe


def from_recipe(recipe: dict[str, Any]) -> TraceStream:
    """The requests that a recipe of `stream_from_file` describes: the same, to the last bit. Raises ConfigError."""
    workload = parse_workload(recipe["generate"], "recipe")
    return generate_stream(workload, recipe["seed"], recipe["service_classes"], recipe["models"] or None)


def _beside(workload: GenerateWorkload, data: dict[str, Any], scenario: dict[str, Any]) -> dict[str, list[str]]:
    """The models and service classes of a trace: the scenario's, else those named, else the preset's own."""
    models = _names_in(scenario, "models") or tuple(dict.fromkeys(name for _, name in workload.models_named()))
    classes = _names_in(scenario, "service_classes")
    if not classes:
        classes = tuple(dict.fromkeys(name for _, name in workload.classes_named()))
        if any(stream.service_class is None for stream in workload.streams):
            classes = tuple(dict.fromkeys((*classes, DEFAULT_CLASS)))
    return {"models": list(models or default_models(data)), "service_classes": list(classes)}


def _names_in(scenario: dict[str, Any], what: str) -> tuple[str, ...]:
    """The names that a scenario's data lists, without a check of anything else in it."""
    items = scenario.get(what)
    if not isinstance(items, list):
        return ()
    return tuple(str(item["name"]) for item in items if isinstance(item, dict) and "name" in item)


def nominal_rows(workload: GenerateWorkload) -> float:
    """About how many requests a workload brings by its rates alone, whatever their shape over time."""
    total = sum(traffic.rate_per_s for traffic in workload.traffic) * (workload.duration_s or 0.0)
    for stream in workload.streams:
        until_s = min(workload.duration_s or math.inf, stream.until_s or math.inf)
        turns = 1.0 if stream.sessions is None else max(draws.mean(stream.sessions.turns), 1.0)
        total += nominal_rate(stream.arrivals) * max(until_s - stream.from_s, 0.0) * turns
    return min(total, workload.rows or math.inf)


def _limited(stream: TraceStream) -> TraceStream:
    def counted() -> Iterator[Trace]:
        rows = 0
        for chunk in stream.chunks:
            rows += len(chunk)
            _affordable(rows)
            yield chunk

    return replace(stream, chunks=counted())


class _Traffic:
    """The older, shorter form of a stream: its arrivals are all drawn at once, then given window by window."""

    def __init__(self, traffic: ModelTraffic, duration_s: float, names: Names, streams: Streams) -> None:
        self._traffic = traffic
        self._codes = names.model_code(traffic.model), names.class_code(traffic.service_class)
        self._arrival_s = _arrivals(traffic, duration_s, streams)
        self._given = 0
        self._prompt, self._output = streams("prompt"), streams("output")

    def expected(self, end_s: float) -> float:
        return float(np.searchsorted(self._arrival_s, end_s))

    def until(self, end_s: float) -> Rows | None:
        arrival_s = self._arrival_s[self._given : int(np.searchsorted(self._arrival_s, end_s))]
        count = len(arrival_s)
        self._given += count
        if not count:
            return None
        of = self._traffic
        return {
            "arrival_s": arrival_s,
            "model": np.full(count, self._codes[0], dtype=np.int32),
            "prompt_tokens": _lengths(self._prompt, count, (of.prompt_median, of.prompt_mean), of.prompt_max),
            "output_tokens": _lengths(self._output, count, (of.output_median, of.output_mean), of.output_max),
            "service_class": np.full(count, self._codes[1], dtype=np.int32),
            "priority": np.zeros(count, dtype=np.int32),
        }


def _affordable(expected: float, most: int = MOST_REQUESTS) -> None:
    if not expected <= most:
        about = f"about {expected:.3g} requests, the most is {most:,}"
        raise ConfigError(f"workload: {about}; lower rate_per_s or duration_s")


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
