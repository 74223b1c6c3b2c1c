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
from numpy.typing import NDArray

from sim.common.errors import TraceError
from sim.common.lazy import pa
from sim.common.text import counted
from sim.traces.columns import Appearance
from sim.traces.trace import Trace, join

CHUNK_ROWS = 1 << 16
# What may be held in memory at once: beyond either, a file streams, and a sort goes through files.
MOST_ROWS_HELD = 1 << 20
MOST_BYTES_HELD = 1 << 27
# A sort has several copies of what it sorts; it turns to files earlier.
MOST_ROWS_SORTED = 1 << 18

_NUMBERS = ("arrival_s", "model", "prompt_tokens", "output_tokens", "service_class", "session", "priority")
_SOMETIMES = ("file_rows", "think_s", "deadline_s")
_SPILL_ROWS = 1 << 14
_EXTRA = "extra "
_Rows = dict[str, Any]  # columns of equal length by name, extras with _EXTRA before theirs


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
            runs.append(_Run.of(held.chunks))
        merged = _merged(runs, last)
        yield from merged if in_order else numbered(merged)


def late_notice(rows: int) -> str:
    """The notice that this many rows were sorted in."""
    return f"sorted {counted(rows, 'row')} that {'was' if rows == 1 else 'were'} out of order"


def numbered(chunks: Iterator[Trace]) -> Iterator[Trace]:
    """The chunks with their names numbered by first appearance, unused names left out."""
    numbering = {"model": Appearance(), "service_class": Appearance(), "session": Appearance()}
    for chunk in chunks:
        codes: dict[str, Any] = {
            name: numbering[name].codes(raw, names).astype(raw.dtype) for name, (raw, names) in chunk.named().items()
        }
        yield replace(
            chunk,
            **codes,
            models=numbering["model"].table(),
            service_classes=numbering["service_class"].table(),
            sessions=numbering["session"].table(),
        )


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
    order = np.argsort(np.concatenate([chunk.arrival_s for chunk in held]), kind="stable")
    yield from numbered(_traces(_taken(_rows(held), order), held[-1]))


@dataclass
class _Run:
    """A part of the trace in order, on disk or in memory, of which the front has been read.

    batches: what is still to be read.
    """

    front: _Rows
    batches: Iterator[_Rows]

    @classmethod
    def of(cls, held: list[Trace]) -> _Run:
        """A run in memory."""
        order = np.argsort(np.concatenate([chunk.arrival_s for chunk in held]), kind="stable")
        return cls(_taken(_rows(held), order), iter(()))

    @classmethod
    def written(cls, held: list[Trace], path: Path, open_files: ExitStack) -> _Run:
        """A run in a file, read back a few rows at a time. Raises OSError."""
        run = cls.of(held)
        table = pa.table(run.front)
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=_SPILL_ROWS)
        batches = _read_batches(open_files.enter_context(pa.OSFile(str(path), "rb")))
        return cls(next(batches), batches)

    def advance(self) -> bool:
        """Read on when the front is used up. False at the end."""
        while not len(self.front["arrival_s"]):
            following = next(self.batches, None)
            if following is None:
                return False
            self.front = following
        return True

    def take(self, count: int) -> _Rows:
        """The first rows of the front, which go."""
        taken = {name: column[:count] for name, column in self.front.items()}
        self.front = {name: column[count:] for name, column in self.front.items()}
        return taken


def _read_batches(file: Any) -> Iterator[_Rows]:
    reader = pa.ipc.open_file(file)
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        yield {
            name: column if name.startswith(_EXTRA) else column.to_numpy(zero_copy_only=False)
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        }


def _merged(runs: list[_Run], last: Trace) -> Iterator[Trace]:
    """The runs' rows in order, with the names of `last`; of equal arrivals, an earlier run's come first."""
    waiting: list[_Rows] = []
    count = 0
    for rows in _merged_pieces(runs):
        waiting.append(rows)
        count += len(rows["arrival_s"])
        if count >= CHUNK_ROWS:
            yield from _traces(_joined(waiting), last)
            waiting, count = [], 0
    if waiting:
        yield from _traces(_joined(waiting), last)


def _merged_pieces(runs: list[_Run]) -> Iterator[_Rows]:
    while runs := [run for run in runs if run.advance()]:
        # What follows a run's front is not before the front's end: all rows before the earliest end may go.
        bound = min(float(run.front["arrival_s"][-1]) for run in runs)
        parts = [run.take(int(np.searchsorted(run.front["arrival_s"], bound, side="left"))) for run in runs]
        before = _joined([part for part in parts if len(part["arrival_s"])] or parts[:1])
        if len(before["arrival_s"]):
            yield _taken(before, np.argsort(before["arrival_s"], kind="stable"))
        # Rows at the bound itself may go on in the next batches of their run, and earlier runs go first.
        for run in runs:
            while run.advance() and run.front["arrival_s"][0] == bound:
                yield run.take(int(np.searchsorted(run.front["arrival_s"], bound, side="right")))


def _traces(rows: _Rows, last: Trace) -> Iterator[Trace]:
    """Sorted rows as chunks, with the names of `last`."""
    for start in range(0, len(rows["arrival_s"]), CHUNK_ROWS):
        part = {name: column[start : start + CHUNK_ROWS] for name, column in rows.items()}
        columns: dict[str, Any] = {name: part.get(name) for name in (*_NUMBERS, *_SOMETIMES)}
        for name in ("think_s", "deadline_s"):
            if columns[name] is not None and np.isnan(columns[name]).all():
                columns[name] = None
        extras = {name.removeprefix(_EXTRA): column for name, column in part.items() if name.startswith(_EXTRA)}
        yield replace(last, **columns, extras=extras)


def _rows(held: list[Trace]) -> _Rows:
    whole = join([replace(chunk, arrival_s=np.zeros(len(chunk))) for chunk in held])  # join wants them in order
    rows = {name: getattr(whole, name) for name in (*_NUMBERS, *_SOMETIMES) if getattr(whole, name) is not None}
    rows["arrival_s"] = np.concatenate([chunk.arrival_s for chunk in held])
    return rows | {_EXTRA + name: column for name, column in whole.extras.items()}


def _taken(rows: _Rows, order: NDArray[np.intp]) -> _Rows:
    return {name: column.take(order) for name, column in rows.items()}


def _joined(parts: list[_Rows]) -> _Rows:
    """Rows below each other; a column that only some have is filled with NaN or null."""
    if len(parts) == 1:
        return parts[0]
    joined: _Rows = {}
    counts = [len(part["arrival_s"]) for part in parts]
    for name in dict.fromkeys(name for part in parts for name in part):
        columns = [part.get(name) for part in parts]
        if name.startswith(_EXTRA):
            kind = next(column.type for column in columns if column is not None and not pa.types.is_null(column.type))
            padded = (pa.nulls(n) if c is None else c for c, n in zip(columns, counts, strict=True))
            joined[name] = pa.concat_arrays([column.cast(kind) for column in padded])
        elif name != "file_rows" or all(column is not None for column in columns):
            joined[name] = np.concatenate(
                [np.full(n, np.nan) if c is None else c for c, n in zip(columns, counts, strict=True)]
            )
    return joined
