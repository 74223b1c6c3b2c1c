"""A trace in pieces: requests in time order that need not all be in memory, and the reading of native files as such.

Importers, generators and compositions make a `TraceStream`; writers, the engine and `describe` read one. Each chunk is
a `Trace` of its own, small enough to hold. `read_trace` and `gather` are for traces that are small enough as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.common.errors import TraceError
from sim.traces.blocks import check_file
from sim.traces.columns import MOST_TOKENS, ColumnChecks, grown
from sim.traces.extras import extra_names, read_extra
from sim.traces.files import blank_notice, parquet_in_order, parquet_rows, suffix_of, tables_of
from sim.traces.order import CHUNK_ROWS, Held, in_time_order, late_notice, numbered, sorted_in_memory
from sim.traces.trace import DEFAULT_CLASS, OPTIONAL, REQUIRED, Trace, join

__all__ = ["CHUNK_ROWS", "NameTable", "TraceStream", "TurnOrder", "gather", "in_time_order", "read_stream"]
__all__ += ["read_trace", "stream_of"]


@dataclass
class TraceStream:
    """The chunks of one trace, to be read once.

    chunks: none is empty; arrivals never fall, neither in a chunk nor from one to the next; the names (models, service
    classes, sessions) of a chunk begin with those of the chunk before, so that a code keeps its meaning.
    where: the file or the workload, for messages. rows: how many there will be, if that is known. notices: what was
    changed or left out; complete when the last chunk has been read.
    """

    chunks: Iterator[Trace]
    where: str
    rows: int | None = None
    notices: list[str] = field(default_factory=list)


class NameTable:
    """A growing table of names, for whoever makes chunks one after the other: a code once given keeps its meaning."""

    def __init__(self) -> None:
        self._codes: dict[str, int] = {}
        self._table: tuple[str, ...] = ()

    def __contains__(self, name: object) -> bool:
        return name in self._codes

    def code(self, name: str) -> int:
        """The code of one name, new or known."""
        return self._codes.setdefault(name, len(self._codes))

    def codes(self, codes: NDArray[Any], names: Sequence[str]) -> NDArray[np.int64]:
        """Codes into `names`, where -1 is none, as codes into this table, which takes in all of `names`."""
        new_code = np.fromiter((self.code(name) for name in names), dtype=np.int64, count=len(names))
        renumbered: NDArray[np.int64] = np.append(new_code, -1)[codes]  # -1 finds the last entry
        return renumbered

    def names(self) -> tuple[str, ...]:
        """The names so far; a code is a position in here."""
        if len(self._table) != len(self._codes):
            self._table = tuple(self._codes)
        return self._table


def stream_of(trace: Trace) -> TraceStream:
    """A trace at hand as a stream."""
    return TraceStream(trace.pieces(CHUNK_ROWS), "the trace", len(trace), list(trace.notices))


def gather(stream: TraceStream) -> Trace:
    """All of a stream in memory. Raises TraceError: no requests; whatever the stream raises."""
    pieces = list(stream.chunks)
    if not pieces:
        raise TraceError(f"{stream.where}: has no requests; a trace has at least one")
    return replace(join(pieces), notices=tuple(stream.notices))


def read_trace(path: Path, strict: bool = False) -> Trace:
    """All of a native file in memory; see `read_stream`. Rows out of order are sorted, however many."""
    return gather(read_stream(path, strict, sort=True))


def read_stream(path: Path, strict: bool = False, sort: bool = False) -> TraceStream:
    """A native trace file, lazily: .csv, .csv.gz, .parquet, .jsonl or .jsonl.gz.

    Columns arrival_s (seconds), model, prompt_tokens, output_tokens, and optionally service_class (empty:
    "default"), session (empty or -1: none; text or whole number), priority (empty: 0), think_s and deadline_s
    (seconds; empty: none), and the known extras. Unknown columns are ignored with a notice.

    Rows out of order are sorted with a notice when the file is small enough to hold or `sort` is given (which reads
    all of it before the first chunk comes, unless it is Parquet and in order). Raises TraceError with file, row and
    column, here or while the chunks are read: anything that cannot be a request; rows out of order otherwise; under
    `strict` any, and unknown columns.
    """
    path = Path(path)
    suffix_of(path)
    check_file(path)
    reading = _Reading(path, strict)
    return TraceStream(reading.ordered(sort), str(path), parquet_rows(path), reading.notices)


class TurnOrder:
    """Checks, chunk by chunk, that a closed-loop row has an earlier row of its session to wait for."""

    def __init__(self) -> None:
        self._begun = np.zeros(0, dtype=bool)  # by session code

    def check(self, chunk: Trace, where: str) -> None:
        """Raises TraceError at the first row with a think_s that has no session, or is its session's first."""
        self._begun = grown(self._begun, len(chunk.sessions), False)
        with_session = np.flatnonzero(chunk.session >= 0)
        if chunk.think_s is not None:
            present, first = np.unique(chunk.session[with_session], return_index=True)
            opens = np.ones(len(chunk), dtype=bool)  # no session, or the first of it
            opens[with_session] = False
            opens[with_session[first[~self._begun[present]]]] = True
            wrong = opens & ~np.isnan(chunk.think_s)
            if wrong.any():
                index = int(np.argmax(wrong))
                row = f"row {chunk.file_rows[index]}" if chunk.file_rows is not None else f"request {index + 1}"
                why = "has no session" if chunk.session[index] < 0 else "is the first of its session"
                raise TraceError(
                    f"{where}: {row}: column 'think_s' is {chunk.think_s[index]:g}, but the request {why}; "
                    "leave think_s empty there"
                )
        self._begun[chunk.session[with_session]] = True


class _Reading:
    """One pass through a native file; `notices` are complete at its end."""

    def __init__(self, path: Path, strict: bool) -> None:
        self.notices: list[str] = []
        self._path = path
        self._strict = strict
        self._extras = extra_names(path)
        self._models, self._classes, self._sessions = NameTable(), NameTable(), NameTable()
        self._ignored: dict[str, None] = {}
        self._known_columns = 0
        self._latest_s = 0.0
        self._late_rows = 0
        self._first_late = ""

    def ordered(self, sort: bool) -> Iterator[Trace]:
        """The chunks in time order."""
        turns = TurnOrder()
        for chunk in self._sorted(sort):
            turns.check(chunk, str(self._path))
            yield chunk

    def _sorted(self, sort: bool) -> Iterator[Trace]:
        chunks = self._chunks()
        if sort and not parquet_in_order(self._path, "arrival_s"):
            yield from self._numbered(in_time_order(chunks, str(self._path)))
            return
        held = Held()
        if held.holds(chunks):
            yield from self._numbered(sorted_in_memory(held.chunks))
            return
        for chunk in chain(held.handed_out(), chunks):
            if self._late_rows:
                how = f"sort it with: residency-sim trace import {self._path} --out sorted.parquet"
                raise TraceError(f"{self._path}: {self._first_late}, and the file is too long to sort here; {how}")
            yield chunk

    def _numbered(self, chunks: Iterator[Trace]) -> Iterator[Trace]:
        """After all has been read: names by first appearance, also where a chunk was sorted within itself."""
        first = next(chunks)
        whole = chain([first], chunks)
        return numbered(whole) if self._late_rows else whole

    def _chunks(self) -> Iterator[Trace]:
        """Chunks in order within themselves, as the file has them."""
        blank_rows, any_row = 0, False
        for table in tables_of(self._path, (*REQUIRED, *OPTIONAL, *self._extras)):
            checks = ColumnChecks(table)
            self._look_at_names(checks)
            blank_rows += table.blank_rows
            if len(table):
                any_row = True
                yield self._chunk(checks)
        assert any_row, "a file without requests is refused where it is opened"
        self.notices += [*blank_notice(blank_rows), *self._ignored]
        if self._late_rows:
            self.notices.append(late_notice(self._late_rows))

    def _look_at_names(self, checks: ColumnChecks) -> None:
        table = checks.table
        if len(table.columns) == self._known_columns:
            return  # they only grow, and a name that is new in JSON lines starts a table
        self._known_columns = len(table.columns)
        ignored = checks.require(REQUIRED, (*OPTIONAL, *self._extras))
        fresh = [notice for notice in ignored if notice not in self._ignored]
        if fresh and self._strict:
            row = "" if table.header_row or self._path.suffix == ".parquet" else f"row {table.rows[0]}: "
            raise TraceError(f"{self._path}: {row}{fresh[0]}".replace("ignored the column", "unknown column"))
        self._ignored |= dict.fromkeys(fresh)

    def _chunk(self, checks: ColumnChecks) -> Trace:
        table = checks.table
        models, classes, sessions = self._models, self._classes, self._sessions
        model = models.codes(*checks.names("model", "model", None, models))
        service_class = classes.codes(*checks.names("service_class", "service class", DEFAULT_CLASS, classes))
        session = sessions.codes(*checks.names("session", "session", "", sessions))
        columns: dict[str, Any] = {
            "arrival_s": checks.seconds("arrival_s"),
            "model": model.astype(np.int32),
            "prompt_tokens": checks.whole("prompt_tokens", 1, MOST_TOKENS),
            "output_tokens": checks.whole("output_tokens", 1, MOST_TOKENS),
            "service_class": service_class.astype(np.int32),
            "session": session,
            "priority": checks.whole("priority", -MOST_TOKENS, MOST_TOKENS, default=0).astype(np.int32),
            "think_s": checks.optional_seconds("think_s"),
            "deadline_s": checks.optional_seconds("deadline_s", above_zero=True),
            "file_rows": table.rows,
        }
        extras = {name: read_extra(checks, name, self._extras[name]) for name in table.columns if name in self._extras}
        in_file = columns["arrival_s"]
        late = self._late(checks, in_file)
        checks.finish()
        if late:
            order = np.argsort(in_file, kind="stable")
            columns = {name: None if column is None else column[order] for name, column in columns.items()}
            extras = {name: column.take(order) for name, column in extras.items()}
        return Trace(
            **columns, models=models.names(), service_classes=classes.names(), sessions=sessions.names(), extras=extras
        )

    def _late(self, checks: ColumnChecks, arrival_s: NDArray[np.float64]) -> bool:
        """Whether rows of this table arrive before one above them in it; counts those that do, in all of the file."""
        highest = np.maximum(np.maximum.accumulate(arrival_s), self._latest_s)
        self._latest_s = float(highest[-1])
        late = arrival_s < highest
        if not late.any():
            return False
        index = int(np.argmax(late))
        text = f"arrives at {arrival_s[index]!s} s, before the row above it"
        if self._strict:
            checks.problem(index, f"{text}; sort the rows")
        self._first_late = self._first_late or f"row {checks.table.rows[index]}: {text}"
        self._late_rows += int(late.sum())
        return bool((arrival_s[1:] < arrival_s[:-1]).any())
