"""The verbs `compare` and `capacity`: parse, call one function, print.

Results go to stdout, progress and errors to stderr. A policy that fails in some run is shown with its error, and the
exit status is then 1. Heavy imports wait inside the verbs. `cli` adds them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli import options
from sim.cli.terminal import following_runs, mistakes_in_one_line, wide_console
from sim.runs.progress import RunsProgress, say

if TYPE_CHECKING:
    from sim.studies.capacity_result import Capacity
    from sim.studies.comparison import Comparison
    from sim.studies.study import StudyOptions

study_app = typer.Typer()

Policies = Annotated[
    str,
    typer.Option(
        metavar="A,B,...",
        help="Names, files, tiers (naive, production, research, ours, oracle) or all (but oracles), in any mixture; "
        "with parameters as name:parameter=value or '{name: x, parameter: value}'.",
    ),
]
FirstSeed = Annotated[int, typer.Option(metavar="N", help="The first of the seeds, which follow each other.")]
Out = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Keep all runs and the result here; runs that are there are not played again."),
]


def _study(
    run: tuple[Path | None, Path | None, str | None, str | None, list[str] | None, bool],
    policies: str,
    seeds: int,
    first_seed: int,
    machines: tuple[int | None, str, str | None],
) -> StudyOptions:
    from sim.runs.run_one import RunOptions  # noqa: PLC0415
    from sim.studies.study import StudyOptions  # noqa: PLC0415

    scenario, trace, trace_format, assign, settings, strict = run
    asked = RunOptions(scenario, None, trace, trace_format, assign, tuple(settings or ()), strict=strict)
    return StudyOptions(asked, policies, seeds, first_seed, options.machines_of(*machines))


def _show(made: Comparison | Capacity, text: str | None, out: Path | None) -> None:
    """The text alone, if that was asked for; else tables."""
    from sim.cli.tables.capacity_tables import print_capacity  # noqa: PLC0415
    from sim.cli.tables.compare_tables import print_comparison  # noqa: PLC0415
    from sim.studies.capacity_result import Capacity  # noqa: PLC0415

    if text is not None:
        sys.stdout.write(text)
        return
    if isinstance(made, Capacity):
        print_capacity(made, wide_console())
    else:
        print_comparison(made, wide_console())
    if out is not None:
        print(f"kept in {out}: {made.kind}.json, {made.kind}.csv and every run")


def _tell_failures(errors: Iterable[str]) -> None:
    """Each on stderr, and exit status 1 if there is one."""
    lines = list(errors)
    for line in lines:
        say(f"error: {line}")
    if lines:
        raise typer.Exit(1)


@study_app.command()
def compare(
    scenario: options.ScenarioFile = None,
    policies: Policies = "all",
    seeds: Annotated[int, typer.Option(metavar="N", help="How many seeds; each is played by every policy.")] = 10,
    first_seed: FirstSeed = 1,
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whom all are compared with; default: the scenario's policy.")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="M,M,...", help="What to show first; the first decides: slo, e2e_all.p99, ttft.p99, ..."),
    ] = None,
    warm_up: Annotated[
        str | None,
        typer.Option(metavar="auto|SECONDS", help="Leave out requests that arrive before; auto: found by MSER-5."),
    ] = None,
    bounds: Annotated[bool, typer.Option("--bounds/--no-bounds", help="Also say how far all are from optimal.")] = True,
    trace: options.TraceToPlay = None,
    trace_format: options.TraceFormat = None,
    assign: options.Assign = None,
    settings: options.Settings = None,
    strict: options.Strict = False,
    jobs: options.Jobs = None,
    engine: options.EngineOf = "local",
    address: options.Address = None,
    out: Out = None,
    as_json: options.AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a CSV row for each policy and metric.")] = False,
) -> None:
    """Play several policies on the same requests, seed by seed, and say which is best, by how much, how sure."""
    with mistakes_in_one_line():
        from sim.studies.compare import CompareOptions  # noqa: PLC0415
        from sim.studies.compare import compare as compared  # noqa: PLC0415
        from sim.studies.comparison import comparison_csv  # noqa: PLC0415

        run = (scenario, trace, trace_format, assign, settings, strict)
        study = _study(run, policies, seeds, first_seed, (jobs, engine, address))
        names = tuple(filter(None, (name.strip() for name in (metrics or "").split(","))))
        progress = RunsProgress()
        with following_runs(progress, out):
            made = compared(CompareOptions(study, baseline, names, warm_up, bounds, out), progress)
        _show(made, made.as_json() if as_json else comparison_csv(made) if as_csv else None, out)
        count = len(made.seeds)
        _tell_failures(
            f"{policy.label} failed on {len(policy.errors)} of {count} seeds: {policy.errors[0].error}"
            for policy in made.policies
            if policy.errors
        )


@study_app.command()
def capacity(
    scenario: options.ScenarioFile = None,
    policies: Policies = "all",
    find: Annotated[
        str,
        typer.Option(metavar="rate|cluster|cost", help="The largest load, the fewest nodes, or $ per million tokens."),
    ] = "rate",
    attainment: Annotated[
        float, typer.Option(metavar="SHARE", help="The share of all requests that must be within their SLO.")
    ] = 0.9,
    metric: Annotated[str, typer.Option(metavar="M", help="The goal: slo, or e2e_all.p99, ... with --limit.")] = "slo",
    limit: Annotated[
        float | None, typer.Option(metavar="X", help="What the metric may be at most (or must be at least).")
    ] = None,
    load: Annotated[
        float, typer.Option(metavar="F", help="cluster, cost: at so many times the scenario's load.")
    ] = 1.0,
    grow: Annotated[
        str | None, typer.Option(metavar="NODE", help="cluster: the node group whose count changes.")
    ] = None,
    tolerance: Annotated[float, typer.Option(metavar="T", help="rate: how exactly; 0.05 is to 5 %.")] = 0.05,
    most: Annotated[
        float, typer.Option(metavar="N", help="The largest factor, or the most nodes, to be tried.")
    ] = 64.0,
    seeds: Annotated[int, typer.Option(metavar="N", help="How many seeds each load is played with.")] = 5,
    first_seed: FirstSeed = 1,
    trace: options.TraceToPlay = None,
    trace_format: options.TraceFormat = None,
    assign: options.Assign = None,
    settings: options.Settings = None,
    strict: options.Strict = False,
    jobs: options.Jobs = None,
    engine: options.EngineOf = "local",
    address: options.Address = None,
    out: Out = None,
    as_json: options.AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print a CSV row for each load that was played.")] = False,
) -> None:
    """Find how much load each policy carries within its SLOs, how few nodes it needs, or what its tokens cost."""
    with mistakes_in_one_line():
        from sim.studies.capacity import CapacityOptions, capacity_csv  # noqa: PLC0415
        from sim.studies.capacity import capacity as searched  # noqa: PLC0415

        options.one_of("--find", find, ("rate", "cluster", "cost"))
        run = (scenario, trace, trace_format, assign, settings, strict)
        study = _study(run, policies, seeds, first_seed, (jobs, engine, address))
        goal = (metric, attainment, limit)
        asked = CapacityOptions(study, find, *goal, load, grow, tolerance, most, out)  # type: ignore[arg-type]
        progress = RunsProgress()
        with following_runs(progress, out):
            made = searched(asked, progress)
        _show(made, made.as_json() if as_json else capacity_csv(made) if as_csv else None, out)
        _tell_failures(f"{policy.label} failed {policy.error}" for policy in made.policies if policy.error)
