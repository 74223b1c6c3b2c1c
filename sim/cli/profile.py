"""The verbs of `python -m sim profile`: parse, call one function of the library, print.

Results go to stdout; notices and errors go to stderr. Heavy imports wait inside the verbs. `cli` adds it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.options import Gpu, Quantization
from sim.cli.terminal import console, mistakes_in_one_line, wide_console
from sim.common.text import counted
from sim.runs.progress import say

if TYPE_CHECKING:
    from sim.profiling.measured import Measured

profile_app = typer.Typer(help="Show, import and complete what is known of hardware.", no_args_is_help=True)


@profile_app.command("list")
def profile_list() -> None:
    """List the GPU, host and engine of every table, and its models."""
    with mistakes_in_one_line():
        from sim.cli.tables import catalogue_tables  # noqa: PLC0415
        from sim.profiles import catalogue  # noqa: PLC0415

        catalogue_tables.print_tables(catalogue.table_catalogue(), console())


@profile_app.command("show")
def profile_show(
    model: Annotated[str, typer.Argument(help="A model of profiles/models.csv, for example Llama-3-8B.")],
    gpu: Gpu = None,
    quantization: Quantization = None,
) -> None:
    """Show a model's throughput against residency, what preempting it costs, and how that is known."""
    with mistakes_in_one_line():
        from sim.cli.tables import catalogue_tables  # noqa: PLC0415
        from sim.profiles import catalogue  # noqa: PLC0415

        catalogue_tables.print_profiles(catalogue.profile_catalogue(model, gpu, quantization), console())


@profile_app.command("break-even")
def profile_break_even(
    model: Annotated[str | None, typer.Argument(help="A model of profiles/models.csv; default: all.")] = None,
    gpu: Gpu = None,
    quantization: Quantization = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences that decode together.")] = 1,
    context: Annotated[int, typer.Option(min=0, help="Tokens of context of each.")] = 1000,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """Show n*: how many tokens pay for loading the rest of a partly resident model, per GPU and residency."""
    with mistakes_in_one_line():
        from sim.cli.tables import catalogue_tables  # noqa: PLC0415
        from sim.profiles import break_even  # noqa: PLC0415

        points = break_even.break_even(model, gpu, quantization, break_even.At(batch, context))
        if as_json:
            sys.stdout.write(break_even.as_json(points))
        else:
            catalogue_tables.print_break_even(points, console())


_Number = int | None
_Layers = Annotated[_Number, typer.Option(min=1, metavar="L", help="Its transformer layers, without the head.")]
_KvBytes = Annotated[_Number, typer.Option(min=1, metavar="N", help="KV bytes of one token in one layer, FP16.")]
_GpuLayers = Annotated[_Number, typer.Option(metavar="N", help="Layers on the GPU where records do not say; -1: all.")]
_Head = Annotated[
    str | None,
    typer.Option(metavar="WHEN", help="The output head goes to the GPU first (llama.cpp since December 2025) or last."),
]
_Any = Annotated[
    list[str] | None,
    typer.Option("--any", metavar="SETTING", help="Let records of a curve differ in this setting; may be repeated."),
]


@profile_app.command("import")
def profile_import(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Results of one tool; folders are searched.")],
    tool: Annotated[
        str | None,
        typer.Option("--format", metavar="TOOL", help="llama-bench, llama-batched-bench, ollama or vllm-bench."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="The new folder; default: measured/GPU--HOST--ENGINE.")
    ] = None,
    gpu: Annotated[str | None, typer.Option(metavar="G", help="The GPU's name in profiles.")] = None,
    host: Annotated[str | None, typer.Option(metavar="H", help="The host's name in profiles.")] = None,
    engine: Annotated[str | None, typer.Option(metavar="E", help="The engine; default: the tool's.")] = None,
    model: Annotated[str | None, typer.Option(metavar="NAME", help="The model of all records.")] = None,
    quantization: Annotated[str | None, typer.Option(metavar="Q", help="Its quantization: Q4_K_M, FP16, ...")] = None,
    layers: _Layers = None,
    layer_bytes: Annotated[_Number, typer.Option(min=1, metavar="N", help="Weight bytes of one layer.")] = None,
    head_bytes: Annotated[_Number, typer.Option(min=1, metavar="N", help="Weight bytes of the output head.")] = None,
    kv_bytes: _KvBytes = None,
    max_context: Annotated[_Number, typer.Option(min=1, metavar="N", help="Longest context, in tokens.")] = None,
    gpu_layers: _GpuLayers = None,
    head: _Head = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", metavar="FIELD=VALUE", help="Only records with this value; may be repeated."),
    ] = None,
    free: _Any = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out records that cannot be used, and say so.")
    ] = False,
    kind: Annotated[str, typer.Option(metavar="KIND", help="measured, or published by others.")] = "measured",
    source: Annotated[str | None, typer.Option(metavar="ID", help="Where the numbers are from, for every row.")] = None,
    profiles: Annotated[Path | None, typer.Option(metavar="DIR", help="Profiles whose names to use.")] = None,
) -> None:
    """Turn other tools' benchmark results into a folder of measurements, which `profile fill` completes."""
    with mistakes_in_one_line():
        from sim.profiling.importing import ImportOptions, import_files, write_parts  # noqa: PLC0415
        from sim.profiling.models import ModelFlags  # noqa: PLC0415

        about = ModelFlags(model, quantization, layers, layer_bytes, head_bytes, kv_bytes, max_context)
        options = ImportOptions(
            format=tool,
            gpu=gpu,
            host=host,
            engine=engine,
            model=about,
            gpu_layers=gpu_layers,
            head=head,
            where=tuple(where or ()),
            free=tuple(free or ()),
            skip_bad=skip_bad,
            kind=kind,
            source=source,
            profiles=profiles,
        )
        imported = import_files(files, options)
        folders = write_parts(imported.parts, out)
        for line in imported.skipped:
            say(f"left out: {line}")
        for notice in imported.notices:
            say(f"notice: {notice}")
        for folder, part in zip(folders, imported.parts, strict=True):
            print(f"{folder}: {part.name}: {_points(part)}")
        left_out = f"; {len(imported.skipped)} left out" if imported.skipped else ""
        print(f"read {counted(imported.records, 'record')}{left_out}")


def _points(part: Measured) -> str:
    names = ", ".join(dict.fromkeys(f"{row.model} {row.quantization}" for row in (*part.decode, *part.prefill)))
    return f"{len(part.decode)} decode and {len(part.prefill)} prefill points of {names}"


@profile_app.command("fill")
def profile_fill(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders of measurements.")],
    into: Annotated[
        Path | None, typer.Option(metavar="PROFILES", help="The profiles to add tables to; default: the project's.")
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(metavar="NAME:QUANT,...", help="Models to fill too, though they were not measured here."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite tables that exist.")] = False,
) -> None:
    """Complete tables from measured points by the physical model; each row says how it is known and how well."""
    with mistakes_in_one_line():
        from sim.cli.tables.check_tables import print_filled  # noqa: PLC0415
        from sim.profiling.fill import fill, parse_models  # noqa: PLC0415

        print_filled(fill(folders, into, parse_models(models), replace), console())


@profile_app.command("check")
def profile_check(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Folders of measurements, tables, or CSV files of published sweeps."),
    ],
    profiles: Annotated[Path | None, typer.Option(metavar="DIR", help="Profiles that describe the models.")] = None,
) -> None:
    """Report breaks, outliers, holes and how well points predict one another; exit status 1: something is wrong."""
    with mistakes_in_one_line():
        from sim.cli.tables.check_tables import print_report  # noqa: PLC0415
        from sim.profiles.library import Library  # noqa: PLC0415
        from sim.profiling.check import check, is_sound  # noqa: PLC0415

        library = Library(profiles)
        reports = [check(path, library) for path in paths]
        for report in reports:
            print_report(report, wide_console())
        if not is_sound(reports):
            raise typer.Exit(1)


@profile_app.command("plot")
def profile_plot(
    out: Annotated[Path, typer.Option(metavar="FILE", help="The new figure: .png, .svg or .pdf.")],
    folders: Annotated[
        list[Path] | None, typer.Argument(metavar="[FOLDER...]", help="Filled folders: draw their points and tables.")
    ] = None,
    gpu: Gpu = None,
    engine: Annotated[str | None, typer.Option(metavar="E", help="Only this engine's.")] = None,
    quantization: Quantization = None,
    profiles: Annotated[Path | None, typer.Option(metavar="DIR", help="The profiles; default: the project's.")] = None,
) -> None:
    """Draw throughput against residency, preemption by part, prefill and n* of up to three tables on one page."""
    with mistakes_in_one_line():
        from sim.plots.profile_figures import plot_profiles  # noqa: PLC0415
        from sim.profiling.figure_data import TableChoice, portraits  # noqa: PLC0415

        choice = TableChoice(tuple(folders or ()), gpu, engine, quantization, profiles)
        plot_profiles(portraits(choice), out)
        print(f"drawn in {out}")
