"""Token counters and max-min shares: lifts, charges, and linear programmes that can be solved by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sim.policy.kit.fairness import TokenCounters, equal_share_throughputs, max_min_shares


def test_prompt_and_output_tokens_count_one_and_two() -> None:
    counters = TokenCounters()
    counters.charge("a", prompt_tokens=10, output_tokens=7)
    counters.charge("a", extra=0.5)
    assert counters["a"] == 10 + 2 * 7 + 0.5
    assert counters["b"] == 0


def test_the_least_served_comes_next_and_ties_go_to_the_first() -> None:
    counters = TokenCounters()
    counters.charge("a", prompt_tokens=1)
    assert counters.least(["a", "b", "c"]) == "b"
    assert counters.least(["c", "b"]) == "c"
    assert counters.least([]) is None


def test_who_comes_back_is_lifted_to_the_least_of_the_active_and_never_lowered() -> None:
    counters = TokenCounters()
    for client, tokens in {"a": 100, "b": 300, "c": 5, "d": 900}.items():
        counters.charge(client, prompt_tokens=tokens)
    counters.lift("c", ["a", "b"])
    assert counters["c"] == 100
    counters.lift("d", ["a", "b"])
    assert counters["d"] == 900


def test_with_nobody_active_the_one_who_left_last_sets_the_floor() -> None:
    counters = TokenCounters()
    counters.charge("a", prompt_tokens=100)
    counters.rest("a")
    counters.lift("b", [])
    assert counters["b"] == 100


# --- max-min shares


def test_each_gets_the_kind_that_it_is_good_on() -> None:
    # Half of each kind makes 2.5 tokens a second. On its own kind each gets 4: 1.6 times as much; nothing is better.
    shares = max_min_shares(np.array([[4.0, 1.0], [1.0, 4.0]]), [1, 1])
    assert shares == pytest.approx(np.eye(2))


def test_equal_jobs_share_each_kind_equally() -> None:
    # 2 x00 + x01 = 1.5 = 2 x10 + x11 with both rows and both columns full: only halves do that.
    shares = max_min_shares(np.array([[2.0, 1.0], [2.0, 1.0]]), [1, 1])
    assert shares == pytest.approx(np.full((2, 2), 0.5))


def test_weights_ask_for_more() -> None:
    # With p the share of the first job on the first kind: (0.4 + 1.2 p) / 2 = 1.2 - 0.4 p gives p = 1.
    shares = max_min_shares(np.array([[4.0, 1.0], [3.0, 2.0]]), [1, 1], weights=[2, 1])
    assert shares == pytest.approx(np.eye(2), abs=1e-9)


def test_three_jobs_on_one_machine_get_thirds_by_weight() -> None:
    speeds = np.array([[10.0], [1.0], [5.0]])
    assert max_min_shares(speeds, [1]) == pytest.approx(np.full((3, 1), 1 / 3))
    assert max_min_shares(speeds, [1], weights=[1, 1, 2]).ravel() == pytest.approx([0.25, 0.25, 0.5])


def test_a_job_on_many_machines_at_a_time_takes_them_all_from_the_kind() -> None:
    shares = max_min_shares(np.array([[1.0], [1.0]]), [4], scales=[4, 4])
    assert shares.ravel() == pytest.approx([0.5, 0.5])
    # Four machines for two jobs that use one each: both run all the time.
    assert max_min_shares(np.array([[1.0], [1.0]]), [4]).ravel() == pytest.approx([1, 1])


def test_the_least_is_never_below_an_equal_split() -> None:
    draws = np.random.default_rng(3)
    for _ in range(20):
        jobs, kinds = (int(number) for number in draws.integers(1, 6, 2))
        speeds = draws.uniform(0.1, 10, (jobs, kinds)) * (draws.random((jobs, kinds)) < 0.8)
        speeds[:, 0] += 0.1
        workers = draws.integers(1, 4, kinds).tolist()
        shares = max_min_shares(speeds, workers)
        assert (shares.sum(axis=1) <= 1 + 1e-9).all()
        assert (shares.sum(axis=0) <= np.array(workers) + 1e-9).all()
        relative = (speeds * shares).sum(axis=1) / equal_share_throughputs(speeds, workers, [1] * jobs)
        assert relative.min() >= 1 - 1e-9


@pytest.mark.parametrize(
    ("speeds", "workers", "reason"),
    [
        ([[0.0, 0.0]], [1, 1], "a kind of machine that it runs on"),
        ([[1.0, 1.0]], [1], "workers goes by kinds"),
    ],
)
def test_what_does_not_fit_is_refused(speeds: list[list[float]], workers: list[float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        max_min_shares(np.array(speeds), workers)
