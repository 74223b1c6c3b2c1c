"""Numbers that stream by, in bounded memory: exact token histograms, spreads of seconds, windows of time, concurrency.

What is whole is counted exactly. Seconds are kept as they are up to MOST_KEPT of them; from there on each counts in a
bin of 0.4 % of its value. Nothing here knows a trace; `traces.facts` feeds it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.traces.columns import grown

MOST_KEPT = 1 << 20
_DENSE = 1 << 20  # below: one counter per whole number
_MANTISSA_CUT = 44  # bits of a float64 that a bin does not tell apart: 2^-8 of the value

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Histogram:
    """An exact count of every whole number >= 0."""

    def __init__(self) -> None:
        self._dense = np.zeros(1024, dtype=np.int64)
        self._values, self._counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        self._pending: list[Ints] = []
        self._pending_rows = 0
        self.count = self.total = 0

    def add(self, numbers: Ints) -> None:
        if not len(numbers):
            return
        self.count += len(numbers)
        self.total += int(numbers.sum())
        most = int(numbers.max())
        if most >= _DENSE:
            large = numbers[numbers >= _DENSE]
            numbers = numbers[numbers < _DENSE]
            self._pending.append(large)
            self._pending_rows += len(large)
            if self._pending_rows > MOST_KEPT:
                self._settle()
            most = int(numbers.max()) if len(numbers) else 0
        self._dense = grown(self._dense, most + 1, 0)
        counts = np.bincount(numbers)
        self._dense[: len(counts)] += counts

    def _settle(self) -> None:
        values, counts = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *self._pending]), return_counts=True)
        merged, places = np.unique(np.concatenate([self._values, values]), return_inverse=True)
        self._counts = np.bincount(
            places, weights=np.concatenate([self._counts, counts]), minlength=len(merged)
        ).astype(np.int64)  # weights are counts below 2^53: exact
        self._values, self._pending, self._pending_rows = merged, [], 0

    def table(self) -> tuple[Ints, Ints]:
        """The numbers that occur, rising, and how often."""
        self._settle()
        small = np.flatnonzero(self._dense)
        return np.concatenate([small, self._values]), np.concatenate([self._dense[small], self._counts])

    def quantiles(self, *shares: float) -> list[float]:
        """As numpy.percentile: linear between neighbours. There must be numbers."""
        values, counts = self.table()
        return _quantiles(values.astype(np.float64), counts, shares)

    def facts(self) -> dict[str, float]:
        """mean, p50, p90, p99, max, min."""
        values, _ = self.table()
        p50, p90, p99 = self.quantiles(0.5, 0.9, 0.99)
        ends = {"max": int(values[-1]), "min": int(values[0])}
        return {"mean": self.total / self.count, "p50": p50, "p90": p90, "p99": p99, **ends}


def _quantiles(values: Floats, counts: Ints, shares: tuple[float, ...]) -> list[float]:
    ends = np.cumsum(counts)
    last = int(ends[-1]) - 1
    found = []
    for share in shares:
        position = share * last
        low = int(position)
        part = position - low
        places = low, min(low + 1, last)
        left, right = (float(values[np.searchsorted(ends, place, side="right")]) for place in places)
        found.append(left + (right - left) * part if part < 0.5 else right - (right - left) * (1 - part))
    return found


class Moments:
    """Count, mean and spread of numbers, merged chunk by chunk without cancellation (Chan, Golub and LeVeque 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = 0.0

    def add(self, numbers: Floats) -> None:
        if not len(numbers):
            return
        count, mean = len(numbers), float(numbers.mean())
        squares = float(((numbers - mean) ** 2).sum())
        total, delta = self.count + count, mean - self.mean
        self.squares += squares + delta * delta * self.count * count / total
        self.mean += delta * count / total
        self.count = total

    @property
    def variation(self) -> float | None:
        """Standard deviation / mean; None without numbers or when the mean is 0."""
        if not self.count or self.mean == 0:
            return None
        return float(np.sqrt(self.squares / self.count)) / self.mean


class Spread:
    """Quantiles of numbers >= 0: exact up to MOST_KEPT of them, then to 0.2 % of their value."""

    def __init__(self) -> None:
        self.moments = Moments()
        self._kept: list[Floats] = []
        self._bins: Histogram | None = None
        self.zeros = 0
        self.most = 0.0

    def add(self, numbers: Floats) -> None:
        if not len(numbers):
            return
        self.moments.add(numbers)
        self.zeros += int((numbers == 0).sum())
        self.most = max(self.most, float(numbers.max()))
        self._kept.append(numbers)
        if self._bins is None and self.moments.count > MOST_KEPT:
            self._bins = Histogram()
        if self._bins is not None:
            for kept in self._kept:
                self._bins.add(_bin_of(kept))
            self._kept = []

    @property
    def approximate(self) -> bool:
        return self._bins is not None

    def table(self) -> tuple[Floats, Ints]:
        """Numbers, rising, and how often; of bins, their middles."""
        if self._bins is not None:
            bins, counts = self._bins.table()
            return _middle_of(bins), counts
        return np.unique(np.concatenate([np.zeros(0), *self._kept]), return_counts=True)

    def quantiles(self, *shares: float) -> list[float]:
        return _quantiles(*self.table(), shares)

    def facts(self) -> dict[str, Any] | None:
        """count, mean, cv, p10, p50, p90, p99, max, and whether the quantiles are approximate; None without numbers."""
        if not self.moments.count:
            return None
        names = ("p10", "p50", "p90", "p99")
        return {
            "count": self.moments.count,
            "mean": self.moments.mean,
            "cv": self.moments.variation,
            **dict(zip(names, self.quantiles(0.1, 0.5, 0.9, 0.99), strict=True)),
            "max": self.most,
            "approximate": self.approximate,
        }


# Of floats >= 0 the bits, read as whole numbers, rise with the value: their upper ones are a bin of constant share. The
# offset makes the bins of 1e-9 s and more small whole numbers; what is smaller, 0 too, is bin 0.
_FIRST_BIN = int(np.float64(1e-9).view(np.int64)) >> _MANTISSA_CUT


def _bin_of(numbers: Floats) -> Ints:
    bits = np.ascontiguousarray(numbers + 0.0).view(np.int64) >> _MANTISSA_CUT
    bins: Ints = np.maximum(bits - _FIRST_BIN + 1, 0)
    return bins


def _middle_of(bins: Ints) -> Floats:
    edges = ((bins + _FIRST_BIN - 1) << _MANTISSA_CUT).view(np.float64)
    above = ((bins + _FIRST_BIN) << _MANTISSA_CUT).view(np.float64)
    return np.where(bins == 0, 0.0, (edges + above) / 2)


class Windows:
    """Requests, tokens and the gaps between arrivals, by whole windows of `width_s` from the first arrival on.

    A gap belongs to a window when both its ends do; a window's variation counts from `fewest` gaps on. The last window
    is not whole, and not counted.
    """

    def __init__(self, width_s: float, fewest: int = 10) -> None:
        self.width_s = width_s
        self.variations = Spread()
        self.most = self.most_tokens = self.used = self.rows = 0
        self._squares = 0
        self._fewest = fewest
        self._last_s: float | None = None
        self._open = np.zeros((1, 5))  # index, requests, tokens, gaps: sum and sum of squares

    def add(self, since_first_s: Floats, tokens: Ints) -> None:
        index = np.floor(since_first_s / self.width_s).astype(np.int64)
        previous_s = np.concatenate([[np.nan if self._last_s is None else self._last_s], since_first_s[:-1]])
        self._last_s = float(since_first_s[-1])
        inside = np.floor(previous_s / self.width_s) == index
        gaps = np.where(inside, since_first_s - previous_s, 0.0)
        present, places = np.unique(index, return_inverse=True)
        sums = [np.bincount(places, weights=column) for column in (tokens, gaps, gaps * gaps)]
        rows = np.column_stack([present, np.bincount(places), *sums])
        if rows[0, 0] == self._open[0, 0]:
            rows[0, 1:] += self._open[0, 1:]
        else:
            self._close(self._open)
        self._close(rows[:-1])
        self._open = rows[-1:]

    def _close(self, windows: NDArray[np.float64]) -> None:
        windows = windows[windows[:, 1] > 0]
        if not len(windows):
            return
        counts = windows[:, 1].astype(np.int64)
        self.rows += int(counts.sum())
        self.used += len(counts)
        self.most = max(self.most, int(counts.max()))
        self.most_tokens = max(self.most_tokens, int(windows[:, 2].max()))
        self._squares += int((counts * counts).sum())
        gaps = counts - 1  # of a window's requests, only the first has its gap outside
        full = (gaps >= self._fewest) & (windows[:, 3] > 0)
        mean = windows[full, 3] / gaps[full]
        variance = np.maximum(windows[full, 4] / gaps[full] - mean * mean, 0.0)
        self.variations.add(np.sqrt(variance) / mean)

    def whole(self, span_s: float) -> int:
        """How many whole windows there are; the last request's is not among them."""
        return int(np.floor(span_s / self.width_s))  # rounds as the index of a request does

    def per_window(self, span_s: float) -> dict[str, float] | None:
        """mean, max, cv and empty_share of the requests in each whole window; None when there is none."""
        whole = self.whole(span_s)
        if not whole or not self.rows:
            return None
        mean = self.rows / whole
        variance = max(self._squares / whole - mean * mean, 0.0)
        empty = 1 - self.used / whole
        return {"mean": mean, "max": self.most, "cv": float(np.sqrt(variance)) / mean, "empty_share": empty}


class TimeBins:
    """A count over time in at most `bins` equal bins, whose width doubles when the time outgrows them."""

    def __init__(self, bins: int = 1024, width_s: float = 1.0) -> None:
        self.width_s = width_s
        self._counts = np.zeros(bins, dtype=np.int64)

    def add(self, since_first_s: Floats) -> None:
        bins = len(self._counts)
        while since_first_s[-1] >= bins * self.width_s:
            self._counts = np.pad(self._counts.reshape(-1, 2).sum(axis=1), (0, bins - bins // 2))
            self.width_s *= 2
        self._counts += np.bincount((since_first_s / self.width_s).astype(np.int64), minlength=bins)

    def rates(self, span_s: float) -> tuple[Floats, Floats]:
        """Starts of the bins in s and requests/s in each; the last, partial one is left out unless it is the only."""
        bins = max(int(span_s // self.width_s), 1)
        return np.arange(bins, dtype=np.float64) * self.width_s, self._counts[:bins] / self.width_s


class Concurrency:
    """How many would be in service if every request were served at once, for an assumed time."""

    def __init__(self) -> None:
        self.seen = Histogram()  # by arrivals, themselves included
        self.service_s = 0.0
        self._ends_s = np.zeros(0)

    def add(self, arrival_s: Floats, service_s: Floats) -> None:
        """Chunks in time order."""
        self.service_s += float(service_s.sum())
        before = len(self._ends_s)
        ends_s = np.sort(np.concatenate([self._ends_s, arrival_s + service_s]))
        gone = np.searchsorted(ends_s, arrival_s, side="right")
        self.seen.add(before + np.arange(1, len(arrival_s) + 1) - gone)
        self._ends_s = ends_s[ends_s > arrival_s[-1]]
