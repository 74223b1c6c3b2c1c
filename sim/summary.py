"""Pure: a finished run (engine.Outcome) -> one plain dict of numbers, ready for JSON, tables and sweeps.

`request_table` derives each request's latencies and whether it kept its promise; `summarize` makes every number that a
person is shown. It reads no files and no clocks, prints nothing, and knows nothing of how a run came about.
Averages are over completed requests unless stated; the counts of all other outcomes stand beside them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.cluster import Gpu
from sim.metrics import SWITCH_COLUMNS, TokenLatencies
from sim.spec import Scenario, ServiceClass, TraceWorkload
from sim.state import COMPLETED, IMPOSSIBLE, OUTCOMES, PHASES, UNFINISHED
from sim.trace import check_trace

if TYPE_CHECKING:
    from sim.engine import Outcome

Floats = NDArray[np.float64]

_SHARES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_MOST_REASONS = 20  # a policy may write a number into each of its reasons


@dataclass(frozen=True)
class RequestTable:
    """Requests as arrays of n entries, in the order in which they ended; NaN where a request has no such number.

    ttft_s: those with a first token. e2e_s, queue_s: completed. tpot_s: completed with at least 2 tokens.
    wait_s: until the first token, or until the end without one. attained: completed within every limit of its class.
    """

    model: NDArray[np.int64]
    service_class: NDArray[np.int64]
    outcome: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    produced_tokens: NDArray[np.int64]
    mean_residency: Floats
    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    queue_s: Floats
    wait_s: Floats
    attained: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.outcome)

    def part(self, rows: NDArray[Any]) -> RequestTable:
        """The requests at these positions."""
        return RequestTable(*(getattr(self, field.name)[rows] for field in fields(self)))


def request_columns(outcome: Outcome) -> dict[str, NDArray[Any]]:
    """The recorder's columns as arrays, without a copy."""
    return {name: np.asarray(column) for name, column in outcome.recorder.columns.items()}


def request_table(outcome: Outcome) -> RequestTable:
    """What the recorder saw of each request, with the latencies that follow from it."""
    columns = request_columns(outcome)
    arrival_s, first_token_s, end_s = columns["arrival_s"], columns["first_token_s"], columns["end_s"]
    completed = columns["outcome"] == COMPLETED
    ttft_s = first_token_s - arrival_s
    e2e_s = np.where(completed, end_s - arrival_s, np.nan)
    gaps = columns["output_tokens"] - 1
    tpot_s = np.where(completed & (gaps > 0), (end_s - first_token_s) / np.maximum(gaps, 1), np.nan)
    attained = completed & _within(outcome.scenario.service_classes, columns["service_class"], (ttft_s, tpot_s, e2e_s))
    return RequestTable(
        model=columns["model"],
        service_class=columns["service_class"],
        outcome=columns["outcome"],
        output_tokens=columns["output_tokens"],
        produced_tokens=columns["produced_tokens"],
        mean_residency=columns["mean_residency"],
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        e2e_s=e2e_s,
        queue_s=np.where(completed, columns["queued_s"] + columns["load_wait_s"], np.nan),
        wait_s=np.where(np.isnan(ttft_s), end_s - arrival_s, ttft_s),
        attained=attained,
    )


def _within(
    classes: Iterable[ServiceClass], class_of: NDArray[np.int64], latencies: tuple[Floats, Floats, Floats]
) -> NDArray[np.bool_]:
    """Does every limit of a request's class hold? A single token has no TPOT, so that limit holds for it."""
    limits_s = np.array([[math.inf if x is None else x for x in (c.ttft_s, c.tpot_s, c.e2e_s)] for c in classes])
    holds = np.ones(len(class_of), dtype=bool)
    for column, latency_s in enumerate(latencies):
        holds &= ~(latency_s > limits_s[class_of, column])
    return holds


def spread(values: Floats) -> dict[str, float | int | None]:
    """count, mean, p50, p90, p95, p99 and max of the numbers that are not NaN; None where there are none."""
    known = values[~np.isnan(values)]
    if not len(known):
        return {"count": 0, "mean": None, **dict.fromkeys(_SHARES), "max": None}
    quantiles = np.quantile(known, list(_SHARES.values())).tolist()
    ends = dict(zip(_SHARES, quantiles, strict=True))
    return {"count": len(known), "mean": float(known.mean()), **ends, "max": float(known.max())}


def _token_spread(latencies: TokenLatencies) -> dict[str, float | int | None]:
    latencies.settle()
    if not latencies.tokens:
        return spread(np.empty(0))
    quantiles = latencies.quantiles(list(_SHARES.values()))
    ends = dict(zip(_SHARES, quantiles, strict=True))
    mean_s = latencies.total_s / latencies.tokens
    return {"count": latencies.tokens, "mean": mean_s, **ends, "max": latencies.max_s}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _counts(table: RequestTable) -> dict[str, int]:
    counts = np.bincount(table.outcome, minlength=len(OUTCOMES)).tolist()
    return {"arrived": len(table), **dict(zip(OUTCOMES, counts, strict=True))}


def _slo(table: RequestTable, end_s: float) -> dict[str, float | int | None]:
    attained = int(table.attained.sum())
    return {
        "attained": attained,
        "attainment": _ratio(attained, len(table)),
        "goodput_rps": _ratio(attained, end_s),
    }


def _normalised(table: RequestTable) -> Floats:
    """End-to-end seconds per output token."""
    return np.asarray(table.e2e_s / table.output_tokens)


def _by_code(table: RequestTable, codes: NDArray[np.int64], number: int) -> list[RequestTable]:
    """The requests of each code 0 to number - 1."""
    order = np.argsort(codes, kind="stable")
    ends = np.searchsorted(codes[order], np.arange(number + 1)).tolist()
    return [table.part(order[low:high]) for low, high in pairwise(ends)]


def summarize(outcome: Outcome, peak_rss_bytes: int | None = None) -> dict[str, Any]:
    """Every number of a run, as plain data without NaN (None instead). Names end in their unit.

    All but engine.wall_s, engine.requests_per_wall_s and engine.peak_rss_bytes is the same in every run of the
    same run_id. tokens.prompt counts prompts that gave a first token. starved: requests that waited longer than the
    scenario's starvation_s for it. reloads_per_request: loads, the first ones included, per arrived request.
    """
    recorder, end_s = outcome.recorder, outcome.end_s
    table = request_table(outcome)
    models = _by_code(table, table.model, len(outcome.cluster.models))
    prompts = int(request_columns(outcome)["prompt_tokens"][table.produced_tokens > 0].sum())
    assert len(table) == recorder.arrived, (len(table), recorder.arrived)
    assert int(table.produced_tokens.sum()) == recorder.output_tokens, "tokens are not conserved"
    starved = int((table.wait_s > outcome.scenario.starvation_s).sum())
    completed = recorder.ended[COMPLETED]
    summary: dict[str, Any] = {
        "run_id": outcome.run_id,
        "scenario": outcome.scenario.name,
        "policy": outcome.policy_name,
        "oracle": outcome.oracle or None,
        "seed": outcome.scenario.seed,
        "requests": _counts(table),
        "reasons": _reasons(outcome),
        "tokens": {"prompt": prompts, "output": recorder.output_tokens},
        "ttft_s": spread(table.ttft_s),
        "tpot_s": spread(table.tpot_s),
        "itl_s": _token_spread(recorder.latencies),
        "e2e_s": spread(table.e2e_s),
        "queue_s": spread(table.queue_s),
        "normalised_s_per_token": spread(_normalised(table)),
        "slo": _slo(table, end_s),
        "throughput": {
            "requests_per_s": _ratio(completed, end_s),
            "output_tokens_per_s": _ratio(recorder.output_tokens, end_s),
        },
        "switching": _switching(outcome, starved),
        "time_budget_s": {name: float(request_columns(outcome)[f"{name}_s"].sum()) for name in PHASES},
        "fairness_jain": _jain([_service_rate(part) for part in models if (part.outcome != IMPOSSIBLE).any()]),
        "longest_wait_s": float(table.wait_s.max(initial=0.0)),
        "gpus": [_gpu(gpu, end_s) for gpu in outcome.cluster.gpus],
        "links": outcome.link_bytes,
        "cost": _cost(outcome),
        "engine": {
            "events": outcome.events,
            "wall_s": outcome.wall_s,
            "sim_s": end_s,
            "requests_per_wall_s": _ratio(recorder.arrived, outcome.wall_s),
            "peak_rss_bytes": peak_rss_bytes,
        },
        "models": _models(outcome, models),
        "classes": _classes(outcome, table),
        "factors": factors(outcome.scenario),
    }
    summary["notices"] = _notices(outcome, summary)
    plain: dict[str, Any] = without_nan(summary)
    return plain


def without_nan(value: Any) -> Any:
    """Plain data with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def factors(scenario: Scenario) -> dict[str, str]:
    """The experimental factors in force: choices of the model that a result depends on."""
    return {
        "contention": scenario.sharing.contention,
        "links": scenario.sharing.links,
        "resize": scenario.engine.resize,
        "prefill": scenario.engine.prefill,
        "sequence_preemption": scenario.engine.sequence_preemption,
        "predictor": scenario.predictor.kind,
    }


def _switching(outcome: Outcome, starved: int) -> dict[str, Any]:
    recorder = outcome.recorder
    return {
        **recorder.counts,
        **recorder.seconds,
        "bytes_by_cause": {cause: round(size) for cause, size in recorder.bytes_by_cause.items()},
        "tokens_below_full_residency": recorder.tokens_below_full_residency,
        "share_below_full_residency": _ratio(recorder.tokens_below_full_residency, recorder.output_tokens),
        "starved": starved,
        "reloads_per_request": _ratio(recorder.counts["loads"], recorder.arrived),
    }


def _service_rate(table: RequestTable) -> float:
    """Output tokens per second that a model's requests see: 1 / mean normalised latency; 0 if none completed."""
    mean_s = spread(_normalised(table))["mean"]
    return 1.0 / mean_s if mean_s else 0.0


def _jain(rates: list[float]) -> float | None:
    """Jain's index of fairness over models: 1 when all are served alike, 1/n when one gets everything.

    Source: Jain, Chiu, Hawe, DEC-TR-301 (1984).
    """
    return _ratio(sum(rates) ** 2, len(rates) * sum(rate**2 for rate in rates))


def _gpu(gpu: Gpu, end_s: float) -> dict[str, Any]:
    seconds = gpu.activity_s
    return {
        "name": gpu.name,
        "kind": gpu.kind.gpu,
        "busy_fraction": _ratio(seconds["computing"], end_s),  # an instance on it runs, if only on the CPU
        "work_fraction": _ratio(gpu.work_s, end_s),  # its own part of that work
        "loading_fraction": _ratio(seconds["loading"], end_s),
        "transferring_fraction": _ratio(seconds["transferring"], end_s),
        "idle_fraction": _ratio(seconds["idle"], end_s),
        "mean_memory_bytes": _ratio(gpu.byte_seconds, end_s),
        "peak_memory_bytes": gpu.peak_bytes,
        "usable_memory_bytes": gpu.capacity_bytes,
    }


def _cost(outcome: Outcome) -> dict[str, float | None]:
    """What renting the GPUs for the simulated time costs; None when the price of one of them is not known."""
    prices = [gpu.kind.usd_per_hour for gpu in outcome.cluster.gpus]
    usd = sum(prices) * outcome.end_s / 3600 if all(prices) else None
    return {"usd": usd, "output_tokens_per_usd": _ratio(outcome.recorder.output_tokens, usd) if usd else None}


def _models(outcome: Outcome, parts: list[RequestTable]) -> dict[str, Any]:
    kind, name = SWITCH_COLUMNS.index("kind"), SWITCH_COLUMNS.index("model")
    loads = dict.fromkeys((model.name for model in outcome.cluster.models), 0)
    for row in outcome.recorder.switches:
        loads[row[name]] += row[kind] in ("load", "wake")
    found: dict[str, Any] = {}
    for model, part in zip(outcome.cluster.models, parts, strict=True):
        tokens = int(part.produced_tokens.sum())
        found[model.name] = {
            "requests": _counts(part),
            "ttft_s": spread(part.ttft_s),
            "tpot_s": spread(part.tpot_s),
            "e2e_s": spread(part.e2e_s),
            "slo": _slo(part, outcome.end_s),
            "output_tokens": tokens,
            "mean_residency": _ratio(float(np.nansum(part.mean_residency * part.produced_tokens)), tokens),
            "loads": loads[model.name],
        }
    return found


def _classes(outcome: Outcome, table: RequestTable) -> dict[str, Any]:
    classes = outcome.scenario.service_classes
    return {
        service_class.name: {
            "limits": {name: getattr(service_class, name) for name in ("ttft_s", "tpot_s", "e2e_s", "patience_s")},
            "requests": _counts(part),
            "ttft_s": spread(part.ttft_s),
            "tpot_s": spread(part.tpot_s),
            "e2e_s": spread(part.e2e_s),
            "slo": _slo(part, outcome.end_s),
        }
        for service_class, part in zip(classes, _by_code(table, table.service_class, len(classes)), strict=True)
    }


def _reasons(outcome: Outcome) -> list[dict[str, Any]]:
    """Why requests did not complete, the most frequent reasons first: outcome, reason, requests."""
    columns = request_columns(outcome)
    texts = list(outcome.recorder.reasons)
    pairs, counts = np.unique(columns["reason"] * len(OUTCOMES) + columns["outcome"], return_counts=True)
    found = [
        {"outcome": OUTCOMES[pair % len(OUTCOMES)], "reason": texts[pair // len(OUTCOMES)], "requests": count}
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)
        if pair // len(OUTCOMES)
    ]
    return sorted(found, key=lambda row: (-row["requests"], row["outcome"], row["reason"]))[:_MOST_REASONS]


def _notices(outcome: Outcome, summary: dict[str, Any]) -> list[str]:
    """What a reader must know before believing the numbers, one line each."""
    scenario, trace = outcome.scenario, outcome.trace
    notices = list(check_trace(trace) if isinstance(scenario.workload, TraceWorkload) else trace.notices)
    if outcome.oracle:
        notices.append(f"policy {outcome.policy_name} is an oracle, no real scheduler can do it: {outcome.oracle}")
    refused = [row["reason"] for row in summary["reasons"]]
    notices += [
        model.fits_nowhere
        for model in outcome.cluster.models
        if model.fits_nowhere and model.fits_nowhere not in refused
    ]
    for row in summary["reasons"]:
        notices.append(f"{_requests(row['requests'])} {row['outcome'].replace('_', ' ')}: {row['reason']}")
    unfinished = outcome.recorder.ended[UNFINISHED]
    if unfinished:
        why = "the policy left them waiting" if scenario.horizon_s is None else "the horizon came first"
        notices.append(f"{_requests(unfinished)} unfinished ({why}); no average contains them")
    starved = summary["switching"]["starved"]
    if starved:
        longest_s = summary["longest_wait_s"]
        notices.append(
            f"{_requests(starved)} waited longer than {scenario.starvation_s:g} s for a first token "
            f"(longest {longest_s:,.0f} s)"
        )
    dropped = outcome.recorder.counts["kv_dropped_for_lack_of_host_memory"]
    if dropped:
        notices.append(f"{dropped:,} times KV was dropped for lack of host memory; those sequences computed it again")
    return notices


def _requests(number: int) -> str:
    return f"{number:,} request{'' if number == 1 else 's'}"
