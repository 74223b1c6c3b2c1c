"""The native trace: columns of requests in order of arrival, cutting and joining them, and what identifies them.

Nothing here knows files (`traces.stream` reads, `traces.write` writes), formats, scenarios or drawing. A trace that
need not all be in memory is a `traces.stream.TraceStream`, whose chunks are traces.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.common.lazy import pa
from sim.traces.columns import Appearance

REQUIRED = ("arrival_s", "model", "prompt_tokens", "output_tokens")
OPTIONAL = ("service_class", "session", "priority", "think_s", "deadline_s")
DEFAULT_CLASS = "default"
NAMED = {"model": "models", "service_class": "service_classes", "session": "sessions"}  # codes, and their names
ROW_BYTES = 64  # of the columns that every request has


class Row(NamedTuple):
    """One request of a trace, with the columns' numbers (see `Trace`); -1 and NaN where it has none.

    prefix_blocks: what its prompt shares with others, as hashes of blocks from its start on; carried, not simulated.
    """

    arrival_s: float
    model: int
    prompt_tokens: int
    output_tokens: int
    service_class: int
    priority: int
    session: int
    think_s: float
    deadline_s: float
    prefix_blocks: tuple[int, ...] = ()


_row: Callable[[tuple[Any, ...]], Row] = partial(tuple.__new__, Row)  # quicker than Row._make, which counts the fields


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests in order of arrival, one entry per request in every column of n entries.

    arrival_s: seconds, finite, >= 0, non-decreasing. prompt_tokens, output_tokens: 1 to 1e9. model,
    service_class: index into the tuple of names. session: the same, or -1 for none. priority: 0 by default,
    smaller is more urgent (as in vLLM). notices: what reading changed or ignored. file_rows: where each
    request stood in its file, if known.

    think_s: closed loop, seconds >= 0 from the end of the session's request before this one to this one, never before
    arrival_s; NaN, or None for all: open loop. deadline_s: seconds > 0 after arrival by which the whole answer is
    needed; NaN, or None for all: none. extras: pyarrow arrays of n, carried and written, but nothing that a run reads.
    """

    arrival_s: NDArray[np.float64]
    model: NDArray[np.int32]
    models: tuple[str, ...]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    service_class: NDArray[np.int32]
    service_classes: tuple[str, ...]
    session: NDArray[np.int64]
    sessions: tuple[str, ...]
    priority: NDArray[np.int32]
    notices: tuple[str, ...] = ()
    file_rows: NDArray[np.int64] | None = None
    think_s: NDArray[np.float64] | None = None
    deadline_s: NDArray[np.float64] | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = (getattr(self, name) for name in NUMPY_COLUMNS)
        assert all(column is None or column.shape == self.arrival_s.shape for column in columns)
        assert all(len(column) == len(self) for column in self.extras.values())
        assert bool((self.arrival_s[1:] >= self.arrival_s[:-1]).all()), "arrivals out of order"

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def nbytes(self) -> int:
        """About how much memory the columns take, names apart."""
        return len(self) * ROW_BYTES + sum(int(column.nbytes) for column in self.extras.values())

    def named(self) -> dict[str, tuple[NDArray[Any], tuple[str, ...]]]:
        """The columns that hold codes, each with the names that the codes stand for."""
        return {name: (getattr(self, name), getattr(self, names)) for name, names in NAMED.items()}

    def digest(self) -> str:
        """What `TraceDigest` says of these requests."""
        return TraceDigest([self]).hexdigest()

    def rows(self, chunk: int = 8192) -> Iterator[Row]:
        """Lazily, in time order; see Row."""
        for start in range(0, len(self), chunk):
            part = slice(start, start + chunk)
            columns = [getattr(self, name) for name in Row._fields[:-1]]
            lists = [repeat(math.nan) if column is None else column[part].tolist() for column in columns]
            yield from map(_row, zip(*lists, repeat(()), strict=False))

    def pieces(self, rows: int) -> Iterator[Trace]:
        """The requests, so many at a time."""
        return (self.select(slice(start, start + rows)) for start in range(0, len(self), rows))

    def select(self, part: slice | NDArray[Any]) -> Trace:
        """The requests at these positions, or where this mask is true; in an order that keeps arrivals sorted."""
        columns = {name: getattr(self, name) for name in NUMPY_COLUMNS}
        cut: dict[str, Any] = {name: None if column is None else column[part] for name, column in columns.items()}
        return replace(self, **cut, extras={name: _cut_extra(column, part) for name, column in self.extras.items()})


NUMPY_COLUMNS = (
    *("arrival_s", "model", "prompt_tokens", "output_tokens", "service_class", "session", "priority"),
    *("think_s", "deadline_s", "file_rows"),
)


def _cut_extra(column: Any, part: slice | NDArray[Any]) -> Any:
    if isinstance(part, slice):
        start, stop, step = part.indices(len(column))
        if step == 1:
            return column.slice(start, max(stop - start, 0))
        part = np.arange(start, stop, step)
    return column.filter(pa.array(part)) if part.dtype == bool else column.take(pa.array(part))


def join(pieces: Sequence[Trace]) -> Trace:
    """The pieces one after the other; names are those of the last, which every other's begin with.

    An optional column or an extra that only some have is filled with NaN or null. At least one piece; arrivals must
    not fall from one to the next.
    """
    if len(pieces) == 1:
        return pieces[0]
    columns: dict[str, Any] = {}
    for name in NUMPY_COLUMNS:
        parts = [getattr(piece, name) for piece in pieces]
        if name in ("think_s", "deadline_s") and any(part is not None for part in parts):
            parts = [np.full(len(p), np.nan) if q is None else q for p, q in zip(pieces, parts, strict=True)]
        columns[name] = None if any(part is None for part in parts) else np.concatenate(parts)
    return replace(pieces[-1], **columns, extras=_joined_extras(pieces))


def _joined_extras(pieces: Sequence[Trace]) -> dict[str, Any]:
    if not any(piece.extras for piece in pieces):
        return {}
    names = dict.fromkeys(name for piece in pieces for name in piece.extras)
    # A table of extras alone would forget how many rows a piece without any has.
    tables = (pa.table({name: piece.extras.get(name, pa.nulls(len(piece))) for name in names}) for piece in pieces)
    whole = pa.concat_tables(tables, promote_options="permissive")
    arrays = {name: whole.column(name).combine_chunks() for name in names}
    chunked = pa.ChunkedArray  # what is still one is longer than an array of its type may be
    return {name: pa.concat_arrays(a.chunks) if isinstance(a, chunked) else a for name, a in arrays.items()}


def merged(pieces: Sequence[Trace]) -> Trace:
    """The requests of the pieces by arrival; ties in the order of the pieces. Else as `join`."""
    whole = join([replace(piece, arrival_s=np.zeros(len(piece))) for piece in pieces])  # join wants them in order
    arrival_s = np.concatenate([piece.arrival_s for piece in pieces])
    order = np.argsort(arrival_s, kind="stable")
    return replace(whole.select(order), arrival_s=arrival_s[order])


class TraceDigest:
    """sha256 of what the requests of a trace are, taken in piece by piece.

    The numbering of names, unused names, notices, extras and the pieces' borders do not matter; an optional column
    that says nothing is the same as none. `rows`: how many requests there were so far.
    """

    def __init__(self, chunks: Iterable[Trace] = ()) -> None:
        self.rows = 0
        self._states = {name: hashlib.sha256() for name in _DIGEST_KINDS}
        self._named = {name: (hashlib.sha256(), hashlib.sha256(), Appearance()) for name in NAMED}
        for chunk in chunks:
            self.add(chunk)

    def add(self, chunk: Trace) -> None:
        """The next requests; names may only grow at their end from piece to piece."""
        for name, kind in _DIGEST_KINDS.items():
            numbers = getattr(chunk, name)
            if name in ("think_s", "deadline_s"):
                self._add_optional(name, numbers)
                continue
            numbers = numbers + 0.0 if name == "arrival_s" else numbers  # -0.0 and 0.0 are the same time
            self._states[name].update(np.ascontiguousarray(numbers, dtype=kind).data)
        for name, (raw, names) in chunk.named().items():
            codes_state, names_state, numbering = self._named[name]
            known = len(numbering.names)
            codes_state.update(np.ascontiguousarray(numbering.codes(raw, names), dtype="<i8").data)
            names_state.update("".join(json.dumps(used) + "\n" for used in numbering.names[known:]).encode())
        self.rows += len(chunk)

    def _add_optional(self, name: str, numbers: NDArray[np.float64] | None) -> None:
        # Only entries that say something count, each with its row: then absence needs no bytes.
        if numbers is None:
            return
        said = np.flatnonzero(~np.isnan(numbers))
        pairs = np.empty((len(said), 2), dtype="<f8")
        pairs[:, 0], pairs[:, 1] = said + self.rows, numbers[said] + 0.0
        self._states[name].update(pairs.data)

    def hexdigest(self) -> str:
        """The digest of all that was added."""
        whole = hashlib.sha256(f"trace 2 {self.rows}".encode())
        for state in self._states.values():
            whole.update(state.digest())
        for codes_state, names_state, _ in self._named.values():
            whole.update(codes_state.digest() + names_state.digest())
        return whole.hexdigest()


_DIGEST_KINDS = {"arrival_s": "<f8", **dict.fromkeys(("prompt_tokens", "output_tokens", "priority"), "<i8")}
_DIGEST_KINDS |= dict.fromkeys(("think_s", "deadline_s"), "<f8")


class Signs:
    """Signs of a wrong unit or clock in a trace, chunk by chunk."""

    def __init__(self) -> None:
        self._rows = 0
        self._ties = 0
        self._first_s = self._last_s = 0.0

    def add(self, chunk: Trace) -> None:
        arrival_s = chunk.arrival_s
        if not len(arrival_s):
            return
        if self._rows:
            self._ties += int(arrival_s[0] == self._last_s)
        else:
            self._first_s = float(arrival_s[0])
        self._ties += int((arrival_s[1:] == arrival_s[:-1]).sum())
        self._rows += len(arrival_s)
        self._last_s = float(arrival_s[-1])

    def remarks(self) -> tuple[str, ...]:
        """What a person should know."""
        if not self._rows:
            return ("there are no requests",)
        found = []
        gaps, span_s = self._rows - 1, self._last_s - self._first_s
        if self._first_s > 86_400:
            found.append(f"the first request arrives at {self._first_s:g} s; subtract that, or a run idles until then")
        if gaps < 10:
            return tuple(found)
        if self._ties > 0.1 * gaps:
            tied = self._ties / gaps
            found.append(f"{tied:.0%} of the requests arrive at the same time as the one before; is the clock coarse?")
        rate_per_s = self._rows / span_s if span_s > 0 else 0.0
        if rate_per_s > 1000:
            found.append(f"{rate_per_s:,.0f} requests a second; is arrival_s in seconds?")
        if 0 < rate_per_s < 1e-3:
            found.append(f"a request every {1 / rate_per_s:,.0f} s on average; is arrival_s in milliseconds?")
        return tuple(found)
