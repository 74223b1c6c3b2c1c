"""The verb `sweep` as a function: read the grid, bring in other folders' runs, play what is missing, give back all.

Called by sweep_cli.py. The work is done by grid, merge and execute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sim.common.errors import ConfigError
from sim.runs.execute import identified, play
from sim.runs.merge import check_source, known_points, merge
from sim.runs.store import Keep, Store
from sim.runs.task import Label, Machines, Progress, Result
from sim.studies.grid import MOST_RUNS, read_grid

State = Literal["done", "failed", "to do"]


@dataclass(frozen=True)
class SweepOptions:
    """What `sweep` was asked. grid None: only bring runs together. every: give back earlier grids' runs as well."""

    out: Path
    grid: Path | None = None
    machines: Machines = field(default_factory=Machines)
    keep: Keep = "all"
    merge: tuple[Path, ...] = ()
    retry_errors: bool = False
    every: bool = False
    max_runs: int = MOST_RUNS


@dataclass(frozen=True)
class Planned:
    """A point of a grid before it is played. error: why its run failed, or why it cannot even be named."""

    labels: dict[str, Label]
    run_id: str
    state: State
    error: str | None


@dataclass(frozen=True)
class Sweep:
    """A finished sweep. fields: what is varied, the columns of tables. merged: runs that came from other folders."""

    results: list[Result]
    fields: tuple[str, ...]
    merged: int


def plan(options: SweepOptions) -> list[Planned]:
    """What `sweep` would do, without doing it. Raises ConfigError as `sweep` does."""
    if options.grid is None:
        raise ConfigError("--dry-run: name a grid, GRID.yaml")
    grid, store = read_grid(options.grid, options.max_runs), Store(options.out, options.keep)
    found = []
    for one in identified(grid.tasks):
        failed = store.error(one.run_id)
        error = one.error or (failed["error"] if failed is not None else None)
        state: State = "done" if store.has(one.run_id) else "to do"
        if error is not None and state == "to do" and not (options.retry_errors and one.error is None):
            state = "failed"
        found.append(Planned(one.task.labels, one.run_id, state, error if state == "failed" else None))
    return found


def sweep(
    options: SweepOptions,
    on_begin: Callable[[int], None] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Sweep:
    """Play a grid and keep it in `options.out`; on_begin(points) is called once the grid has been read.

    Raises ConfigError: a bad grid, a folder that cannot be used, a cluster that is lost. What has ended is kept.
    """
    if options.grid is None and not options.merge:
        raise ConfigError("nothing to do: name a grid, GRID.yaml, or folders to bring together, --merge DIR")
    grid = None if options.grid is None else read_grid(options.grid, options.max_runs)
    store = Store(options.out, options.keep)
    for source in options.merge:
        check_source(source, store)
    with store.locked():
        merged = 0
        for source in options.merge:
            merged += merge(source, store)
            store.remember_earlier(known_points(source))
        if grid is None:
            store.remember(store.points(every=True))
        else:
            if on_begin is not None:
                on_begin(len(grid.tasks))
            store.write_text("grid.yaml", grid.text)
            results = play(grid.tasks, store, options.machines, on_progress, options.retry_errors)
        if grid is None or options.every:
            results = store.results(every=options.every)
            store.write_table(results)
    fields = tuple(dict.fromkeys(name for result in results for name in result.task.labels))
    return Sweep(results, fields, merged)
