"""Golden runs: the exact numbers of every policy on the small trace. They change only with a reason in CHANGELOG.

`python -m tests.golden.test_golden` writes them anew. Floats are kept to 9 digits: beyond them the mathematics library
of the machine may have its own opinion.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sim.engine.engine import simulate
from sim.policy import policy_names
from sim.results.summary import summarize
from sim.scenario.scenario import load_scenario
from tests.support.places import ROOT

GOLDEN = Path(__file__).with_name("golden.json")
RUNS = {
    **{name: [f"policy.name={name}"] for name in policy_names()},
    "chunked-swap": [
        "policy.name=lru-swap",
        "engine.prefill=chunked",
        "engine.prefill_tokens=512",
        "engine.sequence_preemption=swap",
        "sharing.contention=time_slice",
        "sharing.links=serial",
    ],
    "elastic": ["policy.name=residency-aware", "engine.resize=elastic"],
}


def measure(settings: list[str]) -> Any:
    """A run's summary without what depends on the machine."""
    summary = summarize(simulate(load_scenario(ROOT / "traces" / "scenarios" / "desktop.yaml", settings), check=True))
    summary.pop("problems", None)  # a judgement of these numbers, with tests of its own (test_diagnosis.py)
    summary.pop("run_id")  # it names the code's data files too, whose provenance may change without the numbers
    for clock in ("wall_s", "requests_per_wall_s", "peak_rss_bytes"):
        summary["engine"].pop(clock)
    return rounded(summary)


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: rounded(part) for key, part in value.items()}
    return [rounded(part) for part in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", list(RUNS))
def test_golden(name: str) -> None:
    assert measure(RUNS[name]) == json.loads(GOLDEN.read_text(encoding="utf-8"))[name]


def test_every_golden_is_run() -> None:
    assert sorted(json.loads(GOLDEN.read_text(encoding="utf-8"))) == sorted(RUNS)


if __name__ == "__main__":
    GOLDEN.write_text(
        json.dumps({name: measure(RUNS[name]) for name in RUNS}, indent=1, sort_keys=True) + "\n", encoding="utf-8"
    )
