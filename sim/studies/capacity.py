"""How much load each policy carries within a goal, how few machines it needs, or what a million tokens cost.

The goal is a share of requests within their SLOs, or any metric with a limit; it is kept when the mean over seeds keeps
it, and surely kept when the whole interval does. Runs have the length that the scenario gives them: a load that could
not go on for ever may pass a short run, and the answer is for runs of that length. The policies' searches go side by
side, a round of runs at a time. Called by the command line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sim.common.errors import ConfigError
from sim.common.statistics import estimate
from sim.profiles.library import Library
from sim.results.metrics import Measure, measure_named
from sim.runs.collect import csv_lines
from sim.runs.execute import play
from sim.runs.store import Store
from sim.runs.task import Label, Result, Task
from sim.scenario.scenario import Scenario
from sim.studies.capacity_result import Capacity, Find, PolicyCapacity
from sim.studies.choose_policies import PolicyChoice
from sim.studies.comparison import cells
from sim.studies.ranking import Column, rank
from sim.studies.scale_load import NodeGroup, at_load, node_group, what_load_means
from sim.studies.search import Found, Goal, PlayedLoad, Search, crossing, fewest_nodes, largest_load
from sim.studies.study import OnProgress, Study, StudyOptions, has_promises, kept, open_study
from sim.studies.study_bounds import FluidLimit, saturation
from sim.studies.verdict_text import capacity_lines

FILES = ("capacity.json", "capacity.csv")
USD = measure_named("cost.usd_per_million_tokens")
_COUNTS = ("arrived", "completed", "unfinished", "rejected", "timed_out", "failed")


@dataclass(frozen=True)
class CapacityOptions:
    """What `capacity` was asked. metric with a share keeps to `attainment`, any other to `limit`. load: for `cluster`
    and `cost`. grow: the node group that `cluster` changes. most: the largest factor of load, or number of nodes."""

    study: StudyOptions = field(default_factory=lambda: StudyOptions(seeds=5))
    find: Find = "rate"
    metric: str = "slo"
    attainment: float = 0.9
    limit: float | None = None
    load: float = 1.0
    grow: str | None = None
    tolerance: float = 0.05
    most: float = 64.0
    out: Path | None = None
    confidence: float = 0.95


class _Player:
    """Plays points: one load or number of nodes, one policy, every seed."""

    def __init__(self, options: CapacityOptions, study: Study, goal: Goal, group: NodeGroup | None) -> None:
        self.options, self.study, self.goal, self.group = options, study, goal, group

    def scenario(self, at: float) -> Scenario:
        if self.options.find == "cluster":
            assert self.group is not None
            return self.group.resized(at_load(self.study.scenario, self.options.load), int(at))
        return at_load(self.study.scenario, at)

    def tasks(self, choice: PolicyChoice, at: float) -> list[Task]:
        turned = "nodes" if self.options.find == "cluster" else "load"
        scenario = self.scenario(at)
        labels: dict[str, Label] = {"policy": choice.label, turned: at}
        return [Task(choice.of(scenario, seed), {**labels, "seed": seed}) for seed in self.study.seeds]

    def point(self, at: float, results: Sequence[Result]) -> PlayedLoad:
        summaries = [result.summary for result in results if result.summary is not None]
        assert len(summaries) == len(results)
        values = [self.goal.metric.of(summary) for summary in summaries]
        usd = tuple(USD.of(summary) for summary in summaries)
        seen = estimate(values, self.options.confidence)
        kept = None not in values and self.goal.kept(seen.mean)
        ends = [] if seen.t is None or seen.missing else [self.goal.kept(end) for end in (seen.t.low, seen.t.high)]
        return PlayedLoad(
            at=at,
            values=tuple(values),
            seen=seen,
            kept=kept,
            sure=ends[0] if ends and ends[0] == ends[1] else None,
            usd_by_seed=usd,
            usd_per_million_tokens=estimate(usd, self.options.confidence),
            counts={name: sum(summary["requests"][name] for summary in summaries) for name in _COUNTS},
            run_ids=tuple(result.run_id for result in results),
        )


def capacity(options: CapacityOptions, on_progress: OnProgress | None = None) -> Capacity:
    """Search and rank. With `out`, the runs and capacity.json and .csv are kept there; runs there are not played again.

    A policy whose run fails has its error in `error`, and the others go on. Raises SimError for what is wrong before
    any run.
    """
    study = open_study(options.study)
    goal = _goal(options, study)
    _check_numbers(options)
    group = node_group(study.scenario, options.grow) if options.find == "cluster" else None
    if options.find == "cost":
        _check_prices(study.scenario)
    player = _Player(options, study, goal, group)
    return kept(options.out, FILES, lambda store: _searched(player, store, on_progress), capacity_csv)


def _goal(options: CapacityOptions, study: Study) -> Goal:
    models = [model.name for model in study.scenario.models]
    classes = [kind.name for kind in study.scenario.service_classes]
    metric = measure_named(options.metric, models, classes)
    if metric.key.split(".")[-2:-1] == ["slo"] and not has_promises(study):
        raise ConfigError(
            f"scenario '{study.scenario.name}' promises nothing, so every load keeps it; give its service classes "
            "limits (--set service_classes.0.ttft_s=5), or a goal (--metric e2e_all.p99 --limit 60)"
        )
    if metric.better is None:
        raise ConfigError(f"--metric {options.metric}: neither less nor more of it is better; choose another")
    if metric.unit == "share" and options.limit is None:
        return Goal(metric, options.attainment)
    if options.limit is None or not math.isfinite(options.limit) or options.limit < 0:
        how = "at most" if metric.better == "less" else "at least"
        raise ConfigError(f"--metric {options.metric}: add --limit with what it may be {how}")
    return Goal(metric, options.limit)


def _check_numbers(options: CapacityOptions) -> None:
    if not 0 < options.attainment <= 1:
        raise ConfigError(f"--attainment {options.attainment:g}: a share above 0 and up to 1, for example 0.9")
    if not 0.001 <= options.tolerance <= 1:
        raise ConfigError(f"--tolerance {options.tolerance:g}: from 0.001 to 1; 0.05 finds the load to 5 %")
    if not 0 < options.load < math.inf:
        raise ConfigError(f"--load {options.load:g}: a factor above 0; 1 is the scenario's own load")
    if not 1 <= options.most <= 10_000:
        raise ConfigError(f"--most {options.most:g}: from 1 to 10000")


def _check_prices(scenario: Scenario) -> None:
    library = Library(Path(scenario.profiles) if scenario.profiles else None)
    kinds = dict.fromkeys(group.gpu for node in scenario.cluster.nodes for group in node.gpus)
    unknown = [kind for kind in kinds if not library.gpu(kind).usd_per_hour]
    if unknown:
        raise ConfigError(f"--find cost: the price of {', '.join(unknown)} is not known; fill usd_per_hour in gpus.csv")


# --- the searches


def _search(player: _Player) -> Search:
    options = player.options
    if options.find == "rate":
        return largest_load(options.tolerance, options.most)
    if options.find == "cluster":
        assert player.group is not None
        return fewest_nodes(min(player.group.count, int(options.most)), int(options.most))
    return _only(options.load)


def _only(load: float) -> Search:
    """No search: what one load costs."""
    point = yield load
    sure = load if point.sure else None
    return Found(load if point.kept else None, None if point.kept else load, sure, None, "", "", (point,))


def _searched(player: _Player, store: Store | None, on_progress: OnProgress | None) -> Capacity:
    choices = player.study.choices
    searches = {choice.label: _search(player) for choice in choices}
    wanted = {label: next(search) for label, search in searches.items()}
    found: dict[str, Found] = {}
    errors: dict[str, str] = {}
    count = len(player.study.seeds)
    while wanted:
        asked = [choice for choice in choices if choice.label in wanted]
        tasks = [task for choice in asked for task in player.tasks(choice, wanted[choice.label])]
        played = play(tasks, store, player.options.study.machines, on_progress)
        for index, choice in enumerate(asked):
            results = played[index * count : (index + 1) * count]
            at = wanted.pop(choice.label)
            failed = next((result for result in results if result.error is not None), None)
            if failed is not None:
                errors[choice.label] = f"at {at:.4g}, seed {failed.task.scenario.seed}: {failed.error}"
                continue
            try:
                wanted[choice.label] = searches[choice.label].send(player.point(at, results))
            except StopIteration as end:
                found[choice.label] = end.value
    ends = [(choice, found.get(choice.label), errors.get(choice.label, "")) for choice in choices]
    return _ranked(player, tuple(_policy(player, *end) for end in ends))


def _policy(player: _Player, choice: PolicyChoice, found: Found | None, error: str) -> PolicyCapacity:
    seeds = len(player.study.seeds)
    by_seed: tuple[float | None, ...] = (None,) * seeds
    at = None if found is None or found.value is None else next(p for p in found.points if p.at == found.value)
    if found is not None and player.options.find == "rate":
        by_seed = tuple(crossing(found.points, player.goal, place) for place in range(seeds))
    elif found is not None and player.options.find == "cost":
        # The price of what is promised: of a policy that misses the goal there is none.
        by_seed = at.usd_by_seed if at is not None else by_seed
    return PolicyCapacity(
        **choice.called,
        found=found,
        by_seed=by_seed,
        seen=estimate(by_seed, player.options.confidence),
        usd_per_million_tokens=None if at is None else at.usd_per_million_tokens,
        error=error,
    )


_ANSWERS = {"rate": Measure("load", "load", "rate", "more"), "cost": USD}


def _ranked(player: _Player, policies: tuple[PolicyCapacity, ...]) -> Capacity:
    options, study = player.options, player.study
    answer = _ANSWERS.get(options.find)
    columns = [Column(policy.label, policy.by_seed) for policy in policies if not policy.oracle and not policy.error]
    made = Capacity(
        scenario=study.scenario.name,
        find=options.find,
        seeds=study.seeds,
        confidence=options.confidence,
        goal=player.goal,
        load=options.load,
        load_means=what_load_means(study.scenario),
        tolerance=options.tolerance,
        most=options.most,
        group=player.group,
        policies=policies,
        ranking=None if answer is None else rank(answer, columns, options.confidence),
        bound=_bound(player),
        notices=study.notices,
    )
    return replace(made, verdict=tuple(capacity_lines(made)))


def _bound(player: _Player) -> FluidLimit:
    """Of load, or of nodes: the fewest with which the load could go on for ever."""
    if player.options.find != "cluster":
        return saturation(player.scenario(1.0 if player.options.find == "rate" else player.options.load))
    low, high = 0, int(player.options.most)
    limit = saturation(player.scenario(float(high)))
    if limit.value is None or limit.value < 1:
        return replace(limit, value=None, why=limit.why or f"not even {high} nodes could carry this load for ever")
    while high - low > 1:
        middle = (low + high) // 2
        limit = saturation(player.scenario(float(middle)))
        if limit.value is not None and limit.value >= 1:
            high = middle
        else:
            low = middle
    return FluidLimit(float(high), limit.what, "")


def capacity_csv(made: Capacity) -> str:
    """A row for every point that was played: policy, where, the goal's metric, kept or not, cost, counts."""
    turned = "nodes" if made.find == "cluster" else "load"
    head = ["policy", turned, "answer", made.goal.metric.key, "t_low", "t_high", "bootstrap_low", "bootstrap_high"]
    lines: list[list[Any]] = [[*head, "target", "kept", "sure", "usd_per_million_tokens", *_COUNTS, "error"]]
    for policy in made.policies:
        for point in policy.found.points if policy.found is not None else ():
            answer = policy.found is not None and point.at == policy.found.value
            row = [policy.label, point.at, answer, *cells(point.seen), made.goal.target, point.kept, point.sure]
            lines.append([*row, point.usd_per_million_tokens.mean, *point.counts.values(), None])
        if policy.error:
            lines.append([policy.label, *[None] * (len(lines[0]) - 2), policy.error])
    return csv_lines(lines)
