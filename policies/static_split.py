"""Static residency split: every model stays on a GPU for ever, with as many of its layers as its share of memory holds.

Source: definition (policies.md P02 a and b). Models are dealt to GPUs, largest first, each to the GPU where the models
ask for the least memory so far. On a GPU, `equal` gives each model the same bytes and `proportional` bytes by its
request rate, which the user states in `rates` (a policy cannot know it). What a model that is whole leaves over goes to
the others. Nothing is ever unloaded, so reload cost is 0 and residency is constant, below 1 where models crowd.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from sim.policy import Action, Field, GpuView, Load, ModelView, Policy, PolicyParameters, Reject, Route, Standing, View


class StaticSplit(Policy):
    """Divide each GPU's memory among its models once."""

    tier = "naive"
    keeps_placement = True
    follows_every_finish = False

    class Parameters(PolicyParameters):
        split: Literal["equal", "proportional"] = Field("equal", description="how the models of a GPU share its memory")
        rates: dict[str, float] = Field({}, description="model -> requests per second, for proportional; default 1")

    def start(self, view: View) -> Iterator[Action]:
        self._standing = Standing()
        dealt: dict[GpuView, list[ModelView]] = {gpu: [] for gpu in view.gpus}
        for model in sorted(view.models, key=lambda model: -model.total_bytes):
            asked = {gpu: sum(m.gpu_bytes(m.layers) for m in models) for gpu, models in dealt.items()}
            gpu = min(view.gpus, key=lambda gpu: (asked[gpu] + model.gpu_bytes(model.layers)) / gpu.capacity_bytes)
            dealt[gpu].append(model)
        for gpu, models in dealt.items():
            for model, layers in self._shares(gpu, models):
                if gpu.takes(model, layers):
                    yield Load(model, gpu, layers)

    def _shares(self, gpu: GpuView, models: list[ModelView]) -> list[tuple[ModelView, int]]:
        """Layers of each model; the smallest asker relative to its share first, so that its surplus is passed on."""
        weights = {model: self._weight(model) for model in models}
        order = sorted(models, key=lambda model: model.gpu_bytes(model.layers) / weights[model])
        left_bytes = float(gpu.capacity_bytes)
        shares = []
        for position, model in enumerate(order):
            share = left_bytes * weights[model] / sum(weights[other] for other in order[position:])
            layers = model.layers_within(share)
            left_bytes -= model.gpu_bytes(layers)
            shares.append((model, layers))
        return shares

    def _weight(self, model: ModelView) -> float:
        if self.parameters.split == "equal":
            return 1.0
        rate = self.parameters.rates.get(model.name, 1.0)
        if rate <= 0:
            raise ValueError(f"rates: {model.name} must be above 0")
        return float(rate)

    def decide(self, view: View) -> Iterator[Action]:
        yield from self._standing.restore(view)
        for model in view.waiting_models:
            if not model.instances and self._standing.expects(model):
                continue
            for request in model.waiting:
                if model.instances:
                    yield Route(request, model.instances[0])
                else:
                    yield Reject(request, "its model found no place in the static split")
