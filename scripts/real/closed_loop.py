"""Predicted against measured: the same scenarios in real time on the live server, and in the simulator.

validate.py calls it, with tables that were measured on the device itself. What was played is stored run by run.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from time import strftime
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from rich.console import Console
from rich.progress import track
from rich.table import Table

from real.device import Device
from real.llm import ARCHITECTURES, HostWeights, architectures
from real.server import LiveServer
from sim.engine import Outcome, simulate
from sim.errors import ConfigError
from sim.library import Library
from sim.request_table import request_table
from sim.spec import GIB, Scenario, parse_scenario

console = Console(highlight=False)
_SCRIPTS = Path(__file__).resolve().parent.parent
QUANTIZATION = "BF16"
METRICS = ("ttft_s", "tpot_s", "e2e_s")
POLICIES = ("exclusive-swap", "lru-swap", "residency-aware")
MODELS = {
    "cpu": ("SmolLM2-135M", "SmolLM2-360M", "Qwen2.5-0.5B"),
    "cuda": ("Llama-3.2-1B", "Qwen2.5-3B", "Qwen3-8B"),
}
# Memory copies so quickly that loading a model would cost next to nothing, beside what it costs on a GPU.
LINK_GB_S = {"cpu": 1.5, "cuda": None}
# Of the memory that all models with their KV would take at full residency.
BUDGET_SHARE = 0.62
# The device may hold this more: buffers of streamed layers, and their KV, which the accounts count to the host.
SPARE_BYTES = 400_000_000
# Requests per second in units of what one of its models can do alone: tuned to leave queues, but none without end.
WORKLOADS: dict[str, dict[str, Any]] = {
    "steady": {"load": 0.35, "shares": (1, 1, 1), "burst_factor": 1.0, "prompt": 64, "output": 24},
    "bursty": {"load": 0.30, "shares": (4, 2, 1), "burst_factor": 4.0, "prompt": 64, "output": 24},
    "long": {"load": 0.35, "shares": (2, 1, 1), "burst_factor": 1.5, "prompt": 160, "output": 64},
}


def profiled(options: argparse.Namespace) -> Path:
    """The folder of tables of this device: measured by profile_gpu.py, unless it is there already."""
    if options.profiles is not None:
        return Path(options.profiles)
    folder: Path = options.out / "profiles"
    if not (folder / "tables").is_dir():
        most = options.max_context
        command = [sys.executable, str(_SCRIPTS / "profile_gpu.py"), "--device", options.device]
        command += ["--models", *map(str, options.models), "--offload", options.offload]
        command += [
            "--batches",
            *map(str, sorted({1, min(2, options.slots), options.slots})),
            "--contexts",
            str(most // 8),
            str(most),
        ]
        command += ["--prompts", *(str(most // part) for part in (32, 8, 4, 2, 1))]
        command += ["--pools", str(most * options.slots)]
        command += ["--max-minutes", str(options.profile_minutes)]
        if options.link_gb_s is not None:
            command += ["--link-gb-s", str(options.link_gb_s)]
        command += ["--out", str(options.out / "measured"), "--into", str(folder)]
        if options.architectures is not None:
            command += ["--architectures", str(options.architectures)]
        if subprocess.run(command, check=False).returncode:
            raise ConfigError("the profiler failed; see above")
        for path in folder.glob("tables/*/switch.csv"):  # its instances are threads: it starts no process
            rows = pd.read_csv(path)
            rows.start_s = 0.0
            rows.to_csv(path, index=False)
    return folder


class Tables:
    """A folder of filled profiles with the tables of one device: what the simulation believes of it."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        offload = options.offload
        self.folder = folder
        self.library = Library(folder)
        found = [key for key in self.library.table_keys() if key[2].endswith("-stream") == (offload == "stream")]
        if len(found) != 1:
            raise ConfigError(f"{folder}: {len(found)} tables with offload {offload}; validate.py needs exactly one")
        self.gpu, self.host, self.engine = found[0]
        self.max_context, self.slots = options.max_context, options.slots
        whole = sum(self._bytes(model) for model in options.models)
        largest = max(self._bytes(model) for model in options.models)
        self.budget_bytes = round(max(BUDGET_SHARE * whole, 1.02 * largest))
        self.reserve_gib = (self.library.gpu(self.gpu).memory_bytes - self.budget_bytes) / GIB
        if self.reserve_gib < 0:
            raise ConfigError(
                f"{folder}: {self.gpu} has less memory than the budget of {self.budget_bytes / 1e9:.2f} GB"
            )

    @property
    def contention(self) -> str:
        """The law that two instances at a time were measured to follow more closely; the default where none was."""
        file = self.folder.parent / "measured" / "provenance.yaml"
        told = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return str(told.get("contention", {}).get("closer", "proportional"))

    def _bytes(self, model: str) -> int:
        weights = self.library.model_weights(model, QUANTIZATION)
        kv_bytes = weights.kv_bytes_per_token_layer * weights.layers * self.max_context * self.slots
        return weights.total_bytes + kv_bytes

    def alone_s(self, model: str, prompt: int, output: int) -> float:
        """Seconds of one request of a model that is loaded whole and has the device to itself."""
        profile = self.library.profile(model, QUANTIZATION, self.gpu, self.host, self.engine)
        layers = profile.weights.layers
        return profile.prefill_s(layers, prompt) + (output - 1) * profile.step_s(layers, 1, prompt + output / 2)


def scenario_of(options: argparse.Namespace, tables: Tables, workload: str, policy: str) -> Scenario:
    """The experiment that both worlds play."""
    shape = WORKLOADS[workload]
    shares = np.array(shape["shares"][: len(options.models)], dtype=float)
    shares /= shares.sum()
    alone_s = [tables.alone_s(model, shape["prompt"], shape["output"]) for model in options.models]
    rate_per_s = shape["load"] / float(np.dot(shares, alone_s))
    traffic = [
        {
            "model": model.lower(),
            "rate_per_s": rate_per_s * float(share),
            "burst_factor": shape["burst_factor"],
            "burst_s": 10.0,
            "prompt_median": shape["prompt"],
            "prompt_mean": shape["prompt"] * 1.2,
            "prompt_max": options.max_context // 2,
            "output_median": shape["output"],
            "output_mean": shape["output"] * 1.2,
            "output_max": options.max_context // 2 - 1,
        }
        for model, share in zip(options.models, shares, strict=True)
    ]
    return parse_scenario(
        {
            "name": f"validate-{workload}",
            "seed": options.seed,
            "profiles": str(tables.folder),
            "cluster": {
                "nodes": [{"host": tables.host, "gpus": [{"gpu": tables.gpu, "count": 1}]}],
                "gpu_reserve_gib": tables.reserve_gib,
            },
            "models": [
                {
                    "name": model.lower(),
                    "model": model,
                    "quantization": QUANTIZATION,
                    "engine": tables.engine,
                    "max_context": options.max_context,
                    "kv_tokens": options.max_context * options.slots,
                }
                for model in options.models
            ],
            "engine": {"max_sequences": options.slots},
            "sharing": {"contention": tables.contention},
            "workload": {"duration_s": options.duration, "traffic": traffic},
            "policy": policy,
        },
        f"validate-{workload}",
    )


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
    """What was measured and predicted so far, a CSV and a JSON file a run: an interrupted validation goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, name: str, play: Any) -> tuple[pd.DataFrame, dict[str, float]]:
        """What is stored under this name, or what play() gives, stored."""
        requests, figures = self.folder / f"{name}.csv", self.folder / f"{name}.json"
        if not figures.is_file():
            outcome = play()
            table_of(outcome).to_csv(requests, index=False)
            figures.write_text(json.dumps(reloads_of(outcome)), encoding="utf-8")
        return pd.read_csv(requests), json.loads(figures.read_text(encoding="utf-8"))


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


def validate(options: argparse.Namespace, tables: Tables) -> pd.DataFrame:
    """Measure and predict every (workload, policy); one row each."""
    link_bytes_per_s = None if options.link_gb_s is None else options.link_gb_s * 1e9
    device = Device(options.device, tables.budget_bytes + SPARE_BYTES, link_bytes_per_s)
    shapes = architectures(options.architectures or ARCHITECTURES)
    store = Store(options.out / "runs")
    weights: dict[str, HostWeights] = {}
    rows = []
    pairs = [
        (workload, policy, run)
        for run in range(options.repeats)
        for workload in options.workloads
        for policy in options.policies
    ]
    for workload, policy, number in track(pairs, "replaying", console=console):
        scenario = scenario_of(options, tables, workload, policy)

        def serve(scenario: Scenario = scenario) -> Outcome:
            for model in options.models:
                if model not in weights:
                    weights[model] = HostWeights(shapes[model], device, torch.bfloat16)
            served = {model.lower(): weights[model] for model in options.models}
            device.warm()
            with device.awake():
                return LiveServer(scenario, device, served, options.offload).run()

        live, real = store.run(f"live-{workload}-{policy}-{number}", serve)
        predicted = simulate(scenario)
        row = compare(live, table_of(predicted))
        row |= {f"{name}.measured": value for name, value in real.items()}
        row |= {f"{name}.predicted": value for name, value in reloads_of(predicted).items()}
        rows.append({"workload": workload, "policy": policy, "run": number, **row})
    return pd.DataFrame(rows)


def order_of(rows: pd.DataFrame, column: str) -> str:
    """The policies of one workload from best to worst."""
    means = rows.groupby("policy")[column].mean().sort_values()
    return " < ".join(means.index)


def orders(found: pd.DataFrame) -> pd.DataFrame:
    """The order of policies by mean end-to-end time in each workload, measured and predicted."""
    rows = []
    for workload, group in found.groupby("workload", sort=False):
        measured, predicted = (order_of(group, f"e2e_s.mean.{side}") for side in ("measured", "predicted"))
        rows.append({"workload": workload, "measured": measured, "predicted": predicted, "same": measured == predicted})
    return pd.DataFrame(rows)


def averaged(found: pd.DataFrame) -> pd.DataFrame:
    """One row a (workload, policy): means over the repeats, and errors of the predicted mean against the measured."""
    mean = found.drop(columns="run").groupby(["workload", "policy"], sort=False).mean().reset_index()
    for column in [name for name in mean if name.endswith(".error")]:
        stem = column.removesuffix(".error")
        mean[column] = mean[f"{stem}.predicted"] / mean[f"{stem}.measured"] - 1.0
    return mean


SHOWN = ("ttft_s.mean", "tpot_s.mean", "e2e_s.mean", "e2e_s.p50", "e2e_s.p90")


def report(found: pd.DataFrame, folder: Path, facts: dict[str, Any]) -> None:
    """Print the table of errors and write it as validation.md and validation.json."""
    mean = averaged(found)
    header = ["workload", "policy", "requests", *(f"{name} measured / predicted" for name in SHOWN), "loads"]
    lines = []
    for _, row in mean.iterrows():
        cells = [f"{row[f'{n}.measured']:.3g} / {row[f'{n}.predicted']:.3g} ({row[f'{n}.error']:+.1%})" for n in SHOWN]
        loads = f"{row['loads.measured']:.0f} / {row['loads.predicted']:.0f}"
        lines.append([row["workload"], row["policy"], f"{row['requests']:.0f}", *cells, loads])
    errors = {name: float(mean[f"{name}.error"].abs().mean()) for name in SHOWN}
    lines.append(["mean of |error|", "", "", *(f"{errors[name]:.1%}" for name in SHOWN), ""])
    table = Table(*header, title=f"Predicted against measured, {facts['device']}")
    for line in lines:
        table.add_row(*line)
    console.print(table)
    order = orders(found)
    for _, row in order.iterrows():
        console.print(f"{row['workload']}: measured {row['measured']}; predicted {row['predicted']}")
    text = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    text += ["| " + " | ".join(line) + " |" for line in lines]
    text += [
        "",
        *(
            f"- {row['workload']}: measured {row['measured']}; predicted {row['predicted']}"
            for _, row in order.iterrows()
        ),
    ]
    (folder / "validation.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    data = {"facts": facts, "errors": errors, "orders": order.to_dict("records"), "rows": mean.to_dict("records")}
    (folder / "validation.json").write_text(json.dumps(data, indent=1), encoding="utf-8")
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
