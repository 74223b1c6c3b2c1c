"""From a scenario and the profiles to the state at time 0: nodes, GPUs, models, warm host caches.

Refuses what cannot work (unknown names, a hole in the tables, contexts or batches beyond them) and notes, with numbers,
which models fit nowhere.
"""

from __future__ import annotations

from dataclasses import replace

from sim.common.errors import ConfigError, ProfileError
from sim.core.state.host_memory import HostMemory
from sim.core.state.instance import Model
from sim.core.state.machines import Cluster, Gpu, Node
from sim.core.state.memory_fit import need
from sim.engine.ideal_hardware import gpu_kind, host_kind, switch_costs
from sim.profiles.library import Library
from sim.scenario.faults import check_names
from sim.scenario.scenario import GIB, ClusterSpec, EngineOptions, NodeSpec, Scenario

DEFAULT_MAX_CONTEXT = 16_384


def build_cluster(scenario: Scenario, library: Library) -> Cluster:
    """The cluster of a scenario, empty but for its warm host caches.

    Raises ProfileError (unknown GPU, host or model, missing tables) and ConfigError.
    """
    models = [_model(index, scenario, library) for index in range(len(scenario.models))]
    nodes = _nodes(scenario.cluster, library, scenario.engine.ideal)
    cluster = Cluster(nodes, models, scenario.service_classes)
    if scenario.faults is not None:
        check_names(scenario.faults, [gpu.name for gpu in cluster.gpus], [node.name for node in nodes])
    for model in models:
        _attach_profiles(model, cluster, library, scenario.engine)
        model.fits_nowhere = _why_nowhere(model, cluster, scenario.engine, model.max_context)
        wanted = model.spec.kv_tokens
        if wanted and not model.fits_nowhere:
            why = _why_nowhere(model, cluster, scenario.engine, wanted)
            if why:
                raise ConfigError(f"models.{model.index}.kv_tokens: with {wanted} tokens {why}; lower it")
    for spec, node in zip(_node_specs(scenario.cluster), nodes, strict=True):
        if spec.cache_at_start == "all":
            for model in models:
                weights = model.weights
                if node.memory.free >= weights.total_bytes:
                    node.memory.cache(weights.key, weights.total_bytes)
    return cluster


def _model(index: int, scenario: Scenario, library: Library) -> Model:
    spec = scenario.models[index]
    weights = library.model_weights(spec.model, spec.quantization)
    if spec.own_weights:
        weights = replace(weights, owner=spec.name)
    if spec.max_context is not None and spec.max_context > weights.max_context:
        raise ConfigError(
            f"models.{index}.max_context: {spec.max_context} tokens, but {spec.model} can do {weights.max_context}"
        )
    max_context = spec.max_context or min(DEFAULT_MAX_CONTEXT, weights.max_context)
    if spec.kv_tokens is not None and spec.kv_tokens < max_context:
        raise ConfigError(
            f"models.{index}.kv_tokens: {spec.kv_tokens} cannot hold one request of max_context {max_context}"
        )
    return Model(index, spec, weights, max_context)


def _node_specs(cluster: ClusterSpec) -> list[NodeSpec]:
    return [spec for spec in cluster.nodes for _ in range(spec.count)]


def _nodes(cluster: ClusterSpec, library: Library, ideal: tuple[str, ...]) -> list[Node]:
    nodes: list[Node] = []
    gpus = 0
    names: dict[str, int] = {}
    for spec in _node_specs(cluster):
        kind = host_kind(library.host(spec.host), ideal)
        base = spec.name or spec.host
        names[base] = names.get(base, 0) + 1
        name = base if spec.name and spec.count == 1 else f"{base}-{names[base]}"
        if any(node.name == name for node in nodes):
            raise ConfigError(f"cluster.nodes: the name '{name}' is given twice; choose another")
        bounded = "memory" not in ideal
        capacity = round(spec.memory_gib * GIB) if spec.memory_gib and bounded else kind.memory_bytes
        limit = round(spec.weight_cache_gib * GIB) if spec.weight_cache_gib is not None and bounded else None
        node = Node(len(nodes), name, kind, HostMemory(capacity, limit))
        for group in spec.gpus:
            for _ in range(group.count):
                own = gpu_kind(library.gpu(group.gpu), ideal)
                gpu_name = f"{name}/{group.gpu}-{len(node.gpus)}"
                reserve = round(cluster.gpu_reserve_gib * GIB)
                if reserve >= own.memory_bytes:
                    raise ConfigError(f"cluster.gpu_reserve_gib: leaves nothing of {group.gpu}'s memory; lower it")
                node.gpus.append(Gpu(gpus, gpu_name, own, node, reserve))
                gpus += 1
        nodes.append(node)
    return nodes


def _attach_profiles(model: Model, cluster: Cluster, library: Library, options: EngineOptions) -> None:
    spec = model.spec
    for gpu in cluster.gpus:
        if gpu.kinds in model.profiles:
            continue
        profile = library.profile(spec.model, spec.quantization, *gpu.kinds, spec.engine_name)
        if profile.longest_context < model.max_context:
            raise ProfileError(
                f"{profile.label}: the tables end at {profile.longest_context} tokens of context; "
                f"set max_context of '{model.name}' to at most that"
            )
        if profile.largest_batch < options.max_sequences:
            raise ProfileError(
                f"{profile.label}: the tables end at a batch of {profile.largest_batch}; "
                "set engine.max_sequences to at most that"
            )
        model.profiles[gpu.kinds] = (
            profile.with_switch(switch_costs(profile.switch, options.ideal)) if options.ideal else profile
        )


def _why_nowhere(model: Model, cluster: Cluster, options: EngineOptions, kv_tokens: int) -> str:
    """Empty when some GPU and its host can hold the model with a KV pool of so many tokens; else the numbers."""
    weights = model.weights
    best = ""
    least_missing = None
    for gpu in cluster.gpus:
        fewest = model.profiles[gpu.kinds].fewest_layers
        for layers in (weights.layers, *range(weights.layers - 1, fewest - 1, -1)):
            needed = need(model, model.residency(layers), kv_tokens, options)
            memory = gpu.node.memory
            missing = max(
                needed.gpu - gpu.capacity_bytes,
                needed.host_weights + needed.host_kv - memory.capacity,
                needed.host_weights - memory.cache_limit,
            )
            if missing <= 0:
                return ""
            if least_missing is None or missing < least_missing:
                least_missing = missing
                host_gib = (needed.host_weights + needed.host_kv) / GIB
                best = (
                    f"{model.name} fits nowhere: at best {layers} of {weights.layers} layers on {gpu.name} need "
                    f"{needed.gpu / GIB:.1f} GiB there (usable {gpu.capacity_bytes / GIB:.1f}) and {host_gib:.1f} GiB "
                    f"of host memory ({memory.capacity / GIB:.1f}, for weights {memory.cache_limit / GIB:.1f})"
                )
    return best
