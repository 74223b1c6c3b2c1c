"""Measurements of profile_gpu.py that no one model decides: bandwidths, engine start, and two instances at a time.

Two instances run in two threads, each with a stream of its own, as they do in a server of one process. How much they
slow each other down tells which of the simulator's contention models (sim/core/sharing.py) is closer to this machine.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from profiler.parts import Bench, Timing, forget, repeated, timed
from real.device import Device
from real.llm import HostWeights, Instance, Item

from sim.profiling.points import BandwidthPoint, ContentionPoint, SwitchPoint

LAWS = ("proportional", "processor_sharing", "time_slice")
_CONTEXT = 64
_WINDOW_S = 0.4  # how long copies are repeated both ways at once
_BLOCK = 8 << 20
_READ_BYTES = 256 << 20  # more than a cache holds


# --- bandwidth


def bandwidths(bench: Bench, folder: Path) -> None:
    """Copies between host and device, alone and both ways at once; reading host memory; reading a file."""
    size = min(bench.grid.copy_bytes, bench.device.budget_bytes // 4)
    for memory in ("pinned", "pageable"):
        wanted = [way for way in ("h2d", "d2h", "both") if not _known(bench, way, memory, size)]
        if wanted:
            for way, rates, repeats in _copies(bench, size, memory == "pinned", wanted):
                _add(bench, direction=way, memory=memory, bytes=size, repeats=repeats, **rates)
    if not _known(bench, "cpu", "", _READ_BYTES):
        gb_s, repeats = _host_read(bench)
        _add(bench, direction="cpu", bytes=_READ_BYTES, h2d_gb_s=gb_s, repeats=repeats)
    if not _known(bench, "disk", "", bench.grid.disk_bytes):
        gb_s, repeats = _disk_read(folder, bench.grid.disk_bytes)
        _add(bench, direction="disk", bytes=bench.grid.disk_bytes, h2d_gb_s=gb_s, repeats=repeats)


def _known(bench: Bench, direction: str, memory: str, size: int) -> bool:
    return bench.store.has(BandwidthPoint, direction=direction, memory=memory, bytes=size)


def _add(bench: Bench, **columns: Any) -> None:
    bench.store.add([BandwidthPoint(**columns, **bench.words)])


def rate(bench: Bench, direction: str) -> float:
    """Bytes per second that were measured: the quickest host-to-device copy, or the disk's."""
    rows = [row for row in bench.store.rows[BandwidthPoint] if row.direction == direction]
    return 1e9 * max(row.h2d_gb_s for row in rows)


def _copies(
    bench: Bench, size: int, pinned: bool, ways: Sequence[str]
) -> Iterator[tuple[str, dict[str, float], int | None]]:
    device = bench.device
    ends = {way: (device.host_empty(size, pinned), device.allocate(size)) for way in ("h2d", "d2h")}
    try:
        for host, here in ends.values():
            host.random_(0, 256)
            here.zero_()
        del host, here
        device.synchronize()

        def copy(way: str) -> None:
            host, here = ends[way]
            target, source = (here, host) if way == "h2d" else (host, here)
            device.copy(target, source, way)
            device.synchronize()

        def alone(way: str) -> Timing:
            return repeated(lambda: timed(lambda: copy(way)), 1.5 * bench.grid.limit_s, 15)

        for way in ways:
            if way == "both":
                seconds = _together(device, [lambda: copy("h2d"), lambda: copy("d2h")])
                rates = {"h2d_gb_s": size / seconds[0] / 1e9, "d2h_gb_s": size / seconds[1] / 1e9}
                yield way, rates, None
                continue
            device.bind(to_host=True)
            timing = alone(way)
            device.bind()
            yield way, {f"{way}_gb_s": size / timing.median_s / 1e9}, timing.repeats
    finally:
        blocks = [here for _, here in ends.values()]
        ends.clear()
        device.give_back(blocks)


def _together(device: Device, actions: Sequence[Callable[[], None]]) -> list[float]:
    """Median seconds of each action while all are repeated at the same time, in threads and streams of their own."""
    barrier = threading.Barrier(len(actions))
    seconds: list[float] = [0.0] * len(actions)
    errors: list[BaseException] = []

    def work(place: int) -> None:
        try:
            device.bind(to_host=True)
            with device.stream():
                actions[place]()
                barrier.wait(timeout=60)
                end_s, samples = perf_counter() + _WINDOW_S, []
                while perf_counter() < end_s or not samples:
                    samples.append(timed(actions[place]))
            seconds[place] = median(samples)
        except BaseException as error:  # raised again below, in the thread that waits
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return seconds


def _host_read(bench: Bench) -> tuple[float, int]:
    """GB/s at which the host reads memory that no cache holds, with the threads that compute host layers."""
    numbers = torch.ones(_READ_BYTES // 4)
    bench.device.bind(to_host=True)
    timing = repeated(lambda: timed(lambda: numbers.sum().item()), 2 * bench.grid.limit_s, 15)
    bench.device.bind()
    return _READ_BYTES / timing.median_s / 1e9, timing.repeats


def _disk_read(folder: Path, size: int) -> tuple[float, int]:
    """GB/s of reading a file that the system has dropped from memory."""
    file, block = folder / "read.bin", os.urandom(_BLOCK)
    buffer = bytearray(_BLOCK)

    def read() -> None:
        with file.open("rb", buffering=0) as source:
            while source.readinto(buffer):
                pass

    def sample() -> float:
        forget(file)
        return timed(read)

    try:
        with file.open("wb", buffering=0) as target:
            for _ in range(size // _BLOCK):
                target.write(block)
        timing = repeated(sample, 3.0, 5, warm=0)
    finally:
        file.unlink(missing_ok=True)
    return size // _BLOCK * _BLOCK / timing.median_s / 1e9, timing.repeats


# --- engine start


def engine_start(bench: Bench, models: Sequence[str], repeats: int) -> None:
    """A fresh process that imports torch and computes something on the device: the same for all models."""
    key = bench.model["quantization"]
    missing = [m for m in models if not bench.store.has(SwitchPoint, model=m, quantization=key, part="start")]
    if not missing:
        return
    code = f"import torch; x = torch.ones(8, 8, device='{bench.device.kind}'); (x @ x).sum().item()"

    def start() -> float:
        return timed(lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True))

    bench.device.bind(to_host=True)
    timing = repeated(start, 30 * bench.grid.limit_s, repeats, warm=0)
    bench.device.bind()
    bench.store.add(
        [
            SwitchPoint(model=name, **bench.model, part="start", **timing.columns("seconds"), **bench.words)
            for name in missing
        ]
    )


# --- two at a time


@contextmanager
def _busy(device: Device, action: Callable[[], object], to_host: bool) -> Iterator[None]:
    """Repeat the action in a thread and stream of its own meanwhile."""
    stop, begun = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            device.bind(to_host)
            with device.stream():
                while not stop.is_set():
                    action()
                    begun.set()
        except BaseException as error:  # raised again below, in the thread that waits
            errors.append(error)
            begun.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        begun.wait()
        yield
    finally:
        stop.set()
        thread.join()
    if errors:
        raise errors[0]


class Pairs:
    """Instances of one model that run beside one another."""

    def __init__(self, bench: Bench, weights: HostWeights, offload: str) -> None:
        self.bench, self.weights, self.offload = bench, weights, offload

    def _step(self, instance: Instance) -> Callable[[], object]:
        items = [Item(0, [1], _CONTEXT - 1)]
        return lambda: instance.forward(items)

    def _load(self, layers: int) -> Callable[[], object]:
        def load() -> None:
            self.bench.device.bind(to_host=True)
            instance = Instance(self.weights, self.bench.device, layers, 1, _CONTEXT, self.offload)
            try:
                instance.load()
            finally:
                instance.free()

        return load

    def has(self, what: str, layers: int, beside: str, beside_layers: int) -> bool:
        name = self.weights.shape.model
        batch, context = (None, None) if what == "load" else (1, float(_CONTEXT))
        return self.bench.store.has(
            ContentionPoint, model=name, **self.bench.model, what=what, offload=self.offload, layers=layers,
            batch=batch, context=context, beside=beside, beside_model=name, beside_layers=beside_layers,
        )  # fmt: skip

    def measure(self, what: str, layers: int, beside: str, beside_layers: int) -> None:
        """One row: `what` with so many layers, alone and then beside another."""
        bench, device = self.bench, self.bench.device
        pool = _CONTEXT
        with bench.loaded(self.weights, layers, pool, self.offload) as mine:
            action = self._load(layers) if what == "load" else self._step(mine)
            if what == "load":
                mine.free()
            with device.stream():
                alone = self._timing(action)
            with bench.loaded(self.weights, beside_layers, pool, self.offload) as theirs:
                if beside == "load":
                    theirs.free()
                other = self._load(beside_layers) if beside == "load" else self._step(theirs)
                with _busy(device, other, beside == "load"), device.stream():
                    together = self._timing(action)
        batch, context = (None, None) if what == "load" else (1, float(_CONTEXT))
        row = ContentionPoint(
            what=what, model=self.weights.shape.model, **bench.model, offload=self.offload, layers=layers,
            batch=batch, context=context,
            beside=beside, beside_model=self.weights.shape.model, beside_layers=beside_layers,
            alone_s=alone.median_s, beside_s=together.median_s, slow_down=together.median_s / alone.median_s,
            repeats=together.repeats, **bench.words,
        )  # fmt: skip
        bench.store.add([row])

    def _timing(self, action: Callable[[], object]) -> Timing:
        return repeated(lambda: timed(action), 2 * self.bench.grid.limit_s, 3 * self.bench.grid.most, warm=2)


def pairs(full: int, offload: str) -> list[tuple[str, int, str, int]]:
    """What runs beside what, the most telling first: `part` of the layers use a share of the GPU only."""
    part = max(1, round(full / 2))
    found = [
        ("decode", full, "decode", full),
        ("decode", full, "decode", part),
        ("decode", part, "decode", part),
        ("decode", full, "load", full),
        ("decode", part, "decode", full),
        ("load", full, "decode", full),
    ]
    if offload == "stream":
        return [*found, ("decode", part, "load", full), ("load", full, "decode", part)]
    return [
        *found[:2],
        ("cpu_decode", 0, "cpu_decode", 0),
        *found[2:],
        ("cpu_decode", 0, "load", full),
        ("decode", full, "cpu_decode", 0),
        ("cpu_decode", 0, "decode", full),
    ]


def conclusion(rows: Sequence[ContentionPoint]) -> dict[str, Any] | None:
    """Which law of contention predicts the slow-downs best: its name and the mean error of each. None: too few rows.

    The share of a step that is the GPU's is what so many of a full model's layers take alone, or all of them where the
    others are streamed, as in the simulator.
    """
    found: dict[str, list[float]] = {law: [] for law in LAWS}
    for key in dict.fromkeys((row.model, row.quantization, row.offload) for row in rows):
        steps = [r for r in rows if (r.model, r.quantization, r.offload) == key and r.what != "load"]
        alone = {k: median(r.alone_s for r in steps if (r.layers or 0) == k) for k in {r.layers or 0 for r in steps}}
        full = max(alone, default=0)
        for row in steps:
            if row.beside == "load" or not full or row.beside_layers not in alone:
                continue
            both = (row.layers or 0, row.beside_layers)
            computed = [full if row.offload == "stream" else k for k in both]
            shares = [min(1.0, alone[full] * c / full / alone[k]) for k, c in zip(both, computed, strict=True)]
            for name, errors in found.items():
                errors.append(abs(math.log(_slow_down(name, *shares) / row.slow_down)))
    if not found["proportional"]:
        return None
    means = {name: math.exp(sum(errors) / len(errors)) - 1 for name, errors in found.items()}
    return {"closer": min(means, key=lambda name: means[name])} | {f"{k}_error": round(v, 3) for k, v in means.items()}


def _slow_down(name: str, mine: float, theirs: float) -> float:
    """Of a step with a GPU share `mine`, beside one with `theirs`; the rest of each is the host's."""
    if name == "proportional":
        return mine * max(1.0, mine + theirs) + (1 - mine) * max(1.0, 2 - mine - theirs)
    if name == "processor_sharing":
        return mine * (1 + theirs) + (1 - mine) * (2 - theirs)
    gpus, hosts = (sum(share > 0 for share in pair) for pair in ((mine, theirs), (1 - mine, 1 - theirs)))
    return mine * gpus + (1 - mine) * hosts
