"""Latencies as distributions over all requests that arrived: those who never got an answer keep the curve below 1.

Read from the requests.parquet of runs, column by column, and thinned to a grid of quantiles that is dense in the tail,
so that a report of millions of requests is as small as one of hundreds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.common.text import listed, seconds, share
from sim.plots.charts import Axis, LineSeries, curves, ranges, rows_in
from sim.plots.style import Chart
from sim.report.groups import ORACLE, Cast, RunGroup
from sim.results.metrics import Unit

Floats = NDArray[np.float64]
NAMES = {"ttft_s": "Time to first token (TTFT)", "e2e_s": "End-to-end time (E2E)"}
_GRID = np.unique(np.concatenate([np.linspace(0, 0.98, 50), 1 - np.geomspace(0.02, 1e-4, 24), [1.0]]))
_LOG_FROM = 12  # p99 / p10 from which on a linear axis shows only the tail


@dataclass(frozen=True)
class LatencyDistribution:
    """Seconds at quantiles of `_GRID` of those who have the latency, and how many of `arrived` these are."""

    quantiles_s: Floats
    known: int
    arrived: int

    def at(self, quantile: float) -> float:
        return float(np.interp(quantile, _GRID, self.quantiles_s))

    def of_all(self, quantile: float) -> float:
        """The same over all that arrived, those who never got it last; infinite where too few got it."""
        needed = quantile * self.arrived / self.known
        return self.at(needed) if needed <= 1 else float("inf")

    def curve(self, name: str) -> LineSeries:
        return LineSeries(name, self.quantiles_s.tolist(), (_GRID * self.known / self.arrived).tolist())


def distribution(values_s: Floats, arrived: int) -> LatencyDistribution | None:
    """None where nobody has the latency."""
    known = values_s[~np.isnan(values_s)]
    return LatencyDistribution(np.quantile(known, _GRID), len(known), arrived) if len(known) else None


def by_group(groups: Sequence[RunGroup], latency: str) -> dict[str, LatencyDistribution]:
    """Of each group whose runs all kept their requests: the requests of all its seeds together."""
    found = {}
    for group in groups:
        parts = [run.requests([latency]) for run in group.runs]
        kept = [part[latency] for part in parts if part is not None]
        if len(kept) == len(parts) and kept:
            one = distribution(np.concatenate(kept), sum(len(part) for part in kept))
            if one is not None:
                found[group.name] = one
    return found


def by_code(columns: Mapping[str, NDArray[Any]], code: str, latency: str) -> dict[str, LatencyDistribution]:
    """Of each model or class of one run, the busiest first."""
    import pandas as pd  # noqa: PLC0415  heavy

    codes, names = pd.factorize(columns[code], sort=True)
    counts = np.bincount(codes, minlength=len(names))
    found = {}
    for at in np.argsort(-counts, kind="stable").tolist():
        one = distribution(columns[latency][codes == at], int(counts[at]))
        if one is not None:
            found[str(names[at])] = one
    return found


def cdf(key: str, latency: str, found: Mapping[str, LatencyDistribution], cast: Cast, title: str = "") -> Chart:
    """How many of all that arrived had their latency within how long; a logarithmic axis when that serves."""
    low = min(max(each.at(0.02), 1e-4) for each in found.values())
    high = max(each.at(0.999) for each in found.values())
    log = high / low > _LOG_FROM
    x = Axis(
        f"{NAMES[latency]}, {'logarithmic' if log else 'seconds'}", log, ticks, low if log else 0, max(high, low * 2)
    )
    y = Axis("share of all that arrived", text=axis_text("share"), low=0, high=1.02)
    draw = curves([each.curve(name) for name, each in found.items()], cast.pens, x, y)
    about = f"Cumulative distribution of {NAMES[latency]} for {listed(found)}; higher and further left is better."
    return Chart(key, title or _fastest(latency, found), about, draw, cast.names)


def one_title(latency: str, only: LatencyDistribution) -> str:
    """The finding of a CDF of one distribution."""
    short = latency.removesuffix("_s").upper()
    return f"{short}: half within {seconds(only.at(0.5))}, 99% within {seconds(only.at(0.99))}"


def _fastest(latency: str, found: Mapping[str, LatencyDistribution]) -> str:
    """The finding of a CDF: who is fastest for the typical request, and who for the slow ones."""
    short = latency.removesuffix("_s").upper()
    if len(found) == 1:
        return one_title(latency, next(iter(found.values())))
    real = [name for name in found if not name.endswith(ORACLE)] or list(found)
    typical = min(real, key=lambda name: found[name].of_all(0.5))
    slow = min(real, key=lambda name: found[name].of_all(0.99))
    if found[slow].of_all(0.99) == float("inf"):
        if found[typical].of_all(0.5) == float("inf"):
            return f"{short}: nobody answers half of the requests"
        return f"{short}: {typical} has the fastest median, {seconds(found[typical].of_all(0.5))}; nobody answers 99%"
    if typical == slow:
        both = f"median {seconds(found[slow].of_all(0.5))}, p99 {seconds(found[slow].of_all(0.99))}"
        return f"{short}: {slow} is the fastest, {both}"
    return (
        f"{short}: {typical} has the fastest median ({seconds(found[typical].of_all(0.5))}), "
        f"{slow} the shortest tail (p99 {seconds(found[slow].of_all(0.99))})"
    )


def percentiles(
    key: str, latency: str, found: Mapping[str, Sequence[float | None]], cast: Cast, over: str, rivals: Sequence[str]
) -> Chart:
    """p50, p90 and p99 of each name beside each other; serves where curves would be too many."""
    numbers = [value for values in found.values() for value in values if value]
    log = bool(numbers) and max(numbers) / min(numbers) > 6
    x = Axis(NAMES[latency] + (", logarithmic" if log else ""), log, ticks, None if log else 0)
    tails = {name: values[-1] for name, values in found.items() if values[-1] is not None and name in rivals}
    best = min(tails, key=lambda name: tails[name]) if tails else ""
    short = latency.removesuffix("_s").upper()
    title = (
        f"{short}: {best} has the shortest tail, p99 {seconds(tails[best])}" if len(tails) > 1 else f"{short} by {over}"
    )
    about = f"Median, 90th and 99th percentile of {NAMES[latency]} of those who got it, for each {over}."
    draw = ranges(found, ("median", "p90", "p99"), cast.pens, x)
    return Chart(key, title, about, draw, cast.names, height_in=rows_in(len(found)))


def ticks(value: float) -> str:
    """Seconds on an axis, short."""
    if value == 0:
        return "0"
    if value < 0.9995:
        return f"{value * 1000:.3g} ms"
    return f"{value:,.4g} s"


def axis_text(unit: Unit) -> Callable[[float], str]:
    """How numbers of a unit are written on an axis."""
    if unit == "share":
        return lambda value: f"{value * 100:.0f}%"
    return ticks if unit == "s" else lambda value: f"{value:,.4g}"


def missing(found: Mapping[str, LatencyDistribution]) -> str:
    """A sentence about those who never got the latency, or nothing."""
    short = {name: each for name, each in found.items() if each.known < 0.999 * each.arrived}
    if not short:
        return ""
    worst = min(short, key=lambda name: short[name].known / short[name].arrived)
    each = short[worst]
    return (
        f"Curves that end below 100% had requests without an answer; most of all {worst}, where only "
        f"{share(each.known / each.arrived)} of those that arrived got one."
    )
