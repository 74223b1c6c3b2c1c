"""Pure: runs gathered by policy and setting, and their numbers over seeds with intervals. Used by all sections.

A Group is what one policy did in one setting, once per seed; a Setting is all that a store varied but policy and seed.
Intervals and differences are those of sim.common.statistics: over replications, paired by seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sim.common.statistics import Difference, Estimate, difference, estimate
from sim.plots.style import Pen, pens
from sim.report.result_folder import Kept, plain
from sim.results.metrics import Measure

ORACLE = "(oracle)"  # ends the name of what no real scheduler could be


@dataclass(frozen=True)
class RunGroup:
    """Runs that differ in nothing but their seed."""

    name: str
    oracle: bool
    runs: tuple[Kept, ...]

    def values(self, measure: Measure) -> list[float | None]:
        return [measure.of(run.summary) for run in self.runs]

    def estimate(self, measure: Measure) -> Estimate:
        return estimate([float("nan") if value is None else value for value in self.values(measure)])

    def mean(self, measure: Measure) -> float | None:
        known = [value for value in self.values(measure) if value is not None]
        return sum(known) / len(known) if known else None

    def total(self, path: str) -> float:
        """The sum over the runs of a number of their summaries."""
        return sum(run.number(path) or 0.0 for run in self.runs)

    def average(self, path: str) -> float:
        return self.total(path) / len(self.runs)

    @property
    def arrived(self) -> int:
        return int(self.total("requests.arrived"))

    @property
    def unserved(self) -> int:
        """Requests that arrived and did not complete, in all runs; no latency contains them."""
        return self.arrived - int(self.total("requests.completed"))

    def against(self, other: RunGroup, measure: Measure) -> Difference:
        """self - other, paired by seed; seeds that one of them lacks are left out."""
        mine, theirs = ({run.summary["seed"]: measure.of(run.summary) for run in g.runs} for g in (self, other))
        seeds = [seed for seed in mine if seed in theirs]
        nan = float("nan")
        first, second = ([nan if (value := side[seed]) is None else value for seed in seeds] for side in (mine, theirs))
        return difference(first, second)


@dataclass(frozen=True)
class Setting:
    """Everything that a store holds for one combination of what it varied. labels: {} where nothing was varied."""

    labels: Mapping[str, Any]
    groups: tuple[RunGroup, ...]

    @property
    def name(self) -> str:
        return ", ".join(f"{key} = {shown(value)}" for key, value in self.labels.items())


@dataclass(frozen=True)
class Cast:
    """Who is in a report: all names in order, their pens, and those that are oracles."""

    names: tuple[str, ...]
    pens: Mapping[str, Pen] = field(default_factory=dict)

    @classmethod
    def of(cls, names: Iterable[str], strong: Sequence[str] = ()) -> Cast:
        ordered = tuple(dict.fromkeys(names))
        return cls(ordered, pens(ordered, strong))

    @property
    def numbers(self) -> dict[str, int]:
        return {name: pen.number for name, pen in self.pens.items()}


def shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else plain(str(value))


def settings(runs: Sequence[Kept]) -> list[Setting]:
    """The runs by setting and policy, in their order. Labels that never change are no setting."""
    labels: dict[str, list[Any]] = {}
    for run in runs:
        for key, value in run.labels.items():
            if key not in ("policy", "seed"):
                labels.setdefault(key, []).append(value)
    varied = [key for key, values in labels.items() if len(values) < len(runs) or values.count(values[0]) < len(runs)]
    found: dict[str, tuple[dict[str, Any], dict[str, list[Kept]]]] = {}
    for run in runs:
        own = {plain(key): run.labels[key] for key in varied if key in run.labels}
        _, by_policy = found.setdefault(repr(own), (own, {}))
        by_policy.setdefault(policy_of(run), []).append(run)
    return [
        Setting(own, tuple(_group(name, chosen) for name, chosen in by_policy.items()))
        for own, by_policy in found.values()
    ]


def policy_of(run: Kept) -> str:
    """What a run's policy is called in its store (with its parameters, where it has some), and its oracle's mark."""
    label = run.labels.get("policy")
    if label is None:
        return run.policy
    name = plain(str(label))
    return f"{name} (oracle)" if run.summary["oracle"] and "oracle)" not in name else name


def _group(name: str, runs: Sequence[Kept]) -> RunGroup:
    distinct = {run.summary["run_id"]: run for run in runs}
    return RunGroup(name, bool(runs[0].summary["oracle"]), tuple(distinct.values()))


def ranked(groups: Sequence[RunGroup], measure: Measure) -> list[RunGroup]:
    """Best mean first; those without the number, or who failed to run with every seed that others ran with, last."""
    most = max(len(group.runs) for group in groups)

    def key(group: RunGroup) -> tuple[bool, float, str]:
        value = group.mean(measure)
        sign = -1.0 if measure.better == "more" else 1.0
        return (value is None or len(group.runs) < most, 0.0 if value is None else sign * value, group.name)

    return sorted(groups, key=key)


def rivals(groups: Sequence[RunGroup]) -> list[RunGroup]:
    """Those whose latencies can be compared: no oracles, and nobody who left more than 1 % without an answer.

    All that are no oracles, where nobody else is left.
    """
    real = [group for group in groups if not group.oracle]
    return [group for group in real if group.unserved <= 0.01 * group.arrived] or real


def promised(runs: Sequence[Kept]) -> bool:
    """Is there any limit that a request could miss?"""
    limits = [row["limits"] for run in runs for row in run.summary["classes"].values()]
    return any(row.get(name) is not None for row in limits for name in ("ttft_s", "tpot_s", "e2e_s"))
