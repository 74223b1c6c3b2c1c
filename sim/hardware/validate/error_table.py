"""The table of errors: what was measured beside what was predicted, printed and written as Markdown and JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from time import strftime
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from sim.hardware.measure.machine_facts import cpu_name
from sim.hardware.validate.experiment import DeviceTables, ValidateOptions

SHOWN = {
    "ttft_s.mean": "TTFT mean, s",
    "tpot_s.mean": "TPOT mean, s",
    "e2e_s.mean": "E2E mean, s",
    "e2e_s.p50": "E2E p50, s",
    "e2e_s.p90": "E2E p90, s",
}


def _shown(found: pd.DataFrame, errors: dict[str, float], title: str) -> Table:
    """What fits on a terminal: the errors, and of the end-to-end times the values."""
    columns = {"e2e_s.mean": "E2E", "e2e_s.p90": "p90", "ttft_s.mean": "TTFT", "tpot_s.mean": "TPOT"}
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("workload", "policy"):
        table.add_column(name, no_wrap=True)
    for name in ("n", "loads", "E2E, s", *columns.values(), "steps", "paced"):
        table.add_column(name, justify="right", no_wrap=True)
    for _, row in found.iterrows():
        loads, e2e = (
            f"{row[f'{name}.measured']:.3g}/{row[f'{name}.predicted']:.3g}" for name in ("loads", "e2e_s.mean")
        )
        relative = (*(row[f"{name}.error"] for name in columns), row["pace"] - 1, row["paced.e2e_s.mean.error"])
        shown = (f"{each:+.0%}" for each in relative)
        table.add_row(row["workload"], row["policy"], f"{row['requests']:.0f}", loads, e2e, *shown)
    means = (*(errors[name] for name in columns), errors["pace"], errors["paced.e2e_s.mean"])
    table.add_row("|error|", *[""] * 4, *(f"{each:.0%}" for each in means))
    return table


def report(found: pd.DataFrame, folder: Path, facts: dict[str, Any], console: Console) -> None:
    """Print the table of errors and write it as validation.md and validation.json. "Steps took": so much longer than
    the tables say; "so paced": the error where the simulator is told so."""
    header = ["workload", "policy", "requests", "loads", "a reload, s", *SHOWN.values(), "steps took", "E2E, so paced"]
    lines = []
    for _, row in found.iterrows():
        cells = [f"{row[f'{n}.measured']:.3g} / {row[f'{n}.predicted']:.3g} ({row[f'{n}.error']:+.0%})" for n in SHOWN]
        switches = (f"{row[f'{n}.measured']:.3g} / {row[f'{n}.predicted']:.3g}" for n in ("loads", "reload_s"))
        machine = (f"{row['pace'] - 1:+.0%}", f"{row['paced.e2e_s.mean.error']:+.0%}")
        lines.append([row["workload"], row["policy"], f"{row['requests']:.0f}", *switches, *cells, *machine])
    errors = {name: float(found[f"{name}.error"].abs().mean()) for name in (*SHOWN, "paced.e2e_s.mean")}
    errors["pace"] = float((found["pace"] - 1).abs().mean())
    shown = [f"{errors[name]:.1%}" for name in SHOWN]
    lines.append(
        ["mean of the errors", "", "", "", "", *shown, f"{errors['pace']:.1%}", f"{errors['paced.e2e_s.mean']:.1%}"]
    )
    console.print(_shown(found, errors, f"Measured / predicted, {facts['device']}"))
    order = orders(found)
    told = [
        f"{row['workload']}: measured {row['measured']}; predicted {row['predicted']}: "
        + ("the same order" if row["same"] else "another order")
        for _, row in order.iterrows()
    ]
    for line in told:
        console.print(line, soft_wrap=True)
    text = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    text += ["| " + " | ".join(line) + " |" for line in lines]
    text += ["", *(f"- {line}" for line in told)]
    (folder / "validation.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    data = {"facts": facts, "errors": errors, "orders": order.to_dict("records"), "rows": found.to_dict("records")}
    (folder / "validation.json").write_text(json.dumps(data, indent=1), encoding="utf-8")
    console.print(
        "E2E: mean end-to-end time, measured/predicted, and its error; p90 of the same; TTFT and TPOT of means.\n"
        "steps: how much longer decode steps took than the tables say; paced: the error of E2E where the simulator is "
        "told so.",
        soft_wrap=True,
    )
    console.print(f"written: {folder / 'validation.md'} and {folder / 'validation.json'}")


def order_of(rows: pd.DataFrame, column: str) -> str:
    """The policies of one workload from best to worst, and how much longer each takes than the one before."""
    means = rows.set_index("policy")[column].sort_values()
    more = (means / means.shift() - 1.0).map("{:.0%}".format)
    return " < ".join([means.index[0], *(f"{name} (+{more[name]})" for name in means.index[1:])])


def orders(found: pd.DataFrame) -> pd.DataFrame:
    """The order of policies by mean end-to-end time in each workload, measured and predicted."""
    rows = []
    for workload, group in found.groupby("workload", sort=False):
        columns = {side: f"e2e_s.mean.{side}" for side in ("measured", "predicted")}
        ranks = [group.sort_values(column).policy.tolist() for column in columns.values()]
        told = {side: order_of(group, column) for side, column in columns.items()}
        rows.append({"workload": workload, **told, "same": ranks[0] == ranks[1]})
    return pd.DataFrame(rows)


def facts_of(options: ValidateOptions, tables: DeviceTables) -> dict[str, Any]:
    """What the numbers came from."""
    return {
        "device": f"{tables.gpu} in {tables.host}",
        "date": strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if options.device == "cuda" else "",
        **{
            name: getattr(options, name)
            for name in ("models", "duration", "repeats", "offload", "slots", "seed", "link_gb_s")
        },
    }
