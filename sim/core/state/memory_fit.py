"""Pure: what a model takes on a GPU and in its host's memory, and whether it is there.

One definition for the gate that refuses, the views that policies ask, and build_cluster.py that says which models fit
nowhere.
"""

from __future__ import annotations

from typing import NamedTuple

from sim.core.state.instance import ASLEEP, READY, STATUSES, Instance, Model
from sim.core.state.machines import Gpu, Node
from sim.core.state.residency import Residency
from sim.scenario.scenario import EngineOptions


class Need(NamedTuple):
    """Bytes: on the GPU; of KV in host memory; of weights to be pinned there (0: no host copy needed)."""

    gpu: int
    host_kv: int
    host_weights: int


def need(model: Model, residency: Residency, kv_tokens: int, options: EngineOptions) -> Need:
    """What an instance takes. The KV pool is in whole blocks."""
    block = options.block_tokens
    kv_layer_bytes = model.kv_layer_bytes(-(-kv_tokens // block) * block)
    pinned = not residency.whole or options.resize != "none"
    return Need(
        gpu=residency.gpu_bytes(kv_layer_bytes),
        host_kv=residency.host_kv_bytes(kv_layer_bytes),
        host_weights=model.weights.total_bytes if pinned else 0,
    )


def host_missing(model: Model, node: Node, host_weights: int, host_kv: int) -> int:
    """Bytes of host memory that lack for pinning these weights and holding this KV; 0 or less: there is room."""
    key = model.weights.key
    pinned = key if host_weights and not node.memory.pins.get(key) else None
    return node.memory.room_for(pinned, host_weights, host_kv)


def why_not_layers(model: Model, gpu: Gpu, layers: object) -> str:
    """Empty if the model's tables know so many layers on this GPU."""
    fewest = model.profiles[gpu.kinds].fewest_layers
    if isinstance(layers, int) and fewest <= layers <= model.weights.layers:
        return ""
    return f"layers must be a whole number from {fewest} to {model.weights.layers}"


def status_word(instance: Instance) -> str:
    """What an instance is doing, for a message that says why it takes no action now."""
    if instance.resizing is not None or instance.stop_mode in ("restart", "sleep"):
        return "being resized"
    return "stopping" if instance.stop_mode is not None else STATUSES[instance.status]


def why_not_resize(instance: Instance, layers: object, options: EngineOptions) -> str:
    """Empty if the instance may be resized to so many layers now, as the engine can; else the reason, with numbers."""
    model, placement = instance.model, instance.placement
    asleep = instance.status == ASLEEP
    if instance.status not in (READY, ASLEEP) or instance.stop_mode or instance.resizing:
        return f"the instance is {status_word(instance)}"
    if options.resize == "sleep":
        allowed = instance.residency.layers if asleep else 0
        if layers != allowed:
            return f"an engine with resize: sleep can only go to {allowed} layers here"
        if not asleep:
            return ""
    if reason := why_not_layers(model, placement.first, layers):
        return reason
    assert isinstance(layers, int)
    if layers == instance.residency.layers and not asleep:
        return "it has that many layers already"
    # A restart and a wake wait for memory like a load; elastic growth takes it at once, beside what runs.
    needed = need(model, model.residency(layers), instance.blocks.total * instance.blocks.tokens, options)
    grow = needed.gpu - (0 if asleep else instance.gpu_bytes)
    room = placement.growth_bytes if options.resize == "elastic" else max(0, placement.available_bytes)
    if grow > room:
        return f"it needs {gib(grow)} more on {placement.name} and {gib(room)} are available"
    held = 0 if asleep else instance.host_kv_bytes
    host_weights = 0 if instance.pins_weights else needed.host_weights
    missing = host_missing(model, instance.node, host_weights, max(0, needed.host_kv - held))
    return f"host memory of {instance.node.name} lacks {gib(missing)} for it" if missing > 0 else ""


def gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
