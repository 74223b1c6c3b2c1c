"""What the tests of formats share: files made on the spot, the published ones where they are at hand, and imports."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sim.common.errors import TraceError
from sim.traces.formats import import_stream
from sim.traces.stream import gather
from sim.traces.trace import Trace
from tests.support.places import SHARED

PUBLISHED = SHARED / "traces"


def made(folder: Path, text: str | bytes, name: str) -> Path:
    """A file of this content, compressed when its name ends in .gz."""
    data = text.encode() if isinstance(text, str) else text
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def published(name: str) -> Path:
    path = PUBLISHED / name
    if not path.is_file():
        pytest.skip(f"the published trace {name} is not beside this checkout (../shared/traces)")
    return path


def imported(files: Path | Sequence[Path], form: str | None = None, strict: bool = False, **options: Any) -> Trace:
    """All of a trace in memory, with its notices."""
    stream = import_stream([files] if isinstance(files, Path) else list(files), form, options, strict)
    return gather(stream)


def refused(files: Path | Sequence[Path], form: str, strict: bool = False, **options: Any) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(TraceError) as caught:
        imported(files, form, strict, **options)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(files if isinstance(files, Path) else files[0]).rsplit("/", 1)[0])
    return text


def counts_per_minute(trace: Trace) -> NDArray[np.int64]:
    """Requests in each whole minute from the first arrival on, silent minutes too."""
    since_s = trace.arrival_s - trace.arrival_s[0]
    minutes = int(since_s[-1] // 60)
    return np.bincount((since_s // 60).astype(np.int64), minlength=minutes)[:minutes]


def gaps_cv(trace: Trace) -> float:
    """Standard deviation over mean of the times between arrivals."""
    gaps_s = np.diff(trace.arrival_s)
    return float(gaps_s.std() / gaps_s.mean())


def spread(tokens: NDArray[np.int64]) -> list[float]:
    """Mean, p50, p90, p99, maximum, minimum."""
    return [
        float(tokens.mean()),
        *np.percentile(tokens, (50, 90, 99)).tolist(),
        float(tokens.max()),
        float(tokens.min()),
    ]
