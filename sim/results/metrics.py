"""Which numbers of a summary are compared: their names, units, and whether less or more of them is better.

A measure is a dotted path into the dict of `summary.summarize`, or a number that follows from several of them. Short
names are the words of serving benchmarks: slo, goodput, ttft.p99, e2e. `compare`, `capacity` and their tables ask here;
nothing here plays or prints.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sim.common.errors import ConfigError, did_you_mean

Unit = Literal["s", "share", "number", "rate", "usd"]
Better = Literal["less", "more"]

_STATS = ("mean", "p50", "p90", "p95", "p99", "max")
_SPREADS = {
    "ttft": ("ttft_s", "TTFT"),
    "tpot": ("tpot_s", "TPOT"),
    "itl": ("itl_s", "ITL"),
    "e2e": ("e2e_s", "E2E done"),
    "e2e_all": ("e2e_all_s", "E2E all"),
    "queue": ("queue_s", "queued"),
    "normalised": ("normalised_s_per_token", "per token"),
}
_NAMES = {  # where a title is too short to be read alone
    "e2e_s": "E2E of the completed",
    "e2e_all_s": "E2E of all",
    "slo.goodput_rps": "goodput",
    "cost.usd_per_million_tokens": "cost of 1M output tokens",
}
LATENCIES = {
    "ttft_s": "first token (TTFT)",
    "itl_s": "token gap (ITL)",
    "tpot_s": "per token (TPOT)",
    "e2e_s": "end to end (E2E)",
    "queue_s": "queued or loading",
}
PHASES = {  # of a request's time, in the order of request.PHASES
    "queued": "queued",
    "load_wait": "waiting for a load",
    "prefill": "prefill",
    "decode": "decode",
    "stalled": "stalled by others",
    "preempted": "preempted",
    "kv_transfer": "KV transfer",
    "recompute": "recompute",
}
_OF_GROUPS = ("ttft_s", "tpot_s", "e2e_s")  # what a summary has of each model and class


@dataclass(frozen=True)
class Measure:
    """`better`: None where neither less nor more is better by itself. `title` heads its column in a terminal."""

    key: str
    title: str
    unit: Unit
    better: Better | None

    @property
    def name(self) -> str:
        """What sentences and the report call it."""
        head, _, stat = self.key.rpartition(".")
        return f"{_NAMES[head]}, {stat}" if head in _NAMES else _NAMES.get(self.key, self.title)

    def of(self, summary: Mapping[str, Any]) -> float | None:
        """Its value in a summary; None where the run has none."""
        made = _MADE.get(self.key)
        value = made(summary) if made is not None else _walk(summary, self.key)
        assert value is None or isinstance(value, int | float), (self.key, value)
        return None if value is None else float(value)


def _walk(data: Any, path: str) -> Any:
    """The entry at a dotted path; names in it may have dots of their own."""
    if not path:
        return data
    if not isinstance(data, Mapping):
        return None
    steps = path.split(".")
    for count in range(1, len(steps) + 1):
        name = ".".join(steps[:count])
        if name in data:
            return _walk(data[name], ".".join(steps[count:]))
    return None


def _usd_per_million_tokens(summary: Mapping[str, Any]) -> float | None:
    tokens_per_usd = summary["cost"]["output_tokens_per_usd"]
    return 1e6 / tokens_per_usd if tokens_per_usd else None


def _usd_per_thousand_kept(summary: Mapping[str, Any]) -> float | None:
    usd, attained = summary["cost"]["usd"], summary["slo"]["attained"]
    return 1000 * usd / attained if usd is not None and attained else None


def _lost(summary: Mapping[str, Any]) -> int:
    return sum(summary["requests"][name] for name in ("rejected", "timed_out", "failed"))


_MADE: dict[str, Callable[[Mapping[str, Any]], float | None]] = {
    "cost.usd_per_million_tokens": _usd_per_million_tokens,
    "cost.usd_per_thousand_attained": _usd_per_thousand_kept,
    "requests.lost": _lost,
}
_PLAIN = (
    Measure("slo.attainment", "SLO kept", "share", "more"),
    Measure("slo.goodput_rps", "goodput/s", "rate", "more"),
    Measure("throughput.requests_per_s", "requests/s", "rate", "more"),
    Measure("throughput.output_tokens_per_s", "tokens/s", "rate", "more"),
    Measure("cost.usd_per_million_tokens", "$/Mtoken", "usd", "less"),
    Measure("cost.usd_per_thousand_attained", "$/1000 kept", "usd", "less"),
    Measure("cost.usd", "$", "usd", "less"),
    Measure("fairness_jain", "fairness", "number", "more"),
    Measure("longest_wait_s", "longest wait", "s", "less"),
    Measure("requests.completed", "completed", "number", "more"),
    Measure("requests.unfinished", "unfinished", "number", "less"),
    Measure("requests.lost", "lost", "number", "less"),
    Measure("requests.rejected", "rejected", "number", "less"),
    Measure("requests.timed_out", "timed out", "number", "less"),
    Measure("requests.failed", "failed", "number", "less"),
    Measure("switching.starved", "starved", "number", "less"),
    Measure("switching.loads", "loads", "number", None),
    Measure("switching.reloads_per_request", "loads/request", "number", None),
    Measure("switching.evictions", "evictions", "number", None),
    Measure("switching.resizes", "resizes", "number", None),
    Measure("switching.model_preemptions", "model preempt.", "number", None),
    Measure("switching.sequence_preemptions", "seq. preempt.", "number", None),
    Measure("switching.reload_s", "reloading", "s", None),
    Measure("switching.share_below_full_residency", "below full", "share", None),
    Measure("engine.sim_s", "lasted", "s", "less"),
)
_SHORT = {
    "slo": "slo.attainment",
    "goodput": "slo.goodput_rps",
    "throughput": "throughput.output_tokens_per_s",
    "tokens_per_s": "throughput.output_tokens_per_s",
    "requests_per_s": "throughput.requests_per_s",
    "cost": "cost.usd_per_million_tokens",
    "cost_kept": "cost.usd_per_thousand_attained",
    "usd": "cost.usd",
    "fairness": "fairness_jain",
    "longest_wait": "longest_wait_s",
    "below_full_residency": "switching.share_below_full_residency",
}


def known_measures() -> dict[str, Measure]:
    """Every measure of a whole run by its key."""
    spreads = [
        Measure(f"{key}.{stat}", title if stat == "mean" else f"{title} {stat}", "s", "less")
        for key, title in _SPREADS.values()
        for stat in _STATS
    ]
    return {measure.key: measure for measure in (*spreads, *_PLAIN)}


def measure_named(name: str, models: Iterable[str] = (), classes: Iterable[str] = ()) -> Measure:
    """The measure of a short name (ttft.p99), of a path, or of a model or class: classes.chat.slo.attainment.

    Raises ConfigError with the closest known name.
    """
    known = known_measures()
    key = _long(name)
    if key in known:
        return known[key]
    groups = {f"models.{model}": model for model in models} | {f"classes.{kind}": kind for kind in classes}
    for prefix in sorted(groups, key=len, reverse=True):
        if name.startswith(f"{prefix}."):
            inner = known.get(_long(name.removeprefix(f"{prefix}.")))
            if inner is not None and (inner.key.startswith("slo.") or inner.key.split(".")[0] in _OF_GROUPS):
                return Measure(f"{prefix}.{inner.key}", f"{groups[prefix]} {inner.title}", inner.unit, inner.better)
            raise ConfigError(
                f"metric '{name}': of a model or class there are ttft, tpot, e2e (.mean, .p99, ...), slo, goodput"
            )
    words = [*_SHORT, *_SPREADS, *(f"{short}.{stat}" for short in _SPREADS for stat in _STATS), *known, *groups]
    raise ConfigError(f"unknown metric '{name}'; {did_you_mean(name, words)}")


def _long(name: str) -> str:
    """The key that a short name stands for: ttft and ttft.mean are ttft_s.mean, starved is switching.starved."""
    if name in _SHORT:
        return _SHORT[name]
    head, _, stat = name.partition(".")
    head = _SPREADS[head][0] if head in _SPREADS else head
    if head in [key for key, _ in _SPREADS.values()]:
        return f"{head}.{stat or 'mean'}"
    whole = [measure.key for measure in _PLAIN if re.fullmatch(rf"(\w+\.)?{re.escape(name)}(_s)?", measure.key)]
    return whole[0] if len(whole) == 1 else name
