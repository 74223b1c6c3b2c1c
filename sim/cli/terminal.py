"""What every verb of the command line shares: errors on one line, the console, and progress on stderr.

Results go to stdout; all here but the console goes to stderr. Called by `cli` and `trace_cli`.
"""

from __future__ import annotations

import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from sim.common.atomic_files import why
from sim.common.errors import SimError, out_of_memory

if TYPE_CHECKING:
    from rich.console import Console

    from sim.runs.task import Progress
    from sim.traces.stream import TraceStream
    from sim.traces.trace import Trace

LONG_S = 2.0  # from here on progress is worth its lines
_LONGEST_LINE = 2_000  # characters; what a mistake names may be of any length
QUIET_S = 20.0  # between two lines where there is no terminal


def say(text: str) -> None:
    """One line on stderr, whatever the text holds."""
    line = re.sub(r"\s*[\r\n]+\s*", " ", text[:_LONGEST_LINE])
    print("".join(char if char.isprintable() else repr(char)[1:-1] for char in line), file=sys.stderr)


@contextmanager
def mistakes_in_one_line(kept: Callable[[], str] | None = None, roomier: str = "make it smaller") -> Iterator[None]:
    """A user's mistake becomes one line and exit status 2, lack of memory one and status 1; a fault of ours passes.

    kept: asked when memory ran out or stdout could not be written, says in words what there is nevertheless. roomier:
    what needs less memory.
    """
    try:
        yield
    except SimError as error:
        say(f"error: {error}")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:  # where the verb itself has no more to say of it
        say("interrupted; what was not finished is not kept")
        raise typer.Exit(130) from None
    except BrokenPipeError:  # the reader of stdout has seen enough
        raise
    except (MemoryError, OSError, ImportError, RuntimeError) as error:
        traceback.clear_frames(error.__traceback__)  # what fills the memory is let go, or there is none to say so
        there = "nothing was kept" if kept is None else kept()
        if out_of_memory(error):
            say(f"error: out of memory; {there}; {roomier}, or give it more memory")
            raise typer.Exit(1) from None
        if not isinstance(error, OSError):
            raise
        # A path that the system cannot even look at, such as one too long; or else stdout.
        hint = "check the path" if error.filename else there
        say(f"error: {error.filename or 'standard output'}: {why(error)}; {hint}")
        raise typer.Exit(2) from None


def console() -> Console:
    """Where tables go: stdout. Names come from users: nothing in them is markup."""
    from rich.console import Console  # noqa: PLC0415

    return Console(markup=False, emoji=False, highlight=False)


def wide_console(columns: int = 130) -> Console:
    """As `console`, but where stdout is no terminal (and COLUMNS says nothing) as wide as wide tables need."""
    from rich.console import Console  # noqa: PLC0415

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else columns
    return Console(markup=False, emoji=False, highlight=False, width=width)


@contextmanager
def counted(stream: TraceStream, doing: str) -> Iterator[TraceStream]:
    """The stream; while it takes long, its rows, rows/s and, if known, the time left are shown on stderr.

    As a bar at a terminal, otherwise as a line now and then.
    """
    count = _Count(doing, stream.rows)

    def chunks() -> Iterator[Trace]:
        for chunk in stream.chunks:
            yield chunk
            count.add(len(chunk))

    try:
        yield replace(stream, chunks=chunks())
    finally:
        count.close()


class _Count:
    def __init__(self, doing: str, total: int | None) -> None:
        self._doing, self._total, self._done = doing, total, 0
        self._begin_s = self._said_s = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def add(self, rows: int) -> None:
        self._done += rows
        clock_s = time.monotonic()
        taken_s = clock_s - self._begin_s
        if not sys.stderr.isatty():
            if clock_s - self._said_s > QUIET_S:
                self._said_s = clock_s
                say(self._line(taken_s))
            return
        if self._bar is None and taken_s > LONG_S:
            self._bar, self._task = _bar(self._doing, self._total)
            self._bar.start()
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, speed=f"{self._done / taken_s:,.0f} rows/s")

    def _line(self, taken_s: float) -> str:
        speed = self._done / taken_s
        text = f"{self._doing}: {self._done:,} rows after {taken_s:,.0f} s, {speed:,.0f} rows/s"
        return text if self._total is None else f"{text}; {(self._total - self._done) / speed:,.0f} s left"

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


class RunProgress:
    """How far a run is: a bar at a terminal, else a line now and then, once it takes long."""

    def __init__(self) -> None:
        self.ended, self.now_s = 0, 0.0
        self.arriving: int | None = None
        self._begin_s = self._said_s = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __call__(self, ended: int, arriving: int | None, now_s: float) -> None:
        self.ended, self.arriving, self.now_s = ended, arriving, now_s
        clock_s = time.monotonic()
        if not sys.stderr.isatty():
            if clock_s - self._said_s > QUIET_S:
                self._said_s = clock_s
                say(self._line(clock_s - self._begin_s))
            return
        if self._bar is None and clock_s - self._begin_s > LONG_S:
            self._bar, self._task = _bar("requests", arriving)
            self._bar.start()
        if self._bar is not None:
            speed = f"{ended / (clock_s - self._begin_s):,.0f}/s, t = {now_s:,.0f} s"
            self._bar.update(self._task, completed=ended, total=arriving, speed=speed)

    def _line(self, wall_s: float) -> str:
        """Rate, simulated time, and the time left if the number of requests is known."""
        rate = self.ended / wall_s
        text = f"{self.ended:,} requests after {wall_s:,.0f} s, {rate:,.0f}/s, t = {self.now_s:,.0f} s"
        if self.arriving is None or not self.ended:
            return text
        return f"{text}; {(self.arriving - self.ended) / rate:,.0f} s left for {self.arriving - self.ended:,}"

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()

    def __str__(self) -> str:
        if not self.ended and self.arriving is None:
            return "interrupted"
        total = "" if self.arriving is None else f" of {self.arriving:,}"
        return f"interrupted at t = {self.now_s:,.0f} s after {self.ended:,}{total} requests"


class RunsProgress:
    """How far many runs are: a bar at a terminal, else a line now and then, once they take long."""

    def __init__(self) -> None:
        self.done = self.total = 0
        self._begin_s = self._said_s = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __call__(self, progress: Progress) -> None:
        self.done, self.total = progress.before + progress.done, progress.total
        clock_s = time.monotonic()
        if progress.done == 0:  # the next batch of runs
            self._begin_s = clock_s
        taken_s = clock_s - self._begin_s
        failed = f"{progress.failed} failed" if progress.failed else ""
        if not sys.stderr.isatty():
            if clock_s - self._said_s > QUIET_S and progress.done:
                self._said_s = clock_s
                left_s = taken_s / progress.done * (self.total - self.done)
                text = f"{self.done:,} of {self.total:,} runs after {taken_s:,.0f} s; {left_s:,.0f} s left"
                say(f"{text}; {failed}" if failed else text)
            return
        if self._bar is None and taken_s > LONG_S:
            self._bar, self._task = _bar("runs", self.total)
            self._bar.start()
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, total=self.total, speed=failed)

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()

    def kept(self, folder: Path | None) -> str:
        """What there is when it does not come to its end, in words."""
        if folder is None or not self.total:
            return "nothing was kept" if folder is None else "no run was played"
        return f"what has finished is kept in {folder}, the same command goes on"

    def __str__(self) -> str:
        return f"interrupted after {self.done:,} of {self.total:,} runs" if self.total else "interrupted"


def _bar(doing: str, rows: int | None) -> tuple[Any, Any]:
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    name, speed = (TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[speed]}"))
    columns = (name, BarColumn(), MofNCompleteColumn(), speed)
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
    return bar, bar.add_task(doing, total=rows, speed="")
