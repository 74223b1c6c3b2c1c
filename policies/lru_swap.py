"""Whole models, loaded on demand; the least recently used idle one makes room (the common LRU baseline).

Source: the least-recently-used rule of llama.cpp's router and of llama-swap-like tools (shared research notes, P05 and
the toy's baseline), with memory counted in bytes. A model has one instance. It is loaded whole where it fits, else with
the most layers that an empty GPU takes. Running work is never interrupted; requests wait until an idle victim is there.
Left out: timers, pins, groups.
"""

from __future__ import annotations

from collections.abc import Iterator

from sim.policy import (
    Action,
    GpuView,
    InstanceView,
    Load,
    ModelView,
    Policy,
    PolicyParameters,
    Route,
    Stop,
    View,
    costs,
    longest_waiting_first,
)


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
        for model in longest_waiting_first(view.waiting_models):
            target: InstanceView | Load | None = next((i for i in model.instances if i.accepts), None)
            if target is None and not model.instances and model not in self._stuck:
                place = self._place(view, model)
                if place is None:
                    self._stuck[model] = True
                    relief = costs.host_relief(view, model)
                    if relief is not None:
                        yield Stop(relief)
                else:
                    gpu, layers, victims = place
                    for victim in victims:
                        yield Stop(victim)
                    target = Load(model, gpu, layers)
                    yield target
            if target is not None:
                for request in model.waiting:
                    yield Route(request, target)

    def _place(self, view: View, model: ModelView) -> tuple[GpuView, int, list[InstanceView]] | None:
        """The GPU whose idle victims were used longest ago; none at all is best."""
        best: tuple[GpuView, int, list[InstanceView]] | None = None
        best_rank = (0, 0.0)
        for gpu in view.shortlist():
            layers = model.layers_within(gpu.capacity_bytes)
            needed = model.gpu_bytes(layers)
            idle = sorted((i for i in gpu.instances if i.idle), key=lambda i: (i.last_used_s, i.number))
            victims: list[InstanceView] = []
            while needed > gpu.available_bytes + sum(v.gpu_bytes for v in victims) and len(victims) < len(idle):
                victims.append(idle[len(victims)])
            if not gpu.takes(model, layers, freed_bytes=sum(v.gpu_bytes for v in victims)):
                continue
            # More layers first, then whose most recently used victim is oldest.
            rank = (-layers, victims[-1].last_used_s if victims else -1.0)
            if best is None or rank < best_rank:
                best, best_rank = (gpu, layers, victims), rank
        return best
