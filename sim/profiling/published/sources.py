"""Published measurements as the shapes, steps and prompts that the fits need.

Reads gpus.csv, cpus.csv, models.csv and published_*.csv of one folder. Which hardware and models the shipped tables are
of, and under which names a source has them, is at the top; profiles/README.md says what each source id stands for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sim.profiles.library import csv_rows
from sim.profiles.profile import Weights
from sim.profiling.fitting import LEAST_NOISE, Key, MeasuredSeries
from sim.profiling.physics import Shape, Steps

FILES = ("gpus", "cpus", "models", *(f"published_{name}" for name in ("residency", "load", "batch", "batch_context")))
MODELS = ("Qwen2.5-3B", "Llama-3-8B", "Qwen3-8B", "Qwen2.5-14B", "Qwen3-32B", "Llama-3-70B", "Llama-3.2-1B")
QUANTIZATIONS = ("FP16", "Q8_0", "Q4_K_M")
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
_SAME_QUANTIZATION = {"F16": "FP16", "BF16": "FP16"}


@dataclass(frozen=True)
class PublishedGpu:
    """`name` in the published files; `link_gb_s` per direction; `usd_per_hour` where no price was found."""

    name: str
    link_gb_s: float
    usd_per_hour: float | None = None
    peak_name: str = ""  # the board whose dense peak FP16 engines are taken to share; its own where empty


@dataclass(frozen=True)
class Host:
    """`cpu`: start of the name in cpus.csv. Its DRAM bandwidth is fitted or a share of the peak."""

    cpu: str
    memory_gib: int
    disk_gb_s: float
    network_gb_s: float
    cap_gb_s: float
    tflops: float
    memory_source: str


GPUS = {
    "rtx-a6000": PublishedGpu("RTX A6000 48GB", 25.0),
    "rtx-5000-ada": PublishedGpu("RTX 5000 Ada 32GB", 25.0, 0.7),
    "rtx-4090": PublishedGpu("RTX 4090 24GB", 25.0),
    "rtx-5060-ti-16gb": PublishedGpu("RTX 5060 Ti 16GB", 26.0, 0.2),
    "l40s": PublishedGpu("L40S 48GB", 25.0),
    "a100-80gb": PublishedGpu("A100 PCIe 80GB", 25.0, peak_name="A100 SXM 80GB"),
    "h100": PublishedGpu("H100 PCIe 80GB", 53.0, peak_name="H100 SXM 80GB"),
}
HOSTS = {
    "tr-pro-5995wx": Host("AMD Threadripper PRO 5995WX", 512, 3.0, 1.25, 100.0, 3.2, "arxiv-2605.19593"),
    "i7-8700": Host("Intel i7-8700", 64, 2.5, 0.125, 6.5, 0.3, "inventivehq"),
    "i5-13600k": Host("Intel i5-13600K", 192, 2.5, 0.125, 26.0, 0.7, "ik255"),
    "epyc-9654": Host("AMD EPYC 9654", 768, 3.0, 12.5, 200.0, 9.6, "assumption"),
    "epyc-7453": Host("AMD EPYC 7453", 512, 2.6, 12.5, 100.0, 1.4, "assumption"),
    "xeon-8480": Host("Intel Xeon Platinum 8480", 1024, 3.6, 12.5, 150.0, 5.6, "assumption"),
}
Points = dict[Key, list[tuple[float, float]]]  # [(context or prompt tokens, seconds)]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def lone_step(shape: Shape, layers: int | None = None, context: float = 0.0) -> Steps:
    """A step of one sequence; `layers` None: all on the GPU."""
    return Steps.of(np.array([[shape.layers if layers is None else layers, 1.0, context]]), shape.layers)


def shape_in(row: Mapping[str, str], quantization: str) -> Shape:
    """What a step reads of the model in a row of the published models.csv."""
    layers, table = int(row["n_layers"]), int(row["vocab"]) * int(row["hidden"])
    weights = (float(row["bytes_fp16"]) / 2 - table * (1 if row["tied_embeddings"] == "True" else 2)) // layers
    if quantization == "Q4_K_M":
        layer_bytes, head_bytes = int(row["q4km_bytes_per_layer"]), int(row["q4km_output_head_bytes"])
    elif quantization == "Q8_0":  # blocks of 32 bytes and a 2-byte scale
        layer_bytes, head_bytes = int(weights * 34 / 32), table * 34 // 32
    else:
        layer_bytes, head_bytes = int(weights * 2), table * 2
    kv_bytes = int(row["kv_bytes_per_token_fp16"]) // layers
    return Shape(layers, layer_bytes, head_bytes, kv_bytes, weights, table, int(row["heads"]) * int(row["head_dim"]))


class Published:
    """The published measurements of a folder. Raises ProfileError: a file that is no CSV."""

    def __init__(self, folder: Path) -> None:
        rows = {name.removeprefix("published_"): csv_rows(folder / f"{name}.csv") for name in FILES}
        self.gpus = {row["gpu"]: row for row in rows["gpus"]}
        self.cpus: dict[str, dict[str, str]] = {row["cpu"]: row for row in rows["cpus"]}
        self.models = {row["model"]: row for row in rows["models"]}
        self.loads, self.batches = rows["load"], rows["batch"]
        self.speeds, self.joint = rows["residency"], rows["batch_context"]
        for row in (*self.speeds, *self.joint, *self.batches):
            row["model"] = SAME_SHAPE.get(row["model"], row["model"])
        for row in self.speeds:
            row["quant"] = _SAME_QUANTIZATION.get(row["quant"], row["quant"])

    def shape(self, key: Key) -> Shape:
        return shape_in(self._model(key[0]), key[1])

    def weights(self, key: Key) -> Weights:
        """What a full load moves: FP16 counts everything, a GGUF quantisation leaves the embedding on the host."""
        row, shape = self._model(key[0]), self.shape(key)
        layer_bytes, head_bytes = int(shape.layer_bytes), int(shape.head_bytes)
        if key[1] == "FP16":
            head_bytes = int(row["bytes_fp16"]) - shape.layers * layer_bytes
        limit = CONTEXT_LIMITS.get(key[0], int(row["max_context"]))
        return Weights(*key, shape.layers, layer_bytes, head_bytes, int(shape.kv_bytes), limit)

    def hidden(self, name: str) -> int:
        return int(self._model(name)["hidden"])

    def _model(self, name: str) -> dict[str, str]:
        return self.models["Llama-3.1-70B" if name == "Llama-3-70B" else name]

    def bandwidth_gb_s(self, gpu: str) -> float:
        return float(self.gpus[GPUS[gpu].name]["mem_bw_gb_s"])

    def peak_tflops(self, name: str) -> float:
        return float(self.gpus[name]["fp16_tensor_dense_tflops_fp32acc"])

    def points(self, gpu: str, source: str, metric: str, software: str = "") -> Points:
        """Full-residency points: context and step seconds, or prompt tokens and prefill seconds."""
        found: Points = {}
        for row in self.speeds:
            same = (row["gpu"], row["source"], row["metric"], row["exec_mode"]) == (gpu, source, metric, "full_gpu")
            if same and row["software"].startswith(software) and row["quant"] in QUANTIZATIONS:
                at = float(row["prompt_tokens"] if metric == "prefill" else row["context_depth"])
                work = at if metric == "prefill" else 1.0
                found.setdefault((row["model"], row["quant"]), []).append((at, work / float(row["tok_s"])))
        return found

    def steps(self, points: Points) -> list[MeasuredSeries]:
        """Full-residency steps of one sequence as the fits take them."""
        return [self._series(self.shape(key), series) for key, series in points.items()]

    def sweep(self, source: str) -> list[tuple[str, MeasuredSeries]]:
        """Single-sequence decode steps at any residency, each with its model's name; the head is last to move."""
        found = []
        for row in self.speeds:
            name = row["model"]
            if (row["source"], row["metric"]) != (source, "decode") or name not in self.models or "A3B" in name:
                continue
            shape = self.shape((name, "Q4_K_M"))
            if row["quant"] not in ("Q4_K_M", "Q4_0"):
                # Another quantisation: the file's size, with layers and head in the proportions of Q4_K_M.
                other = float(row["weights_gb"]) * 1e9 / float(self.models[name]["bytes_q4_k_m"])
                shape = replace(shape, layer_bytes=other * shape.layer_bytes, head_bytes=other * shape.head_bytes)
            layers = shape.layers if row["exec_mode"] == "full_gpu" else int(row["gpu_layers"])
            found.append((name, self._series(shape, [(0.0, 1 / float(row["tok_s"]))], layers)))
        return found

    @staticmethod
    def _series(shape: Shape, points: Sequence[tuple[float, float]], layers: int | None = None) -> MeasuredSeries:
        on_gpu = shape.layers if layers is None else layers
        places = np.array([[on_gpu, 1.0, context] for context, _ in points])
        seconds = np.array([each for _, each in points])
        return MeasuredSeries(shape, Steps.of(places, shape.layers), seconds, np.full(len(points), LEAST_NOISE))
