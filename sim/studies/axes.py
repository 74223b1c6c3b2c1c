"""The values of one field of a grid: lists, ranges such as 1..10, and how each value is called in tables. Pure.

Called by grid.py.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.common.errors import ConfigError
from sim.runs.task import Label
from sim.scenario.scenario import is_code

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


@dataclass(frozen=True)
class Value:
    """A field's value at a point: `content` goes into the scenario, `label` into tables."""

    content: Any
    label: Label


@dataclass(frozen=True)
class GridAxis:
    """A field, by its dotted path, and the values that it takes."""

    field: str
    values: list[Value]


def axis_of(field: str, given: Any, where: str, most: int) -> GridAxis:
    """The axis that a grid file means: a list whose items are values or ranges, or a range alone.

    A range is a..b (whole numbers, both ends included) or {from: a, to: b, step: c}. Raises ConfigError: no values, a
    range that is none or longer than `most`, two values that cannot be told apart.
    """
    where = f"{where}: '{field}'"
    items = given if isinstance(given, list) else [given]
    if not isinstance(given, list) and _range(given, where, most) is None:
        raise ConfigError(f"{where}: give a list of values such as [{_example(given)}], or a range such as 1..10")
    if not items:
        raise ConfigError(f"{where}: has no values; give some, or remove it")
    values: list[Value] = []
    for item in items:
        numbers = _range(item, where, most)
        values += [label_of(field, part) for part in ([item] if numbers is None else numbers)]
    called: dict[str, Value] = {}
    for value in values:
        name = json.dumps(value.label)
        other = called.setdefault(name, value)
        if other is not value and other.content == value.content:
            raise ConfigError(f"{where}: the value {name} is there twice; remove one")
        if other is not value:
            raise ConfigError(f"{where}: two values are both called {name}; write {{label: NAME, value: ...}} for them")
    return GridAxis(field, values)


def _example(given: Any) -> str:
    return json.dumps(given) if isinstance(given, str | int | float | bool) else "..."


def _range(item: Any, where: str, most: int) -> list[int | float] | None:
    """The numbers of a range; None if the item is not one."""
    if isinstance(item, str) and (found := _RANGE.fullmatch(item.strip())):
        first, last, step = int(found[1]), int(found[2]), 1
    elif isinstance(item, dict) and item and all(key in ("from", "to", "step") for key in item):
        numbers = [item.get("from"), item.get("to"), item.get("step", 1)]
        if not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
            raise ConfigError(f"{where}: a range has numbers: {{from: 1, to: 10, step: 1}}")
        first, last, step = numbers
    else:
        return None
    if not step > 0 or not last >= first:
        raise ConfigError(f"{where}: the range from {first} to {last} by {step} is empty; write it upwards")
    number = (last - first) / step + 1
    if not number <= most:
        raise ConfigError(f"{where}: the range from {first} to {last} has over {most:,} values; say --max-runs if so")
    exact = isinstance(first, int) and isinstance(step, int)
    return [first + at * step if exact else round(first + at * step, 12) for at in range(int(number + 1e-9))]


def label_of(field: str, content: Any) -> Value:
    """A value and its name: its own {label: ..., value: ...}, or else something short that tells it from others."""
    if isinstance(content, dict) and sorted(content) == ["label", "value"]:
        return Value(content["value"], str(content["label"]))
    if content is None or isinstance(content, int | float | bool):
        return Value(content, content)
    if isinstance(content, str):
        return Value(content, _short(field, content))
    if isinstance(content, dict) and isinstance(content.get("name"), str) and field == "policy":
        rest = ", ".join(f"{key}={_text(value)}" for key, value in content.items() if key != "name")
        name = _short(field, content["name"])
        return Value(content, f"{name}({rest})" if rest else name)
    if isinstance(content, dict) and isinstance(content.get("file"), str):
        rest = ", ".join(f"{key}={_text(value)}" for key, value in content.items() if key not in ("file", "kind"))
        name = Path(content["file"]).name
        return Value(content, f"{name}({rest})" if rest else name)
    return Value(content, _text(content))


def _short(field: str, text: str) -> str:
    """Files by their name alone."""
    if field in ("scenario", "trace", "workload.file") or (field in ("policy", "policy.name") and is_code(text)):
        return Path(text).name
    return text


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
