"""Pure: where a policy stops keeping a goal as load grows, or begins to as machines are added; by asking for points.

A search is a generator: it yields the load (or number of nodes) that it wants to know about, is sent a Point, and
returns a Found. So many searches can be played side by side. It does not trust that more load is always worse: it also
tries loads below what it found, and says where the goal was lost and kept again. Called by `capacity`.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from sim.common.statistics import Estimate
from sim.results.metrics import Measure

_BELOW = (0.85, 0.7, 0.5)  # of what was found: tried as well
_MOST_POINTS = 60


@dataclass(frozen=True)
class Goal:
    """What a policy has to keep in the mean of seeds: a metric at least (where less is better, at most) `target`."""

    metric: Measure
    target: float

    def kept(self, value: float | None) -> bool:
        """A run without a number, for none of its requests were completed, keeps nothing."""
        if value is None:
            return False
        return value >= self.target if self.metric.better == "more" else value <= self.target


@dataclass(frozen=True)
class PlayedLoad:
    """One load (or number of nodes) that was played with every seed. counts: requests of all seeds, by outcome.

    sure: True or False where the whole interval keeps or misses the goal, None where it holds the goal.
    """

    at: float
    values: tuple[float | None, ...]
    seen: Estimate
    kept: bool
    sure: bool | None
    usd_by_seed: tuple[float | None, ...]
    usd_per_million_tokens: Estimate  # of these
    counts: dict[str, int]
    run_ids: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """The end of a search. value: the last point that keeps the goal; missed: the next that does not; None: none tried.

    sure_at, sure_not_at: the furthest and nearest points of which the intervals leave no doubt. odd: evidence that more
    is not always worse. why: why there is no value, or no `missed`.
    """

    value: float | None
    missed: float | None
    sure_at: float | None
    sure_not_at: float | None
    odd: str
    why: str
    points: tuple[PlayedLoad, ...]  # in order of `at`


Search = Generator[float, PlayedLoad, Found]


class _Tried:
    """What was played so far, and what it says when read from the easy end: low loads, or many nodes."""

    def __init__(self, easy_is_low: bool) -> None:
        self.sign = 1 if easy_is_low else -1
        self.points: dict[float, PlayedLoad] = {}

    def add(self, point: PlayedLoad) -> bool:
        assert len(self.points) < _MOST_POINTS, "a search goes on for ever"
        self.points[point.at] = point
        return point.kept

    def from_easy(self) -> list[PlayedLoad]:
        return sorted(self.points.values(), key=lambda point: self.sign * point.at)

    def edge(self) -> tuple[float | None, float | None]:
        """The hardest point up to which all keep the goal, and the first that misses it."""
        kept = None
        for point in self.from_easy():
            if not point.kept:
                return kept, point.at
            kept = point.at
        return kept, None

    def found(self, why: str) -> Found:
        kept, missed = self.edge()
        points = self.from_easy()
        sure = [p.at for p in points if p.sure is True and (missed is None or self._easier(p.at, missed))]
        never = [point.at for point in points if point.sure is False]
        ends = sure[-1] if sure else None, never[0] if never else None
        ordered = tuple(sorted(points, key=lambda point: point.at))
        return Found(kept, missed, *ends, self._odd(points, missed), why, ordered)

    def _easier(self, first: float, second: float) -> bool:
        return self.sign * first < self.sign * second

    def _odd(self, points: Sequence[PlayedLoad], missed: float | None) -> str:
        again = [point for point in points if point.kept and missed is not None and self._easier(missed, point.at)]
        if not again or missed is None:
            return ""
        sure = again[-1].sure is True and self.points[missed].sure is False
        return (
            f"missed at {missed:.3g} but kept at {', '.join(f'{point.at:.3g}' for point in again)}"
            f" ({'sure, by their intervals' if sure else 'may be chance: the intervals hold the goal'})"
        )


def largest_load(tolerance: float, most: float) -> Search:
    """The largest load factor between 1 / most and most that keeps the goal, to within a factor of 1 + tolerance.

    If a lower load misses the goal, the answer is the largest one below which all that was tried keeps it.
    """
    tried = _Tried(easy_is_low=True)
    tried.add((yield 1.0))
    at = 1.0
    while tried.points[at].kept and at * 2 <= most:
        at *= 2
        tried.add((yield at))
    while not tried.points[at].kept and tried.edge()[0] is None and at / 2 >= 1 / most:
        at = min(tried.points) / 2
        tried.add((yield at))
    for _ in range(2):  # the second time if what lies below gave a surprise
        kept, missed = tried.edge()
        if kept is None:
            return tried.found(f"misses the goal even at {min(tried.points):.3g} times the load, the least tried")
        while missed is not None and missed / kept > 1 + tolerance:
            tried.add((yield math.sqrt(kept * missed)))
            kept, missed = tried.edge()
            assert kept is not None
        for share in _BELOW:
            if all(abs(math.log(at / (kept * share))) > 0.05 for at in tried.points):
                tried.add((yield kept * share))
        if tried.edge()[0] == kept:
            break
    why = "" if missed is not None else f"keeps the goal even at {most:g} times the load, the most tried"
    return tried.found(why)


def fewest_nodes(start: int, most: int) -> Search:
    """The smallest number of nodes from 1 to most that keeps the goal, and that all larger ones tried keep too."""
    tried = _Tried(easy_is_low=False)
    at = start
    tried.add((yield float(at)))
    while not tried.points[at].kept and at < most:
        at = min(2 * at, most)
        tried.add((yield float(at)))
    while tried.points[at].kept and tried.edge()[1] is None and at > 1:
        at = int(min(tried.points)) // 2 or 1
        tried.add((yield float(at)))
    for _ in range(2):
        kept, missed = tried.edge()
        if kept is None:
            return tried.found(f"misses the goal even with {max(tried.points):.0f} nodes, the most tried")
        while missed is not None and kept - missed > 1:
            tried.add((yield float((int(kept) + int(missed)) // 2)))
            kept, missed = tried.edge()
            assert kept is not None
        for more in (kept + 1, math.ceil(1.5 * kept)):
            if more <= most and float(more) not in tried.points:
                tried.add((yield float(more)))
        if tried.edge()[0] == kept:
            break
    return tried.found("")


def crossing(points: Sequence[PlayedLoad], goal: Goal, seed: int) -> float | None:
    """Where one seed's values first miss the goal as load grows, between two points on a logarithmic scale.

    `seed`: its place among the values. None: it keeps or misses the goal at all points, or has no number at one.
    """
    before: tuple[float, float] | None = None
    for point in points:
        value = point.values[seed]
        if value is None:
            return None
        if not goal.kept(value):
            if before is None:
                return None
            at, kept = before
            part = (kept - goal.target) / (kept - value)
            return float(at * (point.at / at) ** part)
        before = (point.at, value)
    return None
