"""Predicted against measured: the same scenarios in real time on the live server, and in the simulator.

The tables were measured on the device itself. What was played is stored run by run. program.py calls it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import track

from sim.common.errors import ConfigError
from sim.engine.engine import Outcome, simulate
from sim.hardware.measure.measurement_folder import read_facts
from sim.hardware.model.device import Device
from sim.hardware.model.weights import HostWeights, architectures
from sim.hardware.server.server import LiveServer
from sim.hardware.validate.experiment import SPARE_BYTES, DeviceTables, ValidateOptions, scenario_of
from sim.results.request_table import request_table

_POINT_S = 0.7  # of a profile's pass for one point
METRICS = ("ttft_s", "tpot_s", "e2e_s")


def profiled(options: ValidateOptions, repeat: int) -> Path:
    """The folder of tables of this device. Measured by `profile measure`, once more for each repeat."""
    if options.profiles is not None:
        return options.profiles
    folder = options.out / "profiles"
    passes = int(read_facts(options.out / "measured").get("passes_done", 0))
    if passes > repeat and (folder / "tables").is_dir():
        return folder
    most, slots = options.max_context, options.slots
    command = [sys.executable, "-m", "sim", "profile", "measure", "--device", options.device]
    command += ["--models", ",".join(options.models), "--offload", options.offload]
    command += ["--batches", ",".join(map(str, sorted({1, min(2, slots), slots})))]
    command += ["--contexts", f"{most // 8},{most}", "--pools", str(most * slots)]
    command += ["--prompts", ",".join(str(most // part) for part in (32, 8, 4, 2, 1))]
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
        pd.read_csv(path).assign(start_s=0.0).to_csv(path, index=False)
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


class MeasuredRuns:
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


def measure_runs(
    options: ValidateOptions, tables: DeviceTables, repeat: int, store: MeasuredRuns, console: Console
) -> None:
    """Play every workload under every policy once, in real time; what is stored already is not played again."""
    wanted = {(w, p): _name(w, p, repeat) for w in options.workloads for p in options.policies}
    todo = [pair for pair, name in wanted.items() if not store.has(name)]
    if not todo:
        return
    device = Device(options.device, tables.budget_bytes + SPARE_BYTES, (options.link_gb_s or 0) * 1e9 or None)
    shapes = architectures(options.architectures)
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


def predict(options: ValidateOptions, tables: DeviceTables, store: MeasuredRuns) -> pd.DataFrame:
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


def pace_of(steps: pd.DataFrame, tables: DeviceTables) -> float:
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
