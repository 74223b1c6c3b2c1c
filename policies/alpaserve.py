"""AlpaServe: replicas placed by a greedy search over simulated traffic, requests to the shortest queue or dropped.

Source: Li et al., "AlpaServe" (OSDI 2023); code alpa-projects/mms dba47b18, alpa_serve/placement_policy (its fast
greedy search); policies.md P14. Placement: start empty; simulate the traffic on what is placed; to the GPU with the
least served load that has memory add the model with the most unserved requests; until nothing fits. Dispatch: the
shortest queue among the GPUs that hold the model; a request is dropped if its predicted finish + 4 ms misses its SLO,
or if nothing holds its model.

Traffic: at time 0 `rates`, for nothing has been seen; then every `window_s` the arrivals of the last window, and the
new placement replaces the old if it would serve more (`never`: static). Clockwork++ re-places every window for that
window's true traffic at no cost; here loads take their time, and nothing is known of the next window. In place of its
event simulator there is the fluid queue model of policies/_parts/alpaserve_replicas.py: each GPU is a queue, in
`slices` of the window. Left out: model parallelism, since an instance has one GPU here (a model that fits on no GPU
whole is placed with its largest part), the search over group partitions, the ILP. SLO: promises of the class and the
deadline of the request; without any, `slo_scale` times the latency of a request alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from math import inf
from typing import Annotated, ClassVar, Literal

from policies._parts.alpaserve_replicas import Placement, ReplicaQueues, Traffic, full_batch_s, matched, traffic_seen
from sim import policy
from sim.policy import Action, Field, GpuView, InstanceView, ModelView, Policy, PolicyParameters, RequestView, View

COPIES = 8  # instances of a model that are looked at where there are more: the quietest
PROMPT = 512.0  # tokens, before any was seen
AT_ONCE = 64  # GPUs for each further replica that is added between two simulations
# What the search knows: unserved requests, seconds of load, copies and requests of each model (load: of each GPU).
Known = tuple[dict[ModelView, float], dict[GpuView, float], dict[ModelView, int], dict[ModelView, float]]


class AlpaServe(Policy):
    """Simulator-guided selective replication, shortest queue, drop what would be late."""

    tier: ClassVar[str] = "research"
    keeps_placement = True
    patient = ("slo_scale=null",)

    class Parameters(PolicyParameters):
        window_s: Annotated[float, Field(gt=0)] | Literal["never"] = Field(
            300.0, description="seconds between placements, and of traffic that each is made for; or never"
        )
        rates: dict[str, float] = Field(
            {}, description="model -> requests per second for the first placement; default 1"
        )
        slo_scale: float | None = Field(
            5.0,
            gt=0,
            description="SLO without a promise, in latencies of the request alone; null: it may wait for ever",
        )
        margin_s: float = Field(
            0.004, ge=0, description="a request is dropped if it would end later than this before SLO"
        )
        slices: int = Field(10, ge=1, le=1000, description="parts of a window in the queue model")

    def __init__(self, parameters: Parameters | None = None) -> None:
        super().__init__(parameters)
        self._arrivals: deque[tuple[float, ModelView, int, float]] = deque()  # when, model, prompt tokens, may wait
        self._next_s: float | None = None  # the next placement
        self._standing = policy.Standing()
        self._known: dict[ModelView, bool] = {}  # has one of its answers been seen?
        self._window_s = 300.0 if self.parameters.window_s == "never" else float(self.parameters.window_s)

    def start(self, view: View) -> Iterator[Action]:
        rates = dict.fromkeys(view.models, 1.0)
        for name, model in policy.known_models(view, "rates", self.parameters.rates).items():
            if not 0 <= self.parameters.rates[name] < inf:
                raise ValueError(f"rates: {name} must be at least 0 and finite")
            rates[model] = self.parameters.rates[name]
        slices, slice_s = self.parameters.slices, self._window_s / self.parameters.slices
        traffic = {}
        for model, rate in rates.items():
            alone_s = self._alone_s(view, model, PROMPT, model.expected_output_tokens)
            traffic[model] = Traffic((rate * slice_s,) * slices, self._patience_s(alone_s))
        yield from self._replace(view, self._search(view, ReplicaQueues(traffic, slice_s, self._work_s(view, {}))))

    def decide(self, view: View) -> Iterator[Action]:
        yield from self._standing.restore(view)
        self._remember(view)
        self._known.update((request.model, True) for request in view.finished if request.first_token_s is not None)
        if self._next_s is not None and (view.now_s >= self._next_s or view.failed):
            self._next_s = None
            traffic, prompts = traffic_seen(self._arrivals, view.now_s, self._window_s, self.parameters.slices)
            queues = ReplicaQueues(traffic, self._window_s / self.parameters.slices, self._work_s(view, prompts))
            placement = self._search(view, queues)
            held = {gpu: [i.model for i in gpu.instances if i.accepts] for gpu in view.gpus}
            if sum(queues.play(placement)[0].values()) < sum(queues.play(held)[0].values()):
                yield from self._replace(view, matched(placement))
        if self._next_s is None and self._arrivals and self.parameters.window_s != "never":
            self._next_s = view.now_s + self._window_s
            yield policy.Wake(self._next_s)
        for model in view.waiting_models:
            for request in model.waiting:
                yield from self._dispatch(view, request)

    # --- dispatch

    def _dispatch(self, view: View, request: RequestView) -> Iterator[Action]:
        holders = [instance for instance in request.model.quietest(COPIES) if instance.accepts]
        if not holders:
            if not self._standing.expects(request.model):
                yield policy.Reject(request, "no GPU holds its model")
            return
        target = min(holders, key=lambda i: (sum(other.load for other in i.gpu.instances), not i.ready, i.number))
        first_s, finish_s = self._predicted(view, request, target)
        waited_s = view.now_s - request.arrival_s + self.parameters.margin_s
        limits = [(finish_s, request.e2e_slo_s), (finish_s, request.deadline_s), (first_s, request.ttft_slo_s)]
        if all(limit_s is None for _, limit_s in limits) and self.parameters.slo_scale is not None:
            alone_s = self._alone_s(view, request.model, request.prompt_tokens, request.expected_output_tokens)
            limits = [(finish_s, self.parameters.slo_scale * alone_s)]
        late = any(limit_s is not None and waited_s + after_s > limit_s for after_s, limit_s in limits)
        if late and request.first_token_s is None:
            yield policy.Reject(request, "it would miss its SLO on the shortest queue")
        else:
            yield policy.Route(request, target)

    def _predicted(self, view: View, request: RequestView, target: InstanceView) -> tuple[float, float]:
        """Seconds until its first token and its last, behind those who are there."""
        model, gpu = request.model, target.gpu
        sequence_tokens = request.context_tokens + request.expected_remaining_tokens
        places = max(1, min(target.max_sequences, int(target.kv_tokens / sequence_tokens)))
        batch = min(target.load + 1, places)
        # While no answer of the model has been seen, a guess that is too long would drop every request for ever.
        tokens = (request.prompt_tokens, request.expected_output_tokens if self._known.get(model) else 1.0)
        served_s = policy.costs.service_s(model, gpu, target.layers, batch, tokens, gpu.crowd(target))
        wait_s = policy.costs.reload_s(target) if target.loading else 0.0
        wait_s += served_s * max(0, target.load + 1 - places) / places
        prefill_s = model.profile(gpu).prefill_s(target.layers, min(request.prompt_tokens, model.max_context))
        return wait_s + prefill_s, wait_s + served_s

    def _alone_s(self, view: View, model: ModelView, prompt_tokens: float, output_tokens: float) -> float:
        """Seconds for a request with nobody else on the largest GPU."""
        gpu = view.largest_gpu
        tokens = (prompt_tokens, output_tokens)
        return policy.costs.service_s(model, gpu, model.layers_within(gpu.capacity_bytes), 1, tokens)

    def _patience_s(self, alone_s: float) -> float:
        """How long a request without a promise may wait for its start."""
        return inf if self.parameters.slo_scale is None else max(0.0, self.parameters.slo_scale - 1) * alone_s

    # --- placement

    def _search(self, view: View, queues: ReplicaQueues) -> Placement:
        """Greedy: simulate, then a replica of the most unserved model to the GPU with the least served load."""
        placement: Placement = {gpu: [] for gpu in view.gpus}
        free = {gpu: gpu.capacity_bytes for gpu in view.gpus}
        copies = dict.fromkeys(view.models, 0)
        offered = {model: sum(queues.traffic[model].counts) if model in queues.traffic else 0.0 for model in copies}
        unserved, load = queues.play(placement)
        while free:
            pressing = max(unserved.values(), default=0.0) > 0.0
            for _ in range(1 + len(view.gpus) // AT_ONCE):
                found = self._next_replica(view, placement, free, (unserved, load, copies, offered))
                if found is None:
                    return placement
                model, gpu = found
                placement[gpu].append(model)
                free[gpu] -= model.gpu_bytes(policy.fullest_layers(view, model, gpu) or 0)
                copies[model] += 1
                work_s = queues.work_s(model, gpu)
                load[gpu] += min(self._window_s, work_s * offered[model] / copies[model])
                unserved[model] = max(0.0, unserved.get(model, 0.0) - self._window_s / work_s)
            if pressing:
                unserved, load = queues.play(placement)
        return placement

    def _next_replica(
        self, view: View, placement: Placement, free: dict[GpuView, int], known: Known
    ) -> tuple[ModelView, GpuView] | None:
        unserved, load, copies, offered = known
        # Of models that are equally unserved those without a copy first, then those with the most requests a copy.
        rank = {m: (-unserved.get(m, 0.0), copies[m] > 0, -offered[m] / max(1, copies[m])) for m in copies}
        models = sorted(copies, key=lambda model: rank[model])
        for gpu in sorted(free, key=lambda gpu: (load[gpu], -free[gpu], gpu.index)):
            for model in models:
                layers = policy.fullest_layers(view, model, gpu)
                if layers is not None and model not in placement[gpu] and model.gpu_bytes(layers) <= free[gpu]:
                    return model, gpu
            del free[gpu]  # nothing fits there any more
        return None

    def _work_s(self, view: View, prompts: dict[ModelView, float]) -> Callable[[ModelView, GpuView], float]:
        """Seconds of a GPU that a request takes when the batch is full."""
        known: dict[tuple[ModelView, object], float] = {}

        def work_s(model: ModelView, gpu: GpuView) -> float:
            profile = model.profile(gpu)
            if (model, profile) not in known:
                tokens = (prompts.get(model, PROMPT), model.expected_output_tokens)
                layers = policy.fullest_layers(view, model, gpu) or 0
                batch = max(1, min(view.max_sequences, int(model.default_kv_tokens / sum(tokens))))
                known[model, profile] = full_batch_s(model, gpu, layers, batch, tokens)
            return known[model, profile]

        return work_s

    def _remember(self, view: View) -> None:
        if self.parameters.window_s == "never":
            return
        for request in view.arrived:
            alone_s = self._alone_s(view, request.model, request.prompt_tokens, request.expected_output_tokens)
            waits = [(request.e2e_slo_s, alone_s), (request.deadline_s, alone_s), (request.ttft_slo_s, 0.0)]
            found = [limit_s - needed_s for limit_s, needed_s in waits if limit_s is not None]
            patience_s = max(0.0, min(found)) if found else self._patience_s(alone_s)
            self._arrivals.append((view.now_s, request.model, request.prompt_tokens, patience_s))
        while self._arrivals and self._arrivals[0][0] < view.now_s - self._window_s:
            self._arrivals.popleft()

    def _replace(self, view: View, placement: Placement) -> Iterator[Action]:
        """Drain what is placed no more, load what is new where it fits now or will."""
        for gpu in view.gpus:
            held = [instance for instance in gpu.instances if instance.accepts and not instance.resizing]
            yield from (policy.Stop(instance) for instance in held if instance.model not in placement[gpu])
        for gpu, models in placement.items():
            present = [instance.model for instance in gpu.instances if instance.accepts]
            for model in models:
                layers = policy.fullest_layers(view, model, gpu)
                if model not in present and layers is not None and gpu.takes(model, layers):
                    yield policy.Load(model, gpu, layers)
