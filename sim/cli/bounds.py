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
    from rich.table import Table

    from sim.bounds.fluid import FluidBound
    from sim.bounds.schedule import Schedule
    from sim.bounds.together import Bounds

_MOST_SHARES = 6  # configurations shown of each group of GPUs


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
        _print(chosen.name, chosen.seed, found, plan)


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


def _print(name: str, seed: int, found: Bounds, plan: Schedule | None) -> None:
    from rich.text import Text  # noqa: PLC0415

    from sim.cli.tables.run_tables import show  # noqa: PLC0415
    from sim.common.text import number, seconds  # noqa: PLC0415

    out, requests = console(), found.fluid.requests
    left_out = f"; {number(requests.left_out)} impossible ones left out" if requests.left_out else ""
    out.print(Text(f"{name}, seed {seed}: what no policy can do better (oracles and bounds)", style="bold"))
    out.print(f"{number(len(requests))} requests over {seconds(requests.span_s)}{left_out}", soft_wrap=True)
    if requests.closed_loop:
        out.print(f"{number(requests.closed_loop)} of them are sent when others end (closed loop): their times are the")
        out.print("earliest, and no bound on the mean under load is known, only what each takes alone.")
    out.print()
    show(out, _capacity_table(found), _machine_table(found.fluid), _latency_table(found), *_share_tables(found))
    if plan is not None:
        show(out, *_plan_tables(plan))


def _capacity_table(found: Bounds) -> Table:
    from sim.cli.tables.run_tables import grid  # noqa: PLC0415
    from sim.common.text import number, seconds  # noqa: PLC0415

    headers = ("requests/s", "x offered", "all done in")
    table = grid("Largest load that can be sustained", "", *headers)
    labels = [("in this simulated world (hard)", found.fluid), ("on machines of one second a second", found.physical)]
    for label, fluid in labels:
        table.add_row(label, number(fluid.requests_per_s), number(fluid.load_factor), seconds(fluid.least_span_s))
    return table


def _machine_table(fluid: FluidBound) -> Table:
    from sim.cli.tables.run_tables import grid  # noqa: PLC0415
    from sim.common.text import share  # noqa: PLC0415

    table = grid("Machines at the hard bound", "", "in use", "one more: load grows by")
    for name, used in fluid.utilisation.items():
        table.add_row(name, share(used), share(fluid.prices[name]))
    return table


def _latency_table(found: Bounds) -> Table:
    from sim.cli.tables.run_tables import grid  # noqa: PLC0415
    from sim.common.text import seconds  # noqa: PLC0415

    since = f", of arrivals from {found.since_s:g} s on" if found.since_s else ""
    table = grid(f"Least latency when all complete{since}", "", "mean", "p50", "p90", "p99", "max")
    for key, label in (("ttft_s", "first token, alone"), ("e2e_s", "end to end, alone")):
        numbers = found.alone.spreads()[key]
        table.add_row(label, *(seconds(numbers[name]) for name in ("mean", "p50", "p90", "p99", "max")))
    table.add_row("end to end, one pooled server", seconds(found.mean.pooled_s), "-", "-", "-", "-")
    return table


def _share_tables(found: Bounds) -> list[Table]:
    from sim.cli.tables.run_tables import MOST_ROWS, grid, shown  # noqa: PLC0415
    from sim.common.text import share  # noqa: PLC0415

    models = {name: part for name, part in found.fluid.model_shares.items() if part > 0}
    table = grid(shown("Whose work it is, at the machines' prices", models, "--json has all"), "", "share")
    for name, part in sorted(models.items(), key=lambda row: -row[1])[:MOST_ROWS]:
        table.add_row(name, share(part))
    time = grid("What the GPUs hold, for which share of their time (the largest)", "", "instances", "share", left=2)
    rows: dict[str, int] = {}
    for each in found.physical.shares:
        rows[each.group] = rows.get(each.group, 0) + 1
        if rows[each.group] <= _MOST_SHARES:
            time.add_row(
                each.group, ", ".join(_instance_text(*instance) for instance in each.instances), share(each.share)
            )
    return [table, time]


def _instance_text(model: str, low: int, high: int, copies: int) -> str:
    layers = f"{high}" if low == high else f"{low} to {high}"
    return f"{f'{copies} x ' if copies > 1 else ''}{model} ({layers} layers)"


def _plan_tables(plan: Schedule) -> list[Table]:
    from sim.cli.tables.run_tables import facts, grid  # noqa: PLC0415
    from sim.common.text import seconds, share  # noqa: PLC0415

    pairs = [("no policy's mean end-to-end time is below", seconds(plan.bound_s))]
    if plan.mean_s is None:
        return [facts("The best plan", [*pairs, ("plan", "none was found in the solver's time; give --limit")])]
    proven = "proven optimal" if plan.optimal else f"gap {share(plan.gap)}; the solver's time was over (--limit)"
    pairs += [("the plan's own", f"{seconds(plan.mean_s)} ({proven}, slots of {plan.options.slot_s:g} s)")]
    stays = grid("What the plan holds where (loads included)", "GPU", "model", "layers", "from", "to", left=2)
    for stay in plan.stays:
        layers = f"{stay.high}" if stay.low == stay.high else f"{stay.low} to {stay.high}"
        stays.add_row(stay.gpu, stay.model, layers, seconds(stay.from_s), seconds(stay.to_s))
    return [facts("The best plan", pairs), stays]
