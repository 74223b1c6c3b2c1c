"""A crew on an existing Dask cluster, whose workers need not share a disk with the driver. Needs the extra `dask`.

Dask itself plays a task again whose worker died, and gives it up after `distributed.scheduler.allowed-failures`.
Workers are best started with one thread each: a run is plain Python.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Iterator
from typing import Any

from sim.common.errors import ConfigError
from sim.runs.executor import LOST, MOST_DEATHS, PATIENCE_S, cluster_trouble, died, one_line
from sim.runs.worker import Played, RunJob, play_one


class DaskCrew:
    """The workers of the scheduler at `address`, such as tcp://127.0.0.1:8786; at most `hands` runs at once."""

    desk = False

    def __init__(self, address: str | None, hands: int | None) -> None:
        try:
            distributed: Any = importlib.import_module("distributed")
        except ImportError:
            raise ConfigError("--engine dask needs Dask: pip install 'residency-sim[dask]'") from None
        if address is None:
            raise ConfigError("--engine dask: give the address of its scheduler, --scheduler tcp://HOST:8786")
        self._dask = distributed
        self._hands = hands
        self._out: dict[Any, RunJob] = {}
        try:
            self._client = distributed.Client(address, timeout=PATIENCE_S, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise ConfigError(
                f"no Dask scheduler answers at {address} ({one_line(error)}); check the address"
            ) from None

    def play(self, jobs: list[RunJob]) -> Iterator[Played]:
        left = deque(jobs)
        self._await_worker()
        while left or self._out:
            while left and len(self._out) < self._room():
                job = left.popleft()
                # Not pure, with a key of its own: an answer from an earlier sweep is not this one's.
                self._out[self._client.submit(play_one, job, pure=False)] = job
            try:
                with self._client.as_current():
                    ended = self._dask.wait(list(self._out), timeout=PATIENCE_S, return_when="FIRST_COMPLETED").done
            except (TimeoutError, self._dask.TimeoutError):
                self._await_worker()
                continue
            except Exception as error:  # whatever Dask says of a lost scheduler
                raise ConfigError(LOST.format("Dask", one_line(error))) from None
            for future in ended:
                job = self._out.pop(future)
                yield self._played(future, job)
                future.release()

    def _played(self, future: Any, job: RunJob) -> Played:
        try:
            played: Played = future.result()
        except self._dask.scheduler.KilledWorker:
            return died(job, MOST_DEATHS, "Dask gave it up")
        except Exception as error:  # the function raises nothing itself: it did not get there, or not back
            raise cluster_trouble("Dask", error) from None
        return played

    def _room(self) -> int:
        """A job more for each worker than it can run at once, so that it need not wait for the driver."""
        threads = self._client.nthreads()
        return self._hands or sum(threads.values()) + len(threads) or 1

    def _await_worker(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=PATIENCE_S)
        except Exception as error:  # a timeout, or a scheduler that is gone
            raise ConfigError(LOST.format("Dask", f"no worker for {PATIENCE_S} s: {one_line(error)}")) from None

    def close(self, at_once: bool) -> None:
        if at_once and self._out:
            self._client.cancel(list(self._out), force=True)
        self._client.close()
