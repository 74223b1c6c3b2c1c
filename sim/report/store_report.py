"""What there is to say about many runs: which policy is best, by how much, how sure, and what that costs.

A comparison has one setting, a sweep may have many; each setting is shown by the same sections. A comparison brings its
own verdict (comparison.json); of a sweep it is worked out here by the same functions. Called by write.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sim.common.text import counted, listed, share
from sim.report import latency, policy_comparison, sections, sentences
from sim.report.break_even import break_even_section
from sim.report.content import Report, Section, Table, Tile, number_cell, seconds_cell, share_cell, text_cell
from sim.report.effects import against
from sim.report.groups import Cast, RunGroup, Setting, promised, ranked, rivals, settings, shown
from sim.report.measures import COST, E2E, E2E_P99, GOODPUT, KNOWN, SLO, TTFT_P50, TTFT_P99, measure_of
from sim.report.result_folder import Material, plain
from sim.results.metrics import PHASES, Measure

_MOST_SHOWN = 3  # settings with figures of their own
_MOST_STRONG = 7
_MOST_ROWS = 2000  # of the table of all runs


def store_report(material: Material) -> Report:
    """The report of a sweep or a comparison."""
    found = settings(material.runs)
    measure = _deciding(material)
    main = found[len(found) // 2] if len(found) > 1 else found[0]
    baseline = material.extra.get("baseline")
    order = ranked(main.groups, measure)
    names = [*(group.name for group in order), *(group.name for each in found for group in each.groups)]
    strong = [group.name for group in order if not group.oracle][:_MOST_STRONG]
    cast = Cast.of(names, [*strong[:-1], baseline] if baseline and plain(baseline) not in strong else strong)
    found = [Setting(each.labels, tuple(sorted(each.groups, key=lambda g: cast.numbers[g.name]))) for each in found]
    head = policy_comparison.verdict(material, found, measure)
    parts = [*against(found, cast, measure)]
    picked = found if len(found) <= _MOST_SHOWN else [found[0], found[len(found) // 2], found[-1]]
    for number, setting in enumerate(picked):
        parts += _setting(setting, cast, material, number if len(found) > 1 else None)
    parts += [
        *policy_comparison.bounds(material.extra),
        break_even_section(material.runs[0]),
        runs_section(material),
        *failed_section(material),
        _about(material),
    ]
    policies = len(cast.names)
    cautions = [*_cautions(material, cast), *map(plain, map(str, material.extra.get("notices", ())))]
    return Report(
        f"{plain(str(material.runs[0].summary['scenario']))}: {counted(policies, 'policy')}"
        + (f" in {counted(len(found), 'setting')}" if len(found) > 1 else ""),
        _subtitle(material, cast),
        head[0],
        (*head[1:], sentences.all_left_over(_together(found)), sentences.scene(material.runs)),
        _tiles(found, measure),
        tuple(dict.fromkeys(cautions)),
        tuple(parts),
        tuple(_overview(parts)),
    )


def _deciding(material: Material) -> Measure:
    """What policies are ranked by: what the comparison says, else promises kept where there are any, else the mean."""
    first = next(iter(material.extra.get("metrics", ())), None)
    if first is not None:
        return measure_of(first)
    return SLO if promised(material.runs) else E2E


def _subtitle(material: Material, cast: Cast) -> str:
    runs = len({run.summary["run_id"] for run in material.runs})
    seeds = sorted({run.summary["seed"] for run in material.runs})
    warm_up = material.extra.get("warm_up") or {}
    cut = f", warm-up of {warm_up['after_s']:g} s cut" if warm_up.get("after_s") else ""
    told = listed(map(str, seeds), 12)
    return f"{material.kind}, {counted(runs, 'run')}, {counted(len(seeds), 'seed')} ({told}){cut}"


def _together(found: Sequence[Setting]) -> list[RunGroup]:
    """All runs of a policy, whatever the setting."""
    runs: dict[str, list[Any]] = {}
    oracles = {}
    for setting in found:
        for group in setting.groups:
            runs.setdefault(group.name, []).extend(group.runs)
            oracles[group.name] = group.oracle
    return [RunGroup(name, oracles[name], tuple(each)) for name, each in runs.items()]


def _tiles(found: Sequence[Setting], measure: Measure) -> tuple[Tile, ...]:
    """Who is best in the middle setting by what people ask for first."""
    main = found[len(found) // 2]
    tiles = []
    for each in dict.fromkeys([measure, E2E, TTFT_P99, GOODPUT, COST]):
        runners = [group for group in main.groups if not group.oracle]
        if each.key.startswith("ttft"):  # of those who got it: whoever turns many away must not win by it
            runners = rivals(main.groups)
        runners = [group for group in runners if group.mean(each) is not None]
        if runners and each.better is not None:
            best = ranked(runners, each)[0]
            where = f", at {main.name}" if len(found) > 1 else ""
            tiles.append(Tile(f"best {each.name}", policy_comparison.said(each, best.mean(each)), best.name + where))
    return tuple(tiles)


def _setting(setting: Setting, cast: Cast, material: Material, number: int | None) -> list[Section]:
    """Everything about one setting; of several settings, in one section each."""
    groups = setting.groups
    baseline = plain(str(material.extra.get("baseline", "")))
    measure = _deciding(material)
    parts = [policy_comparison.ranking(groups, cast, measure, baseline), _latency(groups, cast)]
    parts += [policy_comparison.trade_offs(groups, cast), _budget(groups, cast), _gpu_time(groups, cast)]
    parts.append(sections.switching(groups, cast))
    if number is None:
        return parts
    return [
        Section(
            f"setting-{number}",
            f"At {setting.name}",
            tuple(word for part in parts[:2] for word in part.words),
            tuple(replace(chart, key=f"{chart.key}-{number}") for part in parts for chart in part.charts),
            tuple(replace(table, key=f"{table.key}-{number}") for part in parts for table in part.tables),
            folded=number > 0,
        )
    ]


def _latency(groups: Sequence[RunGroup], cast: Cast) -> Section:
    charts = []
    said: list[str] = []
    for name in ("ttft_s", "e2e_s"):
        found = latency.by_group(groups, name)
        if found:
            charts.append(latency.cdf(f"cdf-{name[:-2]}", name, found, cast))
            said.append(latency.missing(found))
    if not charts:
        said.append("This store kept summaries only, so there are no curves: percentiles are means over the runs.")
    for name in ("ttft_s", "e2e_s"):
        rows = {group.name: [group.mean(KNOWN[f"{name}.{stat}"]) for stat in ("p50", "p90", "p99")] for group in groups}
        if any(row[0] is not None for row in rows.values()):
            real = [group.name for group in rivals(groups)]
            charts.append(latency.percentiles(f"percentiles-{name[:-2]}", name, rows, cast, "policy", real))
    return Section("latency", "Latency", tuple(dict.fromkeys(filter(None, said))), tuple(charts))


def _budget(groups: Sequence[RunGroup], cast: Cast) -> Section:
    spent = {group.name: [group.total(f"time_budget_s.{name}") for name in PHASES] for group in groups}
    rows = {group.name: [total / max(group.arrived, 1) for total in spent[group.name]] for group in groups}
    return sections.budget(rows, cast, "policy")


def _gpu_time(groups: Sequence[RunGroup], cast: Cast) -> Section:
    def fraction(group: RunGroup, name: str) -> float:
        known = [gpu[name] or 0.0 for run in group.runs for gpu in run.summary["gpus"]]
        return sum(known) / len(known)

    rows = {group.name: [fraction(group, name) for name in sections.GPU_TIME] for group in groups}
    return sections.gpu_time(rows, cast, "policy")


def runs_section(material: Material) -> Section:
    """A row for each run."""
    labels = list(dict.fromkeys(name for run in material.runs for name in run.labels)) or ["policy", "seed"]
    headers = (*map(plain, labels), "run", "arrived", "did not complete",
               *(each.name for each in (SLO, TTFT_P50, TTFT_P99, E2E, E2E_P99)), "loads", "preemptions")  # fmt: skip
    rows = []
    for run in material.runs[:_MOST_ROWS]:
        summary = run.summary
        counts, switching = summary["requests"], summary["switching"]
        own: Mapping[str, Any] = run.labels or {"policy": run.policy, "seed": summary["seed"]}
        cells = [
            number_cell(value) if isinstance(value, int | float) and not isinstance(value, bool)
            else text_cell(run.policy if name == "policy" and summary["oracle"] else shown(value))
            for name, value in ((name, own.get(name, "")) for name in labels)
        ]  # fmt: skip
        times = [seconds_cell(each.of(summary)) for each in (TTFT_P50, TTFT_P99, E2E, E2E_P99)]
        rows.append(
            (
                *cells, text_cell(summary["run_id"]), number_cell(counts["arrived"]),
                number_cell(counts["arrived"] - counts["completed"]), share_cell(summary["slo"]["attainment"]), *times,
                number_cell(switching["loads"]),
                number_cell(switching["model_preemptions"] + switching["sequence_preemptions"]),
            )
        )  # fmt: skip
    more = len(material.runs) - _MOST_ROWS
    note = f"The first {_MOST_ROWS:,} of {len(material.runs):,}; runs.csv has all." if more > 0 else ""
    table = Table("runs-table", "All runs", headers, tuple(rows), left=len(labels) + 1, note=note)
    return Section("runs", "All runs", (), (), (table,), folded=True)


def failed_section(material: Material) -> list[Section]:
    """A row for each run that failed; nothing where none did."""
    if not material.errors:
        return []
    rows = tuple((text_cell(what), text_cell(why)) for what, why in material.errors)
    table = Table("failed-table", "Runs that failed", ("run", "why"), rows, left=2)
    return [Section("failed", "Runs that failed", (), (), (table,))]


def _cautions(material: Material, cast: Cast) -> list[str]:
    found = []
    if material.errors:
        found.append(f"{counted(len(material.errors), 'run')} failed and are in no number: see “Runs that failed”.")
    oracles = [name for name in cast.names if name.endswith("(oracle)")]
    if oracles:
        verb = "is an oracle" if len(oracles) == 1 else "are oracles"
        known = "no real scheduler can know what they know. They are bounds, not rivals."
        found.append(f"{listed(oracles)} {verb}: {known}")
    groups = _together(settings(material.runs))
    below = [group for group in groups if group.total("switching.tokens_below_full_residency")]
    if below:
        most = max(below, key=lambda group: group.average("switching.share_below_full_residency"))
        part = share(most.average("switching.share_below_full_residency"))
        found.append(
            "Times of partly resident models come from tables that are mostly analytic; most of their tokens are "
            f"those of {most.name} ({part} of its tokens)."
        )
    return found + list(sentences.notices(material.runs))


def _about(material: Material) -> Section:
    said = [sentences.factors(material.runs), sentences.limits(material.runs[0].summary)]
    warm_up = material.extra.get("warm_up")
    if warm_up:
        said.append(f"Warm-up: {plain(str(warm_up['rule']))} ({warm_up['after_s']:g} s).")
    return Section("about", "Assumptions", tuple(said))


def _overview(parts: Sequence[Section]) -> list[Any]:
    wanted = ("differences", "front-cost", "load-0", "cdf-ttft", "cdf-e2e", "budget", "switch-time", "gpu-time")
    charts = {chart.key: chart for part in parts for chart in part.charts}
    charts |= {key.removesuffix("-0"): chart for key, chart in charts.items() if key != "load-0"}
    return [charts[key] for key in wanted if key in charts][:6]
