"""The physical model of a step and of a prompt: time from bytes, bandwidths and compute rates.

Each layer costs where it lives: reading its weights or computing for the batch, whichever dominates, plus reading its
share of the KV cache. Times are arrays over points; the rates are a `Rates` of plain numbers, fitted by `fitting` to
measured points and by `published` to published ones. Nothing here reads a file, and a simulation never calls it: it
reads the tables that are made with it (profiles/README.md, "The model").
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.profiles.profile import Weights

GIGA, TERA = 1e9, 1e12
Array = NDArray[np.float64]
# A prompt either computes or reads weights, with little in between: published prefill speeds from 512 tokens on are
# those of pure compute, so the corner of the maximum is sharp.
PREFILL_SHARPNESS = 4.0
# Bytes of a weight by the bits in a quantisation's name: blocks carry scales beside the weights.
_BITS_BEYOND = {"iq": 0.3, "q": 0.6}
_WHOLE_BITS = {"fp32": 32.0, "f32": 32.0, "fp16": 16.0, "f16": 16.0, "bf16": 16.0, "fp8": 8.0, "int8": 8.0}
_WHOLE_BITS |= {"mxfp4": 4.25, "awq": 4.25, "gptq": 4.25, "nf4": 4.25, "int4": 4.25}
_TIED_BELOW_BYTES = 8e9  # at 16 bits: smaller models share embedding and head, larger ones have both


@dataclass(frozen=True)
class Shape:
    """What a step reads of a model. `head_bytes` is the output head alone, `layer_weights` a number of weights.

    `head_weights` None: quantised as the layers are. `attention_width` (query heads x head dimension) None: that of an
    ordinary transformer layer with so many weights (12 width^2).
    """

    layers: int
    layer_bytes: float
    head_bytes: float
    kv_bytes: float  # per token and layer
    layer_weights: float
    head_weights: float | None = None
    attention_width: float | None = None

    @property
    def read_bytes(self) -> float:
        """Weight bytes that one token reads: all layers and the output head, not the token embedding."""
        return self.layers * self.layer_bytes + self.head_bytes

    @property
    def operations(self) -> float:
        """Floating-point operations of one token in all layers' matrix products."""
        return 2 * self.layers * self.layer_weights

    def attention_operations(self, tokens: Any) -> Any:
        """Those of causal attention in one layer: 2 products x 2 operations x half of the token pairs, per channel."""
        width = self.attention_width
        return 2 * (float(np.sqrt(self.layer_weights / 12)) if width is None else width) * tokens**2


def weight_bytes(quantization: str) -> float:
    """Bytes of one weight, from the name of its quantisation; 2 for a name that says nothing."""
    name = quantization.lower()
    for word, bits in _WHOLE_BITS.items():
        if word in name:
            return bits / 8
    match = re.search(r"(iq|q)(\d)", name)
    return (int(match[2]) + _BITS_BEYOND[match[1]]) / 8 if match else 2.0


def shape_of(weights: Weights, siblings: Mapping[tuple[str, str], Weights]) -> Shape:
    """What a step reads of a model. `siblings`: all known weights; another quantisation tells what the head is alone.

    At 16 bits models.csv counts the embedding with the head; GGUF quantisations leave it on the host.
    """
    size = weight_bytes(weights.quantization)
    head = float(weights.head_bytes)
    if size >= 2.0:
        other = siblings.get((weights.model, "Q8_0"))
        if other is not None and other.layers == weights.layers:
            head = min(head, other.head_bytes * 32 / 34 * size)
        elif weights.total_bytes * 2 / size > _TIED_BELOW_BYTES:
            head /= 2
    kv_bytes = float(weights.kv_bytes_per_token_layer)
    return Shape(weights.layers, float(weights.layer_bytes), head, kv_bytes, weights.layer_bytes / size)


@dataclass(frozen=True)
class Rates:
    """Effective rates of a (GPU, host, engine), or of one model there. Shares and intensities are ratios to the
    weight bandwidth of their side, because those carry over from one machine to another.

    `host_gb_s`: memory bandwidth of CPU layers, or of the link when layers outside are streamed. Intensities are
    TFLOP/s per GB/s.
    """

    gpu_gb_s: float = 500.0
    host_gb_s: float = 50.0
    kv_share: float = 0.4
    host_kv_share: float = 0.4
    gpu_intensity: float = 0.08  # matrix products of a decode batch
    host_intensity: float = 0.013
    layer_s: float = 80e-6  # added to each layer's weight read, wherever it runs
    launch_s: float = 20e-6  # time to issue a layer, overlaps with running it
    hop_s: float = 50e-6  # a step whose layers lie on both sides
    hop_sequence_s: float = 0.0  # more of it for each sequence: its activations on the link
    base_s: float = 100e-6  # a step's sampling and bookkeeping
    sharpness: float = 2.0
    overlap: float = 1.5  # of streaming and computing: 1 one after the other, large: at the same time
    prompt_intensity: float = 0.1
    host_prompt_intensity: float = 0.013
    attention_share: float = 0.3  # of the prompt rate, in the products of queries and keys
    host_attention_share: float | None = None  # None: the same on the host
    stream_gb_s: float = 15.0  # layers copied to the GPU for a prompt
    micro_batch_tokens: float = 512.0  # a prompt streams its layers once per so many; llama.cpp's default
    head_gb_s: float = 25.0  # a head outside, where layers are streamed: over the link too, or read by the host
    gpu_scale: float = 1.0
    host_scale: float = 1.0
    kv_scale: float = 1.0
    prompt_scale: float = 1.0
    host_prompt_scale: float = 1.0

    def changed(self, names: Sequence[str], values: Iterable[float]) -> Rates:
        return replace(self, **dict(zip(names, map(float, values), strict=True)))


@dataclass(frozen=True)
class Steps:
    """Decode steps of one model: layers on the GPU, whether the head is there too, sequences, mean context."""

    layers: Array
    head_on_gpu: NDArray[np.bool_]
    batch: Array
    context: Array

    @classmethod
    def of(cls, places: Array, layers: int, head_first: bool = False) -> Steps:
        """Rows of (layers, batch, context). The head is there with all `layers`, or `head_first` with the first."""
        return cls(places[:, 0], _heads(places[:, 0], layers, head_first), places[:, 1], places[:, 2])


@dataclass(frozen=True)
class Prompts:
    """Prompts computed in one iteration: layers on the GPU, whether the head is there, tokens."""

    layers: Array
    head_on_gpu: NDArray[np.bool_]
    tokens: Array

    @classmethod
    def of(cls, places: Array, layers: int, head_first: bool = False) -> Prompts:
        """Rows of (layers, tokens); the head as in `Steps.of`."""
        return cls(places[:, 0], _heads(places[:, 0], layers, head_first), places[:, 1])


def _heads(on_gpu: Array, layers: int, head_first: bool) -> NDArray[np.bool_]:
    return np.asarray((on_gpu == layers) | (head_first & (on_gpu > 0)))


def rounded_maximum(first: Any, second: Any, sharpness: float) -> Array:
    """(a^p + b^p)^(1/p) element by element, of times that are not negative."""
    largest = np.maximum(np.maximum(first, second), 1e-30)
    return np.asarray(largest * ((first / largest) ** sharpness + (second / largest) ** sharpness) ** (1 / sharpness))


def decode_s(shape: Shape, rates: Rates, steps: Steps, offload: str) -> Array:
    """Seconds of each step. `offload`: `cpu` computes the layers outside, `stream` sends their weights to the GPU."""
    outside = shape.layers - steps.layers
    more = np.maximum(steps.batch - 1, 0.0)
    gpu_layer_s = _layer_s(shape.layer_bytes, shape.layer_weights, rates, more, on_gpu=True)
    gpu_head_s = _head_s(shape, rates, more, on_gpu=True)
    kv_bytes = steps.batch * steps.context * shape.kv_bytes * rates.kv_scale
    kv_s = steps.layers * kv_bytes / (rates.gpu_gb_s * rates.kv_share * GIGA)
    kv_s = kv_s + outside * kv_bytes / (rates.host_gb_s * rates.host_kv_share * GIGA)
    if offload == "stream":
        computing_s = shape.layers * gpu_layer_s + np.where(steps.head_on_gpu, gpu_head_s, 0.0) + kv_s
        return _streamed_s(shape, rates, computing_s, outside, steps.head_on_gpu)
    host_layer_s = _layer_s(shape.layer_bytes, shape.layer_weights, rates, more, on_gpu=False)
    head_s = np.where(steps.head_on_gpu, gpu_head_s, _head_s(shape, rates, more, on_gpu=False))
    both = ((steps.layers > 0) | steps.head_on_gpu) & ((outside > 0) | ~steps.head_on_gpu)
    seconds = steps.layers * gpu_layer_s + outside * host_layer_s + head_s + kv_s + rates.base_s
    return np.asarray(seconds + np.where(both, rates.hop_s + steps.batch * rates.hop_sequence_s, 0.0))


def prefill_s(shape: Shape, rates: Rates, prompts: Prompts, offload: str, way: str = "cheaper") -> Array:
    """Seconds of each prompt. `way`: layers outside are computed by the `cpu`, their weights `stream`ed once per
    micro-batch, or the `cheaper` of both. Only a prompt's last position goes through the head."""
    outside = shape.layers - prompts.layers
    none = np.zeros_like(prompts.tokens)
    gpu_read_s = _layer_s(shape.layer_bytes, shape.layer_weights, rates, none, on_gpu=True)
    gpu_head_s = _head_s(shape, rates, none, on_gpu=True)
    rate = rates.gpu_gb_s * rates.prompt_intensity * TERA / rates.prompt_scale
    on_gpu_s = rounded_maximum(
        gpu_read_s, _prompt_s(shape, prompts.tokens, rate, rates.attention_share), PREFILL_SHARPNESS
    )
    if offload == "stream":
        computing_s = shape.layers * on_gpu_s + np.where(prompts.head_on_gpu, gpu_head_s, 0.0)
        return _streamed_s(shape, rates, computing_s, outside, prompts.head_on_gpu)
    host_read_s = _layer_s(shape.layer_bytes, shape.layer_weights, rates, none, on_gpu=False)
    host_rate = rates.host_gb_s * rates.host_prompt_intensity * TERA / rates.host_prompt_scale
    share = rates.attention_share if rates.host_attention_share is None else rates.host_attention_share
    on_cpu_s = rounded_maximum(host_read_s, _prompt_s(shape, prompts.tokens, host_rate, share), PREFILL_SHARPNESS)
    passes = np.maximum(1.0, np.ceil(prompts.tokens / rates.micro_batch_tokens))
    streamed_s = rates.host_prompt_scale * passes * shape.layer_bytes / (rates.stream_gb_s * GIGA) + on_gpu_s
    outside_s = {"cpu": on_cpu_s, "stream": streamed_s}.get(way, np.minimum(on_cpu_s, streamed_s))
    head_s = np.where(prompts.head_on_gpu, gpu_head_s, _head_s(shape, rates, none, on_gpu=False))
    both = (prompts.layers > 0) & (outside > 0)
    seconds = prompts.layers * on_gpu_s + outside * outside_s + head_s + rates.base_s
    return np.asarray(seconds + np.where(both, rates.hop_s + rates.hop_sequence_s, 0.0))


def _streamed_s(
    shape: Shape, rates: Rates, computing_s: Array, outside: Array, head_on_gpu: NDArray[np.bool_]
) -> Array:
    """The GPU computes while layers outside come to it; a head outside comes after all of them."""
    moving_s = rates.host_scale * outside * shape.layer_bytes / (rates.host_gb_s * GIGA)
    head_s = np.where(head_on_gpu, 0.0, shape.head_bytes / (rates.head_gb_s * GIGA))
    return np.asarray(rounded_maximum(computing_s, moving_s, rates.overlap) + head_s + rates.base_s)


def _layer_s(size: float, weights: float, rates: Rates, more: Array, on_gpu: bool) -> Array:
    """One layer for one sequence and `more` beside it, without KV: reading, issuing or computing, whichever is most."""
    bandwidth = rates.gpu_gb_s if on_gpu else rates.host_gb_s
    scale = rates.gpu_scale if on_gpu else rates.host_scale
    single_s = scale * rounded_maximum(size / (bandwidth * GIGA) + rates.layer_s, rates.launch_s, rates.sharpness)
    intensity = rates.gpu_intensity if on_gpu else rates.host_intensity
    return rounded_maximum(single_s, scale * 2 * weights * more / (bandwidth * intensity * TERA), rates.sharpness)


def _head_s(shape: Shape, rates: Rates, more: Array, on_gpu: bool) -> Array:
    weights = shape.head_weights
    if weights is None:
        weights = shape.layer_weights * shape.head_bytes / shape.layer_bytes
    bare = replace(rates, layer_s=0.0, launch_s=0.0)
    return _layer_s(shape.head_bytes, weights, bare, more, on_gpu)


def _prompt_s(shape: Shape, tokens: Array, rate: float, attention_share: float) -> Array:
    """One layer's operations for so many tokens."""
    attention_s = shape.attention_operations(tokens) / (rate * attention_share)
    return np.asarray(2 * shape.layer_weights * tokens / rate + attention_s)
