"""How far something is, on stderr: a bar at a terminal, else a line now and then, once it takes long."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.runs.task import Progress
    from sim.traces.stream import TraceStream
    from sim.traces.trace import Trace

LONG_S = 2.0  # from here on progress is worth its lines
QUIET_S = 20.0  # between two lines where there is no terminal
_LONGEST_LINE = 2_000  # characters; what a mistake names may be of any length


def say(text: str) -> None:
    """One line on stderr, whatever the text holds."""
    line = re.sub(r"\s*[\r\n]+\s*", " ", text[:_LONGEST_LINE])
    print("".join(char if char.isprintable() else repr(char)[1:-1] for char in line), file=sys.stderr)


class _Progress:
    """Shows `doing`: a bar, or lines."""

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._begin_s = self._said_s = time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def show(self, done: int, total: int | None, speed: Callable[[float], str], line: Callable[[float], str]) -> None:
        """`speed` and `line` make the bar's last column and a whole line of the seconds that it has taken."""
        clock_s = time.monotonic()
        taken_s = clock_s - self._begin_s
        if not sys.stderr.isatty():
            if clock_s - self._said_s > QUIET_S:
                self._said_s = clock_s
                say(line(taken_s))
            return
        if self._bar is None and taken_s > LONG_S:
            self._bar, self._task = _bar(self._doing, total)
            self._bar.start()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, speed=speed(taken_s))

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()


@contextmanager
def counting(stream: TraceStream, doing: str) -> Iterator[TraceStream]:
    """The stream; while it takes long, its rows, rows/s and, if known, the time left are shown on stderr."""
    shown, total, done = _Progress(doing), stream.rows, 0

    def speed(taken_s: float) -> str:
        return f"{done / taken_s:,.0f} rows/s"

    def line(taken_s: float) -> str:
        text = f"{doing}: {done:,} rows after {taken_s:,.0f} s, {speed(taken_s)}"
        return text if total is None else f"{text}; {(total - done) * taken_s / done:,.0f} s left"

    def chunks() -> Iterator[Trace]:
        nonlocal done
        for chunk in stream.chunks:
            yield chunk
            done += len(chunk)
            shown.show(done, total, speed, line)

    try:
        yield replace(stream, chunks=chunks())
    finally:
        shown.close()


class RunProgress(_Progress):
    """How far a run is."""

    def __init__(self) -> None:
        super().__init__("requests")
        self.ended, self.now_s = 0, 0.0
        self.arriving: int | None = None

    def __call__(self, ended: int, arriving: int | None, now_s: float) -> None:
        self.ended, self.arriving, self.now_s = ended, arriving, now_s
        self.show(ended, arriving, lambda taken_s: f"{ended / taken_s:,.0f}/s, t = {now_s:,.0f} s", self._line)

    def _line(self, taken_s: float) -> str:
        """Rate, simulated time, and the time left if the number of requests is known."""
        rate = self.ended / taken_s
        text = f"{self.ended:,} requests after {taken_s:,.0f} s, {rate:,.0f}/s, t = {self.now_s:,.0f} s"
        if self.arriving is None or not self.ended:
            return text
        return f"{text}; {(self.arriving - self.ended) / rate:,.0f} s left for {self.arriving - self.ended:,}"

    def __str__(self) -> str:
        if not self.ended and self.arriving is None:
            return "interrupted"
        total = "" if self.arriving is None else f" of {self.arriving:,}"
        return f"interrupted at t = {self.now_s:,.0f} s after {self.ended:,}{total} requests"


class RunsProgress(_Progress):
    """How far many runs are."""

    def __init__(self) -> None:
        super().__init__("runs")
        self.done = self.total = 0

    def __call__(self, progress: Progress) -> None:
        self.done, self.total = progress.before + progress.done, progress.total
        if progress.done == 0:  # the next batch of runs
            self._begin_s = self._said_s = time.monotonic()
        failed = f"{progress.failed} failed" if progress.failed else ""

        def line(taken_s: float) -> str:
            text = f"{self.done:,} of {self.total:,} runs after {taken_s:,.0f} s"
            if progress.done:
                text += f"; {taken_s / progress.done * (self.total - self.done):,.0f} s left"
            return f"{text}; {failed}" if failed else text

        self.show(self.done, self.total, lambda _: failed, line)

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
