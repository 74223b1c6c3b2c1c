"""From the columns of a file to checked numpy arrays, with every mistake named by row and column.

Each kind of value has one plain definition (`_whole`, `_seconds`, `_text`); a vectorised path accepts columns
that are good throughout, and anything else goes through the definition row by row to find the first bad one.
Called by `traces.stream` and the importers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.common.errors import TraceError, did_you_mean
from sim.common.lazy import pa, pc
from sim.traces.files import FileColumns, arrow_or_list

MOST_TOKENS = 10**9
FURTHEST_S = 1e12  # beyond it a float64 clock has less than 0.1 ms resolution

_NUMBER = r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?"
_AZURE = "ContextTokens"  # a column of the most likely file of another format


def name_problem(name: str, what: str) -> str | None:
    """Why a model, class or session cannot be called this, or None."""
    if not name:
        return f"is empty; name the {what}"
    if name != name.strip() or not name.isprintable():
        return f"is {_shown(name)}; use printable characters, without blanks at the ends"
    if what == "session" and name == "-1":
        return "is '-1', which stands for no session; rename it"
    return None


def grown(column: NDArray[Any], size: int, value: Any) -> NDArray[Any]:
    """The column, continued with `value` to at least `size` entries, and further, so that growing is rare."""
    if size <= len(column):
        return column
    return np.concatenate([column, np.full(size + size // 2 - len(column), value, dtype=column.dtype)])


class Appearance:
    """Renumbers the codes of one column by first appearance, piece by piece; -1 stays -1.

    From piece to piece the names may only grow at their end.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._new_code = np.array([-1], dtype=np.int64)  # by old code + 1; -2: not seen yet
        self._table: tuple[str, ...] = ()

    def codes(self, codes: NDArray[Any], names: Sequence[str]) -> NDArray[np.int64]:
        """The new codes of a piece; `names` are all that its codes may mean."""
        self._new_code = grown(self._new_code, len(names) + 1, -2)
        renumbered: NDArray[np.int64] = self._new_code[codes + 1]
        unseen = renumbered == -2
        if unseen.any():
            present, first = np.unique(codes[unseen], return_index=True)
            fresh = present[np.argsort(first, kind="stable")].tolist()
            self._new_code[np.array(fresh) + 1] = np.arange(len(self.names), len(self.names) + len(fresh))
            self.names += [names[code] for code in fresh]
            renumbered = self._new_code[codes + 1]
        return renumbered

    def table(self) -> tuple[str, ...]:
        """The names so far; a new code is a position in here."""
        if len(self._table) != len(self.names):
            self._table = tuple(self.names)
        return self._table


class ColumnChecks:
    """Reads columns of one table, remembers the first problem of each; `finish` raises the earliest."""

    def __init__(self, table: FileColumns) -> None:
        self.table = table
        self._problems: list[tuple[int, str]] = []

    def require(self, required: Sequence[str], optional: Sequence[str] = ()) -> tuple[str, ...]:
        """Notices about columns that nobody reads. Raises TraceError when a required column is missing."""
        known = (*required, *optional)
        unknown = [name for name in self.table.columns if name not in known]
        where = self.table.where + (f": row {self.table.header_row}" if self.table.header_row else "")
        unprintable = next((name for name in unknown if not name.isprintable()), None)
        if unprintable is not None:
            raise TraceError(f"{where}: a column is named {_shown(unprintable)}; use printable characters")
        for name in required:
            if name in self.table.columns:
                continue
            if _AZURE in unknown:
                raise TraceError(f"{where}: column '{name}' is missing; if it is an Azure trace, `trace import` it")
            candidates = [column for column in unknown if column]
            hint = did_you_mean(name, candidates) if candidates else "add it"
            raise TraceError(f"{where}: column '{name}' is missing; {hint}")
        return tuple(f"ignored the column '{name}'; {did_you_mean(name, known)}" for name in unknown)

    def whole(self, name: str, low: int, high: int, default: int | None = None) -> NDArray[np.int64]:
        """Whole numbers from low to high, int64[n]; an empty cell or absent column counts as `default`."""
        column = self.table.columns.get(name)
        if column is None:
            assert default is not None, name
            return np.full(len(self.table), default, dtype=np.int64)
        fast = _fast_whole(column, low, high, default)
        if fast is not None:
            return fast
        expected = f"give a whole number from {low:,} to {high:,}"
        # Limits are far below 2^53, so the way through float64 loses nothing.
        return self._one_by_one(name, lambda cell: _whole(cell, low, high, default), expected).astype(np.int64)

    def seconds(self, name: str) -> NDArray[np.float64]:
        """Finite times of at least 0, float64[n]."""
        fast = _fast_seconds(self.table.columns[name])
        if fast is not None:
            return fast
        expected = f"give seconds from 0 to {FURTHEST_S:.0e}"
        return self._one_by_one(name, _seconds, expected)

    def optional_seconds(self, name: str, above_zero: bool = False) -> NDArray[np.float64] | None:
        """Times as `seconds`, NaN for an empty cell, or None where no row has one; `above_zero`: 0 is too short."""
        column = self.table.columns.get(name)
        if column is None:
            return None
        least = 5e-324 if above_zero else 0.0
        numbers = _fast_seconds(column, least, empty_is_nan=True)
        if numbers is None:
            expected = f"give seconds from 0 to {FURTHEST_S:.0e}, or nothing"
            expected = expected.replace("from 0", "above 0") if above_zero else expected

            def convert(cell: Any) -> float | None:
                return math.nan if _is_nothing(cell) else _seconds(cell, least)

            numbers = self._one_by_one(name, convert, expected)
        return None if np.isnan(numbers).all() else numbers

    def names(
        self, name: str, what: str, blank: str | None, known: Container[str] = ()
    ) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Codes int64[n] and the names they stand for.

        `blank` is the name of an empty cell, or of every row when the column is absent; "" means code -1, and
        None that it must not be empty. `known` names have been checked before.
        """
        column = self.table.columns.get(name)
        if column is None:
            assert blank is not None, name
            code = 0 if blank else -1
            return np.full(len(self.table), code, dtype=np.int64), ((blank,) if blank else ())
        codes, texts = self._raw_names(name, column, what)
        found: dict[str, int] = {}
        remap = np.full(len(texts) + 1, -1, dtype=np.int64)
        for code, raw in enumerate(texts):
            text = "" if what == "session" and raw == "-1" else raw
            if not text and blank is not None:
                text = blank
            if not text and blank == "":
                continue
            problem = None if text in known else name_problem(text, what)
            if problem:
                self._problems.append((int(np.argmax(codes == code)), f"column '{name}' {problem}"))
                break
            remap[code] = found.setdefault(text, len(found))
        return remap[codes], tuple(found)

    def problem(self, index: int, text: str) -> None:
        """Remember what is wrong with entry `index`."""
        self._problems.append((index, text))

    def unfit(self, index: int, name: str, value: Any, expected: str) -> None:
        """Remember a cell that is not what was expected."""
        self.problem(index, f"column '{name}' is {_shown(value)}; {expected}")

    def finish(self) -> None:
        """Raises TraceError for the earliest row that has a problem."""
        if self._problems:
            index, text = min(self._problems)
            raise self.table.error(index, text)

    def _raw_names(self, name: str, column: Any, what: str) -> tuple[NDArray[np.int64], list[str]]:
        if isinstance(column, list):
            column = _texts_or_list(column)
        if not isinstance(column, list):
            if what == "session" and pa.types.is_integer(column.type):
                column = column.cast(pa.string())
            if pa.types.is_string(column.type):
                encoded = pc.fill_null(pc.utf8_trim_whitespace(column), "").dictionary_encode()
                return np.asarray(encoded.indices, dtype=np.int64), encoded.dictionary.to_pylist()
            column = column.to_pylist()
        codes = np.zeros(len(column), dtype=np.int64)
        found: dict[str, int] = {}
        for index, value in enumerate(column):
            text = _text(value, what)
            if text is None:
                self._problems.append((index, f"column '{name}' is {_shown(value)}; give the {what}'s name as text"))
                break
            codes[index] = found.setdefault(text, len(found))
        return codes, list(found) or ["unread"]  # only after a problem in the first row

    def _one_by_one(self, name: str, convert: Callable[[Any], float | None], expected: str) -> NDArray[np.float64]:
        """The column through its plain definition; zeros from the first problem on, for `finish` to raise."""
        column = self.table.columns[name]
        values = column if isinstance(column, list) else column.to_pylist()
        numbers = np.zeros(len(values), dtype=np.float64)
        for index, value in enumerate(values):
            number = convert(value)
            if number is None:
                self.unfit(index, name, value, expected)
                break
            numbers[index] = number
        return numbers


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        return "empty"
    text = ascii(value) if isinstance(value, str) else str(value)
    text = " ".join(text.split())
    return text if len(text) <= 40 else text[:37] + "..."


def _number(value: Any) -> int | float | None:
    """A number from a cell: text in plain decimal form, or a number of the file's own type."""
    if isinstance(value, str):
        text = value.strip()
        if not re.fullmatch(_NUMBER, text) or len(text) > 400:
            return None
        return float(text) if not text.lstrip("+-").isdigit() else int(text)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value


def _whole(value: Any, low: int, high: int, default: int | None) -> int | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return default
    number = _number(value)
    if number is None or not low <= number <= high or number != int(number):
        return None
    return int(number)


def _is_nothing(cell: Any) -> bool:
    """An empty cell; NaN is how a column of numbers has none."""
    if isinstance(cell, str):
        return not cell.strip()
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def _seconds(value: Any, least: float = 0.0) -> float | None:
    number = _number(value)
    if number is None or not least <= number <= FURTHEST_S or math.isnan(number):
        return None
    return float(number) + 0.0  # -0.0 becomes 0.0


def _text(value: Any, what: str) -> str | None:
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if what == "session" and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return None


def _fast_whole(column: Any, low: int, high: int, default: int | None) -> NDArray[np.int64] | None:
    """The whole column at once, or None when any cell needs a closer look."""
    column = arrow_or_list(column) if isinstance(column, list) else column
    if isinstance(column, list) or not len(column):
        return None
    if pa.types.is_string(column.type):
        if default is not None:
            column = pc.if_else(pc.equal(pc.fill_null(column, ""), ""), str(default), column)
        if not pc.all(pc.match_substring_regex(column, "^-?[0-9]{1,18}$"), skip_nulls=False).as_py():
            return None
        column = column.cast(pa.int64())
    elif default is not None and column.null_count and not pa.types.is_null(column.type):
        column = pc.fill_null(column, default)
    if column.null_count or not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return None
    numbers = np.asarray(column)
    if not ((numbers >= low) & (numbers <= high) & (numbers == np.floor(numbers))).all():
        return None
    return numbers.astype(np.int64)


def _fast_seconds(column: Any, least: float = 0.0, empty_is_nan: bool = False) -> NDArray[np.float64] | None:
    column = arrow_or_list(column) if isinstance(column, list) else column
    if isinstance(column, list) or not len(column):
        return None
    if pa.types.is_string(column.type):
        if empty_is_nan:
            column = pc.if_else(pc.equal(column, ""), None, column)
        if not pc.all(pc.match_substring_regex(column, f"^{_NUMBER}$"), skip_nulls=empty_is_nan, min_count=0).as_py():
            return None
        try:
            column = column.cast(pa.float64())
        except pa.ArrowException:
            return None
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_null(column.type)):
        return None
    nothing = np.asarray(column.is_null(nan_is_null=True))
    if nothing.any() and not empty_is_nan:
        return None
    numbers = np.asarray(column.cast(pa.float64()).fill_null(math.nan)) + 0.0
    return numbers if bool((nothing | ((numbers >= least) & (numbers <= FURTHEST_S))).all()) else None


def _texts_or_list(values: list[Any]) -> Any:
    try:
        return pa.array(values, pa.string())
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return values
