"""How one action is timed: repeats after a warm-up, until they are steady or there is no more time for them.

Times are the host's clock around work that ends with a synchronisation of the device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

_STEADY = 0.05  # 10th to 90th percentile over the median: no more repeats are needed


@dataclass(frozen=True)
class RepeatedTiming:
    """Seconds of repeats of one action."""

    median_s: float
    p10_s: float
    p90_s: float
    repeats: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> RepeatedTiming:
        p10_s, median_s, p90_s = (float(each) for each in np.percentile(samples, (10, 50, 90)))
        return cls(median_s, min(p10_s, median_s), max(p90_s, median_s), len(samples))

    def columns(self, name: str) -> dict[str, Any]:
        """As columns of a row, the median under `name`."""
        return {name: self.median_s, "p10_s": self.p10_s, "p90_s": self.p90_s, "repeats": self.repeats}


def repeated(sample: Callable[[], float], limit_s: float, most: int, warm: int = 1) -> RepeatedTiming:
    """Take samples until they are steady, or `limit_s` or `most` is reached; two at least, short ones three."""
    begin_s = perf_counter()
    for _ in range(warm):
        sample()
    samples: list[float] = []
    while True:
        samples.append(sample())
        spent_s = perf_counter() - begin_s
        timing = RepeatedTiming.of(samples)
        if len(samples) >= 5 and timing.p90_s - timing.p10_s <= _STEADY * timing.median_s:
            return timing
        if len(samples) >= most or (spent_s > limit_s and len(samples) >= (2 if spent_s > 3 * limit_s else 3)):
            return timing


def timed(action: Callable[[], object]) -> float:
    """Seconds of one call that waits for the device itself."""
    begin_s = perf_counter()
    action()
    return perf_counter() - begin_s


def forget(file: Path) -> None:
    """Have the system drop its copy of a file in memory, where it can."""
    if hasattr(os, "posix_fadvise"):
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
