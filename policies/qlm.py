"""QLM: virtual queues of request groups, re-planned when an estimate says that a promise would be broken.

Source: QLM-project/QLM eea5b622 (qlm/queue, qlm/scheduler) and Patke et al., SoCC 2024. Requests are grouped by model
and service class; each GPU has one virtual queue of groups and holds one model, whole where it fits. The waiting time
of a group is requests x tokens / throughput; walking a queue adds the swap time at every change of model. If a group
would end after its promise, the queue is put in order of deadlines (EDF), or an integer programme over all queues
minimises the seconds of violation. New groups go to the tail. When another model comes to the head, who runs is
evicted, KV saved.
Not as published: measured curves stand for the code's constants (settable); HiGHS for Gurobi, with violations as cost
where the code forbids them; groups have a largest size, and their deadline is that of their first request. Left out:
eviction for a group of the same model (its requests come in as places fall free).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Literal

from sim.policy import (
    Action,
    Field,
    GpuView,
    InstanceView,
    ModelView,
    Policy,
    PolicyParameters,
    RequestView,
    Route,
    View,
    bring,
    costs,
    holders,
    least_violation,
    leave,
    switch_s,
)


@dataclass(eq=False)
class Group:
    """Requests of one model and class. `joined` counts all it ever had, `waiting` are those not routed."""

    model: ModelView
    deadline_s: float
    gpu: GpuView
    joined: int = 0
    waiting: dict[int, RequestView] = field(default_factory=dict)
    routed: dict[int, RequestView] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.waiting) + len(self.routed)


class Qlm(Policy):
    """Request groups in virtual queues; EDF or an ILP when a violation is predicted."""

    tier = "research"

    class Parameters(PolicyParameters):
        planner: Literal["edf", "ilp"] = Field("edf", description="how queues are re-planned on a predicted violation")
        slo_s: float = Field(3600.0, gt=0, description="promise, in seconds, of classes that promise no latency")
        max_batch: int | None = Field(None, ge=1, description="sequences a batch (code: 10); none: the engine's limit")
        group_size: int = Field(40, ge=1, description="most requests that ever join a group")
        tokens_per_request: float | None = Field(None, gt=0, description="code: 100; none: the predictor's mean")
        swap_time_s: float | None = Field(None, ge=0, description="seconds a swap (code: 100); none: from the tables")
        ilp_groups: int = Field(5, ge=1, description="with more groups in all queues the ILP gives way to EDF")
        ilp_nodes: int = Field(2000, ge=1, description="branch-and-bound nodes before the ILP gives way to EDF")

    def __init__(self, parameters: Parameters | None = None) -> None:
        super().__init__(parameters)
        self.queues: dict[GpuView, list[Group]] = {}
        self.replans = 0
        self._group_of: dict[int, Group] = {}
        self._open: dict[tuple[ModelView, str], Group] = {}
        self._planned: list[Group] = []  # what the last ILP saw

    def decide(self, view: View) -> Iterator[Action]:
        touched: dict[GpuView, bool] = dict.fromkeys([i.gpu for i in (*view.loaded, *view.idled)], True)
        for gpu in view.freed:
            touched.update(dict.fromkeys([g for g in gpu.node.gpus if self.queues.get(g)], True))
        for request in view.finished:
            group = self._group_of.pop(request.number, None)
            if group is not None:
                group.waiting.pop(request.number, None)
                group.routed.pop(request.number, None)
                touched[group.gpu] = True
        for request in view.requeued:
            group = self._group_of[request.number]
            group.routed.pop(request.number, None)
            group.waiting[request.number] = request
            touched[group.gpu] = True
        for request in view.arrived:
            touched[self._join(view, request)] = True
        for gpu in list(touched):
            self.queues[gpu] = [group for group in self.queues.get(gpu, []) if len(group)]
            if self._violates(view, gpu):
                touched.update(dict.fromkeys(self._replan(view, gpu), True))
        for gpu in touched:
            yield from self._serve(view, gpu)

    # --- groups and their waiting times

    def _join(self, view: View, request: RequestView) -> GpuView:
        key = (request.model, request.service_class)
        group = self._open.get(key)
        if group is None or not len(group) or group.joined >= self.parameters.group_size:
            promise_s = request.ttft_slo_s or request.e2e_slo_s or self.parameters.slo_s
            gpu = self._shortest(view, request.model)
            group = self._open[key] = Group(request.model, request.arrival_s + promise_s, gpu)
            self.queues.setdefault(gpu, []).append(group)
        group.joined += 1
        group.waiting[request.number] = request
        self._group_of[request.number] = group
        return group.gpu

    def _shortest(self, view: View, model: ModelView) -> GpuView:
        """Where a new group at the tail would be through first."""
        own = [instance.gpu for instance in model.quietest(4)]

        def through_s(gpu: GpuView) -> float:
            group = Group(model, 0.0, gpu, waiting={0: next(iter(view.arrived))})
            return self.waits_s(gpu, [*self.queues.get(gpu, []), group])[-1]

        return min(holders(view, model, own), key=lambda gpu: (through_s(gpu), gpu.index))

    def rwt_s(self, group: Group, gpu: GpuView) -> float:
        """Request waiting time: what the group's requests take at the throughput of their batch."""
        model, asked = group.model, self.parameters
        tokens = asked.tokens_per_request or model.expected_output_tokens
        batch = max(1, min(len(group), asked.max_batch or len(group), model.profile(gpu).largest_batch))
        layers = gpu.layers_when_empty(model) or 0
        context = min(costs.TYPICAL_CONTEXT, model.max_context)
        return len(group) * float(tokens) * model.profile(gpu).known_step_s(layers, batch, context) / batch

    def swap_s(self, model: ModelView, gpu: GpuView) -> float:
        asked = self.parameters.swap_time_s
        return switch_s(model, gpu) if asked is None else float(asked)

    def waits_s(self, gpu: GpuView, groups: Sequence[Group]) -> list[float]:
        """Seconds from now until each group is through, in this order: a swap at every change of model."""
        held = [instance.model for instance in gpu.instances if instance.accepts]
        last, total_s, found = (held[0] if held else None), 0.0, []
        for group in groups:
            if group.model is not last:
                total_s += self.swap_s(group.model, gpu)
            last = group.model
            total_s += self.rwt_s(group, gpu)
            found.append(total_s)
        return found

    def _violates(self, view: View, gpu: GpuView) -> bool:
        groups = self.queues[gpu]
        return any(view.now_s + s > g.deadline_s for g, s in zip(groups, self.waits_s(gpu, groups), strict=True))

    # --- plans

    def _replan(self, view: View, gpu: GpuView) -> list[GpuView]:
        """Put queues in a better order; the GPUs whose queues changed."""
        self.replans += 1
        groups = [group for queue in self.queues.values() for group in queue if len(group)]
        if self.parameters.planner == "ilp" and len(groups) <= self.parameters.ilp_groups:
            if groups == self._planned:
                return []  # the violation is the one that was left when these were planned
            self._planned = groups
            return self._replan_ilp(view, groups)
        before = self.queues[gpu]
        self.queues[gpu] = sorted(before, key=lambda group: group.deadline_s)
        return [gpu] if self.queues[gpu] != before else []

    def _replan_ilp(self, view: View, groups: list[Group]) -> list[GpuView]:
        spare = [gpu for group in groups for gpu in holders(view, group.model)]
        gpus = list(dict.fromkeys([*(group.gpu for group in groups), *spare]))[: self.parameters.ilp_groups]
        edf = {gpu: sorted([g for g in groups if g.gpu is gpu], key=lambda g: g.deadline_s) for gpu in gpus}
        plan = self._ilp(view, groups, gpus)
        if plan is None or self.late_s(view, edf) <= self.late_s(view, plan):
            plan = edf
        changed = [gpu for gpu in gpus if plan[gpu] != self.queues.get(gpu, [])]
        for gpu in changed:
            self.queues[gpu] = plan[gpu]
            for group in plan[gpu]:
                group.gpu = gpu
        return changed

    def late_s(self, view: View, plan: dict[GpuView, list[Group]]) -> float:
        """Seconds by which the groups of a plan miss their promises."""
        return sum(
            [
                max(0.0, view.now_s + wait_s - group.deadline_s)
                for gpu, groups in plan.items()
                for group, wait_s in zip(groups, self.waits_s(gpu, groups), strict=True)
            ],
            0.0,
        )

    def _ilp(self, view: View, groups: list[Group], gpus: list[GpuView]) -> dict[GpuView, list[Group]] | None:
        models = list(dict.fromkeys(group.model for group in groups))
        held = [next((i.model for i in gpu.instances if i.accepts), None) for gpu in gpus]
        fits = [[gpu.layers_when_empty(group.model) is not None for gpu in gpus] for group in groups]
        orders = least_violation(
            [models.index(group.model) for group in groups],
            [
                [self.rwt_s(g, gpu) if ok else None for gpu, ok in zip(gpus, row, strict=True)]
                for g, row in zip(groups, fits, strict=True)
            ],
            [[self.swap_s(model, gpu) for gpu in gpus] for model in models],
            [models.index(model) if model in models else None for model in held],
            [group.deadline_s - view.now_s for group in groups],
            int(self.parameters.ilp_nodes),
        )
        return (
            None
            if orders is None
            else {gpu: [groups[index] for index in order] for gpu, order in zip(gpus, orders, strict=True)}
        )

    # --- the head of a queue

    def _serve(self, view: View, gpu: GpuView) -> Iterator[Action]:
        queue = self.queues.get(gpu)
        if not queue:
            return
        model = queue[0].model
        for other in [instance for instance in gpu.instances if instance.model is not model]:
            yield from leave(view, other)
        target = yield from bring(view, model, gpu)
        if target is None:
            return
        limit = min(self.parameters.max_batch or view.max_sequences, view.max_sequences)
        room = limit - (target.load if isinstance(target, InstanceView) else 0)
        for group in takewhile(lambda group: group.model is model, queue):
            for request in list(group.waiting.values())[: max(0, room)]:
                yield Route(request, target)
                del group.waiting[request.number]
                group.routed[request.number] = request
                room -= 1
