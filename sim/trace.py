"""The native request trace: read, check, describe, write, and iterate lazily in time order.

A trace is columns of equal length, sorted by arrival. It knows nothing of scenarios (`workload` fits it to
one), of other people's formats (`importers`) or of drawing one (`generate`).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.errors import TraceError
from sim.trace_columns import MOST_TOKENS, ColumnChecks, by_appearance, name_problem
from sim.trace_files import Table, read_csv, read_jsonl, read_parquet, suffix_of

REQUIRED = ("arrival_s", "model", "prompt_tokens", "output_tokens")
OPTIONAL = ("service_class", "session", "priority")
DEFAULT_CLASS = "default"


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests in order of arrival, one entry per request in every column of n entries.

    arrival_s: seconds, finite, >= 0, non-decreasing. prompt_tokens, output_tokens: 1 to 1e9. model,
    service_class: index into the tuple of names. session: the same, or -1 for none. priority: 0 by default,
    smaller is more urgent (as in vLLM). notices: what reading changed or ignored. file_rows: where each
    request stood in its file, if known.
    """

    arrival_s: NDArray[np.float64]
    model: NDArray[np.int32]
    models: tuple[str, ...]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    service_class: NDArray[np.int32]
    service_classes: tuple[str, ...]
    session: NDArray[np.int64]
    sessions: tuple[str, ...]
    priority: NDArray[np.int32]
    notices: tuple[str, ...] = ()
    file_rows: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        columns = (
            self.model,
            self.prompt_tokens,
            self.output_tokens,
            self.service_class,
            self.session,
            self.priority,
        )
        assert all(column.shape == self.arrival_s.shape for column in columns)
        assert bool((self.arrival_s[1:] >= self.arrival_s[:-1]).all()), "arrivals out of order"

    def __len__(self) -> int:
        return len(self.arrival_s)

    def named(self) -> dict[str, tuple[NDArray[Any], tuple[str, ...]]]:
        """The columns that hold codes, each with the names that the codes stand for."""
        return {
            "model": (self.model, self.models),
            "service_class": (self.service_class, self.service_classes),
            "session": (self.session, self.sessions),
        }

    def digest(self) -> str:
        """sha256 of what the requests are; the numbering of names, unused names and notices do not matter."""
        state = hashlib.sha256(f"trace 1 {len(self)}".encode())
        for numbers, kind in (
            (self.arrival_s + 0.0, "<f8"),  # + 0.0: -0.0 and 0.0 are the same time
            (self.prompt_tokens, "<i8"),
            (self.output_tokens, "<i8"),
            (self.priority, "<i8"),
        ):
            state.update(np.ascontiguousarray(numbers, dtype=kind).tobytes())
        for raw, names in self.named().values():
            codes, used = by_appearance(raw, names)
            state.update(np.ascontiguousarray(codes, dtype="<i8").tobytes() + json.dumps(used).encode())
        return state.hexdigest()

    def rows(self, chunk: int = 8192) -> Iterator[tuple[float, int, int, int, int, int]]:
        """Lazily: (arrival_s, model, prompt_tokens, output_tokens, service_class, priority) in time order."""
        for start in range(0, len(self), chunk):
            part = slice(start, start + chunk)
            yield from zip(
                self.arrival_s[part].tolist(),
                self.model[part].tolist(),
                self.prompt_tokens[part].tolist(),
                self.output_tokens[part].tolist(),
                self.service_class[part].tolist(),
                self.priority[part].tolist(),
                strict=True,
            )

    def select(self, part: slice | NDArray[np.int64]) -> Trace:
        """The requests at these positions, in the order given, which must keep arrivals sorted."""
        return replace(
            self,
            arrival_s=self.arrival_s[part],
            model=self.model[part],
            prompt_tokens=self.prompt_tokens[part],
            output_tokens=self.output_tokens[part],
            service_class=self.service_class[part],
            session=self.session[part],
            priority=self.priority[part],
            file_rows=None if self.file_rows is None else self.file_rows[part],
        )


def read_trace(path: Path, strict: bool = False) -> Trace:
    """A native trace file: .csv, .csv.gz, .parquet, .jsonl or .jsonl.gz.

    Columns arrival_s (seconds), model, prompt_tokens, output_tokens, and optionally service_class (empty:
    "default"), session (empty or -1: none; text or whole number) and priority (empty: 0). Rows out of order
    are sorted and unknown columns ignored, each with a notice. Raises TraceError with file, row and column:
    anything that cannot be a request; under `strict` also rows out of order and unknown columns.
    """
    path = Path(path)
    suffix = suffix_of(path)
    reader = read_parquet if suffix == ".parquet" else read_jsonl if "jsonl" in suffix else read_csv
    table = reader(path, REQUIRED + OPTIONAL)
    checks = ColumnChecks(table)
    ignored = checks.require(REQUIRED, OPTIONAL)
    if ignored and strict:
        raise TraceError(f"{path}: {ignored[0]}".replace("ignored the column", "unknown column"))
    model, models = checks.names("model", "model", None)
    service_class, classes = checks.names("service_class", "service class", DEFAULT_CLASS)
    session, sessions = checks.names("session", "session", "")
    trace = Columns(
        arrival_s=checks.seconds("arrival_s"),
        prompt_tokens=checks.whole("prompt_tokens", 1, MOST_TOKENS),
        output_tokens=checks.whole("output_tokens", 1, MOST_TOKENS),
        model=(model, models),
        service_class=(service_class, classes),
        session=(session, sessions),
        priority=checks.whole("priority", -MOST_TOKENS, MOST_TOKENS, default=0),
    )
    checks.finish()
    return in_order(table, trace, (*table.notices, *ignored), strict)


@dataclass(frozen=True)
class Columns:
    """A file's checked columns in the file's order; names as (codes, names)."""

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    model: tuple[NDArray[np.int64], tuple[str, ...]]
    service_class: tuple[NDArray[np.int64], tuple[str, ...]]
    session: tuple[NDArray[np.int64], tuple[str, ...]]
    priority: NDArray[np.int64]


def in_order(table: Table, columns: Columns, notices: tuple[str, ...], strict: bool) -> Trace:
    """The trace of a table's columns, sorted stably by arrival, its names numbered by first appearance.

    Raises TraceError under `strict` when rows are out of order.
    """
    arrival_s = columns.arrival_s
    late = arrival_s < np.maximum.accumulate(arrival_s)
    order = np.arange(len(arrival_s))
    if late.any():
        if strict:
            index = int(np.argmax(late))
            raise table.error(index, f"arrives at {arrival_s[index]!s} s, before the row above it; sort the rows")
        count = int(late.sum())
        notices += (f"sorted {count} row{' that was' if count == 1 else 's that were'} out of order",)
        order = np.argsort(arrival_s, kind="stable")
    named = [
        by_appearance(codes[order], names) for codes, names in (columns.model, columns.service_class, columns.session)
    ]
    return Trace(
        arrival_s=arrival_s[order],
        model=named[0][0].astype(np.int32),
        models=named[0][1],
        prompt_tokens=columns.prompt_tokens[order],
        output_tokens=columns.output_tokens[order],
        service_class=named[1][0].astype(np.int32),
        service_classes=named[1][1],
        session=named[2][0],
        sessions=named[2][1],
        priority=columns.priority[order].astype(np.int32),
        notices=notices,
        file_rows=table.rows[order],
    )


def write_trace(trace: Trace, path: Path) -> None:
    """Write the native format that the name's ending asks for; reading it back gives the same requests.

    Optional columns appear only when they say something. The file appears whole or not at all, and equal
    traces give equal bytes in the text formats. Raises TraceError: unknown ending, a name that cannot be read
    back, no requests, a folder that cannot be written.
    """
    path = Path(path)
    suffix = suffix_of(path)
    if not len(trace):
        raise TraceError(f"{path}: the trace has no requests to write")
    for column, (_, names) in trace.named().items():
        problem = next((problem for name in names if (problem := name_problem(name, column))), None)
        if problem:
            raise TraceError(f"{path}: a name in column '{column}' {problem}")
    columns = _written_columns(trace)
    if suffix == ".parquet":
        data = _parquet_bytes(trace, columns)
    else:
        data = (_jsonl_text if "jsonl" in suffix else _csv_text)(trace, columns).encode()
    if suffix.endswith(".gz"):
        data = gzip.compress(data, compresslevel=6, mtime=0)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TraceError(f"{path}: cannot write the file ({error.strerror}); check the folder") from None


def _written_columns(trace: Trace) -> tuple[str, ...]:
    plain = DEFAULT_CLASS in trace.service_classes and bool(
        (trace.service_class == trace.service_classes.index(DEFAULT_CLASS)).all()
    )
    says_something = {
        "service_class": not plain,
        "session": bool((trace.session >= 0).any()),
        "priority": bool((trace.priority != 0).any()),
    }
    return REQUIRED + tuple(name for name in OPTIONAL if says_something[name])


def _texts(trace: Trace, columns: tuple[str, ...], quoted: Any, nothing: str) -> list[Iterator[str]]:
    """Each column as text: numbers by repr, which round-trips, names by `quoted`, -1 as `nothing`."""
    named = trace.named()
    texts: list[Iterator[str]] = []
    for name in columns:
        if name in named:
            codes, names = named[name]
            written = [*map(quoted, names), nothing]  # the last entry serves -1
            texts.append(map(written.__getitem__, codes.tolist()))
        else:
            texts.append(map(repr, getattr(trace, name).tolist()))
    return texts


def _csv_text(trace: Trace, columns: tuple[str, ...]) -> str:
    def quoted(name: str) -> str:
        return '"' + name.replace('"', '""') + '"' if "," in name or '"' in name else name

    rows = zip(*_texts(trace, columns, quoted, ""), strict=True)
    return "\n".join([",".join(columns), *map(",".join, rows), ""])


def _jsonl_text(trace: Trace, columns: tuple[str, ...]) -> str:
    pattern = "{{" + ", ".join(f'"{name}": {{}}' for name in columns) + "}}\n"
    return "".join(map(pattern.format, *_texts(trace, columns, json.dumps, "null")))


def _parquet_bytes(trace: Trace, columns: tuple[str, ...]) -> bytes:
    import pyarrow as pa  # noqa: PLC0415  heavy, and not needed for text formats
    from pyarrow import parquet  # noqa: PLC0415

    named = trace.named()
    arrays = []
    for name in columns:
        if name in named:
            codes, names = named[name]
            arrays.append(pa.array([*names, None], pa.string()).take(pa.array(codes % (len(names) + 1))))
        else:
            arrays.append(pa.array(getattr(trace, name)))
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(dict(zip(columns, arrays, strict=True))), sink)
    return bytes(sink.getvalue())


def describe(trace: Trace) -> dict[str, Any]:
    """Plain numbers about a trace, ready for JSON; None where a number needs more requests than there are.

    rows, span_s (last minus first arrival), rate_per_s (rows / span), iat_cv (standard deviation / mean of
    the gaps between arrivals), prompt_tokens and output_tokens {mean, p50, p90, p99, max, min}, models {name:
    {requests, share}} from most to least used, popularity_slope (least squares of log share against log
    rank), per_minute {mean, max, cv, empty_share} of the requests in each whole minute from the first arrival
    on.
    """
    count = len(trace)
    if not count:
        return {"rows": 0}
    gaps = np.diff(trace.arrival_s)
    span_s = float(trace.arrival_s[-1] - trace.arrival_s[0])
    uses = np.bincount(trace.model, minlength=len(trace.models))
    ranked = sorted(zip((-uses).tolist(), trace.models, strict=True))
    return {
        "rows": count,
        "span_s": span_s,
        "rate_per_s": count / span_s if span_s > 0 else None,
        "iat_cv": float(gaps.std() / gaps.mean()) if span_s > 0 else None,
        "prompt_tokens": _spread(trace.prompt_tokens),
        "output_tokens": _spread(trace.output_tokens),
        "models": {name: {"requests": -less, "share": -less / count} for less, name in ranked},
        "popularity_slope": _popularity_slope(-np.array([less for less, _ in ranked])),
        "per_minute": _per_minute(trace.arrival_s - trace.arrival_s[0], span_s),
    }


def _spread(tokens: NDArray[np.int64]) -> dict[str, float]:
    p50, p90, p99 = np.percentile(tokens, (50, 90, 99)).tolist()
    ends = {"max": int(tokens.max()), "min": int(tokens.min())}
    return {"mean": float(tokens.mean()), "p50": p50, "p90": p90, "p99": p99, **ends}


def _popularity_slope(uses: NDArray[np.int64]) -> float | None:
    uses = uses[uses > 0]
    if len(uses) < 2:
        return None
    return float(np.polyfit(np.log(np.arange(1, len(uses) + 1)), np.log(uses / uses.sum()), 1)[0])


def _per_minute(since_first_s: NDArray[np.float64], span_s: float) -> dict[str, float] | None:
    # A last, partial minute would count as a lull. Silent minutes are reckoned, not listed: may be years.
    minutes = int(span_s // 60)
    if not minutes:
        return None
    whole = since_first_s[since_first_s < 60.0 * minutes]
    _, counts = np.unique(np.floor(whole / 60), return_counts=True)
    mean = len(whole) / minutes
    variance = float((counts.astype(np.float64) ** 2).sum()) / minutes - mean**2
    return {
        "mean": mean,
        "max": int(counts.max()),
        "cv": float(np.sqrt(max(variance, 0.0))) / mean,
        "empty_share": 1 - len(counts) / minutes,
    }


def check_trace(trace: Trace) -> tuple[str, ...]:
    """What a person should know about a trace: reading's notices, and signs of a wrong unit or clock."""
    remarks = list(trace.notices)
    if not len(trace):
        return (*remarks, "there are no requests")
    first_s, gaps = float(trace.arrival_s[0]), np.diff(trace.arrival_s)
    if first_s > 86400:
        remarks.append(f"the first request arrives at {first_s:g} s; subtract that, or a run idles until then")
    tied = float((gaps == 0).mean()) if len(gaps) else 0.0
    if len(gaps) >= 10 and tied > 0.1:
        remarks.append(f"{tied:.0%} of the requests arrive at the same time as the one before; is the clock coarse?")
    rate_per_s = len(trace) / float(gaps.sum()) if len(gaps) and gaps.sum() > 0 else 0.0
    if len(gaps) >= 10 and rate_per_s > 1000:
        remarks.append(f"{rate_per_s:,.0f} requests a second; is arrival_s in seconds?")
    if len(gaps) >= 10 and 0 < rate_per_s < 1e-3:
        remarks.append(f"a request every {1 / rate_per_s:,.0f} s on average; is arrival_s in milliseconds?")
    return tuple(remarks)
