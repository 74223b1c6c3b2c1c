"""The kinds of figures that a report is made of: curves, ranges, stacked bars, differences, a front of trade-offs.

Each function returns what draws plain numbers on a matplotlib figure, for a Chart; it knows nothing of runs.
Names stand beside what they name wherever there is room. Called by sim.report.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from sim.plots.style import CATEGORIES, GRID, INK, MUTED, OTHER, PAPER, Pen, marked

Draw = Callable[[Any], None]
ROW_IN = 0.235  # of a figure with a row for each name
MARGIN_IN = 0.85  # its axis and legend
_LONGEST_NAME = 30


@dataclass(frozen=True)
class LineSeries:
    """Points of one series; `low` and `high` are the ends of its intervals, if it has any."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Axis:
    """A label with its unit, and how numbers are written on the axis."""

    label: str
    log: bool = False
    text: Callable[[float], str] | None = None
    low: float | None = None
    high: float | None = None
    ticks: Sequence[float] | None = None
    line: float | None = None  # a value to be seen at a glance, such as a goal


def shortened(name: str, most: int = _LONGEST_NAME) -> str:
    """A name that fits beside a bar."""
    return name if len(name) <= most else name[: most - 1] + "…"


def rows_in(rows: int, legend_rows: int = 1) -> float:
    """How high a figure with so many rows is, in inches."""
    return MARGIN_IN + 0.18 * legend_rows + ROW_IN * max(rows, 2)


def _prepare(panel: Any, x: Axis, y: Axis) -> None:
    for axis, which, setter in ((x, panel.xaxis, panel.set_xlim), (y, panel.yaxis, panel.set_ylim)):
        which.set_label_text(axis.label)
        if axis.log:
            (panel.set_xscale if which is panel.xaxis else panel.set_yscale)("log")
            _log_ticks(which)
        if axis.low is not None or axis.high is not None:
            setter(axis.low, axis.high)
        if axis.line is not None:
            (panel.axvline if which is panel.xaxis else panel.axhline)(axis.line, color=INK, linewidth=1, dashes=(4, 3))
        if axis.ticks is not None:
            which.set_ticks(axis.ticks)
        if axis.text is not None:
            which.set_major_formatter(partial(_written, axis.text))


def _written(write: Callable[[float], str], value: float, _: object) -> str:
    return write(float(value))


def _log_ticks(which: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator  # noqa: PLC0415

    low, high = which.get_view_interval()
    decades = math.log10(high / low) if low > 0 else 1
    which.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 1.8 else (1.0,), numticks=9))
    which.set_minor_locator(NullLocator())
    which.set_minor_formatter(NullFormatter())


def _legend(figure: Any, handles: Sequence[Any], labels: Sequence[str], columns: int = 3) -> None:
    if handles:
        names = [shortened(label, 34) for label in labels]
        columns = min(columns, 2 if max(map(len, names)) > 16 else 3)
        figure.legend(
            handles, names, loc="outside lower center", ncols=columns, frameon=False, handlelength=2.2,
            columnspacing=1.4, labelspacing=0.25, borderpad=0.1,
        )  # fmt: skip


def curves(found: Sequence[LineSeries], pens: Mapping[str, Pen], x: Axis, y: Axis, dots: bool = False) -> Draw:
    """A line for each series, its intervals as upright strokes; the strong ones in the legend, the rest grey."""

    def draw(figure: Any) -> None:
        panel = figure.subplots()
        handles, labels = [], []
        for curve in found:
            pen = pens[curve.name]
            points = dots and pen.strong
            (line,) = panel.plot(
                curve.x, curve.y, color=pen.colour, linestyle=pen.dash, linewidth=pen.width, zorder=pen.order,
                marker=pen.marker if points else "", markersize=4,
            )  # fmt: skip
            marked(line, pen.number, "line")
            if curve.low is not None and curve.high is not None and pen.strong:
                bars = panel.vlines(curve.x, curve.low, curve.high, color=pen.colour, linewidth=1.1, alpha=0.6)
                marked(bars, pen.number, "intervals")
            if pen.strong:
                handles.append(line)
                labels.append(curve.name)
        grey = [curve for curve in found if not pens[curve.name].strong]
        if grey:
            handles.append(panel.plot([], [], color=OTHER, linewidth=0.8)[0])
            labels.append(f"{len(grey)} others")
        _prepare(panel, x, y)
        if len(found) > 1:
            _legend(figure, handles, labels)

    return draw


def ranges(found: Mapping[str, Sequence[float | None]], marks: Sequence[str], pens: Mapping[str, Pen], x: Axis) -> Draw:
    """A row for each name: a mark for each number (such as p50, p90, p99), and a line through them."""

    def draw(figure: Any) -> None:
        panel = figure.subplots()
        looks = [
            {"marker": shape, "markersize": size, "mew": 1.8, "linestyle": ""}
            for shape, size in (("o", 5), ("d", 5), ("|", 8))
        ]
        for row, (name, values) in enumerate(found.items()):
            known = [value for value in values if value is not None]
            if not known:
                continue
            pen = pens[name]
            colour = pen.colour
            line = panel.plot([min(known), max(known)], [row, row], color=colour, linewidth=2, zorder=2)[0]
            marked(line, pen.number, "range")
            for at, value in enumerate(values):
                if value is not None:
                    dot = panel.plot(value, row, color=colour, **looks[at % len(looks)])[0]
                    marked(dot, pen.number, f"dot{at}")
        _rows(panel, list(found))
        _prepare(panel, x, Axis(""))
        handles = [panel.plot([], [], color=MUTED, **look)[0] for look in looks[: len(marks)]]
        _legend(figure, handles, marks)

    return draw


def stacks(found: Mapping[str, Sequence[float]], parts: Mapping[str, str], x: Axis, numbers: Mapping[str, int]) -> Draw:
    """A horizontal bar for each name, of the given parts ({name: colour}); `numbers` say which series a name is."""

    def draw(figure: Any) -> None:
        panel = figure.subplots()
        rows = np.arange(len(found))
        ends = np.zeros(len(found))
        handles, labels = [], []
        table = np.array([[max(value, 0.0) for value in values] for values in found.values()]).reshape(len(found), -1)
        for at, (part, colour) in enumerate(parts.items()):
            sizes = table[:, at]
            if not sizes.any():
                continue
            bars = panel.barh(rows, sizes, left=ends, height=0.74, color=colour, edgecolor=PAPER, linewidth=0.5)
            for name, bar in zip(found, bars, strict=True):
                if name in numbers:
                    marked(bar, numbers[name], f"bar{at}")
            ends = ends + sizes
            handles.append(bars)
            labels.append(part)
        _rows(panel, list(found))
        panel.set_xlim(0, x.high if x.high is not None else max(float(ends.max(initial=0.0)) * 1.03, 1e-12))
        _prepare(panel, Axis(x.label, text=x.text), Axis(""))
        _legend(figure, handles, labels)

    return draw


def _rows(panel: Any, names: Sequence[str]) -> None:
    """A row for each name, the first on top."""
    panel.set_yticks(range(len(names)), [shortened(name) for name in names])
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.tick_params(axis="y", length=0, labelcolor=INK)
    panel.grid(visible=False, axis="y")


def differences(found: Mapping[str, tuple[float, float, float]], pens: Mapping[str, Pen], x: Axis) -> Draw:
    """A row for each name: a difference and its interval (value, low, high) against nought."""

    def draw(figure: Any) -> None:
        panel = figure.subplots()
        panel.axvline(0, color=INK, linewidth=1)
        most = _room(found)
        for row, (name, (value, low, high)) in enumerate(found.items()):
            pen = pens[name]
            if abs(value) > most:
                text = x.text(value) if x.text is not None else f"{value:+.3g}"
                side, shift = ("right", -3) if value > 0 else ("left", 3)
                label = panel.annotate(
                    f"{text} ▸" if value > 0 else f"◂ {text}", (most if value > 0 else -most, row),
                    (shift, 0), textcoords="offset points", ha=side, va="center", fontsize=8,
                    bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1},
                )  # fmt: skip
                marked(label, pen.number, "beyond")
                continue
            line = panel.plot([low, high], [row, row], color=pen.colour, linewidth=2.2, solid_capstyle="butt")[0]
            marked(line, pen.number, "interval")
            fill = pen.colour if low > 0 or high < 0 else PAPER
            dot = panel.plot(value, row, "o", color=pen.colour, markersize=5.5, mew=1.5, mfc=fill)
            marked(dot[0], pen.number, "difference")
        _rows(panel, list(found))
        _prepare(panel, x, Axis(""))
        if most < math.inf:
            low, high = panel.get_xlim()
            panel.set_xlim(max(low, -most), min(high, most))

    return draw


def _room(found: Mapping[str, tuple[float, float, float]]) -> float:
    """Up to where differences are drawn: a few far away would leave no room to see the others. Infinite: all fit."""
    reach = [max(abs(low), abs(high)) for _, low, high in found.values()]
    usual = 1.5 * float(np.quantile(reach, 0.75))
    return usual if max(reach) > 2.5 * usual > 0 else math.inf


@dataclass(frozen=True)
class Spot:
    """A point of a trade-off; `front`: nothing else is better in every respect."""

    name: str
    x: float
    y: float
    front: bool


def front(found: Sequence[Spot], pens: Mapping[str, Pen], x: Axis, y: Axis) -> Draw:
    """Trade-offs as points: filled and named on the front, hollow behind it."""

    def draw(figure: Any) -> None:
        panel = figure.subplots()
        handles, labels = [], []
        for spot in sorted(found, key=lambda spot: pens[spot.name].order):
            pen = pens[spot.name]
            dot = panel.plot(
                spot.x, spot.y, linestyle="", marker=pen.marker if pen.strong else "o", color=pen.colour,
                markersize=8 if pen.strong else 5, markerfacecolor=pen.colour if spot.front else "none", mew=1.4,
                zorder=pen.order,
            )[0]  # fmt: skip
            marked(dot, pen.number, "spot")
            if pen.strong:
                handles.append(dot)
                labels.append(spot.name)
        _prepare(panel, x, y)
        panel.margins(0.12)
        if not x.log:
            panel.locator_params(axis="x", nbins=5)
        behind = panel.plot([], [], linestyle="", marker="o", color=OTHER, markersize=5, markerfacecolor="none")[0]
        if any(not pens[spot.name].strong for spot in found):
            handles.append(behind)
            labels.append("others")
        ordered = sorted(zip(labels, handles, strict=True), key=lambda pair: labels.index(pair[0]))
        _legend(figure, [handle for _, handle in ordered], [label for label, _ in ordered])
        panel.grid(color=GRID)

    return draw


def part_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each part of a stack, in order."""
    return {name: CATEGORIES[at % len(CATEGORIES)] for at, name in enumerate(names)}
