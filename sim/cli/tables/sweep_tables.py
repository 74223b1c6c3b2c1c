"""Tables of a sweep for people, and its JSON. Only formatting and means; called by sweep_cli.py.

A row of the table is a point without its seed: the mean over the runs of all seeds, with how many there are. Whether
differences are more than chance is not said here: that is what `compare` is for.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console

from sim.cli.tables.run_tables import grid, show
from sim.common.text import counted, number, seconds, share
from sim.runs.collect import rows, shown
from sim.runs.task import Label, Result
from sim.studies.sweep import Planned, Sweep

_MOST_ROWS = 60
# Header, where it is in a summary, and how it is written.
_COLUMNS = (
    ("arrived", "requests.arrived", number),
    ("completed", "requests.completed", number),
    ("within SLO", "slo.attainment", share),
    ("TTFT p50", "ttft_s.p50", seconds),
    ("TTFT p99", "ttft_s.p99", seconds),
    ("E2E mean", "e2e_s.mean", seconds),
    ("E2E p99", "e2e_s.p99", seconds),
    ("loads", "switching.loads", number),
)


def print_sweep(made: Sweep, out: Path, console: Console) -> None:
    """The table of the varied fields, and where all of it lies."""
    fields = [field for field in made.fields if field != "seed"]
    groups: dict[tuple[Label, ...], list[Result]] = {}
    for result in made.results:
        groups.setdefault(tuple(result.task.labels.get(field) for field in fields), []).append(result)
    runs = len({result.run_id for result in made.results})
    size = f"{counted(len(made.results), 'point')}, {counted(runs, 'run')}"
    title = f"{size}; means over the runs of a row, percentiles of each run"
    table = grid(title, *fields, "runs", "failed", *(header for header, _, _ in _COLUMNS), left=len(fields))
    for labels, results in list(groups.items())[:_MOST_ROWS]:
        table.add_row(*map(_cell, labels), *_numbers(results))
    show(console, table)
    if len(groups) > _MOST_ROWS:
        console.print(f"{len(groups) - _MOST_ROWS:,} more rows are in runs.csv")
    merged = f"; {made.merged:,} runs came from other folders" if made.merged else ""
    console.print(f"kept in {out}: runs.csv has every run{merged}")


def _cell(label: Label) -> str:
    return "-" if label is None else shown(label)


def _numbers(results: list[Result]) -> Iterable[str]:
    known = rows(result for result in results if result.summary is not None)
    yield str(len(known))
    yield str(len(results) - len(known) or "-")
    for _, key, written in _COLUMNS:
        values: list[Any] = [row[key] for row in known if row.get(key) is not None]
        yield written(sum(values) / len(values) if values else None)


def failures(made: Sweep) -> list[str]:
    """A line for each row of the table in which runs failed: the first error, and how many more there are."""
    groups: dict[str, list[Result]] = {}
    for result in made.results:
        if result.error is not None:
            labels = {field: label for field, label in result.task.labels.items() if field != "seed"}
            groups.setdefault(", ".join(f"{field}={_cell(label)}" for field, label in labels.items()), []).append(
                result
            )
    lines = []
    for name, (first, *others) in groups.items():
        more = f" ({len(others):,} more of its runs failed)" if others else ""
        lines.append(f"{name or 'run'} ({first.run_id}): {first.error}{more}")
    return lines


def as_data(made: Sweep, out: Path) -> dict[str, Any]:
    """The sweep as plain data: folder, fields, and a flat row for each point."""
    return {"folder": str(out), "fields": list(made.fields), "merged": made.merged, "rows": rows(made.results)}


def print_plan(found: list[Planned], console: Console) -> None:
    """All points with their runs, and how many of each state there are."""
    fields = list(dict.fromkeys(field for one in found for field in one.labels))
    states = {one.run_id: one.state for one in found}
    counts = ", ".join(
        f"{number} {state}" for state in ("done", "failed", "to do") if (number := list(states.values()).count(state))
    )
    title = f"{counted(len(found), 'point')}, {counted(len(states), 'run')}: {counts}"
    table = grid(title, *fields, "run", "state", left=len(fields) + 2)
    for one in found:
        state = one.state if one.error is None else f"{one.state}: {one.error}"
        table.add_row(*(_cell(one.labels.get(field)) for field in fields), one.run_id, state)
    show(console, table)
