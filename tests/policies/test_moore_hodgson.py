"""Orders of jobs against all orders there are: Moore-Hodgson's on-time set, and the integer programme with swaps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, combinations_with_replacement, permutations
from math import inf

import numpy as np
import pytest

from policies._parts.moore_hodgson import least_violation, on_time_first


def in_time(jobs: Sequence[int], durations_s: Sequence[float], due_s: Sequence[float]) -> bool:
    """Do they all end in time in the order in which they are due?"""
    total_s = 0.0
    for job in sorted(jobs, key=lambda job: due_s[job]):
        total_s += durations_s[job]
        if total_s > due_s[job]:
            return False
    return True


@pytest.mark.parametrize("draw", range(30))
def test_as_many_are_on_time_as_in_any_order(draw: int) -> None:
    draws = np.random.default_rng(draw)
    count = int(draws.integers(1, 9))
    durations_s, due_s = draws.uniform(0.1, 5, count).tolist(), draws.uniform(-1, 15, count).tolist()
    on_time, late = on_time_first(durations_s, due_s)
    assert sorted([*on_time, *late]) == list(range(count))
    assert in_time(on_time, durations_s, due_s)
    assert on_time == sorted(on_time, key=lambda job: due_s[job])
    assert late == sorted(late, key=lambda job: due_s[job])
    most = max(
        number
        for number in range(count + 1)
        if any(in_time(jobs, durations_s, due_s) for jobs in combinations(range(count), number))
    )
    assert len(on_time) == most


def test_the_longest_is_given_up_and_not_the_last() -> None:
    assert on_time_first([9.0, 1.0, 1.0], [9.5, 9.6, 9.7]) == ([1, 2], [0])
    assert on_time_first([], []) == ([], [])


class Case:
    """A random case of `least_violation`."""

    def __init__(self, draw: int) -> None:
        draws = np.random.default_rng(draw)
        self.jobs, self.machines = int(draws.integers(1, 6)), int(draws.integers(1, 3))
        self.models = [int(model) for model in draws.integers(0, 3, self.jobs)]
        self.work_s: list[list[float | None]] = draws.uniform(1, 10, (self.jobs, self.machines)).tolist()
        if self.machines > 1 and draws.random() < 0.3:
            self.work_s[0][0] = None
        self.swap_s: list[list[float]] = draws.uniform(1, 8, (3, self.machines)).tolist()
        self.held = [None if draws.random() < 0.3 else int(draws.integers(3)) for _ in range(self.machines)]
        self.due_s = [inf if draws.random() < 0.1 else float(due) for due in draws.uniform(-5, 25, self.jobs)]

    def plan(self, most_nodes: int = 2000) -> list[list[int]] | None:
        return least_violation(self.models, self.work_s, self.swap_s, self.held, self.due_s, most_nodes)

    def late_s(self, plan: Sequence[Sequence[int]]) -> float:
        late_s = 0.0
        for machine, order in enumerate(plan):
            last, total_s = self.held[machine], 0.0
            for job in order:
                seconds = self.work_s[job][machine]
                if seconds is None:
                    return inf
                total_s += seconds + (self.swap_s[self.models[job]][machine] if self.models[job] != last else 0.0)
                last = self.models[job]
                late_s += max(0.0, total_s - self.due_s[job])
        return late_s

    def best_s(self) -> float:
        """The least of all assignments and orders."""
        best = inf
        for order in permutations(range(self.jobs)):
            for cuts in combinations_with_replacement(range(self.jobs + 1), self.machines - 1):
                ends = (0, *cuts, self.jobs)
                best = min(best, self.late_s([order[ends[m] : ends[m + 1]] for m in range(self.machines)]))
        return best

    def edf_s(self) -> float:
        """Everything on one machine that can, by due time."""
        order = sorted(range(self.jobs), key=lambda job: self.due_s[job])
        return min(
            self.late_s([order if m == machine else [] for m in range(self.machines)])
            for machine in range(self.machines)
        )


@pytest.mark.parametrize("draw", range(20))
def test_the_programme_is_as_good_as_the_best_of_all_orders(draw: int) -> None:
    case = Case(draw)
    plan = case.plan()
    assert plan is not None
    assert sorted(job for order in plan for job in order) == list(range(case.jobs))
    assert case.late_s(plan) == pytest.approx(case.best_s(), abs=1e-4)
    assert case.late_s(plan) <= case.edf_s() + 1e-4


def test_deadlines_alone_can_be_a_bad_order() -> None:
    # By due time the models alternate, and each change costs 10 s: 1, 12, 23, 34 s. Together they are on time.
    work, swap = [[1.0]] * 4, [[10.0], [10.0]]
    due = [30.0, 31.0, 32.0, 33.0]
    models = [0, 1, 0, 1]
    plan = least_violation(models, work, swap, [0], due)
    assert plan is not None
    assert [models[job] for job in plan[0]] == [0, 0, 1, 1]


def test_without_nodes_to_look_at_there_is_no_plan() -> None:
    case = Case(2)
    case.jobs, case.machines, case.held = 6, 2, [None, None]
    draws = np.random.default_rng(0)
    case.models = [int(model) for model in draws.integers(0, 3, 6)]
    case.work_s = draws.uniform(1, 10, (6, 2)).tolist()
    case.swap_s = draws.uniform(1, 8, (3, 2)).tolist()
    case.due_s = draws.uniform(-5, 20, 6).tolist()
    assert case.plan(most_nodes=0) is None
    assert case.plan() is not None
