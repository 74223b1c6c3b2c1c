"""What a policy knew: its decisions in two worlds that no scheduler can tell apart yet.

The worlds differ in what has not shown by some instant, a length or an arrival; until then all decisions are the same,
or the policy has seen what it cannot see. Called by checks.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields

from sim.conformance.hardware import Row, columns
from sim.conformance.subject import Failed, Play, Subject, run
from sim.core.state.request import COMPLETED
from sim.policy.interface.actions import Action
from sim.policy.interface.policy import Policy
from sim.policy.interface.view import View
from sim.scenario.scenario import Scenario

Decision = tuple[float, list[str]]
# Where an iteration that is cut short was to end makes a difference in the last bits of times: that shows no length.
_ROUNDING_S = 1e-6


class Watched(Policy):
    """Another policy's decisions, written down."""

    def __init__(self, inner: Policy) -> None:
        super().__init__()
        self.inner = inner
        for name in ("ideal", "oracle", "follows_every_finish"):  # its world, what marks it, when it is asked
            setattr(self, name, getattr(inner, name))
        self.decisions: list[Decision] = []

    def start(self, view: View) -> Iterator[Action]:
        yield from self._noted(view, self.inner.start(view))

    def decide(self, view: View) -> Iterator[Action]:
        yield from self._noted(view, self.inner.decide(view))

    def _noted(self, view: View, actions: Iterable[Action]) -> Iterator[Action]:
        noted: list[str] = []
        now_s = view.now_s
        for action in actions:
            values = (_as_text(getattr(action, field.name)) for field in fields(action))
            noted.append(f"{type(action).__name__}({', '.join(values)})".split(" object")[0])
            if len(noted) == 1:
                self.decisions.append((round(now_s, 6), noted))
            yield action


def _as_text(value: object) -> str:
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def watch(policy: Subject, of: Scenario, rows: list[Row]) -> tuple[list[Decision], list[float]]:
    """The decisions of a run, and when each request showed its length; infinity: never, it was turned away."""
    watched = Watched(policy.fresh(of.policy.parameters))
    ended = columns(run(policy, of, rows, watched))
    told_s = [
        float(end_s) if outcome == COMPLETED else float("inf")
        for end_s, outcome in zip(ended["end_s"], ended["outcome"], strict=True)
    ]
    return watched.decisions, told_s


def assert_alike(policy: Subject, of: Scenario, one: list[Row], other: list[Row]) -> int:
    """The two worlds get the same decisions until they can be told apart; so many there were before that.

    Raises Failed.
    """
    (decisions, told_s), (others, others_told_s) = watch(policy, of, one), watch(policy, of, other)
    shown_s = float("inf")
    for number, (row, changed) in enumerate(zip(one, other, strict=True)):
        if row[:3] != changed[:3]:
            shown_s = min(shown_s, row[0], changed[0])
        elif row != changed:
            shown_s = min(shown_s, told_s[number], others_told_s[number])
    early, others_early = ([d for d in made if d[0] < shown_s - _ROUNDING_S] for made in (decisions, others))
    if early != others_early:
        pairs = zip([*early, None], [*others_early, None], strict=False)
        seen, instead = next(pair for pair in pairs if pair[0] != pair[1])
        raise Failed(
            f"it decides by what has not shown: {_told(seen)} in one world, {_told(instead)} in another that does not"
            f" differ from it before t={shown_s:.6f} s",
            Play(of, one),
            Play(of, other),
        )
    return sum(len(actions) for _, actions in early)


def _told(decision: Decision | None) -> str:
    if decision is None:
        return "it does nothing more"
    now_s, actions = decision
    return f"at t={now_s:.6f} s {', '.join(actions[:3])}{', ...' if len(actions) > 3 else ''}"
