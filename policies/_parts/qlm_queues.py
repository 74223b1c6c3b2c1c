"""QLM's virtual queues as plain data: groups of requests of one model, and when each would be through on its GPU.

An estimate from the measured curves: requests x tokens / throughput of their batch, and a swap at every change of
model. Which queue a group joins, and in which order, is the policy's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile

from sim.policy import GpuView, ModelView, RequestView, costs, switch_s


@dataclass(eq=False)
class RequestGroup:
    """Requests of one model and class. `joined` counts all it ever had, `waiting` are those not routed."""

    model: ModelView
    deadline_s: float
    gpu: GpuView
    joined: int = 0
    waiting: dict[int, RequestView] = field(default_factory=dict)
    routed: dict[int, RequestView] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.waiting) + len(self.routed)

    def leave(self, request: RequestView) -> None:
        """It has ended."""
        self.waiting.pop(request.number, None)
        self.routed.pop(request.number, None)


class VirtualQueue:
    """The groups of a GPU in the order in which it serves them."""

    def __init__(self) -> None:
        self._groups: list[RequestGroup] = []
        self.by_deadline = True  # are they in the order of their deadlines?

    def __len__(self) -> int:
        return len(self._groups)

    @property
    def groups(self) -> list[RequestGroup]:
        """Those in which somebody is left."""
        return [group for group in self._groups if len(group)]

    @property
    def first_model(self) -> ModelView | None:
        """The model of the first group."""
        while self._groups and not len(self._groups[0]):
            del self._groups[0]
        return self._groups[0].model if self._groups else None

    def next_requests(self, most: int) -> list[tuple[RequestGroup, RequestView]]:
        """The first who wait in the groups of one model at the head."""
        found: list[tuple[RequestGroup, RequestView]] = []
        model = self.first_model
        for group in takewhile(lambda group: group.model is model, self._groups):
            if len(found) >= most:
                break
            found += [(group, request) for request in islice(group.waiting.values(), most - len(found))]
        return found

    def append(self, group: RequestGroup) -> None:
        """To the tail."""
        self.by_deadline &= not self._groups or self._groups[-1].deadline_s <= group.deadline_s
        self._groups.append(group)

    def put(self, groups: Sequence[RequestGroup]) -> bool:
        """These groups in this order from now on; was it another before?"""
        changed = self.groups != list(groups)
        self._groups = list(groups)
        self.by_deadline = self._groups == in_time_order(groups)
        return changed


def in_time_order(groups: Sequence[RequestGroup]) -> list[RequestGroup]:
    """By deadline; of one deadline as they come."""
    return sorted(groups, key=lambda group: group.deadline_s)


class WaitingTimes:
    """How long groups take. tokens, swap_time_s: numbers instead of the predictor's mean and the tables' switch times;
    max_batch: sequences a batch, where that is less than the group."""

    def __init__(self, tokens: float | None, swap_time_s: float | None, max_batch: int | None) -> None:
        self._tokens, self._swap_time_s, self._max_batch = tokens, swap_time_s, max_batch
        self._steps_s: dict[tuple[ModelView, str, int, int], float] = {}  # of a token, by layers and batch

    def work_s(self, group: RequestGroup, gpu: GpuView) -> float:
        """What the group's requests take at the throughput of their batch."""
        model = group.model
        tokens = self._tokens or model.expected_output_tokens
        return len(group) * float(tokens) * self._token_s(model, gpu, min(len(group), self._max_batch or len(group)))

    def _token_s(self, model: ModelView, gpu: GpuView, sequences: int) -> float:
        layers = gpu.layers_when_empty(model) or 0
        key = (model, f"{gpu.node.name}/{gpu.kind}", layers, sequences)
        if key not in self._steps_s:
            profile = model.profile(gpu)
            batch = max(1, min(sequences, profile.largest_batch))
            context = min(costs.TYPICAL_CONTEXT, model.max_context)
            self._steps_s[key] = profile.known_step_s(layers, batch, context) / batch
        return self._steps_s[key]

    def swap_s(self, model: ModelView, gpu: GpuView) -> float:
        """A change to this model."""
        return switch_s(model, gpu) if self._swap_time_s is None else self._swap_time_s

    def waits_s(self, gpu: GpuView, groups: Sequence[RequestGroup]) -> list[float]:
        """Seconds from now until each group is through, in this order: a swap at every change of model."""
        last = next((instance.model for instance in gpu.instances if instance.accepts), None)
        total_s, found = 0.0, []
        for group in groups:
            if group.model is not last:
                total_s += self.swap_s(group.model, gpu)
            last = group.model
            total_s += self.work_s(group, gpu)
            found.append(total_s)
        return found

    def late_s(self, now_s: float, plan: Mapping[GpuView, Sequence[RequestGroup]]) -> float:
        """Seconds by which the groups of a plan miss their promises, in sum."""
        return sum(
            [
                max(0.0, now_s + wait_s - group.deadline_s)
                for gpu, groups in plan.items()
                for group, wait_s in zip(groups, self.waits_s(gpu, groups), strict=True)
            ],
            0.0,
        )
