"""The verb `bounds`: what no policy can do better on a scenario, as a table or as JSON.

Parses, calls the package bounds, prints. Nothing here computes.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.options import AsJson, ScenarioFile, Seed, Settings
from sim.cli.terminal import console, mistakes_in_one_line

if TYPE_CHECKING:
    from sim.bounds.schedule import Schedule


def bounds(
    scenario: ScenarioFile = None,
    settings: Settings = None,
    seed: Seed = None,
    milp: Annotated[
        bool, typer.Option("--milp", help="Plan it too, as well as can be: at most 40 requests, 6 models, 4 GPUs.")
    ] = False,
    slot_s: Annotated[float, typer.Option("--slot", min=0.001, help="Seconds of a slot of the plan.")] = 0.5,
    limit_s: Annotated[float, typer.Option("--limit", min=0.1, help="Seconds that the plan's solver may take.")] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Show what no policy can do better: the load, the latencies and, of a small instance, the best plan."""
    with mistakes_in_one_line():
        from sim.bounds.places import PlanOptions  # noqa: PLC0415
        from sim.bounds.schedule import optimal_schedule  # noqa: PLC0415
        from sim.bounds.together import bounds_of  # noqa: PLC0415
        from sim.runs.run_one import RunOptions, compose  # noqa: PLC0415
        from sim.workload.requests import open_workload  # noqa: PLC0415

        chosen = compose(RunOptions(scenario, settings=tuple(settings or ()), seed=seed))
        workload = open_workload(chosen)
        # The plan first: what is too large for it is known before anything is solved.
        plan = optimal_schedule(chosen, workload, PlanOptions(slot_s, limit_s)) if milp else None
        found = bounds_of(chosen, workload)
        if as_json:
            from sim.results.run_folder import summary_text  # noqa: PLC0415

            data = {"scenario": chosen.name, "seed": chosen.seed, **found.as_data()}
            sys.stdout.write(summary_text({**data, "plan": None if plan is None else _plan_data(plan)}))
            return
        from sim.cli.tables.bounds_tables import print_bounds  # noqa: PLC0415

        print_bounds(chosen.name, chosen.seed, found, plan, console())


def _plan_data(plan: Schedule) -> dict[str, Any]:
    return {
        "bound_mean_e2e_s": plan.bound_s,
        "mean_e2e_s": plan.mean_s,
        "gap": plan.gap,
        "optimal": plan.optimal,
        "slot_s": plan.options.slot_s,
        "end_s": list(plan.end_s),
        "stays": [
            {"gpu": s.gpu, "model": s.model, "layers": [s.low, s.high], "from_s": s.from_s, "to_s": s.to_s}
            for s in plan.stays
        ],
    }
