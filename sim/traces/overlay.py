"""Several traces in one: overlaid by arrival, mixed in shares, or one repeated.

A merge of streams: of each trace only the chunk that is next is held. Sessions and prefix blocks of different traces
stay apart, because equal names in two files are two conversations. Called by `recipe`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.common.errors import ConfigError, TraceError
from sim.common.lazy import pa, pc
from sim.traces.shape import after, reachable
from sim.traces.stream import TraceStream
from sim.traces.trace import NAMED, Trace, merged

Opener = Callable[[], TraceStream]


def overlay(streams: Sequence[TraceStream], labels: Sequence[str], apart: bool = True) -> TraceStream:
    """All requests of all streams by arrival; ties in the order of the streams. Models and classes match by name.

    `apart`: sessions become "label/name", and ids of prefix blocks are renumbered, so that no two streams share one;
    otherwise both are left as they are. Columns that only some streams have are empty in the others. Raises TraceError:
    columns of one name whose types do not agree.
    """
    where = " + ".join(stream.where for stream in streams)
    joint = _Joint(labels, apart, where)
    notices: list[str] = []

    def chunks() -> Iterator[Trace]:
        sources = [iter(stream.chunks) for stream in streams]
        heads = [next(source, None) for source in sources]
        joint.agree([head for head in heads if head is not None])
        buffers = [None if head is None else joint.taken(head, number) for number, head in enumerate(heads)]
        while any(buffer is not None for buffer in buffers):
            # What comes next from any source comes after the source whose buffer ends first: up to there all is known.
            horizon_s, ends = min(
                (float(buffer.arrival_s[-1]), number) for number, buffer in enumerate(buffers) if buffer is not None
            )
            pieces = []
            for number, buffer in enumerate(buffers):
                if buffer is None:
                    continue
                side: Any = "right" if number <= ends else "left"
                count = int(np.searchsorted(buffer.arrival_s, horizon_s, side=side))
                if count:
                    pieces.append(buffer.select(slice(0, count)))
                buffers[number] = buffer.select(slice(count, None)) if count < len(buffer) else None
                if buffers[number] is None:
                    more = next(sources[number], None)
                    buffers[number] = None if more is None else joint.taken(more, number)
            yield joint.merged(pieces)
        for label, stream in zip(labels, streams, strict=True):
            notices.extend(f"{label}: {notice}" for notice in stream.notices)

    sizes = [stream.rows for stream in streams]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    return TraceStream(chunks(), where, total, notices)


def mix_shares(counts: Sequence[int], shares: Sequence[float]) -> list[float]:
    """How much of each trace to keep so that their requests come in these shares, and as many as can.

    Raises ConfigError: a trace without requests that is to have some.
    """
    ratios = [share / count if count else np.inf for share, count in zip(shares, counts, strict=True)]
    most = max(ratios)
    if not np.isfinite(most):
        raise ConfigError("mix: a trace with a share has no requests; leave it out")
    return [ratio / most for ratio in ratios]


def repeat(opener: Opener, times: int, period_s: float | None, apart: bool = True) -> TraceStream:
    """The trace `times` times, each `period_s` after the one before; every pass opens it again.

    None: its span plus a mean gap, so that the rate goes on as it was. `apart`: as in `overlay`, sessions and prefix
    blocks of a repetition are its own. Raises TraceError: a period shorter than the trace, or none for a trace whose
    requests all arrive at once.
    """
    first = opener()
    joint = _Joint([str(number) for number in range(1, times + 1)], apart, first.where)

    def chunks() -> Iterator[Trace]:
        stream, period = first, period_s or 0.0
        for number in range(times):
            span = _Span()
            for chunk in stream.chunks:
                span.add(chunk)
                arrival_s = chunk.arrival_s + number * period
                reachable(arrival_s, stream.where, f"repeat {times}")
                yield joint.taken(replace(chunk, arrival_s=arrival_s), number)
            period = period_s or span.period_s(stream.where)
            if period < span.last_s - span.first_s:
                least = f"give at least {span.last_s - span.first_s:g}"
                raise TraceError(f"{stream.where}: repeat: period_s {period:g} is shorter than the trace; {least}")
            if number + 1 < times:
                stream = opener()

    return after(first, chunks(), None if first.rows is None else first.rows * times)


class _Span:
    """From when to when the requests come, and how many."""

    def __init__(self) -> None:
        self.rows, self.first_s, self.last_s = 0, 0.0, 0.0

    def add(self, chunk: Trace) -> None:
        self.first_s = self.first_s if self.rows else float(chunk.arrival_s[0])
        self.last_s = float(chunk.arrival_s[-1])
        self.rows += len(chunk)

    def period_s(self, where: str) -> float:
        span_s = self.last_s - self.first_s
        if not span_s:
            raise TraceError(f"{where}: repeat: all requests arrive at once; give period_s")
        return span_s + span_s / (self.rows - 1)


class _Joint:
    """The names and columns of several traces in one."""

    def __init__(self, labels: Sequence[str], apart: bool, where: str) -> None:
        self._labels = labels
        self._where = where
        self._apart = apart and len(labels) > 1
        self._names: dict[str, dict[str, int]] = {kind: {} for kind in NAMED}
        self._tuples: dict[str, tuple[str, ...]] = dict.fromkeys(NAMED, ())
        self._codes = {(kind, number): np.zeros(0, dtype=np.int64) for kind in NAMED for number in range(len(labels))}
        self._extras: dict[str, Any] = {}  # name: Arrow type
        self._thinks = self._deadlines = False

    def agree(self, heads: Sequence[Trace]) -> None:
        """Know the columns of these chunks, beside those of earlier ones. Raises TraceError: kinds that differ."""
        self._thinks = self._thinks or any(head.think_s is not None for head in heads)
        self._deadlines = self._deadlines or any(head.deadline_s is not None for head in heads)
        kinds = [{name: column.type for name, column in head.extras.items()} for head in heads]
        if all(self._extras.get(name) == kind for own in kinds for name, kind in own.items()):
            return
        schemas = [pa.schema(list(own.items())) for own in (self._extras, *kinds)]
        try:
            schema = pa.unify_schemas(schemas, promote_options="permissive")
        except pa.ArrowException as error:
            problem = str(error).splitlines()[0]
            kinds_differ = f"columns of one name and different kinds ({problem})"
            raise TraceError(f"{self._where}: {kinds_differ}; rename one") from None
        self._extras = {field.name: field.type for field in schema}

    def taken(self, chunk: Trace, number: int) -> Trace:
        """A chunk of trace `number` with its codes in the joint names."""
        columns: dict[str, Any] = {}
        for kind, (codes, names) in chunk.named().items():
            known = self._codes[kind, number]
            if len(known) < len(names):
                known = self._codes[kind, number] = np.append(known, self._new(kind, number, names[len(known) :]))
            columns[kind] = np.append(known, -1)[codes].astype(codes.dtype)  # the last entry serves -1
        extras = dict(chunk.extras)
        for name in extras if self._apart else ():
            if name == "prefix_blocks" or name.endswith("_ids"):
                extras[name] = _renumbered(extras[name], name, len(self._labels), number)
        return replace(chunk, **columns, **self._tables(), extras=extras, notices=(), file_rows=None)

    def _tables(self) -> dict[str, Any]:
        return {names: self._tuples[kind] for kind, names in NAMED.items()}

    def _new(self, kind: str, number: int, names: Sequence[str]) -> NDArray[np.int64]:
        before = len(self._tuples[kind])
        if kind == "session" and self._apart:
            # Labels differ, so these names are nobody else's: no need to look them up.
            self._tuples[kind] += tuple(f"{self._labels[number]}/{name}" for name in names)
            return np.arange(before, before + len(names))
        table = self._names[kind]
        codes = np.array([table.setdefault(name, len(table)) for name in names], dtype=np.int64)
        if len(table) > before:
            self._tuples[kind] = tuple(table)
        return codes

    def merged(self, pieces: Sequence[Trace]) -> Trace:
        """Pieces of the traces, in the order of the traces, as one by arrival."""
        self.agree(pieces)
        whole = merged(pieces)
        columns: dict[str, Any] = {}
        for name, used in (("think_s", self._thinks), ("deadline_s", self._deadlines)):
            column = getattr(whole, name)
            columns[name] = np.full(len(whole), np.nan) if used and column is None else column
        given = whole.extras
        extras = {
            name: given[name].cast(kind) if name in given else pa.nulls(len(whole), kind)
            for name, kind in self._extras.items()
        }
        return replace(whole, **columns, **self._tables(), extras=extras)


def _renumbered(blocks: Any, name: str, count: int, number: int) -> Any:
    """Lists of ids of trace `number` of `count`: id * count + number, which no other trace can have."""
    offsets = np.asarray(blocks.offsets, dtype=np.int64)
    values = blocks.values.slice(offsets[0], offsets[-1] - offsets[0])
    try:
        ids = pc.add_checked(pc.multiply_checked(values.cast(pa.int64()), count), number)
    except pa.ArrowInvalid:
        raise TraceError(f"{name}: ids beyond 2^63 / {count} cannot be kept apart; use sessions: shared") from None
    mask = blocks.is_null() if blocks.null_count else None
    return pa.ListArray.from_arrays(pa.array(offsets - offsets[0], pa.int32()), ids, mask=mask)
