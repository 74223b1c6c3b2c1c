"""Heavy libraries under their usual names, each imported when something of it is first used.

`--help` never needs them, nor do most runs. Called by all that read or write tables, and by the statistics.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class _Lazy:
    def __init__(self, load: Callable[[], Any]) -> None:
        self._load = load

    def __getattr__(self, name: str) -> Any:
        return getattr(self._load(), name)


def _pyarrow() -> Any:
    import pyarrow as pa

    return pa


def _compute() -> Any:
    from pyarrow import compute

    return compute


def _csv() -> Any:
    from pyarrow import csv

    return csv


def _parquet() -> Any:
    from pyarrow import parquet

    return parquet


def _special() -> Any:
    from scipy import special

    return special


def _stats() -> Any:
    from scipy import stats

    return stats


pa: Any = _Lazy(_pyarrow)
pc: Any = _Lazy(_compute)
arrow_csv: Any = _Lazy(_csv)
parquet: Any = _Lazy(_parquet)
special: Any = _Lazy(_special)
stats: Any = _Lazy(_stats)
