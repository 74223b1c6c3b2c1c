"""Plays many tasks: what a store has already is not run again, the rest goes to a crew, errors are recorded.

`play` is what sweep, compare and capacity call. Only the driver writes into the store, under its lock, so a run is
there whole or not at all, whoever is killed when.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from sim.common.errors import ConfigError
from sim.runs.choose_executor import crew_of
from sim.runs.identity import Identified, Registry
from sim.runs.store import Store, StoredPoint
from sim.runs.task import Machines, Progress, Result, Task
from sim.runs.worker import Played, job_of, version

OnProgress = Callable[[Progress], None]
_TABLE_EVERY = 0.1  # runs.csv is written again whenever there are so many more runs in it


def play(
    tasks: Iterable[Task],
    store: Store | None = None,
    machines: Machines = Machines(),  # noqa: B008  frozen
    on_progress: OnProgress | None = None,
    retry_errors: bool = False,
) -> list[Result]:
    """The results of the tasks, in their order; equal runs are run once.

    With a store, what it has is not run again, and every run is kept as soon as it has ended. A run that fails becomes
    a Result with its error and stays so, until its inputs change or `retry_errors` is set. Raises ConfigError: a store
    that cannot be written or is in use, a cluster that is lost, files that changed under way. What has ended is kept
    then, as after KeyboardInterrupt.
    """
    with nullcontext() if store is None else store.locked():
        registry = Registry()
        named = [registry.identify(task) for task in tasks]
        return _Playing(named, store, on_progress).play(machines, retry_errors)


def identified(tasks: Iterable[Task]) -> list[Identified]:
    """The names of the tasks' runs, without running them."""
    registry = Registry()
    return [registry.identify(task) for task in tasks]


class _Playing:
    """One call of `play`: what is known of each different run."""

    def __init__(self, named: Sequence[Identified], store: Store | None, on_progress: OnProgress | None) -> None:
        self._named = named
        self._store = store
        self._on_progress = on_progress
        self._known: dict[str, Result] = {}
        self._first: dict[str, Identified] = {}  # of the tasks that are the same run
        for one in named:
            self._first.setdefault(one.run_id, one)
        self._before = self._tabled = self._failures = 0

    def play(self, machines: Machines, retry_errors: bool) -> list[Result]:
        if self._store is not None:
            self._store.remember(StoredPoint(one.run_id, one.task.labels) for one in self._named)
        waiting = self._look(retry_errors)
        self._before = len(self._known)
        self._report()
        try:
            if waiting:
                self._send(waiting, machines)
        except BaseException as error:  # an interruption too
            with suppress(ConfigError):  # the reason that it cannot be written is most likely the same
                self._table()
            if isinstance(error, ConfigError):
                raise ConfigError(f"{error}; {self._kept()}") from None
            raise
        self._table()
        return self._results()

    def _kept(self) -> str:
        if self._store is None:
            return "nothing was kept"
        done = f"{sum(one.summary is not None for one in self._known.values())} of {len(self._first)} runs"
        return f"{done} are kept in {self._store.folder}, the same command goes on"

    def _look(self, retry_errors: bool) -> list[Identified]:
        """Take what is known; returns what has to be run."""
        waiting = []
        for one in self._first.values():
            if one.error is not None:
                self._failed(one, one.error, "")
                continue
            if self._store is not None and self._store.has(one.run_id):
                self._known[one.run_id] = Result(one.task, one.run_id, self._store.summary(one.run_id), None)
                continue
            failed = None if self._store is None or retry_errors else self._store.error(one.run_id)
            if failed is not None:
                self._known[one.run_id] = Result(one.task, one.run_id, None, failed["error"])
                self._failures += 1
            else:
                waiting.append(one)
        return waiting

    def _send(self, waiting: list[Identified], machines: Machines) -> None:
        crew = crew_of(machines)
        ended = False
        with TemporaryDirectory(prefix="sim-") if self._store is None else nullcontext(self._store.work) as folder:
            desk = Path(folder) if crew.desk else None
            tables = self._store is not None and self._store.keep == "all"
            try:
                jobs = [job_of(one.run_id, one.task.scenario, version(), desk, tables) for one in waiting]
                for played in crew.play(jobs):
                    self._take(played, desk)
                ended = True
            finally:
                crew.close(at_once=not ended)

    def _take(self, played: Played, desk: Path | None) -> None:
        one, store = self._first[played.run_id], self._store
        if played.fault is not None:
            raise ConfigError(played.fault)
        if played.error is not None:
            self._failed(one, played.error, played.traceback)
        else:
            assert played.summary is not None, played
            if store is not None and store.keep == "summary":
                store.add_summary(one.run_id, one.task.scenario, played.summary, one.ingredients)
            elif store is not None and desk is not None:
                store.add_folder(one.run_id, desk / one.run_id)
            elif store is not None:
                store.add_files(one.run_id, played.files)
            self._known[one.run_id] = Result(one.task, one.run_id, played.summary, None)
        if len(self._known) >= self._tabled * (1 + _TABLE_EVERY) + 1:
            self._table()
        self._report()

    def _failed(self, one: Identified, error: str, traceback: str) -> None:
        if self._store is not None:
            self._store.add_error(one.run_id, error, traceback, one.task.scenario)
        self._known[one.run_id] = Result(one.task, one.run_id, None, error)
        self._failures += 1

    def _results(self) -> list[Result]:
        found = []
        for one in self._named:
            known = self._known.get(one.run_id)
            if known is not None:
                found.append(Result(one.task, one.run_id, known.summary, known.error))
        return found

    def _table(self) -> None:
        if self._store is not None:
            self._store.write_table(self._results())
            self._tabled = len(self._known)

    def _report(self) -> None:
        if self._on_progress is not None:
            done = len(self._known) - self._before
            self._on_progress(Progress(len(self._first), self._before, done, self._failures))
