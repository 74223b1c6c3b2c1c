#!/usr/bin/env python3
"""Build profiles/ from published measurements: fit rates, fill the tables, print how far off the fits are.

Output is deterministic: same input, same bytes on one kind of processor (linear algebra rounds differently on
another). The fits are in profile_fits.py beside this file, the physics in sim/profiling/hybrid.py, and
profiles/README.md explains every choice and what each source id stands for.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from profile_fits import CONSUMER_CONTEXT, GPUS, MODELS, QUANTIZATIONS, Calibration, Origin, Published

from sim.profiling import hybrid

# slug: (start of the name in cpus.csv, GiB, disk, network, link cap GB/s, TFLOP/s, memory's source)
HOSTS: dict[str, tuple[str, int, float, float, float, float, str]] = {
    "tr-pro-5995wx": ("AMD Threadripper PRO 5995WX", 512, 3.0, 1.25, 100.0, 3.2, "arxiv-2605.19593"),
    "i7-8700": ("Intel i7-8700", 64, 2.5, 0.125, 6.5, 0.3, "inventivehq"),
    "i5-13600k": ("Intel i5-13600K", 192, 2.5, 0.125, 26.0, 0.7, "ik255"),
    "epyc-9654": ("AMD EPYC 9654", 768, 3.0, 12.5, 200.0, 9.6, "assumption"),
    "epyc-7453": ("AMD EPYC 7453", 512, 2.6, 12.5, 100.0, 1.4, "assumption"),
    "xeon-8480": ("Intel Xeon Platinum 8480", 1024, 3.6, 12.5, 150.0, 5.6, "assumption"),
}
PEAK_SHARE = 0.65  # of DRAM peak where nobody measured: the fitted hosts reach 0.56 to 0.70
STREAM_SHARE = 0.72  # of the pinned link rate: 22.3 and 14.0 of 25 GB/s seen in ik255
PAIRS = (
    ("rtx-a6000", "tr-pro-5995wx"),
    ("rtx-5000-ada", "tr-pro-5995wx"),
    ("rtx-4090", "tr-pro-5995wx"),
    ("rtx-4090", "i5-13600k"),
    ("rtx-5060-ti-16gb", "i7-8700"),
    ("rtx-5060-ti-16gb", "i5-13600k"),
    ("l40s", "epyc-9654"),
    ("a100-80gb", "epyc-7453"),
    ("h100", "xeon-8480"),
)
MICRO_BATCHES = {"llama.cpp": 512, "hf-transformers": 1 << 20, "vllm": 2048}
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PROMPTS = (0, 128, 512, 1024, 2048, 4096, 8192, 12288, 16384, 24576, 32768, 49152, 65536, 98304, 131072)
SERVERS = ("a100-80gb", "h100")
TRANSFORMERS_PAIRS = tuple(
    pair for pair in PAIRS if pair[0] != "rtx-5060-ti-16gb" and pair != ("rtx-4090", "i5-13600k")
)
PUBLISHED_FILES = [f"{name}.csv" for name in ("gpus", "cpus", "models")]
PUBLISHED_FILES += [f"published_{name}.csv" for name in ("residency", "load", "batch", "batch_context")]
# Switch costs; the reasons are in profiles/README.md.
SWITCH_COLUMNS = ["start_s", "reload_fixed_s", "reload_gb_s", "kv_save_gb_s", "kv_restore_gb_s"]
SWITCH_COLUMNS += ["free_s", "wake_fixed_s"]
RELOAD_LINES = {"rtx-a6000": (1.81, 7.64), "rtx-5000-ada": (1.94, 5.49)}  # seconds, GB/s
RELOAD_ERRORS = {"rtx-a6000": 0.01, "rtx-5000-ada": 0.036}
A6000_KV_GB_S = (9.9, 15.9)  # from the published totals; the ranges are 9-10 and 13-16
LLAMA_START_S, LLAMA_ALLOCATE_S, LLAMA_LOAD_GB_S = 1.5, 0.3, 9.0
LLAMA_KV_GB_S = (9.0, 11.0)
VLLM_START_S, VLLM_WAKE_GB_S = 45.0, 22.9
FREE_S, WAKE_S = 0.2, 0.2
SWEEPS = (
    ("inventivehq", "", "Qwen2.5-14B"),
    ("ik255", "CUDA build", "Qwen2.5-32B"),
    ("ik255", "CUDA+BLAS", "Qwen2.5-32B"),
)
PUBLISHED_TOLERANCE = 0.02
ANALYTIC = Origin("analytic", "hybrid-model")
Row = dict[str, object]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One model of one table: its physics, and how each part of it is known."""

    physics: hybrid.Hybrid
    single: Origin  # decode of one sequence, all layers on the GPU
    batch: Origin
    split: Origin  # decode of one sequence, layers on both sides
    prefill: Origin
    decode_points: dict[tuple[int, int], float]  # (layers, context): published seconds
    prefill_points: dict[int, float]  # prompt tokens: published seconds
    point_source: str

    @property
    def layers(self) -> tuple[int, ...]:
        """The model is linear between layer 1 and L-1, so these knots lose nothing."""
        return (0, 1, self.physics.model.layers - 1, self.physics.model.layers)

    def decode_rows(self) -> list[Row]:
        contexts = sorted({0, self.physics.model.max_context, *(context for _, context in self.decode_points)})
        rows = []
        for layers in self.layers:
            for batch in BATCHES:
                for context in contexts:
                    seconds = self.physics.decode_s(layers, batch, context)
                    origin = self.decode_origin(layers, batch, context, seconds)
                    place = {"layers": layers, "batch": batch, "context": context, "step_s": number(seconds)}
                    rows.append(named(self.physics.model) | place | columns(origin))
        return rows

    def decode_origin(self, layers: int, batch: int, context: int, seconds: float) -> Origin:
        full = layers == self.physics.model.layers
        if batch > 1:
            return self.batch if full else ANALYTIC
        if (layers, context) in self.decode_points:
            error = abs(seconds / self.decode_points[layers, context] - 1)
            if error <= PUBLISHED_TOLERANCE:
                return Origin("published", self.point_source, error)
        return self.single if full else self.split

    def prefill_rows(self) -> list[Row]:
        limit = self.physics.model.max_context
        prompts = sorted({*(prompt for prompt in PROMPTS if prompt <= limit), limit})
        rows = []
        for layers in self.layers:
            for prompt in prompts:
                seconds = self.physics.prefill_s(layers, prompt)
                origin = self.prefill if layers == self.physics.model.layers else ANALYTIC
                if layers == self.physics.model.layers and prompt in self.prefill_points:
                    error = abs(seconds / self.prefill_points[prompt] - 1)
                    if error <= PUBLISHED_TOLERANCE:
                        origin = Origin("published", self.point_source, error)
                place = {"layers": layers, "prompt_tokens": prompt, "prefill_s": number(seconds)}
                rows.append(named(self.physics.model) | place | columns(origin))
        return rows


def number(value: float) -> str:
    return f"{value:.6g}"


def named(model: hybrid.ModelShape) -> Row:
    return {"model": model.name, "quantization": model.quantization}


def columns(origin: Origin) -> Row:
    known = origin.error is not None and math.isfinite(origin.error)
    error = f"{origin.error:.3g}" if known else ""
    return {"kind": origin.kind, "source": origin.source, "error": error}


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = pd.DataFrame(list(rows)).to_csv(index=False, lineterminator="\n")
    path.write_text(text, encoding="utf-8", newline="\n")


class Builder:
    """Turns a calibration into the files of profiles/."""

    def __init__(self, published: Published, out: Path) -> None:
        self.published = published
        self.fits = Calibration(published)
        self.out = out
        self.host_rates = {host: self._host(host) for host in HOSTS}

    def _host(self, host: str) -> tuple[float, Origin]:
        """Effective DRAM bandwidth for CPU layers, and where it is from."""
        if host in self.fits.hosts:
            fit, source = self.fits.hosts[host]
            return fit.cpu_bandwidth_gb_s, Origin("fitted", source, fit.worst_error)
        names = [name for name in self.published.cpus.index if str(name).startswith(HOSTS[host][0])]
        return PEAK_SHARE * float(self.published.cpus.loc[names[0]].peak_bw_gb_s), ANALYTIC

    def cell(self, gpu: str, host: str, engine: str, model: hybrid.ModelShape) -> Cell:
        rates, single = self.fits.rates[gpu, engine]
        bandwidth_gb_s, host_origin = self.host_rates[host]
        link_gb_s = min(GPUS[gpu][1], HOSTS[host][4])
        host_rates = hybrid.HostRates(bandwidth_gb_s, HOSTS[host][5], link_gb_s, STREAM_SHARE * link_gb_s)
        sharpness, batch_error = self.fits.knees[engine]
        shape = hybrid.EngineShape(engine, sharpness, MICRO_BATCHES[engine])
        key = (model.name, model.quantization)
        prefill, prompt_points = self._prefill_origin(gpu, engine, *key), {}
        if engine == "llama.cpp":
            rates = self._llama_rates(gpu, rates, *key)
            if single.source == "xiongjiedai":
                single = Origin("fitted", single.source, self.fits.transfer)
                series = self.published.points(GPUS[gpu][0], "xiongjiedai", "prefill").get(key, [])
                prompt_points = {int(tokens): seconds for tokens, seconds in series}
        physics = hybrid.Hybrid(model, rates, host_rates, shape)
        physics, anchored, points = self._anchor(physics, self.fits.anchors[gpu, engine].get(key, []))
        if anchored is not None:
            single = dataclasses.replace(single, kind="fitted", error=anchored)
        if gpu == "rtx-5060-ti-16gb" and host == "i7-8700" and (host, *key) in self.fits.host_points:
            seconds = self.fits.host_points[host, *key]
            kv_s = physics.decode_s(0, 1, CONSUMER_CONTEXT) - physics.decode_s(0, 1, 0)
            scale = (seconds - kv_s) / physics.decode_s(0, 1, 0)
            physics = dataclasses.replace(physics, host=dataclasses.replace(host_rates, scale=scale))
            points[0, CONSUMER_CONTEXT] = seconds
        split = ANALYTIC
        if host_origin.kind == "fitted" and single.kind == "fitted":
            split = dataclasses.replace(host_origin, error=max(host_origin.error or 0, single.error or 0))
        measured_batch = (gpu, engine) == ("rtx-4090", "llama.cpp") or (gpu in SERVERS and engine != "llama.cpp")
        source = "pr7860" if engine == "llama.cpp" else "vidur"
        batch = ANALYTIC
        if measured_batch and single.kind == "fitted":
            batch = Origin("fitted", source, max(batch_error, single.error or 0))
        return Cell(physics, single, batch, split, prefill, points, prompt_points, single.source)

    def _llama_rates(self, gpu: str, rates: hybrid.GpuRates, name: str, quantization: str) -> hybrid.GpuRates:
        """Compute rates of llama.cpp: the model's own prefill, else the 8B model's of the same kind."""
        known = self.fits.prompt_rates
        kind = "FP16" if quantization == "FP16" else "Q4_K_M"
        own = known.get((gpu, name, quantization))
        borrowed = known.get((gpu, "Llama-3-8B", kind))
        if borrowed is None or math.isinf(borrowed[1]):
            borrowed = known[gpu, "Llama-3-8B", "Q4_K_M"]
        compute, attention, _ = own or borrowed
        return dataclasses.replace(
            rates,
            compute_tflops=borrowed[0] * self.fits.batch_gain,
            prefill_tflops=compute,
            attention_tflops=attention,
        )

    def _prefill_origin(self, gpu: str, engine: str, name: str, quantization: str) -> Origin:
        if engine == "vllm":
            return Origin("fitted", "aegaeon", self.fits.prompt_spread)
        if engine == "hf-transformers" or gpu == "rtx-5060-ti-16gb":
            return ANALYTIC
        own = self.fits.prompt_rates.get((gpu, name, quantization))
        return Origin("fitted", "xiongjiedai", own[2] if own else self.fits.prompt_transfer)

    def _anchor(
        self, physics: hybrid.Hybrid, series: list[tuple[float, float]]
    ) -> tuple[hybrid.Hybrid, float | None, dict[tuple[int, int], float]]:
        """Scale the GPU to published full-residency speeds; also the worst error left, and a point that is met."""
        if not series:
            return physics, None, {}
        model = physics.model
        base_s = physics.decode_s(model.layers, 1, 0)
        if len(series) == 1:
            context, seconds = series[0]
            start_s = seconds - (physics.decode_s(model.layers, 1, context) - base_s)
            gpu = dataclasses.replace(physics.gpu, scale=start_s / base_s)
        else:
            start_s, slope_s = hybrid.fit_line([point[0] for point in series], [point[1] for point in series])
            kv_gb_s = model.kv_bytes_per_token / slope_s / hybrid.GIGA
            gpu = dataclasses.replace(physics.gpu, scale=start_s / base_s, kv_bandwidth_gb_s=kv_gb_s)
        anchored = dataclasses.replace(physics, gpu=gpu)
        errors = [abs(anchored.decode_s(model.layers, 1, context) / seconds - 1) for context, seconds in series]
        close = [
            (int(context), seconds)
            for (context, seconds), error in zip(series, errors, strict=True)
            if error <= PUBLISHED_TOLERANCE and context <= model.max_context
        ]
        points = {(model.layers, context): seconds for context, seconds in close[-1:]}
        return anchored, max(errors), points

    def switch_row(self, gpu: str, engine: str, model: hybrid.ModelShape) -> Row:
        """What loading and dropping a model costs; profiles/README.md gives the reason for each number."""
        origin, kv = ANALYTIC, LLAMA_KV_GB_S
        if engine == "hf-transformers":
            paper = "rtx-5000-ada" if gpu == "rtx-5000-ada" else "rtx-a6000"
            fixed_s, rate_gb_s = RELOAD_LINES[paper]
            swap_s = self._paper_swap_s(paper, model.name) if gpu == paper else None
            kv = self._paper_kv_gb_s(model.name) if gpu == paper == "rtx-5000-ada" else A6000_KV_GB_S
            if gpu == paper:
                origin = Origin("fitted", "arxiv-2605.19593", RELOAD_ERRORS[paper])
            if swap_s is not None:
                fixed_s = swap_s - (model.layers * model.layer_bytes + model.head_bytes) / rate_gb_s / hybrid.GIGA
                origin = Origin("published", "arxiv-2605.19593", None)
            costs = (0.0, fixed_s, rate_gb_s, *kv, 0.0, WAKE_S)
        elif engine == "vllm":
            origin = Origin("fitted", "vllm-sleep", 0.25)
            costs = (VLLM_START_S, 0.0, VLLM_WAKE_GB_S, *(0.8 * GPUS[gpu][1],) * 2, FREE_S, WAKE_S)
        else:
            costs = (LLAMA_START_S, LLAMA_ALLOCATE_S, LLAMA_LOAD_GB_S, *kv, FREE_S, WAKE_S)
        return named(model) | dict(zip(SWITCH_COLUMNS, map(number, costs), strict=True)) | columns(origin)

    def _paper_rows(self, kind: str, gpu: str, name: str) -> Any:
        rows = self.published.loads
        chosen = rows.kind.str.startswith(kind) & rows.gpu.str.startswith(gpu) & rows.model.str.startswith(name)
        return rows[(rows.source == "2605.19593") & chosen.fillna(False)]

    def _paper_swap_s(self, gpu: str, name: str) -> float | None:
        rows = self._paper_rows("weight_swap", GPUS[gpu][0].rsplit(" ", 1)[0], name)
        return float(rows.seconds.iloc[0]) if len(rows) else None

    def _paper_kv_gb_s(self, name: str) -> tuple[float, float]:
        """Save and restore bandwidth of 5,000 tokens on the RTX 5000 Ada; the mean for models not measured."""
        pair = []
        for kind in ("kv_d2h", "kv_h2d"):
            rows = self._paper_rows(kind, "RTX 5000 Ada", name)
            rows = rows if len(rows) else self._paper_rows(kind, "RTX 5000 Ada", "")
            pair.append(float(rows.eff_gb_s.astype(float).mean()))
        return pair[0], pair[1]

    def write_specifications(self) -> None:
        """gpus.csv, nodes.csv and models.csv."""
        rows: list[Row] = []
        for slug, (name, link, price) in GPUS.items():
            spec = self.published.gpus.loc[name]
            row: Row = {
                "gpu": slug,
                "name": name,
                "memory_gib": int(spec.mem_gib),
                "h2d_gb_s": link,
                "d2h_gb_s": link,
            }
            cost = float(spec.usd_per_h_low) if price is None else price
            source = "gpu-specifications" if price is None else "gpu-specifications+assumed-price"
            rows.append(row | {"usd_per_hour": number(cost), "kind": "analytic", "source": source})
        write_csv(self.out / "gpus.csv", rows)
        rows = []
        for slug, (start, memory, disk, network, cap, _, memory_source) in HOSTS.items():
            bandwidth_gb_s, origin = self.host_rates[slug]
            name = next(str(cpu) for cpu in self.published.cpus.index if str(cpu).startswith(start))
            row = {"host": slug, "cpu": name, "memory_gib": memory}
            row |= {"cpu_bandwidth_gb_s": number(bandwidth_gb_s), "disk_gb_s": disk, "network_gb_s": network}
            source = "+".join(sorted({origin.source, memory_source}))
            row |= {"h2d_cap_gb_s": cap, "d2h_cap_gb_s": cap, "kind": origin.kind, "source": source}
            rows.append(row)
        write_csv(self.out / "nodes.csv", rows)
        rows = []
        for name in MODELS:
            for quantization in QUANTIZATIONS:
                shape = self.published.shape(name, quantization)
                row = named(shape) | {"layers": shape.layers, "layer_bytes": shape.layer_bytes}
                row |= {
                    "head_bytes": shape.head_bytes,
                    "kv_bytes_per_token_layer": shape.kv_bytes_per_token_layer,
                }
                kind = "published" if quantization == "FP16" else "analytic"
                row |= {"max_context": shape.max_context, "kind": kind, "source": "model-configurations"}
                rows.append(row)
        write_csv(self.out / "models.csv", rows)

    def write_table(self, gpu: str, host: str, engine: str) -> None:
        quantizations = QUANTIZATIONS if engine == "llama.cpp" else ("FP16",)
        keys = [(name, q) for name in MODELS for q in quantizations if (name, q) != ("Llama-3-70B", "FP16")]
        shapes = [self.published.shape(name, quantization) for name, quantization in keys]
        cells = [self.cell(gpu, host, engine, shape) for shape in shapes]
        folder = self.out / "tables" / f"{gpu}--{host}--{engine}"
        rows = {
            "decode": [row for cell in cells for row in cell.decode_rows()],
            "prefill": [row for cell in cells for row in cell.prefill_rows()],
            "switch": [self.switch_row(gpu, engine, shape) for shape in shapes],
        }
        for name, table in rows.items():
            write_csv(folder / f"{name}.csv", table)
        sources = sorted({str(row["source"]) for table in rows.values() for row in table})
        names = GPUS[gpu][0], HOSTS[host][0], engine
        description = "{} with {}, {}: step, prefill and switch times.".format(*names)
        header = {"gpu": gpu, "host": host, "engine": engine, "offload": "cpu", "description": description}
        text = yaml.safe_dump(header | {"sources": sources}, sort_keys=False, width=100)
        (folder / "table.yaml").write_text(text, encoding="utf-8", newline="\n")


def sweep_report(published: Published) -> list[str]:
    """How well time, taken as linear in the bytes on the GPU, predicts a sweep's interior from its two ends."""
    lines = []
    for source, build, wanted in SWEEPS:
        sweep = [speed for speed, model in published.sweep(source, build) if model == wanted]
        first, *interior, last = sorted(sweep, key=lambda speed: speed.gpu_bytes)
        slope = (last.seconds - first.seconds) / (last.gpu_bytes - first.gpu_bytes)
        guesses = [first.seconds + slope * (speed.gpu_bytes - first.gpu_bytes) for speed in interior]
        errors = [guess / speed.seconds - 1 for guess, speed in zip(guesses, interior, strict=True)]
        lines.append(f"from end points: {source} {build} " + " ".join(f"{error:+.1%}" for error in errors))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="Build profile tables from published measurements.")
    parser.add_argument("--published", type=Path, required=True, help="folder with gpus.csv, published_*.csv, ...")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, laid out like profiles/")
    options = parser.parse_args()
    missing = [name for name in PUBLISHED_FILES if not (options.published / name).is_file()]
    if missing:
        parser.error(f"--published {options.published}: {missing[0]} is missing; give the folder that holds it")
    builder = Builder(Published(options.published), options.out)
    builder.write_specifications()
    for gpu, host in PAIRS:
        builder.write_table(gpu, host, "llama.cpp")
    for gpu, host in TRANSFORMERS_PAIRS:
        builder.write_table(gpu, host, "hf-transformers")
    for gpu in SERVERS:
        builder.write_table(gpu, dict(PAIRS)[gpu], "vllm")
    print("\n".join([*builder.fits.report, *sweep_report(builder.published)]))


if __name__ == "__main__":
    main()
