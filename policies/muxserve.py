"""MuxServe: models placed together by estimated throughput, prefills in turn, KV quotas that follow the load (ADBS).

Source: Duan et al., "MuxServe" (ICML 2024); code hao-ai-lab/MuxServe 22314803, muxserve/muxsched/placement.py and
scheduler.py; policies.md P16. Placement, once: models by rate x size, the largest first, each where the estimated
throughput rises most: a model that serves `batch` at a time gets batch / (step x output + prefills of all on the GPU),
with a share of the KV memory in proportion to rate x bytes a token. Run time: a GPU computes one model's prompts at a
time, model after model; decoding of all goes on beside it. A model is given prompts while its sequences are within its
quota / mean bytes of a sequence; every `adapt_s` those that use 0.9 of their quota and have a queue take 10 % more of
what neighbours that use less have free, all but 5 %.

Every model is to be whole on one GPU: those for which no GPU has room share what is left in part (or are refused, with
`partial: false`). A GPU is a mesh, since instances have one GPU here: meshes of several and the split by SMs (MPS) are
left out; the engine shares a GPU among those that compute. As larger meshes would, further GPUs take copies. An
instance's KV pool is fixed when it is loaded, here `headroom` times its first quota, which bounds what a quota can grow
to. Rates are not measured, as published: the user states them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from typing import ClassVar

from sim import policy
from sim.policy import Action, Field, GpuView, InstanceView, ModelView, Policy, PolicyParameters, RequestView, View

LOOKED_AT = 24  # GPUs with most room and different contents that are compared for one model
ROUNDS = 500  # of scheduling, over which the use of a quota is averaged
BUSY, KEEP, STEP = 0.9, 0.95, 0.1  # published: who is short of quota, what its givers keep, by how much it grows


class MuxServe(Policy):
    """Space-sharing: prefills in turn, decodes together, KV quotas by demand."""

    tier: ClassVar[str] = "research"

    class Parameters(PolicyParameters):
        rates: dict[str, float] = Field(
            {}, description="model -> requests per second, for placement and quotas; default 1"
        )
        prompt_tokens: float = Field(161.0, gt=0, description="mean prompt for the estimates")
        output_tokens: float = Field(337.0, gt=0, description="mean output for the estimates")
        sequence_tokens: float = Field(416.0, gt=0, description="mean tokens of a sequence before any has ended")
        prefill_tokens: int = Field(2048, ge=1, description="most prompt tokens of one prefill batch")
        adapt_s: float = Field(8.0, gt=0, description="seconds between two adaptations of the quotas")
        headroom: float = Field(2.0, ge=1, description="KV pool of an instance over its first quota")
        copies: int | None = Field(None, ge=1, description="copies of each model; null: GPUs / models, at least one")
        partial: bool = Field(True, description="load a part of models that fit whole nowhere; else refuse them")

    def __init__(self, parameters: Parameters | None = None) -> None:
        super().__init__(parameters)
        self.rates: dict[ModelView, float] = {}
        self.quota: dict[InstanceView, float] = {}  # bytes of KV
        self._rounds: dict[InstanceView, deque[int]] = {}  # its sequences in the last rounds
        self._turn: dict[GpuView, int] = {}  # number of the instance that was last given prompts
        self._prefill: dict[GpuView, tuple[InstanceView, list[RequestView], float, float]] = {}  # since, look
        self._ended: dict[ModelView, tuple[int, float]] = {}  # sequences, and their tokens
        self._adapt_s: float | None = None

    # --- placement

    def start(self, view: View) -> Iterator[Action]:
        self.rates = dict.fromkeys(view.models, 1.0)
        for name, model in policy.known_models(view, "rates", self.parameters.rates).items():
            if not 0 < self.parameters.rates[name] < float("inf"):
                raise ValueError(f"rates: {name} must be above 0 and finite")
            self.rates[model] = self.parameters.rates[name]
        models = sorted(view.models, key=lambda model: -self.rates[model] * model.total_bytes)
        placed: dict[GpuView, list[ModelView]] = {gpu: [] for gpu in view.gpus}
        left = {gpu: gpu.capacity_bytes for gpu in view.gpus}  # with the least KV pools
        for model in models * (self.parameters.copies or max(1, len(view.gpus) // len(models))):
            gpu = self._best_gpu(view, placed, left, model)
            if gpu is not None:
                placed[gpu].append(model)
                left[gpu] -= model.gpu_bytes(model.layers, model.max_context)
        parts: dict[GpuView, list[tuple[ModelView, int]]] = {gpu: [] for gpu in view.gpus}
        for model in models if self.parameters.partial else []:
            if not any(model in group for group in placed.values()):
                gpu = max(view.gpus, key=lambda gpu: (model.layers_within(left[gpu], model.max_context), left[gpu]))
                layers = model.layers_within(max(0, left[gpu]), model.max_context)
                parts[gpu].append((model, layers))
                left[gpu] -= model.gpu_bytes(layers, model.max_context)
        for gpu, group in placed.items():
            yield from self._load(gpu, [*((model, model.layers) for model in group), *parts[gpu]], left[gpu])

    def _best_gpu(
        self, view: View, placed: dict[GpuView, list[ModelView]], left: dict[GpuView, int], model: ModelView
    ) -> GpuView | None:
        """Where the estimated throughput rises most; the roomiest of equals. Equal GPUs are looked at once."""
        known: dict[tuple[object, ...], GpuView] = {}
        needed = model.gpu_bytes(model.layers, model.max_context)
        for gpu, group in placed.items():
            if left[gpu] >= needed and model not in group:
                known.setdefault((gpu.kind, gpu.capacity_bytes, model.profile(gpu), *group), gpu)
        roomy = sorted(known.values(), key=lambda g: (-left[g], g.index))[:LOOKED_AT]
        rise = {
            g: self._served(view, g, [*placed[g], model], left[g] - needed) - self._served(view, g, placed[g], left[g])
            for g in roomy
        }
        return max(roomy, key=lambda gpu: (round(rise[gpu], 9), -roomy.index(gpu)), default=None)

    def _served(self, view: View, gpu: GpuView, group: list[ModelView], kv_bytes: int) -> float:
        """Requests per second that these serve together on the GPU, each as many as it gets at most."""
        prompt, output = float(self.parameters.prompt_tokens), float(self.parameters.output_tokens)
        total = sum(self.rates[model] * _token_bytes(model) for model in group)
        batch = dict.fromkeys(group, 1)
        most = {}
        for model in group:
            sequences = kv_bytes * self.rates[model] / total / (prompt + output) if total else view.max_sequences
            most[model] = max(1, min(int(sequences), view.max_sequences, model.profile(gpu).largest_batch))
        while True:
            prefill_s = sum(_prefill_s(model, gpu, model.layers, prompt * batch[model]) for model in group)
            rate = {}
            for model, size in batch.items():
                context = min(prompt + output / 2, model.max_context)
                rate[model] = size / (model.profile(gpu).step_s(model.layers, size, context) * output + prefill_s)
            short = [m for m in group if rate[m] < self.rates[m] and batch[m] < most[m]]
            if not short:
                return sum(min(rate[model], self.rates[model]) for model in group)
            least = min(short, key=lambda model: rate[model] / self.rates[model])
            batch[least] = min(most[least], 2 * batch[least])

    def _load(self, gpu: GpuView, group: list[tuple[ModelView, int]], left_bytes: int) -> Iterator[Action]:
        """What is left goes into the KV pools, in proportion to rate x bytes a token."""
        total = sum(self.rates[model] * _token_bytes(model) for model, _ in group)
        for model, layers in group:
            share = left_bytes * self.rates[model] * _token_bytes(model) / total
            tokens = model.max_context
            if layers == model.layers and _token_bytes(model):
                tokens += int(share / _token_bytes(model))
            while tokens > model.max_context and not gpu.takes(model, layers, tokens):
                tokens = max(model.max_context, int(0.999 * tokens))  # pools are in whole blocks
            if gpu.takes(model, layers, tokens):
                yield policy.Load(model, gpu, layers, tokens)
                self.quota[model.instances[-1]] = tokens * _token_bytes(model) / self.parameters.headroom

    # --- adaptive batch scheduling

    def decide(self, view: View) -> Iterator[Action]:
        for request in view.finished:
            count, tokens = self._ended.get(request.model, (0, 0.0))
            self._ended[request.model] = (count + 1, tokens + request.context_tokens)
        if self._adapt_s is not None and view.now_s >= self._adapt_s:
            self._adapt_s = None
            for gpu in dict.fromkeys(instance.gpu for instance in self.quota):
                self._adapt([instance for instance in gpu.instances if instance in self.quota])
        if self._adapt_s is None and (view.waiting_models or any(instance.load for instance in self.quota)):
            self._adapt_s = view.now_s + self.parameters.adapt_s
        if self._adapt_s is not None:
            yield policy.Wake(self._adapt_s)
        gpus: dict[GpuView, bool] = {}
        for model in view.waiting_models:
            if not model.instances:
                yield from (policy.Reject(request, "its model found no room on any GPU") for request in model.waiting)
            gpus.update((instance.gpu, True) for instance in model.instances)
        for gpu in gpus:
            yield from self._schedule(view, gpu)
            for instance in gpu.instances:
                self._rounds.setdefault(instance, deque(maxlen=ROUNDS)).append(instance.load)

    def _schedule(self, view: View, gpu: GpuView) -> Iterator[Action]:
        """Prompts of the next model in turn that has some and whose quota allows them, once the last ones are done."""
        here = sorted((i for i in gpu.instances if i in self.quota), key=lambda i: i.number)
        if gpu in self._prefill:
            instance, requests, begun_s, look_s = self._prefill[gpu]
            if any(request.instance is instance and request.first_token_s is None for request in requests):
                if look_s <= view.now_s:  # slowed by those who decode beside it
                    look_s = view.now_s + max(view.now_s - begun_s, 1e-3)
                    self._prefill[gpu] = (instance, requests, begun_s, look_s)
                yield policy.Wake(look_s)
                return
            del self._prefill[gpu]
        last = self._turn.get(gpu, -1)
        for instance in sorted(here, key=lambda i: i.number <= last):
            if instance.ready and instance.accepts and instance.model.waiting_count:
                batch = yield from self._route(instance)
                if batch:
                    self._turn[gpu] = instance.number
                    tokens = sum(request.context_tokens for request in batch)
                    look_s = view.now_s + _prefill_s(instance.model, gpu, instance.layers, tokens)
                    self._prefill[gpu] = (instance, batch, view.now_s, look_s)
                    if any(i.model.waiting_count for i in here):
                        yield policy.Wake(look_s)
                    return

    def _route(self, instance: InstanceView) -> Generator[Action, None, list[RequestView]]:
        """As many prompts as its quota and the batch allow."""
        tokens, batch = 0, list[RequestView]()
        while instance.load < self.limit(instance) and (request := instance.model.oldest) is not None:
            tokens += request.context_tokens
            if batch and tokens > self.parameters.prefill_tokens:
                break
            batch.append(request)
            yield policy.Route(request, instance)
        return batch

    def _sequence_bytes(self, model: ModelView) -> float:
        """KV bytes of a mean sequence."""
        count, tokens = self._ended.get(model, (0, 0.0))
        return max(1.0, (tokens / count if count else self.parameters.sequence_tokens) * _token_bytes(model))

    def limit(self, instance: InstanceView) -> int:
        """Sequences that its quota allows."""
        return max(1, min(instance.max_sequences, int(self.quota[instance] / self._sequence_bytes(instance.model))))

    def _adapt(self, group: list[InstanceView]) -> None:
        """Quota from those that do not use theirs to those that do and have more to do."""
        used = {}
        for instance in group:
            rounds = self._rounds.get(instance) or [instance.load]
            used[instance] = sum(rounds) / len(rounds)
        givers = {i: max(0.0, KEEP * self.limit(i) - used[i]) for i in group if used[i] < BUSY * self.limit(i)}
        spare = {i: places * self._sequence_bytes(i.model) for i, places in givers.items()}
        offered = sum(spare.values())
        takers = [instance for instance in group if instance not in givers]
        for taker in sorted(takers, key=lambda i: -used[i] / self.limit(i)):
            size = self._sequence_bytes(taker.model)
            asked = taker.load + taker.model.waiting_count - used[taker]
            if offered <= 0 or asked < STEP * used[taker]:
                continue
            room = taker.kv_tokens * _token_bytes(taker.model) - self.quota[taker]
            wanted = min(room, size * min(max(1.0, STEP * used[taker]), asked))
            for giver, most in spare.items():
                taken = max(0.0, min(wanted * most / offered, givers[giver] * self._sequence_bytes(giver.model)))
                givers[giver] -= taken / self._sequence_bytes(giver.model)
                self.quota[giver] -= taken
                self.quota[taker] += taken


def _token_bytes(model: ModelView) -> int:
    return model.kv_layer_bytes * model.layers


def _prefill_s(model: ModelView, gpu: GpuView, layers: int, tokens: float) -> float:
    return model.profile(gpu).prefill_s(layers, min(tokens, model.max_context))
