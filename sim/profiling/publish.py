"""Writes tables and their rows of gpus.csv, nodes.csv and models.csv into a folder of profiles.

Everything is checked before the first byte: what exists and disagrees is refused, a table appears whole or not at all.
`fill` and `published` call it.
"""

from __future__ import annotations

import csv
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sim.common.errors import ProfileError
from sim.profiles.library import Library
from sim.profiles.profile import Weights
from sim.profiling import points
from sim.profiling.fitting import Key
from sim.profiling.grids import Row, sources_of
from sim.profiling.measured import Measured, csv_text, write_text

COLUMNS = {
    "gpus.csv": ("gpu", "name", "memory_gib", "h2d_gb_s", "d2h_gb_s", "usd_per_hour", "kind", "source"),
    "nodes.csv": (
        "host", "cpu", "memory_gib", "cpu_bandwidth_gb_s", "disk_gb_s", "network_gb_s", "h2d_cap_gb_s",
        "d2h_cap_gb_s", "kind", "source",
    ),
    "models.csv": points.COLUMNS[points.ModelRow],
}  # fmt: skip
GIGA, GIB = 1e9, 2**30
SAME_BYTES = 0.02  # two files of a model differ by their metadata
SAME_MEMORY = 0.15  # a driver keeps some of a GPU's memory for itself
# What a host or GPU has where nobody says; each row that takes one is `analytic`, and it is said.
ASSUMED_LINK_GB_S, ASSUMED_CPU_GB_S, ASSUMED_DISK_GB_S, ASSUMED_NETWORK_GB_S = 12.0, 50.0, 2.5, 1.25
ASSUMED_HOST_GIB, ASSUMED_GPU_GIB = 64.0, 24.0


@dataclass(frozen=True)
class ProfileTable:
    """A table before it is written: (gpu, host, engine), its header, and rows by file."""

    name: tuple[str, str, str]
    header: dict[str, Any]
    files: dict[str, list[Row]]

    @classmethod
    def of(
        cls, name: tuple[str, str, str], offload: str, head_first: bool, text: str, files: dict[str, list[Row]]
    ) -> ProfileTable:
        """`text`: its description."""
        header: dict[str, Any] = dict(zip(("gpu", "host", "engine"), name, strict=True)) | {"offload": offload}
        if head_first:
            header["head"] = "first"  # for people: from one layer on, the output head is on the GPU
        sources = sorted({part for rows in files.values() for row in rows for part in row["source"].split("+")})
        return cls(name, header | {"description": text, "sources": sources}, files)


def gpu_row(measured: Measured, library: Library | None, replacing: bool, notices: list[str]) -> tuple[str, Row] | None:
    """The row of gpus.csv; None: it is there already. Raises ProfileError: another memory is written there."""
    name = str(measured.facts.get("gpu_name") or measured.gpu)
    memory_gib = _fact(measured, "gpu_memory_gib")
    known = library.gpus.get(measured.gpu) if library is not None else None
    down, up = _link(measured, "h2d"), _link(measured, "d2h")
    if known is not None:
        _must_remember_alike(f"gpus.csv: {measured.gpu}", known.memory_bytes, memory_gib, f"{measured.name}'s", "GPU")
        if not replacing or down is None:
            if down is not None and abs(down * GIGA / known.h2d_bytes_per_s - 1) > 0.1:
                notices.append(
                    f"gpus.csv: {measured.gpu} keeps {known.h2d_bytes_per_s / GIGA:.3g} GB/s to the GPU; {down:.3g} "
                    "were measured (--replace takes those)"
                )
            return None
    if memory_gib is None:
        memory_gib = known.memory_bytes / GIB if known is not None else _memory_by_name(name)
        if known is None:
            notices.append(f"gpus.csv: {memory_gib:g} GiB is assumed for {measured.gpu}; write gpu_memory_gib")
    if down is None:
        notices.append(f"gpus.csv: a link of {ASSUMED_LINK_GB_S:g} GB/s is assumed for {measured.gpu}")
    links = (f"{down or ASSUMED_LINK_GB_S:.4g}", f"{up or down or ASSUMED_LINK_GB_S:.4g}")
    price = f"{known.usd_per_hour:g}" if known is not None and known.usd_per_hour else ""
    cells = (measured.gpu, name, f"{memory_gib:.6g}", *links, price, *_known_how(measured, down))
    return "gpus.csv", dict(zip(COLUMNS["gpus.csv"], cells, strict=True))


def host_row(
    measured: Measured, library: Library | None, replacing: bool, notices: list[str]
) -> tuple[str, Row] | None:
    """The row of nodes.csv; None: it is there already. Raises ProfileError: another memory is written there."""
    memory_gib = _fact(measured, "host_memory_gib")
    known = library.hosts.get(measured.host) if library is not None else None
    speed, disk = _plain(measured, "cpu"), _plain(measured, "disk")
    if known is not None:
        _must_remember_alike(
            f"nodes.csv: {measured.host}", known.memory_bytes, memory_gib, f"{measured.name}'s", "host"
        )
        if not (replacing and speed):
            return None
        memory_gib = memory_gib or known.memory_bytes / GIB
    assumed = [
        *([f"{ASSUMED_HOST_GIB:g} GiB"] if memory_gib is None else []),
        *([f"{ASSUMED_CPU_GB_S:g} GB/s of its CPU"] if speed is None else []),
        *([f"{ASSUMED_DISK_GB_S:g} GB/s of its disk"] if disk is None else []),
    ]
    if assumed:
        notices.append(f"nodes.csv: assumed for {measured.host}: {', '.join(assumed)}")
    cells = (
        measured.host,
        str(measured.facts.get("cpu") or measured.host),
        f"{memory_gib or ASSUMED_HOST_GIB:.6g}",
        f"{speed or ASSUMED_CPU_GB_S:.4g}",
        f"{disk or ASSUMED_DISK_GB_S:.4g}",
        f"{ASSUMED_NETWORK_GB_S:g}",
        *(f"{max(_link(measured, way) or 0.0, ASSUMED_LINK_GB_S):.4g}" for way in ("h2d", "d2h")),
        *_known_how(measured, speed),
    )
    return "nodes.csv", dict(zip(COLUMNS["nodes.csv"], cells, strict=True))


def _known_how(measured: Measured, rate: float | None) -> tuple[str, str]:
    return ("analytic", "assumption") if rate is None else ("measured", sources_of(measured.bandwidth))


def _must_remember_alike(row: str, known_bytes: float, memory_gib: float | None, whose: str, what: str) -> None:
    if memory_gib is not None and abs(memory_gib * GIB / known_bytes - 1) > SAME_MEMORY:
        raise ProfileError(
            f"{row} has {known_bytes / GIB:g} GiB there, but {memory_gib:g} GiB in {whose} provenance.yaml; "
            f"give the {what} another name, or correct one of them"
        )


def model_rows(parts: Sequence[Measured], weights: Mapping[Key, Weights], library: Library | None) -> list[Row]:
    """The rows of models.csv that are new. Raises ProfileError: a model that weighs otherwise there."""
    rows = {}
    for measured in parts:
        for own in measured.models:
            old = library.weights.get(own.model_key) if library is not None else None
            if own.model_key in weights and old is None:
                rows[own.model_key] = {name: str(getattr(own, name)) for name in COLUMNS["models.csv"]}
            elif old is not None and own.model_key in weights:
                _must_weigh_alike(own.where or measured.name, old, weights[own.model_key])
    return list(rows.values())


def _must_weigh_alike(where: str, old: Weights, new: Weights) -> None:
    for name in ("layers", "kv_bytes_per_token_layer", "layer_bytes", "total_bytes"):
        mine, theirs = getattr(new, name), getattr(old, name)
        close = SAME_BYTES * theirs if name in ("layer_bytes", "total_bytes") else 0
        if abs(mine - theirs) > close:
            raise ProfileError(
                f"{where}: {name} of {new.model} {new.quantization} is {mine:,}, but {theirs:,} in the profiles' "
                "models.csv; give the model another name, or correct one of them"
            )


def publish(
    target: Path,
    tables: Sequence[ProfileTable],
    specifications: Sequence[tuple[str, Row] | None],
    models: Sequence[Row],
    replacing: bool,
) -> list[Path]:
    """Write all; the folders of the tables, in order. Raises ProfileError: a table exists (and `replacing` is off)."""
    folders = [target / "tables" / "--".join(table.name) for table in tables]
    for folder in folders:
        if folder.exists() and not replacing:
            raise ProfileError(f"{folder}: is there already; --replace overwrites it, --into FOLDER goes elsewhere")
    rows: dict[str, list[Row]] = {name: [] for name in COLUMNS}
    for each in specifications:
        if each is not None:
            rows[each[0]].append(each[1])
    rows["models.csv"] += models
    texts = {name: _with_rows(target / name, COLUMNS[name], new) for name, new in rows.items()}
    (target / "tables").mkdir(parents=True, exist_ok=True)
    # Specifications first: a table is never there before the GPU, host and models that it names.
    for name, text in texts.items():
        if text is not None:
            write_text(target / name, text)
    for table, folder in zip(tables, folders, strict=True):
        _write_table(table, folder)
    return folders


def _write_table(table: ProfileTable, folder: Path) -> None:
    # Beside `tables`, not in it: nobody who looks for tables finds these, even after a crash.
    part, old = (folder.parent.parent / f".{folder.name}.{word}" for word in ("part", "old"))
    for left_behind in (part, old):
        shutil.rmtree(left_behind, ignore_errors=True)
    part.mkdir()
    for name, rows in table.files.items():
        write_text(part / f"{name}.csv", _csv(tuple(rows[0]), rows))
    header = yaml.safe_dump(table.header, sort_keys=False, width=100, allow_unicode=True)
    write_text(part / "table.yaml", header)
    if folder.exists():
        folder.rename(old)
    part.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _with_rows(path: Path, columns: tuple[str, ...], new: Sequence[Row]) -> str | None:
    """The file with rows added, or exchanged where the first column (of models: two) is the same; None: as it is."""
    old: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            old = list(csv.DictReader(file))
    elif not new:
        return _csv(columns, [])
    keys = columns[: 2 if columns[0] == "model" else 1]
    fresh = {tuple(row[key] for key in keys): row for row in new}
    if not fresh:
        return None
    merged = [fresh.pop(tuple(row[key] for key in keys), row) for row in old]
    return _csv(tuple(old[0]) if old else columns, [*merged, *fresh.values()])


def _csv(columns: tuple[str, ...], rows: Sequence[Mapping[str, str]]) -> str:
    return csv_text([columns, *([row.get(column, "") for column in columns] for row in rows)])


def _fact(measured: Measured, name: str) -> float | None:
    value = measured.facts.get(name)
    if value in (None, ""):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ProfileError(f"{measured.name}, provenance.yaml: '{name}' is {value!r}, not a number above 0")
    return float(value)


def _memory_by_name(name: str) -> float:
    match = re.search(r"(\d{1,3}) ?(?:GB|GiB)\b", name, re.IGNORECASE)
    return float(match[1]) if match else ASSUMED_GPU_GIB


def _link(measured: Measured, direction: str) -> float | None:
    """The quickest pinned copy one way, else the quickest pageable one."""
    for memory in ("pinned", "pageable"):
        rows = [row for row in measured.bandwidth if (row.direction, row.memory) == (direction, memory)]
        rates = [rate for row in rows if (rate := getattr(row, f"{direction}_gb_s"))]
        if rates:
            return float(max(rates))
    return None


def _plain(measured: Measured, direction: str) -> float | None:
    rates = [row.h2d_gb_s for row in measured.bandwidth if row.direction == direction and row.h2d_gb_s]
    return float(max(rates)) if rates else None
