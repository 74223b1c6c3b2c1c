"""Pure: what the recorder saw of each request, and the latencies that follow from it, as columns.

summary.py goes through it column by column, over all requests of a run; results.py writes it block by block. A column
is read or derived when it is asked for and not kept, so that a run may have more requests than fit in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.core.state.request import COMPLETED
from sim.scenario.scenario import ServiceClass

if TYPE_CHECKING:
    from sim.engine.engine import Outcome

Floats = NDArray[np.float64]
Part = Mapping[str, NDArray[Any]]


def _tpot_s(part: Part) -> Floats:
    gaps = part["output_tokens"] - 1
    known = (part["outcome"] == COMPLETED) & (gaps > 0)
    return np.where(known, (part["end_s"] - part["first_token_s"]) / np.maximum(gaps, 1), np.nan)


def _completed(part: Part, values: Floats) -> Floats:
    return np.where(part["outcome"] == COMPLETED, values, np.nan)


def _wait_s(part: Part) -> Floats:
    ttft_s = part["ttft_s"]
    return np.where(np.isnan(ttft_s), part["end_s"] - part["arrival_s"], ttft_s)


_DERIVED: dict[str, Callable[[Part], Floats]] = {
    "ttft_s": lambda part: np.asarray(part["first_token_s"] - part["arrival_s"]),
    "tpot_s": _tpot_s,
    "e2e_s": lambda part: _completed(part, part["end_s"] - part["arrival_s"]),
    "queue_s": lambda part: _completed(part, part["queued_s"] + part["load_wait_s"]),
    "wait_s": _wait_s,
    "normalised_s_per_token": lambda part: np.asarray(part["e2e_s"] / part["output_tokens"]),
}
DERIVED = (*_DERIVED, "attained")


class _Columns(Part):
    """Those of the recorder, and what follows from them."""

    _recorded: Part

    def __iter__(self) -> Iterator[str]:
        return iter([*self._recorded, *DERIVED])

    def __len__(self) -> int:
        return len(self._recorded) + len(DERIVED)


class _Derived(_Columns):
    """A part of the recorder's columns and what follows from them, each worked out once."""

    def __init__(self, recorded: Part, limits_s: Floats) -> None:
        self._recorded = recorded
        self._limits_s = limits_s
        self._found: dict[str, NDArray[Any]] = {}

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._found:
            if name in _DERIVED:
                self._found[name] = _DERIVED[name](self)
            else:
                self._found[name] = self._attained() if name == "attained" else self._recorded[name]
        return self._found[name]

    def _attained(self) -> NDArray[np.bool_]:
        """Completed within every limit of its class and its own deadline. One token has no TPOT to be too long."""
        holds: NDArray[np.bool_] = self["outcome"] == COMPLETED
        for column, latency in enumerate(("ttft_s", "tpot_s", "e2e_s")):
            holds = holds & ~(self[latency] > self._limits_s[self["service_class"], column])
        return holds & ~(self["e2e_s"] > self["deadline_s"])


class RequestColumns(_Columns):
    """Columns of `rows` entries."""

    rows: int


class RequestTable(RequestColumns):
    """Requests as columns of `rows` entries, in the order of the given parts; NaN where one has no such number.

    The columns are those of the recorder (metrics.REQUEST_COLUMNS) and, derived from them: ttft_s of those with a
    first token. e2e_s, queue_s and normalised_s_per_token (e2e_s per output token) of the completed, tpot_s of those
    of them with at least 2 tokens. wait_s: until the first token, or until the end without one. attained: completed
    within every limit of its class and its own deadline. Each access makes a new array: keep it no longer than it is
    needed.
    """

    def __init__(self, parts: Sequence[Part], classes: Sequence[ServiceClass]) -> None:
        limits = [[math.inf if x is None else x for x in (c.ttft_s, c.tpot_s, c.e2e_s)] for c in classes]
        self._limits_s = np.array(limits)
        self._parts, self._recorded = parts, parts[0]
        self.rows = sum(len(part["outcome"]) for part in parts)

    def __getitem__(self, name: str) -> NDArray[Any]:
        pieces = (_Derived(part, self._limits_s)[name] for part in self._parts)
        values: NDArray[Any] | None = None
        filled = 0
        for piece in pieces:
            # Parts are read one after the other into one array: never are all of them there beside the whole.
            values = np.empty(self.rows, dtype=piece.dtype) if values is None else values
            values[filled : filled + len(piece)] = piece
            filled += len(piece)
        assert values is not None, "a table has at least one part"
        assert filled == self.rows, (name, filled, self.rows)
        return values

    def since(self, after_s: float) -> RequestColumns:
        """The requests that arrive at after_s or later, in the same order."""
        return _Kept(self, self["arrival_s"] >= after_s)


class _Kept(RequestColumns):
    """The rows of a table that a mask keeps."""

    def __init__(self, table: RequestTable, mask: NDArray[np.bool_]) -> None:
        self._table, self._mask, self._recorded = table, mask, table._recorded
        self.rows = int(mask.sum())

    def __getitem__(self, name: str) -> NDArray[Any]:
        return np.asarray(self._table[name][self._mask])


def request_table(outcome: Outcome) -> RequestTable:
    """All requests of a run, in the order in which they ended."""
    return RequestTable(outcome.recorder.columns.parts(), outcome.scenario.service_classes)
