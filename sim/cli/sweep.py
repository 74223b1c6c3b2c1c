"""The verb `sweep`: parse, call one function, print. `cli` adds it.

Results go to stdout, progress and errors to stderr. Exit status: 0 if all runs are there, 1 if some have failed, 2 for
a mistake in what was asked, 130 after Ctrl-C. Heavy imports wait inside the verb.
"""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.options import Address, AsJson, EngineOf, Jobs, machines_of, one_of
from sim.cli.terminal import following_runs, mistakes_in_one_line, wide_console
from sim.common.text import counted
from sim.runs.progress import RunsProgress, say

if TYPE_CHECKING:
    from sim.studies.sweep import SweepOptions

sweep_app = typer.Typer()
_MOST_ERRORS = 10  # lines


@sweep_app.command()
def sweep(
    grid: Annotated[
        Path | None, typer.Argument(metavar="GRID.yaml", help="Which scenarios, policies and seeds to play.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the runs here; what is there is not run again.")
    ] = None,
    jobs: Jobs = None,
    engine: EngineOf = "local",
    address: Address = None,
    keep: Annotated[
        str, typer.Option(metavar="all|summary", help="Keep of each run its tables too, or its summary alone.")
    ] = "all",
    merge: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="First take over the runs of this folder; repeatable.")
    ] = None,
    retry_errors: Annotated[bool, typer.Option("--retry-errors", help="Run again what has failed before.")] = False,
    every_run: Annotated[
        bool, typer.Option("--every-run", help="Show also what earlier grids and versions have left in DIR.")
    ] = False,
    max_runs: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Refuse a grid of more runs; default: 10,000.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and which are done; run nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Play a grid of scenarios, policies and seeds, on all processors or on a cluster; the same command resumes it."""
    progress = _Begun()
    with mistakes_in_one_line(lambda: progress.kept(out), "use fewer --jobs"):
        from sim.common.errors import ConfigError  # noqa: PLC0415
        from sim.studies.sweep import SweepOptions  # noqa: PLC0415

        machines = machines_of(jobs, engine, address)
        one_of("--keep", keep, ("all", "summary"))
        if out is None:
            raise ConfigError("--out is missing: name the folder of the sweep, --out DIR")
        options = SweepOptions(out, grid, machines, keep, tuple(merge or ()), retry_errors, every_run)  # type: ignore[arg-type]
        if max_runs is not None:
            options = replace(options, max_runs=max_runs)
        if dry_run:
            _show_plan(options, as_json)
        else:
            _sweep(options, as_json, progress)


def _sweep(options: SweepOptions, as_json: bool, progress: RunsProgress) -> None:
    from sim.cli.tables import sweep_tables  # noqa: PLC0415
    from sim.studies.sweep import sweep as play  # noqa: PLC0415

    with following_runs(progress, options.out):
        made = play(options, lambda points: say(f"{options.grid}: {counted(points, 'point')}"), progress)
    if as_json:
        print(json.dumps(sweep_tables.as_data(made, options.out), indent=2, allow_nan=False))
    else:
        sweep_tables.print_sweep(made, options.out, wide_console())
    failed = sweep_tables.failures(made)
    for line in failed[:_MOST_ERRORS]:
        say(f"error: {line}")
    if len(failed) > _MOST_ERRORS:
        say(f"error: and {len(failed) - _MOST_ERRORS:,} more; all are in {options.out / 'errors'}")
    if failed:
        raise typer.Exit(1)


class _Begun(RunsProgress):
    """Progress that says at its beginning how many runs there are to play."""

    def __init__(self) -> None:
        super().__init__()
        self._told = False

    def __call__(self, progress: Any) -> None:
        if not self._told:
            self._told = True
            left = progress.total - progress.before
            there = f", {progress.before:,} there already" if progress.before else ""
            failed = f" ({progress.failed:,} of them failed; --retry-errors runs them again)" if progress.failed else ""
            say(f"{counted(progress.total, 'different run')}{there}{failed}; {left:,} to play")
        super().__call__(progress)


def _show_plan(options: SweepOptions, as_json: bool) -> None:
    from sim.cli.tables import sweep_tables  # noqa: PLC0415
    from sim.studies.sweep import plan  # noqa: PLC0415

    with redirect_stdout(sys.stderr):
        found = plan(options)
    if as_json:
        print(json.dumps({"runs": [vars(one) for one in found]}, indent=2, allow_nan=False))
    else:
        sweep_tables.print_plan(found, wide_console())
