"""The next step of an instance and its leaps: closed forms against one iteration after another."""

from __future__ import annotations

from fractions import Fraction
from itertools import accumulate
from math import isclose
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sim.core.state.leap import (
    DecodeLeap,
    EqualIterations,
    PromptLeap,
    PromptStep,
    prompt_steps,
)
from sim.profiles.profile import Curve

STRETCHES = st.tuples(st.floats(1.0, 4.0), st.floats(1.0, 4.0))


@st.composite
def curves(draw: st.DrawFn, longest: int = 400) -> Curve:
    """Any shape above zero: rising, falling or flat between up to five knots."""
    inner = draw(st.sets(st.integers(1, longest), max_size=3))
    knots = (draw(st.sampled_from([0, 30])), *(31 + knot for knot in sorted(inner)), 500)
    noise = Random(draw(st.integers(0, 2**32)))
    host = draw(st.sampled_from([0.0, 0.02]))
    gpu_s = tuple(0.001 + 0.01 * noise.random() for _ in knots)
    return Curve(tuple(map(float, knots)), gpu_s, tuple(host * noise.random() for _ in knots))


@st.composite
def decode_leaps(draw: st.DrawFn) -> DecodeLeap:
    """Up to 100 iterations from any mean context of a batch, whole numbers and fractions."""
    batch = draw(st.integers(1, 7))
    context = draw(st.integers(batch, 400 * batch)) / batch
    return DecodeLeap(draw(curves()), context, batch, draw(st.integers(1, 100)))


@st.composite
def prompt_leaps(draw: st.DrawFn) -> PromptLeap:
    seconds = st.floats(0.0005, 0.02)
    steps = draw(st.lists(st.builds(PromptStep, seconds, seconds, seconds, seconds), min_size=1, max_size=6))
    return PromptLeap(steps, draw(st.integers(0, 3)))


def durations_s(leap: DecodeLeap | PromptLeap, stretches: tuple[float, float]) -> list[float]:
    """Seconds of every iteration of a fresh leap, each looked up on its own."""
    if isinstance(leap, DecodeLeap):
        works = [leap.curve.at(leap.context + step) for step in range(leap.steps)]
    else:
        works = [(s.decode_gpu_s + s.prompt_gpu_s, s.decode_host_s + s.prompt_host_s) for s in leap.iterations]
    return [stretches[0] * gpu_s + stretches[1] * host_s for gpu_s, host_s in works]


def latencies_s(steps: list[EqualIterations]) -> list[float]:
    """The durations that a list of runs stands for."""
    found = []
    for number, first_s, last_s in steps:
        slope_s = (last_s - first_s) / (number - 1) if number > 1 else 0.0
        found += [first_s + slope_s * step for step in range(number)]
    return found


def close(found: list[float], expected: list[float]) -> bool:
    return len(found) == len(expected) and all(
        isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in zip(found, expected, strict=True)
    )


@given(decode_leaps() | prompt_leaps(), STRETCHES)
def test_a_whole_leap_is_the_sum_of_its_iterations(
    leap: DecodeLeap | PromptLeap, stretches: tuple[float, float]
) -> None:
    expected = durations_s(leap, stretches)
    assert isclose(leap.seconds_left(*stretches), sum(expected), rel_tol=1e-12)
    progress = leap.finish(*stretches)
    assert progress.completed == leap.done == leap.steps == len(expected)
    assert close([progress.first_end_s, *latencies_s(progress.later)], expected)


@given(decode_leaps() | prompt_leaps(), STRETCHES, st.lists(st.tuples(st.floats(0, 0.6), STRETCHES), max_size=6))
def test_advancing_in_pieces_under_changing_stretches(
    leap: DecodeLeap | PromptLeap,
    last: tuple[float, float],
    pieces: list[tuple[float, tuple[float, float]]],
) -> None:
    """Each piece is a share of what is left. Positions are compared with a walk over single iterations."""
    done, fraction, total = 0, 0.0, leap.steps
    for share, stretches in pieces:
        seconds = share * leap.seconds_left(*stretches)
        expected = durations_s(leap, stretches)
        ends_s: list[float] = []  # of each iteration that ends, after the piece began
        left_s = seconds
        while done < total and left_s >= expected[done] * (1 - fraction):
            left_s -= expected[done] * (1 - fraction)
            ends_s.append(seconds - left_s)
            done, fraction = done + 1, 0.0
        if done < total:
            fraction += left_s / expected[done]
        # An iteration that ends within rounding of the piece's end may be counted on either side of it.
        assume(1e-9 < fraction < 1 - 1e-9 or (fraction == 0.0 and seconds == 0.0))
        progress = leap.advance(seconds, *stretches)
        assert (progress.completed, leap.done) == (len(ends_s), done)
        assert isclose(leap.fraction, fraction, rel_tol=1e-9, abs_tol=1e-9)
        if ends_s:
            found = list(accumulate(latencies_s(progress.later), initial=progress.first_end_s))
            assert close(found, ends_s)
    expected = durations_s(leap, last)
    left_s = sum(expected[done:]) - fraction * expected[done]
    assert isclose(leap.seconds_left(*last), left_s, rel_tol=1e-9)
    progress = leap.finish(*last)
    assert progress.completed == total - done
    assert isclose(progress.first_end_s, (1 - fraction) * expected[done], rel_tol=1e-9)
    assert close(latencies_s(progress.later), expected[done + 1 :])


@given(prompt_leaps(), STRETCHES, STRETCHES, st.floats(0.0, 1.0))
def test_decoding_is_stalled_for_the_prompts_part(
    leap: PromptLeap, first: tuple[float, float], second: tuple[float, float], share: float
) -> None:
    """Cut anywhere, the stalled seconds of both pieces add up to the prompts' part of every iteration."""

    def prompts_s(step: PromptStep, stretches: tuple[float, float]) -> float:
        return stretches[0] * step.prompt_gpu_s + stretches[1] * step.prompt_host_s

    seconds = share * leap.seconds_left(*first)
    stalled_s = leap.advance(seconds, *first).stalled_s
    done, fraction = leap.done, leap.fraction
    expected_s = sum(prompts_s(step, first) for step in leap.iterations[:done])
    if done < leap.steps:
        expected_s += fraction * prompts_s(leap.iterations[done], first)
    assert isclose(stalled_s, expected_s, rel_tol=1e-9, abs_tol=1e-12)
    rest_s = sum(prompts_s(step, second) for step in leap.iterations[done:])
    if done < leap.steps:
        rest_s -= fraction * prompts_s(leap.iterations[done], second)
    assert isclose(leap.finish(*second).stalled_s, rest_s, rel_tol=1e-9, abs_tol=1e-12)


def test_advancing_past_the_end_stops_there() -> None:
    curve = Curve((0.0, 100.0), (0.01, 0.02), (0.0, 0.0))
    leap = DecodeLeap(curve, 10.0, 2, 5)
    assert leap.advance(1e6, 1.0, 1.0).completed == 5
    assert (leap.done, leap.fraction) == (5, 0.0)
    assert leap.advance(1.0, 1.0, 1.0).completed == 0
    prompts = PromptLeap([PromptStep(0.0, 0.0, 0.1, 0.1)], 0)
    assert prompts.advance(1e6, 1.0, 1.0).completed == 1
    assert prompts.advance(1.0, 1.0, 1.0).completed == 0
    assert prompts.seconds_left(1.0, 1.0) == 0


def test_a_leap_that_leaves_the_table_is_a_fault_of_ours() -> None:
    curve = Curve((0.0, 100.0), (0.01, 0.02), (0.0, 0.0))
    assert DecodeLeap(curve, 98.0, 1, 3).seconds_left(1.0, 1.0) > 0
    with pytest.raises(AssertionError, match="leaves the table"):
        DecodeLeap(curve, 98.5, 1, 3).seconds_left(1.0, 1.0)


@given(decode_leaps(), st.integers(0, 100))
def test_the_first_work_is_that_of_the_next_iteration(leap: DecodeLeap, done: int) -> None:
    leap.done = min(done, leap.steps - 1)
    assert leap.first_work() == leap.curve.at(leap.context + leap.done)


# --- prompts


@given(curves(), st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40)), min_size=1, max_size=3), st.integers(1, 5))
def test_prompt_steps_add_up_whatever_the_cut(curve: Curve, chunks: list[tuple[int, int]], repeats: int) -> None:
    """The increments of a chunk that repeats are the curve's rise over all of it; the fixed part comes each time."""
    steps = prompt_steps(curve, chunks, None, 0.0, repeats)
    assert len(steps) == repeats
    fixed_s = sum(curve.at(0.0))
    rise_s = sum(sum(curve.at(start + repeats * n)) - sum(curve.at(start)) for start, n in chunks)
    total_s = sum(step.prompt_gpu_s + step.prompt_host_s for step in steps)
    assert isclose(total_s, repeats * fixed_s + rise_s, rel_tol=1e-9, abs_tol=1e-12)
    assert all(step.decode_gpu_s == step.decode_host_s == 0 for step in steps)


@given(curves(), curves(), st.integers(1, 60), st.floats(1, 300), st.integers(1, 5))
def test_prompts_beside_decoding_pay_no_fixed_part(
    prefill: Curve, decode: Curve, tokens: int, context: float, repeats: int
) -> None:
    steps = prompt_steps(prefill, [(0, tokens)], decode, context, repeats)
    for number, step in enumerate(steps):
        before, after = prefill.at(float(number * tokens)), prefill.at(float((number + 1) * tokens))
        assert isclose(step.prompt_gpu_s, after[0] - before[0], abs_tol=1e-15)
        assert isclose(step.prompt_host_s, after[1] - before[1], abs_tol=1e-15)
        assert (step.decode_gpu_s, step.decode_host_s) == decode.at(context + number)


# --- exactness


def test_a_long_leap_is_exact_to_the_last_digits() -> None:
    """A million iterations across a knot, against exact rational arithmetic of the same table."""
    knots = (0.0, 300_000.0, 2_000_000.0)
    curve = Curve(knots, (0.01, 0.013, 0.05), (0.002, 0.009, 0.012))
    leap = DecodeLeap(curve, 1000.5, 2, 1_000_000)
    exact = Fraction(0)
    for low in (0, 1):
        left, right = Fraction(knots[low]), Fraction(knots[low + 1])
        values = [Fraction(g) + Fraction(h) for g, h in zip(curve.gpu_s, curve.host_s, strict=True)]
        slope = (values[low + 1] - values[low]) / (right - left)
        start, stop = (0, 298_999 + 1) if low == 0 else (298_999 + 1, 1_000_000)
        first = values[low] + slope * (Fraction(1000.5) + start - left)
        last = values[low] + slope * (Fraction(1000.5) + stop - 1 - left)
        exact += (stop - start) * (first + last) / 2
    assert isclose(leap.seconds_left(1.0, 1.0), float(exact), rel_tol=1e-13)
