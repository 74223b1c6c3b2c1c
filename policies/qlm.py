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

from collections.abc import Iterator
from typing import Literal

from policies._parts.moore_hodgson import least_violation
from policies._parts.qlm_queues import RequestGroup, VirtualQueue, WaitingTimes, in_time_order
from sim import policy
from sim.policy import Action, Field, GpuView, InstanceView, ModelView, Policy, PolicyParameters, RequestView, View


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
        asked = self.parameters
        self.times = WaitingTimes(asked.tokens_per_request, asked.swap_time_s, asked.max_batch)
        self.queues: dict[GpuView, VirtualQueue] = {}
        self.replans = 0
        self._group_of: dict[int, RequestGroup] = {}
        self._open: dict[tuple[ModelView, str], RequestGroup] = {}
        self._planned: list[RequestGroup] = []  # what the last ILP saw

    def decide(self, view: View) -> Iterator[Action]:
        touched = dict.fromkeys([i.gpu for i in (*view.loaded, *view.idled)])
        touched.update(dict.fromkeys(gpu for freed in view.freed for gpu in freed.node.gpus))
        for request in view.finished:
            group = self._group_of.pop(request.number)
            group.leave(request)
            touched[group.gpu] = None
        for request in view.requeued:
            group = self._group_of[request.number]
            group.routed.pop(request.number, None)
            group.waiting[request.number] = request
            touched[group.gpu] = None
        for gpu in [gpu for gpu in view.failed if not gpu.up and gpu in self.queues]:
            for group in self.queues.pop(gpu).groups:
                group.gpu = self._shortest(view, group)
                self.queues.setdefault(group.gpu, VirtualQueue()).append(group)
                touched[group.gpu] = None
        for request in view.arrived:
            touched[self._join(view, request)] = None
        for gpu in list(touched):
            if gpu in self.queues and self._violates(view, gpu):
                touched.update(dict.fromkeys(self._replan(view, gpu)))
        for gpu in touched:
            if gpu in self.queues:
                yield from self._serve(view, gpu)

    # --- groups

    def _join(self, view: View, request: RequestView) -> GpuView:
        key = (request.model, request.service_class)
        group = self._open.get(key)
        if group is None or not len(group) or group.joined >= self.parameters.group_size:
            promise_s = request.ttft_slo_s or request.e2e_slo_s or self.parameters.slo_s
            group = RequestGroup(request.model, request.arrival_s + promise_s, view.gpus[0], 1, {0: request})
            group.gpu = self._shortest(view, group)
            group.joined, group.waiting = 0, {}
            self._open[key] = group
            self.queues.setdefault(group.gpu, VirtualQueue()).append(group)
        group.joined += 1
        group.waiting[request.number] = request
        self._group_of[request.number] = group
        return group.gpu

    def _shortest(self, view: View, group: RequestGroup) -> GpuView:
        """Where a new group at the tail would be through first."""

        def through_s(gpu: GpuView) -> float:
            ahead = self.queues[gpu].groups if gpu in self.queues else []
            return self.times.waits_s(gpu, [*ahead, group])[-1]

        own = [instance.gpu for instance in group.model.quietest(4)]
        return min(policy.holders(view, group.model, own), key=lambda gpu: (through_s(gpu), gpu.index))

    # --- plans

    def _few(self) -> bool:
        """Few enough groups for the programme?"""
        groups = sum(len(queue) for queue in self.queues.values())
        return self.parameters.planner == "ilp" and groups <= int(self.parameters.ilp_groups)

    def _violates(self, view: View, gpu: GpuView) -> bool:
        """Would a promise be broken, and could another order help?"""
        if self.queues[gpu].by_deadline and not self._few():
            return False
        groups = self.queues[gpu].groups
        waits_s = self.times.waits_s(gpu, groups)
        return any(view.now_s + s > group.deadline_s for group, s in zip(groups, waits_s, strict=True))

    def _replan(self, view: View, gpu: GpuView) -> list[GpuView]:
        """Put queues in a better order; the GPUs whose queues changed."""
        self.replans += 1
        if not self._few():
            return [gpu] if self.queues[gpu].put(in_time_order(self.queues[gpu].groups)) else []
        groups = [group for queue in self.queues.values() for group in queue.groups]
        if groups == self._planned:
            return []  # the violation is the one that was left when these were planned
        self._planned = groups
        spare = [gpu for group in groups for gpu in policy.holders(view, group.model)]
        gpus = list(dict.fromkeys([*(group.gpu for group in groups), *spare]))[: self.parameters.ilp_groups]
        edf = {gpu: in_time_order([group for group in groups if group.gpu is gpu]) for gpu in gpus}
        plan = self._ilp(view, groups, gpus)
        if plan is None or self.times.late_s(view.now_s, edf) <= self.times.late_s(view.now_s, plan):
            plan = edf
        for place, order in plan.items():
            for group in order:
                group.gpu = place
        return [place for place in gpus if self.queues.setdefault(place, VirtualQueue()).put(plan[place])]

    def _ilp(
        self, view: View, groups: list[RequestGroup], gpus: list[GpuView]
    ) -> dict[GpuView, list[RequestGroup]] | None:
        models = list(dict.fromkeys(group.model for group in groups))
        held = [next((i.model for i in gpu.instances if i.accepts), None) for gpu in gpus]
        orders = least_violation(
            [models.index(group.model) for group in groups],
            [
                [self.times.work_s(g, gpu) if gpu.layers_when_empty(g.model) is not None else None for gpu in gpus]
                for g in groups
            ],
            [[self.times.swap_s(model, gpu) for gpu in gpus] for model in models],
            [models.index(model) if model in models else None for model in held],
            [group.deadline_s - view.now_s for group in groups],
            int(self.parameters.ilp_nodes),
        )
        if orders is None:
            return None
        return {gpu: [groups[index] for index in order] for gpu, order in zip(gpus, orders, strict=True)}

    # --- the head of a queue

    def _serve(self, view: View, gpu: GpuView) -> Iterator[Action]:
        model = self.queues[gpu].first_model
        if model is None:
            return
        for other in [instance for instance in gpu.instances if instance.model is not model]:
            yield from policy.leave(view, other)
        target = yield from policy.bring(view, model, gpu)
        if target is None:
            return
        limit = min(self.parameters.max_batch or view.max_sequences, view.max_sequences)
        room = limit - (target.load if isinstance(target, InstanceView) else 0)
        for group, request in self.queues[gpu].next_requests(room):
            yield policy.Route(request, target)
            del group.waiting[request.number]
            group.routed[request.number] = request
