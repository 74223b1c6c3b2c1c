"""Least recently used with a turn hold: a model that has just answered stays for the time an agent takes for a tool.

Source: Quartermaster-Labs/Quartermaster 2a683cb0, docs/loading-models.md. Requests queue and load their model. As many
of the least recently used idle models are evicted as the new one needs, and no more. A model that finished a request
less than `hold_s` ago is not evicted, unless somebody has waited for the whole of their patience: else two agents on
two models would swap them at every step. `helpers` (speech, embedding) are loaded at the start and never swapped.
The memory budget is the GPU's. Several GPUs, also of several nodes, are one pool in which a model has one instance,
as in lru-swap: it goes where the victims were used longest ago. Running work is never interrupted.
Left out: idle unload, groups, the estimate of memory (the simulator's sizes are exact).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import inf

from sim import policy
from sim.policy import Action, Field, InstanceView, ModelView, Policy, PolicyParameters, View


class TurnHold(Policy):
    """LRU that does not take a model between two turns."""

    tier = "production"
    follows_every_finish = False

    class Parameters(PolicyParameters):
        hold_s: float = Field(10.0, ge=0, description="seconds after its last request that a model is not evicted")
        patience_s: float = Field(60.0, ge=0, description="seconds of waiting that override the hold")
        patience_by_class: dict[str, float] = Field(
            {}, description="service class -> patience in seconds instead (unattended API clients: 300)"
        )
        helpers: list[str] = Field([], description="models loaded at the start that are never evicted")

    def start(self, view: View) -> Iterator[Action]:
        for name in self.parameters.patience_by_class:
            if name not in view.service_classes:
                raise ValueError(f"patience_by_class: no service class '{name}'; there are {view.service_classes}")
        self._look_s: dict[ModelView, float] = {}  # models without a place: when that may change by time alone
        self._helpers = dict.fromkeys(policy.known_models(view, "helpers", self.parameters.helpers).values(), True)
        for model in self._helpers:
            fitting = [gpu for gpu in view.gpus if gpu.takes(model, model.layers)]
            if not fitting:
                raise ValueError(f"helpers: no GPU has room for the whole of '{model.name}'; name fewer")
            yield policy.Load(model, max(fitting, key=lambda gpu: gpu.available_bytes), model.layers)

    def decide(self, view: View) -> Iterator[Action]:
        if view.freed or view.idled or view.loaded:
            self._look_s.clear()
        for model in policy.longest_waiting_first(view.waiting_models):
            target: InstanceView | policy.Load | None = model.least_loaded
            override_s = self._override_s(model)
            if target is None and not model.instances and view.now_s >= self._look_s.get(model, 0.0):
                held = view.now_s < override_s
                place = policy.lru_place(view, model, partial(self._stays, view, held=held))
                if place is None:
                    yield from self._keep_waiting(view, model, override_s)
                    continue
                gpu, layers, victims = place
                yield from (policy.Stop(victim) for victim in victims)
                yield (target := policy.Load(model, gpu, layers))
            elif target is None and view.now_s < override_s < self._look_s.get(model, 0.0):
                self._look_s[model] = override_s
                yield policy.Wake(override_s)
            if target is not None:
                yield from (policy.Route(request, target) for request in model.waiting)

    def _override_s(self, model: ModelView) -> float:
        """When the patience of somebody who waits for the model is over."""
        by_class = self.parameters.patience_by_class
        waiting = model.waiting if by_class else [request for request in [model.oldest] if request]
        default_s = float(self.parameters.patience_s)
        return min([r.arrival_s + float(by_class.get(r.service_class, default_s)) for r in waiting])

    def _stays(self, view: View, instance: InstanceView, held: bool) -> bool:
        in_turn = instance.last_used_s + float(self.parameters.hold_s) > view.now_s
        return instance.model in self._helpers or (held and in_turn)

    def _keep_waiting(self, view: View, model: ModelView, override_s: float) -> Iterator[Action]:
        """Nothing to be had: look again when a hold or the patience ends; other changes tell of themselves."""
        held = view.now_s < override_s
        relief = policy.costs.host_relief(view, model)
        if relief is not None and not self._stays(view, relief, held):
            yield policy.Stop(relief)
        ends_s = [override_s] if held else []
        for gpu in view.shortlist() if held else ():
            ends_s += [i.last_used_s + float(self.parameters.hold_s) for i in gpu.instances if i.idle]
        self._look_s[model] = min([end_s for end_s in ends_s if end_s > view.now_s], default=inf)
        if self._look_s[model] < inf:
            yield policy.Wake(self._look_s[model])
