"""What there is to say about a search for capacity: which load each policy carries, how sure, and at what cost.

The numbers are those of capacity.json; runs of the store are only listed. Called by write.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sim.common.errors import ConfigError
from sim.common.statistics import Estimate, Interval
from sim.common.text import counted, listed
from sim.plots.charts import Axis, LineSeries, curves, ranges, rows_in
from sim.plots.style import Chart
from sim.report import sentences
from sim.report.content import Cell, Report, Section, Table, Tile, share_cell, text_cell
from sim.report.groups import Cast
from sim.report.latency import axis_text
from sim.report.measures import measure_of
from sim.report.result_folder import Material, plain
from sim.report.store_report import failed_section, runs_section
from sim.results.format_estimate import amount, with_half
from sim.results.metrics import Unit
from sim.studies.verdict_text import ASKED, goal_text, load_text

_STRONG = 7


def capacity_report(material: Material) -> Report:
    """The report of a capacity folder. Raises ConfigError: a file of another version."""
    try:
        return _report(material)
    except (KeyError, TypeError) as error:
        path = material.folder / "capacity.json"
        raise ConfigError(f"{path}: is of another version (no {error}); run capacity again") from None


def _report(material: Material) -> Report:
    data = material.extra
    order = sorted(data["policies"], key=lambda policy: _rank(policy, data["find"]))
    cast = Cast.of([_name(p) for p in order], [_name(p) for p in order if not p["oracle"]][:_STRONG])
    verdict = [plain(line) for line in data["verdict"]] or ["Nothing was found."]
    goal = goal_text(measure_of(data["goal"]["metric"]), data["goal"]["target"])
    said = [f"Goal: {goal}, in the mean of {counted(len(data['seeds']), 'seed')}.", _load(data)]
    if material.runs:
        said.append(sentences.scene(material.runs))
    sections = [_answers(data, order, cast), _curves(data, order, cast), _points(data, order, cast)]
    sections += [*failed_section(material), *([runs_section(material)] if material.runs else [])]
    if material.runs:
        about = (sentences.factors(material.runs), sentences.limits(material.runs[0].summary))
        sections.append(Section("about", "Assumptions", about))
    return Report(
        f"{plain(data['scenario'])}: capacity of {counted(len(order), 'policy')}",
        f"capacity, {counted(len(data['seeds']), 'seed')} ({listed(map(str, data['seeds']), 12)})",
        verdict[0],
        (*verdict[1:], *filter(None, said)),
        _tiles(data, order),
        tuple(dict.fromkeys([*(plain(text) for text in data["notices"]), *sentences.notices(material.runs)])),
        tuple(sections),
        tuple(chart for section in sections for chart in section.charts)[:6],
    )


def _name(policy: Mapping[str, Any]) -> str:
    return plain(policy["label"]) + (" (oracle)" if policy["oracle"] else "")


def _value(policy: Mapping[str, Any], find: str) -> float | None:
    if policy["found"] is None or policy["found"]["value"] is None:
        return None
    return _number(policy["seen"]["mean"] if find == "cost" else policy["found"]["value"])


def _number(value: Any) -> float | None:
    return None if value is None else float(value)


def _rank(policy: Mapping[str, Any], find: str) -> tuple[bool, float, str]:
    value = _value(policy, find)
    sign = -1.0 if find == "rate" else 1.0
    return (value is None, sign * (value or 0.0), _name(policy))


def _load(data: Mapping[str, Any]) -> str:
    told = load_text(plain(data["load_means"])) if data["load_means"] else ""
    return f"{told} Loads were searched to {data['tolerance'] * 100:g}%." if data["find"] == "rate" else told


def _estimate(seen: Mapping[str, Any] | None) -> Estimate:
    if seen is None:
        return Estimate(None, None, None, 0, 0)
    t, bootstrap = (None if seen[way] is None else Interval(**seen[way]) for way in ("t", "bootstrap"))
    return Estimate(_number(seen["mean"]), t, bootstrap, seen["known"], seen["missing"])


def _shown(find: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:g}" if find == "cluster" else amount("usd" if find == "cost" else "rate", value)


def _tiles(data: Mapping[str, Any], order: Sequence[Mapping[str, Any]]) -> tuple[Tile, ...]:
    find = data["find"]
    known = [policy for policy in order if not policy["oracle"] and _value(policy, find) is not None]
    tiles = [Tile(ASKED[find], _shown(find, _value(policy, find)), _name(policy)) for policy in known[:3]]
    if data["bound"]["value"] is not None:
        tiles.append(Tile("no policy can carry more than", amount("rate", data["bound"]["value"]), "fluid bound"))
    return tuple(tiles)


def _answers(data: Mapping[str, Any], order: Sequence[Mapping[str, Any]], cast: Cast) -> Section:
    find = data["find"]
    unit: Unit = "usd" if find == "cost" else "rate"
    rows = []
    for policy in order:
        found = policy["found"] or dict.fromkeys(("value", "missed", "sure_at", "sure_not_at", "odd", "why"))
        seen, usd = _estimate(policy["seen"]), _estimate(policy["usd_per_million_tokens"])
        ends = [found[name] for name in ("missed", "sure_at", "sure_not_at")]
        loads = [Cell("-" if end is None else f"{end:.3g}", end) for end in ends]
        value = _value(policy, find)
        said = policy["error"] or found["why"] or found["odd"] or ""
        rows.append(
            (
                text_cell(_name(policy)), Cell(_shown(find, value), value), Cell(with_half(unit, seen), seen.mean),
                *loads, Cell(with_half("usd", usd), usd.mean), text_cell(plain(said)),
            )
        )  # fmt: skip
    headers = (
        "policy", ASKED[find], "by seed, mean", "missed at", "surely kept at", "surely missed at", "$ per 1M tokens",
        "remark",
    )  # fmt: skip
    table = Table(
        "capacity-table", f"Capacity: {ASKED[find]}", headers, tuple(rows), series=tuple(range(len(rows))),
        note="± is half a 95% interval over seeds. “Surely”: the whole interval keeps or misses the goal.",
    )  # fmt: skip
    return Section("capacity", "What each policy carries", (), tuple(_chart(data, order, cast)), (table,))


def _chart(data: Mapping[str, Any], order: Sequence[Mapping[str, Any]], cast: Cast) -> list[Chart]:
    find = data["find"]
    rows: dict[str, list[float | None]] = {}
    for policy in order:
        value = _value(policy, find)
        if value is not None:
            by_seed = [float(each) for each in policy["by_seed"] if each is not None]
            rows[_name(policy)] = [value, min(by_seed, default=None), max(by_seed, default=None)]
    if not rows:
        return []
    label = {"rate": "load (1: the scenario's own)", "cluster": "nodes", "cost": "$ per million output tokens"}[find]
    best = next((name for name in rows if not name.endswith("(oracle)")), next(iter(rows)))
    finding = f"{ASKED[find][0].upper()}{ASKED[find][1:]}: {best} with {_shown(find, rows[best][0])}"
    bound = data["bound"]["value"] if find == "rate" else None
    draw = ranges(rows, ("answer", "least of any seed", "most of any seed"), cast.pens,
                  Axis(label, text=lambda value: f"{value:,.4g}", low=0, line=_number(bound)))  # fmt: skip
    about = f"{ASKED[find]} of {listed(rows)}, and the least and most of single seeds."
    return [Chart("answers", finding, about, draw, cast.names, height_in=rows_in(len(rows), 2))]


def _curves(data: Mapping[str, Any], order: Sequence[Mapping[str, Any]], cast: Cast) -> Section:
    """The goal's metric at every point that was played."""
    metric = data["goal"]["metric"]
    unit: Unit = metric["unit"]
    drawn = []
    for policy in order:
        points = [p for p in (policy["found"] or {"points": ()})["points"] if p["seen"]["mean"] is not None]
        if points:
            ends = [p["seen"]["t"] or {"low": p["seen"]["mean"], "high": p["seen"]["mean"]} for p in points]
            low, high = ([float(end[name]) for end in ends] for name in ("low", "high"))
            if unit == "share":
                low, high = [max(value, 0.0) for value in low], [min(value, 1.0) for value in high]
            means = [p["seen"]["mean"] for p in points]
            drawn.append(LineSeries(_name(policy), [p["at"] for p in points], means, low, high))
    heading = f"{plain(metric['title'])} against {'nodes' if data['find'] == 'cluster' else 'load'}"
    if not any(len(curve.x) > 1 for curve in drawn):
        return Section("load", heading, ("One point was played for each policy, so there are no curves.",))
    xs = [value for curve in drawn for value in curve.x]
    ys = [value for curve in drawn for value in curve.y]
    log_x = min(xs) > 0 and max(xs) / min(xs) > 12
    log_y = unit == "s" and min(ys) > 0 and max(ys) / min(ys) > 12
    x = Axis("nodes" if data["find"] == "cluster" else "load (1: the scenario's own)", log_x, lambda v: f"{v:,.4g}")
    target = float(data["goal"]["target"])
    top = 1.02 if unit == "share" else None if log_y else 1.15 * max(*ys, target)
    y = Axis(plain(metric["title"]), log_y, axis_text(unit), None if log_y else 0, top, line=target)
    names = listed(curve.name for curve in drawn)
    about = f"{heading}, mean and 95% interval, for {names}; the dashed line is the goal."
    finding = f"Where the curves cross the dashed line ({amount(unit, target)}), the goal is lost"
    chart = Chart("load-0", finding, about, curves(drawn, cast.pens, x, y, True), cast.names)
    return Section("load", heading, (), (chart,))


def _points(data: Mapping[str, Any], order: Sequence[Mapping[str, Any]], cast: Cast) -> Section:
    """Everything that was played, a row a point."""
    measure = measure_of(data["goal"]["metric"])
    rows, series = [], []
    for policy in order:
        for point in (policy["found"] or {"points": ()})["points"]:
            seen, usd = _estimate(point["seen"]), _estimate(point["usd_per_million_tokens"])
            counts = point["counts"]
            left = (counts["arrived"] - counts["completed"]) / counts["arrived"] if counts["arrived"] else None
            sure = {True: "kept for sure", False: "missed for sure", None: "not sure"}[point["sure"]]
            rows.append(
                (
                    text_cell(_name(policy)), Cell(f"{point['at']:.4g}", point["at"]),
                    Cell(with_half(measure.unit, seen), seen.mean), text_cell("yes" if point["kept"] else "no"),
                    text_cell(sure), share_cell(left), Cell(with_half("usd", usd), usd.mean),
                )
            )  # fmt: skip
            series.append(cast.numbers[_name(policy)])
    turned = "nodes" if data["find"] == "cluster" else "load"
    headers = ("policy", turned, measure.title, "goal kept", "how sure", "did not complete", "$ per 1M tokens")
    table = Table("points", "Everything that was played", headers, tuple(rows), series=tuple(series))
    return Section("played", "Everything that was played", (), (), (table,), folded=True)
