"""Pure: a finished run (engine.Outcome) -> one plain dict of numbers, ready for JSON, tables and sweeps.

`summarize` makes every number that a person is shown, of requests that arrive after the warm-up. It goes through the
requests column by column, with a few whole columns in memory at a time. It reads no clocks, prints nothing, and knows
nothing of how a run came about. Averages are over completed requests unless stated; the counts of all other outcomes
stand beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.common.statistics import mser5
from sim.common.text import counted
from sim.core.record.recorder import TokenLatencies
from sim.core.state.machines import Gpu
from sim.core.state.request import COMPLETED, IMPOSSIBLE, OUTCOMES, PHASES
from sim.engine.ideal_hardware import UNBOUNDED_BYTES
from sim.results.diagnosis import diagnose
from sim.results.fault_summary import faults_summary, gpu_faults
from sim.results.request_table import RequestColumns, request_table
from sim.scenario.scenario import Scenario

if TYPE_CHECKING:
    from sim.engine.engine import Outcome

Floats = NDArray[np.float64]

_SHARES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
_LATENCIES = ("ttft_s", "tpot_s", "e2e_s", "queue_s", "normalised_s_per_token")
_PARTS = _LATENCIES[:3]  # what is reported of each model and class
_MOST_REASONS = 20  # a policy may write a number into each of its reasons


@dataclass(frozen=True)
class Figures:
    """What is reported of a group of requests: all of them, or those of one model or class.

    counts: how many arrived, and of these by outcome. spreads: of each latency.
    """

    counts: dict[str, int]
    attained: int
    produced_tokens: int
    residency_tokens: float
    spreads: dict[str, dict[str, float | int | None]]

    @property
    def arrived(self) -> int:
        return self.counts["arrived"]

    @property
    def possible(self) -> int:
        """RequestColumns that could have been served at all."""
        return self.arrived - self.counts[OUTCOMES[IMPOSSIBLE]]


class Groups:
    """The requests of each code 0 to number - 1."""

    def __init__(self, codes: NDArray[Any], number: int) -> None:
        # numpy sorts short numbers much faster
        codes = codes.astype(np.int16 if number < 1 << 15 else np.int32, copy=False)
        self._order = np.argsort(codes, kind="stable") if number > 1 else None
        ends = np.searchsorted(codes, np.arange(number + 1).astype(codes.dtype), sorter=self._order)
        self._bounds = list(pairwise(ends.tolist()))

    def split(self, values: NDArray[Any]) -> list[NDArray[Any]]:
        """A column's entries by group, in their order."""
        values = values if self._order is None else values[self._order]
        return [values[low:high] for low, high in self._bounds]


def figures(table: RequestColumns, groupings: Sequence[Groups]) -> list[list[Figures]]:
    """The figures of each group of each grouping. Every column is read once."""

    def split(values: NDArray[Any], number: Callable[[NDArray[Any]], Any]) -> list[list[Any]]:
        return [[number(part) for part in groups.split(values)] for groups in groupings]

    counts = split(table["outcome"], _counts)
    attained = split(table["attained"], lambda part: int(part.sum()))
    produced = split(table["produced_tokens"], lambda part: int(part.sum(dtype=np.int64)))
    residency = split(table["mean_residency"] * table["produced_tokens"], lambda part: float(np.nansum(part)))
    spreads = {name: split(table[name], spread) for name in _LATENCIES}
    return [
        [
            Figures(*numbers, {name: found[at][group] for name, found in spreads.items()})
            for group, numbers in enumerate(zip(counts[at], attained[at], produced[at], residency[at], strict=True))
        ]
        for at in range(len(groupings))
    ]


def spread(values: Floats) -> dict[str, float | int | None]:
    """count, mean, p50, p90, p95, p99 and max of the numbers that are not NaN; None where there are none."""
    known = values[~np.isnan(values)]
    if not len(known):
        return {"count": 0, "mean": None, **dict.fromkeys(_SHARES), "max": None}
    mean, most = float(known.mean()), float(known.max())
    quantiles = np.quantile(known, list(_SHARES.values()), overwrite_input=True).tolist()
    ends = dict(zip(_SHARES, quantiles, strict=True))
    return {"count": len(known), "mean": mean, **ends, "max": most}


def _token_spread(latencies: TokenLatencies) -> dict[str, float | int | None]:
    latencies.settle()
    if not latencies.tokens:
        return spread(np.empty(0))
    ends = dict(zip(_SHARES, latencies.quantiles(list(_SHARES.values())), strict=True))
    mean_s = latencies.total_s / latencies.tokens
    return {"count": latencies.tokens, "mean": mean_s, **ends, "max": latencies.max_s}


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _counts(outcomes: NDArray[Any]) -> dict[str, int]:
    counts = np.bincount(outcomes, minlength=len(OUTCOMES)).tolist()
    return {"arrived": len(outcomes), **dict(zip(OUTCOMES, counts, strict=True))}


def _slo(group: Figures, period_s: float) -> dict[str, float | int | None]:
    return {
        "attained": group.attained,
        "attainment": _ratio(group.attained, group.arrived),
        "goodput_rps": _ratio(group.attained, period_s),
    }


def summarize(outcome: Outcome, peak_rss_bytes: int | None = None, after_s: float | None = None) -> dict[str, Any]:
    """Every number of a run, as plain data without NaN (None instead). Names end in their unit.

    All but engine.wall_s, engine.requests_per_wall_s and engine.peak_rss_bytes is the same in every run of the
    same run_id. Of requests, only those that arrive at `after_s` or later are in any number (None: the scenario's
    warm_up_s); itl_s, switching (but starved), gpus, links and cost are of the whole run. tokens.prompt counts prompts
    that gave a first token. e2e_all_s: of every request that could be served, those without an answer counted until
    the end of the run. starved: requests that waited longer than the scenario's starvation_s for their first token.
    reloads_per_request: loads, the first ones included, per arrived request. problems (of diagnosis.py): only where
    there are some.
    """
    recorder, end_s = outcome.recorder, outcome.end_s
    everything = request_table(outcome)
    assert everything.rows == recorder.arrived, (everything.rows, recorder.arrived)
    after_s = outcome.scenario.warm_up_s if after_s is None else after_s
    table = everything.since(after_s) if after_s else everything
    period_s = max(0.0, end_s - after_s)
    by_model = Groups(table["model"], len(outcome.cluster.models))
    by_class = Groups(table["service_class"], len(outcome.scenario.service_classes))
    (whole,), models, classes = figures(table, [Groups(np.zeros(table.rows, dtype=np.int16), 1), by_model, by_class])
    produced = whole.produced_tokens if table is everything else everything["produced_tokens"].sum(dtype=np.int64)
    assert produced == recorder.output_tokens, "tokens are not conserved"
    prompts = int(table["prompt_tokens"][table["produced_tokens"] > 0].sum(dtype=np.int64))
    longest_wait_s, starved = _waits(table, outcome.scenario.starvation_s)
    summary: dict[str, Any] = {
        "run_id": outcome.run_id,
        "scenario": outcome.scenario.name,
        "policy": outcome.policy_name,
        "oracle": outcome.oracle or None,
        "seed": outcome.scenario.seed,
        "requests": whole.counts,
        "reasons": _reasons(table, list(recorder.reasons)),
        "tokens": {"prompt": prompts, "output": whole.produced_tokens},
        "ttft_s": whole.spreads["ttft_s"],
        "tpot_s": whole.spreads["tpot_s"],
        "itl_s": _token_spread(recorder.latencies),
        **{name: whole.spreads[name] for name in _LATENCIES[2:]},
        "e2e_all_s": spread(_e2e_all_s(table, end_s)),
        "slo": _slo(whole, period_s),
        "throughput": {
            "requests_per_s": _ratio(whole.counts["completed"], period_s),
            "output_tokens_per_s": _ratio(whole.produced_tokens, period_s),
        },
        "switching": _switching(outcome, starved),
        "time_budget_s": {name: float(table[f"{name}_s"].sum()) for name in PHASES},
        "fairness_jain": _jain([_service_rate(group) for group in models if group.possible]),
        "longest_wait_s": longest_wait_s,
        "gpus": [_gpu(gpu, end_s) for gpu in outcome.cluster.gpus],
        "links": outcome.link_bytes,
        **faults_summary(outcome),
        "cost": _cost(outcome),
        "warm_up": _warm_up(everything, after_s, table.rows, end_s),
        "engine": {
            "events": outcome.events,
            "wall_s": outcome.wall_s,
            "sim_s": end_s,
            "requests_per_wall_s": _ratio(recorder.arrived, outcome.wall_s),
            "peak_rss_bytes": peak_rss_bytes,
        },
        "models": _models(outcome, models, period_s),
        "classes": _classes(outcome, classes, period_s),
        "factors": factors(outcome.scenario),
    }
    summary["notices"] = _notices(outcome, summary)
    problems = diagnose(outcome, everything, summary)
    if problems:
        summary["problems"] = [problem.plain() for problem in problems]
    plain: dict[str, Any] = without_nan(summary)
    return plain


def _e2e_all_s(table: RequestColumns, end_s: float) -> Floats:
    """Seconds from arrival to the answer; to the end of the run where there was none; NaN: nobody could serve it."""
    outcome, arrival_s = table["outcome"], table["arrival_s"]
    lasted_s = np.where(outcome == COMPLETED, table["end_s"], end_s) - arrival_s
    return np.where(outcome == IMPOSSIBLE, np.nan, lasted_s)


def _warm_up(everything: RequestColumns, after_s: float, kept: int, end_s: float) -> dict[str, float | int | None]:
    """What was cut, and what MSER-5 on the end-to-end times would have cut; None: they do not settle in this run."""
    place = everything["request"]
    lasted_s, arrival_s = np.empty(everything.rows), np.empty(everything.rows)
    lasted_s[place], arrival_s[place] = _e2e_all_s(everything, end_s), everything["arrival_s"]
    known = ~np.isnan(lasted_s)
    cut = mser5(lasted_s[known])
    settled_s = None if cut is None else float(arrival_s[known][cut]) if cut else 0.0
    return {"after_s": after_s, "requests_before": everything.rows - kept, "settled_s": settled_s}


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
        **({"ideal": " and ".join(scenario.engine.ideal)} if scenario.engine.ideal else {}),
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


def _waits(table: RequestColumns, starvation_s: float) -> tuple[float, int]:
    """The longest wait for a first token, and how many were longer than starvation_s."""
    wait_s = table["wait_s"]
    return float(wait_s.max(initial=0.0)), int((wait_s > starvation_s).sum())


def _service_rate(group: Figures) -> float:
    """Output tokens per second that a model's requests see: 1 / mean normalised latency; 0 if none completed."""
    mean_s = group.spreads["normalised_s_per_token"]["mean"]
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
        "usable_memory_bytes": gpu.capacity_bytes if gpu.kind.memory_bytes < UNBOUNDED_BYTES else None,
        **gpu_faults(gpu, end_s),
    }


def _cost(outcome: Outcome) -> dict[str, float | None]:
    """What renting the GPUs for the simulated time costs; None when the price of one of them is not known."""
    prices = [gpu.kind.usd_per_hour for gpu in outcome.cluster.gpus]
    usd = sum(prices) * outcome.end_s / 3600 if all(prices) else None
    return {"usd": usd, "output_tokens_per_usd": _ratio(outcome.recorder.output_tokens, usd) if usd else None}


def _models(outcome: Outcome, groups: list[Figures], period_s: float) -> dict[str, Any]:
    loads = _loads(outcome)
    return {
        model.name: {
            "requests": group.counts,
            **{name: group.spreads[name] for name in _PARTS},
            "slo": _slo(group, period_s),
            "output_tokens": group.produced_tokens,
            "mean_residency": _ratio(group.residency_tokens, group.produced_tokens),
            "loads": loads[model.name],
        }
        for model, group in zip(outcome.cluster.models, groups, strict=True)
    }


def _loads(outcome: Outcome) -> dict[str, int]:
    """Loads and wake-ups of each model."""
    recorder = outcome.recorder
    names, kinds = recorder.switch_texts["model"], recorder.switch_texts["kind"]
    columns = recorder.switch_columns
    loading = np.isin(columns["kind"], [code for kind, code in kinds.items() if kind in ("load", "wake")])
    counts = np.bincount(columns["model"][loading], minlength=len(names)).tolist()
    return {model.name: counts[names[model.name]] if model.name in names else 0 for model in outcome.cluster.models}


def _classes(outcome: Outcome, groups: list[Figures], period_s: float) -> dict[str, Any]:
    return {
        service_class.name: {
            "limits": {name: getattr(service_class, name) for name in ("ttft_s", "tpot_s", "e2e_s", "patience_s")},
            "requests": group.counts,
            **{name: group.spreads[name] for name in _PARTS},
            "slo": _slo(group, period_s),
        }
        for service_class, group in zip(outcome.scenario.service_classes, groups, strict=True)
    }


def _reasons(table: RequestColumns, texts: list[str]) -> list[dict[str, Any]]:
    """Why requests did not complete, the most frequent reasons first: outcome, reason, requests."""
    reasons = table["reason"]
    given = np.flatnonzero(reasons)
    codes = reasons[given].astype(np.int64) * len(OUTCOMES) + table["outcome"][given]
    pairs, counts = np.unique(codes, return_counts=True)
    found = [
        {"outcome": OUTCOMES[pair % len(OUTCOMES)], "reason": texts[pair // len(OUTCOMES)], "requests": count}
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)
    ]
    return sorted(found, key=lambda row: (-row["requests"], row["outcome"], row["reason"]))[:_MOST_REASONS]


def _notices(outcome: Outcome, summary: dict[str, Any]) -> list[str]:
    """What a reader must know before believing the numbers, one line each."""
    scenario = outcome.scenario
    notices = list(outcome.notices)
    if summary["warm_up"]["after_s"]:
        notices.append(
            f"warm-up: {counted(summary['warm_up']['requests_before'], 'request')} that arrived before "
            f"{summary['warm_up']['after_s']:g} s are in no number of requests; ITL, switching, GPUs, links and cost "
            "are of the whole run"
        )
    if outcome.oracle:
        notices.append(f"policy {outcome.policy_name} is an oracle, no real scheduler can do it: {outcome.oracle}")
    refused = ["", *(row["reason"] for row in summary["reasons"])]
    homeless = [model.fits_nowhere for model in outcome.cluster.models]
    notices += [reason for reason in homeless if reason not in refused]
    for row in summary["reasons"]:
        notices.append(f"{counted(row['requests'], 'request')} {row['outcome'].replace('_', ' ')}: {row['reason']}")
    unfinished = summary["requests"]["unfinished"]
    if unfinished:
        why = "the policy left them waiting" if scenario.horizon_s is None else "the horizon came first"
        why = why if outcome.cluster.up else "no GPU was up any more"
        told = f"unfinished ({why}); no average of the completed contains them"
        notices.append(f"{counted(unfinished, 'request')} {told}")
    starved = summary["switching"]["starved"]
    if starved:
        longest_s = summary["longest_wait_s"]
        notices.append(
            f"{counted(starved, 'request')} waited longer than {scenario.starvation_s:g} s for a first token "
            f"(longest {longest_s:,.0f} s)"
        )
    dropped = outcome.recorder.counts["kv_dropped_for_lack_of_host_memory"]
    if dropped:
        notices.append(f"{dropped:,} times KV was dropped for lack of host memory; those sequences computed it again")
    return notices
