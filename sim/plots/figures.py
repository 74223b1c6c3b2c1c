"""Pictures of a table of numbers, for notebooks: curves, stacked bars, and differences with intervals.

They look like the figures of runs and reports, whose drawing (charts.py) they use, and are shown by any notebook. The
numbers are a DataFrame; what they mean is said by its column names and the axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from sim.plots.charts import Axis, Draw, LineSeries, curves, differences, part_colours, rows_in, stacks
from sim.plots.run_figures import RunFigure
from sim.plots.style import WIDTH_IN, drawing, pens

if TYPE_CHECKING:
    import pandas as pd

_WIDE = 1.5 * WIDTH_IN


def draw_lines(frame: pd.DataFrame, title: str, x: str | Axis, y: str | Axis, dots: bool = False) -> Figure:
    """A curve for each column over the index; missing numbers are left out. `dots` marks each number."""
    found = []
    for name in frame.columns:
        column = frame[name].dropna()
        found.append(LineSeries(str(name), column.index.tolist(), column.tolist()))
    look = pens([curve.name for curve in found])
    return _figure(title, curves(found, look, _axis(x), _axis(y), dots), 3.8)


def draw_bars(frame: pd.DataFrame, title: str, x: str | Axis) -> Figure:
    """A horizontal bar for each row, stacked of its columns; a missing number has no part in it."""
    table = frame.fillna(0.0).to_numpy()
    rows = {str(name): [float(value) for value in row] for name, row in zip(frame.index, table, strict=True)}
    colours = part_colours([str(name) for name in frame.columns])
    draw = stacks(rows, colours, _axis(x), {})

    def without_legend(figure: Any) -> None:
        draw(figure)
        for legend in figure.legends:
            legend.remove()

    legend_rows = -(-len(colours) // 3)
    drawn = draw if len(colours) > 1 else without_legend  # of one column: the axis says what it is
    return _figure(title, drawn, rows_in(len(rows), legend_rows) + 0.3)


def draw_differences(rows: Mapping[str, tuple[float, float, float]], title: str, x: str | Axis) -> Figure:
    """A row for each name: a difference and the ends of its interval (value, low, high) against nought; the dot is
    hollow where the interval holds nought."""
    return _figure(title, differences(rows, pens(list(rows)), _axis(x)), rows_in(len(rows), 1) + 0.3)


def _axis(given: str | Axis) -> Axis:
    return given if isinstance(given, Axis) else Axis(given)


def _figure(title: str, draw: Draw, height_in: float) -> Figure:
    with drawing(title):
        figure = RunFigure(figsize=(_WIDE, height_in), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=10)
        draw(figure)
    return figure
