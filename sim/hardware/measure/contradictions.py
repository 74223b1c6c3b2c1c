"""Finds measurements that cannot both be right, which other work on the machine may have spoilt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Any

from sim.hardware.measure.measurement_folder import MeasurementFolder
from sim.profiles.library import grouped
from sim.profiling.points import DecodePoint, MeasuredRow, PrefillPoint

_SLACK = 0.95  # what a law may be broken by before it is measured again
_QUIRK = 0.9  # kernels have their quirks: a little less time for a little more work is no contradiction


def contradictions(folder: MeasurementFolder, layers: Mapping[str, int], quantization: str) -> list[MeasuredRow]:
    """Steps and prompts that cannot both be right: k of L layers on the device took less than k/L of what all took,
    or a larger batch, a longer context or a longer prompt took clearly less time."""
    wrong: dict[MeasuredRow, None] = {}
    for kind in (DecodePoint, PrefillPoint):
        rows = [row for row in folder.rows[kind] if row.quantization == quantization and row.model in layers]
        same = attrgetter(*(column for column in kind.key if column not in ("offload", "layers", "head")))
        for full in (row for row in rows if row.layers == layers[row.model]):
            for row in (row for row in rows if same(row) == same(full)):
                took_s, all_s = (getattr(each, kind.values[0]) for each in (row, full))
                if took_s < _SLACK * all_s * row.layers / layers[row.model]:
                    wrong |= {row: None, full: None}
        for axis in ("batch", "context") if kind is DecodePoint else ("prompt_tokens",):
            wrong |= dict.fromkeys(_less_for_more(rows, kind, axis))
    return list(wrong)


def _less_for_more(rows: Sequence[Any], kind: type[MeasuredRow], axis: str) -> list[MeasuredRow]:
    """Neighbours along an axis of which the one with more took clearly less."""
    found: list[MeasuredRow] = []
    for line in grouped(rows, attrgetter(*(name for name in kind.key if name != axis))).values():
        line.sort(key=attrgetter(axis))
        for less, more in pairwise(line):
            if getattr(more, kind.values[0]) < _QUIRK * getattr(less, kind.values[0]):
                found += [less, more]
    return found
