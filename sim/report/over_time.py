"""Memory and residency of each GPU over time, and how many requests ran and waited, from a run's series.parquet.

Rows that hold from a time on, and rows that are means over a span, both become means over the columns of one grid.
Called by run_report.py; a run without the file is told so in a sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.common.text import counted, seconds, share
from sim.plots.charts import Axis, LineSeries, curves
from sim.plots.style import Chart
from sim.plots.time_charts import Strip, memory_over_time
from sim.report.content import Section
from sim.report.groups import Cast
from sim.report.result_folder import Kept, plain

FILE = "series.parquet"
_COLUMNS = ("time_s", "span_s", "gpu", "instance", "model", "residency", "gpu_bytes", "running", "waiting")
_CELLS = 240  # of the grid
_MOST_GPUS = 8
Floats = NDArray[np.float64]


def over_time(run: Kept, cast: Cast) -> Section:
    """A figure for each GPU (the first eight), and one of requests."""
    key, title = "over-time", "Memory and residency over time"
    columns = run.columns(FILE, _COLUMNS)
    if columns is None or not len(columns["time_s"]):
        return Section(key, title, (f"This run kept no {FILE}, so what lay on the GPUs over time is not known.",))
    end_s = float(run.summary["engine"]["sim_s"])
    edges_s = np.linspace(0.0, end_s, _CELLS + 1)
    begin_s, stop_s = _stretches(columns, end_s)
    unit, scale = _unit(end_s)
    where = {gpu["name"]: gpu for gpu in run.summary["gpus"]}
    charts = []
    for number, (name, gpu) in enumerate(list(where.items())[:_MOST_GPUS]):
        rows = columns["gpu"] == name
        strips = _strips({k: v[rows] for k, v in columns.items()}, begin_s[rows], stop_s[rows], edges_s, cast)
        capacity = gpu["usable_memory_bytes"]
        gigabytes = None if capacity is None else capacity / 1e9
        draw = memory_over_time(edges_s / scale, strips, gigabytes, f"{unit} since the start")
        part = "" if capacity is None else f", {share((gpu['mean_memory_bytes'] or 0.0) / capacity)} full on average"
        about = f"GPU {plain(name)}: gigabytes held by each model over time, and the share of its layers on the GPU."
        held = sum(bool(strip.gigabytes.any()) for strip in strips)
        finding = f"{plain(name)}: {counted(held, 'model')}{part}"
        height_in = 2.1 + 0.2 * max(len(strips), 1)
        charts.append(Chart(f"memory-{number}", finding, about, draw, cast.names, height_in=height_in))
    charts.append(_requests(columns, (begin_s, stop_s), edges_s, (unit, scale)))
    said = [
        "Above: memory that each model holds. Below: the share of its layers on the GPU; full colour is all of them."
    ]
    if len(where) > _MOST_GPUS:
        said.append(f"The first {_MOST_GPUS} of {len(where)} GPUs are shown; {FILE} has all.")
    return Section(key, title, tuple(said), tuple(charts))


def _unit(end_s: float) -> tuple[str, float]:
    for unit, size_s in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if end_s > 4 * size_s:
            return unit, size_s
    return "seconds", 1.0


def _stretches(columns: Mapping[str, NDArray[Any]], end_s: float) -> tuple[Floats, Floats]:
    """From when to when each row holds: for its span, or until the next row of the same instance (or queue)."""
    import pandas as pd  # noqa: PLC0415  heavy

    begin_s, span_s = columns["time_s"], columns["span_s"]
    stop_s = begin_s + np.nan_to_num(span_s)
    holds = np.isnan(span_s)
    models = pd.factorize(columns["model"], use_na_sentinel=False)[0]
    instance = np.nan_to_num(columns["instance"], nan=-1.0)
    keys = np.where(instance >= 0, instance, -1.0 - models)
    order = np.lexsort((begin_s, keys))
    following = np.append(begin_s[order][1:], end_s)
    following[np.append(keys[order][1:] != keys[order][:-1], True)] = end_s
    until = np.empty(len(begin_s))
    until[order] = following
    return begin_s, np.where(holds, until, stop_s)


def _means(begin_s: Floats, stop_s: Floats, values: Floats, edges_s: Floats) -> Floats:
    """The mean over each cell of the sum of what holds in it: the slope of its integral between the edges."""
    times = np.concatenate([begin_s, stop_s])
    steps = np.concatenate([values, -values])
    order = np.argsort(times, kind="stable")
    times, steps = times[order], steps[order]
    level = np.cumsum(steps)
    area = np.append(0.0, np.cumsum(level[:-1] * np.diff(times)))
    place = np.searchsorted(times, edges_s, side="right") - 1
    inside = place >= 0
    total = np.where(inside, area[place] + level[place] * (edges_s - times[place]), 0.0)
    widths = np.maximum(np.diff(edges_s), 1e-300)
    return np.maximum(np.diff(total) / widths, 0.0)


def _strips(
    columns: Mapping[str, NDArray[Any]], begin_s: Floats, stop_s: Floats, edges_s: Floats, cast: Cast
) -> list[Strip]:
    """For each model that was on the GPU, in the order of the cast: its gigabytes and its residency, cell by cell."""
    found = []
    models = np.array([plain(str(model)) for model in columns["model"]], dtype=object)
    for name in cast.names:
        rows = (models == name) & (columns["gpu_bytes"] > 0)
        if not rows.any():
            continue
        begin, stop, size = begin_s[rows], stop_s[rows], columns["gpu_bytes"][rows]
        held = _means(begin, stop, np.ones(len(begin)), edges_s)
        layers = _means(begin, stop, np.nan_to_num(columns["residency"][rows]), edges_s)
        residency = np.divide(layers, held, out=np.zeros_like(held), where=held > 1e-9)
        found.append(Strip(name, cast.pens[name], _means(begin, stop, size, edges_s) / 1e9, residency, held > 0.05))
    return found


def _requests(
    columns: Mapping[str, NDArray[Any]], stretches: tuple[Floats, Floats], edges_s: Floats, time: tuple[str, float]
) -> Chart:
    names = ("running", "waiting")
    unit, scale = time
    middle = ((edges_s[1:] + edges_s[:-1]) / 2 / scale).tolist()
    lines = [LineSeries(name, middle, _means(*stretches, columns[name], edges_s).tolist()) for name in names]
    peaks = {line.name: max(line.y) for line in lines}
    own = Cast.of(names)
    x, y = Axis(f"{unit} since the start", low=0, high=edges_s[-1] / scale), Axis("requests", low=0)
    draw = curves(lines, own.pens, x, y)
    finding = f"At most {peaks['running']:.0f} requests ran and {peaks['waiting']:.0f} waited"
    finding += f" (means over {seconds(float(edges_s[1]))})"
    about = "Requests that were running and that were waiting over time, as means over short stretches."
    return Chart("requests-over-time", finding, about, draw, own.names)
