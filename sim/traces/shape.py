"""Reshaping a trace as it streams by: when its requests come, and which of them.

Every function takes a stream and gives one; nothing is held but a chunk and a few numbers per session. Several traces
in one are `traces.overlay`'s business, and which model a request asks for is `traces.models`'. Called by `recipe`.

Rows that go lose nothing of a closed loop: when the row before a closed-loop one (`think_s`) is left out, the think
times of what is left out are added to its own; when no row of its session before it is left, it is sent at arrival_s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sim.common.errors import TraceError, did_you_mean
from sim.traces.columns import FURTHEST_S, grown
from sim.traces.stream import TraceStream
from sim.traces.trace import Trace

Mask = NDArray[np.bool_]

# --- when


def time_scale(stream: TraceStream, factor: float, think: bool = True) -> TraceStream:
    """All arrivals divided by `factor` (2 doubles the rate), and, unless `think` is false, think times too.

    Deadlines stay: they are about the service, not about the traffic. Raises TraceError: beyond FURTHEST_S.
    """

    def chunks() -> Iterator[Trace]:
        for chunk in stream.chunks:
            with np.errstate(over="ignore"):
                arrival_s = chunk.arrival_s / factor
                think_s = chunk.think_s
                if think and think_s is not None:
                    think_s = think_s / factor
                    if np.isinf(think_s).any():
                        raise TraceError(f"{stream.where}: time_scale {factor:g} makes think times endless; raise it")
            reachable(arrival_s, stream.where, f"time_scale {factor:g}")
            yield replace(chunk, arrival_s=arrival_s, think_s=think_s)

    return after(stream, chunks(), stream.rows)


def shift(stream: TraceStream, by_s: float | None) -> TraceStream:
    """All arrivals `by_s` later (earlier when it is negative); None: so that the first one comes at 0.

    Raises TraceError: an arrival before 0 or beyond FURTHEST_S.
    """

    def chunks() -> Iterator[Trace]:
        offset = by_s
        for chunk in stream.chunks:
            if offset is None:
                offset = -float(chunk.arrival_s[0])
            arrival_s = chunk.arrival_s + offset
            if arrival_s[0] < 0:
                first = f"the first request would arrive at {arrival_s[0]:g} s"
                least = f"shift by at least {0 - chunk.arrival_s[0]:g}"
                raise TraceError(f"{stream.where}: shift {offset:g}: {first}; {least}")
            reachable(arrival_s, stream.where, f"shift {offset:g}")
            yield replace(chunk, arrival_s=arrival_s)

    return after(stream, chunks(), stream.rows)


def reachable(arrival_s: NDArray[np.float64], where: str, what: str) -> None:
    """Raises TraceError when the last of these arrivals is beyond FURTHEST_S."""
    if not arrival_s[-1] <= FURTHEST_S:
        why = f"after {FURTHEST_S:g} s seconds lose their decimals"
        raise TraceError(f"{where}: {what}: a request would arrive at {arrival_s[-1]:.3g} s, {why}")


# --- which


def window(stream: TraceStream, start_s: float, end_s: float, rebase: bool = True) -> TraceStream:
    """The requests with start_s <= arrival < end_s; `rebase` makes start_s the new 0. Reading ends at end_s."""
    chains = _Chains()

    def chunks() -> Iterator[Trace]:
        for chunk in stream.chunks:
            inside = (chunk.arrival_s >= start_s) & (chunk.arrival_s < end_s)
            kept = chains.kept(chunk, inside)
            if len(kept):
                yield replace(kept, arrival_s=kept.arrival_s - start_s) if rebase else kept
            if chunk.arrival_s[-1] >= end_s:
                break

    return after(stream, chunks())


def limit(stream: TraceStream, rows: int) -> TraceStream:
    """The first `rows` requests."""

    def chunks() -> Iterator[Trace]:
        left = rows
        for chunk in stream.chunks:
            yield chunk if len(chunk) <= left else chunk.select(slice(0, left))
            left -= min(left, len(chunk))
            if not left:
                break

    return after(stream, chunks(), None if stream.rows is None else min(rows, stream.rows))


class Draws:
    """A number in [0, 1) for every request, the same whatever the chunks: one a row, or one a session.

    With `whole_sessions`, requests of no session draw for themselves.
    """

    def __init__(self, generator: np.random.Generator, whole_sessions: bool) -> None:
        self._generator = generator
        self._of_session: NDArray[np.float64] | None = np.zeros(0) if whole_sessions else None

    def of(self, chunk: Trace) -> NDArray[np.float64]:
        if self._of_session is None:
            return self._generator.random(len(chunk))
        self._of_session = grown(self._of_session, len(chunk.sessions), np.nan)
        first = first_of(chunk.session, np.isnan(self._of_session))
        drawn = np.zeros(len(chunk))
        drawn[first] = self._generator.random(int(first.sum()))
        named = chunk.session >= 0
        self._of_session[chunk.session[first & named]] = drawn[first & named]
        drawn[named] = self._of_session[chunk.session[named]]
        return drawn


def thin(stream: TraceStream, share: float, draws: Draws) -> TraceStream:
    """Each request (or session) stays with probability `share`, independently; times stay as they are."""
    return _selected(stream, lambda chunk: draws.of(chunk) < share)


def part_by_share(stream: TraceStream, shares: Sequence[float], part: int, draws: Draws) -> TraceStream:
    """Part `part` (from 0) of a random division in these proportions; the parts are disjoint and together all."""
    edges = np.cumsum(np.array(shares, dtype=np.float64) / sum(shares))
    edges[-1] = 1.0
    return _selected(stream, lambda chunk: np.searchsorted(edges, draws.of(chunk), side="right") == part)


def part_by_time(stream: TraceStream, cuts_s: Sequence[float], part: int, rebase: bool) -> TraceStream:
    """The requests between two cuts, given in rising order: part 0 comes before the first, the last has no end."""
    edges = [0.0, *cuts_s, np.inf]
    return window(stream, edges[part], edges[part + 1], rebase)


def part_by_model(stream: TraceStream, groups: Sequence[Sequence[str]], part: int) -> TraceStream:
    """The requests for the models of one group. Raises TraceError: a model that is in none."""
    owner = {name: number for number, names in enumerate(groups) for name in names}

    def chosen(chunk: Trace) -> Mask:
        for code in np.unique(chunk.model).tolist():
            if (name := chunk.models[code]) not in owner:
                hint = did_you_mean(name, owner)
                raise TraceError(f"{stream.where}: model '{name}' is in no part of the split; add it ({hint})")
        return np.array([owner.get(name) == part for name in chunk.models], dtype=bool)[chunk.model]

    return _selected(stream, chosen)


def _selected(stream: TraceStream, chosen: Callable[[Trace], Mask]) -> TraceStream:
    chains = _Chains()
    pieces = (chains.kept(chunk, chosen(chunk)) for chunk in stream.chunks)
    return after(stream, (piece for piece in pieces if len(piece)))


class _Chains:
    """Which sessions have had a row kept, and the think time lost since: module docstring."""

    def __init__(self) -> None:
        self._begun = np.zeros(0, dtype=bool)
        self._lost_s = np.zeros(0)

    def kept(self, chunk: Trace, chosen: Mask) -> Trace:
        """The chosen rows, their think times mended."""
        self._begun = grown(self._begun, len(chunk.sessions), False)
        self._lost_s = grown(self._lost_s, len(chunk.sessions), 0.0)
        if chunk.think_s is not None and not np.isnan(chunk.think_s).all():
            return _picked(replace(chunk, think_s=self._mended(chunk, chunk.think_s, chosen)), chosen)
        # Nothing closed here: dropped rows add nothing, and a kept one ends what its session had lost.
        sessions = chunk.session[chosen & (chunk.session >= 0)]
        self._begun[sessions] = True
        self._lost_s[sessions] = 0.0
        return _picked(chunk, chosen)

    def _mended(self, chunk: Trace, think_s: NDArray[np.float64], chosen: Mask) -> NDArray[np.float64]:
        mended = think_s.copy()
        present = np.unique(chunk.session[chunk.session >= 0])
        begun = dict(zip(present.tolist(), self._begun[present].tolist(), strict=True))
        lost_s = dict(zip(present.tolist(), self._lost_s[present].tolist(), strict=True))
        sessions, keeps, thinks = chunk.session.tolist(), chosen.tolist(), think_s.tolist()
        for row in np.flatnonzero(chunk.session >= 0).tolist():
            session = sessions[row]
            if keeps[row]:
                mended[row] = thinks[row] + lost_s[session] if begun[session] else np.nan
                begun[session], lost_s[session] = True, 0.0
            elif begun[session] and not math.isnan(thinks[row]):
                lost_s[session] += thinks[row]
        self._begun[present], self._lost_s[present] = list(begun.values()), list(lost_s.values())
        return mended


def _picked(chunk: Trace, chosen: Mask) -> Trace:
    return chunk if chosen.all() else chunk.select(np.flatnonzero(chosen))


# --- for those who count by code


def first_of(codes: NDArray[np.int64], unseen: Mask) -> Mask:
    """Which rows are the first of a code that is yet `unseen`; a row of code -1 always is."""
    first = codes < 0
    present, position = np.unique(codes, return_index=True)
    new = present >= 0
    new[new] = unseen[present[new]]
    first[position[new]] = True
    return first


def after(stream: TraceStream, chunks: Iterator[Trace], rows: int | None = None) -> TraceStream:
    """A stream of these chunks that goes on telling what `stream` has to tell."""
    return TraceStream(chunks, stream.where, rows, stream.notices)
