"""What the moving parts share: the clock, the state, the options, the record, and what changed since the last decision.

Serving, loading and transfers each get the one World; engine.py builds it. It holds no logic of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sim.core.clock import SimClock
from sim.core.record.recorder import Recorder
from sim.core.state.instance import GONE, Instance
from sim.core.state.machines import Cluster, Gpu, Node
from sim.core.state.request import Request
from sim.scenario.scenario import EngineOptions, SharingOptions


class Changes:
    """What happened since the last decision, for the policy's eyes."""

    __slots__ = (
        "arrived",
        "failed",
        "finished",
        "freed",
        "idled",
        "loaded",
        "lost",
        "repaired",
        "requeued",
        "woken",
    )

    def __init__(self) -> None:
        self.arrived: list[Request] = []
        self.requeued: list[Request] = []
        self.finished: list[Request] = []
        self.loaded: list[Instance] = []
        self.idled: list[Instance] = []
        self.freed: list[Gpu] = []
        self.failed: list[Gpu] = []
        self.repaired: list[Gpu] = []  # these are among the freed, too
        self.lost: list[Instance] = []  # whose GPU failed, or their load
        self.woken = False

    def clear(self) -> None:
        """Nothing happened. Lists that hold something are left to who has them."""
        if self.arrived:
            self.arrived = []
        if self.requeued:
            self.requeued = []
        if self.finished:
            self.finished = []
        if self.loaded:
            self.loaded = []
        if self.idled:
            self.idled = []
        if self.freed:
            self.freed = []
        if self.failed:
            self.failed = []
        if self.repaired:
            self.repaired = []
        if self.lost:
            self.lost = []
        self.woken = False

    def any(self) -> bool:
        if self.arrived or self.requeued or self.finished or self.loaded or self.freed or self.woken:
            return True
        return bool(self.idled or self.failed or self.lost)

    def add(self, later: Changes) -> None:
        """What happened after this, too. Who has ended by then neither arrived nor came back; who came and went in
        between was never there; nor is an instance ready or idle that is gone."""
        unseen = {request.index: True for request in self.arrived}
        finished = [request for request in later.finished if request.index not in unseen]
        self.arrived = [request for request in (*self.arrived, *later.arrived) if request.outcome < 0]
        self.requeued = [request for request in (*self.requeued, *later.requeued) if request.outcome < 0]
        self.finished = [*self.finished, *finished]
        self.loaded = [instance for instance in (*self.loaded, *later.loaded) if instance.status != GONE]
        self.idled = [instance for instance in (*self.idled, *later.idled) if instance.status != GONE]
        self.freed = [*self.freed, *later.freed]
        self.failed = [*self.failed, *later.failed]
        self.repaired = [*self.repaired, *later.repaired]
        self.lost = [*self.lost, *later.lost]
        self.woken = self.woken or later.woken


@dataclass
class World:
    """One run's world."""

    clock: SimClock
    cluster: Cluster
    options: EngineOptions
    sharing: SharingOptions
    recorder: Recorder
    changes: Changes = field(default_factory=Changes)
    touched: dict[int, Instance] = field(default_factory=dict)  # to be planned at the end of the instant
    begun: dict[int, Instance] = field(default_factory=dict)  # with a leap that has no timer yet
    shaken_gpus: dict[int, Gpu] = field(default_factory=dict)  # whose sharing may have changed
    shaken_nodes: dict[int, Node] = field(default_factory=dict)

    def unplanned(self) -> bool:
        """Is there an instance to plan, or sharing to set anew?"""
        return bool(self.touched or self.begun or self.shaken_gpus or self.shaken_nodes)

    def touch(self, instance: Instance) -> None:
        """Plan this instance's next iterations at the end of the instant."""
        self.touched[instance.number] = instance

    def requeue(self, request: Request) -> None:
        """Back to the cluster's queue: the policy must route it again."""
        if request.instance is not None:
            request.instance.changed()
        request.instance = None
        self.cluster.wait(request)
        self.changes.requeued.append(request)
