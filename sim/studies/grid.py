"""GRID.yaml: which scenarios a sweep plays. Reads and checks the file and makes the tasks; runs nothing.

    scenario: scenarios/default.yaml      # a file, or the scenario itself; none: the one that is shipped
    set: {horizon_s: 3600}                # for every point
    vary:                                 # every combination of these
      policy: [lru-swap, {name: residency-aware, margin: 2}, mine.py]
      engine.max_sequences: [8, 32]
      seed: 1..10
    zip:                                  # these go together, value by value
      - {workload.time_scale: [1, 2], horizon_s: [3600, 1800]}
    include: [{policy: lru-swap, engine.max_sequences: 64}]
    exclude: [{policy: mine.py, engine.max_sequences: 32}]

Besides the fields of a scenario, `trace` (a trace file) and `scenario` (another scenario file) can be varied.
"""

from __future__ import annotations

import itertools
import math
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from sim.common.data_files import data_folder
from sim.common.errors import ConfigError, PolicyError, did_you_mean
from sim.common.yaml_files import read_yaml
from sim.policy.loader import asked_policy, policy_names
from sim.runs.task import Label, Task
from sim.scenario.fields import Frozen, first_problem
from sim.scenario.scenario import PolicySpec, Scenario, TraceWorkload, assign, is_code, parse_scenario, refuse_code
from sim.studies.axes import GridAxis, Value, axis_of, label_of
from sim.traces.formats import told_format

MOST_RUNS = 10_000
Point = dict[str, Value]


class _Grid(Frozen):
    """GRID.yaml as it is written."""

    scenario: str | dict[str, Any] | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    vary: dict[str, Any] = Field(default_factory=dict)
    zip: list[dict[str, Any]] = Field(default_factory=list)
    include: list[dict[str, Any]] = Field(default_factory=list)
    exclude: list[dict[str, Any]] = Field(default_factory=list)


@dataclass(frozen=True)
class SweepGrid:
    """A grid file, read. tasks: a scenario each, in the order of the file, the last field varying fastest.

    fields: what is varied, the columns of tables. text: the file as it stands.
    """

    tasks: list[Task]
    fields: tuple[str, ...]
    text: str


def read_grid(path: Path, most_runs: int = MOST_RUNS) -> SweepGrid:
    """Read a grid file and make its tasks.

    Raises ConfigError, one line that names the field: what is no grid, no scenario, no policy; more than `most_runs`.
    """
    data = read_yaml(path)
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a grid is a mapping with scenario and vary, for example vary: {{seed: 1..10}}")
    if isinstance(data.get("zip"), dict):
        data = {**data, "zip": [data["zip"]]}
    try:
        grid = _Grid.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{path}: {first_problem(error, _Grid, 'grid')}") from None
    if "scenario" in grid.set:
        raise ConfigError(f"{path}: field 'set.scenario': write scenario beside set, or vary it")
    points = _points(grid, path, most_runs)
    fields = tuple(dict.fromkeys(field for point in points for field in point))
    maker = _Maker(path, grid)
    return SweepGrid([maker.task(point, fields) for point in points], fields, path.read_text(encoding="utf-8"))


# --- points


def _points(grid: _Grid, path: Path, most_runs: int) -> list[Point]:
    """The points: the cross product of all axes, less what is excluded, and what is included."""
    groups = [[axis_of(field, values, f"{path}: vary", most_runs)] for field, values in grid.vary.items()]
    for number, group in enumerate(grid.zip, start=1):
        where = f"{path}: zip group {number}"
        axes = [axis_of(field, values, where, most_runs) for field, values in group.items()]
        lengths = {axis.field: len(axis.values) for axis in axes}
        if len(dict.fromkeys(lengths.values())) > 1:
            told = ", ".join(f"{field} has {length}" for field, length in lengths.items())
            raise ConfigError(f"{where}: its fields need as many values each; {told}")
        groups += [axes] if axes else []
    fields = [axis.field for group in groups for axis in group]
    twice = [field for field in fields if fields.count(field) > 1]
    if twice:
        raise ConfigError(f"{path}: '{twice[0]}' is varied twice; name it once, in vary or in one group of zip")
    number = math.prod(len(group[0].values) for group in groups) + len(grid.include)
    if number > most_runs:
        raise ConfigError(f"{path}: {number:,} runs are more than {most_runs:,}; say --max-runs {number} if so meant")
    choices = itertools.product(*(_steps(group) for group in groups))
    crossed = [{field: value for step in choice for field, value in step.items()} for choice in choices]
    for number, given in enumerate(grid.exclude, start=1):
        where = f"{path}: exclude {number}"
        unknown = [field for field in given if field not in fields]
        if unknown:
            raise ConfigError(f"{where}: '{unknown[0]}' is not varied; {did_you_mean(unknown[0], fields)}")
        kept = [point for point in crossed if not all(_is_one_of(point[field], given[field]) for field in given)]
        if not given or len(kept) == len(crossed):
            raise ConfigError(f"{where}: no point is like this; check its values, or remove it")
        crossed = kept
    include = [{field: label_of(field, value) for field, value in given.items()} for given in grid.include]
    found = crossed if groups or not include else []
    for point in include:
        if point not in found:
            found.append(point)
    if not found:
        raise ConfigError(f"{path}: nothing is left to run; exclude less, or include something")
    return found


def _steps(group: list[GridAxis]) -> list[Point]:
    return [{axis.field: axis.values[at] for axis in group} for at in range(len(group[0].values))]


def _is_one_of(value: Value, given: Any) -> bool:
    """Does a point's value match one of an exclusion, which names it as the grid does, or as tables do?"""
    wanted = given if isinstance(given, list) else [given]
    name = value.content.get("name") if isinstance(value.content, dict) else None
    return any(one in (value.content, value.label) or (name is not None and one == name) for one in wanted)


# --- from points to tasks


class _Maker:
    """Makes the task of a point; scenario files and policies are looked at once."""

    def __init__(self, path: Path, grid: _Grid) -> None:
        self._path = path
        self._grid = grid
        self._bases: dict[str, tuple[dict[str, Any], Path]] = {}
        self._policies: dict[str, None] = {}

    def task(self, point: Point, fields: tuple[str, ...]) -> Task:
        """Raises ConfigError naming the point."""
        chosen = point["scenario"].content if "scenario" in point else self._grid.scenario
        base, base_path = self._base(chosen)
        data = deepcopy(base)
        told = ", ".join(f"{field}={value.label}" for field, value in point.items())
        where = f"{self._path}: point {told}" if told else str(self._path)
        settings = {**self._grid.set, **{field: value.content for field, value in point.items()}}
        refuse_code(base, str(base_path), settings)  # a grid may name files of code, a scenario may not
        # What holds another field comes before it: a policy before its parameters.
        for field in sorted(settings, key=lambda field: field.count(".")):
            self._set(data, field, settings[field], where)
        scenario = parse_scenario(data, where)
        self._check_policy(scenario.policy, where)
        moved = any(field in ("trace", "workload", "workload.file") for field in settings)
        scenario = _at_home(scenario, self._path if moved else base_path)
        labels = {field: point[field].label if field in point else _plain(base, field) for field in fields}
        return Task(scenario, labels)

    def _base(self, chosen: Any) -> tuple[dict[str, Any], Path]:
        """A scenario's data, and the file from whose folder its own files are meant."""
        if isinstance(chosen, dict):
            return _with_policy(chosen), self._path
        if chosen is not None and not isinstance(chosen, str):
            raise ConfigError(f"{self._path}: field 'scenario': give a file or a mapping, not {chosen!r}")
        name = chosen or ""
        if name not in self._bases:
            default = data_folder("traces") / "scenarios" / "default.yaml"
            path = self._path.parent / chosen if chosen else default
            data = read_yaml(path)
            if not isinstance(data, dict):
                raise ConfigError(f"{path}: a scenario is a mapping with name, cluster, models and workload")
            self._bases[name] = (_with_policy(data), path)
        return self._bases[name]

    def _set(self, data: dict[str, Any], field: str, content: Any, where: str) -> None:
        content = deepcopy(content)
        if field == "scenario":
            return
        if field == "trace":
            field, content = "workload", self._trace(content, where)
        elif field == "policy":
            content = {"name": content} if not isinstance(content, dict) else content
            if not isinstance(content.get("name"), str):
                raise ConfigError(
                    f"{where}: field 'policy': give a name, a file, or a mapping with name and parameters"
                )
            own = data.get("policy", {})
            content = {**own, **content} if own.get("name") == content.get("name") else content
        assign(data, field, content, where)
        if field in ("policy", "policy.name"):
            name = data["policy"].get("name")
            if isinstance(name, str) and is_code(name):
                data["policy"]["name"] = str((self._path.parent / name).resolve())
        elif field == "profiles" and isinstance(content, str):
            data["profiles"] = str((self._path.parent / content).resolve())

    def _trace(self, content: Any, where: str) -> dict[str, Any]:
        given = {"file": content} if isinstance(content, str) else content
        if not isinstance(given, dict) or not isinstance(given.get("file"), str):
            raise ConfigError(f"{where}: field 'trace': give a file, or a mapping with file, format, assign, ...")
        told = told_format(self._path.parent / given["file"]) if "format" not in given else None
        return {"kind": "trace", **given, **({"format": told} if told is not None else {})}

    def _check_policy(self, policy: PolicySpec, where: str) -> None:
        """Refuse a name or a parameter that no policy has. A file that is there but fails is its runs' own error."""
        key = repr((policy.name, sorted(policy.parameters.items())))
        if key in self._policies:
            return
        if is_code(policy.name):
            if not Path(policy.name).is_file():
                raise ConfigError(f"{where}: field 'policy': {policy.name}: no such file; check the path")
        elif policy.name not in policy_names():
            hint = did_you_mean(policy.name, policy_names())
            raise ConfigError(f"{where}: field 'policy': unknown policy '{policy.name}'; {hint}")
        try:
            asked_policy(policy.name, policy.parameters)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None
        except PolicyError:
            pass  # its runs say so
        self._policies[key] = None


def _with_policy(data: dict[str, Any]) -> dict[str, Any]:
    """A scenario's data with its policy as a mapping, so that a parameter can be set in it."""
    given = data.get("policy", PolicySpec().name)
    return {**data, "policy": given if isinstance(given, dict) else {"name": given}}


def _at_home(scenario: Scenario, file: Path) -> Scenario:
    """The scenario with its trace file taken from the folder of the file that names it."""
    workload = scenario.workload
    if not isinstance(workload, TraceWorkload):
        return scenario
    found = str((file.parent / workload.file).resolve())
    return scenario.model_copy(update={"workload": workload.model_copy(update={"file": found})})


def _plain(base: dict[str, Any], field: str) -> Label:
    """What the base scenario has in a field that a point leaves alone; None where that is no plain value."""
    here: Any = base
    for step in field.split("."):
        if isinstance(here, dict):
            here = here.get(step)
        elif isinstance(here, list) and step.isdigit() and int(step) < len(here):
            here = here[int(step)]
        else:
            return None
    if field == "policy" and isinstance(here, dict):
        return label_of(field, here).label
    return here if isinstance(here, str | int | float | bool) else None
