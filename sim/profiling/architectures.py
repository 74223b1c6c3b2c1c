"""Shapes of well-known models (profiles/architectures.csv), and what model and bytes a benchmark record is of.

A GGUF file's parameter count names its shape almost without doubt; what its head and embedding weigh follows from the
quantisation rules of llama.cpp. A layer's bytes are all its experts'. The importers use it, where profiles/models.csv
comes first; sim/hardware runs the shapes.

Shapes: the models' config.json as gathered by Lightning-AI/litgpt (commit 2685705, config.py), and model cards.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path

from sim.common.data_files import data_folder
from sim.common.errors import ProfileError

_SAME_COUNT = 0.002  # of the parameters: biases, norms and rope factors are not counted here
# Bits a weight of the embedding takes; blocks of 32 or 256 weights with their scales. MXFP4 is for experts alone.
_BITS = {
    "FP32": 32.0, "FP16": 16.0, "BF16": 16.0, "Q8_0": 8.5, "Q6_K": 6.5625, "Q5_1": 6.0, "Q5_0": 5.5, "Q5_K": 5.5,
    "Q4_1": 5.0, "Q4_0": 4.5, "Q4_K": 4.5, "Q3_K": 3.4375, "Q2_K": 2.625, "IQ4_NL": 4.5, "IQ4_XS": 4.25,
    "IQ3_S": 3.4375, "IQ3_M": 3.4375, "IQ3_XS": 3.4375, "IQ3_XXS": 3.4375, "IQ2": 2.625,
    "MXFP4": 8.5,
}  # fmt: skip


_NUMBERS = ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab", "max_context")


@dataclass(frozen=True)
class Architecture:
    """A decoder. `family`: what llama.cpp calls its architecture. Head and embedding are one if `tied`."""

    model: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    max_context: int
    family: str = "llama"
    experts: int = 0  # of `intermediate` each; 0: dense

    @property
    def head_parameters(self) -> int:
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Without biases and norms."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        layer = attention + 3 * self.hidden * self.intermediate * max(1, self.experts) + self.hidden * self.experts
        return self.layers * layer + self.head_parameters * (1 if self.tied else 2)

    def kv_bytes_per_token_layer(self, itemsize: int = 2) -> int:
        return 2 * self.kv_heads * self.head_dim * itemsize

    @property
    def layer_shapes(self) -> dict[str, tuple[int, ...]]:
        """The tensors of one layer, in the order in which they lie in memory."""
        return {
            "norm1": (self.hidden,),
            "qkv": ((self.heads + 2 * self.kv_heads) * self.head_dim, self.hidden),
            "out": (self.hidden, self.heads * self.head_dim),
            "norm2": (self.hidden,),
            "gate_up": (2 * self.intermediate, self.hidden),
            "down": (self.hidden, self.intermediate),
        }

    @property
    def head_shapes(self) -> dict[str, tuple[int, ...]]:
        """What moves with the last layer: the final norm, the output head and, if it is another, the embedding."""
        shapes: dict[str, tuple[int, ...]] = {"norm": (self.hidden,), "head": (self.vocab, self.hidden)}
        return shapes if self.tied else {**shapes, "embedding": (self.vocab, self.hidden)}

    def layer_bytes(self, itemsize: int = 2) -> int:
        return sum(map(prod, self.layer_shapes.values())) * itemsize

    def head_bytes(self, itemsize: int = 2) -> int:
        return sum(map(prod, self.head_shapes.values())) * itemsize

    def weight_bytes(self, layers: int, itemsize: int = 2) -> int:
        """Bytes on the device with `layers` there."""
        return layers * self.layer_bytes(itemsize) + (self.head_bytes(itemsize) if layers == self.layers else 0)

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
    names = (quantization, quantization.rpartition("_")[0], quantization[:3])  # Q4_K_M, Q4_K, IQ2_XXS
    return next((_BITS[name] for name in names if name in _BITS), None)


def read_architectures(path: Path | None = None) -> tuple[Architecture, ...]:
    """All shapes of a CSV file, in order; of profiles/architectures.csv by default. `family`, `experts` may be missing.

    Raises ProfileError: no such file, a column that is missing, a cell that is no number.
    """
    file = path or data_folder("profiles") / "architectures.csv"
    try:
        rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"), newline="")))
        return tuple(
            Architecture(
                row["model"],
                **{name: int(row[name]) for name in _NUMBERS},
                tied=row["tied"] == "yes",
                family=row.get("family", "llama"),
                experts=int(row.get("experts", 0)),
            )
            for row in rows
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ProfileError(f"{file}: cannot be read as shapes of models ({error}); see the one in profiles/") from None


@cache
def known_architectures() -> tuple[Architecture, ...]:
    """Those that ship with the project."""
    return read_architectures()


def by_parameters(family: str, parameters: int, text: str) -> Architecture | None:
    """The model of this family with so many parameters; of several of one shape the one named in `text`, or the first.

    `family` as llama.cpp writes it ("llama", "qwen2"); empty: any, if that leaves no doubt about the shape.
    """
    alike = [each for each in known_architectures() if family in ("", each.family)]
    near = sorted(alike, key=lambda each: abs(each.parameters - parameters))
    close = [each for each in near if abs(each.parameters - parameters) <= _SAME_COUNT * parameters]
    name = by_name(text, [each.model for each in close])
    if name is None and len({each.family for each in close}) > 1:
        return None
    return next((each for each in close if name in (None, each.model)), None)


def named(name: str) -> Architecture | None:
    return next((each for each in known_architectures() if each.model == name), None)


def by_name(text: str, names: Iterable[str]) -> str | None:
    """Of these model names the longest that the text has in it, word by word: "Meta-Llama-3-8B.gguf", "llama3:8b"."""
    words, parts = _words(text), {name: _words(name) for name in names}
    found = [name for name, own in parts.items() if any(words[n : n + len(own)] == own for n in range(len(words)))]
    return max(found, key=lambda name: len(parts[name]), default=None)


def _words(text: str) -> list[str]:
    return re.findall(r"\d+(?:\.\d+)?b(?![a-z])|\d+(?:\.\d+)?|[a-z]+", text.lower())
