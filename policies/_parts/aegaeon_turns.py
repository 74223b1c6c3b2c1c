"""GPUs that take turns: they compute groups of prompts and decode batches of several models, one after the other.

Aegaeon's prefill_scheduler and decode_scheduler (Zyyeric/Aegaeon ca8caccf) on the simulator's actions: who comes when,
for how long, and how KV and models leave and come. Who goes to which GPU, group and batch is the policy's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from sim import policy
from sim.policy import Action, GpuView, InstanceView, ModelView, RequestView, View

Steps = Generator[Action, None, bool]
LOOKAHEAD = 64  # tokens that a sequence may grow in a turn when a batch is formed (4 blocks of 16)


@dataclass(eq=False)
class Batch:
    """Sequences of one model that decode together, and how long their turn is."""

    model: ModelView
    requests: dict[int, RequestView] = field(default_factory=dict)
    quota_s: float = 0.0

    def takes(self, request: RequestView, most: int) -> bool:
        """Is it of the same model, and is there a place and KV memory for it?"""
        if request.model is not self.model or len(self.requests) >= most:
            return False
        tokens = sum(other.context_tokens + LOOKAHEAD for other in (*self.requests.values(), request))
        return tokens <= self.model.default_kv_tokens


@dataclass(eq=False)
class Group:
    """Requests of one model whose prompts are computed one after the other; of groups the lowest number comes first."""

    model: ModelView
    number: int
    requests: list[RequestView]


@dataclass(eq=False)
class TurnWorker:
    """A GPU: groups whose prompts it computes, batches that it decodes in rounds; the first batch has its turn."""

    gpu: GpuView
    groups: dict[ModelView, deque[Group]] = field(default_factory=dict)
    batches: deque[Batch] = field(default_factory=deque)
    prefilling: bool = True
    group: Group | None = None  # being served
    prompt: RequestView | None = None  # under way
    turns: int = 0  # left in this round
    turn_ends_s: float | None = None
    _newest: dict[ModelView, Batch] = field(default_factory=dict)
    _numbers: tuple[int, int] = (0, 0)  # of the first and the last group so far

    def give_up(self) -> list[RequestView]:
        """Its GPU failed: nothing is under way any more. Whoever was to be served here."""
        groups = [group.requests for queue in self.groups.values() for group in queue]
        requests = [
            request for served in (*groups, *(batch.requests.values() for batch in self.batches)) for request in served
        ]
        requests += [self.prompt] if self.prompt is not None else []
        self.groups, self.batches, self._newest = {}, deque(), {}
        self.prefilling, self.group, self.prompt, self.turns, self.turn_ends_s = True, None, None, 0, None
        return requests

    @property
    def group_count(self) -> int:
        return sum(len(groups) for groups in self.groups.values())

    def first_groups(self) -> list[Group]:
        """The first group of each model that has some, in the order in which they are served."""
        for groups in self.groups.values():
            while groups and not groups[0].requests:
                groups.popleft()
        return sorted([groups[0] for groups in self.groups.values() if groups], key=lambda group: group.number)

    def upcoming(self) -> list[ModelView]:
        """Models in the order in which they are wanted."""
        prompts = [group.model for group in self.first_groups()]
        decodes = [batch.model for batch in self.batches]
        return list(dict.fromkeys([*prompts, *decodes] if self.prefilling else [*decodes, *prompts]))

    def following(self, model: ModelView) -> ModelView | None:
        """The first other model that is wanted."""
        prompts = (group.model for group in self.first_groups())
        decodes = (batch.model for batch in self.batches)
        order = chain(prompts, decodes) if self.prefilling else chain(decodes, prompts)
        return next((other for other in order if other is not model), None)

    def group_for(self, model: ModelView, most: int) -> Group | None:
        """The first group of the model, or the last one, if there is a place."""
        groups = self.groups.get(model)
        tried = (groups[0], groups[-1]) if groups else ()
        return next((group for group in tried if group.requests and len(group.requests) < most), None)

    def add_group(self, request: RequestView, first: bool = False) -> Group:
        """A new group, behind the others or before them."""
        low, high = self._numbers
        self._numbers = (low - 1, high) if first else (low, high + 1)
        group = Group(request.model, low - 1 if first else high + 1, [request])
        groups = self.groups.setdefault(group.model, deque())
        if first:
            groups.appendleft(group)
        else:
            groups.append(group)
        return group

    def next_prompt(self) -> bool:
        """Begin with the next prompt of the group; False: it was the last, or there is none."""
        first = next(iter(self.first_groups()), None)
        if first is None or (self.group is not None and first is not self.group):
            self.group = None
            return False
        self.group, self.prompt = first, first.requests.pop(0)
        if not first.requests:  # who comes now makes a new group
            self.groups[first.model].popleft()
        return True

    def batch_for(self, request: RequestView, most: int) -> Batch | None:
        """The batch that has its turn, or the last one of the model, if there is a place: all are formed anew before
        any other has its next turn."""
        current = self.batches[0] if self.batches else None
        tried = [batch for batch in (current, self._newest.get(request.model)) if batch is not None]
        return next((batch for batch in tried if batch.takes(request, most)), None)

    def add_batch(self, batch: Batch) -> None:
        self.batches.append(batch)
        self._newest[batch.model] = batch

    def end_turn(self) -> Batch:
        """The first batch goes to the back, or away if nobody is left in it."""
        batch = self.batches.popleft()
        if batch.requests:
            self.batches.append(batch)
        elif self._newest.get(batch.model) is batch:
            del self._newest[batch.model]
        self.turns, self.turn_ends_s = self.turns - 1, None
        return batch

    def form_batches(self, models: list[ModelView], most: int) -> None:
        """A new round: batches first come, first served; those of a model side by side, in the order of `models`."""
        requests = [request for batch in self.batches for request in batch.requests.values()]
        self.batches, self._newest = deque(), {}
        found: dict[ModelView, list[Batch]] = {}
        roomy: dict[ModelView, dict[Batch, int]] = {}  # and the KV tokens that are left
        for request in sorted(requests, key=lambda request: request.number):
            model, tokens = request.model, request.context_tokens + LOOKAHEAD
            left = roomy.setdefault(model, {})
            batch = next((batch for batch, room in left.items() if tokens <= room), None)
            if batch is None:
                batch = Batch(model)
                found.setdefault(model, []).append(batch)
                left[batch] = model.default_kv_tokens
            batch.requests[request.number] = request
            left[batch] -= tokens
            if len(batch.requests) >= most:
                del left[batch]
        for model in models:
            for batch in found.get(model, ()):
                self.add_batch(batch)
        self.turns = len(self.batches)


def turn_lengths(steps_s: Sequence[float], switches_s: float, tpot_s: float, longest_s: float) -> list[float]:
    """Seconds of each batch's turn in a round. steps_s: of one token; switches_s: to bring in each model once (c0).

    No turn is shorter than a token: where switches cost nothing, or next to it, there would be turns without end.
    """
    n = [tpot_s / step_s for step_s in steps_s]
    excess = max(switches_s / (min(n) * longest_s), 0.5 - sum(1.0 / each for each in n))  # alpha - sum 1/n
    longest = min(n) * longest_s  # of which each batch has its n-th part where the promise cannot be kept
    whole = switches_s / excess if excess > 0 else longest
    return [max(step_s, whole / each) for step_s, each in zip(steps_s, n, strict=True)]


class Turns:
    """Prompts and turns on all GPUs. `queued`: numbers of requests that wait in the cluster's queue; `moved` is told in
    which batch a request now is.
    """

    def __init__(
        self, tpot_s: float, longest_s: float, prefetch: bool, moved: Callable[[RequestView, TurnWorker, Batch], None]
    ) -> None:
        self.queued: dict[int, bool] = {}
        self.fragile: dict[int, bool] = {}  # whose prompt was cut off once: they leave after their first token
        self._tpot_s, self._longest_s, self._prefetches, self._moved = tpot_s, longest_s, prefetch, moved
        self._alarms = policy.Alarms()

    def rung(self, view: View) -> list[GpuView]:
        """GPUs where a prompt or a turn ends now."""
        return self._alarms.rung(view)

    def step(self, view: View, worker: TurnWorker) -> Iterator[Action]:
        """A group of prompts and a turn of decoding by turns, as far as there is work of either kind."""
        while True:
            over = yield from self._prefill(view, worker) if worker.prefilling else self._decode(view, worker)
            prompts = bool(worker.first_groups())
            if not over or not (prompts or worker.batches):
                return
            worker.prefilling = not worker.batches if worker.prefilling else prompts

    def _prefill(self, view: View, worker: TurnWorker) -> Steps:
        """The first group's prompts, one by one; True when the group is through."""
        while True:
            if worker.prompt is None and not worker.next_prompt():
                return True
            request = worker.prompt
            assert request is not None
            if request.number in self.queued:
                target = yield from self._bring(view, worker, request.model)
                if target is None:
                    return False
                yield policy.Route(request, target)
                del self.queued[request.number]
                yield from self._prefetch(view, worker, request.model)
            instance = request.instance
            if instance is None or not instance.ready:
                return False
            left_s = self._prompt_left_s(request, instance)
            if left_s > 0:
                yield from self._alarms.set(view, worker.gpu, view.now_s + left_s)
                return False
            # Asked for in the last iteration of the prompt: it leaves with its first token, and decodes nothing here.
            yield policy.Preempt(request)
            worker.prompt = None

    def _prompt_left_s(self, request: RequestView, instance: InstanceView) -> float:
        """Seconds until a Preempt is due: a moment before its prompt is through."""
        whole_s = request.model.profile(instance.gpu).prefill_s(instance.layers, request.prompt_tokens)
        if request.number in self.fragile:
            return 0.0 if request.running and request.produced_tokens else max(whole_s / 8, 0.001)
        left_s = whole_s * (1.0 - 1e-6) - request.served_s
        if not request.running:  # it waits for its place; perhaps once more, put out for lack of memory
            return max(left_s, whole_s / 8, 0.001)
        return left_s if left_s > 1e-7 else 0.0

    def _decode(self, view: View, worker: TurnWorker) -> Steps:
        """The turn of the first batch; True when it is over, or there is none."""
        if not worker.batches:
            return True
        batch, ends_s = worker.batches[0], worker.turn_ends_s
        contested = len(worker.batches) > 1 or bool(worker.first_groups())
        used_up = ends_s is not None and view.now_s >= ends_s and contested
        if used_up or not batch.requests:
            if worker.end_turn().requests:
                yield from self._leave(view, worker, batch)
            return True
        if worker.turns <= 0:
            self._new_round(view, worker)
            batch = worker.batches[0]
        target = yield from self._bring(view, worker, batch.model)
        if target is None:
            return False
        for number, request in batch.requests.items():
            if number in self.queued:
                yield policy.Route(request, target)
                del self.queued[number]
        if isinstance(target, InstanceView) and target.ready and worker.turn_ends_s is None:
            worker.turn_ends_s = view.now_s + batch.quota_s
        if contested and worker.turn_ends_s is not None:
            yield from self._alarms.set(view, worker.gpu, worker.turn_ends_s)
        yield from self._prefetch(view, worker, batch.model)
        return False

    def _leave(self, view: View, worker: TurnWorker, batch: Batch) -> Iterator[Action]:
        """KV leaves; where some of it is still on its way in, only the whole instance can."""
        routed = [request for number, request in batch.requests.items() if number not in self.queued]
        for request in routed:
            if request.running:
                yield policy.Preempt(request)
        instance = policy.resident(batch.model, worker.gpu)
        if instance is not None and not all(request.running for request in routed):
            yield from policy.leave(view, instance)

    def _new_round(self, view: View, worker: TurnWorker) -> None:
        """Form batches anew, and give each its turn."""
        worker.form_batches(view.models, view.max_sequences)
        for batch in worker.batches:
            for request in batch.requests.values():
                self._moved(request, worker, batch)
        quotas_s = turn_lengths(
            [self.step_s(worker.gpu, batch) for batch in worker.batches],
            sum(policy.switch_s(model, worker.gpu) for model in dict.fromkeys(batch.model for batch in worker.batches)),
            self._tpot_s,
            self._longest_s,
        )
        for batch, quota_s in zip(worker.batches, quotas_s, strict=True):
            batch.quota_s = quota_s

    def step_s(self, gpu: GpuView, batch: Batch) -> float:
        """Predicted seconds of a token of this batch."""
        context = sum(request.context_tokens for request in batch.requests.values()) / len(batch.requests)
        layers = gpu.layers_when_empty(batch.model) or 0
        return batch.model.profile(gpu).step_s(layers, len(batch.requests), min(context, batch.model.max_context))

    def _bring(
        self, view: View, worker: TurnWorker, model: ModelView
    ) -> Generator[Action, None, InstanceView | policy.Load | None]:
        """In place of those that are wanted last, or not at all."""
        here = policy.resident(model, worker.gpu)
        if here is not None:
            return here
        wanted = {other: place for place, other in enumerate(worker.upcoming())}
        others = [instance for instance in worker.gpu.instances if instance.model is not model]
        others.sort(key=lambda instance: (-wanted.get(instance.model, len(wanted)), instance.number))
        return (yield from policy.bring(view, model, worker.gpu, others))

    def _prefetch(self, view: View, worker: TurnWorker, model: ModelView) -> Iterator[Action]:
        """The next other model, if there is room for it beside this one."""
        following = worker.following(model) if self._prefetches else None
        if following is not None and policy.resident(following, worker.gpu) is None:
            wanted = worker.upcoming()
            idle = [i for i in worker.gpu.instances if i.idle and i.model not in (*wanted, model)]
            yield from policy.bring(view, following, worker.gpu, idle, relieve=False)
