"""Lets faults happen: those that the scenario lists, at their times, and random ones.

Each GPU, node and link fails by its own random stream, whatever the policy does, so that all policies meet the same
faults. There is one timer for each thing that may fail. What a fault does to instances and requests is in
fault_effects.py; the engine makes this, and only where the scenario asks for faults.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from sim.common.rng import stream
from sim.core.core import SimulatedCore
from sim.core.fault_effects import Losses
from sim.core.record.recorder import FaultRecord
from sim.core.state.links import Link
from sim.core.state.machines import Gpu, Node
from sim.core.state.request import Request
from sim.scenario.faults import (
    OF_GPUS,
    OF_NODES,
    Cancellation,
    FaultOptions,
    GpuFailure,
    LoadFailure,
    NodeLoss,
    SlowLink,
)
from sim.scenario.scenario import Scenario

_CANCELLED = "the client cancelled it"


Times = Callable[[np.random.Generator], tuple[float, float]]


class _Recurring:
    """Something that begins and ends by turns. `times`: how long until it begins, and then until it ends, of a stream.
    `helps`: its end may let somebody go on who waits."""

    def __init__(
        self,
        draws: np.random.Generator,
        times: Times,
        begin: Callable[[], None],
        end: Callable[[], None],
        helps: bool,
    ) -> None:
        self.draws = draws
        self.times = times
        self.begin = begin
        self.end = end
        self.helps = helps
        self.lasts_s = 0.0


class Faults:
    """The faults of one run. `find`: a request in flight by its number, or None.

    `idle_timers`: calls to come that help nobody who waits, so that they alone keep no run going.
    """

    def __init__(
        self,
        options: FaultOptions,
        seed: int,
        core: SimulatedCore,
        losses: Losses,
        find: Callable[[int], Request | None],
    ) -> None:
        self.options = options
        self.core = core
        self.clock = core.clock
        self.losses = losses
        self.idle_timers = 0
        self._seed = seed
        self._find = find
        self._gpu_of = {gpu.name: gpu for gpu in core.cluster.gpus}
        self._node_of = {node.name: node for node in core.cluster.nodes}
        self._doomed_s: dict[int, list[float]] = {}  # by GPU: from when on a load is to fail
        self._load_draws: dict[int, np.random.Generator] = {}
        self._client_draws = stream(seed, "faults", "cancellation")
        self._slow: dict[str, list[float]] = {}  # by link: the factors in force
        losses.lifecycle.fails = self._load_fails

    def start(self) -> None:
        """Set the timers, at time 0."""
        clock, random = self.clock, self.options.random
        for event in self.options.events:
            if isinstance(event, LoadFailure):
                self._doomed_s.setdefault(self._gpu_of[event.gpu].index, []).append(event.at_s)
            else:
                clock.at(event.at_s, self._on_event, event, 0)
        losses, cluster = self.losses, self.core.cluster
        if (outages := random.gpu_failure) is not None:
            for gpu in cluster.gpus:
                times = _up_and_down(outages.mean_between_s, outages.repair_s, outages.mean_repair_s)
                self._recur("gpu_failure", gpu.name, times, partial(self._gpu_down, gpu), partial(losses.gpu_up, gpu))
        if (outages := random.node_loss) is not None:
            for node in cluster.nodes:
                times = _up_and_down(outages.mean_between_s, outages.repair_s, outages.mean_repair_s)
                self._recur(
                    "node_loss", node.name, times, partial(self._node_down, node), partial(losses.node_up, node)
                )
        if (spells := random.slow_link) is not None:
            for gpu in cluster.gpus:
                times = _up_and_down(spells.mean_between_s, spells.for_s, spells.mean_for_s)
                links = self._links_of(gpu, OF_GPUS)
                begin, end = (partial(action, links, spells.factor) for action in (self._slow_down, self._speed_up))
                self._recur("slow_link", gpu.name, times, begin, end, helps=False)

    # --- listed

    def _on_event(self, subject: Any, _: int) -> None:
        event: GpuFailure | NodeLoss | SlowLink | Cancellation = subject
        if isinstance(event, GpuFailure):
            gpu = self._gpu_of[event.gpu]
            self._gpu_down(gpu)
            self._later(event.repair_s, partial(self.losses.gpu_up, gpu))
        elif isinstance(event, NodeLoss):
            node = self._node_of[event.node]
            self._node_down(node)
            self._later(event.repair_s, partial(self.losses.node_up, node))
        elif isinstance(event, SlowLink):
            owner = self._gpu_of[event.gpu] if event.gpu is not None else self._node_of[event.node or ""]
            links = self._links_of(owner, event.links or (OF_GPUS if event.gpu is not None else OF_NODES))
            self._slow_down(links, event.factor)
            self._later(event.for_s, partial(self._speed_up, links, event.factor))
        else:
            self._cancel(event.request)

    def _later(self, after_s: float | None, action: Callable[[], None]) -> None:
        if after_s is not None:
            self.clock.at(self.clock.now_s + after_s, _call, action, 0)

    # --- random

    def _recur(
        self,
        kind: str,
        name: str,
        times: Times,
        begin: Callable[[], None],
        end: Callable[[], None],
        helps: bool = True,
    ) -> None:
        self._next(_Recurring(stream(self._seed, "faults", kind, name), times, begin, end, helps))

    def _next(self, thing: _Recurring) -> None:
        until_s, thing.lasts_s = thing.times(thing.draws)
        self.idle_timers += 1
        self.clock.at(self.clock.now_s + until_s, self._on_begin, thing, 0)

    def _on_begin(self, subject: Any, _: int) -> None:
        thing: _Recurring = subject
        thing.begin()
        if thing.helps:
            self.idle_timers -= 1
        self.clock.at(self.clock.now_s + thing.lasts_s, self._on_end, thing, 0)

    def _on_end(self, subject: Any, _: int) -> None:
        thing: _Recurring = subject
        thing.end()
        if not thing.helps:
            self.idle_timers -= 1
        self._next(thing)

    def arrived(self, request: Request) -> None:
        """A request arrived; its client may leave before it has its answer."""
        cancellation = self.options.random.cancellation
        if cancellation is None:
            return
        leaves = self._client_draws.random() < cancellation.probability
        after_s = float(self._client_draws.exponential(cancellation.mean_after_s))
        if leaves and request.outcome < 0:
            self._later(after_s, partial(self._cancel, request.index))

    def _load_fails(self, gpu: Gpu) -> bool:
        """Does the load that ends now on this GPU fail?"""
        failures = self.options.random.load_failure
        fails = False
        if failures is not None:
            draws = self._load_draws.get(gpu.index)
            if draws is None:
                draws = self._load_draws[gpu.index] = stream(self._seed, "faults", "load_failure", gpu.name)
            fails = draws.random() < failures.probability
        doomed_s = self._doomed_s.get(gpu.index, [])
        due_s = [at_s for at_s in doomed_s if at_s <= self.clock.now_s]
        if due_s and not fails:
            doomed_s.remove(due_s[0])
            fails = True
        if fails:
            self._note("load_failure", gpu.index)
        return fails

    # --- what happens

    def _gpu_down(self, gpu: Gpu) -> None:
        self._note("gpu_failure", gpu.index)
        self.losses.gpu_down(gpu)

    def _node_down(self, node: Node) -> None:
        self._note("node_loss", node.gpus[0].index)
        self.losses.node_down(node)

    def _cancel(self, number: int) -> None:
        request = self._find(number)
        if request is not None and request.outcome < 0:
            self.losses.cancel(request, _CANCELLED)

    def _note(self, kind: str, gpu: int) -> None:
        self.losses.record.events[kind] += 1
        timeline = self.core.recorder.timeline
        if timeline is not None:
            timeline.instant_at(self.clock.now_s, gpu, -1, kind.replace("_", " "), {})

    def _links_of(self, owner: Gpu | Node, names: Sequence[str]) -> list[Link]:
        if isinstance(owner, Gpu):
            links = self.core.transfers.links[owner.node.index]
            found = {"h2d": links.h2d[owner.index], "d2h": links.d2h[owner.index]}
        else:
            links = self.core.transfers.links[owner.index]
            found = {"h2d": links.h2d_cap, "d2h": links.d2h_cap, "disk": links.disk, "network": links.network}
        return [found[name] for name in dict.fromkeys(names)]

    def _slow_down(self, links: list[Link], factor: float) -> None:
        """Of several faults of one link the worst counts."""
        self.losses.record.events["slow_link"] += 1
        for link in links:
            self._slow.setdefault(link.name, []).append(factor)
            self.core.transfers.set_speed(link, min(self._slow[link.name]))

    def _speed_up(self, links: list[Link], factor: float) -> None:
        for link in links:
            self._slow[link.name].remove(factor)
            self.core.transfers.set_speed(link, min(self._slow[link.name], default=1.0))


def make_faults(scenario: Scenario, core: SimulatedCore, find: Callable[[int], Request | None]) -> Faults | None:
    """What may fail in a run; None: nothing."""
    options = scenario.faults
    if options is None:
        return None
    core.recorder.faults = record = FaultRecord()
    for gpu in core.cluster.gpus:
        gpu.activity_s["down"] = 0.0
    return Faults(options, scenario.seed, core, Losses(core, record, options.retries), find)


def _call(action: Any, _: int) -> None:
    action()


def _up_and_down(mean_up_s: float, down_s: float | None, mean_down_s: float | None) -> Times:
    """Exponential times up; down always as long, or for exponential times."""

    def times(draws: np.random.Generator) -> tuple[float, float]:
        up_s = float(draws.exponential(mean_up_s))
        return up_s, down_s if down_s is not None else float(draws.exponential(mean_down_s or 0.0))

    return times
