"""results.py: a run folder is whole or not there, says what the summary says, and is never someone else's."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet

import sim
from sim.common import column_store
from sim.common.errors import ConfigError
from sim.core.record import recorder
from sim.engine.engine import Outcome, identify, simulate
from sim.results import run_folder
from sim.results.run_folder import FILES, IDENTITY, SERIES, check_target, finished_run, write_run
from sim.results.summary import summarize
from sim.runs.run_one import RunOptions, compose, run
from sim.scenario.scenario import load_scenario, parse_scenario
from sim.workload.requests import build_trace, open_workload
from tests.support.cli_cases import scenario_data, write_scenario


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    """A short run with unfinished requests."""
    return simulate(parse_scenario(scenario_data(horizon_s=50), "test"))


@pytest.fixture(scope="module")
def summary(outcome: Outcome) -> dict[str, Any]:
    return summarize(outcome)


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_has_everything(tmp_path: Path, outcome: Outcome, summary: dict[str, Any]) -> None:
    target = tmp_path / "new" / "run"
    write_run(target, outcome, summary)
    assert leftovers(target) == sorted([*FILES, IDENTITY])
    assert leftovers(target.parent) == ["run"]
    assert json.loads((target / "summary.json").read_text()) == summary == finished_run(target)


def test_tables_agree_with_the_summary(tmp_path: Path, outcome: Outcome, summary: dict[str, Any]) -> None:
    write_run(tmp_path / "run", outcome, summary)
    requests = pd.read_parquet(tmp_path / "run" / "requests.parquet")
    assert list(requests["request"]) == list(range(summary["requests"]["arrived"]))
    assert requests["arrival_s"].is_monotonic_increasing
    counts = requests["outcome"].value_counts()
    assert counts["completed"] == summary["requests"]["completed"]
    assert counts["unfinished"] == summary["requests"]["unfinished"] > 0
    assert set(requests["model"]) == {"chat", "code"}
    done = requests[requests["outcome"] == "completed"]
    assert (done["end_s"] - done["arrival_s"]).mean() == pytest.approx(summary["e2e_s"]["mean"])
    assert requests["ttft_s"].count() == summary["ttft_s"]["count"]
    assert requests["tpot_s"].mean() == pytest.approx(summary["tpot_s"]["mean"])
    assert requests["attained"].sum() == summary["slo"]["attained"]
    budget = requests[[f"{name}_s" for name in summary["time_budget_s"]]].sum()
    assert budget.sum() == pytest.approx((requests["end_s"] - requests["arrival_s"]).sum())
    gpus = pd.read_parquet(tmp_path / "run" / "gpus.parquet")
    assert list(gpus["name"]) == [gpu["name"] for gpu in summary["gpus"]]
    assert gpus["computing_s"].iloc[0] == pytest.approx(gpus["busy_fraction"].iloc[0] * 50)
    switches = pd.read_parquet(tmp_path / "run" / "switches.parquet")
    assert (switches["kind"] == "load").sum() == summary["switching"]["loads"] > 0
    assert switches["reload_s"].sum() == pytest.approx(summary["switching"]["reload_s"])


def test_the_kept_scenario_is_the_same_run(tmp_path: Path, outcome: Outcome, summary: dict[str, Any]) -> None:
    write_run(tmp_path / "run", outcome, summary)
    again = simulate(load_scenario(tmp_path / "run" / "scenario.yaml"))
    assert again.run_id == outcome.run_id
    without_clocks = {**summarize(again), "engine": None}
    assert without_clocks == {**summary, "engine": None}


def test_equal_runs_leave_equal_bytes(tmp_path: Path) -> None:
    path = write_scenario(tmp_path)
    for name in ("one", "two"):
        run(RunOptions(scenario=path, out=tmp_path / name))
    for name in FILES[:-1]:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def kept(
    folder: Path, monkeypatch: pytest.MonkeyPatch, most_rows: int, block_rows: int
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A run's summary and files, with so many rows in memory, handed over in odd blocks, and so many in a row group."""
    with monkeypatch.context() as patch:
        patch.setattr(recorder, "_ROWS", 37)
        patch.setattr(run_folder, "_BLOCK_ROWS", block_rows)
        workload = scenario_data()["workload"] | {"duration_s": 400}
        data = scenario_data(workload=workload, horizon_s=350, cluster=SMALL_GPU, policy={"name": "lru-swap"})
        played = simulate(parse_scenario(data, "test"), recorder=recorder.Recorder(folder.parent, most_rows))
        summary = summarize(played) | {"engine": None}
        write_run(folder, played, summary)
    spilled = sum(type(part).__name__ == "_Spilled" for part in played.recorder.columns.parts())
    assert (spilled > 1) == (most_rows < played.recorder.arrived / 2), spilled
    return summary, {name: (folder / name).read_bytes() for name in FILES}


SMALL_GPU = {"nodes": [{"host": "tr-pro-5995wx", "gpus": [{"gpu": "rtx-4090"}]}], "gpu_reserve_gib": 2}


@pytest.mark.skipif(sim.COMPILED, reason="the limits of the compiled engine cannot be replaced")
@pytest.mark.parametrize("block_rows", [1 << 19, 16])
def test_what_is_kept_does_not_depend_on_what_fitted_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_rows: int
) -> None:
    whole = kept(tmp_path / "whole", monkeypatch, 1 << 19, block_rows)
    assert whole[0]["requests"]["arrived"] > 60
    assert whole[0]["switching"]["loads"] > 4
    for most_rows in (0, 40):
        assert kept(tmp_path / f"limit {most_rows}", monkeypatch, most_rows, block_rows) == whole
    requests = parquet.ParquetFile(tmp_path / "whole" / "requests.parquet")
    assert requests.num_row_groups == -(-whole[0]["requests"]["arrived"] // block_rows)
    assert list(pd.read_parquet(tmp_path / "whole" / "requests.parquet")["request"]) == list(
        range(requests.metadata.num_rows)
    )


def test_what_the_recorder_saw_is_what_was_asked(outcome: Outcome) -> None:
    arrived = outcome.recorder.arrived
    asked = build_trace(outcome.scenario).select(slice(0, arrived))
    checksum = column_store.rows_checksum(np.arange(arrived), asked.prompt_tokens, asked.output_tokens)
    assert outcome.recorder.digest_sum == checksum


def test_a_run_without_requests_has_empty_tables(tmp_path: Path) -> None:
    played = simulate(parse_scenario(scenario_data(horizon_s=0.001), "test"))
    assert played.recorder.arrived == 0
    write_run(tmp_path / "run", played, summarize(played))
    for name in ("requests", "switches"):
        table = parquet.read_table(tmp_path / "run" / f"{name}.parquet")
        assert table.num_rows == 0 or name == "switches"
        assert table.schema.field("model").type == "string"


@pytest.mark.parametrize("policy", ["lru-swap", "static-split"])
def test_a_run_is_identified_before_it_happens(tmp_path: Path, policy: str) -> None:
    scenario = compose(RunOptions(scenario=write_scenario(tmp_path), policy=policy))
    outcome = simulate(scenario)
    assert identify(scenario, open_workload(scenario)) == outcome.run_id


def test_a_second_run_with_the_same_id_replaces_the_first(tmp_path: Path) -> None:
    options = RunOptions(scenario=write_scenario(tmp_path), out=tmp_path / "run")
    run(options)
    before = (tmp_path / "run" / "summary.json").stat().st_ino
    run(options)
    assert (tmp_path / "run" / "summary.json").stat().st_ino != before
    assert leftovers(tmp_path / "run") == sorted((*FILES, IDENTITY, SERIES))


def test_another_run_is_refused_before_it_starts(tmp_path: Path) -> None:
    path = write_scenario(tmp_path)
    run(RunOptions(scenario=path, out=tmp_path / "run"))
    kept = (tmp_path / "run" / "summary.json").read_bytes()

    def never(*_: object) -> None:
        raise AssertionError("the run has started")

    with pytest.raises(ConfigError, match="holds another run"):
        run(RunOptions(scenario=path, out=tmp_path / "run", seed=2), never)
    assert (tmp_path / "run" / "summary.json").read_bytes() == kept


def test_an_empty_folder_is_used_and_a_foreign_one_is_not(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / ".empty.123.partial").mkdir()  # what a killed run may leave
    check_target(empty, lambda: "id")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        check_target(foreign, lambda: "id")
    assert leftovers(foreign) == ["thesis.txt"]


@pytest.mark.parametrize("file", FILES[1:])
@pytest.mark.parametrize("left", ["nothing", "empty", "half"])
def test_half_a_run_is_made_whole_or_refused(
    tmp_path: Path, outcome: Outcome, summary: dict[str, Any], file: str, left: str
) -> None:
    target = tmp_path / "run"
    write_run(target, outcome, summary)
    whole = (target / file).read_bytes()
    if left == "nothing":
        (target / file).unlink()
    else:
        (target / file).write_bytes(whole[: len(whole) // 2] if left == "half" else b"")
    assert finished_run(target) is None
    lacking = "gpus" if file.startswith("gpus") else file.partition(".")[0]
    with pytest.raises(ConfigError, match=rf"holds half a run, {outcome.run_id} \({lacking}.* missing or damaged"):
        check_target(target, lambda: "another")
    check_target(target, lambda: outcome.run_id)
    write_run(target, outcome, summary)
    assert (target / file).read_bytes() == whole
    assert finished_run(target) == summary
    assert leftovers(target) == sorted([*FILES, IDENTITY])


def test_half_a_run_with_something_else_is_foreign(tmp_path: Path, outcome: Outcome, summary: dict[str, Any]) -> None:
    write_run(tmp_path / "run", outcome, summary)
    (tmp_path / "run" / "gpus.parquet").unlink()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        check_target(tmp_path / "run", lambda: outcome.run_id)
    (tmp_path / "run" / "thesis.txt").unlink()
    (tmp_path / "run" / "scenario.yaml").write_text("mine")  # it does not say whose run it was
    with pytest.raises(ConfigError, match="holds other files"):
        check_target(tmp_path / "run", lambda: outcome.run_id)


@pytest.mark.parametrize("present", ["absent", "empty", "same run"])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, outcome: Outcome, summary: dict[str, Any], monkeypatch: pytest.MonkeyPatch, present: str
) -> None:
    target = tmp_path / "run"
    if present == "same run":
        write_run(target, outcome, summary)
    if present == "empty":
        target.mkdir()
    before = leftovers(target) if target.exists() else None
    written: list[str] = []

    def full(path: Path, columns: dict[str, Any]) -> None:
        written.append(path.name)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.write_bytes(b"half")

    monkeypatch.setattr(run_folder, "_write_parquet", full)
    with pytest.raises(ConfigError, match="No space left on device"):
        write_run(target, outcome, summary)
    assert len(written) == 2
    assert (leftovers(target) if target.exists() else None) == before
    assert finished_run(target) == (summary if present == "same run" else None)
    assert leftovers(tmp_path) == ([] if present == "absent" else ["run"])


def test_a_full_disk_is_seen_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(run_folder, "put", full)
    with pytest.raises(ConfigError, match="No space left"):
        check_target(tmp_path / "run", lambda: "id")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("file", FILES[1:4])
def test_a_killed_run_leaves_nothing_that_looks_whole(tmp_path: Path, file: str) -> None:
    path = write_scenario(tmp_path)
    program = f"""
import os, sys
from pathlib import Path
from sim.results import run_folder
from sim.runs.run_one import RunOptions, run
write = run_folder._write_parquet
def killed(path, columns):
    write(path, columns)
    if path.name == {file!r}:
        os._exit(9)
run_folder._write_parquet = killed
run(RunOptions(scenario=Path({str(path)!r}), out=Path({str(tmp_path / "run")!r})))
"""
    finished = subprocess.run([sys.executable, "-c", program], check=False, timeout=120)
    assert finished.returncode == 9
    assert not (tmp_path / "run").exists()
    run(RunOptions(scenario=path, out=tmp_path / "run"))
    assert finished_run(tmp_path / "run") is not None
