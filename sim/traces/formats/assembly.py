"""From blocks of rows as they stand in a file to the chunks of a trace: one clock, in order, one numbering of names.

A format reads its columns into `Block`s, in the file's order; nothing here knows a particular format. Called by the
modules beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sim.common.errors import TraceError
from sim.common.text import counted
from sim.traces.columns import FURTHEST_S, MOST_TOKENS, ColumnChecks
from sim.traces.formats.base import FormatOptions
from sim.traces.order import CHUNK_ROWS, MOST_BYTES_HELD, MOST_ROWS_HELD, in_time_order, late_notice
from sim.traces.overlay import overlay
from sim.traces.stream import NameTable, TraceStream
from sim.traces.trace import DEFAULT_CLASS, Trace, merged

Whole = NDArray[np.int64]
Named = tuple[Whole, Sequence[str]]
Blocks = Callable[[list[str]], Iterator["Block"]]  # a file's blocks, given where to put notices
EmptyChoice = Literal["refuse", "drop", "keep"]
EMPTY = "rows without prompt or output tokens: drop, keep (as 1 token) or refuse"  # describes such an option


@dataclass(frozen=True)
class Block:
    """Some rows of one file, in any order, before they have a clock and a numbering of names.

    where: the file. rows: int64[n], where each stands in it. time: int64[n] or float64[n], in the clock's unit.
    prompt_tokens, output_tokens: int64[n], at least 1. model, service_class, session: codes int64[n] and their names;
    session -1 is none. priority: int64[n]. think_s: float64[n]. extras: pyarrow arrays of n, the same in all blocks.
    """

    where: str
    rows: Whole
    time: NDArray[Any]
    prompt_tokens: Whole
    output_tokens: Whole
    model: Named
    service_class: Named | None = None
    session: Named | None = None
    priority: Whole | None = None
    think_s: NDArray[np.float64] | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    def select(self, part: NDArray[Any]) -> Block:
        """The rows at these positions, or where this mask is true."""
        part = np.flatnonzero(part) if part.dtype == bool else part
        changed: dict[str, Any] = {"extras": {name: column.take(part) for name, column in self.extras.items()}}
        for name in ("rows", "time", "prompt_tokens", "output_tokens", "priority", "think_s"):
            column = getattr(self, name)
            changed[name] = None if column is None else column[part]
        for name in ("model", "service_class", "session"):
            named = getattr(self, name)
            changed[name] = None if named is None else (named[0][part], named[1])
        return replace(self, **changed)


@dataclass(frozen=True)
class Clock:
    """How a block's time becomes seconds: (time - origin) / per_s. origin None: the earliest row of all files is 0.

    scattered: by the format's nature rows may stand anywhere, so that all must be read before the first is known.
    """

    per_s: int = 1
    origin: float | None = None
    scattered: bool = False


def assembled(files: Mapping[str, Blocks], options: FormatOptions, clock: Clock) -> TraceStream:
    """The blocks of one file, or of several, by the files' names, as one trace in order of arrival.

    Rows of a file that stand out of order are sorted, with a notice; equal arrivals keep the order of the files and
    of their rows. Raises TraceError, while it is read: whatever the blocks' readers refuse, an arrival outside the
    clock's range, nothing left, a row far out of order (see `Clock`), and under `options.strict` any out of order.
    """
    where = ", ".join(files)
    notices: list[str] = []
    return TraceStream(_chunks(files, options, clock, notices), where, notices=notices)


def _chunks(files: Mapping[str, Blocks], options: FormatOptions, clock: Clock, notices: list[str]) -> Iterator[Trace]:
    sorters = [_Sorter(blocks, options.strict, clock.per_s) for blocks in files.values()]
    firsts = [next(sorter, None) for sorter in sorters]
    starts = [block.time[0] for block in firsts if block is not None]
    origin = clock.origin
    if origin is None and starts:
        origin = min(starts)
    streams = []
    for where, sorter, first in zip(files, sorters, firsts, strict=True):
        if first is None:
            left_out = "; ".join(sorter.notices) or "it has no rows"
            raise TraceError(f"{where}: no request is left ({left_out})")
        traces = _Naming().traces(chain([first], sorter), origin, clock.per_s)
        ordering = in_time_order if clock.scattered or options.sort else _nearly_in_order
        streams.append(TraceStream(ordering(traces, where), where, notices=sorter.notices))
    joint = streams[0] if len(streams) == 1 else overlay(streams, list(files), apart=False)
    yield from joint.chunks if clock.origin is not None else _from_zero(joint.chunks, clock.per_s)
    notices += joint.notices


class _Sorter:
    """Iterates over a file's blocks, each put in order; `notices` are complete at the end."""

    def __init__(self, blocks: Blocks, strict: bool, per_s: int) -> None:
        self.notices: list[str] = []
        self._blocks = blocks(self.notices)
        self._strict = strict
        self._per_s = per_s
        self._latest: Any = None
        self._late = 0

    def __iter__(self) -> Iterator[Block]:
        return self

    def __next__(self) -> Block:
        for block in self._blocks:
            if len(block.time):
                return self._sorted(block)
        if self._late:
            self.notices.append(late_notice(self._late))
            self._late = 0
        raise StopIteration

    def _sorted(self, block: Block) -> Block:
        highest = np.maximum.accumulate(block.time)
        if self._latest is not None:
            highest = np.maximum(highest, self._latest)
        self._latest = highest[-1]
        late = block.time < highest
        if not late.any():
            return block
        if self._strict:
            index = int(np.argmax(late))
            before_s = (highest[index] - block.time[index]) / self._per_s
            row = f"{block.where}: row {block.rows[index]}"
            raise TraceError(f"{row}: arrives {before_s:g} s before a row above it; sort the rows")
        self._late += int(late.sum())
        return block.select(np.argsort(block.time, kind="stable"))


class _Naming:
    """Numbers names across all blocks of a file, by first appearance."""

    def __init__(self) -> None:
        self._models, self._classes, self._sessions = NameTable(), NameTable(), NameTable()

    def traces(self, blocks: Iterator[Block], origin: Any, per_s: int) -> Iterator[Trace]:
        """Blocks that are in order within themselves as chunks; an arrival before the origin is negative."""
        for block in blocks:
            for start in range(0, len(block.time), 2 * CHUNK_ROWS):
                part = block
                if len(block.time) > 2 * CHUNK_ROWS:
                    part = block.select(np.arange(start, min(start + 2 * CHUNK_ROWS, len(block.time))))
                yield self._trace(part, origin, per_s)

    def _trace(self, block: Block, origin: Any, per_s: int) -> Trace:
        count = len(block.time)
        # Differences of integers are exact, and below 2^53 also as float64: one rounding, in the division.
        arrival_s = (block.time - origin) / per_s
        if not abs(arrival_s[[0, -1]]).max() <= FURTHEST_S:
            index = 0 if abs(arrival_s[0]) > FURTHEST_S else -1
            row = f"{block.where}: row {block.rows[index]}"
            raise TraceError(f"{row}: arrives {arrival_s[index]:.3g} s after the first request; mend its time")
        nothing = np.zeros(count, dtype=np.int64)
        model = self._codes(self._models, block.model)
        service_class = self._codes(self._classes, block.service_class or (nothing, (DEFAULT_CLASS,)))
        session = self._codes(self._sessions, block.session or (nothing - 1, ()))
        return Trace(
            arrival_s=arrival_s + 0.0,
            model=model.astype(np.int32),
            models=self._models.names(),
            prompt_tokens=block.prompt_tokens,
            output_tokens=block.output_tokens,
            service_class=service_class.astype(np.int32),
            service_classes=self._classes.names(),
            session=session,
            sessions=self._sessions.names(),
            priority=(nothing if block.priority is None else block.priority).astype(np.int32),
            file_rows=block.rows,
            think_s=block.think_s,
            extras=block.extras,
        )

    @staticmethod
    def _codes(names: NameTable, column: Named) -> Whole:
        codes, local = column
        uses = np.bincount(codes + 1, minlength=len(local) + 1)[1:]
        if uses.all():
            return names.codes(codes, local)
        # Names that only rows that were left out had are no names of the trace.
        used = np.flatnonzero(uses)
        return names.codes(np.append(np.cumsum(uses > 0) - 1, -1)[codes], [local[code] for code in used.tolist()])


def _nearly_in_order(chunks: Iterator[Trace], where: str) -> Iterator[Trace]:
    """Chunks that are in order within themselves, in order; a row may stand about MOST_ROWS_HELD rows too late.

    What is behind that is on its way already, so that a file of any length streams. Raises TraceError at a row that
    stands later.
    """
    held: list[Trace] = []
    sent_s = -np.inf
    for chunk in chunks:
        if chunk.arrival_s[0] < sent_s:
            assert chunk.file_rows is not None
            raise TraceError(
                f"{where}: row {chunk.file_rows[0]}: arrives before a row that is too far above it to sort as "
                "the file streams; give --option sort=true to sort all of it first"
            )
        behind = [before for before in held if before.arrival_s[-1] <= chunk.arrival_s[0]]
        over = held[len(behind) :]  # overlaps with the chunk in time
        held = [*behind, *(merged([*over, chunk]).pieces(CHUNK_ROWS) if over else [chunk])]
        while len(held) > 1 and _is_much(held):
            sent_s = held[0].arrival_s[-1]
            yield held.pop(0)
    yield from held


def _is_much(held: list[Trace]) -> bool:
    return sum(map(len, held)) > MOST_ROWS_HELD or sum(chunk.nbytes for chunk in held) > MOST_BYTES_HELD


def _from_zero(chunks: Iterator[Trace], per_s: int) -> Iterator[Trace]:
    """Moves a trace whose first request turned out to be before the first block's."""
    shift_s: float | None = None
    for chunk in chunks:
        if shift_s is None:
            shift_s = min(0.0, float(chunk.arrival_s[0]))
        if shift_s == 0:
            yield chunk
        elif per_s == 1:
            yield replace(chunk, arrival_s=chunk.arrival_s - shift_s)
        else:  # back to the file's own ticks, so that the result is as exact as without the move
            ticks = np.rint(chunk.arrival_s * per_s) - np.rint(shift_s * per_s)
            yield replace(chunk, arrival_s=ticks / per_s)


# --- what several formats ask of their columns


class EmptyTokens:
    """What to do with rows whose prompt or answer has no tokens: an error, left out, or counted as one token.

    option: the name of the option that chooses. Rows left out or changed are counted, and said by `finish`.
    """

    def __init__(self, choice: EmptyChoice, option: str) -> None:
        self._choice = choice
        self._option = option
        self._count = 0

    def read(self, checks: ColumnChecks, prompt: str, output: str) -> tuple[Whole, Whole, NDArray[np.bool_] | None]:
        """The two columns, at least 1 each, and a mask of the rows to keep, None for all. Raises TraceError."""
        columns = {name: checks.whole(name, 0, MOST_TOKENS) for name in (prompt, output)}
        checks.finish()
        for name, numbers in columns.items():
            if self._choice == "refuse" and not numbers.all():
                hint = f"give at least 1, or --option {self._option}=drop (or keep)"
                checks.problem(int(np.argmin(numbers)), f"column '{name}' is '0'; {hint}")
        checks.finish()
        return self.applied(*columns.values())

    def applied(self, prompt: Whole, output: Whole) -> tuple[Whole, Whole, NDArray[np.bool_] | None]:
        """The same for numbers of at least 0, where nothing is refused."""
        empty = (prompt == 0) | (output == 0)
        count = int(empty.sum())
        if not count:
            return prompt, output, None
        self._count += count
        return np.maximum(prompt, 1), np.maximum(output, 1), None if self._choice == "keep" else ~empty

    def finish(self, notices: list[str]) -> None:
        """The notice, if there is anything to say."""
        if not self._count:
            return
        rows = f"{counted(self._count, 'row')} without prompt or output tokens"
        if self._choice == "drop":
            notices.append(f"left out {rows}; --option {self._option}=keep counts such a number as 1")
        else:
            notices.append(f"kept {rows}, counted as 1")
