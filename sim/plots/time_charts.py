"""What lay on one GPU over time: memory by model as areas, and below it the residency of each model as a strip.

Draws plain numbers for a Chart, as charts.py does. Called by sim.report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.plots.charts import shortened
from sim.plots.style import INK, MUTED, Pen, marked

Floats = NDArray[np.float64]
_PALEST = 0.2
_SHADES = 8


@dataclass(frozen=True)
class Strip:
    """One model on one GPU, a number for each cell of the grid; residency counts where `held`."""

    name: str
    pen: Pen
    gigabytes: Floats
    residency: Floats
    held: NDArray[np.bool_]


def memory_over_time(
    edges: Floats, strips: Sequence[Strip], capacity: float | None, label: str
) -> Callable[[Any], None]:
    """edges: of the grid's cells, in the unit that `label` names. capacity: usable gigabytes; None: without end."""

    def draw(figure: Any) -> None:
        rows = max(len(strips), 1)
        upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [1.25, 0.2 * rows]})
        under = np.zeros(len(edges) - 1)
        for strip in strips:
            over = under + strip.gigabytes
            cuts = _cuts(over, under)
            base, look = under[cuts[:-1]], {"color": strip.pen.colour, "linewidth": 0}
            area = upper.stairs(over[cuts[:-1]], edges[cuts], baseline=base, fill=True, **look)
            marked(area, strip.pen.number, "memory")
            under = over
        if capacity is not None:
            upper.axhline(capacity, color=INK, linewidth=1, dashes=(4, 3))
        upper.set_ylim(0, 1.06 * max(capacity or 0.0, float(under.max(initial=0.0)), 1e-9))
        upper.set_ylabel("GB")
        upper.tick_params(axis="x", length=0)
        for row, strip in enumerate(strips):
            _strip(lower, row, strip, edges)
        lower.set_yticks(range(len(strips)), [shortened(strip.name, 22) for strip in strips])
        lower.set_ylim(rows - 0.5, -0.5)
        lower.tick_params(axis="y", length=0, labelcolor=INK, labelsize=8)
        lower.grid(visible=False)
        lower.set_xlim(edges[0], edges[-1])
        lower.set_xlabel(label)
        if not strips:
            lower.text(0.5, 0.5, "nothing was ever loaded", transform=lower.transAxes, color=MUTED, ha="center")

    return draw


def _cuts(*levels: Floats) -> NDArray[np.int64]:
    """The edges between which no level changes, so that no more is drawn than can be seen."""
    changed = np.any([np.abs(np.diff(level)) > 0.01 for level in levels], axis=0)
    return np.concatenate([[0], np.flatnonzero(changed) + 1, [len(levels[0])]])


def _strip(panel: Any, row: int, strip: Strip, edges: Floats) -> None:
    """Bars wherever the model is on the GPU, the darker the more of its layers are."""
    shade = np.where(strip.held, np.ceil(np.clip(strip.residency, 0.0, 1.0) * _SHADES - 1e-9), 0).astype(int)
    changes = np.flatnonzero(np.diff(shade)) + 1
    starts, ends = np.append(0, changes), np.append(changes, len(shade))
    for level in range(1, _SHADES + 1):
        pairs = [(edges[s], edges[e]) for s, e in zip(starts, ends, strict=True) if shade[s] == level]
        spans = [(start, end - start) for start, end in pairs]
        if spans:
            alpha = _PALEST + (1 - _PALEST) * (level - 1) / (_SHADES - 1)
            bars = panel.broken_barh(spans, (row - 0.36, 0.72), color=strip.pen.colour, alpha=alpha, linewidth=0)
            marked(bars, strip.pen.number, f"strip{level}")
