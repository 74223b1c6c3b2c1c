"""The verbs of the command line: parse, call one library function, print.

`run` plays a scenario, `policies`, `profile` and `trace` show what there is. Results go to stdout; progress and errors
go to stderr: a user's mistake is one line and exit status 2. Heavy imports wait inside the verbs, for a quick --help.
"""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from sim.terminal import RunProgress, console, mistakes_in_one_line, say
from sim.trace_cli import Strict, TraceFormat, trace_app

app = typer.Typer(
    help="Simulate many language models sharing few GPUs: partial residency, preemption, real costs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
profile_app = typer.Typer(help="Show the profile tables: what is known of hardware.", no_args_is_help=True)
app.add_typer(trace_app, name="trace")
app.add_typer(profile_app, name="profile")


@app.callback(invoke_without_command=True)
def _program(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        import sim  # noqa: PLC0415

        print(f"residency-sim {sim.__version__} (engine {'compiled' if sim.COMPILED else 'interpreted'})")
        raise typer.Exit


@app.command()
def run(
    scenario: Annotated[
        Path | None, typer.Argument(metavar="SCENARIO.yaml", help="The experiment; default: the one that is shipped.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(metavar="NAME", help="A policy's name, or the path of its file.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Play this trace in place of the scenario's workload.")
    ] = None,
    trace_format: TraceFormat = None,
    assign: Annotated[
        str | None,
        typer.Option(metavar="LAW", help="Give the trace's requests the scenario's models: zipf:1.0, uniform, ..."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B.0.C=VALUE", help="Change a field of the scenario; may be repeated."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The seed of everything that is drawn.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep the results in this new folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Assert the laws of the model at every instant (slow).")
    ] = False,
    strict: Strict = False,
) -> None:
    """Run a scenario under a policy and print what came of it."""
    with mistakes_in_one_line():
        from sim import runner  # noqa: PLC0415
        from sim.results import summary_text, what_is_kept  # noqa: PLC0415

        options = runner.RunOptions(
            scenario, policy, trace, trace_format, assign, tuple(settings or ()), seed, out, check, strict
        )
        progress = RunProgress()
        try:
            with redirect_stdout(sys.stderr):  # a policy may print; stdout is for the result
                summary = runner.run(options, progress)
        except KeyboardInterrupt:
            progress.close()
            say(f"{progress}; {what_is_kept(out)}")
            raise typer.Exit(130) from None
        finally:
            progress.close()
        if as_json:
            sys.stdout.write(summary_text(summary))
            return
        from sim.tables import print_run  # noqa: PLC0415

        print_run(summary, console())
        if out is not None:
            print(f"\nkept in {out}")


@app.command()
def policies(name: Annotated[str | None, typer.Argument(help="Show this policy and its parameters.")] = None) -> None:
    """List the policies, or show one and its parameters."""
    with mistakes_in_one_line():
        from sim import catalogue, catalogue_tables  # noqa: PLC0415

        if name is None:
            catalogue_tables.print_policies(catalogue.policy_catalogue(), console())
        else:
            catalogue_tables.print_policy(catalogue.policy_facts(name), console())


@profile_app.command("list")
def profile_list() -> None:
    """List the GPU, host and engine of every table, and its models."""
    with mistakes_in_one_line():
        from sim import catalogue, catalogue_tables  # noqa: PLC0415

        catalogue_tables.print_tables(catalogue.table_catalogue(), console())


@profile_app.command("show")
def profile_show(
    model: Annotated[str, typer.Argument(help="A model of profiles/models.csv, for example Llama-3-8B.")],
    gpu: Annotated[str | None, typer.Option(metavar="G", help="Only this GPU.")] = None,
    quantization: Annotated[str | None, typer.Option(metavar="Q", help="Only this quantization.")] = None,
) -> None:
    """Show a model's throughput against residency, what preempting it costs, and how that is known."""
    with mistakes_in_one_line():
        from sim import catalogue, catalogue_tables  # noqa: PLC0415

        catalogue_tables.print_profiles(catalogue.profile_catalogue(model, gpu, quantization), console())


def main(arguments: list[str] | None = None) -> None:
    """The program `residency-sim` and `python -m sim`. Raises SystemExit."""
    name = "residency-sim" if sys.argv[0].endswith("residency-sim") else "python -m sim"
    given = sys.argv[1:] if arguments is None else arguments
    try:
        status = app(given, prog_name=name, standalone_mode=False)
    except typer.TyperException as error:
        # A wrong option is a user's mistake like any other: one line. A bare group shows its help instead.
        if type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.format_message())
        else:
            say(f"error: {error.format_message().rstrip('.')}; see {name} --help")
        raise SystemExit(error.exit_code) from None
    except (KeyboardInterrupt, typer.Abort):  # outside a run
        say("interrupted")
        raise SystemExit(130) from None
    raise SystemExit(status)
