"""The shipped tables: rates of `fits` for each model, grids by the laws, switch costs, and how each row is known.

`build` is the one way in. Which pairs of GPU and host are shipped, and what nobody measured, is at the top; the reasons
are in profiles/README.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sim.profiles.profile import Weights
from sim.profiling.fitting import Key, fit_line, predicted
from sim.profiling.grids import FittedGrid, Row, knots, places_of, table_rows
from sim.profiling.physics import GIGA, Prompts, Rates, Shape, Steps
from sim.profiling.publish import COLUMNS, ProfileTable, publish
from sim.profiling.published.fits import (
    ANALYTIC,
    CONSUMER_CONTEXT,
    SERVERS,
    SMALL,
    Calibration,
    Origin,
    computing,
    six_digits,
)
from sim.profiling.published.sources import GPUS, HOSTS, MODELS, QUANTIZATIONS, Published, lone_step, mean
from sim.profiling.switching import ASSUMED, cost_row

PEAK_SHARE = 0.65  # of DRAM peak where nobody measured: the fitted hosts reach 0.56 to 0.70
STREAM_SHARE = 0.72  # of the pinned link rate: 22.3 and 14.0 of 25 GB/s seen in ik255
# One direction of a handover between CPU and GPU: driver call, synchronisation and wake-up of the waiting side.
HANDOVER_S = 10e-6
# A CPU reads a layer's KV as far below its weight bandwidth as the GPU does under the same engine, at best at half.
CPU_KV_SHARE = 0.5
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
CONSUMER_PAIRS = (*PAIRS[3:6],)  # llama.cpp only
TABLES = (
    *((gpu, host, "llama.cpp") for gpu, host in PAIRS),
    *((gpu, host, "hf-transformers") for gpu, host in PAIRS if (gpu, host) not in CONSUMER_PAIRS),
    *((gpu, host, "vllm") for gpu, host in PAIRS if gpu in SERVERS),
)
MICRO_BATCHES = {"llama.cpp": 512, "hf-transformers": 1 << 20, "vllm": 2048}
STREAMING_PROMPTS = (256, 513, 1025)  # knots of `fill` that the shipped tables do not have
RELOAD_LINES = {"rtx-a6000": (1.81, 7.64), "rtx-5000-ada": (1.94, 5.49)}  # seconds, GB/s
RELOAD_ERRORS = {"rtx-a6000": 0.01, "rtx-5000-ada": 0.036}
A6000_KV_GB_S = (9.9, 15.9)  # from the published totals; the ranges are 9-10 and 13-16
VLLM_START_S, VLLM_WAKE_GB_S, VLLM_ERROR = 45.0, 22.9, 0.25
PUBLISHED_TOLERANCE = 0.02


def build(published: Path, out: Path) -> list[str]:
    """Write all tables into `out`; what there is to say about the fits. Raises ProfileError."""
    builder = Builder(Published(published))
    models = [builder.model_row((name, quantization)) for name in MODELS for quantization in QUANTIZATIONS]
    specifications = [*map(builder.gpu_row, GPUS), *map(builder.host_row, HOSTS)]
    publish(out, [builder.table(*name) for name in TABLES], specifications, models, replacing=True)
    return builder.fits.report


def relative_error(seconds: float, published: float) -> float:
    """0 where only rounding is left."""
    return round(abs(seconds / published - 1), 9)


@dataclass
class TableCell:
    """One model of one table: its rates, and how each part of it is known."""

    key: Key
    weights: Weights
    shape: Shape
    rates: Rates
    single: Origin  # decode of one sequence, all layers on the GPU
    prefill: Origin
    batch: Origin = ANALYTIC
    split: Origin = ANALYTIC  # decode of one sequence, layers on both sides
    decode_points: dict[tuple[int, int], float] = field(default_factory=dict)  # (layers, context): published seconds
    prefill_points: dict[int, float] = field(default_factory=dict)  # prompt tokens: published seconds

    def step_s(self, layers: int | None, context: float) -> float:
        return float(predicted(self.shape, self.rates, lone_step(self.shape, layers, context), "cpu")[0])

    def decode_rows(self) -> list[Row]:
        layers, batches, contexts = knots("decode", self.weights, ())
        contexts = tuple(sorted({*contexts, *(context for _, context in self.decode_points)}))

        def origin(place: tuple[float, ...], seconds: float) -> Origin:
            full = place[0] == self.shape.layers
            if place[1] > 1:
                return self.batch if full else ANALYTIC
            known = self.decode_points.get((int(place[0]), int(place[2])))
            return self._published(known, seconds) or (self.single if full else self.split)

        return self._rows((layers, batches, contexts), Steps, origin)

    def prefill_rows(self) -> list[Row]:
        layers, prompts = knots("prefill", self.weights, ())

        def origin(place: tuple[float, ...], seconds: float) -> Origin:
            if place[0] < self.shape.layers:
                return ANALYTIC
            return self._published(self.prefill_points.get(int(place[1])), seconds) or self.prefill

        axes = (layers, tuple(prompt for prompt in prompts if prompt not in STREAMING_PROMPTS))
        return self._rows(axes, Prompts, origin)

    def _published(self, known: float | None, seconds: float) -> Origin | None:
        error = math.inf if known is None else relative_error(seconds, known)
        return Origin("published", self.single.source, error) if error <= PUBLISHED_TOLERANCE else None

    def _rows(
        self,
        axes: tuple[tuple[float, ...], ...],
        kind: type[Steps | Prompts],
        origin: Callable[[tuple[float, ...], float], Origin],
    ) -> list[Row]:
        places = places_of(axes)
        seconds = predicted(self.shape, self.rates, kind.of(places, self.shape.layers), "cpu")
        origins = [origin(tuple(place), float(each)) for place, each in zip(places, seconds, strict=True)]
        numbers = six_digits(seconds)
        errors = [math.nan if each.error is None else each.error for each in origins]
        parts = (numbers, errors, [each.kind for each in origins], [each.source for each in origins])
        form = [len(axis) for axis in axes]
        seconds, error, kinds, sources = (np.array(part).reshape(form) for part in parts)
        return table_rows(self.key, FittedGrid(axes, seconds, error, kinds, sources.astype(object)))


class Builder:
    """Turns a calibration into tables and specifications."""

    def __init__(self, published: Published) -> None:
        self.published = published
        self.fits = Calibration(published)

    def _host(self, host: str) -> tuple[float, Origin]:
        """Effective DRAM bandwidth for CPU layers, and where it is from."""
        peak = PEAK_SHARE * float(self.published.cpus[self._cpu(host)]["peak_bw_gb_s"])
        rates, _, origin = self.fits.hosts.get(host, (None, None, ANALYTIC))
        return (peak if rates is None else rates.host_gb_s), origin

    def _cpu(self, host: str) -> str:
        return next(name for name in self.published.cpus if name.startswith(HOSTS[host].cpu))

    def table(self, gpu: str, host: str, engine: str) -> ProfileTable:
        quantizations = QUANTIZATIONS if engine == "llama.cpp" else ("FP16",)
        keys = [(name, each) for name in MODELS for each in quantizations if (name, each) != ("Llama-3-70B", "FP16")]
        cells = [self._cell(gpu, host, engine, key) for key in keys]
        files = {
            "decode": [row for cell in cells for row in cell.decode_rows()],
            "prefill": [row for cell in cells for row in cell.prefill_rows()],
            "switch": [self._switch_row(gpu, engine, key) for key in keys],
        }
        text = f"{GPUS[gpu].name} with {HOSTS[host].cpu}, {engine}: step, prefill and switch times."
        return ProfileTable.of((gpu, host, engine), "cpu", False, text, files)

    def _cell(self, gpu: str, host: str, engine: str, key: Key) -> TableCell:
        rates, single = self.fits.rates[gpu, engine]
        prefill, prompts = self._prefill_origin(gpu, engine, key), {}
        if engine == "llama.cpp":
            rates = self._llama_rates(gpu, rates, key)
            if single.source == "xiongjiedai":
                single = replace(single, error=self.fits.transfer)
                series = self.published.points(GPUS[gpu].name, "xiongjiedai", "prefill").get(key, [])
                prompts = {int(tokens): seconds for tokens, seconds in series}
        host_gb_s, host_origin = self._host(host)
        link_gb_s = min(GPUS[gpu].link_gb_s, HOSTS[host].cap_gb_s)
        sharpness, batch_error = self.fits.knees[engine]
        rates = replace(
            rates,
            host_gb_s=host_gb_s,
            host_kv_share=min(CPU_KV_SHARE, rates.kv_share),
            host_intensity=HOSTS[host].tflops / host_gb_s,
            host_prompt_intensity=HOSTS[host].tflops / host_gb_s,
            host_attention_share=1.0,
            hop_s=2 * HANDOVER_S,
            hop_sequence_s=2 * 4 * self.published.hidden(key[0]) / (link_gb_s * GIGA),  # FP32 activations
            stream_gb_s=STREAM_SHARE * link_gb_s,
            micro_batch_tokens=MICRO_BATCHES[engine],
            sharpness=sharpness,
        )
        shape = self.published.shape(key)
        cell = TableCell(key, self.published.weights(key), shape, rates, single, prefill, prefill_points=prompts)
        self._anchor(cell, self.fits.anchors[gpu, engine].get(key, []))
        self._anchor_host(cell, self.fits.host_points.get((host, key)) if gpu == "rtx-5060-ti-16gb" else None)
        if host_origin.kind == cell.single.kind == "fitted":
            cell.split = replace(host_origin, error=max(host_origin.error or 0, cell.single.error or 0))
        measured = (gpu, engine) == ("rtx-4090", "llama.cpp") or (gpu in SERVERS and engine != "llama.cpp")
        if measured and cell.single.kind == "fitted":
            source = "pr7860" if engine == "llama.cpp" else "vidur"
            cell.batch = Origin("fitted", source, max(batch_error, cell.single.error or 0))
        return cell

    def _llama_rates(self, gpu: str, rates: Rates, key: Key) -> Rates:
        """Compute rates of llama.cpp: the model's own prefill, else the 8B model's of the same kind."""
        known = self.fits.prompts
        borrowed = known.get((gpu, SMALL, "FP16" if key[1] == "FP16" else "Q4_K_M"))
        if borrowed is None or math.isinf(borrowed.attention_tflops):
            borrowed = known[gpu, SMALL, "Q4_K_M"]
        return computing(rates, borrowed.tflops * self.fits.batch_gain, known.get((gpu, *key), borrowed))

    def _prefill_origin(self, gpu: str, engine: str, key: Key) -> Origin:
        if engine == "vllm":
            return Origin("fitted", "aegaeon", self.fits.prompt_spread)
        if engine == "hf-transformers" or gpu == "rtx-5060-ti-16gb":
            return ANALYTIC
        own = self.fits.prompts.get((gpu, *key))
        return Origin("fitted", "xiongjiedai", own.error if own else self.fits.prompt_transfer)

    @staticmethod
    def _anchor(cell: TableCell, series: list[tuple[float, float]]) -> None:
        """Scale the GPU to published full-residency speeds; keep the worst error left, and a point that is met."""
        if not series:
            return
        rates, base_s = cell.rates, cell.step_s(None, 0)
        kv_share = rates.kv_share
        if len(series) == 1:
            context, seconds = series[0]
            start_s = seconds - (cell.step_s(None, context) - base_s)
        else:
            start_s, slope_s = fit_line(*zip(*series, strict=True))
            kv_share = cell.shape.layers * cell.shape.kv_bytes / slope_s / GIGA / rates.gpu_gb_s
        scale = start_s / base_s
        # What a sequence more computes is not scaled with what one reads.
        cell.rates = replace(
            rates,
            gpu_scale=scale,
            gpu_intensity=rates.gpu_intensity * scale,
            kv_share=kv_share,
            host_kv_share=min(CPU_KV_SHARE, kv_share),
        )
        errors = [relative_error(cell.step_s(None, context), seconds) for context, seconds in series]
        cell.single = replace(cell.single, kind="fitted", error=max(errors))
        for (context, seconds), error in zip(series, errors, strict=True):
            if error <= PUBLISHED_TOLERANCE and context <= cell.weights.max_context:
                cell.decode_points = {(cell.shape.layers, int(context)): seconds}

    @staticmethod
    def _anchor_host(cell: TableCell, seconds: float | None) -> None:
        """Scale the CPU to a published speed without the GPU."""
        if seconds is None:
            return
        base_s = cell.step_s(0, 0)
        scale = (seconds - (cell.step_s(0, CONSUMER_CONTEXT) - base_s)) / base_s
        rates = cell.rates
        cell.rates = replace(rates, host_scale=scale, host_intensity=rates.host_intensity * scale)
        cell.decode_points[0, CONSUMER_CONTEXT] = seconds

    def _switch_row(self, gpu: str, engine: str, key: Key) -> Row:
        """What loading and dropping a model costs; profiles/README.md gives the reason for each number."""
        costs, origin = dict(ASSUMED), ANALYTIC
        if engine == "vllm":
            kv_gb_s = 0.8 * GPUS[gpu].link_gb_s
            costs |= {"start_s": VLLM_START_S, "reload_fixed_s": 0.0, "reload_gb_s": VLLM_WAKE_GB_S}
            costs |= {"kv_save_gb_s": kv_gb_s, "kv_restore_gb_s": kv_gb_s}
            origin = Origin("fitted", "vllm-sleep", VLLM_ERROR)
        elif engine == "hf-transformers":
            paper = "rtx-5000-ada" if gpu == "rtx-5000-ada" else "rtx-a6000"
            fixed_s, rate_gb_s = RELOAD_LINES[paper]
            save_gb_s, restore_gb_s = self._paper_kv_gb_s(key[0]) if paper == "rtx-5000-ada" else A6000_KV_GB_S
            if gpu == paper:
                origin = Origin("fitted", "arxiv-2605.19593", RELOAD_ERRORS[paper])
                swap = self._paper_rows("weight_swap", GPUS[gpu].name.rsplit(" ", 1)[0], key[0])
                if swap:
                    size = self.published.weights(key).total_bytes
                    fixed_s = float(swap[0]["seconds"]) - size / rate_gb_s / GIGA
                    origin = Origin("published", "arxiv-2605.19593")
            costs |= {"start_s": 0.0, "reload_fixed_s": fixed_s, "reload_gb_s": rate_gb_s, "free_s": 0.0}
            costs |= {"kv_save_gb_s": save_gb_s, "kv_restore_gb_s": restore_gb_s}
        return cost_row(key, list(costs.values()), origin.kind, origin.source, origin.error)

    def _paper_rows(self, kind: str, gpu: str, name: str) -> list[dict[str, str]]:
        starts = {"kind": kind, "gpu": gpu, "model": name}
        return [
            row
            for row in self.published.loads
            if row["source"] == "2605.19593" and all(row[column].startswith(text) for column, text in starts.items())
        ]

    def _paper_kv_gb_s(self, name: str) -> tuple[float, float]:
        """Save and restore bandwidth of 5,000 tokens on the RTX 5000 Ada; the mean for models not measured."""
        pair = []
        for kind in ("kv_d2h", "kv_h2d"):
            rows = self._paper_rows(kind, "RTX 5000 Ada", name) or self._paper_rows(kind, "RTX 5000 Ada", "")
            pair.append(mean([float(row["eff_gb_s"]) for row in rows]))
        return pair[0], pair[1]

    def gpu_row(self, slug: str) -> tuple[str, Row]:
        gpu = GPUS[slug]
        spec, price, source = self.published.gpus[gpu.name], gpu.usd_per_hour, "gpu-specifications+assumed-price"
        if price is None:
            price, source = float(spec["usd_per_h_low"]), "gpu-specifications"
        row = {"gpu": slug, "name": gpu.name, "memory_gib": str(int(spec["mem_gib"]))}
        row |= dict.fromkeys(("h2d_gb_s", "d2h_gb_s"), str(gpu.link_gb_s))
        return "gpus.csv", row | {"usd_per_hour": f"{price:.6g}", "kind": "analytic", "source": source}

    def host_row(self, slug: str) -> tuple[str, Row]:
        host = HOSTS[slug]
        bandwidth_gb_s, origin = self._host(slug)
        row = {"host": slug, "cpu": self._cpu(slug), "memory_gib": str(host.memory_gib)}
        row |= {"cpu_bandwidth_gb_s": f"{bandwidth_gb_s:.6g}", "disk_gb_s": str(host.disk_gb_s)}
        row |= {"network_gb_s": str(host.network_gb_s)}
        row |= dict.fromkeys(("h2d_cap_gb_s", "d2h_cap_gb_s"), str(host.cap_gb_s))
        source = "+".join(sorted({origin.source, host.memory_source}))
        return "nodes.csv", row | {"kind": origin.kind, "source": source}

    def model_row(self, key: Key) -> Row:
        weights = self.published.weights(key)
        row = {name: str(getattr(weights, name)) for name in COLUMNS["models.csv"] if name not in ("kind", "source")}
        return row | {"kind": "published" if key[1] == "FP16" else "analytic", "source": "model-configurations"}
