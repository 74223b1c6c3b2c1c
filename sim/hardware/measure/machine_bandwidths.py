"""Measurements that no model decides: bandwidths of host, link and disk, and how long an engine takes to start."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from sim.hardware.measure.model_measurements import Bench
from sim.hardware.measure.timing import forget, repeated, timed
from sim.hardware.model.device import Device
from sim.profiling.points import BandwidthPoint, SwitchPoint

_WINDOW_S = 0.4  # how long copies are repeated both ways at once
_BLOCK = 8 << 20
_READ_BYTES = 256 << 20  # more than a cache holds


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
    gb_s: float = max(row.h2d_gb_s for row in rows)
    return 1e9 * gb_s


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

        for way in ways:
            if way == "both":
                in_s, out_s = _together(device, [lambda: copy("h2d"), lambda: copy("d2h")])
                yield way, {"h2d_gb_s": size / in_s / 1e9, "d2h_gb_s": size / out_s / 1e9}, None
                continue
            device.bind(to_host=True)
            timing = repeated(partial(timed, partial(copy, way)), 1.5 * bench.grid.limit_s, 15)
            device.bind()
            yield way, {f"{way}_gb_s": size / timing.median_s / 1e9}, timing.repeats
    finally:
        blocks = [here for _, here in ends.values()]
        ends.clear()
        device.give_back(blocks)


def _together(device: Device, actions: Sequence[Callable[[], None]]) -> list[float]:
    """Median seconds of each action while all are repeated at the same time, in threads and streams of their own."""
    barrier = threading.Barrier(len(actions))

    def work(action: Callable[[], None]) -> float:
        try:
            device.bind(to_host=True)
            with device.stream():
                action()
                barrier.wait(timeout=60)
                end_s, samples = perf_counter() + _WINDOW_S, list[float]()
                while perf_counter() < end_s or not samples:
                    samples.append(timed(action))
            return median(samples)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(len(actions)) as pool:
        done = [pool.submit(work, action) for action in actions]
    for each in done:  # what went wrong first, not that others waited for it in vain
        if not isinstance(each.exception(), threading.BrokenBarrierError):
            each.result()
    return [each.result() for each in done]


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
    row = {**bench.model, "part": "start", **timing.columns("seconds"), **bench.words}
    bench.store.add([SwitchPoint(model=name, **row) for name in missing])
