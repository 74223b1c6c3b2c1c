"""The accelerator that real models run on: a CUDA GPU, or one core of the CPU in its place.

With `cpu` the machine's last core is the accelerator, and the others are the host: threads that compute on the device
are bound to the one, copies and whatever the host computes to the others, so that several instances share the
"GPU" as kernels would. A budget in bytes is imposed in both cases. Used by llm.py; nothing here knows a model.
"""

from __future__ import annotations

import mmap
import os
import threading
from dataclasses import dataclass
from pathlib import Path

import torch

_REGISTERED_FROM = 1 << 22
# Private pages can be huge ones, which are pinned much quicker.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


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


class Device:
    """Where weights, KV and computing are counted. kind: "cuda" or "cpu"; budget_bytes: None is all there is."""

    def __init__(self, kind: str, budget_bytes: int | None = None) -> None:
        if kind == "cuda" and not torch.cuda.is_available():
            raise SystemExit("error: no CUDA device found; install a driver and a CUDA build of torch, or --device cpu")
        self.kind = kind
        self.torch = torch.device(kind, 0) if kind == "cuda" else torch.device("cpu")
        self.cores = split_cores()
        self.budget_bytes = budget_bytes if budget_bytes is not None else free_bytes(kind)
        self.used_bytes = 0
        self._lock = threading.Lock()
        if kind == "cpu":
            torch.set_num_threads(1)

    @property
    def is_cuda(self) -> bool:
        return self.kind == "cuda"

    def bind(self, to_host: bool = False) -> None:
        """Let the calling thread run on the device's core, or on the host's. With a GPU threads stay where they are."""
        if not self.is_cuda and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, self.cores.host if to_host else self.cores.device)

    def synchronize(self) -> None:
        """Wait until the device has done all that this thread asked of it."""
        if self.is_cuda:
            torch.cuda.current_stream().synchronize()

    def stream(self) -> torch.cuda.StreamContext:
        """A queue of work of its own for the calling thread, so that instances overlap on a GPU."""
        return torch.cuda.stream(torch.cuda.Stream() if self.is_cuda else None)

    def allocate(self, size: int) -> torch.Tensor:
        """`size` bytes of device memory, not touched yet. Raises DeviceMemoryError when the budget does not hold them.

        On the CPU each allocation is a mapping of its own: given back at once, and paid for page by page when it is
        first written, however much was freed before.
        """
        with self._lock:
            if self.used_bytes + size > self.budget_bytes:
                used = f"{self.used_bytes / 1e9:.2f} of {self.budget_bytes / 1e9:.2f} GB are used"
                raise DeviceMemoryError(f"{size / 1e9:.2f} GB do not fit: {used}")
            self.used_bytes += size
        if self.is_cuda:
            try:
                return torch.empty(size, dtype=torch.uint8, device=self.torch)
            except torch.OutOfMemoryError:
                self.give_back(size)
                free = f"the GPU has {torch.cuda.mem_get_info(self.torch)[0] / 1e9:.2f} GB free"
                raise DeviceMemoryError(f"{size / 1e9:.2f} GB do not fit: {free}") from None
        return torch.frombuffer(mmap.mmap(-1, max(1, size)), dtype=torch.uint8)[:size]

    def give_back(self, size: int) -> None:
        """So many bytes of the budget are free again; the caller has dropped their tensor."""
        with self._lock:
            self.used_bytes -= size

    def host_empty(self, size: int, pinned: bool, reused: bool = False) -> torch.Tensor:
        """`size` bytes of host memory; pinned only where there is a GPU to read them.

        Large pinned memory is registered here: torch's own allocator rounds up to a power of two, and keeps it. That
        is the better one for memory that is `reused`, since pinning takes long.
        """
        if not (pinned and self.is_cuda):
            return torch.empty(size, dtype=torch.uint8)
        if reused or size < _REGISTERED_FROM:
            return torch.empty(size, dtype=torch.uint8, pin_memory=True)
        memory = _Pinned(-1, size, **_PRIVATE)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)
        tensor = torch.frombuffer(memory, dtype=torch.uint8)
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
