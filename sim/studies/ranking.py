"""Pure: which policy is best by a metric, by how much, how sure.

A policy is ruled out when some rival is better within seeds, one-sided, at the level divided by the number of rivals.
Whichever policy is truly best, it is then ruled out wrongly in 5 % of experiments at most, although the best was picked
by looking: only its own comparisons can do that (subset selection: Gupta, Technometrics 7, 1965; Hsu, Multiple
Comparisons, 1996, ch. 4). Those not ruled out share the first place: a tie is said as a tie. Called by `comparison` and
`capacity`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sim.common.statistics import Estimate, difference, p_value
from sim.results.metrics import Measure


@dataclass(frozen=True)
class Column:
    """One policy's values of a metric, by seed."""

    label: str
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class PolicyRanking:
    """Policies by one metric, the best mean first.

    tied: those besides the first that the seeds do not rule out as the best; none with one seed, which rules out none.
    second: the best of those that are ruled out, else the second by mean. lead: second less best, with intervals.
    p: of the second being the best after all, times `rivals`; None with one seed. unranked: those without a number for
    every seed.
    """

    key: str
    order: tuple[str, ...]
    tied: tuple[str, ...]
    second: str | None
    lead: Estimate | None
    p: float | None
    rivals: int
    unranked: tuple[str, ...]

    @property
    def best(self) -> str | None:
        return self.order[0] if self.order else None


def rank(metric: Measure, columns: Sequence[Column], confidence: float) -> PolicyRanking:
    """The ranking by a metric that has a better end."""
    whole = [column for column in columns if column.values and None not in column.values]
    unranked = tuple(column.label for column in columns if column not in whole)
    sign = -1.0 if metric.better == "more" else 1.0
    known = {column.label: [sign * float(value) for value in column.values if value is not None] for column in whole}
    order = sorted(known, key=lambda label: sum(known[label]))
    if not order:
        return PolicyRanking(metric.key, (), (), None, None, None, 0, unranked)
    rivals = len(order) - 1
    chances = {label: _chance(label, known) for label in order[1:]}
    unsure = [label for label, chance in chances.items() if chance is not None and chance >= 1 - confidence]
    second = next((label for label in order[1:] if label not in unsure), None) or next(iter(order[1:]), None)
    if second is None:
        return PolicyRanking(metric.key, tuple(order), (), None, None, None, 0, unranked)
    lead = difference([sign * v for v in known[second]], [sign * v for v in known[order[0]]], confidence).estimate
    return PolicyRanking(metric.key, tuple(order), tuple(unsure), second, lead, chances[second], rivals, unranked)


def _chance(label: str, known: Mapping[str, Sequence[float]]) -> float | None:
    """The adjusted p of this policy being the best: of the rival that speaks most against it. Less is better here."""
    found = []
    for rival, values in known.items():
        p = None if rival == label else p_value(known[label], values)
        if p is not None:
            found.append(p / 2 if sum(values) < sum(known[label]) else 1 - p / 2)
    return min(1.0, min(found) * len(found)) if found else None
