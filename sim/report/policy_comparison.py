"""Policies against each other: the verdict, the ranking with intervals, differences within seeds, and trade-offs.

Statistics are those of sim.common.statistics and sim.studies.ranking. Oracles stand in the tables with their mark, and
are in no verdict and on no front. Called by store_report.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sim.common.statistics import CONFIDENCE, pareto_front
from sim.common.text import listed
from sim.plots.charts import Axis, Spot, differences, front, rows_in, shortened
from sim.plots.style import Chart
from sim.report.content import Cell, Section, Table, share_cell, text_cell
from sim.report.groups import Cast, RunGroup, Setting, ranked
from sim.report.latency import ticks
from sim.report.measures import COST, E2E, E2E_P99, GOODPUT, KNOWN, SLO, TTFT_P50, TTFT_P99
from sim.report.result_folder import Material, plain
from sim.results.format_estimate import amount, gap, with_half
from sim.results.metrics import Measure
from sim.studies.ranking import Column, PolicyRanking, rank
from sim.studies.verdict_text import ONE_SEED, best_line, lines_of_settings


def said(measure: Measure, value: float | None) -> str:
    """An amount with the unit that is not part of it."""
    return amount(measure.unit, value) + ("/s" if measure.unit == "rate" and value is not None else "")


# --- the verdict


def verdict(material: Material, found: Sequence[Setting], measure: Measure) -> tuple[str, ...]:
    """The answer in sentences, the first of which says who is best, by how much and how sure."""
    told = tuple(plain(str(line)) for line in material.extra.get("verdict", ()))
    if told:
        return told
    if len(found) == 1:
        return tuple(_sentences(found[0], measure))
    return tuple(lines_of_settings(measure, [_best(setting, measure) for setting in found]))


def _ranking(setting: Setting, measure: Measure) -> PolicyRanking:
    """With every seed that any of them ran with; who lacks one is not ranked."""
    seeds = sorted({run.summary["seed"] for group in setting.groups for run in group.runs})
    columns = []
    for group in setting.groups:
        values = {run.summary["seed"]: measure.of(run.summary) for run in group.runs}
        if not group.oracle:
            columns.append(Column(group.name, tuple(values.get(seed) for seed in seeds)))
    return rank(measure, columns, CONFIDENCE)


def _best(setting: Setting, measure: Measure) -> tuple[str, PolicyRanking, float | None]:
    """What the setting is called, its ranking, and the mean of its best."""
    ranking = _ranking(setting, measure)
    best = next((group.mean(measure) for group in setting.groups if group.name == ranking.best), None)
    return setting.name, ranking, best


def _sentences(setting: Setting, measure: Measure) -> Iterator[str]:
    seeds = len({run.summary["seed"] for group in setting.groups for run in group.runs})
    for each in dict.fromkeys([measure, E2E]):
        _, ranking, mean = _best(setting, each)
        yield best_line(each, ranking, mean, seeds, CONFIDENCE)
    if seeds == 1:
        yield ONE_SEED


# --- ranking and differences


def ranking(groups: Sequence[RunGroup], cast: Cast, measure: Measure, baseline: str) -> Section:
    """A row for each policy, its intervals, and its paired differences to the baseline (or to the best)."""
    by_name = {group.name: group for group in groups}
    rivals = ranked([group for group in groups if not group.oracle] or groups, measure)
    against = by_name.get(baseline) or rivals[0]
    runs = max(len(group.runs) for group in groups)
    shown = dict.fromkeys([measure, SLO, E2E, E2E_P99, TTFT_P50, TTFT_P99, GOODPUT, COST])
    shown = dict.fromkeys(each for each in shown if any(group.mean(each) is not None for group in groups))
    gaps = runs > 1 and len(groups) > 1
    headers = ["policy", "did not complete", *(each.name for each in shown)]
    if gaps:
        headers[3:3] = [f"minus {against.name}"]
    rows = []
    for group in groups:
        cells = [_cell(group, each) for each in shown]
        if gaps:
            cells.insert(1, _gap_cell(group, against, measure))
        left = group.unserved / group.arrived if group.arrived else None
        rows.append((text_cell(group.name), share_cell(left), *cells))
    half = "± is half a 95% interval (Student's t) over runs. " if runs > 1 else ""
    note = f"{half}{_RUNS[runs > 1]} “E2E of all” counts a request without an answer until the end of its run."
    table = Table(
        "ranking-table", f"Policies by {measure.name}", tuple(headers), tuple(rows),
        note=note + (f" Differences are paired by seed: policy minus {against.name}." if gaps else ""),
        series=tuple(cast.numbers[group.name] for group in groups),
    )  # fmt: skip
    charts = [chart for each in dict.fromkeys([measure, E2E]) for chart in _forest(groups, against, each, cast)]
    said = (
        "Each interval is 95% for its own policy alone. The verdict above allows for many comparisons being made at "
        "once (Holm), and so may be less sure than a single interval looks.",
    )
    heading = "Which policy, by how much, how sure"
    return Section("ranking", heading, said if charts and gaps else (), tuple(charts) if gaps else (), (table,))


_RUNS = {True: "Means over runs.", False: "One run each: no intervals."}


def _cell(group: RunGroup, measure: Measure) -> Cell:
    seen = group.estimate(measure)
    return Cell(with_half(measure.unit, seen), seen.mean)


def _gap_cell(group: RunGroup, against: RunGroup, measure: Measure) -> Cell:
    if group.name == against.name:
        return Cell("-", 0.0)
    seen = group.against(against, measure).estimate
    return Cell(gap(measure.unit, seen.mean, seen.t), seen.mean)


def _forest(groups: Sequence[RunGroup], against: RunGroup, measure: Measure, cast: Cast) -> list[Chart]:
    """Paired differences with intervals; better to the left or to the right as the axis says."""
    rows, worse = {}, 0
    for group in groups:
        seen = group.against(against, measure).estimate
        if group.name == against.name or seen.mean is None or seen.t is None:
            continue
        rows[group.name] = (seen.mean, seen.t.low, seen.t.high)
        worse += seen.t.low > 0 if measure.better == "less" else seen.t.high < 0
    if not rows:
        return []
    points = measure.unit == "share"
    side = "left" if measure.better == "less" else "right"
    label = f"{measure.name}, minus that of {shortened(against.name)}"
    label += f"\n({'in points; ' if points else ''}better to the {side})"
    x = Axis(label, text=(lambda value: f"{value * 100:+.3g}" if value else "0") if points else _signed(measure))
    finding = f"{measure.name}: {worse} of {len(rows)} policies are worse than {against.name} by an interval without 0"
    about = f"Differences in {measure.name} to {against.name} within seeds, with 95% intervals, for {listed(rows)}."
    key = "differences" if measure.key != E2E.key else "differences-e2e"
    return [Chart(key, finding, about, differences(rows, cast.pens, x), cast.names, height_in=rows_in(len(rows), 1))]


def _signed(measure: Measure) -> Any:
    unit = " s" if measure.unit == "s" else ""
    return lambda value: f"{value:+,.4g}{unit}" if value else "0"


# --- trade-offs


def trade_offs(groups: Sequence[RunGroup], cast: Cast) -> Section:
    """The Pareto front of latency, goodput and cost by their means; oracles are not on it."""
    axes = [axis for axis in (E2E, GOODPUT, COST) if any(group.mean(axis) is not None for group in groups)]
    runners = [group for group in groups if not group.oracle and all(group.mean(axis) is not None for axis in axes)]
    if len(runners) < 2 or len(axes) < 2:
        return Section("trade-offs", "Latency, goodput and cost", ("There are too few policies with these numbers.",))
    points = [[(-1 if axis.better == "more" else 1) * (group.mean(axis) or 0.0) for axis in axes] for group in runners]
    kept = pareto_front(points)
    on = [group.name for group, keep in zip(runners, kept, strict=True) if keep]
    alone = f"{on[0]} is at least as good as every other policy in all of these"
    finding = alone if len(on) == 1 else f"No policy is better than {listed(on, 4)} in all of these"
    charts = []
    for key, x in (("front", E2E), ("front-cost", COST)):
        if x not in axes or GOODPUT not in axes:
            continue
        spots = [Spot(g.name, g.mean(x) or 0.0, g.mean(GOODPUT) or 0.0, g.name in on) for g in runners]
        text = ticks if x.unit == "s" else "${:,.4g}".format
        label = f"{x.name}{', $' if x is COST else ''} (better to the left)"
        values = [spot.x for spot in spots]
        log = min(values) > 0 and max(values) / min(values) > 8
        draw = front(spots, cast.pens, Axis(label, log, text), Axis("goodput, requests/s (better up)"))
        named = listed(spot.name for spot in spots)
        about = f"Points: {label} against goodput for {named}; filled ones are on the front."
        charts.append(Chart(key, finding, about, draw, cast.names, height_in=3.4))
    said = (
        f"On the Pareto front of {listed(axis.name for axis in axes)}: {listed(on, 12)}. "
        "Filled marks are on the front; each hollow one is beaten by another policy in every respect.",
    )
    return Section("trade-offs", "Latency, goodput and cost", said, tuple(charts))


# --- bounds


def bounds(extra: Mapping[str, Any]) -> list[Section]:
    """How far each policy is from what no scheduler can beat; of a comparison."""
    found = [bound for bound in extra.get("bounds", ()) if bound.get("value") is not None]
    if not found:
        return []
    names = list(dict.fromkeys(plain(label) for bound in found for label in bound["gaps"]))
    measures = [KNOWN.get(bound["key"]) for bound in found]
    rows = []
    for name in names:
        factors = [bound["gaps"].get(name) for bound in found]
        rows.append((text_cell(name), *(Cell("-" if f is None else f"{f:.3g} x", f) for f in factors)))
    headers = ("policy", *(plain(bound["name"]) for bound in found))
    said = tuple(
        f"{plain(bound['name'])}: {plain(bound['what'])}; {measure.name if measure else plain(bound['key'])} "
        f"{amount(measure.unit if measure else 'number', bound['value'])}."
        for bound, measure in zip(found, measures, strict=True)
    )
    note = "1 x is as good as the bound, 2 x twice as bad."
    table = Table("bounds-table", "Distance to bounds", headers, tuple(rows), note=note)
    return [Section("bounds", "How far from the best possible", said, (), (table,))]
