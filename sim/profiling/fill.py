"""Completes tables from measured points and writes them into a folder of profiles, where a scenario finds them.

`fill` is the one way in, for the command line and sim/hardware. It fits (fitting), makes full grids (grids)
and switch costs (switching), and writes each table at once (publish). It measures nothing and runs no simulation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

import numpy as np

from sim.common.data_files import data_folder
from sim.common.errors import ConfigError, ProfileError, did_you_mean
from sim.profiles.library import KINDS, Library, grouped
from sim.profiles.profile import Weights
from sim.profiling.collect import GIB, Collected, collect, model_weights, offloads
from sim.profiling.fitting import Fit, Key, fit_rates, transfer_errors
from sim.profiling.grids import Known, Maker, Row, table_rows
from sim.profiling.measured import Measured, merge, read_measured
from sim.profiling.nearest import expected, library_of
from sim.profiling.physics import Rates, shape_of
from sim.profiling.publish import ProfileTable, gpu_row, host_row, model_rows, publish
from sim.profiling.switching import switch_rows


@dataclass(frozen=True)
class FilledTable:
    """One table as it was written. `decode_error`, `prefill_error`: mean left-out error of its points, None: none."""

    gpu: str
    host: str
    engine: str
    offload: str
    folder: Path
    models: tuple[Key, ...]
    rows: dict[str, int]  # of each kind, decode and prefill together
    points: int
    decode_error: float | None
    prefill_error: float | None
    transfer: float | None


@dataclass(frozen=True)
class Filled:
    """What `fill` made, and what its reader should know."""

    into: Path
    tables: tuple[FilledTable, ...]
    notices: tuple[str, ...]


@dataclass(frozen=True)
class Draft:
    """A table before it is written, and the models with their weights."""

    table: ProfileTable
    models: dict[Key, Weights]
    facts: FilledTable
    notices: tuple[str, ...]


def fill(
    folders: Sequence[Path], into: Path | None = None, models: Sequence[Key] = (), replace_tables: bool = False
) -> Filled:
    """Complete the tables of measured folders and write them into `into` (default: the project's profiles).

    `models`: (model, quantization) that were not measured here but are to have rows too. Folders of one GPU, host and
    engine are merged. Raises ProfileError: a folder that cannot be read, points that contradict each other or what the
    profiles say, a table that exists without `replace_tables`. Nothing is written then.
    """
    target = into or data_folder("profiles")
    library = library_of(target)
    known = dict(library.weights) if library is not None else {}
    notices: list[str] = []
    parts = read_folders(folders, known)
    drafts = [draft(measured, word, library, models) for measured in parts for word in offloads(measured, known)]
    specifications = [
        row(measured, library, replace_tables, notices) for row in (gpu_row, host_row) for measured in parts
    ]
    weights = {key: each for one in drafts for key, each in one.models.items()}
    rows = model_rows(parts, weights, library)
    written = publish(target, [one.table for one in drafts], specifications, rows, replace_tables)
    notices += [notice for one in drafts for notice in one.notices]
    tables = [replace(one.facts, folder=folder) for one, folder in zip(drafts, written, strict=True)]
    return Filled(target, tuple(tables), tuple(dict.fromkeys(notices)))


def parse_models(text: str | None) -> list[Key]:
    """What --models names: NAME:QUANT,... Raises ConfigError."""
    keys = []
    for part in (text or "").split(","):
        if part.strip():
            name, sign, quantization = part.strip().rpartition(":")
            if not sign or not name or not quantization:
                raise ConfigError(f"--models {part.strip()}: write NAME:QUANT, for example Llama-3-8B:Q4_K_M")
            keys.append((name, quantization))
    return list(dict.fromkeys(keys))


def read_folders(folders: Sequence[Path], known: dict[Key, Weights]) -> list[Measured]:
    """The measured folders, those of one GPU, host and engine as one. Raises ProfileError."""
    groups = grouped((read_measured(folder, known) for folder in dict.fromkeys(folders)), attrgetter("name"))
    return [parts[0] if len(parts) == 1 else merge(parts, known) for parts in groups.values()]


def table_name(measured: Measured, offload: str) -> tuple[str, str, str]:
    """(gpu, host, engine) of the tables of one way of offloading: streaming is an engine of its own."""
    suffix = "-stream" if offload == "stream" and not measured.engine.endswith("-stream") else ""
    return measured.gpu, measured.host, measured.engine + suffix


def gpu_memory_bytes(measured: Measured, library: Library | None) -> float | None:
    """The GPU's memory, where it bounds what can have been measured: from the record, else from the profiles."""
    if measured.facts.get("device") == "cpu":
        return None
    said = measured.facts.get("gpu_memory_gib")
    if isinstance(said, int | float) and said > 0:
        return float(said) * GIB
    known = library.gpus.get(measured.gpu) if library is not None else None
    return float(known.memory_bytes) if known is not None else None


@dataclass(frozen=True)
class Fits:
    """The fits of one table, and the errors that they leave. A part without points has none: its rates are `rates`."""

    decode: Fit
    prefill: Fit
    decode_transfer: float | None
    prefill_transfer: float | None


def fit_table(found: Collected, start: Rates) -> Fits:
    """Decode steps first, then prompts with what steps told of the bandwidths."""
    decode, prefill = found.decode(), found.prefill()
    steps = fit_rates(decode, start, found.offload) if decode else Fit(start, {}, found.offload)
    bare = Fit(steps.shared, {key: steps.rates(key) for key in found.keys}, found.offload)
    prompts = fit_rates(prefill, steps.shared, found.offload) if prefill else bare
    transfer = transfer_errors(decode, start, found.offload), transfer_errors(prefill, steps.shared, found.offload)
    return Fits(steps, prompts, *(max(errors.values(), default=None) for errors in transfer))


def left_out_error(fit: Fit) -> float | None:
    """Mean error of points predicted without themselves; None with fewer than three of a model."""
    parts = [np.abs(each.left_out()) for each in fit.residuals.values() if len(each.values) > 2]
    return float(np.mean(np.concatenate(parts))) if parts else None


def draft(measured: Measured, offload: str, library: Library | None, models: Sequence[Key]) -> Draft:
    """The full tables of one folder and way of offloading, not yet written. Raises ProfileError."""
    known = library.weights if library is not None else {}
    weights = model_weights(measured, known)
    found = collect(measured, offload, known, gpu_memory_bytes(measured, library))
    name = table_name(measured, offload)
    if not found.decode_rows:
        why = f" ({found.left_out[0]})" if found.left_out else ""
        told = f"no decode step to fill {offload} tables from{why}"
        raise ProfileError(f"{measured.name}: {told}; measure or import some")
    start, costs, alike = expected(library, name)
    fits = fit_table(found, start)
    wanted = dict.fromkeys([*found.keys, *models])
    for key in models:
        if key not in weights:
            names = [f"{model}:{quantization}" for model, quantization in weights]
            raise ProfileError(f"--models {':'.join(key)}: not in models.csv; {did_you_mean(':'.join(key), names)}")
    decode_maker = Maker(found, fits.decode, Known.of(found.decode()), fits.decode_transfer, "decode")
    prefill_maker = Maker(found, fits.prefill, Known.of(found.prefill()), fits.prefill_transfer, "prefill")
    files: dict[str, list[Row]] = {"decode": [], "prefill": []}
    for key in wanted:
        shape = shape_of(weights[key], weights)
        decode = decode_maker.grid(key, shape, weights[key], found.decode_rows.get(key, []))
        prefill = prefill_maker.grid(key, shape, weights[key], found.prefill_rows.get(key, []))
        files["decode"] += table_rows(key, decode)
        files["prefill"] += table_rows(key, prefill)
    kinds = [row["kind"] for rows in files.values() for row in rows]
    files["switch"] = switch_rows(list(wanted), measured.switch, measured.bandwidth, costs)
    counts = {str(kind): kinds.count(kind) for kind in KINDS if kind in kinds}
    steps, prompts = (sum(map(len, each.values())) for each in (found.decode_rows, found.prefill_rows))
    errors = left_out_error(fits.decode), left_out_error(fits.prefill), fits.decode_transfer
    facts = FilledTable(*name, offload, Path(), tuple(wanted), counts, steps + prompts, *errors)
    notices = [f"left out {each}" for each in found.left_out]
    if alike:
        notices.append(f"{'--'.join(name)}: where nothing was measured, as in {alike}")
    text = (
        f"{measured.facts.get('gpu_name', name[0])} with {measured.facts.get('cpu', name[1])}, {name[2]}: filled from "
        f"{steps} decode steps and {prompts} prompts."
    )
    table = ProfileTable.of(name, found.offload, found.head_first, text, files)
    return Draft(table, {key: weights[key] for key in wanted}, facts, tuple(notices))
