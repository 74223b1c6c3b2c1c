"""ServerlessLLM: each instance has a GPU to itself and starts where it is up soonest; running ones migrate for others.

Source: Fu et al., "ServerlessLLM" (OSDI 2024); code ServerlessLLM/ServerlessLLM 9f50241b, sllm/schedulers/
storage_aware_scheduler.py; policies.md P15. Autoscaler: a model wants ceil(requests / target) instances, at most
`max_instances`; those that it lacks wait in one line, first come, first served, seen to at most once a `loop_s`.
Start-up time on a node: from its host memory at the speed of the link; else the wait for its disk, then at the speed
of the disk. A load goes to the free GPU where that is shortest. Migration: on a node without a free GPU an instance may
move to another node's, which takes its start-up time there and alpha x tokens + beta to resume; if that and the start
in its place take less than any free GPU, it moves: it serves on until its new instance is up, then its sequences
compute their tokens again there. Instances have one GPU here, so the published knapsack over GPUs is a minimum.

`keep_alive` 0 as published: what is not wanted any more leaves its GPU at once, so every pause ends in a cold start
from host memory, which is what the system makes cheap; with few requests 60 to 300 s save most of them. What is kept
blocks its GPU until its time is over, as published, unless `reclaim` gives it up to loads that wait for a GPU. Left
out: the download of checkpoints, the rounds of a migration (it moves once), pinned chunks of a checkpoint (a host has
all of a model or nothing). A model that fits nowhere whole is loaded with the largest part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import ClassVar

from sim import policy
from sim.policy import Action, Field, GpuView, InstanceView, ModelView, NodeView, Policy, PolicyParameters, View

COPIES = 8  # instances of a model, and nodes that it was on, that are looked at where there are more


@dataclass(frozen=True)
class Start:
    """A way to start an instance: seconds until it is up, where, and who moves to which GPU for it."""

    latency_s: float
    gpu: GpuView
    moves: InstanceView | None = None
    target: GpuView | None = None


class ServerlessLlm(Policy):
    """Start where start-up is shortest, migrate if that is shorter still, scale with the requests."""

    tier: ClassVar[str] = "research"

    class Parameters(PolicyParameters):
        target: float = Field(2.0, gt=0, description="requests for each instance that the autoscaler aims at")
        max_instances: int = Field(10, ge=1, description="most instances of a model")
        keep_alive: policy.KeepAliveChoice = Field(
            0.0, description="how long an instance that is not wanted stays: seconds, histogram, ski-rental or never"
        )
        histogram_bin_s: float = Field(60.0, gt=0, description="width of the bins of keep_alive: histogram")
        reclaim: bool = Field(False, description="give up kept instances when a load waits for a GPU")
        migration: bool = Field(True, description="may running instances move to other nodes? (code: off by default)")
        alpha: float = Field(0.01, ge=0, description="seconds to resume a migrated instance, for each of its tokens")
        beta: float = Field(0.1, ge=0, description="seconds to resume a migrated instance, whatever its tokens")
        loop_s: float = Field(1.0, ge=0, description="seconds between two looks at the loads in line")

    def __init__(self, parameters: Parameters | None = None) -> None:
        super().__init__(parameters)
        self.timers = policy.KeepAlive(self.parameters.keep_alive, self.parameters.histogram_bin_s)
        self._line: list[ModelView] = []  # loads that wait for a GPU
        self._next_s = 0.0  # of the loop
        self._moves: dict[InstanceView, tuple[InstanceView, ModelView]] = {}  # new instance: old one, who gets its GPU
        self._kept: dict[InstanceView, bool] = {}  # their time was over, but they were wanted
        self._disk_free_s: dict[NodeView, float] = {}
        self._homes: dict[ModelView, list[NodeView]] = {}  # where it was loaded, the last first

    def start(self, view: View) -> Iterator[Action]:
        if self.parameters.keep_alive == "never" and not self.parameters.reclaim and len(view.models) > len(view.gpus):
            raise ValueError("keep_alive: never leaves models without a GPU for ever; set reclaim: true with it")
        yield from ()

    def decide(self, view: View) -> Iterator[Action]:
        self.timers.observe(view)
        yield from self._finish_moves(view)
        for model in dict.fromkeys(r.model for r in (*view.arrived, *view.requeued, *view.finished)):
            self._scale(model)
        self._line += [model for model in self.timers.to_warm(view) if model not in self._line]
        for model in view.waiting_models:
            yield from self._dispatch(model)
        self._kept.update((instance, True) for instance in self.timers.expired(view))
        for instance in [i for i in self._kept if not i.idle or self._count(i.model) > self._wanted(i.model)]:
            del self._kept[instance]
            if instance.idle and not instance.resizing:
                yield policy.Stop(instance)
        if self._line and view.now_s >= self._next_s:
            self._next_s = view.now_s + self.parameters.loop_s
            yield from self._loop(view)
        elif self._line:
            yield policy.Wake(self._next_s)
        yield from self.timers.wakes(view)

    def _dispatch(self, model: ModelView) -> Iterator[Action]:
        """To the ready instance with the fewest requests; while none is ready to one that is on its way."""
        while (request := model.oldest) is not None:
            able = [i for i in model.quietest(COPIES) if i.accepts and i.load < i.max_sequences]
            if not able:
                return
            yield policy.Route(request, min(able, key=lambda i: (not i.ready, i.load, i.number)))

    # --- the autoscaler

    def _wanted(self, model: ModelView) -> int:
        requests = model.waiting_count + sum(instance.load for instance in model.instances)
        return min(int(self.parameters.max_instances), ceil(requests / float(self.parameters.target)))

    def _count(self, model: ModelView) -> int:
        """Its instances; of one that moves only the new one."""
        leaving = [source for source, _ in self._moves.values()]
        return sum(1 for instance in model.instances if instance.accepts and instance not in leaving)

    def _scale(self, model: ModelView) -> None:
        promised = self._line.count(model) + sum(1 for _, wanted in self._moves.values() if wanted is model)
        lacking = self._wanted(model) - self._count(model) - promised
        self._line += [model] * lacking
        for _ in range(-lacking):
            if model in self._line:  # the last to come goes
                del self._line[len(self._line) - 1 - self._line[::-1].index(model)]

    # --- loads in line

    def _loop(self, view: View) -> Iterator[Action]:
        nowhere: list[ModelView] = []
        for model in list(self._line):
            if model in nowhere:
                continue
            best = min(self._starts(view, model), key=lambda s: (s.latency_s, s.gpu.index), default=None)
            if best is not None:
                self._line.remove(model)
                if best.moves is None or best.target is None:
                    yield self._load(view, model, best.gpu)
                else:
                    moved = best.moves.model
                    yield self._load(view, moved, best.target)
                    self._moves[moved.instances[-1]] = (best.moves, model)
                continue
            nowhere.append(model)
            if relief := self._to_reclaim(view, model):
                yield policy.Stop(relief)

    def _starts(self, view: View, model: ModelView) -> Iterator[Start]:
        near = [gpu for node in self._homes.get(model, ()) for gpu in node.gpus]
        gpus = list(dict.fromkeys((*view.shortlist(), *near)))
        free = [gpu for gpu in gpus if not gpu.instances]
        for gpu in free:
            layers = policy.fullest_layers(view, model, gpu)
            if layers is not None and gpu.takes(model, layers):
                yield Start(self._startup_s(view, model, gpu), gpu)
        if not self.parameters.migration:
            return
        with_room = [gpu.node for gpu in free]
        leaving = [source for source, _ in self._moves.values()]
        for gpu in gpus:
            for victim in gpu.instances:
                if victim.ready and victim.load and victim not in leaving and gpu.node not in with_room:
                    yield from self._migrations(view, model, victim, free)

    def _migrations(self, view: View, model: ModelView, victim: InstanceView, free: list[GpuView]) -> Iterator[Start]:
        """To have the victim's GPU once it has moved to the free one where it is up soonest."""
        gpu, moved = victim.gpu, victim.model
        layers = policy.fullest_layers(view, model, gpu)
        if moved is model or layers is None or not gpu.takes(model, layers, freed_bytes=victim.gpu_bytes):
            return
        targets = [g for g in free if (n := policy.fullest_layers(view, moved, g)) is not None and g.takes(moved, n)]
        if targets:
            target = min(targets, key=lambda g: (self._startup_s(view, moved, g), g.index))
            tokens = sum(request.context_tokens for request in victim.running)
            resume_s = self.parameters.alpha * tokens + self.parameters.beta
            migration_s = resume_s + self._startup_s(view, moved, target)
            yield Start(self._startup_s(view, model, gpu) + migration_s, gpu, victim, target)

    def _startup_s(self, view: View, model: ModelView, gpu: GpuView) -> float:
        wait_s = 0.0
        if not gpu.node.has_weights(model):
            wait_s = max(0.0, self._disk_free_s.get(gpu.node, 0.0) - view.now_s)
        return wait_s + model.load_s(gpu, policy.fullest_layers(view, model, gpu) or 0)

    def _load(self, view: View, model: ModelView, gpu: GpuView) -> policy.Load:
        node = gpu.node
        if not node.has_weights(model):
            begin_s = max(view.now_s, self._disk_free_s.get(node, 0.0))
            self._disk_free_s[node] = begin_s + model.total_bytes / node.disk_bytes_per_s
        homes = self._homes.get(model, [])
        self._homes[model] = [node, *(other for other in homes if other is not node)][:COPIES]
        return policy.Load(model, gpu, policy.fullest_layers(view, model, gpu) or 0)

    def _to_reclaim(self, view: View, model: ModelView) -> InstanceView | None:
        """A kept instance that goes because host memory lacks, or (`reclaim`) because no GPU is free."""
        idle = [i for gpu in view.shortlist() for i in gpu.instances if i.idle and not i.resizing]
        if self.parameters.reclaim and idle:
            return min(idle, key=lambda instance: (instance.last_used_s, instance.number))
        return policy.costs.host_relief(view, model)

    # --- migrations under way

    def _finish_moves(self, view: View) -> Iterator[Action]:
        for new, (old, wanted) in list(self._moves.items()):
            if new.loading and old.accepts:
                continue
            del self._moves[new]
            gpu, layers = old.gpu, policy.fullest_layers(view, wanted, old.gpu)
            if old.accepts and not old.resizing:
                yield policy.Stop(old, "abort")
                if layers is not None and gpu.takes(wanted, layers):
                    yield self._load(view, wanted, gpu)
                    continue
            self._line.insert(0, wanted)
            self._scale(wanted)
