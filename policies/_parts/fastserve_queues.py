"""Multi-level feedback queues of one GPU: levels, quanta that double, demotion by service, promotion of the starving.

FastServe's MLFQ (LLMServe/FastServe 187a2742) as plain data: which request waits or runs at which level, and until
when. It asks for no actions: who is routed, preempted or brought in is the policy's. Imported from sim.policy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush

from sim.policy import ModelView, RequestView


@dataclass(eq=False)
class Job:
    """A request in the queues. Of its service (`served_s` so far) it may get `quantum_s` from `since_s` on at this
    level; then it goes down to `next_level`."""

    request: RequestView
    model: ModelView
    level: int
    quantum_s: float
    last_run_s: float
    next_level: int = 0
    served_s: float = 0.0
    since_s: float = 0.0
    leaving: bool = False
    entry: int = 0  # in the heap of those who wait; 0: it does not wait

    @property
    def preemptible(self) -> bool:
        """It decodes: a prompt under way would have to be computed again."""
        return not self.leaving and self.request.running and self.request.produced_tokens > 0


@dataclass(eq=False)
class FeedbackQueues:
    """Who is routed to the GPU's instances, and by model a heap of those who wait. quantum_s: of the first level."""

    quantum_s: float
    looked_s: float  # when starving requests were last looked for
    routed: dict[int, Job] = field(default_factory=dict)
    length: int = 0
    _waiting: dict[ModelView, list[tuple[int, float, int, Job]]] = field(default_factory=dict)
    _rested: deque[tuple[float, int, Job]] = field(
        default_factory=deque
    )  # who waits, the one not run for longest first
    _entries: int = 0

    def quantum_of(self, level: int) -> float:
        return self.quantum_s * 2.0**level

    def level_for(self, seconds: float) -> int:
        """The first level whose quantum is at least so long."""
        level = 0
        while self.quantum_of(level) < seconds:
            level += 1
        return level

    def enter(self, request: RequestView, seconds: float, now_s: float) -> Job:
        """A new request waits, at the first level whose quantum is at least so long."""
        level = self.level_for(seconds)
        job = Job(request, request.model, level, self.quantum_of(level), now_s, level + 1)
        self.length += 1
        self.push(job)
        self._rested.append((now_s, job.entry, job))
        return job

    def push(self, job: Job) -> None:
        """It waits at its level."""
        self._entries += 1
        job.entry = self._entries
        heappush(self._waiting.setdefault(job.model, []), (job.level, job.last_run_s, job.entry, job))

    def first(self, model: ModelView) -> Job | None:
        """Of those who wait for this model the first."""
        heap = self._waiting.get(model, [])
        while heap and heap[0][3].entry != heap[0][2]:
            heappop(heap)
        return heap[0][3] if heap else None

    def firsts(self) -> list[Job]:
        """Of every model that somebody waits for the first."""
        return [first for model in self._waiting if (first := self.first(model)) is not None]

    def route(self, job: Job) -> None:
        """It no longer waits: it has been routed."""
        job.entry = 0
        self.routed[job.request.number] = job

    def come_back(self, job: Job, now_s: float) -> None:
        """It left its instance, and waits again."""
        del self.routed[job.request.number]
        job.leaving = False
        self.age(job, now_s)
        self.push(job)
        self._rested.append((job.last_run_s, job.entry, job))

    def leave(self, job: Job) -> None:
        """It has ended."""
        job.entry = 0
        self.routed.pop(job.request.number, None)
        self.length -= 1

    def age(self, job: Job, now_s: float) -> None:
        """Down for each used quantum."""
        served_s = job.request.served_s
        if served_s > job.served_s:
            job.served_s, job.last_run_s = served_s, now_s
        while served_s - job.since_s > job.quantum_s:
            job.since_s += job.quantum_s
            job.level, job.next_level = job.next_level, job.next_level + 1
            job.quantum_s = self.quantum_of(job.level)

    def starving(self, before_s: float) -> Iterator[Job]:
        """Those who wait and were not run since then, each once for every time that it waits."""
        while self._rested and self._rested[0][0] <= before_s:
            _, entry, job = self._rested.popleft()
            if job.entry == entry:
                yield job

    def promote(self, job: Job, quantum_s: float, next_level: int) -> None:
        """To the first level for so long, then down to `next_level`."""
        job.level, job.next_level, job.quantum_s, job.since_s = 0, next_level, quantum_s, job.served_s
        self.push(job)

    def left_s(self, job: Job, level: int) -> float:
        """Seconds of service until it is below this level."""
        left_s, below = job.quantum_s - (job.served_s - job.since_s), job.next_level
        if job.level > level:
            return 0.0
        while below <= level:
            left_s += self.quantum_of(below)
            below += 1
        return max(left_s, 0.0)
