"""Opens a folder of profiles: CSV tables of measured, published, fitted or analytic numbers become `Profile` lookups.

Tables are read when they are first asked for. Whatever is missing, malformed or contradictory is a ProfileError that
names file and row. build.py and the command line use it; nothing here knows a scenario.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from sim.errors import ProfileError, did_you_mean
from sim.locate import data_folder
from sim.profiles import GpuKind, Grid, HostKind, Profile, SwitchCosts, Weights

GIGA = 1e9
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
        self.gpus = {row["gpu"]: _gpu_kind(row) for row in _rows(self.folder / "gpus.csv")}
        self.hosts = {row["host"]: _host_kind(row) for row in _rows(self.folder / "nodes.csv")}
        self.weights = {(row["model"], row["quantization"]): _weights(row) for row in _rows(self.folder / "models.csv")}
        self._tables = {
            (table["gpu"], table["host"], table["engine"]): (path.parent, str(table.get("offload", "cpu")))
            for path in sorted(self.folder.glob("*/*/table.yaml"))
            for table in [_table_header(path)]
        }
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
        return Profile(
            weights,
            _grid(
                self._model_rows(folder / "decode.csv", key, label),
                ("layers", "batch", "context"),
                "step_s",
                label,
            ),
            _grid(
                self._model_rows(folder / "prefill.csv", key, label),
                ("layers", "prompt_tokens"),
                "prefill_s",
                label,
            ),
            _switch_costs(switch[0]),
            offload,
            label,
        )

    def _model_rows(self, path: Path, key: tuple[str, str], label: str) -> list[dict[str, Any]]:
        if path not in self._rows_of:
            grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
            for row in _rows(path):
                grouped.setdefault((row["model"], row["quantization"]), []).append(row)
            self._rows_of[path] = grouped
        if key not in self._rows_of[path]:
            have = ", ".join(f"{model} {quantization}" for model, quantization in self._rows_of[path])
            raise ProfileError(f"no profile tables for {label}; {path.name} there has: {have}")
        return self._rows_of[path][key]

    def digests(self, profiles: Iterable[Profile]) -> list[tuple[str, str]]:
        """(label, hash of all its numbers) of each profile, for the identity of a run."""
        found = []
        for profile in profiles:
            text = repr((profile.weights, profile.switch, profile.offload, profile._decode, profile._prefill))
            found.append((profile.label, hashlib.sha256(text.encode()).hexdigest()))
        return found


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows: list[dict[str, Any]] = list(csv.DictReader(file))
    except OSError as error:
        raise ProfileError(f"{path}: cannot read the table ({error.strerror}); is the folder complete?") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ProfileError(f"{path}: not a UTF-8 CSV file ({error}); make it again") from None
    for number, row in enumerate(rows, start=2):
        row["_where"] = f"{path}, row {number}"
        if None in row or any(value is None for value in row.values()):
            raise ProfileError(f"{path}, row {number}: wrong number of columns; is the file cut off?")
        missing = [column for column in NAMES.get(path.name, ()) if column not in row]
        if missing:
            raise ProfileError(f"{path}: column '{missing[0]}' is missing; {did_you_mean(missing[0], row)}")
        if row.get("kind", "measured") not in KINDS:
            raise ProfileError(f"{path}, row {number}: kind '{row['kind']}' is none of {', '.join(KINDS)}")
    return rows


def _number(row: dict[str, Any], column: str, least: str = "at least 0") -> float:
    """A finite number, `at least 0` or `above 0`."""
    if column not in row:
        raise ProfileError(f"{row['_where']}: column '{column}' is missing; {did_you_mean(column, row)}")
    try:
        value = float(row[column])
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf") or (least == "above 0" and not value):
        raise ProfileError(f"{row['_where']}: column '{column}' is '{row[column]}', not a number {least}")
    return value


def _positive(row: dict[str, Any], column: str) -> float:
    return _number(row, column, "above 0")


def _gpu_kind(row: dict[str, Any]) -> GpuKind:
    return GpuKind(
        row["gpu"],
        row["name"],
        round(_positive(row, "memory_gib") * 2**30),
        _positive(row, "h2d_gb_s") * GIGA,
        _positive(row, "d2h_gb_s") * GIGA,
        _number(row, "usd_per_hour") if row["usd_per_hour"] else 0.0,
    )


def _host_kind(row: dict[str, Any]) -> HostKind:
    columns = ("cpu_bandwidth_gb_s", "disk_gb_s", "network_gb_s", "h2d_cap_gb_s", "d2h_cap_gb_s")
    return HostKind(
        row["host"],
        round(_positive(row, "memory_gib") * 2**30),
        *(_positive(row, column) * GIGA for column in columns),
    )


def _weights(row: dict[str, Any]) -> Weights:
    return Weights(
        row["model"],
        row["quantization"],
        layers=round(_positive(row, "layers")),
        layer_bytes=round(_positive(row, "layer_bytes")),
        head_bytes=round(_number(row, "head_bytes")),
        kv_bytes_per_token_layer=round(_positive(row, "kv_bytes_per_token_layer")),
        max_context=round(_positive(row, "max_context")),
    )


def _switch_costs(row: dict[str, Any]) -> SwitchCosts:
    return SwitchCosts(
        _number(row, "start_s"),
        _number(row, "reload_fixed_s"),
        _positive(row, "reload_gb_s") * GIGA,
        _positive(row, "kv_save_gb_s") * GIGA,
        _positive(row, "kv_restore_gb_s") * GIGA,
        _number(row, "free_s"),
        _number(row, "wake_fixed_s"),
        row["kind"],
        row["source"],
    )


def _table_header(path: Path) -> dict[str, Any]:
    try:
        header = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ProfileError(f"{path}: not a readable YAML file ({' '.join(str(error).split())})") from None
    missing = [key for key in ("gpu", "host", "engine") if not isinstance(header, dict) or key not in header]
    if missing:
        raise ProfileError(f"{path}: '{missing[0]}' is missing; a table.yaml names gpu, host and engine")
    if header.get("offload", "cpu") not in ("cpu", "stream"):
        raise ProfileError(f"{path}: offload '{header['offload']}' is neither cpu nor stream")
    return dict(header)


def _grid(rows: list[dict[str, Any]], axes: tuple[str, ...], value: str, label: str) -> Grid:
    points: dict[tuple[float, ...], float] = {}
    for row in rows:
        point = tuple(_number(row, axis) for axis in axes)
        seconds = _positive(row, value)
        if points.get(point, seconds) != seconds:
            raise ProfileError(f"{row['_where']}: a second, different {value} for the same point; keep one")
        points[point] = seconds
    knots = tuple(tuple(sorted({point[axis] for point in points})) for axis in range(len(axes)))
    order: list[tuple[float, ...]] = [()]
    for axis in knots:
        order = [(*point, knot) for point in order for knot in axis]
    for point in order:
        if point not in points:
            hole = ", ".join(f"{axis} {number:g}" for axis, number in zip(axes, point, strict=True))
            raise ProfileError(f"{label}: no {value} at {hole}; a table must be a full grid (add the missing row)")
    return Grid(knots, tuple(points[point] for point in order))
