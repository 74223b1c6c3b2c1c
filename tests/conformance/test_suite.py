"""Every file in policies/ passes the checks that every policy gets (sim.conformance), and the checks can fail.

A case is a policy, a check and an engine option; a new file gets its cases free. Who is excused from something is
listed here, so that no policy excuses itself unseen.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from sim.common.errors import PolicyError
from sim.conformance.hardware import as_yaml
from sim.conformance.subject import run
from sim.conformance.subject import subject as subject_of
from sim.conformance.suite import CHECKS, FAILED, NOT_APPLICABLE, PASSED, Check, Verdict, judge
from sim.core.state.request import COMPLETED
from sim.policy import Action, GpuView, InstanceView, ModelView, Policy, RequestView, View, load_policy, policy_names
from sim.policy.loader import policies_folder, policy_class
from tests.support.bad_policies import BAD, GOOD

# A model that found no room at the start is never served.
STATIC = ["alpaserve", "least-loaded", "static-split"]
# These turn requests away by rule; with some settings they have no reason to.
IMPATIENT = ["alpaserve", "llama-cpp-router", "llama-swap", "llama-swap-matrix", "modelmesh"]
FORESEEING = ["belady", "infinite-memory-srpt"]

subject = cache(subject_of)  # each file is imported once
CASES = [(name, check, engine) for name in policy_names() for check in CHECKS for engine in check.engines or ("",)]


def told(verdict: Verdict) -> str:
    """All that is needed to play it again."""
    plays = (f"rows = {list(play.rows)}\n{as_yaml(play.scenario)}" for play in verdict.plays)
    return "\n".join([verdict.text, *plays])


@pytest.mark.parametrize(
    ("name", "check", "engine"), CASES, ids=lambda part: part.title if isinstance(part, Check) else part
)
def test_it_does_what_every_policy_must(name: str, check: Check, engine: str) -> None:
    verdict = judge(check, subject(name), engine)
    foresees = name in FORESEEING and check.title == "knows neither lengths nor arrivals in advance"
    assert verdict.status == (NOT_APPLICABLE if foresees else PASSED), told(verdict)
    assert foresees or not verdict.text, "our own turn nobody away who can be served"


def test_nobody_is_excused_unseen() -> None:
    classes = {name: policy_class(name)[0] for name in policy_names()}
    assert [name for name, cls in classes.items() if cls.keeps_placement] == STATIC
    assert [name for name, cls in classes.items() if cls.patient] == IMPATIENT
    assert [name for name, cls in classes.items() if cls.foresees] == FORESEEING


def test_every_file_is_a_policy_that_can_be_chosen() -> None:
    files = sorted(path for path in policies_folder().glob("*.py") if not path.stem.startswith("_"))
    assert [path.stem.replace("_", "-") for path in files] == policy_names()


# --- the checks can fail


def verdict_on(source: str, check: Check, path: Path) -> Verdict:
    path.write_text(source, encoding="utf-8")
    return judge(check, subject_of(str(path)), (check.engines or ("",))[-1])


@pytest.mark.parametrize("bad", BAD)
def test_a_check_fails_where_it_should(bad: str, tmp_path: Path) -> None:
    source, title, words = BAD[bad]
    check = next(check for check in CHECKS if check.title == title)
    verdict = verdict_on(source, check, tmp_path / f"{bad}.py")
    assert verdict.status == FAILED
    assert words in verdict.text
    assert verdict_on(GOOD, check, tmp_path / "good.py").status == PASSED


def test_a_policy_that_turns_away_by_rule_passes_with_a_remark() -> None:
    serves = next(check for check in CHECKS if check.title == "serves everyone who can be served")
    verdict = judge(serves, subject_of("modelmesh", {"min_churn_age_s": 600}), "none")
    assert verdict.status == PASSED
    assert verdict.text.startswith("it turns some away: cache churn")


def test_a_static_policy_that_does_not_say_so_is_told_how(tmp_path: Path) -> None:
    serves = next(check for check in CHECKS if check.title == "serves everyone who can be served")
    first_come = GOOD.replace("yield Stop(idle.pop(0))", "return").replace("freed_bytes=", "freed_bytes=0 * ")
    verdict = verdict_on(first_come, serves, tmp_path / "first_come.py")
    assert verdict.status == FAILED
    assert "keeps_placement = True" in verdict.text
    says_so = first_come.replace("    class Parameters", "    keeps_placement = True\n\n    class Parameters")
    assert verdict_on(says_so, serves, tmp_path / "says_so.py").status == PASSED


# --- views


class Keeper(Policy):
    """Keeps the first view, and every kind of facade."""

    def __init__(self) -> None:
        super().__init__()
        self.view: View | None = None
        self.facades: list[Any] = []
        self.refused: list[str] = []

    def decide(self, view: View) -> Iterator[Action]:
        if self.view is None:
            self.view = view
            self.facades = [view.models[0], view.gpus[0], view.nodes[0], next(iter(view.waiting))]
            for facade in (view, *self.facades):
                self._try_to_change(facade)
        else:
            for attribute in ("now_s", "models", "gpus", "nodes", "instances", "waiting", "arrived", "loaded", "freed"):
                with pytest.raises(PolicyError, match="a view is valid for one decision only"):
                    list(value) if isinstance(value := getattr(self.view, attribute), Iterator) else None
                self.refused.append(attribute)
        yield from load_policy("lru-swap")[0].decide(view)

    def _try_to_change(self, facade: Any) -> None:
        for attribute in (name for name in dir(type(facade)) if not name.startswith("_")):
            with pytest.raises((PolicyError, AttributeError)):
                setattr(facade, attribute, 0)
        with pytest.raises((PolicyError, AttributeError)):
            facade.of_my_own = 1


def test_views_end_with_their_decision_and_cannot_be_set() -> None:
    policy = Keeper()
    rows = [(0.0, "a", 10, 20), (1.0, "a", 10, 20)]
    engine = run(subject("lru-swap"), subject("lru-swap").scenario("none"), rows, policy)
    assert engine.world.recorder.ended[COMPLETED] == 2
    assert len(policy.refused) >= 9
    kinds = (ModelView, GpuView, RequestView, InstanceView)
    assert sum(isinstance(facade, kinds) for facade in policy.facades) == 3
