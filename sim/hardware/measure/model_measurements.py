"""The measurements of profile_gpu.py on one model: decode steps, prompts, and each part of a preemption alone.

Every number is the median of repeats after a warm-up, with the 10th and 90th percentile, by the host's clock around
work that ends with a synchronisation of the device. What is measured comes from profiler.plan.py; rows go to a Store.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from profiler.plan import Grid, Point, device_bytes
from profiler.store import Store
from real.device import Device
from real.llm import HostWeights, Instance, Item, random_tokens

from sim.profiling.points import DecodePoint, MemoryPoint, PrefillPoint, Row, SwitchPoint

QUANTIZATIONS = {torch.bfloat16: "BF16", torch.float16: "FP16"}
_SLACK = 0.95  # what a law may be broken by before it is measured again
_QUIRK = 0.9  # kernels have their quirks: a little less time for a little more work is no contradiction
_STEADY = 0.05  # 10th to 90th percentile over the median: no more repeats are needed


@dataclass(frozen=True)
class Timing:
    """Seconds of repeats of one action."""

    median_s: float
    p10_s: float
    p90_s: float
    repeats: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        p10_s, median_s, p90_s = (float(each) for each in np.percentile(samples, (10, 50, 90)))
        return cls(median_s, min(p10_s, median_s), max(p90_s, median_s), len(samples))

    def columns(self, name: str) -> dict[str, Any]:
        """As columns of a row, the median under `name`."""
        return {name: self.median_s, "p10_s": self.p10_s, "p90_s": self.p90_s, "repeats": self.repeats}


def repeated(sample: Callable[[], float], limit_s: float, most: int, warm: int = 1) -> Timing:
    """Take samples until they are steady, or `limit_s` or `most` is reached; two at least, short ones three."""
    begin_s = perf_counter()
    for _ in range(warm):
        sample()
    samples: list[float] = []
    while True:
        samples.append(sample())
        spent_s = perf_counter() - begin_s
        timing = Timing.of(samples)
        if len(samples) >= 5 and timing.p90_s - timing.p10_s <= _STEADY * timing.median_s:
            return timing
        if len(samples) >= most or (spent_s > limit_s and len(samples) >= (2 if spent_s > 3 * limit_s else 3)):
            return timing


def timed(action: Callable[[], object]) -> float:
    """Seconds of one call that waits for the device itself."""
    begin_s = perf_counter()
    action()
    return perf_counter() - begin_s


class Bench:
    """One device, one folder of measurements, one element type."""

    def __init__(self, device: Device, store: Store, grid: Grid, dtype: torch.dtype, seed: int) -> None:
        self.device, self.store, self.grid, self.dtype, self.seed = device, store, grid, dtype, seed
        self.words: dict[str, Any] = {"kind": "measured", "source": store.folder.name}
        self.model: dict[str, Any] = {"quantization": QUANTIZATIONS[dtype]}

    def of(self, point: Point) -> dict[str, Any]:
        return {"model": point.model, **self.model}

    def done(self, point: Point) -> bool:
        """Whether the point's rows are in the folder."""
        return self.row_of(point) is not None

    def row_of(self, point: Point) -> Row | None:
        """The row that a point has become, if it is measured; of a cycle the reload, of KV the restoring."""
        kind: type[Row] = {"decode": DecodePoint, "prefill": PrefillPoint}.get(point.part, SwitchPoint)
        wanted = {**self.of(point), "layers": point.layers}
        if kind is DecodePoint:
            wanted |= {"offload": point.offload, "batch": point.batch, "context": float(point.tokens)}
        elif kind is PrefillPoint:
            wanted |= {"offload": point.offload, "prompt_tokens": point.tokens, "chunk_tokens": point.chunk}
        else:
            part = "reload" if point.part == "cycle" else "kv_restore"
            wanted |= {"part": part, "path": point.path, "tokens": point.tokens}
        names, values = zip(*wanted.items(), strict=True)
        which = attrgetter(*names)
        return next((row for row in self.store.rows[kind] if which(row) == values), None)

    # --- instances

    @contextmanager
    def loaded(self, weights: HostWeights, layers: int, pool: int, offload: str) -> Iterator[Instance]:
        """An instance with random KV for `pool` tokens, freed in the end whatever happens."""
        instance = Instance(weights, self.device, layers, 1, pool, offload)
        try:
            self.device.bind(to_host=True)
            instance.load()
            for kv in (instance._device_kv, instance._host_kv):
                _randomize(kv, self.seed)
            self.device.synchronize()
            self.device.bind()
            yield instance
        finally:
            instance.free()
            gc.collect()

    def run(self, weights: HostWeights, points: Sequence[Point], free_before: int) -> Iterator[Point]:
        """Measure points of one instance; yields each when its row is on disk. `free_before`: see `used_bytes`."""
        first = points[0]
        pool = max(point.pool for point in points)
        with self.loaded(weights, first.layers, pool, first.offload) as instance:
            for point in points:
                if point.part == "decode":
                    self._decode(instance, point)
                elif point.part == "prefill":
                    self._prefill(instance, point)
                else:
                    self._kv(instance, point)
                yield point
            used = self.used_bytes(free_before)
            if first.offload == "cpu" and used > 0:
                self.store.add(
                    [
                        MemoryPoint(
                            **self.of(first), layers=first.layers, batch=1, context=float(pool), **self.words,
                            bytes_used=used,
                        )
                    ]
                )  # fmt: skip

    def used_bytes(self, free_before: int) -> int:
        """Device memory taken since so much was free: weights, KV and what computing needed."""
        if self.device.is_cuda:
            return free_before - int(torch.cuda.mem_get_info(self.device.torch)[0])
        return self.device.used_bytes

    def free_bytes(self) -> int:
        return int(torch.cuda.mem_get_info(self.device.torch)[0]) if self.device.is_cuda else 0

    # --- computing

    def _repeated(self, sample: Callable[[], float], warm: int = 1) -> Timing:
        return repeated(sample, self.grid.limit_s, self.grid.most, warm)

    def _decode(self, instance: Instance, point: Point) -> None:
        instance.recut(point.batch, point.tokens)
        tokens = random_tokens(instance.shape, point.batch, self.seed)
        items = [Item(slot, [token], point.tokens - 1) for slot, token in enumerate(tokens)]
        # Twice: a streamed step begins with a layer that the step before has brought.
        timing = self._repeated(lambda: timed(lambda: instance.forward(items)), warm=2)
        row = DecodePoint(
            **self.of(point), offload=point.offload, layers=point.layers, batch=point.batch,
            context=float(point.tokens), **timing.columns("step_s"), **self.words,
        )  # fmt: skip
        self.store.blend([row])

    def _prefill(self, instance: Instance, point: Point) -> None:
        instance.recut(1, point.tokens)
        prompt = random_tokens(instance.shape, point.tokens, self.seed)
        size = point.chunk or point.tokens

        def whole() -> None:
            for start in range(0, point.tokens, size):
                instance.forward([Item(0, prompt[start : start + size], start)])

        timing = self._repeated(lambda: timed(whole))
        row = PrefillPoint(
            **self.of(point), offload=point.offload, layers=point.layers, prompt_tokens=point.tokens,
            chunk_tokens=point.chunk, **timing.columns("prefill_s"), **self.words,
        )  # fmt: skip
        self.store.blend([row])

    # --- switching

    def _kv(self, instance: Instance, point: Point) -> None:
        instance.recut(1, point.tokens)
        self.device.bind(to_host=True)
        buffer = instance.kv_buffer(point.tokens, pinned=point.path == "pinned")
        save = self._repeated(lambda: timed(lambda: instance.save_kv(0, point.tokens, buffer)))
        restore = self._repeated(lambda: timed(lambda: instance.restore_kv(0, point.tokens, buffer)))
        self.device.bind()
        moved: dict[str, Any] = {
            "layers": point.layers,
            "tokens": point.tokens,
            "bytes": buffer.numel() * buffer.element_size(),
        }
        self.store.blend(
            [
                SwitchPoint(
                    **self.of(point), part=part, path=point.path, **moved, **self.words, **each.columns("seconds")
                )
                for part, each in (("kv_save", save), ("kv_restore", restore))
            ]
        )

    def cycle(self, weights: HostWeights, point: Point, file: Path | None) -> None:
        """Reserve memory, reload (from a file if there is one) and free, again and again; each part by itself."""
        item = self.dtype.itemsize
        parts: dict[str, list[float]] = {"reserve": [], "reload": [], "free": []}
        if self.device.is_cuda:
            torch.cuda.empty_cache()  # or the first reservation finds memory that was never given back

        def once() -> float:
            if file is not None:
                forget(file)
            instance = Instance(weights, self.device, point.layers, 1, point.tokens)
            try:
                parts["reserve"].append(timed(instance.reserve))
                parts["reload"].append(timed(lambda: instance.copy_weights(file)))
            finally:
                parts["free"].append(timed(instance.free))
            return parts["reload"][-1]

        self.device.bind(to_host=True)
        repeated(once, self.grid.limit_s, max(3, self.grid.most // 2))
        self.device.bind()
        size = weights.shape.weight_bytes(point.layers, item)
        taken = device_bytes(weights.shape, point.layers, "cpu", point.tokens, item)
        timing = {name: Timing.of(samples[1:]) for name, samples in parts.items()}  # one is the warm-up
        words = {**self.of(point), "layers": point.layers, "tokens": point.tokens, **self.words}
        rows: list[Row] = []
        if point.path == "pinned":
            for part in ("reserve", "free"):
                rows.append(SwitchPoint(**words, part=part, bytes=taken, **timing[part].columns("seconds")))
        rows.append(
            SwitchPoint(**words, part="reload", path=point.path, bytes=size, **timing["reload"].columns("seconds"))
        )
        self.store.blend(rows)


def _randomize(kv: torch.Tensor, seed: int) -> None:
    """Fill with random numbers where they lie; an odd period, so that no two layers are alike."""
    flat = kv.view(-1)
    noise = torch.randn((1 << 20) - 1, generator=torch.Generator().manual_seed(seed)).to(kv.dtype).to(kv.device)
    for start in range(0, flat.numel(), noise.numel()):
        part = flat[start : start + noise.numel()]
        part.copy_(noise[: part.numel()])


def contradictions(store: Store, layers: Mapping[str, int], quantization: str) -> list[Row]:
    """Steps and prompts that cannot both be right: k of L layers on the device took less than k/L of what all took,
    or a larger batch, a longer context or a longer prompt took clearly less time."""
    wrong: dict[int, Row] = {}
    for kind in (DecodePoint, PrefillPoint):
        rows = [row for row in store.rows[kind] if row.quantization == quantization and row.model in layers]
        places = {
            id(row): [getattr(row, c) for c in kind.key if c not in ("offload", "layers", "head")] for row in rows
        }
        for full in (row for row in rows if row.layers == layers[row.model]):
            for row in (row for row in rows if places[id(row)] == places[id(full)]):
                took_s, all_s = (getattr(each, kind.values[0]) for each in (row, full))
                if took_s < _SLACK * all_s * row.layers / layers[row.model]:
                    wrong |= {id(each): each for each in (row, full)}
        for axis in ("batch", "context") if kind is DecodePoint else ("prompt_tokens",):
            wrong |= {id(row): row for row in _less_for_more(rows, kind, axis)}
    return list(wrong.values())


def _less_for_more(rows: Sequence[Any], kind: type[Row], axis: str) -> list[Row]:
    """Neighbours along an axis of which the one with more took clearly less."""
    lines: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        lines.setdefault(tuple(getattr(row, name) for name in kind.key if name != axis), []).append(row)
    found: list[Row] = []
    for line in lines.values():
        line.sort(key=lambda row: getattr(row, axis))
        for less, more in pairwise(line):
            if getattr(more, kind.values[0]) < _QUIRK * getattr(less, kind.values[0]):
                found += [less, more]
    return found


def forget(file: Path) -> None:
    """Have the system drop its copy of a file in memory, where it can."""
    if hasattr(os, "posix_fadvise"):
        handle = os.open(file, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def save(weights: HostWeights, file: Path) -> None:
    """Write a model's weights and wait until they are on the disk."""
    weights.save(file)
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
