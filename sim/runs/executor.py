"""What all crews share: how they are used, and what is said when a worker or a whole cluster is lost.

A crew takes jobs, keeps a few more of them with its workers than these can do at once, and gives back what came of each
as it comes. A worker that dies loses nothing: its job is played again, and after three deaths reported as failed.
So jobs go out as single futures, not through joblib.Parallel, for which one dead worker is the end of all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from sim.common.errors import ConfigError
from sim.runs.worker import Played, RunJob, play_one

MOST_DEATHS = 3  # of workers at the same job, then the job is held to be the reason
PATIENCE_S = 30  # with a cluster that says nothing, before a look whether it is still there
LOST = "the {} cluster is lost ({}); wait until it is back"


class Crew(Protocol):
    """`desk`: do its workers share the driver's disk?"""

    desk: bool

    def play(self, jobs: list[RunJob]) -> Iterator[Played]:
        """What came of each job, in any order. Raises ConfigError when the cluster is lost."""

    def close(self, at_once: bool) -> None:
        """Let go of the workers, called once; at_once: what they are at is not wanted any more."""


def died(job: RunJob, times: int, how: str) -> Played:
    """A job at which workers died."""
    reason = f"the worker process died {times} times at it ({how}); out of memory, or killed from outside? "
    reason += "With fewer --jobs and --retry-errors it is tried again"
    return Played(job.run_id, error=reason)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def cluster_trouble(name: str, error: Exception) -> ConfigError:
    """A cluster that cannot run jobs at all."""
    hint = "is the same residency-sim installed on every worker, with the same Python?"
    return ConfigError(f"the {name} cluster could not run a job ({type(error).__name__}: {one_line(error)}); {hint}")


class Here:
    """No workers: every job is played by the driver itself."""

    desk = True

    def play(self, jobs: list[RunJob]) -> Iterator[Played]:
        return map(play_one, jobs)

    def close(self, at_once: bool) -> None:
        pass
