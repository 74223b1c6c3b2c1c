"""The verbs of `python -m sim trace`: parse, call one function of `traces.jobs`, print.

Results go to stdout; notices, progress and errors go to stderr. Heavy imports wait inside the verbs. `cli` adds it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.options import AsJson, Strict, TraceFormat
from sim.cli.terminal import console, mistakes_in_one_line
from sim.common.errors import ConfigError
from sim.common.text import counted
from sim.runs.progress import counting, say

if TYPE_CHECKING:
    from sim.workload.trace_jobs import Reading, Written

trace_app = typer.Typer(help="Make, look at, convert and compose request traces.", no_args_is_help=True)

TraceFile = Annotated[Path, typer.Argument(metavar="FILE", help="A trace: .csv, .jsonl (also .gz) or .parquet.")]
FormatOption = Annotated[
    list[str] | None,
    typer.Option(
        "--option", metavar="NAME=VALUE", help="An option of the format (see trace formats); may be repeated."
    ),
]
Out = Annotated[Path, typer.Option(metavar="FILE", help="The new file; its ending says how it is written.")]


def _pairs(options: list[str] | None) -> dict[str, str]:
    pairs = {}
    for option in options or ():
        name, sign, value = option.partition("=")
        if not sign or not name:
            raise ConfigError(f"--option {option}: write NAME=VALUE")
        if name in pairs:
            raise ConfigError(f"--option {option}: '{name}' is given twice; drop one")
        pairs[name] = value
    return pairs


def _reading(trace_format: str | None, options: list[str] | None, strict: bool) -> Reading:
    from sim.workload.trace_jobs import Reading  # noqa: PLC0415

    return Reading(trace_format, _pairs(options), strict)


def _tell(notices: list[str] | tuple[str, ...]) -> None:
    for notice in notices:
        say(f"notice: {notice}")


@trace_app.command("check")
def check(
    file: TraceFile, trace_format: TraceFormat = None, option: FormatOption = None, strict: Strict = False
) -> None:
    """Read a trace and say what is wrong or odd about it."""
    with mistakes_in_one_line():
        from sim.workload.trace_jobs import check_file  # noqa: PLC0415

        rows, notices = check_file(file, _reading(trace_format, option, strict), counting)
        for notice in notices:
            print(f"notice: {notice}")
        print(f"{file}: {counted(rows, 'request')} can be played")


@trace_app.command("describe")
def describe(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Traces, each on its own.")],
    trace_format: TraceFormat = None,
    option: FormatOption = None,
    scenario: Annotated[
        Path | None, typer.Option(metavar="SCENARIO.yaml", help="Say what the trace asks of this scenario's cluster.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B.0.C=VALUE", help="Change a field of the scenario.")
    ] = None,
    service: Annotated[
        str, typer.Option(metavar="PROMPT:OUTPUT", help="Tokens/s of one request, assumed for concurrency.")
    ] = "5000:50",
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it: .png, .svg or .pdf.")] = None,
    as_json: AsJson = False,
    strict: Strict = False,
) -> None:
    """Show the rate, burstiness, lengths, models and sessions of traces, side by side when there are several."""
    with mistakes_in_one_line():
        from sim.bounds.offered_load import load_on  # noqa: PLC0415
        from sim.results.run_folder import summary_text  # noqa: PLC0415
        from sim.workload import trace_jobs  # noqa: PLC0415

        if settings and scenario is None:
            raise ConfigError(f"--set {settings[0]}: changes a scenario; give --scenario FILE with it")
        if len({str(file) for file in files}) < len(files):
            raise ConfigError("a file is given twice; name each once")
        if plot is not None:
            from sim.plots.trace_figures import check_plot  # noqa: PLC0415

            check_plot(plot)
        reading, assumed = _reading(trace_format, option, strict), trace_jobs.parse_service(service)
        descriptions, facts = {}, {}
        for file, name in zip(files, trace_jobs.short_names(files), strict=True):
            load = None if scenario is None else load_on(scenario, settings or (), str(file))
            descriptions[name], facts[name], noticed = trace_jobs.describe_file(file, reading, assumed, load, counting)
            _tell([f"{name}: {notice}" if len(files) > 1 else notice for notice in noticed])
        if plot is not None:
            from sim.plots.trace_figures import plot_traces  # noqa: PLC0415

            plot_traces(descriptions, plot)
        first = next(iter(facts.values()))
        if as_json:
            sys.stdout.write(summary_text(first if len(facts) == 1 else facts))
            return
        from sim.cli.tables.trace_tables import print_trace, print_traces  # noqa: PLC0415

        if len(facts) == 1:
            print_trace(first, console())
        else:
            print_traces(facts, console())
        if plot is not None:
            print(f"drawn in {plot}")


@trace_app.command("import")
def import_(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="The files of one trace.")],
    out: Out,
    trace_format: TraceFormat = None,
    option: FormatOption = None,
    strict: Strict = False,
) -> None:
    """Convert a trace to the native format."""
    with mistakes_in_one_line():
        from sim.workload.trace_jobs import convert_trace  # noqa: PLC0415

        rows, notices = convert_trace(files, out, _reading(trace_format, option, strict), counting)
        _tell(notices)
        print(f"{out}: wrote {counted(rows, 'request')}")


_Files = Annotated[list[Path], typer.Argument(metavar="RECIPE.yaml | FILE...", help="A recipe, or traces to overlay.")]
_Window = Annotated[str | None, typer.Option(metavar="START:END", help="Keep only these seconds; START becomes 0.")]
_Shift = Annotated[str | None, typer.Option(metavar="S", help="Move by S seconds; start: first request at 0.")]
_TimeScale = Annotated[float | None, typer.Option(metavar="X", help="Run X times as fast; all requests stay.")]
_WholeSessions = Annotated[bool, typer.Option("--whole-sessions", help="Thin, split and mix sessions, not requests.")]
_SplitModels = Annotated[str | None, typer.Option(metavar="A,B:C", help="Parts by model; each: one for every model.")]
_Assign = Annotated[
    str | None,
    typer.Option(metavar="LAW", help="Deal models: zipf:S, uniform, shares, round-robin, stripes[:W], rank or table."),
]


@trace_app.command("compose")
def compose(
    files: _Files,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The new trace; .parquet keeps its recipe.")] = None,
    show: Annotated[bool, typer.Option("--show", help="Only print the recipe that these options make.")] = False,
    trace_format: TraceFormat = None,
    option: FormatOption = None,
    mix: Annotated[str | None, typer.Option(metavar="0.7,0.3", help="Thin the traces to these shares.")] = None,
    assign: _Assign = None,
    models: Annotated[str | None, typer.Option(metavar="M1,M2,...", help="The models to deal.")] = None,
    scenario: Annotated[Path | None, typer.Option(metavar="FILE", help="Deal the models of this scenario.")] = None,
    shares: Annotated[str | None, typer.Option(metavar="M1=0.7,...", help="Models with their popularity.")] = None,
    like: Annotated[Path | None, typer.Option(metavar="FILE", help="Models as popular as in this trace.")] = None,
    table: Annotated[str | None, typer.Option(metavar="OLD=NEW,...", help="Rename models (or clients, --by).")] = None,
    by: Annotated[
        str | None, typer.Option(metavar="WHAT", help="One model per request, session, model, or column, e.g. client.")
    ] = None,
    alternate: Annotated[
        bool, typer.Option("--alternate", help="With --by: each next request of a session gets the next model.")
    ] = False,
    window: _Window = None,
    shift: _Shift = None,
    time_scale: _TimeScale = None,
    thin: Annotated[float | None, typer.Option(metavar="P", help="Keep this share, drawn; times stay.")] = None,
    whole_sessions: _WholeSessions = False,
    shared_sessions: Annotated[
        bool, typer.Option("--shared-sessions", help="Equal names in two files are the same session.")
    ] = False,
    repeat: Annotated[int | None, typer.Option(metavar="N", help="Play it N times.")] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", help="The first N requests.")] = None,
    split: Annotated[str | None, typer.Option(metavar="0.8,0.2", help="Random parts, a file each.")] = None,
    split_at: Annotated[str | None, typer.Option(metavar="S1,S2", help="Parts between these seconds.")] = None,
    split_models: _SplitModels = None,
    seed: Annotated[int | None, typer.Option(help="The seed of everything that is drawn; default 1.")] = None,
    strict: Strict = False,
) -> None:
    """Make a trace of others: overlay, deal models, scale the rate, cut, split. The recipe is kept in the file.

    The steps follow in this order: assign, window, shift, time-scale, thin, repeat, limit, split.
    """
    given = dict(locals())  # all options by name: those of a Shorthand, and a few more
    with mistakes_in_one_line():
        import yaml  # noqa: PLC0415

        from sim.traces.compose import shorthand  # noqa: PLC0415
        from sim.traces.compose.recipe import as_data  # noqa: PLC0415
        from sim.workload import trace_jobs  # noqa: PLC0415

        if not show and out is None:
            raise ConfigError("--out is missing: where should the trace go? (--show only prints the recipe)")
        recipe_file = next((file for file in files if trace_jobs.is_recipe(file)), None)
        if recipe_file is not None:
            _alone(recipe_file, given)
        for name in ("out", "show", "trace_format", "option"):
            del given[name]
        asked = None
        if recipe_file is None:
            given["seed"] = 1 if seed is None else seed
            asked = shorthand.recipe_from(shorthand.Shorthand(format=trace_format, options=_pairs(option), **given))
        if out is None:
            data = trace_jobs.read_recipe_of(files[0]) if asked is None else as_data(asked)
            sys.stdout.write(yaml.safe_dump(data, sort_keys=False, allow_unicode=True))
        elif asked is None:
            _told(trace_jobs.follow_file(files[0], out, seed, counting))
        else:
            _told(trace_jobs.compose_files(asked, [Path()], out, counting))


def _alone(recipe_file: Path, given: Mapping[str, Any]) -> None:
    if len(given["files"]) > 1:
        raise ConfigError(f"{recipe_file}: is a recipe and names its own files; give it alone")
    for name, value in given.items():
        if value and name not in ("files", "seed", "out", "show"):
            option = {"trace_format": "format"}.get(name, name).replace("_", "-")
            raise ConfigError(f"--{option}: {recipe_file} is a recipe and says it all; write that into it")


def _told(written: Sequence[Written]) -> None:
    for each in written:
        _tell(each.notices)
        print(f"{each.path}: wrote {counted(each.rows, 'request')}")


@trace_app.command("generate")
def generate(
    what: Annotated[
        str | None,
        typer.Argument(metavar="PRESET | FILE.yaml", help="What to draw; without it, the presets are listed."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The new trace; .parquet keeps its recipe.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B.0.C=VALUE", help="Change a field of the workload.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The seed of everything that is drawn; default: the file's, or 1.")
    ] = None,
    rows: Annotated[int | None, typer.Option(metavar="N", help="At most so many requests.")] = None,
) -> None:
    """Draw a trace from a preset, or from a file with a workload or a scenario."""
    with mistakes_in_one_line():
        if what is None:
            from sim.cli.tables.trace_tables import print_presets  # noqa: PLC0415
            from sim.scenario.presets import preset_names, read_preset  # noqa: PLC0415

            print_presets({name: str(read_preset(name).get("description", "")) for name in preset_names()}, console())
            return
        from sim.workload.trace_jobs import generate_file  # noqa: PLC0415

        if out is None:
            raise ConfigError("--out is missing: where should the trace go?")
        _told([generate_file(what, settings or (), out, seed, rows, counting)])


@trace_app.command("recipe")
def recipe(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A Parquet trace that was composed or generated.")],
    as_json: AsJson = False,
) -> None:
    """Print how a trace was made; `trace compose` makes it again from that."""
    with mistakes_in_one_line():
        import json  # noqa: PLC0415

        import yaml  # noqa: PLC0415

        from sim.workload.trace_jobs import read_recipe_of  # noqa: PLC0415

        data = read_recipe_of(file)
        text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
        sys.stdout.write(text if as_json else yaml.safe_dump(data, sort_keys=False, allow_unicode=True))


@trace_app.command("formats")
def formats(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Show this format and its options.")] = None,
) -> None:
    """List the formats that can be read, or show one and its options."""
    with mistakes_in_one_line():
        from sim.cli.tables.trace_tables import print_format, print_formats  # noqa: PLC0415
        from sim.traces.formats import FORMATS, format_named  # noqa: PLC0415

        if name is None:
            print_formats(FORMATS.values(), console())
        else:
            print_format(format_named(name), console())
