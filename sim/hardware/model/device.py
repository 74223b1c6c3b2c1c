"""The accelerator that real models run on: a CUDA GPU, or one core of the CPU in its place.

With `cpu` the machine's last core is the accelerator, and the others are the host: threads that compute on the device
are bound to the one, copies and whatever the host computes to the others, so that several instances share the
"GPU" as kernels would; its memory is resident_pages.py's. A budget in bytes is imposed in both cases. Nothing here
knows a model.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep

import torch

from sim.common.errors import ConfigError
from sim.hardware.model.resident_pages import ResidentPages, private_memory

_OWN_MAPPING_FROM = 1 << 22
_TURN = 1 << 20  # elements that cross an imposed link at a time
_LATE_S = 0.002  # by which who sleeps until its turn may wake too late, and catch up
_MOST_PAGES = 1.5  # times the budget: what holes may cost


# Ends with the process that started it, however that ends. It yields at every turn: a kernel that preempts lazily would
# let it spin on to the next tick, while somebody waits.
_SPIN = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while os.getppid() == int(sys.argv[2]):
    for _ in range(100_000):
        os.sched_yield()
"""


class DeviceMemoryError(RuntimeError):
    """The budget of device memory does not hold what was asked for."""


@dataclass(frozen=True)
class Cores:
    """Which cores are the accelerator (`device`) and which the host."""

    device: frozenset[int]
    host: frozenset[int]


def split_cores() -> Cores:
    """The last of this process' cores computes for the device; with one core only, it is both."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    return Cores(frozenset(cores[-1:]), frozenset(cores[:-1] or cores))


class _Pinned(mmap.mmap):
    """A mapping whose pages the GPU may read by itself, until the last tensor in it is gone."""

    address = 0

    def register(self, address: int, size: int) -> None:
        """Raises RuntimeError when the driver will not have so much pinned memory."""
        error = int(torch.cuda.cudart().cudaHostRegister(address, size, 1))  # 1: for all contexts
        if error:
            raise RuntimeError(f"the driver did not pin {size / 1e9:.2f} GB of host memory (CUDA error {error})")
        self.address = address

    def __del__(self) -> None:
        if self.address:
            torch.cuda.cudart().cudaHostUnregister(self.address)  # at exit the context is gone, and that is as well


class PacedLink:
    """One way of a slow link between host and device, in place of the CPU's own memory: who copies waits for its turn.

    Turns are a few MB, so copies at the same time share the rate equally, as transfers over PCIe about do.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self.bytes_per_s = bytes_per_s
        self._free_s = 0.0
        self._lock = threading.Lock()

    def copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Copy, at no more than this rate."""
        if target.is_contiguous() and source.is_contiguous():
            pairs = zip(target.view(-1).split(_TURN), source.view(-1).split(_TURN), strict=True)
        else:
            pairs = zip((target,), (source,), strict=True)
        for there, here in pairs:
            with self._lock:
                begin_s = max(perf_counter() - _LATE_S, self._free_s)
                self._free_s = end_s = begin_s + here.numel() * here.element_size() / self.bytes_per_s
            there.copy_(here)
            while (left_s := end_s - perf_counter()) > 0:
                sleep(left_s)


class Device:
    """Where weights, KV and computing are counted. kind: "cuda" or "cpu"; budget_bytes: None is all there is.

    link_bytes_per_s: of a link imposed between host and device, on the CPU only; None: memory copies at its own pace.
    """

    def __init__(self, kind: str, budget_bytes: int | None = None, link_bytes_per_s: float | None = None) -> None:
        if kind == "cuda" and not torch.cuda.is_available():
            raise ConfigError("no CUDA device found; install a driver and a CUDA build of torch, or --device cpu")
        self.kind = kind
        self.torch = torch.device(kind, 0) if kind == "cuda" else torch.device("cpu")
        self.cores = split_cores()
        self.budget_bytes = budget_bytes if budget_bytes is not None else free_bytes(kind)
        self.used_bytes = 0
        self._lock = threading.Lock()
        assert link_bytes_per_s is None or kind == "cpu", "a GPU has a link of its own"
        self.link_bytes_per_s = link_bytes_per_s
        self._links = (
            {way: PacedLink(link_bytes_per_s) for way in ("h2d", "d2h")} if link_bytes_per_s is not None else {}
        )
        self._pages = ResidentPages(round(_MOST_PAGES * self.budget_bytes)) if kind == "cpu" else None
        if kind == "cpu":
            torch.set_num_threads(1)

    @property
    def is_cuda(self) -> bool:
        return self.kind == "cuda"

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Keep the cores of a CPU in an accelerator's place from sleeping, which they wake from slowly and unevenly.

        A process of the lowest priority spins on each: it gives way at once. A GPU keeps itself awake.
        """
        spinning = not self.is_cuda and hasattr(os, "SCHED_IDLE")
        cores = sorted(self.cores.device | self.cores.host) if spinning else []
        spinners = [
            subprocess.Popen([sys.executable, "-S", "-c", _SPIN, str(core), str(os.getpid())]) for core in cores
        ]
        try:
            yield
        finally:
            for spinner in spinners:
                spinner.kill()
                spinner.wait()

    def warm(self) -> None:
        """Write to all memory of the device once, so that no load is the first to."""
        if self._pages is not None:
            self._pages.warm()

    def bind(self, to_host: bool = False) -> None:
        """Let the calling thread run on the device's core, or on the host's. With a GPU threads stay where they are."""
        if not self.is_cuda and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.cores.host if to_host else self.cores.device)

    def synchronize(self) -> None:
        """Wait until the device has done all that this thread asked of it."""
        if self.is_cuda:
            torch.cuda.current_stream().synchronize()

    def copy(self, target: torch.Tensor, source: torch.Tensor, way: str = "h2d") -> None:
        """Begin to copy between host and device, h2d or d2h; `synchronize` waits for the end."""
        if self._links:
            self._links[way].copy(target, source)
        else:
            target.copy_(source, non_blocking=True)

    def stream(self) -> torch.cuda.StreamContext:
        """A queue of work of its own for the calling thread, so that instances overlap on a GPU."""
        return torch.cuda.stream(torch.cuda.Stream() if self.is_cuda else None)

    def allocate(self, size: int) -> torch.Tensor:
        """`size` bytes of device memory, with anything in them; the caller gives them back by `give_back`.

        Raises DeviceMemoryError when the budget, or the GPU, does not hold them.
        """
        with self._lock:
            if self.used_bytes + size > self.budget_bytes:
                used = f"{self.used_bytes / 1e9:.2f} of {self.budget_bytes / 1e9:.2f} GB are used"
                raise DeviceMemoryError(f"{size / 1e9:.2f} GB do not fit: {used}")
            self.used_bytes += size
            if self._pages is not None:
                return self._pages.take(size) if size else torch.empty(0, dtype=torch.uint8)
        try:
            return torch.empty(size, dtype=torch.uint8, device=self.torch)
        except torch.OutOfMemoryError:
            with self._lock:
                self.used_bytes -= size
            free = f"the GPU has {torch.cuda.mem_get_info(self.torch)[0] / 1e9:.2f} GB free"
            raise DeviceMemoryError(f"{size / 1e9:.2f} GB do not fit: {free}") from None

    def give_back(self, blocks: list[torch.Tensor]) -> None:
        """Free the blocks of a list from `allocate`, and empty it; no view of them is left elsewhere."""
        if self.is_cuda:
            torch.cuda.synchronize()
        with self._lock:
            while blocks:
                block = blocks.pop()
                self.used_bytes -= block.numel()
                if self._pages is not None and block.numel():
                    self._pages.give_back(block)
                del block
        if self.is_cuda:
            torch.cuda.empty_cache()  # back to the driver, so that the next model gets it

    def host_empty(self, size: int, pinned: bool, reused: bool = False) -> torch.Tensor:
        """`size` bytes of host memory; pinned only where there is a GPU to read them.

        Large pinned memory is registered here: torch's own allocator rounds up to a power of two, and keeps it. That
        is the better one for memory that is `reused`, since pinning takes long.
        """
        pin = pinned and self.is_cuda
        if size < _OWN_MAPPING_FROM or (pin and reused):
            return torch.empty(size, dtype=torch.uint8, pin_memory=pin)
        memory = private_memory(size, _Pinned if pin else mmap.mmap)
        tensor = torch.frombuffer(memory, dtype=torch.uint8)
        if isinstance(memory, _Pinned):
            memory.register(tensor.data_ptr(), size)
        return tensor


def free_bytes(kind: str) -> int:
    """Memory that the device can still give: of the GPU, or half of what the machine has free."""
    if kind == "cuda":
        return int(torch.cuda.mem_get_info(0)[0])
    return free_host_bytes() // 2


def free_host_bytes() -> int:
    """Host memory that is free or can be freed, of the machine and of the control group that this process is in."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    info = Path("/proc/meminfo")
    if info.is_file():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((group / "memory.current").read_text()))
    except (OSError, ValueError):
        pass  # no control group, or not one of version 2
    return free
