"""BurstGPT: requests to ChatGPT and GPT-4 from one campus, in parts that share one clock of 1 s steps.

Published at HPMLL/BurstGPT with Wang et al., "BurstGPT" (KDD 2025). Parts 1 and 2 count whole seconds, part 3 writes
floats and adds sessions and elapsed times; the releases without failures have the same columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from sim.common.errors import TraceError
from sim.common.lazy import pa
from sim.traces.files import csv_tables
from sim.traces.formats.assembly import Block, Clock, EmptyChoice, EmptyTokens, assembled
from sim.traces.formats.base import Format, FormatOptions, Sample
from sim.traces.formats.tabular import by_path, checked_tables, extra_numbers
from sim.traces.stream import TraceStream

REQUIRED = ("Timestamp", "Model", "Request tokens", "Response tokens")
OPTIONAL = ("Session ID", "Elapsed time", "Log Type")
UNREAD = ("Total tokens",)  # their sum


class BurstGptOptions(FormatOptions):
    """Repeated rows are never left out: the clock has steps of 1 s, so equal rows are different requests."""

    failures: EmptyChoice = Field(
        "drop", description="requests that failed (no response tokens): drop, keep (with 1 token) or refuse"
    )
    origin: Literal["first", "file"] = Field(
        "first", description="where arrival_s counts from: the first request, or the 0 of the parts' common clock"
    )
    service_class: Literal["none", "log"] = Field(
        "none", description="log: the log's kind is the service class, 'conversation' or 'api'"
    )


def _read(files: Sequence[Path], options: BurstGptOptions) -> TraceStream:
    """Extras: log_type (text) and, where the file has it, elapsed_s (float64, the time to the full answer)."""
    readers = {where: partial(_blocks, path, options) for where, path in by_path(files).items()}
    return assembled(readers, options, Clock(origin=0.0 if options.origin == "file" else None))


def _blocks(path: Path, options: BurstGptOptions, notices: list[str]) -> Iterator[Block]:
    empty = EmptyTokens(options.failures, "failures")
    tables = csv_tables(path, (*REQUIRED, *OPTIONAL))
    for checks in checked_tables(tables, REQUIRED, (*OPTIONAL, *UNREAD), options.strict, notices):
        table = checks.table
        seconds = checks.seconds("Timestamp")
        model = checks.names("Model", "model", None)
        session = checks.names("Session ID", "session", "")
        codes, logs = checks.names("Log Type", "log type", "unknown")
        elapsed_s = extra_numbers(checks, "Elapsed time") if "Elapsed time" in table.columns else None
        prompt_tokens, output_tokens, kept = empty.read(checks, "Request tokens", "Response tokens")
        extras: dict[str, Any] = {}
        if "Log Type" in table.columns:
            extras["log_type"] = pa.array(logs, pa.string()).take(pa.array(codes))
        elif options.service_class == "log":
            raise TraceError(f"{path}: row 1: column 'Log Type' is missing; leave out --option service_class=log")
        if elapsed_s is not None:
            extras["elapsed_s"] = elapsed_s
        classes = (codes, [_class(log) for log in logs]) if options.service_class == "log" else None
        tokens = prompt_tokens, output_tokens
        block = Block(table.where, table.rows, seconds, *tokens, model, classes, session, extras=extras)
        yield block if kept is None else block.select(kept)
    empty.finish(notices)


def _class(log: str) -> str:
    """ "Conversation log" as the name of a service class: "conversation"."""
    return "-".join(log.lower().removesuffix(" log").split()) or "unknown"


def _sniff(sample: Sample) -> bool:
    return not sample.members and all(name in sample.columns() for name in REQUIRED)


FORMATS = (Format("burstgpt", "BurstGPT, parts 1 to 3, with or without failures, CSV", _read, _sniff, BurstGptOptions),)
