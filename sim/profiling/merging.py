"""Rows that say the same point become one; rows that disagree are refused, with both named.

`measured` calls it on whatever is read or put together. What a point is, each class of `points` says with its key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from sim.common.errors import ProfileError
from sim.profiles.library import grouped
from sim.profiling.points import COLUMNS, DecodePoint, MeasuredRow, PrefillPoint

# Runs of the same test differ by a few per cent; rows further apart are not the same test.
SAME_WITHIN = 0.05
R = TypeVar("R", bound=MeasuredRow)


def merge_rows(rows: Sequence[R], layers: Mapping[tuple[str, str], int]) -> list[R]:
    """One row a point, in the order they came. Rows of a point that agree within SAME_WITHIN become their mean.

    Raises ProfileError: two rows of a point are further apart, or two rows of a model differ at all.
    """
    return [_merged(group) for group in grouped(rows, lambda row: _point(row, layers)).values()]


def _point(row: MeasuredRow, layers: Mapping[tuple[str, str], int]) -> tuple[Any, ...]:
    key = [getattr(row, column) for column in row.key]
    if isinstance(row, DecodePoint | PrefillPoint):  # an empty `head` and what the rule says are the same
        key[row.key.index("head")] = row.head_on_gpu(layers.get(row.model_key, -1))
    return tuple(key)


def _merged(group: list[R]) -> R:
    first = group[0]
    different = [row for row in group if row != first]
    if not first.values:
        for other in different:
            _must_be_equal(first, other)
    if not different or not first.values:
        return first
    for column in first.values:
        known = [row for row in group if getattr(row, column) is not None]
        if known:
            _must_be_close(known, column)
    return mean_row([row for row in group if row.kind == "measured"] or group)


def _must_be_equal(first: MeasuredRow, other: MeasuredRow) -> None:
    for column in COLUMNS[type(first)]:
        mine, theirs = getattr(first, column), getattr(other, column)
        if mine != theirs and column not in ("kind", "source"):
            raise ProfileError(
                f"{other.where}: {column} is {theirs}, but {mine} in {first.where}, "
                f"for the same {' and '.join(first.key)}; keep one"
            )


def _must_be_close(group: Sequence[MeasuredRow], column: str) -> None:
    low, high = (pick(group, key=lambda row: getattr(row, column)) for pick in (min, max))
    least, most = getattr(low, column), getattr(high, column)
    if most > least * (1 + SAME_WITHIN):
        raise ProfileError(
            f"{high.where}: {column} is {most:.6g}, but {least:.6g} for the same point in {low.where}, "
            f"more than {SAME_WITHIN:.0%} apart; keep one, or measure again"
        )


def mean_row(group: list[R]) -> R:
    """Measurements of one point as one, each with its repeats for a weight; the spread is what all of them saw."""
    first = group[0]
    rows = list(dict.fromkeys(group))
    repeats = [getattr(row, "repeats", None) for row in rows]
    changes: dict[str, Any] = {
        "source": "+".join(dict.fromkeys(part for row in rows for part in row.source.split("+")))
    }
    for column in first.values:
        known = [(weight or 1, getattr(row, column)) for weight, row in zip(repeats, rows, strict=True)]
        known = [(weight, value) for weight, value in known if value is not None]
        if known:
            mean = sum(weight * value for weight, value in known) / sum(weight for weight, _ in known)
            changes[column] = round(mean) if isinstance(known[0][1], int) else mean
    for column, pick in (("p10_s", min), ("p90_s", max)):
        spread = [value for row in rows if (value := getattr(row, column, None)) is not None]
        if spread:
            changes[column] = pick([*spread, changes[first.values[0]]])
    if any(repeats):
        changes["repeats"] = sum(weight or 1 for weight in repeats)
    return replace(first, **changes)
