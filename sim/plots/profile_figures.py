"""One page of what is known of hardware: throughput against residency, what a preemption costs, prefill, and n*.

A column for each table, four panels in it; with one table two beside each other. Names stand at the ends of their
lines. profile_cli calls `plot_profiles` with the numbers of profiling.portrait.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from pathlib import Path
from typing import Any

from sim.plots.style import CATEGORIES, GRID, INK, MUTED, PAPER, drawing
from sim.plots.trace_figures import check_plot, save_figure
from sim.profiling.figure_data import PARTS, ModelPortrait, ProfileCurve, TablePortrait

_PART_COLOURS = {part: CATEGORIES[at] for part, at in zip(PARTS, (4, 2, 1, 0, 3), strict=True)}
_GAP = 0.052  # between two names at the ends of lines, of a panel's height
_SIZES = {1: (12.5, 9.6), 2: (13.5, 17.5), 3: (19.0, 17.5)}


def plot_profiles(tables: Sequence[TablePortrait], path: Path) -> None:
    """Draw and write the page; equal numbers give equal bytes (.png). Raises ConfigError: a file that cannot be."""
    check_plot(path)
    from matplotlib.figure import Figure  # noqa: PLC0415
    from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: PLC0415

    with drawing("profiles"):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1, wspace=0.03, hspace=0.03)
        figure = Figure(figsize=_SIZES[len(tables)], layout=layout)
        columns = figure.subfigures(1, len(tables), squeeze=False)[0]
        colours = _colours(tables)
        for part, table in zip(columns, tables, strict=True):
            _column(part, table, colours, alone=len(tables) == 1)
        save_figure(figure, path, "--out")


def _colours(tables: Sequence[TablePortrait]) -> dict[str, str]:
    """A colour for each model, the same in all columns; beyond eight they come again, told apart by their names."""
    names = list(dict.fromkeys(model.name for table in tables for model in table.models))
    return {name: CATEGORIES[place % len(CATEGORIES)] for place, name in enumerate(names)}


def _column(part: Any, table: TablePortrait, colours: dict[str, str], alone: bool) -> None:
    left_out = f"; {table.left_out} more in the tables" if table.left_out else ""
    part.suptitle(f"{table.title}{left_out}", x=0.01, ha="left", fontsize=12, fontweight="bold")
    panels = part.subplots(2, 2) if alone else part.subplots(4, 1, squeeze=False).reshape(2, 2)
    _throughput(panels[0, 0], table.models, colours)
    _preemption(panels[0, 1], table.models)
    _prefill(panels[1, 0], table.models, colours)
    _worth(panels[1, 1], table.models, colours)


def _titled(panel: Any, title: str, x: str, y: str) -> None:
    panel.set_title(title, loc="left", fontsize=10.5, color=INK, pad=9)
    panel.set_xlabel(x)
    panel.set_ylabel(y)


def _throughput(panel: Any, models: Sequence[ModelPortrait], colours: dict[str, str]) -> None:
    contexts = sorted({model.context for model in models})
    words = f"{contexts[0]:,.0f}" if len(contexts) == 1 else f"{contexts[0]:,.0f} to {contexts[-1]:,.0f}"
    _titled(panel, f"Throughput of one sequence at {words} tokens of context", "layers on the GPU", "tokens/s")
    panel.set_yscale("log")
    for model in models:
        _line(panel, model.throughput, colours[model.name])
    _plain_log(panel, "y")
    panel.set_xlim(-0.015, 1.015)
    _per_cent(panel)
    _names(panel, [(model.name, model.throughput.y[-1], colours[model.name]) for model in models])


def _line(panel: Any, curve: ProfileCurve, colour: str) -> None:
    """A line, its band of one error, and measured points over it."""
    if any(curve.error):
        low = [y / (1 + error) for y, error in zip(curve.y, curve.error, strict=True)]
        high = [y * (1 + error) for y, error in zip(curve.y, curve.error, strict=True)]
        panel.fill_between(curve.x, low, high, color=colour, alpha=0.16, linewidth=0, zorder=2)
    panel.plot(curve.x, curve.y, color=colour, linewidth=1.7, zorder=3)
    if curve.points:
        x, y = zip(*curve.points, strict=True)
        panel.plot(x, y, "o", color=colour, markersize=4.6, markeredgecolor=PAPER, markeredgewidth=0.7, zorder=4)


def _preemption(panel: Any, models: Sequence[ModelPortrait]) -> None:
    from matplotlib.patches import Patch  # noqa: PLC0415

    contexts = sorted({model.preemption_context for model in models})
    _titled(panel, f"Preempting a whole model with {contexts[-1]:,} tokens of KV", "seconds", "")
    panel.grid(visible=False, axis="y")
    most = max(sum(model.preemption.values()) for model in models)
    for row, model in enumerate(models):
        start = 0.0
        for part in PARTS:
            seconds = model.preemption[part]
            panel.barh(row, seconds, 0.66, left=start, color=_PART_COLOURS[part], linewidth=0, zorder=2)
            start += seconds
        share = model.preemption["reload"] / start if start else 0.0
        text = f"{start:.3g} s, reload {share:.0%}"
        panel.text(start + 0.012 * most, row, text, va="center", fontsize=8, color=MUTED)
    panel.set_yticks(range(len(models)), [model.name for model in models])
    panel.tick_params(axis="y", length=0, labelcolor=INK)
    panel.set_ylim(len(models) - 0.45, -0.55)
    panel.set_xlim(0, 1.42 * most)
    handles = [Patch(facecolor=_PART_COLOURS[part], linewidth=0) for part in PARTS]
    panel.legend(
        handles, PARTS, loc="upper center", bbox_to_anchor=(0.45, -0.13), ncols=len(PARTS), frameon=False,
        handlelength=1.0, columnspacing=1.1, handletextpad=0.45, fontsize=8,
    )  # fmt: skip


def _prefill(panel: Any, models: Sequence[ModelPortrait], colours: dict[str, str]) -> None:
    _titled(panel, "Prefill with all layers on the GPU", "prompt tokens", "seconds")
    panel.set_xscale("log")
    panel.set_yscale("log")
    for model in models:
        _line(panel, model.prefill, colours[model.name])
    _plain_log(panel, "x")
    _plain_log(panel, "y")
    _names(panel, [(model.name, model.prefill.y[-1], colours[model.name]) for model in models])


def _worth(panel: Any, models: Sequence[ModelPortrait], colours: dict[str, str]) -> None:
    _titled(panel, "n*: tokens that pay for a full reload", "layers on the GPU now", "tokens")
    whole = [model for model in models if model.worth]
    panel.set_xlim(-0.015, 1.015)
    _per_cent(panel)
    if not whole:
        panel.set_yticks([])
        panel.text(0.5, 0.5, "no model fits this GPU whole", transform=panel.transAxes, ha="center", color=MUTED)
        return
    panel.set_yscale("log")
    for model in whole:
        x, y = zip(*model.worth, strict=True)
        panel.plot(x, y, color=colours[model.name], linewidth=1.7, zorder=3)
    _plain_log(panel, "y")
    _names(panel, [(model.name, model.worth[-1][1], colours[model.name]) for model in whole])
    missing = [model.name for model in models if not model.worth]
    if missing:
        text = f"does not fit whole: {', '.join(missing)}"
        panel.text(0.01, 0.97, text, transform=panel.transAxes, va="top", fontsize=8, color=MUTED)


def _per_cent(panel: Any) -> None:
    panel.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0], ["0%", "20%", "40%", "60%", "80%", "100%"])


def _plain_log(panel: Any, which: str) -> None:
    """Ticks of a logarithmic axis as plain numbers: at 1, 2 and 5 while there is room."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator  # noqa: PLC0415

    axis = panel.xaxis if which == "x" else panel.yaxis
    low, high = axis.get_view_interval()
    wide = log10(high / low) > 2.2
    axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=12))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _names(panel: Any, ends: Sequence[tuple[str, float, str]]) -> None:
    """Each name beside the right edge at the height of its line, moved apart where lines end close together."""
    low, high = (log10(limit) for limit in panel.get_ylim())
    ordered = sorted(ends, key=lambda each: each[1])
    wanted = [(log10(value) - low) / (high - low) for _, value, _ in ordered]
    for (name, _, colour), height, value in zip(ordered, _apart(wanted), wanted, strict=True):
        panel.annotate(
            name, xy=(1.0, min(max(value, 0.0), 1.0)), xytext=(1.03, height), xycoords="axes fraction",
            textcoords="axes fraction", va="center", fontsize=8.2, color=colour, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": GRID, "linewidth": 0.8, "shrinkA": 1, "shrinkB": 1},
        )  # fmt: skip


def _apart(wanted: Sequence[float]) -> list[float]:
    """Rising heights at least _GAP apart, as near to the wanted (rising) ones as moving whole clusters allows."""
    clusters: list[list[float]] = []  # of wanted heights; a cluster is centred on their mean
    for height in wanted:
        clusters.append([height])
        while len(clusters) > 1 and _bottom(clusters[-1]) - _top(clusters[-2]) < _GAP:
            last = clusters.pop()
            clusters[-1] += last
    return [_bottom(cluster) + place * _GAP for cluster in clusters for place in range(len(cluster))]


def _bottom(cluster: Sequence[float]) -> float:
    high = (len(cluster) - 1) * _GAP
    return max(0.0, min(sum(cluster) / len(cluster) - high / 2, 1.0 - high))


def _top(cluster: Sequence[float]) -> float:
    return _bottom(cluster) + (len(cluster) - 1) * _GAP
