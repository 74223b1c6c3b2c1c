"""Requests whose lengths are known but not their arrivals, which are drawn: tables of lengths, and conversations.

`lengths` reads a CSV, JSON lines or Parquet file with a column of prompt and one of output tokens. `sharegpt` reads
conversations as text and estimates tokens from characters, so that no tokenizer is needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from sim.common.errors import TraceError, did_you_mean
from sim.common.lazy import pa
from sim.common.rng import stream
from sim.traces.columns import name_problem
from sim.traces.files import FileColumns, tables_of
from sim.traces.formats import tabular
from sim.traces.formats.assembly import EMPTY, Block, Clock, EmptyChoice, EmptyTokens, assembled
from sim.traces.formats.base import Entry, Format, Sample, shown
from sim.traces.formats.json_items import json_items
from sim.traces.stream import TraceStream

LENGTHS, SHAREGPT = "lengths", "sharegpt"
BLOCK_ROWS = 1 << 15

PROMPTS = (
    *("prompt_tokens", "input_tokens", "prompt_length", "input_length", "prompt_len", "input_len"),
    *("num_prefill_tokens", "ContextTokens"),
)
OUTPUTS = (
    *("output_tokens", "completion_tokens", "generated_tokens", "response_tokens", "output_length", "response_length"),
    *("output_len", "num_decode_tokens", "GeneratedTokens"),
)


class LengthsOptions(tabular.ArrivalOptions):
    """The columns are found by their names where those are among the usual ones."""

    prompt_column: str | None = Field(None, description="the column of prompt tokens")
    output_column: str | None = Field(None, description="the column of output tokens")
    model: tabular.ModelName | None = Field(None, description=tabular.MODEL)
    zero_tokens: EmptyChoice = Field("refuse", description=EMPTY)


class ShareGptOptions(tabular.ArrivalOptions):
    """`rate` counts conversations, which are closed loops: a turn follows the answer before it."""

    chars_per_token: float = Field(4.0, gt=0, le=1000, description="characters that count as one token")
    history: bool = Field(True, description="whether a turn's prompt begins with all turns before it")
    think_s: float = Field(
        10.0, ge=0, le=1e6, description="mean of the exponential time between an answer and the next turn"
    )
    model: tabular.ModelName | None = Field(None, description=tabular.MODEL)


# --- tables of lengths


def _read_lengths(files: Sequence[Path], options: LengthsOptions) -> TraceStream:
    """Models are those of a column 'model' if there is one, else the option, else as `file_models` says."""
    models = tabular.file_models(files, LENGTHS, options.model)
    readers = {}
    for number, (where, path) in enumerate(tabular.by_path(files).items()):
        clock = tabular.PoissonClock(LENGTHS, path, number, options)
        readers[where] = partial(_lengths_blocks, path, models[number], clock, options)
    return assembled(readers, options, Clock(origin=0.0))


def _lengths_blocks(
    path: Path, model: str, clock: tabular.PoissonClock, options: LengthsOptions, notices: list[str]
) -> Iterator[Block]:
    empty = EmptyTokens(options.zero_tokens, "zero_tokens")
    given = options.prompt_column, options.output_column
    tables = tables_of(path, (*PROMPTS, *OUTPUTS, *filter(None, given), "model"))
    first = next(tables)
    columns = (_column(first, given[0], PROMPTS, "prompt_column"), _column(first, given[1], OUTPUTS, "output_column"))
    if columns[0] == columns[1]:
        raise TraceError(f"{path}: column '{columns[0]}' cannot be both; give another prompt_column or output_column")
    for checks in tabular.checked_tables(chain([first], tables), columns, ("model",), options.strict, notices):
        table = checks.table
        named = options.model is None and "model" in table.columns
        models = checks.names("model", "model", None) if named else tabular.same_name(model, len(table))
        prompt_tokens, output_tokens, kept = empty.read(checks, *columns)
        block = Block(table.where, table.rows, np.zeros(len(table)), prompt_tokens, output_tokens, models)
        block = block if kept is None else block.select(kept)
        yield replace(block, time=clock.next(len(block.time)))
    empty.finish(notices)


def _column(table: FileColumns, given: str | None, usual: Sequence[str], option: str) -> str:
    found = [given] if given else [name for name in usual if name in table.columns]
    if len(found) != 1:
        which = f"columns {' and '.join(found)} could both be it" if found else f"none is called {usual[0]} or the like"
        raise TraceError(f"{table.where}: {option}: {which}; give --option {option}=<name>")
    return found[0]


# --- conversations

_Tokens = list[tuple[int, int]]  # of the prompt and of the answer
_ASKS = ("human", "user", "system", "tool", "function", "observation", "function_response", "ipython")
_ANSWERS = ("gpt", "assistant", "chatgpt", "bard", "bing", "claude", "model", "function_call")


def _read_sharegpt(files: Sequence[Path], options: ShareGptOptions) -> TraceStream:
    """Every answer is a request; extras: turn (from 1). arrival_s of all turns is their conversation's."""
    models = tabular.file_models(files, SHAREGPT, options.model)
    readers = {}
    for number, (where, path) in enumerate(tabular.by_path(files).items()):
        clock = tabular.PoissonClock(SHAREGPT, path, number, options)
        readers[where] = partial(_Conversations(path, models[number], number, options).blocks, clock)
    return assembled(readers, options, Clock(origin=0.0))


class _Conversations:
    """One file's conversations as blocks of requests."""

    def __init__(self, path: Path, model: str, number: int, options: ShareGptOptions) -> None:
        self._path = path
        self._model = model
        self._options = options
        self._think = stream(options.seed, "formats", SHAREGPT, "think", number)
        self._ids: dict[str, int] = {}
        self._left_out = {"conversation{} without any answer": 0, "question{} without an answer": 0}

    def blocks(self, clock: tabular.PoissonClock, notices: list[str]) -> Iterator[Block]:
        """Raises TraceError: what is no conversation."""
        rows: list[int] = []
        turns: list[int] = []
        tokens: _Tokens = []
        sessions: list[str] = []
        for row, item in json_items(self._path):
            entry = Entry(f"{self._path}: row {row}", item)
            found = self._requests(entry)
            if not found:
                self._left_out["conversation{} without any answer"] += 1
                continue
            sessions.append(self._session(entry, row))
            rows += [row] * len(found)
            turns += range(len(found))
            tokens += found
            if len(rows) >= BLOCK_ROWS:
                yield self._block(clock, rows, turns, tokens, sessions)
                rows, turns, tokens, sessions = [], [], [], []
        if rows:
            yield self._block(clock, rows, turns, tokens, sessions)
        for what, count in self._left_out.items():
            if count:
                notices.append(f"left out {count} {what.format('' if count == 1 else 's')}")
        notices.append(f"took {self._options.chars_per_token:g} characters as a token; no tokenizer was asked")

    def _block(
        self,
        clock: tabular.PoissonClock,
        rows: list[int],
        turns: list[int],
        tokens: list[tuple[int, int]],
        sessions: list[str],
    ) -> Block:
        turn = np.array(turns, dtype=np.int64)
        session = np.cumsum(turn == 0) - 1
        later = turn > 0
        think_s = np.full(len(turn), np.nan)
        think_s[later] = self._think.standard_exponential(int(later.sum())) * self._options.think_s
        prompts, outputs = (column.copy() for column in np.array(tokens, dtype=np.int64).T)
        time_s, model = clock.next(len(sessions))[session], tabular.same_name(self._model, len(turn))
        block = Block(str(self._path), np.array(rows, dtype=np.int64), time_s, prompts, outputs, model)
        return replace(block, session=(session, sessions), think_s=think_s, extras={"turn": pa.array(turn + 1)})

    def _session(self, entry: Entry, row: int) -> str:
        given = entry.values.get("id", entry.values.get("conversation_id"))
        name = str(given).strip() if isinstance(given, str | int) and str(given).strip() else f"conversation-{row}"
        problem = name_problem(name, "session")
        if problem:
            raise TraceError(f"{entry.where}: field 'id' {problem}")
        # Ids repeat where long conversations were cut into several; each is a loop of its own.
        again = self._ids.get(name, 0)
        self._ids[name] = again + 1
        return f"{name}#{again + 1}" if again else name

    def _requests(self, entry: Entry) -> _Tokens:
        """Prompt and output tokens of every answer, in order."""
        field = "messages" if "messages" in entry.values and "conversations" not in entry.values else "conversations"
        turns = entry.values.get(field)
        if not isinstance(turns, list):
            raise entry.error(field, "give a list of turns")
        found: _Tokens = []
        before, asked, answered = 0, None, 0
        for number, turn in enumerate(turns, 1):
            size, answer = self._turn(entry, field, number, turn)
            if answer:
                answered += size
                continue
            if answered:  # a first answer without a question is what a part of a longer conversation begins with
                if asked is not None:
                    found.append(self._tokens(before, asked, answered))
                before, asked, answered = before + (asked or 0) + answered, None, 0
            asked = (asked or 0) + size
        if asked is not None and answered:
            found.append(self._tokens(before, asked, answered))
        elif asked is not None and found:
            self._left_out["question{} without an answer"] += 1
        return found

    def _tokens(self, before: int, asked: int, answered: int) -> tuple[int, int]:
        per_token = self._options.chars_per_token
        prompt = asked + (before if self._options.history else 0)
        return max(1, math.ceil(prompt / per_token)), max(1, math.ceil(answered / per_token))

    def _turn(self, entry: Entry, field: str, number: int, turn: Any) -> tuple[int, bool]:
        """A turn's characters, and whether it is an answer."""
        where = f"{entry.where}: field '{field}', turn {number}"
        if not isinstance(turn, dict):
            raise TraceError(f"{where}: is {shown(turn)}; give an object with 'from' and 'value'")
        role = turn.get("from", turn.get("role"))
        text = turn.get("value", turn.get("content"))
        if role not in _ASKS and role not in _ANSWERS:
            raise TraceError(f"{where}: 'from' is {shown(role)}; {did_you_mean(str(role), (*_ASKS, *_ANSWERS))}")
        if text is None:  # a call of a tool, say
            text = ""
        if not isinstance(text, str):
            raise TraceError(f"{where}: 'value' is {shown(text)}; give text")
        return len(text), role in _ANSWERS


def _never(sample: Sample) -> bool:
    """Nothing in such a file says what it is."""
    return False


def _sniff_sharegpt(sample: Sample) -> bool:
    head = sample.head[:4096]
    return not sample.members and head.lstrip()[:1] in (b"[", b"{") and b'"conversations"' in head and b'"from"' in head


FORMATS = (
    Format(SHAREGPT, "ShareGPT-style conversations as text, JSON", _read_sharegpt, _sniff_sharegpt, ShareGptOptions),
    Format(LENGTHS, "prompt and output lengths alone, CSV, JSON lines, Parquet", _read_lengths, _never, LengthsOptions),
)
