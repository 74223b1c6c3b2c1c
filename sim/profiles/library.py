"""Opens a folder of profiles: CSV tables of measured, published, fitted or analytic numbers become `Profile` lookups.

Tables are read when they are first asked for. Whatever is missing, malformed or contradictory is a ProfileError that
names file and row. build.py and the command line use it; nothing here knows a scenario.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from sim.common.data_files import data_folder
from sim.common.errors import ProfileError, did_you_mean, shown
from sim.common.safe_open import plain_bytes
from sim.common.yaml_files import read_yaml
from sim.profiles.profile import GpuKind, Grid, HostKind, Profile, SwitchCosts, Weights

GIGA = 1e9
MOST_BYTES = 256 << 20  # of one table
_PLAIN_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")  # what Excel and R read as one too
# What the tables may hold at most, far beyond any machine; so no time or sum of bytes leaves the range of numbers.
_MOST = {"layers": 10_000, "layer_bytes": 10**15, "head_bytes": 10**15, "kv_bytes_per_token_layer": 10**12}
_MOST |= dict.fromkeys(("batch", "context", "prompt_tokens", "max_context", "memory_gib", "usd_per_hour"), 10**9)
_FARTHEST, _FINEST = 1e9, 1e-12  # of seconds and GB/s
_Made = TypeVar("_Made")
_Row = TypeVar("_Row")
_Key = TypeVar("_Key")
KINDS = ("measured", "published", "fitted", "analytic")
# Columns of each table that are names; those that are numbers are checked where they are read.
_KEY = ("model", "quantization")
NAMES = {
    "gpus.csv": ("gpu", "name", "usd_per_hour"),
    "nodes.csv": ("host",),
    "models.csv": _KEY,
    "decode.csv": _KEY,
    "prefill.csv": _KEY,
    "switch.csv": (*_KEY, "kind", "source"),
}


class Library:
    """The content of a profiles folder. Tables are read when they are first asked for.

    Raises ProfileError: missing folder, file, column or row; a value that is not a number; a grid with holes.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or data_folder("profiles")
        if not self.folder.is_dir():
            raise ProfileError(f"{self.folder}: no such folder of profiles; check `profiles:` in the scenario")
        self.gpus = {key[0]: kind for key, kind in _one_each(self.folder / "gpus.csv", ("gpu",), _gpu_kind).items()}
        self.hosts = {key[0]: kind for key, kind in _one_each(self.folder / "nodes.csv", ("host",), _host_kind).items()}
        weights = _one_each(self.folder / "models.csv", _KEY, _weights)
        self.weights = {(model, quantization): weight for (model, quantization), weight in weights.items()}
        self._tables: dict[tuple[str, str, str], tuple[Path, str]] = {}
        for path in sorted(self.folder.glob("*/*/table.yaml")):
            table = table_header(path)
            key = (table["gpu"], table["host"], table["engine"])
            if key in self._tables:
                other = self._tables[key][0].name
                raise ProfileError(f"{path}: tables for {', '.join(key)} are in {other} already; keep one")
            self._tables[key] = path.parent, str(table.get("offload", "cpu"))
        self._profiles: dict[tuple[str, ...], Profile] = {}
        self._rows_of: dict[Path, dict[tuple[str, str], list[dict[str, Any]]]] = {}

    def gpu(self, name: str) -> GpuKind:
        """Raises ProfileError for an unknown GPU."""
        if name not in self.gpus:
            raise ProfileError(f"unknown GPU '{name}'; {did_you_mean(name, self.gpus)}")
        return self.gpus[name]

    def host(self, name: str) -> HostKind:
        """Raises ProfileError for an unknown host."""
        if name not in self.hosts:
            raise ProfileError(f"unknown host '{name}'; {did_you_mean(name, self.hosts)}")
        return self.hosts[name]

    def table_keys(self) -> list[tuple[str, str, str]]:
        """All (gpu, host, engine) that have tables, in order."""
        return sorted(self._tables)

    def table_folder(self, key: tuple[str, str, str]) -> Path:
        """Where the tables of one of `table_keys` are."""
        return self._tables[key][0]

    def model_weights(self, model: str, quantization: str) -> Weights:
        """Raises ProfileError for an unknown model or quantisation."""
        if (model, quantization) not in self.weights:
            models = {name for name, _ in self.weights}
            if model not in models:
                raise ProfileError(f"unknown model '{model}'; {did_you_mean(model, models)}")
            known = [q for name, q in self.weights if name == model]
            raise ProfileError(
                f"model '{model}' has no quantization '{quantization}'; {did_you_mean(quantization, known)}"
            )
        return self.weights[model, quantization]

    def profile(self, model: str, quantization: str, gpu: str, host: str, engine: str) -> Profile:
        """The tables of one combination. Raises ProfileError where there are none, naming what is there."""
        key = (model, quantization, gpu, host, engine)
        if key not in self._profiles:
            weights = self.model_weights(model, quantization)
            label = f"{model} {quantization} on {gpu} in {host} with {engine}"
            if (gpu, host, engine) not in self._tables:
                have = "; ".join(f"{e} on {g} in {h}" for g, h, e in self.table_keys() if g == gpu or h == host)
                raise ProfileError(f"no profile tables for {label}; there are: {have or 'none for this GPU or host'}")
            folder, offload = self._tables[gpu, host, engine]
            self._profiles[key] = self._read_profile(weights, folder, offload, label)
        return self._profiles[key]

    def _read_profile(self, weights: Weights, folder: Path, offload: str, label: str) -> Profile:
        key = (weights.model, weights.quantization)
        switch = self._model_rows(folder / "switch.csv", key, label)
        if len(switch) > 1:
            raise ProfileError(f"{switch[1]['_where']}: a second row for {' '.join(key)}; keep one")
        steps, prompts = (self._model_rows(folder / f"{name}.csv", key, label) for name in ("decode", "prefill"))
        decode = _grid(steps, ("layers", "batch", "context"), "step_s", label)
        prefill = _grid(prompts, ("layers", "prompt_tokens"), "prefill_s", label)
        return Profile(weights, decode, prefill, _switch_costs(switch[0]), offload, label)

    def _model_rows(self, path: Path, key: tuple[str, str], label: str) -> list[dict[str, Any]]:
        if path not in self._rows_of:
            self._rows_of[path] = grouped(table_rows(path), model_of)
        if key not in self._rows_of[path]:
            have = ", ".join(f"{model} {quantization}" for model, quantization in self._rows_of[path])
            raise ProfileError(f"no profile tables for {label}; {path.name} there has: {have}")
        return self._rows_of[path][key]

    def digests(self, used: Iterable[Profile | GpuKind | HostKind]) -> list[tuple[str, str]]:
        """(name, hash of all its numbers) of each different thing that a run takes from tables, for its identity."""
        found: dict[str, str] = {}
        for part in used:
            if isinstance(part, Profile):
                name: str = part.label
                text = repr((part.weights, part.switch, part.offload, part._decode, part._prefill))
            else:
                name, text = f"gpu {part.gpu}" if isinstance(part, GpuKind) else f"host {part.host}", repr(part)
            found[name] = hashlib.sha256(text.encode()).hexdigest()
        return list(found.items())


def csv_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a CSV file, each with `_where` it is. Raises ProfileError: no CSV, nothing in it, or half a row."""
    try:
        text = io.StringIO(plain_bytes(path, MOST_BYTES).decode("utf-8-sig"), newline="")
        reader = csv.DictReader(text, strict=True)
        names = list(reader.fieldnames or ())
        twice = [name for place, name in enumerate(names) if name in names[:place]]
        if twice:
            raise ProfileError(f"{path}, row 1: column {shown(twice[0])} is there twice; keep one")
        rows: list[dict[str, Any]] = list(reader)
    except OSError as error:
        raise ProfileError(f"{path}: cannot read the table ({error.strerror}); is the folder complete?") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ProfileError(f"{path}: not a UTF-8 CSV file ({error}); make it again") from None
    if not rows:
        raise ProfileError(f"{path}: has no rows; is the file cut off?")
    for number, row in enumerate(rows, start=2):
        row["_where"] = f"{path}, row {number}"
        if None in row or any(value is None for value in row.values()):
            raise ProfileError(f"{path}, row {number}: wrong number of columns; is the file cut off?")
    return rows


def table_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of profiles, as `csv_rows`. Raises ProfileError: a column or a name that is missing too."""
    rows = csv_rows(path)
    for row in rows:
        missing = [column for column in NAMES.get(path.name, ()) if column not in row]
        if missing:
            raise ProfileError(f"{path}: column '{missing[0]}' is missing; {did_you_mean(missing[0], row)}")
        if row.get("kind", "measured") not in KINDS:
            raise ProfileError(f"{row['_where']}: kind {shown(row['kind'])} is none of {', '.join(KINDS)}")
        for column in NAMES.get(path.name, ()):
            if column not in ("name", "usd_per_hour", "source") and not (row[column] and row[column].isprintable()):
                raise ProfileError(f"{row['_where']}: column '{column}' is {shown(row[column])}, which names nothing")
    return rows


def model_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """(model, quantization) of a row of `table_rows`."""
    return row["model"], row["quantization"]


def grouped(rows: Iterable[_Row], key: Callable[[_Row], _Key]) -> dict[_Key, list[_Row]]:
    """The rows by their keys, both in order of appearance."""
    found: dict[_Key, list[_Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found


def _one_each(
    path: Path, names: tuple[str, ...], make: Callable[[dict[str, Any]], _Made]
) -> dict[tuple[str, ...], _Made]:
    """A table whose rows are told apart by these columns."""
    found: dict[tuple[str, ...], _Made] = {}
    for row in table_rows(path):
        key = tuple(row[name] for name in names)
        if key in found:
            raise ProfileError(f"{row['_where']}: a second row for {' '.join(key)}; keep one")
        found[key] = make(row)
    return found


def _number(row: dict[str, Any], column: str, least: str = "at least 0") -> float:
    """A finite number, `at least 0` or `above 0`, in plain digits."""
    if column not in row:
        raise ProfileError(f"{row['_where']}: column '{column}' is missing; {did_you_mean(column, row)}")
    text = row[column].strip()
    value = float(text) if _PLAIN_NUMBER.fullmatch(text) and len(text) < 400 else math.nan
    most = _MOST.get(column, _FARTHEST)
    if not 0 <= value <= most or (least == "above 0" and value < _FINEST):
        raise ProfileError(
            f"{row['_where']}: column '{column}' is {shown(row[column])}, not a number {least} and at most {most:g}"
        )
    return value


def _whole(row: dict[str, Any], column: str, least: str = "above 0") -> int:
    value = _number(row, column, least)
    if value != int(value):
        raise ProfileError(f"{row['_where']}: column '{column}' is {shown(row[column])}, not a whole number")
    return int(value)


def _positive(row: dict[str, Any], column: str) -> float:
    return _number(row, column, "above 0")


def _gpu_kind(row: dict[str, Any]) -> GpuKind:
    memory_bytes = round(_positive(row, "memory_gib") * 2**30)
    h2d, d2h = (_positive(row, column) * GIGA for column in ("h2d_gb_s", "d2h_gb_s"))
    usd_per_hour = _number(row, "usd_per_hour") if row["usd_per_hour"] else 0.0
    return GpuKind(row["gpu"], row["name"], memory_bytes, h2d, d2h, usd_per_hour)


def _host_kind(row: dict[str, Any]) -> HostKind:
    columns = ("cpu_bandwidth_gb_s", "disk_gb_s", "network_gb_s", "h2d_cap_gb_s", "d2h_cap_gb_s")
    memory_bytes = round(_positive(row, "memory_gib") * 2**30)
    return HostKind(row["host"], memory_bytes, *(_positive(row, column) * GIGA for column in columns))


def _weights(row: dict[str, Any]) -> Weights:
    layers, layer_bytes = _whole(row, "layers"), _whole(row, "layer_bytes")
    head_bytes, kv_bytes = _whole(row, "head_bytes", "at least 0"), _whole(row, "kv_bytes_per_token_layer")
    return Weights(*model_of(row), layers, layer_bytes, head_bytes, kv_bytes, _whole(row, "max_context"))


def _switch_costs(row: dict[str, Any]) -> SwitchCosts:
    start_s, fixed_s = _number(row, "start_s"), _number(row, "reload_fixed_s")
    reload, save, restore = (_positive(row, f"{name}_gb_s") * GIGA for name in ("reload", "kv_save", "kv_restore"))
    free_s, wake_s = _number(row, "free_s"), _number(row, "wake_fixed_s")
    return SwitchCosts(start_s, fixed_s, reload, save, restore, free_s, wake_s, row["kind"], row["source"])


def table_header(path: Path) -> dict[str, Any]:
    """What table.yaml says of the tables beside it. Raises ProfileError."""
    header = read_yaml(path, ProfileError)
    missing = [key for key in ("gpu", "host", "engine") if not isinstance(header, dict) or key not in header]
    if missing:
        raise ProfileError(f"{path}: '{missing[0]}' is missing; a table.yaml names gpu, host and engine")
    if header.get("offload", "cpu") not in ("cpu", "stream"):
        raise ProfileError(f"{path}: offload {shown(header['offload'])} is neither cpu nor stream")
    for key in ("gpu", "host", "engine"):
        name = header[key]
        if not isinstance(name, str) or not name or not name.isprintable():
            raise ProfileError(f"{path}: '{key}' is {shown(name)}, not a name; put one there, in quotes if need be")
    return dict(header)


def _grid(rows: list[dict[str, Any]], axes: tuple[str, ...], value: str, label: str) -> Grid:
    points: dict[tuple[float, ...], float] = {}
    for row in rows:
        point = tuple(float(_whole(row, axis, "at least 0")) for axis in axes)
        seconds = _positive(row, value)
        if points.get(point, seconds) != seconds:
            raise ProfileError(f"{row['_where']}: a second, different {value} for the same point; keep one")
        points[point] = seconds
    knots = tuple(tuple(sorted({point[axis] for point in points})) for axis in range(len(axes)))
    for point in itertools.product(*knots):  # made one by one: a few rows may span a grid without end
        if point not in points:
            hole = ", ".join(f"{axis} {number:g}" for axis, number in zip(axes, point, strict=True))
            raise ProfileError(f"{label}: no {value} at {hole}; a table must be a full grid (add the missing row)")
    return Grid(knots, tuple(points[point] for point in itertools.product(*knots)))
