"""Rich tables of a Comparison: means, paired differences to the baseline, what was lost, bounds, front, verdict.

Only formatting; the numbers are comparison.py's. As many metrics are shown as the terminal has columns for; --json and
comparison.csv have all. The verdict comes last, where the eye is when the command has ended.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sim.cli.tables.run_tables import facts, grid, show
from sim.common.text import counted, number
from sim.results.format_estimate import amount, gap, with_half
from sim.studies.comparison import Comparison, PolicyResult

_NOT_SHOWN = ("switching.starved",)  # has a column of its own among what was lost


def print_comparison(made: Comparison, console: Console) -> None:
    """All that was found, the best policy by the deciding metric first."""
    rows = in_order(made)
    count = len(made.seeds)
    seeds = f"{count} paired seeds ({made.seeds[0]} to {made.seeds[-1]})" if count > 1 else f"seed {made.seeds[0]}"
    realisable = sum(not policy.oracle for policy in made.policies)
    beside = len(made.policies) - realisable
    line = f"{made.scenario}: {counted(realisable, 'policy')}, {seeds}"
    line += f"; {counted(beside, 'oracle')} beside them, last, marked *" if beside else ""
    console.print(Text(line, style="bold"))
    warm_up = f"{made.warm_up.after_s:,.0f} s ({made.warm_up.rule})" if made.warm_up.after_s else made.warm_up.rule
    console.print(f"warm-up cut: {warm_up}", soft_wrap=True)
    console.print()
    show(console, _means(made, rows, console.width), _left(made, rows))
    if len(made.policies) > 1 and count > 1:
        show(console, _differences(made, rows, console.width))
    if any(bound.value is not None for bound in made.bounds):
        show(console, _bounds(made, rows))
    elif made.bounds:
        show(console, facts("Bounds", [("-", f"none: {made.bounds[0].why}")]))
    show(console, facts("Pareto front", [("-", _front(made))]))
    if made.notices:
        show(console, facts("Notices", [("-", notice) for notice in made.notices]))
    show(console, facts("Verdict", [("-", line) for line in made.verdict]))


def in_order(made: Comparison) -> list[PolicyResult]:
    """The policies as tables show them: by the deciding metric, those that cannot be ranked next, oracles last."""
    order = next(ranking.order for ranking in made.rankings if ranking.key == made.decisive.key)
    places = {label: place for place, label in enumerate(order)}
    return sorted(made.policies, key=lambda policy: (bool(policy.oracle), places.get(policy.label, len(places))))


def _name(policy: PolicyResult) -> str:
    return policy.label + (" *" if policy.oracle else "")


def _fitting(columns: Sequence[Sequence[str]], names: Sequence[str], width: int) -> int:
    """How many columns of cells fit beside the names; one at least."""
    left = width - max(map(len, names))
    for count, column in enumerate(columns):
        left -= 2 + max(map(len, column))
        if left < 0:
            return max(1, count)
    return len(columns)


def _filled(title: str, columns: Sequence[Sequence[str]], rows: Sequence[PolicyResult], width: int) -> Table:
    """A table of columns, the head first in each, of which the first ones that fit are shown."""
    names = [_name(policy) for policy in rows]
    shown = columns[: _fitting(columns, names, width)]
    table = grid(title, "", *(column[0] for column in shown))
    table.columns[0].no_wrap = True
    for place, name in enumerate(names):
        table.add_row(name, *(column[place + 1] for column in shown))
    return table


def _means(made: Comparison, rows: Sequence[PolicyResult], width: int) -> Table:
    half = f", and half of their {made.confidence * 100:g} % interval (t)" if len(made.seeds) > 1 else ""
    columns = []
    for metric in made.metrics:
        if metric.key in _NOT_SHOWN:
            continue
        cells = [metric.title]
        for policy in rows:
            seen = policy.measured[metric.key].estimate
            only = f" ({seen.known} seeds)" if seen.missing and seen.known else ""
            cells.append("failed" if policy.errors and not seen.known else with_half(metric.unit, seen) + only)
        columns.append(cells)
    return _filled(f"Means over seeds{half}", columns, rows, width)


def _left(made: Comparison, rows: Sequence[PolicyResult]) -> Table:
    """Beside every average: how many requests it is about, and how many it is not about."""
    names = ("arrived", "completed", "unfinished", "rejected", "timed_out", "failed", "impossible", "starved")
    failed = any(policy.errors for policy in rows)
    title = "Requests, all seeds together (SLO kept is of all that arrived, E2E all of all but the impossible)"
    heads = [name.replace("_", " ") for name in names]
    table = grid(title, "", *heads, *(["seeds failed"] if failed else []))
    for policy in rows:
        cells = [number(policy.counts[name]) for name in names]
        table.add_row(_name(policy), *cells, *([str(len(policy.errors))] if failed else []))
    return table


def _differences(made: Comparison, rows: Sequence[PolicyResult], width: int) -> Table:
    level = made.confidence * 100
    title = f"Less {made.baseline}, within seeds, with {level:g} % intervals (t); ! is sure after Holm over policies"
    columns: list[list[str]] = []
    for metric in made.metrics:
        if metric.better is None or metric.key in _NOT_SHOWN:
            continue
        cells = [metric.title + "  "]
        for policy in rows:
            versus = policy.versus.get(metric.key)
            if versus is None:
                cells.append("" if columns else "baseline  ")
                continue
            seen = versus.difference.estimate
            sure = versus.p_holm is not None and versus.p_holm < 1 - made.confidence
            cells.append(gap(metric.unit, seen.mean, seen.t) + (" !" if sure else "  "))
        columns.append(cells)
    return _filled(title, columns, rows, width)


def _bounds(made: Comparison, rows: Sequence[PolicyResult]) -> Table:
    """How many times worse than what nobody can beat."""
    known = [bound for bound in made.bounds if bound.value is not None]
    units = {metric.key: metric for metric in made.metrics}
    title = "Times the bound: 1 is as good as can be on these machines; - some requests got no answer"
    table = grid(title, "", *(bound.name for bound in known))
    table.add_row("(the bound)", *(amount(units[bound.key].unit, bound.value) for bound in known))
    for policy in rows:
        table.add_row(_name(policy), *(number(bound.gaps.get(policy.label)) for bound in known))
    return table


def _front(made: Comparison) -> str:
    if not made.front.labels:
        return f"none: {made.front.why}"
    titles = {metric.key: metric.title for metric in made.metrics}
    axes = ", ".join(titles[key] for key in made.front.axes)
    return f"{', '.join(made.front.labels)} (no other is at least as good in all of these and better in one: {axes})"
