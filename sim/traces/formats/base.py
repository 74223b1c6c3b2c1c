"""What every trace format is made of, and what several of them need to read a file.

A format turns other people's files into a `TraceStream`; each lives in a module of its own beside this one. Nothing
here knows a particular format. Called by those modules and by `sim.traces.formats`.
"""

from __future__ import annotations

import gzip
import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sim.common.errors import ConfigError, TraceError, did_you_mean
from sim.common.safe_open import open_plain
from sim.traces.columns import FURTHEST_S, MOST_TOKENS
from sim.traces.stream import TraceStream

SAMPLE_BYTES = 1 << 16
LONGEST_LINE = 64 << 20  # characters; the longest of a known trace has 2 million

GZIP = b"\x1f\x8b"


class FormatOptions(BaseModel):
    """The options that every format has; a format with more derives from this. Each field has a description."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    strict: bool = Field(False, description="refuse rows out of order and columns that nobody reads")
    sort: bool = Field(False, description="sort rows that are out of order by more than a million rows")


@dataclass(frozen=True)
class Sample:
    """The beginning of a file, for guessing its format.

    head: its first 64 KiB, decompressed; of an archive or a folder, those of the first file of data in it (.csv,
    .json, .jsonl). members: names of the files in the archive or folder, at most 256; empty for a plain file.
    """

    name: str
    head: bytes
    members: tuple[str, ...] = ()

    def first_line(self) -> str:
        """The first line that is not blank, without a byte-order mark; "" when it is not text."""
        text = self.head.decode("utf-8-sig", errors="ignore") if b"\0" not in self.head else ""
        return next((line.strip() for line in text.splitlines() if line.strip()), "")

    def columns(self) -> tuple[str, ...]:
        """The first line as a CSV header's names."""
        return tuple(name.strip().strip('"') for name in self.first_line().split(","))

    def json_object(self) -> dict[str, Any]:
        """The first line as a JSON object; empty when it is none."""
        try:
            item = json.loads(self.first_line())
        except (ValueError, RecursionError):
            return {}
        return item if isinstance(item, dict) else {}


@dataclass(frozen=True)
class Format:
    """One way in which requests are published.

    name: what the command line calls it. summary: one line for a list. read: the files, as given, to a stream; raises
    TraceError. sniff: whether the sample is unmistakably of this format. options: what `read` takes.
    """

    name: str
    summary: str
    read: Callable[[Sequence[Path], Any], TraceStream]
    sniff: Callable[[Sample], bool]
    options: type[FormatOptions] = FormatOptions


def parse_options(form: Format, given: Mapping[str, Any]) -> FormatOptions:
    """The options of a format from names and texts. Raises ConfigError: unknown name, or a value that does not fit."""
    fields = form.options.model_fields
    for name in given:
        if name not in fields:
            hint = did_you_mean(name, fields)
            raise ConfigError(f"--option {name}: {form.name} has no such option; {hint}")
    try:
        return form.options.model_validate(dict(given))
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(str(part) for part in problem["loc"])
        text = problem["msg"].removeprefix("Value error, ")
        text = text[:1].lower() + text[1:]
        if not name:
            raise ConfigError(f"--option: {form.name}: {text}") from None
        raise ConfigError(f"--option {name}={problem['input']!s}: {text}; it is: {fields[name].description}") from None


def one_file(files: Sequence[Path], form: str) -> Path:
    """The only file of a format that reads one. Raises TraceError when more are given."""
    assert files
    if len(files) > 1:
        raise TraceError(f"{files[1]}: {form} reads one file at a time; import each, then `trace compose` them")
    return files[0]


# --- bytes


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what goes wrong inside the `with`, while the file is read, into a TraceError about it."""
    try:
        yield
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file; check the path") from None
    except EOFError:
        raise TraceError(f"{path}: the gzip file is cut off; copy or download it again") from None
    except (gzip.BadGzipFile, zlib.error):
        raise TraceError(f"{path}: damaged gzip; copy or download it again") from None
    except tarfile.TarError as error:
        raise TraceError(f"{path}: damaged or cut-off tar ({error}); copy or download it again") from None
    except OSError as error:
        raise TraceError(f"{path}: cannot read the file ({error.strerror or error}); check its permissions") from None


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes, decompressed when they are gzip, whatever its name says.

    Raises TraceError: missing, a folder, unreadable, empty; and what `reading` raises for the inside of the `with`.
    """
    if path.is_dir():
        raise TraceError(f"{path}: is a folder; give the trace file inside it")
    with reading(path), open_plain(path) as raw:
        start = raw.peek(2)[:2]
        if not start:
            raise TraceError(f"{path}: the file is empty; a trace has at least one request")
        if start != GZIP and path.suffix.lower() in (".gz", ".tgz"):
            raise TraceError(f"{path}: damaged or not gzip; mend the file, or drop .gz from its name")
        if start != GZIP:
            yield raw
            return
        with gzip.open(raw, "rb") as plain:
            yield plain  # type: ignore[misc]


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of every line that is not blank. Raises TraceError: not UTF-8, endless, nothing in it."""
    found = False
    with opened(path) as file:
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            if len(line) >= LONGEST_LINE:
                raise TraceError(f"{path}: row {number}: a line of more than {LONGEST_LINE:,} bytes is no request")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError:
                raise TraceError(f"{path}: row {number}: not UTF-8 text; save the file as UTF-8") from None
            if text:
                found = True
                yield number, text
    if not found:
        raise TraceError(f"{path}: the file is empty; a trace has at least one request")


# --- JSON


class Entry:
    """One JSON object with the place where it stands; its methods read checked fields.

    Each raises TraceError with place and field when the value is absent or not what was asked for.
    """

    __slots__ = ("row", "values", "where")

    def __init__(self, where: str, values: Any, row: int = 0) -> None:
        if not isinstance(values, dict):
            raise TraceError(f"{where}: not a JSON object but {shown(values)}; mend it")
        self.where = where
        self.row = row
        self.values: dict[str, Any] = values

    def error(self, field: str, expected: str) -> TraceError:
        """The error of one field; absent ones are looked for under a like name."""
        if field in self.values:
            return TraceError(f"{self.where}: field '{field}' is {shown(self.values[field])}; {expected}")
        others = [name for name in self.values if name.isprintable()]
        hint = did_you_mean(field, others) if others else expected
        return TraceError(f"{self.where}: field '{field}' is missing; {hint}")

    def error_here(self, text: str) -> TraceError:
        """An error of the object as a whole."""
        return TraceError(f"{self.where}: {text}")

    def whole(self, field: str, low: int = 1, high: int = MOST_TOKENS) -> int:
        """A whole number from low to high (tokens by default); 3.0 counts as 3."""
        value = self.values.get(field)
        if type(value) is int and low <= value <= high:
            return value
        if type(value) is float and low <= value <= high and value == int(value):
            return int(value)
        raise self.error(field, f"give a whole number from {low:,} to {high:,}")

    def number(self, field: str, low: float = 0.0, high: float = FURTHEST_S) -> float:
        """A finite number from low to high (seconds by default)."""
        value: Any = self.values.get(field)
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not low <= value <= high:  # NaN is not either
            raise self.error(field, f"give a number from {low:g} to {high:g}")
        return float(value) + 0.0  # -0.0 becomes 0.0

    def text(self, field: str) -> str:
        """A printable text that is not blank."""
        value = self.values.get(field)
        if not isinstance(value, str) or not value.strip() or not value.strip().isprintable():
            raise self.error(field, "give a printable name")
        return value.strip()

    def wholes(self, field: str) -> list[int]:
        """A list of whole numbers of at least 0 that fit 63 bits, as hash ids are."""
        value = self.values.get(field)
        if isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value):
            return value
        raise self.error(field, "give a list of whole numbers of at least 0")

    def entry(self, field: str) -> Entry:
        """An object within the object."""
        if not isinstance(self.values.get(field), dict):
            raise self.error(field, "give a JSON object")
        return Entry(f"{self.where}: field '{field}'", self.values[field])

    def ignored(self, known: Iterable[str], strict: bool) -> Iterator[str]:
        """Fields that are not in `known`. Raises TraceError at the first under `strict`."""
        for name in self.values:
            if name not in known:
                if strict:
                    raise TraceError(f"{self.where}: unknown field {shown(name)}; {did_you_mean(name, known)}")
                yield name


class _NotANumber(ValueError):
    """NaN or an infinity in JSON."""


def _refuse_constant(word: str) -> Any:
    raise _NotANumber(word)


_JSON = json.JSONDecoder(parse_constant=_refuse_constant)  # made once: json.loads makes one for every call


def json_value(text: str | bytes, where: str) -> Any:
    """Parsed JSON. Raises TraceError: not UTF-8, not JSON (NaN and Infinity are not), nested too deeply."""

    try:
        return _JSON.decode(text) if isinstance(text, str) else json.loads(text, parse_constant=_refuse_constant)
    except _NotANumber as error:
        raise TraceError(f"{where}: not valid JSON ({error} is no number); mend it") from None
    except UnicodeDecodeError:
        raise TraceError(f"{where}: not UTF-8 text; save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        problem = error.msg if isinstance(error, json.JSONDecodeError) else "a number or nesting too large"
        raise TraceError(f"{where}: not valid JSON ({problem}); mend it") from None


def json_entries(path: Path) -> Iterator[Entry]:
    """One JSON object a line; blank lines are no entries but do count as rows. Raises TraceError."""
    for number, text in text_lines(path):
        where = f"{path}: row {number}"
        yield Entry(where, json_value(text, where), number)


def shown(value: Any) -> str:
    """A value as an error message shows it: short and on one line."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return "empty"
    if isinstance(value, float | int) and not isinstance(value, bool):
        return str(value) if isinstance(value, float) or abs(value) < 10**15 else "a very large number"
    text = (
        json.dumps(value) if isinstance(value, list | dict) else ascii(value) if isinstance(value, str) else str(value)
    )
    return text if len(text) <= 40 else text[:37] + "..."
