"""Opens what benchmark programs wrote: JSON, JSON lines or CSV become records that know where they stand.

The ending of a file's name does not matter, its content does: tools print to stdout and users choose the name.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from sim.common.errors import ProfileError
from sim.common.safe_open import plain_bytes
from sim.profiling.imports.record import BadRecord

ENDINGS = (".json", ".jsonl", ".csv", ".ndjson", ".txt", ".log")  # looked for in folders
MOST_BYTES = 256 * 2**20
Bad = Callable[[str, str], None]  # told the place and the reason of a record that cannot be read
Raw = tuple[str, dict[str, Any]]


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files named, and those in the folders named. Raises ProfileError: nothing there, or a file named twice."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*") if each.suffix in ENDINGS and each.is_file())
            if not inside:
                raise ProfileError(f"{path}: no file in this folder ends in {', '.join(ENDINGS)}; name the files")
            found += inside
        elif not path.exists():
            raise ProfileError(f"{path}: no such file; check the path")
        else:
            found.append(path)
    twice = [path for path in found if sum(1 for other in found if other.resolve() == path.resolve()) > 1]
    if twice:
        raise ProfileError(f"{twice[0]}: is given twice; name each file once")
    return found


def read_records(path: Path, csv_too: bool, bad: Bad) -> Iterable[Raw]:
    """(place, fields) of each record of a file; a single damaged line is told to `bad`.

    Raises ProfileError: the file is empty, of another kind, or damaged as a whole.
    """
    text = _text(path)
    start = text.lstrip()
    if not start:
        raise ProfileError(f"{path}: is empty; did the benchmark fail, or print elsewhere?")
    if start.startswith("|"):
        raise ProfileError(f"{path}: a Markdown table has too few fields; run the tool again with its JSON output")
    if start.upper().startswith(("CREATE TABLE", "INSERT INTO")):
        raise ProfileError(f"{path}: SQL is not read; run the tool again with -o jsonl, json or csv")
    if start[0] == "[":
        return _array(path, text, bad)
    if start[0] == "{":
        whole = _one_object(text)
        return [(f"{path}, record 1", whole)] if whole is not None else _lines(path, text, bad)
    first = _plain(start.splitlines()[0])
    if csv_too and "," in first:
        return _table(path, text, bad)
    if '\n{"' in text:  # a log with records between other lines
        return _lines(path, text, bad)
    kinds = "JSON, JSON lines or CSV" if csv_too else "JSON or JSON lines"
    raise ProfileError(f"{path}: starts with '{first[:40]}', which is not {kinds}; check --format and the file")


def _text(path: Path) -> str:
    try:
        return plain_bytes(path, MOST_BYTES, pipes=True).decode("utf-8-sig")
    except OSError as error:
        raise ProfileError(f"{path}: cannot read the file ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        hint = "save it as UTF-8 (a PowerShell redirection writes UTF-16)"
        raise ProfileError(f"{path}: not UTF-8 text; {hint}") from None


def _array(path: Path, text: str, bad: Bad) -> Iterable[Raw]:
    """The items one by one, so that those before the place where a file is cut off can be had."""
    decoder = json.JSONDecoder(parse_constant=_no_number, object_pairs_hook=_no_key_twice)
    place, number = _next(text, text.index("[") + 1), 0
    while not text.startswith("]", place):
        number += 1
        where = f"{path}, record {number}"
        try:
            item, place = decoder.raw_decode(text, place)
            if not isinstance(item, dict):
                raise BadRecord(f"is {type(item).__name__}, not an object of fields")
        except BadRecord as error:
            bad(where, str(error))
        except (ValueError, RecursionError) as error:
            bad(where, f"is not whole JSON ({_reason(error)}); the file may be cut off there")
            return  # nobody knows where the next one starts
        else:
            yield where, item
        place = _next(text, place)
        if text.startswith(",", place):
            place = _next(text, place + 1)
        elif not text.startswith("]", place):
            bad(f"{path}, after record {number}", "neither another record nor the end; the file may be cut off there")
            return


def _next(text: str, place: int) -> int:
    """Past white space."""
    return next((at for at in range(place, len(text)) if text[at] not in " \t\r\n"), len(text))


def _one_object(text: str) -> dict[str, Any] | None:
    try:
        item = _decode(text)
    except (ValueError, RecursionError):
        return None
    return item if isinstance(item, dict) else None


def _lines(path: Path, text: str, bad: Bad) -> Iterable[Raw]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            item = _decode(line)
            if not isinstance(item, dict):
                raise BadRecord("is not an object of fields")
        except BadRecord as error:
            bad(where, str(error))
        except (ValueError, RecursionError) as error:
            bad(where, f"is not a whole JSON object ({_reason(error)}); the file may be cut off there")
        else:
            yield where, item


def _table(path: Path, text: str, bad: Bad) -> Iterable[Raw]:
    try:
        rows = [[_plain(cell) for cell in row] for row in csv.reader(io.StringIO(text, newline=""), strict=True)]
    except csv.Error as error:
        raise ProfileError(f"{path}: not a CSV file ({error}); was it cut off?") from None
    header = [name.strip() for name in rows[0]]
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise ProfileError(f"{path}: column '{twice[0]}' is there twice; drop one")
    for number, cells in enumerate(rows[1:], start=2):
        if cells == rows[0] or not cells:  # the header again where outputs were joined
            continue
        where = f"{path}, row {number}"
        if len(cells) != len(header):
            bad(where, f"has {len(cells)} of {len(header)} columns; the file may be cut off there")
        else:
            yield where, dict(zip(header, cells, strict=True))


def _decode(text: str) -> Any:
    return json.loads(text, parse_constant=_no_number, object_pairs_hook=_no_key_twice)


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is not a number")


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [_plain(name) for name, _ in pairs]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"field '{twice[0]}' twice")
    return {
        name: _plain(value) if isinstance(value, str) else value for name, (_, value) in zip(names, pairs, strict=True)
    }


def _plain(text: str) -> str:
    """Nothing in a text may break the line that it is shown in."""
    return text if text.isprintable() else "".join(c if c.isprintable() else " " for c in text)


def _reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", str(error)).lower()
