"""The points of a measured folder as the fit wants them: one series a model, for one way of offloading.

Points that cannot be what they seem (more weights on the GPU than it has memory) are left out, and it is said which.
`fill` and `check` call it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

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

    def head_on_gpu(self, key: Key, layers: int) -> bool:
        """Where the tables of this engine have the head when so many layers are on the GPU."""
        return layers == self.shapes[key].layers or (self.head_first and layers > 0)

    def on_grid(self, row: Point) -> bool:
        """Whether the row is a point of the tables: its head is where the tables have it."""
        key = (row.model, row.quantization)
        return row.head_on_gpu(self.shapes[key].layers) == self.head_on_gpu(key, row.layers)


def offloads(measured: Measured, weights: Mapping[Key, Weights]) -> list[str]:
    """The ways of offloading that were measured; `cpu` where nothing was ever outside the GPU."""
    known = model_weights(measured, weights)
    partly = [row for row in points_of(measured) if row.layers < known[_key(row)].layers]
    found = [word for word in OFFLOADS if any(row.offload == word for row in partly)]
    return found or list(measured.offload[:1]) or ["cpu"]


def points_of(measured: Measured) -> list[Point]:
    """Decode steps and prompts."""
    return [*measured.decode, *measured.prefill]


def model_weights(measured: Measured, weights: Mapping[Key, Weights]) -> dict[Key, Weights]:
    """The models of a folder: its own models.csv first, then `weights`."""
    return {**weights, **{(row.model, row.quantization): row.weights for row in measured.models}}


def collect(measured: Measured, offload: str, weights: Mapping[Key, Weights], memory_bytes: float | None) -> Collected:
    """The usable points of one way of offloading. `memory_bytes`: the GPU's, if known."""
    known = model_weights(measured, weights)
    rows: list[MeasuredRow] = [*points_of(measured), *measured.switch, *measured.models]
    chosen = {_key(row): known[_key(row)] for row in rows}
    found = Collected(
        offload, _head_first(measured, chosen), {k: shape_of(w, known) for k, w in chosen.items()}, chosen
    )
    for row in measured.decode:
        if row.offload == offload or row.layers == chosen[_key(row)].layers:
            found.decode_rows.setdefault(_key(row), []).append(row)
    for prompt in measured.prefill:
        if prompt.chunk_tokens is None and (prompt.offload == offload or prompt.layers == chosen[_key(prompt)].layers):
            found.prefill_rows.setdefault(_key(prompt), []).append(prompt)
    chunked = sum(prompt.chunk_tokens is not None for prompt in measured.prefill)
    if chunked:
        found.left_out.append(f"{chunked} prompts cut into chunks (the tables hold whole prompts)")
    if memory_bytes is not None:
        _drop_spilled(found, memory_bytes)
    return found


def _key(row: MeasuredRow) -> Key:
    return (row.model, row.quantization)


def _head_first(measured: Measured, weights: Mapping[Key, Weights]) -> bool:
    """Whether the engine moves the output head to the GPU before the layers: as most of its partial points say."""
    partly = [row for row in points_of(measured) if 0 < row.layers < weights[_key(row)].layers]
    heads = [row.head_on_gpu(weights[_key(row)].layers) for row in partly]
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
    shape, kept = found.shapes[key], []
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
        kept.append(row)
    order = {id_of(row): place for place, row in enumerate(rows)}
    return sorted(kept, key=lambda row: order[id_of(row)])


def id_of(row: Point) -> tuple[object, ...]:
    return tuple(getattr(row, column) for column in row.key)


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
