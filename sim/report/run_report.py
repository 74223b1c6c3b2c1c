"""What there is to say about one run: how fast, for whom, where the time went, what was switched, what memory held.

One run is one seed: nothing here can be called sure, and the summary says so. Called by write.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sim.common.text import counted, number, seconds, share
from sim.report import latency, sections, sentences
from sim.report.break_even import break_even_section
from sim.report.content import Report, Section, Table, Tile, bytes_cell, number_cell, seconds_cell, text_cell
from sim.report.groups import Cast, RunGroup
from sim.report.over_time import over_time
from sim.report.result_folder import Kept, Material, plain
from sim.results.metrics import LATENCIES, PHASES

ALL = "all requests"
_MOST_MODELS = 7  # with a curve of their own
_MOST_ROWS = 24  # of a figure
_STATS = ("mean", "p50", "p90", "p95", "p99", "max")
_HOW_SURE = (
    "This is one run with one seed, so nothing says how much of it is chance: "
    "`python -m sim compare` plays several seeds and gives intervals."
)
_LATENCIES = {**LATENCIES, "e2e_all_s": "E2E of all, the unanswered to the end"}
_LATENCIES["queue_s"] = _LATENCIES.pop("queue_s")  # last


def run_report(material: Material) -> Report:
    """The report of a run folder."""
    (run,) = material.runs
    summary = run.summary
    models = [plain(name) for name in summary["models"]]
    cast = Cast.of([ALL, *models], [ALL, *(plain(name) for name in by_demand(summary)[:_MOST_MODELS])])
    parts = [_latency(run, cast), _promises(summary, cast), _budget(run, cast), _gpus(summary), _switching(run, cast)]
    parts += [over_time(run, cast), break_even_section(run, cast), _about(run)]
    found = tuple(part for part in parts if part is not None)
    charts = [chart for part in found for chart in part.charts[:1]]
    return Report(
        f"{plain(str(summary['scenario']))}: {run.policy}",
        f"one run, seed {summary['seed']}, run id {summary['run_id']}",
        _headline(run),
        (sentences.scene([run]), sentences.left_over(summary["requests"]), _time(summary), _HOW_SURE),
        _tiles(summary),
        (*sentences.problems(run), *sentences.notices([run])),
        found,
        tuple(charts),
    )


def by_demand(summary: Mapping[str, Any]) -> list[str]:
    """The models, those that most requests asked for first."""
    models = summary["models"]
    return sorted(models, key=lambda name: (-models[name]["requests"]["arrived"], name))


def busiest(summary: Mapping[str, Any]) -> list[str]:
    """The models that a figure has room for: all in their order, or else those of most requests."""
    return list(summary["models"]) if len(summary["models"]) <= _MOST_ROWS else by_demand(summary)[:_MOST_ROWS]


def _headline(run: Kept) -> str:
    summary = run.summary
    ttft, e2e, slo = summary["ttft_s"], summary["e2e_s"], summary["slo"]["attainment"]
    if ttft["count"] == 0:
        return f"Under {run.policy} no request got an answer."
    kept = f" {share(slo)} of all requests kept their promises." if slo is not None else ""
    whole = f", and the whole answer after {seconds(e2e['p50'])}" if e2e["count"] else ""
    return (
        f"Under {run.policy} half of the requests had their first token within {seconds(ttft['p50'])}{whole}; "
        f"for the slowest 1% the first token took more than {seconds(ttft['p99'])}.{kept}"
    )


def _time(summary: Mapping[str, Any]) -> str:
    spent = summary["time_budget_s"]
    total = sum(spent.values())
    if not total:
        return "No request spent any time in the system."
    order = sorted(spent, key=lambda name: -spent[name])[:3]
    told = ", ".join(f"{PHASES[name]} {share(spent[name] / total)}" for name in order if spent[name])
    busy = [gpu["busy_fraction"] or 0.0 for gpu in summary["gpus"]]
    loads = summary["switching"]["loads"]
    return (
        f"Where the requests' time went, above all: {told}. The GPUs computed {share(sum(busy) / len(busy))} of the "
        f"time; models were loaded {counted(loads, 'time')}."
    )


def _tiles(summary: Mapping[str, Any]) -> tuple[Tile, ...]:
    counts, cost = summary["requests"], summary["cost"]
    price = f"${1e6 / cost['output_tokens_per_usd']:,.2f}" if cost["output_tokens_per_usd"] else "-"
    paid = "renting all GPUs all the time" if cost["usd"] is not None else "no price for a GPU"
    return (
        Tile("SLO kept", share(summary["slo"]["attainment"]), "of all that arrived"),
        Tile("first token, median", seconds(summary["ttft_s"]["p50"]), f"p99 {seconds(summary['ttft_s']['p99'])}"),
        Tile("end to end, mean", seconds(summary["e2e_s"]["mean"]), f"p99 {seconds(summary['e2e_s']['p99'])}"),
        Tile("did not complete", number(counts["arrived"] - counts["completed"]), f"of {number(counts['arrived'])}"),
        Tile("goodput", f"{number(summary['slo']['goodput_rps'])}/s", "requests within their SLO"),
        Tile("output tokens", f"{number(summary['throughput']['output_tokens_per_s'])}/s"),
        Tile("cost of 1M output tokens", price, paid),
    )


def _latency(run: Kept, cast: Cast) -> Section:
    summary = run.summary
    cells = {key: [seconds_cell(summary[key][stat]) for stat in _STATS] for key in _LATENCIES}
    lines = [(text_cell(text), *cells[key], number_cell(summary[key]["count"])) for key, text in _LATENCIES.items()]
    note = f"Over the requests that have the number (ITL: over tokens); {sentences.left_over(summary['requests'])}"
    table = Table("latency-table", "Latency", ("", *_STATS, "over"), tuple(lines), note=note)
    columns = run.requests(["model", "ttft_s", "e2e_s"])
    charts = []
    gaps = ""
    for name in ("ttft_s", "e2e_s"):
        if columns is None or not len(columns[name]):
            continue
        whole = latency.distribution(columns[name], len(columns[name]))
        if whole is None:
            continue
        by_model = {plain(model): each for model, each in latency.by_code(columns, "model", name).items()}
        strong = {model: each for model, each in by_model.items() if cast.pens[model].strong}
        found = {ALL: whole, **(strong if len(by_model) > 1 else {})}
        charts.append(latency.cdf(f"cdf-{name[:-2]}", name, found, cast, latency.one_title(name, whole)))
        gaps = gaps or latency.missing(found)
    for name in ("ttft_s", "e2e_s"):
        of = {model: summary["models"][model][name] for model in busiest(summary)}
        rows = {plain(model): tuple(row[stat] for stat in ("p50", "p90", "p99")) for model, row in of.items()}
        if len(rows) > 1 and any(row[0] is not None for row in rows.values()):
            charts.append(latency.percentiles(f"percentiles-{name[:-2]}", name, rows, cast, "model", list(rows)))
    said = ["Curves count all requests that arrived, so they end below 100% where some never got an answer.", gaps]
    return Section("latency", "Latency", tuple(filter(None, said)), tuple(charts), (table,))


def _promises(summary: Mapping[str, Any], cast: Cast) -> Section:
    tables = [sections.by_name("models", "model", summary["models"], cast)]
    if len(summary["classes"]) > 1:
        tables.append(sections.by_name("classes", "service class", summary["classes"], cast))
    return Section("promises", "Models and promises", (sentences.limits(summary),), (), tuple(tables))


def _budget(run: Kept, cast: Cast) -> Section | None:
    arrived = run.summary["requests"]["arrived"]
    if not arrived:
        return None
    spent = run.summary["time_budget_s"]
    rows: dict[str, Sequence[float]] = {ALL: [spent[name] / arrived for name in PHASES]}
    models = run.requests(["model"])
    if models is not None and len(run.summary["models"]) > 1:
        import pandas as pd  # noqa: PLC0415  heavy

        codes, names = pd.factorize(models["model"])
        counts = np.bincount(codes, minlength=len(names))
        means = []
        for phase in PHASES:  # one column at a time: a run may have many millions of requests
            spent_s = (run.requests([f"{phase}_s"]) or {})[f"{phase}_s"]
            means.append(np.bincount(codes, weights=spent_s, minlength=len(names)) / counts)
        place = {str(name): at for at, name in enumerate(names)}
        for model in busiest(run.summary):
            if model in place:
                rows[plain(model)] = [float(mean[place[model]]) for mean in means]
    return sections.budget(rows, cast, "model")


def _gpus(summary: Mapping[str, Any]) -> Section:
    gpus = summary["gpus"]
    if len(gpus) <= _MOST_ROWS:
        rows = {plain(gpu["name"]): [gpu[name] or 0.0 for name in sections.GPU_TIME] for gpu in gpus}
        section = sections.gpu_time(rows, Cast.of([]), "GPU")
    else:
        kinds = dict.fromkeys(gpu["kind"] for gpu in gpus)
        alike = {f"{plain(kind)}, mean": [gpu for gpu in gpus if gpu["kind"] == kind] for kind in kinds}
        rows = {
            name: [sum(gpu[part] or 0.0 for gpu in own) / len(own) for part in sections.GPU_TIME]
            for name, own in list(alike.items())[:_MOST_ROWS]
        }
        section = sections.gpu_time(rows, Cast.of([]), "kind of GPU")
    sizes = ("mean", "peak", "usable")
    cells = []
    for gpu in gpus:
        names = [text_cell(plain(gpu[name])) for name in ("name", "kind")]
        cells.append((*names, *(bytes_cell(gpu[f"{size}_memory_bytes"]) for size in sizes)))
    memory = Table("gpu-memory", "GPU memory, GB", ("GPU", "kind", *sizes), tuple(cells), left=2)
    return replace(section, tables=(*section.tables, memory))


def _switching(run: Kept, cast: Cast) -> Section:
    """What was switched: seconds by model, bytes by link."""
    summary = run.summary
    policy = sections.switching([RunGroup(run.policy, bool(summary["oracle"]), (run,))], cast)
    steps = list(sections.SWITCH_TIME)
    columns = run.columns("switches.parquet", ["model", *steps])
    spent: dict[str, Sequence[float]] = {}
    if columns is not None:
        models = columns["model"].astype(str)
        spent = {
            plain(name): [float(np.nansum(columns[step][models == name])) for step in steps]
            for name in busiest(summary)
        }
    total_s = sum(summary["switching"][step] for step in steps)
    loads = summary["switching"]["loads"]
    title = f"{counted(loads, 'load')}; switching takes {seconds(total_s)} of GPU time"
    causes = sorted({cause for sizes in summary["links"].values() for cause in sizes})
    moved = {
        plain(link): [float(sizes.get(cause, 0)) for cause in causes]
        for link, sizes in summary["links"].items()
        if "/" in link  # a node's link carries the same bytes once more
    }
    all_bytes = sum(sum(values) for values in moved.values())
    most = sorted(moved, key=lambda link: -sum(moved[link]))[:_MOST_ROWS]
    moved = {link: values for link, values in moved.items() if link in most}
    rows = [
        (text_cell(plain(link)), *(bytes_cell(float(sizes.get(cause, 0))) for cause in causes))
        for link, sizes in summary["links"].items()
    ]
    headers = ("link", *(cause.replace("_", " ") for cause in causes))
    note = "A node's link carries what the links of its GPUs carry: the two are not to be added."
    links = Table("links", "Bytes by link and cause, GB", headers, tuple(rows), note=note)
    told = f"{number(all_bytes / 1e9)} GB moved over GPUs' links"
    bars = sections.moved_bytes(moved, causes, Cast.of([]), told, "link")
    charts = (*sections.switch_time(spent, cast, title, "model"), *bars)
    tables = (*policy.tables, *([links] if causes else []))
    return replace(policy, words=() if charts else policy.words, charts=charts, tables=tables)


def _about(run: Kept) -> Section:
    summary = run.summary
    facts = {
        "run id": summary["run_id"],
        "policy": run.policy,
        "oracle": summary["oracle"] or "no",
        "seed": summary["seed"],
        "simulated": seconds(summary["engine"]["sim_s"]),
        "events": number(summary["engine"]["events"]),
        "fairness over models (Jain; 1 is even)": number(summary["fairness_jain"]),
        "longest wait for a first token": seconds(summary["longest_wait_s"]),
        "starved requests": number(summary["switching"]["starved"]),
        "tokens at residency below 1": share(summary["switching"]["share_below_full_residency"]),
    }
    rows = tuple((text_cell(name), text_cell(plain(str(value)))) for name, value in facts.items())
    why = tuple(
        (text_cell(row["outcome"].replace("_", " ")), text_cell(plain(row["reason"])), number_cell(row["requests"]))
        for row in summary["reasons"]
    )
    reasons = Table("reasons", "Why requests did not complete", ("outcome", "reason", "requests"), why, left=2)
    tables = (Table("facts", "This run", ("", "value"), rows, left=2), *([reasons] if why else []))
    return Section("about", "About this run", (sentences.factors([run]),), (), tables, folded=True)
