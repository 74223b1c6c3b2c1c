"""Whole models, loaded on demand; the least recently used idle one makes room (the common LRU baseline).

Source: the least-recently-used rule of llama.cpp's router and of llama-swap-like tools (shared research notes, P05 and
the toy's baseline), with memory counted in bytes. A model has one instance. It is loaded whole where it fits, else with
the most layers that an empty GPU takes. Running work is never interrupted; requests wait until an idle victim is there.
Left out: timers, pins, groups.
"""

from __future__ import annotations

from collections.abc import Iterator

from sim import policy
from sim.policy import Action, InstanceView, ModelView, Policy, PolicyParameters, View


class LruSwap(Policy):
    """Load on demand, evict the least recently used idle instances."""

    tier = "naive"
    follows_every_finish = False

    def __init__(self, parameters: PolicyParameters | None = None) -> None:
        super().__init__(parameters)
        self._stuck: dict[ModelView, bool] = {}  # those without a place, until something falls idle or is freed

    def decide(self, view: View) -> Iterator[Action]:
        if view.freed or view.idled or view.loaded:
            self._stuck.clear()
        for model in policy.longest_waiting_first(view.waiting_models):
            target: InstanceView | policy.Load | None = next((i for i in model.instances if i.accepts), None)
            if target is None and not model.instances and model not in self._stuck:
                place = policy.lru_place(view, model)
                if place is None:
                    self._stuck[model] = True
                    if relief := policy.costs.host_relief(view, model):
                        yield policy.Stop(relief)
                else:
                    gpu, layers, victims = place
                    yield from (policy.Stop(victim) for victim in victims)
                    yield (target := policy.Load(model, gpu, layers))
            if target is not None:
                yield from (policy.Route(request, target) for request in model.waiting)
