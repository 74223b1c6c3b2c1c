"""Gavel: max-min fair shares of time on each kind of GPU, from throughputs, played out in rounds.

Source: stanford-futuredata/gavel c4fa4009, scheduler/policies/max_min_fairness.py, and Narayanan et al., OSDI 2020;
modifier M2 of policies.md. A job is a model that has requests; its throughput on a kind of GPU is tokens per second
of a full batch, from the measured curves. A linear programme gives the shares x that maximise the least weighted
throughput relative to an equal split. Each round the (model, kind) with the highest x / (fraction of time received
there) runs first; a GPU holds one model, whole where it fits, and keeps it without a break if it is chosen again. Who
is displaced leaves with its KV saved.
Not as published: a round that comes out with GPUs left over gives them to models that wait; a model without requests
does not hold its GPU against one that has some (`lend`), since a served model, unlike a training job, may pause; a
model gets as many GPUs at a time as there are for each. Left out: space sharing of two jobs, and the other
objectives.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappush, heapreplace
from math import inf

import numpy as np

from sim import policy
from sim.policy import Action, Field, GpuView, InstanceView, ModelView, Policy, PolicyParameters, View


class Gavel(Policy):
    """Rounds that follow max-min fair time shares of models on kinds of GPUs."""

    tier = "research"
    follows_every_finish = False

    class Parameters(PolicyParameters):
        round_s: float = Field(360.0, gt=0, description="length of a round; a model keeps its GPUs for so long")
        lend: bool = Field(
            True, description="a GPU whose model has no requests goes to one that has, before the round ends"
        )

    def __init__(self, parameters: Parameters | None = None) -> None:
        super().__init__(parameters)
        self.shares: dict[tuple[ModelView, str], float] = {}
        self.received_s: dict[tuple[ModelView, str], float] = {}
        self.holds: dict[GpuView, ModelView] = {}
        self._since_s: dict[ModelView, float] = {}  # when it first had requests
        self._counted_s = 0.0
        self._round_ends_s = -inf
        self._wake_s = -inf

    def decide(self, view: View) -> Iterator[Action]:
        self._count(view)
        for request in view.arrived:
            self._since_s.setdefault(request.model, request.arrival_s)
        if not view.waiting_models:
            return
        if view.now_s >= self._round_ends_s:
            self._new_round(view)
        if self.parameters.lend:
            self._lend(view)
        for model in view.waiting_models:
            yield from self._serve(view, model)
        if view.waiting_models and self._round_ends_s != self._wake_s:
            self._wake_s = self._round_ends_s
            yield policy.Wake(self._wake_s)

    def _serve(self, view: View, model: ModelView) -> Iterator[Action]:
        """Bring the model in where it holds a GPU, and spread its requests."""
        targets: list[tuple[int, int, InstanceView | policy.Load]] = []
        for gpu in [gpu for gpu, holder in self.holds.items() if holder is model]:
            for other in [instance for instance in gpu.instances if instance.model is not model]:
                yield from policy.leave(view, other)
            target = yield from policy.bring(view, model, gpu)
            if target is not None:
                heappush(targets, (target.load if isinstance(target, InstanceView) else 0, gpu.index, target))
        for request in model.waiting if targets else ():
            load, place, target = targets[0]
            yield policy.Route(request, target)
            heapreplace(targets, (load + 1, place, target))

    # --- rounds

    def _new_round(self, view: View) -> None:
        """Shares for the models that have requests, then GPUs by share over what was received so far."""
        models = [m for m in view.models if m.waiting_count or any(i.load for i in m.instances)]
        free: dict[str, list[GpuView]] = {}
        for gpu in view.gpus:
            free.setdefault(gpu.kind, []).append(gpu)
        scale = max(1, len(view.gpus) // len(models))
        speeds = np.array([[self.throughput(view, model, gpus) for gpus in free.values()] for model in models])
        x = policy.max_min_shares(
            speeds, [len(gpus) for gpus in free.values()], [model.weight for model in models], [scale] * len(models)
        )
        self.shares = {
            (m, kind): float(x[row, column]) for row, m in enumerate(models) for column, kind in enumerate(free)
        }
        pairs = sorted(
            (
                (self.priority(view, model, kind), -speeds[row, column], row, column, model, kind)
                for row, model in enumerate(models)
                for column, kind in enumerate(free)
                if speeds[row, column] > 0
            ),
            key=lambda pair: (-pair[0], *pair[1:4]),
        )
        self.holds = {}
        for *_, model, kind in pairs:
            if model not in self.holds.values():
                able = [gpu for gpu in free[kind] if gpu.layers_when_empty(model) is not None]
                able.sort(key=lambda gpu: (policy.resident(model, gpu) is None, -gpu.available_bytes, gpu.index))
                for gpu in able[:scale]:
                    self.holds[gpu] = model
                    free[kind].remove(gpu)
        self._round_ends_s = view.now_s + float(self.parameters.round_s)

    def throughput(self, view: View, model: ModelView, gpus: list[GpuView]) -> float:
        """Tokens per second of a full batch on this kind of GPU; 0 where none can hold the model."""
        for gpu in gpus:
            layers = gpu.layers_when_empty(model)
            if layers is not None:
                context = min(policy.costs.TYPICAL_CONTEXT, model.max_context)
                return view.max_sequences / model.profile(gpu).known_step_s(layers, view.max_sequences, context)
        return 0.0

    def priority(self, view: View, model: ModelView, kind: str) -> float:
        """Share over the fraction of its time that the model has been given this kind of GPU."""
        share = self.shares[model, kind]
        age_s = view.now_s - self._since_s[model]
        received_s = self.received_s.get((model, kind), 0.0)
        if received_s <= 0 or age_s <= 0:
            return inf if share > 1e-9 else 0.0
        return share * age_s / received_s

    def _count(self, view: View) -> None:
        """Time that models have been given since the last decision, averaged over the GPUs that each holds at once."""
        elapsed_s, self._counted_s = view.now_s - self._counted_s, view.now_s
        if elapsed_s > 0:
            for model, kind in dict.fromkeys((model, gpu.kind) for gpu, model in self.holds.items()):
                self.received_s[model, kind] = self.received_s.get((model, kind), 0.0) + elapsed_s

    # --- between rounds

    def _lend(self, view: View) -> None:
        """GPUs change hands before the round ends where nobody has anything to do."""
        held = dict.fromkeys(self.holds.values(), True)
        for model in view.waiting_models:
            if model not in held:
                gpu = next((gpu for gpu in policy.holders(view, model) if self._free(gpu)), None)
                if gpu is not None:
                    self.holds[gpu] = model

    def _free(self, gpu: GpuView) -> bool:
        holder = self.holds.get(gpu)
        return (holder is None or not holder.waiting_count) and not any(instance.load for instance in gpu.instances)
