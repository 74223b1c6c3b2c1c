"""What a sweep varied, against what came of it: SLO attainment, latency and goodput over each numeric label.

Where several labels vary, each combination of the others is a figure of its own. Called by store_report.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.common.text import listed, share
from sim.plots.charts import Axis, LineSeries, curves
from sim.plots.style import Chart
from sim.report.content import Cell, Section, Table, text_cell
from sim.report.groups import Cast, Setting, ranked, shown
from sim.report.latency import axis_text
from sim.report.measures import E2E, GOODPUT, SLO
from sim.results.format_estimate import amount
from sim.results.metrics import Measure

_UNITS = {GOODPUT.key: "goodput, requests/s within SLO"}
_MOST_PANELS = 4  # combinations of the other labels that are drawn


def against(found: Sequence[Setting], cast: Cast, measure: Measure) -> list[Section]:
    """Nothing where nothing was varied."""
    if len(found) < 2:
        return []
    label = _main_label(found)
    panels = _panels(found, label) if label is not None else {}
    charts = []
    for number, (rest, chosen) in enumerate(list(panels.items())[:_MOST_PANELS]):
        for part, each in enumerate(dict.fromkeys([SLO, measure, E2E, GOODPUT])):
            chart = _chart(f"load-{number * 10 + part}", chosen, str(label), rest, cast, each)
            charts += [chart] if chart is not None else []
    said = []
    if len(panels) > _MOST_PANELS:
        said.append(f"The first {_MOST_PANELS} of {len(panels)} combinations of the other labels are drawn.")
    if label is None:
        said.append("No label with numbers was varied, so there are no curves.")
    heading = f"Against {label}" if label is not None else "Settings"
    return [Section("load", heading, tuple(said), tuple(charts), (_table(found, cast, measure),))]


def _main_label(found: Sequence[Setting]) -> str | None:
    """The label with the most different numbers; of equals, the one that changes the number of requests most."""
    counts = {}
    for name in found[0].labels:
        values = [each.labels.get(name) for each in found]
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            counts[name] = len(dict.fromkeys(values))
    return max(counts, key=lambda name: counts[name]) if max(counts.values(), default=1) > 1 else None


def _panels(found: Sequence[Setting], label: str) -> dict[str, list[Setting]]:
    """Settings by the other labels, each in order of the main one."""
    panels: dict[str, list[Setting]] = {}
    for each in found:
        rest = ", ".join(f"{name} = {shown(value)}" for name, value in each.labels.items() if name != label)
        panels.setdefault(rest, []).append(each)
    return {rest: sorted(chosen, key=lambda each: float(each.labels[label])) for rest, chosen in panels.items()}


def _chart(key: str, chosen: Sequence[Setting], label: str, rest: str, cast: Cast, measure: Measure) -> Chart | None:
    points: dict[str, list[tuple[float, float, float, float]]] = {}
    for each in chosen:
        for group in each.groups:
            seen = group.estimate(measure)
            if seen.mean is not None:
                low, high = (seen.t.low, seen.t.high) if seen.t is not None else (seen.mean, seen.mean)
                if measure.unit == "share":
                    low, high = max(low, 0.0), min(high, 1.0)
                points.setdefault(group.name, []).append((float(each.labels[label]), seen.mean, low, high))
    if not points or len(chosen) < 2:
        return None
    columns = {name: zip(*points[name], strict=True) for name in cast.names if name in points}
    drawn = [LineSeries(name, *map(list, parts)) for name, parts in columns.items()]
    xs = [float(each.labels[label]) for each in chosen]
    ys = [value for curve in drawn for value in curve.y]
    log_y = measure.unit == "s" and min(ys) > 0 and max(ys) / min(ys) > 12
    log_x = min(xs) > 0 and max(xs) / min(xs) > 30
    x = Axis(label, log_x, lambda value: f"{value:,.4g}", ticks=xs if len(xs) <= 8 and not log_x else None)
    top = 1.02 if measure.unit == "share" else None if log_y else 1.2 * max(ys)
    y = Axis(_UNITS.get(measure.key, measure.name), log_y, axis_text(measure.unit), None if log_y else 0, top or None)
    draw = curves(drawn, cast.pens, x, y, dots=True)
    about = f"{measure.name} against {label}, mean and 95% interval, for {listed(curve.name for curve in drawn)}."
    return Chart(key, _finding(chosen, label, rest, measure), about, draw, cast.names)


def _finding(chosen: Sequence[Setting], label: str, rest: str, measure: Measure) -> str:
    last = chosen[-1]
    runners = [group for group in last.groups if not group.oracle and group.mean(measure) is not None]
    where = f" ({rest})" if rest else ""
    if not runners:
        return f"{measure.name} against {label}{where}"
    best = ranked(runners, measure)[0]
    value = amount(measure.unit, best.mean(measure))
    return f"{measure.name}: at {label} = {shown(last.labels[label])}, {best.name} is best with {value}{where}"


def _table(found: Sequence[Setting], cast: Cast, measure: Measure) -> Table:
    """A row for each setting and policy."""
    labels = list(dict.fromkeys(name for each in found for name in each.labels))
    measures = list(dict.fromkeys([measure, SLO, E2E, GOODPUT]))
    rows, series = [], []
    for setting in found:
        for group in setting.groups:
            values = [setting.labels.get(name, "") for name in labels]
            cells = [Cell(shown(v), float(v) if isinstance(v, int | float) else str(v)) for v in values]
            left = group.unserved / group.arrived if group.arrived else None
            means = [Cell(amount(each.unit, group.mean(each)), group.mean(each)) for each in measures]
            rows.append((*cells, text_cell(group.name), Cell(share(left), left), *means))
            series.append(cast.numbers[group.name])
    headers = (*labels, "policy", "did not complete", *(each.name for each in measures))
    return Table("settings-table", "All settings", headers, tuple(rows), left=len(labels) + 1, series=tuple(series))
