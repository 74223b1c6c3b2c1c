"""Chunks of requests brought into order of arrival, on disk where they are too many for the memory.

Each chunk is in order within itself, but may begin before the last one ends. Equal arrivals keep the order in which
they came. Called by `traces.stream` and the importers.
"""

from __future__ import annotations

import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from sim.common.errors import TraceError
from sim.common.lazy import pa
from sim.common.text import counted
from sim.traces.columns import Appearance
from sim.traces.trace import NAMED, NUMPY_COLUMNS, Trace, join, merged

CHUNK_ROWS = 1 << 16
# What may be held in memory at once: beyond either, a file streams, and a sort goes through files.
MOST_ROWS_HELD = 1 << 20
MOST_BYTES_HELD = 1 << 27
# A sort has several copies of what it sorts; it turns to files earlier.
MOST_ROWS_SORTED = 1 << 18

_SPILL_ROWS = 1 << 14
_EXTRA = "extra "  # before the names of extras in a temporary file


def in_time_order(chunks: Iterator[Trace], where: str) -> Iterator[Trace]:
    """The same requests in chunks of CHUNK_ROWS whose arrivals never fall; names are numbered by first appearance.

    All is read before the first chunk comes; names stay as they are when everything turns out to be in order already.
    More than MOST_ROWS_SORTED wait in temporary files (folder: $TMPDIR). `where` is for messages. Raises
    TraceError: a temporary file that cannot be written; whatever the chunks raise.
    """
    with ExitStack() as open_files:
        held = Held(MOST_ROWS_SORTED)
        runs: list[_Run] = []
        folder: Path | None = None
        latest_s, in_order = -np.inf, True
        last: Trace | None = None  # alone in knowing all names
        for chunk in chunks:
            last = chunk.select(slice(0, 0))
            in_order &= bool(chunk.arrival_s[0] >= latest_s)
            latest_s = max(latest_s, float(chunk.arrival_s[-1]))
            if held.add(chunk):
                try:
                    if folder is None:
                        # A folder that the system keeps: what is left behind by a killed run goes with it.
                        folder = Path(open_files.enter_context(tempfile.TemporaryDirectory(prefix="trace-")))
                    runs.append(_Run.written(held.chunks, folder / f"{len(runs)}.arrow", open_files))
                except OSError as error:
                    problem = error.strerror or str(error).splitlines()[0]
                    text = f"cannot write a temporary file to sort {where} ({problem})"
                    raise TraceError(f"{tempfile.gettempdir()}: {text}; make room, or set TMPDIR") from None
                held = Held(MOST_ROWS_SORTED)
        if last is None or not runs:
            yield from sorted_in_memory(held.chunks)
            return
        if held.rows:
            runs.append(_Run(merged(held.chunks), iter(())))
        sorted_chunks = _merged(runs, last)
        yield from sorted_chunks if in_order else numbered(sorted_chunks)


def late_notice(rows: int) -> str:
    """The notice that this many rows were sorted in."""
    return f"sorted {counted(rows, 'row')} that {'was' if rows == 1 else 'were'} out of order"


def numbered(chunks: Iterator[Trace]) -> Iterator[Trace]:
    """The chunks with their names numbered by first appearance, unused names left out."""
    numbering = {name: Appearance() for name in NAMED}
    for chunk in chunks:
        columns: dict[str, Any] = {}
        for name, (raw, names) in chunk.named().items():
            columns[name] = numbering[name].codes(raw, names).astype(raw.dtype)
            columns[NAMED[name]] = numbering[name].table()
        yield replace(chunk, **columns)


class Held:
    """Chunks that wait in memory, up to `most` rows."""

    def __init__(self, most: int | None = None) -> None:
        self.chunks: list[Trace] = []
        self.rows = 0
        self._most = MOST_ROWS_HELD if most is None else most
        self._bytes = 0

    def add(self, chunk: Trace) -> bool:
        """One more; whether they are now more than may wait."""
        self.chunks.append(chunk)
        self.rows += len(chunk)
        self._bytes += chunk.nbytes
        return self.rows > self._most or self._bytes > MOST_BYTES_HELD

    def holds(self, chunks: Iterator[Trace]) -> bool:
        """Take chunks until they are more than may wait; whether all could."""
        return not any(map(self.add, chunks))

    def handed_out(self) -> Iterator[Trace]:
        """The chunks from the first, each forgotten when it goes."""
        waiting = deque(self.chunks)
        self.chunks = []
        while waiting:
            yield waiting.popleft()


def is_in_order(chunks: list[Trace]) -> bool:
    """Whether no chunk begins before the one above it ends."""
    return all(a.arrival_s[-1] <= b.arrival_s[0] for a, b in pairwise(chunks))


def sorted_in_memory(held: list[Trace]) -> Iterator[Trace]:
    """`in_time_order` of chunks that are all at hand."""
    if is_in_order(held):
        yield from held
        return
    yield from numbered(_cut(merged(held), held[-1]))


@dataclass
class _Run:
    """A part of the trace in order, on disk or in memory, of which the front has been read.

    batches: what is still to be read.
    """

    front: Trace
    batches: Iterator[Trace]

    @classmethod
    def written(cls, held: list[Trace], path: Path, open_files: ExitStack) -> _Run:
        """A run in a file, read back a few rows at a time. Raises OSError."""
        whole = merged(held)
        columns = {name: column for name in NUMPY_COLUMNS if (column := getattr(whole, name)) is not None}
        table = pa.table(columns | {_EXTRA + name: column for name, column in whole.extras.items()})
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=_SPILL_ROWS)
        nothing = whole.select(np.zeros(0, dtype=np.intp))  # a copy: the rest need not stay in memory
        batches = _read_batches(open_files.enter_context(pa.OSFile(str(path), "rb")), nothing)
        return cls(next(batches), batches)

    def advance(self) -> bool:
        """Read on when the front is used up. False at the end."""
        while not len(self.front):
            following = next(self.batches, None)
            if following is None:
                return False
            self.front = following
        return True

    def take(self, count: int) -> Trace:
        """The first rows of the front, which go."""
        taken, self.front = self.front.select(slice(0, count)), self.front.select(slice(count, None))
        return taken


def _read_batches(file: Any, like: Trace) -> Iterator[Trace]:
    """The rows of a file with all else as in `like`."""
    reader = pa.ipc.open_file(file)
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        read = dict(zip(batch.schema.names, batch.columns, strict=True))
        extras = {name: read.pop(_EXTRA + name) for name in like.extras}
        columns = {name: column.to_numpy(zero_copy_only=False) for name, column in read.items()}
        yield replace(like, **columns, extras=extras)


def _merged(runs: list[_Run], last: Trace) -> Iterator[Trace]:
    """The runs' rows in order, with the names of `last`; of equal arrivals, an earlier run's come first."""
    waiting: list[Trace] = []
    for piece in _merged_pieces(runs):
        waiting.append(piece)
        if sum(map(len, waiting)) >= CHUNK_ROWS:
            yield from _cut(join(waiting), last)
            waiting = []
    if waiting:
        yield from _cut(join(waiting), last)


def _merged_pieces(runs: list[_Run]) -> Iterator[Trace]:
    while runs := [run for run in runs if run.advance()]:
        # What follows a run's front is not before the front's end: all rows before the earliest end may go.
        bound = min(float(run.front.arrival_s[-1]) for run in runs)
        parts = [run.take(int(np.searchsorted(run.front.arrival_s, bound, side="left"))) for run in runs]
        if any(map(len, parts)):
            yield merged([part for part in parts if len(part)])
        # Rows at the bound itself may go on in the next batches of their run, and earlier runs go first.
        for run in runs:
            while run.advance() and run.front.arrival_s[0] == bound:
                yield run.take(int(np.searchsorted(run.front.arrival_s, bound, side="right")))


def _cut(whole: Trace, last: Trace) -> Iterator[Trace]:
    """The requests as chunks, with the names of `last`, without optional columns that say nothing."""
    names: dict[str, Any] = {name: getattr(last, name) for name in (*NAMED.values(), "notices")}
    for chunk in whole.pieces(CHUNK_ROWS):
        optional = {name: getattr(chunk, name) for name in ("think_s", "deadline_s")}
        silent: dict[str, Any] = {
            name: None for name, column in optional.items() if column is not None and np.isnan(column).all()
        }
        yield replace(chunk, **names, **silent)
