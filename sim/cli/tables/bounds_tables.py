"""Rich tables of bounds, and of the best plan of a small instance. Only formatting."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sim.bounds.fluid import FluidBound
from sim.bounds.schedule import Schedule
from sim.bounds.together import Bounds
from sim.cli.tables.run_tables import MOST_ROWS, facts, grid, show, shown
from sim.common.text import number, seconds, share

_MOST_SHARES = 6  # configurations shown of each group of GPUs


def print_bounds(name: str, seed: int, found: Bounds, plan: Schedule | None, out: Console) -> None:
    """What was found, and the plan if there is one."""
    requests = found.fluid.requests
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
    headers = ("requests/s", "x offered", "all done in")
    table = grid("Largest load that can be sustained", "", *headers)
    labels = [("in this simulated world (hard)", found.fluid), ("on machines of one second a second", found.physical)]
    for label, fluid in labels:
        table.add_row(label, number(fluid.requests_per_s), number(fluid.load_factor), seconds(fluid.least_span_s))
    return table


def _machine_table(fluid: FluidBound) -> Table:
    table = grid("Machines at the hard bound", "", "in use", "one more: load grows by")
    for name, used in fluid.utilisation.items():
        table.add_row(name, share(used), share(fluid.prices[name]))
    return table


def _latency_table(found: Bounds) -> Table:
    since = f", of arrivals from {found.since_s:g} s on" if found.since_s else ""
    table = grid(f"Least latency when all complete{since}", "", "mean", "p50", "p90", "p99", "max")
    for key, label in (("ttft_s", "first token, alone"), ("e2e_s", "end to end, alone")):
        numbers = found.alone.spreads()[key]
        table.add_row(label, *(seconds(numbers[name]) for name in ("mean", "p50", "p90", "p99", "max")))
    table.add_row("end to end, one pooled server", seconds(found.mean.pooled_s), "-", "-", "-", "-")
    return table


def _share_tables(found: Bounds) -> list[Table]:
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
    return f"{f'{copies} x ' if copies > 1 else ''}{model} ({_layers(low, high)} layers)"


def _layers(low: int, high: int) -> str:
    return f"{high}" if low == high else f"{low} to {high}"


def _plan_tables(plan: Schedule) -> list[Table]:
    pairs = [("no policy's mean end-to-end time is below", seconds(plan.bound_s))]
    if plan.mean_s is None:
        return [facts("The best plan", [*pairs, ("plan", "none was found in the solver's time; give --limit")])]
    proven = "proven optimal" if plan.optimal else f"gap {share(plan.gap)}; the solver's time was over (--limit)"
    pairs += [("the plan's own", f"{seconds(plan.mean_s)} ({proven}, slots of {plan.options.slot_s:g} s)")]
    stays = grid("What the plan holds where (loads included)", "GPU", "model", "layers", "from", "to", left=2)
    for stay in plan.stays:
        stays.add_row(stay.gpu, stay.model, _layers(stay.low, stay.high), seconds(stay.from_s), seconds(stay.to_s))
    return [facts("The best plan", pairs), stays]
