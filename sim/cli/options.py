"""Options that several verbs of the command line have: each is declared once, and means the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sim.runs.task import Machines

ScenarioFile = Annotated[
    Path | None, typer.Argument(metavar="SCENARIO.yaml", help="The experiment; default: the one that is shipped.")
]
TraceToPlay = Annotated[
    Path | None, typer.Option("--trace", metavar="FILE", help="Play this trace in place of the scenario's workload.")
]
TraceFormat = Annotated[
    str | None,
    typer.Option("--format", metavar="FORMAT", help="Its format (see trace formats); default: told by looking."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse traces that are out of order or have unknown columns.")]
Assign = Annotated[
    str | None,
    typer.Option(metavar="LAW", help="Give the trace's requests the scenario's models: zipf:1.0, uniform, ..."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B.0.C=VALUE", help="Change a field of the scenario; may be repeated."),
]
Seed = Annotated[int | None, typer.Option(help="The seed of everything that is drawn.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

# --- many runs

Jobs = Annotated[
    int | None, typer.Option(metavar="N", min=0, help="Processes (local) or runs at once; 0: all in this process.")
]
EngineOf = Annotated[str, typer.Option("--engine", metavar="local|dask|ray", help="Who plays the runs.")]
Address = Annotated[str | None, typer.Option("--address", "--scheduler", metavar="URL", help="Of the cluster.")]


def one_of(flag: str, value: str, known: tuple[str, ...]) -> None:
    """Raises ConfigError: a value that the option does not have."""
    from sim.common.errors import ConfigError, did_you_mean  # noqa: PLC0415

    if value not in known:
        raise ConfigError(f"{flag} {value}: {did_you_mean(value, known)}")


def machines_of(jobs: int | None, engine: str, address: str | None) -> Machines:
    """Who plays the runs. Raises ConfigError: no such engine."""
    from sim.runs.task import Machines  # noqa: PLC0415

    one_of("--engine", engine, ("local", "dask", "ray"))
    return Machines(jobs, engine, address)  # type: ignore[arg-type]


# --- profiles

Gpu = Annotated[str | None, typer.Option(metavar="G", help="Only this GPU.")]
Quantization = Annotated[str | None, typer.Option(metavar="Q", help="Only this quantization.")]
