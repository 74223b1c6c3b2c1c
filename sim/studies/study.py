"""What a comparison and a search for capacity begin with: a scenario, policies and seeds, checked before any run.

All that the user can have got wrong is refused here, so that what fails later is the fault of one policy in one run.
Called by `compare` and `capacity`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sim.common.errors import ConfigError, did_you_mean
from sim.engine.engine import prepare
from sim.policy.loader import asked_policy
from sim.runs.run_one import RunOptions, compose
from sim.runs.store import Store
from sim.runs.task import Machines, Progress
from sim.scenario.scenario import Scenario, TraceWorkload
from sim.studies.choose_policies import PolicyChoice, choose
from sim.studies.plain_result import PlainResult
from sim.workload.requests import Workload, open_workload

OnProgress = Callable[[Progress], None]
Found = TypeVar("Found", bound=PlainResult)


@dataclass(frozen=True)
class StudyOptions:
    """What `compare` and `capacity` share. `run` says which scenario; its policy, seed and out are not looked at."""

    run: RunOptions = field(default_factory=RunOptions)
    policies: str | Sequence[str | Path] = "all"
    seeds: int = 10
    first_seed: int = 1
    machines: Machines = field(default_factory=Machines)


@dataclass(frozen=True)
class Study:
    scenario: Scenario
    workload: Workload  # of the first seed
    choices: list[PolicyChoice]
    seeds: tuple[int, ...]
    notices: tuple[str, ...]


def open_study(options: StudyOptions) -> Study:
    """Raises SimError: whatever is wrong with the scenario, its requests, the policies or the seeds."""
    if options.seeds < 1:
        raise ConfigError(f"--seeds {options.seeds}: at least 1; 10 give useful intervals")
    if options.first_seed < 0 or options.first_seed + options.seeds > 2**63:
        raise ConfigError(f"--first-seed {options.first_seed}: seeds are whole numbers from 0 on, below 2^63")
    scenario = compose(options.run)
    choices = choose(options.policies, scenario)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    notices = []
    drawn = what_seeds_change(scenario)
    if not drawn and len(seeds) > 1:
        notices.append(
            "nothing in this scenario is drawn: all seeds are the same run; one was played, and there are no intervals"
        )
        seeds = seeds[:1]
    elif drawn and isinstance(scenario.workload, TraceWorkload):
        notices.append(f"arrivals and lengths are the trace's in every run; seeds change only {' and '.join(drawn)}")
    scenario = scenario.model_copy(update={"seed": seeds[0]})
    first = choices[0].of(scenario, seeds[0])
    prepare(first, chosen=asked_policy(first.policy.name, first.policy.parameters))
    workload = open_workload(scenario)
    if workload.rows == 0:
        raise ConfigError(f"scenario '{scenario.name}': no request arrives; there is nothing to compare")
    return Study(scenario, workload, choices, tuple(seeds), tuple(notices))


def what_seeds_change(scenario: Scenario) -> list[str]:
    """What differs between two seeds of a scenario, in words; nothing for a trace that is played as it is."""
    if not isinstance(scenario.workload, TraceWorkload):
        return ["all that is drawn: arrivals, models and lengths"]
    assign = scenario.workload.assign
    found = [f"which model a request asks for (assign {assign})"] if assign not in (None, "round-robin") else []
    if scenario.predictor.kind == "noisy-oracle":
        found.append("the errors of predicted lengths")
    return found


def has_promises(study: Study) -> bool:
    """Does any request have a limit that an SLO could break: of its class, or a deadline of its own?"""
    limits = [getattr(kind, name) for kind in study.scenario.service_classes for name in ("ttft_s", "tpot_s", "e2e_s")]
    if any(limit is not None for limit in limits):
        return True
    first: Any = next(study.workload.chunks(), None)
    return first is not None and first.deadline_s is not None


def kept(
    out: Path | None, files: tuple[str, str], make: Callable[[Store | None], Found], as_csv: Callable[[Found], str]
) -> Found:
    """What `make` finds with the runs of a store; with `out` it is kept there as JSON and CSV."""
    if out is None:
        return make(None)
    store = Store(out)
    with store.locked():
        store.discard(files)
        found = make(store)
        for name, text in zip(files, (found.as_json(), as_csv(found)), strict=True):
            store.write_text(name, text)
    return found


def label_of(wanted: str | None, choices: list[PolicyChoice], flag: str) -> str:
    """The label of the policy that `flag` names; None: the scenario's first choice. Raises ConfigError."""
    labels = [choice.label for choice in choices]
    if wanted is None:
        return labels[0]
    named = [choice.label for choice in choices if wanted in (choice.label, choice.spec.name)]
    if len(named) > 1 and wanted not in labels:
        raise ConfigError(f"{flag} {wanted}: several policies have this name: {', '.join(named)}; give one of these")
    if not named:
        raise ConfigError(f"{flag} {wanted}: is not among the policies; {did_you_mean(wanted, labels)}")
    return wanted if wanted in labels else named[0]
