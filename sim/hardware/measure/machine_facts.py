"""The device that is measured, and what the machine says of itself: CPU, memory, PCIe, versions, clocks.

Looks, never sets. Where a fact cannot be had (no nvidia-smi, no /proc) it is left out.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sim.common.data_files import data_folder, is_source_tree
from sim.common.errors import ConfigError
from sim.hardware.model.device import Device, free_bytes
from sim.profiles.library import Library
from sim.profiling.device_names import gpu_slug, host_slug, known_hosts
from sim.scenario.scenario import GIB

_WORKSPACE_BYTES = 3 * GIB // 2  # of a GPU, for what computing itself needs
_CPU_BUDGET_GIB = 3.0
_SAME_MEMORY = 0.1  # a driver keeps some memory for itself
_PCIE = ("pcie.link.gen.current", "pcie.link.gen.max", "pcie.link.width.current", "pcie.link.width.max")
_CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.draw", "power.limit", "temperature.gpu")


def open_device(kind: str, budget_gib: float | None, link_gb_s: float | None) -> Device:
    """The device with its budget. Raises ConfigError: no GPU, a budget above what is free, a link that is there."""
    if kind == "cuda" and link_gb_s is not None:
        raise ConfigError("--link-gb-s: a GPU has a link of its own; only --device cpu can have one imposed")
    if kind == "cuda" and not torch.cuda.is_available():
        why = "this torch is a build without CUDA" if torch.version.cuda is None else "no driver or no GPU was found"
        raise ConfigError(f"no CUDA GPU ({why}); --device cpu measures with a CPU core as the accelerator")
    free = free_bytes(kind) - _WORKSPACE_BYTES if kind == "cuda" else min(free_bytes(kind), all_host_bytes() // 2)
    default = free if kind == "cuda" else min(free, int(_CPU_BUDGET_GIB * GIB))
    asked = int(budget_gib * GIB) if budget_gib else default
    if free <= 0:
        raise ConfigError(f"the device has {max(0, free) / GIB:.1f} GiB free; end what else uses it")
    if asked > free:
        kept = f" ({_WORKSPACE_BYTES / GIB:.1f} GiB are kept for computing)" if kind == "cuda" else ""
        what = f"{asked / GIB:.1f} GiB of device memory are asked for"
        raise ConfigError(f"--budget-gib: {what}, {max(0, free) / GIB:.1f} are free{kept}")
    return Device(kind, asked, None if link_gb_s is None else link_gb_s * 1e9)


def all_host_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def cpu_name() -> str:
    """What the processor calls itself."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def query(device: Device, fields: tuple[str, ...]) -> dict[str, str]:
    """These facts of the GPU, from nvidia-smi; empty where it cannot say."""
    program = shutil.which("nvidia-smi")
    if not device.is_cuda or program is None:
        return {}
    which = getattr(torch.cuda.get_device_properties(device.torch), "uuid", None)
    place = ["-i", f"GPU-{str(which).removeprefix('GPU-')}"] if which is not None else []
    command = [program, *place, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    lines = _said(command).splitlines()
    cells = [cell.strip() for cell in lines[0].split(",")] if len(lines) == 1 else []
    if len(cells) != len(fields):
        return {}
    return {k: cell for k, cell in zip(fields, cells, strict=True) if cell not in ("", "[N/A]", "[Not Supported]")}


def _said(command: list[str], folder: Path | None = None) -> str:
    """What the program prints; nothing where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def clocks(device: Device) -> dict[str, str]:
    """Clocks, power and temperature as they are now."""
    return query(device, _CLOCKS)


def _commit() -> str:
    """Of the source tree; a package that is installed has none."""
    root = data_folder("profiles").parent
    return _said(["git", "describe", "--always", "--dirty"], root) if is_source_tree() else ""


def memory_gib(device: Device) -> float:
    """All of a GPU's memory; of the CPU in its place what it may take."""
    if device.is_cuda:
        return float(round(torch.cuda.get_device_properties(device.torch).total_memory / GIB, 2))
    return round(device.budget_bytes / GIB, 2)


def names(device: Device, gpu: str | None, host: str | None) -> tuple[str, str]:
    """(gpu, host): as asked for, or as profiles/ calls them; one that is there with other memory gets another name."""
    library = Library()
    hosts = known_hosts(library.folder / "nodes.csv")
    host = host or _told_apart(
        host_slug(cpu_name(), hosts), {k: v.memory_bytes for k, v in library.hosts.items()}, all_host_bytes()
    )
    if gpu is None and device.is_cuda:
        slug = gpu_slug(torch.cuda.get_device_name(device.torch), {k: v.name for k, v in library.gpus.items()})
        gpu = _told_apart(slug, {k: v.memory_bytes for k, v in library.gpus.items()}, memory_gib(device) * GIB)
    return gpu or f"{host}-core", host


def _told_apart(slug: str, known: Mapping[str, float], memory_bytes: float) -> str:
    same = slug not in known or abs(memory_bytes / known[slug] - 1) <= _SAME_MEMORY
    return slug if same else f"{slug}-{round(memory_bytes / GIB)}gb"


def command(*without: str) -> str:
    """How this program was started, but for some options."""
    return shlex.join(["python", "-m", "sim", *(each for each in sys.argv[1:] if each not in without)])


def facts(device: Device, gpu: str, host: str) -> dict[str, Any]:
    """The content of provenance.yaml that does not depend on what is measured."""
    driver = query(device, ("driver_version",)).get("driver_version", "")
    name = torch.cuda.get_device_name(device.torch) if device.is_cuda else f"one core of {cpu_name()}"
    return {
        "gpu": gpu,
        "host": host,
        "engine": "torch",
        "device": device.kind,
        "gpu_name": name,
        "gpu_memory_gib": memory_gib(device),
        "cpu": cpu_name(),
        "cores": len(device.cores.device | device.cores.host),
        "host_memory_gib": round(all_host_bytes() / GIB, 1),
        "torch": str(torch.__version__),
        "versions": {
            "torch": str(torch.__version__),
            "cuda": torch.version.cuda or "",
            "driver": driver,
            "python": platform.python_version(),
            "system": platform.platform(),
        },
        "pcie": query(device, _PCIE),
        "threads": torch.get_num_threads(),
        "command": command(),
        "commit": _commit(),
    }
