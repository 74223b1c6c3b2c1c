"""Full grids of one model from a fit: knots, seconds, how each row is known, and the laws that a table must obey.

A measured point stays as it was measured; all else is the fit, bent where a table would contradict itself. `fill`
writes the rows; this module knows no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sim.common.errors import ProfileError
from sim.profiles.profile import Weights
from sim.profiling.collect import Collected, Point, row_seconds
from sim.profiling.fitting import Fit, Key, MeasuredSeries
from sim.profiling.physics import Array, Prompts, Shape, Steps
from sim.profiling.points import DecodePoint

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# A token more than a micro-batch is another pass over streamed weights.
PROMPTS = (0, 128, 256, 512, 513, 1024, 1025, 2048, 4096, 8192, 12288, 16384, 24576, 32768, 49152, 65536, 98304, 131072)
MOST_CONTEXTS = 12
# Measured layers may beat their share of the full model by noise; by more than this, one of the two rows is wrong.
MENDABLE = 0.25
# What is more than its share must be so by this: rows are written rounded, and the simulator subtracts the two.
LEAST_MORE = 1e-6
# Mean error of interior points of published sweeps, predicted from their two ends (profiles/README.md).
END_POINTS_ERROR = 0.04
ANALYTIC_SOURCE = "hybrid-model"
Row = dict[str, str]
T = TypeVar("T")


@dataclass(frozen=True)
class Known:
    """What kinds of points the table has: these rows are fitted, others analytic."""

    outside: bool  # layers outside the GPU
    crowd: bool  # batches above 1, or prompts
    outside_crowd: bool
    contexts: bool  # more than one
    longest: float

    @classmethod
    def of(cls, points: Mapping[Key, MeasuredSeries]) -> Known:
        outside = crowd = both = contexts = False
        longest = 0.0
        for each in points.values():
            partly = each.at.layers < each.shape.layers
            outside |= bool(partly.any())
            if isinstance(each.at, Steps):
                many = each.at.batch > 1
                crowd |= bool((many & ~partly).any())
                both |= bool((many & partly).any())
                contexts |= len(np.unique(each.at.context)) > 1
                longest = max(longest, float(each.at.context.max()))
            else:
                crowd, both = True, outside
                contexts |= len(np.unique(each.at.tokens)) > 1
                longest = max(longest, float(each.at.tokens.max()))
        return cls(outside, crowd, both, contexts, longest)

    def covers(self, partly: bool, many: bool, length: float) -> bool:
        if partly and not self.outside:
            return False
        if many and not (self.outside_crowd if partly else self.crowd):
            return False
        return self.contexts or length <= 2 * max(self.longest, 256.0)


@dataclass(frozen=True)
class FittedGrid:
    """One model's full grid while it is made: seconds, errors (NaN: unknown) and kinds, indexed by the knots."""

    axes: tuple[tuple[float, ...], ...]
    seconds: Array
    error: Array
    kind: NDArray[np.str_]
    source: NDArray[np.object_]


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most so many of the items, from all over the list."""
    return [items[place] for place in np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)]


def places_of(axes: Sequence[Sequence[float]]) -> Array:
    """Every place of a grid, a row each, the last axis fastest."""
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(axes)).astype(float)


def knots(kind: str, weights: Weights, rows: Sequence[Point]) -> tuple[tuple[float, ...], ...]:
    """Layers (and batches) and contexts or prompts: those measured, and as many more as keep interpolation close.

    Times are linear in layers between 1 and L-1, and in context; both may bend at measured points.
    """
    layers = sorted({0, min(1, weights.layers - 1), weights.layers - 1, weights.layers, *(row.layers for row in rows)})
    limit = weights.max_context
    if kind == "decode":
        contexts = sorted({round(row.context) for row in rows if isinstance(row, DecodePoint) and row.context <= limit})
        batches = sorted({*BATCHES, *(row.batch for row in rows if isinstance(row, DecodePoint))})
        return tuple(layers), tuple(batches), tuple(sorted({0, limit, *evenly(contexts, MOST_CONTEXTS)}))
    tokens = [row.prompt_tokens for row in rows if not isinstance(row, DecodePoint) and row.prompt_tokens <= limit]
    return tuple(layers), tuple(sorted({*(p for p in PROMPTS if p < limit), limit, *tokens}))


@dataclass(frozen=True)
class Maker:
    """Makes the grids of one table. `transfer`: error of models that were not measured here, if it is known."""

    found: Collected
    fit: Fit
    known: Known
    transfer: float | None
    kind: str  # decode | prefill

    def grid(self, key: Key, shape: Shape, weights: Weights, rows: Sequence[Point]) -> FittedGrid:
        """The full grid of a model, `rows` its measured points. Raises ProfileError: points against a table's law."""
        rows = [row for row in rows if self.found.on_grid(row)]
        axes = knots(self.kind, weights, rows)
        places = places_of(axes)
        at = (Steps if self.kind == "decode" else Prompts).of(places, shape.layers, self.found.head_first)
        seconds, error = self.fit.seconds(key, shape, at)
        partly = places[:, 0] < shape.layers
        many = places[:, 1] > 1
        covered = np.array([self.known.covers(*each) for each in zip(partly, many, places[:, -1], strict=True)])
        measured = key in self.fit.residuals
        if not measured:
            covered &= self.transfer is not None
            error = np.full(len(seconds), np.nan if self.transfer is None else self.transfer)
        elif len({row.layers for row in rows}) < 3:
            error = np.where(partly & (places[:, 0] > 0), np.hypot(error, END_POINTS_ERROR), error)
        form = tuple(len(axis) for axis in axes)
        sources = sources_of(rows) or sources_of(
            chain(*self.found.decode_rows.values(), *self.found.prefill_rows.values())
        )
        grid = FittedGrid(
            axes,
            seconds.reshape(form),
            np.where(covered, error, np.nan).reshape(form),
            np.where(covered, "fitted", "analytic").astype("<U12").reshape(form),
            np.where(covered, sources, ANALYTIC_SOURCE).astype(object).reshape(form),
        )
        return _obeying(_with_points(grid, rows), rows)


def _place(grid: FittedGrid, row: Point) -> tuple[int, ...] | None:
    # A table's contexts are whole numbers; a mean context of measured sequences need not be.
    if isinstance(row, DecodePoint):
        point: tuple[int, ...] = (row.layers, row.batch, round(row.context))
    else:
        point = (row.layers, row.prompt_tokens)
    pairs = list(zip(grid.axes, point, strict=True))
    return tuple(axis.index(value) for axis, value in pairs) if all(value in axis for axis, value in pairs) else None


def _with_points(grid: FittedGrid, rows: Sequence[Point]) -> FittedGrid:
    for row in rows:
        place = _place(grid, row)
        if place is not None:
            grid.seconds[place] = row_seconds(row)
            grid.kind[place] = row.kind
            grid.source[place] = row.source
            grid.error[place] = (row.p90_s - row.p10_s) / 2 / row_seconds(row) if row.p10_s and row.p90_s else np.nan
    return grid


def _obeying(grid: FittedGrid, rows: Sequence[Point]) -> FittedGrid:
    """The grid with its laws kept: k layers take at least k/L of the full time; longer and more is not faster."""
    seconds, layers = grid.seconds, np.array(grid.axes[0])
    exact = np.isin(grid.kind, ["measured", "published"])
    # Not beyond what measured parts of the model allow: where the full model was never run, it is only a guess.
    share = (layers / layers[-1]).reshape(-1, *(1,) * (seconds.ndim - 1))
    with np.errstate(divide="ignore"):
        most = np.where(exact & (share > 0), seconds / share, np.inf).min(axis=0)
    full = np.where(exact[-1], seconds[-1], np.minimum(seconds[-1], most * (1 - 2 * LEAST_MORE)))
    seconds[-1] = full
    for axis in range(1, seconds.ndim):  # fitted rows give way to measured ones before them
        rising = np.maximum.accumulate(seconds, axis=axis)
        seconds = np.where(exact, seconds, rising)
    floor = share * seconds[-1]
    short = seconds < floor * (1 + LEAST_MORE)
    short[-1] = False
    wrong = short & exact & (seconds < floor * (1 - MENDABLE))
    if wrong.any():
        _refuse(grid, rows, tuple(int(each[0]) for each in np.nonzero(wrong)))
    kind, source, error, mended = grid.kind.copy(), grid.source.copy(), grid.error.copy(), short & exact
    kind[mended] = "fitted"
    source[mended] = [f"{text}, raised to its share of the full model" for text in source[mended]]
    error[mended] = (floor / seconds - 1)[mended]
    seconds = np.where(short, floor * (1 + 10 * LEAST_MORE), seconds)
    return replace(grid, seconds=seconds, kind=kind, source=source, error=error)


def _refuse(grid: FittedGrid, rows: Sequence[Point], place: tuple[int, ...]) -> None:
    row = next(each for each in rows if _place(grid, each) == place)
    full_s, total = grid.seconds[(-1, *place[1:])], grid.axes[0][-1]
    raise ProfileError(
        f"{row.where or row.model}: {row.layers} of {total:g} layers of {row.model} {row.quantization} take "
        f"{row_seconds(row):.4g} s, but all take {full_s:.4g} s: less than their share; was the GPU's memory full? "
        "Remove or measure again the row of the full model"
    )


def table_rows(key: Key, grid: FittedGrid) -> list[Row]:
    """The rows of a grid, as the columns of decode.csv or prefill.csv."""
    names = ("layers", "batch", "context") if len(grid.axes) == 3 else ("layers", "prompt_tokens")
    value = "step_s" if len(grid.axes) == 3 else "prefill_s"
    rows = []
    for place in np.ndindex(*grid.seconds.shape):
        point = {name: f"{axis[at]:.10g}" for name, axis, at in zip(names, grid.axes, place, strict=True)}
        seconds, error = float(grid.seconds[place]), float(grid.error[place])
        exact = grid.kind[place] in ("measured", "published")
        row = {"model": key[0], "quantization": key[1], **point, value: repr(seconds) if exact else f"{seconds:.8g}"}
        row |= {"kind": str(grid.kind[place]), "source": str(grid.source[place])}
        rows.append(row | {"error": "" if np.isnan(error) else f"{error:.3g}"})
    return rows


def sources_of(rows: Iterable[Any]) -> str:
    """The first three sources of the rows, joined as tables have them."""
    return "+".join(list(dict.fromkeys(row.source for row in rows))[:3])
