"""What each request of a small instance costs at each place where it may be served: the numbers of schedule.py's plan.

Everything is rounded to the plan's favour, as schedule.py says.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sim.bounds.alone import least_steps_s, residencies
from sim.bounds.curves import Chain, decode_chains, gpu_shares
from sim.bounds.demand import Demand, Requests, demand_of
from sim.bounds.machines import BoundMachines, EqualGpus, Floats, Level, Sort
from sim.core.state.machines import Gpu


@dataclass(frozen=True)
class PlanOptions:
    """slot_s: seconds of a slot. limit_s: of the solver, on the wall. levels: of residency, for each model on a GPU:
    full residency, and the others below it."""

    slot_s: float = 0.5
    limit_s: float = 60.0
    levels: int = 5


@dataclass(frozen=True)
class RequestPhase:
    """The prompt of a request, or its decoding: steps, whose progress is measured in their least seconds.

    steps: a slice of the sort's steps (prompt tokens, or contexts). least_s: of all its steps.
    """

    request: int
    decoding: bool
    steps: slice
    least_s: float


@dataclass(frozen=True)
class Place:
    """A model on a GPU at a level. jobs: those of its requests, by number. Arrays, one entry a job: the seconds of the
    GPU, of the host and on the clock that a job takes here at least, however its steps are divided among places."""

    gpu: Gpu
    group: EqualGpus
    model: int
    level: Level
    load_s: float
    own: tuple[float, float]  # what a GPU second and a host second count (see fluid.py)
    jobs: list[int]
    gpu_s: Floats
    host_s: Floats
    clock_s: Floats


class LeastSteps:
    """The steps of one sort: by prompt token 1, 2, ... and by context 1, 2, ... the least seconds of each anywhere."""

    def __init__(self, machines: BoundMachines, sort: Sort) -> None:
        self.contexts = np.arange(1, sort.model.max_context + 1, dtype=np.float64)
        prompt_s = np.full(len(self.contexts), np.inf)
        for group, layers in residencies(machines, sort):
            curve = sort.profile(group).prefill_curve(layers)
            prompt_s = np.minimum(prompt_s, self.rises(curve.knots, np.array(curve.gpu_s) + np.array(curve.host_s)))
        self.least_s = (np.maximum(0.0, prompt_s), least_steps_s(machines, sort))

    def rises(self, knots: tuple[float, ...], seconds: Floats) -> Floats:
        """By how much a curve rises with each token of a prompt."""
        places = np.concatenate([[0.0], self.contexts])
        return np.diff(np.interp(places, knots, seconds))

    def charge_s(self, job: RequestPhase, seconds: Floats) -> float:
        """What the job costs of something of which its steps cost `seconds`, at least: any part of its progress costs
        as much in proportion as the step that costs least for its own least time."""
        least_s = self.least_s[job.decoding][job.steps]
        counted = least_s > 0
        return job.least_s * float(np.min(seconds[job.steps][counted] / least_s[counted]))


def jobs_of(machines: BoundMachines, requests: Requests, steps: dict[int, LeastSteps]) -> list[RequestPhase]:
    """The jobs of all requests that take any time."""
    found = []
    for request in range(len(requests)):
        own = steps[int(requests.sort[request])]
        prompt, output = int(requests.prompt_tokens[request]), int(requests.output_tokens[request])
        for decoding, part in enumerate((slice(0, prompt), slice(prompt, prompt + output - 1))):
            least_s = float(own.least_s[decoding][part].sum())
            if least_s > 0:
                found.append(RequestPhase(request, bool(decoding), part, least_s))
    return found


def places_of(
    machines: BoundMachines, requests: Requests, options: PlanOptions
) -> tuple[list[RequestPhase], list[Place]]:
    """The jobs, and wherever each can be done."""
    asked = np.unique(requests.sort).tolist()
    steps = {number: LeastSteps(machines, machines.sorts[number]) for number in asked}
    jobs = jobs_of(machines, requests, steps)
    found = []
    for number in asked:
        sort, rows = machines.sorts[number], np.flatnonzero(requests.sort == number)
        contexts = demand_of(machines, sort, requests, rows)
        for group in machines.groups:
            levels = sort.levels(group, options.levels)
            for place, level in enumerate(levels):
                lower = levels[place + 1] if place + 1 < len(levels) else None
                costs = _step_costs(sort, group, level, contexts, steps[number])
                load_s = _load_s(machines, sort, group, level, lower)
                shares = [share for part in gpu_shares(sort, group, level) for share in part]
                sliced = machines.scenario.sharing.contention == "time_slice"
                own = (1.0, 1.0) if sliced else (min(shares), 1 - max(shares))
                for model in sort.members:
                    mine = [n for n, job in enumerate(jobs) if requests.model[job.request] == model]
                    if mine:
                        charge_s, own_jobs = steps[number].charge_s, [jobs[n] for n in mine]
                        charges = [np.array([charge_s(job, cost[job.decoding]) for job in own_jobs]) for cost in costs]
                        alike = [gpu for gpu in machines.cluster.gpus if _same(gpu, group)]
                        found += [Place(gpu, group, model, level, load_s, own, mine, *charges) for gpu in alike]
    return jobs, found


def _step_costs(
    sort: Sort, group: EqualGpus, level: Level, demand: Demand, steps: LeastSteps
) -> list[tuple[Floats, Floats]]:
    """GPU, host and clock seconds of each prompt token and of each context, at least, in whatever batch."""
    profile, share, contexts = sort.profile(group), level.low / sort.layers, steps.contexts
    mean = float(demand.total[1] / demand.total[0]) if demand.total[0] else 1.0
    lines = [_line(chain, mean) for chain in decode_chains(sort, group, level, demand.contexts)]
    gpu_s, host_s = (np.maximum(0.0, base + slope * contexts) for base, slope in lines)
    full, here = profile.decode_curve(sort.layers, 1), profile.decode_curve(level.high, 1)
    clock_s = share * np.interp(contexts, full.knots, full.gpu_s) + np.interp(contexts, here.knots, here.host_s)
    full, here = profile.prefill_curve(sort.layers), profile.prefill_curve(level.high)
    prompt_gpu_s = share * steps.rises(full.knots, np.array(full.gpu_s))
    prompt_host_s = steps.rises(here.knots, np.array(here.host_s))
    return [(prompt_gpu_s, gpu_s), (prompt_host_s, host_s), (prompt_gpu_s + prompt_host_s, clock_s)]


def _same(gpu: Gpu, group: EqualGpus) -> bool:
    """Is this GPU one of the group's?"""
    one, other = (
        (each.kind.gpu, each.node.kind.host, each.node.memory.capacity, sorted(g.kind.gpu for g in each.node.gpus))
        for each in (gpu, group.gpu)
    )
    return one == other


def _line(chain: Chain, context: float) -> tuple[float, float]:
    """(seconds, seconds per token of context) of the line that touches the chain there."""
    if len(chain) < 2:
        return (chain[0][1], 0.0) if chain else (0.0, 0.0)
    edges = list(pairwise(chain))
    (left, low), (right, high) = next((edge for edge in edges if context <= edge[1][0]), edges[-1])
    slope = (high - low) / (right - left)
    return low - slope * left, slope


def _load_s(machines: BoundMachines, sort: Sort, group: EqualGpus, level: Level, lower: Level | None) -> float:
    """The least time from having nothing (or, elastic, the next lower level) to having this level."""
    switch, weights = sort.profile(group).switch, sort.model.weights
    kind, host = group.gpu.kind, group.gpu.node.kind
    rate = min(switch.reload_bytes_per_s, kind.h2d_bytes_per_s, host.h2d_cap_bytes_per_s)
    resize = machines.scenario.engine.resize
    fixed_s = switch.start_s + switch.reload_fixed_s
    if resize == "sleep":
        fixed_s = min(fixed_s, switch.wake_fixed_s)
    if resize == "elastic" and lower is not None:
        return max(0, weights.gpu_bytes(level.low) - weights.gpu_bytes(lower.high)) / rate
    return fixed_s + weights.gpu_bytes(level.low) / rate
