"""The Azure LLM inference traces: 2023 (code, conv), the weeks of 2024 (code, conv), and multimodal, 2025.

Published at Azure/AzurePublicDataset with Patel et al., "Splitwise" (ISCA 2024), Stojkovic et al., "DynamoLLM"
(HPCA 2025) and Qiu et al., "ModServe" (SoCC 2025). One service a file; no models, sessions or prompts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sim.common.lazy import pa, pc
from sim.traces.columns import MOST_TOKENS, ColumnChecks
from sim.traces.files import csv_tables
from sim.traces.formats.assembly import EMPTY, Block, Clock, EmptyChoice, EmptyTokens, assembled
from sim.traces.formats.base import Format, FormatOptions, Sample, shown
from sim.traces.formats.tabular import MODEL, ModelName, by_path, checked_tables, file_models, same_name
from sim.traces.stream import TraceStream

TIME, IMAGES, PROMPT, OUTPUT = "TIMESTAMP", "NumImages", "ContextTokens", "GeneratedTokens"


class AzureOptions(FormatOptions):
    """Options of the traces of 2024; those of the other years derive from them."""

    model: ModelName | None = Field(None, description=MODEL)
    zero_tokens: EmptyChoice = Field("drop", description=EMPTY)


class Azure2023Options(AzureOptions):
    """The files of 2023 are known to have no zeros, so one is a fault."""

    zero_tokens: EmptyChoice = Field("refuse", description=EMPTY)


class AzureImageOptions(AzureOptions):
    """The publisher does not say whether ContextTokens include images; at 0 they count as included."""

    image_tokens: int = Field(
        0, ge=0, le=MOST_TOKENS, description="tokens added to the prompt for each image; 0: ContextTokens include them"
    )


@dataclass(frozen=True)
class _Release:
    """What differs between the years: options, form of a time, an example for messages, whether there are images."""

    name: str
    options: type[FormatOptions]
    time: str
    example: str
    images: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        return (TIME, IMAGES, PROMPT, OUTPUT) if self.images else (TIME, PROMPT, OUTPUT)


_DATE, _CLOCK = "[0-9]{4}-[0-9]{2}-[0-9]{2}", r"[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?"
_ZONE = "(Z|[+-][0-9]{2}:[0-9]{2})"
_KINDS = (
    _Release("azure-llm-2023", Azure2023Options, f"{_DATE} {_CLOCK}", "2023-11-16 18:17:03.9799600"),
    _Release("azure-llm-2024", AzureOptions, f"{_DATE} {_CLOCK}{_ZONE}", "2024-05-10 00:00:00.009930+00:00"),
    _Release("azure-lmm-2025", AzureImageOptions, f"{_DATE}T{_CLOCK}{_ZONE}", "2024-10-15T12:00:00.269Z", images=True),
)


def _read(kind: _Release, files: Sequence[Path], options: AzureOptions) -> TraceStream:
    """arrival_s counts from the earliest row of all files, exact to the files' last decimal.

    Several files share one clock, and each file's name is its model; a single file's is the format's name.
    """
    models = file_models(files, kind.name, options.model)
    readers = {
        where: partial(_blocks, kind, path, model, options)
        for (where, path), model in zip(by_path(files).items(), models, strict=True)
    }
    return assembled(readers, options, Clock(per_s=10**9))


def _blocks(kind: _Release, path: Path, model: str, options: AzureOptions, notices: list[str]) -> Iterator[Block]:
    empty, uncounted = EmptyTokens(options.zero_tokens, "zero_tokens"), 0
    for checks in checked_tables(csv_tables(path, kind.columns), kind.columns, (), options.strict, notices):
        table = checks.table
        extras: dict[str, Any] = {}
        nanoseconds = _nanoseconds(kind, checks)
        images = checks.whole(IMAGES, 0, 10**6) if kind.images else None
        prompt_tokens, output_tokens, kept = empty.read(checks, PROMPT, OUTPUT)
        if images is not None:
            assert isinstance(options, AzureImageOptions)
            extras["images"] = pa.array(images)
            prompt_tokens = prompt_tokens + options.image_tokens * images
            uncounted += int((images > 0).sum()) if options.image_tokens == 0 else 0
        named = same_name(model, len(table))
        block = Block(table.where, table.rows, nanoseconds, prompt_tokens, output_tokens, named, extras=extras)
        yield block if kept is None else block.select(kept)
    empty.finish(notices)
    if uncounted:
        notices.append(
            f"took ContextTokens to include the images of {uncounted} requests; "
            "--option image_tokens=<tokens an image> adds some for each"
        )


def _nanoseconds(kind: _Release, checks: ColumnChecks) -> NDArray[np.int64]:
    """int64[n] since 1970; a time that is none is left to `checks.finish`."""
    column = pc.utf8_trim_whitespace(checks.table.columns[TIME])
    zoned = pa.timestamp("ns", None if kind is _KINDS[0] else "UTC")
    good = pc.match_substring_regex(column, f"^{kind.time}$")
    if pc.all(good).as_py():
        try:
            nanoseconds = np.asarray(column.cast(zoned).cast(pa.int64()))
            if (nanoseconds >= 0).all():
                return nanoseconds
        except pa.ArrowException:
            pass  # a date that does not exist, or that is not from 1970 to 2262: find its row below
    for index, (text, fits) in enumerate(zip(column.to_pylist(), good.to_pylist(), strict=True)):
        try:
            if fits and pa.scalar(text).cast(zoned).value >= 0:
                continue
        except pa.ArrowException:
            pass
        hint = next((f", or give --format {other.name}" for other in _KINDS if re.fullmatch(other.time, text)), "")
        problem = f"column '{TIME}' is {shown(text)}; write it as {kind.example}"
        checks.problem(index, problem + ("" if fits else hint))
        return np.zeros(len(column), dtype=np.int64)
    raise AssertionError("a column of good times was refused")


def _sniff(kind: _Release, sample: Sample) -> bool:
    """The columns, in any order and perhaps beside others, and a first row with a time as that year writes it."""
    columns = sample.columns()
    if sample.members or not set(kind.columns) <= set(columns):
        return False
    lines = [line for line in sample.head.decode("utf-8-sig", errors="ignore").splitlines() if line.strip()]
    cells = lines[1].split(",") if len(lines) > 1 else []
    return len(cells) == len(columns) and bool(re.fullmatch(kind.time, cells[columns.index(TIME)].strip(' "')))


_SUMMARIES = (
    "LLM inference traces 2023 (code, conv)",
    "LLM inference traces 2024, a week (code, conv)",
    "multimodal inference trace 2025, with images",
)
FORMATS = tuple(
    Format(kind.name, f"Azure {summary}, CSV", partial(_read, kind), partial(_sniff, kind), kind.options)
    for kind, summary in zip(_KINDS, _SUMMARIES, strict=True)
)
