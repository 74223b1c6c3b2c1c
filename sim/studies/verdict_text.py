"""A comparison or a search for capacity in plain words: which policy is best, by how much, how sure, what to beware of.

Called by `compare` and `capacity`; the lines are kept in their JSON, so that the terminal and the report say the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sim.results.format_estimate import amount, chance, span
from sim.results.metrics import Measure
from sim.studies.ranking import PolicyRanking

if TYPE_CHECKING:
    from sim.studies.capacity import Capacity, PolicyCapacity
    from sim.studies.comparison import Comparison, PolicyResult
    from sim.studies.search import Goal

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
        yield from _best(made, measures[key], ranked[key])
    yield from _everywhere([ranked[key] for key in keys])
    yield from _baseline(made, ranked[made.decisive.key])
    yield from _beware(made)
    if len(made.seeds) == 1:
        yield "One seed says nothing about chance: no difference here has an interval; play more seeds."


def _best(made: Comparison, measure: Measure, ranking: PolicyRanking) -> Iterator[str]:
    name = title(measure)
    if ranking.best is None:
        yield f"{name}: no policy has a number for every seed."
        return
    value = amount(measure.unit, made.policy(ranking.best).measured[measure.key].estimate.mean)
    if ranking.second is None:
        yield f"{name}: {ranking.best} with {value}, the only policy that could be ranked."
        return
    if ranking.tied:
        others = "no other policy" if len(ranking.tied) == len(ranking.order) - 1 > 1 else _list(ranking.tied)
        text = f"{name}: a tie. {ranking.best} has the best mean, {value}, but {others} "
        text += f"{'can' if others.startswith('no ') else 'cannot'} be told from it with {len(made.seeds)} seeds"
        yield text + (
            f"; {_lead(measure, ranking)}." if ranking.p is not None and ranking.p < 1 - made.confidence else "."
        )
        return
    yield f"{name}: {ranking.best} is best with {value}; {_lead(measure, ranking)}."


def _everywhere(rankings: Sequence[PolicyRanking]) -> Iterator[str]:
    """Who is first, or shares the first place, by all of them."""
    if len(rankings) < 2 or any(ranking.p is None for ranking in rankings):
        return
    groups = [(str(ranking.best), *ranking.tied) for ranking in rankings]
    names = [name for name in groups[0] if all(name in group for group in groups)]
    if 0 < len(names) < len(rankings[0].order):
        yield f"First, or not to be told from the first, by all of these: {_list(names)}."
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
    between = (
        f"{_plain(measure, low)} to {_plain(measure, high)}"
        if ranking.lead.t.low * ranking.lead.t.high > 0
        else span(measure.unit, ranking.lead.t)
    )
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
    failed = [
        f"{policy.label} ({len(policy.errors)} of {len(made.seeds)} seeds)" for policy in runners if policy.errors
    ]
    if failed:
        yield f"Failed, and not ranked: {', '.join(failed)}."
    times = [ranking for ranking in made.rankings if ranking.key == "e2e_all_s.mean"]
    less = [label for ranking in times for label in ranking.unranked if not made.policy(label).failed]
    less = [label for label in less if made.policy(label).lost_share > 0]
    if less:
        yield f"Did less of the work, so that times and costs (not promises) are not ranked: {_list(less)}."
    for name, words in (
        ("unfinished", "left requests unfinished"),
        ("starved", "starved requests"),
        ("lost", "rejected, timed out or failed requests"),
    ):
        guilty = [(policy.label, _share(policy, name)) for policy in runners]
        guilty = sorted([row for row in guilty if row[1] > 0], key=lambda row: -row[1])
        if guilty:
            texts = [f"{label} {amount('share', part)}" for label, part in guilty[:6]]
            more = f" and {len(guilty) - 6} more" if len(guilty) > 6 else ""
            yield f"{len(guilty)} of {len(runners)} policies {words}, of all that arrived: {', '.join(texts)}{more}."


def _share(policy: PolicyResult, name: str) -> float:
    if name == "lost":
        return policy.lost_share
    return policy.counts[name] / policy.counts["arrived"] if policy.counts["arrived"] else 0.0


def _list(names: Sequence[str]) -> str:
    shown = list(names[:6])
    if len(names) > 6:
        return f"{', '.join(shown)} and {len(names) - 6} more"
    return ", ".join(shown[:-1]) + (" and " if len(shown) > 1 else "") + shown[-1]


def title(measure: Measure) -> str:
    """What a metric is called in a sentence."""
    return _SENTENCE.get(measure.key, measure.title)


_SENTENCE = {
    "slo.attainment": "Promises kept (SLO attainment, of all that arrived)",
    "slo.goodput_rps": "Goodput",
    "e2e_all_s.mean": "Mean end-to-end time of all requests",
    "e2e_all_s.p99": "99th percentile of it",
    "e2e_s.mean": "Mean end-to-end time of the completed",
    "cost.usd_per_million_tokens": "Cost of a million output tokens",
}


# --- capacity


def goal_text(goal: Goal) -> str:
    """The goal in a sentence."""
    how = "at least" if goal.metric.better == "more" else "at most"
    return f"{goal.metric.title} {how} {amount(goal.metric.unit, goal.target)}"


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
        yield f"Failed, and not ranked: {_list(failed)}."
    if len(made.seeds) == 1:
        yield "One seed says nothing about chance: play more seeds for intervals."


def _best_capacity(made: Capacity, runners: Sequence[PolicyCapacity]) -> Iterator[str]:
    """For loads and costs: the best, who shares its place, and the next."""
    known = {policy.label: policy for policy in runners if policy.found is not None and policy.found.value is not None}
    goal = goal_text(made.goal)
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
    sure = f"; {_list(alike)} cannot be told from it with {len(made.seeds)} seeds" if alike else ""
    yield f"{best} {verb} {said} ({goal}){sure}."
    rest = [label for label in order[1:] if label not in alike]
    if rest:
        unit = "$" if cost else ""
        yield f"Next: {', '.join(f'{label} {unit}{value(label):.3g}' for label in rest[:6])}."
    none = [policy.label for policy in runners if policy.label not in known and not policy.error]
    if none:
        yield f"Not within the goal at all: {_list(none)}."


def _fewest(made: Capacity, runners: Sequence[PolicyCapacity]) -> Iterator[str]:
    assert made.group is not None
    need: dict[int, list[str]] = {}
    for policy in runners:
        if policy.found is not None and policy.found.value is not None:
            need.setdefault(int(policy.found.value), []).append(policy.label)
    goal = goal_text(made.goal)
    if not need:
        yield f"No policy keeps the goal ({goal}) with up to {made.most:g} nodes of {made.group.name}."
        return
    least, *others = sorted(need)
    nodes = "node" if least == 1 else "nodes"
    verb = "needs" if len(need[least]) == 1 else "need"
    yield f"{_list(need[least])} {verb} {least} {nodes} of {made.group.name} ({goal})."
    if others:
        yield f"Next: {'; '.join(f'{count} for {_list(need[count])}' for count in others[:6])}."
    none = [
        policy.label for policy in runners if not policy.error and (policy.found is None or policy.found.value is None)
    ]
    if none:
        yield f"Not with up to {made.most:g} nodes: {_list(none)}."
