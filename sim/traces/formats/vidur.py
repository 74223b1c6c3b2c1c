"""Vidur's processed traces: requests with arrivals in seconds, or prompt and answer lengths alone.

Published at microsoft/vidur, data/processed_traces. No models and no sessions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sim.common.errors import TraceError
from sim.traces.files import csv_tables
from sim.traces.formats import tabular
from sim.traces.formats.assembly import EMPTY, Block, Clock, EmptyChoice, EmptyTokens, assembled
from sim.traces.formats.base import Format, Sample
from sim.traces.stream import TraceStream

NAME = "vidur"
TIME, PROMPT, OUTPUT = "arrived_at", "num_prefill_tokens", "num_decode_tokens"
UNREAD = ("num_total_tokens", "pd_ratio")  # their sum and ratio

_TICKS_PER_S = 1e7
_NOISE_S = 1e-9


class VidurOptions(tabular.ArrivalOptions):
    """`rate` and `seed` are for files without arrivals; others refuse a rate."""

    model: tabular.ModelName | None = Field(None, description=tabular.MODEL)
    zero_tokens: EmptyChoice = Field("refuse", description=EMPTY)


def _read(files: Sequence[Path], options: VidurOptions) -> TraceStream:
    """arrival_s is the file's own, seconds from its start; several files share that clock."""
    models = tabular.file_models(files, NAME, options.model)
    readers = {
        where: partial(_blocks, path, models[number], number, options)
        for number, (where, path) in enumerate(tabular.by_path(files).items())
    }
    return assembled(readers, options, Clock(origin=0.0))


def _blocks(path: Path, model: str, number: int, options: VidurOptions, notices: list[str]) -> Iterator[Block]:
    empty = EmptyTokens(options.zero_tokens, "zero_tokens")
    clock: tabular.PoissonClock | None = None
    tables = csv_tables(path, (TIME, PROMPT, OUTPUT))
    for checks in tabular.checked_tables(tables, (PROMPT, OUTPUT), (TIME, *UNREAD), options.strict, notices):
        table, timed = checks.table, TIME in checks.table.columns
        if timed and options.rate is not None:
            raise TraceError(f"{path}: column '{TIME}' has the arrivals; leave out --option rate")
        seconds = _on_grid(checks.seconds(TIME)) if timed else np.zeros(len(table))
        prompt_tokens, output_tokens, kept = empty.read(checks, PROMPT, OUTPUT)
        model_column = tabular.same_name(model, len(table))
        block = Block(table.where, table.rows, seconds, prompt_tokens, output_tokens, model_column)
        block = block if kept is None else block.select(kept)
        if not timed:
            clock = clock or tabular.PoissonClock(NAME, path, number, options)
            block = replace(block, time=clock.next(len(block.time)))
        yield block
    empty.finish(notices)


def _on_grid(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Times within 1 ns of a multiple of 100 ns, put on it.

    The files are differences of date-times of 100 ns steps, taken in floating point and so off by rounding; on the
    grid they equal the differences taken in integers, bit for bit. Times that are on no such grid stay as they are.
    """
    nearest = np.rint(seconds * _TICKS_PER_S) / _TICKS_PER_S
    return np.where(np.abs(nearest - seconds) <= _NOISE_S, nearest, seconds)


def _sniff(sample: Sample) -> bool:
    return not sample.members and all(name in sample.columns() for name in (PROMPT, OUTPUT))


FORMATS = (Format(NAME, "Vidur's processed traces, with arrivals or lengths alone, CSV", _read, _sniff, VidurOptions),)
