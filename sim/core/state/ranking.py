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

    def drop(self, number: int) -> None:
        """The member is gone for good: nothing is kept of it (old entries go when the heap is next tidied up)."""
        self._marked.pop(number, None)
        self._present.pop(number, None)

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


class Line:
    """Who waits, the least urgency first, then the least number; anybody may leave from anywhere. Who leaves from the
    middle only leaves an old entry behind, so nothing here looks at all who wait but `in_order`."""

    def __init__(self) -> None:
        # Urgency, number, when it was entered, member; some are old, but never the first.
        self._heap: list[tuple[int, int, int, Any]] = []
        self._entered = 0
        self._present: dict[int, int] = {}  # by member's number: its entry that is true
        self.size = 0  # how many wait; asked so often that it is not counted then

    def __len__(self) -> int:
        return self.size

    def has(self, number: int) -> bool:
        return number in self._present

    def push(self, urgency: int, number: int, member: Any) -> None:
        """The member, whose own number this is and who is not in the line, joins it."""
        assert number not in self._present, number
        self._entered += 1
        self.size += 1
        self._present[number] = self._entered
        heappush(self._heap, (urgency, number, self._entered, member))

    def first(self) -> Any:
        """Whose turn it is. Somebody must be there."""
        return self._heap[0][3]

    def remove(self, number: int) -> None:
        """A member leaves."""
        del self._present[number]
        self.size -= 1
        heap, present = self._heap, self._present
        if len(heap) > 2 * len(present) + 64:
            heap[:] = [entry for entry in heap if present.get(entry[1]) == entry[2]]
            heapify(heap)
        while heap and present.get(heap[0][1]) != heap[0][2]:
            heappop(heap)

    def in_order(self) -> list[Any]:
        """Everybody."""
        present = self._present
        return [entry[3] for entry in sorted(e for e in self._heap if present.get(e[1]) == e[2])]
