"""Trace files as tables: bytes in, columns with the row numbers that a person would count out.

It knows the containers (CSV, JSON lines, Parquet, gzip) and their damage, but not what a column means: that
is `trace_columns`. Called by `trace` and `importers`.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.errors import TraceError

SUFFIXES = (".csv", ".csv.gz", ".parquet", ".jsonl", ".jsonl.gz")

_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class Table:
    """Columns as they stand in a file.

    `columns` holds one pyarrow array per column (text for CSV), or a plain list where a JSON column mixes
    types. `rows[i]` is where entry i stands in the file, counted from 1; a CSV header is row 1. `header_row`
    is 0 when the file has none.
    """

    where: str
    columns: dict[str, Any]
    rows: NDArray[np.int64]
    header_row: int = 0
    notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def error(self, index: int, text: str) -> TraceError:
        """The error of entry `index`."""
        return TraceError(f"{self.where}: row {self.rows[index]}: {text}")


def suffix_of(path: Path) -> str:
    """The one of SUFFIXES that the file's name ends with. Raises TraceError."""
    name = path.name.lower()
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return suffix
    raise TraceError(f"{path}: unknown kind of file; a trace's name ends in {', '.join(SUFFIXES)}")


def read_bytes(path: Path) -> bytes:
    """The file's content, decompressed when its name ends in .gz.

    Raises TraceError: missing, a folder, unreadable, empty, damaged or truncated gzip.
    """
    if path.is_dir():
        raise TraceError(f"{path}: is a folder; give the trace file inside it")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot read the file ({error.strerror}); check its permissions") from None
    if path.suffix.lower() == ".gz":
        try:
            data = gzip.decompress(data)
        except EOFError:
            raise TraceError(f"{path}: the gzip file is cut off; copy or download it again") from None
        except (gzip.BadGzipFile, zlib.error):
            raise TraceError(f"{path}: damaged or not gzip; mend the file, or drop .gz from its name") from None
    elif data.startswith(b"\x1f\x8b"):
        raise TraceError(f"{path}: is compressed with gzip; add .gz to its name")
    if not data.strip():
        raise TraceError(f"{path}: the file is empty; a trace has at least one request")
    return data


def _decode(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise TraceError(f"{path}: row {row}: not UTF-8 text; save the file as UTF-8") from None


def read_csv(path: Path, wanted: Sequence[str]) -> Table:
    """A comma-separated file with a header: all columns' names, but only the text of those in `wanted`.

    Columns that are not wanted map to None. Blank rows are left out with a notice. Raises TraceError: other
    delimiters, a row with too few or too many fields, an unclosed quote, a name given twice, no rows.
    """
    text = _decode(path, read_bytes(path))
    lines = re.split(r"\r\n|\n|\r", text, maxsplit=1)
    names = _header(path, lines[0])
    data = text.encode()
    if data.count(b'"') % 2:
        row = next(n for n, line in enumerate(text.split("\n"), 1) if line.count('"') % 2)
        raise TraceError(f"{path}: row {row}: a quote is opened but not closed; close or double it")
    if len(lines) == 1 or not lines[1].strip():
        raise TraceError(f"{path}: has a header but no rows; a trace has at least one request")
    columns, skipped = _parse_csv(path, data, names, [name for name in names if name in wanted])
    count = len(next(iter(columns.values()))) if columns else 0
    numbers = np.arange(2, 2 + count + len(skipped), dtype=np.int64)
    numbers = numbers[~np.isin(numbers, np.array(skipped, dtype=np.int64))]
    return _without_blank_rows(path, {name: columns.get(name) for name in names}, numbers, len(skipped))


def _header(path: Path, line: str) -> list[str]:
    names = [name.strip() for name in next(csv.reader([line]), [])]
    if not any(names):
        raise TraceError(f"{path}: row 1: is blank; the first row names the columns")
    if len(names) == 1:
        for mark, word in _DELIMITERS.items():
            if mark in line:
                raise TraceError(f"{path}: row 1: columns are separated by {word}; use commas")
    twice = [name for name in dict.fromkeys(names) if name and names.count(name) > 1]
    if twice:
        raise TraceError(f"{path}: row 1: column {twice[0]!a} is named twice; remove one")
    return names


def _parse_csv(path: Path, data: bytes, names: list[str], wanted: list[str]) -> tuple[dict[str, Any], list[int]]:
    """Text columns of the wanted names, and the numbers of the rows of blanks that were left out."""
    import pyarrow as pa  # noqa: PLC0415  heavy, and not needed by `--help`
    from pyarrow import csv as arrow_csv  # noqa: PLC0415

    bad: list[TraceError] = []
    blank: list[int] = []

    def refuse(row: Any) -> str:
        if not row.text.strip():
            blank.append(row.number)
        elif not bad:
            hint = next((f"use commas, not {w}" for m, w in _DELIMITERS.items() if m in row.text), "mend the row")
            if '"' in row.text:
                hint = "check its quotes"
            fields = f"{row.actual_columns} field{'' if row.actual_columns == 1 else 's'}"
            where = f"{path}: row {row.number}"
            bad.append(TraceError(f"{where}: has {fields}, the header has {row.expected_columns}; {hint}"))
        return "skip"

    # A blank column name may repeat; a placeholder keeps the names apart.
    labels = [name or f"\x00{position}" for position, name in enumerate(names)]
    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(data),
            # One thread and one block: only then do rejected rows carry their numbers.
            read_options=arrow_csv.ReadOptions(
                use_threads=False, block_size=min(len(data) + 1, 2**31 - 1), column_names=labels, skip_rows=1
            ),
            parse_options=arrow_csv.ParseOptions(invalid_row_handler=refuse, ignore_empty_lines=False),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=wanted,
                column_types=dict.fromkeys(labels, pa.string()),
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowException as error:
        raise TraceError(f"{path}: not a comma-separated table ({str(error).splitlines()[0]})") from None
    if bad:
        raise bad[0]
    return {name: table.column(name).combine_chunks() for name in wanted}, blank


def _without_blank_rows(path: Path, columns: dict[str, Any], rows: NDArray[np.int64], already: int) -> Table:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.compute as pc  # noqa: PLC0415

    read = [column for column in columns.values() if column is not None]
    keep = np.zeros(len(rows), dtype=bool)
    for column in read:
        keep |= np.asarray(pc.not_equal(column, ""))
    left_out = already
    if read and not keep.all():
        left_out += int(len(keep) - keep.sum())
        rows = rows[keep]
        mask = pa.array(keep)
        columns = {name: None if c is None else c.filter(mask) for name, c in columns.items()}
    if read and not len(rows):
        raise TraceError(f"{path}: has a header but no rows; a trace has at least one request")
    notices = (f"left out {left_out} blank row{'' if left_out == 1 else 's'}",) if left_out else ()
    return Table(str(path), columns, rows, header_row=1, notices=notices)


def read_jsonl(path: Path, wanted: Sequence[str]) -> Table:
    """One JSON object a line; blank lines are no requests but do count as rows. Raises TraceError."""
    objects: list[dict[str, Any]] = []
    rows: list[int] = []
    known: dict[str, None] = {}
    decode = json.JSONDecoder().decode
    for number, line in enumerate(_decode(path, read_bytes(path)).split("\n"), 1):
        if not line or line.isspace():
            continue
        try:
            item = decode(line.strip())
        except (ValueError, RecursionError) as error:
            problem = error.msg if isinstance(error, json.JSONDecodeError) else "a number or nesting too large"
            raise TraceError(f"{path}: row {number}: not valid JSON ({problem}); mend that line") from None
        if not isinstance(item, dict):
            raise TraceError(f'{path}: row {number}: not a JSON object; write {{"arrival_s": 0.0, ...}}')
        if not item.keys() <= known.keys():
            known.update(dict.fromkeys(item))
        objects.append(item)
        rows.append(number)
    columns = {name: _json_column([item.get(name) for item in objects], name in wanted) for name in known}
    return Table(str(path), columns, np.array(rows, dtype=np.int64))


def _json_column(values: list[Any], wanted: bool) -> Any:
    import pyarrow as pa  # noqa: PLC0415

    if not wanted:
        return None
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return values  # mixed or outsize values: checked one by one later


def read_parquet(path: Path, wanted: Sequence[str]) -> Table:
    """A Parquet file; its rows count from 1. Raises TraceError."""
    import pyarrow as pa  # noqa: PLC0415
    from pyarrow import parquet  # noqa: PLC0415

    data = read_bytes(path)
    try:
        file = parquet.ParquetFile(pa.BufferReader(data))
        names = list(file.schema_arrow.names)
        table = file.read(columns=[name for name in names if name in wanted])
        table.validate(full=True)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise TraceError(f"{path}: not a readable Parquet file ({reason}); write it again") from None
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise TraceError(f"{path}: column {twice[0]!a} is named twice; remove one")
    if table.num_rows == 0 and file.metadata.num_rows == 0:
        raise TraceError(f"{path}: has no rows; a trace has at least one request")
    columns: dict[str, Any] = dict.fromkeys(names)
    columns |= {name: _plain_arrow(table.column(name)) for name in names if name in wanted}
    return Table(str(path), columns, np.arange(1, file.metadata.num_rows + 1, dtype=np.int64))


def _plain_arrow(column: Any) -> Any:
    """One array, with encodings of text that mean the same brought to plain text."""
    import pyarrow as pa  # noqa: PLC0415

    array = column.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type):
        array = array.cast(pa.string())
    return array
