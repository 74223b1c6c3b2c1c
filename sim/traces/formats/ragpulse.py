"""The RAGPulse trace: JSON lines of a retrieval service, with sessions and the ids of each prompt's parts.

The file is weeks laid end to end, each counted from 0. Only the trace (`0_trace`) holds requests; the tables beside it
say how long each part of a prompt is, and are not read.

Source: flashserve/RAGPulse.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from sim.common.errors import TraceError
from sim.common.text import counted
from sim.traces.columns import FURTHEST_S, MOST_TOKENS
from sim.traces.formats.assembly import EMPTY, Block, Clock, EmptyChoice, EmptyTokens, assembled
from sim.traces.formats.base import Entry, Format, FormatOptions, Sample, json_entries, one_file
from sim.traces.formats.json_rows import JsonRow, filled, gathered, list_of_ids
from sim.traces.formats.tabular import MODEL, ModelName
from sim.traces.stream import TraceStream

NAME = "ragpulse"
WEEK_S = 604_800

_FIELDS = ("timestamp", "input_length", "output_length", "hash_ids", "session_id")
_TABLES = ("sys_prompt_id", "passage_id", "history_id", "user_input_id", "web_search_id")
# In the order of the prompt; the ids of the five kinds do not overlap.
PARTS = ("sys_prompt", "passages_ids", "history", "web_search", "user_input")


class RagpulseOptions(FormatOptions):
    week: int | None = Field(None, ge=1, description="only this week of the file (from 1), counted from its own start")
    prompt_parts: bool = Field(True, description="keep the ids of the prompts' parts, one column for each kind")
    zero_tokens: EmptyChoice = Field("drop", description=EMPTY)
    model: ModelName | None = Field(None, description=MODEL)


def _read(files: Sequence[Path], options: RagpulseOptions) -> TraceStream:
    """arrival_s counts from the start of the first week (or of the one chosen); extras: the parts' ids."""
    path = _trace_of(one_file(files, NAME))
    return assembled({str(path): lambda notices: _blocks(path, options, notices)}, options, Clock(1, origin=0))


def _trace_of(path: Path) -> Path:
    """The trace itself, in the publisher's folder."""
    if not path.is_dir():
        return path
    inside = sorted(file for file in path.iterdir() if file.name.startswith("0_trace"))
    if len(inside) != 1:
        raise TraceError(f"{path}: {counted(len(inside), 'file')} named 0_trace... in the folder; give the file itself")
    return inside[0]


def _blocks(path: Path, options: RagpulseOptions, notices: list[str]) -> Iterator[Block]:
    kinds = {f"{part.removesuffix('_ids')}_ids": list_of_ids() for part in PARTS} if options.prompt_parts else {}
    rows = _rows(path, options, notices)
    yield from filled(gathered(rows, str(path), kinds), EmptyTokens(options.zero_tokens, "zero_tokens"), notices)


def _rows(path: Path, options: RagpulseOptions, notices: list[str]) -> Iterator[JsonRow]:
    ignored: dict[str, None] = {}
    offset_s, before_s, highest_s, week = 0, 0, 0, 1
    falls: list[int] = []
    for entry in json_entries(path):
        time_s = _seconds(entry)
        if before_s - time_s > WEEK_S // 2:
            # The next week starts after as many whole weeks as the one before took: one.
            offset_s += WEEK_S * (highest_s // WEEK_S + 1)
            highest_s, week = 0, week + 1
            falls.append(entry.row)
        before_s, highest_s = time_s, max(highest_s, time_s)
        ignored.update(dict.fromkeys(entry.ignored(_FIELDS, options.strict)))
        if options.week in (None, week):
            yield _row(entry, time_s + (offset_s if options.week is None else 0), options)
    notices += [f"ignored the field '{name}'" for name in ignored]
    if options.week is not None and options.week > week:
        raise entry.error_here(f"the file ends in week {week}; --option week={options.week} asks for a later one")
    if falls:
        rows = ", ".join(f"{row:,}" for row in falls[:5]) + (", ..." if len(falls) > 5 else "")
        laid = (
            f"each laid {WEEK_S:,} s after the one before" if options.week is None else f"of which week {options.week}"
        )
        notices.append(f"the clock falls back at row {rows}: {counted(week, 'week')} end to end, {laid}")


def _seconds(entry: Entry) -> int:
    """Whole seconds, published as text."""
    if "token_length" in entry.values and "timestamp" not in entry.values:
        raise entry.error_here("this file is a table of parts of prompts and holds no requests; give 0_trace...")
    value = entry.values.get("timestamp")
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,12}", value.strip()):
        value = int(value)
    if type(value) is not int or not 0 <= value <= FURTHEST_S:
        raise entry.error("timestamp", 'give whole seconds, for example "82"')
    return value


def _row(entry: Entry, time_s: int, options: RagpulseOptions) -> JsonRow:
    low = 1 if options.zero_tokens == "refuse" else 0
    extras: tuple[Any, ...] = ()
    if options.prompt_parts:
        parts = entry.entry("hash_ids")
        extras = tuple(parts.wholes(part) for part in PARTS)
    return JsonRow(
        row=entry.row,
        time=time_s,
        prompt_tokens=entry.whole("input_length", low, MOST_TOKENS),
        output_tokens=entry.whole("output_length", low, MOST_TOKENS),
        model=options.model or NAME,
        session=entry.text("session_id") if entry.values.get("session_id") not in (None, "") else None,
        extras=extras,
    )


def _is(sample: Sample) -> bool:
    item = sample.json_object()
    ids = item.get("hash_ids")
    is_trace = set(item) == set(_FIELDS) and isinstance(ids, dict) and set(ids) == set(PARTS)
    return is_trace or (len(item) == 2 and "token_length" in item and any(name in item for name in _TABLES))


FORMATS = (Format(NAME, "RAGPulse: JSON lines of a retrieval service, with sessions", _read, _is, RagpulseOptions),)
