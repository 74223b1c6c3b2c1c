"""Figures of one run for notebooks: latencies, time budgets, GPUs, and what was on them over time.

They draw the tables of a Run (run.py), in the style of the reports, and are shown by any notebook.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sim.common.errors import ConfigError, did_you_mean
from sim.plots.charts import Axis, LineSeries, curves, part_colours, rows_in, stacks
from sim.plots.style import CATEGORIES, INK, MUTED, OTHER, WIDE_IN, WIDTH_IN, drawing, pens

if TYPE_CHECKING:
    import pandas as pd

_MOST_POINTS = 1500  # of a curve: more cannot be seen
_MOST_MODELS = len(CATEGORIES)
_GROUPS = ("model", "service_class", "outcome")
_ALL = "all requests"
_GIB = 2.0**30


class RunFigure(Figure):
    """A figure that a notebook shows, whether or not pyplot is there."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110, facecolor="white")
        return buffer.getvalue()


def _groups(requests: pd.DataFrame, by: str) -> dict[str, pd.DataFrame]:
    """The requests of each group, the largest first. Raises ConfigError."""
    if by not in _GROUPS:
        raise ConfigError(f"by: unknown column '{by}'; {did_you_mean(by, _GROUPS)}")
    found = {str(name): group for name, group in requests.groupby(by, sort=True, observed=True)}
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def latency(requests: pd.DataFrame, by: str) -> Figure:
    """See run.Plots.latency."""
    groups = {_ALL: requests, **_groups(requests, by)}
    look = pens(list(groups), list(groups)[:_MOST_MODELS])
    with drawing("latency"):
        figure = RunFigure(figsize=(WIDE_IN, 3.9), layout="constrained")
        parts: Any = figure.subfigures(1, 2)
        titles = {"ttft_s": "First token (TTFT)", "e2e_s": "Whole answer (end to end)"}
        for part, (column, title) in zip(parts, titles.items(), strict=True):
            found = [_shares(name, group[column].to_numpy(), len(group)) for name, group in groups.items()]
            drawn = [curve for curve in found if len(curve.x)]
            draw = curves(drawn, look, Axis("seconds", log=True), Axis("share of requests", low=0, high=1.02))
            part.suptitle(title, x=0.02, ha="left", fontweight="bold", fontsize=10)
            if drawn:
                draw(part)
    return figure


def _shares(name: str, values: NDArray[np.float64], number: int) -> LineSeries:
    """How many of `number` requests have at most so much; those with NaN never have."""
    known = np.sort(values[~np.isnan(values)])
    picked = np.unique(np.linspace(0, len(known) - 1, min(len(known), _MOST_POINTS)).round().astype(np.int64))
    return LineSeries(name, np.maximum(known[picked], 1e-6).tolist(), ((picked + 1) / max(number, 1)).tolist())


def budget(requests: pd.DataFrame, by: str, phases: Sequence[str]) -> Figure:
    """See run.Plots.budget."""
    groups = {_ALL: requests, **_groups(requests, by)}
    rows = {
        f"{name} ({len(group):,})": [float(group[f"{phase}_s"].sum()) / max(len(group), 1) for phase in phases]
        for name, group in groups.items()
    }
    names = [phase.replace("_", " ") for phase in phases]
    return _bars("Where the requests' time went", rows, names, Axis("seconds a request"))


def gpus(table: pd.DataFrame, activities: Sequence[str]) -> Figure:
    """See run.Plots.gpus."""
    seconds = table[[f"{name}_s" for name in activities]].to_numpy()
    shares = seconds / np.maximum(seconds.sum(axis=1, keepdims=True), 1e-12)
    rows = {str(name): row.tolist() for name, row in zip(table["name"], shares, strict=True)}
    return _bars("What the GPUs did", rows, activities, Axis("share of the time", high=1.0))


def _bars(title: str, rows: Mapping[str, Sequence[float]], parts: Sequence[str], axis: Axis) -> Figure:
    colours = part_colours(parts)
    if "idle" in colours:
        colours["idle"] = OTHER
    with drawing(title):
        figure = RunFigure(figsize=(WIDTH_IN * 1.5, rows_in(len(rows), 3) + 0.3), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=10)
        stacks(rows, colours, axis, {})(figure)
    return figure


def residency(
    series: pd.DataFrame, models: Sequence[str], usable: Mapping[str, float], in_all: int, end_s: float
) -> Figure:
    """See run.Plots.residency. models: of the scenario, whose colours are then those of its other runs; usable: bytes
    of each GPU to draw, NaN without end; in_all: how many GPUs."""
    steps = {name: _steps(series[series["gpu"] == name], end_s) for name in usable}
    amounts: dict[str, float] = {}
    for times_s, found in steps.values():
        for model, (held, _) in found.items():
            amounts[model] = amounts.get(model, 0.0) + float((held[:-1] * np.diff(times_s)).sum())
    most = sorted(amounts, key=lambda model: (-amounts[model], model))
    ordered = list(models) if len(models) <= _MOST_MODELS else most
    named = [model for model in ordered if model in amounts]
    colours = {model: CATEGORIES[at] if at < _MOST_MODELS else OTHER for at, model in enumerate(ordered)}
    with drawing("residency"):
        figure = RunFigure(figsize=(WIDE_IN, 1.1 + 1.5 * len(steps)), layout="constrained")
        title = "What was on the GPUs over time"
        if len(usable) < in_all:
            title += f" ({len(usable)} of {in_all} GPUs; gpus=[...] picks others)"
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=10)
        panels = figure.subplots(max(len(steps), 1), 2, squeeze=False, sharex=True)
        for row, (name, (times_s, found)) in zip(panels, steps.items(), strict=True):
            _draw_memory(row[0], times_s, found, colours, usable[name] / _GIB)
            _draw_layers(row[1], times_s, found, colours)
            row[0].set_title(name, loc="left", fontsize=9, color=INK)
        panels[0, 0].set_ylabel("GiB")
        panels[0, 1].set_title("share of layers on the GPU", loc="left", fontsize=9, color=INK)
        for panel in panels[-1]:
            panel.set_xlabel("seconds")
            panel.set_xlim(0, end_s)
        shown = {model: colours[model] for model in named[:_MOST_MODELS]}
        if len(named) > _MOST_MODELS:
            shown[f"{len(named) - _MOST_MODELS} others"] = OTHER
        handles = [figure.axes[0].plot([], [], color=colour, linewidth=5)[0] for colour in shown.values()]
        figure.legend(handles, list(shown), loc="outside lower center", ncols=4, frameon=False)
    return figure


_Held = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]  # of each model: GiB, and residency or NaN


def _steps(rows: pd.DataFrame, end_s: float) -> tuple[NDArray[np.float64], _Held]:
    """Of one GPU: times, and what each model held from each of them until the next; the last is the end."""
    exact = bool(rows["span_s"].isna().all())
    times_s = np.unique(np.append(rows["time_s"].to_numpy(), [0.0, end_s]))
    found: _Held = {}
    for model, part in rows.groupby("model", sort=True, observed=True):
        if exact:
            held, share, number = (_summed(part, times_s, value) for value in ("gpu_bytes", "residency", "there"))
        else:
            held, share, number = (np.zeros(len(times_s)) for _ in range(3))
            at = np.searchsorted(times_s, part["time_s"].to_numpy())
            held[at] = part["gpu_bytes"].to_numpy()
            share[at], number[at] = part["residency"].to_numpy(), part["residency"].notna().to_numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            found[str(model)] = held / _GIB, np.where(number > 0, share / number, np.nan)
    return times_s, found


def _summed(part: pd.DataFrame, times_s: NDArray[np.float64], value: str) -> NDArray[np.float64]:
    """A sum over the instances of a model at each time, from what changes with each row."""
    there = (part["gpu_bytes"] > 0).astype(np.float64)
    values = there if value == "there" else part[value] * there
    change = values - values.groupby(part["instance"]).shift(fill_value=0.0)
    total = np.zeros(len(times_s))
    np.add.at(total, np.searchsorted(times_s, part["time_s"].to_numpy()), change.to_numpy())
    summed = np.cumsum(total)
    return np.where(np.abs(summed) < 1e-9, 0.0, summed)


def _draw_memory(
    panel: Any, times_s: NDArray[np.float64], found: _Held, colours: Mapping[str, str], usable_gib: float
) -> None:
    base = np.zeros(len(times_s))
    for model, colour in colours.items():
        if model in found:
            top = base + found[model][0]
            panel.fill_between(times_s, base, top, step="post", color=colour, linewidth=0, alpha=0.85)
            base = top
    top_gib = float(base.max(initial=0.0))
    if np.isfinite(usable_gib):
        panel.axhline(usable_gib, color=MUTED, linewidth=0.8, linestyle=(0, (4, 2)))
        top_gib = max(top_gib, usable_gib)
    panel.set_ylim(0, max(top_gib, 1e-3) * 1.08)


def _draw_layers(panel: Any, times_s: NDArray[np.float64], found: _Held, colours: Mapping[str, str]) -> None:
    for model, colour in colours.items():
        if model in found:
            panel.step(times_s, found[model][1], where="post", color=colour, linewidth=1.3)
    panel.set_ylim(0, 1.05)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
