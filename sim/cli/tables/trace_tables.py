"""Rich tables of traces: one in full, or several side by side.

Only formatting: the numbers come from traces/facts.py and traces/load.py. `trace_cli` calls it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from sim.cli.tables.run_tables import MOST_ROWS, facts, grid, show, shown
from sim.common.text import number, seconds, share

if TYPE_CHECKING:
    from sim.traces.formats.base import Format

Found = Mapping[str, Any]


def print_trace(found: dict[str, Any], console: Console) -> None:
    """What a description found of one trace."""
    tables = [facts("Trace", [(name, text) for name, text in _lines(found) if text != "-"])]
    tokens = grid("Tokens", "", "mean", "p50", "p90", "p99", "min", "max")
    for key, label in (("prompt_tokens", "prompt"), ("output_tokens", "output")):
        tokens.add_row(label, *(number(found[key][name]) for name in ("mean", "p50", "p90", "p99", "min", "max")))
    show(console, *tables, tokens, _models(found))
    if "load" in found:
        show(console, *_load(found["load"]))


def print_traces(found: Mapping[str, Found], console: Console) -> None:
    """Several traces side by side, a column each."""
    table = grid("Traces", "", *found)
    for column in table.columns[1:]:
        column.overflow, column.no_wrap = "fold", False
    rows = [dict(_rows(each)) for each in found.values()]
    for name in rows[0]:
        cells = [row[name] for row in rows]
        if any(cell != "-" for cell in cells):
            table.add_row(name, *cells)
    show(console, table)


def _lines(found: Found) -> list[tuple[str, str]]:
    """Names and sentences about one trace; "-" where there is nothing to say."""
    slope, minute, day = found["popularity_slope"], found["per_minute"], found["day"]
    popular, most = found["popularity"], found["concurrency"]
    speeds = most["assumed"]
    return [
        ("requests", number(found["rows"])),
        ("span", f"{seconds(found['span_s'])}, {number(found['rate_per_s'])} requests/s on average"),
        ("burstiness", f"{number(found['iat_cv'])} (deviation / mean of the gaps; 1 is Poisson)"),
        ("", _in_windows(found)),
        (
            "per minute",
            "-"
            if minute is None
            else f"{number(minute['mean'])} on average, at most {number(minute['max'])}, none in "
            f"{share(minute['empty_share'])} of the minutes; deviation / mean {number(minute['cv'])}, variance / mean "
            f"{number(found['burstiness']['per_minute_iod'])}",
        ),
        ("day", "-" if day is None else _hours(day)),
        ("gaps of 0", _ties(found)),
        ("tokens/s", _tokens(found)),
        (
            "popularity",
            "-"
            if slope is None
            else f"log share falls by {_exponent(slope)} per log rank (Zipf exponent); the first 1, 5, 10 models get "
            f"{', '.join(share(popular[f'top_{n}']) for n in (1, 5, 10))}; {share(popular['same_model_share'])} of the "
            "requests are for the same model as the one before",
        ),
        ("sessions", _sessions(found)),
        ("closed loop", _closed(found)),
        ("prefixes", _prefixes(found)),
        (
            "concurrency",
            f"{number(most['mean'])} on average, at most {number(most['max'])}, if all are served at once with "
            f"{number(speeds['prompt_per_s'])} prompt and {number(speeds['output_per_s'])} output tokens/s each",
        ),
    ]


def _exponent(slope: float) -> str:
    return f"{round(-slope, 9) + 0.0:.3g}"  # equal shares give a slope of 0 up to rounding


def _in_windows(found: Found) -> str:
    texts = []
    for width_s, spread in found["burstiness"]["window_iat_cv"].items():
        if spread is not None:
            values = ", ".join(number(spread[name]) for name in ("p10", "p50", "p90"))
            texts.append(f"{values} (p10, p50, p90) within windows of {width_s} s")
    return "; ".join(texts) or "-"


def _hours(day: Found) -> str:
    return (
        f"the quietest hour ({day['quietest_hour']}:00 by the trace's clock) has "
        f"{share(day['quietest_of_busiest'])} of the busiest ({day['busiest_hour']}:00)"
    )


def _ties(found: Found) -> str:
    gaps = found["iat"]
    if gaps is None or not gaps["zero_share"]:
        return "-"
    return f"{share(gaps['zero_share'])}; {number(gaps['stamps'])} different arrival times"


def _tokens(found: Found) -> str:
    tokens = found["tokens"]
    busiest = tokens["busiest_minute_per_s"]
    text = f"{number(tokens['prompt_per_s'])} prompt, {number(tokens['output_per_s'])} output"
    if busiest is not None:
        text += f"; {number(busiest)} together in the busiest minute"
    if tokens["correlation"] is not None:
        text += f"; correlation of the two {tokens['correlation']:.2f}"
    return text


def _sessions(found: Found) -> str:
    sessions = found["sessions"]
    if sessions is None:
        return "-"
    turns, gap = sessions["turns"], sessions["gap_s"]
    text = (
        f"{number(sessions['sessions'])} with {number(sessions['requests'])} requests; turns: {number(turns['mean'])} "
    )
    text += f"on average, p50 {number(turns['p50'])}, p99 {number(turns['p99'])}, at most {number(turns['max'])}"
    return text if gap is None else text + f"; {seconds(gap['p50'])} between arrivals (p50)"


def _closed(found: Found) -> str:
    sessions = found["sessions"]
    if sessions is None or sessions["think_s"] is None:
        return "-"
    think = sessions["think_s"]
    times = ", ".join(seconds(think[name]) for name in ("p50", "p90", "p99"))
    waiting = number(sessions["closed_loop_requests"])
    return f"{waiting} requests wait for the one before; think time {times} (p50, p90, p99)"


def _prefixes(found: Found) -> str:
    prefixes = found["prefixes"]
    if prefixes is None:
        return "-"
    hits = share(prefixes["hit_share"])
    return f"{hits} of {number(prefixes['blocks'])} prompt blocks were seen before (a cache without limits)"


def _rows(found: Found) -> list[tuple[str, str]]:
    """Names and short cells, for a column."""
    minute, sessions = found["per_minute"] or {}, found["sessions"] or {}
    windows = found["burstiness"]["window_iat_cv"]
    popular, tokens, most = found["popularity"], found["tokens"], found["concurrency"]
    used = sum(1 for row in found["models"].values() if row["requests"])
    rows = [
        ("requests", number(found["rows"])),
        ("span", seconds(found["span_s"])),
        ("requests/s", number(found["rate_per_s"])),
        ("gaps: CV", number(found["iat_cv"])),
        *((f"gaps: CV in {w} s, p50", number((spread or {}).get("p50"))) for w, spread in windows.items()),
        ("gaps of 0", share(found["iat"]["zero_share"] if found["iat"] else None)),
        ("a minute: mean", number(minute.get("mean"))),
        ("a minute: max", number(minute.get("max"))),
        ("a minute: empty", share(minute.get("empty_share"))),
    ]
    for key, label in (("prompt_tokens", "prompt"), ("output_tokens", "output")):
        rows += [(f"{label}: {name}", number(found[key][name])) for name in ("mean", "p50", "p90", "p99", "max")]
    slope = found["popularity_slope"]
    rows += [
        ("prompt tokens/s", number(tokens["prompt_per_s"])),
        ("output tokens/s", number(tokens["output_per_s"])),
        ("models", number(used)),
        ("Zipf exponent", "-" if slope is None else _exponent(slope)),
        ("top model", share(popular["top_1"])),
        ("top 10 models", share(popular["top_10"])),
        ("same model again", share(popular["same_model_share"])),
        ("sessions", number(sessions.get("sessions"))),
        ("turns: mean", number(sessions["turns"]["mean"] if sessions else None)),
        ("closed loop", number(sessions.get("closed_loop_requests") or None)),
        ("prefix hits", share(found["prefixes"]["hit_share"] if found["prefixes"] else None)),
        ("concurrency: mean", number(most["mean"])),
        ("concurrency: max", number(most["max"])),
    ]
    if "load" in found:
        rows.append((f"load on {found['load']['scenario']}", share(found["load"]["of_cluster"])))
    return rows


def _models(found: Found) -> Table:
    table = grid(
        shown("Models", found["models"], "--json has all"), "", "requests", "share", "mean prompt", "mean output"
    )
    means = found["model_tokens"]
    for name, row in list(found["models"].items())[:MOST_ROWS]:
        own = means.get(name, {})
        lengths = (number(own.get(key)) for key in ("prompt_mean", "output_mean"))
        table.add_row(name, number(row["requests"]), share(row["share"]), *lengths)
    return table


def _load(load: Found) -> list[Table]:
    gpus = ", ".join(f"{count} {kind}" for kind, count in load["gpus"].items())
    pairs = [
        ("cluster", f"{load['scenario']}: {gpus}"),
        ("offered load", f"{share(load['of_cluster'])} of it, all layers on GPUs, no switching, even arrivals"),
    ]
    if load["left_out"]:
        pairs.append(("left out", f"{number(load['left_out'])} requests: too long, or their model fits no GPU whole"))
    table = grid(
        shown("By model, on one GPU", load["models"], "--json has all"),
        "",
        "on",
        "batch",
        "prefill\ntokens/s",
        "decode\ntokens/s",
        "GPUs busy",
        left=2,
    )
    for name, row in list(load["models"].items())[:MOST_ROWS]:
        if not row["on"]:
            table.add_row(name, "fits no GPU whole" if row["requests"] else "no requests", *[""] * 4)
        for number_of, (kind, each) in enumerate(row["on"].items()):
            speeds = (number(each[key]) for key in ("prefill_tokens_per_s", "decode_tokens_per_s", "gpus"))
            table.add_row("" if number_of else name, kind, str(each["batch"]), *speeds)
    return [facts("Offered load", pairs), table]


def print_formats(formats: Iterable[Format], console: Console) -> None:
    """All formats, a line each."""
    table = grid("Formats that can be read", "name", "what it is", left=2)
    table.columns[0].no_wrap = True
    for form in formats:
        table.add_row(form.name, form.summary)
    show(console, table)
    console.print("python -m sim trace formats NAME shows one and its options.")


def print_format(form: Format, console: Console) -> None:
    """One format and its options."""
    table = grid(f"{form.name}: {form.summary}. Options: --option NAME=VALUE", "name", "default", "meaning", left=3)
    for name, field in form.options.model_fields.items():
        table.add_row(name, "-" if field.default is None else str(field.default), field.description or "")
    show(console, table)


def print_presets(lines: Mapping[str, str], console: Console) -> None:
    """The workloads that can be generated by name."""
    table = grid("Presets: python -m sim trace generate NAME --out FILE", "name", "what it is", left=2)
    table.columns[0].no_wrap = True
    for name, line in lines.items():
        table.add_row(name, " ".join(line.split()))
    show(console, table)
