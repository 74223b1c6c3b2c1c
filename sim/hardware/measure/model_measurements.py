"""The measurements of one model: decode steps, prompts, and each part of a preemption alone.

Every number is the median of repeats after a warm-up, with the 10th and 90th percentile (timing.py). What is measured
comes from plan.py; rows go to a MeasurementFolder.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch

from sim.hardware.measure.measurement_folder import MeasurementFolder
from sim.hardware.measure.plan import MeasurementGrid, PlannedPoint, device_bytes
from sim.hardware.measure.timing import RepeatedTiming, forget, repeated, timed
from sim.hardware.model.device import Device
from sim.hardware.model.transformer import Item, Transformer, random_tokens
from sim.hardware.model.weights import HostWeights
from sim.profiling.points import DecodePoint, MeasuredRow, MemoryPoint, PrefillPoint, SwitchPoint

QUANTIZATIONS = {torch.bfloat16: "BF16", torch.float16: "FP16"}


class Bench:
    """One device, one folder of measurements, one element type."""

    def __init__(
        self, device: Device, store: MeasurementFolder, grid: MeasurementGrid, dtype: torch.dtype, seed: int
    ) -> None:
        self.device, self.store, self.grid, self.dtype, self.seed = device, store, grid, dtype, seed
        self.words: dict[str, Any] = {"kind": "measured", "source": store.folder.name}
        self.model: dict[str, Any] = {"quantization": QUANTIZATIONS[dtype]}

    def of(self, point: PlannedPoint) -> dict[str, Any]:
        return {"model": point.model, **self.model}

    def done(self, point: PlannedPoint) -> bool:
        """Whether the point's rows are in the folder."""
        return self.row_of(point) is not None

    def row_of(self, point: PlannedPoint) -> MeasuredRow | None:
        """The row that a point has become, if it is measured; of a cycle the reload, of KV the restoring."""
        kinds: dict[str, type[MeasuredRow]] = {"decode": DecodePoint, "prefill": PrefillPoint}
        kind = kinds.get(point.part, SwitchPoint)
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
    def loaded(self, weights: HostWeights, layers: int, pool: int, offload: str) -> Iterator[Transformer]:
        """An instance with random KV for `pool` tokens, freed in the end whatever happens."""
        instance = Transformer(weights, self.device, layers, 1, pool, offload)
        try:
            self.device.bind(to_host=True)
            instance.load()
            instance.fill_kv(self.seed)
            self.device.synchronize()
            self.device.bind()
            yield instance
        finally:
            instance.free()
            gc.collect()

    def run(self, weights: HostWeights, points: Sequence[PlannedPoint], free_before: int) -> Iterator[PlannedPoint]:
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
                taken = {**self.of(first), "layers": first.layers, "batch": 1, "context": float(pool), **self.words}
                self.store.add([MemoryPoint(**taken, bytes_used=used)])

    def used_bytes(self, free_before: int) -> int:
        """Device memory taken since so much was free: weights, KV and what computing needed."""
        if self.device.is_cuda:
            return free_before - int(torch.cuda.mem_get_info(self.device.torch)[0])
        return self.device.used_bytes

    def free_bytes(self) -> int:
        return int(torch.cuda.mem_get_info(self.device.torch)[0]) if self.device.is_cuda else 0

    # --- computing

    def _repeated(self, sample: Callable[[], float], warm: int = 1) -> RepeatedTiming:
        return repeated(sample, self.grid.limit_s, self.grid.most, warm)

    def _decode(self, instance: Transformer, point: PlannedPoint) -> None:
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

    def _prefill(self, instance: Transformer, point: PlannedPoint) -> None:
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

    def _kv(self, instance: Transformer, point: PlannedPoint) -> None:
        instance.recut(1, point.tokens)
        self.device.bind(to_host=True)
        buffer = instance.kv_buffer(point.tokens, pinned=point.path == "pinned")
        save = self._repeated(lambda: timed(lambda: instance.save_kv(0, point.tokens, buffer)))
        restore = self._repeated(lambda: timed(lambda: instance.restore_kv(0, point.tokens, buffer)))
        self.device.bind()
        moved = {"layers": point.layers, "tokens": point.tokens, "bytes": buffer.numel() * buffer.element_size()}
        words: dict[str, Any] = {**self.of(point), "path": point.path, **moved, **self.words}
        parts = (("kv_save", save), ("kv_restore", restore))
        self.store.blend([SwitchPoint(**words, part=part, **each.columns("seconds")) for part, each in parts])

    def cycle(self, weights: HostWeights, point: PlannedPoint, file: Path | None) -> None:
        """Reserve memory, reload (from a file if there is one) and free, again and again; each part by itself."""
        item = self.dtype.itemsize
        parts: dict[str, list[float]] = {"reserve": [], "reload": [], "free": []}
        if self.device.is_cuda:
            torch.cuda.empty_cache()  # or the first reservation finds memory that was never given back

        def once() -> float:
            if file is not None:
                forget(file)
            instance = Transformer(weights, self.device, point.layers, 1, point.tokens)
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
        timing = {name: RepeatedTiming.of(samples[1:]) for name, samples in parts.items()}  # one is the warm-up
        words = {**self.of(point), "layers": point.layers, "tokens": point.tokens, **self.words}
        said = {"reserve": ("", taken), "free": ("", taken), "reload": (point.path, size)}
        rows = [
            SwitchPoint(**words, part=part, path=path, bytes=moved, **timing[part].columns("seconds"))
            for part, (path, moved) in said.items()
            if part == "reload" or point.path == "pinned"
        ]
        self.store.blend(rows)


def save(weights: HostWeights, file: Path) -> None:
    """Write a model's weights and wait until they are on the disk."""
    weights.save(file)
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
