"""Measured folders whose truth is known: points of the physical model with noise, for the tests of profiles."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sim.profiles.library import Library
from sim.profiles.profile import Profile
from sim.profiling.fill import fill
from sim.profiling.measured import Measured, write_measured
from sim.profiling.physics import Prompts, Rates, Shape, Steps, decode_s, prefill_s, shape_of
from sim.profiling.points import BandwidthPoint, DecodePoint, ModelRow, PrefillPoint, SwitchPoint

# As a workstation GPU with a server's CPU: an order of magnitude between the two sides.
TRUTH = Rates(gpu_gb_s=620.0, host_gb_s=70.0, kv_share=0.35, host_kv_share=0.3, hop_s=80e-6, stream_gb_s=14.0)
ROWS = (
    ModelRow(
        model="Tiny-1B", quantization="Q8_0", kind="published", source="test", layers=16, layer_bytes=64_000_000,
        head_bytes=270_000_000, kv_bytes_per_token_layer=2048, max_context=8192,
    ),
    ModelRow(
        model="Small-8B", quantization="Q8_0", kind="published", source="test", layers=32, layer_bytes=230_000_000,
        head_bytes=560_000_000, kv_bytes_per_token_layer=4096, max_context=8192,
    ),
    ModelRow(
        model="Big-30B", quantization="Q8_0", kind="published", source="test", layers=60, layer_bytes=520_000_000,
        head_bytes=830_000_000, kv_bytes_per_token_layer=4096, max_context=16384,
    ),
)  # fmt: skip
FACTS = {"gpu_name": "Test GPU", "gpu_memory_gib": 48, "cpu": "Test CPU", "host_memory_gib": 256, "date": "2026-01-02"}


@dataclass(frozen=True)
class Plan:
    """What a folder holds: (layer shares, batches, contexts) of decode, prompts, and noise of each time."""

    models: tuple[ModelRow, ...] = ROWS[:2]
    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)
    batches: tuple[int, ...] = (1, 8, 32)
    contexts: tuple[float, ...] = (256.0, 2048.0)
    prompts: tuple[int, ...] = (256, 2048)
    offload: str = "cpu"
    noise: float = 0.0
    seed: int = 1
    head_first: bool = False


def shape(row: ModelRow) -> Shape:
    return shape_of(row.weights, {})


def steps(points: Sequence[tuple[float, float, float]], total: int, head_first: bool = False) -> Steps:
    return Steps.of(np.array(points, dtype=float), total, head_first)


def prompts(points: Sequence[tuple[float, float]], total: int) -> Prompts:
    return Prompts.of(np.array(points, dtype=float), total)


def measured(plan: Plan = Plan(), truth: Rates = TRUTH, gpu: str = "test-gpu") -> Measured:
    """The folder's content: truth times log-normal noise, one point for each combination."""
    noise = np.random.RandomState(plan.seed)
    decode, prefill = [], []
    for row in plan.models:
        named: dict[str, Any] = {
            "model": row.model,
            "quantization": row.quantization,
            "kind": "measured",
            "source": "test-run",
        }
        layers = sorted({round(share * row.layers) for share in plan.shares})
        tests = [(n, b, c) for n in layers for b in plan.batches for c in plan.contexts]
        seconds = decode_s(shape(row), truth, steps(tests, row.layers, plan.head_first), plan.offload)
        for (n, b, c), value in zip(tests, seconds, strict=True):
            head = "gpu" if plan.head_first and 0 < n < row.layers else ""
            step_s = float(value * np.exp(plan.noise * noise.standard_normal()))
            decode.append(
                DecodePoint(**named, offload=plan.offload, layers=n, head=head, batch=b, context=c, step_s=step_s)
            )
        lengths = [(n, p) for n in layers for p in plan.prompts]
        if lengths:
            found = prefill_s(shape(row), truth, prompts(lengths, row.layers), plan.offload)
            for (n, p), value in zip(lengths, found, strict=True):
                whole_s = float(value * np.exp(plan.noise * noise.standard_normal()))
                prefill.append(
                    PrefillPoint(**named, offload=plan.offload, layers=n, prompt_tokens=p, prefill_s=whole_s)
                )
    return Measured(gpu, "test-host", "torch", (plan.offload,), FACTS, plan.models, tuple(decode), tuple(prefill))


def switches(models: Sequence[ModelRow] = ROWS[:2]) -> tuple[SwitchPoint, ...]:
    """Reloads on a line of 0.5 s and 20 GB/s, KV copies at 10 and 12 GB/s, frees of 40 ms."""
    rows = []
    for row in models:
        named: dict[str, Any] = {
            "model": row.model,
            "quantization": row.quantization,
            "kind": "measured",
            "source": "test-run",
        }
        for layers in (row.layers // 2, row.layers):
            size = row.weights.gpu_bytes(layers)
            rows.append(
                SwitchPoint(**named, part="reload", path="pinned", layers=layers, bytes=size, seconds=0.5 + size / 20e9)
            )
        rows.append(SwitchPoint(**named, part="kv_save", path="pinned", tokens=1000, bytes=10**9, seconds=0.1))
        rows.append(SwitchPoint(**named, part="kv_restore", path="pinned", tokens=1000, bytes=12 * 10**8, seconds=0.1))
        rows.append(SwitchPoint(**named, part="free", seconds=0.04))
    return tuple(rows)


def links() -> tuple[BandwidthPoint, ...]:
    named: dict[str, Any] = {"kind": "measured", "source": "test-run"}
    return (
        BandwidthPoint(**named, direction="h2d", memory="pinned", bytes=10**9, h2d_gb_s=24.0),
        BandwidthPoint(**named, direction="d2h", memory="pinned", bytes=10**9, d2h_gb_s=23.0),
        BandwidthPoint(**named, direction="cpu", h2d_gb_s=80.0),
    )


def folder(path: Path, plan: Plan = Plan(), truth: Rates = TRUTH) -> Path:
    """Write the whole folder."""
    whole = replace(measured(plan, truth), switch=switches(plan.models), bandwidth=links())
    write_measured(whole, path)
    return path


# --- what fill made of them


def table(into: Path, engine: str = "torch", model: str = "Small-8B") -> Profile:
    return Library(into).profile(model, "Q8_0", "test-gpu", "test-host", engine)


def rows_of(into: Path, name: str = "decode", engine: str = "torch") -> list[dict[str, Any]]:
    with (into / "tables" / f"test-gpu--test-host--{engine}" / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def filled(tmp_path: Path, plan: Plan = Plan(), **more: Any) -> Path:
    fill([folder(tmp_path / "measured", plan)], tmp_path / "profiles", **more)
    return tmp_path / "profiles"


def written(tmp_path: Path, content: Measured, name: str = "measured") -> Path:
    write_measured(content, tmp_path / name)
    return tmp_path / name
