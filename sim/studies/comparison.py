"""Pure: the runs of a comparison -> estimates, paired differences, a Pareto front and a verdict, as plain data.

`compare` plays the runs and calls `build`; tables and the report read a Comparison, or the same as comparison.json.
Runs with one seed saw the same requests, so differences are taken within a seed. Oracles are measured like all, but
are in no verdict and on no front: no scheduler can do what they do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sim.common.statistics import Difference, Estimate, difference, estimate, holm, pareto_front, ratio
from sim.results.metrics import Measure
from sim.runs.collect import csv_lines
from sim.runs.task import Result
from sim.studies.choose_policies import PolicyChoice, StudiedPolicy
from sim.studies.plain_result import PlainResult
from sim.studies.ranking import Column, PolicyRanking, rank

VERSION = 1
_MORE_LOST = 0.01
COUNTS = ("arrived", "completed", "unfinished", "rejected", "timed_out", "failed", "impossible")


@dataclass(frozen=True)
class MetricBySeed:
    """A metric of one policy: its value by seed (None: that run has none), and what they say together."""

    values: tuple[float | None, ...]
    estimate: Estimate


@dataclass(frozen=True)
class Versus:
    """A policy less the baseline, seed by seed. p_holm: of no difference, adjusted over all policies compared with it.

    ratio: of the means.
    """

    difference: Difference
    ratio: Estimate
    p_holm: float | None


@dataclass(frozen=True)
class Failure:
    seed: int
    error: str


@dataclass(frozen=True)
class PolicyResult(StudiedPolicy):
    """One policy of a comparison. counts: requests by outcome, and starved ones, summed over the seeds that ran.

    run_ids: by seed. measured, versus: by the metric's key; versus is empty for the baseline.
    """

    run_ids: tuple[str, ...]
    errors: tuple[Failure, ...]
    counts: dict[str, int]
    measured: dict[str, MetricBySeed]
    versus: dict[str, Versus]

    @property
    def failed(self) -> bool:
        return bool(self.errors)

    @property
    def lost_share(self) -> float:
        """Requests that were rejected, left, or failed, of all that arrived."""
        lost = sum(self.counts[name] for name in ("rejected", "timed_out", "failed"))
        return lost / self.counts["arrived"] if self.counts["arrived"] else 0.0


@dataclass(frozen=True)
class WarmUp:
    """Requests that arrive before after_s are in no number of requests. rule: how that came, in words."""

    after_s: float
    rule: str


@dataclass(frozen=True)
class Front:
    """The policies that no other one beats in every axis, by their means; why: why there is none."""

    axes: tuple[str, ...]
    labels: tuple[str, ...]
    why: str = ""


@dataclass(frozen=True)
class Bound:
    """What no scheduler can do better, for the metric `key`. value: None where `why` says why there is none.

    gaps: by policy, its mean / the bound: 1 is optimal, 2 twice as bad; None for one that left requests unanswered.
    """

    name: str
    what: str
    key: str
    value: float | None
    gaps: dict[str, float | None]
    why: str = ""


@dataclass(frozen=True)
class Comparison(PlainResult):
    """All of it; `as_data` is what comparison.json holds."""

    scenario: str
    seeds: tuple[int, ...]
    confidence: float
    baseline: str
    metrics: tuple[Measure, ...]  # the first decides
    warm_up: WarmUp
    policies: tuple[PolicyResult, ...]
    rankings: tuple[PolicyRanking, ...]
    front: Front
    bounds: tuple[Bound, ...]
    notices: tuple[str, ...]
    verdict: tuple[str, ...] = ()
    kind: str = "comparison"
    version: int = VERSION

    @property
    def decisive(self) -> Measure:
        return self.metrics[0]

    def policy(self, label: str) -> PolicyResult:
        return next(policy for policy in self.policies if policy.label == label)


def policy_results(
    choices: Sequence[PolicyChoice],
    results: Sequence[Sequence[Result]],
    metrics: Sequence[Measure],
    baseline: str,
    confidence: float,
) -> tuple[PolicyResult, ...]:
    """What came of each policy: results[i][j] is choice i with seed j."""
    place = [choice.label for choice in choices].index(baseline)
    columns = {metric.key: [_values(row, metric) for row in results] for metric in metrics}
    versus: dict[str, list[Versus | None]] = {}
    for key, table in columns.items():
        others = [None if index == place else values for index, values in enumerate(table)]
        gaps = [None if values is None else difference(values, table[place], confidence) for values in others]
        adjusted = holm([gap.p if gap is not None else None for gap in gaps])
        versus[key] = [
            None if gap is None else Versus(gap, ratio(values, table[place], confidence), p)
            for gap, values, p in zip(gaps, table, adjusted, strict=True)
        ]
    return tuple(
        PolicyResult(
            **choice.called,
            run_ids=tuple(result.run_id for result in row),
            errors=tuple(Failure(each.task.scenario.seed, each.error) for each in row if each.error is not None),
            counts=_counts(row),
            measured={
                key: MetricBySeed(tuple(table[index]), estimate(table[index], confidence))
                for key, table in columns.items()
            },
            versus={key: gap for key, column in versus.items() if (gap := column[index]) is not None},
        )
        for index, (choice, row) in enumerate(zip(choices, results, strict=True))
    )


def _values(row: Sequence[Result], metric: Measure) -> list[float | None]:
    return [None if result.summary is None else metric.of(result.summary) for result in row]


def _counts(row: Sequence[Result]) -> dict[str, int]:
    summaries = [result.summary for result in row if result.summary is not None]
    counts = {name: sum(summary["requests"][name] for summary in summaries) for name in COUNTS}
    return {**counts, "starved": sum(summary["switching"]["starved"] for summary in summaries)}


def rankings(
    policies: Sequence[PolicyResult], metrics: Sequence[Measure], confidence: float
) -> tuple[PolicyRanking, ...]:
    """The policies by each metric that has a better end; those without a number for every seed are not ranked.

    Nor, by times and costs, those that did less of the work (see `lighter`).
    """
    found = []
    less = lighter(policies)
    for metric in metrics:
        if metric.better is None:
            continue
        skipped = less if metric.unit in ("s", "usd") else ()
        columns = [
            Column(policy.label, () if policy.label in skipped else policy.measured[metric.key].values)
            for policy in policies
            if not policy.oracle
        ]
        found.append(rank(metric, columns, confidence))
    return tuple(found)


def lighter(policies: Sequence[PolicyResult]) -> tuple[str, ...]:
    """Who lost over one request in a hundred more than the one that lost least: whoever turns work away is quick and
    cheap, and its run is over sooner, so that times and costs are not of the same work. SLO attainment and goodput
    count what was lost as missed, and stay comparable."""
    shares = {policy.label: policy.lost_share for policy in policies if not policy.oracle and not policy.failed}
    least = min(shares.values(), default=0.0)
    return tuple(label for label, share in shares.items() if share > least + _MORE_LOST)


def front(policies: Sequence[PolicyResult], axes: Sequence[Measure]) -> Front:
    """Latency, goodput and cost at once, of those that did the same work. An axis without a number is left out."""
    less = lighter(policies)
    runners = [policy for policy in policies if not (policy.oracle or policy.failed or policy.label in less)]
    known = [axis for axis in axes if any(policy.measured[axis.key].estimate.known for policy in runners)]
    whole = [p for p in runners if not any(p.measured[axis.key].estimate.missing for axis in known)]
    if not whole or not known:
        return Front((), (), "no policy has a number for every seed")
    signs = {axis.key: -1.0 if axis.better == "more" else 1.0 for axis in known}
    points = [[signs[axis.key] * (p.measured[axis.key].estimate.mean or 0.0) for axis in known] for p in whole]
    kept = pareto_front(points)
    labels = tuple(policy.label for policy, on in zip(whole, kept, strict=True) if on)
    return Front(tuple(axis.key for axis in known), labels)


def comparison_csv(comparison: Comparison) -> str:
    """A row a policy and metric: mean, intervals, the difference to the baseline and its intervals, and the counts."""
    head = ["policy", "tier", "oracle", "metric", "unit", "better", "seeds", "missing", *_columns("mean")]
    head += [*_columns("difference"), "p", "p_holm", "below", "above", "equal", *_columns("ratio")]
    lines: list[list[Any]] = [[*head, *COUNTS, "starved", "errors"]]
    for policy in comparison.policies:
        counts = [policy.counts[name] for name in (*COUNTS, "starved")]
        for metric in comparison.metrics:
            seen, versus = policy.measured[metric.key].estimate, policy.versus.get(metric.key)
            row: list[Any] = [policy.label, policy.tier, "yes" if policy.oracle else "no", metric.key, metric.unit]
            row += [metric.better, seen.known, seen.missing, *cells(seen)]
            if versus is None:
                row += [None] * 15
            else:
                gap = versus.difference
                row += [*cells(gap.estimate), gap.p, versus.p_holm, gap.below, gap.above, gap.equal]
                row += cells(versus.ratio)
            lines.append([*row, *counts, len(policy.errors)])
    return csv_lines(lines)


def _columns(name: str) -> list[str]:
    return [name, *(f"{name}_{way}_{end}" for way in ("t", "bootstrap") for end in ("low", "high"))]


def cells(seen: Estimate) -> list[float | None]:
    """The mean and the ends of both intervals, as in the CSV files of studies."""
    ends = [end for way in (seen.t, seen.bootstrap) for end in ((way.low, way.high) if way else (None, None))]
    return [seen.mean, *ends]


def common_notices(summaries: Sequence[Mapping[str, Any]]) -> list[str]:
    """What every run says: about the trace and the models, not about a policy."""
    if not summaries:
        return []
    return [text for text in summaries[0]["notices"] if all(text in summary["notices"] for summary in summaries)]
