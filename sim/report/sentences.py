"""Sentences that several reports share: what the scenario was, what did not finish, what else a reader must know.

Plain words for people who know serving but not this simulator. Numbers come from summaries.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sim.common.text import counted, listed, number, seconds, share
from sim.report.groups import RunGroup
from sim.report.result_folder import Kept, plain

_LEFT = ("unfinished", "rejected", "timed_out", "failed", "impossible")


def scene(runs: Sequence[Kept]) -> str:
    """The scenario in a sentence."""
    summary = runs[0].summary
    kinds = Counter(str(gpu["kind"]) for gpu in summary["gpus"])
    gpus = listed(f"{count} {plain(kind)}" for kind, count in kinds.items())
    arrived = [run.summary["requests"]["arrived"] for run in runs]
    requests = counted(max(arrived), "request")
    if min(arrived) != max(arrived):
        requests = f"{number(min(arrived))} to {requests}"
    lasted = _long(sum(run.summary["engine"]["sim_s"] for run in runs) / len(runs))
    many = len(runs) > 1
    return (
        f"Scenario “{plain(str(summary['scenario']))}”: {counted(len(summary['models']), 'model')} on "
        f"{counted(len(summary['gpus']), 'GPU')} ({gpus}), {requests}{' in each run' if many else ''}, "
        f"{lasted} simulated{' on average' if many else ''}."
    )


def _long(value_s: float) -> str:
    for unit, size_s in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if value_s >= 2 * size_s:
            return f"{value_s / size_s:.3g} {unit}"
    return seconds(value_s)


def left_over(counts: Mapping[str, int]) -> str:
    """How many of one run's requests did not complete, and how they ended."""
    arrived = counts["arrived"]
    if arrived == 0:
        return "No request arrived."
    if arrived == counts["completed"]:
        return f"All {counted(arrived, 'request')} completed." if arrived > 1 else "The only request completed."
    parts = [f"{number(counts[name])} {name.replace('_', ' ')}" for name in _LEFT if counts[name]]
    lost = arrived - counts["completed"]
    return (
        f"{counted(lost, 'request')} of {number(arrived)} ({share(lost / arrived)}) did not complete: {listed(parts)}. "
        "No average of a latency contains them."
    )


def all_left_over(groups: Sequence[RunGroup]) -> str:
    """The same over policies: who left how many."""
    leaving = {group.name: group for group in groups if group.unserved}
    arrived = sum(group.arrived for group in groups)
    if arrived == 0:
        return "No request arrived."
    if not leaving:
        return f"Every request completed under every policy ({number(arrived)} in all)."
    lost = {(group.unserved, group.arrived) for group in groups}
    if len(lost) == 1 and len(groups) > 1:
        ((left, of),) = sorted(lost)
        return f"Each policy left {number(left)} of {number(of)} requests ({share(left / of)}) without an answer."
    told = [
        f"{name} {number(group.unserved)} of {number(group.arrived)} ({share(group.unserved / group.arrived)})"
        for name, group in sorted(leaving.items(), key=lambda item: (-item[1].unserved / item[1].arrived, item[0]))
    ]
    rest = "" if len(leaving) == len(groups) else " All other policies completed everything."
    return f"Requests that did not complete, and are in no average of a latency: {listed(told)}.{rest}"


def factors(runs: Sequence[Kept]) -> str:
    """The experimental factors in force, and which of them differ between runs."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, value in run.summary["factors"].items():
            found.setdefault(name, {})[plain(str(value))] = None
    told = (f"{plain(name).replace('_', ' ')}: {' or '.join(values)}" for name, values in found.items())
    return f"Assumptions in force: {'; '.join(told)}."


def notices(runs: Sequence[Kept]) -> tuple[str, ...]:
    """What the simulator noticed. What differs in numbers alone is said once, with who else says it."""
    if not runs:
        return ()
    found: dict[str, list[tuple[str, str]]] = {}
    for run in runs:
        for text in run.summary["notices"]:
            line = plain(str(text))
            alike = re.sub(r"[\d.,]+", "#", line.replace("requests", "request"))
            found.setdefault(alike, []).append((run.policy, line))
    if len(runs) == 1:
        return tuple(lines[0][1] for lines in found.values())
    everyone = dict.fromkeys(run.policy for run in runs)
    told = []
    for lines in found.values():
        policies = list(dict.fromkeys(policy for policy, _ in lines))
        who = "every policy" if len(policies) == len(everyone) else listed(policies, 4)
        like = "" if len(lines) == 1 else f", and alike in {counted(len(lines) - 1, 'other run')}"
        told.append(f"{lines[0][1]} ({who}{like})")
    return tuple(told)


def problems(run: Kept) -> tuple[str, ...]:
    """What went wrong in a run (sim.results.diagnosis), a line each."""
    return tuple(f"Problem: {plain(str(problem['text']))}." for problem in run.summary.get("problems", ()))


def limits(summary: Mapping[str, Any]) -> str:
    """What the service classes promise, in a sentence."""
    told = []
    for name, row in summary["classes"].items():
        promised = [
            f"{label} {seconds(row['limits'][key])}"
            for key, label in (("ttft_s", "TTFT"), ("tpot_s", "TPOT"), ("e2e_s", "E2E"))
            if row["limits"].get(key) is not None
        ]
        told.append(f"{plain(name)} ({', '.join(promised) or 'no limit'})")
    return f"Promised, by service class: {listed(told)}."
