"""Several policies on the same requests, seed by seed: plays the runs, and has them measured, ranked and bounded.

The statistics are in `statistics`, what is made of them in `comparison` and `verdict`; this module decides what is
played. Replications, not batches within a run: a run is as long as the scenario says, cold start and all, unless a
warm-up is cut. Called by the command line and by whoever compares from Python.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from sim.common.errors import ConfigError
from sim.results.metrics import Measure, measure_named
from sim.runs.execute import play
from sim.runs.store import Store
from sim.runs.task import Machines, Result, Task
from sim.scenario.scenario import Scenario
from sim.studies.choose_policies import PolicyChoice, oracles
from sim.studies.comparison import Comparison, WarmUp, common_notices, comparison_csv, front, policy_results, rankings
from sim.studies.study import OnProgress, Study, StudyOptions, has_promises, kept, label_of, open_study
from sim.studies.study_bounds import bounds_beside
from sim.studies.verdict_text import verdict_lines

FILES = ("comparison.json", "comparison.csv")
AXES = ("e2e_all_s.mean", "slo.goodput_rps", "cost.usd_per_million_tokens")  # of the Pareto front
_METRICS = (
    "slo.attainment",
    "e2e_all_s.mean",
    "e2e_all_s.p99",
    "ttft_s.p99",
    "slo.goodput_rps",
    "cost.usd_per_million_tokens",
    "switching.loads",
    "e2e_s.mean",
    "e2e_s.p99",
    "ttft_s.mean",
    "ttft_s.p50",
    "tpot_s.mean",
    "itl_s.p99",
    "throughput.output_tokens_per_s",
    "fairness_jain",
    "longest_wait_s",
    "switching.starved",
    "switching.reload_s",
)
_PILOTS = 3  # seeds that are played to find the warm-up


@dataclass(frozen=True)
class CompareOptions:
    """What `compare` was asked. metrics: the first decides; () asks for the usual ones. warm_up: seconds, `auto`, or
    None for what the scenario says."""

    study: StudyOptions = field(default_factory=StudyOptions)
    baseline: str | None = None
    metrics: tuple[str, ...] = ()
    warm_up: str | None = None
    bounds: bool = True
    out: Path | None = None
    confidence: float = 0.95


@dataclass(frozen=True)
class _ComparePlan:
    """All that is decided before the first run."""

    study: Study
    beside: list[PolicyChoice]  # oracles that nobody asked for by name, played for their bound
    bounds: bool
    metrics: tuple[Measure, ...]
    baseline: str
    machines: Machines
    confidence: float


def compare(options: CompareOptions, on_progress: OnProgress | None = None) -> Comparison:
    """Play, measure and rank. With `out`, the runs and comparison.json and .csv are kept there.

    A run that fails is recorded with its error in the policy's `errors`, and the others go on. Raises SimError for what
    is wrong before any run.
    """
    study = open_study(options.study)
    baseline = options.baseline
    if baseline is None and study.scenario.policy.name in [choice.label for choice in study.choices]:
        baseline = study.scenario.policy.name
    metrics, against = _metrics(options.metrics, study), label_of(baseline, study.choices, "--baseline")
    asked = [choice.label for choice in study.choices]
    beside = [choice for choice in oracles() if choice.label not in asked] if options.bounds else []
    plan = _ComparePlan(study, beside, options.bounds, metrics, against, options.study.machines, options.confidence)
    asked_s = _asked_warm_up(options.warm_up, study)

    def made(store: Store | None) -> Comparison:
        return _compared(plan, _warm_up(plan, asked_s, store, on_progress), store, on_progress)

    return kept(options.out, FILES, made, comparison_csv)


def _metrics(asked: Sequence[str], study: Study) -> tuple[Measure, ...]:
    """What was asked first, then the usual ones. Promises decide where there are any, else the time of all requests."""
    models = [model.name for model in study.scenario.models]
    classes = [kind.name for kind in study.scenario.service_classes]
    usual = list(_METRICS) if has_promises(study) else [name for name in _METRICS if not name.startswith("slo.")]
    found = [measure_named(name, models, classes) for name in (*asked, *usual, *AXES)]
    if asked and found[0].better is None:
        raise ConfigError(f"--metrics {asked[0]}: neither less nor more of it is better; put another one first")
    return tuple({measure.key: measure for measure in found}.values())


# --- the warm-up


def _asked_warm_up(text: str | None, study: Study) -> float | None:
    """Seconds; None: to be found. Raises ConfigError."""
    if text == "auto":
        return None
    if text is None:
        return study.scenario.warm_up_s
    try:
        asked_s = float(text)
    except ValueError:
        asked_s = math.nan
    if not 0 <= asked_s < math.inf:
        raise ConfigError(f"--warm-up {text}: give seconds from 0 on, or auto")
    if study.scenario.horizon_s is not None and asked_s >= study.scenario.horizon_s:
        raise ConfigError(f"--warm-up {text}: the run ends at {study.scenario.horizon_s:g} s (horizon_s); give less")
    if asked_s:
        last_s = max(float(chunk.arrival_s[-1]) for chunk in study.workload.chunks() if len(chunk))
        if last_s < asked_s:
            raise ConfigError(f"--warm-up {text}: the last request arrives at {last_s:,.0f} s; give less")
    return asked_s


def _warm_up(plan: _ComparePlan, asked_s: float | None, store: Store | None, on_progress: OnProgress | None) -> WarmUp:
    """The same cut for every policy and seed, or they would not be compared on the same requests."""
    if asked_s is not None:
        rule = "as given" if asked_s else "none: every number is of the whole run, cold start included"
        return WarmUp(asked_s, rule)
    seeds = plan.study.seeds[:_PILOTS]
    tasks = [_task(plan, choice, seed, 0.0) for choice in plan.study.choices for seed in seeds]
    pilot = None if store is None else Store(store.folder / "pilot", keep="summary")
    results = play(tasks, pilot, plan.machines, on_progress)
    settled = [(r.summary["warm_up"]["settled_s"], str(r.task.labels["policy"])) for r in results if r.summary]
    known = [found for found in settled if found[0] is not None]
    never = list(dict.fromkeys(label for found_s, label in settled if found_s is None))
    after_s, slowest = max(known, default=(0.0, ""))
    rule = f"MSER-5 on the end-to-end times of {len(seeds)} seeds of each policy; the longest"
    rule += f" ({slowest})" if slowest and after_s else ""
    if never:
        rule += f"; not counting {', '.join(never)}, whose times never settle: longer runs or less load would help"
    return WarmUp(float(math.ceil(after_s)), rule)


# --- the runs


def _task(plan: _ComparePlan, choice: PolicyChoice, seed: int, after_s: float) -> Task:
    scenario: Scenario = choice.of(plan.study.scenario, seed).model_copy(update={"warm_up_s": after_s})
    return Task(scenario, {"policy": choice.label, "seed": seed})


def _compared(plan: _ComparePlan, warm_up: WarmUp, store: Store | None, on_progress: OnProgress | None) -> Comparison:
    seeds, choices = plan.study.seeds, [*plan.study.choices, *plan.beside]
    tasks = [_task(plan, choice, seed, warm_up.after_s) for choice in choices for seed in seeds]
    played = play(tasks, store, plan.machines, on_progress)
    by_policy = [played[start : start + len(seeds)] for start in range(0, len(played), len(seeds))]
    notices = [*plan.study.notices, *_notices(played, len(seeds))]
    places = []
    for place, choice in enumerate(choices):
        errors = [result.error for result in by_policy[place] if result.error is not None]
        if errors and choice in plan.beside:
            notices.append(f"{choice.label} is not beside the others: {errors[0]}")
        else:
            places.append(place)
    results = [by_policy[place] for place in places]
    policies = policy_results(
        [choices[place] for place in places], results, plan.metrics, plan.baseline, plan.confidence
    )
    scenarios = [task.scenario for task in tasks[: len(seeds)]]
    bounds, remarks = bounds_beside(scenarios, policies) if plan.bounds else ((), [])
    made = Comparison(
        scenario=plan.study.scenario.name,
        seeds=seeds,
        confidence=plan.confidence,
        baseline=plan.baseline,
        metrics=plan.metrics,
        warm_up=warm_up,
        policies=policies,
        rankings=rankings(policies, plan.metrics, plan.confidence),
        front=front(policies, [measure for key in AXES for measure in plan.metrics if measure.key == key]),
        bounds=bounds,
        notices=(*notices, *remarks),
    )
    return replace(made, verdict=tuple(verdict_lines(made)))


def _notices(played: Sequence[Result], seeds: int) -> list[str]:
    """What all runs say, and whether the seeds were any different."""
    notices = common_notices([result.summary for result in played if result.summary is not None])
    first = [result.summary for result in played[:seeds] if result.summary is not None]
    alike = (s[key] == first[0][key] for s in first for key in ("requests", "e2e_all_s"))
    if len(first) > 1 and all(alike):
        notices.append("all seeds gave the same run: nothing that matters is drawn here, and intervals say nothing")
    return notices
