"""How numbers, counts and lists are written for people, wherever they are read: 12.3 ms, 93.8%, 1 request, a, b and c.

Pure, in plain ASCII, without rich. Amounts with a unit of their own and intervals are `amounts`' business.
"""

from __future__ import annotations

from collections.abc import Iterable


def seconds(value: float | None) -> str:
    """Three digits with the unit that suits them; "-" where there is no number."""
    if value is None:
        return "-"
    if value == 0:
        return "0 s"
    if value < 0.9995:
        return f"{_digits(value * 1000)} ms"
    return f"{_digits(value)} s" if value < 999.5 else f"{value:,.0f} s"


def _digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")


def share(value: float | None) -> str:
    """A share of 1 as per cent; a small one is never shown as none, nor a large one as all."""
    if value is None:
        return "-"
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.9995 <= value < 1:
        return ">99.9%"
    return f"{value * 100:.1f}%"


def number(value: float | None) -> str:
    """A whole number with separators, or three digits of another."""
    if value is None:
        return "-"
    if isinstance(value, int) or value >= 999.5:
        return f"{value:,.0f}"
    return _digits(value)


def gib(value: float | None) -> str:
    """Bytes as a number of GiB."""
    return "-" if value is None else f"{value / 2**30:.1f}"


def gigabytes(value: float) -> str:
    """Moved bytes, in GB of 1e9."""
    return f"{value / 1e9:,.1f} GB"


def counted(count: float, noun: str) -> str:
    """A number and its noun: "1 request", "3,042 requests", "2 policies"."""
    plural = noun if count == 1 else f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,.0f} {plural}"


def listed(items: Iterable[str], most: int = 6) -> str:
    """Names in a sentence: "a, b and c"."""
    names = list(items)
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"
