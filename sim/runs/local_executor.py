"""A crew of processes on this machine: those of joblib (loky), which stay from one call to the next. See crew.py.

When one of them dies the pool is gone, whoever it was. So every job leaves a mark on the desk while it is played, and
those at work then are played again one by one, to find out which of them it was.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from sim.common.errors import ConfigError
from sim.runs.executor import MOST_DEATHS, died
from sim.runs.worker import Played, RunJob, begin_worker, play_one

_IDLE_S = 300  # so long a worker without work stays


class LocalCrew:
    """Processes of this machine. They stay for the next sweep of this driver, and go when it does."""

    desk = True

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._pool: Any = None

    def play(self, jobs: list[RunJob]) -> Iterator[Played]:
        """All together; when a worker dies, those that were at work then one by one, since one of them may be why."""
        left = deque(jobs)
        while left:
            suspects, how = yield from self._round(left, self._jobs)
            for job in suspects:
                alone, deaths = deque([job]), 1
                while alone and deaths < MOST_DEATHS:
                    again, how = yield from self._round(alone, 1)
                    alone.extend(again)
                    deaths += len(again)
                if alone:
                    yield died(job, deaths, how)

    def _round(self, left: deque[RunJob], hands: int) -> Generator[Played, None, tuple[list[RunJob], str]]:
        """Play what is left until all is done or a worker dies. Returns who was at work then, and how it died."""
        out: dict[Future[Played], RunJob] = {}
        stillborn = 0
        while left or out:
            try:
                while left and len(out) <= hands:  # one more than hands, so that no worker has to wait for the driver
                    out[self._hired(hands).submit(play_one, left[0])] = left[0]
                    left.popleft()
                for future in wait(out, return_when=FIRST_COMPLETED).done:
                    played = future.result()
                    del out[future]
                    yield played
            except BrokenProcessPool as error:
                for future in [future for future in out if future.done() and future.exception() is None]:
                    del out[future]
                    yield future.result()
                marks = {job.run_id: Path(job.desk) / f"{job.run_id}.begun" for job in out.values()}
                at_work = [job for job in out.values() if marks[job.run_id].exists()]
                left.extendleft(job for job in reversed(out.values()) if job not in at_work)
                out.clear()
                for mark in marks.values():
                    mark.unlink(missing_ok=True)
                if at_work:
                    return at_work, _how(error)
                stillborn += 1
                if stillborn == MOST_DEATHS:
                    raise ConfigError(f"worker processes die before they begin ({_how(error)}); try --jobs 1") from None
        return [], ""

    def _hired(self, hands: int) -> Any:
        from joblib.externals.loky import get_reusable_executor  # noqa: PLC0415  only who has runs to play needs it

        # A simulation is one thread; libraries must not start more of them than there are processors.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        mine = (os.getpid(),)
        self._pool = get_reusable_executor(hands, timeout=_IDLE_S, initializer=begin_worker, initargs=mine, env=threads)
        return self._pool

    def close(self, at_once: bool) -> None:
        if at_once and self._pool is not None:
            self._pool.shutdown(kill_workers=True)


def _how(error: BrokenProcessPool) -> str:
    """How a worker ended, as far as the system said."""
    found = re.search(r"SIG\w+", str(error))
    return f"by {found.group()}" if found else "its exit status is in doubt"
