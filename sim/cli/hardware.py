"""The verbs `profile measure` and `validate`, which run real models: parse, call one function, print.

Both need the extra `profile` (torch), which is imported inside them. `cli` adds them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.profile import profile_app
from sim.cli.terminal import console, mistakes_in_one_line
from sim.runs.progress import say

if TYPE_CHECKING:
    from sim.hardware.validate.experiment import ValidateOptions

validate_app = typer.Typer()

_Names = str | None
_Counts = str | None
_Device = Annotated[
    str, typer.Option("--device", metavar="cuda|cpu", help="What runs the models; cpu: one core is the accelerator.")
]
_Models = Annotated[
    _Names, typer.Option(metavar="M,M,...", help="Of profiles/architectures.csv; default: what suits the device.")
]
_Architectures = Annotated[Path | None, typer.Option(hidden=True)]
_LinkSpeed = Annotated[
    float | None,
    typer.Option("--link-gb-s", metavar="GB/S", help="With --device cpu: the speed of its link to the host."),
]


_Quick = Annotated[bool, typer.Option("--quick", help="Three models, few knots: under 8 minutes on a server's GPU.")]
_Again = Annotated[bool, typer.Option("--again", help="Measure once more what is in the folder, and keep the means.")]
_Minutes = Annotated[float | None, typer.Option(metavar="MIN", help="Leave out what matters less to end in time.")]
_Pools = Annotated[_Counts, typer.Option(metavar="N,N,...", help="Tokens of KV that an instance takes when it loads.")]


@profile_app.command("measure")
def profile_measure(
    quick: _Quick = False,
    models: _Models = None,
    device: _Device = "cuda",
    dtype: Annotated[str, typer.Option(metavar="bfloat16|float16", help="Type of the weights and KV.")] = "bfloat16",
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Default: PROFILES/measured/GPU-HOST-torch-DATE.")
    ] = None,
    budget_gib: Annotated[
        float | None, typer.Option("--budget-gib", metavar="GIB", help="Device memory to use; default: what is free.")
    ] = None,
    link_gb_s: _LinkSpeed = None,
    passes: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="How often, at different times, all is measured; default: 1, cpu: 3."),
    ] = None,
    again: _Again = False,
    max_minutes: _Minutes = None,
    batches: Annotated[_Counts, typer.Option(metavar="N,N,...", help="Sequences in a decode step.")] = None,
    contexts: Annotated[_Counts, typer.Option(metavar="N,N,...", help="Tokens of context of a decode step.")] = None,
    prompts: Annotated[_Counts, typer.Option(metavar="N,N,...", help="Tokens of a prompt.")] = None,
    pools: _Pools = None,
    offload: Annotated[
        str, typer.Option(metavar="cpu,stream", help="How layers outside the device run: either or both.")
    ] = "cpu,stream",
    seed: Annotated[int, typer.Option(help="Of random tokens and KV.")] = 1,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew; the folder that is there is renamed.")] = False,
    gpu: Annotated[str | None, typer.Option(metavar="NAME", help="What to call the GPU in the tables.")] = None,
    host: Annotated[str | None, typer.Option(metavar="NAME", help="What to call the host in the tables.")] = None,
    no_fill: Annotated[bool, typer.Option("--no-fill", help="Measure only; make no tables and no scenario.")] = False,
    into: Annotated[
        Path | None,
        typer.Option(metavar="PROFILES", help="Profiles to put the tables in; default: the project's, or ./profiles."),
    ] = None,
    limit_s: Annotated[float | None, typer.Option("--limit-s", hidden=True)] = None,
    architectures: _Architectures = None,
) -> None:
    """Measure this machine with real models of random weights, and make tables and a scenario of it.

    What is measured stays when it is stopped; the same command goes on. Clocks, power and modes are looked at, never
    changed.
    """
    with mistakes_in_one_line():
        from sim.hardware.options import MeasureOptions, check_torch, counts, words  # noqa: PLC0415

        check_torch("profile measure")
        options = MeasureOptions(
            quick=quick, models=words(models), device=device, dtype=dtype, out=out, budget_gib=budget_gib,
            link_gb_s=link_gb_s, passes=passes, again=again, max_minutes=max_minutes,
            batches=counts("--batches", batches), contexts=counts("--contexts", contexts),
            prompts=counts("--prompts", prompts), pools=counts("--pools", pools), offload=words(offload), seed=seed,
            fresh=fresh, gpu=gpu, host=host, fill=not no_fill, into=into, limit_s=limit_s,
            architectures=architectures,
        )  # fmt: skip
        from sim.hardware.measure.program import measure  # noqa: PLC0415  imports torch

        status = measure(options, console())
    raise typer.Exit(status)


@validate_app.command()
def validate(
    device: _Device = "cuda",
    out: Annotated[Path, typer.Option(metavar="DIR", help="What is measured is kept here.")] = Path("validation"),
    models: _Models = None,
    workloads: Annotated[_Names, typer.Option(metavar="W,W,...", help="Of steady, bursty, long; default: all.")] = None,
    policies: Annotated[_Names, typer.Option(metavar="P,P,...", help="Default: three of different kinds.")] = None,
    duration: Annotated[float, typer.Option(metavar="S", help="Seconds of arrivals in each run.")] = 90.0,
    repeats: Annotated[
        int, typer.Option(min=1, metavar="N", help="Times that all is played, each with its own requests.")
    ] = 3,
    offload: Annotated[str, typer.Option(metavar="cpu|stream", help="Layers outside the device.")] = "stream",
    slots: Annotated[int, typer.Option(min=1, metavar="N", help="The largest batch.")] = 4,
    max_context: Annotated[int, typer.Option(min=1, metavar="N", help="The longest prompt and answer.")] = 512,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 1,
    profiles: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Tables of this device that are there already.")
    ] = None,
    profile_minutes: Annotated[
        float, typer.Option(metavar="MIN", help="For profiling, in parts before each repeat.")
    ] = 18.0,
    link_gb_s: _LinkSpeed = None,
    architectures: _Architectures = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print for how long it would run, and stop.")] = False,
) -> None:
    """Serve models for real, simulate the same, and compare: how far the simulation can be believed here.

    Keep the machine quiet while it runs; the same command goes on with what is there. With --device cpu one core is the
    accelerator, and its link has 0.5 GB/s unless --link-gb-s says otherwise.
    """
    with mistakes_in_one_line():
        from sim.hardware.options import check_torch, words  # noqa: PLC0415

        check_torch("validate")
        from sim.hardware.validate.experiment import POLICIES, WORKLOADS, ValidateOptions  # noqa: PLC0415

        options = ValidateOptions(
            device=device, out=out, models=words(models), workloads=words(workloads) or tuple(WORKLOADS),
            policies=words(policies) or POLICIES, duration=duration, repeats=repeats, offload=offload, slots=slots,
            max_context=max_context, seed=seed, profiles=profiles, profile_minutes=profile_minutes,
            link_gb_s=link_gb_s, architectures=architectures,
        ).complete()  # fmt: skip
        _validate(options, plan)


def _validate(options: ValidateOptions, plan: bool) -> None:
    from sim.common.compiled import runs_compiled  # noqa: PLC0415

    if runs_compiled() and not plan:  # the server puts its own parts where the engine has compiled ones
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "SIM_INTERPRETED": "1"})
    from sim.hardware.validate.program import how_long, validate  # noqa: PLC0415  imports torch

    print(how_long(options), flush=True)
    if plan:
        return
    try:
        validate(options, console())
    except KeyboardInterrupt:
        say(f"stopped; what was measured is kept in {options.out}; the same command goes on")
        raise typer.Exit(130) from None
