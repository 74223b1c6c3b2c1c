"""Ollama's scheduler: one pending load at a time, a victim by keep_alive and name, and the waits that follow from it.

Source: ollama/ollama fb307609, server/sched.go, llm/llama_server.go, envconfig/config.go. A request for a loaded model
is granted at once. All others go through one queue whose head holds up everybody behind it, also those who need no
room. With nothing loaded the head is loaded with what fits; beside others only whole, on the GPU with most free memory
whose free memory it fills to at most 80 %. Else a victim must go: by keep_alive, the shortest first, then by name; the
first idle one, or if none is idle the first of all, which is waited for. A victim still serves whoever asks for it, so
the load may wait without end (issue 17408); with `resurrect: false` who asks for a victim queues up (request 14407).
While a model loads the queue stands still, since the scheduler waits for its lock.
One server a node; a front door sends a request to the node that has its model, from `spill_requests` of them on also to
the node with the fewest requests. A model takes one GPU here; Ollama would spread what fits on no single GPU.
Left out: reloads for other options, several models of one blob, polls of free memory after an unload (the tables' time
to free it stands for them), retries after running out of memory, the measured surcharge for batch buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from sim import policy
from sim.policy import Action, Field, InstanceView, ModelView, Policy, PolicyParameters, RequestView, View

BUSY = "server busy, please try again; maximum pending requests exceeded"


class Ollama(Policy):
    """Ollama's pending loop, one for each node."""

    tier = "production"

    class Parameters(PolicyParameters):
        keep_alive_s: float = Field(300.0, description="seconds that an idle model stays loaded; negative: for ever")
        keep_alive_by_model: dict[str, float] = Field({}, description="model -> keep_alive in seconds instead")
        num_parallel: int = Field(1, ge=1, description="sequences at once per model; each has max_context tokens of KV")
        max_loaded: int | None = Field(None, ge=1, description="models loaded at once per server; null: 3 per GPU")
        max_queue: int = Field(512, ge=1, description="requests that may queue for a load; more are refused")
        fill: float = Field(0.8, gt=0, le=1, description="share of a GPU's free memory that a further model may take")
        resurrect: bool = Field(True, description="a model that has to go still serves new requests; false: repaired")
        renew: bool = Field(False, description="requests carry a keep_alive: one for a victim restores its timer too")
        spill_requests: int = Field(4, ge=1, description="requests for a model at its node before another loads it")

    def start(self, view: View) -> Iterator[Action]:
        policy.known_models(view, "keep_alive_by_model", self.parameters.keep_alive_by_model)
        if self.parameters.num_parallel > view.max_sequences:
            raise ValueError(f"num_parallel: at most the engine's max_sequences, {view.max_sequences}")
        self._door = policy.FrontDoor(view, "node", self.parameters.spill_requests)
        self._timers = policy.IdleTimers(self._keep_alive_s)
        self._victims: dict[InstanceView, bool] = {}  # their keep_alive is now 0
        self._awaited: dict[policy.Box, bool] = {}  # servers whose pending load waits for some model to be unloaded
        yield from ()

    def decide(self, view: View) -> Iterator[Action]:
        for gpu in view.freed:
            self._awaited.pop(self._door.box_of(gpu), None)  # any unload ends the wait
        boxes = self._door.admit(view)
        for box in boxes:
            for request in box.fresh:
                runner = box.instance(request.model)
                if runner is not None and (runner not in self._victims or self.parameters.resurrect):
                    yield self._grant(box, request, runner)
                elif box.waiting_count > self.parameters.max_queue + 1:  # one is being processed
                    box.forget(request)
                    yield policy.Reject(request, BUSY)
            for runner in box.loaded:
                if runner in self._victims and runner.idle:
                    yield self._unload(runner)
            yield from self._process_pending(box)
        self._door.done(boxes)
        for runner in self._timers.expired(view):
            yield self._unload(runner)
        yield from self._timers.wake(view)

    def _process_pending(self, box: policy.Box) -> Iterator[Action]:
        """Block other requests until the oldest that is pending runs."""
        most = self.parameters.max_loaded or 3 * len(box.gpus)
        while (pending := box.oldest) is not None and box not in self._awaited:
            model, loaded = pending.model, box.loaded
            runner = box.instance(model)
            if runner is not None and (runner not in self._victims or self.parameters.resurrect):
                yield self._grant(box, pending, runner)
                continue
            if len(loaded) < len(box.instances) or any(other.loading for other in loaded):
                return  # memory is on its way back, or a load holds the lock
            if runner is None and len(loaded) < most:
                load = self._fit(box, model, beside_others=bool(loaded))
                if load is not None:
                    yield load
                    box.forget(pending)
                    yield policy.Route(pending, load)
                    continue
                if not loaded:
                    box.forget(pending)
                    yield policy.Reject(pending, "model requires more system memory than is available")
                    continue
            victim = runner or self._victim(loaded)
            self._victims[victim] = True
            self._awaited[box] = True
            if victim.idle:
                yield self._unload(victim)

    def _victim(self, loaded: list[InstanceView]) -> InstanceView:
        """The first idle one, else the first, of those with the shortest keep_alive, then by name."""
        ranked = sorted(loaded, key=lambda runner: (self._keep_alive_s(runner), runner.model.name))
        return next((runner for runner in ranked if runner.idle), ranked[0])

    def _keep_alive_s(self, runner: InstanceView) -> float:
        asked_s = self.parameters.keep_alive_by_model.get(runner.model.name, self.parameters.keep_alive_s)
        return 0.0 if runner in self._victims else inf if asked_s < 0 else float(asked_s)

    def _grant(self, box: policy.Box, request: RequestView, runner: InstanceView) -> policy.Route:
        box.forget(request)
        if self.parameters.renew:
            self._victims.pop(runner, None)
        return policy.Route(request, runner)

    def _unload(self, runner: InstanceView) -> policy.Stop:
        self._victims.pop(runner, None)
        return policy.Stop(runner)

    def _fit(self, box: policy.Box, model: ModelView, beside_others: bool) -> policy.Load | None:
        """On the roomiest GPU: alone as many layers as fit, beside others all or nothing (requireFull)."""
        parallel = int(self.parameters.num_parallel)
        kv_tokens = model.max_context * parallel
        place = box.place(model, kv_tokens)
        if place is None:
            return None
        gpu, layers = place
        predicted_bytes = model.gpu_bytes(model.layers, kv_tokens)
        if beside_others and predicted_bytes > self.parameters.fill * gpu.available_bytes:
            return None
        return policy.Load(model, gpu, layers, kv_tokens, parallel)
