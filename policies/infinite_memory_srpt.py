"""Infinite memory and SRPT with true lengths: on each GPU the batch that ends requests fastest, all others wait.

Source: SRPT (Schrage 1968), policies.md O2, carried over to continuous batching. Its world has memory without bound and
switches that take no time, and it knows every answer's length. On one GPU only one model computes at a time: two would
merely share it. Of each model the requests with the fewest tokens to come form its batch; the model with the most
requests finished per second, max over j of j / (seconds until the j shortest are through), has the GPU (WSPT for
batches). One more request joins a batch while that costs those before and behind it less than it saves: with b in the
batch and W behind, step times T and u = min(1 + W, max_sequences), while (b + 1 + W) (T(b+1) - T(b)) < (1 + W) T(u)/u.
So batches fill where a step reads weights, and stay short where it computes. Saving and restoring KV is free here, so
whoever is displaced goes on later where it was; a prompt that is being computed is not broken off. A request goes to
the GPU where it and those that it delays lose least; a GPU with nothing to do takes waiting requests from the fullest.

With one GPU, max_sequences 1 and equal prompts it is SRPT, which no policy beats on the mean. Otherwise it is a strong
reference and no proven bound: batching changes the speed of the server, GPUs are not one server, and it leaves the CPU
idle. `python -m sim bounds` has what is proven (the pooled bound).
"""

from __future__ import annotations

from collections.abc import Iterator

from sim import policy
from sim.policy import Action, GpuView, ModelView, Policy, RequestView, View

PAGE_TOKENS = 4096  # the largest block of a KV pool: each sequence may leave one half empty


class InfiniteMemorySrpt(Policy):
    """Every model is on every GPU, and the shortest remaining work goes first."""

    tier = "oracle"
    oracle = "every model is whole on every GPU, switching takes no time, and it knows how long each answer will be"
    foresees = True
    ideal = ("memory", "switches")

    def start(self, view: View) -> Iterator[Action]:
        self._most = view.max_sequences
        self._here: dict[GpuView, dict[RequestView, None]] = {gpu: {} for gpu in view.gpus}
        self._where: dict[RequestView, GpuView] = {}
        self._unsettled: dict[GpuView, None] = {}  # where somebody runs who should not, and could not be stopped yet
        yield from ()

    def decide(self, view: View) -> Iterator[Action]:
        changed, self._unsettled = self._unsettled, {}
        for request in view.finished:
            gpu = self._where.pop(request)
            del self._here[gpu][request]
            changed[gpu] = None
        moved: list[RequestView] = []
        for gpu in [gpu for gpu in view.failed if not gpu.up]:
            moved += self._here[gpu]
            self._here[gpu] = {}
        for request in (*moved, *view.arrived):
            gpu = min(view.shortlist(), key=lambda gpu: (self._loss_s(request, gpu), gpu.index))
            self._put(request, gpu)
            changed[gpu] = None
        for request in view.requeued:
            changed[self._where[request]] = None
        changed.update(dict.fromkeys(view.repaired))
        for gpu in sorted([gpu for gpu in changed if gpu.up], key=lambda gpu: gpu.index):
            if not self._here[gpu]:
                self._take_over(gpu)
            yield from self._run(view, gpu)

    # --- which GPU

    def _put(self, request: RequestView, gpu: GpuView) -> None:
        self._where[request] = gpu
        self._here[gpu][request] = None

    def _loss_s(self, request: RequestView, gpu: GpuView) -> float:
        """Seconds until it is through there, and what the others there lose by it."""
        tokens = self.future.remaining_tokens(request)
        mates = [other for other in self._here[gpu] if other.model is request.model]
        own_s = self._prefill_s(gpu, request) + tokens * self._step_s(gpu, request.model, len(mates) + 1, request)
        ahead: dict[ModelView, list[int]] = {}
        behind = 0
        for other in self._here[gpu]:
            if other.model is not request.model:
                other_tokens = self.future.remaining_tokens(other)
                if other_tokens <= tokens:
                    ahead.setdefault(other.model, []).append(other_tokens)
                else:
                    behind += 1
        ahead_s = [max(found) * self._step_s(gpu, model, len(found), request) for model, found in ahead.items()]
        return own_s + sum(ahead_s) + behind * own_s / (len(mates) + 1)

    def _take_over(self, gpu: GpuView) -> None:
        """Half of those who wait for the fullest GPU's longest queue of a model."""
        fullest = max(self._here, key=lambda other: (len(self._here[other]), -other.index))
        queues: dict[ModelView, list[RequestView]] = {}
        for request in self._here[fullest]:
            if request.instance is None:
                queues.setdefault(request.model, []).append(request)
        if queues:
            queue = max(queues.values(), key=len)
            for request in queue[: (len(queue) + 1) // 2]:
                del self._here[fullest][request]
                self._put(request, gpu)

    # --- which batch

    def _run(self, view: View, gpu: GpuView) -> Iterator[Action]:
        """Let the best batch run, and nobody else."""
        chosen = self._best_batch(gpu)
        for request in self._here[gpu]:
            if request not in chosen and request.instance is not None:
                if request.running and request.produced_tokens:
                    yield policy.Preempt(request, "save")
                else:
                    self._unsettled[gpu] = None
        for request in chosen:
            if request.instance is None:
                model = request.model
                target: policy.InstanceView | policy.Load | None = policy.resident(model, gpu)
                if target is None:
                    pool_tokens = 2 * (model.max_context + PAGE_TOKENS) * self._most
                    yield (target := policy.Load(model, gpu, model.layers, pool_tokens))
                yield policy.Route(request, target)

    def _best_batch(self, gpu: GpuView) -> dict[RequestView, None]:
        queues: dict[ModelView, list[tuple[int, int, RequestView]]] = {}
        for request in self._here[gpu]:
            entry = (self.future.remaining_tokens(request), request.number, request)
            queues.setdefault(request.model, []).append(entry)
        best: list[tuple[int, int, RequestView]] = []
        most_per_s = 0.0
        for model, queue in queues.items():
            queue.sort(key=lambda entry: entry[:2])
            batch = queue[: self._batch_size(gpu, model, queue)]
            step_s = self._step_s(gpu, model, len(batch), batch[0][2])
            prefill_s = 0.0
            for place, (tokens, _, request) in enumerate(batch):
                prefill_s += self._prefill_s(gpu, request)
                per_s = (place + 1) / (prefill_s + tokens * step_s)
                if per_s > most_per_s:
                    best, most_per_s = batch, per_s
        return {request: None for _, _, request in best}

    def _batch_size(self, gpu: GpuView, model: ModelView, queue: list[tuple[int, int, RequestView]]) -> int:
        """How many of the queue run together; see above."""
        everybody, size = len(self._here[gpu]), 1
        step_s = self._step_s(gpu, model, 1, queue[0][2])
        while size < min(len(queue), self._most):
            behind = everybody - size  # who would join next, and those behind it
            later = min(behind, self._most)
            later_s = self._step_s(gpu, model, later, queue[0][2]) / later
            larger_s = self._step_s(gpu, model, size + 1, queue[0][2])
            if (size + behind) * (larger_s - step_s) >= behind * later_s:
                break
            size, step_s = size + 1, larger_s
        return size

    def _prefill_s(self, gpu: GpuView, request: RequestView) -> float:
        if request.produced_tokens:
            return 0.0
        return request.model.profile(gpu).prefill_s(request.model.layers, request.prompt_tokens)

    def _step_s(self, gpu: GpuView, model: ModelView, batch: int, like: RequestView) -> float:
        """Seconds of a step of so many sequences with that request's context."""
        context = min(like.context_tokens, model.max_context)
        return model.profile(gpu).step_s(model.layers, min(batch, self._most), context)
