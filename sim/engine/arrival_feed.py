"""Feeds a run with its requests, lazily and in time: there is one timer for all arrivals that are still to come.

A request with a think time (closed loop) is sent so long after the one before it in its session has ended. What has
been sent is also summed up, so that the engine can tell at the end whether the record still says the same. Knows the
clock and traces; the engine makes the requests.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from math import isnan
from typing import Any

import numpy as np

from sim.common.column_store import rows_checksum
from sim.core.clock import SimClock
from sim.core.state.instance import Model
from sim.core.state.request import Request
from sim.traces.trace import Row, Trace

_SUMMED = 8192


def request_of(row: Row, number: int, models: list[Model], now_s: float) -> Request:
    """The request of a row, which is the run's `number`-th and arrives now."""
    _, model, prompt_tokens, output_tokens, service_class, priority, session, _, deadline_s, _ = row
    request = Request(number, models[model], now_s, prompt_tokens, output_tokens)
    request.service_class, request.priority = service_class, priority
    request.session, request.deadline_s = session, deadline_s
    return request


class Turn:
    """The place in its session of a request that has not ended, and who waits for its end."""

    __slots__ = ("next_row", "next_turn", "session")

    def __init__(self, session: int) -> None:
        self.session = session
        self.next_row: Row | None = None
        self.next_turn: Turn | None = None


class Feed:
    """The requests of one run, from their trace to the cluster.

    send: makes the request of a row and lets it arrive now. done: no request will come any more, as things are.
    """

    def __init__(self, chunks: Iterator[Trace], clock: SimClock, send: Callable[[Row], Request]) -> None:
        self.exhausted = False
        self._chunks = chunks
        self._rows: Iterator[Row] = iter(())
        self._clock = clock
        self._send = send
        self._thinking = 0  # rows whose time has come, but whose session is not that far
        self._turns: dict[int, Turn] = {}  # of requests in flight that belong to a session
        self._sessions: dict[int, Turn] = {}  # the last of each, until it has ended
        self._ended_s = array("d")  # by session: when its last turn so far ended; -1: none has, or one has not
        self._sent = array("q")  # prompt and output tokens of requests that are not in the sum yet
        self._summed = 0
        self._sum = 0

    @property
    def done(self) -> bool:
        return self.exhausted and not self._thinking

    def all_chunks(self) -> list[Trace]:
        """The whole trace, before the first of it is sent; from here on it is in memory. Raises SimError."""
        chunks = list(self._chunks)
        self._chunks = iter(chunks)
        return chunks

    def next(self) -> None:
        """Set the timer of the next row. Raises SimError: a row that cannot be played."""
        row = next(self._rows, None)
        while row is None:
            chunk = next(self._chunks, None)
            if chunk is None:
                self.exhausted = True
                return
            self._rows = chunk.rows()
            row = next(self._rows, None)
        self._clock.at(row.arrival_s, self._on_row, row, 0)

    def _on_row(self, subject: Any, _: int) -> None:
        row: Row = subject
        self.next()
        session, think_s = row.session, row.think_s
        if session < 0:
            self._let_go(row)
            return
        turn = Turn(session)
        before = self._sessions.get(session)
        self._sessions[session] = turn
        if isnan(think_s):  # open loop: nothing to wait for
            self._take_turn(turn, self._let_go(row))
            return
        self._thinking += 1
        if before is not None:
            before.next_row, before.next_turn = row, turn
        else:
            assert session < len(self._ended_s), f"session {session} begins with a think time"
            assert self._ended_s[session] >= 0, f"session {session} begins with a think time"
            self._later(row, turn, self._ended_s[session] + think_s)

    def _later(self, row: Row, turn: Turn, time_s: float) -> None:
        def go(_subject: Any, _version: int) -> None:
            self._thinking -= 1
            self._take_turn(turn, self._let_go(row))

        self._clock.at(max(time_s, self._clock.now_s), go, None, 0)

    def ended(self, request: Request) -> None:
        """Whoever waits in its session for the end of this request begins to think."""
        if not self._turns:
            return
        turn = self._turns.pop(request.index, None)
        if turn is not None:
            self._end(turn)

    def _take_turn(self, turn: Turn, request: Request) -> None:
        if request.outcome >= 0:
            self._end(turn)  # it was impossible
        else:
            self._turns[request.index] = turn

    def _end(self, turn: Turn) -> None:
        now_s, session = self._clock.now_s, turn.session
        if turn.next_row is not None:
            assert turn.next_turn is not None
            self._later(turn.next_row, turn.next_turn, now_s + turn.next_row.think_s)
        elif self._sessions.get(session) is turn:
            del self._sessions[session]
            while len(self._ended_s) <= session:
                self._ended_s.append(-1.0)
            self._ended_s[session] = now_s

    def _let_go(self, row: Row) -> Request:
        sent = self._sent
        sent.append(row.prompt_tokens)
        sent.append(row.output_tokens)
        if len(sent) >= 2 * _SUMMED:
            self._sum_up()
        return self._send(row)

    def _sum_up(self) -> None:
        pairs = np.array(self._sent, dtype=np.int64).reshape(-1, 2)
        numbers = np.arange(self._summed, self._summed + len(pairs))
        self._sum = (self._sum + rows_checksum(numbers, pairs[:, 0], pairs[:, 1])) % 2**64
        self._summed += len(pairs)
        self._sent = array("q")

    def checksum(self) -> int:
        """columns.rows_checksum of (number, prompt tokens, output tokens) of all that were sent."""
        self._sum_up()
        return self._sum
