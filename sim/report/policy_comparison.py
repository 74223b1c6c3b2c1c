"""Policies against each other: the verdict, the ranking with intervals, differences within seeds, and trade-offs.

Statistics are those of sim.common.statistics and sim.studies.ranking. Oracles stand in the tables with their mark, and
are in no verdict and on no front. Called by store_report.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sim.common.statistics import CONFIDENCE, pareto_front
from sim.common.text import counted, listed
from sim.plots.charts import Axis, Spot, differences, front, rows_in, shortened
from sim.plots.style import Chart
from sim.report.content import Cell, Section, Table, share_cell, text_cell
from sim.report.groups import (
    COST,
    E2E,
    E2E_P99,
    GOODPUT,
    MEASURES,
    SLO,
    TTFT_P50,
    TTFT_P99,
    Cast,
    RunGroup,
    Setting,
    ranked,
)
from sim.report.latency import ticks
from sim.report.result_folder import Material, plain
from sim.results.format_estimate import amount, gap, with_half
from sim.results.metrics import Measure
from sim.studies.ranking import Column, PolicyRanking, rank

_TITLES = {
    SLO.key: "SLO kept",
    E2E.key: "E2E of all, mean",
    E2E_P99.key: "E2E of all, p99",
    TTFT_P50.key: "TTFT median",
    TTFT_P99.key: "TTFT p99",
    GOODPUT.key: "goodput",
    COST.key: "cost of 1M tokens",
}


def title(measure: Measure) -> str:
    """What a measure is called in headers and tiles."""
    return _TITLES.get(measure.key, measure.title)


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
    return tuple(_over_settings(found, measure))


def _ranking(setting: Setting, measure: Measure) -> PolicyRanking:
    """With every seed that any of them ran with; who lacks one is not ranked."""
    seeds = sorted({run.summary["seed"] for group in setting.groups for run in group.runs})
    columns = []
    for group in setting.groups:
        values = {run.summary["seed"]: measure.of(run.summary) for run in group.runs}
        if not group.oracle:
            columns.append(Column(group.name, tuple(values.get(seed) for seed in seeds)))
    return rank(measure, columns, CONFIDENCE)


def _sentences(setting: Setting, measure: Measure) -> list[str]:
    groups = {group.name: group for group in setting.groups}
    said = []
    for each in dict.fromkeys([measure, E2E]):
        ranking = _ranking(setting, each)
        if ranking.best is None:
            said.append(f"{title(each)}: no policy has a number for every seed.")
            continue
        best = amount(each.unit, groups[ranking.best].mean(each))
        if ranking.second is None:
            said.append(f"{title(each)}: {ranking.best} with {best}, alone in this folder.")
        elif ranking.tied:
            said.append(
                f"{title(each)}: {ranking.best} has the best mean, {best}, but {listed(ranking.tied)} cannot be told "
                f"from it with {counted(len(groups[ranking.best].runs), 'seed')}."
            )
        else:
            said.append(f"{title(each)}: {ranking.best} is best with {best}; {_lead(each, ranking)}.")
    if len(setting.groups[0].runs) == 1:
        said.append("One seed says nothing about chance: no difference here has an interval.")
    return said


def _lead(measure: Measure, ranking: PolicyRanking) -> str:
    lead = ranking.lead
    text = gap(measure.unit, lead.mean if lead else None, lead.t if lead else None)
    sure = "" if lead is None or lead.t is None else ", mean and 95% interval within seeds"
    return f"next is {ranking.second}, {text}{sure}"


def _over_settings(found: Sequence[Setting], measure: Measure) -> list[str]:
    """Who wins how many settings, and what changes between the first and the last."""
    wins: dict[str, int] = {}
    unsure = 0
    for setting in found:
        ranking = _ranking(setting, measure)
        if ranking.best is not None:
            wins[ranking.best] = wins.get(ranking.best, 0) + 1
            unsure += bool(ranking.tied) or ranking.p is None
    order = sorted(wins, key=lambda name: (-wins[name], name))
    if not order:
        return [f"{title(measure)}: no policy has a number for every seed in any setting."]
    told = [f"{name} in {wins[name]}" for name in order]
    head = f"{title(measure)}: {order[0]} is best in {wins[order[0]]} of {counted(len(found), 'setting')}"
    head += f", {listed(told[1:])}." if len(told) > 1 else "."
    said = [head]
    if unsure:
        said.append(f"In {unsure} of {len(found)} settings the seeds cannot tell the best from the next for sure.")
    for setting in (found[0], found[-1]):
        ranking = _ranking(setting, measure)
        if ranking.best is not None:
            group = next(group for group in setting.groups if group.name == ranking.best)
            said.append(f"At {setting.name}: {ranking.best} with {amount(measure.unit, group.mean(measure))}.")
    return said


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
    headers = ["policy", "did not complete", *(title(each) for each in shown)]
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
        "ranking-table", f"Policies by {title(measure)}", tuple(headers), tuple(rows),
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
    label = f"{title(measure)}, minus that of {shortened(against.name)}"
    label += f"\n({'in points; ' if points else ''}better to the {side})"
    x = Axis(label, text=(lambda value: f"{value * 100:+.3g}" if value else "0") if points else _signed(measure))
    finding = (
        f"{title(measure)}: {worse} of {len(rows)} policies are worse than {against.name} by an interval without 0"
    )
    about = f"Differences in {title(measure)} to {against.name} within seeds, with 95% intervals, for {listed(rows)}."
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
    if len(on) == 1:
        finding = f"{on[0]} is at least as good as every other policy in all of these"
    else:
        finding = f"No policy is better than {listed(on, 4)} in all of these"
    charts = []
    for key, x in (("front", E2E), ("front-cost", COST)):
        if x not in axes or GOODPUT not in axes:
            continue
        spots = [Spot(g.name, g.mean(x) or 0.0, g.mean(GOODPUT) or 0.0, g.name in on) for g in runners]
        text = ticks if x.unit == "s" else _dollars
        label = (
            "E2E of all, mean (better to the left)" if x is E2E else "$ per million output tokens (better to the left)"
        )
        values = [spot.x for spot in spots]
        log = min(values) > 0 and max(values) / min(values) > 8
        draw = front(spots, cast.pens, Axis(label, log, text), Axis("goodput, requests/s (better up)"))
        about = (
            f"Points: {label} against goodput for {listed(spot.name for spot in spots)}; filled ones are on the front."
        )
        charts.append(Chart(key, finding, about, draw, cast.names, height_in=3.4))
    said = (
        f"On the Pareto front of {listed(title(axis) for axis in axes)}: {listed(on, 12)}. "
        "Filled marks are on the front; each hollow one is beaten by another policy in every respect.",
    )
    return Section("trade-offs", "Latency, goodput and cost", said, tuple(charts))


def _dollars(value: float) -> str:
    return f"${value:,.4g}"


# --- bounds


def bounds(extra: Mapping[str, Any]) -> list[Section]:
    """How far each policy is from what no scheduler can beat; of a comparison."""
    found = [bound for bound in extra.get("bounds", ()) if bound.get("value") is not None]
    if not found:
        return []
    names = list(dict.fromkeys(plain(label) for bound in found for label in bound["gaps"]))
    measures = [MEASURES.get(bound["key"]) for bound in found]
    rows = []
    for name in names:
        factors = [bound["gaps"].get(name) for bound in found]
        rows.append((text_cell(name), *(Cell("-" if f is None else f"{f:.3g} x", f) for f in factors)))
    headers = ("policy", *(plain(bound["name"]) for bound in found))
    said = tuple(
        f"{plain(bound['name'])}: {plain(bound['what'])}; {title(measure) if measure else plain(bound['key'])} "
        f"{amount(measure.unit if measure else 'number', bound['value'])}."
        for bound, measure in zip(found, measures, strict=True)
    )
    table = Table(
        "bounds-table",
        "Distance to bounds",
        headers,
        tuple(rows),
        note="1 x is as good as the bound, 2 x twice as bad.",
    )
    return [Section("bounds", "How far from the best possible", said, (), (table,))]
