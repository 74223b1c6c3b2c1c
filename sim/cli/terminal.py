"""What every verb of the command line shares: errors on one line, and the console.

Results go to stdout, mistakes and progress (runs/progress.py) to stderr.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from sim.common.atomic_files import why
from sim.common.errors import SimError, out_of_memory
from sim.runs.progress import RunsProgress, say

if TYPE_CHECKING:
    from rich.console import Console


@contextmanager
def mistakes_in_one_line(kept: Callable[[], str] | None = None, roomier: str = "make it smaller") -> Iterator[None]:
    """A user's mistake becomes one line and exit status 2, lack of memory one and status 1; a fault of ours passes.

    kept: asked when memory ran out or stdout could not be written, says in words what there is nevertheless. roomier:
    what needs less memory.
    """
    try:
        yield
    except SimError as error:
        say(f"error: {error}")
        raise typer.Exit(2) from None
    except KeyboardInterrupt:  # where the verb itself has no more to say of it
        say("interrupted; what was not finished is not kept")
        raise typer.Exit(130) from None
    except BrokenPipeError:  # the reader of stdout has seen enough
        raise
    except (MemoryError, OSError, ImportError, RuntimeError) as error:
        traceback.clear_frames(error.__traceback__)  # what fills the memory is let go, or there is none to say so
        there = "nothing was kept" if kept is None else kept()
        if out_of_memory(error):
            say(f"error: out of memory; {there}; {roomier}, or give it more memory")
            raise typer.Exit(1) from None
        if not isinstance(error, OSError):
            raise
        # A path that the system cannot even look at, such as one too long; or else stdout.
        hint = "check the path" if error.filename else there
        say(f"error: {error.filename or 'standard output'}: {why(error)}; {hint}")
        raise typer.Exit(2) from None


def console() -> Console:
    """Where tables go: stdout. Names come from users: nothing in them is markup."""
    from rich.console import Console  # noqa: PLC0415

    return Console(markup=False, emoji=False, highlight=False)


def wide_console(columns: int = 130) -> Console:
    """As `console`, but where stdout is no terminal (and COLUMNS says nothing) as wide as wide tables need."""
    from rich.console import Console  # noqa: PLC0415

    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else columns
    return Console(markup=False, emoji=False, highlight=False, width=width)


@contextmanager
def following_runs(progress: RunsProgress, out: Path | None) -> Iterator[None]:
    """After Ctrl-C, and where memory ends, it says what there is; what a policy prints is not among the results."""
    with mistakes_in_one_line(lambda: progress.kept(out), "use fewer --jobs"):
        try:
            with redirect_stdout(sys.stderr):
                yield
        except KeyboardInterrupt:
            progress.close()
            say(f"{progress}; {progress.kept(out)}")
            raise typer.Exit(130) from None
        finally:
            progress.close()
