"""The verb `report`: parse, call sim.report, print where the report lies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sim.cli.terminal import mistakes_in_one_line


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that run, compare, sweep or capacity made with --out.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write; default: report.html (or .md, ...) in DIR.")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", metavar="html|md|pdf|png", help="Default: as FILE ends, else html.")
    ] = None,
) -> None:
    """Write what a folder of results says: one page that needs no network, a text, a document or a picture."""
    with mistakes_in_one_line():
        from sim.report.write import report as write  # noqa: PLC0415

        print(write(folder, out, form))
