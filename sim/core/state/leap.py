"""Pure: what an instance's next iterations cost, and how far it may leap over them (model.md section 4).

A leap is a run of iterations between which the batch does not change. `DecodeLeap` is closed-form: as the mean context
grows by one a token, iteration times are an arithmetic series between the context knots of the table. `PromptLeap`
lists its few iterations with prompt work. Both know their position (whole iterations and a fraction of the next), so
that stretches by contention may change at any time. Nothing here knows requests, memory or SimPy.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from math import floor, sqrt
from typing import NamedTuple

from sim.profiles.profile import Curve

# A position this close to an iteration's end counts as its end: the rest would be below the clock's resolution.
NEGLIGIBLE = 1e-12


class EqualIterations(NamedTuple):
    """Equal-batch iterations in a row: how many, and the seconds of the first and of the last (linear between)."""

    number: int
    first_s: float
    last_s: float


@dataclass(slots=True)
class LeapProgress:
    """What happened while a leap advanced.

    `first_end_s`: when the first iteration ended, in seconds after the advance began; `later`: the durations of the
    iterations that began and ended in it; `stalled_s`: seconds in which decoding waited for another's prompt.
    """

    completed: int
    first_end_s: float
    later: list[EqualIterations]
    stalled_s: float


_NOTHING_STALLED = 0.0


class DecodeLeap:
    """`steps` decode iterations of a batch whose mean context starts at `context`, on one decode curve."""

    __slots__ = ("_known", "_known_for", "batch", "context", "curve", "done", "fraction", "steps")

    def __init__(self, curve: Curve, context: float, batch: int, steps: int) -> None:
        assert steps >= 1
        assert batch >= 1
        self.curve = curve
        self.context = context
        self.batch = batch
        self.steps = steps
        self.done = 0
        self.fraction = 0.0
        self._known: list[EqualIterations] = []
        self._known_for: tuple[int, int, float, float] | None = None

    def twin(self) -> DecodeLeap:
        """A leap at the same position, to try something out on."""
        twin = DecodeLeap(self.curve, self.context, self.batch, self.steps)
        twin.done, twin.fraction = self.done, self.fraction
        return twin

    def first_work(self) -> tuple[float, float]:
        """(GPU seconds, host seconds) of the next iteration with nobody else there: its demand on each."""
        return self.curve.at(self.context + self.done)

    def seconds_left(self, gpu_stretch: float, host_stretch: float) -> float:
        """Seconds from the present position to the end of the leap under constant stretches."""
        seconds = 0.0
        for steps in self._runs(self.done, gpu_stretch, host_stretch):
            seconds += steps.number * (steps.first_s + steps.last_s) / 2
        if self.fraction:
            gpu_s, host_s = self.first_work()
            seconds -= self.fraction * (gpu_stretch * gpu_s + host_stretch * host_s)
        return seconds

    def _runs(self, first: int, gpu_stretch: float, host_stretch: float) -> list[EqualIterations]:
        """The iterations from `first` to the end, in runs that lie on one segment of the curve.

        A leap is asked for its length when it is scheduled and again when it ends, so the last answer is kept.
        """
        asked_for = (first, self.steps, gpu_stretch, host_stretch)
        if asked_for == self._known_for:
            return self._known
        runs: list[EqualIterations] = []
        self._known, self._known_for = runs, asked_for
        context = self.context
        segments = self.curve.segments
        for place in range(bisect_left(self.curve.knots, context + first), len(segments)):
            upper, gpu, gpu_slope, host, host_slope = segments[place]
            last = min(self.steps, floor(upper - context) + 1)
            start_s = gpu_stretch * gpu + host_stretch * host
            slope_s = gpu_stretch * gpu_slope + host_stretch * host_slope
            runs.append(
                EqualIterations(
                    last - first, start_s + slope_s * (context + first), start_s + slope_s * (context + last - 1)
                )
            )
            if last == self.steps:
                return runs
            first = last
        raise AssertionError(f"a leap to context {context + self.steps - 1} leaves the table ({self.curve.knots[-1]})")

    def finish(self, gpu_stretch: float, host_stretch: float) -> LeapProgress:
        """Advance to the end of the leap."""
        runs = self._runs(self.done, gpu_stretch, host_stretch)
        first_end_s = runs[0].first_s * (1.0 - self.fraction)
        later = _without_first(runs)
        completed = self.steps - self.done
        self.done, self.fraction = self.steps, 0.0
        return LeapProgress(completed, first_end_s, later, _NOTHING_STALLED)

    def advance(self, seconds: float, gpu_stretch: float, host_stretch: float) -> LeapProgress:
        """Advance by `seconds`, at most to the end of the leap."""
        if self.done == self.steps:
            return LeapProgress(0, 0.0, [], _NOTHING_STALLED)
        runs = self._runs(self.done, gpu_stretch, host_stretch)
        rest_s = runs[0].first_s * (1.0 - self.fraction)
        if seconds < rest_s:
            self.fraction += seconds / runs[0].first_s
            return LeapProgress(0, 0.0, [], _NOTHING_STALLED)
        remaining = seconds - rest_s
        later: list[EqualIterations] = []
        completed = 1
        self.fraction = 0.0
        for run in _without_first(runs):
            count = _whole_steps(run, remaining)
            slope_s = _slope(run)
            if count:
                done = EqualIterations(count, run.first_s, run.first_s + slope_s * (count - 1))
                later.append(done)
                completed += count
                remaining -= count * (done.first_s + done.last_s) / 2
            if count < run.number:
                self.fraction = min(1.0, max(0.0, remaining / (run.first_s + slope_s * count)))
                break
        self.done += completed
        return LeapProgress(completed, rest_s, later, _NOTHING_STALLED)


def _without_first(runs: list[EqualIterations]) -> list[EqualIterations]:
    head = runs[0]
    if head.number == 1:
        return runs[1:]
    if len(runs) == 1:
        return [EqualIterations(head.number - 1, head.first_s + _slope(head), head.last_s)]
    return [EqualIterations(head.number - 1, head.first_s + _slope(head), head.last_s), *runs[1:]]


def _slope(run: EqualIterations) -> float:
    return (run.last_s - run.first_s) / (run.number - 1) if run.number > 1 else 0.0


def _whole_steps(run: EqualIterations, seconds: float) -> int:
    """How many iterations of the run end within `seconds`: the root of its quadratic sum, then made exact."""
    slope_s = _slope(run)
    linear = run.first_s - slope_s / 2
    guess = 2 * seconds / (linear + sqrt(max(0.0, linear * linear + 2 * slope_s * seconds)))
    count = min(run.number, int(guess) + 1)
    while count and count * run.first_s + slope_s * count * (count - 1) / 2 > seconds:
        count -= 1
    return count


class PromptStep(NamedTuple):
    """One iteration with prompt work: seconds on the GPU and on the host, decoding and prompts apart."""

    decode_gpu_s: float
    decode_host_s: float
    prompt_gpu_s: float
    prompt_host_s: float


class PromptLeap:
    """Iterations that compute prompts, alone (`decoding` is 0) or with one token per decoding sequence."""

    __slots__ = ("batch", "done", "fraction", "iterations", "steps")

    def __init__(self, iterations: list[PromptStep], decoding: int) -> None:
        assert iterations
        self.iterations = iterations
        self.batch = decoding
        self.steps = len(iterations)
        self.done = 0
        self.fraction = 0.0

    def twin(self) -> PromptLeap:
        """A leap at the same position, to try something out on."""
        twin = PromptLeap(self.iterations, self.batch)
        twin.steps, twin.done, twin.fraction = self.steps, self.done, self.fraction
        return twin

    def first_work(self) -> tuple[float, float]:
        """(GPU seconds, host seconds) of the next iteration with nobody else there: its demand on each."""
        step = self.iterations[min(self.done, self.steps - 1)]
        return step.decode_gpu_s + step.prompt_gpu_s, step.decode_host_s + step.prompt_host_s

    def seconds_left(self, gpu_stretch: float, host_stretch: float) -> float:
        """Seconds from the present position to the end of the leap under constant stretches."""
        durations = self._durations(gpu_stretch, host_stretch)
        return sum(durations) - (self.fraction * durations[0] if durations else 0.0)

    def _durations(self, gpu_stretch: float, host_stretch: float) -> list[float]:
        return [
            gpu_stretch * (step.decode_gpu_s + step.prompt_gpu_s)
            + host_stretch * (step.decode_host_s + step.prompt_host_s)
            for step in self.iterations[self.done : self.steps]
        ]

    def finish(self, gpu_stretch: float, host_stretch: float) -> LeapProgress:
        """Advance to the end of the leap."""
        return self._walk(None, gpu_stretch, host_stretch)

    def advance(self, seconds: float, gpu_stretch: float, host_stretch: float) -> LeapProgress:
        """Advance by `seconds`, at most to the end of the leap."""
        return self._walk(seconds, gpu_stretch, host_stretch)

    def _walk(self, seconds: float | None, gpu_stretch: float, host_stretch: float) -> LeapProgress:
        progress = LeapProgress(0, 0.0, [], 0.0)
        for duration in self._durations(gpu_stretch, host_stretch):
            step = self.iterations[self.done]
            stalled_s = gpu_stretch * step.prompt_gpu_s + host_stretch * step.prompt_host_s
            rest_s = duration * (1.0 - self.fraction)
            if seconds is not None and seconds < rest_s:
                progress.stalled_s += stalled_s * seconds / duration
                self.fraction += seconds / duration
                break
            if progress.completed == 0:
                progress.first_end_s = rest_s
            else:
                progress.later.append(EqualIterations(1, duration, duration))
            progress.stalled_s += stalled_s * (1.0 - self.fraction)
            progress.completed += 1
            self.done += 1
            self.fraction = 0.0
            if seconds is not None:
                seconds -= rest_s
        return progress


Leap = DecodeLeap | PromptLeap


def prompt_steps(
    prefill: Curve, chunks: list[tuple[int, int]], decode: Curve | None, context: float, repeats: int = 1
) -> list[PromptStep]:
    """Iterations that each compute the `chunks` (tokens already done, tokens now), `repeats` times in a row.

    A chunk from d to d+n costs the prefill curve's increase from d to d+n. An iteration that decodes nothing also pays
    the curve's value at 0, the weights read once; with decoding sequences that is part of their decode iteration.
    """
    steps: list[PromptStep] = []
    fixed_gpu_s, fixed_host_s = prefill.origin
    for repeat in range(repeats):
        prompt_gpu_s, prompt_host_s = (fixed_gpu_s, fixed_host_s) if decode is None else (0.0, 0.0)
        for start, tokens in chunks:
            begin = start + repeat * tokens
            before_gpu_s, before_host_s = prefill.at(begin) if begin else prefill.origin
            after_gpu_s, after_host_s = prefill.at(begin + tokens)
            prompt_gpu_s += after_gpu_s - before_gpu_s
            prompt_host_s += after_host_s - before_host_s
        decode_gpu_s, decode_host_s = (0.0, 0.0) if decode is None else decode.at(context + repeat)
        steps.append(PromptStep(decode_gpu_s, decode_host_s, prompt_gpu_s, prompt_host_s))
    return steps
