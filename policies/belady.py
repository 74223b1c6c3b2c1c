"""Belady: lru-swap with the victim chosen from the true future, by what it costs to have it back and when that is.

Source: Belady 1966 and, for objects of unequal size and cost, the offline form of GreedyDual-Size (Cao and Irani 1997);
policies.md O4. As in lru-swap a model has one instance, loaded whole where it fits, running work is never interrupted,
and requests wait until idle victims give enough room. Of idle instances the one with the smallest
C / (bytes x time to its next request) goes first, C being the seconds to load it again; one that is never asked for
again goes before all others. Of GPUs it takes the one whose victims' C / (time to next request) sum up to least.

It bounds the choice of victims only, and not even that strictly: with equal sizes and costs and one request at a time
no other choice loads less often; with unequal ones the best choice is NP-hard. In a closed loop (think_s) it knows of
each request only the earliest time at which it can come.
"""

from __future__ import annotations

from collections.abc import Iterator

from sim import policy
from sim.policy import Action, GpuView, InstanceView, ModelView, Policy, View


class Belady(Policy):
    """Load whole models on demand, evict the idle one that is cheapest to miss, knowing when each is asked for next."""

    tier = "oracle"
    oracle = "it knows when each model is asked for next"
    foresees = True
    follows_every_finish = False

    def decide(self, view: View) -> Iterator[Action]:
        for model in policy.longest_waiting_first(view.waiting_models):
            target: InstanceView | policy.Load | None = next((i for i in model.instances if i.accepts), None)
            if target is None and not model.instances:
                place = self._place(view, model)
                if place is not None:
                    gpu, layers, victims = place
                    yield from (policy.Stop(victim) for victim in victims)
                    yield (target := policy.Load(model, gpu, layers))
                elif relief := policy.costs.host_relief(view, model):
                    yield policy.Stop(relief)
            if target is not None:
                yield from (policy.Route(request, target) for request in model.waiting)

    def _place(self, view: View, model: ModelView) -> tuple[GpuView, int, list[InstanceView]] | None:
        """The GPU with the most layers for it, then the one whose victims are least missed."""
        places = []
        for gpu in view.shortlist():
            layers = model.layers_within(gpu.capacity_bytes)
            lacking = model.gpu_bytes(layers) - gpu.available_bytes
            victims: list[InstanceView] = []
            missed = 0.0
            for victim in sorted((i for i in gpu.instances if i.idle), key=lambda i: self._worth(view, i)):
                if lacking <= 0:
                    break
                victims.append(victim)
                lacking -= victim.gpu_bytes
                missed += self._missed(view, victim)
            if gpu.takes(model, layers, freed_bytes=sum(victim.gpu_bytes for victim in victims)):
                places.append((-layers, missed, gpu.index, gpu, layers, victims))
        return min(places)[3:] if places else None

    def _missed(self, view: View, instance: InstanceView) -> float:
        """Seconds of reload for each second until somebody asks for its model."""
        next_s = self.future.next_arrival_s(instance.model, view.now_s)
        return policy.costs.reload_s(instance) / (next_s - view.now_s)

    def _worth(self, view: View, instance: InstanceView) -> tuple[float, int]:
        return self._missed(view, instance) / max(1, instance.gpu_bytes), instance.number
