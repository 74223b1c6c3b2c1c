"""Infinite memory: every model whole on every GPU, nothing to load or to evict, all that arrives runs at once.

Source: definition (policies.md O1). Its world has memory without bound and switches that take no time, so a model
appears on a GPU when it is first asked for there, as if it had always been. A request goes to the GPU where it would be
through soonest if all that run there shared the GPU evenly: its own seconds there times the requests there. Models on
one GPU share it (processor sharing); requests of one model share a batch.

It answers "what is lost for lack of memory?" and is no bound on mean latency: running everything at once is processor
sharing, which a policy that runs one thing after the other beats (infinite-memory-srpt does, some real ones too).
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heappush

from sim.policy import Action, GpuView, InstanceView, Load, Policy, RequestView, Route, View, resident

Entry = tuple[int, int, GpuView]  # (requests, index, GPU); an entry with an old number of requests is passed over
PAGE_TOKENS = 4096  # the largest block of a KV pool: each sequence may leave one half empty


class InfiniteMemory(Policy):
    """Every model is on every GPU: what memory pressure costs the others."""

    tier = "oracle"
    oracle = "every model is whole on every GPU, and getting it there took no time"
    ideal = ("memory", "switches")

    def start(self, view: View) -> Iterator[Action]:
        kinds: dict[object, list[Entry]] = {}
        self._load = dict.fromkeys(view.gpus, 0)  # requests on each GPU that have not ended
        self._heap_of = {gpu: kinds.setdefault(view.models[0].profile(gpu), []) for gpu in view.gpus}
        for gpu, heap in self._heap_of.items():
            heap.append((0, gpu.index, gpu))
        self._quiet = list(kinds.values())
        for heap in self._quiet:
            heapify(heap)
        self._where: dict[RequestView, GpuView] = {}
        yield from ()

    def decide(self, view: View) -> Iterator[Action]:
        for request in (*view.finished, *view.requeued):
            if request in self._where:
                self._count(self._where.pop(request), -1)
        for gpu in view.repaired:
            self._count(gpu, 0)
        for request in view.waiting:
            model = request.model
            quietest = [gpu for gpu in map(self._quietest, self._quiet) if gpu is not None]
            gpu = min(quietest, key=lambda gpu: self._through_s(request, gpu))
            target: InstanceView | Load | None = resident(model, gpu)
            if target is None:
                pool_tokens = 2 * (model.max_context + PAGE_TOKENS) * view.max_sequences
                yield (target := Load(model, gpu, model.layers, pool_tokens))
            yield Route(request, target)
            self._where[request] = gpu
            self._count(gpu, 1)

    def _through_s(self, request: RequestView, gpu: GpuView) -> float:
        """Its seconds alone on this GPU, for each of those who would share it."""
        model, profile = request.model, request.model.profile(gpu)
        prefill_s = profile.prefill_s(model.layers, request.context_tokens)
        step_s = profile.step_s(model.layers, 1, request.context_tokens)
        return (prefill_s + request.expected_remaining_tokens * step_s) * (1 + self._load[gpu])

    def _count(self, gpu: GpuView, change: int) -> None:
        self._load[gpu] += change
        heappush(self._heap_of[gpu], (self._load[gpu], gpu.index, gpu))

    def _quietest(self, heap: list[Entry]) -> GpuView | None:
        """None: all of the kind are down."""
        while heap and (heap[0][0] != self._load[heap[0][2]] or not heap[0][2].up):
            heappop(heap)
        return heap[0][2] if heap else None
