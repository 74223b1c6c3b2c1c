"""What is measured, what of it matters most, and how long it will take on this device.

Every point has a rank: 0 is needed for any table, higher ranks add detail. `pace` times a slice of a model, two layers
of it, so that the cost of everything is known before anything large is loaded; ranks are left out from the top until
the rest ends in time. Nothing here writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from time import perf_counter

import torch

from sim.hardware.model.device import Device
from sim.hardware.model.transformer import Item, Transformer, random_tokens
from sim.hardware.model.weights import HostWeights
from sim.profiles.library import grouped
from sim.profiling.architectures import Architecture

_MOST_TOKENS = 1 << 16  # of a batch: more KV tells nothing new
PAPER = (0.92, 0.94, 0.96, 0.98)  # residencies at which published curves bend


@dataclass(frozen=True)
class MeasurementGrid:
    """Knots. `limit_s`: how long one point may be repeated, `most`: how often."""

    shares: tuple[float, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    chunks: tuple[int, ...]
    kv_tokens: tuple[int, ...]
    pools: tuple[int, ...]
    limit_s: float
    most: int
    copy_bytes: int
    disk_bytes: int


_TENTHS = tuple(step / 10 for step in range(11))
GRIDS = {
    ("cuda", True): MeasurementGrid(
        (0.0, 0.5, *PAPER, 1.0), (1, 4, 16), (128, 2048), (64, 512, 2048), (512,), (512, 2048, 4096), (4096,),
        0.8, 12, 256 << 20, 1 << 30,
    ),
    ("cuda", False): MeasurementGrid(
        (*_TENTHS, *PAPER), (1, 2, 4, 8, 16, 32), (128, 1024, 4096, 8192), (32, 128, 512, 2048, 4096, 8192),
        (256, 512, 2048), (256, 1024, 4096, 8192), (4096, 32768), 3.0, 30, 1 << 30, 4 << 30,
    ),
    ("cpu", True): MeasurementGrid(
        (0.0, 0.5, *PAPER, 1.0), (1, 4), (64, 512), (32, 128, 384), (128,), (128, 512, 1024), (1024,),
        0.8, 8, 64 << 20, 256 << 20,
    ),
    ("cpu", False): MeasurementGrid(
        (*_TENTHS, *PAPER), (1, 2, 4, 8), (64, 256, 1024), (32, 128, 512, 1024), (64, 256), (128, 512, 2048),
        (1024, 4096), 2.0, 20, 256 << 20, 1 << 30,
    ),
}  # fmt: skip


Group = tuple[str, str, str, int]


@dataclass(frozen=True)
class PlannedPoint:
    """One thing to measure. `tokens`: context, prompt, or KV tokens; `seconds`: about how long measuring takes."""

    part: str  # decode, prefill, cycle (reserve, reload, free), kv
    model: str
    offload: str
    layers: int
    rank: int
    batch: int = 1
    tokens: int = 0
    chunk: int | None = None
    path: str = ""
    seconds: float = 0.0

    @property
    def group(self) -> Group:
        """Points of one group share an instance: (model, weights, offload, layers)."""
        weights = "pageable" if self.part == "cycle" and self.path != "pinned" else "pinned"
        switching = self.part == "cycle"
        return (self.model, weights, "" if switching else self.offload, -1 if switching else self.layers)

    @property
    def pool(self) -> int:
        """KV tokens that the instance must hold."""
        return self.batch * self.tokens


def knots(shape: Architecture, grid: MeasurementGrid, most: int, whole: bool) -> list[int]:
    """Layers on the device, of at most `most` that fit; with more than a few shares the neighbours of the ends too."""
    found = [round(share * shape.layers) for share in grid.shares]
    found += [1, shape.layers - 1] if len(grid.shares) > len(PAPER) + 3 else []
    return sorted({min(n, most) for n in found if n >= 0 and (whole or min(n, most) < shape.layers)})


def decode_points(
    shape: Architecture, grid: MeasurementGrid, offload: str, most: int, whole: bool = True
) -> Iterator[PlannedPoint]:
    """`whole`: with all layers on the device too, where it is the same however the others would run."""
    contexts = [each for each in grid.contexts if each <= shape.max_context]
    middle = min(round(shape.layers / 2), most)
    for layers in knots(shape, grid, most, whole):
        edge = layers in (0, most)
        for batch in grid.batches:
            for context in (each for each in contexts if batch * each <= _MOST_TOKENS):
                corner = (batch, context) in ((1, contexts[0]), (1, contexts[-1]), (grid.batches[-1], contexts[0]))
                rank = 4 if corner else 5
                if (batch, context) == (1, contexts[0]):
                    rank = 2
                if edge or layers == middle:
                    rank = 3
                if layers == most or (layers == middle and corner):
                    rank = 1
                if edge and corner:
                    rank = 0
                yield PlannedPoint("decode", shape.model, offload, layers, rank, batch, context)


def prefill_points(
    shape: Architecture, grid: MeasurementGrid, offload: str, most: int, whole: bool = True
) -> Iterator[PlannedPoint]:
    """`whole` as in `decode_points`."""
    prompts = [each for each in grid.prompts if each <= shape.max_context]
    middle = min(round(shape.layers / 2), most)
    for layers in knots(shape, grid, most, whole):
        for place, tokens in enumerate(prompts):
            central = place == len(prompts) // 2
            rank = {0: 1, most: 1, middle: 2}.get(layers, 5) - (1 if central and layers in (0, most) else 0)
            yield PlannedPoint("prefill", shape.model, offload, layers, rank, tokens=tokens)
            for chunk in grid.chunks:
                if chunk < tokens and layers in (0, middle, most) and tokens == prompts[-1]:
                    chunk_rank = {most: 1, 0: 3}.get(layers, 5)
                    yield PlannedPoint("prefill", shape.model, offload, layers, chunk_rank, tokens=tokens, chunk=chunk)


def switch_points(shape: Architecture, grid: MeasurementGrid, most: int, smallest: bool) -> Iterator[PlannedPoint]:
    places = {most: 0, round(most / 2): 0, round(most / 4): 2, round(most * 3 / 4): 3}
    cycle = partial(PlannedPoint, "cycle", shape.model, "cpu")
    for layers, rank in places.items():
        if layers:
            yield cycle(layers, rank, tokens=grid.pools[0], path="pinned")
            yield cycle(layers, rank + 1, tokens=grid.pools[0], path="pageable")
    for pool in grid.pools[1:]:
        yield cycle(most, 2, tokens=pool, path="pinned")
    for layers in (most, round(most / 2)):
        if layers:
            yield cycle(layers, 1 if smallest else 3, tokens=grid.pools[0], path="disk")
    for tokens in grid.kv_tokens:
        if tokens <= shape.max_context:
            rank = 0 if tokens > grid.kv_tokens[0] else 1
            yield PlannedPoint("kv", shape.model, "cpu", most, rank, tokens=tokens, path="pinned")
            yield PlannedPoint("kv", shape.model, "cpu", most, 2, tokens=tokens, path="pageable")


# --- memory


def device_bytes(shape: Architecture, layers: int, offload: str, pool: int, item: int = 2) -> int:
    """Device memory of an instance with KV for `pool` tokens."""
    on_device = shape.layers if offload == "stream" else layers
    staging = 2 * shape.layer_bytes(item) if offload == "stream" and layers < shape.layers else 0
    return shape.weight_bytes(layers, item) + staging + on_device * pool * shape.kv_bytes_per_token_layer(item)


def most_layers(shape: Architecture, budget_bytes: int, pool: int) -> int | None:
    """The most layers that fit beside KV for `pool` tokens; None: not even none of them."""
    fitting = [n for n in range(shape.layers + 1) if device_bytes(shape, n, "cpu", pool) <= budget_bytes]
    return max(fitting) if fitting else None


def host_bytes(shape: Architecture, point: PlannedPoint, on_device: int, cuda: bool, item: int = 2) -> int:
    """Host memory for measuring a point: weights, KV of host layers or a saved KV; on the CPU the device's too."""
    outside = shape.layers - point.layers if point.offload == "cpu" else 0
    layers = max(outside, 2 * point.layers if point.part == "kv" else 0)  # torch rounds pinned memory up
    kv = point.pool * layers * shape.kv_bytes_per_token_layer(item)
    return shape.weight_bytes(shape.layers, item) + kv + (2 << 30 if cuda else on_device + (1 << 29))


# --- time


@dataclass(frozen=True)
class LayerPace:
    """Seconds of one layer on the device or the host."""

    one_s: float
    many_s: float
    kv_token_s: float
    prompt_token_s: float
    many: int

    def step_s(self, batch: int, context: int) -> float:
        share = (batch - 1) / max(1, self.many - 1)
        return self.one_s + (self.many_s - self.one_s) * share + batch * context * self.kv_token_s


@dataclass(frozen=True)
class ModelPace:
    """How quick a model's layers are on this machine. GB/s are bytes per second here."""

    shape: Architecture
    device: LayerPace
    host: LayerPace
    link_bytes_per_s: float
    disk_bytes_per_s: float
    load_bytes_per_s: float  # into memory that was just reserved, freeing included

    def seconds(self, point: PlannedPoint, grid: MeasurementGrid) -> float:
        """About how long it takes to measure a point, warm-up and repeats included."""
        shape, layers = self.shape, point.layers
        if point.part == "kv":
            return 5 * (2 * point.pool * layers * shape.kv_bytes_per_token_layer() / self.link_bytes_per_s + 0.005)
        if point.part == "cycle":
            size = shape.weight_bytes(layers) + point.pool * layers * shape.kv_bytes_per_token_layer()
            once_s = size / self.load_bytes_per_s + 0.02
            if point.path == "disk":
                once_s += size / self.disk_bytes_per_s
        else:
            once_s = self._once_s(point)
        return once_s * (1.3 + min(max(grid.limit_s / once_s, 2.5), grid.most / 2))

    def _once_s(self, point: PlannedPoint) -> float:
        shape, outside = self.shape, self.shape.layers - point.layers
        if point.part == "decode":
            mine, theirs = (side.step_s(point.batch, point.tokens) for side in (self.device, self.host))
        else:
            mine, theirs = (max(side.one_s, side.prompt_token_s * point.tokens) for side in (self.device, self.host))
            mine, theirs = (each * (1 if point.chunk is None else 1.2) for each in (mine, theirs))
        if point.offload == "stream":
            theirs = max(mine, shape.layer_bytes() / self.link_bytes_per_s)
        head_s = (mine if not outside else theirs) * shape.head_bytes() / shape.layer_bytes()
        head_s = min(head_s, self.host.one_s * shape.head_bytes() / shape.layer_bytes())
        return point.layers * mine + outside * theirs + head_s

    def setup_s(self, group: Group, pool: int) -> float:
        """About how long it takes to make a group's instance."""
        size = device_bytes(self.shape, max(group[3], 0), group[2] or "cpu", pool)
        return 0.05 + 1.5 * size / self.load_bytes_per_s


def pace(
    shape: Architecture, device: Device, dtype: torch.dtype, grid: MeasurementGrid, rates: tuple[float, float]
) -> ModelPace:
    """Time two layers of the model on the device and on the host. `rates`: link and disk, bytes per second."""
    slice_ = replace(shape, layers=2, vocab=256, tied=True)
    weights = HostWeights(slice_, device, dtype)
    context = min(grid.contexts[-1], shape.max_context, max(grid.contexts[0], _MOST_TOKENS // grid.batches[-1]))
    (mine, load_s), (theirs, _) = (_side(weights, device, layers, grid, context) for layers in (2, 0))
    loaded = device_bytes(slice_, 2, "cpu", grid.batches[-1] * context, dtype.itemsize)
    return ModelPace(shape, mine, theirs, *rates, loaded / load_s)


def _side(
    weights: HostWeights, device: Device, layers: int, grid: MeasurementGrid, context: int
) -> tuple[LayerPace, float]:
    """The pace of a side, and the seconds of loading and freeing."""
    many, few = grid.batches[-1], grid.contexts[0]
    instance, load_s = Transformer(weights, device, layers, many, context), 0.0
    try:
        device.bind(to_host=True)
        begin_s = perf_counter()
        instance.load()
        load_s = perf_counter() - begin_s
        device.bind()

        def step_s(batch: int, tokens: int) -> float:
            return _quick_s(lambda: instance.forward([Item(slot, [1], tokens - 1) for slot in range(batch)])) / 2

        one_s, many_s, deep_s = step_s(1, few), step_s(many, few), step_s(many, context)
        prompt = random_tokens(weights.shape, min(context, grid.prompts[len(grid.prompts) // 2]), 0)
        prompt_s = _quick_s(lambda: instance.forward([Item(0, prompt, 0)])) / 2
    finally:
        begin_s = perf_counter()
        instance.free()
        load_s += perf_counter() - begin_s
    kv_token_s = max(0.0, deep_s - many_s) / (many * max(1, context - few))
    return LayerPace(one_s, max(one_s, many_s), kv_token_s, prompt_s / len(prompt), many), load_s


def _quick_s(action: Callable[[], object]) -> float:
    action()
    begin_s = perf_counter()
    action()
    return perf_counter() - begin_s


def affordable(
    points: Sequence[PlannedPoint], setup_s: Callable[[Group, int], float], left_s: float
) -> list[PlannedPoint]:
    """What ends within `left_s`, the most important first; all of rank 0 whatever it takes.

    `setup_s`(group, KV tokens): what an instance costs beside its points.
    """
    pools: dict[Group, int] = {}
    chosen: list[PlannedPoint] = []
    in_order = sorted(points, key=attrgetter("rank"))
    for (rank, group), members in grouped(in_order, attrgetter("rank", "group")).items():
        before_s = setup_s(group, pools[group]) if group in pools else 0.0
        pool = max(pools.get(group, 0), *(point.pool for point in members))
        more_s = sum(point.seconds for point in members) + setup_s(group, pool) - before_s
        if rank == 0 or more_s <= left_s:
            left_s -= more_s
            pools[group] = pool
            chosen += members
    return chosen
