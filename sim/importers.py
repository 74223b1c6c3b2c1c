"""Other people's trace formats, brought to the native trace.

One function per format, named in FORMATS; adding a format is adding an entry. Each keeps the file's own
quirks out of the rest of the project. Called by `workload` and by the command line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.errors import TraceError, did_you_mean
from sim.trace import DEFAULT_CLASS, Columns, Trace, in_order, read_trace
from sim.trace_columns import MOST_TOKENS, ColumnChecks
from sim.trace_files import Table, read_csv

AZURE_2023 = "azure-llm-2023"

_AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_AZURE_TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?"


def import_trace(path: Path, format_name: str | None, strict: bool = False) -> Trace:
    """The trace in `path`, read as one of FORMATS; None means the native format.

    Raises TraceError: an unknown format, or whatever the format's reader refuses.
    """
    name = format_name or "native"
    if name not in FORMATS:
        raise TraceError(f"unknown trace format '{name}'; {did_you_mean(name, FORMATS)}")
    return FORMATS[name](Path(path), strict)


def read_azure_2023(path: Path, strict: bool = False) -> Trace:
    """The Azure LLM inference traces of 2023 (code and conv), CSV, plain or .gz.

    Columns TIMESTAMP (date and time of arrival, 7 decimals), ContextTokens, GeneratedTokens. Gives one model
    named "azure-llm-2023"; arrival_s counts from the earliest row, exact to the file's 100 ns. Format:
    Azure/AzurePublicDataset, published with Patel et al., "Splitwise", ISCA 2024. Raises TraceError as
    `read_trace` does.
    """
    table = read_csv(path, _AZURE_COLUMNS)
    checks = ColumnChecks(table)
    ignored = checks.require(_AZURE_COLUMNS)
    if ignored and strict:
        raise TraceError(f"{path}: {ignored[0]}".replace("ignored the column", "unknown column"))
    prompt_tokens = checks.whole("ContextTokens", 1, MOST_TOKENS)
    output_tokens = checks.whole("GeneratedTokens", 1, MOST_TOKENS)
    checks.finish()
    nanoseconds = _azure_nanoseconds(table)
    zeros = np.zeros(len(table), dtype=np.int64)
    columns = Columns(
        # Differences of integers are exact, below 104 days also as float64: one rounding, in the division.
        arrival_s=(nanoseconds - nanoseconds.min()) / 1e9,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        model=(zeros, (AZURE_2023,)),
        service_class=(zeros, (DEFAULT_CLASS,)),
        session=(zeros - 1, ()),
        priority=zeros,
    )
    return in_order(table, columns, (*table.notices, *ignored), strict)


def _azure_nanoseconds(table: Table) -> NDArray[np.int64]:
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.compute as pc  # noqa: PLC0415

    column = pc.utf8_trim_whitespace(table.columns["TIMESTAMP"])
    if pc.all(pc.match_substring_regex(column, f"^{_AZURE_TIME}$")).as_py():
        try:
            return np.asarray(column.cast(pa.timestamp("ns")).cast(pa.int64()))
        except pa.ArrowException:
            pass  # a date that does not exist, or outside the clock's range: find its row below
    for index, text in enumerate(column.to_pylist()):
        if not _is_azure_time(text):
            shown = repr(text) if text else "empty"
            raise table.error(index, f"column 'TIMESTAMP' is {shown}; write it as 2023-11-16 18:17:03.9799600")
    raise AssertionError("a column of good times was refused")


def _is_azure_time(text: Any) -> bool:
    if not re.fullmatch(_AZURE_TIME, text):
        return False
    try:
        return 1970 <= datetime.fromisoformat(text[:19]).year <= 2261  # what int64 nanoseconds can count
    except ValueError:
        return False


FORMATS: dict[str, Callable[[Path, bool], Trace]] = {"native": read_trace, AZURE_2023: read_azure_2023}
