"""What nobody can do better, beside what policies did: the bounds of sim.bounds for a comparison or a capacity.

Each seed has its own requests and so its own bounds; a policy is held against those of the same seeds. A bound that
cannot be worked out says why, and nothing else depends on it. Called by `compare` and `capacity`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.bounds.fluid import fluid_capacity
from sim.bounds.together import Bounds, bounds_of
from sim.common.errors import SimError
from sim.results.metrics import known_measures
from sim.scenario.scenario import Scenario
from sim.studies.comparison import Bound, PolicyResult
from sim.workload.requests import open_workload

_SEEDS = 2  # bounds take seconds each
# Of a run in which every request was answered, E2E of all is E2E of the completed.
_HELD = {"e2e_all_s.mean": "e2e_s.mean", "e2e_all_s.p99": "e2e_s.p99", "ttft_s.p99": "ttft_s.p99"}
_NAMES = {key: known_measures()[key].title for key in _HELD}
_WHAT = {
    "e2e_all_s.mean": "mean time if all GPUs were one that always serves what is quickest, and loads cost nothing",
    "e2e_all_s.p99": "every request alone on the fastest GPU for it",
    "ttft_s.p99": "every prompt alone on the fastest GPU for it",
}


@dataclass(frozen=True)
class FluidLimit:
    """The load that no policy can carry for ever, or the nodes that none can do without, whatever the goal.

    value: None where `why` says why it is not known.
    """

    value: float | None
    what: str
    why: str


def bounds_beside(
    scenarios: Sequence[Scenario], policies: Sequence[PolicyResult]
) -> tuple[tuple[Bound, ...], list[str]]:
    """Bounds of the first seeds' scenarios, and how near the load is to what the machines can carry, in words.

    A policy that left requests without an answer is not bound by the latencies.
    """
    try:
        each = [bounds_of(scenario) for scenario in scenarios[:_SEEDS]]
    except SimError as error:
        return tuple(Bound(_NAMES[key], _WHAT[key], key, None, {}, str(error)) for key in _HELD), []
    notices = []
    hard, physical = each[0].fluid.load_factor, each[0].physical.load_factor
    if hard is not None and physical is not None:
        most = f"{physical:.3g} times" if physical == hard else f"{physical:.3g} to {hard:.3g} times"
        notices.append(
            f"the machines can carry at most {most} this load for ever, in the best mixture of models (fluid bound); "
            "bounds are of the first seeds"
        )
    return tuple(_bound(key, each, policies) for key in _HELD), notices


def _bound(key: str, each: Sequence[Bounds], policies: Sequence[PolicyResult]) -> Bound:
    limits = [bounds.limits()[_HELD[key]] for bounds in each]
    value = sum(limits) / len(limits)
    gaps: dict[str, float | None] = {}
    for policy in policies:
        values = policy.measured[key].values[: len(limits)]
        known = [one for one in values if one is not None]
        whole = policy.counts["arrived"] == policy.counts["completed"] + policy.counts["impossible"]
        fair = whole and not policy.errors and len(known) == len(limits) and value > 0
        gaps[policy.label] = sum(known) / len(known) / value if fair else None
    return Bound(_NAMES[key], _WHAT[key], key, value, gaps)


def saturation(scenario: Scenario) -> FluidLimit:
    """The largest factor of load that the machines can carry for ever."""
    what = "the fluid bound: all GPUs busy in the best mixture of models and residencies, loads for nothing"
    try:
        factor = fluid_capacity(scenario, open_workload(scenario)).load_factor
    except SimError as error:
        return FluidLimit(None, what, str(error))
    return FluidLimit(factor, what, "" if factor is not None else "all requests come at once: they have no rate")
