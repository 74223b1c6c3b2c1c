"""Static placement, dynamic routing: nothing is ever unloaded, each request goes to the copy with the fewest requests.

Source: definition; the join-the-shortest-queue routing of replicated serving (AlpaServe's dispatcher without its drop
rule). Placement, made once at time 0: every model once, largest first, whole, on the GPU with the most free memory;
models that fit whole nowhere take the largest part that is left; what memory remains holds second and further copies
of the models with the fewest copies. `placement` replaces it by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from sim.policy import Action, Field, GpuView, Load, ModelView, Policy, PolicyParameters, Reject, Route, Standing, View


class LeastLoaded(Policy):
    """Join the shortest queue over a static placement."""

    tier = "naive"
    keeps_placement = True
    follows_every_finish = False

    class Parameters(PolicyParameters):
        placement: dict[str, list[str]] = Field(
            {}, description="GPU name -> names of the models on it, whole where they fit; empty: placed automatically"
        )
        replicas: bool = Field(True, description="fill the memory that is left with further copies")

    def start(self, view: View) -> Iterator[Action]:
        self._standing = Standing()
        if self.parameters.placement:
            yield from self._as_given(view)
            return
        models = sorted(view.models, key=lambda model: -model.total_bytes)
        left = []
        for model in models:
            gpu = self._roomiest(view, model)
            if gpu is None:
                left.append(model)
            else:
                yield Load(model, gpu, model.layers)
        for model in left:
            gpu = max(view.gpus, key=lambda gpu: model.layers_within(gpu.available_bytes))
            layers = model.layers_within(gpu.available_bytes)
            if gpu.takes(model, layers):
                yield Load(model, gpu, layers)
        if self.parameters.replicas:
            yield from self._replicas(view, models)

    def _replicas(self, view: View, models: list[ModelView]) -> Iterator[Action]:
        """One more copy of the model with the fewest, the larger first, until nothing fits any more."""
        queue = [(len(model.instances), -model.total_bytes, place, model) for place, model in enumerate(models)]
        heapify(queue)
        while queue:
            copies, size, place, model = heappop(queue)
            gpu = self._roomiest(view, model)
            if gpu is not None:
                yield Load(model, gpu, model.layers)
                heappush(queue, (copies + 1, size, place, model))

    def _roomiest(self, view: View, model: ModelView) -> GpuView | None:
        """The GPU without a copy of the model that has the most available memory, if it takes the whole model."""
        for gpus in (view.shortlist(), view.gpus):
            fitting = [gpu for gpu in gpus if model not in gpu.models and gpu.takes(model, model.layers)]
            if fitting:
                return max(fitting, key=lambda gpu: gpu.available_bytes)
        return None

    def _as_given(self, view: View) -> Iterator[Action]:
        gpus = {gpu.name: gpu for gpu in view.gpus}
        models = {model.name: model for model in view.models}
        for name, wanted in self.parameters.placement.items():
            if name not in gpus:
                raise ValueError(f"placement: no GPU '{name}'; there are {', '.join(gpus)}")
            for model_name in wanted:
                if model_name not in models:
                    raise ValueError(f"placement: no model '{model_name}'; there are {', '.join(models)}")
                model = models[model_name]
                yield Load(model, gpus[name], model.layers_within(gpus[name].available_bytes))

    def decide(self, view: View) -> Iterator[Action]:
        yield from self._standing.restore(view)
        for model in view.waiting_models:
            if model.least_loaded is None and self._standing.expects(model):
                continue
            for request in model.waiting:
                instance = model.least_loaded
                if instance is None:
                    yield Reject(request, "its model has no place in the static placement")
                else:
                    yield Route(request, instance)
