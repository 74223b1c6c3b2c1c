"""A crew on an existing Ray cluster, whose workers need not share a disk with the driver. Needs the extra `ray`.

Ray itself plays a task again whose worker process died, so often as we ask for.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Iterator
from typing import Any

from sim.common.errors import ConfigError
from sim.runs.executor import LOST, MOST_DEATHS, PATIENCE_S, cluster_trouble, died, one_line
from sim.runs.worker import Played, RunJob, play_one


class RayCrew:
    """The workers of the cluster at `address`, such as 127.0.0.1:6379; at most `hands` runs at once."""

    desk = False

    def __init__(self, address: str | None, hands: int | None) -> None:
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError:
            raise ConfigError("--engine ray needs Ray: pip install 'residency-sim[ray]'") from None
        if address is None:
            raise ConfigError("--engine ray: give the address of its head node, --address HOST:6379")
        self._ray = ray
        self._hands = hands
        self._out: dict[Any, RunJob] = {}
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=False)
        except Exception as error:  # a refused connection, another version of Ray or Python: it says which
            raise ConfigError(f"no Ray cluster answers at {address} ({one_line(error)}); check the address") from None
        self._play = ray.remote(num_cpus=1, max_retries=MOST_DEATHS - 1)(play_one)

    def play(self, jobs: list[RunJob]) -> Iterator[Played]:
        left = deque(jobs)
        room = self._hands or 2 * int(self._ray.cluster_resources().get("CPU", 1))
        while left or self._out:
            while left and len(self._out) < room:
                job = left.popleft()
                self._out[self._play.remote(job)] = job
            try:
                ended, _ = self._ray.wait(list(self._out), num_returns=1, timeout=PATIENCE_S)
                nodes = ended or any(node["Alive"] for node in self._ray.nodes())
            except Exception as error:  # whatever Ray says of a lost head node
                raise ConfigError(LOST.format("Ray", one_line(error))) from None
            if not nodes:
                raise ConfigError(LOST.format("Ray", "no node is alive"))
            for reference in ended:
                job = self._out.pop(reference)
                yield self._played(reference, job)

    def _played(self, reference: Any, job: RunJob) -> Played:
        known = self._ray.exceptions
        try:
            played: Played = self._ray.get(reference)
        except (known.WorkerCrashedError, known.OutOfMemoryError, known.NodeDiedError) as error:
            return died(job, MOST_DEATHS, type(error).__name__)
        except Exception as error:  # the function raises nothing itself: it did not get there, or not back
            raise cluster_trouble("Ray", error) from None
        return played

    def close(self, at_once: bool) -> None:
        if at_once:
            for reference in self._out:
                self._ray.cancel(reference, force=True)
        self._ray.shutdown()
