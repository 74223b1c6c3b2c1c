"""What a sweep, a comparison or a search for capacity wants run, and what came of it: plain frozen data.

A Task is a scenario and how to call it in tables; a Result is its summary or its error. Made by grid.py, compare.py and
capacity.py, taken by execute.play. Knows no folder and no process.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from sim.scenario.scenario import Scenario

Label = str | int | float | bool | None
EngineName = Literal["local", "dask", "ray"]


@dataclass(frozen=True)
class Task:
    """One simulation. `labels` are its columns in tables, such as {"policy": "lru-swap", "seed": 3}."""

    scenario: Scenario
    labels: dict[str, Label] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What came of a task: `summary` (of summary.summarize), or else `error`, one line.

    `run_id` names the run (engine.identify); of a task so wrong that it cannot be identified, its scenario alone.
    """

    task: Task
    run_id: str
    summary: dict[str, Any] | None
    error: str | None


@dataclass(frozen=True)
class Machines:
    """Who runs the simulations.

    engine `local`: `jobs` processes on this machine (None: one for each processor; 0: none, all within this process,
    for debugging). `dask`, `ray`: the cluster at `address`, with at most `jobs` runs at once (None: what it has room
    for).
    """

    jobs: int | None = None
    engine: EngineName = "local"
    address: str | None = None


@dataclass(frozen=True)
class Progress:
    """How far it is, in different runs: `total`, of which `before` were there already, `done` ended since; `failed`
    counts those of both that ended in an error."""

    total: int
    before: int
    done: int
    failed: int
