"""The best plan of a small instance: a time-indexed mixed-integer program, with a proven bound on the mean latency.

Time is cut into slots. A request makes progress in a slot on an instance (a model on a GPU at a level of residency); an
instance occupies a GPU in whole slots (binary). It is made so that every run of the simulated world, whatever its
policy does and at whatever moments, is a solution that costs no more than the run: so the solver's dual bound is a
lower bound on every policy's mean end-to-end time. All rounding is to the plan's favour:

- An instance that computes in slot t was loaded before, so its load of c seconds and the instance itself hold the
  memory of all slots that lie fully between: t + 1 - floor(c/slot) to t - 1. What holds memory in a slot fits together.
- Prompt and decoding are two jobs, in any order. What a job does in a slot costs at least as many GPU and CPU seconds
  as its cheapest step, in proportion to the time that its steps take at least, in the best batch (the line that touches
  the chain of curves.py at the mean context); and as many seconds on the clock as it takes alone.
- GPUs and CPUs give what they give in fluid.py; levels of residency are as optimistic as there; KV needs no room beyond
  the smallest pool and moves for nothing; weights are in host memory; stops are free.
- A growth of an `elastic` instance costs only the layers beyond the next lower level, a `sleep` one no engine start.

The plan is what such a world allows: with slots that are short beside the loads it comes close to what can be done.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path

import numpy as np

from sim.bounds.alone import alone_of
from sim.bounds.demand import Requests, requests_of
from sim.bounds.machines import BoundMachines, Floats
from sim.bounds.places import Place, PlanOptions, places_of
from sim.common.errors import ConfigError
from sim.profiles.profile import Profile
from sim.scenario.scenario import Scenario
from sim.workload.requests import Workload

_SHOWN = 1e-6  # a share of a request that is worth showing
MOST_REQUESTS, MOST_MODELS, MOST_GPUS, MOST_SLOTS = 40, 6, 4, 600


@dataclass(frozen=True)
class Stay:
    """A model lies on a GPU with low to high layers, as far as the plan needs it there."""

    gpu: str
    model: str
    low: int
    high: int
    from_s: float
    to_s: float


@dataclass(frozen=True)
class Schedule:
    """bound_s: no policy serves these requests with a smaller mean end-to-end time. mean_s: the plan's own, None when
    the solver found none in its time. gap: (mean_s - bound_s) / mean_s. optimal: it is proven that no plan is better.
    end_s: of each request, in the plan. stays: the residencies of the plan."""

    bound_s: float
    mean_s: float | None
    gap: float | None
    optimal: bool
    options: PlanOptions
    end_s: tuple[float, ...]
    stays: tuple[Stay, ...]


def optimal_schedule(scenario: Scenario, workload: Workload, options: PlanOptions | None = None) -> Schedule:
    """See above. Raises SimError: too large an instance, a closed loop, whatever scenario and workload raise."""
    options = options or PlanOptions()
    if options.levels < 2 or not options.slot_s > 0 or not options.limit_s > 0:
        raise ConfigError("a plan needs at least 2 levels of residency, and slots and a time limit above 0 s")
    machines = BoundMachines(scenario)
    requests = requests_of(machines, workload)
    for what, number, most in (
        ("requests", len(requests), MOST_REQUESTS),
        ("models that are asked for", len(np.unique(requests.model)), MOST_MODELS),
        ("GPUs", len(machines.cluster.gpus), MOST_GPUS),
    ):
        if number > most:
            found = f"{number} {what}, at most {most}"
            raise ConfigError(f"a plan is for small instances: {found}; give a shorter workload")
    if requests.closed_loop:
        raise ConfigError("a plan needs arrivals that do not depend on it; this workload is a closed loop (think_s)")
    return _ScheduleProgram(machines, requests, options).solve()


@contextmanager
def _silent() -> Iterator[None]:
    """The solver now and then prints a line of its own, past Python, to where results go."""
    sys.stdout.flush()
    with Path(os.devnull).open("wb") as nowhere:
        kept = os.dup(1)
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


class _ScheduleProgram:
    """The program's columns and rows. Times count from the start of the run, when loads may begin."""

    def __init__(self, machines: BoundMachines, requests: Requests, options: PlanOptions) -> None:
        self.machines = machines
        self.requests = requests
        self.options = options
        self.slot_s = options.slot_s
        self.jobs, self.places = places_of(machines, requests, options)
        self.least_s = alone_of(machines, requests).e2e_s
        self.slots = self._slots_needed()
        self._rows: list[tuple[list[int], list[float], float, float]] = []
        self._costs: list[float] = []
        self._whole: list[int] = []
        self._tops: list[float] = []
        self._progress: dict[tuple[int, int, int], int] = {}  # (job, place, slot) -> column
        self._held: dict[tuple[int, int], int] = {}  # (place, slot) -> column
        self._ends: dict[tuple[int, int], int] = {}

    def _slots_needed(self) -> int:
        """So many that the requests fit one after the other with one load for each model. What a plan leaves for later
        counts as ending then, which is no later than it would."""
        last_s = float(self.requests.arrival_s[-1]) + float(self.least_s.sum())
        for model in dict.fromkeys(place.model for place in self.places):
            last_s += max(place.load_s for place in self.places if place.model == model) + 4 * self.slot_s
        slots = ceil(last_s / self.slot_s) + 1
        if slots > MOST_SLOTS:
            raise ConfigError(
                f"a plan of {slots} slots of {self.slot_s:g} s is too long, at most {MOST_SLOTS}; "
                "give longer slots, or shorten workload.limit or duration_s"
            )
        return slots

    # --- columns and rows

    def _column(self, cost: float, top: float, whole: bool) -> int:
        self._costs.append(cost)
        self._tops.append(top)
        self._whole.append(int(whole))
        return len(self._costs) - 1

    def _row(self, entries: list[tuple[int, float]], low: float, high: float) -> None:
        if entries:
            columns, values = zip(*entries, strict=True)
            self._rows.append((list(columns), list(values), low, high))

    def _make_columns(self) -> None:
        for number, place in enumerate(self.places):
            for slot in range(self.slots):
                self._held[number, slot] = self._column(0.0, 1.0, whole=True)
                if (slot + 1) * self.slot_s < place.load_s:
                    continue
                for job in place.jobs:
                    if self.requests.arrival_s[self.jobs[job].request] < (slot + 1) * self.slot_s:
                        self._progress[job, number, slot] = self._column(0.0, 1.0, whole=False)
        for request in range(len(self.requests)):
            for slot in range(self.slots + 1):
                if (slot + 1) * self.slot_s >= self._soonest_s(request):
                    cost = self._end_in_s(request, slot) / len(self.requests)
                    self._ends[request, slot] = self._column(cost, 1.0, whole=True)

    def _soonest_s(self, request: int) -> float:
        return float(self.requests.arrival_s[request] + self.least_s[request])

    def _end_in_s(self, request: int, slot: int) -> float:
        """The earliest moment of a slot at which the request can end."""
        return max(slot * self.slot_s, self._soonest_s(request))

    def _machine_rows(self) -> None:
        nodes = dict.fromkeys(place.gpu.node.index for place in self.places)
        for slot in range(self.slots):
            for gpu in self.machines.cluster.gpus:
                here = [n for n, place in enumerate(self.places) if place.gpu is gpu]
                room = [(self._held[n, slot], self.places[n].level.bytes / gpu.capacity_bytes) for n in here]
                self._row(room, 0.0, 1.0)
                self._row(self._work(here, slot, lambda p, k: p.gpu_s[k] * p.own[0]), -np.inf, self.slot_s)
            for node in nodes:
                # Streamed weights have links of their own, one a GPU: left out, to the plan's favour.
                all_here = [n for n, place in enumerate(self.places) if place.gpu.node.index == node]
                here = [n for n in all_here if self._profile(n).offload == "cpu"]
                self._row(self._work(here, slot, lambda p, k: p.host_s[k] * p.own[1]), -np.inf, self.slot_s)

    def _profile(self, number: int) -> Profile:
        place = self.places[number]
        return self.machines.sorts[self.machines.sort_of[place.model]].profile(place.group)

    def _work(self, places: list[int], slot: int, seconds: Callable[[Place, int], float]) -> list[tuple[int, float]]:
        return [
            (column, float(seconds(self.places[n], k)))
            for n in places
            for k, job in enumerate(self.places[n].jobs)
            if (column := self._progress.get((job, n, slot))) is not None
        ]

    def _residency_rows(self) -> None:
        """Who computes in a slot has held the memory before: the share of the slot that it runs says that it does."""
        for number, place in enumerate(self.places):
            load_slots = floor(place.load_s / self.slot_s)
            for slot in range(self.slots):
                found = ((self._progress.get((job, number, slot)), k) for k, job in enumerate(place.jobs))
                work = [(column, k) for column, k in found if column is not None]
                before = range(max(0, slot + 1 - load_slots), slot)
                if not work or not before:
                    continue
                runs = self._column(0.0, 1.0, whole=False)
                for column, k in work:
                    self._row([(column, min(1.0, float(place.clock_s[k]) / self.slot_s)), (runs, -1.0)], -np.inf, 0.0)
                gpu = [(column, float(place.gpu_s[k]) * place.own[0]) for column, k in work]
                self._row([*gpu, (runs, -self.slot_s)], -np.inf, 0.0)
                for held in before:
                    self._row([(runs, 1.0), (self._held[number, held], -1.0)], -np.inf, 0.0)

    def _request_rows(self) -> None:
        """Each ends once, when all of it is done (or after the last slot), and is nowhere faster than alone."""
        for request in range(len(self.requests)):
            arrival_s = float(self.requests.arrival_s[request])
            ends = {slot: self._ends[request, slot] for slot in range(self.slots + 1) if (request, slot) in self._ends}
            self._row([(column, 1.0) for column in ends.values()], 1.0, 1.0)
            jobs = [number for number, job in enumerate(self.jobs) if job.request == request]
            done: dict[int, list[tuple[int, float]]] = {job: [] for job in jobs}
            ended: list[tuple[int, float]] = []
            for slot in range(self.slots):
                now = []
                for job in jobs:
                    here = [
                        (column, float(place.clock_s[place.jobs.index(job)]))
                        for number, place in enumerate(self.places)
                        if (column := self._progress.get((job, number, slot))) is not None
                    ]
                    now += here
                    done[job] += [(column, 1.0) for column, _ in here]
                self._row(now, -np.inf, min(self.slot_s, (slot + 1) * self.slot_s - arrival_s))
                if slot in ends:
                    ended.append((ends[slot], -1.0))
                    for columns in done.values():
                        self._row([*columns, *ended], 0.0, np.inf)

    # --- solving

    def solve(self) -> Schedule:
        from scipy.optimize import Bounds, LinearConstraint, milp  # noqa: PLC0415  heavy
        from scipy.sparse import csr_array  # noqa: PLC0415

        self._make_columns()
        self._machine_rows()
        self._residency_rows()
        self._request_rows()
        starts = np.cumsum([0, *(len(columns) for columns, *_ in self._rows)])
        columns = np.concatenate([columns for columns, *_ in self._rows])
        values = np.concatenate([values for _, values, *_ in self._rows])
        matrix = csr_array((values, columns, starts), shape=(len(self._rows), len(self._costs)))
        with _silent():
            found = milp(
                np.array(self._costs),
                integrality=np.array(self._whole),
                bounds=Bounds(np.zeros(len(self._costs)), np.array(self._tops)),
                constraints=LinearConstraint(matrix, [row[2] for row in self._rows], [row[3] for row in self._rows]),
                options={"time_limit": self.options.limit_s, "mip_rel_gap": 1e-6},
            )
        assert found.status in (0, 1), found.message
        mean_arrival_s = float(self.requests.arrival_s.mean())
        dual_s = -np.inf if found.mip_dual_bound is None else float(found.mip_dual_bound)
        bound_s = max(float(self.least_s.mean()), dual_s - mean_arrival_s)
        if found.x is None:
            return Schedule(bound_s, None, None, False, self.options, (), ())
        mean_s = float(found.fun) - mean_arrival_s
        chosen = {r: slot for (r, slot), column in self._ends.items() if found.x[column] > 0.5}
        if self.slots in chosen.values():  # it has put off what it should plan
            return Schedule(bound_s, None, None, False, self.options, (), ())
        ends = tuple(self._end_in_s(request, chosen[request]) for request in range(len(self.requests)))
        bound_s = min(bound_s, mean_s)  # at the optimum they differ by rounding
        gap = (mean_s - bound_s) / mean_s
        return Schedule(bound_s, mean_s, gap, found.status == 0, self.options, ends, tuple(self._stays(found.x)))

    def _stays(self, x: Floats) -> list[Stay]:
        found = []
        for number, place in enumerate(self.places):
            columns = [[self._progress.get((job, number, slot)) for job in place.jobs] for slot in range(self.slots)]
            used = [slot for slot, own in enumerate(columns) if any(c is not None and x[c] > _SHOWN for c in own)]
            load_slots = ceil(place.load_s / self.slot_s)
            runs: list[list[int]] = []
            for slot in used:
                if runs and all(x[self._held[number, between]] > 0.5 for between in range(runs[-1][-1] + 1, slot)):
                    runs[-1].append(slot)
                else:
                    runs.append([slot])
            for run in runs:
                begin_s = max(0.0, (run[0] - load_slots) * self.slot_s)
                name = self.machines.cluster.models[place.model].name
                end_s = (run[-1] + 1) * self.slot_s
                found.append(Stay(place.gpu.name, name, place.level.low, place.level.high, begin_s, end_s))
        return sorted(found, key=lambda stay: (stay.gpu, stay.from_s, stay.model))
