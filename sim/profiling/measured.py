"""Folders of raw measurements, read, checked, merged and written: one `Measured` is one GPU, host and engine.

Nothing that cannot be right gets in: a ProfileError names file, row and column and how to mend it. Importers and
sim/hardware make such folders; filling, checking and plotting read them. Here is no model of hardware.
"""

from __future__ import annotations

import csv
import io
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sim.common.atomic_files import partial_of, put, sync_folder, whole_file
from sim.common.errors import ConfigError, ProfileError, did_you_mean
from sim.common.safe_open import plain_bytes
from sim.common.yaml_files import read_yaml
from sim.profiles.profile import Weights
from sim.profiling import points
from sim.profiling.merging import merge_rows
from sim.profiling.points import COLUMNS, FILES, OFFLOADS, MeasuredRow, ModelRow, may_be_empty, parse_cell

PROVENANCE = "provenance.yaml"
MOST_BYTES = 256 * 2**20
_NAMES = ("gpu", "host", "engine")
R = TypeVar("R", bound=MeasuredRow)


@dataclass(frozen=True)
class Measured:
    """All that was measured on one GPU of one host with one engine. `facts`: the rest of its provenance."""

    gpu: str
    host: str
    engine: str
    offload: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[ModelRow, ...] = ()
    decode: tuple[points.DecodePoint, ...] = ()
    prefill: tuple[points.PrefillPoint, ...] = ()
    switch: tuple[points.SwitchPoint, ...] = ()
    bandwidth: tuple[points.BandwidthPoint, ...] = ()
    contention: tuple[points.ContentionPoint, ...] = ()
    memory: tuple[points.MemoryPoint, ...] = ()

    @property
    def name(self) -> str:
        """What the GPU, host and engine are called together, as the folder of their tables."""
        return f"{self.gpu}--{self.host}--{self.engine}"

    def model_layers(self) -> dict[tuple[str, str], int]:
        """L of each (model, quantization) of models.csv."""
        return {row.model_key: row.layers for row in self.models}

    def rows(self, file: str) -> tuple[MeasuredRow, ...]:
        """What goes into one of FILES."""
        found: tuple[MeasuredRow, ...] = getattr(self, file.removesuffix(".csv"))
        return found


# --- reading


def read_measured(folder: Path, weights: Mapping[tuple[str, str], Weights] | None = None) -> Measured:
    """A folder's measurements, with rows of the same point merged. `weights`: models known besides its models.csv.

    Raises ProfileError: no such folder, a file that is cut off or not CSV, a wrong column, cell or row, rows of the
    same point more than SAME_WITHIN apart, layers above L, a model that is nowhere described.
    """
    if not folder.is_dir():
        raise ProfileError(f"{folder}: no such folder of measurements; check the path")
    facts = _provenance(folder / PROVENANCE)
    tables = {name: read_rows(folder / name, kind) for name, kind in FILES.items() if (folder / name).exists()}
    if not any(tables.values()):
        raise ProfileError(f"{folder}: nothing is measured there; it should hold one of {', '.join(list(FILES)[1:])}")
    unknown = [path.name for path in sorted(folder.glob("*.csv")) if path.name not in FILES]
    if unknown:
        raise ProfileError(f"{folder / unknown[0]}: no file of measurements; {did_you_mean(unknown[0], FILES)}")
    names = {key: facts.pop(key) for key in _NAMES}
    offload = tuple(facts.pop("offload"))
    rows: dict[str, Any] = {name.removesuffix(".csv"): tuple(table) for name, table in tables.items()}
    return checked(Measured(**names, offload=offload, facts=facts, **rows), weights or {})


def read_rows(path: Path, kind: type[R]) -> list[R]:
    """The rows of one CSV file, each checked for itself. Raises ProfileError."""
    try:
        text = plain_bytes(path, MOST_BYTES).decode("utf-8-sig")
        lines = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except OSError as error:
        raise ProfileError(f"{path}: cannot read the file ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        raise ProfileError(f"{path}: not UTF-8 text; save it as UTF-8 CSV") from None
    except csv.Error as error:
        raise ProfileError(f"{path}: not a CSV file ({error}); save it as UTF-8 CSV") from None
    if not lines or not any(lines[0]):
        raise ProfileError(f"{path}: has no header row; it starts with {','.join(COLUMNS[kind])}")
    header = [column.strip() for column in lines[0]]
    _check_header(path, kind, header)
    if not text.endswith(("\n", "\r")):
        why = "does not end its line, so it may be half written; delete the row, or end its line if it is whole"
        raise ProfileError(f"{path}, row {len(lines)}: {why}")
    rows = enumerate(lines[1:], start=2)
    return [_row(kind, header, cells, f"{path}, row {number}") for number, cells in rows if cells]


def _check_header(path: Path, kind: type[MeasuredRow], header: Sequence[str]) -> None:
    known = COLUMNS[kind]
    for column in header:
        if not column.isprintable():
            raise ProfileError(f"{path}: column {ascii(column)[:60]} has a character that cannot be shown; rename it")
        if column not in known:
            raise ProfileError(f"{path}: unknown column '{column}'; {did_you_mean(column, known)}")
        if header.count(column) > 1:
            raise ProfileError(f"{path}: column '{column}' is there twice; drop one")
    for column in known:
        if column not in header and column not in kind.optional:
            raise ProfileError(f"{path}: column '{column}' is missing; the columns are {','.join(known)}")


def _row(kind: type[R], header: Sequence[str], cells: Sequence[str], where: str) -> R:
    if len(cells) != len(header):
        raise ProfileError(
            f"{where}: has {len(cells)} of {len(header)} columns; it may be half written: complete it or delete it"
        )
    values: dict[str, Any] = {}
    for column, cell in zip(header, cells, strict=True):
        text = cell.strip()
        if not text.isprintable():
            raise ProfileError(f"{where}: column '{column}' has a character that cannot be shown; remove it")
        if text:
            try:
                values[column] = parse_cell(kind, column, text)
            except ValueError as error:
                raise ProfileError(f"{where}: column '{column}' is '{text[:60]}', {error}; correct it") from None
        elif not may_be_empty(kind, column):
            raise ProfileError(f"{where}: column '{column}' is empty; every row needs it")
    row = kind(**values, where=where)
    problem = row.problem()
    if problem:
        raise ProfileError(f"{where}: {problem}")
    return row


def _provenance(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ProfileError(f"{path}: missing; it names gpu, host and engine (see profiles/README.md)")
    try:
        path.read_text(encoding="utf-8")
        facts = read_yaml(path)
    except UnicodeDecodeError:
        raise ProfileError(f"{path}: not UTF-8 text; save it as UTF-8 YAML") from None
    except ConfigError as error:
        raise ProfileError(str(error)) from None
    if not isinstance(facts, dict):
        raise ProfileError(f"{path}: not a list of `key: value` lines; it names gpu, host and engine")
    for key in _NAMES:
        if key not in facts:
            close = did_you_mean(key, [str(each) for each in facts])
            raise ProfileError(f"{path}: '{key}' is missing; {close}")
        check_slug(str(facts[key]) if facts[key] is not None else "", f"{path}: '{key}'")
        facts[key] = str(facts[key])
    offload = facts.setdefault("offload", [])
    words = [offload] if isinstance(offload, str) else offload
    for word in words if isinstance(words, list) else [words]:
        if word not in OFFLOADS:
            raise ProfileError(f"{path}: offload '{word}' is neither cpu nor stream; write a list of those measured")
    return facts | {"offload": words}


def check_slug(text: str, what: str) -> None:
    """Raises ProfileError unless the text can be part of a folder's name."""
    if not text or text.strip(".") == "" or "--" in text or not all(c.isalnum() or c in "-._" for c in text):
        raise ProfileError(f"{what} is '{text}'; write a short name of letters, digits, '-', '.', '_' and no '--'")


# --- checking and merging


def checked(measured: Measured, weights: Mapping[tuple[str, str], Weights]) -> Measured:
    """The same with rows of the same point merged. Raises ProfileError for rows that cannot stand beside each other."""
    layers = {key: each.layers for key, each in weights.items()} | measured.model_layers()
    rows: dict[str, Any] = {}
    for name, kind in FILES.items():
        if kind is not ModelRow:
            for row in measured.rows(name):
                _check_layers(row, layers)
        rows[name.removesuffix(".csv")] = tuple(merge_rows(measured.rows(name), layers))
    return replace(measured, **rows)


def _check_layers(row: MeasuredRow, layers: Mapping[tuple[str, str], int]) -> None:
    if not row.model:
        return
    if row.model_key not in layers:
        models = [name for name, _ in layers]
        hint = did_you_mean(row.model, models) if row.model not in models else "its quantization is another"
        raise ProfileError(
            f"{row.where}: model '{row.model}' {row.quantization} is not described; add a row to models.csv ({hint})"
        )
    most, given = layers[row.model_key], getattr(row, "layers", 0) or 0
    if given > most:
        told = f"column 'layers' is {given}, but {row.model} has {most}"
        raise ProfileError(f"{row.where}: {told}; all layers with the head are written as that")


def merge(parts: Sequence[Measured], weights: Mapping[tuple[str, str], Weights] | None = None) -> Measured:
    """Several folders' measurements of one GPU, host and engine as one. Facts of the first count; files are joined.

    Raises ProfileError: they are of different hardware or engines, or their rows disagree.
    """
    assert parts, "nothing to merge"
    first = parts[0]
    for other in parts[1:]:
        if other.name != first.name:
            raise ProfileError(f"{other.name} and {first.name} are not the same hardware and engine; keep them apart")
    facts = dict(first.facts)
    for other in parts[1:]:
        for key, value in other.facts.items():
            known = facts.setdefault(key, value)
            if isinstance(known, list) and isinstance(value, list):
                facts[key] = known + [each for each in value if each not in known]
    rows: dict[str, Any] = {
        name.removesuffix(".csv"): tuple(row for part in parts for row in part.rows(name)) for name in FILES
    }
    offload = tuple(word for word in OFFLOADS if any(word in part.offload for part in parts))
    return checked(Measured(first.gpu, first.host, first.engine, offload, facts, **rows), weights or {})


# --- writing


def write_measured(measured: Measured, folder: Path) -> None:
    """Write the folder at once: nobody ever sees half of it. Empty tables get no file.

    Raises ConfigError: the folder is there.
    """
    if folder.exists():
        raise ConfigError(f"{folder}: is there already; name a new folder")
    texts = {name: rows_text(rows) for name in FILES if (rows := measured.rows(name))}
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = partial_of(folder.parent, folder.name)
    try:
        part.mkdir()
        for name, text in {PROVENANCE: _provenance_text(measured), **texts}.items():
            put(part / name, text.encode())
        sync_folder(part)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a file at once, by way of another beside it."""
    with whole_file(path) as partial:
        put(partial, text.encode())


def rows_text(rows: Sequence[MeasuredRow], header: bool = True) -> str:
    """Rows of one kind as CSV text with all columns; numbers read back exactly."""
    columns = COLUMNS[type(rows[0])]
    cells = [[_cell(getattr(row, column)) for column in columns] for row in rows]
    return csv_text([columns, *cells] if header else cells)


def csv_text(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and value < 2**53 else repr(value)
    return str(value)


def _provenance_text(measured: Measured) -> str:
    names = {key: getattr(measured, key) for key in _NAMES}
    content = names | {"offload": list(measured.offload)} | dict(measured.facts)
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
