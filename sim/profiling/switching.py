"""Switch costs of one (GPU, host, engine) from timed reloads, KV copies, starts and frees.

A reload is a line: seconds that do not depend on bytes, and bytes over a rate, from host memory. What nobody timed
comes from the nearest table that the profiles have, or from an assumption, and is `analytic`. `fill` calls it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from sim.profiling.fitting import Key, fit_line
from sim.profiling.grids import ANALYTIC_SOURCE, Row
from sim.profiling.points import BandwidthPoint, SwitchPoint

GIGA = 1e9
COSTS = (
    "start_s", "reload_fixed_s", "reload_gb_s", "kv_save_gb_s", "kv_restore_gb_s", "free_s", "wake_fixed_s",
)  # fmt: skip
# llama.cpp's, from profiles/README.md: what is usual where nothing is known.
ASSUMED = dict(zip(COSTS, (1.5, 0.3, 9.0, 9.0, 11.0, 0.2, 0.2), strict=True))
# Which memory a reload or a KV copy goes through: the simulator's host copy is the quickest that was timed.
_PATHS = ("pinned", "pageable")
_SPREAD = 1.5  # sizes that differ less than this cannot tell a rate from a fixed time


@dataclass(frozen=True)
class Cost:
    """One number, how far off its measurements are, and whether it was measured for this hardware."""

    value: float
    error: float | None = None
    measured: bool = False
    sources: tuple[str, ...] = ()


def switch_rows(
    keys: Sequence[Key],
    points: Sequence[SwitchPoint],
    bandwidth: Sequence[BandwidthPoint],
    nearest: Mapping[str, float],
) -> list[Row]:
    """A row of switch.csv for each model. `nearest`: costs to take where nothing was timed."""
    return [_row(key, points, bandwidth, nearest) for key in keys]


def _row(
    key: Key, points: Sequence[SwitchPoint], bandwidth: Sequence[BandwidthPoint], nearest: Mapping[str, float]
) -> Row:
    reload = [each for each in points if each.part == "reload"]
    fixed, rate = _reload(key, [each for each in reload if each.path == _best_path(reload)], nearest)
    room = _room(key, points)
    costs = {
        "start_s": _seconds(key, points, "start", nearest["start_s"]),
        "reload_fixed_s": replace(fixed, value=fixed.value + room),
        "reload_gb_s": rate,
        "kv_save_gb_s": _copy(key, points, bandwidth, "kv_save", nearest["kv_save_gb_s"]),
        "kv_restore_gb_s": _copy(key, points, bandwidth, "kv_restore", nearest["kv_restore_gb_s"]),
        "free_s": _seconds(key, points, "free", nearest["free_s"]),
        # Waking a process that kept its host copy is a reload without what a start adds; nobody times it apart.
        "wake_fixed_s": Cost(min(fixed.value if fixed.measured else math.inf, nearest["wake_fixed_s"])),
    }  # fmt: skip
    timed = [cost for cost in costs.values() if cost.measured]
    # The reload is nearly all of a switch, so the row is known as well as its reload is.
    known = rate.measured
    sources = list(dict.fromkeys(source for cost in timed for source in cost.sources))[:3]
    origin = ("fitted" if known else "analytic", "+".join(sources) if sources else ANALYTIC_SOURCE)
    error = rate.error if known else None
    return cost_row(key, [costs[name].value for name in COSTS], *origin, error)


def cost_row(key: Key, costs: Sequence[float], kind: str, source: str, error: float | None) -> Row:
    """A row of switch.csv; `costs` as COSTS."""
    row = {"model": key[0], "quantization": key[1]}
    row |= {name: f"{cost:.6g}" for name, cost in zip(COSTS, costs, strict=True)}
    return row | {"kind": kind, "source": source, "error": "" if error is None else f"{round(error, 4):g}"}


def _room(key: Key, points: Sequence[SwitchPoint]) -> float:
    """Seconds of taking memory before the weights come, with the smallest KV pool that was timed; 0 where none was."""
    chosen = _own(key, [each for each in points if each.part == "reserve"])
    least = min((each.tokens or 0 for each in chosen), default=0)
    return max((each.seconds for each in chosen if (each.tokens or 0) == least), default=0.0)


def _best_path(points: Sequence[SwitchPoint]) -> str:
    timed = [path for path in _PATHS if any(each.path == path for each in points)]
    return max(timed, key=lambda path: max(_rate(each) for each in points if each.path == path), default="")


def _rate(point: SwitchPoint) -> float:
    return (point.bytes or 0) / max(point.seconds, 1e-9) / GIGA


def _sources(points: Sequence[SwitchPoint]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each.source for each in points))


def _own(key: Key, points: Sequence[SwitchPoint]) -> list[SwitchPoint]:
    """The model's own points, or those of all models where it has none."""
    return [each for each in points if each.model_key == key] or list(points)


def _reload(key: Key, points: Sequence[SwitchPoint], nearest: Mapping[str, float]) -> tuple[Cost, Cost]:
    """The line through the model's own reloads when they differ enough in bytes, else through those of all models."""
    usable = [each for each in points if each.bytes and each.seconds > 0]
    if not usable:
        return Cost(nearest["reload_fixed_s"]), Cost(nearest["reload_gb_s"])
    sources = _sources(usable)
    for chosen in (_own(key, usable), usable):
        sizes = [float(each.bytes or 0) / GIGA for each in chosen]
        seconds = [each.seconds for each in chosen]
        if len(chosen) > 1 and max(sizes) > _SPREAD * min(sizes):
            fixed_s, slope = fit_line(sizes, seconds)
            if slope > 0:
                misses = np.abs((fixed_s + slope * np.array(sizes)) / np.array(seconds) - 1)
                error = float(misses.mean())
                return Cost(fixed_s, error, True, sources), Cost(1 / slope, error, True, sources)
    rates = [_rate(each) for each in _own(key, usable)]
    error = max(abs(rate / median(rates) - 1) for rate in rates)
    return Cost(0.0, error, True, sources), Cost(median(rates), error, True, sources)


def _seconds(key: Key, points: Sequence[SwitchPoint], part: str, otherwise: float) -> Cost:
    chosen = _own(key, [each for each in points if each.part == part])
    if not chosen:
        return Cost(otherwise)
    return Cost(median(each.seconds for each in chosen), None, True, _sources(chosen))


def _copy(
    key: Key, points: Sequence[SwitchPoint], bandwidth: Sequence[BandwidthPoint], part: str, otherwise: float
) -> Cost:
    """The rate of KV copies: over all timed bytes, so that long copies, which cost, count most."""
    timed = [each for each in points if each.part == part and each.bytes and each.seconds > 0]
    chosen = _own(key, [each for each in timed if each.path == _best_path(timed)])
    if chosen:
        total = sum(each.bytes or 0 for each in chosen) / sum(each.seconds for each in chosen) / GIGA
        error = max(abs(_rate(each) / total - 1) for each in chosen)
        return Cost(total, min(error, 1.0), True, _sources(chosen))
    direction, column = ("d2h", "d2h_gb_s") if part == "kv_save" else ("h2d", "h2d_gb_s")
    rates = [getattr(each, column) for each in bandwidth if each.direction == direction and getattr(each, column)]
    return Cost(0.8 * max(rates)) if rates else Cost(otherwise)
