"""A folder of runs: runs/<run_id>/ whole or not there, errors/<run_id>.json, and the table runs.csv of all of them.

All is written into the hidden folder .work and moved from there, so whatever a killed sweep leaves half-written lies
in .work, and the next one removes it. Only who holds the lock writes. play() fills a store, reports read it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from sim.common.atomic_files import put, sync_folder, why
from sim.common.errors import ConfigError
from sim.results.run_folder import IDENTITY, SUMMARY, identity_text, missing_file, scenario_text, summary_text
from sim.runs.collect import Cell, csv_text, rows, timing
from sim.runs.task import Label, Result, Task
from sim.scenario.scenario import Scenario, parse_scenario, resolved

Keep = Literal["all", "summary"]
SCENARIO = "scenario.yaml"
_POINTS, _WORK, _LOCK = "points.json", ".work", ".lock"


@dataclass(frozen=True)
class StoredPoint:
    """A task as a store remembers it: its labels and its run."""

    run_id: str
    labels: dict[str, Label]


class Store:
    """The runs in `folder`. keep `all`: whole run folders; `summary`: no tables, only the other files.

    Raises ConfigError, here or later, naming the folder: it holds something else, or cannot be written.
    """

    def __init__(self, folder: Path, keep: Keep = "all") -> None:
        self.folder, self.keep = Path(folder), keep
        self.runs, self.errors, self.work = self.folder / "runs", self.folder / "errors", self.folder / _WORK
        self._now: list[StoredPoint] = []  # what the command at work has asked for
        self._lock: Any = None
        with self._writing():
            self._refuse_foreign()

    def _refuse_foreign(self) -> None:
        if self.folder.is_symlink() and not self.folder.exists():
            raise ConfigError(f"--out {self.folder}: is a link to nowhere; remove it or choose another folder")
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"--out {self.folder}: is a file; choose a new folder")
        if not self.folder.is_dir() or self.runs.is_dir():
            return
        if any(path.name not in (_WORK, _LOCK) for path in self.folder.iterdir()):
            raise ConfigError(f"--out {self.folder}: holds other files; choose a new folder, or one of a sweep")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            hint = "choose a folder with write access and room; what was finished is kept"
            raise ConfigError(f"--out {self.folder}: cannot write there ({why(error)}); {hint}") from None

    # --- who writes

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder, and begin with no leftovers of a killed sweep. May be nested.

        Raises ConfigError: another process holds it, or it cannot be written.
        """
        from filelock import FileLock, Timeout  # noqa: PLC0415  not needed to read

        if self._lock is None:
            self._lock = FileLock(self.folder / _LOCK)
        outermost = not self._lock.is_locked
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except Timeout:
                raise ConfigError(
                    f"--out {self.folder}: another process is writing there; wait for it, or choose another folder"
                ) from None
        try:
            if outermost:
                with self._writing():
                    self._sweep_out()
                    for folder in (self.runs, self.errors, self.work):
                        folder.mkdir(exist_ok=True)
            yield
        finally:
            if outermost:
                shutil.rmtree(self.work, ignore_errors=True)
            self._lock.release()

    def _sweep_out(self) -> None:
        """Moved away first: a worker that outlives its killed sweep finds no folder to go on writing in."""
        if not self.work.exists():
            return
        gone = self.folder / f"{_WORK}.gone"
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(self.work, gone)
        shutil.rmtree(gone)

    # --- runs

    def folder_of(self, run_id: str) -> Path:
        """Where the run of this name lies, or would."""
        return self.runs / run_id

    def summary(self, run_id: str) -> dict[str, Any] | None:
        """The summary of a finished run, or None."""
        folder = self.folder_of(run_id)
        found = _read(folder / SUMMARY, run_id)
        return found if (folder / SCENARIO).is_file() else None

    def has(self, run_id: str) -> bool:
        """Is the run there, with all the files that `keep` asks for?"""
        folder = self.folder_of(run_id)
        whole = self.keep == "summary" or missing_file(folder) is None
        return whole and self.summary(run_id) is not None

    def scenario(self, run_id: str) -> Scenario:
        """The scenario of a run that is there or has failed. Raises ConfigError: no such run."""
        path = self.folder_of(run_id) / SCENARIO
        failed = None if path.is_file() else self.error(run_id)
        if failed is not None:
            return parse_scenario(failed["scenario"], f"run {run_id}")
        try:  # written by us: the quick loader is good enough
            data = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: cannot read what a sweep wrote there ({error}); remove the run") from None
        return parse_scenario(data, str(path))

    def run_ids(self) -> list[str]:
        """The names of all finished runs, sorted."""
        if not self.runs.is_dir():
            return []
        return [name for name in sorted(os.listdir(self.runs)) if self.summary(name) is not None]

    def error_ids(self) -> list[str]:
        """The names of all runs with a recorded error, sorted."""
        return [path.stem for path in sorted(self.errors.glob("*.json"))]

    def error(self, run_id: str) -> dict[str, Any] | None:
        """What is recorded of a run that failed: run_id, error (one line), traceback, scenario; None if it has not."""
        return _read(self.errors / f"{run_id}.json", run_id)

    def add_folder(self, run_id: str, made: Path) -> None:
        """Take over a whole run folder that lies in `work`."""
        with self._writing():
            self._take(made, self.folder_of(run_id))
            (self.errors / f"{run_id}.json").unlink(missing_ok=True)

    def add_files(self, run_id: str, files: dict[str, bytes]) -> None:
        """Keep a run that came as its files."""
        with self._writing():
            made = self.work / f"{run_id}.files"
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            for name, data in files.items():
                put(made / name, data)
            sync_folder(made)
        self.add_folder(run_id, made)

    def add_summary(
        self, run_id: str, scenario: Scenario, summary: dict[str, Any], ingredients: Iterable[tuple[str, str]]
    ) -> None:
        """Keep a run without its tables."""
        texts = {SCENARIO: scenario_text(scenario, run_id), IDENTITY: identity_text(run_id, ingredients)}
        texts[SUMMARY] = summary_text(summary)
        self.add_files(run_id, {name: text.encode() for name, text in texts.items()})

    def add_error(self, run_id: str, error: str, traceback: str, scenario: Scenario) -> None:
        """Record that a run failed. `traceback` is for its author, "" where there is nothing more to say."""
        record = {"run_id": run_id, "error": error, "traceback": traceback, "scenario": resolved(scenario)}
        self.write_text(f"errors/{run_id}.json", json.dumps(record, indent=2) + "\n")

    def _take(self, made: Path, target: Path) -> None:
        old = self.work / f"{target.name}.old"
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():  # a run whose files are not all there, or of which less was kept
            os.rename(target, old)
        os.rename(made, target)
        sync_folder(target.parent)
        shutil.rmtree(old, ignore_errors=True)

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the store, whole or not at all. Raises ConfigError."""
        with self._writing():
            made = self.work / f"{Path(name).name}.new"
            put(made, text.encode())
            os.replace(made, self.folder / name)
            sync_folder((self.folder / name).parent)

    def discard(self, names: Iterable[str]) -> None:
        """Remove files that say what came of all runs, before others are played. Raises ConfigError."""
        with self._writing():
            for name in names:
                (self.folder / name).unlink(missing_ok=True)
            sync_folder(self.folder)

    # --- what was asked, and its table

    def remember(self, points: Iterable[StoredPoint]) -> None:
        """Add to what the command at work asks for."""
        self._now = _distinct([*self._now, *points])
        self._write_points(self.points(every=True))

    def remember_earlier(self, points: Iterable[StoredPoint]) -> None:
        """Add to what earlier commands have asked for, which is kept apart."""
        self._write_points([*self.points(every=True), *points])

    def _write_points(self, known: list[StoredPoint]) -> None:
        now = [vars(point) for point in self._now]
        data = {"now": now, "earlier": [row for row in map(vars, _distinct(known)) if row not in now]}
        self.write_text(_POINTS, json.dumps(data, indent=1) + "\n")

    def points(self, every: bool = False) -> list[StoredPoint]:
        """What the last command asked for, in order; with `every`, then what earlier ones asked for too."""
        path = self.folder / _POINTS
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            found = {
                name: [StoredPoint(row["run_id"], row["labels"]) for row in data[name]] for name in ("now", "earlier")
            }
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(f"{path}: not what a sweep writes there; remove it and run the sweep again") from None
        return [*found["now"], *found["earlier"]] if every else found["now"]

    def results(self, every: bool = False) -> list[Result]:
        """The finished and failed runs among `points`, in their order, read from disk."""
        found = []
        for point in self.points(every):
            summary = self.summary(point.run_id)
            failed = None if summary is not None else self.error(point.run_id)
            if summary is not None or failed is not None:
                task = Task(self.scenario(point.run_id), point.labels)
                found.append(Result(task, point.run_id, summary, None if failed is None else failed["error"]))
        return found

    def write_table(self, results: Iterable[Result]) -> None:
        """runs.csv, the same bytes for the same runs, and timings.csv, what they took."""
        results = list(results)
        self.write_text("runs.csv", csv_text(rows(results)))
        taken: dict[str, dict[str, Cell]] = {
            result.run_id: {"run_id": result.run_id, **timing(result.summary)}
            for result in results
            if result.summary is not None
        }
        self.write_text("timings.csv", csv_text(list(taken.values())))


def _read(path: Path, run_id: str) -> dict[str, Any] | None:
    """The JSON object of a run, if it is there and whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("run_id") == run_id else None


def _distinct(points: Iterable[StoredPoint]) -> list[StoredPoint]:
    found: dict[str, StoredPoint] = {}
    for point in points:
        found.setdefault(json.dumps([point.run_id, point.labels]), point)
    return list(found.values())
