"""Pure: the first few of many by a rank that keeps changing, without looking at all of them.

State marks whoever may have changed, which costs next to nothing; only when somebody asks are the marked ones ranked
anew. So a decision's cost follows what has changed since the last one, not the size of the cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any

Rank = tuple[float, float, int]


class Ranking:
    """Members by rank, the least first. `rank_of` gives a member's rank, or None while it is out of question; a rank
    ends in a number that is the member's own, so no two are equal. Every change of a rank must be marked."""

    def __init__(self, rank_of: Callable[[Any], Rank | None]) -> None:
        self._rank_of = rank_of
        self._heap: list[tuple[Rank, int, Any]] = []  # rank, when it was entered, member; some of them are old
        self._entered = 0
        self._present: dict[int, tuple[int, Rank]] = {}  # by member's number: its entry that is true
        self._marked: dict[int, Any] = {}

    def mark(self, number: int, member: Any) -> None:
        """The member, whose own number this is, is new, gone or may have another rank than before."""
        self._marked[number] = member

    def first(self, count: int) -> list[Any]:
        """At most `count` members, those of the least rank, in its order."""
        if self._marked:
            self._settle()
        heap = self._heap
        found: list[tuple[Rank, int, Any]] = []
        while heap and len(found) < count:
            entry = heappop(heap)
            if self._is_true(entry):
                found.append(entry)
        for entry in found:
            heappush(heap, entry)
        return [entry[2] for entry in found]

    def least(self) -> Any:
        """The first member, or None."""
        if self._marked:
            self._settle()
        heap = self._heap
        while heap:
            if self._is_true(heap[0]):
                return heap[0][2]
            heappop(heap)
        return None

    def _is_true(self, entry: tuple[Rank, int, Any]) -> bool:
        present = self._present.get(entry[0][2])
        return present is not None and present[0] == entry[1]

    def _settle(self) -> None:
        heap, present = self._heap, self._present
        for number, member in self._marked.items():
            rank = self._rank_of(member)
            before = present.get(number)
            if rank is None:
                if before is not None:
                    del present[number]
            elif before is None or rank != before[1]:
                self._entered += 1
                present[number] = (self._entered, rank)
                heappush(heap, (rank, self._entered, member))
        self._marked.clear()
        if len(heap) > 2 * len(present) + 64:
            heap[:] = [entry for entry in heap if self._is_true(entry)]
            heapify(heap)
