"""What was seen: columns that only grow while the run lasts, one row a request and one a switch, and a few counters.

Serving and loading write here; summary.py reads it afterwards. Inter-token latencies go into a histogram with bins
0.5 % wide (their mean and maximum are exact): a leap adds a whole arithmetic series at once.
"""

from __future__ import annotations

from array import array
from math import exp, log1p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.links import CAUSES
from sim.state import LOAD_WAIT, OUTCOMES, PHASES, Instance, Request

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

    def add(self, sequences: int, number: int, first_s: float, last_s: float) -> None:
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


REQUEST_COLUMNS = {
    "request": "q",
    "model": "q",
    "service_class": "q",
    "priority": "q",
    "prompt_tokens": "q",
    "output_tokens": "q",
    "produced_tokens": "q",
    "outcome": "q",
    "reason": "q",
    "arrival_s": "d",
    "first_token_s": "d",
    "end_s": "d",
    **{f"{phase}_s": "d" for phase in PHASES},
    "mean_residency": "d",
    "sequence_preemptions": "q",
    "model_preemptions": "q",
    "cold": "q",
}
SWITCH_COLUMNS = (
    "time_s",
    "kind",
    "model",
    "gpu",
    "layers",
    "mode",
    "wait_s",
    "start_s",
    "reload_s",
    "kv_save_s",
    "kv_restore_s",
    "free_s",
    "bytes",
    "from_disk",
    "instance",
)


class Recorder:
    """Everything that a run leaves behind."""

    def __init__(self) -> None:
        self._columns: dict[str, array[Any]] = {name: array(code) for name, code in REQUEST_COLUMNS.items()}
        self._rows: list[tuple[float, ...]] = []  # of requests, not yet in the columns
        self.reasons: dict[str, int] = {"": 0}
        self.arrived = 0
        self.ended = [0] * len(OUTCOMES)
        self.latencies = TokenLatencies()
        self.switches: list[tuple[Any, ...]] = []
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

    def switch(self, time_s: float, kind: str, instance: Instance, **parts: Any) -> None:
        """One load, stop, resize, save or restore, with its cost parts; what is not named did not happen."""
        row = {
            **dict.fromkeys(SWITCH_COLUMNS, 0.0),
            "time_s": time_s,
            "kind": kind,
            "model": instance.model.name,
            "gpu": instance.gpu.name,
            "layers": instance.layers,
            "mode": "",
            "from_disk": False,
            "instance": instance.number,
            **parts,
        }
        assert len(row) == len(SWITCH_COLUMNS), parts
        self.switches.append(tuple(row.values()))
        for name in self.seconds:
            self.seconds[name] += row[name]

    def end(self, request: Request, outcome: int, now_s: float) -> None:
        """The request's last instant: its row."""
        request.enter(request.phase, now_s)
        request.outcome = outcome
        self.ended[outcome] += 1
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
            request.first_token_s if produced else np.nan,
            now_s,
            *request.budget_s,
            request.residency_tokens / produced if produced else np.nan,
            request.sequence_preemptions,
            request.model_preemptions,
            int(request.cold or request.budget_s[LOAD_WAIT] > 0),
        )
        self._rows.append(values)
        if len(self._rows) >= _ROWS:
            self._turn_rows()

    @property
    def columns(self) -> dict[str, array[Any]]:
        """One array a column of REQUEST_COLUMNS, one row a request that has ended, in the order in which they did."""
        self._turn_rows()
        return self._columns

    def _turn_rows(self) -> None:
        """Rows become columns: many at once, which is cheaper than one by one."""
        for column, values in zip(self._columns.values(), zip(*self._rows, strict=True), strict=False):
            column.extend(values)
        self._rows = []
