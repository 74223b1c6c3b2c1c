"""Where the data that ships with the project lies: beside the packages in a source tree, inside `sim` in a wheel."""

from __future__ import annotations

from pathlib import Path

from sim.common.errors import ConfigError, did_you_mean

_PACKAGE = Path(__file__).resolve().parent.parent


def data_folder(name: str) -> Path:
    """The folder `profiles` or `traces` that came with this copy of the project."""
    return _PACKAGE.parent / name if is_source_tree() else _PACKAGE / "data" / name


def is_source_tree() -> bool:
    """Whether this copy of the project is its source tree, where folders beside the packages may be written to."""
    return (_PACKAGE.parent / "pyproject.toml").is_file() and (_PACKAGE.parent / "profiles").is_dir()


def scenario_file(name: str) -> Path:
    """The file of a scenario that came with the project, such as "desktop". Raises ConfigError: there is none."""
    files = {path.stem: path for path in sorted((data_folder("traces") / "scenarios").glob("*.yaml"))}
    if name not in files:
        raise ConfigError(f"no scenario '{name}' comes with the project; {did_you_mean(name, files)}")
    return files[name]
