"""merge.py: runs of several folders come together; what is not the same in both is refused, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from sim.runs.execute import play
from sim.runs.store import Store
from sim.runs.task import Machines
from tests.support.cli_cases import invoke
from tests.support.sweep_cases import contents, tasks_of, write_grid, write_policy

HERE = Machines(0)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Two folders with three runs each, two of them in both, and one with all."""
    home = tmp_path_factory.mktemp("halves")
    tasks = tasks_of()
    for name, part in (("a", tasks[:3]), ("b", tasks[1:]), ("whole", tasks)):
        play(part, Store(home / name), HERE)
    return home / "a", home / "b", home / "whole"


def test_two_folders_come_together(halves: tuple[Path, Path, Path], tmp_path: Path) -> None:
    one, other, whole = halves
    result = invoke("sweep", "--merge", one, "--merge", other, "--out", tmp_path / "c")
    assert result.exit_code == 0, result.output
    assert "4 runs came from other folders" in result.stdout
    assert contents(tmp_path / "c") == contents(whole)


def test_a_grid_takes_over_what_others_have(
    halves: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a run has started")

    monkeypatch.setattr("sim.runs.execute.crew_of", never)
    grid = write_grid(tmp_path, vary={"policy": ["least-loaded"], "seed": [2, 1]})
    result = invoke("sweep", grid, "--merge", halves[2], "--out", tmp_path / "c")
    assert result.exit_code == 0, result.output
    assert "2 different runs, 2 there already; 0 to play" in result.stderr
    assert list(pd.read_csv(tmp_path / "c" / "runs.csv")["seed"]) == [2, 1]
    every = invoke("sweep", grid, "--out", tmp_path / "c", "--every-run", "--json")
    rows = json.loads(every.stdout)["rows"]
    assert [(row["policy"], row["seed"]) for row in rows] == [
        ("least-loaded", 2), ("least-loaded", 1), ("lru-swap", 1), ("lru-swap", 2)
    ]  # fmt: skip


def test_wall_time_and_places_may_differ(halves: tuple[Path, Path, Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(halves[0], copy)
    for path in copy.glob("runs/*/summary.json"):
        summary = json.loads(path.read_text())
        summary["engine"]["wall_s"] += 1
        summary["policy"] = f"/elsewhere/{summary['policy']}"
        path.write_text(json.dumps(summary))
    assert invoke("sweep", "--merge", copy, "--merge", halves[2], "--out", tmp_path / "c").exit_code == 0


@pytest.mark.parametrize("what", ["summary", "table"])
def test_a_run_that_differs_is_refused(halves: tuple[Path, Path, Path], tmp_path: Path, what: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(halves[0], copy)
    folder = next(copy.glob("runs/*"))
    if what == "summary":
        summary = json.loads((folder / "summary.json").read_text())
        summary["requests"]["completed"] += 1
        (folder / "summary.json").write_text(json.dumps(summary))
    else:
        table = pd.read_parquet(folder / "requests.parquet")
        table["end_s"] += 1
        table.to_parquet(folder / "requests.parquet")
    result = invoke("sweep", "--merge", halves[2], "--merge", copy, "--out", tmp_path / "c")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert f"run {folder.name} differs" in result.stderr
    assert ("requests" if what == "summary" else "requests.parquet") in result.stderr
    assert len(Store(tmp_path / "c").run_ids()) == 4


def test_the_fuller_of_two_is_kept(halves: tuple[Path, Path, Path], tmp_path: Path) -> None:
    play(tasks_of(), Store(tmp_path / "small", keep="summary"), HERE)
    assert invoke("sweep", "--merge", tmp_path / "small", "--merge", halves[2], "--out", tmp_path / "c").exit_code == 0
    assert contents(tmp_path / "c") == contents(halves[2])


def test_errors_come_along(tmp_path: Path) -> None:
    bad = write_policy(tmp_path, "bad", "raise ValueError('no idea')")
    tasks = tasks_of((str(bad), "lru-swap"), 1)
    play(tasks, Store(tmp_path / "a"), HERE)
    result = invoke("sweep", "--merge", tmp_path / "a", "--out", tmp_path / "c")
    assert result.exit_code == 1
    assert "no idea" in result.stderr
    assert contents(tmp_path / "c") == contents(tmp_path / "a")
    assert len(Store(tmp_path / "c").error_ids()) == 1


def test_what_is_no_sweep_is_refused(halves: tuple[Path, Path, Path], tmp_path: Path) -> None:
    for given, message in ((tmp_path / "none", "no folder of a sweep"), (tmp_path / "c", "name another")):
        if given.name == "c":
            shutil.copytree(halves[0], given)
        result = invoke("sweep", "--merge", given, "--out", tmp_path / "c")
        assert result.exit_code == 2
        assert message in result.stderr
    assert invoke("sweep", "--out", tmp_path / "c").exit_code == 2
