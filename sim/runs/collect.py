"""Results as flat rows: a run's summary with dotted keys, and many of them as a pandas DataFrame or CSV text.

What depends on the machine (wall time, memory) is left out of every row, so that tables of the same runs are the same
bytes; `timing` has it. Called by store.py, and by whoever computes with results.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from sim.runs.task import Label, Result

if TYPE_CHECKING:
    import pandas as pd

Cell = str | int | float | bool | None

CLOCKS = ("wall_s", "requests_per_wall_s", "peak_rss_bytes")  # of a summary's `engine`: these differ from run to run
_LISTED = ("gpus", "links", "reasons", "notices", "factors")  # of any length, or said by the scenario: not in rows


def flat(summary: dict[str, Any]) -> dict[str, Cell]:
    """A summary's numbers under dotted keys, as "e2e_s.mean", "requests.completed", "models.chat.slo.attainment".

    Of the GPUs there is the mean of each fraction ("gpus.busy_fraction"), of notices and problems how many; links and
    reasons stay in summary.json. Without what depends on the machine that ran it.
    """
    row: dict[str, Cell] = {}
    for key, value in summary.items():
        if key not in _LISTED:
            _flatten(key, value, row)
    for name in CLOCKS:
        row.pop(f"engine.{name}", None)
    gpus = summary.get("gpus", [])
    for name in gpus[0] if gpus else ():
        if name.endswith("_fraction"):
            known = [gpu[name] for gpu in gpus if gpu[name] is not None]
            row[f"gpus.{name}"] = sum(known) / len(known) if known else None
    row["notices"] = len(summary.get("notices", ()))
    row["problems"] = len(summary.get("problems", ()))
    return row


def _flatten(key: str, value: Any, row: dict[str, Cell]) -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            _flatten(f"{key}.{name}", inner, row)
    elif not isinstance(value, list):
        row[key] = value


def timing(summary: dict[str, Any]) -> dict[str, Cell]:
    """What depends on the machine: wall_s, requests_per_wall_s, peak_rss_bytes."""
    return {name: summary["engine"].get(name) for name in CLOCKS}


def rows(results: Iterable[Result]) -> list[dict[str, Cell]]:
    """A row a result, in their order: its labels, run_id, error (None: it ran), then what `flat` gives."""
    found: list[dict[str, Cell]] = []
    for result in results:
        row: dict[str, Cell] = {**result.task.labels, "run_id": result.run_id, "error": result.error}
        for key, value in flat(result.summary or {}).items() if result.summary is not None else ():
            row.setdefault(key, value)
        found.append(row)
    return found


def frame(results: Iterable[Result]) -> pd.DataFrame:
    """The rows as a DataFrame; None where a run has no such number."""
    import pandas as pd  # noqa: PLC0415  heavy

    table = rows(results)
    return pd.DataFrame(table, columns=columns(table))


def columns(table: Iterable[dict[str, Cell]]) -> list[str]:
    """All keys of all rows: labels, run_id and error first, then numbers in the order in which they first come."""
    table = list(table)
    first: dict[str, None] = {}
    for row in table:
        first.update(dict.fromkeys(takewhile(lambda name: name != "run_id", row) if "run_id" in row else ()))
    first.update({name: None for name in ("run_id", "error") if any(name in row for row in table)})
    for row in table:
        first.update(dict.fromkeys(row))
    return list(first)


def csv_text(table: list[dict[str, Cell]]) -> str:
    """Rows as CSV; an empty cell where a row has no such value. The same bytes for the same rows."""
    names = columns(table)
    return csv_lines([names, *([row.get(name) for name in names] for row in table)])


def csv_lines(lines: Iterable[Sequence[Any]]) -> str:
    """Cells as CSV; None is empty."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["" if cell is None else cell for cell in row] for row in lines])
    return text.getvalue()


def shown(value: Label) -> str:
    """A label as it stands in a table that a person reads."""
    return f"{value:g}" if isinstance(value, float) else str(value)
