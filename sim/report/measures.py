"""The measures that reports are about: those of sim.results.metrics by their keys, and the usual ones by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.report.result_folder import plain
from sim.results.metrics import Measure, known_measures

KNOWN = known_measures()
E2E, E2E_P99 = KNOWN["e2e_all_s.mean"], KNOWN["e2e_all_s.p99"]
TTFT_P50, TTFT_P99 = KNOWN["ttft_s.p50"], KNOWN["ttft_s.p99"]
SLO, GOODPUT, COST = (KNOWN[key] for key in ("slo.attainment", "slo.goodput_rps", "cost.usd_per_million_tokens"))


def measure_of(data: Mapping[str, Any]) -> Measure:
    """A measure as a comparison or a search for capacity has kept it."""
    return Measure(data["key"], plain(data["title"]), data["unit"], data["better"])
