"""n*: after how many tokens loading the missing layers of a partly resident model pays, for the scenario's own models.

The numbers come from the profile tables (sim.profiles.break_even), for the hardware and the kind of engine that the
scenario names; not from the run. Called by run_report.py and store_report.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from sim.common.errors import SimError
from sim.common.text import listed, number
from sim.common.yaml_files import read_yaml
from sim.plots.charts import Axis, LineSeries, curves
from sim.plots.style import Chart
from sim.profiles.break_even import At, BreakEven, break_even
from sim.report.content import Cell, Section, Table, seconds_cell, share_cell, text_cell
from sim.report.groups import Cast
from sim.report.result_folder import Kept, plain

_CURVE = At(residencies=tuple(share / 20 for share in range(20)))
_ROWS = (0.25, 0.5, 0.75, 0.9)
_MOST_GPUS = 3
_WAYS = {
    "none": ("restart", "restart_s", "stops and starts again"),
    "sleep": ("wake", "wake_s", "sleeps and wakes"),
    "elastic": ("grow", "grow_s", "moves only the missing layers"),
}


def break_even_section(run: Kept, cast: Cast | None = None) -> Section:
    """A figure for each kind of GPU (the first three) and a table; a sentence where the tables do not say.

    cast: whose colours the models have elsewhere in the report.
    """
    key, title = "break-even", "When loading the rest pays: n*"
    try:
        scenario = read_yaml(run.folder / "scenario.yaml")
        found = _points(scenario)
        way, spent, doing = _WAYS[scenario["engine"]["resize"]]
    except (SimError, OSError, KeyError, TypeError) as error:
        return Section(key, title, (f"Not known: {plain(str(error)).splitlines()[0]}",))
    if not found:
        return Section(
            key, title, ("No model of this scenario can be partly resident on a GPU that could hold it whole.",)
        )
    names = list(dict.fromkeys(name for name, _ in found))
    cast = Cast.of(names, names) if cast is None else cast
    gpus = list(dict.fromkeys(point.gpu for _, point in found))
    charts = []
    for place, gpu in enumerate(gpus[:_MOST_GPUS]):
        chart = _chart(f"break-even-{place}", gpu, [(n, p) for n, p in found if p.gpu == gpu], way, cast)
        charts += [chart] if chart is not None else []
    resize = scenario["engine"]["resize"]
    said = (
        f"n* is how many tokens a batch must still produce for loading all layers to pay, on an engine that {doing} "
        f"(resize: {resize}). Below it, stay partly resident; above it, load the rest. For one sequence with "
        f"{_CURVE.context:,} tokens of context on idle hardware, from the profile tables as they are now.",
    )
    return Section(key, title, said, tuple(charts), (_table(found, way, spent, cast),), folded=False)


def _points(scenario: Mapping[str, Any]) -> list[tuple[str, BreakEven]]:
    """(the scenario's name of the model, point) for each model on each kind of GPU and host of the cluster."""
    folder = scenario.get("profiles")
    places = {(group["gpu"], node["host"]): None for node in scenario["cluster"]["nodes"] for group in node["gpus"]}
    kinds = {(model["model"], model["quantization"]): None for model in scenario["models"]}
    points: dict[tuple[str, str], list[BreakEven]] = {}
    for name, quantization in kinds:
        points[name, quantization] = _of_model(name, quantization, Path(folder) if folder else None)
    found: dict[tuple[str, str, str, str, int], tuple[str, BreakEven]] = {}
    for model in scenario["models"]:
        for point in points[model["model"], model["quantization"]]:
            if (point.gpu, point.host) in places and model["engine"] in (None, point.engine):
                own = plain(str(model["name"]))
                found.setdefault((own, point.gpu, point.host, "", point.layers), (own, point))
    return list(found.values())


def _of_model(name: str, quantization: str, folder: Path | None) -> list[BreakEven]:
    try:
        return break_even(name, None, quantization, _CURVE, folder)
    except SimError:  # fits on no GPU whole, or has no tables for this context: it has no n*
        return []


def _tokens(point: BreakEven, way: str) -> float | None:
    value = float(getattr(point, way))
    return value if isfinite(value) else None


def _chart(key: str, gpu: str, found: Sequence[tuple[str, BreakEven]], way: str, cast: Cast) -> Chart | None:
    lines: dict[str, tuple[list[float], list[float]]] = {}
    host = found[0][1].host
    for name, point in found:
        tokens = _tokens(point, way)
        if tokens is not None and point.host == host:
            xs, ys = lines.setdefault(name, ([], []))
            xs.append(point.residency)
            ys.append(tokens)
    drawn = [LineSeries(name, *lines[name]) for name in cast.names if name in lines]
    if not drawn:
        return None
    half = {
        curve.name: min(zip(curve.x, curve.y, strict=True), key=lambda spot: abs(spot[0] - 0.5))[1] for curve in drawn
    }
    least, most = min(half.values()), max(half.values())
    finding = f"{plain(gpu)}: at half residency a reload pays after {number(least)}"
    finding += f" to {number(most)} tokens" if len(half) > 1 else " tokens"
    x = Axis("residency (share of layers on the GPU)", text=lambda value: f"{value * 100:.0f}%", low=0, high=1)
    y = Axis("n*, tokens (logarithmic)", True, lambda value: f"{value:,.4g}")
    about = f"Break-even tokens against residency on {plain(gpu)} for {listed(half)}."
    return Chart(key, finding, about, curves(drawn, cast.pens, x, y), cast.names)


def _table(found: Sequence[tuple[str, BreakEven]], way: str, spent: str, cast: Cast) -> Table:
    rows, series = [], []
    for name, point in found:
        if min(abs(point.residency - share) for share in _ROWS) > 0.026:
            continue
        tokens = _tokens(point, way)
        rows.append(
            (
                text_cell(name), text_cell(plain(point.gpu)), share_cell(point.residency),
                seconds_cell(point.step_s), seconds_cell(point.whole_step_s), seconds_cell(getattr(point, spent)),
                Cell("never pays" if tokens is None else number(round(tokens)), tokens),
            )
        )  # fmt: skip
        series.append(cast.numbers[name])
    headers = ("model", "GPU", "residency", "token at it", "token when whole", "reload", "n*, tokens")
    return Table("break-even-table", "Break-even tokens", headers, tuple(rows), left=2, series=tuple(series))
