"""Pure: who is owed service, by two published yardsticks. Counters of served tokens (VTC) and max-min shares (Gavel).

Nothing here knows GPUs or queues: clients are names, jobs and kinds of machines are rows and columns. Policies import
it from sim.policy and compose it with their own ways to load and swap models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


class TokenCounters:
    """Virtual token counters: what each client has been served, in weighted tokens (VTC, arXiv 2401.00588).

    A prompt token counts `prompt_weight`, an output token `output_weight`. The client to serve next is the backlogged
    one with the least. Who comes back after having nothing to do is lifted to the least of those who are active, so
    that idle time cannot be saved up.
    """

    def __init__(self, prompt_weight: float = 1.0, output_weight: float = 2.0) -> None:
        self.prompt_weight = prompt_weight
        self.output_weight = output_weight
        self._served: dict[str, float] = {}
        self._last_served = 0.0  # the counter of the client that was active last, for when nobody is

    def __getitem__(self, client: str) -> float:
        """Weighted tokens served so far; 0 for a client that is not known."""
        return self._served.get(client, 0.0)

    def lift(self, client: str, active: Iterable[str]) -> None:
        """`client` has requests again; `active` are the other clients that have some."""
        floor = min((self[other] for other in active), default=self._last_served)
        self._served[client] = max(self[client], floor)

    def rest(self, client: str) -> None:
        """`client` has nothing left to do. If it is the last to leave, the next one starts from its counter."""
        self._last_served = self[client]

    def charge(self, client: str, prompt_tokens: float = 0.0, output_tokens: float = 0.0, extra: float = 0.0) -> None:
        """The client was served so many tokens; `extra`: weighted tokens for something else, as for loading a model."""
        served = self.prompt_weight * prompt_tokens + self.output_weight * output_tokens + extra
        self._served[client] = self[client] + served

    def least(self, clients: Iterable[str]) -> str | None:
        """The client with the least; ties go to the first."""
        return min(clients, key=lambda client: self[client], default=None)


def equal_share_throughputs(throughputs: Matrix, workers: Sequence[float], scales: Sequence[float]) -> Matrix:
    """What each job would get if all had an equal part of every kind of machine: one number a job.

    throughputs: (jobs, kinds), in any unit per second on one machine; workers: machines of each kind; scales: machines
    that a job uses at a time.
    """
    jobs = len(throughputs)
    x = np.array([[machines / jobs / scale for machines in workers] for scale in scales], dtype=np.float64)
    x /= np.maximum(1.0, x.sum(axis=1, keepdims=True))
    return np.asarray((throughputs * x).sum(axis=1), dtype=np.float64)


def max_min_shares(
    throughputs: Matrix,
    workers: Sequence[float],
    weights: Sequence[float] | None = None,
    scales: Sequence[float] | None = None,
) -> Matrix:
    """The share of time that each job should spend on each kind of machine: (jobs, kinds), Gavel's max-min fairness.

    Maximises the least of sum_j throughputs[m, j] x[m, j] / (weights[m] equal-share throughput of m) under
    sum_j x[m, j] <= 1 and sum_m x[m, j] scales[m] <= workers[j] (Narayanan et al., OSDI 2020, section 4.1; HiGHS in
    place of ECOS). Every job must run on some kind. Raises ValueError for shapes that do not fit, or if one cannot.
    """
    from scipy.optimize import linprog  # noqa: PLC0415 - takes half a second, and most runs do not need it

    jobs, kinds = throughputs.shape
    weighted = np.ones(jobs) if weights is None else np.asarray(weights, dtype=np.float64)
    scaled = np.ones(jobs) if scales is None else np.asarray(scales, dtype=np.float64)
    if len(workers) != kinds or len(weighted) != jobs or len(scaled) != jobs:
        raise ValueError("throughputs are (jobs, kinds): workers goes by kinds, weights and scales by jobs")
    alone = equal_share_throughputs(throughputs, workers, scaled.tolist())
    if not (alone > 0).all() or not (weighted > 0).all():
        raise ValueError("every job needs a weight above 0 and a kind of machine that it runs on")
    per_share = throughputs / (weighted * alone)[:, None]
    # Unknowns: x row by row, then the least normalised throughput.
    least = np.zeros((jobs, jobs * kinds + 1))
    time = np.zeros((jobs, jobs * kinds + 1))
    for job in range(jobs):
        least[job, job * kinds : (job + 1) * kinds] = -per_share[job]
        time[job, job * kinds : (job + 1) * kinds] = 1.0
    least[:, -1] = 1.0
    machines = np.zeros((kinds, jobs * kinds + 1))
    for kind in range(kinds):
        machines[kind, kind:-1:kinds] = scaled
    goal = np.zeros(jobs * kinds + 1)
    goal[-1] = -1.0
    found = linprog(
        goal,
        A_ub=np.vstack([least, time, machines]),
        b_ub=np.concatenate([np.zeros(jobs), np.ones(jobs), np.asarray(workers, dtype=np.float64)]),
        method="highs",
    )
    assert found.x is not None, found.message  # x = 0 is feasible, and the shares bound it
    return np.asarray(np.clip(found.x[:-1].reshape(jobs, kinds), 0.0, 1.0), dtype=np.float64)
