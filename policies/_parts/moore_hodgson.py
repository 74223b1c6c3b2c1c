"""Pure: in which order to serve what is due. Moore-Hodgson for one machine, an integer programme for more, with swaps.

Jobs and machines are numbers; times are seconds. prism orders requests by the one, and
qlm plans virtual queues by the other. Nothing here knows GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from math import inf

import numpy as np
from numpy.typing import NDArray

Row = NDArray[np.float64]


def on_time_first(durations_s: Sequence[float], due_s: Sequence[float]) -> tuple[list[int], list[int]]:
    """The largest set of jobs that one machine can end in time, and the rest; each in the order of due times.

    Moore-Hodgson (Moore 1968): go through the jobs as they are due; whenever one would be late, drop the longest so
    far. Seconds from now; ties go to the earlier job.
    """
    kept: list[tuple[float, int]] = []
    late: list[int] = []
    order = sorted(range(len(due_s)), key=lambda job: (due_s[job], job))
    total_s = 0.0
    for job in order:
        heappush(kept, (-durations_s[job], job))
        total_s += durations_s[job]
        if total_s > due_s[job]:
            longest_s, dropped = heappop(kept)
            total_s += longest_s
            late.append(dropped)
    place = {job: position for position, job in enumerate(order)}
    return sorted((job for _, job in kept), key=place.__getitem__), sorted(late, key=place.__getitem__)


def least_violation(
    models: Sequence[int],
    work_s: Sequence[Sequence[float | None]],
    swap_s: Sequence[Sequence[float]],
    held: Sequence[int | None],
    due_s: Sequence[float],
    most_nodes: int = 2000,
) -> list[list[int]] | None:
    """Who runs where and in which order, so that the seconds by which jobs end after they are due are fewest in sum.

    models: of each job; work_s: (jobs, machines), None where a job cannot run; swap_s: (models, machines), paid when a
    machine changes to that model; held: the model that each machine holds now; due_s: seconds from now, may be
    infinite. Returns the jobs of each machine in order; None if no proven optimum was found within `most_nodes`.

    Binaries x[machine, slot, job] as in QLM's scheduler; slots fill from the front; a change of model in a slot is a
    variable that is at least what the slot holds less what the slot before it held. HiGHS by scipy's milp.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp  # noqa: PLC0415 - slow to import, seldom needed

    jobs, machines = len(models), len(held)
    programme = _Programme(models, work_s, swap_s, due_s)
    for machine in range(machines):
        ends = np.zeros(programme.size)  # seconds until the end of the slot
        for slot in range(jobs):
            programme.slot(machine, slot, held[machine], ends)
    for job in range(jobs):
        programme.add(programme.once[job], 1.0, 1.0)
    found = milp(
        programme.goal,
        integrality=programme.whole,
        bounds=Bounds(np.zeros(programme.size), programme.upper),
        constraints=LinearConstraint(np.array(programme.rows), np.array(programme.low), np.array(programme.high)),
        options={"node_limit": most_nodes, "mip_rel_gap": 0.0},
    )
    if found.status != 0:
        return None
    taken = np.asarray(found.x).reshape(machines, jobs, programme.width)[:, :, :jobs] > 0.5
    return [[int(np.argmax(row)) for row in machine if row.any()] for machine in taken]


class _Programme:
    """Rows and columns of `least_violation`. A slot has a binary for each job, a change to each model, its lateness."""

    def __init__(
        self,
        models: Sequence[int],
        work_s: Sequence[Sequence[float | None]],
        swap_s: Sequence[Sequence[float]],
        due_s: Sequence[float],
    ) -> None:
        self.models, self.work_s, self.swap_s = models, work_s, swap_s
        self.horizon_s = 0.0  # no plan takes longer
        for job, row in enumerate(work_s):
            self.horizon_s += max([s for s in row if s is not None], default=0.0) + max(swap_s[models[job]])
        self.slack_s = [min(due, self.horizon_s) for due in due_s]
        self.jobs, self.kinds, self.machines = len(models), len(swap_s), len(swap_s[0])
        self.width = self.jobs + self.kinds + 1
        self.size = self.machines * self.jobs * self.width
        self.upper, self.goal, self.whole = np.ones(self.size), np.zeros(self.size), np.zeros(self.size, int)
        self.once = np.zeros((self.jobs, self.size))
        self.rows: list[Row] = []
        self.low: list[float] = []
        self.high: list[float] = []

    def add(self, row: Row, low: float, high: float) -> None:
        self.rows.append(row)
        self.low.append(low)
        self.high.append(high)

    def slot(self, machine: int, slot: int, held: int | None, ends: Row) -> None:
        """The columns and rows of a slot; `ends` grows by what may happen in it."""
        jobs = self.jobs
        start = (machine * jobs + slot) * self.width
        before, lateness = start - self.width, start + self.width - 1
        filled = np.zeros(self.size)
        filled[start : start + jobs] = 1.0
        self.whole[start : start + jobs] = 1
        for job in range(jobs):
            seconds = self.work_s[job][machine]
            self.once[job, start + job] = 1.0
            ends[start + job] = seconds or 0.0
            self.upper[start + job] = 0.0 if seconds is None else 1.0
        self.add(filled, 0.0, 1.0)
        if slot:
            follows = -filled
            follows[before : before + jobs] += 1.0
            self.add(follows, 0.0, inf)
        for kind in range(self.kinds):
            change = np.zeros(self.size)
            change[start + jobs + kind] = 1.0
            for job in range(jobs):
                if self.models[job] == kind:
                    change[start + job] = -1.0
                    if slot:
                        change[before + job] = 1.0
            self.add(change, -1.0 if not slot and held == kind else 0.0, inf)
            ends[start + jobs + kind] = self.swap_s[kind][machine]
            # Of plans that are equally late the one with fewer swaps.
            self.goal[start + jobs + kind] = 1e-6 * self.swap_s[kind][machine]
        late = -ends - self.horizon_s * filled  # an empty slot is never late
        late[lateness] = 1.0
        late[start : start + jobs] += self.slack_s
        self.add(late, -self.horizon_s, inf)
        self.goal[lateness], self.upper[lateness] = 1.0, inf
