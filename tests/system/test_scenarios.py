"""The scenarios that come with the project: each runs, says what it is for, and is what it says.

Every file of traces/scenarios is taken, so a new one is tested without being named here; what only some of them promise
(closed loops, frames, deadlines, memory that is short) is told from the file or listed below.
"""

from __future__ import annotations

import math
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.core.state.request import COMPLETED, UNFINISHED
from sim.engine.engine import Outcome, simulate
from sim.results.request_table import request_table
from sim.results.summary import summarize
from sim.scenario.distributions import Frames
from sim.scenario.scenario import Scenario, TraceWorkload, load_scenario
from sim.scenario.workload import StreamSpec
from sim.workload.requests import build_trace
from tests.support.cli_cases import invoke
from tests.support.places import ROOT

FOLDER = ROOT / "traces" / "scenarios"
FILES = sorted(FOLDER.glob("*.yaml"))
NAMES = [path.stem for path in FILES]
ROOMY = ("data-centre",)  # those whose models all fit at once
ROWS = 250
KEY = ("model", "prompt_tokens", "output_tokens")


def load(name: str, *settings: str) -> Scenario:
    return load_scenario(FOLDER / f"{name}.yaml", settings)


def reduced(name: str) -> list[str]:
    """Settings that leave the first requests, and one node of each kind where there are many."""
    scenario = load(name)
    settings = [f"workload.{'limit' if isinstance(scenario.workload, TraceWorkload) else 'rows'}={ROWS}"]
    nodes = enumerate(scenario.cluster.nodes)
    return settings + [f"cluster.nodes.{number}.count=1" for number, node in nodes if node.count > 4]


def play(name: str, policy: str, *settings: str) -> Outcome:
    return simulate(load(name, f"policy={policy}", *settings))


@cache
def result(name: str, policy: str, *settings: str) -> dict[str, Any]:
    """The summary of a run in full size."""
    return summarize(play(name, policy, *settings))


def attained(name: str, policy: str, service_class: str, *settings: str) -> float:
    share = result(name, policy, *settings)["classes"][service_class]["slo"]["attainment"]
    return float(share)


def streams(name: str) -> tuple[StreamSpec, ...]:
    return getattr(load(name).workload, "streams", ())


LOOPS = [name for name in NAMES if any(s.sessions and s.sessions.closed_loop for s in streams(name))]
PATTERNS = [name for name in NAMES if any(s.sessions and s.sessions.pattern for s in streams(name))]
CAMERAS = [name for name in NAMES if any(isinstance(s.arrivals, Frames) for s in streams(name))]
DEADLINES = [name for name in NAMES if any(s.deadline_s for s in streams(name))]


# --- every file


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_three_lines_say_what_it_is_for_and_how_to_run_it(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert all(line.startswith("# ") for line in lines[:3])
    assert not lines[3].startswith("#")
    assert load(path.stem).name == path.stem
    command = shlex.split(lines[2].removeprefix("# Try: "))
    assert command[:5] == ["python", "-m", "sim", "run", f"traces/scenarios/{path.name}"]
    sets = [part for setting in reduced(path.stem) for part in ("--set", setting)]
    done = invoke("run", path, *command[5:], *sets)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("policy", ["lru-swap", "residency-aware"])
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_within_the_laws(name: str, policy: str) -> None:
    outcome = simulate(load(name, f"policy={policy}", *reduced(name)), check=True)
    ended = outcome.recorder.ended
    assert outcome.recorder.arrived == sum(ended) == ROWS
    assert ended[COMPLETED] > 0
    assert ended[UNFINISHED] == 0
    assert not [model.fits_nowhere for model in outcome.cluster.models if model.fits_nowhere]


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ROOMY])
def test_memory_is_short(name: str) -> None:
    """A static placement leaves some model partly, or wholly, in host memory."""
    outcome = play(name, "{name: least-loaded, replicas: false}", *reduced(name))
    switches = outcome.recorder.switch_columns
    loaded = dict.fromkeys(outcome.recorder.switch_texts["model"].values(), 0)
    for model, layers in zip(switches["model"], switches["layers"], strict=True):
        loaded[model] = max(loaded[model], layers)
    whole = {outcome.recorder.switch_texts["model"].get(m.name): m.weights.layers for m in outcome.cluster.models}
    assert any(loaded.get(code, 0) < layers for code, layers in whole.items()), "all models fit whole"


def test_the_kinds_of_cluster_that_are_asked_for() -> None:
    gpus = {
        name: {group.gpu: node.count * group.count for node in load(name).cluster.nodes for group in node.gpus}
        for name in NAMES
    }
    assert gpus["desktop-agent"] == {"rtx-4090": 1}
    assert len(load("desktop-agent").models) == 6
    assert gpus["workstation"] == gpus["default"] == {"rtx-a6000": 2, "rtx-5000-ada": 2}
    assert len(gpus["lab"]) == 4
    assert len(load("serverless").models) >= 64
    assert sum(gpus["data-centre"].values()) == 1024
    assert len(load("data-centre").models) == 128
    assert len(gpus["street-crossing"]) == 2


# --- closed loops


@pytest.mark.parametrize("name", LOOPS)
@pytest.mark.parametrize("policy", ["lru-swap", "exclusive-swap"])
def test_turns_wait_for_the_answer_before(name: str, policy: str) -> None:
    """Each turn is sent its think time after the one before has ended, whenever that is in this run."""
    scenario = load(name, f"policy={policy}")
    trace = build_trace(scenario)
    table = request_table(simulate(scenario))
    ran = rows_by_key(*(table[column] for column in KEY))
    asked = [tuple(row) for row in np.stack([getattr(trace, column) for column in KEY], axis=1).tolist()]
    arrival_s, end_s = table["arrival_s"], table["end_s"]
    assert trace.think_s is not None
    checked = 0
    last: dict[int, int] = {}  # of each session
    for row in np.flatnonzero(trace.session >= 0).tolist():
        before = last.get(trace.session[row])
        last[trace.session[row]] = row
        here, then = ran.get(asked[row]), None if before is None else ran.get(asked[before])
        if here is not None and then is not None:
            assert arrival_s[here] == pytest.approx(max(end_s[then] + trace.think_s[row], trace.arrival_s[row]))
            checked += 1
    assert checked > 50


def rows_by_key(*columns: Any) -> dict[tuple[int, ...], int]:
    """The rows whose numbers no other row has."""
    keys = [tuple(row) for row in np.stack(columns, axis=1).tolist()]
    rows: dict[tuple[int, ...], int] = {}
    for row, key in enumerate(keys):
        rows[key] = -1 if key in rows else row
    return {key: row for key, row in rows.items() if row >= 0}


@pytest.mark.parametrize("name", PATTERNS)
def test_an_agent_goes_round_its_models(name: str) -> None:
    scenario = load(name)
    trace = build_trace(scenario)
    for stream in streams(name):
        if stream.sessions is not None and stream.sessions.pattern:
            pattern = [trace.models.index(model) for model in stream.sessions.pattern]
            assert len({*pattern}) > 1
            classes = [trace.service_classes.index(c) for c in stream.service_class or ()]
            sessions = np.unique(trace.session[np.isin(trace.service_class, classes) & (trace.session >= 0)])
            lengths = []
            for session in sessions.tolist():
                models = trace.model[trace.session == session].tolist()
                assert models == (pattern * len(models))[: len(models)]
                lengths.append(len(models))
            assert max(lengths) > len(pattern)


# --- the street-crossing, and whatever else has frames or deadlines


@pytest.mark.parametrize("name", CAMERAS)
def test_frames_are_exactly_periodic(name: str) -> None:
    trace = build_trace(load(name))
    duration_s = getattr(load(name).workload, "duration_s", None)
    assert duration_s is not None
    for stream in streams(name):
        if isinstance(stream.arrivals, Frames):
            period_s, cameras = stream.arrivals.period_s, stream.arrivals.sources
            of_class = trace.service_class == trace.service_classes.index(next(iter(stream.service_class or ())))
            times_s = trace.arrival_s[of_class]
            assert len(times_s) == pytest.approx(cameras * duration_s / period_s, abs=cameras)
            # With several cameras the order within a period is always the same.
            assert times_s[cameras:] - times_s[:-cameras] == pytest.approx(period_s, abs=1e-9)


@pytest.mark.parametrize("name", DEADLINES)
def test_deadlines_are_on_the_requests(name: str) -> None:
    trace = build_trace(load(name))
    assert trace.deadline_s is not None
    for stream in streams(name):
        for service_class in stream.service_class or ():
            rows = trace.service_class == trace.service_classes.index(service_class)
            if stream.deadline_s is not None:
                assert rows.any()
                assert (trace.deadline_s[rows] == stream.deadline_s).all()


@pytest.mark.parametrize("name", DEADLINES)
def test_deadlines_count_in_the_attainment(name: str) -> None:
    scenario = load(name)
    settings = ["workload.duration_s=120"]
    table = request_table(simulate(load(name, "policy=lru-swap", *settings)))
    summary = result(name, "lru-swap", *settings)
    for code, promised in enumerate(scenario.service_classes):
        rows = np.flatnonzero(table["service_class"] == code)
        limit_s = np.fmin(table["deadline_s"][rows], promised.e2e_s or math.inf)
        kept = (table["outcome"][rows] == COMPLETED) & (
            table["end_s"][rows] - table["arrival_s"][rows] <= np.where(np.isnan(limit_s), math.inf, limit_s)
        )
        if promised.ttft_s is not None:
            kept &= table["ttft_s"][rows] <= promised.ttft_s
        if promised.tpot_s is not None:
            kept &= ~(table["tpot_s"][rows] > promised.tpot_s)
        assert summary["classes"][promised.name]["slo"]["attained"] == kept.sum()
    number, stream = next((n, s) for n, s in enumerate(streams(name)) if s.deadline_s is not None)
    hopeless = [*settings, f"workload.streams.{number}.deadline_s=0.0001"]
    assert attained(name, "lru-swap", next(iter(stream.service_class or ())), *hopeless) == 0


def test_the_robot_runs_four_models_and_all_classes_come() -> None:
    found = result("street-crossing", "static-split")
    assert set(found["models"]) == {"perception", "v2x", "dialogue", "planning"}
    assert {"perception", "v2x", "dialogue", "planning"} <= set(found["classes"])
    assert all(of["requests"]["arrived"] > 20 for of in found["classes"].values())
    urgency = {next(iter(s.service_class or ())): s.priority for s in streams("street-crossing")}
    assert urgency["perception"] <= urgency["warning"] < urgency["v2x"] < urgency["dialogue"] < urgency["planning"]


def test_the_robot_keeps_its_frames_when_the_planner_gives_way() -> None:
    """All four fit at once if two of the planner's 64 layers stay in host memory; each other way loses a class."""
    name = "street-crossing"
    split = result(name, "static-split")
    assert 0.95 < split["models"]["planning"]["mean_residency"] < 1
    assert all(split["models"][model]["mean_residency"] == 1 for model in ("perception", "v2x", "dialogue"))
    assert all(attained(name, "static-split", urgent) > 0.95 for urgent in ("perception", "warning", "v2x"))
    assert attained(name, "static-split", "planning") > 0.8
    # The smallest model is placed last: on the CPU it is too slow for its frames.
    assert attained(name, "least-loaded", "perception") < 0.1
    assert attained(name, "least-loaded", "planning") > 0.9
    assert attained(name, "exclusive-swap", "perception") < 0.3
    assert attained(name, "lru-swap", "planning") < attained(name, "static-split", "planning")


@pytest.mark.parametrize("policy", ["lru-swap", "static-split"])
def test_priority_within_a_batch_helps_the_urgent(policy: str) -> None:
    by_arrival = attained("street-crossing", policy, "warning", "engine.sequence_order=arrival")
    by_priority = attained("street-crossing", policy, "warning", "engine.sequence_order=priority")
    assert by_priority > by_arrival


# --- the stories of the others


@pytest.mark.parametrize("policy", ["residency-aware", "least-loaded", "lru-swap"])
def test_the_overload_is_one(policy: str) -> None:
    found = result("overload", policy)
    assert found["requests"]["timed_out"] > 0.2 * found["requests"]["arrived"]
    assert min(gpu["busy_fraction"] for gpu in found["gpus"]) > 0.7


@pytest.mark.parametrize("name", ["default", "desktop-agent", "lab", "serverless", "workstation"])
def test_the_others_can_be_served(name: str) -> None:
    """Memory is short, not hopeless: a good policy keeps most promises, a static or a naive one fewer."""
    good = result(name, "residency-aware")
    assert good["slo"]["attainment"] > 0.85
    assert good["slo"]["attainment"] > result(name, "exclusive-swap")["slo"]["attainment"]
