"""A text file as blocks of whole records, decompressed, with the row that each block begins at.

It knows bytes: folders, gzip, cut-off files, UTF-8, line ends and quotes. What stands in a record is not its business.
Every fault waits until the rows above it have been handed out, so that the first mistake in the file is the one that
is told, however large the blocks are. Called by `traces.files`.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.common.errors import TraceError
from sim.common.safe_open import open_plain

BLOCK_BYTES = 1 << 21  # about 65,536 rows of a plain trace
MOST_RECORD_BYTES = 1 << 26  # longer records are no requests, and a file without line ends must not fill the memory

_BLANKS = b" \t\r\n\x0b\x0c"
_LINE_FEED, _RETURN, _QUOTE, _COMMA = b'\n\r",'
_MARK = b"\xef\xbb\xbf"  # the byte order mark that some programs put before UTF-8


def check_file(path: Path) -> None:
    """Raises TraceError: missing, a folder, unreadable, empty, compressed without saying so."""
    if path.is_dir():
        raise TraceError(f"{path}: is a folder; give the trace file inside it")
    try:
        with open_plain(path) as file:
            start = file.read(2)
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise unreadable(path, error) from None
    if not start:
        raise TraceError(f"{path}: the file is empty; a trace has at least one request")
    if start == b"\x1f\x8b" and path.suffix.lower() != ".gz":
        raise TraceError(f"{path}: is compressed with gzip; add .gz to its name")


def unreadable(path: Path, error: OSError) -> TraceError:
    """What the system says about a file that cannot be read."""
    return TraceError(f"{path}: cannot read the file ({error.strerror or error}); check its permissions")


@dataclass(frozen=True)
class RecordBlock:
    """Whole records in UTF-8, the first of them row `row` of the file, counted from 1."""

    data: bytes
    row: int


def record_blocks(path: Path, quoted: bool) -> Iterator[RecordBlock]:
    """The file's records in blocks of about BLOCK_BYTES.

    `quoted`: a line end between two quotes belongs to the cell, and a lone carriage return ends a record too (CSV);
    else only a line feed ends one (JSON lines). Raises TraceError: whatever `check_file` refuses; damaged or cut off
    gzip; nothing but blanks; not UTF-8; a record that never ends.
    """
    check_file(path)
    rest, row, begun = b"", 1, False
    for data, last in _pieces(path):
        rest += data
        if not begun:
            text = rest.removeprefix(_MARK)
            if not text.strip(_BLANKS) and (last or len(rest) > MOST_RECORD_BYTES):
                raise TraceError(f"{path}: the file is empty; a trace has at least one request")
            if not last and (not text.strip(_BLANKS) or _MARK.startswith(rest)):
                continue
            rest, begun = text, True
        size, problem = _complete(rest, last, quoted)
        whole, rest = rest[:size], rest[size:]
        good = _utf8_size(whole, quoted)
        if good:
            yield RecordBlock(whole[:good], row)
        row += count_records(whole[:good], quoted)
        if good < size:
            raise TraceError(f"{path}: row {row}: not UTF-8 text; save the file as UTF-8")
        if problem:
            raise TraceError(f"{path}: row {row}: {problem}")


def _pieces(path: Path) -> Iterator[tuple[bytes, bool]]:
    """The file's bytes, decompressed; the last piece is empty and says so.

    All that can be read comes before an error.
    """
    zipped = path.suffix.lower() == ".gz"
    parts: list[bytes] = []
    size = 0
    problem: str | None = None
    try:
        with open_plain(path) as plain, gzip.open(plain, "rb") if zipped else plain as file:
            # read1 hands out what stands before the place where a file breaks off; read loses it.
            while part := file.read1(BLOCK_BYTES):
                parts.append(part)
                size += len(part)
                if size >= BLOCK_BYTES:
                    yield b"".join(parts), False
                    parts, size = [], 0
    except EOFError:
        problem = "the gzip file is cut off; copy or download it again"
    except (gzip.BadGzipFile, zlib.error):
        problem = "damaged or not gzip; mend the file, or drop .gz from its name"
    except OSError as error:
        raise unreadable(path, error) from None
    yield b"".join(parts), False
    if problem:
        raise TraceError(f"{path}: {problem}")
    yield b"", True


def _complete(data: bytes, last: bool, quoted: bool) -> tuple[int, str | None]:
    """How many bytes are whole records (data begins with one), and what is wrong with the record after them."""
    problem = None
    if not quoted or b'"' not in data:
        if last:
            return len(data), None
        end = data.rfind(b"\n") + 1
        if quoted:
            end = max(end, data.rfind(b"\r", 0, len(data) - 1) + 1)
    else:
        text = np.frombuffer(data, dtype=np.uint8)
        quotes = np.flatnonzero(text == _QUOTE)
        ends = _record_ends(text, quotes, last)
        opening = quotes[::2]
        before = text[np.maximum(opening, 1) - 1]
        at_start = (opening == 0) | np.isin(before, (_COMMA, _LINE_FEED, _RETURN, _QUOTE))
        if not at_start.all():
            bad = int(opening[np.argmin(at_start)])
        elif last and len(quotes) % 2:
            bad = len(data)
        else:
            bad = -1
            end = len(data) if last else int(ends[-1]) + 1 if len(ends) else 0
        if bad >= 0:
            above = ends[ends < bad]
            end = int(above[-1]) + 1 if len(above) else 0
            line = data[end:].splitlines()[0]
            if line.count(b'"') % 2:
                problem = "a quote is opened but not closed; close or double it"
            else:
                problem = "a quote inside a cell; put the whole cell in quotes and double the quotes in it"
            return end, problem
    if end == 0 and len(data) > MOST_RECORD_BYTES:
        problem = f"is longer than {MOST_RECORD_BYTES >> 20} MiB; end every row with a line end"
        if quoted and data.split(b"\n", 1)[0].count(b'"') % 2:
            problem = "a quote is opened but not closed; close or double it"
    return end, problem


def _record_ends(text: NDArray[np.uint8], quotes: NDArray[np.intp], last: bool) -> NDArray[np.intp]:
    """Positions of the bytes that end a record: line ends outside quotes; \\r\\n is one."""
    is_end = text == _LINE_FEED
    lone = text == _RETURN
    lone[:-1] &= text[1:] != _LINE_FEED
    if not last and len(lone):
        lone[-1] = False  # the line feed may follow in the next piece
    ends: NDArray[np.intp] = np.flatnonzero(is_end | lone)
    outside: NDArray[np.intp] = ends[np.searchsorted(quotes, ends) % 2 == 0]
    return outside


def count_records(data: bytes, quoted: bool) -> int:
    """How many records stand in a block of whole ones."""
    if not data:
        return 0
    if not quoted or (b'"' not in data and data.count(b"\r") == data.count(b"\r\n")):
        return data.count(b"\n") + (not data.endswith(b"\n"))
    text = np.frombuffer(data, dtype=np.uint8)
    ends = _record_ends(text, np.flatnonzero(text == _QUOTE), True)
    return len(ends) + (not len(ends) or int(ends[-1]) != len(data) - 1)


def _utf8_size(data: bytes, quoted: bool) -> int:
    """How many bytes stand in records above the first byte that is not UTF-8."""
    if data.isascii():
        return len(data)
    try:
        data.decode()
        return len(data)
    except UnicodeDecodeError as error:
        text = np.frombuffer(data, dtype=np.uint8)[: error.start]
        if quoted:
            ends = _record_ends(text, np.flatnonzero(text == _QUOTE), False)
        else:
            ends = np.flatnonzero(text == _LINE_FEED)
        return int(ends[-1]) + 1 if len(ends) else 0
