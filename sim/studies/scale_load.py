"""The same scenario under more or less load, or with more or fewer machines: what a search for capacity turns.

Drawn requests come at other rates for the same time; a trace is played faster or slower, so that its requests stay the
same and its time changes. Called by `capacity` and by whoever plots against load.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from sim.common.errors import ConfigError, did_you_mean
from sim.scenario.distributions import Frames, Mmpp
from sim.scenario.scenario import GenerateWorkload, Scenario, TraceWorkload
from sim.scenario.workload import StreamSpec


def at_load(scenario: Scenario, factor: float) -> Scenario:
    """The scenario with `factor` times its request rate; all else of it, bursts, mix and lengths, stays.

    Drawn: every rate times factor (frames: the period divided by it), and `rows` with it where `duration_s` says how
    long. Where only the number of requests is given, and for traces, time shrinks instead, and the warm-up with it
    unless a horizon holds it.
    """
    assert 0 < factor < math.inf, factor
    if factor == 1:
        return scenario
    workload = scenario.workload
    shrinks = isinstance(workload, TraceWorkload) or workload.duration_s is None
    changed: dict[str, Any] = {}
    if isinstance(workload, TraceWorkload):
        changed["workload"] = workload.model_copy(update={"time_scale": workload.time_scale * factor})
    else:
        changed["workload"] = _drawn(workload, factor)
    if shrinks and scenario.horizon_s is None:
        changed["warm_up_s"] = scenario.warm_up_s / factor
    return scenario.model_copy(update=changed)


def _drawn(workload: GenerateWorkload, factor: float) -> GenerateWorkload:
    traffic = [each.model_copy(update={"rate_per_s": each.rate_per_s * factor}) for each in workload.traffic]
    streams = tuple(_faster(stream, factor) for stream in workload.streams)
    changed: dict[str, Any] = {"traffic": tuple(traffic), "streams": streams}
    if workload.rows is not None and workload.duration_s is not None:
        changed["rows"] = max(1, math.ceil(workload.rows * factor))
    return workload.model_copy(update=changed)


def _faster(stream: StreamSpec, factor: float) -> StreamSpec:
    arrivals = stream.arrivals
    if isinstance(arrivals, Frames):
        times = {name: getattr(arrivals, name) for name in ("period_s", "jitter_s", "phase_s")}
        update: dict[str, Any] = {name: None if time is None else time / factor for name, time in times.items()}
    elif isinstance(arrivals, Mmpp) and arrivals.rate_per_s is None:
        states = [state.model_copy(update={"rate_per_s": state.rate_per_s * factor}) for state in arrivals.states]
        update = {"states": tuple(states)}
    else:
        assert arrivals.rate_per_s is not None, arrivals
        update = {"rate_per_s": arrivals.rate_per_s * factor}
    return stream.model_copy(update={"arrivals": arrivals.model_copy(update=update)})


def what_load_means(scenario: Scenario) -> str:
    """What a load of 2 does to this scenario, in words."""
    workload = scenario.workload
    if isinstance(workload, TraceWorkload):
        return "2 plays the trace twice as fast: the same requests in half the time"
    if workload.duration_s is None:
        return "2 doubles every rate: the same number of requests in half the time"
    return f"2 doubles every rate, over the same {workload.duration_s:,.0f} s"


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of a cluster whose number may change: position in cluster.nodes, its name, and how many there are."""

    position: int
    name: str
    count: int

    def resized(self, scenario: Scenario, count: int) -> Scenario:
        """The scenario with `count` of these nodes."""
        nodes = list(scenario.cluster.nodes)
        nodes[self.position] = nodes[self.position].model_copy(update={"count": count})
        return scenario.model_copy(update={"cluster": scenario.cluster.model_copy(update={"nodes": tuple(nodes)})})


def node_group(scenario: Scenario, wanted: str | None) -> NodeGroup:
    """The node group of this name, host or position. Raises ConfigError: no such group, or several and none named."""
    groups = [NodeGroup(at, node.name or node.host, node.count) for at, node in enumerate(scenario.cluster.nodes)]
    names = [group.name for group in groups]
    if wanted is None:
        if len(groups) == 1:
            return groups[0]
        raise ConfigError(f"--find cluster: there are several node groups; add --grow with one of: {', '.join(names)}")
    if wanted.isdigit() and int(wanted) < len(groups):
        return groups[int(wanted)]
    found = [group for group in groups if group.name == wanted]
    if len(found) > 1:
        last = len(groups) - 1
        raise ConfigError(f"--grow {wanted}: several node groups have this name; give the position, 0 to {last}")
    if not found:
        raise ConfigError(f"--grow {wanted}: no such node group; {did_you_mean(wanted, names)}")
    return found[0]
