"""grid.py: a grid file means what it says, and a mistake in it is one line that names the field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sim.common.errors import ConfigError
from sim.scenario.scenario import load_scenario
from sim.studies.grid import SweepGrid, read_grid
from tests.support.cli_cases import invoke, scenario_data, write_scenario
from tests.support.sweep_cases import write_grid


def grid_of(folder: Path, **parts: Any) -> SweepGrid:
    return read_grid(write_grid(folder, **parts))


def labels(grid: SweepGrid) -> list[tuple[Any, ...]]:
    return [tuple(task.labels.values()) for task in grid.tasks]


def test_all_combinations_in_order_and_what_is_set_for_all(tmp_path: Path) -> None:
    vary = {"policy": ["lru-swap", "least-loaded"], "engine.max_sequences": [8, 16], "seed": "1..3"}
    grid = grid_of(tmp_path, set={"horizon_s": 30}, vary=vary)
    assert grid.fields == ("policy", "engine.max_sequences", "seed")
    assert labels(grid) == [
        (p, m, s) for p in ("lru-swap", "least-loaded") for m in (8, 16) for s in (1, 2, 3)
    ]  # fmt: skip
    for task in grid.tasks:
        scenario, told = task.scenario, task.labels
        assert (scenario.policy.name, scenario.engine.max_sequences, scenario.seed) == tuple(told.values())
        assert scenario.horizon_s == 30


def test_zip_include_and_exclude(tmp_path: Path) -> None:
    grid = grid_of(
        tmp_path,
        vary={"seed": [1, 2]},
        zip=[{"horizon_s": [10, 20], "starvation_s": [5, 6]}, {"engine.watermark": [0, 0.1]}],
        exclude=[{"seed": 2, "horizon_s": [10]}],
        include=[{"seed": 9}, {"seed": 1, "horizon_s": 10, "starvation_s": 5, "engine.watermark": 0}],
    )
    crossed = [(s, h, t, w) for s in (1, 2) for h, t in ((10, 5), (20, 6)) for w in (0, 0.1) if (s, h) != (2, 10)]
    assert labels(grid) == [*crossed, (9, None, None, None)]  # the second inclusion is there already
    assert grid.tasks[-1].scenario.horizon_s is None
    alone = grid_of(tmp_path, include=[{"seed": 3}, {"seed": 4}])
    assert labels(alone) == [(3,), (4,)]


@pytest.mark.parametrize(
    ("given", "seeds"),
    [
        ("2..4", [2, 3, 4]),
        (["1..2", 7, "9..10"], [1, 2, 7, 9, 10]),
        ({"from": 1, "to": 9, "step": 4}, [1, 5, 9]),
        ([3], [3]),
    ],
)
def test_ranges(tmp_path: Path, given: Any, seeds: list[int]) -> None:
    assert [task.scenario.seed for task in grid_of(tmp_path, vary={"seed": given}).tasks] == seeds


def test_a_range_of_fractions_has_round_values(tmp_path: Path) -> None:
    grid = grid_of(tmp_path, vary={"engine.watermark": {"from": 0.1, "to": 0.5, "step": 0.1}})
    assert labels(grid) == [(0.1,), (0.2,), (0.3,), (0.4,), (0.5,)]


def test_policies_with_parameters(tmp_path: Path) -> None:
    base = scenario_data(policy={"name": "residency-aware", "margin": 3.0})
    given = ["residency-aware", {"name": "residency-aware", "margin": 2}, "lru-swap"]
    grid = grid_of(tmp_path, scenario=base, vary={"policy": given})
    assert [task.labels["policy"] for task in grid.tasks] == [
        "residency-aware",
        "residency-aware(margin=2)",
        "lru-swap",
    ]
    assert [task.scenario.policy.parameters for task in grid.tasks] == [{"margin": 3.0}, {"margin": 2}, {}]
    margins = grid_of(tmp_path, set={"policy": "residency-aware"}, vary={"policy.margin": [1, 2]})
    assert [task.scenario.policy.parameters for task in margins.tasks] == [{"margin": 1}, {"margin": 2}]


def test_lists_and_whole_parts_can_be_varied_and_named(tmp_path: Path) -> None:
    box = {"nodes": [{"host": "tr-pro-5995wx", "gpus": [{"gpu": "rtx-4090"}]}]}
    vary = {"cluster.nodes.0.gpus.0.count": [1, 2], "service_classes.0.ttft_s": [1, 2.5]}
    grid = grid_of(tmp_path, vary=vary)
    assert [task.scenario.cluster.nodes[0].gpus[0].count for task in grid.tasks] == [1, 1, 2, 2]
    assert [task.scenario.service_classes[0].ttft_s for task in grid.tasks] == [1, 2.5, 1, 2.5]
    named = grid_of(tmp_path, vary={"cluster": [{"label": "small", "value": box}, scenario_data()["cluster"]]})
    assert named.tasks[0].labels == {"cluster": "small"}
    assert [task.scenario.cluster.nodes[0].gpus[0].gpu for task in named.tasks] == ["rtx-4090", "rtx-a6000"]


def test_files_are_meant_from_the_folder_of_the_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "mine.py").write_text("from sim.policy import Policy\n\n\nclass Mine(Policy):\n    pass\n")
    for name in ("one", "two"):
        text = "arrival_s,model,prompt_tokens,output_tokens\n" + f"1,{'chat' if name == 'one' else 'code'},10,10\n"
        (tmp_path / "in" / f"{name}.csv").write_text(text)
    write_scenario(tmp_path / "in", workload={"file": "one.csv"})
    path = tmp_path / "in" / "grid.yaml"
    vary = {"trace": ["two.csv", {"file": "one.csv", "time_scale": 2}], "policy": ["mine.py", "./mine.py", "lru-swap"]}
    path.write_text(yaml.safe_dump({"scenario": "mini.yaml", "vary": vary}, sort_keys=False))
    with pytest.raises(ConfigError, match=r'called "mine\.py"'):
        read_grid(path)
    vary["policy"].remove("./mine.py")
    path.write_text(yaml.safe_dump({"scenario": "mini.yaml", "vary": vary}, sort_keys=False))
    monkeypatch.chdir("/")
    tasks = read_grid(path).tasks
    assert [task.labels["trace"] for task in tasks] == ["two.csv"] * 2 + ["one.csv(time_scale=2)"] * 2
    assert [task.scenario.workload.file for task in tasks] == [  # type: ignore[union-attr]
        str(tmp_path / "in" / name) for name in ("two.csv", "two.csv", "one.csv", "one.csv")
    ]
    assert tasks[0].scenario.policy.name == str(tmp_path / "in" / "mine.py")
    path.write_text("scenario: mini.yaml\n")  # the scenario's own trace is meant from the scenario's folder
    (only,) = read_grid(path).tasks
    assert only.scenario == load_scenario(tmp_path / "in" / "mini.yaml")
    assert only.labels == {}


def test_scenarios_can_be_varied(tmp_path: Path) -> None:
    write_scenario(tmp_path, name="first")
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(scenario_data(name="second", seed=5)))
    grid = grid_of(tmp_path, vary={"scenario": ["mini.yaml", "other.yaml"], "horizon_s": [5]})
    assert [(task.scenario.name, task.scenario.horizon_s) for task in grid.tasks] == [("first", 5), ("second", 5)]


def test_without_a_scenario_the_shipped_one_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text("vary: {seed: [4]}\n")
    assert [(task.scenario.name, task.scenario.seed) for task in read_grid(path).tasks] == [("default", 4)]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"vray": {}}, "unknown field 'vray'; did you mean 'vary'?"),
    ({"vary": [1]}, "field 'vary'"),
    ({"vary": {"engine.max_sequencs": [1]}}, "unknown field 'engine.max_sequencs'; did you mean 'max_sequences'?"),
    ({"vary": {"polcy": ["lru-swap"]}}, "unknown field 'polcy'; did you mean 'policy'?"),
    ({"vary": {"policy": ["lru-swop"]}}, "field 'policy': unknown policy 'lru-swop'; did you mean 'lru-swap'?"),
    ({"vary": {"policy": [{"name": "residency-aware", "margn": 1}]}}, "no parameter 'margn'; did you mean 'margin'?"),
    ({"vary": {"policy": ["nowhere.py"]}}, "nowhere.py: no such file"),
    ({"vary": {"policy": [{"margin": 1}]}}, "policy"),
    ({"vary": {"engine.max_sequences": [8, 0]}}, "point engine.max_sequences=0: field 'engine.max_sequences'"),
    ({"vary": {"seed": []}}, "vary: 'seed': has no values"),
    ({"vary": {"seed": 3}}, "vary: 'seed': give a list of values such as [3]"),
    ({"vary": {"seed": [1, 1]}}, "the value 1 is there twice"),
    ({"vary": {"seed": "5..1"}}, "the range from 5 to 1 by 1 is empty"),
    ({"vary": {"seed": {"from": "a", "to": 3}}}, "a range has numbers"),
    ({"vary": {"seed": {"from": 1, "to": float("inf")}}}, "over 10,000 values"),
    ({"vary": {"seed": "1..1000000000"}}, "over 10,000 values"),
    ({"vary": {"seed": "1..200", "horizon_s": "1..200"}}, "40,000 runs are more than 10,000; say --max-runs 40000"),
    ({"vary": {"cluster.nodes.7.count": [1]}}, "'cluster.nodes' has items 0 to 0, not '7'"),
    ({"vary": {"name.first": [1]}}, "'name' is a plain value, it has no 'first'"),
    ({"vary": {"seed": [1]}, "zip": {"seed": [2]}}, "'seed' is varied twice"),
    ({"zip": {"seed": [1, 2], "horizon_s": [1]}}, "zip group 1: its fields need as many values each; seed has 2"),
    ({"vary": {"seed": [1]}, "exclude": [{"sed": 1}]}, "exclude 1: 'sed' is not varied; did you mean 'seed'?"),
    ({"vary": {"seed": [1]}, "exclude": [{"seed": 2}]}, "exclude 1: no point is like this"),
    ({"vary": {"seed": [1]}, "exclude": [{"seed": 1}]}, "nothing is left to run"),
    ({"vary": {"trace": [3]}}, "field 'trace': give a file"),
    ({"set": {"scenario": "x.yaml"}}, "field 'set.scenario'"),
    ({"scenario": "none.yaml"}, "cannot read the file"),
    ({"include": [{"horizon_s": -1}]}, "field 'horizon_s'"),
]


@pytest.mark.parametrize(("parts", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_a_mistake_is_one_line(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    result = invoke("sweep", write_grid(tmp_path, **parts), "--out", tmp_path / "out", "--jobs", 0)
    assert result.exit_code == 2, result.output
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stdout == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "- a\n", "vary: {seed: [1\n", "scenario: [1]\n", "vary: {1: [2]}\n"])
def test_what_is_no_grid_at_all(tmp_path: Path, text: str) -> None:
    (tmp_path / "grid.yaml").write_text(text)
    result = invoke("sweep", tmp_path / "grid.yaml", "--out", tmp_path / "out")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output


def test_more_runs_if_so_meant(tmp_path: Path) -> None:
    path = write_grid(tmp_path, vary={"seed": "1..12"})
    with pytest.raises(ConfigError, match="over 11 values"):
        read_grid(path, most_runs=11)
    assert len(read_grid(path, most_runs=12).tasks) == 12
