"""Fair share: virtual token counters over models or service classes, with whole-model swapping.

Source: VTC (Sheng et al., OSDI 2024, arXiv 2401.00588), modifier M1 of policies.md. A client's counter grows by 1 for
a prompt token and 2 for an output token served; the backlogged client with the smallest counter comes next; one that
comes back is lifted to the least of those who are active. Never interrupts what runs.
Here a client is a model or a service class, and the seconds that a load takes are charged to the client it is for. A
model is loaded into free memory or in place of idle ones; another copy only when every batch of it is full. If no GPU
has room, the client that is behind every other on some GPU by more than `lead` weighted tokens has it drained: nobody
is admitted there until its model is in, so `lead` bounds how unequal service may become for the sake of fewer swaps
(VTC shares one model, where turns are free). Left out: input lengths that are predicted, and the paper's request
weights.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from heapq import heappop, heappush
from typing import Literal

from sim import policy
from sim.policy import Action, Field, GpuView, InstanceView, ModelView, Policy, PolicyParameters, RequestView, View


class FairShare(Policy):
    """The client that was served least comes next."""

    tier = "research"

    class Parameters(PolicyParameters):
        over: Literal["model", "class"] = Field("model", description="who the clients are: models, or service classes")
        prompt_weight: float = Field(1.0, ge=0, description="counted for a prompt token (w_p)")
        output_weight: float = Field(2.0, ge=0, description="counted for an output token (w_q)")
        load_weight: float = Field(50.0, ge=0, description="weighted tokens counted for a second of loading")
        lead: float = Field(4096.0, ge=0, description="weighted tokens of unfairness that are not worth a swap")
        settle_s: float = Field(0.25, ge=0, description="running sequences are counted at most this often")

    def __init__(self, parameters: Parameters | None = None) -> None:
        super().__init__(parameters)
        self.counters = policy.TokenCounters(self.parameters.prompt_weight, self.parameters.output_weight)
        self.queues: dict[str, dict[int, RequestView]] = {}  # who waits, of each client
        self._order: dict[str, list[int]] = {}  # their numbers, as a heap
        self._running: dict[str, dict[int, tuple[RequestView, int]]] = {}  # with the tokens counted so far
        self._drained: dict[GpuView, ModelView] = {}  # for whom
        self._settled_s = -1.0

    def decide(self, view: View) -> Iterator[Action]:
        for request in view.finished:
            self._finish(request)
        for request in view.requeued:
            client = self._client(request)
            self._count(client, *self._running[client].pop(request.number))
            self._wait(client, request)
        if (view.arrived or any(self.queues.values())) and view.now_s - self._settled_s >= float(
            self.parameters.settle_s
        ):
            self._settled_s = view.now_s
            for client, running in self._running.items():
                for number, (request, counted) in list(running.items()):
                    running[number] = self._count(client, request, counted)
        for request in view.arrived:
            client = self._client(request)
            if not self._active(client):
                self.counters.lift(client, [other for other in self.queues if self._active(other)])
            self._wait(client, request)
            self._running.setdefault(client, {})
        yield from self._admit(view)

    def _wait(self, client: str, request: RequestView) -> None:
        self.queues.setdefault(client, {})[request.number] = request
        heappush(self._order.setdefault(client, []), request.number)

    def _first(self, client: str) -> RequestView:
        """Of those who wait the one that arrived first."""
        order = self._order[client]
        while order[0] not in self.queues[client]:
            heappop(order)
        return self.queues[client][order[0]]

    # --- counters

    def _client(self, request: RequestView) -> str:
        return request.model.name if self.parameters.over == "model" else request.service_class

    def _active(self, client: str) -> bool:
        return bool(self.queues.get(client) or self._running.get(client))

    def _count(self, client: str, request: RequestView, counted: int) -> tuple[RequestView, int]:
        produced = request.produced_tokens
        self.counters.charge(client, output_tokens=produced - counted)
        return request, produced

    def _finish(self, request: RequestView) -> None:
        client = self._client(request)
        self.queues[client].pop(request.number, None)
        running = self._running[client].pop(request.number, None)
        if running is not None:
            self._count(client, *running)
        if not self._active(client):
            self.counters.rest(client)

    # --- admission

    def _admit(self, view: View) -> Iterator[Action]:
        """Smallest counter first; a client whose next request finds no place is out until the next decision."""
        out: dict[str, bool] = {}
        self._drained = {gpu: model for gpu, model in self._drained.items() if model.waiting_count}
        while (
            client := self.counters.least(c for c, queue in self.queues.items() if queue and c not in out)
        ) is not None:
            request = self._first(client)
            target = yield from self._place(view, client, request.model)
            if target is None:
                out[client] = True
                continue
            yield policy.Route(request, target)
            del self.queues[client][request.number]
            self._running[client][request.number] = (request, request.produced_tokens)
            if not request.produced_tokens:
                self.counters.charge(client, prompt_tokens=request.prompt_tokens)

    def _place(
        self, view: View, client: str, model: ModelView
    ) -> Generator[Action, None, InstanceView | policy.Load | None]:
        for instance in model.quietest(8):
            free = instance.accepts and instance.load < view.max_sequences
            if free and self._drained.get(instance.gpu, model) is model:
                return instance
        if model.loading:
            return None
        gpus = policy.holders(view, model)
        for gpu in sorted(gpus, key=lambda gpu: (-gpu.available_bytes, gpu.index)):
            if policy.resident(model, gpu) or self._drained.get(gpu, model) is not model:
                continue
            idle = sorted((i for i in gpu.instances if i.idle), key=lambda i: (i.last_used_s, i.number))
            target = yield from policy.bring(view, model, gpu, idle)
            if target is not None:
                self._drained.pop(gpu, None)
                self.counters.charge(client, extra=float(self.parameters.load_weight) * policy.switch_s(model, gpu))
                return target
            if gpu in self._drained and all(instance.idle for instance in gpu.instances):
                del self._drained[gpu]  # host memory is what lacks; others need not wait for that
        self._drain(client, model, gpus)
        return None

    def _drain(self, client: str, model: ModelView, gpus: list[GpuView]) -> None:
        """Have the GPU with the fewest requests drained whose clients are all ahead by more than the lead."""
        if model.least_loaded is not None or model in self._drained.values():
            return
        limit = self.counters[client] + float(self.parameters.lead)
        found = [
            gpu
            for gpu in gpus
            if gpu not in self._drained
            and all(self.counters[other] > limit for i in gpu.instances for other in self._clients(i))
        ]
        if found:
            gpu = min(found, key=lambda gpu: (sum(i.load for i in gpu.instances), gpu.index))
            self._drained[gpu] = model

    def _clients(self, instance: InstanceView) -> list[str]:
        """Whom an instance serves now."""
        return list(dict.fromkeys(self._client(request) for request in instance.requests))
