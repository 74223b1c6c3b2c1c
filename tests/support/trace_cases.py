"""What the tests of trace streams share: made-up traces, streams cut at any border, and traces as plain rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from sim.traces.stream import TraceStream
from sim.traces.trace import Trace


@dataclass(frozen=True)
class Row:
    """One request with names in place of codes."""

    arrival_s: float
    model: str
    prompt: int
    output: int
    session: str | None = None
    think_s: float | None = None
    blocks: tuple[int, ...] | None = None
    client: int | None = None
    service_class: str = "default"


def trace_of(rows: Sequence[Row]) -> Trace:
    """A trace of rows given in time order; think times, blocks and clients only when some row has one."""

    def coded(values: list[str | None]) -> tuple[Any, tuple[str, ...]]:
        names = list(dict.fromkeys(value for value in values if value is not None))
        return np.array([-1 if value is None else names.index(value) for value in values], dtype=np.int64), tuple(names)

    model, models = coded([row.model for row in rows])
    session, sessions = coded([row.session for row in rows])
    classes, class_names = coded([row.service_class for row in rows])
    extras: dict[str, Any] = {}
    if any(row.blocks is not None for row in rows):
        extras["prefix_blocks"] = pa.array([row.blocks for row in rows], pa.list_(pa.int64()))
    if any(row.client is not None for row in rows):
        extras["client"] = pa.array([row.client for row in rows], pa.int64())
    thinks = [math.nan if row.think_s is None else row.think_s for row in rows]
    return Trace(
        arrival_s=np.array([row.arrival_s for row in rows], dtype=np.float64),
        model=model.astype(np.int32),
        models=models,
        prompt_tokens=np.array([row.prompt for row in rows], dtype=np.int64),
        output_tokens=np.array([row.output for row in rows], dtype=np.int64),
        service_class=classes.astype(np.int32),
        service_classes=class_names,
        session=session,
        sessions=sessions,
        priority=np.zeros(len(rows), dtype=np.int32),
        think_s=None if all(row.think_s is None for row in rows) else np.array(thinks),
        extras=extras,
    )


def in_chunks(trace: Trace, sizes: Sequence[int] = (), where: str = "t") -> TraceStream:
    """The trace in chunks of these sizes in turn, each knowing only the names that it or one before it uses."""

    def chunks() -> Iterator[Trace]:
        start, turn = 0, 0
        while start < len(trace):
            size = sizes[turn % len(sizes)] if sizes else len(trace)
            piece = trace.select(slice(start, start + size))
            start, turn = start + size, turn + 1
            known = {
                "models": trace.models[: int(trace.model[:start].max()) + 1],
                "sessions": trace.sessions[: int(trace.session[:start].max()) + 1],
            }
            yield replace(piece, **known)

    return TraceStream(chunks(), where, len(trace))


def rows_of(stream: TraceStream) -> list[Row]:
    """All requests of a stream; asserts what every stream promises."""
    found: list[Row] = []
    last_s = -math.inf
    before: dict[str, tuple[str, ...]] = {"models": (), "sessions": (), "service_classes": ()}
    for chunk in stream.chunks:
        assert len(chunk) > 0
        assert chunk.arrival_s[0] >= last_s
        last_s = float(chunk.arrival_s[-1])
        for kind, names in before.items():
            assert getattr(chunk, kind)[: len(names)] == names
            before[kind] = getattr(chunk, kind)
        found += _rows(chunk)
    if stream.rows is not None:
        assert len(found) == stream.rows
    return found


def _rows(chunk: Trace) -> list[Row]:
    thinks = np.full(len(chunk), np.nan) if chunk.think_s is None else chunk.think_s
    nothing: list[Any] = [None] * len(chunk)
    blocks = chunk.extras["prefix_blocks"].to_pylist() if "prefix_blocks" in chunk.extras else nothing
    clients = chunk.extras["client"].to_pylist() if "client" in chunk.extras else nothing
    return [
        Row(
            arrival_s=float(chunk.arrival_s[number]),
            model=chunk.models[chunk.model[number]],
            prompt=int(chunk.prompt_tokens[number]),
            output=int(chunk.output_tokens[number]),
            session=None if chunk.session[number] < 0 else chunk.sessions[chunk.session[number]],
            think_s=None if math.isnan(thinks[number]) else float(thinks[number]),
            blocks=None if blocks[number] is None else tuple(blocks[number]),
            client=clients[number],
            service_class=chunk.service_classes[chunk.service_class[number]],
        )
        for number in range(len(chunk))
    ]


@st.composite
def traces(draw: st.DrawFn, most: int = 30, closed: bool = True) -> Trace:
    """Traces with ties, sessions or none, closed loops that are legal, blocks and clients."""
    count = draw(st.integers(1, most))
    gaps = draw(st.lists(st.sampled_from([0.0, 0.0, 0.25, 1.0, 7.5]), min_size=count, max_size=count))
    with_sessions, with_blocks = draw(st.booleans()), draw(st.booleans())
    begun: dict[str, None] = {}
    rows = []
    for number, arrival_s in enumerate(np.cumsum(gaps).tolist()):
        session = draw(st.sampled_from(["s1", "s2", "s3", None])) if with_sessions else None
        can_wait = closed and session in begun
        if session is not None:
            begun[session] = None
        rows.append(
            Row(
                arrival_s,
                draw(st.sampled_from("abc")),
                number + 1,
                draw(st.integers(1, 5)),
                session,
                draw(st.sampled_from([None, 0.5, 2.0])) if can_wait else None,
                tuple(draw(st.lists(st.integers(0, 9), max_size=3))) if with_blocks else None,
                draw(st.integers(0, 3)) if with_blocks else None,
            )
        )
    return trace_of(rows)


SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=4)
