"""ModelMesh: a cluster-wide cache of models, least recently used by size, that refuses to turn over too fast.

Source: kserve/modelmesh ea13cdc5, ModelMesh.java (constants about line 697, loading about 3870, placement 4660). Each
GPU is one of its instances. A model that is loaded nowhere goes to an instance with room, the one with the fewest
models, then most space; else to the full one whose least recently used model is oldest, where models are evicted in
that order until it fits. If even that one was used less than `min_churn_age_s` ago, the load is refused: "cache churn
threshold exceeded". A model with one copy that is asked for now and was also 420 to 2400 s ago gets a second; above
`scale_up_rpm` requests a minute and copy more are loaded, at most a third of the instances that have room. Further
copies evict nobody. A request goes to the copy with the fewest. Nothing is unloaded for being idle.
A model in use counts as used now, and is never evicted. Models are whole where that fits any GPU; ModelMesh knows no
parts, the largest that fits stands for a model too big for every GPU.
Left out: removal of second copies after hours, model types and placement constraints, load failures and their expiry.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from sim import policy
from sim.policy import Action, Field, GpuView, ModelView, Policy, PolicyParameters, View


class ModelMesh(Policy):
    """LRU by size with protection against churn."""

    tier = "production"
    patient = ("min_churn_age_s=0",)
    follows_every_finish = False

    class Parameters(PolicyParameters):
        min_churn_age_s: float = Field(
            600.0, ge=0, description="no model is evicted that was used so recently, in seconds; the load is refused"
        )
        second_copy_min_age_s: float = Field(420.0, ge=0, description="a use so long ago (or more) earns a second copy")
        second_copy_max_age_s: float = Field(2400.0, ge=0, description="uses longer ago than this are forgotten")
        scale_up_rpm: float = Field(2000.0, gt=0, description="requests a minute and copy beyond which more are loaded")
        rate_check_s: float = Field(10.0, gt=0, description="seconds between two looks at a model's rate")

    def start(self, view: View) -> Iterator[Action]:
        if self.parameters.second_copy_max_age_s < self.parameters.second_copy_min_age_s:
            raise ValueError("second_copy_max_age_s: must not be below second_copy_min_age_s")
        self._most_layers = policy.most_layers(view)
        self._uses: dict[ModelView, deque[tuple[int, int]]] = {}  # interval of rate_check_s, requests in it
        yield from ()

    def decide(self, view: View) -> Iterator[Action]:
        rechecked = {}
        for request in view.arrived:
            if self._note_use(view, request.model):
                rechecked[request.model] = True
        for model in policy.longest_waiting_first(view.waiting_models):
            if not model.instance_count:
                yield from self._load(view, model)
            for request in model.waiting:
                copy = model.least_loaded
                if copy is None:
                    break
                yield policy.Route(request, copy)
        for model in rechecked:
            yield from self._scale_up(view, model)

    # --- a model that is loaded nowhere

    def _load(self, view: View, model: ModelView) -> Iterator[Action]:
        places = self._places(view, model)
        roomy = [gpu for gpu, layers in places if gpu.takes(model, layers)]
        if roomy:
            best = min(roomy, key=_room_rank)
            yield policy.Load(model, best, dict(places)[best])
            return
        oldest_s = view.now_s
        for gpu, layers in sorted(places, key=lambda place: (self._lru_s(view, place[0]), _room_rank(place[0]))):
            victims = policy.lru_victims(gpu, model.gpu_bytes(layers))
            oldest_s = min(oldest_s, self._lru_s(view, gpu))
            if victims is None or self._churns(view, gpu):
                continue
            if gpu.takes(model, layers, freed_bytes=sum([v.gpu_bytes for v in victims])):
                yield from (policy.Stop(victim) for victim in victims)
                yield policy.Load(model, gpu, layers)
                return
        if view.now_s - oldest_s < self.parameters.min_churn_age_s:
            reason = "cache churn threshold exceeded: every model was used a short while ago"
            yield from (policy.Reject(request, reason) for request in model.waiting)
            return
        if relief := policy.costs.host_relief(view, model):
            yield policy.Stop(relief)

    def _places(self, view: View, model: ModelView) -> list[tuple[GpuView, int]]:
        """Where the most layers go when it is empty, and how many."""
        layers_of = {gpu: self._most_layers[gpu.node.name, gpu.kind, model] for gpu in view.shortlist()}
        most = max(layers_of.values())
        return [(gpu, layers) for gpu, layers in layers_of.items() if layers == most]

    def _lru_s(self, view: View, gpu: GpuView) -> float:
        """When its least recently used model was used."""
        return min([i.last_used_s if i.idle else view.now_s for i in gpu.instances], default=view.now_s)

    def _churns(self, view: View, gpu: GpuView) -> bool:
        return view.now_s - self._lru_s(view, gpu) < float(self.parameters.min_churn_age_s)

    # --- further copies

    def _note_use(self, view: View, model: ModelView) -> bool:
        """Is it time to look at the model's rate?"""
        uses = self._uses.setdefault(model, deque())
        interval = int(view.now_s // self.parameters.rate_check_s)
        if uses and uses[-1][0] == interval:
            uses[-1] = (interval, uses[-1][1] + 1)
            return False
        uses.append((interval, 1))
        while view.now_s - uses[0][0] * self.parameters.rate_check_s > self.parameters.second_copy_max_age_s:
            uses.popleft()
        return True

    def _scale_up(self, view: View, model: ModelView) -> Iterator[Action]:
        copies, uses, every_s = model.instance_count, self._uses[model], self.parameters.rate_check_s
        if not copies or model.loading:
            return
        minute = [count for interval, count in uses if view.now_s - 60.0 <= interval * every_s]
        wanted = int(sum(minute) / copies / self.parameters.scale_up_rpm)
        if copies == 1 and view.now_s - uses[0][0] * every_s >= self.parameters.second_copy_min_age_s:
            wanted = max(1, wanted)
        if not wanted:
            return
        places = [(gpu, layers) for gpu, layers in self._places(view, model) if model not in gpu.models]
        roomy = sorted((_room_rank(gpu), layers, gpu) for gpu, layers in places if gpu.takes(model, layers))
        if wanted > 2:
            wanted = max(2, min(wanted, len(roomy) // 3))
        for _, layers, gpu in roomy[:wanted]:
            yield policy.Load(model, gpu, layers)


def _room_rank(gpu: GpuView) -> tuple[int, int, int]:
    """The fewest models, then the most space."""
    return len(gpu.instances), -gpu.available_bytes, gpu.index
