"""Say here what it does, where the rule comes from, and what was left out."""

from __future__ import annotations

from collections.abc import Iterator

from sim.policy import Action, Field, InstanceView, Load, Policy, PolicyParameters, Route, Stop, View, costs


class Template(Policy):
    """Load whole models on demand, in place of idle ones; requests go to the copy with the fewest."""

    class Parameters(PolicyParameters):
        longest_first: bool = Field(True, description="make room with the instances that were idle for longest")

    def decide(self, view: View) -> Iterator[Action]:
        for model in view.waiting_models:
            target: InstanceView | Load | None = model.least_loaded  # of its instances that take requests
            for gpu in view.shortlist() if not model.instances else ():
                layers = model.layers_within(gpu.capacity_bytes)  # all of them, or as many as an empty GPU holds
                idle = [instance for instance in gpu.instances if instance.idle]
                idle.sort(key=lambda instance: instance.last_used_s, reverse=not self.parameters.longest_first)
                if target is None and gpu.takes(model, layers, freed_bytes=sum(i.gpu_bytes for i in idle)):
                    while not gpu.takes(model, layers):
                        yield Stop(idle.pop(0))  # its memory counts as available at once; the load waits for it
                    target = load = Load(model, gpu, layers)
                    yield load
            if target is not None:
                yield from (Route(request, target) for request in model.waiting)
            elif relief := costs.host_relief(view, model):  # host memory alone is in the way
                yield Stop(relief)
