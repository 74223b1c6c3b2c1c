"""compare: pairs of runs, what is lost, warm-up, the verdict, the command line."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sim.cli.tables.compare_tables import print_comparison
from sim.common.errors import ConfigError, SimError
from sim.common.statistics import difference, estimate
from sim.engine.engine import simulate
from sim.results.metrics import measure_named
from sim.results.request_table import request_table
from sim.results.summary import summarize
from sim.runs.run_one import RunOptions
from sim.runs.task import Machines, Progress
from sim.scenario.scenario import load_scenario
from sim.studies.compare import CompareOptions, compare
from sim.studies.comparison import Comparison
from sim.studies.ranking import Column, rank
from sim.studies.study import StudyOptions
from tests.support.cli_cases import invoke, scenario_data, write_scenario
from tests.support.places import ROOT

HERE = Machines(jobs=0)
POLICIES = "lru-swap,exclusive-swap,static-split"

REJECTS = """
from sim.policy import Policy, Reject
class RejectsAll(Policy):
    def decide(self, view):
        for request in list(view.waiting):
            yield Reject(request, "no")
"""
FAILS = """
from sim.policy import Load, Policy, Route
class Fails(Policy):
    def start(self, view):
        for model in view.models:
            gpu = max(view.gpus, key=lambda gpu: gpu.available_bytes)
            yield Load(model, gpu, model.layers)
    def decide(self, view):
        for request in view.waiting:
            if request.number == 40:
                raise RuntimeError("the 41st is too much")
            yield Route(request, request.model.instances[0])
"""


def options(path: Path, policies: str = POLICIES, seeds: int = 3, settings: tuple[str, ...] = (), **more: Any) -> Any:
    run = RunOptions(path, settings=settings, **{key: more.pop(key) for key in ("trace", "assign") if key in more})
    return CompareOptions(StudyOptions(run, policies, seeds, 1, HERE), bounds=False, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def path(folder: Path) -> Path:
    return write_scenario(folder)


@pytest.fixture(scope="module")
def made(path: Path) -> Comparison:
    return compare(options(path, seeds=5))


def summary_of(path: Path, policy: str, seed: int, *settings: str) -> dict[str, Any]:
    return summarize(simulate(load_scenario(path, [f"policy={{name: {policy}}}", f"seed={seed}", *settings])))


# --- numbers


def test_values_are_those_of_the_runs_themselves(path: Path, made: Comparison) -> None:
    assert made.seeds == (1, 2, 3, 4, 5)
    assert made.baseline == "lru-swap"  # the scenario's own
    for policy in made.policies:
        summaries = [summary_of(path, policy.label, seed) for seed in made.seeds]
        assert list(policy.run_ids) == [summary["run_id"] for summary in summaries]
        for measure in made.metrics:
            values = [measure.of(summary) for summary in summaries]
            assert list(policy.measured[measure.key].values) == values
            assert policy.measured[measure.key].estimate == estimate(values)
        assert policy.counts["arrived"] == sum(summary["requests"]["arrived"] for summary in summaries)


def test_differences_are_within_seeds(made: Comparison) -> None:
    baseline = made.policy("lru-swap")
    assert baseline.versus == {}
    for policy in made.policies[1:]:
        for key, versus in policy.versus.items():
            values, others = policy.measured[key].values, baseline.measured[key].values
            assert versus.difference == difference(list(values), list(others))
            by_hand = [a - b for a, b in zip(values, others, strict=True) if a is not None and b is not None]
            assert versus.difference.estimate.mean == pytest.approx(np.mean(by_hand))
            assert versus.p_holm is None or versus.p_holm >= (versus.difference.p or 0)
    arrived = [policy.counts["arrived"] for policy in made.policies]
    assert len(set(arrived)) == 1


def test_a_policy_ties_with_its_own_copy(folder: Path, path: Path) -> None:
    twin = folder / "twin.py"
    twin.write_text((ROOT / "policies" / "lru_swap.py").read_text())
    made = compare(options(path, f"lru-swap,{twin}"))
    gap = made.policy("twin").versus["e2e_all_s.mean"]
    assert (gap.difference.estimate.mean, gap.difference.p, gap.p_holm) == (0.0, 1.0, 1.0)
    assert all("a tie" in line for line in made.verdict[:4])
    assert set(made.front.labels) == {"lru-swap", "twin"}


def test_who_rejects_or_stalls_does_not_look_quick(folder: Path, path: Path) -> None:
    (folder / "rejects_all.py").write_text(REJECTS)
    (folder / "idle.py").write_text(
        "from sim.policy import Policy\nclass Idle(Policy):\n    def decide(self, view):\n        return ()\n"
    )
    names = f"lru-swap,{folder}/rejects_all.py,{folder}/idle.py"
    made = compare(options(path, names, metrics=("e2e_all",), settings=("horizon_s=70",)))
    ranking = next(ranking for ranking in made.rankings if ranking.key == "e2e_all_s.mean")
    assert ranking.best == "lru-swap"
    idle, rejects = made.policy("idle"), made.policy("rejects-all")
    assert idle.measured["e2e_s.mean"].estimate.mean is None
    assert idle.counts["unfinished"] == idle.counts["arrived"] == rejects.counts["rejected"]
    assert next(r for r in made.rankings if r.key == "e2e_s.mean").unranked == ("rejects-all", "idle")
    text = " ".join(made.verdict)
    assert "idle 100.0%" in text
    assert "rejects-all 100.0%" in text
    assert "are not ranked: rejects-all." in text
    assert "rejects-all" not in (*ranking.order, *made.front.labels)
    assert "rejects-all" in next(ranking for ranking in made.rankings if ranking.key == "slo.attainment").order
    # Each request that got no answer counts from its arrival to the end.
    outcome = simulate(load_scenario(path, [f"policy.name={folder}/idle.py", "horizon_s=70"]))
    lasted_s = outcome.end_s - request_table(outcome)["arrival_s"]
    assert idle.measured["e2e_all_s.mean"].values[0] == pytest.approx(lasted_s.mean())


def test_a_policy_that_fails_is_shown_with_its_error_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text(FAILS)
    longer = scenario_data(name="longer")
    longer["workload"]["duration_s"] = 55  # so that some seeds have more than 40 requests and some have not
    path = write_scenario(tmp_path, **longer)
    made = compare(options(path, f"{tmp_path}/fails.py,lru-swap", seeds=6))
    failing = made.policy("fails")
    assert 0 < len(failing.errors) < 6
    assert all("the 41st is too much" in failure.error for failure in failing.errors)
    seen = failing.measured["e2e_all_s.mean"]
    assert [value is None for value in seen.values] == [seed in [f.seed for f in failing.errors] for seed in made.seeds]
    assert all("fails" in ranking.unranked for ranking in made.rankings)
    assert made.front.labels == ("lru-swap",)
    assert "Failed, and not ranked: fails" in " ".join(made.verdict)
    result = invoke(
        "compare", path, "--policies", f"{tmp_path}/fails.py,lru-swap", "--seeds", 6, "--jobs", 0, "--no-bounds"
    )
    assert result.exit_code == 1
    assert f"({len(failing.errors)} of 6 seeds)" in result.stdout
    assert result.stderr.count("\n") == 1
    assert "the 41st is too much" in result.stderr


def test_one_seed_has_no_interval_and_says_so(path: Path) -> None:
    made = compare(options(path, seeds=1))
    assert all(measured.estimate.t is None for policy in made.policies for measured in policy.measured.values())
    assert any("One seed says nothing about chance" in line for line in made.verdict)


def test_equal_numbers_are_called_the_same(path: Path, tmp_path: Path) -> None:
    twin = tmp_path / "twin.py"
    twin.write_bytes((ROOT / "policies" / "lru_swap.py").read_bytes())
    text = " ".join(compare(options(path, f"{twin},lru-swap", seeds=1)).verdict)
    assert "the same" in text
    assert "0 points less" not in text


# --- the verdict


def column(label: str, *values: float | None) -> Column:
    return Column(label, tuple(values))


def test_the_ranking_knows_which_end_is_better() -> None:
    draws = np.random.default_rng(1).normal(0, 0.01, size=10)
    low, high = column("low", *(1 + draws)), column("high", *(2 - draws))
    assert rank(measure_named("e2e"), [high, low], 0.95).order == ("low", "high")
    found = rank(measure_named("slo"), [low, high], 0.95)
    assert (found.best, found.second, found.tied) == ("high", "low", ())
    assert found.lead is not None
    assert found.lead.mean == pytest.approx(-1, abs=0.05)


def test_the_ranking_calls_a_tie_a_tie() -> None:
    noise = np.random.default_rng(2).normal(0, 1, size=(3, 10))
    a, b, c = (column(name, *(10 * (name == "c") + row)) for name, row in zip("abc", noise, strict=True))
    found = rank(measure_named("e2e"), [c, b, a], 0.95)
    assert found.second == "c"
    assert len(found.tied) == 1
    assert found.p is not None
    assert found.p < 0.05
    assert found.rivals == 2


def test_who_lacks_a_number_is_not_ranked() -> None:
    found = rank(measure_named("e2e"), [column("a", 1.0, None), column("b", 2.0, 3.0), column("c")], 0.95)
    assert (found.order, found.unranked) == (("b",), ("a", "c"))
    assert rank(measure_named("e2e"), [column("a", None)], 0.95).best is None


# --- warm-up


def test_after_the_warm_up_only_later_requests_are_in_the_numbers(path: Path) -> None:
    made = compare(options(path, warm_up="25", metrics=("e2e_all",)))
    assert made.warm_up.after_s == 25
    for place, seed in enumerate(made.seeds):
        outcome = simulate(load_scenario(path, ["policy.name=exclusive-swap", f"seed={seed}"]))
        table = request_table(outcome)
        later = table["arrival_s"] >= 25
        e2e_s, attained = table["e2e_s"][later], table["attained"][later]
        policy = made.policy("exclusive-swap")
        assert policy.measured["e2e_s.mean"].values[place] == pytest.approx(np.nanmean(e2e_s))
        assert policy.measured["slo.attainment"].values[place] == pytest.approx(attained.mean())
        rate = attained.sum() / (outcome.end_s - 25)
        assert policy.measured["slo.goodput_rps"].values[place] == pytest.approx(rate)
        summary = summarize(outcome, after_s=25)
        assert summary["requests"]["arrived"] == later.sum()
        assert summary["warm_up"]["requests_before"] == (~later).sum()
        assert sum(model["requests"]["arrived"] for model in summary["models"].values()) == later.sum()
        assert summary["tokens"]["output"] == table["produced_tokens"][later].sum()
        assert any(notice.startswith("warm-up: ") for notice in summary["notices"])
        assert summarize(outcome)["warm_up"]["requests_before"] == 0


def test_a_warm_up_is_found_and_is_the_same_for_all(tmp_path: Path) -> None:
    slow_start = scenario_data(name="cold")
    slow_start["workload"]["duration_s"] = 300
    path = write_scenario(tmp_path, **slow_start)
    made = compare(options(path, "lru-swap,exclusive-swap", warm_up="auto"))
    found = [
        summary_of(path, policy, seed)["warm_up"]["settled_s"]
        for policy in ("lru-swap", "exclusive-swap")
        for seed in (1, 2, 3)
    ]
    assert made.warm_up.after_s == np.ceil(max(seconds for seconds in found if seconds is not None))
    assert made.warm_up.rule.startswith("MSER-5 on the end-to-end times of 3 seeds")
    never = ("never settle" in made.warm_up.rule) == (None in found)
    assert never


# --- traces


def write_trace(folder: Path, count: int = 60) -> Path:
    rows = [f"{number},{('chat', 'code')[number % 3 == 0]},200,{20 + number % 7}" for number in range(count)]
    path = folder / "trace.csv"
    path.write_text("\n".join(["arrival_s,model,prompt_tokens,output_tokens", *rows, ""]))
    return path


def test_a_trace_without_chance_is_played_once(folder: Path, path: Path) -> None:
    made = compare(options(path, trace=write_trace(folder)))
    assert made.seeds == (1,)
    assert any("nothing in this scenario is drawn" in notice for notice in made.notices)
    drawn = compare(options(path, trace=write_trace(folder), assign="uniform"))
    assert drawn.seeds == (1, 2, 3)
    assert any("seeds change only which model" in notice for notice in drawn.notices)
    values = drawn.policy("lru-swap").measured["e2e_all_s.mean"].values
    assert len(set(values)) == 3


def test_drawing_nothing_is_noticed(tmp_path: Path) -> None:
    frames = {"process": "frames", "period_s": 2, "phase_s": 0}
    stream = {"models": ["chat"], "arrivals": frames, "prompt": 100, "output": 10}
    path = write_scenario(tmp_path, workload={"duration_s": 20, "streams": [stream]})
    assert any("all seeds gave the same run" in notice for notice in compare(options(path)).notices)


# --- bounds


def test_no_policy_is_better_than_its_bounds_and_oracles_stand_beside(path: Path) -> None:
    made = compare(replace(options(path, "lru-swap,exclusive-swap", seeds=2), bounds=True))
    assert {bound.key for bound in made.bounds} == {"e2e_all_s.mean", "e2e_all_s.p99", "ttft_s.p99"}
    for bound in made.bounds:
        assert bound.value is not None
        for label in ("lru-swap", "exclusive-swap"):
            factor, values = bound.gaps[label], made.policy(label).measured[bound.key].values
            assert factor == pytest.approx(sum(value or 0.0 for value in values) / 2 / bound.value)
            assert factor >= 1
    beside = [policy.label for policy in made.policies if policy.oracle]
    assert beside == [policy.label for policy in made.policies[2:]]
    assert all(label not in ranking.order for label in beside for ranking in made.rankings)
    assert any("can carry at most" in notice for notice in made.notices)


# --- what is kept and printed


def test_json_is_the_same_bytes_and_says_all(path: Path, made: Comparison) -> None:
    again = compare(options(path, seeds=5))
    assert again.as_json() == made.as_json()
    data = json.loads(made.as_json())
    assert (data["kind"], data["version"], data["seeds"]) == ("comparison", 1, [1, 2, 3, 4, 5])
    assert data["metrics"][0]["key"] == "slo.attainment"
    first = data["policies"][0]
    assert list(first["measured"]["e2e_all_s.mean"]["estimate"]) == ["mean", "t", "bootstrap", "known", "missing"]
    assert set(data["policies"][1]["versus"]["slo.attainment"]) == {"difference", "ratio", "p_holm"}
    assert len(first["run_ids"]) == 5
    assert data["verdict"] == list(made.verdict)


def test_out_keeps_everything_and_plays_nothing_twice(path: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    out = tmp_path / "kept"
    first = compare(options(path, out=out), seen.append)
    assert seen[-1].done == 9
    assert json.loads((out / "comparison.json").read_text()) == json.loads(first.as_json())
    rows = list(csv.DictReader(io.StringIO((out / "comparison.csv").read_text())))
    assert len(rows) == len(first.policies) * len(first.metrics)
    row = next(r for r in rows if r["policy"] == "exclusive-swap" and r["metric"] == "e2e_all_s.mean")
    gap = first.policy("exclusive-swap").versus["e2e_all_s.mean"].difference
    assert float(row["difference"]) == gap.estimate.mean
    assert all((out / "runs" / run_id / "requests.parquet").is_file() for p in first.policies for run_id in p.run_ids)
    compare(options(path, POLICIES, 4, out=out), seen.append)
    assert (seen[-1].before, seen[-1].done) == (9, 3)


@pytest.mark.parametrize("columns", [100, 130])
def test_tables_fit(made: Comparison, columns: int, capsys: pytest.CaptureFixture[str]) -> None:
    print_comparison(made, Console(width=columns, markup=False, highlight=False))
    text = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in text.splitlines() if not line.startswith("warm-up")) <= columns
    for words in ("Means over seeds", "Requests, all seeds", "Less lru-swap", "Pareto front", "Verdict", "unfinished"):
        assert words in text


def test_the_command_prints_what_the_library_finds(path: Path, made: Comparison) -> None:
    arguments: tuple[object, ...] = ("compare", path, "--policies", POLICIES, "--jobs", 0, "--no-bounds")
    assert invoke(*arguments, "--seeds", 5, "--json").stdout == made.as_json()
    assert invoke(*arguments, "--seeds", 1, "--csv").stdout.startswith("policy,tier,oracle,metric,")
    arguments = (*arguments, "--seeds", 2)
    result = invoke(*arguments, "--baseline", "static-split", "--metrics", "ttft.p99,loads")
    assert result.exit_code == 0
    assert "Less static-split" in result.stdout
    assert "99th" not in result.stdout.splitlines()[4]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--policies", "lru-swop"), ("unknown policy 'lru-swop'", "lru-swap")),
        (("--policies", "lru-swap", "--seeds", "0"), ("--seeds 0", "at least 1")),
        (("--policies", "lru-swap", "--first-seed", "-1"), ("--first-seed -1",)),
        (("--policies", "lru-swap", "--baseline", "static-split"), ("--baseline static-split", "not among")),
        (("--policies", "lru-swap", "--metrics", "e2f"), ("unknown metric 'e2f'", "did you mean")),
        (("--policies", "lru-swap", "--metrics", "loads"), ("--metrics loads", "put another one first")),
        (("--policies", "lru-swap", "--warm-up", "soon"), ("--warm-up soon", "auto")),
        (("--policies", "lru-swap", "--warm-up", "-3"), ("--warm-up -3",)),
        (("--policies", "lru-swap", "--warm-up", "3600"), ("the last request arrives at", "give less")),
        (("--policies", "lru-swap", "--engine", "spark"), ("--engine spark", "dask")),
        (("--policies", "lru-swap", "--set", "models.0.model=Qwen"), ("unknown model", "Qwen")),
        (("--policies", "lru-swap", "--assign", "zipf:1"), ("--assign zipf:1", "--trace")),
    ],
)
def test_mistakes_are_one_line(path: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    result = invoke("compare", path, "--jobs", 0, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr


def test_a_warm_up_past_the_horizon_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError, match="the run ends at 40 s"):
        compare(options(path, warm_up="50", settings=("horizon_s=40",)))
    with pytest.raises(ConfigError, match="warm_up_s must end before horizon_s"):
        compare(options(path, settings=("horizon_s=40", "warm_up_s=50")))


def test_an_empty_scenario_is_refused(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing.csv"
    nothing.write_text("arrival_s,model,prompt_tokens,output_tokens\n")
    with pytest.raises(SimError):
        compare(replace(options(write_scenario(tmp_path), trace=nothing)))
