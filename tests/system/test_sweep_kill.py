"""A sweep that is killed at any moment goes on by the same command: nothing lost, nothing twice, the same table."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from sim.runs.execute import play
from sim.runs.store import Store
from sim.runs.task import Machines
from sim.studies.grid import read_grid
from tests.support.cli_cases import scenario_data
from tests.support.sweep_cases import alive, contents, start_sweep, workers_of, write_grid, write_policy

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds workers in /proc")

KILLS, RUNS = int(os.environ.get("SWEEP_KILLS", "4")), 10


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten runs, each of which takes a few tenths of a second at least."""
    folder = tmp_path_factory.mktemp("grid")
    write_policy(folder, "slow", "if not hasattr(self, 'begun'):\n    self.begun = time.sleep(0.2)")
    vary = {"policy": ["lru-swap", "slow.py"], "seed": f"1..{RUNS // 2}"}
    workload = {**scenario_data()["workload"], "duration_s": 300}
    return write_grid(folder, scenario=scenario_data(workload=workload), vary=vary)


@pytest.fixture(scope="module")
def expected(grid: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What an uninterrupted sweep leaves."""
    store = Store(tmp_path_factory.mktemp("expected") / "store")
    play(read_grid(grid).tasks, store, Machines(0))
    return contents(store.folder)


def moments(number: int) -> Iterator[tuple[int, float]]:
    """After how many finished runs to strike, and how many seconds later."""
    chance = np.random.default_rng(7)
    return zip(sorted(chance.integers(0, RUNS - 2, number).tolist()), chance.uniform(0, 0.4, number), strict=True)


def wait_for(folder: Path, runs: int, process: int) -> list[int]:
    """The workers at work once so many runs are there; none if the sweep has ended."""
    while alive(process) and (not (folder / ".work").is_dir() or len(os.listdir(folder / "runs")) < runs):
        time.sleep(0.01)
    while alive(process) and not (found := workers_of(process)):
        time.sleep(0.01)
    return found if alive(process) else []


def gone(processes: list[int]) -> bool:
    until_s = time.monotonic() + 10
    while any(alive(process) for process in processes) and time.monotonic() < until_s:
        time.sleep(0.05)
    return not any(alive(process) for process in processes)


def test_kill_9_of_the_sweep_again_and_again(grid: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    inodes: dict[str, int] = {}
    for runs, later_s in moments(KILLS):
        sweep = start_sweep(grid, "--out", out, "--jobs", 2)
        workers = wait_for(out, runs, sweep.pid)
        time.sleep(later_s)
        sweep.kill()
        sweep.communicate()
        assert gone(workers), "workers outlive their sweep"
        for name, inode in inodes.items():
            assert (out / "runs" / name).stat().st_ino == inode, "a finished run was run again"
        inodes = {name: (out / "runs" / name).stat().st_ino for name in os.listdir(out / "runs")}
    assert inodes
    last = start_sweep(grid, "--out", out, "--jobs", 2)
    said = last.communicate(timeout=120)[1]
    assert last.returncode == 0, said
    assert f"{len(inodes)} there already; {RUNS - len(inodes)} to play" in said
    assert contents(out) == expected
    assert not (out / ".work").exists()


def test_kill_9_of_workers(grid: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    sweep = start_sweep(grid, "--out", out, "--jobs", 2)
    killed = 0
    for runs in (1, RUNS - 4):
        for worker in wait_for(out, runs, sweep.pid)[:1]:
            os.kill(worker, signal.SIGKILL)
            killed += 1
    said = sweep.communicate(timeout=120)[1]
    assert sweep.returncode == 0, said
    assert killed
    assert contents(out) == expected


def test_ctrl_c_says_what_was_kept(grid: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    # A shell sends it to all of the group, workers too. A background job, as the tests may be, begins by ignoring it.
    out = tmp_path / "out"
    sweep = start_sweep(
        grid, "--out", out, "--jobs", 2, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
    )
    workers = wait_for(out, 2, sweep.pid)
    assert workers
    os.killpg(sweep.pid, signal.SIGINT)
    said = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, said
    *_, last = said[1].splitlines()
    there = len(os.listdir(out / "runs"))
    assert (
        last
        == f"interrupted after {there} of {RUNS} runs; what has finished is kept in {out}, the same command goes on"
    )
    assert "Traceback" not in said[1]
    assert said[0] == ""
    assert gone(workers)
    assert not (out / ".work").exists()
    assert len((out / "runs.csv").read_text().splitlines()) == there + 1
    play(read_grid(grid).tasks, Store(out), Machines(0))
    assert contents(out) == expected


def test_two_sweeps_in_one_folder(grid: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = start_sweep(grid, "--out", out, "--jobs", 1)
    wait_for(out, 1, first.pid)
    second = start_sweep(grid, "--out", out, "--jobs", 1)
    said = second.communicate(timeout=60)
    assert (second.returncode, said[0]) == (2, "")
    assert "another process is writing there" in said[1]
    assert first.wait(timeout=120) == 0
    first.communicate()
    assert contents(out) == expected
