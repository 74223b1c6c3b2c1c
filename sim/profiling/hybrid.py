"""The physical model behind the tables that nobody has measured: time from bytes, bandwidths and compute rates.

A step costs each layer where the layer lives: reading its weights or computing for the batch, whichever dominates,
plus reading its share of the KV cache. Rates are fitted to published speeds or taken from specifications by
`scripts/build_profiles.py`, which is the only caller; a simulation itself only ever reads the resulting tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls

GIGA = 1e9
TERA = 1e12

# A prompt either computes or reads weights, with little in between: published prefill speeds from 512 tokens on are
# those of pure compute, so the corner of the maximum is sharp.
PREFILL_SHARPNESS = 4.0
# One direction of a handover between CPU and GPU: driver call, synchronisation and wake-up of the waiting side.
HANDOVER_S = 10e-6
# A CPU reads a layer's KV as far below its weight bandwidth as the GPU does under the same engine, at best at half.
CPU_KV_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a model weighs. `head_bytes` is moved by a full load, `head_read_bytes` is read in each step."""

    name: str
    quantization: str
    layers: int
    layer_bytes: int
    head_bytes: int
    head_read_bytes: int
    layer_parameters: float
    head_parameters: float
    hidden: int
    attention_width: int  # query heads x head dimension
    kv_bytes_per_token_layer: int
    max_context: int

    @property
    def read_bytes(self) -> int:
        """Weight bytes read for one token: all layers and the output head, not the token embedding."""
        return self.layers * self.layer_bytes + self.head_read_bytes

    @property
    def layer_operations(self) -> float:
        """Floating-point operations of one token in all layers' matrix products."""
        return 2 * self.layers * self.layer_parameters

    @property
    def kv_bytes_per_token(self) -> int:
        return self.layers * self.kv_bytes_per_token_layer


@dataclass(frozen=True, slots=True)
class GpuRates:
    """Effective rates of one GPU under one engine. `scale` anchors a model's single step to a published one."""

    bandwidth_gb_s: float
    kv_bandwidth_gb_s: float
    compute_tflops: float  # matrix products of a large decode batch
    prefill_tflops: float
    attention_tflops: float
    layer_overhead_s: float = 0.0  # added to each layer's weight read: kernels that do not stream weights
    launch_layer_s: float = 0.0  # time to issue a layer's kernels; overlaps with running them
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class HostRates:
    """Effective rates of one host's CPU, and of the link over which a prompt's layers are streamed to the GPU."""

    bandwidth_gb_s: float
    compute_tflops: float
    link_gb_s: float
    stream_gb_s: float
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class EngineShape:
    """How an engine batches: the sharpness of its knee from weight-bound to compute-bound, prompt tokens per pass."""

    name: str
    sharpness: float
    micro_batch_tokens: int


@dataclass(frozen=True, slots=True)
class Hybrid:
    """One model on one GPU of one host under one engine."""

    model: ModelShape
    gpu: GpuRates
    host: HostRates
    engine: EngineShape

    def decode_s(self, layers: int, batch: int, context: float) -> float:
        """Seconds of one decode iteration: `layers` of the model's on the GPU, `batch` sequences, mean `context`.

        Linear in `layers` from 1 to L-1 and in `context`. The output head moves to the GPU last, with layer L.
        """
        model = self.model
        outside = model.layers - layers
        seconds = layers * self._gpu_layer_s(batch) + outside * self._cpu_layer_s(batch)
        if outside == 0:
            seconds += self._gpu_head_s(batch)
        else:
            seconds += self._cpu_head_s(batch)
        if 0 < layers < model.layers:
            seconds += self.handover_s(batch)
        kv_bytes = batch * context * model.kv_bytes_per_token_layer
        gpu_kv_s = layers * kv_bytes / (self.gpu.kv_bandwidth_gb_s * GIGA)
        kv_share = min(CPU_KV_SHARE, self.gpu.kv_bandwidth_gb_s / self.gpu.bandwidth_gb_s)
        cpu_kv_s = outside * kv_bytes / (self.host.bandwidth_gb_s * kv_share * GIGA)
        return seconds + gpu_kv_s + cpu_kv_s

    def prefill_s(self, layers: int, prompt_tokens: int) -> float:
        """Seconds to prefill `prompt_tokens`: a*P + b*P^2, never below one read of the weights.

        0 tokens is that read alone. A layer outside the GPU costs the cheaper of CPU compute and streaming its
        weights over the link once per micro-batch (llama.cpp's operation offload), then computing on the GPU.
        """
        model = self.model
        outside = model.layers - layers
        gpu, host = self.gpu, self.host
        gpu_prompt_s = self._prompt_layer_s(prompt_tokens, gpu.prefill_tflops, gpu.attention_tflops)
        cpu_prompt_s = self._prompt_layer_s(prompt_tokens, host.compute_tflops, host.compute_tflops)
        on_gpu_s = smooth_maximum(self._gpu_layer_s(1), gpu_prompt_s, PREFILL_SHARPNESS)
        on_cpu_s = smooth_maximum(self._cpu_layer_s(1), cpu_prompt_s, PREFILL_SHARPNESS)
        passes = max(1, math.ceil(prompt_tokens / self.engine.micro_batch_tokens))
        streamed_s = passes * model.layer_bytes / (host.stream_gb_s * GIGA) + on_gpu_s
        seconds = layers * on_gpu_s + outside * min(streamed_s, on_cpu_s)
        # Only a prompt's last position goes through the output head.
        seconds += self._gpu_head_s(1) if outside == 0 else self._cpu_head_s(1)
        if 0 < layers < model.layers:
            seconds += self.handover_s(1)
        return seconds

    def handover_s(self, batch: int) -> float:
        """The two crossings of a step whose layers lie on both sides: latency, and FP32 activations on the link."""
        activation_bytes = batch * self.model.hidden * 4
        return 2 * (HANDOVER_S + activation_bytes / (self.host.link_gb_s * GIGA))

    def _gpu_layer_s(self, batch: int) -> float:
        gpu = self.gpu
        read_s = self.model.layer_bytes / (gpu.bandwidth_gb_s * GIGA) + gpu.layer_overhead_s
        issued_s = smooth_maximum(read_s, gpu.launch_layer_s, self.engine.sharpness)
        compute_s = 2 * self.model.layer_parameters / (gpu.compute_tflops * TERA)
        # batch - 1: the speed of a single sequence is what bandwidths were fitted to, so it must come out unchanged.
        return smooth_maximum(gpu.scale * issued_s, compute_s * (batch - 1), self.engine.sharpness)

    def _gpu_head_s(self, batch: int) -> float:
        read_s = self.model.head_read_bytes / (self.gpu.bandwidth_gb_s * GIGA)
        compute_s = 2 * self.model.head_parameters / (self.gpu.compute_tflops * TERA)
        return smooth_maximum(self.gpu.scale * read_s, compute_s * (batch - 1), self.engine.sharpness)

    def _cpu_layer_s(self, batch: int) -> float:
        host = self.host
        read_s = self.model.layer_bytes / (host.bandwidth_gb_s * GIGA) + self.gpu.layer_overhead_s
        # The engine issues a layer's operations wherever they run.
        issued_s = smooth_maximum(read_s, self.gpu.launch_layer_s, self.engine.sharpness)
        compute_s = 2 * self.model.layer_parameters / (host.compute_tflops * TERA)
        return smooth_maximum(host.scale * issued_s, compute_s * (batch - 1), self.engine.sharpness)

    def _cpu_head_s(self, batch: int) -> float:
        read_s = self.model.head_read_bytes / (self.host.bandwidth_gb_s * GIGA)
        compute_s = 2 * self.model.head_parameters / (self.host.compute_tflops * TERA)
        return smooth_maximum(self.host.scale * read_s, compute_s * (batch - 1), self.engine.sharpness)

    def _prompt_layer_s(self, prompt_tokens: int, linear_tflops: float, attention_tflops: float) -> float:
        linear_s = 2 * self.model.layer_parameters * prompt_tokens / (linear_tflops * TERA)
        # Causal attention: 2 products x 2 operations x half of the token pairs, per channel.
        attention = 2 * self.model.attention_width * float(prompt_tokens) ** 2
        return linear_s + attention / (attention_tflops * TERA)


def smooth_maximum(first: float, second: float, sharpness: float) -> float:
    """(a^p + b^p)^(1/p): the larger of two non-negative times, with a rounded corner where they are alike."""
    largest = max(first, second)
    if largest == 0.0:
        return 0.0
    return float(largest * ((first / largest) ** sharpness + (second / largest) ** sharpness) ** (1 / sharpness))


@dataclass(frozen=True, slots=True)
class Speed:
    """A measured single-sequence decode step, and the bytes and layers that the hybrid model says it touches."""

    cpu_bytes: float
    gpu_bytes: float
    layers: int
    kv_bytes: float  # KV read in the step: mean context x bytes per token
    seconds: float


@dataclass(frozen=True, slots=True)
class SpeedFit:
    """Non-negative least squares of relative error; a bandwidth is infinite when its term was not needed."""

    cpu_bandwidth_gb_s: float
    bandwidth_gb_s: float
    layer_overhead_s: float
    kv_bandwidth_gb_s: float
    mean_error: float
    worst_error: float


def _least_relative(design: NDArray[np.float64], measured: NDArray[np.float64]) -> NDArray[np.float64]:
    """Non-negative coefficients of least squared relative error."""
    rows, terms = design.shape
    # Rows of zeros change nothing; scipy 1.17's nnls corrupts memory when it gets fewer rows than columns.
    padded = np.zeros((max(rows, terms), terms))
    padded[:rows] = design / measured[:, None]
    target = np.zeros(len(padded))
    target[:rows] = 1.0
    return np.asarray(nnls(padded, target)[0])


def fit_speeds(speeds: Sequence[Speed], with_overhead: bool = True) -> SpeedFit:
    """Fit seconds = cpu/BW + gpu/BW + layers*overhead + kv/BW to measured steps, each weighted by its own time."""
    overhead = 1.0 if with_overhead else 0.0
    rows = [
        [speed.cpu_bytes / GIGA, speed.gpu_bytes / GIGA, overhead * speed.layers, speed.kv_bytes / GIGA]
        for speed in speeds
    ]
    seconds = np.array([speed.seconds for speed in speeds])
    solution = _least_relative(np.array(rows), seconds)
    errors = np.abs(np.array(rows) @ solution / seconds - 1)
    inverse = [1 / float(value) if value > 1e-12 else math.inf for value in solution]
    return SpeedFit(
        cpu_bandwidth_gb_s=inverse[0],
        bandwidth_gb_s=inverse[1],
        layer_overhead_s=float(solution[2]),
        kv_bandwidth_gb_s=inverse[3],
        mean_error=float(errors.mean()),
        worst_error=float(errors.max()),
    )


@dataclass(frozen=True, slots=True)
class Knee:
    """A step from weight-bound to compute-bound by batch B: (t0^p + (c*(B-1))^p)^(1/p)."""

    single_s: float
    sequence_s: float
    sharpness: float
    mean_error: float


def fit_knee(
    batches: Sequence[float],
    seconds: Sequence[float],
    single_s: float | None = None,
    sharpness: float | None = None,
) -> Knee:
    """Fit a knee to step times by batch, of least relative error; `single_s` and `sharpness` may be given."""
    others, measured = np.array(batches, dtype=float) - 1, np.array(seconds)

    def predicted(unknown: NDArray[np.float64]) -> NDArray[np.float64]:
        first = single_s or measured.min() * math.exp(unknown[2])
        ratio = math.exp(unknown[0]) * others / first
        power = sharpness or math.exp(unknown[1])
        return np.asarray(first * (1 + ratio**power) ** (1 / power))

    def errors(unknown: NDArray[np.float64], /) -> NDArray[np.float64]:
        return np.asarray(predicted(unknown) / measured - 1)

    start = [math.log(measured[-1] / batches[-1]), math.log(3.0), 0.0]
    found = least_squares(errors, start, bounds=([-30, 0, -1], [5, math.log(8.0), 1])).x
    return Knee(
        single_s=float(single_s or measured.min() * math.exp(found[2])),
        sequence_s=math.exp(found[0]),
        sharpness=sharpness or math.exp(found[1]),
        mean_error=float(np.abs(errors(found)).mean()),
    )


def fit_line(positions: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope, neither below zero, of least relative error."""
    design = np.column_stack([np.ones(len(positions)), np.array(positions)])
    intercept, slope = _least_relative(design, np.array(seconds))
    return float(intercept), float(slope)


def fit_prompt(tokens: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """a and b >= 0 of seconds = a*P + b*P^2, of least relative error."""
    prompt = np.array(tokens, dtype=float)
    scale = np.array([1e-3, 1e-8])  # keeps the two columns alike in size
    linear, square = _least_relative(np.column_stack([prompt, prompt**2]) * scale, np.array(seconds)) * scale
    return float(linear), float(square)
