"""Requests of one GPU in the order of their slack: who can still be on time comes first, then the late, by deadline.

Prism's local order (Moore-Hodgson), kept so that a long queue of requests whose promise is broken anyway costs nothing
at each decision. When a request is due, and how long its prompt takes, is the policy's. Imported from sim.policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from heapq import heappop, heappush

from policies._parts.moore_hodgson import on_time_first
from sim.policy import ModelView, RequestView


class SlackQueue:
    """Who waits at a GPU. `due_s`: when a request's first token is promised, in simulated time."""

    def __init__(self, due_s: Callable[[RequestView], float]) -> None:
        self._due_s = due_s
        self._hopeful: dict[int, RequestView] = {}
        self._late: dict[ModelView, list[tuple[float, int, int, RequestView]]] = {}
        self._in_late: dict[int, int] = {}  # which entry of a request in a heap still counts
        self._entries = 0

    def add(self, request: RequestView) -> None:
        self._hopeful[request.number] = request

    def drop(self, request: RequestView) -> None:
        """It left, or was served; nothing if it was not here."""
        self._hopeful.pop(request.number, None)
        self._in_late.pop(request.number, None)

    def models(self) -> list[ModelView]:
        """The models that somebody waits for."""
        late = [model for model in self._late if self.first_late([model]) is not None]
        return list(dict.fromkeys([*(request.model for request in self._hopeful.values()), *late]))

    def take(self, model: ModelView) -> list[RequestView]:
        """Take out everybody who waits for this model."""
        entries = [entry for entry in self._late.pop(model, []) if self._in_late.get(entry[1]) == entry[2]]
        late = [request for *_, request in entries]
        for request in late:
            del self._in_late[request.number]
        hopeful = [request for request in self._hopeful.values() if request.model is model]
        for request in hopeful:
            del self._hopeful[request.number]
        return [*late, *hopeful]

    def by_slack(
        self, now_s: float, prefill_s: Callable[[RequestView], float], setup_s: Mapping[ModelView, float]
    ) -> list[RequestView]:
        """Those of the largest set that can be on time, then the others that might have been, each by deadline.

        setup_s: what it takes to bring each model in, counted for the first of its requests. Who cannot be on time even
        if served at once joins the late, for good.
        """
        jobs: list[RequestView] = []
        durations_s: list[float] = []
        owed_s = dict(setup_s)
        for request in list(self._hopeful.values()):
            seconds = prefill_s(request)
            if now_s + seconds > self._due_s(request):
                del self._hopeful[request.number]
                self._entries += 1
                self._in_late[request.number] = self._entries
                entry = (self._due_s(request), request.number, self._entries, request)
                heappush(self._late.setdefault(request.model, []), entry)
            else:
                jobs.append(request)
                durations_s.append(seconds + owed_s.pop(request.model, 0.0))
        on_time, dropped = on_time_first(durations_s, [self._due_s(request) - now_s for request in jobs])
        return [jobs[place] for place in (*on_time, *dropped)]

    def first_late(self, models: list[ModelView]) -> RequestView | None:
        """The late request for one of these models that was due first."""
        firsts = []
        for model in models:
            heap = self._late.get(model, [])
            while heap and self._in_late.get(heap[0][1]) != heap[0][2]:
                heappop(heap)
            if heap:
                firsts.append(heap[0])
        return min(firsts)[-1] if firsts else None
