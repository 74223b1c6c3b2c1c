"""Rates of GPUs, hosts and engines, fitted to published measurements; the first half of build_profiles.py.

Reads gpus.csv, cpus.csv, models.csv and published_*.csv of one folder, knows nothing of the tables' layout. Constants
that nobody measured are at the top, each with its reason; profiles/README.md says the same to users.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.optimize import least_squares

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from sim.profiling import hybrid  # noqa: E402 (the project may not be installed)

# slug: (name in the published files, link GB/s per direction, $/h where none was found)
GPUS: dict[str, tuple[str, float, float | None]] = {
    "rtx-a6000": ("RTX A6000 48GB", 25.0, None),
    "rtx-5000-ada": ("RTX 5000 Ada 32GB", 25.0, 0.7),
    "rtx-4090": ("RTX 4090 24GB", 25.0, None),
    "rtx-5060-ti-16gb": ("RTX 5060 Ti 16GB", 26.0, 0.2),
    "l40s": ("L40S 48GB", 25.0, None),
    "a100-80gb": ("A100 PCIe 80GB", 25.0, None),
    "h100": ("H100 PCIe 80GB", 53.0, None),
}
MODELS = ("Qwen2.5-3B", "Llama-3-8B", "Qwen3-8B", "Qwen2.5-14B", "Qwen3-32B", "Llama-3-70B", "Llama-3.2-1B")
CONTEXT_LIMITS = {"Llama-3-70B": 8192}
SAME_SHAPE = {
    "Qwen2.5-Coder-14B": "Qwen2.5-14B",
    "Qwen2.5-Coder-7B": "Qwen2.5-7B",
    "Qwen2.5-Coder-3B": "Qwen2.5-3B",
    "Qwen2.5-Coder-1.5B": "Qwen2.5-1.5B",
    "Llama-3.1-8B": "Llama-3-8B",
    "llama2-13b": "Llama-2-13b-hf",
    "qwen2.5-7b": "Qwen2.5-7B",
    "llama-7b-hf": "Llama-2-7b-hf",
    "llama2-7b-chat": "Llama-2-7b-hf",
    "Meta-Llama-3-8B": "Llama-3-8B",
}
QUANTIZATIONS = ("FP16", "Q8_0", "Q4_K_M")
CONSUMER_CONTEXT = 128  # mean context of the 256-token tests of inventivehq
RUN_CONTEXT = 3500  # mean context of the 7,000-token runs of arXiv 2605.19593
FP16_KV_SHARE = 0.25  # KV bandwidth of Transformers over specified memory bandwidth, where nobody measured
FP16_ATTENTION_SHARE = 0.3  # of dense FP16 peak in a fused attention kernel
Points = dict[tuple[str, str], list[tuple[float, float]]]  # (model, quantization): [(context, seconds)]


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a number comes from: kind, source id, relative error (None: unknown)."""

    kind: str
    source: str
    error: float | None = None


class Published:
    """The published measurements, as the shapes and points that the fits need."""

    def __init__(self, folder: Path) -> None:
        self.gpus: Any = pd.read_csv(folder / "gpus.csv").set_index("gpu")
        self.cpus: Any = pd.read_csv(folder / "cpus.csv").set_index("cpu")
        self.models: Any = pd.read_csv(folder / "models.csv").set_index("model")
        self.speeds: Any = pd.read_csv(folder / "published_residency.csv")
        self.loads: Any = pd.read_csv(folder / "published_load.csv")
        self.batches: Any = pd.read_csv(folder / "published_batch.csv")
        self.joint: Any = pd.read_csv(folder / "published_batch_context.csv")
        self.speeds["quant"] = self.speeds["quant"].replace({"F16": "FP16", "BF16": "FP16"})
        self.speeds["model"] = self.speeds["model"].replace(SAME_SHAPE)
        self.joint["model"] = self.joint["model"].replace(SAME_SHAPE)

    def shape(self, name: str, quantization: str) -> hybrid.ModelShape:
        """The weights of a model: FP16 counts everything, a GGUF quantisation leaves the embedding on the host."""
        row = self.models.loc["Llama-3.1-70B" if name == "Llama-3-70B" else name]
        layers, hidden, table = int(row.n_layers), int(row.hidden), int(row.vocab) * int(row.hidden)
        layer_parameters = (row.bytes_fp16 / 2 - table * (1 if row.tied_embeddings else 2)) // layers
        if quantization == "Q4_K_M":
            layer_bytes, head = int(row.q4km_bytes_per_layer), int(row.q4km_output_head_bytes)
        elif quantization == "Q8_0":  # blocks of 32 bytes and a 2-byte scale
            layer_bytes, head = int(layer_parameters * 34 / 32), table * 34 // 32
        else:
            layer_bytes, head = int(layer_parameters * 2), table * 2
        full = quantization == "FP16"
        return hybrid.ModelShape(
            name=name,
            quantization=quantization,
            layers=layers,
            layer_bytes=layer_bytes,
            head_bytes=int(row.bytes_fp16) - layers * layer_bytes if full else head,
            head_read_bytes=head,
            layer_parameters=float(layer_parameters),
            head_parameters=float(table),
            hidden=hidden,
            attention_width=int(row.heads) * int(row.head_dim),
            kv_bytes_per_token_layer=int(row.kv_bytes_per_token_fp16) // layers,
            max_context=CONTEXT_LIMITS.get(name, int(row.max_context)),
        )

    def points(self, gpu: str, source: str, metric: str, software: str = "") -> Points:
        """Full-residency points: context and step seconds, or prompt tokens and prefill seconds."""
        chosen = self.speeds[
            (self.speeds.gpu == gpu)
            & (self.speeds.source == source)
            & (self.speeds.metric == metric)
            & (self.speeds.exec_mode == "full_gpu")
            & self.speeds.software.str.startswith(software)
        ]
        result: Points = {}
        for row in chosen.itertuples():
            key = (str(row.model), str(row.quant))
            if row.quant not in QUANTIZATIONS:
                continue
            at = float(row.prompt_tokens if metric == "prefill" else row.context_depth)
            work = at if metric == "prefill" else 1.0
            result.setdefault(key, []).append((at, work / float(row.tok_s)))
        return result

    def step_speeds(self, points: Points) -> list[hybrid.Speed]:
        result = []
        for (model, quantization), series in points.items():
            shape = self.shape(model, quantization)
            for context, seconds in series:
                kv_bytes = context * shape.kv_bytes_per_token
                result.append(hybrid.Speed(0.0, shape.read_bytes, shape.layers, kv_bytes, seconds))
        return result

    def sweep(self, source: str, note: str = "") -> list[tuple[hybrid.Speed, str]]:
        """Single-sequence decode steps at any residency, with the model's name."""
        rows = self.speeds[(self.speeds.source == source) & (self.speeds.metric == "decode")]
        if note:
            rows = rows[rows.note.fillna("").str.startswith(note)]
        result = []
        for row in rows.itertuples():
            if row.model not in self.models.index or "A3B" in str(row.model):
                continue
            known = self.shape(str(row.model), "Q4_K_M")
            # Another quantisation: the file's size, with layers and head in the proportions of Q4_K_M.
            total = float(self.models.loc[row.model].bytes_q4_k_m)
            other = 1.0 if row.quant in ("Q4_K_M", "Q4_0") else float(row.weights_gb) * 1e9 / total
            layers = 0 if row.gpu_layers == "all" else int(row.gpu_layers)
            full = row.exec_mode == "full_gpu"
            gpu_bytes = other * (known.read_bytes if full else layers * known.layer_bytes)
            cpu_bytes = other * known.read_bytes - gpu_bytes
            speed = hybrid.Speed(cpu_bytes, gpu_bytes, known.layers, 0.0, 1 / float(row.tok_s))
            result.append((speed, str(row.model)))
        return result


class Calibration:
    """All rates, fitted once, by (GPU, engine); the builder turns them into the physics of each table."""

    def __init__(self, published: Published) -> None:
        self.published = published
        self.report: list[str] = []
        self.anchors: dict[tuple[str, str], Points] = {}
        self.rates: dict[tuple[str, str], tuple[hybrid.GpuRates, Origin]] = {}
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
        sweep = self.published.sweep("inventivehq")
        chosen = [speed for speed, model in sweep if model == "Qwen2.5-14B" or speed.cpu_bytes == 0]
        self.consumer = hybrid.fit_speeds(chosen, with_overhead=False)
        both_builds = hybrid.fit_speeds([speed for speed, _ in self.published.sweep("ik255")], with_overhead=False)
        self.hosts = {"i7-8700": (self.consumer, "inventivehq"), "i5-13600k": (both_builds, "ik255")}
        for host, (fit, source) in self.hosts.items():
            text = f"CPU {fit.cpu_bandwidth_gb_s:.1f}, GPU {fit.bandwidth_gb_s:.0f} GB/s, worst {fit.worst_error:.1%}"
            self.note(f"host {host} ({source}): {text}")
        full = [s for s, model in sweep if model == "Qwen2.5-14B" and s.cpu_bytes == 0]
        self.consumer_full_s = full[0].seconds
        self.host_points = {
            ("i7-8700", model, "Q4_K_M"): speed.seconds
            for speed, model in sweep
            if speed.gpu_bytes == 0 and model in MODELS
        }

    def _fit_knees(self) -> None:
        """One sharpness per kind of engine: the median of its groups, which are then fitted again with it."""
        rows = self.published.batches
        llama = rows[rows.source.isin(["pr7860", "pr7676"])].groupby("source")
        llama_single_s = 0.007617  # 8B Q4_K_M at context 0, fit_context.csv
        servers = rows[rows.source == "vidur"].groupby(["gpu", "model"])
        self.knees, found = {}, {}
        for engine, groups, single_s in (("llama.cpp", llama, llama_single_s), ("vllm", servers, None)):
            series = [
                (list(group.concurrency_or_batch.astype(float)), list(group.itl_ms / 1e3), single_s)
                for _, group in groups
            ]
            free = sorted(hybrid.fit_knee(*part).sharpness for part in series)
            found[engine] = [hybrid.fit_knee(*part, free[len(free) // 2]) for part in series]
            self.knees[engine] = (free[len(free) // 2], max(knee.mean_error for knee in found[engine]))
        self.llama_sequence_s = sum(knee.sequence_s for knee in found["llama.cpp"]) / len(llama)
        shares = []
        for ((gpu, model), _), knee in zip(servers, found["vllm"], strict=True):
            shape = self.published.shape(SAME_SHAPE.get(model, model), "FP16")
            peak = self._peak({"A100": "A100 SXM 80GB", "H100": "H100 SXM 80GB", "A40 ": "A40 48GB"}[gpu[:4]])
            shares.append(shape.layer_operations / knee.sequence_s / hybrid.TERA / peak)
        self.batch_share = sum(shares) / len(shares)
        self.note(f"knees {self.knees}, FP16 batch share of peak {self.batch_share:.2f}")

    def _peak(self, name: str) -> float:
        return float(self.published.gpus.loc[name].fp16_tensor_dense_tflops_fp32acc)

    def _fit_prompts(self) -> None:
        """Prefill rates: llama.cpp per GPU and quantisation from the 8B model, FP16 engines as a share of peak."""
        self.prompt_rates: dict[tuple[str, str, str], tuple[float, float, float]] = {}
        for gpu, (name, _, _) in GPUS.items():
            for (model, quantization), series in sorted(
                self.published.points(name, "xiongjiedai", "prefill").items(), reverse=True
            ):
                shape = self.published.shape(model, quantization)
                tokens, seconds = [point[0] for point in series], [point[1] for point in series]
                linear_s, square_s = hybrid.fit_prompt(tokens, seconds)
                attention = 2 * shape.attention_width * shape.layers / hybrid.TERA
                worst = max(abs((linear_s * p + square_s * p * p) / t - 1) for p, t in series)
                self.prompt_rates[gpu, model, quantization] = (
                    shape.layer_operations / hybrid.TERA / linear_s,
                    attention / square_s if square_s else math.inf,  # where speed rose with length
                    worst,
                )
        rates, model = self.prompt_rates, "Llama-3-8B"
        gains = [
            rates[gpu, "Llama-3-70B", "Q4_K_M"][0] / rates[gpu, model, "Q4_K_M"][0] - 1
            for gpu in GPUS
            if (gpu, "Llama-3-70B", "Q4_K_M") in rates
        ]
        self.prompt_transfer = max(abs(gain) for gain in gains)
        operations = self.published.shape(model, "Q4_K_M").layer_operations / hybrid.TERA
        compute, attention, _ = rates["rtx-4090", model, "Q4_K_M"]
        # The builds of the batch rows compute faster than those of the single-sequence rows.
        self.batch_gain = operations / compute / self.llama_sequence_s
        ratio = self._peak("RTX 5060 Ti 16GB") / self._peak("RTX 4090 24GB")
        rates["rtx-5060-ti-16gb", model, "Q4_K_M"] = (compute * ratio, attention * ratio, math.nan)
        self.note(f"prefill rate, 70B over 8B: {self.prompt_transfer:+.1%}; batch gain {self.batch_gain:.2f}")

    def _fit_fp16_prompts(self) -> None:
        """Prefill of vLLM-like engines on the A100 and the H100, as a share of peak."""
        shares = []
        for gpu, name in (("a100", "A100 SXM 80GB"), ("h100", "H100 SXM 80GB")):
            rows, peak = self.published.joint, self._peak(name) * hybrid.TERA
            rows = rows[(rows.gpu == gpu) & (rows.batch == 1) & rows.model.isin(self.published.models.index)]
            for row in rows[rows.input_tokens_per_sequence.isin([1024, 2048])].itertuples():
                shape = self.published.shape(str(row.model), "FP16")
                prompt = float(row.input_tokens_per_sequence)
                squared = 2 * shape.attention_width * shape.layers * prompt**2
                rest_s = float(row.prefill_ms_p50) / 1e3 - squared / (FP16_ATTENTION_SHARE * peak)
                shares.append(shape.layer_operations * prompt / rest_s / peak)
        self.prompt_share = sum(shares) / len(shares)
        self.prompt_spread = max(abs(share / self.prompt_share - 1) for share in shares)
        self.note(f"FP16 prefill {self.prompt_share:.2f} of peak, worst {self.prompt_spread:.1%}")

    def _fit_llama(self) -> None:
        transfers = []
        for gpu, (name, _, _) in GPUS.items():
            points = self.published.points(name, "xiongjiedai", "decode")
            if not points:
                continue
            fit = hybrid.fit_speeds(self.published.step_speeds(points))
            small = {key: value for key, value in points.items() if key[0] == "Llama-3-8B"}
            if len(small) < len(points):
                half = hybrid.fit_speeds(self.published.step_speeds(small))
                shape = self.published.shape("Llama-3-70B", "Q4_K_M")
                series = points["Llama-3-70B", "Q4_K_M"]
                start_s = hybrid.fit_line([p for p, _ in series], [t for _, t in series])[0]
                guess_s = shape.read_bytes / half.bandwidth_gb_s / hybrid.GIGA
                guess_s += shape.layers * half.layer_overhead_s
                transfers.append(guess_s / start_s - 1)
            self._keep(gpu, "llama.cpp", fit, points, "xiongjiedai")
        gpu, kv_gb_s = "rtx-5060-ti-16gb", 0.5 * self._spec("rtx-5060-ti-16gb")
        fit = dataclasses.replace(self.consumer, kv_bandwidth_gb_s=kv_gb_s)
        anchors: Points = {("Qwen2.5-14B", "Q4_K_M"): [(CONSUMER_CONTEXT, self.consumer_full_s)]}
        self._keep(gpu, "llama.cpp", fit, anchors, "inventivehq")
        self.transfer = max(abs(error) for error in transfers)
        self.note("decode of 70B from 8B rows: " + " ".join(f"{error:+.1%}" for error in transfers))

    def _spec(self, gpu: str) -> float:
        return float(self.published.gpus.loc[GPUS[gpu][0]].mem_bw_gb_s)

    def _keep(self, gpu: str, engine: str, fit: hybrid.SpeedFit, anchors: Points, source: str) -> None:
        """Record a fit; FP16 engines compute at their share of peak, llama.cpp at its prefill rates (set later)."""
        peak = self._peak({"a100-80gb": "A100 SXM 80GB", "h100": "H100 SXM 80GB"}.get(gpu, GPUS[gpu][0]))
        rates = hybrid.GpuRates(
            bandwidth_gb_s=fit.bandwidth_gb_s,
            kv_bandwidth_gb_s=fit.kv_bandwidth_gb_s,
            compute_tflops=self.batch_share * peak,
            prefill_tflops=self.prompt_share * peak,
            attention_tflops=FP16_ATTENTION_SHARE * peak,
            layer_overhead_s=fit.layer_overhead_s,
        )
        self.rates[gpu, engine] = (rates, Origin("fitted", source, fit.worst_error))
        self.anchors[gpu, engine] = anchors
        if not source:
            return
        self.note(
            f"{engine} {gpu} ({source}): {fit.bandwidth_gb_s:.0f} GB/s, {fit.layer_overhead_s * 1e6:.0f} us/layer, "
            f"KV {fit.kv_bandwidth_gb_s:.0f} GB/s, mean {fit.mean_error:.1%}, worst {fit.worst_error:.1%}"
        )

    def _fit_vllm(self) -> None:
        points = self.published.points("A100 80GB (form factor not stated)", "qwen25", "decode", "vLLM")
        self._keep("a100-80gb", "vllm", hybrid.fit_speeds(self.published.step_speeds(points)), points, "qwen25")
        singles = self.published.batches[self.published.batches.source == "vidur"]
        singles = singles[singles.concurrency_or_batch == 1].replace({"model": SAME_SHAPE})
        bare = {}  # without attention and sampling
        for gpu in ("A100", "H100"):
            rows = singles[singles.gpu.str.startswith(gpu)]
            steps = {(str(row.model), "FP16"): [(0.0, float(row.itl_ms) / 1e3)] for row in rows.itertuples()}
            bare[gpu] = hybrid.fit_speeds(self.published.step_speeds(steps))
        served_s = sum(series[0][1] for series in points.values())
        shapes = [self.published.shape(*key) for key in points]
        guess_s = sum(s.read_bytes / bare["A100"].bandwidth_gb_s / hybrid.GIGA for s in shapes)
        guess_s += sum(s.layers * bare["A100"].layer_overhead_s for s in shapes)
        kv_gb_s = self.rates["a100-80gb", "vllm"][0].kv_bandwidth_gb_s * 3350 / self._spec("a100-80gb")
        missing = abs(guess_s / served_s - 1)  # what attention and sampling cost on the A100, as a share
        fit = dataclasses.replace(bare["H100"], kv_bandwidth_gb_s=kv_gb_s, worst_error=missing)
        self._keep("h100", "vllm", fit, {}, "vidur")

    def _fit_transformers(self) -> None:
        """Launch time per layer and share of memory bandwidth: six baselines of the paper, then the A100 rows."""
        loads = self.published.loads
        baselines = loads[loads.kind == "decode_baseline_tok_s (derived)"]
        steps = [
            (slug, str(row.model).removesuffix(" FP16"), float(row.seconds) / 7000)  # a run is 7,000 tokens
            for slug, name in (("rtx-a6000", "RTX A6000"), ("rtx-5000-ada", "RTX 5000 Ada"))
            for row in baselines[baselines.gpu == name].itertuples()
        ]

        def predicted_s(model: str, context: float, rates: tuple[float, float, float, float]) -> float:
            launch_s, bandwidth_gb_s, kv_gb_s, sharpness = rates
            shape = self.published.shape(model, "FP16")
            read_s = shape.layer_bytes / bandwidth_gb_s / hybrid.GIGA
            layer_s = hybrid.smooth_maximum(read_s, launch_s, sharpness)
            head_s = shape.head_read_bytes / bandwidth_gb_s / hybrid.GIGA
            return shape.layers * layer_s + head_s + context * shape.kv_bytes_per_token / kv_gb_s / hybrid.GIGA

        def paper_errors(unknown: Any, /) -> list[float]:
            launch_ms, share, p = unknown
            return [
                predicted_s(m, RUN_CONTEXT, (launch_ms / 1e3, share * self._spec(g), FP16_KV_SHARE * self._spec(g), p))
                / seconds
                - 1
                for g, m, seconds in steps
            ]

        found = least_squares(paper_errors, [0.5, 0.8, 3.0], bounds=([0.1, 0.3, 1.0], [2.0, 1.0, 8.0])).x
        launch_ms, share, sharpness = (float(value) for value in found)
        worst = max(abs(error) for error in paper_errors([launch_ms, share, sharpness]))
        self.knees["hf-transformers"] = (sharpness, self.knees["vllm"][1])
        self.note(f"hf launch {launch_ms:.2f} ms/layer, {share:.2f} of bandwidth, p {sharpness:.1f}, worst {worst:.1%}")
        points = self.published.points("A100 80GB (form factor not stated)", "qwen25", "decode", "HF")

        def server_errors(unknown: Any, /) -> list[float]:
            rates = (unknown[0] / 1e3, share * self._spec("a100-80gb"), unknown[1], sharpness)
            return [predicted_s(m, p, rates) / t - 1 for (m, _), series in points.items() for p, t in series]

        server = least_squares(server_errors, [0.8, 70.0], bounds=([0.1, 10.0], [3.0, 2000.0])).x
        spread = float(max(abs(error) for error in server_errors(list(server))))
        self.note(f"hf A100 launch {server[0]:.2f} ms/layer, KV {server[1]:.0f} GB/s, worst {spread:.1%}")
        for gpu in ("rtx-a6000", "rtx-5000-ada", "rtx-4090", "l40s", "a100-80gb", "h100"):
            spec = self._spec(gpu)
            kv_gb_s = FP16_KV_SHARE * spec
            if gpu in ("a100-80gb", "h100"):
                kv_gb_s = float(server[1]) * spec / self._spec("a100-80gb")
            fit = hybrid.SpeedFit(math.inf, share * spec, 0.0, kv_gb_s, math.nan, math.nan)
            anchors: Points = {(m, "FP16"): [(RUN_CONTEXT, seconds)] for g, m, seconds in steps if g == gpu}
            self._keep(gpu, "hf-transformers", fit, points if gpu == "a100-80gb" else anchors, "")
            launch = launch_ms if gpu.startswith("rtx-") else float(server[0])
            rates = dataclasses.replace(self.rates[gpu, "hf-transformers"][0], launch_layer_s=launch / 1e3)
            origin = Origin("analytic", "hybrid-model")
            if anchors:
                origin = Origin("fitted", "arxiv-2605.19593", worst)
            elif gpu == "a100-80gb":
                origin = Origin("fitted", "qwen25", spread)
            self.rates[gpu, "hf-transformers"] = (rates, origin)
