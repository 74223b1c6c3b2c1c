"""What the importers share: a record with its fields checked as they are asked for, and the `Trial` that comes of it.

A format turns each record into Trials, or raises BadRecord with the reason. Where records come from is the business of
`files`, what a Trial means for profiles (model, layers, hardware) that of `importing`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sim.common.errors import did_you_mean

_MOST = 1e18  # no field of a benchmark is larger: it is broken
ALL_LAYERS = 10**6  # more than any model has: all of them, with the output head


class BadRecord(Exception):
    """A record that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Timing:
    """The median of a test's repeats, in seconds, and the spread where it is known."""

    median_s: float
    p10_s: float | None = None
    p90_s: float | None = None
    repeats: int | None = None

    def per(self, number: int) -> Timing:
        """The same for one of `number` equal parts."""
        low, high = (None if each is None else each / number for each in (self.p10_s, self.p90_s))
        return Timing(self.median_s / number, low, high, self.repeats)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One thing that was timed, in the tool's own words. Empty texts and None: the record does not say.

    gpu_layers: as the tool counts them; `head_first`: whether the first of them is the output head (None: it depends on
    a version that is not known). `settings`: what else the time depends on. `single`: not a median of repeats.
    """

    where: str
    decode: bool
    timing: Timing
    model_file: str = ""
    model_type: str = ""
    model_size: int | None = None
    model_parameters: int | None = None
    gpu_name: str = ""
    cpu_name: str = ""
    gpu_layers: int | None = None
    head_first: bool | None = False
    batch: int = 1
    context: float = 0.0
    prompt_tokens: int = 0
    settings: Mapping[str, str] = field(default_factory=dict)
    build: str = ""
    date: str = ""
    single: bool = False

    @property
    def model_key(self) -> tuple[str, str, int | None, int | None]:
        """What tells models of different records apart."""
        return self.model_file, self.model_type, self.model_size, self.model_parameters


@dataclass(frozen=True)
class Unused:
    """A sound record, or part of one, that profiles have no place for."""

    why: str


class Record:
    """One record of a tool, from JSON or CSV. Methods raise BadRecord: a field is missing or is not what it should be.

    `understood` names the versions whose fields are known, for the message.
    """

    def __init__(self, where: str, fields: Mapping[str, Any], understood: str) -> None:
        self.where = where
        self.fields = fields
        self.understood = understood

    def has(self, name: str) -> bool:
        return self.fields.get(name) not in (None, "")

    def first_of(self, *names: str) -> str:
        """The first of these fields that is there; the last where none is."""
        return next((name for name in names if self.has(name)), names[-1])

    def _value(self, name: str) -> Any:
        if not self.has(name):
            hint = did_you_mean(name, self.fields) if name not in self.fields else "it is empty"
            raise BadRecord(f"field '{name}' is missing ({hint}); understood: {self.understood}")
        return self.fields[name]

    def text(self, name: str, default: str | None = None) -> str:
        if default is not None and not self.has(name):
            return default
        value = self._value(name)
        if isinstance(value, Mapping | Sequence) and not isinstance(value, str):
            raise BadRecord(f"field '{name}' is a list or an object, not a text; understood: {self.understood}")
        return str(value).strip()

    def number(self, name: str, default: float | None = None, above: float | None = None) -> float:
        """A finite number, above `above` where that is given."""
        if default is not None and not self.has(name):
            return default
        value = self._value(name)
        try:
            number = float("nan") if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = float("nan")
        if not abs(number) < _MOST:
            small = "a number" if math.isnan(number) else f"a number below {_MOST:g}"
            raise BadRecord(f"field '{name}' is {_shown(value)}, not {small}")
        if above is not None and number <= above:
            raise BadRecord(f"field '{name}' is {_shown(value)}, not above {above:g}")
        return number

    def whole(self, name: str, default: int | None = None, least: int | None = 0) -> int:
        number = self.number(name, default)
        if number != int(number) or (least is not None and number < least):
            from_least = "" if least is None else f" at least {least}"
            raise BadRecord(f"field '{name}' is {_shown(self.fields[name])}, not a whole number{from_least}")
        return int(number)

    def layers(self, name: str) -> int:
        """Layers on the GPU; below 0 are all."""
        count = self.whole(name, least=None)
        return ALL_LAYERS if count < 0 else count

    def texts(self, names: Sequence[str]) -> dict[str, str]:
        """Those of these fields that are there."""
        return {name: self.text(name) for name in names if self.has(name)}

    def flag(self, name: str, default: bool = False) -> bool:
        """true and false, as 1 and 0 too."""
        if not self.has(name):
            return default
        value = str(self.fields[name]).strip().lower()
        if value not in ("true", "false", "1", "0"):
            raise BadRecord(f"field '{name}' is {_shown(self.fields[name])}, neither true nor false")
        return value in ("true", "1")

    def numbers(self, name: str) -> list[float]:
        """A list of numbers above 0; empty where there is none."""
        values = self.fields.get(name)
        if values in (None, ""):
            return []
        if not isinstance(values, list):
            raise BadRecord(f"field '{name}' is {_shown(values)}, not a list of numbers")
        return [Record(self.where, {name: value}, self.understood).number(name, above=0) for value in values]


def timing_of(samples_s: Sequence[float]) -> Timing:
    """Median, p10 and p90 (linear between samples) of repeats; of fewer than three repeats no spread."""
    ordered = sorted(samples_s)
    if len(ordered) < 3:
        return Timing(_quantile(ordered, 0.5), repeats=len(ordered))
    median, low, high = (_quantile(ordered, share) for share in (0.5, 0.1, 0.9))
    return Timing(median, low, high, len(ordered))


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _shown(value: Any) -> str:
    text = str(value)
    return f"'{text[:40]}...'" if len(text) > 40 else f"'{text}'"
