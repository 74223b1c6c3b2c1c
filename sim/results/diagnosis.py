"""Pure: what went so wrong in a run that its averages tell little, in numbers and in words.

Thrashing, preemption storms, queues that grow without end, requests that starve or get no answer. Each has thresholds,
which stand in the text with what was found; a healthy run has no problem at all. Called by summary.py, which keeps the
problems under "problems" where there are any; tables.py and report/ show them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.core.state.request import COMPLETED, FAILED, IMPOSSIBLE, REJECTED, TIMED_OUT, UNFINISHED
from sim.results.request_table import RequestColumns

if TYPE_CHECKING:
    from sim.engine.engine import Outcome

Floats = NDArray[np.float64]

# Thrashing: of the GPU seconds that are not idle, at least this share goes into loads and moved KV, ...
SWITCHING = 0.4
# ... at least this share of the loads, and so many, bring back a model which went away not long before: ...
COMING_BACK = 0.5
LOADS = 10
# ... less than so many times what it takes to load it.
SOON = 3.0
# A storm of preemptions: so many for each request that got an answer, and so much of the requests' time goes into being
# preempted, moved and computed again for each second of prefill and decode.
PREEMPTIONS = 1.0
PREEMPTED = 0.5
# A queue that grows: in the second half of the arrivals fewer leave than this share of those who come, quarter after
# quarter, by more requests than chance explains (in standard deviations of a Poisson count, and at least so many).
LEAVING = 0.9
DEVIATIONS = 4.0
GROWN = 20
# Shares of the requests that could have been served.
STARVED = 0.01
UNANSWERED = 0.05
# Of the time of the GPUs that they were down, and of their work that was lost.
DOWN = 0.05
LOST = 0.05
FEW = 5  # requests, which alone are no problem of the whole
_NAMED = 3  # models in a text


@dataclass(frozen=True)
class Problem:
    """kind: queue-growth, thrashing, preemption-storm, unanswered, starvation, faults. text: one line, with numbers
    and thresholds. numbers: what was found, by name with its unit."""

    kind: str
    text: str
    numbers: dict[str, float | int | None]

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {"kind": self.kind, "text": self.text, **self.numbers}


def diagnose(outcome: Outcome, table: RequestColumns, summary: Mapping[str, Any]) -> list[Problem]:
    """The problems of a run, the gravest first. table: of all its requests; summary: all else that is known of it."""
    names = [model.name for model in outcome.cluster.models]
    found = (
        _growth(table, names),
        _thrashing(outcome, summary),
        _storm(summary),
        _unanswered(table, outcome, names),
        _starvation(table, outcome.scenario.starvation_s, names),
        _faults(outcome, summary),
    )
    return [problem for problem in found if problem is not None]


# --- GPUs that switch more than they serve


def _thrashing(outcome: Outcome, summary: Mapping[str, Any]) -> Problem | None:
    spent: dict[str, float] = {}
    for gpu in outcome.cluster.gpus:
        for activity, seconds in gpu.activity_s.items():
            spent[activity] = spent.get(activity, 0.0) + seconds
    switching_s, computing_s = spent["loading"] + spent["transferring"], spent["computing"]
    loads, soon, gone_s = coming_back(outcome)
    if soon < max(LOADS, COMING_BACK * loads) or switching_s < SWITCHING * (switching_s + computing_s):
        return None
    share, arrived = switching_s / (switching_s + computing_s), summary["requests"]["arrived"]
    text = (
        f"thrashing: the GPUs spent {switching_s:,.0f} s on loads and moved KV and {computing_s:,.0f} s computing "
        f"({_percent(share)} of both; named from {_percent(SWITCHING)} on); {soon:,} of {loads:,} loads brought back a "
        f"model that had gone less than {SOON:g} load times before (median {gone_s:,.3g} s), "
        f"{_rounded(loads / max(1, arrived))} loads per request; fewer models a GPU, or a policy that holds on longer"
    )
    numbers = {"switching_s": switching_s, "computing_s": computing_s, "loads": loads, "soon": soon, "gone_s": gone_s}
    return Problem("thrashing", text, {**numbers, "share": share})


def coming_back(outcome: Outcome) -> tuple[int, int, float]:
    """How many loads and wake-ups there were, how many of these came soon after the same model had been taken off some
    GPU, and how long these had been away (the median, s)."""
    columns, kinds = outcome.recorder.switch_columns, outcome.recorder.switch_texts["kind"]
    codes, model, end_s = columns["kind"], columns["model"], columns["time_s"]
    loading = np.isin(codes, [code for kind, code in kinds.items() if kind in ("load", "wake")])
    freeing = codes == kinds.get("free", -1)
    taken_s = (columns["reload_s"] + columns["start_s"])[loading]
    asked_s = end_s[loading] - taken_s - columns["wait_s"][loading]
    away_s = np.full(len(taken_s), np.inf)
    for code in np.unique(model[loading]).tolist():
        own, freed_s = model[loading] == code, np.sort(end_s[freeing & (model == code)])
        before = np.searchsorted(freed_s, asked_s[own], side="right") - 1
        away_s[own] = np.where(before >= 0, asked_s[own] - np.append(freed_s, np.nan)[before], np.inf)
    soon = away_s < SOON * taken_s
    return len(taken_s), int(soon.sum()), float(np.median(away_s[soon])) if soon.any() else 0.0


def _storm(summary: Mapping[str, Any]) -> Problem | None:
    budget, switching = summary["time_budget_s"], summary["switching"]
    times = switching["sequence_preemptions"] + switching["model_preemptions"]
    answered = summary["requests"]["completed"]
    lost_s = budget["preempted"] + budget["kv_transfer"] + budget["recompute"]
    useful_s = budget["prefill"] + budget["decode"]
    if times < max(LOADS, PREEMPTIONS * answered) or lost_s < PREEMPTED * useful_s:
        return None
    text = (
        f"preemption storm: {times:,} preemptions for {answered:,} answered requests (named from {PREEMPTIONS:g} each "
        f"on); requests were preempted, moved or computed again for {lost_s:,.0f} s, and in prefill or decode for "
        f"{useful_s:,.0f} s (named from {PREEMPTED:g} for 1 on); fewer sequences at once, or longer turns"
    )
    return Problem("preemption-storm", text, {"preemptions": times, "lost_s": lost_s, "useful_s": useful_s})


def _faults(outcome: Outcome, summary: Mapping[str, Any]) -> Problem | None:
    """Where the scenario lets something fail (faults_summary.py): how much of the machines that took."""
    if "faults" not in summary:
        return None
    faults = summary["faults"]
    activities = [(name, s) for gpu in outcome.cluster.gpus for name, s in gpu.activity_s.items()]
    worked_s = sum(seconds for name, seconds in activities if name not in ("idle", "down"))
    lost_s, up = faults["lost"]["gpu_s"], faults["availability"]
    share = lost_s / worked_s if worked_s else 0.0
    if share < LOST and up > 1 - DOWN:
        return None
    events = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in faults["events"].items() if count)
    text = (
        f"faults: {events or 'none yet'}; the GPUs were up for {_percent(up)} of the time and lost {lost_s:,.0f} s of "
        f"{worked_s:,.0f} s of their work ({_percent(share)}); named from {_percent(DOWN)} down or {_percent(LOST)} "
        f"lost on; {faults['requests']['retried']:,} requests began again, {faults['requests']['failed']:,} failed"
    )
    return Problem("faults", text, {"availability": up, "lost_gpu_s": lost_s, "lost_share": share})


# --- requests that come faster than they leave


@dataclass(frozen=True)
class QueueGrowth:
    """How many requests waited for a first token when a quarter, half, three quarters and all of the time of arrivals
    had passed, and how many came and waited no more in its second half, which lasted half_s."""

    backlog: tuple[int, int, int, int]
    came: int
    left: int
    half_s: float

    @property
    def grows(self) -> bool:
        more = self.backlog[3] - self.backlog[1]
        steady = all(late > early for early, late in zip(self.backlog, self.backlog[1:], strict=False))
        return steady and self.left < LEAVING * self.came and more >= max(GROWN, DEVIATIONS * self.came**0.5)


def queue_of(arrival_s: Floats, left_s: Floats) -> QueueGrowth | None:
    """None where nobody comes, or all at once. left_s: when each waited no more; infinite: it still did at the end."""
    if not len(arrival_s) or arrival_s.min() == arrival_s.max():
        return None
    first_s, last_s = float(arrival_s.min()), float(arrival_s.max())
    moments = np.linspace(first_s, last_s, 5)
    come = np.searchsorted(np.sort(arrival_s), moments, side="right")
    gone = np.searchsorted(np.sort(left_s), moments, side="right")
    backlog = (come - gone)[1:].tolist()
    return QueueGrowth(tuple(backlog), int(come[4] - come[2]), int(gone[4] - gone[2]), (last_s - first_s) / 2)


def _growth(table: RequestColumns, names: list[str]) -> Problem | None:
    """Of all requests together, or of some models alone."""
    possible = table["outcome"] != IMPOSSIBLE
    arrival_s, model = table["arrival_s"][possible], table["model"][possible]
    # To decode is to be served, however long it takes: who has a first token waits no more.
    in_vain = (table["outcome"] == UNFINISHED) & np.isnan(table["ttft_s"])
    left_s = np.where(in_vain, np.inf, table["arrival_s"] + table["wait_s"])[possible]
    whole = queue_of(arrival_s, left_s)
    if whole is None:
        return None
    growing: list[tuple[str, QueueGrowth]] = []
    for code, name in enumerate(names):
        queue = queue_of(arrival_s[model == code], left_s[model == code])
        if queue is not None and queue.grows:
            growing.append((name, queue))
    if not whole.grows and not growing:
        return None
    growing.sort(key=lambda one: (-(one[1].backlog[3] - one[1].backlog[1]), one[0]))
    shown = ", ".join(f"{name} {_rates(queue)}" for name, queue in growing[:_NAMED])
    more = f" and {len(growing) - _NAMED} more" if len(growing) > _NAMED else ""
    queue = whole if whole.grows else growing[0][1]
    what = "the queue grows" if whole.grows else f"the queue of {growing[0][0]} grows"
    named = f"named when less than {_percent(LEAVING)} leave, quarter after quarter"
    offered = f"{queue.came / queue.left:.2g} times what is carried" if queue.left else "and nothing is carried"
    text = (
        f"{what}: {queue.backlog[1]:,} requests waited for a first token at half of the arrivals and "
        f"{queue.backlog[3]:,} at their end; {_rates(queue)}, so the load is {offered} ({named})"
        + (f"; {shown}{more}" if whole.grows and growing else "")
        + "; every mean wait depends on when the arrivals stop: less load, or more GPUs"
    )
    numbers = {"backlog_half": queue.backlog[1], "backlog_end": queue.backlog[3]}
    rates = {"arriving_per_s": queue.came / queue.half_s, "leaving_per_s": queue.left / queue.half_s}
    return Problem("queue-growth", text, {**numbers, **rates})


def _rates(queue: QueueGrowth) -> str:
    return f"{_rounded(queue.came / queue.half_s)}/s came and {_rounded(queue.left / queue.half_s)}/s left"


# --- requests that wait in vain


def _starvation(table: RequestColumns, starvation_s: float, names: list[str]) -> Problem | None:
    possible = table["outcome"] != IMPOSSIBLE
    starved = possible & (table["wait_s"] > starvation_s)
    count, of = int(starved.sum()), int(possible.sum())
    if count < max(FEW, STARVED * of):
        return None
    text = (
        f"starvation: {count:,} of {of:,} requests ({_percent(count / of)}; named from {_percent(STARVED)} on) waited "
        f"longer than {starvation_s:g} s for a first token: {_by_model(table, starved, possible, names)}"
    )
    return Problem("starvation", text, {"starved": count, "share": count / of})


def _unanswered(table: RequestColumns, outcome: Outcome, names: list[str]) -> Problem | None:
    """Who came shortly before the horizon could not be answered and does not count."""
    ended, possible = table["outcome"], table["outcome"] != IMPOSSIBLE
    late = table["wait_s"] <= outcome.scenario.starvation_s if outcome.scenario.horizon_s is not None else False
    left = possible & (ended != COMPLETED) & ~((ended == UNFINISHED) & late)
    count, of = int(left.sum()), int(possible.sum())
    if count < max(FEW, UNANSWERED * of):
        return None
    kinds = {"rejected": REJECTED, "timed out": TIMED_OUT, "failed": FAILED, "unfinished": UNFINISHED}
    parts = [(int((left & (ended == code)).sum()), kind) for kind, code in kinds.items()]
    told = ", ".join(f"{number:,} {kind}" for number, kind in parts if number)
    nobody = "nobody got an answer" if not (ended == COMPLETED).any() else f"{count:,} of {of:,} requests got no answer"
    text = (
        f"unanswered: {nobody} ({told}; {_percent(count / of)}, named from {_percent(UNANSWERED)} on): "
        f"{_by_model(table, left, possible, names)}; averages are of the others alone"
    )
    return Problem("unanswered", text, {"unanswered": count, "share": count / of})


def _by_model(table: RequestColumns, those: NDArray[np.bool_], of: NDArray[np.bool_], names: list[str]) -> str:
    """Whose they are: the models with most of them."""
    counts = np.bincount(table["model"][those], minlength=len(names))
    whole = np.bincount(table["model"][of], minlength=len(names))
    order = [code for code in np.argsort(-counts, kind="stable").tolist() if counts[code]]
    told = ", ".join(f"{names[code]} {counts[code]:,} of {whole[code]:,}" for code in order[:_NAMED])
    return told + (f" and {len(order) - _NAMED} more models" if len(order) > _NAMED else "")


def _percent(part: float) -> str:
    return f"{part:.0%}" if part >= 0.1 or part == round(part, 2) else f"{part:.1%}"


def _rounded(value: float) -> str:
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
