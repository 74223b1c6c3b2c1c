"""The bookkeeping of changes that take time: a load and an elastic resize under way. Plain data, which lifecycle.py and
resizing.py keep; records and checks of the state read it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sim.core.state.links import Transfer
from sim.core.state.residency import Residency


@dataclass
class LoadInProgress:
    """What a load waits for, and when its parts began. `wake` loads have no engine start to pay."""

    asked_s: float
    wake: bool = False
    start_s: float = 0.0
    fixed_s: float = 0.0
    begun_s: float = 0.0
    from_disk: bool = False
    open_transfers: int = 0
    transfers: list[Transfer] = field(default_factory=list)


@dataclass
class ResizeInProgress:
    """An elastic resize. `extra_gpu_bytes` are taken beyond what the present residency holds."""

    residency: Residency
    extra_gpu_bytes: int
    extra_host_bytes: int
    started_s: float
    moved: bool = False
    bytes: float = 0.0
    seconds: float = 0.0
    transfer: Transfer | None = None
