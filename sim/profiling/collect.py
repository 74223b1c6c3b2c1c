"""The points of a measured folder as the fit wants them: one series a model, for one way of offloading.

Points that cannot be what they seem (more weights on the GPU than it has memory) are left out, and it is said which.
`fill` and `check` call it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TypeVar

import numpy as np

from sim.profiles.library import grouped
from sim.profiles.profile import Weights
from sim.profiling.fitting import LEAST_NOISE, Key, MeasuredSeries
from sim.profiling.measured import Measured
from sim.profiling.physics import Prompts, Shape, Steps, shape_of
from sim.profiling.points import OFFLOADS, DecodePoint, MeasuredRow, PrefillPoint

GIB = 2**30
_MOST_NOISE = 0.3
# More layers that are slower by so much, on a GPU as full as this: the driver is swapping weights to host memory.
SPILL_FACTOR, SPILL_SHARE = 1.05, 0.8
Point = DecodePoint | PrefillPoint
P = TypeVar("P", DecodePoint, PrefillPoint)


@dataclass
class Collected:
    """What is known of each model for one way of offloading. `left_out`: what is not used, in words."""

    offload: str
    head_first: bool
    shapes: dict[Key, Shape]
    weights: dict[Key, Weights]
    decode_rows: dict[Key, list[DecodePoint]] = field(default_factory=dict)
    prefill_rows: dict[Key, list[PrefillPoint]] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @property
    def keys(self) -> list[Key]:
        return list(dict.fromkeys([*self.decode_rows, *self.prefill_rows]))

    def decode(self) -> dict[Key, MeasuredSeries]:
        return {key: _series(self.shapes[key], rows) for key, rows in self.decode_rows.items()}

    def prefill(self) -> dict[Key, MeasuredSeries]:
        return {key: _series(self.shapes[key], rows) for key, rows in self.prefill_rows.items()}

    def on_grid(self, row: Point) -> bool:
        """Whether the row is a point of the tables: its head is where the tables of this engine have it."""
        total = self.shapes[row.model_key].layers
        there = row.layers == total or (self.head_first and row.layers > 0)
        return row.head_on_gpu(total) == there


def offloads(measured: Measured, weights: Mapping[Key, Weights]) -> list[str]:
    """The ways of offloading that were measured; `cpu` where nothing was ever outside the GPU."""
    known = model_weights(measured, weights)
    partly = [row for row in points_of(measured) if row.layers < known[row.model_key].layers]
    found = [word for word in OFFLOADS if any(row.offload == word for row in partly)]
    return found or list(measured.offload[:1]) or ["cpu"]


def points_of(measured: Measured) -> list[Point]:
    """Decode steps and prompts."""
    return [*measured.decode, *measured.prefill]


def model_weights(measured: Measured, weights: Mapping[Key, Weights]) -> dict[Key, Weights]:
    """The models of a folder: its own models.csv first, then `weights`."""
    return {**weights, **{row.model_key: row.weights for row in measured.models}}


def collect(measured: Measured, offload: str, weights: Mapping[Key, Weights], memory_bytes: float | None) -> Collected:
    """The usable points of one way of offloading. `memory_bytes`: the GPU's, if known."""
    known = model_weights(measured, weights)
    rows: list[MeasuredRow] = [*points_of(measured), *measured.switch, *measured.models]
    chosen = {row.model_key: known[row.model_key] for row in rows}
    shapes = {key: shape_of(each, known) for key, each in chosen.items()}

    def usable(row: Point) -> bool:
        return row.offload == offload or row.layers == shapes[row.model_key].layers

    steps = grouped(filter(usable, measured.decode), attrgetter("model_key"))
    prompts = grouped(
        (row for row in measured.prefill if row.chunk_tokens is None and usable(row)), attrgetter("model_key")
    )
    found = Collected(offload, _head_first(measured, chosen), shapes, chosen, steps, prompts)
    chunked = sum(prompt.chunk_tokens is not None for prompt in measured.prefill)
    if chunked:
        found.left_out.append(f"{chunked} prompts cut into chunks (the tables hold whole prompts)")
    if memory_bytes is not None:
        _drop_spilled(found, memory_bytes)
    return found


def _head_first(measured: Measured, weights: Mapping[Key, Weights]) -> bool:
    """Whether the engine moves the output head to the GPU before the layers: as most of its partial points say."""
    partly = [row for row in points_of(measured) if 0 < row.layers < weights[row.model_key].layers]
    heads = [row.head_on_gpu(weights[row.model_key].layers) for row in partly]
    if not heads:
        return measured.facts.get("head") == "first"
    return sum(heads) * 2 > len(heads)


def _drop_spilled(found: Collected, memory_bytes: float) -> None:
    for key in found.keys:
        steps = _unspilled(found, key, found.decode_rows.pop(key, []), memory_bytes)
        prompts = _unspilled(found, key, found.prefill_rows.pop(key, []), memory_bytes)
        found.decode_rows |= {key: steps} if steps else {}
        found.prefill_rows |= {key: prompts} if prompts else {}


def _unspilled(found: Collected, key: Key, rows: Sequence[P], memory_bytes: float) -> list[P]:
    shape, kept = found.shapes[key], set[P]()
    best: dict[tuple[object, ...], float] = {}
    for row in sorted(rows, key=lambda each: used_bytes(shape, each)):
        share = used_bytes(shape, row) / memory_bytes
        where = (row.batch, row.context) if isinstance(row, DecodePoint) else (row.prompt_tokens,)
        seconds = row_seconds(row)
        spilled = share > SPILL_SHARE and seconds > SPILL_FACTOR * best.get(where, seconds)
        if share > 1 or spilled:
            why = "more than the GPU has" if share > 1 else "and slower than with fewer layers"
            found.left_out.append(
                f"{row.where or key[0]}: {row.layers} layers of {key[0]} {key[1]} fill {share:.0%} of the GPU, {why}"
            )
            continue
        best[where] = min(seconds, best.get(where, seconds))
        kept.add(row)
    return [row for row in rows if row in kept]


def used_bytes(shape: Shape, row: Point) -> float:
    """Weight and KV bytes on the GPU at a point."""
    head = shape.head_bytes if row.head_on_gpu(shape.layers) else 0.0
    tokens = row.batch * row.context if isinstance(row, DecodePoint) else row.prompt_tokens
    return row.layers * (shape.layer_bytes + tokens * shape.kv_bytes) + head


def row_seconds(row: Point) -> float:
    return row.step_s if isinstance(row, DecodePoint) else row.prefill_s


def spread(row: Point) -> float:
    """Relative standard error of a median, by its p10 and p90."""
    if row.p10_s is None or row.p90_s is None:
        return LEAST_NOISE
    return float((row.p90_s - row.p10_s) / 2.56 / row_seconds(row) / np.sqrt(row.repeats or 1))


def _column(rows: Sequence[Point], name: str) -> np.ndarray:
    return np.array([getattr(row, name) for row in rows], dtype=float)


def _series(shape: Shape, rows: Sequence[Point]) -> MeasuredSeries:
    layers, heads = _column(rows, "layers"), np.array([row.head_on_gpu(shape.layers) for row in rows])
    if isinstance(rows[0], DecodePoint):
        at: Steps | Prompts = Steps(layers, heads, _column(rows, "batch"), _column(rows, "context"))
    else:
        at = Prompts(layers, heads, _column(rows, "prompt_tokens"))
    noise = np.clip([spread(row) for row in rows], LEAST_NOISE, _MOST_NOISE)
    return MeasuredSeries(shape, at, np.array([row_seconds(row) for row in rows]), noise)
