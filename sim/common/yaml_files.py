"""Safe YAML in: plain data of bounded size, no key twice, errors with file, line and column.

Scenarios, grids, recipes, presets and the headers of tables are read by it. Scalars are what they look like: of the
words only true, false and null mean something, numbers are decimal (or 0x...), and there are no dates, so `no`,
`1:30`, `017` and `2020-01-01` are texts. Aliases count as often as they are used; there are no tags and no merges.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sim.common.errors import ConfigError, SimError
from sim.common.safe_open import plain_bytes

MOST_BYTES = 8 << 20
MOST_VALUES = 300_000  # keys and values, those behind an alias each time that it is used
MOST_DEPTH = 50

_PLAIN_TAGS = ("!", *(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")))
_MERGE = "tag:yaml.org,2002:merge"
# A subset of what yaml.safe_dump takes for something else than text, so that whatever it writes is read as it was.
_SCALARS = (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"([-+]?[0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+.0123456789"),
    ("merge", r"<<", "<"),
)


class _StrictLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Safe YAML that also refuses a key given twice, which plain YAML would silently overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Hashable, None] = {}
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                raise _problem("merges (<<) are not read, write the fields out", key_node.start_mark)
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str | int | float | bool | None):
                raise _problem("a key must be a name or a number", key_node.start_mark)
            if key in seen:
                raise _problem(f"key '{str(key)[:60]}' twice", key_node.start_mark)
            seen[key] = None
        found: dict[Hashable, Any] = super().construct_mapping(node, deep=deep)
        return found


_StrictLoader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in _SCALARS:
    _StrictLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), ["" if mark == "\0" else mark for mark in _first]
    )


def _problem(text: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, text, mark)


def read_yaml(path: Path, kind: type[SimError] = ConfigError) -> Any:
    """The content of a YAML file.

    Raises `kind`: a missing or unreadable file, a device, not UTF-8, too large, malformed YAML, a key given twice.
    """
    try:
        text = plain_bytes(path, MOST_BYTES, pipes=True).decode("utf-8-sig")
    except OSError as error:
        hint = "" if ";" in (error.strerror or "") else "; check the path"
        raise kind(f"{path}: cannot read the file ({error.strerror or error}){hint}") from None
    except UnicodeDecodeError:
        raise kind(f"{path}: not UTF-8 text; save the file as UTF-8 YAML") from None
    try:
        return _parsed(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number too long
        raise kind(f"{path}: {_yaml_problem(error)}") from None


def parse_value(text: str, where: str) -> Any:
    """A single value written as YAML, as after --set. Raises ConfigError."""
    try:
        return _parsed(text)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"{where[:200]}: the value is not valid YAML; quote it") from None


def _yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    problem = "a number of too many digits" if "int_max_str_digits" in problem else problem
    return f"{where}not valid YAML ({problem}); mend that line"


def _parsed(text: str) -> Any:
    """Raises yaml.YAMLError or ValueError."""
    _Census().count(text)
    return yaml.load(text, Loader=_StrictLoader)


@dataclass
class _Open:
    """A list or mapping that has begun: its anchor, and the values and levels in it so far."""

    anchor: str | None
    values: int = 1
    levels: int = 1


class _Census:
    """Looks at a document's events before anything is made of them: how large would it be with all aliases followed?"""

    def __init__(self) -> None:
        self._open: list[_Open] = []
        self._anchors: dict[str, _Open] = {}

    def count(self, text: str) -> None:
        """Raises yaml.YAMLError: too many values, nested too deeply, an alias of what it is in, a tag."""
        for event in self._events(text):
            if isinstance(event, yaml.AliasEvent):
                self._add(self._meant(event), event)
            elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
                if event.tag is not None and event.tag not in _PLAIN_TAGS:
                    name = event.tag.replace("tag:yaml.org,2002:", "!!")[:60]
                    raise _problem(f"the tag '{name}' is not read, plain data only", event.start_mark)
                entry = _Open(event.anchor)
                if isinstance(event, yaml.ScalarEvent):
                    self._end(entry, event)
                else:
                    self._open.append(entry)
                    self._limit(len(self._open), 0, event.start_mark)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._end(self._open.pop(), event)

    def _events(self, text: str) -> Iterator[yaml.Event]:
        """The parser's events. Raises yaml.YAMLError.

        The parser reads ahead of its events, up to 1,024 characters of a line, and newer ones limit the depth of that
        themselves. What it refuses within brackets too deep for us is refused in our words, whatever its own are.
        """
        begin = 0
        try:
            for event in yaml.parse(text, Loader=_StrictLoader):
                begin = event.end_mark.index if event.end_mark else begin
                yield event
        except yaml.MarkedYAMLError as error:
            if error.problem_mark is not None:
                ahead = text[begin : error.problem_mark.index]
                opened = sum(map(ahead.count, "[{")) - sum(map(ahead.count, "]}"))
                self._limit(len(self._open) + opened, 0, error.problem_mark)
            raise

    def _meant(self, event: yaml.AliasEvent) -> _Open:
        if any(entry.anchor == event.anchor for entry in self._open):
            raise _problem(f"'*{event.anchor}' is inside what it stands for", event.start_mark)
        if event.anchor not in self._anchors:
            raise _problem(f"nothing is called '&{event.anchor}'", event.start_mark)
        return self._anchors[event.anchor]

    def _end(self, entry: _Open, event: yaml.Event) -> None:
        if entry.anchor is not None:
            self._anchors[entry.anchor] = entry
        self._add(entry, event)

    def _add(self, entry: _Open, event: yaml.Event) -> None:
        self._limit(len(self._open) + entry.levels, entry.values, event.start_mark)
        if self._open:
            outer = self._open[-1]
            outer.values += entry.values
            outer.levels = max(outer.levels, entry.levels + 1)
            self._limit(0, outer.values, event.start_mark)

    def _limit(self, levels: int, values: int, mark: Any) -> None:
        if levels > MOST_DEPTH + 1:
            raise _problem(f"nested too deeply, more than {MOST_DEPTH} levels", mark)
        if values > MOST_VALUES:
            raise _problem(f"more than {MOST_VALUES:,} values, those behind aliases counted each time", mark)
