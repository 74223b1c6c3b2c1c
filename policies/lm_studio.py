"""LM Studio's just-in-time loading: one model that requests loaded, a time to live, and models loaded by hand.

Source: lmstudio.ai/docs/api/ttl-and-auto-evict (closed source: the rules are its documentation's). A request for a
model that is not loaded loads it. `auto_evict` unloads the one loaded so before; so there is at most one, also where
two would fit. It is unloaded once idle for its time to live. Models of `manual` are loaded at the start and stay.
Requests are served in order of arrival: the documentation does not say what happens to a model that still generates
when another is asked for, and users report answers cut off (bug tracker 671, 1796). Here the load waits until the model
is idle, and whoever comes after it waits behind it; `interrupt: true` cuts the answers off instead.
A load takes the layers that fit (GPU offload: auto); one that nothing is left for is refused, as by the guardrails.
One server a GPU, since the product would spread its one model over all of them, or one a node; a front door sends a
request to the server that has its model, from `spill_requests` on also to the next with the fewest requests.
Left out: a time to live that a single request brings; draft models; guardrails short of what fits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from sim import policy
from sim.policy import Action, Field, InstanceView, Policy, PolicyParameters, View

GUARDRAIL = "insufficient memory for its model beside those that are loaded"


class LmStudio(Policy):
    """One just-in-time model a server, and those loaded by hand."""

    tier = "production"

    class Parameters(PolicyParameters):
        ttl_s: float = Field(3600.0, gt=0, description="seconds idle before a just-in-time model is unloaded")
        ttl_by_model: dict[str, float] = Field({}, description="model -> time to live in seconds instead")
        auto_evict: bool = Field(True, description="unload the just-in-time model before loading another")
        manual: list[str] = Field([], description="models loaded at the start, without a time to live, never evicted")
        interrupt: bool = Field(False, description="cut off the answers of a model that has to go")
        server_per: Literal["gpu", "node"] = Field("gpu", description="what one LM Studio commands")
        spill_requests: int = Field(64, ge=1, description="requests for a model at its server before another loads it")

    def start(self, view: View) -> Iterator[Action]:
        policy.known_models(view, "ttl_by_model", self.parameters.ttl_by_model)
        self._manual = dict.fromkeys(policy.known_models(view, "manual", self.parameters.manual).values(), True)
        self._door = policy.FrontDoor(view, self.parameters.server_per, self.parameters.spill_requests)
        self._timers = policy.IdleTimers(self._ttl_s)
        for model in self._manual:
            box = self._door.best_box(view, model)
            place = box.place(model) if box is not None else None
            if place is None:
                raise ValueError(f"manual: no GPU has room for '{model.name}' beside those before it; load fewer")
            yield policy.Load(model, *place)

    def decide(self, view: View) -> Iterator[Action]:
        boxes = self._door.admit(view)
        for box in boxes:
            for request in box.fresh if self.parameters.interrupt else ():
                if request in view.requeued:
                    box.forget(request)
                    yield policy.Reject(request, "its model was unloaded while it answered")
            yield from self._serve(box)
        self._door.done(boxes)
        for instance in self._timers.expired(view):
            yield policy.Stop(instance)
        yield from self._timers.wake(view)

    def _serve(self, box: policy.Box) -> Iterator[Action]:
        while (request := box.oldest) is not None:
            target: InstanceView | policy.Load | None = box.instance(request.model)
            if target is None:
                others = [i for i in box.loaded if i.model not in self._manual] if self.parameters.auto_evict else []
                if not self.parameters.interrupt and any(not other.idle for other in others):
                    return
                for other in others:
                    yield policy.Stop(other, "abort" if other.load else "drain")
                target = yield from box.load(request.model, GUARDRAIL, self._stays)
                if target is None:
                    if request.model in box.waiting:
                        return
                    continue
            box.forget(request)
            yield policy.Route(request, target)

    def _stays(self, instance: InstanceView) -> bool:
        return instance.model in self._manual

    def _ttl_s(self, instance: InstanceView) -> float | None:
        if instance.model in self._manual:
            return None
        return float(self.parameters.ttl_by_model.get(instance.model.name, self.parameters.ttl_s))
