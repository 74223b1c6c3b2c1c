"""Safe YAML in: plain data only, no key twice, errors with file, line and column. spec.py is its only user."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from sim.errors import ConfigError


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that also refuses a key given twice, which plain YAML would silently overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: list[Any] = []
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=deep)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' twice", key_node.start_mark)
            seen.append(key)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises ConfigError: missing or unreadable file, not UTF-8, malformed YAML, a key given twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the file ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text; save the scenario as UTF-8 YAML") from None
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply to be a scenario") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that does not exist, a number too long
        raise ConfigError(f"{path}: {_yaml_problem(error)}") from None


def _yaml_problem(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{where}not valid YAML ({problem}); mend that line"


def parse_value(text: str, where: str) -> Any:
    """A single value written as YAML, as after --set. Raises ConfigError."""
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError):
        raise ConfigError(f"{where}: the value is not valid YAML; quote it") from None
