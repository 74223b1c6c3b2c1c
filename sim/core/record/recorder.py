"""What was seen: columns that only grow while the run lasts, one row a request and one a switch, and a few counters.
What does not fit in memory lies on disk until the run is over (columns.py).

Serving and loading write here; summary.py reads it afterwards. Inter-token latencies go into a histogram with bins
0.5 % wide (their mean and maximum are exact): a leap adds a whole arithmetic series at once.
"""

from __future__ import annotations

from array import array
from math import exp, inf, log1p
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.common.column_store import ROWS_IN_MEMORY, ColumnStore, rows_checksum
from sim.core.state.instance import Instance
from sim.core.state.links import CAUSES
from sim.core.state.request import COMPLETED, LOAD_WAIT, OUTCOMES, PHASES, UNFINISHED, Request

if TYPE_CHECKING:
    from sim.core.record.series import Series
    from sim.core.record.timeline import Timeline
    from sim.core.state.machines import Cluster

BIN_WIDTH = 0.005
_LOWEST_S = 1e-6
_ROWS = 4096
_BINS = 5600  # up to about 1e6 s


class TokenLatencies:
    """The distribution of inter-token latency, weighted by tokens; seconds."""

    def __init__(self) -> None:
        self._rows = array("d")
        self.counts = np.zeros(_BINS, dtype=np.int64)
        self.total_s = 0.0
        self.tokens = 0
        self.max_s = 0.0

    def add(self, sequences: float, number: float, first_s: float, last_s: float) -> None:
        """`sequences` sequences saw `number` latencies each, rising (or falling) linearly from first_s to last_s."""
        self._rows.extend((sequences, number, first_s, last_s))
        if len(self._rows) >= 1 << 18:
            self._flush()

    def _flush(self) -> None:
        rows = np.array(self._rows).reshape(-1, 4)
        self._rows = array("d")
        weight, number, first_s, last_s = rows.T
        low_s, high_s = np.minimum(first_s, last_s), np.maximum(first_s, last_s)
        self.total_s += float(np.sum(weight * number * (first_s + last_s) / 2))
        self.tokens += int(np.sum(weight * number))
        self.max_s = max(self.max_s, float(high_s.max(initial=0.0)))
        low_bin, high_bin = _bin_of(low_s), _bin_of(high_s)
        spans = (high_bin - low_bin + 1).astype(np.int64)
        owner = np.repeat(np.arange(len(rows)), spans)
        bins = low_bin[owner] + np.arange(len(owner)) - np.repeat(np.cumsum(spans) - spans, spans)
        slope_s = np.where(number > 1, (high_s - low_s) / np.maximum(number - 1, 1), 0.0)
        below = _number_below(_edge(bins), low_s[owner], slope_s[owner], number[owner])
        above = _number_below(_edge(bins + 1), low_s[owner], slope_s[owner], number[owner])
        below = np.where(bins == low_bin[owner], 0, below)
        above = np.where(bins == high_bin[owner], number[owner], above)
        share = (above - below) * weight[owner]
        self.counts += np.bincount(bins, weights=share, minlength=_BINS).astype(np.int64)

    def quantiles(self, shares: list[float]) -> list[float]:
        """Seconds at these shares of all tokens: the upper edge of the bin, never above the true maximum."""
        self.settle()
        if not self.tokens:
            return [float("nan")] * len(shares)
        cumulative = np.cumsum(self.counts)
        found = np.searchsorted(cumulative, np.array(shares) * self.tokens)
        return [min(float(value), self.max_s) for value in _edge(found + 1)]

    def settle(self) -> None:
        """Count what has been added so far."""
        if self._rows:
            self._flush()


# By the standard library, one by one: vectorised exponentials differ in the last bit between processors.
_EDGES_S = np.array([_LOWEST_S * exp(edge * log1p(BIN_WIDTH)) for edge in range(_BINS + 1)])


def _bin_of(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.asarray(np.clip(np.searchsorted(_EDGES_S, seconds, side="right") - 1, 0, _BINS - 1))


def _edge(bins: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(_EDGES_S[bins])


def _number_below(
    edge_s: NDArray[np.float64], low_s: NDArray[np.float64], slope_s: NDArray[np.float64], number: NDArray[np.float64]
) -> NDArray[np.float64]:
    """How many of the latencies low_s, low_s + slope_s, ... are below the edge."""
    with np.errstate(divide="ignore", invalid="ignore"):
        count = np.ceil((edge_s - low_s) / slope_s)
    count = np.where(slope_s > 0, count, np.where(low_s < edge_s, number, 0))
    return np.asarray(np.clip(count, 0, number))


# Names, and how wide the numbers are (columns.ColumnStore). Token counts and priorities are at most 1e9 by the trace.
REQUEST_COLUMNS = {
    "request": "i",
    "model": "i",
    "service_class": "i",
    "priority": "i",
    "prompt_tokens": "i",
    "output_tokens": "i",
    "produced_tokens": "i",
    "outcome": "i",
    "reason": "i",
    "arrival_s": "d",
    "deadline_s": "d",
    "first_token_s": "d",
    "end_s": "d",
    **{f"{phase}_s": "d" for phase in PHASES},
    "mean_residency": "d",
    "sequence_preemptions": "i",
    "model_preemptions": "i",
    "cold": "?",
    "session": "q",
}
SWITCH_COLUMNS = {
    "time_s": "d",
    "kind": "i",
    "model": "i",
    "gpu": "i",
    "layers": "i",
    "mode": "i",
    "wait_s": "d",
    "start_s": "d",
    "reload_s": "d",
    "kv_save_s": "d",
    "kv_restore_s": "d",
    "free_s": "d",
    "bytes": "d",
    "from_disk": "?",
    "instance": "q",
}
SWITCH_TEXTS = ("kind", "model", "gpu", "mode")  # columns of codes, whose names are in Recorder.switch_texts


class FaultRecord:
    """What faults did to a run: how many there were, who was sent back, and the work that was lost."""

    def __init__(self) -> None:
        self.events = {"gpu_failure": 0, "node_loss": 0, "slow_link": 0, "load_failure": 0}
        self.retried = 0  # requests that went back to the queue, once or more often
        self.retries = 0  # times that one did
        self.cancelled = 0
        self.kv_tokens = 0  # of sequences, whose KV was lost
        self.recompute_s = 0.0  # what these take to compute again, each alone on the GPU where it was
        self.step_s = 0.0  # GPU work in iterations that never ended
        self.load_s = 0.0  # of loads that came to nothing
        self.wasted_tokens = 0  # output of requests that were given up


class Recorder:
    """Everything that a run leaves behind.

    scratch: the folder for what is too much for memory; None: the system's temporary one. most_rows: so many requests
    (and as many switches) stay in memory.
    """

    def __init__(self, scratch: Path | None = None, most_rows: int = ROWS_IN_MEMORY) -> None:
        self._requests = ColumnStore(REQUEST_COLUMNS, "request", scratch, most_rows)
        self._rows: list[tuple[float, ...]] = []  # of requests, not yet in the columns
        self.sessions = False  # does any request belong to one?
        self.series: Series | None = None  # what is on the GPUs over time
        self.timeline: Timeline | None = None  # what to draw of this run
        self.faults: FaultRecord | None = None  # of a run in which there may be some
        self._digest_sum = 0
        self.reasons: dict[str, int] = {"": 0}
        self.arrived = 0
        self.ended = [0] * len(OUTCOMES)
        self.all_ended = 0
        self.latencies = TokenLatencies()
        self._switches = ColumnStore(SWITCH_COLUMNS, None, scratch, most_rows)
        self._switch_rows: list[tuple[Any, ...]] = []
        self.switch_texts: dict[str, dict[str, int]] = {name: {} for name in SWITCH_TEXTS}
        self.bytes_by_cause = dict.fromkeys(CAUSES, 0.0)
        self.counts = {
            "loads": 0,
            "evictions": 0,
            "resizes": 0,
            "model_preemptions": 0,
            "sequence_preemptions": 0,
            "kv_dropped_for_lack_of_host_memory": 0,
        }
        self.seconds = {"reload_s": 0.0, "kv_save_s": 0.0, "kv_restore_s": 0.0, "free_s": 0.0, "start_s": 0.0}
        self.output_tokens = 0
        self.tokens_below_full_residency = 0

    def moved(self, cause: str, size: float) -> None:
        self.bytes_by_cause[cause] += size

    def tokens(self, number: int, residency: float) -> None:
        """`number` tokens came out of an instance with this residency."""
        self.output_tokens += number
        if residency < 1.0:
            self.tokens_below_full_residency += number

    def note(self, instance: Instance, now_s: float) -> None:
        """Its status, its layers or its bytes changed."""
        if self.series is not None:
            self.series.note(instance, now_s)
        if self.timeline is not None:
            self.timeline.note(instance, now_s)

    def look(self, now_s: float, cluster: Cluster) -> float:
        """Note batches and queues where it is time to, as they were before now; when to look again."""
        again_s = inf
        if self.series is not None:
            if now_s >= self.series.next_s:
                self.series.sample(now_s, cluster)
            again_s = self.series.next_s
        if self.timeline is not None:
            if now_s >= self.timeline.next_s:
                self.timeline.sample(now_s, cluster)
            again_s = min(again_s, self.timeline.next_s)
        return again_s

    def switch(self, time_s: float, kind: str, instance: Instance, **parts: Any) -> None:
        """One load, stop, resize, save or restore, with its cost parts; what is not named did not happen."""
        row = {
            **dict.fromkeys(SWITCH_COLUMNS, 0.0),
            "time_s": time_s,
            "kind": kind,
            "model": instance.model.name,
            "gpu": instance.placement.name,
            "layers": instance.residency.layers,
            "mode": "",
            "from_disk": False,
            "instance": instance.number,
            **parts,
        }
        assert len(row) == len(SWITCH_COLUMNS), parts
        for name in self.seconds:
            self.seconds[name] += row[name]
        for name, codes in self.switch_texts.items():
            row[name] = codes.setdefault(row[name], len(codes))
        self._switch_rows.append(tuple(row.values()))
        if len(self._switch_rows) >= _ROWS:
            self._turn_switches()

    def end(self, request: Request, outcome: int, now_s: float) -> None:
        """The request's last instant: its row."""
        request.enter(request.phase, now_s)
        request.outcome = outcome
        self.ended[outcome] += 1
        self.all_ended += 1
        if self.timeline is not None and outcome not in (COMPLETED, UNFINISHED):
            self.timeline.ended(request, OUTCOMES[outcome], now_s)
        if request.session >= 0:
            self.sessions = True
        produced = request.produced
        values = (
            request.index,
            request.model.index,
            request.service_class,
            request.priority,
            request.prompt_tokens,
            request.output_tokens,
            produced,
            outcome,
            self.reasons.setdefault(request.reason, len(self.reasons)),
            request.arrival_s,
            request.deadline_s,
            request.first_token_s if produced else np.nan,
            now_s,
            *request.budget_s,
            request.residency_tokens / produced if produced else np.nan,
            request.sequence_preemptions,
            request.model_preemptions,
            int(request.cold or request.budget_s[LOAD_WAIT] > 0),
            request.session,
        )
        self._rows.append(values)
        if len(self._rows) >= _ROWS:
            self._turn_rows()

    @property
    def columns(self) -> ColumnStore:
        """The columns of REQUEST_COLUMNS, one row a request that has ended, in the order in which they did."""
        self._turn_rows()
        return self._requests

    @property
    def digest_sum(self) -> int:
        """columns.rows_checksum of (request, prompt_tokens, output_tokens) of all requests that have ended."""
        self._turn_rows()
        return self._digest_sum

    @property
    def switch_columns(self) -> ColumnStore:
        """The columns of SWITCH_COLUMNS, one row a switch, in the order in which they happened."""
        self._turn_switches()
        return self._switches

    @property
    def switches(self) -> list[tuple[Any, ...]]:
        """Every switch with its texts, all in memory: for runs with few."""
        store = self.switch_columns
        columns = {name: store[name].tolist() for name in store}
        for name, codes in self.switch_texts.items():
            texts = list(codes)
            columns[name] = [texts[code] for code in columns[name]]
        return list(zip(*columns.values(), strict=True))

    def _turn_rows(self) -> None:
        """Rows become columns: many at once, which is cheaper than one by one."""
        if not self._rows:
            return
        rows, self._rows = self._rows, []
        block = self._requests.add(rows)
        added = rows_checksum(block["request"], block["prompt_tokens"], block["output_tokens"])
        self._digest_sum = (self._digest_sum + added) % 2**64

    def _turn_switches(self) -> None:
        rows, self._switch_rows = self._switch_rows, []
        if rows:
            self._switches.add(rows)
