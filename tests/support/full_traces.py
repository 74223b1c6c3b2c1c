"""Traces with every column, for the tests of reading and writing, and how small their pieces are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from sim.common.errors import TraceError
from sim.traces import blocks as trace_blocks
from sim.traces import files as trace_files
from sim.traces import order as trace_order
from sim.traces import stream as trace_stream
from sim.traces import write as trace_write
from sim.traces.stream import gather, read_stream
from sim.traces.trace import Trace

HEADER = "arrival_s,model,prompt_tokens,output_tokens\n"


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets how many bytes or rows every stage takes at a time."""

    def set_sizes(size: int, held: int = 1 << 20) -> None:
        monkeypatch.setattr(trace_blocks, "BLOCK_BYTES", size)
        monkeypatch.setattr(trace_files, "PARQUET_ROWS", size)
        monkeypatch.setattr(trace_order, "CHUNK_ROWS", size)
        monkeypatch.setattr(trace_stream, "CHUNK_ROWS", size)
        monkeypatch.setattr(trace_order, "_SPILL_ROWS", size)
        monkeypatch.setattr(trace_order, "MOST_ROWS_HELD", held)
        monkeypatch.setattr(trace_order, "MOST_ROWS_SORTED", held)
        monkeypatch.setattr(trace_write, "GROUP_ROWS", size)

    return set_sizes


def full_trace(count: int, seed: int = 0, ties: bool = False) -> Trace:
    """A trace with every column, some rows of each saying nothing."""
    draw = np.random.default_rng(seed)
    arrival_s = np.sort(draw.integers(0, max(count // 3, 1), count).astype(float) if ties else draw.random(count) * 100)
    session = draw.integers(-1, max(count // 4, 1), count)
    session = np.unique(session, return_inverse=True)[1] + int(session.min(initial=0))
    session[session < 0] = -1
    repeated = np.array([s >= 0 and s in session[:n] for n, s in enumerate(session.tolist())], dtype=bool)
    blocks = [None if n % 5 == 0 else draw.integers(0, 2**60, n % 4).tolist() for n in range(count)]
    return Trace(
        arrival_s=arrival_s,
        model=draw.integers(0, 3, count).astype(np.int32),
        models=("a", 'b,"c"', "λ"),
        prompt_tokens=draw.integers(1, 10**9, count),
        output_tokens=draw.integers(1, 10**6, count),
        service_class=draw.integers(0, 2, count).astype(np.int32),
        service_classes=("default", "fast"),
        session=session.astype(np.int64),
        sessions=tuple(f"s {n}" for n in range(int(session.max(initial=-1)) + 1)),
        priority=draw.integers(-3, 3, count).astype(np.int32),
        think_s=np.where(repeated & (draw.random(count) < 0.5), draw.random(count) * 9, np.nan),
        deadline_s=np.where(draw.random(count) < 0.5, draw.random(count) + 1e-9, np.nan),
        extras={
            "prefix_blocks": pa.array(blocks, pa.list_(pa.int64())),
            "turn": pa.array([None if n % 7 == 0 else n for n in range(count)], pa.int64()),
            "source": pa.array([None if n % 3 == 0 else f'x, "{n}"' for n in range(count)], pa.string()),
        },
    )


def plain(trace: Trace) -> list[tuple[Any, ...]]:
    """Every request as it would be written out, names for codes, None for nothing."""
    columns: list[list[Any]] = [
        getattr(trace, name).tolist() for name in ("arrival_s", "prompt_tokens", "output_tokens", "priority")
    ]
    for codes, names in trace.named().values():
        columns.append([None if code < 0 else names[code] for code in codes.tolist()])
    for numbers in (trace.think_s, trace.deadline_s):
        columns.append(
            [None] * len(trace) if numbers is None else [None if np.isnan(n) else n for n in numbers.tolist()]
        )
    for name in ("prefix_blocks", "turn", "source"):
        columns.append(trace.extras[name].to_pylist() if name in trace.extras else [None] * len(trace))
    return list(zip(*columns, strict=True))


def outcome(path: Path, strict: bool = False) -> Any:
    """What reading gives: the requests, or the mistake."""
    try:
        trace = gather(read_stream(path, strict))
    except TraceError as error:
        return str(error)
    rows = trace.file_rows.tolist() if trace.file_rows is not None else None
    return plain(trace), rows, trace.notices, trace.digest(), trace.models
