"""Predicted against measured: the same scenarios in real time on the live server, and in the simulator.

validate.py calls it, with tables that were measured on the device itself. What was played is stored run by run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import strftime
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from real.device import Device
from real.experiment import SPARE_BYTES, Tables, scenario_of
from real.llm import ARCHITECTURES, HostWeights, architectures
from real.server import LiveServer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from sim.common.errors import ConfigError
from sim.engine.engine import Outcome, simulate
from sim.results.request_table import request_table

console = Console(highlight=False)
_SCRIPTS = Path(__file__).resolve().parent.parent
_POINT_S = 0.7  # of a profile's pass for one point
METRICS = ("ttft_s", "tpot_s", "e2e_s")


def profiled(options: argparse.Namespace, repeat: int) -> Path:
    """The folder of tables of this device. Measured by profile_gpu.py, once more for each repeat."""
    if options.profiles is not None:
        return Path(options.profiles)
    folder: Path = options.out / "profiles"
    provenance = options.out / "measured" / "provenance.yaml"
    told = yaml.safe_load(provenance.read_text(encoding="utf-8")) if provenance.is_file() else {}
    passes = int(told.get("passes_done", 0))
    if passes > repeat and (folder / "tables").is_dir():
        return folder
    most, slots = options.max_context, options.slots
    command = [sys.executable, str(_SCRIPTS / "profile_gpu.py"), "--device", options.device]
    command += ["--models", *map(str, options.models), "--offload", options.offload]
    command += ["--batches", *map(str, sorted({1, min(2, slots), slots})), "--contexts", str(most // 8), str(most)]
    command += ["--prompts", *(str(most // part) for part in (32, 8, 4, 2, 1)), "--pools", str(most * slots)]
    command += ["--max-minutes", str(options.profile_minutes / options.repeats), "--limit-s", str(_POINT_S)]
    command += ["--passes", "1", *(["--again"] if passes else [])]
    command += ["--out", str(options.out / "measured"), "--into", str(folder)]
    if options.link_gb_s is not None:
        command += ["--link-gb-s", str(options.link_gb_s)]
    if options.architectures is not None:
        command += ["--architectures", str(options.architectures)]
    if subprocess.run(command, check=False).returncode:
        raise ConfigError("the profiler failed; see above")
    for path in folder.glob("tables/*/switch.csv"):  # its instances are threads: it starts no process
        rows = pd.read_csv(path)
        rows.start_s = 0.0
        rows.to_csv(path, index=False)
    return folder


def table_of(outcome: Outcome) -> pd.DataFrame:
    """One row a request, in order of arrival."""
    table = request_table(outcome)
    columns = ("request", "model", "outcome", "arrival_s", "prompt_tokens", "output_tokens", *METRICS, "mean_residency")
    return pd.DataFrame({name: table[name] for name in columns}).sort_values("request").reset_index(drop=True)


def reloads_of(outcome: Outcome) -> dict[str, float]:
    """How many loads, how long one took on average, KV saves and restores in seconds."""
    seconds = outcome.recorder.seconds
    loads = outcome.recorder.counts["loads"]
    return {
        "loads": loads,
        "reload_s": (seconds["reload_s"] + seconds["start_s"]) / loads if loads else float("nan"),
        "preemptions": outcome.recorder.counts["model_preemptions"],
        "kv_save_s": seconds["kv_save_s"],
        "kv_restore_s": seconds["kv_restore_s"],
    }


class Store:
    """What was measured so far, in files of one name a run: an interrupted validation goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def has(self, name: str) -> bool:
        return self._figures(name).is_file()

    def add(self, name: str, outcome: Outcome, steps: pd.DataFrame) -> None:
        table_of(outcome).to_csv(self.folder / f"{name}.csv", index=False)
        steps.to_csv(self.folder / f"{name}.steps.csv", index=False)
        self._figures(name).write_text(json.dumps(reloads_of(outcome)), encoding="utf-8")  # the last: the run is whole

    def read(self, name: str) -> tuple[pd.DataFrame, dict[str, float], pd.DataFrame]:
        """(requests, figures, steps)"""
        requests, steps = (pd.read_csv(self.folder / f"{name}{end}.csv") for end in ("", ".steps"))
        return requests, json.loads(self._figures(name).read_text(encoding="utf-8")), steps

    def _figures(self, name: str) -> Path:
        return self.folder / f"{name}.json"


def compare(live: pd.DataFrame, simulated: pd.DataFrame) -> dict[str, float]:
    """Measured and predicted value of each metric's mean, p50 and p90, and the relative error of the prediction."""
    both = (live.outcome == 0) & (simulated.outcome == 0)
    assert len(live) == len(simulated), "both worlds play the same requests"
    found: dict[str, float] = {"requests": len(live), "completed": int(both.sum())}
    for metric in METRICS:
        for name, of in (("mean", np.nanmean), ("p50", np.nanmedian), ("p90", lambda x: np.nanpercentile(x, 90))):
            measured, predicted = float(of(live[metric][both])), float(of(simulated[metric][both]))
            found[f"{metric}.{name}.measured"] = measured
            found[f"{metric}.{name}.predicted"] = predicted
            found[f"{metric}.{name}.error"] = predicted / measured - 1.0
    return found


def measure(options: argparse.Namespace, tables: Tables, repeat: int, store: Store) -> None:
    """Play every workload under every policy once, in real time; what is stored already is not played again."""
    wanted = {(w, p): _name(w, p, repeat) for w in options.workloads for p in options.policies}
    todo = [pair for pair, name in wanted.items() if not store.has(name)]
    if not todo:
        return
    device = Device(options.device, tables.budget_bytes + SPARE_BYTES, (options.link_gb_s or 0) * 1e9 or None)
    shapes = architectures(options.architectures or ARCHITECTURES)
    served = {model.lower(): HostWeights(shapes[model], device, torch.bfloat16) for model in options.models}
    for workload, policy in track(todo, f"serving, {repeat + 1} of {options.repeats}", console=console):
        scenario = scenario_of(options, tables, workload, policy, repeat)
        device.warm()
        with device.awake():
            server = LiveServer(scenario, device, served, options.offload)
            outcome = server.run()
        steps = pd.DataFrame(server.serving.steps, columns=["model", "layers", "batch", "context", "step_s"])
        store.add(wanted[workload, policy], outcome, steps)


def _name(workload: str, policy: str, repeat: int) -> str:
    return f"live-{workload}-{policy}-{repeat}"


def predict(options: argparse.Namespace, tables: Tables, store: Store) -> pd.DataFrame:
    """One row a (workload, policy): what was measured in all its repeats, and what the simulation says of it."""
    rows = []
    for workload in options.workloads:
        for policy in options.policies:
            found: dict[str, list[Any]] = {"live": [], "predicted": [], "paced": [], "real": [], "simulated": []}
            ratios = []
            for repeat in range(options.repeats):
                live, real, steps = store.read(_name(workload, policy, repeat))
                outcome = simulate(scenario_of(options, tables, workload, policy, repeat))
                ratios.append(pace_of(steps, tables))
                with paced(tables.folder, ratios[-1]) as folder:
                    again = simulate(scenario_of(options, tables, workload, policy, repeat, folder))
                parts = (live, table_of(outcome), table_of(again), real, reloads_of(outcome))
                for name, part in zip(found, parts, strict=True):
                    found[name].append(part)
            live, predicted, then = (
                pd.concat(found[name], ignore_index=True) for name in ("live", "predicted", "paced")
            )
            row = compare(live, predicted) | {"pace": float(np.mean(ratios))}
            row |= {f"paced.{name}": value for name, value in compare(live, then).items() if name.startswith("e2e_s")}
            for side, name in (("measured", "real"), ("predicted", "simulated")):
                row |= {f"{key}.{side}": value for key, value in _together(found[name]).items()}
            rows.append({"workload": workload, "policy": policy, **row})
    return pd.DataFrame(rows)


def _together(runs: list[dict[str, float]]) -> dict[str, float]:
    """Figures of several runs as of one: sums, and the mean of a load."""
    sums = {name: float(sum(run[name] for run in runs)) for name in runs[0] if name != "reload_s"}
    reload_s = sum(run["reload_s"] * run["loads"] for run in runs if run["loads"])
    return {**sums, "reload_s": reload_s / sums["loads"] if sums["loads"] else float("nan")}


def pace_of(steps: pd.DataFrame, tables: Tables) -> float:
    """How long decode steps with the device to themselves took in a run, over what the tables say of them."""
    if steps.empty:
        return 1.0
    columns = (steps[name] for name in ("model", "layers", "batch", "context"))
    believed_s = sum(tables.profile(model).step_s(*rest) for model, *rest in zip(*columns, strict=True))
    return float(steps.step_s.sum() / believed_s)


@contextmanager
def paced(folder: Path, ratio: float) -> Iterator[Path]:
    """The same profiles where computing takes `ratio` times as long: what is left of an error is not the machine's."""
    with TemporaryDirectory() as scratch:
        copy = Path(shutil.copytree(folder, Path(scratch) / "profiles"))
        for name, column in (("decode", "step_s"), ("prefill", "prefill_s")):
            for path in copy.glob(f"tables/*/{name}.csv"):
                rows = pd.read_csv(path)
                rows[column] *= ratio
                rows.to_csv(path, index=False)
        yield copy


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


def report(found: pd.DataFrame, folder: Path, facts: dict[str, Any]) -> None:
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


def facts(options: argparse.Namespace, tables: Tables) -> dict[str, Any]:
    """What the numbers came from."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    return {
        "device": f"{tables.gpu} in {tables.host}",
        "date": strftime("%Y-%m-%d"),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if options.device == "cuda" else "",
        **{
            name: getattr(options, name)
            for name in ("models", "duration", "repeats", "offload", "slots", "seed", "link_gb_s")
        },
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []
