"""Weights of models in host memory: random, one flat tensor a layer and one for the head. transformer.py uses them."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from sim.common.rng import stream
from sim.hardware.model.device import Device
from sim.profiling.architectures import Architecture, read_architectures

_FAMILIES = ("llama", "qwen2", "qwen3")
_NOISE = 1 << 22  # random numbers that weights repeat; each layer begins elsewhere, so that no two are alike


def architectures(path: Path | None = None) -> dict[str, Architecture]:
    """Of a CSV file of shapes (default: profiles/architectures.csv) those that transformer.py computes, by model."""
    dense = [each for each in read_architectures(path) if each.family in _FAMILIES and not each.experts]
    return {each.model: each for each in dense}


def views(flat: torch.Tensor, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    parts = flat.split(sizes)
    return {name: part.view(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}


class HostWeights:
    """A model's weights in host memory, one flat tensor a layer (and one for the head): random, never zero."""

    def __init__(self, shape: Architecture, device: Device, dtype: torch.dtype, pinned: bool = True) -> None:
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
