"""Brings the runs of one store into another. The same run must have come to the same result in both.

Called by sweep.py. What may differ is what depends on the machine: times, memory, where files lie.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sim.common.errors import ConfigError
from sim.results.run_folder import FILES, IDENTITY, SUMMARY
from sim.runs.collect import CLOCKS
from sim.runs.store import SCENARIO, Store, StoredPoint


def merge(source: Path, target: Store) -> int:
    """Copy all runs of the store in `source` that `target` lacks; returns how many. To be called under target's lock.

    Errors come along where the target knows nothing of the run. Raises ConfigError: a run that is not the same in both;
    what came before it stays.
    """
    origin = Store(source)
    added = 0
    for run_id in origin.run_ids():
        there = target.summary(run_id)
        fuller = _tables(origin, run_id) and not _tables(target, run_id)
        if there is not None:
            _compare(run_id, origin, target)
        if there is None or (fuller and target.keep == "all"):
            names = sorted(path.name for path in origin.folder_of(run_id).iterdir())
            if target.keep == "summary":
                names = [name for name in names if name in (SCENARIO, IDENTITY, SUMMARY)]
            target.add_files(run_id, {name: (origin.folder_of(run_id) / name).read_bytes() for name in names})
            added += there is None
    for run_id in origin.error_ids():
        failed = origin.error(run_id)
        if failed is not None and target.summary(run_id) is None and target.error(run_id) is None:
            target.add_error(run_id, failed["error"], failed["traceback"], origin.scenario(run_id))
    return added


def check_source(source: Path, target: Store) -> None:
    """Raises ConfigError: there is no store, or it is the target."""
    if not (source / "runs").is_dir():
        raise ConfigError(f"--merge {source}: no folder of a sweep (it has no runs/); check the path")
    if source.resolve() == target.folder.resolve():
        raise ConfigError(f"--merge {source}: is the folder to merge into; name another")


def known_points(source: Path) -> list[StoredPoint]:
    """What the store in `source` was asked for, by whatever command."""
    return Store(source).points(every=True)


def _tables(store: Store, run_id: str) -> bool:
    return all((store.folder_of(run_id) / name).is_file() for name in FILES)


def _compare(run_id: str, origin: Store, target: Store) -> None:
    """Raises ConfigError unless the run is the same in both stores."""
    ours, theirs = (_essence(store.summary(run_id)) for store in (target, origin))
    differs = next((key for key in (*ours, *theirs) if ours.get(key) != theirs.get(key)), None)
    if differs is None and all(_tables(store, run_id) for store in (origin, target)):
        one, other = (store.folder_of(run_id) for store in (origin, target))
        tables = [name for name in FILES if name.endswith(".parquet")]
        differs = next((name for name in tables if not _same_table(one / name, other / name)), None)
    if differs is not None:
        raise ConfigError(
            f"--merge {origin.folder}: run {run_id} differs from the one in {target.folder} ({differs}), though its "
            "inputs are the same; one of them is damaged or was made with other libraries: remove the wrong one"
        )


def _essence(summary: dict[str, Any] | None) -> dict[str, Any]:
    """A summary without what depends on the machine, or on where files lie on it."""
    assert summary is not None
    engine = {name: value for name, value in summary["engine"].items() if name not in CLOCKS}
    return {**summary, "engine": engine, "policy": Path(summary["policy"]).name, "notices": len(summary["notices"])}


def _same_table(one: Path, other: Path) -> bool:
    """The same bytes, or, written by another version of the library, the same rows."""
    if one.read_bytes() == other.read_bytes():
        return True
    from pyarrow import parquet  # noqa: PLC0415  heavy

    return bool(parquet.read_table(one).equals(parquet.read_table(other)))
