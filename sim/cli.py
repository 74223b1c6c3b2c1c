"""The verbs of the command line: parse, call one library function, print.

`run` plays a scenario, `policies`, `profile` and `trace` show what there is. Results go to stdout; progress and errors
go to stderr: a user's mistake is one line and exit status 2. Heavy imports wait inside the verbs, for a quick --help.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.errors import SimError

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    help="Simulate many language models sharing few GPUs: partial residency, preemption, real costs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
trace_app = typer.Typer(help="Check, describe and convert request traces.", no_args_is_help=True)
profile_app = typer.Typer(help="Show the profile tables: what is known of hardware.", no_args_is_help=True)
app.add_typer(trace_app, name="trace")
app.add_typer(profile_app, name="profile")

_LONG_RUN_S = 2.0  # from here on a progress bar is worth its lines

TraceFile = Annotated[Path, typer.Argument(metavar="FILE", help="A trace: .csv, .jsonl (also .gz) or .parquet.")]
TraceFormat = Annotated[str | None, typer.Option("--format", metavar="FORMAT", help="Its format; default: native.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse traces that are out of order or have unknown columns.")]


class Progress:
    """A bar on stderr for a long run at a terminal; otherwise it only remembers how far the run is."""

    def __init__(self) -> None:
        self.ended = self.arriving = 0
        self.now_s = 0.0
        self._begin_s = time.monotonic()
        self._bar: Any = None

    def __call__(self, ended: int, arriving: int, now_s: float) -> None:
        self.ended, self.arriving, self.now_s = ended, arriving, now_s
        if self._bar is None and sys.stderr.isatty() and time.monotonic() - self._begin_s > _LONG_RUN_S:
            from rich.console import Console  # noqa: PLC0415
            from rich.progress import Progress as Bar  # noqa: PLC0415

            self._bar = Bar(console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("requests", total=arriving)
            self._bar.start()
        if self._bar is not None:
            self._bar.update(self._task, completed=ended, description=f"t = {now_s:,.0f} s")

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()

    def __str__(self) -> str:
        if not self.arriving:
            return "interrupted"
        return f"interrupted at t = {self.now_s:,.0f} s after {self.ended:,} of {self.arriving:,} requests"


def _say(text: str) -> None:
    """One line on stderr, whatever the text holds."""
    line = re.sub(r"\s*[\r\n]+\s*", " ", text)
    print("".join(char if char.isprintable() else repr(char)[1:-1] for char in line), file=sys.stderr)


@contextmanager
def _mistakes_in_one_line() -> Iterator[None]:
    try:
        yield
    except SimError as error:
        _say(f"error: {error}")
        raise typer.Exit(2) from None
    except BrokenPipeError:  # the reader of stdout has seen enough
        raise
    except OSError as error:  # a path that the system cannot even look at, such as one too long
        _say(f"error: {error.filename or 'system'}: {error.strerror or error}; check the path")
        raise typer.Exit(2) from None


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415

    # Names come from users: nothing in them is markup.
    return Console(markup=False, emoji=False, highlight=False)


@app.callback(invoke_without_command=True)
def _program(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        import sim  # noqa: PLC0415

        print(f"residency-sim {sim.__version__}")
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
    with _mistakes_in_one_line():
        from sim import runner  # noqa: PLC0415
        from sim.results import summary_text, what_is_kept  # noqa: PLC0415

        options = runner.RunOptions(
            scenario, policy, trace, trace_format, assign, tuple(settings or ()), seed, out, check, strict
        )
        progress = Progress()
        try:
            with redirect_stdout(sys.stderr):  # a policy may print; stdout is for the result
                summary = runner.run(options, progress)
        except KeyboardInterrupt:
            progress.close()
            _say(f"{progress}; {what_is_kept(out)}")
            raise typer.Exit(130) from None
        finally:
            progress.close()
        if as_json:
            sys.stdout.write(summary_text(summary))
            return
        from sim.tables import print_run  # noqa: PLC0415

        print_run(summary, _console())
        if out is not None:
            print(f"\nkept in {out}")


@app.command()
def policies(name: Annotated[str | None, typer.Argument(help="Show this policy and its parameters.")] = None) -> None:
    """List the policies, or show one and its parameters."""
    with _mistakes_in_one_line():
        from sim import catalogue, catalogue_tables  # noqa: PLC0415

        if name is None:
            catalogue_tables.print_policies(catalogue.policy_catalogue(), _console())
        else:
            catalogue_tables.print_policy(catalogue.policy_facts(name), _console())


@trace_app.command("check")
def trace_check(file: TraceFile, trace_format: TraceFormat = None, strict: Strict = False) -> None:
    """Read a trace and say what is wrong or odd about it."""
    with _mistakes_in_one_line():
        from sim.importers import import_trace  # noqa: PLC0415
        from sim.trace import check_trace  # noqa: PLC0415

        trace = import_trace(file, trace_format, strict)
        for remark in check_trace(trace):
            print(f"notice: {remark}")
        print(f"{file}: {len(trace):,} requests can be played")


@trace_app.command("describe")
def trace_describe(
    file: TraceFile,
    trace_format: TraceFormat = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a trace's rate, burstiness, lengths and models."""
    with _mistakes_in_one_line():
        from sim.importers import import_trace  # noqa: PLC0415
        from sim.results import summary_text  # noqa: PLC0415
        from sim.trace import describe  # noqa: PLC0415

        facts = describe(import_trace(file, trace_format))
        if as_json:
            sys.stdout.write(summary_text(facts))
            return
        from sim.catalogue_tables import print_trace  # noqa: PLC0415

        print_trace(facts, _console())


@trace_app.command("import")
def trace_import(
    file: TraceFile,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The new file; its ending says how it is written.")],
    trace_format: TraceFormat = None,
    strict: Strict = False,
) -> None:
    """Convert a trace to the native format."""
    with _mistakes_in_one_line():
        from sim.runner import convert_trace  # noqa: PLC0415

        print(f"{out}: wrote {convert_trace(file, out, trace_format, strict):,} requests")


@profile_app.command("list")
def profile_list() -> None:
    """List the GPU, host and engine of every table, and its models."""
    with _mistakes_in_one_line():
        from sim import catalogue, catalogue_tables  # noqa: PLC0415

        catalogue_tables.print_tables(catalogue.table_catalogue(), _console())


@profile_app.command("show")
def profile_show(
    model: Annotated[str, typer.Argument(help="A model of profiles/models.csv, for example Llama-3-8B.")],
    gpu: Annotated[str | None, typer.Option(metavar="G", help="Only this GPU.")] = None,
    quantization: Annotated[str | None, typer.Option(metavar="Q", help="Only this quantization.")] = None,
) -> None:
    """Show a model's throughput against residency, what preempting it costs, and how that is known."""
    with _mistakes_in_one_line():
        from sim import catalogue, catalogue_tables  # noqa: PLC0415

        catalogue_tables.print_profiles(catalogue.profile_catalogue(model, gpu, quantization), _console())


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
            _say(f"error: {error.format_message().rstrip('.')}; see {name} --help")
        raise SystemExit(error.exit_code) from None
    except (KeyboardInterrupt, typer.Abort):  # outside a run
        _say("interrupted")
        raise SystemExit(130) from None
    raise SystemExit(status)
