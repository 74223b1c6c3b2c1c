"""Request logs in OpenAI's terms: JSON lines with a time, a model and the usage of each request.

A line may be a completion object as the server gave it, a log's own record of one with the fields beside each other,
or a line of a batch's output, which wraps the completion in `response`. Usage may be named as in either API.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from sim.common.errors import TraceError
from sim.traces.columns import MOST_TOKENS, name_problem
from sim.traces.formats.assembly import Block, Clock, assembled
from sim.traces.formats.base import Entry, Format, FormatOptions, Sample, json_entries, shown
from sim.traces.formats.json_rows import named
from sim.traces.formats.tabular import FAILURES, Failures, by_path, failure_notice
from sim.traces.stream import TraceStream

NAME = "openai-log"
BLOCK_ROWS = 1 << 15

TIMES = ("timestamp", "created", "created_at")
SESSIONS = ("session_id", "session", "conversation_id", "user")
PROMPTS, OUTPUTS = ("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Below the first bound a time in that unit is before the year 5138, and one in the next would be before 1974.
_UNITS = {"s": (1e11, 1e6), "ms": (1e14, 1e3), "us": (1e17, 1.0), "ns": (1e20, 1e-3)}  # bound; microseconds

_FURTHEST_US = 10**18

_Fields = dict[str, Any]
_Request = tuple[int, int, int, int, str, str | None, int]  # row, us, prompt, output, model, session, priority


class OpenAiLogOptions(FormatOptions):
    """Lines may stand in order of ending, as servers write them: they are sorted by their time."""

    unit: Literal["auto", "s", "ms", "us", "ns"] = Field(
        "auto", description="unit of numeric times; auto tells that of times since 1970 by their size, else s"
    )
    time_field: str | None = Field(None, min_length=1, description=f"field of the time; else {', '.join(TIMES)}")
    failures: Failures = Field("drop", description=FAILURES)


def _read(files: Sequence[Path], options: OpenAiLogOptions) -> TraceStream:
    """arrival_s counts from the earliest request of all files, in steps of 1 us; times without a zone are UTC."""
    readers = {where: _Log(path, options).blocks for where, path in by_path(files).items()}
    return assembled(readers, options, Clock(per_s=10**6))


class _Log:
    """One file of JSON lines."""

    def __init__(self, path: Path, options: OpenAiLogOptions) -> None:
        self._path = path
        self._options = options
        self._times = TIMES if options.time_field is None else (options.time_field,)
        # Times from low to high are in this unit; an unknown unit has none.
        self._unit: str | None = None if options.unit == "auto" else options.unit
        self._low, self._high, self._per_unit = 0.0, 0.0, 0.0
        if self._unit is not None:
            self._high, self._per_unit = 1e20, _UNITS[self._unit][1]
        self._names: dict[tuple[str, Any], str] = {}
        self._failed = 0

    def blocks(self, notices: list[str]) -> Iterator[Block]:
        """Raises TraceError at a line that cannot be a request and has not failed."""
        requests: list[_Request] = []
        for entry in json_entries(self._path):
            request = self._request(entry)
            if request is not None:
                requests.append(request)
            if len(requests) >= BLOCK_ROWS:
                yield _block(str(self._path), requests)
                requests = []
        if requests:
            yield _block(str(self._path), requests)
        notices += failure_notice(self._failed, self._options.failures)

    def _request(self, entry: Entry) -> _Request | None:
        parts = _parts(entry.values)
        usage = _first(parts, ("usage",))[1]
        counted = (usage,) if isinstance(usage, dict) else parts
        prompt_field, prompt = _first(counted, PROMPTS)
        output_field, output = _first(counted, OUTPUTS)
        if not prompt or not output or any(map(_has_failed, parts)):
            self._failed += 1
            if self._options.failures == "drop":
                return None
        session_field, session = _first(parts, SESSIONS)
        return (
            entry.row,
            self._microseconds(entry, *_first(parts, self._times)),
            _tokens(entry, prompt_field, prompt),
            _tokens(entry, output_field, output),
            self._name(entry, "model", *_first(parts, ("model",))),
            None if session in (None, "", -1) else self._name(entry, "session", session_field, session),
            _priority(entry, _first(parts, ("priority",))[1]),
        )

    def _microseconds(self, entry: Entry, field: str, value: Any) -> int:
        if isinstance(value, str):
            when = _date_time(value)
            if when is not None and when >= 0:
                return when
            value = _plain_number(value)
        if type(value) not in (int, float) or not 0 <= value < 1e20:
            if value is None and field not in entry.values and self._options.time_field is not None:
                raise entry.error(field, "name another time_field")
            how = "give seconds, milliseconds or a date and time as 2024-05-10T00:00:00Z, from 1970 on"
            raise TraceError(f"{entry.where}: field '{field}' is {shown(_first((entry.values,), (field,))[1])}; {how}")
        if not self._low <= value < self._high:
            unit = next(unit for unit, (bound, _) in _UNITS.items() if value < bound)
            if self._unit is not None:
                text = f"looks like {unit}, those above like {self._unit}; give --option unit=<unit>, or mend it"
                raise TraceError(f"{entry.where}: field '{field}' is {shown(value)}, which {text}")
            self._unit = unit
            self._high, self._per_unit = _UNITS[unit]
            self._low = max([bound for bound, _ in _UNITS.values() if bound < self._high], default=0.0)
        microseconds: int = round(value * self._per_unit)
        if microseconds > _FURTHEST_US:
            what = f"{shown(value)} {self._unit}, which is no date"
            raise TraceError(f"{entry.where}: field '{field}' is {what}; mend it")
        return microseconds

    def _name(self, entry: Entry, what: str, field: str, value: Any) -> str:
        name = self._names.get((what, value)) if type(value) in (str, int) else None
        if name is None:
            text = str(value).strip() if type(value) in (str, int) else None
            problem = f"is {shown(value)}; give the {what}'s name as text"
            if text is None or (problem := name_problem(text, what) or ""):
                raise TraceError(f"{entry.where}: field '{field}' {problem}")
            name = self._names[what, value] = text
        return name


def _date_time(text: str) -> int | None:
    """Microseconds since 1970 of a date and time in ISO form, in UTC where it names no zone."""
    try:
        when = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return ((when if when.tzinfo is not None else when.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)


def _plain_number(text: str) -> float | None:
    try:
        return float(text) if re.fullmatch(r"\s*[0-9]+(\.[0-9]*)?\s*", text) else None
    except ValueError:
        return None


def _parts(values: _Fields) -> tuple[_Fields, ...]:
    """The objects that may hold a request's fields: the line, and what it wraps."""
    if "response" not in values and "request" not in values:
        return (values,)
    inner = [values.get("response"), values.get("request")]
    inner += [part.get("body") for part in inner if isinstance(part, dict)]
    return (values, *(part for part in inner if isinstance(part, dict)))


def _first(parts: Sequence[_Fields], names: Sequence[str]) -> tuple[str, Any]:
    """The first of these fields that is there and not null, with its name."""
    for name in names:
        for part in parts:
            value = part.get(name)
            if value is not None:
                return name, value
    return names[0], None


def _has_failed(part: _Fields) -> bool:
    if part.get("error") or part.get("success") is False:
        return True
    status = part.get("status_code", part.get("status"))
    if isinstance(status, str):
        return status in ("error", "failed", "failure") or (len(status) == 3 and "400" <= status <= "599")
    return type(status) is int and status >= 400


def _tokens(entry: Entry, field: str, value: Any) -> int:
    if value is None or value == 0:
        return 1
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or not 1 <= value <= MOST_TOKENS:
        give = f"give a whole number from 0 to {MOST_TOKENS:,}"
        raise TraceError(f"{entry.where}: field '{field}' is {shown(value)}; {give}")
    return value


def _priority(entry: Entry, value: Any) -> int:
    if value is None:
        return 0
    if type(value) is not int or abs(value) > MOST_TOKENS:
        raise TraceError(f"{entry.where}: field 'priority' is {shown(value)}; give a whole number")
    return value


def _block(where: str, requests: Sequence[_Request]) -> Block:
    rows, times, prompts, outputs, models, sessions, priorities = zip(*requests, strict=True)
    numbers = (np.array(column, dtype=np.int64) for column in (rows, times, prompts, outputs, priorities))
    row, time, prompt, output, priority = numbers
    return Block(where, row, time, prompt, output, named(models), session=named(sessions), priority=priority)


def _sniff(sample: Sample) -> bool:
    """A time and a model beside OpenAI's usage is nobody else's."""
    parts = _parts(sample.json_object())
    usage: _Fields = next((part["usage"] for part in parts if isinstance(part.get("usage"), dict)), {})
    known = _first((usage,), PROMPTS)[1] is not None and _first(parts, TIMES)[1] is not None
    return not sample.members and known and _first(parts, ("model",))[1] is not None


FORMATS = (Format(NAME, "OpenAI-style request logs with usage, JSON lines", _read, _sniff, OpenAiLogOptions),)
