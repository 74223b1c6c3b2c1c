"""What a policy may ask for: frozen data, checked by the gate and carried out one by one in the order given.

A Route may name a Load of the same decision as its target. Nothing here does anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sim.policy.interface.machines import GpuView
from sim.policy.interface.models import InstanceView, ModelView
from sim.policy.interface.requests import RequestView


@dataclass(frozen=True, eq=False)
class Load:
    """Load `layers` of the model's layers on the GPU, with a KV pool of `kv_tokens` (None: the model's default) and a
    batch of at most `max_sequences` (None: the engine's).

    Needs gpu.available_bytes: free memory and memory that others are giving back, for which the load then waits.
    """

    model: ModelView
    gpu: GpuView
    layers: int
    kv_tokens: int | None = None
    max_sequences: int | None = None


@dataclass(frozen=True, eq=False)
class Route:
    """Let a waiting request be served by this instance (or by the one that a Load of this decision makes).

    A request with saved KV restores it, unless `recompute` says to drop it and compute prompt and tokens again.
    """

    request: RequestView
    instance: InstanceView | Load
    recompute: bool = False


@dataclass(frozen=True, eq=False)
class Resize:
    """Change an instance's layers on the GPU; what it costs depends on the engine's `resize` capability. Under
    `sleep`, 0 layers puts it to sleep and its former number wakes it; with `drop_weights` it sleeps without a claim to
    the host's copy of its weights (vLLM's level 2), which may then have to be read from disk again."""

    instance: InstanceView
    layers: int
    drop_weights: bool = False


@dataclass(frozen=True, eq=False)
class Stop:
    """End an instance. drain: finish what runs; preempt: save its KV; abort: drop it. Its sequences and those that
    wait there go back to the cluster's queue."""

    instance: InstanceView
    mode: Literal["drain", "preempt", "abort"] = "drain"


@dataclass(frozen=True, eq=False)
class Preempt:
    """Take one running sequence out at the next iteration boundary; it goes back to the cluster's queue."""

    request: RequestView
    mode: Literal["save", "recompute"] = "save"


@dataclass(frozen=True, eq=False)
class Reject:
    """Turn a waiting request away for good, for a reason that appears in the results."""

    request: RequestView
    reason: str


@dataclass(frozen=True, eq=False)
class Wake:
    """Decide again at this time even if nothing happens until then."""

    at_s: float


Action = Load | Route | Resize | Stop | Preempt | Reject | Wake
