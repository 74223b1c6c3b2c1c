"""How much of a model is on its GPUs: a value, of which accounts, loads and resizes ask bytes.

Today that is a number of whole layers; the others, with their KV, are in host memory. Whatever else may be split one
day is split here.
"""

from __future__ import annotations

from dataclasses import dataclass

from sim.profiles.profile import Weights


@dataclass(frozen=True)
class Residency:
    """`layers` of a model's layers are on the GPU. `Model.residency` keeps one of each."""

    weights: Weights
    layers: int

    @property
    def share(self) -> float:
        """Of all its layers."""
        return self.layers / self.weights.layers

    @property
    def whole(self) -> bool:
        """Is nothing left in host memory?"""
        return self.layers == self.weights.layers

    @property
    def gpu_weight_bytes(self) -> int:
        return self.weights.gpu_bytes(self.layers)

    @property
    def host_weight_bytes(self) -> int:
        return self.weights.host_bytes(self.layers)

    def gpu_kv_bytes(self, layer_bytes: int) -> int:
        """Of KV with so many bytes in a layer, what lies on the GPU: a layer's KV lives where the layer lives."""
        return self.layers * layer_bytes

    def host_kv_bytes(self, layer_bytes: int) -> int:
        """The rest of it, in host memory."""
        return (self.weights.layers - self.layers) * layer_bytes

    def gpu_bytes(self, kv_layer_bytes: int) -> int:
        """Weights and KV pool on the GPU."""
        return self.gpu_weight_bytes + self.gpu_kv_bytes(kv_layer_bytes)
