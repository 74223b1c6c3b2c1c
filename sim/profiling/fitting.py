"""Rates of one (GPU, host, engine) from measured points: as many are free as the points can tell, the rest is prior.

All models of a table share their rates; each has scales of its own, held near 1. What is left of a model's points is
carried to its neighbours (kriging of the log residual), so that a filled table meets its measurements and knows how
far off it may be elsewhere. `fill` and `check` call it; files and tables are their business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.profiling.physics import Array, Prompts, Rates, Shape, Steps, decode_s, prefill_s

Key = tuple[str, str]
MODEL_ERROR = 0.03  # of the laws themselves, however exact the measurement
LEAST_NOISE = 0.01
# Spread of the logarithm, least and most of each rate around what is expected. Wide where machines differ.
LIMITS: dict[str, tuple[float, float, float]] = {
    "gpu_gb_s": (1.0, 0.05, 2e4),
    "host_gb_s": (1.0, 0.05, 5e3),
    "kv_share": (0.6, 0.01, 3.0),
    "host_kv_share": (0.6, 0.01, 3.0),
    "gpu_intensity": (0.9, 1e-4, 20.0),
    "host_intensity": (0.9, 1e-4, 20.0),
    "layer_s": (1.0, 1e-7, 0.05),
    "launch_s": (1.5, 1e-7, 0.05),
    "hop_s": (1.0, 1e-6, 0.1),
    "base_s": (1.0, 1e-6, 0.1),
    "sharpness": (0.35, 1.0, 8.0),
    "overlap": (0.6, 1.0, 12.0),
    "prompt_intensity": (0.9, 1e-4, 20.0),
    "host_prompt_intensity": (0.9, 1e-4, 20.0),
    "attention_share": (0.8, 0.005, 3.0),
    "stream_gb_s": (0.7, 0.05, 500.0),
    "head_gb_s": (1.5, 0.05, 5e3),
    "gpu_scale": (0.15, 0.3, 3.0),
    "host_scale": (0.15, 0.3, 3.0),
    "kv_scale": (0.2, 0.2, 5.0),
    "prompt_scale": (0.2, 0.2, 5.0),
    "host_prompt_scale": (0.2, 0.2, 5.0),
}
_REACH = (0.35, 2.0, 3.0)  # how far a residual carries: share of the bytes, doublings of the batch and of the context


@dataclass(frozen=True)
class MeasuredSeries:
    """Measured points of one model: steps or prompts, seconds and relative noise of each."""

    shape: Shape
    at: Steps | Prompts
    seconds: Array
    noise: Array

    def __len__(self) -> int:
        return len(self.seconds)

    def only(self, chosen: NDArray[Any]) -> MeasuredSeries:
        """The chosen points, by a mask or by places."""
        parts = {name: getattr(self.at, name)[chosen] for name in self.at.__dataclass_fields__}
        return replace(self, at=type(self.at)(**parts), seconds=self.seconds[chosen], noise=self.noise[chosen])


def least_relative(design: Array, measured: Array) -> Array:
    """Coefficients, none below zero, of least squared relative error. `design`: a row for each measured number."""
    from scipy.optimize import nnls  # noqa: PLC0415

    rows, terms = design.shape
    # Rows of zeros change nothing; scipy 1.17's nnls corrupts memory when it gets fewer rows than columns.
    padded, target = np.zeros((max(rows, terms), terms)), np.zeros(max(rows, terms))
    padded[:rows], target[:rows] = design / measured[:, None], 1.0
    return np.asarray(nnls(padded, target)[0])


def fit_line(positions: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope, neither below zero, of least relative error."""
    design = np.column_stack([np.ones(len(positions)), np.array(positions)])
    intercept, slope = least_relative(design, np.array(seconds))
    return float(intercept), float(slope)


def predicted(shape: Shape, rates: Rates, at: Steps | Prompts, offload: str, way: str = "cheaper") -> Array:
    """Seconds of steps or prompts by the laws alone."""
    if isinstance(at, Steps):
        return decode_s(shape, rates, at, offload)
    return prefill_s(shape, rates, at, offload, way)


@dataclass(frozen=True)
class Fit:
    """`shared` rates, those of each measured model, how prompts reach layers outside, and which rates were free."""

    shared: Rates
    own: Mapping[Key, Rates]
    offload: str
    way: str = "cheaper"
    free: tuple[str, ...] = ()
    cost: float = 0.0
    residuals: Mapping[Key, Residuals] = field(default_factory=dict)

    def rates(self, key: Key) -> Rates:
        return self.own.get(key, self.shared)

    def seconds(self, key: Key, shape: Shape, at: Steps | Prompts) -> tuple[Array, Array]:
        """Seconds, and the relative error to expect (one standard deviation) of a model with points of its own."""
        base_s = predicted(shape, self.rates(key), at, self.offload, self.way)
        if key not in self.residuals:
            return base_s, np.full(len(base_s), np.nan)
        more, error = self.residuals[key].at(shape, at)
        return base_s * np.exp(more), error


# --- what can be free


def _varies(series: Sequence[MeasuredSeries], name: str, outside: bool | None = None) -> bool:
    """Whether some model has points that differ in `name`, of those with (or without) layers outside the GPU."""
    for each in series:
        values = getattr(each.at, name)
        if outside is not None:
            partly = each.at.layers < each.shape.layers
            values = values[partly if outside else ~partly]
        if len(np.unique(values)) > 1:
            return True
    return False


def free_rates(series: Sequence[MeasuredSeries], offload: str) -> list[str]:
    """The shared rates that these points can tell apart from one another."""
    sizes = len({round(each.shape.layer_bytes / 1e6) for each in series})
    several = any(len(np.unique(each.at.layers)) > 2 for each in series)
    outside = any(bool((each.at.layers < each.shape.layers).any()) for each in series)
    inside = any(bool(((each.at.layers > 0) | each.at.head_on_gpu).any()) for each in series)
    if isinstance(series[0].at, Prompts):
        return [
            *(["prompt_intensity"] if inside or offload == "stream" else []),
            *(["attention_share"] if _varies(series, "tokens") else []),
            *(["host_prompt_intensity", "stream_gb_s"] if outside and offload == "cpu" else []),
        ]
    return [
        *(["gpu_gb_s"] if inside or offload == "stream" else []),
        *(["host_gb_s"] if outside else []),
        *(["kv_share"] if _varies(series, "context", outside=False) else []),
        *(["host_kv_share"] if _varies(series, "context", outside=True) else []),
        *(["gpu_intensity", "sharpness"] if _varies(series, "batch", outside=False) else []),
        *(["host_intensity"] if offload == "cpu" and _varies(series, "batch", outside=True) else []),
        *(["layer_s", "base_s"] if sizes > 1 else []),
        *(["launch_s"] if sizes > 2 else []),
        *(["hop_s"] if several and outside and offload == "cpu" else []),
        *(["head_gb_s"] if outside and offload == "stream" else []),
        *(["overlap"] if several and outside and offload == "stream" else []),
    ]


def _own_scales(series: MeasuredSeries) -> list[str]:
    if isinstance(series.at, Prompts):
        return ["prompt_scale", "host_prompt_scale"]
    varied = len(np.unique(series.at.context)) > 1
    return ["gpu_scale", "host_scale", *(["kv_scale"] if varied else [])]


# --- fitting


def fit_rates(points: Mapping[Key, MeasuredSeries], expected: Rates, offload: str) -> Fit:
    """The most likely rates, given points and what was expected: robust least squares of the relative error.

    Steps and prompts are fitted apart; of prompts the way of the layers outside that explains them best is kept.
    """
    series = list(points.values())
    assert series, "nothing to fit"
    assert all(len(each) for each in series)
    if isinstance(series[0].at, Steps) or offload == "stream" or not _varies_outside(series):
        best = _fit(points, expected, offload, "cheaper")
    else:
        fits = [_fit(points, expected, offload, way) for way in ("cheaper", "cpu", "stream")]
        best = min(fits, key=lambda fit: fit.cost)
        best = fits[0] if fits[0].cost <= 1.05 * best.cost + 0.1 else best
    return replace(best, residuals=_residuals(points, best))


def _varies_outside(series: Sequence[MeasuredSeries]) -> bool:
    return any(bool((each.at.layers < each.shape.layers).any()) for each in series)


def _fit(points: Mapping[Key, MeasuredSeries], expected: Rates, offload: str, way: str) -> Fit:
    from scipy.optimize import least_squares  # noqa: PLC0415

    shared = free_rates(list(points.values()), offload)
    own = {key: _own_scales(each) if len(points) > 1 else [] for key, each in points.items()}
    names = [*shared, *(name for each in own.values() for name in each)]
    if not names:
        return Fit(expected, dict.fromkeys(points, expected), offload, way)
    means = np.log([getattr(expected, name) for name in names])
    spreads, lows, highs = (np.array(column) for column in zip(*(LIMITS[name] for name in names), strict=True))
    lows, highs = np.log(lows), np.log(highs)

    def unpacked(logs: Array) -> tuple[Rates, dict[Key, Rates]]:
        values = np.exp(logs)
        common = expected.changed(shared, values[: len(shared)])
        found, start = {}, len(shared)
        for key, scales in own.items():
            found[key] = common.changed(scales, values[start : start + len(scales)])
            start += len(scales)
        return common, found

    def misses(logs: Array) -> Array:
        _, rates = unpacked(logs)
        parts = [(logs - means) / spreads]
        for key, each in points.items():
            guess_s = predicted(each.shape, rates[key], each.at, offload, way)
            parts.append(np.log(guess_s / each.seconds) / np.hypot(each.noise, MODEL_ERROR))
        return np.concatenate(parts)

    # Where points pull hard against what was expected, a rounded loss alone may stall: plain first, then robust.
    start = np.clip(means, lows + 1e-9, highs - 1e-9)
    plain = least_squares(misses, start, bounds=(lows, highs), x_scale=spreads)
    found = least_squares(misses, plain.x, bounds=(lows, highs), x_scale=spreads, loss="soft_l1")
    common, rates = unpacked(found.x)
    return Fit(common, rates, offload, way, tuple(shared), float(found.cost))


# --- what the laws leave over


@dataclass(frozen=True)
class Residuals:
    """The log residuals of one model's points, carried to their neighbours; `sill`: what the laws miss elsewhere."""

    places: Array
    values: Array
    noise: Array
    sill: float

    @property
    def _matrix(self) -> Array:
        return np.asarray(self.sill**2 * _nearness(self.places, self.places) + np.diag(self.noise**2))

    def at(self, shape: Shape, at: Steps | Prompts) -> tuple[Array, Array]:
        """The residual to expect there, and its standard deviation."""
        near = self.sill**2 * _nearness(_places(shape, at), self.places)
        solved = np.linalg.solve(self._matrix, np.column_stack([self.values, near.T]))
        variance = self.sill**2 - np.einsum("ij,ji->i", near, solved[:, 1:])
        return near @ solved[:, 0], np.sqrt(np.maximum(variance, 0.0) + float(np.min(self.noise)) ** 2)

    def left_out(self) -> Array:
        """The relative error at each point, predicted without it (at the rates of all)."""
        inverse = np.linalg.inv(self._matrix)
        return np.asarray(np.expm1(-(inverse @ self.values) / np.diag(inverse)))


def _places(shape: Shape, at: Steps | Prompts) -> Array:
    share = (at.layers * shape.layer_bytes + np.where(at.head_on_gpu, shape.head_bytes, 0.0)) / shape.read_bytes
    if isinstance(at, Steps):
        rest = [np.log2(at.batch), np.log2(1 + at.context / 256)]
    else:
        rest = [np.log2(1 + at.tokens / 32), np.zeros_like(at.tokens)]
    return np.asarray(np.column_stack([share, *rest]) / np.array(_REACH))


def _nearness(first: Array, second: Array) -> Array:
    distance = np.sqrt(((first[:, None, :] - second[None, :, :]) ** 2).sum(axis=2)) * np.sqrt(3)
    return np.asarray((1 + distance) * np.exp(-distance))


def _residuals(points: Mapping[Key, MeasuredSeries], fit: Fit) -> dict[Key, Residuals]:
    left = {
        key: np.log(each.seconds / predicted(each.shape, fit.own[key], each.at, fit.offload, fit.way))
        for key, each in points.items()
    }
    everything = np.concatenate(list(left.values()))
    common = float(np.sqrt(np.mean(everything**2)))
    return {
        key: Residuals(
            _places(each.shape, each.at),
            left[key],
            np.maximum(each.noise, LEAST_NOISE),
            max(MODEL_ERROR, float(np.sqrt(np.mean(left[key] ** 2))), common),
        )
        for key, each in points.items()
    }


def transfer_errors(points: Mapping[Key, MeasuredSeries], expected: Rates, offload: str) -> dict[Key, float]:
    """Mean relative error of each model's points, predicted from the other models alone; empty with fewer than two."""
    found = {}
    if len({name for name, _ in points}) < 2:
        return {}
    for key, each in points.items():
        others = {other: series for other, series in points.items() if other[0] != key[0]}
        if others:
            fit = fit_rates(others, expected, offload)
            guess_s = predicted(each.shape, fit.shared, each.at, offload, fit.way)
            found[key] = float(np.mean(np.abs(guess_s / each.seconds - 1)))
    return found
