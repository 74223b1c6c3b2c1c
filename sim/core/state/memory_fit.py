"""Pure: what a model takes on a GPU and in its host's memory, and whether it is there.

One definition for the gate that refuses, the views that policies ask, and build.py that says which models fit nowhere.
"""

from __future__ import annotations

from typing import NamedTuple

from sim.core.state.instance import ASLEEP, READY, STATUSES, Instance, Model
from sim.core.state.machines import Gpu
from sim.scenario.scenario import EngineOptions


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


def why_not_layers(model: Model, gpu: Gpu, layers: object) -> str:
    """Empty if the model's tables know so many layers on this GPU."""
    fewest = model.profiles[gpu.kind.gpu, gpu.node.kind.host].fewest_layers
    if isinstance(layers, int) and fewest <= layers <= model.weights.layers:
        return ""
    return f"layers must be a whole number from {fewest} to {model.weights.layers}"


def status_word(instance: Instance) -> str:
    """What an instance is doing, for a message that says why it takes no action now."""
    if instance.resizing is not None or instance.stop_mode in ("restart", "sleep"):
        return "being resized"
    return "stopping" if instance.stop_mode is not None else STATUSES[instance.status]


def growth_room(gpu: Gpu) -> int:
    """What an elastic resize may take now: memory that is free already and that no load waits for."""
    return max(0, min(gpu.capacity_bytes - gpu.used_bytes - gpu.claimed_bytes, gpu.available_bytes))


def why_not_resize(instance: Instance, layers: object, options: EngineOptions) -> str:
    """Empty if the instance may be resized to so many layers now, as the engine can; else the reason, with numbers."""
    model, gpu = instance.model, instance.gpu
    asleep = instance.status == ASLEEP
    if instance.status not in (READY, ASLEEP) or instance.stop_mode or instance.resizing:
        return f"the instance is {status_word(instance)}"
    if options.resize == "sleep":
        allowed = instance.layers if asleep else 0
        if layers != allowed:
            return f"an engine with resize: sleep can only go to {allowed} layers here"
        if not asleep:
            return ""
    if reason := why_not_layers(model, gpu, layers):
        return reason
    assert isinstance(layers, int)
    if layers == instance.layers and not asleep:
        return "it has that many layers already"
    # A restart and a wake wait for memory like a load; elastic growth takes it at once, beside what runs.
    grow = instance.gpu_bytes_at(layers) - (0 if asleep else instance.gpu_bytes)
    room = growth_room(gpu) if options.resize == "elastic" else max(0, gpu.available_bytes)
    if grow > room:
        return f"it needs {gib(grow)} more on {gpu.name} and {gib(room)} are available"
    needed = need(model, layers, instance.kv_blocks * instance.block_tokens, options)
    held = 0 if asleep else instance.host_kv_bytes_at(instance.layers)
    host_weights = 0 if instance.pins_weights else needed.host_weights
    missing = host_missing(model, gpu, host_weights, max(0, needed.host_kv - held))
    return f"host memory of {gpu.node.name} lacks {gib(missing)} for it" if missing > 0 else ""


def gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
