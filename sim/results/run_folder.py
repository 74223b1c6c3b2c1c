"""Run folders: what is kept of a run on disk, whole or not at all.

A folder has summary.json, requests.parquet (a row a request), gpus.parquet, switches.parquet (a row a load, stop,
resize or KV copy), scenario.yaml (with every default filled in) and identity.json (what else names the run); of a run
that was followed also series.parquet (what was on the GPUs over time). All is written to a hidden `.partial` folder,
synced, and then moved; summary.json comes last and marks a whole run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from sim.common.atomic_files import is_partial, partial_of, put, sync, sync_folder, why
from sim.common.errors import ConfigError
from sim.core.record.recorder import REQUEST_COLUMNS
from sim.core.record.series import COLUMNS as SERIES_COLUMNS
from sim.core.state.instance import STATUSES
from sim.core.state.request import OUTCOMES
from sim.results.request_table import RequestTable
from sim.scenario.scenario import Scenario, is_code, resolved

if TYPE_CHECKING:
    import pandas as pd

    from sim.engine.engine import Outcome

SUMMARY = "summary.json"
FILES = ("scenario.yaml", "requests.parquet", "gpus.parquet", "switches.parquet", SUMMARY)
IDENTITY = "identity.json"  # not in folders of versions before it
SERIES = "series.parquet"  # only of a run that was followed
TRACE = "trace.parquet"  # only of requests that were in no file
_PROBE_BYTES = 1 << 16
_EMPTY_BYTES = 12  # of Parquet: its four letters twice, and a length
_OWN = "# run "  # how scenario.yaml begins, before the run's name
_BLOCK_ROWS = 1 << 19  # of a row group; the file does not depend on how much of the run lay in memory
_DERIVED = ("ttft_s", "tpot_s", "e2e_s", "queue_s", "attained")


def summary_text(summary: dict[str, Any]) -> str:
    """The summary as JSON, the same bytes for the same numbers, with a line end."""
    return json.dumps(summary, indent=2, allow_nan=False) + "\n"


def identity_text(run_id: str, ingredients: Iterable[tuple[str, str]]) -> str:
    """What names a run beside its scenario, as JSON: the hash of its requests, of its policy, and of each table and
    each file of the simulator that it uses."""
    return json.dumps({"run_id": run_id, "ingredients": dict(sorted(ingredients))}, indent=1) + "\n"


def finished_run(folder: Path) -> dict[str, Any] | None:
    """The summary of the whole run in a folder, or None when there is none."""
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(summary, dict) and "run_id" in summary and missing_file(folder) is None
    return summary if whole else None


def missing_file(folder: Path) -> str | None:
    """The first file of a run that is not there, or of which no more than a part is; None when all are."""
    return next((name for name in FILES if not _looks_whole(folder / name)), None)


def _looks_whole(path: Path) -> bool:
    """A Parquet file begins and ends with the same four letters; the others end in a new line."""
    try:
        with path.open("rb") as file:
            head, size = file.read(4), file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4))
            tail = file.read()
    except OSError:
        return False
    return head == tail == b"PAR1" and size > _EMPTY_BYTES if path.suffix == ".parquet" else tail.endswith(b"\n")


def what_is_kept(folder: Path | None) -> str:
    """After an interruption: what there is in `folder`, in words."""
    if folder is not None and finished_run(folder) is not None:
        return f"{folder} holds a finished run"
    return "nothing was kept"


def check_target(folder: Path, identify: Callable[[], str]) -> None:
    """Refuse, before a run starts, a folder into which its results cannot go.

    It must not exist, or be empty, or hold a run of the same run_id (which is asked for only then), whole or not.
    Raises ConfigError: anything else there, or a place that cannot be written.
    """
    try:
        if folder.is_symlink() and not folder.exists():
            raise ConfigError(f"--out {folder}: is a link to nowhere; remove it or choose another folder")
        if folder.exists() and not folder.is_dir():
            raise ConfigError(f"--out {folder}: is a file; choose a new folder")
        foreign = folder.is_dir() and any(not is_partial(path) for path in folder.iterdir())
        if foreign:
            _refuse_foreign(folder, identify)
        partial = _make_partial(folder)
        try:
            put(partial / "probe", b"\0" * _PROBE_BYTES)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise _cannot_write(folder, error, "") from None


def _refuse_foreign(folder: Path, identify: Callable[[], str]) -> None:
    there = finished_run(folder)
    if there is None:
        half = _half_run(folder)
        if half is None:
            raise ConfigError(f"--out {folder}: holds other files; choose a new or empty folder")
        if half != identify():
            lacking = f"{missing_file(folder)} is missing or damaged"
            there_is = f"holds half a run, {half} ({lacking}); remove it or choose another folder"
            raise ConfigError(f"--out {folder}: {there_is}")
        return
    if there["run_id"] != identify():
        what = f"run {there['run_id']} (scenario {there.get('scenario')}, policy {there.get('policy')})"
        raise ConfigError(f"--out {folder}: holds another run, {what}; choose another folder or remove this one")


def _half_run(folder: Path) -> str | None:
    """The run whose files are being moved into the folder, or were when that was cut off; None: it is something else.

    scenario.yaml is the first file to come, and names the run.
    """
    if any(path.name not in (*FILES, IDENTITY, SERIES, TRACE) and not is_partial(path) for path in folder.iterdir()):
        return None
    try:
        first = (folder / FILES[0]).read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, ValueError):
        return None
    return first.removeprefix(_OWN).partition(":")[0] if first.startswith(_OWN) else None


def home_of(folder: Path) -> Path:
    """Where on its file system things may lie that are not its own: inside it (it may be a mount), or beside."""
    return folder if folder.is_dir() else folder.absolute().parent


def _make_partial(folder: Path) -> Path:
    """A fresh hidden folder on the same file system."""
    home = home_of(folder)
    home.mkdir(parents=True, exist_ok=True)
    partial = partial_of(home, folder.absolute().name)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    return partial


def _cannot_write(folder: Path, error: OSError, kept: str) -> ConfigError:
    hint = "choose a folder with write access and room"
    return ConfigError(f"--out {folder}: cannot write there ({why(error)}); {kept and kept + '; '}{hint}")


def write_run(folder: Path, outcome: Outcome, summary: dict[str, Any], trace: Path | None = None) -> None:
    """Keep a run. At no instant does `folder` hold a part of a run that looks whole.

    `trace`: the file of its requests, if that has no other home; it is kept too, and scenario.yaml plays it from there.
    Raises ConfigError when the place cannot be written; nothing of this run is left behind then.
    """
    try:
        put_run(folder, outcome, summary, trace)
    except OSError as error:
        raise _cannot_write(folder, error, what_is_kept(folder)) from None


def put_run(folder: Path, outcome: Outcome, summary: dict[str, Any], trace: Path | None = None) -> None:
    """As write_run, for those who know better what to say of an OSError."""
    partial = _make_partial(folder)
    try:
        scenario = outcome.scenario
        if trace is not None:
            shutil.copyfile(trace, partial / TRACE)
            sync(partial / TRACE)
            moved = {"workload": scenario.workload.model_copy(update={"file": TRACE})}
            scenario = scenario.model_copy(update=moved)
        put(partial / FILES[0], scenario_text(scenario, outcome.run_id).encode())
        put(partial / IDENTITY, identity_text(outcome.run_id, outcome.ingredients).encode())
        for name, blocks in _tables(outcome, summary).items():
            _write_parquet(partial / f"{name}.parquet", blocks())
        put(partial / SUMMARY, summary_text(summary).encode())
        sync_folder(partial)
        _move(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _tables(outcome: Outcome, summary: dict[str, Any]) -> dict[str, Callable[[], Iterator[dict[str, Any]]]]:
    """By the names of their files, the tables of a run, block by block."""
    tables: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "requests": lambda: _request_blocks(outcome),
        "gpus": lambda: iter([_gpu_columns(outcome, summary)]),
        "switches": lambda: _switch_blocks(outcome),
    }
    if outcome.recorder.series is not None:
        tables["series"] = lambda: iter([_series_columns(outcome)])
    return tables


def table_frame(outcome: Outcome, summary: dict[str, Any], name: str) -> pd.DataFrame:
    """A table of a run (requests, gpus, switches, series) as it would be read back from its file."""
    import pyarrow as pa  # noqa: PLC0415

    blocks = _tables(outcome, summary)[name]()
    pieces = [pa.table({key: _arrow(values) for key, values in block.items()}) for block in blocks]
    frame: pd.DataFrame = pa.concat_tables(pieces).to_pandas()
    return frame


def _move(partial: Path, folder: Path) -> None:
    if folder.is_dir():
        # Empty, or a run of the same run_id, whose files are the same but for the wall time in the summary.
        for name in (FILES[0], IDENTITY, SERIES, TRACE, *FILES[1:]):
            if (partial / name).exists():
                os.replace(partial / name, folder / name)
        sync_folder(folder)
    else:
        os.rename(partial, folder)
    sync_folder(folder.absolute().parent)


def scenario_text(scenario: Scenario, run_id: str) -> str:
    """The scenario of a run as YAML, with every default filled in."""
    code = f" and --policy {scenario.policy.name}" if is_code(scenario.policy.name) else ""
    head = f"{_OWN}{run_id}: every default filled in; `python -m sim run` with this file{code} repeats it\n"
    text = yaml.safe_dump(resolved(scenario), sort_keys=False, allow_unicode=True)
    if any(mark in text for mark in "\x85\u2028\u2029\ufeff"):  # line ends to YAML, which it would fold
        text = yaml.safe_dump(resolved(scenario), sort_keys=False)
    return head + text


def _write_parquet(path: Path, blocks: Iterable[dict[str, Any]]) -> None:
    """A file with a row group for each block of columns; there is at least one block."""
    import pyarrow as pa  # noqa: PLC0415  heavy, and not needed by a run that keeps nothing
    from pyarrow import parquet  # noqa: PLC0415

    tables = (pa.table({name: _arrow(values) for name, values in columns.items()}) for columns in blocks)
    try:
        first = next(tables)
        coded = [field.name for field in first.schema if not pa.types.is_floating(field.type)]
        with parquet.ParquetWriter(path, first.schema, compression="zstd", use_dictionary=coded) as writer:
            writer.write_table(first)
            del first
            for table in tables:
                writer.write_table(table)
                del table
    except MemoryError:  # one of theirs is both
        raise
    except pa.ArrowException as error:
        raise OSError(str(error).splitlines()[0]) from None
    sync(path)


def _arrow(values: Any) -> Any:
    """An array; numbers that are NaN or masked become nulls, (codes, names) become text and codes below 0 nulls, all
    whole numbers have 64 bits."""
    import pyarrow as pa  # noqa: PLC0415

    if isinstance(values, tuple):
        codes, names = values
        return pa.array(list(names), pa.string()).take(pa.array(codes, mask=np.asarray(codes) < 0))
    if isinstance(values, np.ma.MaskedArray):
        return pa.array(values.data, mask=np.ma.getmaskarray(values))
    array = pa.array(values, from_pandas=True)
    return array.cast(pa.int64()) if pa.types.is_integer(array.type) else array


def _request_blocks(outcome: Outcome) -> Iterator[dict[str, Any]]:
    """The recorder's columns in order of arrival, with names for codes, and the latencies that follow from them.

    `session` is the number of a session in the trace, from 0 on in the order of their first requests; it is left out
    where no request has one.
    """
    names = {
        "model": [model.name for model in outcome.cluster.models],
        "service_class": [service_class.name for service_class in outcome.scenario.service_classes],
        "outcome": list(OUTCOMES),
        "reason": list(outcome.recorder.reasons),
    }
    for block in outcome.recorder.columns.blocks(_BLOCK_ROWS):
        table = RequestTable([block], outcome.scenario.service_classes)
        columns = {name: table[name] for name in (*REQUEST_COLUMNS, *_DERIVED)}
        sessions = columns.pop("session")
        if outcome.recorder.sessions:
            columns["session"] = np.ma.masked_less(sessions, 0)
        yield {name: (values, names[name]) if name in names else values for name, values in columns.items()}


def _gpu_columns(outcome: Outcome, summary: dict[str, Any]) -> dict[str, Any]:
    rows = summary["gpus"]
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    for name, values in columns.items():
        if None in values:  # numbers, whose type nulls alone do not tell
            columns[name] = np.array(values, dtype=np.float64)
    columns["node"] = [gpu.node.name for gpu in outcome.cluster.gpus]
    for name in outcome.cluster.gpus[0].activity_s:
        columns[f"{name}_s"] = [gpu.activity_s[name] for gpu in outcome.cluster.gpus]
    return columns


def _switch_blocks(outcome: Outcome) -> Iterator[dict[str, Any]]:
    recorder = outcome.recorder
    texts = {name: list(codes) for name, codes in recorder.switch_texts.items()}
    for block in recorder.switch_columns.blocks(_BLOCK_ROWS):
        yield {name: (values, texts[name]) if name in texts else values for name, values in block.items()}


def _series_columns(outcome: Outcome) -> dict[str, Any]:
    """The rows of Series.columns, with names for codes; GPU, status and instance are null where there is none."""
    assert outcome.recorder.series is not None
    found = outcome.recorder.series.columns(outcome.end_s)
    names = {
        "gpu": [gpu.name for gpu in outcome.cluster.gpus],
        "model": [model.name for model in outcome.cluster.models],
        "status": list(STATUSES),
    }
    columns: dict[str, Any] = {name: found[name] for name in SERIES_COLUMNS}
    columns.update((name, (found[name], texts)) for name, texts in names.items())
    columns["instance"] = np.ma.masked_less(found["instance"], 0)
    return columns
