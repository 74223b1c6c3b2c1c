"""Verdicts as text for people, a check at a time as they come. Only formatting; `policies check` calls it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from sim.conformance.suite import FAILED, NOT_APPLICABLE, NOT_PLAYED, PASSED, Verdict
from sim.scenario.scenario import is_code

_STATES = (PASSED, FAILED, NOT_APPLICABLE, NOT_PLAYED)
_WIDE = max(map(len, _STATES))


def print_check(verdicts: Sequence[Verdict], kept: Mapping[str, Sequence[Path]], console: Console) -> None:
    """The verdicts of one check, why, and how to see a failure again; what several engines share is said once.

    `kept`: by engine option the scenario files of the runs that show the failure.
    """
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault((verdict.status, verdict.text), []).append(verdict)
    for (status, text), group in groups.items():
        engines = ", ".join(verdict.engine for verdict in group if verdict.engine)
        line = f"{status:{_WIDE}}  {group[0].check}" + (f" (engine.resize: {engines})" if engines else "")
        if text and status != FAILED:
            line += f": {text}"
        console.print(Text(line), soft_wrap=True)
        if text and status == FAILED:
            console.print(Padding(Text(text), (0, 0, 0, _WIDE + 2)))
        files = [file for verdict in group for file in kept.get(verdict.engine, ())]
        for file in files:
            played = group[0].plays[0].scenario.policy.name
            policy = f" --policy {played}" if is_code(played) else ""
            console.print(Text(f"{'':{_WIDE}}  see it: python -m sim run {file}{policy} --check"), soft_wrap=True)
        for play in group[0].plays[:1] if not files else ():
            console.print(f"{'':{_WIDE}}  in scenario '{play.scenario.name}' with {len(play.rows)} requests")


def print_count(verdicts: Sequence[Verdict], keeping: bool, console: Console) -> None:
    """How many of each."""
    counts = {state: sum(verdict.status == state for verdict in verdicts) for state in _STATES}
    console.print(", ".join(f"{count} {state.lower()}" for state, count in counts.items() if count))
    if any(verdict.plays for verdict in verdicts) and not keeping:
        console.print("--keep DIR writes the runs that show a failure down, to be played again.", soft_wrap=True)
