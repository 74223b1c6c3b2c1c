"""Pure: how sure a number is that was seen in several replications, and which of many policies it can tell apart.

A replication is a whole run with its own seed; runs are independent, what happens inside one is not. So every interval
here is over replications (no batch means), and policies are compared within a seed, where they saw the same requests.
Called by `compare`, `capacity` and the report. Knows no runs, no policies and no units: numbers in, numbers out.

Sources: paired t and common random numbers: Law, Simulation Modeling and Analysis (5th ed., 2015), 10.2; BCa: Efron,
JASA 82 (1987); its widening for few replications: Hesterberg, Am. Statistician 69 (2015), 3.6; MSER-5: White, Cobb and
Spratt, WSC 2000; Holm, Scand. J. Statistics 6 (1979).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.common.lazy import stats
from sim.common.rng import stream

CONFIDENCE = 0.95
FEWEST_TO_RESAMPLE = 5  # of fewer numbers no resampling reaches 95 %: all are below the mean too often
_RESAMPLES = 4_999
_SAME = 1e-12  # numbers whose range is below this share of the largest differ by rounding alone

Floats = NDArray[np.float64]
Numbers = Sequence[float | None] | Floats


@dataclass(frozen=True)
class Interval:
    low: float
    high: float

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Estimate:
    """A mean over replications and two intervals for it; None where there are too few numbers to tell.

    known: how many replications gave a finite number; missing: how many did not, and are not in the mean.
    """

    mean: float | None
    t: Interval | None
    bootstrap: Interval | None
    known: int
    missing: int


@dataclass(frozen=True)
class Difference:
    """A mean of differences within pairs. p: two-sided, of no difference; None with fewer than two pairs.

    below, above, equal: pairs in which the first number is smaller, larger, or the same but for rounding.
    """

    estimate: Estimate
    p: float | None
    below: int
    above: int
    equal: int


def estimate(values: Numbers, confidence: float = CONFIDENCE) -> Estimate:
    """The mean of independent numbers with Student's t and the bootstrap; None, NaN and infinity count as missing."""
    numbers = np.asarray(values, dtype=np.float64)
    known = numbers[np.isfinite(numbers)]
    missing = len(numbers) - len(known)
    if not len(known):
        return Estimate(None, None, None, 0, missing)
    mean = float(known.mean())
    around = _t_interval(known, confidence), _bootstrap((known,), np.mean, confidence)
    return Estimate(mean, *around, len(known), missing)


def difference(values: Numbers, baseline: Numbers, confidence: float = CONFIDENCE) -> Difference:
    """values - baseline, pair by pair; a pair of which one number is missing is missing.

    Where all pairs differ by the same, t would be sure of anything: p is then that of the signs, 2 / 2^pairs.
    """
    gaps = _gaps(values, baseline)
    known = gaps[~np.isnan(gaps)]
    below, above = int((known < 0).sum()), int((known > 0).sum())
    return Difference(estimate(gaps, confidence), _p_value(known), below, above, len(known) - below - above)


def p_value(values: Numbers, baseline: Numbers) -> float | None:
    """The p of `difference` alone."""
    gaps = _gaps(values, baseline)
    return _p_value(gaps[~np.isnan(gaps)])


def _gaps(values: Numbers, baseline: Numbers) -> Floats:
    """Differences within pairs: 0 where they are of rounding alone, NaN where a number is missing."""
    first, second = np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    assert first.shape == second.shape, (first.shape, second.shape)
    with np.errstate(invalid="ignore"):
        gaps = first - second
    gaps[~np.isfinite(gaps)] = np.nan
    scale = np.maximum(np.abs(first), np.abs(second))
    gaps[np.abs(gaps) <= _SAME * scale] = 0.0
    return np.asarray(gaps)


def ratio(values: Numbers, baseline: Numbers, confidence: float = CONFIDENCE) -> Estimate:
    """mean(values) / mean(baseline) over pairs: the t interval by the delta method, the bootstrap over pairs.

    Nothing where the baseline's mean is 0 or its sign is not sure.
    """
    first, second = np.asarray(values, dtype=np.float64), np.asarray(baseline, dtype=np.float64)
    both = np.isfinite(first) & np.isfinite(second)
    above, below, missing = first[both], second[both], int((~both).sum())
    if not len(below) or (below > 0).all() == (below < 0).all():
        return Estimate(None, None, None, len(below), missing)
    share = float(above.mean() / below.mean())
    residuals = (above - share * below) / below.mean()
    around = _t_interval(residuals, confidence)
    t = None if around is None else Interval(share - around.half, share + around.half)

    def of_means(x: Any, y: Any, axis: int = -1) -> Any:
        return np.mean(x, axis=axis) / np.mean(y, axis=axis)

    return Estimate(share, t, _bootstrap((above, below), of_means, confidence), len(below), missing)


def _alike(numbers: Floats) -> bool:
    return bool(np.ptp(numbers) <= _SAME * np.abs(numbers).max())


def _t_interval(known: Floats, confidence: float) -> Interval | None:
    if len(known) < 2:
        return None
    mean, largest = float(known.mean()), float(np.abs(known).max())
    if _alike(known):
        return Interval(mean, mean)
    share = float((known / largest).std(ddof=1))  # of the largest: squares neither vanish nor overflow
    error = largest * share / math.sqrt(len(known))
    half = float(stats.t.ppf((1 + confidence) / 2, len(known) - 1)) * error
    return Interval(mean - half, mean + half)


def _p_value(gaps: Floats) -> float | None:
    if len(gaps) < 2:
        return None
    if not gaps.any():
        return 1.0
    if _alike(gaps):
        return float(2.0 ** (1 - len(gaps)))
    gaps = gaps / np.abs(gaps).max()
    t = float(gaps.mean()) / (float(gaps.std(ddof=1)) / math.sqrt(len(gaps)))
    return float(2 * stats.t.sf(abs(t), len(gaps) - 1))


def _bootstrap(samples: tuple[Floats, ...], statistic: Callable[..., Any], confidence: float) -> Interval | None:
    """Bias-corrected and accelerated, at the level that makes up for few numbers; the same for the same numbers.

    Plain bootstrap intervals of n numbers are too narrow by sqrt((n - 1) / n) and by the normal's quantile in place of
    t's. Asking for the level 1 - 2 Phi(-sqrt(n / (n - 1)) t) instead mends both (Hesterberg).
    """
    count = len(samples[0])
    if count < FEWEST_TO_RESAMPLE:
        return None
    if all(_alike(sample) for sample in samples):
        value = float(statistic(*samples))
        return Interval(value, value)
    wide = math.sqrt(count / (count - 1)) * float(stats.t.ppf((1 + confidence) / 2, count - 1))
    level = 1 - 2 * float(stats.norm.sf(wide))
    for method in ("BCa", "percentile"):  # BCa has no answer when all but one number are the same
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap(
                samples,
                statistic,
                paired=True,
                vectorized=True,
                confidence_level=level,
                n_resamples=_RESAMPLES,
                method=method,
                rng=stream(0, "bootstrap"),
            ).confidence_interval
        if math.isfinite(found.low) and math.isfinite(found.high):
            return Interval(float(found.low), float(found.high))
    return None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjustment: the chance of even one false claim stays below the level. None stays None, and counts not."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = highest
    return adjusted


def pareto_front(points: Sequence[Sequence[float]]) -> list[bool]:
    """Of each point, whether no other is at least as small in every number and smaller in one. Equal ones both stay."""
    table = np.asarray(points, dtype=np.float64)
    assert not np.isnan(table).any(), "a point without a number has no place among the others"
    return [not any((other <= point).all() and (other < point).any() for other in table) for point in table]


def mser5(series: Numbers) -> int | None:
    """How many numbers at the start of a series to leave out so that the mean of the rest is known best (MSER-5).

    Means of 5 successive numbers; the cut with the smallest var(rest) / len(rest). A multiple of 5. None: the best cut
    lies in the second half, so the series has not settled. Raises nothing: a short series (below 20) gets 0.
    """
    numbers = np.asarray(series, dtype=np.float64)
    batches = len(numbers) // 5
    if batches < 4:
        return 0
    means = numbers[: batches * 5].reshape(batches, 5).mean(axis=1)
    means = means - means.mean()  # the squares below keep their digits
    left = np.arange(batches, 0, -1)
    totals, squares = np.cumsum(means[::-1])[::-1], np.cumsum((means**2)[::-1])[::-1]
    scores = (np.maximum(squares - totals**2 / left, 0.0) / left**2)[: batches - 1]
    cut = int(np.argmin(scores[: max(1, batches - 5)]))  # the last few means are alike by chance
    return None if cut > batches // 2 else cut * 5
