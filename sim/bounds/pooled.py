"""A lower bound on mean latency under load: the whole cluster as one server that serves the shortest work first.

At the fluid bound's prices every request is so many seconds of the whole cluster's work, and no schedule does more than
one of these a second. So whatever a policy does is, seen from there, a preemptive schedule of one machine, of which
SRPT has the least mean time from arrival to end (Schrage 1968). It forgets that a request cannot use all GPUs at once,
which alone.py knows; the larger of the two bounds holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from sim.bounds.alone import AloneBound
from sim.bounds.machines import Floats


@dataclass(frozen=True)
class MeanBound:
    """No policy serves all of these requests with a smaller mean end-to-end time than e2e_s.

    pooled_s: what the cluster as one server gives; None in a closed loop, where arrivals depend on the policy.
    alone_s: the mean of the alone bound. Both are over all requests that can be served: a policy that turns some away
    is not bound by it.
    """

    e2e_s: float
    pooled_s: float | None
    alone_s: float


def mean_bound(alone: AloneBound, each_s: Floats) -> MeanBound:
    """See MeanBound. each_s: FluidBound.each_s of the same requests."""
    assert len(alone.e2e_s) == len(each_s), "bounds of other requests"
    alone_s = float(alone.e2e_s.mean())
    if alone.requests.closed_loop:
        return MeanBound(alone_s, None, alone_s)
    pooled_s = srpt_mean_s(alone.requests.arrival_s, each_s)
    return MeanBound(max(alone_s, pooled_s), pooled_s, alone_s)


def srpt_mean_s(arrival_s: Floats, work_s: Floats) -> float:
    """Mean time from arrival to end on one machine that always has the shortest remaining work. Arrivals in order."""
    waiting: list[float] = []  # remaining work
    now_s = total_s = 0.0
    for arrives_s, work in zip([*arrival_s.tolist(), np.inf], [*work_s.tolist(), 0.0], strict=True):
        while waiting and now_s < arrives_s:
            left = heappop(waiting)
            if now_s + left > arrives_s:
                heappush(waiting, left - (arrives_s - now_s))
                now_s = arrives_s
            else:
                now_s += left
                total_s += now_s
        if arrives_s < np.inf:
            now_s = max(now_s, arrives_s)
            total_s -= arrives_s
            heappush(waiting, work)
    return total_s / len(work_s)
