"""The machines and models of a scenario as the bounds see them: equal GPUs and equal models counted, not listed.

A cluster of hundreds of equal GPUs is a few groups with a count; fine-tuned models of one kind are one sort of work.
Times come from the same tables as the simulation's. Called by the other modules of this package.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.common.errors import ConfigError
from sim.core.state.instance import Model
from sim.core.state.machines import Cluster, Gpu, Node
from sim.core.state.memory_fit import need
from sim.engine.build_cluster import build_cluster
from sim.profiles.library import Library
from sim.profiles.profile import Profile
from sim.scenario.scenario import EngineOptions, Scenario

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class EqualGpus:
    """`count` equal GPUs, on `nodes` equal nodes (number `node_type`) of `node_gpus` GPUs of any kind each."""

    label: str
    gpu: Gpu
    count: int
    nodes: int
    node_gpus: int
    node_type: int


@dataclass(frozen=True)
class Level:
    """From `low` to `high` layers of a model on a GPU, treated as one: with the memory and the GPU time of `low` and
    the CPU time of `high`, so with less of each than any of them has. `bytes`: with the smallest KV pool."""

    low: int
    high: int
    bytes: int


class Sort:
    """Models that cost the same everywhere: same weights, tables and context. `members`: their indexes."""

    def __init__(self, model: Model, options: EngineOptions) -> None:
        self.model = model
        self.options = options
        self.members: list[int] = []
        self.layers = model.weights.layers

    def profile(self, group: EqualGpus) -> Profile:
        return self.model.profiles[group.gpu.kinds]

    def fitting(self, group: EqualGpus) -> range:
        """The numbers of layers that the tables have and an empty GPU holds, with KV for one longest request."""
        fewest = self.profile(group).fewest_layers
        most = self.layers
        while most >= fewest and self._bytes(most) > group.gpu.capacity_bytes:
            most -= 1
        return range(fewest, most + 1)

    def _bytes(self, layers: int) -> int:
        return need(self.model, self.model.residency(layers), self.model.max_context, self.options).gpu

    def levels(self, group: EqualGpus, most: int = 64, fineness: int = 1) -> list[Level]:
        """All that fits, from the most layers down: full residency by itself, below it ever wider levels, each by as
        much as what is above them, or by a share of that: the finer, the nearer is a bound and the larger its program.
        The last takes all that is left when there are to be at most so many.
        """
        fitting = self.fitting(group)
        found: list[Level] = []
        high = fitting.stop - 1
        if high == self.layers:
            found, high, most = [Level(high, high, self._bytes(high))], high - 1, most - 1
        while high >= fitting.start:
            width = max(1, (self.layers - high - 1) // fineness)
            low = max(fitting.start, high - width + 1) if most > 1 else fitting.start
            found.append(Level(low, high, self._bytes(low)))
            high, most = low - 1, most - 1
        return found

    def pool_tokens(self, group: EqualGpus, level: Level) -> float:
        """KV tokens that can be there at once, at most: what is left of the GPU, and of the host."""
        weights = self.model.weights
        room = group.gpu.capacity_bytes - weights.gpu_bytes(level.low)
        on_gpu = room / (level.low * weights.kv_bytes_per_token_layer) if level.low else inf
        outside = self.layers - level.high
        on_host = group.gpu.node.memory.capacity / (outside * weights.kv_bytes_per_token_layer) if outside else inf
        return min(on_gpu, on_host)


class BoundMachines:
    """A scenario's GPU groups and sorts of models. Raises SimError: what build_cluster refuses."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        library = Library(Path(scenario.profiles) if scenario.profiles else None)
        self.cluster = build_cluster(scenario, library)
        self.groups = _groups(self.cluster)
        self.sorts: list[Sort] = []
        self.sort_of: list[int] = []  # by model: its sort; -1: it fits nowhere
        places: dict[object, int] = {}
        for model in self.cluster.models:
            if model.fits_nowhere:
                self.sort_of.append(-1)
                continue
            weights = model.weights
            key = (weights.model, weights.quantization, model.spec.engine_name, model.max_context)
            if key not in places:
                places[key] = len(self.sorts)
                self.sorts.append(Sort(model, scenario.engine))
            self.sorts[places[key]].members.append(model.index)
            self.sort_of.append(places[key])
        if not self.sorts:
            raise ConfigError(f"scenario '{scenario.name}': no model fits anywhere, so there is nothing to bound")


def _groups(cluster: Cluster) -> list[EqualGpus]:
    alike: dict[object, list[Node]] = {}
    for node in cluster.nodes:
        inside = tuple(sorted((gpu.kind.gpu, gpu.capacity_bytes) for gpu in node.gpus))
        alike.setdefault((node.kind.host, node.memory.capacity, inside), []).append(node)
    found: list[EqualGpus] = []
    for number, nodes in enumerate(alike.values()):
        kinds: dict[str, list[Gpu]] = {}
        for gpu in nodes[0].gpus:
            kinds.setdefault(gpu.kind.gpu, []).append(gpu)
        for kind, gpus in kinds.items():
            label = f"{kind} in {nodes[0].kind.host}"
            same = sum(group.label.split(" #")[0] == label for group in found)
            label += f" #{same + 1}" if same else ""
            found.append(EqualGpus(label, gpus[0], len(gpus) * len(nodes), len(nodes), len(nodes[0].gpus), number))
    return found


def decode_seconds(profile: Profile, layers: int, batches: Floats, contexts: Floats) -> tuple[Floats, Floats]:
    """(GPU seconds, host seconds) of decode iterations: one for each pair of equal place in the two columns.

    The tables' own interpolation, in many places at once: linear between batches and between contexts.
    """
    knots = [knot for knot in profile.knots[1] if knot <= batches.max()]
    later = [knot for knot in profile.knots[1] if knot > batches.max()]
    knots = [*knots, *later[:1]] or [profile.knots[1][0]]
    curves = [profile.decode_curve(layers, knot) for knot in knots]
    gpu_s, host_s = (
        np.array([np.interp(contexts, np.array(curve.knots), np.array(getattr(curve, name))) for curve in curves])
        for name in ("gpu_s", "host_s")
    )
    places = np.array(knots, dtype=np.float64)
    return _between(places, gpu_s, batches), _between(places, host_s, batches)


def _between(knots: Floats, rows: Floats, batches: Floats) -> Floats:
    """rows[knot, place] interpolated at batches[place]; below the first knot its row."""
    if len(knots) == 1:
        return np.asarray(rows[0])
    high = np.clip(np.searchsorted(knots, batches), 1, len(knots) - 1)
    low = high - 1
    weight = np.clip((batches - knots[low]) / (knots[high] - knots[low]), 0.0, 1.0)
    places = np.arange(len(batches))
    return np.asarray(rows[low, places] * (1 - weight) + rows[high, places] * weight)
