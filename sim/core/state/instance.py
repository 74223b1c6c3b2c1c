"""What is true now of requests, models and instances; plain data without time of its own. machines.py has
the GPUs and nodes.

The mutators keep every account (bytes, blocks, tokens) balanced, and `Instance.check` asserts the laws over them.
Serving and loading change this state, views show it to policies, metrics read it. Nothing here knows SimPy.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final

from sim.core.state.facade import Facade
from sim.core.state.in_progress import ResizeInProgress
from sim.core.state.kv_blocks import KvBlocks
from sim.core.state.leap import Leap
from sim.core.state.links import Link, Transfer
from sim.core.state.ranking import Line, Rank, Ranking
from sim.core.state.request import DECODE, STALLED, Request
from sim.core.state.residency import Residency
from sim.profiles.profile import Curve, Profile, Weights
from sim.scenario.scenario import ModelSpec

if TYPE_CHECKING:
    from sim.core.state.machines import Placement

# An instance's life. PENDING waits for memory that others are giving back; STARTING pays the fixed costs.
PENDING: Final = 0
STARTING: Final = 1
LOADING: Final = 2
READY: Final = 3
DRAINING: Final = 4
STOPPING: Final = 5
FREEING: Final = 6
ASLEEP: Final = 7
GONE: Final = 8
STATUSES = ("pending", "starting", "loading", "ready", "draining", "stopping", "freeing", "asleep", "gone")


class Model:
    """A served model: its specification, its weights, and its profile on each kind of (GPU, host)."""

    __slots__ = (
        "_residencies",
        "fits_nowhere",
        "in_order",
        "index",
        "instances",
        "loading",
        "max_context",
        "name",
        "profiles",
        "ranking",
        "spec",
        "view",
        "waiting",
        "weights",
    )

    def __init__(self, index: int, spec: ModelSpec, weights: Weights, max_context: int) -> None:
        self.index = index
        self.name = spec.name
        self.spec = spec
        self.weights = weights
        self.max_context = max_context
        self.fits_nowhere = ""  # with numbers, when no GPU and host can hold it
        self.profiles: dict[tuple[str, str], Profile] = {}  # by Gpu.kinds
        self._residencies: dict[int, Residency] = {}
        self.waiting: dict[int, Request] = {}  # not routed; read them through `queue`
        self.in_order = True
        self.instances: dict[int, Instance] = {}
        self.loading: dict[int, Instance] = {}  # those of them that are not ready yet
        self.ranking = Ranking(_load_rank)  # instances that take requests, those with the fewest first
        self.view: Facade | None = None

    def queue(self) -> dict[int, Request]:
        """Who waits to be routed, in order of arrival."""
        if not self.in_order:
            self.waiting = {index: self.waiting[index] for index in sorted(self.waiting)}
            self.in_order = True
        return self.waiting

    def residency(self, layers: int) -> Residency:
        """So many of its layers on the GPU."""
        found = self._residencies.get(layers)
        if found is None:
            found = self._residencies[layers] = Residency(self.weights, layers)
        return found

    def kv_layer_bytes(self, tokens: int) -> int:
        """KV bytes of `tokens` tokens in one layer."""
        return tokens * self.weights.kv_bytes_per_token_layer


class Instance:
    """One model in one place, so much of it on the GPU as its residency says, and the batch that it runs."""

    def __init__(
        self,
        number: int,
        model: Model,
        placement: Placement,
        residency: Residency,
        kv_blocks: int,
        block_tokens: int,
        max_sequences: int,
    ) -> None:
        self.number, self.model = number, model
        self.placement, self.node, self.residency = placement, placement.node, residency
        self.profile = model.profiles[placement.first.kinds]
        self.blocks = KvBlocks(kv_blocks, block_tokens)
        self.kv_layer_bytes = model.kv_layer_bytes(kv_blocks * block_tokens)  # of its KV pool
        self.max_sequences = max_sequences
        self.status = PENDING
        self.version = 0  # of the timer of a load or a stop: a timer with another version is stale
        self.view: Facade | None = None
        # The batch.
        self.waiting = Line()  # requests, the most urgent first, then in order of arrival
        self.prefilling: list[Request] = []
        self.restoring: dict[int, Request] = {}
        self.restores: dict[int, list[Transfer]] = {}
        switch = self.profile.switch
        # Its engine copies KV at the table's rates, however many sequences move at once.
        self.kv_links = {
            "kv_save": Link(f"instance {number} saves", switch.kv_save_bytes_per_s),
            "kv_restore": Link(f"instance {number} restores", switch.kv_restore_bytes_per_s),
        }
        self.kv_moves = {"kv_save": (0, 0.0, 0.0), "kv_restore": (0, 0.0, 0.0)}  # transfers, since when, bytes done
        self.joining: list[Request] = []  # restored, to decode from the next boundary on
        self.sequences = 0  # that hold a place in the batch: prefilling, restoring, joining, decoding, saving
        self.saving: dict[int, Request] = {}
        self.saves: dict[int, tuple[Transfer, list[Request]]] = {}  # KV on its way out, that of `saving` and of stops
        self.save_count = 0
        self.decoding: dict[int, Request] = {}  # in order of admission
        self.fresh: dict[int, float] = {}  # decoding, but no decode iteration yet: when they got their last token
        self.iterations = self.context_sum = 0
        self.finishes: list[tuple[int, int, int, Request]] = []  # a heap of (iteration, request, entry, request)
        self.entries = 0
        self.last_decode_end_s = 0.0
        self.stalled_s = 0.0  # cumulative: what each decoding sequence has been held up, whoever it was
        # The leap under way.
        self.leap: Leap | None = None
        self.chunks: list[tuple[Request, int]] = []  # prompt tokens of each iteration of the leap
        self.composition = 0  # changes with the batch
        self.demand_of: object = None  # the composition that the present shares were read from
        self.blocked_since_s = -1.0
        self.preempted_s = -1.0  # the last boundary at which somebody was preempted: it admits nobody
        self.begun = False  # a leap that has no stretch and no timer yet
        self.end_s = 0.0  # when the leap ends, as things are
        self.timers: list[float] = []  # calls to come, the last to come first: the first to come is not after end_s
        self.settled_s = 0.0
        self.gpu_stretch = self.host_stretch = 1.0
        self.gpu_share = self.host_share = 0.0
        self.stop_mode: str | None = None  # preempt, abort, restart or sleep, from the next boundary on
        self.next_residency = residency  # after a restart
        self.claimed_bytes = 0  # of the GPU's memory, to be taken when it is free
        self.preempt_next: dict[int, str] = {}  # which a policy wants out at the next boundary: save or recompute
        self.resizing: ResizeInProgress | None = None  # an elastic one
        self.pins_weights = False
        self.drops_weights = False  # when it falls asleep
        self.ready_s = -1.0
        self.last_used_s = 0.0

    # --- bytes

    @property
    def gpu_bytes(self) -> int:
        """Weights and KV pool on the GPU when it is not asleep."""
        return self.residency.gpu_bytes(self.kv_layer_bytes)

    @property
    def host_kv_bytes(self) -> int:
        """The part of the KV pool that lies in host memory when it is not asleep."""
        return self.residency.host_kv_bytes(self.kv_layer_bytes)

    @property
    def held_gpu_bytes(self) -> int:
        """What it has taken of the GPU now, for a resize under way too."""
        if self.status in (PENDING, ASLEEP, GONE):
            return 0
        return self.gpu_bytes + (0 if self.resizing is None else self.resizing.extra_gpu_bytes)

    def claim(self, size: int) -> None:
        """Have `size` bytes of the GPU's memory set aside, in place of what was set aside before."""
        self.placement.claim(size - self.claimed_bytes)
        self.claimed_bytes = size

    # --- times

    def decode_curve(self, batch: int) -> Curve:
        """Seconds of an iteration in which so many decode, against their mean context."""
        return self.profile.decode_curve(self.residency.layers, batch)

    def prefill_curve(self) -> Curve:
        """Seconds of an iteration that computes a prompt, against its tokens."""
        return self.profile.prefill_curve(self.residency.layers)

    # --- the batch

    @property
    def load(self) -> int:
        """Requests that run or wait here."""
        return self.sequences + self.waiting.size

    @property
    def accepts(self) -> bool:
        """May requests be routed here, now or for when it is loaded?"""
        return self.status in (PENDING, STARTING, LOADING, READY) and self.stop_mode is None

    def changed(self) -> None:
        """Its load, its layers or its status changed: who ranks instances by these must look again."""
        self.model.ranking.mark(self.number, self)
        if self.load <= 1:  # else it neither was idle nor is
            self.placement.mark(self)

    @property
    def idle(self) -> bool:
        """Ready, and nobody runs or waits here."""
        return self.status == READY and not self.sequences and not self.waiting.size

    def ahead(self, now_s: float) -> int:
        """Iterations that the running leap has finished since it was last settled, without settling it."""
        if self.leap is None or self.begun or not self.leap.batch:
            return 0
        return self.leap.twin().advance(now_s - self.settled_s, self.gpu_stretch, self.host_stretch).completed

    def blocks_after(self, iterations: int) -> int:
        """KV blocks in use when every decoding sequence has got so many more tokens."""
        return self.blocks.after(self.iterations, iterations)

    def tokens_of(self, request: Request) -> int:
        """Tokens produced so far, as of when the running leap was last settled."""
        if request.index in self.decoding:
            return request.produced + self.iterations - request.entry_iteration
        return request.produced

    def start_decoding(self, request: Request, now_s: float) -> None:
        """The sequence, whose blocks are already counted, joins the decode batch."""
        context = request.context
        self.decoding[request.index] = request
        self.fresh[request.index] = request.last_token_s
        self.context_sum += context
        self.blocks.begin_decoding(context, self.iterations)
        request.entry_iteration = self.iterations
        request.stalled_mark_s = self.stalled_s
        request.enter(DECODE, now_s)
        finish = self.iterations + request.output_tokens - request.produced
        self.entries += 1
        heappush(self.finishes, (finish, request.index, self.entries, request))

    def leave_decoding(self, request: Request, phase: int, now_s: float) -> None:
        """The sequence leaves the decode batch; its blocks stay counted until `release`."""
        self._settle_tokens(request)
        context = request.context
        self.context_sum -= context
        self.blocks.end_decoding(context, self.iterations)
        del self.decoding[request.index]
        if self.fresh.pop(request.index, None) is None:
            request.last_token_s = self.last_decode_end_s
        # Of the seconds since it entered, those in which another's prompt ran are not its own decoding.
        # The two clocks round differently, so a sequence that only ever stalled is kept from -1e-16 s of decoding.
        stalled_s = min(self.stalled_s - request.stalled_mark_s, now_s - request.since_s)
        request.enter(phase, now_s)
        request.budget_s[DECODE] -= stalled_s
        request.budget_s[STALLED] += stalled_s

    def _settle_tokens(self, request: Request) -> None:
        tokens = self.iterations - request.entry_iteration
        request.produced += tokens
        request.residency_tokens += tokens * self.residency.share
        request.entry_iteration = self.iterations

    def settle_residency(self) -> None:
        """Before the residency changes: book the tokens so far at the old one."""
        for request in self.decoding.values():
            finish = request.entry_iteration + request.output_tokens - request.produced
            self._settle_tokens(request)
            assert finish == request.entry_iteration + request.output_tokens - request.produced

    def advance(self, iterations: int) -> None:
        """Every decoding sequence got `iterations` more tokens."""
        self.blocks.used = self.blocks_after(iterations)
        self.iterations += iterations
        self.context_sum += iterations * len(self.decoding)

    def next_finish(self) -> int:
        """Iterations until the first decoding sequence has all its tokens."""
        finishes = self.finishes
        while True:
            finish, index, _, request = finishes[0]
            # A sequence that left, or that came back since, has left an old entry behind.
            if index in self.decoding and finish == request.entry_iteration + request.output_tokens - request.produced:
                return finish - self.iterations
            heappop(finishes)

    def push_waiting(self, request: Request, urgency: int) -> None:
        self.waiting.push(urgency, request.index, request)
        self.changed()

    def requests(self) -> Iterator[Request]:
        """Everyone routed here: waiting, in prefill, decoding, and on the way in or out."""
        yield from self.waiting.in_order()
        yield from self.prefilling
        yield from self.joining
        yield from self.restoring.values()
        yield from self.decoding.values()
        yield from (request for request in self.saving.values() if request.outcome < 0)


def _load_rank(instance: Instance) -> Rank | None:
    """Fewest requests first, then most layers, then the oldest."""
    return (instance.load, -instance.residency.layers, instance.number) if instance.accepts else None
