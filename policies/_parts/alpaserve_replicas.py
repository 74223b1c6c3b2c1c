"""A fluid queue model of replicated models: what a placement on GPUs would serve of some traffic, and what not.

Time is cut into slices. Each GPU is one queue of work; in each slice a model's work is poured into the shortest queues
of the GPUs that hold it, as long as it would start within its patience; the rest is unserved, and backlog goes on into
the next slice. Not an event simulation: no batches, no single requests. Placement policies search with it (alpaserve).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from sim.policy import GpuView, ModelView

Placement = dict[GpuView, list[ModelView]]


@dataclass(frozen=True)
class Traffic:
    """Requests of one model: how many in each slice, and how many seconds they may wait for their start."""

    counts: tuple[float, ...]
    patience_s: float


def traffic_seen(
    arrivals: Iterable[tuple[float, ModelView, int, float]], now_s: float, length_s: float, slices: int
) -> tuple[dict[ModelView, Traffic], dict[ModelView, float]]:
    """The traffic of the last `length_s` seconds and the mean prompt of each model, from rows of (when, model, prompt
    tokens, seconds that it may wait)."""
    rows: dict[ModelView, list[tuple[float, int, float]]] = {}
    for when_s, model, prompt_tokens, patience_s in arrivals:
        rows.setdefault(model, []).append((when_s, prompt_tokens, patience_s))
    traffic, prompts = {}, {}
    for model, seen in rows.items():
        counts = [0.0] * slices
        for when_s, _, _ in seen:
            counts[min(slices - 1, max(0, int((1.0 - (now_s - when_s) / length_s) * slices)))] += 1.0
        traffic[model] = Traffic(tuple(counts), sum(row[2] for row in seen) / len(seen))
        prompts[model] = sum(row[1] for row in seen) / len(seen)
    return traffic, prompts


class ReplicaQueues:
    """`work_s(model, gpu)`: seconds of that GPU that one request takes of what it can do."""

    def __init__(
        self, traffic: dict[ModelView, Traffic], slice_s: float, work_s: Callable[[ModelView, GpuView], float]
    ) -> None:
        self.traffic = traffic
        self.slice_s = slice_s
        self.work_s = work_s

    def play(self, placement: Placement) -> tuple[dict[ModelView, float], dict[GpuView, float]]:
        """(requests of each model that are not served in time, seconds of work that each GPU takes on)."""
        holders: dict[ModelView, list[GpuView]] = {model: [] for model in self.traffic}
        for gpu, models in placement.items():
            for model in models:
                if model in holders:
                    holders[model].append(gpu)
        # Who has the fewest queues to choose from goes first, as it would end there anyway.
        order = sorted(self.traffic, key=lambda model: len(holders[model]))
        unserved = dict.fromkeys(self.traffic, 0.0)
        taken = dict.fromkeys(placement, 0.0)
        backlog = dict.fromkeys(placement, 0.0)
        slices = max((len(flow.counts) for flow in self.traffic.values()), default=0)
        for number in range(slices):
            for model in order:
                flow = self.traffic[model]
                unserved[model] += self._pour(model, flow.counts[number], holders[model], backlog, taken)
            for gpu, seconds in backlog.items():
                if seconds:
                    backlog[gpu] = max(0.0, seconds - self.slice_s)
        return unserved, taken

    def _pour(
        self,
        model: ModelView,
        count: float,
        holders: Iterable[GpuView],
        backlog: dict[GpuView, float],
        taken: dict[GpuView, float],
    ) -> float:
        """Raise the shortest queues to one level; returns the requests that found no place."""
        most_s = self.slice_s + self.traffic[model].patience_s
        queues = sorted((backlog[gpu], gpu.index, gpu) for gpu in holders if backlog[gpu] < most_s)
        left = count
        for position in range(len(queues)):
            if left <= 0.0:
                break
            level_s = queues[position][0]
            above_s = min(queues[position + 1][0] if position + 1 < len(queues) else most_s, most_s)
            rates = [1.0 / self.work_s(model, gpu) for _, _, gpu in queues[: position + 1]]
            rise_s = min(above_s - level_s, left / sum(rates))
            for _, _, gpu in queues[: position + 1]:
                backlog[gpu] += rise_s
                taken[gpu] += rise_s
            left -= rise_s * sum(rates)
        return max(0.0, left)


def full_batch_s(model: ModelView, gpu: GpuView, layers: int, batch: int, tokens: tuple[float, float]) -> float:
    """Seconds of the GPU for each request of (prompt, output) tokens while such a batch decodes."""
    profile = model.profile(gpu)
    prompt_tokens = min(tokens[0], model.max_context)
    context = min(prompt_tokens + tokens[1] / 2, model.max_context)
    return profile.prefill_s(layers, prompt_tokens) + tokens[1] * profile.step_s(layers, batch, context) / batch


def matched(placement: Placement) -> Placement:
    """The same groups of models on GPUs of the same kind, each where most of its bytes are loaded already."""
    left = list(placement)
    found: Placement = {}
    for gpu in placement:
        here = gpu.models
        like = [g for g in left if g.kind == gpu.kind and g.capacity_bytes == gpu.capacity_bytes]
        best = max(like, key=lambda g: (sum(m.total_bytes for m in placement[g] if m in here), g is gpu, -g.index))
        left.remove(best)
        found[gpu] = placement[best]
    return found
