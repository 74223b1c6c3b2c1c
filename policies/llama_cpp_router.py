"""llama.cpp's router: at most so many models by count, the least recently asked for goes, busy or not.

Source: ggml-org/llama.cpp 00dd0816, tools/server/server-models.cpp (unload_lru, load) and common/fit.cpp. A request for
a model that is not loaded first unloads, if `models_max` run or load, the one whose last request is oldest, without
looking at bytes or at who uses it; those whom that cuts off get an error. `skip_active` (pull request 23640) takes idle
ones only, and waits if there is none. How many layers go to the GPU is fixed at each load by what is free then
(--fit): all of them if 1024 MiB stay free; else the KV pool shrinks (not below fit_ctx, nor max_context); else layers
stay in host memory. Nobody is resized later, so who comes first keeps its layers.
One server a node; a front door sends a request to the node that has its model, from `spill_requests` of them on also to
the node with the fewest requests. A model takes one GPU here, the one with most room; llama.cpp would split it.
When not even host memory suffices, an idle model is unloaded (pull request 25326), else the request fails.
Left out: the expert tensors of MoE models, which fit.cpp moves first (tables know layers only); the 10 s that a busy
child may take to exit; --sleep-idle-seconds, off by default.
"""

from __future__ import annotations

from collections.abc import Iterator

from sim import policy
from sim.policy import Action, Field, GpuView, ModelView, Policy, PolicyParameters, View

MIB = 2**20
STEP = 256  # tokens by which fit shrinks a context


class LlamaCppRouter(Policy):
    """Least recently used by count, layers by what is free at the load."""

    tier = "production"
    patient = ("skip_active=true",)

    class Parameters(PolicyParameters):
        models_max: int = Field(4, ge=0, description="models per server; 0: no limit (--models-max)")
        skip_active: bool = Field(False, description="unload idle models only")
        fit_margin_mib: float = Field(1024.0, ge=0, description="GPU memory that fit leaves free, MiB")
        fit_ctx: int = Field(4096, ge=1, description="tokens to which fit may shrink a KV pool before it drops layers")
        spill_requests: int = Field(64, ge=1, description="requests for a model at its node before another loads it")

    def start(self, view: View) -> Iterator[Action]:
        self._door = policy.FrontDoor(view, "node", self.parameters.spill_requests)
        self._last_used: dict[tuple[int, ModelView], int] = {}  # of a server: when it was last asked for a model
        self._clock = 0  # counts requests
        yield from ()

    def decide(self, view: View) -> Iterator[Action]:
        boxes = self._door.admit(view)
        for box in boxes:
            for request in box.fresh:
                if request in view.requeued:
                    box.forget(request)
                    yield policy.Reject(request, "its model was unloaded while it was served")
                    continue
                self._clock += 1
                self._last_used[box.number, request.model] = self._clock
            for model in box.wanted:
                loaded = box.instance(model)
                if loaded is not None:
                    yield from box.send(model, loaded)
                else:
                    yield from self._load(box, model)
        self._door.done(boxes)

    def _load(self, box: policy.Box, model: ModelView) -> Iterator[Action]:
        running = box.loaded
        if self.parameters.models_max and len(running) >= self.parameters.models_max:
            allowed = [i for i in running if i.idle] if self.parameters.skip_active else running
            if not allowed:
                return
            yield policy.Stop(min(allowed, key=lambda i: self._last_used[box.number, i.model]), "abort")
        place = self._fit(box, model)
        if place is None:
            idle, waits = box.relief(model)
            if idle is not None:
                yield policy.Stop(idle)
            elif not waits:
                yield from box.refuse(model, "its model failed to load: not enough memory")
            return
        load = policy.Load(model, *place)
        yield load
        yield from box.send(model, load)

    def _fit(self, box: policy.Box, model: ModelView) -> tuple[GpuView, int, int] | None:
        """GPU, layers and tokens of KV pool: less of the pool before fewer of the layers."""
        margin = float(self.parameters.fit_margin_mib) * MIB
        full = model.default_kv_tokens
        floor = min(full, max(model.max_context, int(self.parameters.fit_ctx)))
        place = box.place(model, full, margin)
        if place is not None and place[1] == model.layers:
            return (*place, full)
        place = box.place(model, floor, margin)
        if place is None:
            return None
        gpu, layers = place
        if layers == model.layers:
            room = gpu.available_bytes - margin - model.gpu_bytes(layers, floor)
            more = int(room // (model.kv_layer_bytes * layers)) // STEP * STEP
            if gpu.takes(model, layers, min(full, floor + more)):
                return gpu, layers, min(full, floor + more)
        return gpu, layers, floor
