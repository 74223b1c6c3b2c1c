"""What is played in both worlds: the tables of a device, and the workloads, policies and memory of the experiment.

A scenario is fixed when it is first needed, and kept as a file: what is measured later does not change what is played.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sim.common.errors import ConfigError
from sim.hardware.measure.measurement_folder import read_facts
from sim.hardware.options import OFFLOADS, check_above_0, check_known
from sim.profiles.library import Library
from sim.profiles.profile import Profile
from sim.scenario.scenario import GIB, Scenario, parse_scenario

QUANTIZATION = "BF16"
# One model at a time; each with its share of the memory, for good; what is best at the moment. On one GPU `lru-swap`
# does nearly as the last does, so that no measurement of minutes tells them apart.
POLICIES = ("exclusive-swap", "static-split", "residency-aware")
MODELS = {"cpu": ("SmolLM2-135M", "SmolLM2-360M", "Qwen2.5-0.5B"), "cuda": ("Llama-3.2-1B", "Qwen2.5-3B", "Qwen3-8B")}
# A GPU reads its memory 40 to 130 times as quickly as its link brings weights (RTX 4090: 1008 GB/s and 25; H100: 3350
# GB/s and 25 to 50, data sheets); a core of the EPYC of the README decodes SmolLM2-135M (269 MB) in 16 ms.
LINK_GB_S = {"cpu": 0.5, "cuda": None}
# Of the memory that all models with their KV would take at full residency.
BUDGET_SHARE = 0.72
# The device may hold this more: buffers of streamed layers, and their KV, which the accounts count to the host.
SPARE_BYTES = 400_000_000
# Requests per second in units of what one of its models can do alone: there are queues, but none without end, and
# policies of other kinds are about 20 % apart or more in the simulator.
WORKLOADS: dict[str, dict[str, Any]] = {
    "steady": {"load": 0.25, "shares": (1, 1, 1), "burst_factor": 1.0, "prompt": 64, "output": 24},
    "bursty": {"load": 0.20, "shares": (2, 1, 1), "burst_factor": 4.0, "prompt": 64, "output": 16},
    "long": {"load": 0.35, "shares": (3, 2, 1), "burst_factor": 1.0, "prompt": 200, "output": 32},
}


@dataclass(frozen=True)
class ValidateOptions:
    """What to serve and to simulate, and where what is measured is kept. Empty and None: what suits the device."""

    device: str = "cuda"
    out: Path = Path("validation")
    models: tuple[str, ...] = ()
    workloads: tuple[str, ...] = tuple(WORKLOADS)
    policies: tuple[str, ...] = POLICIES
    duration: float = 90.0
    repeats: int = 3
    offload: str = "stream"
    slots: int = 4
    max_context: int = 512
    seed: int = 1
    profiles: Path | None = None
    profile_minutes: float = 18.0
    link_gb_s: float | None = None
    architectures: Path | None = None

    def complete(self) -> ValidateOptions:
        """With what suits the device. Raises ConfigError: a value that cannot be."""
        check_known("--device", (self.device,), MODELS)
        check_known("--offload", (self.offload,), OFFLOADS)
        check_known("--workloads", self.workloads, WORKLOADS)
        check_above_0(duration=self.duration, profile_minutes=self.profile_minutes)
        # Half of the context is the most of a prompt and of an answer: usual ones fit.
        least = max(2 * max(WORKLOADS[name]["prompt"], WORKLOADS[name]["output"]) for name in self.workloads)
        if self.max_context < least:
            raise ConfigError(f"--max-context: give {least} tokens or more for these workloads")
        link = self.link_gb_s
        if link is not None and (self.device != "cpu" or not 0 < link < float("inf")):
            raise ConfigError("--link-gb-s: give a number above 0, with --device cpu; a GPU has a link of its own")
        models = self.models or MODELS[self.device]
        return replace(self, models=models, link_gb_s=LINK_GB_S[self.device] if link is None else link)


class DeviceTables:
    """A folder of filled profiles with the tables of one device: what the simulation believes of it."""

    def __init__(self, folder: Path, options: ValidateOptions) -> None:
        offload = options.offload
        self.folder = folder
        self.library = Library(folder)
        found = [key for key in self.library.table_keys() if key[2].endswith("-stream") == (offload == "stream")]
        if len(found) != 1:
            raise ConfigError(f"{folder}: {len(found)} tables with offload {offload}; validating needs exactly one")
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
        """The law that two instances at a time were measured to follow most closely; the default where none was."""
        facts = read_facts(self.folder.parent / "measured")
        return str(facts.get("contention", {}).get("closer", "proportional"))

    def _bytes(self, model: str) -> int:
        weights = self.library.model_weights(model, QUANTIZATION)
        kv_bytes = weights.kv_bytes_per_token_layer * weights.layers * self.max_context * self.slots
        return weights.total_bytes + kv_bytes

    def profile(self, model: str) -> Profile:
        return self.library.profile(model, QUANTIZATION, self.gpu, self.host, self.engine)

    def alone_s(self, model: str, prompt: int, output: int) -> float:
        """Seconds of one request of a model that is loaded whole and has the device to itself."""
        profile = self.profile(model)
        layers = profile.weights.layers
        return profile.prefill_s(layers, prompt) + (output - 1) * profile.step_s(layers, 1, prompt + output / 2)


# What an experiment is made of: with another of these, what was measured before is of another experiment.
SETTINGS = (
    *("device", "models", "duration", "offload", "slots", "max_context", "seed", "link_gb_s", "profiles"),
    "architectures",
)


def keep_settings(options: ValidateOptions) -> None:
    """Write down what the experiment in `options.out` is made of. Raises ConfigError: it holds runs of another."""
    file = options.out / "settings.json"
    said = {name: getattr(options, name) for name in SETTINGS}
    said |= {"workloads": WORKLOADS, "budget_share": BUDGET_SHARE}
    mine = json.loads(json.dumps(said, default=str))  # as it is read again
    if not any((options.out / "runs").glob("*")):
        for old in (options.out / "scenarios").glob("*.yaml"):
            old.unlink()
        options.out.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")
        return
    if not file.is_file():
        raise ConfigError(f"{options.out}: holds runs, and no {file.name} says of what; choose another --out")
    try:
        begun = json.loads(file.read_text(encoding="utf-8"))
        different = [name for name in mine if begun.get(name) != mine[name]]
    except (ValueError, AttributeError):
        raise ConfigError(f"{file}: not the settings of a validation; choose another --out") from None
    if different:
        name = different[0]
        how = f"begun with {name} {begun.get(name)}, now it is {mine[name]}"
        raise ConfigError(f"{options.out}: {how}; say it as before, or choose another --out")


def scenario_of(
    options: ValidateOptions,
    tables: DeviceTables,
    workload: str,
    policy: str,
    repeat: int,
    profiles: Path | None = None,
) -> Scenario:
    """What both worlds play: in each repeat other requests of the same kind. `profiles`: to simulate with these.

    Made of `tables` once, and read from its file from then on, whatever is measured later.
    """
    file = options.out / "scenarios" / f"{workload}.yaml"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(_content(options, tables, workload), sort_keys=False, width=120)
        file.write_text(f"# What `validate` serves for real, and simulates.\n{text}", encoding="utf-8")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content["cluster"]["gpu_reserve_gib"] = tables.reserve_gib  # of the device as it is measured by now
    content["sharing"]["contention"] = tables.contention
    content |= {"seed": options.seed + repeat, "profiles": str((profiles or tables.folder).resolve()), "policy": policy}
    return parse_scenario(content, content["name"])


def _content(options: ValidateOptions, tables: DeviceTables, workload: str) -> dict[str, Any]:
    """The experiment as a scenario file holds it, under the first policy."""
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
    return {
        "name": f"validate-{workload}",
        "seed": options.seed,
        "profiles": str(tables.folder.resolve()),
        "cluster": {
            "nodes": [{"host": tables.host, "gpus": [{"gpu": tables.gpu}]}],
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
        "policy": POLICIES[0],
    }
