"""What a study found, as plain data and as JSON: the base of its results."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from sim.results.summary import without_nan


@dataclass(frozen=True)
class PlainResult:
    """What a study found; those derived from it have a kind and a version."""

    def as_data(self) -> dict[str, Any]:
        """Plain data without NaN."""
        data = asdict(self)
        plain: dict[str, Any] = without_nan({"kind": data["kind"], "version": data["version"], **data})
        return plain

    def as_json(self) -> str:
        """The same bytes for the same runs."""
        return json.dumps(self.as_data(), indent=2, allow_nan=False) + "\n"
