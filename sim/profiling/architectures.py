"""Shapes of well-known models, to tell from a benchmark record what model it is and how its bytes lie.

A GGUF file's parameter count names its shape almost without doubt; what its head and embedding weigh follows from the
quantisation rules of llama.cpp. A layer's bytes are all its experts'. The importers use it; profiles/models.csv comes
first.

Shapes: the models' config.json as gathered by Lightning-AI/litgpt (commit 2685705, config.py), and model cards.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_SAME_COUNT = 0.002  # of the parameters: biases, norms and rope factors are not counted here
# Bits a weight of the embedding takes; blocks of 32 or 256 weights with their scales. MXFP4 is for experts alone.
_BITS = {
    "FP32": 32.0, "FP16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.5625, "Q5_1": 6.0, "Q5_0": 5.5, "Q5_K": 5.5,
    "Q4_1": 5.0, "Q4_0": 4.5, "Q4_K": 4.5, "Q3_K": 3.4375, "Q2_K": 2.625, "IQ4_NL": 4.5, "IQ4_XS": 4.25,
    "IQ3_S": 3.4375, "IQ3_M": 3.4375, "IQ3_XS": 3.4375, "IQ3_XXS": 3.4375, "IQ2": 2.625,
    "MXFP4": 8.5,
}  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """A decoder. `family`: what llama.cpp calls its architecture. Head and embedding are one if `tied`."""

    name: str
    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_width: int
    feed_forward: int
    vocabulary: int
    max_context: int
    tied: bool = False
    experts: int = 0  # of `feed_forward` each; 0: dense

    @property
    def head_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """Without biases and norms."""
        attention = 2 * self.hidden * self.head_width * (self.heads + self.kv_heads)
        layer = attention + 3 * self.hidden * self.feed_forward * max(1, self.experts) + self.hidden * self.experts
        return self.layers * layer + self.head_parameters * (1 if self.tied else 2)

    @property
    def kv_bytes_per_token_layer(self) -> int:
        """At 16 bits."""
        return 2 * self.kv_heads * self.head_width * 2

    def bytes_of(self, quantization: str, model_size: int) -> tuple[int, int] | None:
        """(bytes of a layer, bytes of the head) of a GGUF file of so many bytes; None: the rules do not say.

        llama.cpp keeps the head at 6.56 bits (Q6_K) when the rest is below 8, and a head that is also the embedding.
        """
        embedding = _bits(quantization)
        if embedding is None:
            return None
        head = embedding
        if embedding < 8.5:
            head = 5.5 if quantization.startswith(("IQ1", "IQ2", "IQ3_XXS")) else 6.5625
            head = head if self.hidden % 256 == 0 else 8.5
        head_bytes = round(self.head_parameters * head / 8)
        embedding_bytes = 0 if self.tied else round(self.head_parameters * embedding / 8)
        layer_bytes = (model_size - head_bytes - embedding_bytes) // self.layers
        return (layer_bytes, head_bytes) if layer_bytes > 0 else None


def _bits(quantization: str) -> float | None:
    for name in (quantization, quantization.rpartition("_")[0], quantization[:3]):  # Q4_K_M, Q4_K, IQ2_XXS
        if name in _BITS:
            return _BITS[name]
    return None


# name, family, layers, hidden, heads, KV heads, head width, feed forward, vocabulary, context, tied, experts
ARCHITECTURES = tuple(
    Architecture(*row)
    for row in (
        ("Llama-2-7B", "llama", 32, 4096, 32, 32, 128, 11008, 32000, 4096),
        ("Llama-2-13B", "llama", 40, 5120, 40, 40, 128, 13824, 32000, 4096),
        ("Llama-2-70B", "llama", 80, 8192, 64, 8, 128, 28672, 32000, 4096),
        ("Llama-3-8B", "llama", 32, 4096, 32, 8, 128, 14336, 128256, 8192),
        ("Llama-3.1-8B", "llama", 32, 4096, 32, 8, 128, 14336, 128256, 131072),
        ("Llama-3-70B", "llama", 80, 8192, 64, 8, 128, 28672, 128256, 8192),
        ("Llama-3.1-70B", "llama", 80, 8192, 64, 8, 128, 28672, 128256, 131072),
        ("Llama-3.3-70B", "llama", 80, 8192, 64, 8, 128, 28672, 128256, 131072),
        ("Llama-3.2-1B", "llama", 16, 2048, 32, 8, 64, 8192, 128256, 131072, True),
        ("Llama-3.2-3B", "llama", 28, 3072, 24, 8, 128, 8192, 128256, 131072, True),
        ("TinyLlama-1.1B", "llama", 22, 2048, 32, 4, 64, 5632, 32000, 2048),
        ("CodeLlama-34B", "llama", 48, 8192, 64, 8, 128, 22016, 32000, 16384),
        ("Mistral-7B", "llama", 32, 4096, 32, 8, 128, 14336, 32000, 32768),
        ("Mistral-7B-v0.3", "llama", 32, 4096, 32, 8, 128, 14336, 32768, 32768),
        ("Mistral-Nemo-12B", "llama", 40, 5120, 32, 8, 128, 14336, 131072, 131072),
        ("Mistral-Small-24B", "llama", 40, 5120, 32, 8, 128, 32768, 131072, 32768),
        ("Yi-6B", "llama", 32, 4096, 32, 4, 128, 11008, 64000, 4096),
        ("Yi-34B", "llama", 60, 7168, 56, 8, 128, 20480, 64000, 4096),
        ("SmolLM2-1.7B", "llama", 24, 2048, 32, 32, 64, 8192, 49152, 8192, True),
        ("Qwen2.5-0.5B", "qwen2", 24, 896, 14, 2, 64, 4864, 151936, 32768, True),
        ("Qwen2.5-1.5B", "qwen2", 28, 1536, 12, 2, 128, 8960, 151936, 131072, True),
        ("Qwen2.5-3B", "qwen2", 36, 2048, 16, 2, 128, 11008, 151936, 32768, True),
        ("Qwen2.5-7B", "qwen2", 28, 3584, 28, 4, 128, 18944, 152064, 131072),
        ("Qwen2.5-14B", "qwen2", 48, 5120, 40, 8, 128, 13824, 152064, 131072),
        ("Qwen2.5-32B", "qwen2", 64, 5120, 40, 8, 128, 27648, 152064, 131072),
        ("Qwen2.5-72B", "qwen2", 80, 8192, 64, 8, 128, 29568, 152064, 131072),
        ("Qwen3-0.6B", "qwen3", 28, 1024, 16, 8, 128, 3072, 151936, 40960, True),
        ("Qwen3-1.7B", "qwen3", 28, 2048, 16, 8, 128, 6144, 151936, 40960, True),
        ("Qwen3-4B", "qwen3", 36, 2560, 32, 8, 128, 9728, 151936, 40960, True),
        ("Qwen3-8B", "qwen3", 36, 4096, 32, 8, 128, 12288, 151936, 40960),
        ("Qwen3-14B", "qwen3", 40, 5120, 40, 8, 128, 17408, 151936, 40960),
        ("Qwen3-32B", "qwen3", 64, 5120, 64, 8, 128, 25600, 151936, 40960),
        ("Qwen3-30B-A3B", "qwen3moe", 48, 2048, 32, 4, 128, 768, 151936, 40960, False, 128),
        ("Qwen3-235B-A22B", "qwen3moe", 94, 4096, 64, 4, 128, 1536, 151936, 40960, False, 128),
        ("Mixtral-8x7B", "llama", 32, 4096, 32, 8, 128, 14336, 32000, 32768, False, 8),
        ("gpt-oss-20b", "gpt-oss", 24, 2880, 64, 8, 64, 2880, 201088, 131072, False, 32),
        ("gpt-oss-120b", "gpt-oss", 36, 2880, 64, 8, 64, 2880, 201088, 131072, False, 128),
        ("Phi-3-mini", "phi3", 32, 3072, 32, 32, 96, 8192, 32064, 4096),
        ("Phi-3-medium", "phi3", 40, 5120, 40, 10, 128, 17920, 32064, 4096),
        ("Phi-4", "phi3", 40, 5120, 40, 10, 128, 17920, 100352, 16384),
        ("Gemma-2-2B", "gemma2", 26, 2304, 8, 4, 256, 9216, 256000, 8192, True),
        ("Gemma-2-9B", "gemma2", 42, 3584, 16, 8, 256, 14336, 256000, 8192, True),
        ("Gemma-2-27B", "gemma2", 46, 4608, 32, 16, 128, 36864, 256000, 8192, True),
        ("Gemma-3-1B", "gemma3", 26, 1152, 4, 1, 256, 6912, 262144, 32768, True),
        ("Gemma-3-4B", "gemma3", 34, 2560, 8, 4, 256, 10240, 262144, 131072, True),
        ("Gemma-3-12B", "gemma3", 48, 3840, 16, 8, 256, 15360, 262144, 131072, True),
        ("Gemma-3-27B", "gemma3", 62, 5376, 32, 16, 128, 21504, 262144, 131072, True),
    )
)


def by_parameters(family: str, parameters: int, text: str) -> Architecture | None:
    """The model of this family with so many parameters; of several of one shape the one named in `text`, or the first.

    `family` as llama.cpp writes it ("llama", "qwen2"); empty: any, if that leaves no doubt about the shape.
    """
    close = sorted(
        (
            each
            for each in ARCHITECTURES
            if abs(each.parameters - parameters) <= _SAME_COUNT * parameters and family in ("", each.family)
        ),
        key=lambda each: abs(each.parameters - parameters),
    )
    name = by_name(text, [each.name for each in close])
    if name is None and len({each.family for each in close}) > 1:
        return None
    return next((each for each in close if name in (None, each.name)), None)


def named(name: str) -> Architecture | None:
    return next((each for each in ARCHITECTURES if each.name == name), None)


def by_name(text: str, names: Iterable[str]) -> str | None:
    """Of these model names the longest that the text has in it, word by word: "Meta-Llama-3-8B.gguf", "llama3:8b"."""
    words = _words(text)
    best: tuple[int, str] | None = None
    for name in names:
        own = _words(name)
        found = any(words[start : start + len(own)] == own for start in range(len(words) - len(own) + 1))
        if found and (best is None or len(own) > best[0]):
            best = (len(own), name)
    return best[1] if best else None


def _words(text: str) -> list[str]:
    return re.findall(r"\d+(?:\.\d+)?b(?![a-z])|\d+(?:\.\d+)?|[a-z]+", text.lower())
