"""The verbs of the command line: parse, call one library function, print.

`run` plays a scenario; the other verbs have files of their own. Results go to stdout; progress and errors
go to stderr: a user's mistake is one line and exit status 2. Heavy imports wait inside the verbs, for a quick --help.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.bounds import bounds
from sim.cli.hardware import validate_app
from sim.cli.options import AsJson, Assign, ScenarioFile, Seed, Settings, Strict, TraceFormat, TraceToPlay
from sim.cli.policies import policy_app
from sim.cli.profile import profile_app
from sim.cli.report import report
from sim.cli.study import study_app
from sim.cli.sweep import sweep_app
from sim.cli.terminal import console, mistakes_in_one_line
from sim.cli.trace import trace_app
from sim.common.time_limit import end_process, set_limit
from sim.runs.progress import RunProgress, say

if TYPE_CHECKING:
    from sim.runs.run_one import RunOptions

app = typer.Typer(
    help="Simulate many language models sharing few GPUs: partial residency, preemption, real costs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(trace_app, name="trace")
app.add_typer(policy_app, name="policies")
app.add_typer(profile_app, name="profile")
app.command("bounds")(bounds)
app.command("report")(report)
app.add_typer(study_app)
app.add_typer(sweep_app)
app.add_typer(validate_app)


TimelineFrom = Annotated[float | None, typer.Option(metavar="S", help="Leave out of the timeline what was before.")]


@app.callback(invoke_without_command=True)
def _program(version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if version:
        import sim  # noqa: PLC0415

        print(f"residency-sim {sim.__version__} (engine {'compiled' if sim.COMPILED else 'interpreted'})")
        raise typer.Exit


@app.command()
def run(
    scenario: ScenarioFile = None,
    policy: Annotated[
        str | None, typer.Option(metavar="NAME", help="A policy's name, or the path of its file.")
    ] = None,
    trace: TraceToPlay = None,
    trace_format: TraceFormat = None,
    assign: Assign = None,
    settings: Settings = None,
    seed: Seed = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the results in this new folder.")] = None,
    as_json: AsJson = False,
    check: Annotated[
        bool, typer.Option("--check", help="Assert the laws of the model at every instant (slow).")
    ] = False,
    strict: Strict = False,
    decision_limit: Annotated[
        float | None,
        typer.Option(metavar="S", help="Break off a policy that computes for longer over one decision; default: 120."),
    ] = None,
    timeline: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a trace for ui.perfetto.dev: .json or .json.gz.")
    ] = None,
    timeline_max_mb: Annotated[
        float | None, typer.Option(metavar="MB", help="Keep the timeline's JSON below this by merging; default: 64.")
    ] = None,
    timeline_from: TimelineFrom = None,
    timeline_until: Annotated[float | None, typer.Option(metavar="S", help="Leave out of it what was after.")] = None,
) -> None:
    """Run a scenario under a policy and print what came of it."""
    with mistakes_in_one_line(lambda: _kept(out), "play fewer requests at once"):
        set_limit(decision_limit)
        from sim.results.run_folder import summary_text  # noqa: PLC0415
        from sim.results.timeline_file import timeline_options  # noqa: PLC0415
        from sim.runs.run_one import RunOptions  # noqa: PLC0415

        shown = timeline_options(timeline, timeline_max_mb, timeline_from, timeline_until)
        options = RunOptions(
            scenario, policy, trace, trace_format, assign, tuple(settings or ()), seed, out, check, strict, shown
        )
        summary = _played(options)
        if as_json:
            sys.stdout.write(summary_text(summary))
            return
        from sim.cli.tables.run_tables import print_run  # noqa: PLC0415

        print_run(summary, console())
        if out is not None:
            print(f"\nkept in {out}")


def _played(options: RunOptions) -> dict[str, Any]:
    """The summary of a run that is followed on stderr."""
    from sim.runs import run_one  # noqa: PLC0415

    progress, notices = RunProgress(), list[str]()
    try:
        with redirect_stdout(sys.stderr):  # a policy may print; stdout is for the result
            summary = run_one.run(options, progress, notices.append)
    except KeyboardInterrupt as error:
        progress.close()
        say("; ".join([str(progress), *getattr(error, "__notes__", ()), _kept(options.out)]))
        raise typer.Exit(130) from None
    finally:
        progress.close()
    for notice in notices:
        say(notice)
    return summary


def _kept(out: Path | None) -> str:
    from sim.results.run_folder import what_is_kept  # noqa: PLC0415

    return what_is_kept(out)


def main(arguments: list[str] | None = None) -> None:
    """The program `residency-sim` and `python -m sim`. Raises SystemExit."""
    name = "residency-sim" if sys.argv[0].endswith("residency-sim") else "python -m sim"
    given = sys.argv[1:] if arguments is None else arguments
    if arguments is None:
        end_process()
    try:
        status = app(given, prog_name=name, standalone_mode=False)
        _flush(bool(status))
    except typer.TyperException as error:
        # A wrong option is a user's mistake like any other: one line. A bare group shows its help instead.
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message())
        else:
            say(f"error: {error.format_message().rstrip('.')}; see {name} --help")
        raise SystemExit(error.exit_code) from None
    except (KeyboardInterrupt, typer.Abort) as error:  # outside a run
        say("; ".join(["interrupted", *getattr(error, "__notes__", ()), "what was not finished is not kept"]))
        raise SystemExit(130) from None
    raise SystemExit(status)


def _flush(failed: bool) -> None:
    """What has been printed must be out: at its end Python would only complain. Whoever `failed` has said why, perhaps
    this, and what is left of the output is dropped. Raises SystemExit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if failed:
            return
        say(f"error: standard output: {error.strerror or error}; the result was not shown, or only a part")
        raise SystemExit(2) from None
