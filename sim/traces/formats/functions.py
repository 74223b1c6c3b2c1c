"""Azure Functions invocations, 2021: many functions' arrivals and durations, made requests of as many models.

Published at Azure/AzurePublicDataset with Zhang et al., "Faster and Cheaper Serverless Computing on Harvested
Resources" (SOSP 2021). Functions have no tokens: options say how many stand for a duration.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import Field

from sim.common.lazy import pa
from sim.traces.columns import MOST_TOKENS
from sim.traces.files import csv_tables
from sim.traces.formats.assembly import Block, Clock, Named, assembled
from sim.traces.formats.base import Format, FormatOptions, Sample
from sim.traces.formats.tabular import by_path, checked_tables
from sim.traces.stream import TraceStream

NAME = "azure-functions-2021"
APP, FUNCTION, END, DURATION = COLUMNS = ("app", "func", "end_timestamp", "duration")
SHORT = 8  # characters of an id in a model's name, where that tells it from the others


class FunctionsOptions(FormatOptions):
    """The answer is as long as the duration is at a speed of generation; the prompt is the same for all."""

    output_tokens_per_s: float = Field(
        30.0, gt=0, le=1e6, description="output tokens for each second of duration, rounded, at least 1"
    )
    prompt_tokens: int = Field(512, ge=1, le=MOST_TOKENS, description="prompt tokens of every request")


def _read(files: Sequence[Path], options: FunctionsOptions) -> TraceStream:
    """arrival_s counts from the earliest arrival of all files, an arrival being the end less the duration.

    Models are "app.function", their ids cut to as much as tells them apart. Extras: duration_s (float64).
    """
    shorter = _ShortNames()
    readers = {where: partial(_blocks, path, shorter, options) for where, path in by_path(files).items()}
    return assembled(readers, options, Clock(scattered=True))


def _blocks(path: Path, shorter: _ShortNames, options: FunctionsOptions, notices: list[str]) -> Iterator[Block]:
    for checks in checked_tables(csv_tables(path, COLUMNS), COLUMNS, (), options.strict, notices):
        table = checks.table
        apps, functions = checks.names(APP, "app", None), checks.names(FUNCTION, "function", None)
        end_s, duration_s = checks.seconds(END), checks.seconds(DURATION)
        tokens = np.maximum(np.rint(duration_s * options.output_tokens_per_s), 1)
        if tokens.max() > MOST_TOKENS:
            problem = f"column '{DURATION}' makes more than {MOST_TOKENS:,} tokens; lower output_tokens_per_s"
            checks.problem(int(np.argmax(tokens > MOST_TOKENS)), problem)
        checks.finish()
        prompts = np.full(len(table), options.prompt_tokens, dtype=np.int64)
        model, extras = shorter.models(apps, functions), {"duration_s": pa.array(duration_s)}
        start_s = end_s - duration_s
        yield Block(table.where, table.rows, start_s, prompts, tokens.astype(np.int64), model, extras=extras)
    notices.append(
        f"functions have no tokens: took {options.prompt_tokens} for a prompt and "
        f"{options.output_tokens_per_s:g} a second of duration for an answer"
    )


class _ShortNames:
    """Names of models from long ids, the same in all files."""

    def __init__(self) -> None:
        self._short: dict[tuple[str, str], str] = {}  # by (app, function)
        self._taken: dict[str, None] = {}

    def models(self, apps: Named, functions: Named) -> Named:
        """One model for each pair of app and function."""
        app_codes, app_names = apps
        function_codes, function_names = functions
        pairs, codes = np.unique(app_codes * len(function_names) + function_codes, return_inverse=True)
        names = []
        for place, other in zip(*(part.tolist() for part in np.divmod(pairs, len(function_names))), strict=True):
            pair = app_names[place], function_names[other]
            if pair not in self._short:
                self._short[pair] = self._new(*pair)
            names.append(self._short[pair])
        return np.asarray(codes, dtype=np.int64), names

    def _new(self, app: str, function: str) -> str:
        for size in (SHORT, 2 * SHORT, 4 * SHORT):
            name = f"{app[:size]}.{function[:size]}"
            if name not in self._taken:
                break
        else:
            name = f"{app}.{function}-{len(self._taken)}"
            assert name not in self._taken
        self._taken[name] = None
        return name


def _sniff(sample: Sample) -> bool:
    return not sample.members and sample.columns() == COLUMNS


FORMATS = (
    Format(NAME, "Azure Functions invocations 2021 as requests of many models, CSV", _read, _sniff, FunctionsOptions),
)
