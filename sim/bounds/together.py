"""All bounds of a scenario in one place, and how far a run's summary is from them. For `bounds`, `compare` and reports.

`bounds_of` takes seconds (a linear program and a pass over the requests), so it is asked once a scenario and seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sim.bounds.alone import AloneBound, alone_of
from sim.bounds.demand import requests_of
from sim.bounds.fluid import HARD, FluidBound, fluid_of
from sim.bounds.machines import BoundMachines
from sim.bounds.pooled import MeanBound, mean_bound
from sim.bounds.program import Options
from sim.scenario.scenario import Scenario
from sim.workload.requests import Workload, open_workload


@dataclass(frozen=True)
class Bounds:
    """fluid: hard in the simulated world. physical: with no more than a second of work a second of a GPU or CPU; the
    same where both agree. alone and mean are over the requests that arrive at since_s or later."""

    alone: AloneBound
    fluid: FluidBound
    physical: FluidBound
    mean: MeanBound
    since_s: float

    def limits(self) -> dict[str, float]:
        """By the summary's dotted names, what no run that completes all requests is below.

        TTFT and end-to-end times in seconds: mean, p50, p90, p95, p99 and max. A policy that turns requests away, or a
        run that is cut off, is not bound by them.
        """
        spreads = self.alone.spreads()
        found = {f"{name}.{key}": value for name, numbers in spreads.items() for key, value in numbers.items()}
        return {**found, "e2e_s.mean": self.mean.e2e_s}

    def as_data(self) -> dict[str, Any]:
        """Plain data without the columns of single requests."""
        requests = self.fluid.requests
        return {
            "requests": len(requests),
            **{name: getattr(requests, name) for name in ("left_out", "closed_loop", "span_s")},
            "since_s": self.since_s,
            "capacity": _fluid_data(self.fluid),
            "capacity_physical": _fluid_data(self.physical),
            "alone": self.alone.spreads(),
            "mean_e2e_s": {"bound": self.mean.e2e_s, "pooled": self.mean.pooled_s, "alone": self.mean.alone_s},
        }


def _fluid_data(fluid: FluidBound) -> dict[str, Any]:
    names = ("requests_per_s", "load_factor", "least_span_s", "prices", "utilisation", "model_shares")
    shares = [{"gpus": s.group, "instances": list(map(list, s.instances)), "share": s.share} for s in fluid.shares]
    return {**{name: getattr(fluid, name) for name in names}, "shares": shares}


def bounds_of(scenario: Scenario, workload: Workload | None = None, since_s: float | None = None) -> Bounds:
    """All bounds but the plan. `workload`: the scenario's own, if it is open. `since_s`: latencies are bounded over the
    requests that arrive then or later (None: the scenario's warm_up_s). Raises SimError."""
    machines = BoundMachines(scenario)
    requests = requests_of(machines, workload if workload is not None else open_workload(scenario))
    since_s = scenario.warm_up_s if since_s is None else since_s
    fluid = fluid_of(machines, requests, HARD)
    same = scenario.sharing.contention == "time_slice"
    physical = fluid if same else fluid_of(machines, requests, Options(physical=True))
    counted = requests.arrival_s >= since_s
    # Those before only stand in the way: without them the others can be no slower.
    alone = alone_of(machines, requests.select(counted))
    return Bounds(alone, fluid, physical, mean_bound(alone, fluid.each_s[counted]), since_s)
