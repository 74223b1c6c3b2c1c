"""Named random streams: a stream is its seed and its name, on every machine, whoever else draws."""

from __future__ import annotations

import numpy as np
import pytest

from sim.common.rng import stream


def test_equal_names_give_equal_numbers_for_ever() -> None:
    # Known numbers: a change of the derivation changes every experiment ever run.
    assert stream(1, "arrivals", "a").random(3).tolist() == stream(1, "arrivals", "a").random(3).tolist()
    assert stream(1, "arrivals").integers(0, 2**32, 3).tolist() == KNOWN


KNOWN = [3938828618, 892214482, 4034239026]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((1, "a"), (2, "a")),
        ((1, "a"), (1, "b")),
        ((1, "a", "b"), (1, "ab")),
        ((1, "a", "b"), (1, "b", "a")),
        ((1,), (1, "")),
        ((1, "1"), (11,)),
        ((1, 2, 3), (1, 23)),
    ],
)
def test_other_names_give_other_numbers(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    assert stream(*one).random() != stream(*other).random()


def test_a_number_and_its_text_are_the_same_name() -> None:
    assert stream(1, 7).random() == stream(1, "7").random()


def test_drawing_from_one_changes_no_other() -> None:
    before = stream(3, "lengths").random(5)
    greedy = stream(3, "arrivals")
    greedy.random(1000)
    assert np.array_equal(stream(3, "lengths").random(5), before)


def test_streams_are_independent() -> None:
    draws = np.array([stream(5, "traffic", number).random(2000) for number in range(8)])
    correlations = np.corrcoef(draws)[np.triu_indices(8, 1)]
    assert np.abs(correlations).max() < 0.1  # 4.5 deviations of 1/sqrt(2000)
    assert abs(draws.mean() - 0.5) < 0.01
