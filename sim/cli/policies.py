"""The verbs below `python -m sim policies`: list, show, begin and check policies.

Parse, call one library function, print; cli.py has the other verbs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from sim.cli.terminal import console, mistakes_in_one_line

if TYPE_CHECKING:
    from sim.conformance.suite import Verdict


class _OrByName(TyperGroup):
    """`policies NAME` shows the policy of that name."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            args = ["show", *args]
        return super().resolve_command(ctx, args)


policy_app = typer.Typer(cls=_OrByName, help="List the policies, show one (policies NAME), begin or check your own.")


@policy_app.callback(invoke_without_command=True)
def policies(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        with mistakes_in_one_line():
            from sim.cli.tables import catalogue_tables  # noqa: PLC0415
            from sim.policy import catalogue  # noqa: PLC0415

            catalogue_tables.print_policies(catalogue.policy_catalogue(), console())


@policy_app.command()
def show(name: Annotated[str, typer.Argument(help="A policy's name, or the path of its file.")]) -> None:
    """Show a policy, where it comes from, and its parameters."""
    with mistakes_in_one_line():
        from sim.cli.tables import catalogue_tables  # noqa: PLC0415
        from sim.policy import catalogue  # noqa: PLC0415

        catalogue_tables.print_policy(catalogue.policy_facts(name), console())


@policy_app.command()
def new(
    name: Annotated[str, typer.Argument(help="Its name, for example my-policy: the file is my_policy.py.")],
    folder: Annotated[Path, typer.Option("--in", metavar="DIR", help="Write it into this folder.")] = Path("."),
) -> None:
    """Write a small policy that works, to begin from."""
    with mistakes_in_one_line():
        from sim.policy.template import new_policy  # noqa: PLC0415

        path = new_policy(name, folder)
        print(f"wrote {path}; try it, and check it:")
        print(f"  python -m sim run --policy {path}")
        print(f"  python -m sim policies check {path}")


@policy_app.command()
def check(
    name: Annotated[str, typer.Argument(help="A policy's name, or the path of its file.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="PARAM=VALUE", help="Set a parameter; may be repeated.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the runs that show a failure into this new folder.")
    ] = None,
) -> None:
    """Check what every policy must do, the shipped ones too; exit status 1 if something fails."""
    with mistakes_in_one_line():
        from sim.cli.tables.conformance_tables import print_check, print_count  # noqa: PLC0415
        from sim.conformance.keeping import Keeper  # noqa: PLC0415
        from sim.conformance.suite import FAILED, conformance  # noqa: PLC0415
        from sim.scenario.scenario import override  # noqa: PLC0415

        with redirect_stdout(sys.stderr):
            verdicts = conformance(name, override({}, [setting.removeprefix("policy.") for setting in settings or ()]))
        keeper = None if keep is None else Keeper(keep)
        found: list[Verdict] = []
        for _, group in groupby(_elsewhere(verdicts), lambda verdict: verdict.check):
            of_check = list(group)
            kept = {} if keeper is None else {verdict.engine: keeper.keep(verdict) for verdict in of_check}
            print_check(of_check, kept, console())
            found += of_check
        print_count(found, keeper is not None, console())
        if any(verdict.status == FAILED for verdict in found):
            raise typer.Exit(1)


def _elsewhere(verdicts: Iterator[Verdict]) -> Iterator[Verdict]:
    """The same; what the policy prints meanwhile goes to stderr: stdout is for the verdicts."""
    while True:
        with redirect_stdout(sys.stderr):
            verdict = next(verdicts, None)
        if verdict is None:
            return
        yield verdict
