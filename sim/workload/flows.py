"""The requests of one process of a stream: each arrival gets its model, lengths, class, promises and prompt blocks.

Draws come in the order of the requests, every purpose from its own random numbers, so that nothing depends on how
time is cut into windows. `sessions` makes turns with the same parts; `generate` merges processes into a trace.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sim.common.errors import ConfigError, did_you_mean
from sim.scenario.distributions import Frames, Law, Popularity
from sim.scenario.workload import DEFAULT_CLASS, ForClass, StreamSpec
from sim.workload import draws
from sim.workload.arrivals import ArrivalSource, Streams, source
from sim.workload.popularity import ShareOf, Shares
from sim.workload.prefixes import Blocks, Rows
from sim.workload.rates import FURTHEST_S, MOST_STEPS, too_often

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Flow(Protocol):
    """A process that gives its requests window by window, in order of arrival."""

    def until(self, end_s: float) -> Rows | None:
        """Those before end_s that have not been given yet; None: there are none."""
        ...

    def expected(self, end_s: float) -> float:
        """About how many there will have been at end_s."""
        ...


@dataclass(frozen=True)
class Names:
    """What codes of models and service classes stand for in the whole trace."""

    models: tuple[str, ...]
    service_classes: tuple[str, ...]

    @cached_property
    def model_codes(self) -> dict[str, int]:
        return {name: code for code, name in enumerate(self.models)}

    def model_code(self, name: str) -> int:
        """The code of a model. Raises ConfigError: the trace has no such model."""
        if name not in self.model_codes:
            raise ConfigError(f"workload: unknown model '{name}'; {did_you_mean(name, self.models)}")
        return self.model_codes[name]

    def class_code(self, name: str) -> int:
        """The code of a service class. Raises ConfigError: the trace has no such class."""
        if name not in self.service_classes:
            hint = did_you_mean(name, self.service_classes)
            raise ConfigError(f"workload: unknown service class '{name}'; {hint}")
        return self.service_classes.index(name)


class Plain:
    """Requests that have nothing to do with each other."""

    def __init__(self, stream: StreamSpec, arrivals: ArrivalSource, parts: Parts) -> None:
        self._arrivals, self._parts = arrivals, parts
        self._prefix = None if stream.prefix is None else Blocks(stream.prefix, parts.streams)

    def until(self, end_s: float) -> Rows | None:
        arrival_s = self._arrivals.until(end_s)
        if not len(arrival_s):
            return None
        parts = self._parts
        model = parts.models(arrival_s)
        prompt, output, _ = parts.lengths(model)
        rows: Rows = {"arrival_s": arrival_s, "model": parts.codes[model]}
        rows |= {"prompt_tokens": prompt, "output_tokens": output}
        rows |= parts.promised(parts.classes(len(arrival_s)), output)
        if self._prefix is not None:
            rows |= self._prefix.alone(prompt)
        return rows

    def expected(self, end_s: float) -> float:
        return self._arrivals.expected(end_s)


class Parts:
    """What a process draws for its requests besides their arrivals. `codes`: from its own models to the trace's."""

    def __init__(self, stream: StreamSpec, shares: Shares, names: Names, streams: Streams) -> None:
        self.stream, self.streams = stream, streams
        self.shares = shares
        self.codes = np.array([names.model_codes[name] for name in shares.models], dtype=np.int32)
        self._draw = {name: streams(name) for name in ("model", "stay", "prompt", "output", "class")}
        self._last = -1
        weights = stream.service_class
        if weights is None:
            only = len(names.service_classes) == 1
            weights = {names.service_classes[0] if only else DEFAULT_CLASS: 1.0}
        self._classes = np.array([names.class_code(name) for name in weights], dtype=np.int32)
        self._class_edges = np.cumsum(list(weights.values())) / sum(weights.values())
        for name in stream.per_class:
            names.class_code(name)
        own = [stream.per_class.get(name, ForClass()) for name in names.service_classes]
        urgencies = [stream.priority if item.priority is None else item.priority for item in own]
        deadlines_s = [item.deadline_s or stream.deadline_s for item in own]
        self._priority, self._deadline_s = np.array(urgencies, dtype=np.int32), np.array(deadlines_s, dtype=float)

    def models(self, times_s: Floats) -> Ints:
        """The models of requests that draw one for themselves, as positions in the stream's list."""
        uniforms = self._draw["model"].random(len(times_s))
        chosen = self.shares.choose(times_s, uniforms)
        if self.stream.popularity.stay and len(times_s):
            new = self._draw["stay"].random(len(times_s)) >= self.stream.popularity.stay
            if self._last < 0:
                new[0] = True
            since = np.maximum.accumulate(np.where(new, np.arange(len(new)), -1))
            chosen = np.where(since < 0, self._last, chosen[since])
            self._last = int(chosen[-1])
        return chosen

    def lengths(self, model: Ints, first: Law | None = None) -> tuple[Ints, Ints, Ints]:
        """Prompt and output tokens, and what the prompts would be under the law `first` (None: the same)."""
        stream, count = self.stream, len(model)
        prompt_scores = self._draw["prompt"].standard_normal(count)
        output_scores = self._draw["output"].standard_normal(count)
        if stream.correlation:
            output_scores = stream.correlation * prompt_scores + math.sqrt(1 - stream.correlation**2) * output_scores
        own = stream.per_model
        prompts = self._by_model(model, prompt_scores, stream.prompt, {name: law.prompt for name, law in own.items()})
        outputs = self._by_model(model, output_scores, stream.output, {name: law.output for name, law in own.items()})
        where = f"workload: stream '{stream.name}'"
        prompt = draws.whole(prompts, f"{where}: prompt")
        firsts = prompt if first is None else draws.whole(draws.values(first, prompt_scores), f"{where}: first_prompt")
        return prompt, draws.whole(outputs, f"{where}: output"), firsts

    def _by_model(self, model: Ints, scores: Floats, law: Law, own: dict[str, Law | None]) -> Floats:
        drawn = draws.values(law, scores)
        for position, name in enumerate(self.shares.models):
            other = own.get(name)
            if other is not None:
                here = model == position
                drawn[here] = draws.values(other, scores[here])
        return drawn

    def classes(self, count: int) -> NDArray[np.int32]:
        """Service classes, as codes of the trace."""
        if len(self._classes) == 1:
            return np.full(count, self._classes[0], dtype=np.int32)
        drawn = np.searchsorted(self._class_edges, self._draw["class"].random(count), side="right")
        return np.asarray(self._classes[np.minimum(drawn, len(self._classes) - 1)])

    def promised(self, classes: NDArray[np.int32], output: Ints) -> Rows:
        """The columns that follow from the class."""
        rows: Rows = {"service_class": classes, "priority": self._priority[classes]}
        if not np.isnan(self._deadline_s).all():
            rows["deadline_s"] = self._deadline_s[classes] + self.stream.deadline_per_token_s * output
        return rows


def flows(
    stream: StreamSpec,
    names: Names,
    end_s: float,
    streams_of: Callable[..., Streams],
    make: Callable[[StreamSpec, ArrivalSource, Parts], Flow],
) -> list[Flow]:
    """The processes of a stream: one, or one a model, and one a camera. `streams_of(*names)` gives random numbers.

    `make` turns arrivals into requests. Raises ConfigError: a model or class that the trace does not have.
    """
    models = names.models if stream.models is None else stream.models
    _known(stream, models, names.models)
    shares = Shares(stream.popularity, models, streams_of())
    if end_s < FURTHEST_S and end_s * len(models) > MOST_STEPS * shares.typical_s:
        raise too_often("a popularity", shares.typical_s)
    cameras = stream.arrivals.sources if isinstance(stream.arrivals, Frames) else 1
    found = []
    for position, model in enumerate(models if stream.arrivals.per == "model" else [None]):
        share, drawn = None, shares
        if model is not None:
            share = None if isinstance(stream.arrivals, Frames) else ShareOf(shares, position)
            drawn = Shares(Popularity(), [model], streams_of())
        for number in range(cameras):
            streams = streams_of(*([] if model is None else [model]), *([number] if cameras > 1 else []))
            found.append(make(stream, source(stream, end_s, streams, share), Parts(stream, drawn, names, streams)))
    return found


def _known(stream: StreamSpec, models: Sequence[str], all_models: Sequence[str]) -> None:
    for field, name in stream.models_named():
        if name not in (all_models if field == "models" else models):
            hint = did_you_mean(name, models)
            raise ConfigError(f"workload: stream '{stream.name}': {field}: unknown model '{name}'; {hint}")
