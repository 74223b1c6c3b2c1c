"""When an idle model is unloaded although nothing needs its place yet: timers that plug into a caching policy.

`never`; seconds (Ollama 300, LM Studio 3600, public clouds 600 to 1200); `histogram`: the hybrid histogram policy
of Shahrad et al., "Serverless in the Wild" (USENIX ATC 2020); `ski-rental`: keep until the rent equals the price of
loading again. A component of policies (greedy-dual, serverless-llm): it says when, they unload.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from math import floor, inf, isfinite, sqrt
from typing import Annotated, Any

from pydantic import PlainValidator

from sim.common.errors import did_you_mean
from sim.policy.interface.actions import Wake
from sim.policy.interface.models import InstanceView, ModelView
from sim.policy.interface.view import View
from sim.policy.kit import costs

RULES = ("never", "histogram", "ski-rental")

# Published constants of the hybrid histogram policy.
RANGE_S = 4 * 3600.0  # longer gaps are out of bounds; also how long a model is kept while little is known of it
HEAD, TAIL = 0.05, 0.99  # quantiles of the idle gaps between which the model is kept
MARGIN = 0.1  # the head is taken so much earlier, the tail so much later
REPRESENTATIVE = 2.0  # least coefficient of variation of the bins' counts

_ROUNDING = 1e-9


def _checked(value: Any) -> float | str:
    if isinstance(value, str):
        if value in RULES:
            return value
        raise ValueError(f"no keep-alive rule '{value}'; give seconds, or a rule: {did_you_mean(value, RULES)}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value < 0:
        raise ValueError(f"give seconds from 0 up, or one of {', '.join(RULES)}, not {value!r}")
    return float(value)


KeepAliveChoice = Annotated[float | str, PlainValidator(_checked)]


Timer = tuple[float, int, float, InstanceView]  # reading, number of the instance, its last use, the instance


class IdleGaps:
    """How long a model lay idle before its next request came: a histogram with bins of `bin_s` seconds."""

    def __init__(self, bin_s: float) -> None:
        self.bin_s = bin_s
        self._bins: dict[int, int] = {}
        self._count = 0
        self._beyond = 0

    def add(self, gap_s: float) -> None:
        """A request came after so many idle seconds."""
        if gap_s >= RANGE_S:
            self._beyond += 1
        else:
            place = floor(gap_s / self.bin_s)
            self._bins[place] = self._bins.get(place, 0) + 1
            self._count += 1

    def window(self) -> tuple[float, float] | None:
        """(head, tail) in seconds after the model fell idle; None while the histogram does not represent anything."""
        if self._count == 0 or self._beyond > self._count:
            return None
        bins = RANGE_S / self.bin_s
        mean = self._count / bins
        spread = sqrt(max(0.0, sum(count * count for count in self._bins.values()) / bins - mean * mean))
        if spread < REPRESENTATIVE * mean:
            return None
        head = self._quantile(HEAD) * self.bin_s * (1.0 - MARGIN)
        return head, (self._quantile(TAIL) + 1) * self.bin_s * (1.0 + MARGIN)

    def _quantile(self, share: float) -> int:
        """The bin in which that share of the gaps is reached."""
        reached = 0
        for place in sorted(self._bins):
            reached += self._bins[place]
            if reached >= share * self._count:
                return place
        raise AssertionError("a quantile of nothing")


class KeepAlive:
    """The timers of one policy. In each decision call `observe` first, route and load, then ask `expired` and
    `to_warm`, and yield `wakes` last.

    `ski-rental`: while requests wait for memory, a byte is worth mu = (requests that wait) / (bytes that their model
    needs) request-seconds a second, of the model for which this is most. An idle instance of b bytes that takes C
    seconds to load again is unloaded when it has held its memory for tau* = C / (mu b) seconds, counted while mu is
    above 0: with nobody waiting it stays for ever.
    """

    def __init__(self, rule: float | str, bin_s: float = 60.0) -> None:
        self.rule = rule
        self._bin_s = bin_s
        self._rent = 0.0  # the integral of mu, in request-seconds per byte
        self._mu = 0.0
        self._now_s = 0.0
        self._wake_s = 0.0  # asked for already
        self._timers: list[Timer] = []  # a heap
        self._gaps: dict[ModelView, IdleGaps] = {}
        self._idle_since_s: dict[ModelView, float] = {}
        self._warm: list[tuple[float, str, float, ModelView]] = []  # when, name, idle since, model: a heap
        self._warm_until_s: dict[ModelView, float] = {}

    def observe(self, view: View) -> None:
        """Take in what happened since the last decision."""
        if self.rule == "never":
            return
        self._rent += self._mu * (view.now_s - self._now_s)
        self._now_s = view.now_s
        if self.rule == "histogram":
            for request in view.arrived:
                since_s = self._idle_since_s.pop(request.model, None)
                self._warm_until_s.pop(request.model, None)
                if since_s is not None:
                    self._gaps.setdefault(request.model, IdleGaps(self._bin_s)).add(view.now_s - since_s)
            for instance in view.idled:
                if not any(other.load for other in instance.model.instances):
                    self._idle_since_s[instance.model] = view.now_s
        for instance in dict.fromkeys((*view.idled, *view.loaded)):
            if instance.idle:
                reading = self._keep_until(instance)
                if reading < inf:
                    heappush(self._timers, (reading, instance.number, instance.last_used_s, instance))

    def expired(self, view: View) -> list[InstanceView]:
        """Idle instances whose time is over, in the order in which it was."""
        found = []
        reading = self._rent * (1.0 + _ROUNDING) if self.rule == "ski-rental" else view.now_s
        while self._timers and self._timers[0][0] <= reading:
            entry = heappop(self._timers)
            if _unused(entry):
                found.append(entry[3])
        return found

    def to_warm(self, view: View) -> list[ModelView]:
        """Models that are to be loaded now, before they are asked for (`histogram` alone)."""
        found = []
        while self._warm and self._warm[0][0] <= view.now_s:
            _, _, since_s, model = heappop(self._warm)
            if self._idle_since_s.get(model) == since_s and not any(i.accepts for i in model.instances):
                found.append(model)
        return found

    def wakes(self, view: View) -> Iterator[Wake]:
        """When to look again, if anything is to be expected then."""
        if self.rule == "ski-rental":
            self._mu = max((_worth(view, model) for model in view.waiting_models), default=0.0)
        while self._timers and not _unused(self._timers[0]):
            heappop(self._timers)
        next_s = self._warm[0][0] if self._warm else inf
        if self._timers:
            reading = self._timers[0][0]
            if self.rule != "ski-rental":
                next_s = min(next_s, reading)
            elif self._mu > 0.0:
                next_s = view.now_s + max(_ROUNDING, (reading - self._rent) / self._mu)
        if next_s < inf and not view.now_s < self._wake_s <= next_s:
            self._wake_s = next_s
            yield Wake(next_s)

    def _keep_until(self, instance: InstanceView) -> float:
        """The reading of the clock (or, for `ski-rental`, of the rent) at which it is to go."""
        if self.rule == "ski-rental":
            size = instance.gpu_bytes
            return self._rent + costs.reload_s(instance) / size if size else inf
        if self.rule != "histogram":
            assert isinstance(self.rule, float), self.rule
            return max(self._now_s, instance.last_used_s + self.rule)
        model = instance.model
        if model in self._warm_until_s:
            return max(self._now_s, self._warm_until_s[model])
        gaps = self._gaps.get(model)
        window = gaps.window() if gaps else None
        if window is None:
            return self._now_s + RANGE_S
        head_s, tail_s = window
        since_s = self._idle_since_s.get(model)
        if since_s is None or head_s <= costs.reload_s(instance):
            return self._now_s + tail_s  # gone and back again would take longer than the pause that it uses
        heappush(self._warm, (since_s + head_s, model.name, since_s, model))
        self._warm_until_s[model] = since_s + tail_s
        return self._now_s


def _unused(timer: Timer) -> bool:
    """Has it been idle since the timer was set? One that is being resized is looked at again when that is through."""
    _, _, last_used_s, instance = timer
    return instance.idle and not instance.resizing and instance.last_used_s == last_used_s


def _worth(view: View, model: ModelView) -> float:
    """Requests that wait for a model per byte of GPU memory that would serve them."""
    layers = model.layers_within(view.largest_gpu.capacity_bytes)
    return model.waiting_count / max(1, model.gpu_bytes(layers))
