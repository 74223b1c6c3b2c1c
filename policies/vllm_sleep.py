"""vLLM sleep mode behind a proxy: a model that has to make room sleeps, and wakes instead of starting again.

Source: vLLM documentation and blog of 2025-10-26, "Zero-Reload Model Switching with vLLM Sleep Mode". Level 1 keeps the
weights in host memory and drops the KV; level 2 drops both, so a wake reads the weights from the page cache if they are
still there, else from disk. vLLM leaves it to a proxy which model sleeps and when: here the least recently used idle
one, as needed, which is what the proxies that exist do. Running work is never interrupted.
It is meant for engine `resize: sleep`. With any other engine a model that has to go is stopped and starts again in
full, as vLLM without sleep mode; so the difference between the two engines is what sleep mode is worth.
A model has one server at a time, started where the victims were used longest ago, and wakes where it sleeps; if others
are busy there it is stopped and starts on another GPU. When host memory runs out, whoever has slept longest is stopped.
A model too large for every GPU gets the largest part that fits, as with vLLM's CPU offload.
Left out: what vLLM does within a batch (preemption by recompute, priorities) is the engine's, not the policy's.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Literal

from sim import policy
from sim.policy import Action, Field, GpuView, InstanceView, ModelView, Policy, PolicyParameters, View

Target = InstanceView | policy.Load


class VllmSleep(Policy):
    """LRU by sleeping and waking."""

    tier = "production"
    follows_every_finish = False

    class Parameters(PolicyParameters):
        level: Literal[1, 2] = Field(1, description="1: weights go to host memory; 2: they are dropped")

    def start(self, view: View) -> Iterator[Action]:
        self._most_layers = policy.most_layers(view)
        self._slept_s: dict[InstanceView, float] = {}  # who sleeps, and since when
        self._stuck: dict[ModelView, bool] = {}  # those without a place, until something falls idle or is freed
        yield from ()

    def decide(self, view: View) -> Iterator[Action]:
        if view.freed or view.idled or view.loaded:
            self._stuck.clear()
        for model in policy.longest_waiting_first(view.waiting_models):
            target: Target | None = model.least_loaded
            if target is None and model not in self._stuck:
                target = yield from self._bring(view, model)
                if target is None:
                    self._stuck[model] = True
            if target is not None:
                yield from (policy.Route(request, target) for request in model.waiting)

    def _bring(self, view: View, model: ModelView) -> Generator[Action, None, Target | None]:
        """Wake its server, else start one. None: it has to wait."""
        asleep = next((instance for instance in model.instances if instance.status == "asleep"), None)
        if asleep is None and model.instances:
            return None  # on its way out, or falling asleep
        if asleep is not None:
            victims = policy.lru_victims(asleep.gpu, model.gpu_bytes(asleep.layers, asleep.kv_tokens))
            if victims is not None:
                has_room = yield from self._make_host_room(view, asleep.gpu, model, asleep.layers, asleep)
                if not has_room:
                    return None
                yield from self._send_away(view, victims)
                if asleep.takes_resize(asleep.layers):
                    del self._slept_s[asleep]
                    yield policy.Resize(asleep, asleep.layers)
                    return asleep
                return None
        place = self._place(view, model)
        if place is None:
            return None
        gpu, layers, victims = place
        has_room = yield from self._make_host_room(view, gpu, model, layers, asleep)
        if not has_room:
            return None
        yield from self._send_away(view, victims)
        if not gpu.takes(model, layers):
            return None
        load = policy.Load(model, gpu, layers)
        yield load
        if asleep is not None:
            yield self._stop(asleep)
        return load

    def _place(self, view: View, model: ModelView) -> tuple[GpuView, int, list[InstanceView]] | None:
        """The GPU whose victims were used longest ago; none at all is best, enough host memory still better."""
        places = []
        for gpu in view.shortlist():
            layers = self._most_layers[gpu.node.name, gpu.kind, model]
            victims = policy.lru_victims(gpu, model.gpu_bytes(layers)) if layers >= 0 else None
            if victims is not None:
                lacks = gpu.lacks_host_bytes(model, layers) > 0
                rank = (-layers, lacks, victims[-1].last_used_s if victims else -1.0)
                places.append((rank, (gpu, layers, victims)))
        return min(places, key=lambda place: place[0])[1] if places else None

    def _send_away(self, view: View, victims: list[InstanceView]) -> Iterator[Action]:
        for victim in victims:
            if view.resize == "sleep" and victim.takes_resize(0):
                self._slept_s[victim] = view.now_s
                yield policy.Resize(victim, 0, drop_weights=self.parameters.level == 2)
            else:
                yield policy.Stop(victim)

    def _make_host_room(
        self, view: View, gpu: GpuView, model: ModelView, layers: int, wakes: InstanceView | None
    ) -> Generator[Action, None, bool]:
        """Is there host memory for the model? Those asleep give theirs back at once, an idle one's is there later."""
        sleepers = [i for i in self._slept_s if i.status == "asleep" and i.gpu.node is gpu.node and i is not wakes]
        sleepers.sort(key=lambda instance: (self._slept_s[instance], instance.number))
        while gpu.lacks_host_bytes(model, layers) and sleepers:
            yield self._stop(sleepers.pop(0))
        if not gpu.lacks_host_bytes(model, layers):
            return True
        around = [i for other in gpu.node.gpus for i in other.instances]
        idle = policy.least_recent_first(i for i in around if i.idle and not i.resizing)
        leaving = any(i.status in ("draining", "stopping", "freeing") for i in around)
        if idle and not leaving:
            if self.parameters.level == 2:
                yield from self._send_away(view, idle[:1])  # gives its host copy up as well
            else:
                yield policy.Stop(idle[0])
        return False

    def _stop(self, asleep: InstanceView) -> policy.Stop:
        del self._slept_s[asleep]
        return policy.Stop(asleep)
