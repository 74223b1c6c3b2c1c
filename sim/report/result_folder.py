"""Opens a folder of results, whatever kind it is, and checks that it is whole. Called by write.py.

A run folder, a store of runs (of `sweep` or `compare`) or a capacity folder: told by what lies in it. Reads what is
small (summaries); the columns of requests are read by who needs them. Nothing here judges.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.common.errors import ConfigError
from sim.results.run_folder import FILES, SUMMARY

Floats = NDArray[np.float64]

# What every summary of this version has, and what a report cannot do without.
_NEEDED = (
    *("run_id", "scenario", "policy", "oracle", "seed", "requests", "reasons", "tokens", "ttft_s", "tpot_s", "itl_s"),
    *("e2e_s", "queue_s", "e2e_all_s", "slo", "throughput", "switching", "time_budget_s", "fairness_jain"),
    *("longest_wait_s", "gpus", "links", "cost", "warm_up", "engine", "models", "classes", "factors", "notices"),
)


@dataclass(frozen=True)
class Kept:
    """One run that was kept. `labels`: what sets it apart in its store, policy and seed among them."""

    summary: Mapping[str, Any]
    folder: Path
    labels: Mapping[str, Any] = field(default_factory=dict)

    @property
    def policy(self) -> str:
        """The policy's name, with a mark when no real scheduler could be it."""
        name = plain(str(self.summary["policy"]))
        return f"{name} (oracle)" if self.summary["oracle"] else name

    def number(self, path: str) -> float | None:
        """A number of the summary by its dotted path; None where there is none."""
        value: Any = self.summary
        for name in path.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        return None if value is None else float(value)

    def columns(self, file: str, names: Sequence[str]) -> dict[str, NDArray[Any]] | None:
        """Columns of a table of the run, numbers as float64 with NaN; None if the store did not keep the table."""
        path = self.folder / file
        return read_columns(path, names) if path.is_file() else None

    def requests(self, names: Sequence[str]) -> dict[str, NDArray[Any]] | None:
        """Columns of the requests that arrived after the warm-up, like all numbers of the summary."""
        after_s = self.summary["warm_up"]["after_s"]
        found = self.columns("requests.parquet", [*names, "arrival_s"])
        if found is None or not after_s:
            return found
        kept = found["arrival_s"] >= after_s
        return {name: values[kept] for name, values in found.items()}


@dataclass(frozen=True)
class Material:
    """What a folder holds. kind: "run", "sweep", "comparison" or "capacity"; extra: the JSON of the last two."""

    kind: str
    folder: Path
    runs: tuple[Kept, ...]
    errors: tuple[tuple[str, str], ...] = ()  # what a failed run was, and why it failed
    extra: Mapping[str, Any] = field(default_factory=dict)


def plain(text: str) -> str:
    """A text without what cannot be printed: such characters are shown as their escapes, and never obeyed."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def read_columns(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Columns of a Parquet file, text as objects. Raises ConfigError: not such a file, or without them."""
    import pyarrow as pa  # noqa: PLC0415  heavy
    from pyarrow import parquet  # noqa: PLC0415

    try:
        with parquet.ParquetFile(path) as file:
            missing = [name for name in names if name not in file.schema_arrow.names]
            if missing:
                raise ConfigError(f"{path}: has no column {missing[0]!r}; it is of another version: run it again")
            table = file.read(columns=list(names))
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"{path}: cannot be read ({str(error).splitlines()[0][:100]}); it is damaged: run it again"
        ) from None
    return {name: _array(table[name]) for name in names}


def _array(column: Any) -> NDArray[Any]:
    """Numbers as float64, null as NaN; text as objects, each different text once in memory, null as None."""
    import pyarrow as pa  # noqa: PLC0415  heavy

    if not pa.types.is_string(column.type):
        numbers: NDArray[Any] = column.cast(pa.float64()).to_numpy()
        return numbers
    coded = column.dictionary_encode().combine_chunks()
    coded = coded.chunk(0) if isinstance(coded, pa.ChunkedArray) else coded
    texts = np.array([*coded.dictionary.to_pylist(), None], dtype=object)
    found: NDArray[Any] = texts[coded.indices.fill_null(-1).to_numpy()]
    return found


def open_folder(folder: Path) -> Material:
    """What lies in a folder. Raises ConfigError, in one line: no such folder, nothing of ours, or not whole."""
    if not folder.is_dir():
        what = "is a file; give the folder that it lies in" if folder.exists() else "there is no such folder"
        raise ConfigError(f"{folder}: {what}")
    names = sorted(path.name for path in folder.iterdir())
    for kind in ("comparison", "capacity"):
        if f"{kind}.json" in names:
            return _store(folder, kind, _read_json(folder / f"{kind}.json"))
    if SUMMARY in names:
        missing = [name for name in FILES if name not in names]
        if missing:
            raise ConfigError(f"{folder}: half a run, {missing[0]} is missing; run it again")
        return Material("run", folder, (_kept(folder, {}),))
    if "runs" in names:
        return _store(folder, "sweep", {})
    whole = [name for name in names if not name.endswith(".partial")]
    if not whole:
        why = "a run was interrupted there and kept nothing" if names else "is empty"
        raise ConfigError(f"{folder}: {why}; make results with run, compare, sweep or capacity and --out {folder}")
    raise ConfigError(
        f"{folder}: holds no results (there is {whole[0]}, but none of {SUMMARY}, comparison.json, capacity.json, "
        "runs/); give a folder that run, compare, sweep or capacity made with --out"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"{path}: is no JSON ({error}); it is damaged: make it again") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: is not an object of names and values; it is damaged: make it again")
    return found


def _kept(folder: Path, labels: Mapping[str, Any]) -> Kept:
    summary = _read_json(folder / SUMMARY)
    missing = [name for name in _NEEDED if name not in summary]
    if missing:
        raise ConfigError(f"{folder / SUMMARY}: has no {missing[0]!r}; it is of another version: run it again")
    return Kept(summary, folder, labels)


def _store(folder: Path, kind: str, extra: dict[str, Any]) -> Material:
    """A store's finished and failed runs, in the order in which they were asked for."""
    from sim.runs.store import Store  # noqa: PLC0415

    store = Store(folder, keep="summary")
    runs, errors = [], []
    for point in store.points():
        if store.summary(point.run_id) is not None:
            runs.append(_kept(store.folder_of(point.run_id), point.labels))
        elif (failed := store.error(point.run_id)) is not None:
            what = ", ".join(f"{name} {value}" for name, value in point.labels.items())
            errors.append((plain(what), plain(str(failed["error"]))))
    if not runs and kind != "capacity":
        why = f"all its {len(errors)} runs failed, the first: {errors[0][1]}" if errors else "no run has finished there"
        raise ConfigError(f"{folder}: {why}; nothing to report yet")
    return Material(kind, folder, tuple(runs), tuple(errors), extra)
