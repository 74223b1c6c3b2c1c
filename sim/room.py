"""Pure: what a model takes on a GPU and in its host's memory, and whether it is there.

One definition for the gate that refuses, the views that policies ask, and build.py that says which models fit nowhere.
"""

from __future__ import annotations

from typing import NamedTuple

from sim.cluster import Gpu
from sim.spec import EngineOptions
from sim.state import Model


class Need(NamedTuple):
    """Bytes: on the GPU; of KV in host memory; of weights to be pinned there (0: no host copy needed)."""

    gpu: int
    host_kv: int
    host_weights: int


def need(model: Model, layers: int, kv_tokens: int, options: EngineOptions) -> Need:
    """What an instance takes. The KV pool is in whole blocks; a layer's KV lives where the layer lives."""
    block = options.block_tokens
    kv_layer_bytes = model.kv_layer_bytes(-(-kv_tokens // block) * block)
    weights = model.weights
    pinned = layers < weights.layers or options.resize != "none"
    return Need(
        gpu=weights.gpu_bytes(layers) + layers * kv_layer_bytes,
        host_kv=(weights.layers - layers) * kv_layer_bytes,
        host_weights=weights.total_bytes if pinned else 0,
    )


def host_missing(model: Model, gpu: Gpu, host_weights: int, host_kv: int) -> int:
    """Bytes of host memory that lack for pinning these weights and holding this KV; 0 or less: there is room."""
    weights, memory = model.weights, gpu.node.memory
    key = weights.key
    pinned = key if host_weights and not memory.pins.get(key) else None
    return memory.room_for(pinned, host_weights, host_kv)
