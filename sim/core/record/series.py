"""What is on the GPUs over time: of every instance its status, layers and bytes, who runs and who waits there.

A row holds until the next one of the same instance. Status, layers and bytes are noted when they change, batches and
queues as of instants on a grid. Past a limit of rows, all become means over equal intervals (SeriesMeans). The recorder
has one of these if the run is to be followed; results.py writes it as series.parquet. It never changes what happens.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.core.state.instance import ASLEEP, GONE, Instance

if TYPE_CHECKING:
    from sim.core.state.machines import Cluster

MOST_ROWS = 100_000
_FIRST_INTERVAL_S = 2.0
_INTERVALS = 512  # so many look-ups, then half as many for each doubling of the time
_MOST_CELLS = 2048
_SHORTEST_SPAN_S = 2.0**-10
_FIELDS = ("time_s", "key", "gpu", "model", "status", "layers", "residency", "gpu_bytes")
_ROW = (*_FIELDS, "running", "waiting")
_WIDTH = len(_ROW)
_QUEUE = -1.0  # the GPU of those who are not routed yet
_MEANS = ("layers", "residency", "gpu_bytes", "running", "waiting")
COLUMNS = ("time_s", "span_s", "gpu", "instance", "status", "model", *_MEANS)


class Series:
    """Rows while a run lasts. most_rows: beyond it, means over equal intervals are kept instead."""

    def __init__(self, most_rows: int = MOST_ROWS) -> None:
        self.next_s = _FIRST_INTERVAL_S  # when batches and queues are to be looked at
        self.means: SeriesMeans | None = None
        self._most_rows = most_rows
        self._rows = array("d")
        self._last: dict[int, tuple[float, ...]] = {}  # by instance; queues: -1 - model

    def note(self, instance: Instance, now_s: float) -> None:
        """Its status, its layers or its bytes changed."""
        key = instance.number
        layers = 0 if instance.status in (ASLEEP, GONE) else instance.residency.layers
        values = (
            float(instance.placement.first.index),
            float(instance.model.index),
            float(instance.status),
            float(layers),
            layers / instance.model.weights.layers,
            float(instance.held_gpu_bytes),
            float(instance.sequences),
            float(instance.waiting.size),
        )
        self._add(now_s, key, values)
        if instance.status == GONE:
            del self._last[key]

    def sample(self, now_s: float, cluster: Cluster) -> None:
        """Look at all batches and queues as they were at `next_s`; nothing has happened between then and now."""
        at_s = self.next_s
        for number, instance in cluster.instances.items():
            last = self._last[number]
            running, waiting = instance.sequences, instance.waiting.size
            if running != last[6] or waiting != last[7]:
                self._add(at_s, number, (*last[:6], float(running), float(waiting)))
        for model in cluster.models:
            queued = float(len(model.waiting))
            if queued != self._last.get(-1 - model.index, (0.0,))[-1]:
                values = (_QUEUE, float(model.index), _QUEUE, 0.0, 0.0, 0.0, 0.0, queued)
                self._add(at_s, -1 - model.index, values)
        interval_s = _FIRST_INTERVAL_S
        while now_s >= _INTERVALS * interval_s:
            interval_s *= 2
        self.next_s = (now_s // interval_s + 1) * interval_s

    def _add(self, now_s: float, key: int, values: tuple[float, ...]) -> None:
        if self._last.get(key) == values:
            return
        self._last[key] = values
        self._rows.extend((now_s, float(key), *values))
        if len(self._rows) > self._most_rows * _WIDTH:
            self._coarsen(now_s)

    def _coarsen(self, now_s: float) -> None:
        """Rows so far become means; what is true now goes on as fresh rows."""
        means = self.means if self.means is not None else SeriesMeans(self._most_rows // 2)
        self.means = means
        means.add(_stretches(self._rows, now_s), now_s)
        self._rows = array("d")
        for key, values in self._last.items():
            self._rows.extend((now_s, float(key), *values))

    def columns(self, end_s: float) -> dict[str, NDArray[Any]]:
        """The columns of COLUMNS, in order of time. gpu, model and status are codes, -1 where there is none, as with
        `instance`. span_s: NaN in a row that holds from time_s on; else the row is a mean over so long from time_s on.
        """
        if self.means is not None:
            self._coarsen(end_s)
            return self.means.columns(end_s)
        table = _table(self._rows)
        # Of several changes of one instance in one instant the last counts.
        order = np.lexsort((np.arange(len(table)), table[:, 1], table[:, 0]))
        table = table[order]
        same = (table[1:, 0] == table[:-1, 0]) & (table[1:, 1] == table[:-1, 1])
        found = dict(zip(_ROW, table[np.append(~same, True)[: len(table)]].T, strict=True))
        whole = ("gpu", "model", "status")
        return {
            **{name: found[name].astype(np.int32) if name in whole else found[name] for name in _ROW if name != "key"},
            "span_s": np.full(len(found["time_s"]), np.nan),
            "instance": np.maximum(found["key"], -1).astype(np.int64),
        }


@dataclass(frozen=True)
class _Stretches:
    """Of each row how long it held: begin_s and end_s, its GPU and model, and the values of _MEANS."""

    begin_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    gpu: NDArray[np.int64]
    model: NDArray[np.int64]
    values: NDArray[np.float64]  # [rows, means]


def _table(rows: array[float]) -> NDArray[np.float64]:
    return np.array(rows, dtype=np.float64).reshape(-1, _WIDTH)


def _stretches(rows: array[float], end_s: float) -> _Stretches:
    table = _table(rows)
    table = table[np.lexsort((np.arange(len(table)), table[:, 0], table[:, 1]))]
    ends_s = np.append(table[1:, 0], end_s)
    ends_s[np.append(table[1:, 1] != table[:-1, 1], True)[: len(table)]] = end_s
    lasted = (ends_s[: len(table)] > table[:, 0]) & (table[:, 4] != GONE)
    table, ends_s = table[lasted], ends_s[: len(lasted)][lasted]
    first = _ROW.index("layers")
    gpu, model = table[:, 2].astype(np.int64), table[:, 3].astype(np.int64)
    return _Stretches(table[:, 0], ends_s, gpu, model, table[:, first:])


class SeriesMeans:
    """Means over equal intervals of what each model had on each GPU: integrals by (interval, GPU, model).

    Intervals are a power of two of seconds, from time 0 on; they double when there are more than `most_rows` rows.
    A model's instances on one GPU are added up.
    """

    def __init__(self, most_rows: int) -> None:
        self.span_s = _SHORTEST_SPAN_S
        self._most_rows = most_rows
        self._keys = np.zeros((0, 3), dtype=np.int64)  # interval, GPU, model
        self._sums = np.zeros((0, len(_MEANS) + 1))  # value x seconds; the last: seconds on the GPU

    def add(self, more: _Stretches, end_s: float) -> None:
        """Take stretches in; a time before which everything has been taken in is never seen again."""
        while end_s / self.span_s > _MOST_CELLS:
            self._double()
        first = np.floor(more.begin_s / self.span_s).astype(np.int64)
        last = np.maximum(first, np.ceil(more.end_s / self.span_s).astype(np.int64) - 1)
        number = last - first + 1
        owner = np.repeat(np.arange(len(first)), number)
        cell = first[owner] + np.arange(len(owner)) - np.repeat(np.cumsum(number) - number, number)
        begin_s = np.maximum(more.begin_s[owner], cell * self.span_s)
        seconds = np.maximum(0.0, np.minimum(more.end_s[owner], (cell + 1) * self.span_s) - begin_s)
        values = more.values[owner]
        held = seconds * (values[:, _MEANS.index("gpu_bytes")] > 0)
        weights = np.column_stack([held, held, *[seconds] * (len(_MEANS) - 2)])
        sums = np.column_stack([values * weights, held])
        keys = np.column_stack([cell, more.gpu[owner], more.model[owner]])
        self._merge(np.concatenate([self._keys, keys]), np.concatenate([self._sums, sums]))
        while len(self._keys) > self._most_rows and self._keys[:, 0].max() > 0:
            self._double()

    def _double(self) -> None:
        self.span_s *= 2
        self._keys[:, 0] //= 2
        self._merge(self._keys, self._sums)

    def _merge(self, keys: NDArray[np.int64], sums: NDArray[np.float64]) -> None:
        self._keys, place = np.unique(keys, axis=0, return_inverse=True)
        number, place = len(self._keys), place.reshape(-1)
        columns = [np.bincount(place, weights=column, minlength=number) for column in sums.T]
        self._sums = np.column_stack(columns) if number else sums

    def columns(self, end_s: float) -> dict[str, NDArray[Any]]:
        """As Series.columns. layers and residency: means over the time on the GPU, NaN if there was none; all else over
        the whole interval."""
        time_s = self._keys[:, 0] * self.span_s
        span_s = np.minimum(self.span_s, end_s - time_s)
        held_s = self._sums[:, -1]
        with np.errstate(divide="ignore", invalid="ignore"):
            found = {
                name: self._sums[:, at] / (held_s if name in ("layers", "residency") else span_s)
                for at, name in enumerate(_MEANS)
            }
        nothing = np.full(len(time_s), -1)
        return {
            "time_s": time_s,
            "span_s": span_s,
            "gpu": self._keys[:, 1].astype(np.int32),
            "instance": nothing.astype(np.int64),
            "status": nothing.astype(np.int32),
            "model": self._keys[:, 2].astype(np.int32),
            **found,
        }
