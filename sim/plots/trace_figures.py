"""Figures of traces: they draw what others have counted; called by the command line.

`plot_traces` compares traces: arrivals over time, gaps, prompt and output lengths, popularity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.common.atomic_files import whole_file, why
from sim.common.errors import ConfigError
from sim.traces.describe.trace_statistics import Description

ENDINGS = (".png", ".svg", ".pdf")
_MOST_POINTS = 2000  # of a curve: more cannot be seen


def check_plot(path: Path) -> None:
    """Raises ConfigError: an ending that is no figure's, a file that exists, no such folder."""
    if path.suffix.lower() not in ENDINGS:
        raise ConfigError(f"--plot {path}: unknown kind of figure; its name ends in {', '.join(ENDINGS)}")
    if path.exists() or path.is_symlink():
        raise ConfigError(f"--plot {path}: exists already; choose another name or remove it")
    if not path.parent.is_dir():
        raise ConfigError(f"--plot {path}: there is no folder {path.parent}; make it first")


def plot_traces(found: Mapping[str, Description], path: Path) -> None:
    """A figure of six panels with a colour for each trace; equal descriptions give equal bytes (.png).

    Arrivals over time are in at most 240 bins; the gaps are drawn as a survival function beside that of a Poisson
    process of the same rate, on logarithmic axes, where bursts are the tail. Raises ConfigError.
    """
    import matplotlib as mpl  # noqa: PLC0415
    import seaborn as sns  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    style = {**sns.axes_style("whitegrid"), **sns.plotting_context("notebook", font_scale=0.85)}
    with mpl.rc_context({**style, "svg.hashsalt": "traces"}):
        figure = Figure(figsize=(13, 7.6), layout="constrained")
        panels = figure.subplots(2, 3)
        axes = _TimeAxes.of(found)
        colours = sns.color_palette("colorblind", max(len(found), 1))
        for colour, (name, each) in zip(colours, found.items(), strict=True):
            _arrivals(panels[0, 0], each, _plain(name), colour, axes)
            _gaps(panels[0, 1], each, colour)
            _popularity(panels[0, 2], each, colour)
            _shares(panels[1, 0], each.prompts.table(), colour, log_from=0)
            _shares(panels[1, 1], each.outputs.table(), colour, log_from=0)
            _shares(panels[1, 2], each.concurrency.seen.table(), colour, log_from=200)
        _titles(panels, axes)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        if len(found) > 1:
            figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False)
        else:
            figure.suptitle(_plain(next(iter(found))))
        save_figure(figure, path, "--plot")


def _plain(name: str) -> str:
    """A name as it is, not as a formula; a leading underscore would hide it from the legend."""
    text = name.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


@dataclass(frozen=True)
class _TimeAxes:
    """What the axes of arrivals over time count, so that traces of other lengths and rates can be seen together.

    relative_time: shares of each trace's span, not seconds. relative_rate: multiples of each trace's mean rate.
    """

    relative_time: bool
    relative_rate: bool
    longest_s: float

    @classmethod
    def of(cls, found: Mapping[str, Description]) -> _TimeAxes:
        spans_s = [each.span_s for each in found.values()]
        rates = [each.rows / each.span_s for each in found.values() if each.span_s]
        longest_s = max(spans_s)
        return cls(longest_s > 8 * min(spans_s), bool(rates) and max(rates) > 8 * min(rates), max(longest_s, 1e-9))

    @property
    def unit(self) -> tuple[str, float]:
        """The unit of the time axis and how many of its counts that is."""
        if self.relative_time:
            return "share of each trace's span", 1.0
        units = (("s", 1.0, 600.0), ("min", 60.0, 4 * 3600.0), ("h", 3600.0, 5 * 86400.0))
        known = ((name, scale) for name, scale, most_s in units if self.longest_s < most_s)
        name, scale = next(known, ("days", 86400.0))
        return f"{name} since the first request", scale


def _titles(panels: Any, axes: _TimeAxes) -> None:
    unit, per_unit = axes.unit
    names = (
        ("Arrivals over time", unit, "requests/s" + (" / their mean" if axes.relative_rate else "")),
        ("Gaps between arrivals", "gap / mean gap", "share of gaps that are longer"),
        ("Popularity of models", "rank", "share of requests"),
        ("Prompt length", "tokens", "share of requests up to"),
        ("Output length", "tokens", "share of requests up to"),
        ("Concurrency seen by arrivals", "requests in service, if served at once", "share of arrivals up to"),
    )
    for panel, (title, x, y) in zip(panels.flat, names, strict=True):
        panel.set_title(title, loc="left", fontweight="bold")
        panel.set_xlabel(x)
        panel.set_ylabel(y)
    panels[0, 0].xaxis.set_major_formatter(lambda value, _: f"{value / per_unit:g}")
    panels[0, 0].xaxis.set_major_locator(_locator(per_unit))
    panels[0, 0].set_ylim(bottom=0)
    if panels[0, 1].lines:
        panels[0, 1].legend(frameon=False, loc="lower left")
    for panel in (panels[1, 0], panels[1, 1], panels[1, 2]):
        panel.set_ylim(0, 1.02)


def _locator(per_unit: float) -> Any:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    class InUnits(MaxNLocator):
        """Round numbers of the unit, not of seconds."""

        def tick_values(self, vmin: float, vmax: float) -> Any:
            return np.asarray(super().tick_values(vmin / per_unit, vmax / per_unit)) * per_unit

    return InUnits(nbins=7)


def _arrivals(panel: Any, each: Description, name: str, colour: Any, axes: _TimeAxes) -> None:
    starts_s, rates = each.over_time.rates(each.span_s)
    joined = -(-len(starts_s) // 240)
    whole = len(starts_s) // joined * joined
    if whole:
        starts_s, rates = starts_s[:whole:joined], rates[:whole].reshape(-1, joined).mean(axis=1)
    width_s = each.over_time.width_s * joined
    edges = np.append(starts_s, starts_s[-1] + width_s)
    if axes.relative_time and each.span_s:
        edges = edges / each.span_s
    if axes.relative_rate and each.span_s:
        rates = rates * each.span_s / each.rows
    panel.stairs(rates, edges, color=colour, label=name, linewidth=1.1)


def _gaps(panel: Any, each: Description, colour: Any) -> None:
    mean_s = each.gaps.moments.mean
    if not each.gaps.moments.count or mean_s <= 0:
        return
    values, counts = each.gaps.table()
    longer = 1 - np.cumsum(counts) / counts.sum()
    shown = (values > 0) & (longer > 0)
    x, y = _thinned(values[shown] / mean_s, longer[shown])
    x, y = np.append(1e-9, x), np.append(1 - each.gaps.zeros / counts.sum(), y)
    panel.loglog(x, y, color=colour, linewidth=1.4, drawstyle="steps-post")
    grid = np.geomspace(1e-3, 12, 200)
    label = None if any(line.get_linestyle() == ":" for line in panel.lines) else "Poisson"
    if label is not None:
        panel.loglog(grid, np.exp(-grid), color="0.35", linestyle=":", linewidth=1.4, label=label)
    panel.set_xlim(left=1e-3)
    panel.set_ylim(bottom=max(1e-6, min(0.5 / counts.sum(), panel.get_ylim()[0])), top=1.5)


def _popularity(panel: Any, each: Description, colour: Any) -> None:
    used = np.array([uses for _, uses in each.ranked() if uses]) / each.rows
    ranks = np.arange(1, len(used) + 1)
    panel.loglog(ranks, used, color=colour, marker="o", markersize=4 if len(used) < 60 else 0, linewidth=1.4)
    panel.set_xlim(0.8, max(10.0, 1.3 * len(used), panel.get_xlim()[1]))
    least = min(0.05, *(0.7 * float(min(line.get_ydata())) for line in panel.lines))
    panel.set_ylim(least, 1.3)


def _shares(panel: Any, table: tuple[NDArray[np.int64], NDArray[np.int64]], colour: Any, log_from: int) -> None:
    """Which share is up to how much; on a logarithmic axis if that reaches beyond `log_from`."""
    values, counts = table
    x, y = _thinned(values.astype(np.float64), np.cumsum(counts) / counts.sum())
    panel.plot(np.append(x[0], x), np.append(0.0, y), color=colour, drawstyle="steps-post", linewidth=1.4)
    if panel.get_xlim()[1] > log_from:
        panel.set_xscale("log")


def _thinned(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """At most _MOST_POINTS points, the first and the last among them, and ever denser towards the tail."""
    last = len(x) - 1
    if last < _MOST_POINTS:
        return x, y
    half = _MOST_POINTS // 2
    picked = np.concatenate([np.linspace(0, last, half), last + 1 - np.geomspace(1, last + 1, half)])
    picked = np.unique(picked.round().astype(np.int64))
    return x[picked], y[picked]


def save_figure(figure: Any, path: Path, flag: str) -> None:
    """Write a figure whole or not at all. Raises ConfigError, which names the option by which the path was given."""
    # Dates and program versions would make equal figures differ.
    metadata = {"Software": None} if path.suffix.lower() == ".png" else {"Date": None, "Creator": None}
    if path.suffix.lower() == ".pdf":
        metadata = {"CreationDate": None, "Creator": None, "Producer": None}
    try:
        with whole_file(path) as partial:
            figure.savefig(partial, format=path.suffix.lower().lstrip("."), dpi=150, metadata=metadata)
    except OSError as error:
        raise ConfigError(f"{flag} {path}: cannot write the figure ({why(error)}); nothing of it was kept") from None
