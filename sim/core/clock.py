"""SimPy's clock, and the only file that imports SimPy: calls at absolute times, and one turn at the end of an instant.

The engine gives it what to call; nothing here knows requests or instances.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush
from math import inf
from typing import Any, ClassVar

import simpy


class Timer:
    """Calls action(subject, version) when its time comes. Of an event SimPy's loop asks for no more than the callbacks
    and whether it succeeded; timers are made by the million, so they are no more than that."""

    __slots__ = ("action", "callbacks", "subject", "version")
    _ok: ClassVar[bool] = True

    def __init__(
        self,
        callbacks: list[Callable[[Any], None]],
        action: Callable[[Any, int], None],
        subject: object,
        version: int,
    ) -> None:
        self.callbacks: list[Callable[[Any], None]] | None = callbacks  # SimPy takes them away
        self.action = action
        self.subject = subject
        self.version = version


class SimClock:
    """A SimPy environment with calls at absolute times, so that an arrival happens exactly at its trace's time."""

    def __init__(self, turn: Callable[[], None]) -> None:
        self.now_s = 0.0
        self.events = 0
        self._turn = turn
        environment: Any = simpy.Environment(0.0)  # whose queue takes our timers for its events
        self._environment = environment
        self._queue: list[tuple[float, int, int, Timer]] = environment._queue
        self._callbacks: list[Callable[[Any], None]] = [self._fire]  # of every timer: SimPy only reads the list
        self._timers = 0
        self._stopped = False
        self._stirred_s = self._before_s = 0.0  # the last event that was not stale, and the one before the present one
        self._look_s = inf
        self._look: Callable[[float], float] | None = None

    def at(self, time_s: float, action: Callable[[Any, int], None], subject: object, version: int) -> None:
        """Call action(subject, version) at `time_s`, in the order of the calls of that instant."""
        assert time_s >= self.now_s, (time_s, self.now_s)
        if self._stopped:
            return
        self._timers += 1
        heappush(self._queue, (time_s, 1, self._timers, Timer(self._callbacks, action, subject, version)))

    def _fire(self, timer: Timer) -> None:
        """One event: what it does, and the turn if it was the last of its instant."""
        self.events += 1
        now_s: float = self._environment._now
        if now_s >= self._look_s and self._look is not None:
            self._look_s = self._look(now_s)
        self.now_s = now_s
        self._before_s, self._stirred_s = self._stirred_s, now_s
        timer.action(timer.subject, timer.version)
        queue = self._queue
        if not queue or queue[0][0] > now_s:
            self._turn()

    def stale(self) -> None:
        """The present event came for nothing: what it was set for is no more, or later."""
        self._stirred_s = self._before_s

    def watch(self, look: Callable[[float], float]) -> None:
        """Call look(time) before the first event from a time on, with that event's time; it says when to call again.

        It is no event: it may only look at what holds until then.
        """
        self._look_s, self._look = look(0.0), look

    @property
    def pending(self) -> int:
        """Calls to come."""
        return len(self._queue)

    def run(self) -> None:
        """Until nothing is left to come, or `stop`. It ends with the last event that did not come for nothing."""
        self._environment.run()
        self.now_s = self._stirred_s

    def step(self) -> bool:
        """One event; False if none is left to come."""
        if self._queue:
            self._environment.step()
        return bool(self._queue)

    def stop(self) -> None:
        """Nothing that is still to come matters: `run` ends after this event, whatever its turn still asks for."""
        self._stopped = True
        self._queue.clear()
