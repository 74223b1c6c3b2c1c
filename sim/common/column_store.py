"""Rows that only grow, kept as columns: in memory up to a limit, beyond it as Parquet row groups in a temporary file.

The temporary file has no name: it goes with the process, however that ends. Whole columns are read back one at a time
(for sums and percentiles over all rows), or all columns of a run of rows at a time (for writing them out in order).
metrics.py fills it, summary.py and results.py read it; it knows nothing of requests.
"""

from __future__ import annotations

import struct
import tempfile
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import starmap
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sim.common.atomic_files import why
from sim.common.errors import MachineError
from sim.common.lazy import pa, parquet

Columns = dict[str, NDArray[Any]]

ROWS_IN_MEMORY = 1 << 19  # about 80 MB of requests
_GROUP_ROWS = 1 << 16  # of the temporary file: what is read at least
_ORDER = "#order"  # a column of the temporary file: where its rows stood before they were sorted


def rows_checksum(numbers: NDArray[Any], prompts: NDArray[Any], outputs: NDArray[Any]) -> int:
    """A sum over rows of a mix of three whole numbers, modulo 2^64: equal for equal rows in any order and any parts.

    The mix is the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
    """
    mixed = np.zeros(len(numbers), dtype=np.uint64)
    for column in (numbers, prompts, outputs):
        mixed = mixed ^ np.asarray(column).astype(np.uint64)
        mixed = mixed + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return int(mixed.sum(dtype=np.uint64))


class Part(Mapping[str, NDArray[Any]]):
    """A stretch of consecutive rows of a store, as columns in the order in which the rows were added."""

    def __init__(self, store: ColumnStore, first: int) -> None:
        self._store = store
        self.first = first  # of its rows, among all of the store
        self.rows = 0

    def __iter__(self) -> Iterator[str]:
        return iter(self._store)

    def __len__(self) -> int:
        return len(self._store)

    @abstractmethod
    def __getitem__(self, name: str) -> NDArray[Any]: ...

    @abstractmethod
    def between(self, low: int, high: int) -> Columns:
        """All columns of the rows whose key is in [low, high), in any order. The key: the store's, or the row's
        number."""


class _InMemory(Part):
    """Blocks of rows as they came."""

    def __init__(self, store: ColumnStore, first: int) -> None:
        super().__init__(store, first)
        self._blocks: list[Columns] = []

    def add(self, block: Columns, rows: int) -> None:
        self._blocks.append(block)
        self.rows += rows

    def __getitem__(self, name: str) -> NDArray[Any]:
        empty = np.zeros(0, dtype=self._store.types[name])
        return np.concatenate([empty, *(block[name] for block in self._blocks)])

    def between(self, low: int, high: int) -> Columns:
        keys = self._store.keys_of(self)
        inside = np.flatnonzero((keys >= low) & (keys < high))
        return {name: self[name][inside] for name in self}


class _Spilled(Part):
    """Row groups of a temporary file, sorted by the store's key if it has one."""

    def __init__(self, source: _InMemory, spill: _Spill) -> None:
        super().__init__(source._store, source.first)
        self.rows = source.rows
        self._spill = spill
        key = self._store.key
        columns: Iterable[tuple[str, NDArray[Any]]] = ((name, source[name]) for name in source)
        keys = self._store.keys_of(source)
        if key is not None:
            order = np.argsort(keys, kind="stable").astype(np.int32)
            keys = keys[order]
            columns = [*((name, source[name][order]) for name in source), (_ORDER, order)]
        starts = range(0, self.rows, _GROUP_ROWS)
        self._lows = [int(keys[start]) for start in starts]
        self._highs = [int(keys[min(start + _GROUP_ROWS, self.rows) - 1]) for start in starts]
        self._groups = spill.write(dict(columns))
        assert len(self._groups) == len(self._lows)

    def __getitem__(self, name: str) -> NDArray[Any]:
        if self._store.key is None:
            return self._spill.read(self._groups, [name])[name]
        columns = self._spill.read(self._groups, [name, _ORDER])
        values = np.empty_like(columns[name])
        values[columns[_ORDER]] = columns[name]
        return values

    def between(self, low: int, high: int) -> Columns:
        inside = [at for at in range(len(self._groups)) if self._lows[at] < high and self._highs[at] >= low]
        if not inside:
            return {name: np.zeros(0, dtype=self._store.types[name]) for name in self}
        columns = self._spill.read([self._groups[at] for at in inside], list(self))
        if self._store.key is None:
            first = self.first + inside[0] * _GROUP_ROWS
            cut = slice(max(0, low - first), max(0, high - first))
        else:
            begin, end = np.searchsorted(columns[self._store.key], [low, high]).tolist()
            cut = slice(begin, end)
        return {name: values[cut].copy() for name, values in columns.items()}


class _Spill:
    """One temporary Parquet file, written until it is read for the first time."""

    def __init__(self, scratch: Path | None) -> None:
        self._scratch = scratch
        self._file: IO[bytes] | None = None
        self._writer: Any = None
        self._reader: Any = None
        self._groups = 0

    @property
    def sealed(self) -> bool:
        return self._reader is not None

    def write(self, columns: Columns) -> list[int]:
        """Append rows; which row groups they are now. Raises MachineError when there is no room."""
        assert not self.sealed
        table = pa.table(columns)
        with _on_disk(self._scratch):
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="sim-", dir=self._scratch)  # noqa: SIM115
            if self._writer is None:
                coded = [name for name, values in columns.items() if values.dtype.kind != "f"]
                self._writer = parquet.ParquetWriter(
                    self._file, table.schema, compression="lz4", use_dictionary=coded, write_statistics=False
                )
            self._write(table)
        first = self._groups
        self._groups += -(-table.num_rows // _GROUP_ROWS)
        return list(range(first, self._groups))

    def _write(self, table: Any) -> None:
        try:
            self._writer.write_table(table, row_group_size=_GROUP_ROWS)
            assert self._file is not None
            self._file.flush()  # a full disk is seen here, not at some later time
        except BaseException:
            self._writer.is_open = False  # else it would try to end the file when it is deleted, and complain aloud
            raise

    def read(self, groups: list[int], names: list[str]) -> Columns:
        """These columns of these row groups."""
        with _on_disk(self._scratch):
            if self._reader is None:
                self._writer.close()
                self._reader = parquet.ParquetFile(self._file)
            table = self._reader.read_row_groups(groups, columns=names, use_threads=False)
        return {name: table.column(name).to_numpy() for name in names}


@contextmanager
def _on_disk(scratch: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        place = scratch or tempfile.tempdir or "the temporary folder"
        raise MachineError(
            f"{place}: cannot set aside there what the run has seen so far ({why(error)}); make room, or "
            "choose another disk with --out DIR or the environment variable TMPDIR"
        ) from None


class ColumnStore(Mapping[str, NDArray[Any]]):
    """Columns by name, each with one entry a row in the order in which rows were added.

    kinds: of each column, the letter that the module `struct` has for it: i (32 bits), q (64 bits), d or ?.
    key: a column of whole numbers >= 0 by which `blocks` sorts; None: rows stay in the order in which they came.
    scratch: the folder of the temporary file; None: the system's. Above `most_rows` rows, memory is emptied into it.
    """

    def __init__(
        self,
        kinds: Mapping[str, str],
        key: str | None = None,
        scratch: Path | None = None,
        most_rows: int = ROWS_IN_MEMORY,
    ) -> None:
        layout = "<" + "".join(kinds.values())
        self.types = {name: np.dtype(f"<{kind}") for name, kind in kinds.items()}
        self.key = key
        self.rows = 0
        self._pack = struct.Struct(layout).pack
        self._record = np.dtype(list(self.types.items()))
        assert self._record.itemsize == struct.calcsize(layout)
        self._scratch = scratch
        self._most_rows = most_rows
        self._parts: list[Part] = []
        self._tail = _InMemory(self, 0)
        self._spill = _Spill(scratch)
        self._highest = -1  # of all keys

    def add(self, rows: Sequence[tuple[Any, ...]]) -> Columns:
        """Append rows (at least one), each with a value for every column in turn; these rows as columns.

        A value that its column cannot hold is our fault: struct.error. Raises MachineError when the disk is full.
        """
        # Packing is four times as fast as turning each column into an array.
        records = np.frombuffer(b"".join(starmap(self._pack, rows)), dtype=self._record)
        block = {name: np.ascontiguousarray(records[name]) for name in self.types}
        self._tail.add(block, len(rows))
        self.rows += len(rows)
        if self.key is not None:
            self._highest = max(self._highest, int(block[self.key].max()))
        if self._tail.rows > self._most_rows:
            self._empty_memory()
        return block

    def _empty_memory(self) -> None:
        if self._spill.sealed:
            self._spill = _Spill(self._scratch)
        self._parts.append(_Spilled(self._tail, self._spill))
        self._tail = _InMemory(self, self.rows)

    def keys_of(self, part: Part) -> NDArray[Any]:
        """What `blocks` sorts by."""
        return part[self.key] if self.key is not None else np.arange(part.first, part.first + part.rows)

    def parts(self) -> list[Part]:
        """All rows, in stretches of consecutive ones; at least one."""
        return [*self._parts, self._tail]

    def __iter__(self) -> Iterator[str]:
        return iter(self.types)

    def __len__(self) -> int:
        return len(self.types)

    def __getitem__(self, name: str) -> NDArray[Any]:
        """A whole column, as a new array of `rows` entries."""
        values = np.empty(self.rows, dtype=self.types[name])
        for part in self.parts():
            values[part.first : part.first + part.rows] = part[name]
        return values

    def blocks(self, rows_each: int) -> Iterator[Columns]:
        """All columns of all rows, sorted by the key: block i has the keys from i * rows_each on, `rows_each` of them.

        They are the same whatever the limit of rows in memory. Blocks without rows are left out, but for one if there
        are no rows at all.
        """
        end = self.rows if self.key is None else self._highest + 1
        for low in range(0, max(1, end), rows_each):
            pieces = [part.between(low, low + rows_each) for part in self.parts()]
            columns = {name: np.concatenate([piece.pop(name) for piece in pieces]) for name in self.types}
            if self.key is not None:
                order = np.argsort(columns[self.key], kind="stable")
                for name in columns:
                    columns[name] = columns[name][order]
            if len(next(iter(columns.values()))) or not self.rows:
                yield columns
