"""What the tests of drawn workloads share: workloads in one line, and statistics of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.scenario.workload import GenerateWorkload, parse_workload
from sim.traces.stream import gather
from sim.traces.trace import Trace
from sim.workload.generate import generate_stream

MODEL = {"models": ["a"]}


def workload(duration_s: float | None, *streams: dict[str, Any], **more: Any) -> GenerateWorkload:
    """A workload of streams; those that do not say get the model `a` and the name s1, s2, ..."""
    named = [{"name": f"s{number}", **MODEL, **stream} for number, stream in enumerate(streams, start=1)]
    return parse_workload({"duration_s": duration_s, "streams": named, **more}, "test")


def drawn(of: GenerateWorkload, seed: int = 1, classes: tuple[str, ...] = ("default",), **more: Any) -> Trace:
    """All of it in memory."""
    return gather(generate_stream(of, seed, classes, **more))


def arrivals(duration_s: float, seed: int = 1, **fields: Any) -> NDArray[np.float64]:
    """The arrivals of one stream."""
    return drawn(workload(duration_s, fields), seed).arrival_s


def cv(gaps: NDArray[np.float64]) -> float:
    """Standard deviation / mean."""
    return float(gaps.std() / gaps.mean())


def counts(times_s: NDArray[np.float64], width_s: float, duration_s: float) -> NDArray[np.int64]:
    """Arrivals in each whole window of width_s."""
    return np.histogram(times_s, bins=np.arange(int(duration_s // width_s) + 1) * width_s)[0]


def window_cvs(times_s: NDArray[np.float64], width_s: float, least: int = 10) -> NDArray[np.float64]:
    """CV of the gaps within each window of width_s that has at least `least` arrivals."""
    times_s = times_s - times_s[0]
    windows = (times_s // width_s).astype(int)
    parts = np.split(times_s, np.flatnonzero(np.diff(windows)) + 1)
    return np.array([cv(np.diff(part)) for part in parts[:-1] if len(part) >= least])


def same(one: Trace, other: Trace) -> bool:
    """Whether two traces are the same to the last bit, extras and the numbering of names included."""
    columns = ("arrival_s", "model", "prompt_tokens", "output_tokens", "service_class", "session", "priority")
    equal = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in columns)
    for name in ("think_s", "deadline_s"):
        mine, theirs = getattr(one, name), getattr(other, name)
        equal &= mine is theirs is None or np.array_equal(mine, theirs, equal_nan=True)
    return equal and one.models == other.models and one.sessions == other.sessions and one.extras == other.extras


def prefix_hits(blocks: list[list[int]]) -> float:
    """The share of blocks that a cache without end would have: those of the longest known run at the front."""
    seen: dict[int, None] = {}
    hits = 0
    for ids in blocks:
        for block in ids:
            if block not in seen:
                break
            hits += 1
        seen.update(dict.fromkeys(ids))
    return hits / sum(map(len, blocks))
