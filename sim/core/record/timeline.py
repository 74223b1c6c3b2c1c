"""Follows a run as slices on lanes, counters and instants, in bounded memory; timeline_file.py writes them.

GPUs have a lane of what they do (the GPU-time budget) and a slot for each instance: what is loaded, its batches, its KV
on the way. The engine calls in only if the recorder has a Timeline; nothing here changes what happens. Past a limit of
events neighbours shorter than a grain are merged, and the merged slice keeps the seconds of each of its parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import TYPE_CHECKING, Any

from sim.core.state.instance import ASLEEP, GONE, PENDING, READY, STATUSES, Instance
from sim.core.state.leap import Leap
from sim.core.state.request import RECOMPUTE, Request

if TYPE_CHECKING:
    from sim.core.state.machines import Cluster, Gpu

# Lanes of a slot, in the order in which they are drawn.
WHAT, BATCHES, SAVES, RESTORES, RESIZES = range(5)
CLUSTER = -1  # in place of a GPU's index
_KV_LANES = {"kv_save": SAVES, "kv_restore": RESTORES}
_SHORTEST_GRAIN_S = 1e-4
_COARSER = 2**0.5
_ENOUGH = 1.4  # of the events wanted, while the run lasts: what is written is made to fit
_SHORTEST_INTERVAL_S = 1e-3
_INTERVALS = (256, 2048)  # so many looks at all counters, then half as many for each doubling of the time
_MOST_LOOKS = 1 << 16  # at single GPUs, within so many
_MOST_NUMBERS = 16  # requests named in one slice

LaneKey = tuple[int, int, int]  # GPU, slot (-1: the GPU itself), lane
Arguments = dict[str, Any]


class Slice:
    """From begin_s to end_s. seconds: by kind, in a slice that stands for several; None: all of it is of its kind."""

    __slots__ = ("arguments", "begin_s", "end_s", "kind", "parts", "seconds")

    def __init__(self, begin_s: float, end_s: float, kind: str, arguments: Arguments | None = None) -> None:
        self.begin_s = begin_s
        self.end_s = end_s
        self.kind = kind
        self.arguments = arguments
        self.parts = 1
        self.seconds: dict[str, float] | None = None

    def budget_s(self) -> dict[str, float]:
        """Seconds by kind."""
        return self.seconds if self.seconds is not None else {self.kind: self.end_s - self.begin_s}


class Instant:
    """`times` events of one kind on one GPU (CLUSTER: none), the first of them at time_s."""

    __slots__ = ("arguments", "gpu", "kind", "slot", "time_s", "times")

    def __init__(self, time_s: float, gpu: int, slot: int, kind: str, arguments: Arguments) -> None:
        self.time_s = time_s
        self.gpu = gpu
        self.slot = slot
        self.kind = kind
        self.arguments = arguments
        self.times = 1


class Timeline:
    """What there is to draw.

    most_events: slices, counter values and instants. from_s, until_s: what is outside is left out.
    """

    def __init__(self, most_events: int, from_s: float = 0.0, until_s: float = inf) -> None:
        self.from_s, self.until_s = from_s, until_s
        self.grain_s = 0.0  # neighbours that are shorter have been merged
        self.lanes: dict[LaneKey, list[Slice]] = {}
        self.counters: dict[tuple[int, str], list[tuple[float, float]]] = {}
        self.instants: list[Instant] = []
        self.next_s = 0.0  # when all counters are to be looked at
        self._most_events = most_events
        self._events = 0
        self._latest_s = 0.0
        self._slots: dict[int, tuple[int, int]] = {}  # of each instance: GPU and slot
        self._taken: dict[int, dict[int, int]] = {}  # of each GPU: by slot, the instance
        self._status: dict[int, tuple[float, str, Arguments]] = {}
        self._leaps: dict[int, tuple[float, str, Arguments]] = {}

    # --- called by the engine

    def activity(self, gpu: Gpu, kind: str, begin_s: float, end_s: float) -> None:
        """What a GPU did; consecutive stretches of a kind become one."""
        lane = self.lanes.setdefault((gpu.index, -1, 0), [])
        if lane and lane[-1].kind == kind and lane[-1].end_s == begin_s and lane[-1].seconds is None:
            lane[-1].end_s = min(end_s, self.until_s)
            self._latest_s = max(self._latest_s, lane[-1].end_s)
        else:
            self._slice((gpu.index, -1, 0), begin_s, end_s, kind)

    def note(self, instance: Instance, now_s: float) -> None:
        """An instance's status, layers or bytes changed."""
        number, gpu = instance.number, instance.placement.first
        if number not in self._slots:
            taken = self._taken.setdefault(gpu.index, {})
            slot = next(at for at in range(len(taken) + 1) if at not in taken)
            taken[slot] = number
            self._slots[number] = (gpu.index, slot)
        self._close_status(number, now_s)
        for held in instance.placement.gpus:
            self._memory(held, now_s)
        if instance.status == GONE:
            slot = self._slots.pop(number)[1]
            del self._taken[gpu.index][slot]
            return
        layers = 0 if instance.status == ASLEEP else instance.residency.layers
        whole = instance.model.weights.layers
        kind = f"{instance.model.name} {layers}/{whole}"
        if instance.status != READY:
            kind = f"{STATUSES[instance.status]} {instance.model.name}"
        arguments = {
            "instance": number,
            "model": instance.model.name,
            "layers": layers,
            "of_layers": whole,
            "gpu_bytes": instance.held_gpu_bytes,
            "kv_tokens": instance.blocks.total * instance.blocks.tokens,
        }
        self._status[number] = (now_s, kind, arguments)

    def leap(self, instance: Instance, now_s: float) -> None:
        """A run of iterations with one batch begins."""
        leap = instance.leap
        assert leap is not None
        kind, arguments = _describe(instance, leap)
        self._leaps[instance.number] = (now_s, kind, arguments)

    def leap_ended(self, instance: Instance, now_s: float) -> None:
        """It is over, perhaps early."""
        leap = instance.leap
        assert leap is not None
        begin_s, kind, arguments = self._leaps.pop(instance.number)
        ready = sum(1 for request, _ in instance.chunks if request.computed_tokens >= request.context)
        arguments["tokens"] = leap.done * leap.batch + ready  # a prompt ends in a token too
        self._slice((*self._slots[instance.number], BATCHES), begin_s, now_s, kind, arguments)

    def moved(self, instance: Instance, cause: str, begin_s: float, now_s: float, size: float) -> None:
        """KV of single sequences, or layers of a resize, were on their way."""
        lane = _KV_LANES.get(cause, RESIZES)
        arguments = {"model": instance.model.name, "instance": instance.number, "bytes": size}
        self._slice((*self._slots[instance.number], lane), begin_s, now_s, cause, arguments)

    def preempted(self, instance: Instance, request: Request, asked: str | None, now_s: float) -> None:
        """One sequence had to leave its batch; asked: by the policy, and how; None: for lack of memory."""
        arguments = {
            "request": request.index,
            "model": request.model.name,
            "tokens": instance.tokens_of(request),
            "why": "no KV memory" if asked is None else f"policy: {asked}",
        }
        self.instant(instance, "sequence preempted", arguments, now_s)

    def ended(self, request: Request, outcome: str, now_s: float) -> None:
        """A request ended without its answer."""
        arguments = {"request": request.index, "model": request.model.name, "reason": request.reason}
        self.instant_at(now_s, CLUSTER, -1, outcome.replace("_", " "), arguments)

    def instant(self, instance: Instance, kind: str, arguments: Arguments, now_s: float) -> None:
        """Something happened to an instance."""
        gpu, slot = self._slots[instance.number]
        self.instant_at(now_s, gpu, slot, kind, {"instance": instance.number, **arguments})

    def instant_at(self, time_s: float, gpu: int, slot: int, kind: str, arguments: Arguments) -> None:
        """Something happened on a GPU, or with CLUSTER to a request that is on none."""
        if self.from_s <= time_s <= self.until_s:
            self.instants.append(Instant(time_s, gpu, slot, kind, arguments))
            self._count()

    def sample(self, now_s: float, cluster: Cluster) -> None:
        """Look at all counters as they were at `next_s`; nothing has happened between then and now."""
        at_s = self.next_s
        waiting = [len(model.waiting) for model in cluster.models]
        running = [0] * len(cluster.models)
        used = {gpu.index: 0 for gpu in cluster.gpus}
        for instance in cluster.instances.values():
            waiting[instance.model.index] += instance.waiting.size
            running[instance.model.index] += instance.sequences
            for gpu in instance.placement.gpus:
                used[gpu.index] += _kv_used_bytes(instance, at_s)
        for model in cluster.models:
            self._counter(CLUSTER, f"waiting {model.name}", at_s, waiting[model.index])
        self._counter(CLUSTER, "waiting requests", at_s, sum(waiting))
        self._counter(CLUSTER, "running sequences", at_s, sum(running))
        for index, size in used.items():
            self._counter(index, "KV in use (bytes)", at_s, size)
        fewest, most = _INTERVALS
        intervals = max(fewest, min(most, _MOST_LOOKS // len(used)))
        interval_s = _SHORTEST_INTERVAL_S
        while now_s >= intervals * interval_s:
            interval_s *= 2
        self.next_s = (now_s // interval_s + 1) * interval_s

    def close(self, cluster: Cluster, now_s: float) -> None:
        """The run ends here: what goes on ends with it."""
        for instance in cluster.instances.values():
            if instance.number in self._leaps:
                self.leap_ended(instance, now_s)
            for cause, (moving, begin_s, size) in instance.kv_moves.items():
                if moving:
                    self.moved(instance, cause, begin_s, now_s, size)
            resize = instance.resizing
            if resize is not None and not resize.moved:
                self.moved(instance, "resize", resize.started_s, now_s, resize.bytes)
            self._close_status(instance.number, now_s)

    # --- kept

    def _close_status(self, number: int, now_s: float) -> None:
        begun = self._status.pop(number, None)
        if begun is not None:
            begin_s, kind, arguments = begun
            self._slice((*self._slots[number], WHAT), begin_s, now_s, kind, arguments)

    def _memory(self, gpu: Gpu, now_s: float) -> None:
        held = [i for i in gpu.instances.values() if i.status not in (PENDING, ASLEEP, GONE)]
        weights = sum([instance.residency.gpu_weight_bytes for instance in held])
        held_bytes = sum([instance.held_gpu_bytes for instance in held])
        self._counter(gpu.index, "weights (bytes)", now_s, weights)
        self._counter(gpu.index, "KV pools (bytes)", now_s, held_bytes - weights)

    def _slice(self, key: LaneKey, begin_s: float, end_s: float, kind: str, arguments: Arguments | None = None) -> None:
        begin_s, end_s = max(begin_s, self.from_s), min(end_s, self.until_s)
        if begin_s < end_s:
            self._latest_s = max(self._latest_s, end_s)
            self.lanes.setdefault(key, []).append(Slice(begin_s, end_s, kind, arguments))
            self._count()

    def _counter(self, gpu: int, name: str, time_s: float, value: float) -> None:
        """A counter's value from now on. One from before the window is its first value there."""
        if time_s > self.until_s:
            return
        values = self.counters.setdefault((gpu, name), [])
        time_s = max(time_s, self.from_s)
        self._latest_s = max(self._latest_s, time_s)
        if values and values[-1][0] == time_s:
            values[-1] = (time_s, value)
        elif not values or values[-1][1] != value:
            values.append((time_s, value))
            self._count()

    def _count(self) -> None:
        self._events += 1
        if self._events > 2 * self._most_events:
            while self._events > _ENOUGH * self._most_events and self.coarsen():
                pass
            self._most_events = max(self._most_events, self._events)  # so many lanes: there can be no fewer

    # --- bounded

    def coarsen(self) -> bool:
        """Merge what is shorter than a somewhat longer grain than before; False: there is nothing left to merge."""
        before = self._events
        if self.grain_s <= self._latest_s:
            self.grain_s = _COARSER * self.grain_s or _SHORTEST_GRAIN_S
        for key, lane in self.lanes.items():
            self.lanes[key] = list(_merged(lane, self.grain_s))
        for name, values in self.counters.items():
            self.counters[name] = _thinned(values, self.grain_s)
        self.instants = _gathered(self.instants, self.grain_s)
        events = sum(map(len, self.lanes.values())) + sum(map(len, self.counters.values()))
        self._events = events + len(self.instants)
        return self._events < before or self.grain_s <= self._latest_s

    @property
    def events(self) -> int:
        """Slices, counter values and instants."""
        return self._events

    @property
    def merged(self) -> int:
        """Slices that stand for several."""
        return sum(1 for lane in self.lanes.values() for part in lane if part.parts > 1)


def _kv_used_bytes(instance: Instance, now_s: float) -> int:
    """Bytes on the GPU of its KV pool that sequences have taken by now."""
    if not instance.sequences:
        return 0
    blocks = instance.blocks_after(instance.ahead(now_s))
    return instance.residency.gpu_kv_bytes(instance.model.kv_layer_bytes(blocks * instance.blocks.tokens))


def _describe(instance: Instance, leap: Leap) -> tuple[str, Arguments]:
    arguments: Arguments = {"model": instance.model.name, "instance": instance.number}
    kind = "decode"
    if instance.chunks:
        requests = [request for request, _ in instance.chunks]
        again = all(request.phase == RECOMPUTE for request in requests)
        kind = "recompute" if again else "prefill"
        if leap.batch:
            kind += " and decode"
        arguments["requests"] = [request.index for request in requests[:_MOST_NUMBERS]]
        if len(requests) > _MOST_NUMBERS:
            arguments["more_requests"] = len(requests) - _MOST_NUMBERS
        arguments["prompt_tokens"] = sum(tokens for _, tokens in instance.chunks) * leap.steps
    if leap.batch:
        arguments["batch"] = leap.batch
        arguments["mean_context"] = round(instance.context_sum / leap.batch)
        if len(instance.decoding) <= _MOST_NUMBERS:
            arguments["decoding"] = list(instance.decoding)
    return kind, arguments


def _merged(lane: list[Slice], grain_s: float) -> Iterator[Slice]:
    """Slices shorter than a grain that begin in the same cell of that length become one."""
    held: Slice | None = None
    for part in lane:
        short = part.end_s - part.begin_s < grain_s
        if held is not None and short and part.begin_s // grain_s == held.begin_s // grain_s:
            seconds = dict(held.budget_s())
            for kind, more_s in part.budget_s().items():
                seconds[kind] = seconds.get(kind, 0.0) + more_s
            joined = Slice(held.begin_s, part.end_s, max(seconds, key=lambda kind: seconds[kind]))
            joined.seconds, joined.parts = seconds, held.parts + part.parts
            held = joined
            continue
        if held is not None:
            yield held
            held = None
        if short:
            held = part
        else:
            yield part
    if held is not None:
        yield held


def _thinned(values: list[tuple[float, float]], grain_s: float) -> list[tuple[float, float]]:
    """Of the values in a cell the last."""
    cells: dict[float, tuple[float, float]] = {}
    for time_s, value in values:
        cells[time_s // grain_s] = (time_s, value)
    return list(cells.values())


def _gathered(instants: list[Instant], grain_s: float) -> list[Instant]:
    """Instants of one kind in one place and cell become one that counts them."""
    cells: dict[tuple[float, int, int, str], Instant] = {}
    for instant in instants:
        key = (instant.time_s // grain_s, instant.gpu, instant.slot, instant.kind)
        first = cells.setdefault(key, instant)
        if first is not instant:
            first.times += instant.times
            first.arguments = {}
    return list(cells.values())
