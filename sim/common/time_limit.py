"""Ends other people's code that computes for ever: a policy's decision, or the import of its file.

A timer looks now and then whether the same call still runs. It never changes a result: a run either ends as it
would have, or is broken off with an error. Only the main thread of a Unix is watched, and code that never returns
from C (a huge power, a bad regular expression) only ends with the process. Called by asking, policy and engine, and
by what tries policies and parsers out.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from sim.common.errors import ConfigError, PolicyError

LIMIT = "SIM_DECISION_LIMIT_S"  # the environment's name for it: processes of a sweep inherit it
DEFAULT_LIMIT_S = 120.0
_LOOKS = 4  # within a limit
_SWALLOWED = 3  # so often code may catch what would end it


class Overtime(BaseException):
    """It has taken too long. No Exception: a policy that catches those must not go on."""


def limit_s() -> float:
    """Seconds of one decision; 0: no limit. Raises ConfigError: the environment says nonsense."""
    text = os.environ.get(LIMIT, "")
    try:
        seconds = float(text) if text else DEFAULT_LIMIT_S
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 1e9:
        raise ConfigError(f"{LIMIT}={text[:40]}: give seconds, or 0 for no limit")
    return seconds


def set_limit(seconds: float | None) -> None:
    """The limit for this process and those that it starts; None: as it is. Raises ConfigError."""
    if seconds is not None:
        os.environ[LIMIT] = str(seconds)
        limit_s()


@contextmanager
def not_for_ever(running: Callable[[], int], blame: Callable[[str], str]) -> Iterator[None]:
    """While inside: raises Overtime in the middle of a call that goes on for longer than `limit_s`.

    `running()`: the number of the call that runs now, 0 for none. `blame`: makes the message of what went wrong. Where
    the call will not be stopped, and this process is the program's own (`end_process`), the process ends.
    """
    seconds = limit_s()
    if not seconds or not _can_be_told():
        yield
        return
    looks = _Looks(running, blame, seconds)
    before = signal.signal(signal.SIGALRM, looks.look)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds / _LOOKS, seconds / _LOOKS)
    try:
        yield
    except Overtime as error:  # between two of the caller's own handlers
        raise PolicyError(blame(str(error))) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def limited(seconds: float, error: Callable[[str], BaseException]) -> Iterator[None]:
    """Raises what `error` makes of the reason, in the middle of whatever computes for longer than `seconds`."""
    if not _can_be_told():
        yield
        return

    def stop(_signal: int, frame: FrameType | None) -> None:
        raise error(_endless(seconds, frame))

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
        signal.signal(signal.SIGVTALRM, before)


def _can_be_told() -> bool:
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()


def _endless(seconds: float, frame: FrameType | None) -> str:
    place = "" if frame is None else f" (it was at {Path(frame.f_code.co_filename).name}, line {frame.f_lineno})"
    return f"it computed for {seconds:g} s without coming to an end{place}"


class _Looks:
    """How often the same call was seen to run."""

    def __init__(self, running: Callable[[], int], blame: Callable[[str], str], seconds: float) -> None:
        self._running = running
        self._blame = blame
        self._seconds = seconds
        self._call, self._seen, self._raised = 0, 0, 0

    def look(self, _signal: int, frame: FrameType | None) -> None:
        call = self._running()
        if call == 0 or call != self._call:
            self._call, self._seen, self._raised = call, 0, 0
            return
        self._seen += 1
        if self._seen < _LOOKS:
            return
        reason = _endless(self._seconds, frame)
        self._raised += 1
        if self._raised > _SWALLOWED and _own_process:
            text = " ".join(f"error: {self._blame(reason)}, and would not be stopped".split())
            os.write(2, f"{text}\n".encode("utf-8", "backslashreplace"))
            os._exit(2)
        raise Overtime(reason)


_own_process: list[bool] = []


def end_process() -> None:
    """This process is the program's own: code that will not be stopped may end it."""
    _own_process.append(True)
