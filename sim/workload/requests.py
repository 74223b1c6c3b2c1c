"""From a scenario's workload to the requests that a run plays: read or drawn lazily, fitted to the scenario's names.

Called by whoever runs a scenario. The engine gets requests whose codes are positions in the scenario's own lists.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.common.errors import ConfigError, TraceError, did_you_mean
from sim.scenario.scenario import Scenario, TraceWorkload
from sim.traces.columns import FURTHEST_S
from sim.traces.compose.assign import Assignment
from sim.traces.formats import import_stream
from sim.traces.order import Held
from sim.traces.stream import TraceStream, TurnOrder, gather, read_stream, stream_of
from sim.traces.trace import DEFAULT_CLASS, Trace, TraceDigest
from sim.workload.generate import generate_stream

_Pass = tuple[TraceStream, Iterator[Trace]]  # the workload's own requests, and the same as the scenario has them


class Workload:
    """The requests of a scenario in order of arrival; `open_workload` makes one.

    `models` and `service_classes` are exactly the scenario's, in its order, in every chunk too. rows: how many requests
    will come, None when nobody knows before they have. notices: what reading changed or ignored, complete after a pass.
    """

    def __init__(self, models: Sequence[str], service_classes: Sequence[str], begin: Callable[[], _Pass]) -> None:
        self.models = tuple(models)
        self.service_classes = tuple(service_classes)
        self.notices: list[str] = []
        self._begin = begin
        self._digest: str | None = None
        stream, chunks = begin()
        held = Held()
        if held.holds(chunks):
            # Small enough to keep: all mistakes are known now, and nothing is read twice.
            self.rows: int | None = held.rows
            self.notices = stream.notices
            self._held: list[Trace] | None = held.chunks
            return
        self.rows = stream.rows
        self._held = None
        self._begun: _Pass | None = (stream, chain(held.handed_out(), chunks))

    def chunks(self) -> Iterator[Trace]:
        """All requests from the first, as often as it is called. Raises SimError: a row that cannot be played."""
        if self._held is not None:
            yield from self._held
            return
        stream, chunks = self._begun or self._begin()
        self._begun = None
        digest = TraceDigest()
        for chunk in chunks:
            digest.add(chunk)
            yield chunk
        self.rows, self.notices, self._digest = digest.rows, stream.notices, digest.hexdigest()

    def digest(self) -> str:
        """Trace.digest of all requests; goes through them when nobody has yet. Raises SimError as `chunks` does."""
        if self._digest is None and self._held is None:
            for _ in self.chunks():
                pass
        self._digest = self._digest or TraceDigest(self._held or ()).hexdigest()
        return self._digest


def open_workload(scenario: Scenario) -> Workload:
    """The requests of a scenario, of which only the first have been read.

    A file is cut to its first `limit` requests in time order, its times divided by `time_scale` (deadlines stay), and
    its models replaced when `assign` is given. Requests of a file without classes belong to the scenario's class when
    it has just one. Raises, here or while it is read, TraceError: the file, or a row whose model or class the scenario
    does not have; ConfigError: a bad law, arrivals beyond the clock.
    """
    models = tuple(model.name for model in scenario.models)
    classes = tuple(service_class.name for service_class in scenario.service_classes)
    workload = scenario.workload

    def begin() -> _Pass:
        if not isinstance(workload, TraceWorkload):
            stream = generate_stream(workload, scenario.seed, classes, models)
            return stream, _fitted(stream.chunks, models, classes, "workload")
        assignment = Assignment(workload.assign, models, scenario.seed) if workload.assign is not None else None
        stream = _file_stream(workload)
        if stream.rows is not None and workload.limit is not None:
            stream.rows = min(stream.rows, workload.limit)
        chunks = _cut(stream.chunks, workload.limit)
        if workload.time_scale != 1:
            chunks = _scaled(chunks, workload.time_scale)
        if assignment is not None:
            chunks = map(assignment.apply, chunks)
        return stream, _fitted(chunks, models, classes, workload.file, "; or give --assign zipf:1.0")

    return Workload(models, classes, begin)


def workload_of(trace: Trace) -> Workload:
    """A trace at hand, whose models and classes are the scenario's already."""

    def begin() -> _Pass:
        stream = stream_of(trace)
        return stream, stream.chunks

    return Workload(trace.models, trace.service_classes, begin)


def build_trace(scenario: Scenario) -> Trace:
    """All of a scenario's requests in memory; see `open_workload`. Raises SimError."""
    workload = open_workload(scenario)
    stream = TraceStream(workload.chunks(), "workload")
    return replace(gather(stream), notices=tuple(workload.notices))


def _file_stream(workload: TraceWorkload) -> TraceStream:
    path = Path(workload.file)
    if workload.format in (None, "native"):
        return read_stream(path, workload.strict)
    return import_stream([path], workload.format, strict=workload.strict)


def _cut(chunks: Iterator[Trace], limit: int | None) -> Iterator[Trace]:
    for chunk in chunks:
        if limit is None:
            yield chunk
            continue
        yield chunk.select(slice(0, limit))
        limit -= len(chunk)
        if limit <= 0:
            return


def _scaled(chunks: Iterator[Trace], time_scale: float) -> Iterator[Trace]:
    for chunk in chunks:
        with np.errstate(over="ignore"):
            arrival_s = chunk.arrival_s / time_scale
            think_s = None if chunk.think_s is None else chunk.think_s / time_scale
        if not arrival_s[-1] <= FURTHEST_S:
            late = (
                f"the last arrival comes at {arrival_s[-1]:.3g} s, after {FURTHEST_S:g} s seconds lose their decimals"
            )
            raise ConfigError(f"time_scale {time_scale:g}: {late}; raise it")
        if think_s is not None and np.nanmax(think_s, initial=0.0) > FURTHEST_S:
            raise ConfigError(f"time_scale {time_scale:g}: a think time is over {FURTHEST_S:g} s; raise it")
        yield replace(chunk, arrival_s=arrival_s, think_s=think_s)


def _fitted(
    chunks: Iterator[Trace], models: tuple[str, ...], classes: tuple[str, ...], where: str, hint: str = ""
) -> Iterator[Trace]:
    """The chunks with codes into the scenario's models and classes. Raises TraceError at an unknown name.

    hint: how else a model that the scenario does not have can be mended.
    """
    model_fit = _Fit(models, f"{where}: row {{}}: unknown model '{{}}'; {{}}{hint}")
    class_fit = _Fit(
        classes, f"{where}: row {{}}: unknown service class '{{}}'; {{}}; or add the class to the scenario"
    )
    only = _OnlyClass(class_fit) if len(classes) == 1 and classes != (DEFAULT_CLASS,) else None
    turns = TurnOrder()
    before = 0
    for chunk in chunks:
        rows = chunk.file_rows if chunk.file_rows is not None else np.arange(before + 1, before + 1 + len(chunk))
        named = chunk if only is None else only.named(chunk, rows)
        fitted = replace(
            named,
            model=model_fit.codes(named.model, named.models, rows),
            models=models,
            service_class=class_fit.codes(named.service_class, named.service_classes, rows),
            service_classes=classes,
        )
        turns.check(fitted, where)
        before += len(chunk)
        yield fitted


class _Fit:
    """Codes into the scenario's names for a column of codes into a file's."""

    def __init__(self, known: tuple[str, ...], message: str) -> None:
        self.known = known
        self._message = message

    def codes(self, codes: NDArray[np.int32], names: Sequence[str], rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """int32[n]. Raises TraceError at the first unknown name."""
        place = {name: code for code, name in enumerate(self.known)}
        fitted = np.array([place.get(name, -1) for name in names], dtype=np.int32)[codes]
        unknown = fitted < 0
        if unknown.any():
            index = int(np.argmin(np.where(unknown, rows, rows.max() + 1)))
            raise self.error(int(rows[index]), names[codes[index]])
        return fitted

    def error(self, row: int, name: str) -> TraceError:
        return TraceError(self._message.format(row, name, did_you_mean(name, self.known)))


class _OnlyClass:
    """Requests that name no class belong to the scenario's only one, as long as no request of the file names one."""

    def __init__(self, fit: _Fit) -> None:
        self._fit = fit
        self._row: int | None = None  # the first that has been taken in so

    def named(self, chunk: Trace, rows: NDArray[np.int64]) -> Trace:
        """The chunk with its requests' class renamed, or as it was. Raises TraceError: a class is named only now."""
        if chunk.service_classes == (DEFAULT_CLASS,):
            self._row = int(rows.min()) if self._row is None else self._row
            return replace(chunk, service_classes=self._fit.known)
        if self._row is not None:
            raise self._fit.error(self._row, DEFAULT_CLASS)
        return chunk
