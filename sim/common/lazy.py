"""Heavy libraries under their usual names, each imported when something of it is first used.

`--help` never needs them, nor do most runs. Called by all that read or write tables, and by the statistics.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any


class _Lazy:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self._name), name)


pa: Any = _Lazy("pyarrow")
pc: Any = _Lazy("pyarrow.compute")
arrow_csv: Any = _Lazy("pyarrow.csv")
parquet: Any = _Lazy("pyarrow.parquet")
special: Any = _Lazy("scipy.special")
stats: Any = _Lazy("scipy.stats")
