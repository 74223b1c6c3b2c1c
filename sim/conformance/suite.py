"""All checks in order, and the judgement of each over a policy.

`conformance` is for people: what cannot pass any more, after a check failed, is not played again. `judge` is one check;
the project's own tests call it for every policy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.conformance import checks, source
from sim.conformance.cases import RESIZES
from sim.conformance.subject import Endless, Failed, NotApplicable, Play, Subject, subject

PASSED, FAILED, NOT_APPLICABLE, NOT_PLAYED = "passed", "FAILED", "not applicable", "not played"


@dataclass(frozen=True)
class Check:
    """`engines`: the values of engine.resize that it is played with; none: nothing is played."""

    title: str
    judge: Callable[[Subject, str], str]
    engines: tuple[str, ...] = ()


FIRST = Check("asks for legal actions only", checks.acts_legally, RESIZES)
CHECKS = (
    Check("imports what a policy may", source.imports_what_it_may),
    Check("does not reach behind the views", source.stays_before_the_views),
    Check("names a wrong parameter", checks.names_a_wrong_parameter),
    FIRST,
    Check("the same requests give the same result", checks.is_repeatable, ("elastic",)),
    Check("serves everyone who can be served", checks.serves_everyone, RESIZES),
    Check("lets nobody wait for ever", checks.leaves_nobody_waiting, RESIZES),
    Check("knows neither lengths nor arrivals in advance", checks.knows_no_future, ("none", "elastic")),
    Check("survives faults", checks.survives_faults, RESIZES),
    Check("copes with many GPUs", checks.copes_with_many_gpus, ("elastic",)),
)


@dataclass(frozen=True)
class Verdict:
    """One check of a policy with one engine option (engine.resize; "" where it makes no difference).

    `text`: why it failed or was not played, or a remark. `plays`: the runs that show a failure. `endless`: a run had to
    be broken off.
    """

    check: str
    engine: str
    status: str
    text: str = ""
    plays: tuple[Play, ...] = ()
    endless: bool = False


def judge(check: Check, policy: Subject, engine: str) -> Verdict:
    """Run one check. `engine`: one of the check's own, or "" if it has none."""
    try:
        return Verdict(check.title, engine, PASSED, check.judge(policy, engine))
    except NotApplicable as reason:
        return Verdict(check.title, engine, NOT_APPLICABLE, str(reason))
    except Failed as failure:
        return Verdict(check.title, engine, FAILED, str(failure), failure.plays, isinstance(failure, Endless))


def conformance(name: str, parameters: Mapping[str, Any] | None = None) -> Iterator[Verdict]:
    """The verdicts on a policy given by name, path or entry point, one by one as they come.

    An engine option with which it acts illegally is not played further, and nothing is after a run without an end.
    Raises PolicyError (no such policy, a file that does not import) and ConfigError (its parameters), at once.
    """
    return _verdicts(subject(name, parameters))


def _verdicts(policy: Subject) -> Iterator[Verdict]:
    failing: list[str] = []
    for check in CHECKS:
        for engine in check.engines or ("",):
            if engine in failing:
                yield Verdict(check.title, engine, NOT_PLAYED, "after the failure above")
                continue
            verdict = judge(check, policy, engine)
            if verdict.endless:
                failing += RESIZES
            elif check is FIRST and verdict.status == FAILED:
                failing.append(engine)
            yield verdict


def check_policy(policy: str | Path, parameters: Mapping[str, Any] | None = None) -> list[Verdict]:
    """What every policy must do, judged for one given by name or path, as `policies check` does; takes some seconds.

    Raises PolicyError (no such policy, a file that does not import) and ConfigError (its parameters).
    """
    return list(conformance(str(policy), parameters))
