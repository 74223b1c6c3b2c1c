"""Sections that every report has in the same way: where requests' and GPUs' time went, what was switched and moved.

A row is a policy (over its seeds) or, in the report of one run, a model or a GPU. Called by run_report.py and
store_report.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sim.common.text import number, seconds, share
from sim.plots.charts import Axis, rows_in, stacks
from sim.plots.style import CATEGORIES, COLOURS, Chart
from sim.report.content import Cell, Section, Table, bytes_cell, number_cell, seconds_cell, share_cell, text_cell
from sim.report.groups import Cast, RunGroup
from sim.report.result_folder import plain
from sim.results.metrics import PHASES

_BLUE, _ORANGE, _GREEN, _RED, _PINK, _BROWN, _SKY, _VIOLET = CATEGORIES
_GREY = COLOURS["other"][0]
_PHASE_COLOURS = (_GREY, _ORANGE, _SKY, _BLUE, _PINK, _RED, _GREEN, _VIOLET)
GPU_TIME = {
    "busy_fraction": ("computing", _BLUE),
    "loading_fraction": ("loading", _ORANGE),
    "transferring_fraction": ("moving KV", _GREEN),
    "idle_fraction": ("idle", COLOURS["grid"][0]),
}
SWITCH_TIME = {
    "reload_s": ("reload weights", _ORANGE),
    "start_s": ("start the engine", _SKY),
    "free_s": ("free memory", _GREY),
    "kv_save_s": ("save KV", _GREEN),
    "kv_restore_s": ("restore KV", _VIOLET),
}
_CAUSES = {"weights": ("weights", _ORANGE), "kv_save": ("KV save", _GREEN), "kv_restore": ("KV restore", _VIOLET)}
_EVENTS = ("loads", "evictions", "resizes", "model_preemptions", "sequence_preemptions")


def budget(rows: Mapping[str, Sequence[float]], cast: Cast, of: str) -> Section:
    """Seconds per request in each phase (the order of PHASES), for each row."""
    parts = dict(zip(PHASES.values(), _PHASE_COLOURS, strict=True))
    totals = {name: sum(values) for name, values in rows.items()}
    draw = stacks(rows, parts, Axis("seconds per request that arrived", text=_short), cast.numbers)
    chart = Chart(
        "budget", _budget_title(rows, of), f"Stacked bars: seconds per request in each phase, for each {of}.", draw,
        cast.names, height_in=rows_in(len(rows), 3),
    )  # fmt: skip
    shares = {n: [value / totals[n] if totals[n] else 0.0 for value in values] for n, values in rows.items()}
    draw = stacks(shares, parts, Axis("share of their time", text=_per_cent, high=1.0), cast.numbers)
    waits = {name: sum(values[:2]) for name, values in shares.items()}
    most = max(waits, key=lambda name: waits[name])
    told = f"{most}: {share(waits[most])} of requests' time is waiting for a place or a load"
    relative = Chart(
        "budget-shares", told, f"Stacked bars: share of requests' time in each phase, for each {of}.", draw,
        cast.names, height_in=rows_in(len(rows), 3),
    )  # fmt: skip
    cells = [(text_cell(name), *map(seconds_cell, (*values, totals[name]))) for name, values in rows.items()]
    headers, title = (of, *PHASES.values(), "all"), f"Seconds per request, by {of}"
    table = Table("budget-table", title, headers, tuple(cells), series=_series(rows, cast))
    words = (
        "Each second between a request's arrival and its end has one name. Requests that did not complete are in it "
        "too, up to the moment at which they left.",
    )
    return Section("time", "Where the requests' time went", words, (chart, relative), (table,))


def _budget_title(rows: Mapping[str, Sequence[float]], of: str) -> str:
    totals = {name: sum(values) for name, values in rows.items()}
    labels = list(PHASES.values())
    name, values = min(rows.items(), key=lambda row: totals[row[0]])
    if len(rows) > 1:
        worst = max(totals, key=lambda name: totals[name])
        under = "under" if of == "policy" else "for"
        return f"A request takes {seconds(totals[name])} {under} {name}, {seconds(totals[worst])} {under} {worst}"
    largest = max(range(len(values)), key=lambda at: values[at])
    part = values[largest] / totals[name] if totals[name] else 0.0
    return f"{share(part)} of a request's time is {labels[largest]}"


def gpu_time(rows: Mapping[str, Sequence[float]], cast: Cast, of: str) -> Section:
    """Shares of GPUs' time by cause (the order of GPU_TIME), for each row."""
    parts = dict(GPU_TIME.values())
    busy = {name: values[0] for name, values in rows.items()}
    most, least = (choose(busy, key=lambda name: busy[name]) for choose in (max, min))
    on = "under" if of == "policy" else "on"
    title = f"Computing {share(busy[most])} of the time"
    title += f" {on} {most}, {share(busy[least])} {on} {least}" if len(rows) > 1 else ""
    draw = stacks(rows, parts, Axis("share of GPU time", text=_per_cent, high=1.0), cast.numbers)
    about = f"Stacked bars: share of GPU time spent computing, loading, moving KV and idle, for each {of}."
    chart = Chart("gpu-time", title, about, draw, cast.names, height_in=rows_in(len(rows)))
    cells = [(text_cell(name), *map(share_cell, values)) for name, values in rows.items()]
    headers = (of, *(label for label, _ in GPU_TIME.values()))
    table = Table("gpu-time-table", f"GPU time by {of}", headers, tuple(cells), series=_series(rows, cast))
    words = ("A GPU computes while an instance on it runs, even where most layers of that instance are on the CPU.",)
    return Section("gpus", "Where the GPUs' time went", words, (chart,), (table,))


def switching(groups: Sequence[RunGroup], cast: Cast) -> Section:
    """Policies: loads, evictions and preemptions; the time they took and the bytes they moved, by cause; per run."""
    runs = [run for group in groups for run in group.runs]
    causes = tuple(dict.fromkeys(cause for run in runs for cause in run.summary["switching"]["bytes_by_cause"]))
    spent = {group.name: [group.average(f"switching.{name}") for name in SWITCH_TIME] for group in groups}
    moved = {group.name: [group.average(f"switching.bytes_by_cause.{c}") for c in causes] for group in groups}
    charts = (
        *switch_time(spent, cast, _most("spends", spent, seconds, " a run on switching"), "policy"),
        *moved_bytes(moved, causes, cast, _most("moves", moved, _gigabytes, " a run"), "policy"),
    )
    words = () if charts else ("Nothing was loaded, moved or preempted.",)
    tables = (_switch_table(groups, cast, causes),)
    return Section("switching", "Switching, and the bytes it moved", words, charts, tables)


def _most(verb: str, rows: Mapping[str, Sequence[float]], text: Callable[[float], str], rest: str) -> str:
    totals = {name: sum(values) for name, values in rows.items()}
    most, least = (choose(totals, key=lambda name: totals[name]) for choose in (max, min))
    other = f", {least} {text(totals[least])}" if len(rows) > 1 else ""
    return f"{most} {verb} {text(totals[most])}{rest}{other}"


def switch_time(rows: Mapping[str, Sequence[float]], cast: Cast, title: str, of: str) -> tuple[Chart, ...]:
    """Seconds of switching by step (the order of SWITCH_TIME); nothing where there were none."""
    if not any(any(values) for values in rows.values()):
        return ()
    x = Axis("seconds per run, added over GPUs", text=_short)
    draw = stacks(rows, dict(SWITCH_TIME.values()), x, cast.numbers)
    about = f"Stacked bars: seconds of switching by step, for each {of}."
    return (Chart("switch-time", title, about, draw, cast.names, height_in=rows_in(len(rows), 2)),)


def moved_bytes(
    rows: Mapping[str, Sequence[float]], causes: Sequence[str], cast: Cast, title: str, of: str
) -> tuple[Chart, ...]:
    """Bytes over host links by cause; nothing where none were moved."""
    if not any(any(values) for values in rows.values()):
        return ()
    spare = [colour for colour in CATEGORIES if colour not in (_ORANGE, _GREEN, _VIOLET)]
    labels = [_CAUSES.get(cause, (cause.replace("_", " "), spare[at % len(spare)])) for at, cause in enumerate(causes)]
    gigabytes = {name: [value / 1e9 for value in values] for name, values in rows.items()}
    draw = stacks(gigabytes, dict(labels), Axis("GB per run over host links", text=_short), cast.numbers)
    about = f"Stacked bars: gigabytes moved over host links by cause, for each {of}."
    return (Chart("bytes", title, about, draw, cast.names, height_in=rows_in(len(rows), 2)),)


def _gigabytes(value: float) -> str:
    return f"{number(value / 1e9)} GB"


def _switch_table(groups: Sequence[RunGroup], cast: Cast, causes: Sequence[str]) -> Table:
    rows = []
    for group in groups:
        counts = [number_cell(group.average(f"switching.{name}")) for name in _EVENTS]
        per_request = group.average("switching.reloads_per_request")
        times = [seconds_cell(group.average(f"switching.{name}")) for name in ("reload_s", "start_s")]
        moved = [bytes_cell(group.average(f"switching.bytes_by_cause.{cause}")) for cause in causes]
        rows.append((text_cell(group.name), *counts, number_cell(per_request), *times, *moved))
    headers = ("policy", *(name.replace("_", " ") for name in _EVENTS), "loads per request", "reload", "engine start")
    moved_headers = tuple(f"{cause.replace('_', ' ')}, GB" for cause in causes)
    return Table(
        "switching-table", "Switching per run", headers + moved_headers, tuple(rows),
        series=_series([group.name for group in groups], cast),
    )  # fmt: skip


def by_name(key: str, of: str, rows: Mapping[str, Mapping[str, Any]], cast: Cast) -> Table:
    """Models or classes of one run: how many, how fast, and whether promises were kept."""
    headers = [of, "arrived", "completed", "TTFT p50", "TTFT p99", "TPOT mean", "E2E mean", "E2E p99", "SLO kept"]
    more = "loads" in next(iter(rows.values()), {})
    headers += ["loads", "layers on GPU"] if more else []

    def cells(name: str, row: Mapping[str, Any]) -> tuple[Cell, ...]:
        counts = [number_cell(row["requests"][name]) for name in ("arrived", "completed")]
        spots = (("ttft_s", "p50"), ("ttft_s", "p99"), ("tpot_s", "mean"), ("e2e_s", "mean"), ("e2e_s", "p99"))
        times = [seconds_cell(row[latency][stat]) for latency, stat in spots]
        last = [number_cell(row["loads"]), share_cell(row["mean_residency"])] if more else []
        return (text_cell(plain(name)), *counts, *times, share_cell(row["slo"]["attainment"]), *last)

    return Table(
        key, f"By {of}", tuple(headers), tuple(cells(name, row) for name, row in rows.items()),
        note="Latencies are over the requests that completed (TTFT: that got a first token).",
        series=_series([plain(name) for name in rows], cast),
    )  # fmt: skip


def _series(names: Sequence[str] | Mapping[str, object], cast: Cast) -> tuple[int | None, ...]:
    return tuple(cast.numbers.get(name) for name in names)


def _per_cent(value: float) -> str:
    return f"{value * 100:.0f}%"


def _short(value: float) -> str:
    return f"{value:,.4g}"
