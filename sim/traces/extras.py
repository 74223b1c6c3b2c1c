"""Columns that a trace carries for whoever analyses it, and that no run reads: prefix hashes, turns, sources.

A Parquet file says itself which extras it has, of any type. Text files have only those of EXTRAS, whose kinds are
known; a new one is an entry there. Called by `traces.stream` and `traces.write`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from sim.common.lazy import pa, parquet, pc
from sim.traces.columns import ColumnChecks

# whole: int64. number: float64. text: a line of text. wholes: list of int64. Nothing is null.
EXTRAS = {
    **dict.fromkeys(("turn", "client", "prefix_block_tokens", "reason_tokens"), "whole"),
    **dict.fromkeys(("images", "image_tokens", "audios", "audio_tokens", "videos", "video_tokens"), "whole"),
    **dict.fromkeys(("source", "log_type"), "text"),
    **dict.fromkeys(("elapsed_s", "duration_s", "recorded_api_s", "recorded_ttft_s"), "number"),
    **dict.fromkeys(("measured_ttft_s", "measured_latency_s"), "number"),
    **dict.fromkeys(("prefix_blocks", "sys_prompt_ids", "passages_ids", "history_ids"), "wholes"),
    **dict.fromkeys(("web_search_ids", "user_input_ids"), "wholes"),
}
EXTRAS_KEY = b"extras"

_EXPECTED = {
    "whole": "give a whole number, or nothing",
    "number": "give a finite number, or nothing",
    "text": "give one line of text, or nothing",
    "wholes": "give whole numbers as [1, 2, 3], or nothing",
}
_MOST = 2**63


def extra_names(path: Path) -> dict[str, str | None]:
    """The extras that a file may have, with their kinds; None: a kind that Parquet alone knows."""
    names: dict[str, str | None] = dict(EXTRAS)
    if path.name.lower().endswith(".parquet"):
        names |= {name: None for name in metadata_json(path, EXTRAS_KEY) or () if name not in EXTRAS}
    return names


def metadata_json(path: Path, key: bytes) -> Any:
    """What a Parquet file's own metadata hold under a key, as JSON; None for nothing, or no such file."""
    try:
        metadata = parquet.read_schema(path).metadata or {}
        return json.loads(metadata[key]) if key in metadata else None
    except (pa.ArrowException, OSError, ValueError, RecursionError):
        return None


def arrow_type(kind: str) -> Any:
    """The Arrow type of a kind of EXTRAS."""
    return {"whole": pa.int64(), "number": pa.float64(), "text": pa.string(), "wholes": pa.list_(pa.int64())}[kind]


def read_extra(checks: ColumnChecks, name: str, kind: str | None) -> Any:
    """The column as an Arrow array of its kind; problems are left with `checks`."""
    column = checks.table.columns[name]
    if kind is None:
        return column
    wanted = arrow_type(kind)
    fast = None if isinstance(column, list) else _all_at_once(column, kind)
    if fast is not None:
        return fast
    values = column if isinstance(column, list) else column.to_pylist()
    converted: list[Any] = []
    for index, value in enumerate(values):
        good, result = _converted(value, kind)
        if not good:
            checks.unfit(index, name, value, _EXPECTED[kind])
            return pa.nulls(len(values), wanted)
        converted.append(result)
    return pa.array(converted, wanted)


def _all_at_once(column: Any, kind: str) -> Any:
    """The whole column, or None when any cell needs a closer look."""
    wanted = arrow_type(kind)
    if pa.types.is_null(column.type):
        return column.cast(wanted)
    if not pa.types.is_string(column.type):
        exact = pa.types.is_integer if kind in ("whole", "wholes") else pa.types.is_floating
        values = column.flatten() if kind == "wholes" and pa.types.is_list(column.type) else column
        if kind == "text" or not exact(values.type) or (kind == "wholes" and (values is column or values.null_count)):
            return None
        if kind == "number" and not pc.all(pc.is_finite(column), min_count=0).as_py():
            return None
        return _cast(column, wanted)
    column = pc.if_else(pc.equal(column, ""), None, column)
    if kind == "text":
        texts = column.dictionary_encode().dictionary.to_pylist()
        return column if all(_converted(text, kind) == (True, text) for text in texts) else None
    pattern = {"whole": "^-?[0-9]{1,18}$", "wholes": r"^\[[0-9]{1,18}(, ?[0-9]{1,18})*\]$"}.get(kind)
    if pattern is None or not pc.all(pc.match_substring_regex(column, pattern), min_count=0).as_py():
        return None
    if kind == "whole":
        return _cast(column, wanted)
    items = pc.split_pattern(pc.replace_substring(pc.utf8_slice_codeunits(column, 1, -1), " ", ""), ",")
    return _cast(items, wanted)


def _cast(column: Any, wanted: Any) -> Any:
    try:
        return column.cast(wanted)
    except pa.ArrowException:
        return None  # outside int64: found row by row


def _converted(value: Any, kind: str) -> tuple[bool, Any]:
    """Whether a cell is of this kind, and its value, None for nothing."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return True, None
    if kind == "text":
        good = isinstance(value, str) and value.isprintable() and value == value.strip()
        return good, value
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return False, None
    if kind == "wholes":
        good = isinstance(value, list) and all(_is_whole(item) for item in value)
        return good, value
    if kind == "number":
        if isinstance(value, float) and math.isnan(value):
            return True, None
        good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e308
        return good, value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _is_whole(value), value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -_MOST <= value < _MOST
