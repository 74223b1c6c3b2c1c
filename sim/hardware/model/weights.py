"""The shapes of models and their weights in host memory: random, one flat tensor a layer and one for the head.

Shapes are those of profiles/architectures.csv. transformer.py computes with them.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from sim.common.data_files import data_folder
from sim.common.rng import stream
from sim.hardware.model.device import Device

_NOISE = 1 << 22  # random numbers that weights repeat; each layer begins elsewhere, so that no two are alike


@dataclass(frozen=True)
class DecoderShape:
    """The shape of a model, from profiles/architectures.csv."""

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
        return _elements(self.layer_shapes) * itemsize

    def head_bytes(self, itemsize: int = 2) -> int:
        return _elements(self.head_shapes) * itemsize

    def kv_bytes_per_token_layer(self, itemsize: int = 2) -> int:
        return 2 * self.kv_heads * self.head_dim * itemsize

    def weight_bytes(self, layers: int, itemsize: int = 2) -> int:
        """Bytes on the device with `layers` there."""
        return layers * self.layer_bytes(itemsize) + (self.head_bytes(itemsize) if layers == self.layers else 0)


_NUMBERS = ("layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab", "max_context")


def architectures(path: Path | None = None) -> dict[str, DecoderShape]:
    """All shapes of a CSV file, by model; of profiles/architectures.csv by default."""
    with (path or data_folder("profiles") / "architectures.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        row["model"]: DecoderShape(
            model=row["model"],
            tied=row["tied"] == "yes",
            **{name: int(row[name]) for name in _NUMBERS},
        )
        for row in rows
    }


def _elements(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(torch.Size(shape).numel() for shape in shapes.values())


def views(flat: torch.Tensor, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    parts = flat.split(sizes)
    return {name: part.view(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}


class HostWeights:
    """A model's weights in host memory, one flat tensor a layer (and one for the head): random, never zero."""

    def __init__(self, shape: DecoderShape, device: Device, dtype: torch.dtype, pinned: bool = True) -> None:
        self.shape = shape
        self.dtype = dtype
        item = dtype.itemsize
        noise = (random_numbers(_NOISE - 1, 0, shape.model) * shape.hidden**-0.5).to(dtype)
        self.layers = [
            _random(device.host_empty(shape.layer_bytes(item), pinned).view(dtype), noise, shape.layer_shapes, number)
            for number in range(shape.layers)
        ]
        head = device.host_empty(shape.head_bytes(item), pinned).view(dtype)
        self.head = _random(head, noise, shape.head_shapes, shape.layers)

    def save(self, path: Path) -> None:
        """Write all weights as one safetensors file."""
        tensors = {f"layer.{number}": layer for number, layer in enumerate(self.layers)}
        save_file({**tensors, "head": self.head}, path)


def random_numbers(count: int, seed: int, name: str) -> torch.Tensor:
    """So many of a standard normal distribution, from the stream `name` of `seed`."""
    return torch.from_numpy(stream(seed, name).standard_normal(count)).float()


def _random(flat: torch.Tensor, noise: torch.Tensor, shapes: dict[str, tuple[int, ...]], number: int) -> torch.Tensor:
    start, skip = 0, number * 999_983 % noise.numel()
    while start < flat.numel():
        part = flat[start : start + noise.numel() - skip]
        part.copy_(noise[skip : skip + part.numel()])
        start, skip = start + part.numel(), 0
    for name, view in views(flat, shapes).items():
        if name.startswith("norm"):
            view.add_(1.0)  # as a trained norm: near one
    return flat
