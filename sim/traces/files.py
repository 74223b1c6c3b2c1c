"""Trace files as tables: records in, columns with the row numbers that a person would count out, a piece at a time.

It knows the containers (CSV, JSON lines, Parquet), but not what a column means: that is `traces.columns`. The bytes of
text files come from `traces.blocks`. Called by `traces.stream` and the importers.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.common.errors import TraceError
from sim.common.lazy import arrow_csv, pa, parquet, pc
from sim.common.text import counted
from sim.traces.blocks import RecordBlock, check_file, count_records, record_blocks

SUFFIXES = (".csv", ".csv.gz", ".parquet", ".jsonl", ".jsonl.gz")
PARQUET_ROWS = 1 << 16
MOST_NAMES = 1000  # of a file's columns

_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class FileColumns:
    """Columns as they stand in a file, or in a piece of it.

    `columns` holds one pyarrow array per column (text for CSV), or a plain list of the values of a JSON column; None
    for one that was not wanted. `rows[i]` is where entry i stands in the file, counted from 1; a CSV header is row 1.
    `header_row` is 0 when the file has none. `blank_rows` were left out of this piece.
    """

    where: str
    columns: dict[str, Any]
    rows: NDArray[np.int64]
    header_row: int = 0
    blank_rows: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def error(self, index: int, text: str) -> TraceError:
        """The error of entry `index`."""
        return TraceError(f"{self.where}: row {self.rows[index]}: {text}")


def blank_notice(count: int) -> tuple[str, ...]:
    """The notice that this many blank rows were left out; none for 0."""
    return (f"left out {counted(count, 'blank row')}",) if count else ()


def suffix_of(path: Path) -> str:
    """The one of SUFFIXES that the file's name ends with. Raises TraceError."""
    name = path.name.lower()
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return suffix
    raise TraceError(f"{path}: unknown kind of file; a trace's name ends in {', '.join(SUFFIXES)}")


def tables_of(path: Path, wanted: Sequence[str]) -> Iterator[FileColumns]:
    """The tables of any file that `suffix_of` knows. Raises TraceError."""
    suffix = suffix_of(path)
    reader = parquet_tables if suffix == ".parquet" else jsonl_tables if "jsonl" in suffix else csv_tables
    return reader(path, wanted)


def csv_tables(path: Path, wanted: Sequence[str]) -> Iterator[FileColumns]:
    """A comma-separated file with a header: all columns' names, but only the text of those in `wanted`.

    Blank rows are left out. A mistake is raised after the rows above it have been handed out. Raises TraceError: other
    delimiters, a row with too few or too many fields, a name given twice, no rows; whatever `record_blocks` refuses.
    """
    names: list[str] = []
    found = False
    for block in record_blocks(path, quoted=True):
        rest = block
        if not names:
            header, *after = re.split(rb"\r\n|\n|\r", block.data, maxsplit=1)
            names = _header(path, header.decode())
            rest = RecordBlock(after[0] if after else b"", 2)
        if not rest.data:
            continue
        table, problem = _parse_csv(path, rest, names, [name for name in names if name in wanted])
        if len(table) or (not found and not any(name in wanted for name in names)):
            found = True
        yield table
        if problem:
            raise problem
    if not found:
        raise TraceError(f"{path}: has a header but no rows; a trace has at least one request")


def _header(path: Path, line: str) -> list[str]:
    if line.count(",") >= MOST_NAMES:
        raise TraceError(f"{path}: row 1: more than {MOST_NAMES:,} columns; keep those of a trace")
    try:
        names = [name.strip() for name in next(csv.reader([line]), [])]
    except csv.Error as error:
        raise TraceError(f"{path}: row 1: not the names of columns ({error}); mend it") from None
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


def _parse_csv(
    path: Path, block: RecordBlock, names: list[str], wanted: list[str]
) -> tuple[FileColumns, TraceError | None]:
    """The rows above the first bad one, with the wanted columns as text, and what is wrong with the bad one."""
    bad: list[tuple[int, TraceError]] = []
    blank: list[int] = []

    def refuse(row: Any) -> str:
        if bad:
            return "skip"
        number = block.row + row.number - 1
        if not row.text.strip():
            blank.append(number)
            return "skip"
        hint = next((f"use commas, not {w}" for m, w in _DELIMITERS.items() if m in row.text), "mend the row")
        if '"' in row.text:
            hint = "check its quotes"
        text = f"has {counted(row.actual_columns, 'field')}, the header has {row.expected_columns}; {hint}"
        bad.append((number, TraceError(f"{path}: row {number}: {text}")))
        return "skip"

    # A blank column name may repeat; a placeholder keeps the names apart.
    labels = [name or f"\x00{position}" for position, name in enumerate(names)]
    try:
        parsed = arrow_csv.read_csv(
            pa.BufferReader(block.data),
            # One thread and one block: only then do rejected rows carry their numbers.
            read_options=arrow_csv.ReadOptions(
                use_threads=False, block_size=min(len(block.data) + 1, 2**31 - 1), column_names=labels
            ),
            parse_options=arrow_csv.ParseOptions(invalid_row_handler=refuse, ignore_empty_lines=False),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=wanted, column_types=dict.fromkeys(labels, pa.string()), strings_can_be_null=False
            ),
        )
    except pa.ArrowException as error:
        raise TraceError(f"{path}: not a comma-separated table ({str(error).splitlines()[0]})") from None
    end = bad[0][0] if bad else block.row + count_records(block.data, quoted=True)
    rows = np.arange(block.row, end, dtype=np.int64)
    rows = rows[~np.isin(rows, np.array(blank, dtype=np.int64))]
    columns: dict[str, Any] = dict.fromkeys(names)
    for name in wanted:
        columns[name] = parsed.column(name).combine_chunks().slice(0, len(rows))
    if not wanted:
        rows = rows[:0]  # nothing was looked at, and `require` will say what is missing
    return _without_blank_rows(FileColumns(str(path), columns, rows, 1, len(blank))), bad[0][1] if bad else None


def _without_blank_rows(table: FileColumns) -> FileColumns:
    keep = np.zeros(len(table), dtype=bool)
    for column in table.columns.values():
        if keep.all():
            break
        if column is not None:
            keep |= np.asarray(pc.not_equal(column, ""))
    if keep.all():
        return table
    mask = pa.array(keep)
    columns = {name: None if column is None else column.filter(mask) for name, column in table.columns.items()}
    blank_rows = table.blank_rows + len(keep) - int(keep.sum())
    return FileColumns(table.where, columns, table.rows[keep], table.header_row, blank_rows)


def jsonl_tables(path: Path, wanted: Sequence[str]) -> Iterator[FileColumns]:
    """One JSON object a line; blank lines are no requests but do count as rows.

    Every table has the columns that were named so far, as lists; a name that is new starts a table. Raises
    TraceError: a line that is no JSON object, too many names; whatever `record_blocks` refuses.
    """
    known: dict[str, None] = {}
    objects: list[dict[str, Any]] = []
    rows: list[int] = []

    def table() -> FileColumns:
        columns = {name: [item.get(name) for item in objects] if name in wanted else None for name in known}
        done = FileColumns(str(path), columns, np.array(rows, dtype=np.int64))
        objects.clear()
        rows.clear()
        return done

    for block in record_blocks(path, quoted=False):
        problem: str | None = None
        for number, line in enumerate(block.data.decode().split("\n"), block.row):
            if not line or line.isspace():
                continue
            item = _json_object(line)
            if isinstance(item, str):
                problem = item
            elif not item.keys() <= known.keys():
                if objects:
                    yield table()
                known.update(dict.fromkeys(item))
                if len(known) > MOST_NAMES:
                    problem = f"more than {MOST_NAMES:,} different names by here; keep those of a trace"
            if problem or isinstance(item, str):
                break
            objects.append(item)
            rows.append(number)
        if objects:
            yield table()
        if problem:
            raise TraceError(f"{path}: row {number}: {problem}")


_scan_json = json.JSONDecoder().raw_decode


def _json_object(line: str) -> dict[str, Any] | str:
    """The object of a line, or what is wrong with it."""
    text = line.strip()
    try:
        item, end = _scan_json(text)
        if end != len(text):
            return "not valid JSON (more follows its end); mend that line"
    except (ValueError, RecursionError) as error:
        problem = error.msg if isinstance(error, json.JSONDecodeError) else "a number or nesting too large"
        return f"not valid JSON ({problem}); mend that line"
    return item if isinstance(item, dict) else 'not a JSON object; write {"arrival_s": 0.0, ...}'


def parquet_tables(path: Path, wanted: Sequence[str]) -> Iterator[FileColumns]:
    """A Parquet file; its rows count from 1. Raises TraceError."""
    check_file(path)
    row = 1
    try:
        with parquet.ParquetFile(path, buffer_size=1 << 20) as file:
            names = list(file.schema_arrow.names)
            if len(names) > MOST_NAMES:
                raise TraceError(f"{path}: more than {MOST_NAMES:,} columns; keep those of a trace")
            twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
            if twice:
                raise TraceError(f"{path}: column {twice[0]!a} is named twice; remove one")
            if file.metadata.num_rows == 0:
                raise TraceError(f"{path}: has no rows; a trace has at least one request")
            read = [name for name in names if name in wanted]
            if not read:
                yield FileColumns(str(path), dict.fromkeys(names), np.zeros(0, dtype=np.int64))
            for batch in file.iter_batches(PARQUET_ROWS, columns=read):
                batch.validate(full=True)
                columns: dict[str, Any] = dict.fromkeys(names)
                columns |= {name: plain_arrow(batch.column(name)) for name in read}
                yield FileColumns(str(path), columns, np.arange(row, row + batch.num_rows, dtype=np.int64))
                row += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise TraceError(f"{path}: not a readable Parquet file ({reason}); write it again") from None


def parquet_rows(path: Path) -> int | None:
    """How many rows a Parquet file says it has; None for other files and damaged ones."""
    if suffix_of(path) != ".parquet":
        return None
    try:
        return int(parquet.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError):
        return None


def parquet_in_order(path: Path, column: str) -> bool:
    """Whether a column of plain numbers never falls, which is quick to see; False also for other and damaged files."""
    if suffix_of(path) != ".parquet":
        return False
    latest = -np.inf
    try:
        with parquet.ParquetFile(path, buffer_size=1 << 20) as file:
            for batch in file.iter_batches(PARQUET_ROWS, columns=[column]):
                numbers = np.asarray(batch.column(0).cast(pa.float64()))  # a null becomes NaN, which is in no order
                if not (numbers[0] >= latest and bool((numbers[1:] >= numbers[:-1]).all())):
                    return False
                latest = numbers[-1]
    except (pa.ArrowException, OSError, IndexError):
        return False
    return True


def plain_arrow(array: Any) -> Any:
    """An array with encodings of text that mean the same brought to plain text."""
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_large_string(array.type) or pa.types.is_string_view(array.type):
        array = array.cast(pa.string())
    return array


def arrow_or_list(values: list[Any]) -> Any:
    """An array of the values, or the values themselves where they mix types or are outsize."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return values
