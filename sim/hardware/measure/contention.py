"""How much two instances of one model slow each other down, and which law of contention says so best.

They run in two threads, each with a stream of its own, as they do in a server of one process. The laws are those that
the simulator knows (sim/core/sharing.py).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from operator import attrgetter
from statistics import median
from typing import Any

from sim.hardware.measure.model_measurements import Bench
from sim.hardware.measure.timing import RepeatedTiming, repeated, timed
from sim.hardware.model.device import Device
from sim.hardware.model.transformer import Item, Transformer
from sim.hardware.model.weights import HostWeights
from sim.profiles.library import grouped
from sim.profiling.points import ContentionPoint

LAWS = ("proportional", "processor_sharing", "time_slice")
_CONTEXT = 64


@contextmanager
def _busy(device: Device, action: Callable[[], object], to_host: bool) -> Iterator[None]:
    """Repeat the action in a thread and stream of its own meanwhile."""
    stop, begun = threading.Event(), threading.Event()

    def work() -> None:
        try:
            device.bind(to_host)
            with device.stream():
                while not stop.is_set():
                    action()
                    begun.set()
        finally:
            begun.set()

    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work)
        try:
            begun.wait()
            yield
        finally:
            stop.set()
    working.result()


class ContentionPairs:
    """Instances of one model that run beside one another."""

    def __init__(self, bench: Bench, weights: HostWeights, offload: str) -> None:
        self.bench, self.weights, self.offload = bench, weights, offload

    def _step(self, instance: Transformer) -> Callable[[], object]:
        items = [Item(0, [1], _CONTEXT - 1)]
        return lambda: instance.forward(items)

    def _load(self, layers: int) -> Callable[[], object]:
        def load() -> None:
            self.bench.device.bind(to_host=True)
            instance = Transformer(self.weights, self.bench.device, layers, 1, _CONTEXT, self.offload)
            try:
                instance.load()
            finally:
                instance.free()

        return load

    def _place(self, what: str, layers: int, beside: str, beside_layers: int) -> dict[str, Any]:
        """The key columns of a row."""
        name = self.weights.shape.model
        batch, context = (None, None) if what == "load" else (1, float(_CONTEXT))
        columns = {"what": what, "model": name, **self.bench.model, "offload": self.offload, "layers": layers}
        theirs = {"beside": beside, "beside_model": name, "beside_layers": beside_layers}
        return {**columns, "batch": batch, "context": context, **theirs}

    def has(self, what: str, layers: int, beside: str, beside_layers: int) -> bool:
        return self.bench.store.has(ContentionPoint, **self._place(what, layers, beside, beside_layers))

    def measure(self, what: str, layers: int, beside: str, beside_layers: int) -> None:
        """One row: `what` with so many layers, alone and then beside another."""
        bench, device = self.bench, self.bench.device
        with bench.loaded(self.weights, layers, _CONTEXT, self.offload) as mine:
            action = self._load(layers) if what == "load" else self._step(mine)
            if what == "load":
                mine.free()
            with device.stream():
                alone = self._timing(action)
            with bench.loaded(self.weights, beside_layers, _CONTEXT, self.offload) as theirs:
                if beside == "load":
                    theirs.free()
                other = self._load(beside_layers) if beside == "load" else self._step(theirs)
                with _busy(device, other, beside == "load"), device.stream():
                    together = self._timing(action)
        row = {**self._place(what, layers, beside, beside_layers), "repeats": together.repeats, **bench.words}
        times: dict[str, Any] = {"alone_s": alone.median_s, "beside_s": together.median_s}
        bench.store.add([ContentionPoint(**row, **times, slow_down=together.median_s / alone.median_s)])

    def _timing(self, action: Callable[[], object]) -> RepeatedTiming:
        return repeated(lambda: timed(action), 2 * self.bench.grid.limit_s, 3 * self.bench.grid.most, warm=2)


def pairs_to_measure(full: int, offload: str) -> list[tuple[str, int, str, int]]:
    """What runs beside what, the most telling first: `part` of the layers use a share of the GPU only."""
    part = max(1, round(full / 2))
    found = [
        ("decode", full, "decode", full),
        ("decode", full, "decode", part),
        ("decode", part, "decode", part),
        ("decode", full, "load", full),
        ("decode", part, "decode", full),
        ("load", full, "decode", full),
    ]
    if offload == "stream":
        return [*found, ("decode", part, "load", full), ("load", full, "decode", part)]
    return [
        *found[:2],
        ("cpu_decode", 0, "cpu_decode", 0),
        *found[2:],
        ("cpu_decode", 0, "load", full),
        ("decode", full, "cpu_decode", 0),
        ("cpu_decode", 0, "decode", full),
    ]


def closest_law(rows: Sequence[ContentionPoint]) -> dict[str, Any] | None:
    """Which law of contention predicts the slow-downs best: its name and the mean error of each. None: too few rows.

    The share of a step that is the GPU's is what so many of a full model's layers take alone, or all of them where the
    others are streamed, as in the simulator.
    """
    found: dict[str, list[float]] = {law: [] for law in LAWS}
    for same in grouped(rows, attrgetter("model_key", "offload")).values():
        steps = [row for row in same if row.what != "load"]
        layers = dict.fromkeys(r.layers or 0 for r in steps)
        alone = {k: median(r.alone_s for r in steps if (r.layers or 0) == k) for k in layers}
        full = max(alone, default=0)
        for row in steps:
            if row.beside == "load" or not full or row.beside_layers not in alone:
                continue
            both = (row.layers or 0, row.beside_layers)
            computed = [full if row.offload == "stream" else k for k in both]
            shares = [min(1.0, alone[full] * c / full / alone[k]) for k, c in zip(both, computed, strict=True)]
            for name, errors in found.items():
                errors.append(abs(math.log(_slow_down(name, *shares) / row.slow_down)))
    if not found["proportional"]:
        return None
    means = {name: math.exp(sum(errors) / len(errors)) - 1 for name, errors in found.items()}
    return {"closer": min(means, key=lambda name: means[name])} | {f"{k}_error": round(v, 3) for k, v in means.items()}


def _slow_down(name: str, mine: float, theirs: float) -> float:
    """Of a step with a GPU share `mine`, beside one with `theirs`; the rest of each is the host's."""
    if name == "proportional":
        return mine * max(1.0, mine + theirs) + (1 - mine) * max(1.0, 2 - mine - theirs)
    if name == "processor_sharing":
        return mine * (1 + theirs) + (1 - mine) * (2 - theirs)
    gpus, hosts = (sum(share > 0 for share in pair) for pair in ((mine, theirs), (1 - mine, 1 - theirs)))
    return mine * gpus + (1 - mine) * hosts
