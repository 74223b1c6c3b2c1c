"""Rich tables of a Capacity: the answer of each policy, how it was found, and the verdict. Only formatting."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sim.cli.tables.run_tables import facts, grid, show
from sim.common.text import number
from sim.results.format_estimate import amount, span, with_half
from sim.studies.capacity_result import Capacity, PolicyCapacity
from sim.studies.search import PlayedLoad
from sim.studies.verdict_text import ASKED, goal_text, load_text

_MOST_POINTS = 12  # of the loads that were tried, in the table


def print_capacity(made: Capacity, console: Console) -> None:
    """The best policy first; then the attainment at every load that was tried."""
    count = len(made.seeds)
    goal = goal_text(made.goal.metric, made.goal.target)
    seeds = f"{count} seeds ({made.seeds[0]} to {made.seeds[-1]})" if count > 1 else f"seed {made.seeds[0]}"
    console.print(Text(f"{made.scenario}: {ASKED[made.find]} with {goal}, {seeds}", style="bold"))
    console.print(load_text(made.load_means), soft_wrap=True)
    if made.find == "rate":
        console.print(f"found to a factor of {1 + made.tolerance:g}, between 1/{made.most:g} and {made.most:g}")
    elif made.find == "cluster" and made.group is not None:
        at = f" at {made.load:g} times the load" if made.load != 1 else ""
        console.print(f"changed: the number of {made.group.name} nodes, {made.group.count} in the scenario{at}")
    console.print()
    rows = sorted(made.policies, key=lambda policy: (bool(policy.oracle), *_place(made, policy)))
    if made.find == "cost":
        show(console, _costs(made, rows))
    else:
        show(console, _answers(made, rows), _points(made, rows, console.width))
    if made.notices:
        show(console, facts("Notices", [("-", notice) for notice in made.notices]))
    show(console, facts("Verdict", [("-", line) for line in made.verdict]))


def _place(made: Capacity, policy: PolicyCapacity) -> tuple[bool, float]:
    """Where it stands: the best first, those without an answer last."""
    value = None if policy.found is None else policy.found.value
    if made.find == "cost":
        value = policy.seen.mean
    return value is None, 0.0 if value is None else -value if made.find == "rate" else value


def _at_answer(policy: PolicyCapacity) -> PlayedLoad | None:
    """The point of the answer; of a policy that has none, the one that came nearest to it."""
    if policy.found is None or not policy.found.points:
        return None
    if policy.found.value is None:
        return policy.found.points[0]
    return next(point for point in policy.found.points if point.at == policy.found.value)


def _not_done(point: PlayedLoad | None) -> str:
    if point is None:
        return "-"
    lost = sum(point.counts[name] for name in ("rejected", "timed_out", "failed"))
    return f"{number(point.counts['unfinished'])} / {number(lost)}"


def _why(policy: PolicyCapacity) -> str:
    return "failed" if policy.error else (policy.found.why if policy.found is not None else "")


def _answers(made: Capacity, rows: Sequence[PolicyCapacity]) -> Table:
    """The largest load, or the fewest nodes, of each policy."""
    rate, bound = made.find == "rate", made.bound.value if made.find == "rate" else None
    heads = ["load", *(["of the bound"] if bound is not None else []), "by seed (t)", "surely carried"]
    heads = [*(heads if rate else ["nodes", "surely enough"]), "surely not"]
    heads += [f"{made.goal.metric.title} there", "$/Mtoken", "unfin. / lost"]
    table = _table("Largest load that keeps the goal" if rate else "Fewest nodes that keep the goal", heads)
    for policy in rows:
        found = policy.found
        ends = (None, None, None) if found is None else (found.value, found.sure_at, found.sure_not_at)
        cells = ["-" if end is None else f"{end:.3g}" if rate else f"{end:.0f}" for end in ends]
        if rate:
            cells.insert(1, "-" if policy.seen.t is None else with_half("rate", policy.seen))
        if bound is not None:
            cells.insert(1, "-" if ends[0] is None else amount("share", ends[0] / bound))
        table.add_row(_name(policy), *cells, *_there(made, policy), _why(policy))
    return table


def _there(made: Capacity, policy: PolicyCapacity) -> tuple[str, str, str]:
    """The goal's metric, the cost and what was not done, at the answer."""
    at, usd = _at_answer(policy), policy.usd_per_million_tokens
    metric = "-" if at is None else with_half(made.goal.metric.unit, at.seen)
    return metric, "-" if usd is None else with_half("usd", usd), _not_done(at)


def _table(title: str, heads: Sequence[str]) -> Table:
    """Names, which stay whole, cells, and a last column that holds a sentence."""
    table = grid(title, "", *heads, "")
    table.columns[0].no_wrap = True
    table.columns[-1].justify = "left"
    table.columns[-1].no_wrap = False
    return table


def _costs(made: Capacity, rows: Sequence[PolicyCapacity]) -> Table:
    heads = ("$/Mtoken", "bootstrap", "goal", made.goal.metric.title, "unfin. / lost")
    table = _table(f"Cost at {made.load:g} times the load", heads)
    for policy in rows:
        point = _at_answer(policy)
        if point is None:
            table.add_row(_name(policy), *["-"] * len(heads), _why(policy))
            continue
        table.add_row(
            _name(policy),
            with_half("usd", point.usd_per_million_tokens),
            span("usd", point.usd_per_million_tokens.bootstrap) or "-",
            {True: "kept", False: "missed", None: "kept?" if point.kept else "missed?"}[point.sure],
            with_half(made.goal.metric.unit, point.seen),
            _not_done(point),
            _why(policy),
        )
    return table


def _points(made: Capacity, rows: Sequence[PolicyCapacity], width: int) -> Table:
    """The goal's metric at each load, one line a policy: how it falls."""
    label = max(len(_name(policy)) for policy in rows)
    most = min(_MOST_POINTS, max(1, (width - label) // 14))
    turned = "nodes" if made.find == "cluster" else "load"
    title = f"{made.goal.metric.title} by {turned}, up to {most} nearest to the answer: ! surely kept, x surely not"
    table = grid(title, "", *[""] * most)
    table.columns[0].no_wrap = True
    for policy in rows:
        if policy.found is None:
            continue
        centre = policy.found.value or policy.found.points[0].at
        near = sorted(policy.found.points, key=lambda point: abs(point.at / centre - 1))[:most]
        cells = []
        for point in sorted(near, key=lambda point: point.at):
            mark = {True: "!", False: "x", None: ""}[point.sure]
            cells.append(f"{point.at:.3g}: {amount(made.goal.metric.unit, point.seen.mean)}{mark}")
        table.add_row(_name(policy), *cells, *[""] * (most - len(cells)))
    return table


def _name(policy: PolicyCapacity) -> str:
    return policy.label + (" *" if policy.oracle else "")
