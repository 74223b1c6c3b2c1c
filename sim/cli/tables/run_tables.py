"""Rich tables for people: a run's summary, from plain data to the terminal; and how every table here is laid out.

Only formatting: the numbers come from summary.py. The command line calls it; catalogue_tables.py has the tables of what
there is to choose from. Text outside names is plain ASCII, so that it also reads well in a log file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sim.common.text import gib, gigabytes, number, seconds, share
from sim.results.metrics import LATENCIES, PHASES

MOST_ROWS = 16  # GPUs or models in a table; the rest is in the files of --out
_WIDE = 100  # columns from which on tables show more
_BAR = 24
_PLAIN: dict[str, Any] = {"box": None, "pad_edge": False, "padding": (0, 2, 0, 0)}


def grid(title: str, *headers: str, left: int = 1) -> Table:
    """A table whose first `left` columns are text and whose others are numbers."""
    table = Table(title=title, header_style="dim", **_PLAIN)
    for position, header in enumerate(headers):
        text = position < left
        table.add_column(header, justify="left" if text else "right")
        table.columns[-1].overflow = "fold"
        table.columns[-1].no_wrap = not text
    return table


def facts(title: str, pairs: Iterable[tuple[str, str]]) -> Table:
    """Names and what there is to say about them."""
    table = Table(title=title, show_header=False, **_PLAIN)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(name, value)
    return table


def show(console: Console, *tables: Table) -> None:
    """Each table under its title, which may be wider than the table, and a blank line."""
    for table in tables:
        console.print(Text(str(table.title), style="bold"))
        table.title = None
        console.print(table)
        console.print()


# --- a run


def print_run(summary: dict[str, Any], console: Console) -> None:
    """A run's summary for a person: what happened, how long it took whom, what was switched, and what to beware of."""
    engine, counts = summary["engine"], summary["requests"]
    policy = summary["policy"] + (" (ORACLE)" if summary["oracle"] else "")
    console.print(Text(f"{summary['scenario']}, policy {policy}, seed {summary['seed']}", style="bold"))
    console.print(
        f"run {summary['run_id']}: {number(counts['arrived'])} requests over {seconds(engine['sim_s'])} simulated, "
        f"in {seconds(engine['wall_s'])}",
        soft_wrap=True,
    )
    console.print()
    show(console, _outcomes(summary), _latencies(summary), _service(summary), _switches(summary), _budget(summary))
    show(console, *_faults(summary))
    wide = console.width >= _WIDE
    show(console, _gpus(summary), _by_name("Models", summary["models"], wide, loads=True))
    if len(summary["classes"]) > 1:
        show(console, _by_name("Service classes", summary["classes"], wide, loads=False))
    factors = ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in summary["factors"].items())
    show(console, facts("Assumptions in force", [("-", factors)]))
    if summary.get("problems"):  # diagnosis.py
        show(console, facts("Problems", [("-", problem["text"]) for problem in summary["problems"]]))
    if summary["notices"]:
        show(console, facts("Notices", [("-", notice) for notice in summary["notices"]]))


def _outcomes(summary: dict[str, Any]) -> Table:
    counts = summary["requests"]
    names = ("arrived", "completed", "unfinished", "rejected", "timed_out", "failed", "impossible")
    table = grid("Requests", *(name.replace("_", " ") for name in names), left=0)
    table.add_row(*(number(counts[name]) for name in names))
    return table


def _latencies(summary: dict[str, Any]) -> Table:
    left_out = summary["requests"]["arrived"] - summary["requests"]["completed"]
    beside = f"; {number(left_out)} requests did not complete" if left_out else ""
    table = grid(f"Latency{beside}", "", "mean", "p50", "p90", "p99", "max", "over")
    for key, label in LATENCIES.items():
        row = summary[key]
        unit = "tokens" if key == "itl_s" else "requests"
        numbers = (seconds(row[name]) for name in ("mean", "p50", "p90", "p99", "max"))
        table.add_row(label, *numbers, f"{number(row['count'])} {unit}")
    return table


def _service(summary: dict[str, Any]) -> Table:
    slo, rates, cost, switching = summary["slo"], summary["throughput"], summary["cost"], summary["switching"]
    limits = [row["limits"] for row in summary["classes"].values()]
    promised = any(row[name] is not None for row in limits for name in ("ttft_s", "tpot_s", "e2e_s"))
    attained = f"{share(slo['attainment'])} of all that arrived" + ("" if promised else " (no limits are set)")
    done = f"{number(rates['requests_per_s'])} requests/s, {number(rates['output_tokens_per_s'])} output tokens/s"
    pairs = [
        ("SLO attainment", attained),
        ("goodput", f"{number(slo['goodput_rps'])} requests/s within their SLO"),
        ("throughput", done),
        ("longest wait", f"{seconds(summary['longest_wait_s'])} for a first token; {switching['starved']:,} starved"),
        ("fairness", f"{number(summary['fairness_jain'])} (Jain over models; 1 is even)"),
    ]
    if cost["usd"] is not None:
        pairs.append(("cost", f"${cost['usd']:,.2f}, {number(cost['output_tokens_per_usd'])} output tokens/$"))
    return facts("Service", pairs)


def _switches(summary: dict[str, Any]) -> Table:
    row = summary["switching"]
    moved = [f"{cause.replace('_', ' ')} {gigabytes(size)}" for cause, size in row["bytes_by_cause"].items() if size]
    models = f"{row['loads']:,} loads ({number(row['reloads_per_request'])} per request), "
    models += f"{row['evictions']:,} evictions, {row['resizes']:,} resizes"
    preempted = f"{row['model_preemptions']:,} times a model, {row['sequence_preemptions']:,} times a single sequence"
    steps = {"reload": "reload_s", "engine start": "start_s", "free": "free_s"}
    steps |= {"KV save": "kv_save_s", "KV restore": "kv_restore_s"}
    spent = ", ".join(f"{name} {seconds(row[key])}" for name, key in steps.items())
    tokens = f"{number(row['tokens_below_full_residency'])} came from partly resident models "
    tokens += f"({share(row['share_below_full_residency'])} of all)"
    pairs = [("models", models), ("preempted", preempted), ("time spent", spent)]
    return facts("Switching", [*pairs, ("moved", ", ".join(moved) or "nothing"), ("tokens", tokens)])


def _budget(summary: dict[str, Any]) -> Table:
    budget, arrived = summary["time_budget_s"], summary["requests"]["arrived"]
    total = sum(budget.values())
    table = grid("Where the requests' time went", "", "share", "per request", "")
    table.columns[-1].justify = "left"
    for name, label in PHASES.items():
        part, each_s = budget[name] / total if total else 0.0, budget[name] / arrived if arrived else None
        table.add_row(label, share(part), seconds(each_s), "#" * round(_BAR * part))
    return table


def _faults(summary: dict[str, Any]) -> list[Table]:
    if "faults" not in summary:
        return []
    row = summary["faults"]
    counts, lost = row["requests"], row["lost"]
    names = {"gpu_failure": "GPU failures", "node_loss": "node losses", "slow_link": "times a slow link"}
    names["load_failure"] = "failed loads"
    happened = [f"{count:,} {names[kind]}" for kind, count in row["events"].items() if count]
    pairs = [
        ("happened", ", ".join(happened) or "none"),
        (
            "availability",
            f"{share(row['availability'])} of the GPUs' time; down for {seconds(row['down_gpu_s'])} in all",
        ),
        (
            "requests",
            f"{counts['retried']:,} sent back ({counts['retries']:,} times), {counts['failed']:,} given up as failed, "
            f"{counts['cancelled']:,} cancelled by their clients",
        ),
        (
            "lost",
            f"KV of {lost['kv_tokens']:,} tokens (to recompute: {seconds(lost['recompute_s'])} of GPU time), "
            f"{seconds(lost['unfinished_steps_s'])} of unfinished iterations, {seconds(lost['loads_s'])} of loads, "
            f"{lost['output_tokens']:,} output tokens of failed requests",
        ),
    ]
    return [facts("Faults", pairs)]


def _gpus(summary: dict[str, Any]) -> Table:
    rows = summary["gpus"]
    parts = {"busy_fraction": "busy", "loading_fraction": "loading", "transferring_fraction": "moving KV"}
    parts |= {"idle_fraction": "idle", **({"down_fraction": "down"} if "faults" in summary else {})}
    sizes = {"mean_memory_bytes": "GiB: mean", "peak_memory_bytes": "peak", "usable_memory_bytes": "of"}
    table = grid(shown("GPUs", rows), "", *parts.values(), *sizes.values())
    for row in rows[:MOST_ROWS]:
        table.add_row(row["name"], *(share(row[name]) for name in parts), *(gib(row[name]) for name in sizes))
    return table


def _by_name(what: str, rows: dict[str, Any], wide: bool, loads: bool) -> Table:
    """A row for each model or class; with `loads` what only models have."""
    headers = ["arrived", "done", "TTFT\np50", "TTFT\np99", "TPOT\nmean", *(["E2E\nmean", "E2E\np99"] if wide else [])]
    spots = [("ttft_s", "p50"), ("ttft_s", "p99"), ("tpot_s", "mean"), ("e2e_s", "mean"), ("e2e_s", "p99")]
    table = grid(shown(what, rows), "", *headers, "SLO", *(["loads", "on GPU"] if loads else []))
    for name, row in list(rows.items())[:MOST_ROWS]:
        counts = [number(row["requests"][key]) for key in ("arrived", "completed")]
        times = [seconds(row[latency][stat]) for latency, stat in (spots if wide else spots[:3])]
        more = [number(row["loads"]), share(row["mean_residency"])] if loads else []
        table.add_row(name, *counts, *times, share(row["slo"]["attainment"]), *more)
    return table


def shown(what: str, rows: Sequence[Any] | dict[str, Any], rest: str = "--json and --out have all") -> str:
    """A title that says when only the first rows are shown."""
    more = f" (the first {MOST_ROWS} of {len(rows)}; {rest})" if len(rows) > MOST_ROWS else ""
    return what + more
