"""Rates of GPUs, hosts and engines from published speeds, few of each: least squares of relative error, without priors.

Each fit is of the laws of `physics`; what differs from `fitting` is that a source gives one model and a few contexts,
so every group is fitted apart, by the terms that it can tell. Constants that nobody measured are at the top, each with
its reason; profiles/README.md says the same to users.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from sim.profiling.fitting import MeasuredSeries, fit_line, least_relative, predicted
from sim.profiling.grids import ANALYTIC_SOURCE
from sim.profiling.physics import GIGA, TERA, Array, Rates, Shape, Steps
from sim.profiling.published.sources import GPUS, MODELS, Points, Published, lone_step, mean

CONSUMER_CONTEXT = 128  # mean context of the 256-token tests of inventivehq
RUN_TOKENS, RUN_CONTEXT = 7000, 3500  # a run of arXiv 2605.19593, and its mean context
FP16_KV_SHARE = 0.25  # KV bandwidth of Transformers over specified memory bandwidth, where nobody measured
FP16_ATTENTION_SHARE = 0.3  # of dense FP16 peak in a fused attention kernel
LLAMA_SINGLE_S = 0.007617  # 8B Q4_K_M at context 0, fit_context.csv
SERVERS = ("a100-80gb", "h100")
SMALL = "Llama-3-8B"
UNKNOWN_A100 = "A100 80GB (form factor not stated)"
# A step that only reads: what the fits here add to, term by term.
READING = Rates(host_gb_s=math.inf, kv_share=math.inf, layer_s=0.0, launch_s=0.0, hop_s=0.0, base_s=0.0)


@dataclass(frozen=True)
class Origin:
    """Where a number comes from: kind, source id, relative error (None: unknown)."""

    kind: str
    source: str
    error: float | None = None


ANALYTIC = Origin("analytic", ANALYTIC_SOURCE)


def misses(series: Sequence[MeasuredSeries], rates: Rates) -> Array:
    """Relative errors of the laws at all points."""
    parts = [predicted(each.shape, rates, each.at, "cpu") / each.seconds - 1 for each in series]
    return np.concatenate(parts)


def six_digits(numbers: Array) -> list[float]:
    """What is more than that is where a search stopped, and how one kind of processor rounds."""
    return [float(f"{each:.6g}") for each in numbers]


def worst(errors: Array) -> float:
    return float(np.abs(errors).max())


def fit_speeds(series: Sequence[MeasuredSeries], with_overhead: bool = True) -> Rates:
    """Bandwidths of both sides and of KV, and seconds a layer: the laws of one sequence are linear in their inverses.

    A bandwidth is infinite when its term was not needed.
    """
    terms = []
    for each in series:
        shape, at = each.shape, each.at
        assert isinstance(at, Steps)
        on_gpu = at.layers * shape.layer_bytes + np.where(at.head_on_gpu, shape.head_bytes, 0.0)
        overhead = np.full(len(each), float(shape.layers if with_overhead else 0))
        kv_bytes = at.layers * at.context * shape.kv_bytes
        terms.append(np.column_stack([shape.read_bytes - on_gpu, on_gpu, overhead * GIGA, kv_bytes]) / GIGA)
    found = least_relative(np.concatenate(terms), np.concatenate([each.seconds for each in series]))
    host, gpu, kv = (1 / float(found[term]) if found[term] > 1e-12 else math.inf for term in (0, 1, 3))
    return replace(READING, host_gb_s=host, gpu_gb_s=gpu, layer_s=float(found[2]), kv_share=kv / gpu)


@dataclass(frozen=True)
class Knee:
    """A step from weight-bound to compute-bound by batch B: (t0^p + (c*(B-1))^p)^(1/p)."""

    single_s: float
    sequence_s: float
    sharpness: float
    mean_error: float


def fit_knee(
    batches: Sequence[float], seconds: Sequence[float], single_s: float | None = None, sharpness: float | None = None
) -> Knee:
    """Fit a knee to step times by batch, of least relative error; `single_s` and `sharpness` may be given."""
    others, measured = np.array(batches, dtype=float) - 1, np.array(seconds)

    def errors(unknown: Array, /) -> Array:
        first = single_s or measured.min() * math.exp(unknown[2])
        ratio = math.exp(unknown[0]) * others / first
        power = sharpness or math.exp(unknown[1])
        return np.asarray(first * (1 + ratio**power) ** (1 / power) / measured - 1)

    start = [math.log(measured[-1] / batches[-1]), math.log(3.0), 0.0]
    found = least_squares(errors, start, bounds=([-30, 0, -1], [5, math.log(8.0), 1])).x
    return Knee(
        single_s=float(single_s or measured.min() * math.exp(found[2])),
        sequence_s=math.exp(found[0]),
        sharpness=sharpness or math.exp(found[1]),
        mean_error=float(np.abs(errors(found)).mean()),
    )


@dataclass(frozen=True)
class Compute:
    """TFLOP/s in prompts: of matrix products, of attention (infinite where speed rose with length), and the error."""

    tflops: float
    attention_tflops: float
    error: float = math.nan


def fit_prompt(shape: Shape, series: Sequence[tuple[float, float]]) -> Compute:
    """Rates of a model's (prompt tokens, seconds), of least relative error: a*P + b*P^2 of pure compute."""
    tokens, seconds = (np.array(column) for column in zip(*series, strict=True))
    design = np.column_stack([shape.operations * tokens, shape.layers * shape.attention_operations(tokens)]) / TERA
    inverse = least_relative(design, seconds)
    error = worst(design @ inverse / seconds - 1)
    return Compute(1 / float(inverse[0]), 1 / float(inverse[1]) if inverse[1] else math.inf, error)


def computing(rates: Rates, batch_tflops: float, prompt: Compute) -> Rates:
    """The rates with those of matrix products in decode batches and of prompts on the GPU."""
    return replace(
        rates,
        gpu_intensity=batch_tflops / rates.gpu_gb_s,
        prompt_intensity=prompt.tflops / rates.gpu_gb_s,
        attention_share=prompt.attention_tflops / prompt.tflops,
    )


class Calibration:
    """All rates, fitted once, by (GPU, engine). `report`: how well; `anchors`: speeds that models are held to."""

    def __init__(self, published: Published) -> None:
        self.published = published
        self.report: list[str] = []
        self.anchors: dict[tuple[str, str], Points] = {}
        self.rates: dict[tuple[str, str], tuple[Rates, Origin]] = {}
        self._fit_hosts()
        self._fit_knees()
        self._fit_prompts()
        self._fit_fp16_prompts()
        self._fit_llama()
        self._fit_vllm()
        self._fit_transformers()

    def note(self, text: str) -> None:
        self.report.append(text)

    def _fit_hosts(self) -> None:
        """CPU bandwidths; of the consumer machine also the GPU's rates, and what its models take without the GPU."""
        sweep = self.published.sweep("inventivehq")
        chosen = [each for model, each in sweep if model == "Qwen2.5-14B" or each.at.head_on_gpu.all()]
        both_builds = [each for _, each in self.published.sweep("ik255")]
        self.hosts: dict[str, tuple[Rates, Array, Origin]] = {}
        for host, source, points in (("i7-8700", "inventivehq", chosen), ("i5-13600k", "ik255", both_builds)):
            rates = fit_speeds(points, with_overhead=False)
            errors = misses(points, rates)
            self.hosts[host] = (rates, errors, Origin("fitted", source, worst(errors)))
            speeds = f"CPU {rates.host_gb_s:.1f}, GPU {rates.gpu_gb_s:.0f} GB/s"
            self.note(f"host {host} ({source}): {speeds}, worst {worst(errors):.1%}")
        self.consumer_full_s = next(
            float(each.seconds[0]) for model, each in sweep if model == "Qwen2.5-14B" and each.at.head_on_gpu.all()
        )
        self.host_points = {
            ("i7-8700", (model, "Q4_K_M")): float(each.seconds[0])
            for model, each in sweep
            if model in MODELS and not each.at.layers.any()
        }

    def _fit_knees(self) -> None:
        """One sharpness per kind of engine: the median of its groups, which are then fitted again with it."""
        rows = self.published.batches
        llama = [[row for row in rows if row["source"] == source] for source in ("pr7676", "pr7860")]
        served = [row for row in rows if row["source"] == "vidur"]
        names = sorted({(row["gpu"], row["model"]) for row in served})
        servers = [[row for row in served if (row["gpu"], row["model"]) == name] for name in names]
        self.knees, found = {}, {}
        for engine, groups, single_s in (("llama.cpp", llama, LLAMA_SINGLE_S), ("vllm", servers, None)):
            series = [
                (
                    [float(row["concurrency_or_batch"]) for row in group],
                    [float(row["itl_ms"]) / 1e3 for row in group],
                    single_s,
                )
                for group in groups
            ]
            free = sorted(fit_knee(*part).sharpness for part in series)
            middle = free[len(free) // 2]
            found[engine] = [fit_knee(*part, middle) for part in series]
            self.knees[engine] = (middle, max(knee.mean_error for knee in found[engine]))
        self.llama_sequence_s = mean([knee.sequence_s for knee in found["llama.cpp"]])
        boards = {"A100": "A100 SXM 80GB", "H100": "H100 SXM 80GB", "A40 ": "A40 48GB"}
        shares = [
            self.published.shape((model, "FP16")).operations
            / (knee.sequence_s * TERA * self.published.peak_tflops(boards[gpu[:4]]))
            for (gpu, model), knee in zip(names, found["vllm"], strict=True)
        ]
        self.batch_share = mean(shares)
        self.note(f"knees {self.knees}, FP16 batch share of peak {self.batch_share:.2f}")

    def _fit_prompts(self) -> None:
        """Prefill rates of llama.cpp, per GPU and model where they were published."""
        self.prompts: dict[tuple[str, str, str], Compute] = {}
        for gpu, known in GPUS.items():
            for key, series in self.published.points(known.name, "xiongjiedai", "prefill").items():
                self.prompts[(gpu, *key)] = fit_prompt(self.published.shape(key), series)
        gains = [
            each.tflops / self.prompts[gpu, SMALL, quantization].tflops - 1
            for (gpu, model, quantization), each in self.prompts.items()
            if (model, quantization) == ("Llama-3-70B", "Q4_K_M")
        ]
        self.prompt_transfer = max(abs(gain) for gain in gains)
        own = self.prompts["rtx-4090", SMALL, "Q4_K_M"]
        # The builds of the batch rows compute faster than those of the single-sequence rows.
        operations = self.published.shape((SMALL, "Q4_K_M")).operations / TERA
        self.batch_gain = operations / own.tflops / self.llama_sequence_s
        ratio = self.peak("rtx-5060-ti-16gb") / self.peak("rtx-4090")
        borrowed = Compute(own.tflops * ratio, own.attention_tflops * ratio)
        self.prompts["rtx-5060-ti-16gb", SMALL, "Q4_K_M"] = borrowed
        self.note(f"prefill rate, 70B over 8B: {self.prompt_transfer:+.1%}; batch gain {self.batch_gain:.2f}")

    def peak(self, gpu: str) -> float:
        """Dense FP16 peak that FP16 engines take a share of, TFLOP/s."""
        return self.published.peak_tflops(GPUS[gpu].peak_name or GPUS[gpu].name)

    def _fit_fp16_prompts(self) -> None:
        """Prefill of vLLM-like engines on the A100 and the H100, as a share of peak."""
        shares = []
        for gpu, slug in (("a100", "a100-80gb"), ("h100", "h100")):
            peak = self.peak(slug) * TERA
            for row in self.published.joint:
                prompt = float(row["input_tokens_per_sequence"])
                if (row["gpu"], row["batch"]) != (gpu, "1") or prompt not in (1024, 2048):
                    continue
                if row["model"] in self.published.models:
                    shape = self.published.shape((row["model"], "FP16"))
                    attention_s = shape.layers * shape.attention_operations(prompt) / (FP16_ATTENTION_SHARE * peak)
                    rest_s = float(row["prefill_ms_p50"]) / 1e3 - attention_s
                    shares.append(shape.operations * prompt / rest_s / peak)
        self.prompt_share = mean(shares)
        self.prompt_spread = max(abs(share / self.prompt_share - 1) for share in shares)
        self.note(f"FP16 prefill {self.prompt_share:.2f} of peak, worst {self.prompt_spread:.1%}")

    def _fit_llama(self) -> None:
        transfers = []
        large = ("Llama-3-70B", "Q4_K_M")
        for gpu, known in GPUS.items():
            points = self.published.points(known.name, "xiongjiedai", "decode")
            if not points:
                continue
            if large in points:
                small = {key: value for key, value in points.items() if key[0] == SMALL}
                shape, half = self.published.shape(large), fit_speeds(self.published.steps(small))
                guess_s = float(predicted(shape, half, lone_step(shape), "cpu")[0])
                transfers.append(guess_s / fit_line(*zip(*points[large], strict=True))[0] - 1)
            self._keep_fit(gpu, "llama.cpp", points, "xiongjiedai")
        gpu = "rtx-5060-ti-16gb"
        rates, errors, origin = self.hosts["i7-8700"]
        rates = replace(rates, kv_share=0.5 * self.published.bandwidth_gb_s(gpu) / rates.gpu_gb_s)
        self._keep(gpu, "llama.cpp", rates, origin, errors)
        self.anchors[gpu, "llama.cpp"] = {("Qwen2.5-14B", "Q4_K_M"): [(CONSUMER_CONTEXT, self.consumer_full_s)]}
        self.transfer = max(abs(error) for error in transfers)
        self.note("decode of 70B from 8B rows: " + " ".join(f"{error:+.1%}" for error in transfers))

    def _keep_fit(self, gpu: str, engine: str, points: Points, source: str) -> None:
        """Fit and record full-residency speeds, which the models then are anchored to."""
        series = self.published.steps(points)
        rates = fit_speeds(series)
        errors = misses(series, rates)
        self._keep(gpu, engine, rates, Origin("fitted", source, worst(errors)), errors)
        self.anchors[gpu, engine] = points

    def _keep(self, gpu: str, engine: str, rates: Rates, origin: Origin, errors: Array | None = None) -> None:
        """Record rates; FP16 engines compute at their share of peak, llama.cpp at its prefill rates (set later)."""
        peak = self.peak(gpu)
        prompt = Compute(self.prompt_share * peak, FP16_ATTENTION_SHARE * peak)
        self.rates[gpu, engine] = (computing(rates, self.batch_share * peak, prompt), origin)
        if errors is not None:
            self.note(
                f"{engine} {gpu} ({origin.source}): {rates.gpu_gb_s:.0f} GB/s, {rates.layer_s * 1e6:.0f} us/layer, "
                f"KV {rates.kv_share * rates.gpu_gb_s:.0f} GB/s, mean {np.abs(errors).mean():.1%}, "
                f"worst {origin.error:.1%}"
            )

    def _fit_vllm(self) -> None:
        points = self.published.points(UNKNOWN_A100, "qwen25", "decode", "vLLM")
        self._keep_fit("a100-80gb", "vllm", points, "qwen25")
        singles = [
            row for row in self.published.batches if row["source"] == "vidur" and row["concurrency_or_batch"] == "1"
        ]
        bare, errors = {}, {}  # without attention and sampling
        for gpu in ("A100", "H100"):
            rows = [row for row in singles if row["gpu"].startswith(gpu)]
            series = self.published.steps({(row["model"], "FP16"): [(0.0, float(row["itl_ms"]) / 1e3)] for row in rows})
            bare[gpu] = fit_speeds(series)
            errors[gpu] = misses(series, bare[gpu])
        shapes = [self.published.shape(key) for key in points]
        guess_s = sum(float(predicted(each, bare["A100"], lone_step(each), "cpu")[0]) for each in shapes)
        # What attention and sampling cost on the A100, as a share.
        missing = abs(guess_s / sum(series[0][1] for series in points.values()) - 1)
        spec = {gpu: self.published.bandwidth_gb_s(gpu) for gpu in SERVERS}
        served = self.rates["a100-80gb", "vllm"][0]
        kv_gb_s = served.kv_share * served.gpu_gb_s * 3350 / spec["a100-80gb"]
        rates = replace(bare["H100"], kv_share=kv_gb_s / bare["H100"].gpu_gb_s)
        self._keep("h100", "vllm", rates, Origin("fitted", "vidur", missing), errors["H100"])
        self.anchors["h100", "vllm"] = {}

    def _fit_transformers(self) -> None:
        """Launch time per layer and share of memory bandwidth: six baselines of the paper, then the A100 rows."""
        engine, spec = "hf-transformers", self.published.bandwidth_gb_s
        papers: dict[str, Points] = {"rtx-a6000": {}, "rtx-5000-ada": {}}
        for row in self.published.loads:
            slug = {"RTX A6000": "rtx-a6000", "RTX 5000 Ada": "rtx-5000-ada"}.get(row["gpu"])
            if slug is not None and row["kind"] == "decode_baseline_tok_s (derived)":
                step_s = float(row["seconds"]) / RUN_TOKENS
                papers[slug][row["model"].removesuffix(" FP16"), "FP16"] = [(RUN_CONTEXT, step_s)]
        paper_steps = {gpu: self.published.steps(points) for gpu, points in papers.items()}

        def rates(gpu: str, unknown: Any, kv_gb_s: float) -> Rates:
            launch_ms, share, power = unknown
            kv_share = kv_gb_s / (share * spec(gpu))
            return replace(
                READING, launch_s=launch_ms / 1e3, gpu_gb_s=share * spec(gpu), kv_share=kv_share, sharpness=power
            )

        def paper_errors(unknown: Any, /) -> Array:
            parts = [
                misses(steps, rates(gpu, unknown, FP16_KV_SHARE * spec(gpu))) for gpu, steps in paper_steps.items()
            ]
            return np.concatenate(parts)

        found = six_digits(least_squares(paper_errors, [0.5, 0.8, 3.0], bounds=([0.1, 0.3, 1.0], [2.0, 1.0, 8.0])).x)
        launch_ms, share, sharpness = found
        off = worst(paper_errors(found))
        self.knees[engine] = (sharpness, self.knees["vllm"][1])
        self.note(f"hf launch {launch_ms:.2f} ms/layer, {share:.2f} of bandwidth, p {sharpness:.1f}, worst {off:.1%}")
        points = self.published.points(UNKNOWN_A100, "qwen25", "decode", "HF")
        series = self.published.steps(points)

        def server_errors(unknown: Any, /) -> Array:
            return misses(series, rates("a100-80gb", (unknown[0], share, sharpness), unknown[1]))

        server = six_digits(least_squares(server_errors, [0.8, 70.0], bounds=([0.1, 10.0], [3.0, 2000.0])).x)
        spread = worst(server_errors(server))
        self.note(f"hf A100 launch {server[0]:.2f} ms/layer, KV {server[1]:.0f} GB/s, worst {spread:.1%}")
        origins = {gpu: Origin("fitted", "arxiv-2605.19593", off) for gpu in papers}
        origins["a100-80gb"] = Origin("fitted", "qwen25", spread)
        for gpu in GPUS:
            if gpu == "rtx-5060-ti-16gb":
                continue
            kv_gb_s, launch = FP16_KV_SHARE * spec(gpu), launch_ms
            if gpu in SERVERS:
                kv_gb_s = float(server[1]) * spec(gpu) / spec("a100-80gb")
            if not gpu.startswith("rtx-"):
                launch = float(server[0])
            own = rates(gpu, (launch, share, sharpness), kv_gb_s)
            self._keep(gpu, engine, own, origins.get(gpu, ANALYTIC))
            self.anchors[gpu, engine] = points if gpu == "a100-80gb" else papers.get(gpu, {})
