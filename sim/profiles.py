"""Opens profiles/: tables of measured, published, fitted or analytic numbers become pure lookups of times and bytes.

`Library` reads the folder, `Library.profile(model, quantization, gpu, host, engine)` gives a `Profile`: decode time
against layers x batch x context, prefill time against layers x prompt, weight and KV bytes, switch costs. Interpolation
is linear in time; a point outside a table is a ProfileError. The engine reads times from here and from nowhere else.
"""

from __future__ import annotations

import csv
import hashlib
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from sim.errors import ProfileError, did_you_mean
from sim.locate import data_folder

GIGA = 1e9
_KINDS = ("measured", "published", "fitted", "analytic")


@dataclass(frozen=True)
class GpuKind:
    """A kind of GPU. `h2d`: host to GPU, `d2h`: GPU to host; both in bytes per second."""

    gpu: str
    name: str
    memory_bytes: int
    h2d_bytes_per_s: float
    d2h_bytes_per_s: float
    usd_per_hour: float


@dataclass(frozen=True)
class HostKind:
    """A kind of host. The caps bound the sum over its GPUs, per direction; all bandwidths in bytes per second."""

    host: str
    memory_bytes: int
    cpu_bytes_per_s: float
    disk_bytes_per_s: float
    network_bytes_per_s: float
    h2d_cap_bytes_per_s: float
    d2h_cap_bytes_per_s: float


@dataclass(frozen=True)
class Weights:
    """What a model in one quantisation weighs. The output head goes to the GPU with the last layer."""

    model: str
    quantization: str
    layers: int
    layer_bytes: int
    head_bytes: int
    kv_bytes_per_token_layer: int
    max_context: int

    @property
    def total_bytes(self) -> int:
        return self.layers * self.layer_bytes + self.head_bytes

    def gpu_bytes(self, layers: int) -> int:
        """Weight bytes on the GPU with `layers` of the model's layers there."""
        return layers * self.layer_bytes + (self.head_bytes if layers == self.layers else 0)

    def host_bytes(self, layers: int) -> int:
        """Weight bytes that stay in host memory."""
        return self.total_bytes - self.gpu_bytes(layers)


@dataclass(frozen=True)
class SwitchCosts:
    """What changing a loaded model costs: seconds that do not depend on bytes, and effective bytes per second."""

    start_s: float
    reload_fixed_s: float
    reload_bytes_per_s: float
    kv_save_bytes_per_s: float
    kv_restore_bytes_per_s: float
    free_s: float
    wake_fixed_s: float
    kind: str
    source: str


@dataclass(frozen=True)
class Curve:
    """Seconds against one variable, linear between `knots` and split into a GPU part and a host part.

    Below the first knot a time is the first knot's; above the last it is an error of the caller.
    """

    knots: tuple[float, ...]
    gpu_s: tuple[float, ...]
    host_s: tuple[float, ...]

    @cached_property
    def segments(self) -> tuple[tuple[float, float, float, float, float], ...]:
        """Per segment: (upper end, GPU intercept, GPU slope, host intercept, host slope)."""
        found = [(self.knots[0], self.gpu_s[0], 0.0, self.host_s[0], 0.0)]
        for low in range(len(self.knots) - 1):
            left, right = self.knots[low], self.knots[low + 1]
            gpu_slope = (self.gpu_s[low + 1] - self.gpu_s[low]) / (right - left)
            host_slope = (self.host_s[low + 1] - self.host_s[low]) / (right - left)
            found.append(
                (
                    right,
                    self.gpu_s[low] - gpu_slope * left,
                    gpu_slope,
                    self.host_s[low] - host_slope * left,
                    host_slope,
                )
            )
        return tuple(found)

    def at(self, value: float) -> tuple[float, float]:
        """(GPU seconds, host seconds) at `value`, which is at most the last knot."""
        for upper, gpu, gpu_slope, host, host_slope in self.segments:
            if value <= upper:
                return gpu + gpu_slope * value, host + host_slope * value
        raise AssertionError(f"{value} is above the table's last knot {self.knots[-1]}")


@dataclass(frozen=True)
class Grid:
    """A full rectangular table: knots of each axis, and seconds in row-major order."""

    axes: tuple[tuple[float, ...], ...]
    seconds: tuple[float, ...]

    def slice(self, *point: float) -> tuple[float, ...]:
        """Seconds along the last axis, multilinearly interpolated in time at `point` of the axes before it."""
        corners: list[tuple[int, float]] = [(0, 1.0)]
        for axis, value in zip(self.axes, point, strict=False):
            low, weight = _bracket(axis, value)
            corners = [
                (start * len(axis) + knot, share * part)
                for start, share in corners
                for knot, part in ((low, 1.0 - weight), (low + 1, weight))
                if part > 0.0
            ]
        width = len(self.axes[-1])
        return tuple(
            sum(share * self.seconds[start * width + column] for start, share in corners) for column in range(width)
        )


def _bracket(axis: tuple[float, ...], value: float) -> tuple[int, float]:
    """The knot at or below `value` and the weight of the next one; the first knot below the table."""
    assert value <= axis[-1], f"{value} is above the table's last knot {axis[-1]}"
    if value <= axis[0]:
        return 0, 0.0
    low = bisect_right(axis, value) - 1
    if low == len(axis) - 1:
        return low, 0.0
    return low, (value - axis[low]) / (axis[low + 1] - axis[low])


class Profile:
    """One (model, quantisation, GPU, host, engine): all the times and bytes that a run asks for.

    An iteration's GPU part is layers/L of the full-residency time, its host part is the rest (model.md section 5).
    `offload` says who has the layers outside the GPU: `cpu` computes them, `stream` sends their weights over the link.
    """

    def __init__(
        self, weights: Weights, decode: Grid, prefill: Grid, switch: SwitchCosts, offload: str, label: str
    ) -> None:
        self.weights = weights
        self.switch = switch
        self.offload = offload
        self.label = label
        self._decode = decode
        self._prefill = prefill
        self._decode_curves: dict[tuple[int, int], Curve] = {}
        self._prefill_curves: dict[int, Curve] = {}
        self._check_reach()

    def _check_reach(self) -> None:
        if self._decode.axes[0][-1] < self.weights.layers or self._prefill.axes[0][-1] < self.weights.layers:
            raise ProfileError(f"{self.label}: the tables end below {self.weights.layers} layers; add the full model")

    @property
    def fewest_layers(self) -> int:
        """The least residency that the tables cover."""
        return int(max(self._decode.axes[0][0], self._prefill.axes[0][0]))

    @property
    def largest_batch(self) -> int:
        return int(self._decode.axes[1][-1])

    @property
    def longest_context(self) -> int:
        return int(min(self._decode.axes[2][-1], self._prefill.axes[1][-1]))

    def decode_curve(self, layers: int, batch: int) -> Curve:
        """Seconds of one decode iteration of `batch` sequences against their mean context."""
        curve = self._decode_curves.get((layers, batch))
        if curve is None:
            curve = self._split(
                layers,
                self._decode.axes[2],
                self._decode.slice(layers, batch),
                self._decode.slice(self.weights.layers, batch),
            )
            self._decode_curves[layers, batch] = curve
        return curve

    def prefill_curve(self, layers: int) -> Curve:
        """Seconds of an iteration that computes a prompt against its tokens; at 0 the iteration's fixed cost."""
        curve = self._prefill_curves.get(layers)
        if curve is None:
            curve = self._split(
                layers,
                self._prefill.axes[1],
                self._prefill.slice(layers),
                self._prefill.slice(self.weights.layers),
            )
            self._prefill_curves[layers] = curve
        return curve

    def _split(
        self, layers: int, knots: tuple[float, ...], seconds: tuple[float, ...], full: tuple[float, ...]
    ) -> Curve:
        share = layers / self.weights.layers
        gpu = tuple(share * whole for whole in full)
        host = tuple(here - there for here, there in zip(seconds, gpu, strict=True))
        if layers == self.weights.layers:
            host = tuple(0.0 for _ in host)
        elif min(host) < 0:
            raise ProfileError(
                f"{self.label}: {layers} layers on the GPU are faster than their share of the full model; "
                "mend the table (profile check lists such rows)"
            )
        return Curve(knots, gpu, host)

    def step_s(self, layers: int, batch: int = 1, context: float = 0.0) -> float:
        """Seconds of one decode iteration with nobody else on the GPU or the CPU."""
        gpu_s, host_s = self.decode_curve(layers, batch).at(context)
        return gpu_s + host_s

    def prefill_s(self, layers: int, prompt_tokens: float) -> float:
        """Seconds to compute a prompt alone in one iteration."""
        gpu_s, host_s = self.prefill_curve(layers).at(prompt_tokens)
        return gpu_s + host_s

    def load_s(self, layers: int, link_bytes_per_s: float) -> float:
        """Seconds to load `layers` from host memory on an idle link, engine start included."""
        rate = min(self.switch.reload_bytes_per_s, link_bytes_per_s)
        return self.switch.start_s + self.switch.reload_fixed_s + self.weights.gpu_bytes(layers) / rate


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
        if row.get("kind", "measured") not in _KINDS:
            raise ProfileError(f"{path}, row {number}: kind '{row['kind']}' is none of {', '.join(_KINDS)}")
    return rows


def _number(row: dict[str, Any], column: str) -> float:
    if column not in row:
        raise ProfileError(f"{row['_where']}: column '{column}' is missing; {did_you_mean(column, row)}")
    try:
        value = float(row[column])
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise ProfileError(f"{row['_where']}: column '{column}' is '{row[column]}', not a number of at least 0")
    return value


def _gpu_kind(row: dict[str, Any]) -> GpuKind:
    return GpuKind(
        row["gpu"],
        row["name"],
        round(_number(row, "memory_gib") * 2**30),
        _number(row, "h2d_gb_s") * GIGA,
        _number(row, "d2h_gb_s") * GIGA,
        _number(row, "usd_per_hour") if row["usd_per_hour"] else 0.0,
    )


def _host_kind(row: dict[str, Any]) -> HostKind:
    columns = ("cpu_bandwidth_gb_s", "disk_gb_s", "network_gb_s", "h2d_cap_gb_s", "d2h_cap_gb_s")
    return HostKind(
        row["host"],
        round(_number(row, "memory_gib") * 2**30),
        *(_number(row, column) * GIGA for column in columns),
    )


def _weights(row: dict[str, Any]) -> Weights:
    columns = ("layers", "layer_bytes", "head_bytes", "kv_bytes_per_token_layer", "max_context")
    return Weights(row["model"], row["quantization"], *(round(_number(row, column)) for column in columns))


def _switch_costs(row: dict[str, Any]) -> SwitchCosts:
    return SwitchCosts(
        _number(row, "start_s"),
        _number(row, "reload_fixed_s"),
        _number(row, "reload_gb_s") * GIGA,
        _number(row, "kv_save_gb_s") * GIGA,
        _number(row, "kv_restore_gb_s") * GIGA,
        _number(row, "free_s"),
        _number(row, "wake_fixed_s"),
        row["kind"],
        row["source"],
    )


def _table_header(path: Path) -> dict[str, Any]:
    header = yaml.safe_load(path.read_text(encoding="utf-8"))
    missing = [key for key in ("gpu", "host", "engine") if not isinstance(header, dict) or key not in header]
    if missing:
        raise ProfileError(f"{path}: '{missing[0]}' is missing; a table.yaml names gpu, host and engine")
    return dict(header)


def _grid(rows: list[dict[str, Any]], axes: tuple[str, ...], value: str, label: str) -> Grid:
    points: dict[tuple[float, ...], float] = {}
    for row in rows:
        point = tuple(_number(row, axis) for axis in axes)
        seconds = _number(row, value)
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
            raise ProfileError(
                f"{label}: no {value} at {hole}; a table must be a full grid (profile fill completes it)"
            )
    return Grid(knots, tuple(points[point] for point in order))
