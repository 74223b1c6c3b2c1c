"""Ideal worlds: memory without bound, switches that take no time; and what marks a run that no real scheduler can do.

`engine.ideal` (or a policy's class) asks for them. build.py takes the hardware from here, transfers.py lets bytes
arrive at once, engine.py names the run's marks. They answer "what is lost to memory, or to switching?", nothing else.
"""

from __future__ import annotations

from dataclasses import replace

from sim.policy.interface.policy import Policy
from sim.profiles.profile import GpuKind, HostKind, SwitchCosts
from sim.scenario.scenario import Scenario

# So much that nobody meets the end of it, and still a number that sums and shares can be made of.
UNBOUNDED_BYTES = 2**60
UNBOUNDED_BYTES_PER_S = 1e30

TEXTS = {
    "memory": "GPU and host memory have no end (engine.ideal: memory)",
    "switches": "loads, stops, resizes and KV transfers take no time (engine.ideal: switches)",
}


def in_its_world(scenario: Scenario, policy: Policy) -> Scenario:
    """The scenario with the ideal world that the policy's class asks for, beside what the scenario has itself."""
    missing = [name for name in policy.ideal if name not in scenario.engine.ideal]
    if not missing:
        return scenario
    ideal = tuple(sorted([*scenario.engine.ideal, *missing]))
    return scenario.model_copy(update={"engine": scenario.engine.model_copy(update={"ideal": ideal})})


def marks(scenario: Scenario, policy: Policy) -> str:
    """Why no real scheduler on real machines can do this run; empty: one can."""
    own = [policy.oracle] if policy.oracle else []
    return "; ".join([*own, *(TEXTS[name] for name in scenario.engine.ideal if name not in policy.ideal)])


def gpu_kind(kind: GpuKind, ideal: tuple[str, ...]) -> GpuKind:
    """The GPU of such a world."""
    if "memory" in ideal:
        kind = replace(kind, memory_bytes=UNBOUNDED_BYTES)
    if "switches" in ideal:
        kind = replace(kind, h2d_bytes_per_s=UNBOUNDED_BYTES_PER_S, d2h_bytes_per_s=UNBOUNDED_BYTES_PER_S)
    return kind


def host_kind(kind: HostKind, ideal: tuple[str, ...]) -> HostKind:
    """The host of such a world; its CPU is what it was."""
    if "memory" in ideal:
        kind = replace(kind, memory_bytes=UNBOUNDED_BYTES)
    if "switches" in ideal:
        kind = replace(
            kind,
            disk_bytes_per_s=UNBOUNDED_BYTES_PER_S,
            network_bytes_per_s=UNBOUNDED_BYTES_PER_S,
            h2d_cap_bytes_per_s=UNBOUNDED_BYTES_PER_S,
            d2h_cap_bytes_per_s=UNBOUNDED_BYTES_PER_S,
        )
    return kind


def switch_costs(switch: SwitchCosts, ideal: tuple[str, ...]) -> SwitchCosts:
    """What a switch costs in such a world."""
    if "switches" not in ideal:
        return switch
    return replace(
        switch,
        start_s=0.0,
        reload_fixed_s=0.0,
        free_s=0.0,
        wake_fixed_s=0.0,
        reload_bytes_per_s=UNBOUNDED_BYTES_PER_S,
        kv_save_bytes_per_s=UNBOUNDED_BYTES_PER_S,
        kv_restore_bytes_per_s=UNBOUNDED_BYTES_PER_S,
    )
