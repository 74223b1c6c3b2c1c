"""capacity: scaled scenarios, searches on made-up policies, the answer against plain runs, errors, the command line."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sim.cli.tables.capacity_tables import print_capacity
from sim.common.errors import ConfigError
from sim.common.statistics import estimate
from sim.engine.engine import simulate
from sim.results.metrics import measure_named
from sim.results.summary import summarize
from sim.runs.run_one import RunOptions
from sim.runs.task import Machines, Progress
from sim.scenario.scenario import Scenario, parse_scenario
from sim.studies.capacity import CapacityOptions, capacity, capacity_csv
from sim.studies.scale_load import at_load, node_group
from sim.studies.search import Found, Goal, PlayedLoad, Search, crossing, fewest_nodes, largest_load
from sim.studies.study import StudyOptions
from sim.workload.requests import build_trace
from tests.support.cli_cases import invoke, scenario_data, write_scenario

HERE = Machines(jobs=0)
WORKLOAD = {**scenario_data()["workload"], "duration_s": 30}  # searches overload it many times over
SLO = Goal(measure_named("slo"), 0.9)


# --- load


def of_streams(**arrivals: Any) -> Scenario:
    stream = {"models": ["chat", "code"], "arrivals": arrivals, "prompt": 100, "output": 10}
    return parse_scenario(scenario_data(workload={"duration_s": 2000, "streams": [stream]}), "test")


@pytest.mark.parametrize(
    "arrivals",
    [
        {"process": "poisson", "rate_per_s": 1},
        {"process": "gamma", "rate_per_s": 1, "cv": 2},
        {"process": "weibull", "rate_per_s": 1, "cv": 2},
        {"process": "on-off", "rate_per_s": 1, "on_s": 3, "off_s": 4},
        {"process": "mmpp", "states": [{"rate_per_s": 2, "dwell_s": 5}, {"rate_per_s": 0.5, "dwell_s": 5}]},
        {
            "process": "mmpp",
            "rate_per_s": 1,
            "states": [{"rate_per_s": 4, "dwell_s": 5}, {"rate_per_s": 1, "dwell_s": 5}],
        },
        {"process": "frames", "period_s": 1, "jitter_s": 0.5, "phase_s": 0.9},
    ],
)
@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_load_scales_the_number_of_requests_in_the_same_time(arrivals: dict[str, Any], factor: float) -> None:
    of = of_streams(**arrivals)
    before, after = build_trace(of), build_trace(at_load(of, factor))
    assert len(after) / len(before) == pytest.approx(factor, rel=0.15)
    assert after.arrival_s[-1] == pytest.approx(2000, rel=0.02)


def test_load_scales_the_short_form_and_keeps_the_bursts() -> None:
    of = parse_scenario(scenario_data(), "test")
    twice = at_load(of, 2)
    rates = [traffic.rate_per_s for traffic in twice.workload.traffic]  # type: ignore[union-attr]
    assert rates == [1.0, 0.4]
    assert at_load(of, 1) is of
    assert at_load(twice, 0.5) == of


def test_only_rows_and_traces_shrink_in_time(tmp_path: Path) -> None:
    stream = {"models": ["chat"], "arrivals": {"process": "poisson", "rate_per_s": 1}, "prompt": 10, "output": 10}
    rows = parse_scenario(scenario_data(workload={"rows": 500, "streams": [stream]}, warm_up_s=60), "test")
    before, after = build_trace(rows), build_trace(at_load(rows, 2))
    assert (len(before), len(after)) == (500, 500)
    assert after.arrival_s[-1] == pytest.approx(before.arrival_s[-1] / 2, rel=0.01)
    assert at_load(rows, 2).warm_up_s == 30
    both = parse_scenario(scenario_data(workload={"rows": 500, "duration_s": 900, "streams": [stream]}), "test")
    assert len(build_trace(at_load(both, 2))) == 1000
    file = tmp_path / "t.csv"
    file.write_text("arrival_s,model,prompt_tokens,output_tokens\n0,chat,5,5\n60,chat,5,5\n")
    played = parse_scenario(scenario_data(workload={"kind": "trace", "file": str(file), "time_scale": 3}), "test")
    assert build_trace(at_load(played, 2)).arrival_s.tolist() == [0, 10]


def test_node_groups_are_found_by_name_host_or_position() -> None:
    cluster = {"nodes": [{"host": "box", "gpus": [{"gpu": "a"}]}, {"host": "box", "name": "b", "gpus": [{"gpu": "a"}]}]}
    of = parse_scenario(scenario_data(cluster=cluster), "test")
    assert (node_group(of, "box").position, node_group(of, "b").position, node_group(of, "1").position) == (0, 1, 1)
    assert node_group(of, "b").resized(of, 7).cluster.nodes[1].count == 7
    assert node_group(of, "b").resized(of, 7).cluster.nodes[0].count == 1
    with pytest.raises(ConfigError, match="several node groups; add --grow with one of: box, b"):
        node_group(of, None)
    with pytest.raises(ConfigError, match="no such node group"):
        node_group(of, "c")
    cluster["nodes"][1]["name"] = "box"
    with pytest.raises(ConfigError, match="give the position, 0 to 1"):
        node_group(parse_scenario(scenario_data(cluster=cluster), "test"), "box")


# --- searches, on policies that are functions of the load


def point(at: float, values: list[float], goal: Goal = SLO) -> PlayedLoad:
    seen = estimate(values)
    assert seen.t is not None
    ends = [goal.kept(seen.t.low), goal.kept(seen.t.high)]
    sure = ends[0] if ends[0] == ends[1] else None
    return PlayedLoad(at, tuple(values), seen, goal.kept(seen.mean), sure, (), estimate([]), {}, ())


def searched(search: Search, attained: Callable[[float], float], noise: float = 0.001) -> tuple[Found, list[float]]:
    asked: list[float] = []
    at = next(search)
    while True:
        asked.append(at)
        try:
            at = search.send(point(at, [attained(at) - noise, attained(at) + noise]))
        except StopIteration as end:
            return end.value, asked


@pytest.mark.parametrize("edge", [0.03, 0.4, 0.99, 1.0, 1.7, 60.0])
@pytest.mark.parametrize("tolerance", [0.3, 0.05, 0.002])
def test_the_largest_load_is_found_to_its_tolerance(edge: float, tolerance: float) -> None:
    found, asked = searched(largest_load(tolerance, 64), lambda load: 1.0 if load <= edge else 0.5)
    assert found.value is not None
    assert found.missed is not None
    assert found.value <= edge < found.missed <= found.value * (1 + tolerance)
    assert found.odd == ""
    assert (found.sure_at, found.sure_not_at) == (found.value, found.missed)
    assert len(asked) == len(set(asked)) < 35
    assert [p.at for p in found.points] == sorted(asked)


def test_a_search_says_when_there_is_no_end() -> None:
    found, asked = searched(largest_load(0.05, 8), lambda load: 1.0)
    assert (found.value, found.missed) == (8.0, None)
    assert "keeps the goal even at 8 times" in found.why
    assert max(asked) == 8
    found, asked = searched(largest_load(0.05, 8), lambda load: 0.0)
    assert found.value is None
    assert "even at 0.125 times" in found.why
    assert min(asked) == 1 / 8


def test_a_hole_below_is_found_and_told() -> None:
    """Kept up to 1.3, missed to 1.7, kept again to 3: a bisection alone would say 3."""
    found, _ = searched(largest_load(0.05, 64), lambda load: 0.5 if 1.3 < load < 1.7 or load > 3 else 1.0)
    assert found.value is not None
    assert found.value <= 1.3
    assert found.missed is not None
    assert found.missed / found.value <= 1.05
    assert found.odd.startswith(f"missed at {found.missed:.3g} but kept at ")
    assert "sure, by their intervals" in found.odd


def test_what_may_be_chance_is_called_so() -> None:
    found, _ = searched(largest_load(0.05, 64), lambda load: 0.89 if 1.3 < load < 1.7 else 1 - load / 30, noise=0.05)
    assert "may be chance" in found.odd
    assert found.sure_at is None or found.sure_at < 1.3


@pytest.mark.parametrize("need", [1, 2, 3, 7, 40, 64])
@pytest.mark.parametrize("start", [1, 4, 64])
def test_the_fewest_nodes_are_found_exactly(need: int, start: int) -> None:
    found, asked = searched(fewest_nodes(start, 64), lambda nodes: 1.0 if nodes >= need else 0.1)
    assert found.value == need
    assert found.missed == (need - 1 if need > 1 else None)
    assert all(at == int(at) and 1 <= at <= 64 for at in asked)
    assert len(asked) < 16


def test_more_nodes_that_are_worse_are_told() -> None:
    found, _ = searched(fewest_nodes(2, 64), lambda nodes: 0.2 if nodes in (1, 5) else 1.0)
    # 5 is between what is tried and need not be met; 2 keeps the goal, and so does all that was tried above it.
    assert found.value == 2
    found, asked = searched(fewest_nodes(8, 64), lambda nodes: 0.2 if nodes in (1, 2, 6) else 1.0)
    assert found.value is not None
    if 6 in asked:
        assert found.value > 6
        assert found.odd
    assert searched(fewest_nodes(3, 10), lambda nodes: 0.0)[0].why.endswith("with 10 nodes, the most tried")


def test_a_goal_can_be_a_limit() -> None:
    limit = Goal(measure_named("e2e_all.p99"), 30.0)
    assert limit.kept(30.0)
    assert not limit.kept(30.1)
    assert not limit.kept(None)
    assert SLO.kept(0.9)
    assert not SLO.kept(0.8999)


def test_each_seed_s_own_answer_is_read_off_between_loads() -> None:
    points = [point(1.0, [1.0, 0.95, 0.8]), point(2.0, [0.95, 0.85, 0.7]), point(8.0, [0.85, 0.5, 0.6])]
    assert crossing(points, SLO, 0) == pytest.approx(2 * 4**0.5)
    assert crossing(points, SLO, 1) == pytest.approx(2**0.5)
    assert crossing(points, SLO, 2) is None  # it misses at all
    assert crossing(points[:2], SLO, 0) is None  # it keeps at all
    assert crossing([point(1.0, [1.0, 1.0]), point(2.0, [1.0, 0.4])], SLO, 1) == pytest.approx(2 ** (1 / 6))


# --- the whole, against plain runs


def asked(path: Path, policies: str = "lru-swap,static-split", seeds: int = 3, **more: Any) -> CapacityOptions:
    run = RunOptions(path, settings=more.pop("settings", ()))
    return CapacityOptions(StudyOptions(run, policies, seeds, 1, HERE), **more)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenario(tmp_path_factory.mktemp("capacity"), workload=WORKLOAD)


def attainment(of: Scenario, policy: str, factor: float, seeds: tuple[int, ...]) -> float:
    loaded = at_load(of, factor)
    spec = of.policy.model_copy(update={"name": policy})
    runs = [simulate(loaded.model_copy(update={"policy": spec, "seed": seed})) for seed in seeds]
    return float(np.mean([summarize(run)["slo"]["attainment"] for run in runs]))


def test_the_largest_load_is_what_plain_runs_say(path: Path) -> None:
    made = capacity(asked(path, seeds=2, tolerance=0.3, most=64))
    of = parse_scenario(scenario_data(workload=WORKLOAD), "test")
    for policy in made.policies:
        found = policy.found
        assert found is not None
        assert found.value is not None
        assert found.missed is not None
        assert found.missed / found.value <= 1.3
        assert attainment(of, policy.label, found.value, made.seeds) >= 0.9
        assert attainment(of, policy.label, found.missed, made.seeds) < 0.9
        assert policy.usd_per_million_tokens is not None
        assert all(len(p.run_ids) == 2 and p.counts["arrived"] > 0 for p in found.points)
        known = [seconds for seconds in policy.by_seed if seconds is not None]
        assert all(found.value / 3 < seconds < found.missed * 3 for seconds in known)
    assert "times the load" in made.verdict[0]
    data = json.loads(made.as_json())
    assert (data["kind"], data["version"], data["find"]) == ("capacity", 1, "rate")
    rows = list(csv.DictReader(io.StringIO(capacity_csv(made))))
    assert len(rows) == sum(len(policy.found.points) for policy in made.policies if policy.found is not None)
    assert [row["load"] for row in rows if row["answer"] == "True"] == [
        str(policy.found.value) for policy in made.policies if policy.found is not None
    ]


def test_the_fewest_nodes_are_what_plain_runs_say(path: Path) -> None:
    made = capacity(asked(path, "least-loaded", 2, find="cluster", load=6.0, most=16))
    found = made.policies[0].found
    assert found is not None
    assert found.value is not None
    assert made.group is not None
    loaded = at_load(parse_scenario(scenario_data(policy={"name": "least-loaded"}, workload=WORKLOAD), "test"), 6)
    for count in (int(found.value), int(found.value) - 1):
        if count:
            of = made.group.resized(loaded, count)
            assert (attainment(of, "least-loaded", 1, made.seeds) >= 0.9) == (count == found.value)
    assert f"{found.value:.0f} node" in made.verdict[0]


def test_the_cost_of_a_load_is_that_of_its_runs(path: Path) -> None:
    made = capacity(asked(path, "lru-swap", 2, find="cost", load=2.0, attainment=0.01))
    summary = summarize(simulate(at_load(parse_scenario(scenario_data(workload=WORKLOAD), "test"), 2)))
    assert made.policies[0].by_seed[0] == pytest.approx(1e6 / summary["cost"]["output_tokens_per_usd"])
    assert "a million output tokens" in made.verdict[0]
    missed = capacity(asked(path, "lru-swap", 1, find="cost", load=32.0))
    assert missed.policies[0].by_seed == (None,)
    assert missed.verdict[0].startswith("No policy keeps the goal")


def test_any_metric_can_be_the_goal(path: Path) -> None:
    made = capacity(asked(path, "static-split", 1, metric="e2e_all.p99", limit=20.0, tolerance=1.0, most=4))
    found = made.policies[0].found
    assert found is not None
    for seen in found.points:
        assert seen.kept == (seen.seen.mean is not None and seen.seen.mean <= 20)


def test_a_policy_that_fails_leaves_the_search_and_the_others_go_on(path: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(
        "from sim.policy import Policy\nclass Bad(Policy):\n    def decide(self, view):\n        raise ValueError\n"
    )
    arguments = ("--policies", f"{bad},lru-swap", "--seeds", 1, "--tolerance", 1, "--most", 2, "--jobs", 0)
    result = invoke("capacity", path, *arguments)
    assert result.exit_code == 1
    assert "lru-swap" in result.stdout
    assert "Failed, and not ranked: bad" in " ".join(result.stdout.split())
    assert result.stderr.count("\n") == 1
    assert "bad failed at 1, seed 1" in result.stderr


def test_out_keeps_the_runs(path: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    out = tmp_path / "kept"
    made = capacity(asked(path, "lru-swap", 2, tolerance=1.0, most=2, out=out), seen.append)
    assert json.loads((out / "capacity.json").read_text()) == json.loads(made.as_json())
    assert (out / "capacity.csv").read_text() == capacity_csv(made)
    assert sum(progress.done == progress.total for progress in seen) > 1
    seen.clear()
    assert capacity(asked(path, "lru-swap", 2, tolerance=1.0, most=2, out=out), seen.append) == made
    assert all(progress.done == 0 for progress in seen)


@pytest.mark.parametrize("find", ["rate", "cluster", "cost"])
def test_tables_fit(path: Path, find: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = capacity(asked(path, seeds=2, find=find, tolerance=1.0, most=2))
    print_capacity(made, Console(width=130, markup=False, highlight=False))
    text = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 130
    assert "Verdict" in text
    assert "SLO kept at least 90.0%" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--find", "rat"), ("--find rat", "did you mean 'rate'")),
        (("--attainment", "90"), ("--attainment 90", "0.9")),
        (("--attainment", "nan"), ("--attainment nan",)),
        (("--tolerance", "0"), ("--tolerance 0",)),
        (("--most", "0"), ("--most 0",)),
        (("--load", "-1"), ("--load -1",)),
        (("--metric", "e2e_all.p99"), ("--metric e2e_all.p99", "--limit")),
        (("--metric", "e2e_all.p99", "--limit", "nan"), ("--limit",)),
        (("--metric", "loads"), ("--metric loads", "choose another")),
        (("--metric", "slow"), ("unknown metric 'slow'", "did you mean")),
        (("--find", "cluster", "--grow", "b"), ("--grow b", "no such node group")),
        (("--policies", "lru"), ("unknown policy 'lru'",)),
        (("--seeds", "0"), ("--seeds 0",)),
        (("--set", "service_classes=[{name: default}]"), ("promises nothing", "--set service_classes.0.ttft_s=5")),
    ],
)
def test_mistakes_are_one_line(path: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    result = invoke("capacity", path, "--jobs", 0, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def test_deadlines_are_promises_too(tmp_path: Path) -> None:
    stream = {
        "models": ["chat"],
        "arrivals": {"process": "poisson", "rate_per_s": 0.5},
        "prompt": 100,
        "output": 10,
        "deadline_s": 20,
    }
    data = {"workload": {"duration_s": 60, "streams": [stream]}, "service_classes": [{"name": "default"}]}
    made = capacity(asked(write_scenario(tmp_path, **data), "lru-swap", 1, tolerance=1.0, most=2))
    found = made.policies[0].found
    assert found is not None
    assert found.value is not None
    assert math.isfinite(found.value)
