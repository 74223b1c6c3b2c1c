"""Rich tables of what `check` and `fill` found, for a person at a terminal. Only formatting; profile_cli calls it."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sim.cli.tables.run_tables import grid, show
from sim.common.text import counted, number, share
from sim.profiling.check import TARGET, CheckReport, SweepFacts
from sim.profiling.fill import Filled

MOST_LINES = 40


def print_report(report: CheckReport, console: Console) -> None:
    """Sweeps or models, notes, and findings last, where they are seen."""
    console.print(Text(f"{report.title} ({_words(report)})", style="bold"))
    if report.sweeps:
        show(console, *(_sweeps(report.sweeps, what) for what in ("decode", "prefill") if _of(report, what)))
    if report.models:
        table = grid("How the rows are known", "", "measured", "published", "fitted", "analytic", "error, mean")
        for model, kinds, error in report.models:
            counts = (number(kinds.get(kind, 0)) for kind in ("measured", "published", "fitted", "analytic"))
            table.add_row(model, *counts, share(error))
        show(console, table)
    for title, lines in (("Notes", report.notes), ("Findings", report.findings)):
        if lines:
            console.print(Text(title, style="bold"))
            for line in lines[:MOST_LINES]:
                console.print(Text(f"- {line}"), soft_wrap=True)
            if len(lines) > MOST_LINES:
                console.print(Text(f"- and {len(lines) - MOST_LINES} more"))
            console.print()
    if not report.findings:
        console.print("nothing is broken\n")


def _words(report: CheckReport) -> str:
    return {"measured": "measured points", "table": "a table", "published": "published sweeps"}[report.kind]


def _of(report: CheckReport, what: str) -> list[SweepFacts]:
    return [sweep for sweep in report.sweeps if sweep.what == what]


def _sweeps(sweeps: Sequence[SweepFacts], what: str) -> Table:
    chosen = [sweep for sweep in sweeps if sweep.what == what]
    own = any(sweep.fit_error is not None for sweep in chosen)  # published sweeps are predicted from their ends only
    title = f"Sweeps over layers, {what}: how far off predictions are"
    table = grid(title, "", "points", *(("law", "left out") if own else ()), "from ends", "worst", "")
    table.columns[-1].justify = "left"
    for sweep in chosen[:MOST_LINES]:
        errors = [share(sweep.fit_error), share(sweep.left_out_error)] if own else []
        worst = "-" if sweep.ends_worst is None else f"{sweep.ends_worst:+.1%}"
        beyond = "above 10%" if (sweep.ends_error or 0) > TARGET else ""
        remark = ", ".join(part for part in (beyond, sweep.remark) if part)
        table.add_row(sweep.label, number(sweep.points), *errors, share(sweep.ends_error), worst, remark)
    means = sorted(sweep.ends_error for sweep in chosen if sweep.ends_error is not None)
    if len(means) > 1:
        within = sum(mean <= TARGET for mean in means)
        words = f"median; {within} of {len(means)} within 10%"
        table.add_row("", "", *(["", ""] if own else []), share(means[len(means) // 2]), "", words)
    return table


def print_filled(filled: Filled, console: Console) -> None:
    """What was written, and how well it is known."""
    for table in filled.tables:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in table.rows.items())
        console.print(Text(f"{table.folder}", style="bold"), soft_wrap=True)
        console.print(
            f"  {counted(len(table.models), 'model')} from {counted(table.points, 'point')}: {kinds} rows",
            soft_wrap=True,
        )
        parts = (
            ("decode, point left out", table.decode_error),
            ("prefill, point left out", table.prefill_error),
            ("a model left out", table.transfer),
        )
        errors = "; ".join(f"{name} {share(error)}" for name, error in parts if error is not None)
        console.print(f"  errors: {errors or 'too few points to tell'}", soft_wrap=True)
    for notice in filled.notices:
        console.print(Text(f"  notice: {notice}"), soft_wrap=True)
