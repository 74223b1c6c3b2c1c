"""Many processes become one trace: windows of time that hold a bounded number of requests, merged in order of arrival.

How long a window is depends on how much is expected in it and changes nothing of the requests. Called by `generate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.common.errors import ConfigError
from sim.common.lazy import pa
from sim.scenario.workload import GenerateWorkload
from sim.traces.trace import Trace
from sim.workload.flows import Flow, Names
from sim.workload.prefixes import PLAN, Rows, block_counts, written_out
from sim.workload.sessions import joined, part

WINDOW_ROWS = 1 << 16  # about so many requests are drawn at a time
CHUNK_BLOCKS = 1 << 22  # a chunk has about so many ids of prompt blocks at most
_OPTIONAL = ("session", "turn", "think_s", "deadline_s", *PLAN)


def optional_columns(workload: GenerateWorkload) -> list[str]:
    """Which of the columns that not every request needs a workload's trace has."""
    streams = workload.streams
    sessions = [stream.sessions for stream in streams if stream.sessions is not None]
    deadlines = [stream for stream in streams if stream.deadline_s is not None]
    deadlines += [stream for stream in streams if any(of.deadline_s is not None for of in stream.per_class.values())]
    has = {
        "session": bool(sessions),
        "turn": bool(sessions),
        "think_s": any(item.closed_loop for item in sessions),
        "deadline_s": bool(deadlines),
    }
    has |= dict.fromkeys(PLAN, any(stream.prefix is not None for stream in streams))
    return [name for name in _OPTIONAL if has[name]]


class Merge:
    """One pass over the requests of labelled processes, up to end_s or to `most` rows."""

    def __init__(
        self, flows: Sequence[tuple[str, Flow]], names: Names, end_s: float, most: int | None, optional: list[str]
    ) -> None:
        self._flows, self._names, self._end_s, self._most = flows, names, end_s, most
        self._optional = optional
        self._sessions: tuple[str, ...] = ()
        self._codes: list[NDArray[np.int64]] = [np.zeros(0, dtype=np.int64) for _ in flows]  # of each one's sessions

    def chunks(self, chunk_rows: int) -> Iterator[Trace]:
        """The trace in pieces of at most chunk_rows. Raises ConfigError: no request at all."""
        left = self._most
        given = False
        for rows in self._windows():
            count = len(rows["arrival_s"]) if left is None else min(len(rows["arrival_s"]), left)
            for start, stop in _cuts(rows, count, chunk_rows):
                yield self._trace(part(rows, slice(start, stop)))
            given = given or bool(count)
            left = None if left is None else left - count
            if left == 0:
                return
        if not given:
            raise ConfigError("workload: no request falls within duration_s; make it longer or raise rate_per_s")

    def _windows(self) -> Iterator[Rows]:
        start_s, width_s, expected = 0.0, min(self._end_s, 1.0), 0.0
        while start_s < self._end_s:
            for _ in range(4):  # a few steps at a time: nobody wants to know about the far future of a slow process
                if self._expected(start_s + width_s) - expected < WINDOW_ROWS / 4 and start_s + width_s < self._end_s:
                    width_s *= 2
            # Then down again: a burst may be much more than what twice the time brings otherwise.
            while self._expected(start_s + width_s) - expected > 1.5 * WINDOW_ROWS and width_s > 1e-6 + 1e-12 * start_s:
                width_s /= 2
            stop_s = min(start_s + width_s, self._end_s)
            parts = [(number, flow.until(stop_s)) for number, (_, flow) in enumerate(self._flows)]
            found = [self._completed(number, rows) for number, rows in parts if rows is not None]
            start_s, expected = stop_s, self._expected(stop_s)
            if found:
                rows = joined(found)
                # Stable: equal arrivals stay in the order of the processes.
                yield rows if len(found) == 1 else part(rows, np.argsort(rows["arrival_s"], kind="stable"))

    def _expected(self, until_s: float) -> float:
        return sum(flow.expected(min(until_s, self._end_s)) for _, flow in self._flows)

    def _completed(self, number: int, rows: Rows) -> Rows:
        """The rows of one process with all columns of the trace, its sessions numbered for the whole trace."""
        count = len(rows["arrival_s"])
        if "session" in rows:
            rows["session"] = self._session_codes(number, rows["session"])
        for name in self._optional:
            if name not in rows:
                rows[name] = _nothing(name, count)
        return rows

    def _session_codes(self, number: int, own: NDArray[np.int64]) -> NDArray[np.int64]:
        known = self._codes[number]
        most = int(own.max()) + 1
        if most > len(known):
            # Sessions begin in order of time, so those that are new follow on those that are known.
            label = self._flows[number][0]
            new = range(len(known), most)
            codes = len(self._sessions) + np.arange(len(new))
            self._sessions += tuple([f"{label}/{session + 1}" for session in new])
            self._codes[number] = known = np.concatenate([known, codes])
        return known[own]

    def _trace(self, rows: Rows) -> Trace:
        count = len(rows["arrival_s"])
        return Trace(
            arrival_s=rows["arrival_s"],
            model=rows["model"],
            models=self._names.models,
            prompt_tokens=rows["prompt_tokens"],
            output_tokens=rows["output_tokens"],
            service_class=rows["service_class"],
            service_classes=self._names.service_classes,
            session=rows["session"] if "session" in rows else np.full(count, -1, dtype=np.int64),
            sessions=self._sessions,
            priority=rows["priority"],
            think_s=rows.get("think_s"),
            deadline_s=rows.get("deadline_s"),
            extras=_extras(rows),
        )


def _cuts(rows: Rows, count: int, chunk_rows: int) -> Iterator[tuple[int, int]]:
    """Where the first `count` rows are cut into chunks: by rows, and by how many ids of blocks they have."""
    blocks = np.zeros(count, dtype=np.int64)
    if "block_tokens" in rows:
        blocks = np.cumsum(block_counts(rows)) // CHUNK_BLOCKS
    cuts = np.unique(np.concatenate([np.arange(0, count, chunk_rows), np.flatnonzero(np.diff(blocks[:count])) + 1]))
    yield from zip(cuts.tolist(), [*cuts[1:].tolist(), count], strict=True)


def _extras(rows: Rows) -> dict[str, Any]:
    extras: dict[str, Any] = {}
    if "turn" in rows or "block_tokens" in rows:
        for column, name in (("turn", "turn"), ("block_tokens", "prefix_block_tokens")):
            if column in rows:
                extras[name] = pa.array(rows[column], mask=rows[column] == 0)
    if "block_tokens" in rows:
        extras["prefix_blocks"] = written_out(rows)
    return extras


def _nothing(name: str, count: int) -> NDArray[Any]:
    if name == "session":
        return np.full(count, -1, dtype=np.int64)
    return np.full(count, np.nan) if name in ("think_s", "deadline_s") else np.zeros(count, dtype=np.int64)
