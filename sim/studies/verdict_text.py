"""Verdicts in plain words: which policy is best, by how much, how sure, and what to beware of.

The only writer of them. `compare` and `capacity` keep the lines in their JSON, so that the terminal and the report say
the same; of a sweep the report asks for them here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sim.common.text import counted, listed
from sim.results.format_estimate import amount, chance, span
from sim.results.metrics import Measure
from sim.studies.ranking import PolicyRanking

if TYPE_CHECKING:
    from sim.studies.capacity_result import Capacity, PolicyCapacity
    from sim.studies.comparison import Comparison, PolicyResult

_ALSO = ("slo.attainment", "e2e_all_s.mean", "e2e_all_s.p99", "cost.usd_per_million_tokens")


def verdict_lines(made: Comparison) -> Iterator[str]:
    """One sentence each: the deciding metric first, then the others, then what the numbers hide."""
    if all(policy.failed for policy in made.policies):
        yield f"Every policy failed; the first because: {made.policies[0].errors[0].error}"
        return
    measures = {measure.key: measure for measure in made.metrics}
    ranked = {ranking.key: ranking for ranking in made.rankings}
    keys = dict.fromkeys([made.decisive.key, *(key for key in _ALSO if key in ranked)])
    for key in keys:
        best = ranked[key].best
        mean = None if best is None else made.policy(best).measured[key].estimate.mean
        yield best_line(measures[key], ranked[key], mean, len(made.seeds), made.confidence)
    yield from _everywhere([ranked[key] for key in keys])
    yield from _baseline(made, ranked[made.decisive.key])
    yield from _beware(made)
    if len(made.seeds) == 1:
        yield ONE_SEED


ONE_SEED = "One seed says nothing about chance: no difference here has an interval; play more seeds."


def best_line(measure: Measure, ranking: PolicyRanking, mean: float | None, seeds: int, confidence: float) -> str:
    """Who is best by a measure, with which mean over so many seeds, by how much, and who may be as good."""
    name = f"{measure.name[0].upper()}{measure.name[1:]}"
    if ranking.best is None:
        return f"{name}: no policy has a number for every seed."
    value = amount(measure.unit, mean)
    if ranking.second is None:
        return f"{name}: {ranking.best} with {value}, the only policy that could be ranked."
    if not ranking.tied:
        return f"{name}: {ranking.best} is best with {value}; {_lead(measure, ranking)}."
    others, can = listed(ranking.tied), "cannot"
    if len(ranking.tied) == len(ranking.order) - 1 > 1:
        others, can = "no other policy", "can"
    lead = f"; {_lead(measure, ranking)}" if ranking.p is not None and ranking.p < 1 - confidence else ""
    text = f"{name}: a tie. {ranking.best} has the best mean, {value}"
    return f"{text}, but {others} {can} be told from it with {counted(seeds, 'seed')}{lead}."


def lines_of_settings(measure: Measure, found: Sequence[tuple[str, PolicyRanking, float | None]]) -> Iterator[str]:
    """Of several settings (each with its name, its ranking and the mean of its best): who wins how many, how many are
    in doubt, and who is best in the first and the last."""
    wins = Counter(ranking.best for _, ranking, _ in found if ranking.best is not None)
    if not wins:
        yield f"{measure.name}: no policy has a number for every seed in any setting."
        return
    (first, most), *others = sorted(wins.items(), key=lambda item: (-item[1], item[0]))
    rest = f", {listed(f'{name} in {count}' for name, count in others)}" if others else ""
    yield f"{measure.name}: {first} is best in {most} of {counted(len(found), 'setting')}{rest}."
    unsure = sum(ranking.best is not None and (bool(ranking.tied) or ranking.p is None) for _, ranking, _ in found)
    if unsure:
        yield f"In {unsure} of {len(found)} settings the seeds cannot tell the best from the next for sure."
    for name, ranking, mean in (found[0], found[-1]):
        if ranking.best is not None:
            yield f"At {name}: {ranking.best} with {amount(measure.unit, mean)}."


def _everywhere(rankings: Sequence[PolicyRanking]) -> Iterator[str]:
    """Who is first, or shares the first place, by all of them."""
    if len(rankings) < 2 or any(ranking.p is None for ranking in rankings):
        return
    groups = [(str(ranking.best), *ranking.tied) for ranking in rankings]
    names = [name for name in groups[0] if all(name in group for group in groups)]
    if 0 < len(names) < len(rankings[0].order):
        yield f"First, or not to be told from the first, by all of these: {listed(names)}."
    elif not names:
        yield "No policy is among the first by all of these: choose by what matters most."


def _lead(measure: Measure, ranking: PolicyRanking) -> str:
    """How far the second is from the best."""
    assert ranking.second is not None
    assert ranking.lead is not None
    text = f"{ranking.second} is next, {_gap(measure, ranking.lead.mean)}"
    if ranking.p is None or ranking.lead.t is None:
        return text
    low, high = sorted(abs(end) for end in (ranking.lead.t.low, ranking.lead.t.high))
    sided = f"{_plain(measure, low)} to {_plain(measure, high)}"
    between = sided if ranking.lead.t.low * ranking.lead.t.high > 0 else span(measure.unit, ranking.lead.t)
    rivals = f" over {ranking.rivals} rivals" if ranking.rivals > 1 else ""
    return f"{text} ({between}; {chance(ranking.p)}{rivals})"


def _gap(measure: Measure, mean: float | None) -> str:
    assert mean is not None
    if mean == 0:
        return "the same"
    return f"{_plain(measure, abs(mean))} {'more' if mean > 0 else 'less'}"


def _plain(measure: Measure, value: float) -> str:
    """An amount of difference: shares in percentage points."""
    return f"{value * 100:.2g} points" if measure.unit == "share" else amount(measure.unit, value)


def _baseline(made: Comparison, ranking: PolicyRanking) -> Iterator[str]:
    """How the best differs from the baseline, when the sentence before has not said it."""
    key, measure = made.decisive.key, made.decisive
    if ranking.best in (None, made.baseline) or ranking.second == made.baseline or made.baseline not in ranking.order:
        return
    versus = made.policy(str(ranking.best)).versus[key]
    gap, p = versus.difference.estimate, versus.p_holm
    if gap.mean is None:
        return
    sure = "" if p is None else f" ({chance(p)} after Holm over the policies compared with it)"
    luck = "" if p is None or p < 1 - made.confidence else ", which may be chance"
    yield f"Against the baseline {made.baseline}, {ranking.best} has {_gap(measure, gap.mean)}{luck}{sure}."


def _beware(made: Comparison) -> Iterator[str]:
    runners = [policy for policy in made.policies if not policy.oracle]
    seeds = len(made.seeds)
    failed = [f"{policy.label} ({len(policy.errors)} of {seeds} seeds)" for policy in runners if policy.errors]
    if failed:
        yield f"Failed, and not ranked: {', '.join(failed)}."
    times = [ranking for ranking in made.rankings if ranking.key == "e2e_all_s.mean"]
    less = [label for ranking in times for label in ranking.unranked if not made.policy(label).failed]
    less = [label for label in less if made.policy(label).lost_share > 0]
    if less:
        yield f"Did less of the work, so that times and costs (not promises) are not ranked: {listed(less)}."
    for name, words in (
        ("unfinished", "left requests unfinished"),
        ("starved", "starved requests"),
        ("lost", "rejected, timed out or failed requests"),
    ):
        guilty = [(policy.label, _share(policy, name)) for policy in runners]
        guilty = sorted([row for row in guilty if row[1] > 0], key=lambda row: -row[1])
        if guilty:
            told = listed(f"{label} {amount('share', part)}" for label, part in guilty)
            yield f"{len(guilty)} of {len(runners)} policies {words}, of all that arrived: {told}."


def _share(policy: PolicyResult, name: str) -> float:
    if name == "lost":
        return policy.lost_share
    return policy.counts[name] / policy.counts["arrived"] if policy.counts["arrived"] else 0.0


# --- capacity


ASKED = {"rate": "largest load", "cluster": "fewest nodes", "cost": "cost of 1M output tokens"}


def goal_text(metric: Measure, target: float) -> str:
    """The goal in a sentence."""
    return f"{metric.name} {'at least' if metric.better == 'more' else 'at most'} {amount(metric.unit, target)}"


def load_text(means: str) -> str:
    """What a load is a multiple of."""
    return f"A load of 1 is the scenario's own; {means}."


def capacity_lines(made: Capacity) -> Iterator[str]:
    """The answer of the best policies, how sure it is, the bound, and what to beware of."""
    runners = [policy for policy in made.policies if not policy.oracle]
    if all(policy.error for policy in runners):
        yield f"Every policy failed; the first because: {runners[0].error}"
        return
    if made.find == "cluster":
        yield from _fewest(made, runners)
    else:
        yield from _best_capacity(made, runners)
    if made.bound.value is not None and made.find == "rate":
        most = amount("rate", made.bound.value)
        yield f"No policy can carry more than {most} times the load for ever ({made.bound.what})."
    elif made.bound.value is not None and made.bound.value > 1 and made.find == "cluster":
        least = f"{made.bound.value:.0f}"
        yield f"With fewer than {least} nodes no policy can carry this load for ever ({made.bound.what})."
    for policy in runners:
        if policy.found is not None and policy.found.odd:
            yield f"{policy.label} does not get steadily worse with load: {policy.found.odd}. The careful end is given."
    failed = [policy.label for policy in runners if policy.error]
    if failed:
        yield f"Failed, and not ranked: {listed(failed)}."
    if len(made.seeds) == 1:
        yield ONE_SEED


def _best_capacity(made: Capacity, runners: Sequence[PolicyCapacity]) -> Iterator[str]:
    """For loads and costs: the best, who shares its place, and the next."""
    known = {policy.label: policy for policy in runners if policy.found is not None and policy.found.value is not None}
    goal = goal_text(made.goal.metric, made.goal.target)
    if not known:
        yield f"No policy keeps the goal ({goal}) at any load that was tried."
        return
    cost = made.find == "cost"

    def value(label: str) -> float:
        policy = known[label]
        assert policy.found is not None
        mean = policy.seen.mean if cost else policy.found.value
        return float("inf") if mean is None else mean

    order = sorted(known, key=value, reverse=not cost)
    best = order[0]
    said = amount("usd", value(best)) + " a million output tokens" if cost else f"{value(best):.3g} times the load"
    verb = "serves this load within the goal for" if cost else "carries"
    ranking = made.ranking
    alike = [label for label in ranking.tied if ranking.best == best] if ranking is not None else []
    if ranking is not None and ranking.best not in (None, best):
        alike = [label for label in (ranking.best, *ranking.tied) if label not in (None, best)]
    sure = f"; {listed(alike)} cannot be told from it with {len(made.seeds)} seeds" if alike else ""
    yield f"{best} {verb} {said} ({goal}){sure}."
    rest = [label for label in order[1:] if label not in alike]
    if rest:
        unit = "$" if cost else ""
        yield f"Next: {', '.join(f'{label} {unit}{value(label):.3g}' for label in rest[:6])}."
    none = [policy.label for policy in runners if policy.label not in known and not policy.error]
    if none:
        yield f"Not within the goal at all: {listed(none)}."


def _fewest(made: Capacity, runners: Sequence[PolicyCapacity]) -> Iterator[str]:
    assert made.group is not None
    need: dict[int, list[str]] = {}
    for policy in runners:
        if policy.found is not None and policy.found.value is not None:
            need.setdefault(int(policy.found.value), []).append(policy.label)
    goal = goal_text(made.goal.metric, made.goal.target)
    if not need:
        yield f"No policy keeps the goal ({goal}) with up to {made.most:g} nodes of {made.group.name}."
        return
    least, *others = sorted(need)
    verb = "needs" if len(need[least]) == 1 else "need"
    yield f"{listed(need[least])} {verb} {counted(least, 'node')} of {made.group.name} ({goal})."
    if others:
        yield f"Next: {'; '.join(f'{count} for {listed(need[count])}' for count in others[:6])}."
    found = [label for labels in need.values() for label in labels]
    none = [policy.label for policy in runners if not policy.error and policy.label not in found]
    if none:
        yield f"Not with up to {made.most:g} nodes: {listed(none)}."
