"""Cuts a failing Case down to what its failure needs, and writes it down for `python -m sim run` to play again.

Greedy: whatever can be left out or made smaller while the same check fails at the same place, is. Deterministic, and
bounded by a number of plays. tests/tools/fuzz.py and test_machine.py use it; what fails is what checks.CHECKS say.
"""

from __future__ import annotations

import hashlib
import shutil
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from math import nan
from pathlib import Path
from typing import Any, TypeVar

from sim.scenario.scenario import TraceWorkload
from sim.traces.write import write_trace
from tests.support.fuzzing.checks import CHECKS, RANDOM, CaseFailed, Refused, as_script, policy_of, prepared
from tests.support.fuzzing.random_policy import RandomPolicy
from tests.support.fuzzing.swarm import Case, CaseRow
from tests.support.scenarios import as_yaml

Item = TypeVar("Item")
MOST_PLAYS = 600
# What a field of a scenario is when it says nothing, in order of what is worth most.
PLAIN_FIELDS: dict[str, dict[str, Any]] = {
    "engine": {
        "ideal": [],
        "resize": "none",
        "prefill": "first",
        "prefill_tokens": 8192,
        "sequence_preemption": "recompute",
        "sequence_order": "arrival",
        "watermark": 0.0,
        "block_tokens": 1,
        "max_sequences": 8,
    },
    "sharing": {"contention": "proportional", "links": "fair"},
    "predictor": {"kind": "running-mean"},
}
PLAIN_NODE = {"cache_at_start": "all", "weight_cache_gib": None, "memory_gib": None}
PLAIN_MODEL = {"own_weights": False, "kv_tokens": None, "weight": 1.0}


def root_of(error: BaseException) -> BaseException:
    """What it was that failed at first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def place_of(error: BaseException) -> tuple[str, str, int]:
    """What kind of failure it is, and where: two failures at one place count as the same."""
    root = root_of(error)
    frames = traceback.extract_tb(root.__traceback__)
    last = frames[-1] if frames else None
    return type(root).__name__, Path(last.filename).name if last else "", (last.lineno or 0) if last else 0


class Shrinker:
    """One failure, and how often it may be played to cut it down."""

    def __init__(self, failure: CaseFailed, most_plays: int = MOST_PLAYS) -> None:
        self.check = failure.check
        self.place = place_of(failure.cause)
        self.left = most_plays

    def fails(self, case: Case) -> bool:
        """Does the case fail in the same way? False when all plays are used up."""
        if self.left <= 0:
            return False
        self.left -= 1
        try:
            CHECKS[self.check](case)
        except Refused:
            return False
        except Exception as error:
            return place_of(error) == self.place
        return False

    def smallest(self, case: Case) -> Case:
        """The smallest that was found."""
        case = self._written_out(case)
        before = None
        while case != before and self.left > 0:
            before = case
            case = self._fewer_rows(case)
            case = self._fewer_actions(case)
            for changed in (self._plainer, self._smaller_machines, self._smaller_rows, self._smaller_actions):
                case = changed(case)
        return case

    def _written_out(self, case: Case) -> Case:
        """With a list of actions, if the failure shows in that form too."""
        policy = policy_of(case)
        if not isinstance(policy, RandomPolicy) or "actions" in case.policy or "inner" in case.policy:
            return case
        with suppress(Exception):  # most likely the failure itself: the log ends there
            prepared(case, policy).run()
        script = as_script(case, policy)
        # Each wake-up asks for the next: to leave some out, they are all asked for at the start.
        actions = [entry for entry in script.policy["actions"] if entry[2] != "wake"]
        wakes = [*dict.fromkeys(entry[0] for entry in script.policy["actions"] if entry[0] > 0)]
        awake = replace(script, policy={**script.policy, "actions": actions, "wakes": wakes})
        return next((found for found in (awake, script) if self.fails(found)), case)

    def _try(self, case: Case, candidates: Iterator[Case]) -> Case:
        """The first of the candidates that fails too, else the case."""
        return next((candidate for candidate in candidates if self.fails(candidate)), case)

    def _fewer(self, items: Sequence[Item], made: Callable[[Sequence[Item]], Case], least: int = 0) -> Sequence[Item]:
        """Leave out halves, quarters, ... single ones, for as long as the rest, `least` of them, still fails."""
        size = len(items)
        while size >= 1:
            at = 0
            while at < len(items):
                rest = [*items[:at], *items[at + size :]]
                if len(rest) >= least and self.fails(made(rest)):
                    items = rest
                else:
                    at += size
            size //= 2
        return items

    def _fewer_rows(self, case: Case) -> Case:
        # A trace without requests is a user's mistake: `sim run` would not play it again.
        rows = self._fewer(case.rows, lambda rows: replace(case, rows=tuple(rows)), least=1)
        return replace(case, rows=tuple(rows))

    def _fewer_actions(self, case: Case) -> Case:
        for name in ("actions", "wakes"):
            if case.policy.get(name):

                def made(kept: Sequence[Any], case: Case = case, name: str = name) -> Case:
                    return replace(case, policy={**case.policy, name: list(kept)})

                case = made(self._fewer(case.policy[name], made))
        return case

    def _plainer(self, case: Case) -> Case:
        for group, fields in PLAIN_FIELDS.items():
            for name, value in fields.items():
                given = case.data.get(group, {})
                if given.get(name, value) != value:
                    changed = {**case.data, group: {**given, name: value}}
                    case = self._try(case, iter([replace(case, data=changed)]))
        for name, plain in (("horizon_s", None), ("faults", None)):
            if case.data.get(name) is not None:
                case = self._try(case, iter([replace(case, data={**case.data, name: plain})]))
        faults = case.data.get("faults") or {}
        if faults.get("events"):

            def made(kept: Sequence[Any]) -> Case:
                return replace(case, data={**case.data, "faults": {**faults, "events": list(kept)}})

            case = made(self._fewer(faults["events"], made))
        return self._try(case, iter([replace(case, pieces=10_000)])) if case.pieces < 10_000 else case

    def _smaller_machines(self, case: Case) -> Case:
        for name, plain in (("nodes", PLAIN_NODE), ("models", PLAIN_MODEL)):
            for number in reversed(range(len(_listed(case, name)))):
                if len(_listed(case, name)) > 1 and (name == "nodes" or number == len(_listed(case, name)) - 1):
                    case = self._try(case, _without(case, name, number))
                for field, value in plain.items():
                    if number < len(_listed(case, name)) and _listed(case, name)[number].get(field, value) != value:
                        changed = [dict(one) for one in _listed(case, name)]
                        changed[number][field] = value
                        case = self._try(case, iter([_with(case, name, changed)]))
        return self._try(case, _fewer_gpus(case))

    def _smaller_rows(self, case: Case) -> Case:
        for number in range(len(case.rows)):
            for smaller in SMALLER:
                row = smaller(case.rows[number])
                if row != case.rows[number]:
                    rows = (*case.rows[:number], row, *case.rows[number + 1 :])
                    case = self._try(case, iter([replace(case, rows=rows)]))
        return case

    def _smaller_actions(self, case: Case) -> Case:
        for number, entry in enumerate(case.policy.get("actions") or ()):
            for at in (3, 4, 5):
                if entry[at]:
                    actions = [list(other) for other in case.policy["actions"]]
                    actions[number][at] = 0
                    case = self._try(case, iter([replace(case, policy={**case.policy, "actions": actions})]))
        return case


def _listed(case: Case, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = case.data["cluster"]["nodes"] if name == "nodes" else case.data["models"]
    return found


def _with(case: Case, name: str, listed: list[dict[str, Any]]) -> Case:
    if name == "models":
        return replace(case, data={**case.data, "models": listed})
    return replace(case, data={**case.data, "cluster": {**case.data["cluster"], "nodes": listed}})


def _without(case: Case, name: str, number: int) -> Iterator[Case]:
    """Without a node; or without the last model, its requests sent to another."""
    listed = _listed(case, name)
    rest = _with(case, name, [*listed[:number], *listed[number + 1 :]])
    if name == "nodes":
        yield rest
        return
    kept: Callable[[CaseRow], CaseRow] = lambda row: (row[0], min(row[1], number - 1), *row[2:])  # noqa: E731
    yield replace(rest, rows=tuple(map(kept, case.rows)))


def _fewer_gpus(case: Case) -> Iterator[Case]:
    for number, node in enumerate(_listed(case, "nodes")):
        groups = node["gpus"]
        smaller = [[{**group, "count": 1} for group in groups], groups[:1], [{**groups[0], "count": 1}]]
        for kept in smaller:
            if kept != groups:
                changed = [dict(one) for one in _listed(case, "nodes")]
                changed[number]["gpus"] = kept
                yield _with(case, "nodes", changed)


# What may be smaller about a request: its tokens, then what it is besides.
SMALLER: tuple[Callable[[CaseRow], CaseRow], ...] = (
    lambda row: (*row[:2], 1, *row[3:]),
    lambda row: (*row[:2], max(1, row[2] // 2), *row[3:]),
    lambda row: (*row[:3], 1, *row[4:]),
    lambda row: (*row[:3], max(1, row[3] // 2), *row[4:]),
    lambda row: (*row[:4], 0, 0, -1, nan),
    lambda row: (*row[:4], 0, *row[5:]),
)


# --- written down


def keep(case: Case, folder: Path, message: str) -> Path:
    """A folder of its own with all that the case needs: scenario.yaml for `sim run --check`, case.json for
    `tests/tools/fuzz.py --replay`, requests, profiles, and the policy's file. Returns the scenario file."""
    home = folder / f"case-{hashlib.sha256(case.to_json().encode()).hexdigest()[:10]}"
    home.mkdir(parents=True, exist_ok=True)
    of = case.scenario()
    if case.rows:
        write_trace(case.trace(), home / "requests.csv")
    policy = of.policy
    if policy.name == RANDOM:
        copy = home.absolute() / "random_policy.py"
        shutil.copyfile(RANDOM, copy)
        policy = policy.model_copy(update={"name": str(copy)})
    profiles = None
    if of.profiles is not None:
        profiles = str(home.absolute() / "profiles")
        shutil.copytree(of.profiles, profiles, dirs_exist_ok=True)
    workload = TraceWorkload(kind="trace", file="requests.csv")
    kept = of.model_copy(update={"workload": workload, "profiles": profiles, "policy": policy})
    (home / "scenario.yaml").write_text(as_yaml(kept), encoding="utf-8")
    (home / "case.json").write_text(case.to_json(), encoding="utf-8")
    (home / "failure.txt").write_text(message + "\n", encoding="utf-8")
    return home / "scenario.yaml"


def commands(file: Path) -> str:
    """How to see it again. Code is not run because a scenario names it: the command line says which policy."""
    policy = file.with_name("random_policy.py")
    chosen = f"--policy {policy} " if policy.exists() else ""
    case = file.with_name("case.json")
    return f"python -m sim run {file} {chosen}--check\npython -m tests.tools.fuzz --replay {case}"
