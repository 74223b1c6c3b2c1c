"""From a law to numbers, by way of standard normal scores, so that two laws can be correlated whatever they are.

Pure functions of scores that somebody else drew. Called by `popularity`, `arrivals`, `flows` and `sessions`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sim.common.errors import ConfigError
from sim.common.lazy import special
from sim.scenario.distributions import Exponential, Fixed, Geometric, Law, LogNormal, Pareto, Quantiles, Uniform

MOST_TOKENS = 10**9

Floats = NDArray[np.float64]


def values(law: Law, scores: Floats) -> Floats:
    """Numbers of a law, float64[n]: its quantiles at the probabilities of the standard normal scores given."""
    drawn = _uncut(law, scores)
    if law.min is not None or law.max is not None:
        drawn = np.clip(drawn, law.min, law.max)
    return drawn


def _uncut(law: Law, scores: Floats) -> Floats:
    if isinstance(law, Fixed):
        return np.full(len(scores), float(law.value))
    if isinstance(law, LogNormal):
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(math.log(law.median) + law.log_deviation * scores))
    if isinstance(law, Uniform):
        return np.asarray(law.low + (law.high - law.low) * special.ndtr(scores))
    if isinstance(law, Quantiles):
        return _between(law, np.asarray(special.ndtr(scores)))
    log_above = np.asarray(special.log_ndtr(-scores))  # log of the probability of more; exact far out in the tail
    if isinstance(law, Exponential):
        return -law.mean * log_above
    if isinstance(law, Pareto):
        with np.errstate(over="ignore"):
            return np.asarray(law.low * np.exp(-log_above / law.exponent))
    assert isinstance(law, Geometric)
    if law.mean == 1:
        return np.ones(len(scores))
    return np.maximum(np.ceil(log_above / math.log1p(-1 / law.mean)), 1.0)


def _between(law: Quantiles, probabilities: Floats) -> Floats:
    points = np.array(law.quantiles, dtype=np.float64)
    if points[0, 1] > 0:
        return np.asarray(np.exp(np.interp(probabilities, points[:, 0], np.log(points[:, 1]))))
    return np.asarray(np.interp(probabilities, points[:, 0], points[:, 1]))


def tokens(law: Law, scores: Floats, where: str) -> NDArray[np.int64]:
    """Whole tokens of at least 1. Raises ConfigError: more than a request can have."""
    return whole(values(law, scores), where)


def whole(drawn: Floats, where: str) -> NDArray[np.int64]:
    """Rounded to whole tokens of at least 1. Raises ConfigError: more than a request can have."""
    most = float(drawn.max(initial=0.0))
    if not most <= MOST_TOKENS:
        raise ConfigError(f"{where}: {most:.3g} tokens were drawn, the most is {MOST_TOKENS:,}; give the law a max")
    return np.maximum(np.rint(drawn), 1.0).astype(np.int64)


def mean(law: Law) -> float:
    """The mean of a law, by 4,096 equally probable points: for planning, not for statistics."""
    return float(values(law, np.asarray(special.ndtri((np.arange(4096) + 0.5) / 4096))).mean())
