"""scripts/bench.py runs, and a request costs so many events on any machine: what leaping saves is not lost unseen."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from sim.engine.engine import simulate
from tests.support.places import ROOT
from tests.support.scripts import script

bench = script("bench")

# policy, GPUs, models: events of 3,000 requests. They change only when the engine needs more or fewer events.
EVENTS = {
    ("least-loaded", 16, 8): 11656,
    ("least-loaded", 16, 32): 12366,
    ("lru-swap", 16, 8): 9389,
    ("residency-aware", 16, 32): 12170,
    ("residency-aware", 64, 32): 11509,
}


@pytest.mark.parametrize("case", EVENTS, ids=lambda case: "-".join(map(str, case)))
def test_events_per_request(case: tuple[str, int, int]) -> None:
    policy, gpus, models = case
    outcome = simulate(bench.scenario(policy, 3000, gpus, models, seed=1))
    assert (outcome.recorder.ended[0], outcome.events) == (outcome.recorder.arrived, EVENTS[case])
    assert outcome.events / outcome.recorder.arrived <= 4.5


def test_shared_gpus_do_not_make_an_event_of_every_neighbours_change() -> None:
    """Eight models on each GPU: who comes and goes changes the speed of all others there."""
    scenario = bench.scenario("least-loaded", 3000, 16, 128, seed=1)
    outcome = simulate(scenario)
    assert outcome.events / outcome.recorder.arrived <= 6


def test_it_measures_and_says_so() -> None:
    size = ["--requests", "300", "--gpus", "16", "--models", "8", "--repeats", "2"]
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), *size]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    assert [row["policy"] for row in rows] == list(bench.POLICIES)
    for row in rows:
        assert row["repeats"] == 2
        assert row["requests"] / row["wall_s"] == pytest.approx(row["requests_per_s"], rel=0.5)
        assert row["over_floor"] > 1
        assert row["events_per_request"] > 2
        assert row["peak_rss_bytes"] > 2**20
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert "requests/s" in done.stdout
    assert "residency-aware" in done.stdout
