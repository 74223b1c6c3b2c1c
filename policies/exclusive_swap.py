"""First come, first served, one model a GPU: the naive baseline that swaps whenever the next request needs another
model.

Source: definition (policies.md P01; llama-swap with one exclusive group and no collation behaves like it). The head
of one global queue joins its model's instance if there is one. Else it takes a GPU without a model, or the idle one
that was used longest ago, and loads its model there with all layers that fit. Else everybody waits: nobody looks past
the head. On several GPUs each holds one model of its own.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

from sim.policy import Action, Field, Load, Policy, PolicyParameters, RequestView, Route, Stop, View, costs


class ExclusiveSwap(Policy):
    """One model a GPU, strictly in order of arrival."""

    tier = "naive"
    follows_every_finish = False

    class Parameters(PolicyParameters):
        batch_consecutive: bool = Field(True, description="let a request join a batch of its model that runs")

    def decide(self, view: View) -> Iterator[Action]:
        while (request := view.oldest) is not None:
            if not (yield from self._serve(view, request)):
                return

    def _serve(self, view: View, request: RequestView) -> Generator[Action, None, bool]:
        model = request.model
        for instance in model.instances:
            if instance.accepts:
                joins = self.parameters.batch_consecutive or instance.load == 0
                if joins:
                    yield Route(request, instance)
                return joins
        # The GPU that serves it best: most layers, then empty, then idle for longest.
        ranked = []
        for gpu in view.shortlist():
            layers = model.layers_within(gpu.capacity_bytes)
            held = gpu.instances
            freed = sum(instance.gpu_bytes for instance in held)
            if all(instance.idle for instance in held) and gpu.takes(model, layers, freed_bytes=freed):
                last_used_s = max((instance.last_used_s for instance in held), default=-1.0)
                ranked.append((-layers / model.layers, last_used_s, gpu.index, gpu, layers))
        if not ranked:
            if relief := costs.host_relief(view, model):
                yield Stop(relief)
            return False
        *_, gpu, layers = min(ranked)
        yield from (Stop(instance) for instance in gpu.instances)
        yield (load := Load(model, gpu, layers))
        yield Route(request, load)
        return True
