"""Levels, quanta and promotion of the feedback queues, and the order of virtual queues, asked at the start of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Any

import pytest

from policies._parts.fastserve_queues import FeedbackQueues, Job
from policies._parts.qlm_queues import RequestGroup, VirtualQueue, in_time_order
from sim.policy import View
from tests.support.policy_cases import asked
from tests.support.scenarios import scenario


@dataclass
class Client:
    """All that the queues ask of a request."""

    number: int
    model: Any = "a"
    served_s: float = 0.0


def queued(*seconds: float) -> tuple[FeedbackQueues, list[Job]]:
    """Queues of 10 ms and more, and requests that entered with so long a prompt, a second apart."""
    queues = FeedbackQueues(0.01, 0.0)
    clients: list[Any] = [Client(number) for number in range(len(seconds))]
    return queues, [queues.enter(client, s, float(client.number)) for client, s in zip(clients, seconds, strict=True)]


@pytest.mark.parametrize(("seconds", "level"), [(0.0, 0), (0.01, 0), (0.0101, 1), (0.16, 4), (0.161, 5)])
def test_a_request_enters_the_first_level_that_covers_its_prompt(seconds: float, level: int) -> None:
    assert queued(seconds)[1][0].level == level


def test_the_lowest_level_comes_first_and_then_who_was_not_run_for_longest() -> None:
    queues, jobs = queued(0.04, 0.0, 0.0)
    order = []
    while (first := queues.first("a")) is not None:  # type: ignore[arg-type]
        order.append(first)
        queues.route(first)
    assert order == [jobs[1], jobs[2], jobs[0]]
    assert queues.firsts() == []


def test_service_takes_it_down_by_doubling_quanta_and_it_says_how_much_is_left() -> None:
    queues, (job,) = queued(0.0)
    queues.route(job)
    assert queues.left_s(job, 0) == pytest.approx(0.01)
    assert queues.left_s(job, 2) == pytest.approx(0.07)
    client: Any = job.request
    client.served_s = 0.05  # 10 and 20 ms are used up, 20 of the next 40
    queues.age(job, 1.0)
    assert (job.level, job.last_run_s) == (2, 1.0)
    assert queues.left_s(job, 2) == pytest.approx(0.02)
    assert queues.left_s(job, 1) == 0.0


def test_who_waits_for_long_is_promoted_once_and_goes_on_down_from_where_it_was() -> None:
    queues, jobs = queued(0.04, 0.04)
    assert list(queues.starving(0.5)) == jobs[:1]
    assert list(queues.starving(0.5)) == []
    queues.promote(jobs[0], 1.0, jobs[0].level + 1)
    assert queues.firsts() == [jobs[0]]
    queues.route(jobs[0])
    client: Any = jobs[0].request
    client.served_s = 0.9
    queues.age(jobs[0], 2.0)
    assert jobs[0].level == 0
    client.served_s = 1.05  # 50 ms at the level below the one that it came from
    queues.age(jobs[0], 3.0)
    assert jobs[0].level == 3
    assert queues.firsts() == [jobs[1]]


def test_who_comes_back_or_ends_is_where_it_belongs() -> None:
    queues, (one, other) = queued(0.0, 0.0)
    queues.route(one)
    queues.come_back(one, 5.0)
    queues.leave(other)
    assert queues.length == 1
    assert queues.firsts() == [one]
    assert list(queues.starving(10.0)) == [one]


def groups_of(question: Callable[[Callable[[float, int], RequestGroup], VirtualQueue], None]) -> None:
    def ask(view: View) -> None:
        def group(deadline_s: float, waiting: int) -> RequestGroup:
            clients: dict[int, Any] = {number: Client(number) for number in range(waiting)}
            return RequestGroup(view.models[0], deadline_s, view.gpus[0], waiting, clients)

        question(group, VirtualQueue())

    asked(scenario(), ask)


def test_a_virtual_queue_knows_whether_it_is_in_time_order() -> None:
    def question(group: Callable[[float, int], RequestGroup], queue: VirtualQueue) -> None:
        for deadline_s in (5.0, inf):
            queue.append(group(deadline_s, 1))
        assert queue.by_deadline
        queue.append(group(1.0, 2))
        assert not queue.by_deadline
        assert queue.put(in_time_order(queue.groups))
        assert queue.by_deadline
        assert not queue.put(in_time_order(queue.groups))
        assert [found.deadline_s for found in queue.groups] == [1.0, 5.0, inf]

    groups_of(question)


def test_the_next_requests_are_those_at_the_head_and_empty_groups_are_passed_over() -> None:
    def question(group: Callable[[float, int], RequestGroup], queue: VirtualQueue) -> None:
        empty, small, large = group(1.0, 0), group(2.0, 2), group(3.0, 3)
        for each in (empty, small, large):
            queue.append(each)
        assert queue.groups == [small, large]
        assert [found for found, _ in queue.next_requests(3)] == [small, small, large]
        assert queue.next_requests(0) == []
        assert queue.next_requests(-1) == []

    groups_of(question)
