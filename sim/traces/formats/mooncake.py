"""The Mooncake traces (FAST'25 release): JSON lines, one service a file, with the hashes of the prompts' blocks.

The traces that were observed are stamped in batches 3 s apart, which `spread_batches` undoes as far as it can be done.
Sessions are not in the files and not made up: all prompts of a file may share their first block.

Source: kvcache-ai/Mooncake, published with Qin et al., "Mooncake", FAST 2025.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from pydantic import Field

from sim.common.lazy import pa
from sim.common.text import counted
from sim.traces.columns import FURTHEST_S, MOST_TOKENS
from sim.traces.formats.assembly import EMPTY, Block, Clock, EmptyChoice, EmptyTokens, assembled
from sim.traces.formats.base import Entry, Format, FormatOptions, Sample, json_entries, one_file
from sim.traces.formats.json_rows import JsonRow, filled, gathered, list_of_ids
from sim.traces.formats.tabular import MODEL, ModelName
from sim.traces.stream import TraceStream

NAME = "mooncake"
BLOCK_TOKENS = 512
TIES = 0.1  # share of equal stamps above which they are not chance
BATCH_MS = 3000.0  # how long the publisher gathered arrivals under one stamp

_FIELDS = ("timestamp", "input_length", "output_length", "hash_ids")


class MooncakeOptions(FormatOptions):
    spread_batches: bool = Field(
        False, description="spread the requests of one stamp evenly over the time to the next stamp, at most 3 s"
    )
    prefix_blocks: bool = Field(True, description="keep the hash ids of the prompts' 512-token blocks")
    zero_tokens: EmptyChoice = Field("drop", description=EMPTY)
    model: ModelName | None = Field(None, description=MODEL)


def _read(files: Sequence[Path], options: MooncakeOptions) -> TraceStream:
    """arrival_s is the file's own clock; extras: prefix_blocks, and prefix_block_tokens, which is always 512."""
    path = one_file(files, NAME)
    return assembled({str(path): lambda notices: _blocks(path, options, notices)}, options, Clock(1000, origin=0))


def _blocks(path: Path, options: MooncakeOptions, notices: list[str]) -> Iterator[Block]:
    rows = _rows(path, options, notices)
    kinds = {"prefix_blocks": list_of_ids(), "prefix_block_tokens": pa.int64()} if options.prefix_blocks else {}
    yield from filled(gathered(rows, str(path), kinds), EmptyTokens(options.zero_tokens, "zero_tokens"), notices)


def _rows(path: Path, options: MooncakeOptions, notices: list[str]) -> Iterator[JsonRow]:
    ignored: dict[str, None] = {}
    tied = total = odd = 0
    entries = (_row(entry, options, ignored) for entry in json_entries(path))
    batches = ((stamp, list(rows)) for stamp, rows in groupby(entries, key=lambda row: row.time))
    current = next(batches, None)
    while current is not None:
        following = next(batches, None)
        stamp, rows = current
        tied, total = tied + len(rows) - 1, total + len(rows)
        odd += sum(1 for row in rows if row.extras and row.extras[0] is not None and not _fits(row))
        if options.spread_batches:
            # A batch before a silence was gathered in its own 3 s, not over the silence.
            until_ms = BATCH_MS if following is None or following[0] < stamp else min(BATCH_MS, following[0] - stamp)
            rows = [replace(row, time=stamp + until_ms * place / len(rows)) for place, row in enumerate(rows)]
        yield from rows
        current = following
    notices += [f"ignored the field '{name}'" for name in ignored]
    if odd:
        notices.append(f"{counted(odd, 'row')} where hash_ids are not one for each {BLOCK_TOKENS} prompt tokens")
    if tied and options.spread_batches:
        notices.append(f"spread {counted(tied, 'arrival')} of {total:,} that had the stamp of the one before")
    elif tied > total * TIES:
        notices.append(
            f"{counted(tied, 'arrival')} of {total:,} have the stamp of the one before: the clock has coarse steps; "
            "--option spread_batches=true spreads them"
        )


def _row(entry: Entry, options: MooncakeOptions, ignored: dict[str, None]) -> JsonRow:
    low = 1 if options.zero_tokens == "refuse" else 0
    ignored.update(dict.fromkeys(entry.ignored(_FIELDS, options.strict)))
    # Some who publish in this format give lengths alone; the ids may be absent.
    ids = entry.wholes("hash_ids") if entry.values.get("hash_ids") is not None else None
    return JsonRow(
        row=entry.row,
        time=entry.number("timestamp", 0.0, 1000 * FURTHEST_S),
        prompt_tokens=entry.whole("input_length", low, MOST_TOKENS),
        output_tokens=entry.whole("output_length", low, MOST_TOKENS),
        model=options.model or NAME,
        extras=(ids, BLOCK_TOKENS) if options.prefix_blocks else (),
    )


def _fits(row: JsonRow) -> bool:
    return len(row.extras[0]) == -(-row.prompt_tokens // BLOCK_TOKENS)


def _is(sample: Sample) -> bool:
    item = sample.json_object()
    return not sample.members and set(_FIELDS) <= set(item) and isinstance(item["hash_ids"], list)


FORMATS = (
    Format(NAME, "Mooncake, FAST'25 release: JSON lines with 512-token prefix blocks", _read, _is, MooncakeOptions),
)
