"""Requests read one at a time, as JSON files give them, gathered into blocks of columns.

Nothing here knows a particular format. Called by the modules beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.common.lazy import pa
from sim.traces.formats.assembly import Block, EmptyTokens, Named

BLOCK_ROWS = 4096  # each may carry thousands of ids


@dataclass(frozen=True, slots=True)
class JsonRow:
    """One request; time in the clock's unit, tokens of at least 0, session None for none, think_s NaN for open loop.

    extras: one value for each extra column of its format, None where it has none.
    """

    row: int
    time: float
    prompt_tokens: int
    output_tokens: int
    model: str
    session: str | None = None
    think_s: float = math.nan
    extras: tuple[Any, ...] = ()


def gathered(rows: Iterator[JsonRow], where: str, kinds: Mapping[str, Any], closed: bool = False) -> Iterator[Block]:
    """Rows as blocks; `kinds` are the pyarrow types of their extras, by name; `closed`: whether any has a think_s."""
    while part := list(islice(rows, BLOCK_ROWS)):
        extras = {name: _column([row.extras[place] for row in part], kinds[name]) for place, name in enumerate(kinds)}
        yield Block(
            where=where,
            rows=np.array([row.row for row in part], dtype=np.int64),
            time=np.array([row.time for row in part]),
            prompt_tokens=np.array([row.prompt_tokens for row in part], dtype=np.int64),
            output_tokens=np.array([row.output_tokens for row in part], dtype=np.int64),
            model=named([row.model for row in part]),
            session=named([row.session for row in part]),
            think_s=np.array([row.think_s for row in part], dtype=np.float64) if closed else None,
            extras=extras,
        )


def named(names: Sequence[str | None]) -> Named:
    """Codes by first appearance, -1 for None, and the names they stand for."""
    codes: dict[str, int] = {}
    column = [-1 if name is None else codes.setdefault(name, len(codes)) for name in names]
    return np.array(column, dtype=np.int64), tuple(codes)


def _column(values: list[Any], kind: Any) -> Any:
    if not pa.types.is_list(kind):
        return pa.array(values, kind)
    arrays: list[NDArray[np.int64]] = [np.asarray(() if ids is None else ids, dtype=np.int64) for ids in values]
    ends = np.zeros(len(arrays) + 1, dtype=np.int32)
    np.cumsum([len(ids) for ids in arrays], out=ends[1:])
    absent = pa.array([ids is None for ids in values])
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(np.concatenate(arrays)), mask=absent)


def filled(blocks: Iterator[Block], empty: EmptyTokens, notices: list[str]) -> Iterator[Block]:
    """The blocks without, or with one token in, what has no tokens."""
    for block in blocks:
        prompt_tokens, output_tokens, kept = empty.applied(block.prompt_tokens, block.output_tokens)
        whole = replace(block, prompt_tokens=prompt_tokens, output_tokens=output_tokens)
        yield whole if kept is None else whole.select(kept)
    empty.finish(notices)


def list_of_ids() -> Any:
    """The type of a column of hash ids."""
    return pa.list_(pa.int64())
