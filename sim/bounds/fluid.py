"""The largest load that a scenario can sustain, whoever schedules it: a linear program over shares of time.

In the fluid limit every GPU divides its time among configurations (which models, with how many layers, lie on it
together), every instance runs the batches that serve it best, work can be divided at will, and changing configuration
is free. Nothing in the simulated world does better; program.py writes the program down and solves it.

Why it is a bound: each constraint holds of every run, averaged over its time. (1) Decode iterations cost their GPU and
CPU at least what the chain of curves.py says, prompts what the tables say. (2) An instance computes one iteration at a
time, and only while it is on the GPU; what is there at once fits. (3) A GPU gives at most one second of work a second,
a CPU or link too: exactly under `time_slice`, and under `proportional` where all computes on GPUs (`processor_sharing`
stretches no part less than `proportional`, so what follows holds of it too). Beside instances
that alternate between GPU and CPU, `proportional` stretches each part by the demand for that part alone, and a machine
can give more. Two limits hold then. With s an instance's share of the GPU as it began its batch, and S the sum of
these, it computes at most 1/S of the time for each of its GPU seconds, so that GPU seconds weighted with their s add up
to at most 1 (and host seconds weighted with 1 - s). And the best mix of shares gives a GPU (1 + sqrt(2))/2 = 1.207
seconds a second, a CPU that n GPUs share (1 + sqrt(1 + n))/2, times what shares move while contexts grow (`drift`).
Left out, all to the bound's favour: queueing, loads and other switches, host memory but for KV, block rounding, copies
of KV; and a request may prefill and decode in different places.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sim.bounds.demand import Requests, demand_of, requests_of
from sim.bounds.machines import BoundMachines, Floats
from sim.bounds.program import Options, Program, Solution
from sim.common.errors import ConfigError
from sim.scenario.scenario import Scenario
from sim.workload.requests import Workload

HARD = Options()


@dataclass(frozen=True)
class Share:
    """A configuration in use: so much of the time of the group's GPUs (0 to 1) has these instances on each of them.

    instances: (model, fewest layers, most layers, copies); a sort of equal models goes by the name of its first.
    """

    group: str
    instances: tuple[tuple[str, int, int, int], ...]
    share: float


@dataclass(frozen=True)
class FluidBound:
    """No policy can complete more of this workload's mix per second, in the long run, than requests_per_s.

    load_factor: that over the workload's own requests per second (between its first arrival and its last); None when
    all come at once. least_span_s: no policy completes all of these requests in less, from the first arrival on.
    prices[resource]: by how much requests_per_s grows, as a share of itself, for one more of it (first order).
    model_shares: what part of the machines' work each model's requests are, at those prices; they sum to 1.
    utilisation[resource]: how much of it is in use at that load. shares: configurations. each_s: machine seconds of
    each request at those prices, in order of arrival; least_span_s in all. With options.stay_s it is an estimate with
    reloads, and no bound.
    """

    requests: Requests
    requests_per_s: float
    load_factor: float | None
    least_span_s: float
    prices: dict[str, float]
    model_shares: dict[str, float]
    utilisation: dict[str, float]
    shares: tuple[Share, ...]
    each_s: Floats = field(repr=False)
    options: Options
    rounds: int


def fluid_capacity(scenario: Scenario, workload: Workload, options: Options = HARD) -> FluidBound:
    """See FluidBound, and above for what it assumes.

    With `options.stay_s` every instance is loaded anew after so many seconds, and its GPU does nothing else meanwhile.
    With `options.physical` no GPU or CPU gives more than a second of work a second: what real ones can sustain, and a
    bound of this simulated world under `contention: time_slice`, or where all layers compute on GPUs.
    Raises SimError: nothing to serve; stay_s not above 0; whatever scenario and workload raise.
    """
    machines = BoundMachines(scenario)
    return fluid_of(machines, requests_of(machines, workload), options)


def fluid_of(machines: BoundMachines, requests: Requests, options: Options = HARD) -> FluidBound:
    """The same of requests at hand."""
    if options.stay_s is not None and not options.stay_s > 0:
        raise ConfigError(f"stay_s: {options.stay_s:g} must be above 0 seconds")
    rows = [np.flatnonzero(requests.sort == number) for number in range(len(machines.sorts))]
    asked = [number for number, own in enumerate(rows) if len(own)]
    demands = {number: demand_of(machines, machines.sorts[number], requests, rows[number]) for number in asked}
    unit_s = requests.span_s or 1.0
    program = Program(machines, {number: demand.total / unit_s for number, demand in demands.items()}, demands, options)
    solution = program.solve()
    each_s = np.zeros(len(requests))
    for number, demand in demands.items():
        each_s[rows[number]] = demand.each @ solution.work_prices[number] / solution.factor
    names = [model.name for model in machines.cluster.models]
    sums = np.bincount(requests.model, weights=each_s, minlength=len(names))
    per_s = solution.factor * len(requests) / unit_s
    return FluidBound(
        requests=requests,
        requests_per_s=per_s,
        load_factor=solution.factor if requests.span_s else None,
        least_span_s=unit_s / solution.factor,
        prices=solution.prices,
        model_shares={name: float(value / each_s.sum()) for name, value in zip(names, sums, strict=True)},
        utilisation=solution.utilisation,
        shares=tuple(_shares(machines, solution)),
        each_s=each_s,
        options=options,
        rounds=solution.rounds,
    )


def _shares(machines: BoundMachines, solution: Solution) -> list[Share]:
    found = []
    for group, instances, share in solution.shares:
        each = ((machines.sorts[sort].model.name, level.low, level.high, n) for sort, level, n in instances)
        found.append(Share(group.label, tuple(each), share))
    return sorted(found, key=lambda share: (share.group, -share.share))
