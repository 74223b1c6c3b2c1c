"""How numbers with a unit, and how sure they are, are written for people: 93.8% +-1.2, -3.2 s (-4.1 to -2.3).

Plain ASCII. Called by the tables and verdicts of comparisons and capacities.
"""

from __future__ import annotations

import math

from sim.common.statistics import Estimate, Interval
from sim.common.text import number, seconds, share
from sim.results.metrics import Unit


def amount(unit: Unit, value: float | None) -> str:
    """A value by itself; "-" where there is none."""
    if value is None:
        return "-"
    if value < 0:
        return "-" + amount(unit, -value)
    if unit == "s":
        return seconds(value)
    if unit == "share":
        return share(value)
    if unit == "usd":
        return f"${number(value)}"
    return number(int(value) if value == int(value) and unit == "number" else value)


def with_half(unit: Unit, seen: Estimate) -> str:
    """The mean and half the width of its t interval, in one unit and with the decimals that it deserves."""
    if seen.mean is None:
        return "-"
    text = amount(unit, seen.mean)
    if seen.t is None or seen.t.half == 0:
        return text
    scale, mark, most = _scale(unit, seen.mean)
    half, mean = seen.t.half * scale, seen.mean * scale
    digits = _decimals(half, most)
    return f"{_sign(unit)}{mean:,.{digits}f}{mark} ±{half:,.{digits}f}"


def gap(unit: Unit, value: float | None, around: Interval | None) -> str:
    """A difference with its sign and, in brackets, its interval."""
    if value is None:
        return "-"
    ends = (around.low, around.high) if around else ()
    scale, mark, most = _scale(unit, max(map(abs, (value, *ends))))
    if unit == "share":
        mark = " pt"
    digits = _decimals(around.half * scale if around and around.half else abs(value) * scale / 10, most)
    dollar = _sign(unit)

    def shown(one: float) -> str:
        text = f"{round(one * scale, digits) + 0.0:+,.{digits}f}"  # never -0
        return f"{text[0]}{dollar}{text[1:]}" if dollar else text

    text = f"{shown(value)}{mark}"
    return text if around is None else f"{text} [{shown(around.low)}, {shown(around.high)}]"


def span(unit: Unit, around: Interval | None) -> str:
    """An interval in words; nothing where there is none."""
    return "" if around is None else f"{amount(unit, around.low)} to {amount(unit, around.high)}"


def chance(p: float) -> str:
    """A p value."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.995 else "p = 1"


def _scale(unit: Unit, value: float) -> tuple[float, str, int]:
    """Factor, mark and most decimals of what suits a value of this size."""
    if unit == "s":
        return (1.0, " s", 2) if abs(value) >= 0.9995 else (1000.0, " ms", 1)
    if unit == "share":
        return 100.0, "%", 2
    return 1.0, "", 4


def _sign(unit: Unit) -> str:
    return "$" if unit == "usd" else ""


def _decimals(half: float, most: int) -> int:
    """So that two digits of `half` are seen."""
    if half <= 0 or not math.isfinite(half):
        return min(1, most)
    return max(0, min(most, 1 - math.floor(math.log10(half))))
