"""Whatever ends a command early, nothing half-written is taken for whole, and one line says what was kept."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.common import atomic_files
from sim.common.errors import ConfigError, MachineError
from sim.results.run_folder import finished_run
from sim.runs import worker
from sim.runs.execute import play
from sim.runs.run_one import RunOptions, run
from sim.runs.store import Store
from sim.runs.task import Machines
from sim.studies import capacity, compare
from tests.support.cli_cases import invoke, scenario_data, write_scenario
from tests.support.places import ROOT
from tests.support.sweep_cases import tasks_of, write_grid
from tests.tools import crash

HERE = ("--jobs", "0")
FULL, SMALL = "No space left on device", "File too large"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


@contextmanager
def mounted(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own in a new folder."""
    folder.mkdir()
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("only root can make a small file system, on Linux")
    mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextmanager
def short_files(size: int) -> Iterator[None]:
    """No file may grow beyond this, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def refused(result: Any, *words: str) -> str:
    """The one line of an error."""
    assert result.exit_code in (1, 2), result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in lines[0], (word, lines[0])
    return lines[0]


# --- kill -9


@pytest.mark.skipif(os.name != "posix", reason="no such signals there")
def test_kills_of_a_run_are_survived(tmp_path: Path) -> None:
    command = crash.commands(tmp_path)[1]  # into a folder that is there: the files come one by one
    assert "2 kills survived" in crash._killed(command, 2, np.random.default_rng(3))


def test_the_script_sees_what_is_broken(tmp_path: Path) -> None:
    """A check that finds nothing wrong with anything would survive all kills."""
    command = crash.commands(tmp_path)[0]
    run(RunOptions(scenario=tmp_path / "scenario.yaml", out=command.out))
    expected = crash.contents(command.out)
    (command.out / "gpus.parquet").write_bytes(b"PAR1 nothing of the kind PAR1")
    with pytest.raises(crash.Broken, match=r"gpus.parquet is not what it should be"):
        crash._check(command, expected)


def test_what_dead_processes_left_goes_and_what_live_ones_write_stays(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    mine = atomic_files.partial_of(tmp_path, "t.csv")
    dead, alive = (mine.with_name(mine.name.replace(str(os.getpid()), str(n))) for n in (gone.pid, os.getppid()))
    elsewhere = mine.with_name(mine.name.replace("t.csv.", "t.csv.0"))  # of another machine
    other = mine.with_name(dead.name.replace("t.csv", "u.csv"))
    for path in (alive, elsewhere, other):
        path.write_text("half")
    dead.mkdir()
    (dead / "half").write_text("half")
    atomic_files.partial_of(tmp_path, "t.csv")
    assert names(tmp_path) == sorted(path.name for path in (alive, elsewhere, other))


# --- no room


@pytest.mark.parametrize(
    ("how", "verb"),
    [
        *(("full disk", verb) for verb in ("run", "timeline", "report", "trace", "sweep", "compare", "capacity")),
        *(("short files", verb) for verb in ("run", "timeline", "trace", "sweep")),
        *(("read-only", verb) for verb in ("run", "timeline", "trace", "sweep")),
    ],
)
def test_no_room_is_one_line_and_nothing_half(tmp_path: Path, how: str, verb: str) -> None:
    scenario, home = write_scenario(tmp_path), tmp_path / "disk"
    kept = tmp_path / "kept"
    longer = ("--set", "workload.duration_s=4000"), ("--set", "workload.duration_s=600")
    if verb == "report":
        run(RunOptions(scenario=scenario, out=kept))
    study = ("--policies", "lru-swap", "--seeds", "2", *HERE)
    arguments: dict[str, tuple[object, ...]] = {
        "run": ("run", scenario, *longer[0], "--out", home / "x"),
        "timeline": ("run", scenario, *longer[1], "--timeline", home / "x.json", "--out", kept),
        "report": ("report", kept, "--out", home / "x.html"),
        "trace": ("trace", "generate", "servegen-like", "--set", "duration_s=3000", "--out", home / "x.csv"),
        "sweep": ("sweep", write_grid(tmp_path, vary={"seed": [1, 2]}), "--out", home / "x", *HERE),
        "compare": ("compare", scenario, "--no-bounds", *study, "--out", home / "x"),
        "capacity": ("capacity", scenario, *study, "--out", home / "x"),
    }
    before = names(kept) if kept.exists() else None
    if how == "short files":
        home.mkdir()
        with short_files(70_000 if verb in ("run", "timeline") else 5_000):
            line = refused(invoke(*arguments[verb]), SMALL)
    else:
        with mounted(home, "80k" if verb == "run" else "40k"):  # a run first sees whether there are 64
            if how == "read-only":
                mount("-o", "remount,ro", str(home))
            line = refused(invoke(*arguments[verb]), FULL if how == "full disk" else "Read-only file system")
            assert names(home) in ([], ["x"])
            assert names(home) == [] or verb in ("sweep", "compare", "capacity")
            assert not list(home.rglob("*.partial"))
            assert not list(home.rglob("c*.json"))
    if verb == "timeline":
        assert f"{kept} holds a finished run" in line
        assert finished_run(kept) is not None
    elif before is not None:
        assert names(kept) == before


def test_a_disk_that_fills_up_in_a_sweep_keeps_what_was_done(tmp_path: Path) -> None:
    grid = write_grid(tmp_path, vary={"seed": [1, 2, 3, 4, 5, 6, 7, 8]})
    with mounted(tmp_path / "disk", "200k") as home:
        line = refused(invoke("sweep", grid, "--out", home / "x", *HERE), FULL)
        there = len(Store(home / "x").run_ids())
        assert 0 < there < 8
        assert f"{there} of 8 runs are kept in {home / 'x'}, the same command goes on" in line
        assert Store(home / "x").error_ids() == []
        mount("-o", "remount,size=4m", str(home))
        result = invoke("sweep", grid, "--out", home / "x", *HERE)
        assert result.exit_code == 0, result.stderr
        assert f"{there} there already; {8 - there} to play" in result.stderr
        assert len(Store(home / "x").run_ids()) == 8


def test_a_scratch_disk_that_is_full_is_not_a_fault_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MachineError("/scratch: cannot set aside there what the run has seen so far")

    store = Store(tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(worker, "simulate", full)
        with pytest.raises(ConfigError, match=r"cannot set aside .*; 0 of 1 runs are kept in .*, the same command"):
            play(tasks_of(("lru-swap",), 1), store, Machines(0))
    assert store.error_ids() == []
    assert play(tasks_of(("lru-swap",), 1), store, Machines(0))[0].error is None


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full there")
@pytest.mark.parametrize("arguments", [("run", "mini.yaml", "--json"), ("policies",)])
def test_a_full_stdout_is_one_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    write_scenario(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "sim", *arguments]
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path, env=environment
        )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: standard output: {FULL}; ")
    assert done.stderr.count("\n") == 1


# --- Ctrl-C


@pytest.mark.skipif(os.name != "posix", reason="no such signals there")
def test_ctrl_c_leaves_no_half_trace(tmp_path: Path) -> None:
    out = tmp_path / "out" / "t.csv.gz"
    out.parent.mkdir()
    command = [sys.executable, "-m", "sim", "trace", "generate", "servegen-like", "--set", "duration_s=1e6"]
    process = subprocess.Popen(
        [*command, "--out", str(out)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    while process.poll() is None and not names(out.parent):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)
    assert (process.returncode, said[0]) == (130, ""), said
    assert said[1].splitlines()[-1] == "interrupted; what was not finished is not kept"
    assert "Traceback" not in said[1]
    assert names(out.parent) == []


@pytest.mark.parametrize(("verb", "name"), [(compare, "_compared"), (capacity, "_searched")])
def test_an_old_verdict_does_not_stand_beside_new_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: Any, name: str
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    word = verb.__name__.removeprefix("sim.studies.")
    scenario, out = write_scenario(tmp_path), tmp_path / "out"
    asked = (word, scenario, "--policies", "lru-swap", *HERE, "--out", out, "--seeds")
    assert invoke(*asked, 1).exit_code == 0
    files = {file: (out / file).read_bytes() for file in verb.FILES}
    with monkeypatch.context() as patch:
        patch.setattr(verb, name, interrupted)
        result = invoke(*asked, 2)
    assert result.exit_code == 130
    assert result.stderr.startswith("interrupted")
    assert not [file for file in verb.FILES if (out / file).exists()]
    assert invoke(*asked, 1).exit_code == 0
    assert {file: (out / file).read_bytes() for file in verb.FILES} == files


# --- out of memory

HUNGRY = '''"""Leaves the process no more memory than it has, once its work is done."""
import os, resource
from sim.policy import Load, Policy, Route

class Hungry(Policy):
    """For a test."""

    def decide(self, view):
        if os.environ.get("HUNGRY"):
            kept = [bytearray(1 << 20)]
            size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
            while True:
                kept.append(bytearray(1 << 20))
        return ()
'''


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no such limit there")
@pytest.mark.parametrize("verb", ["run", "sweep"])
def test_out_of_memory_is_one_line(tmp_path: Path, verb: str) -> None:
    policy, out = tmp_path / "hungry.py", tmp_path / "out"
    policy.write_text(HUNGRY)
    scenario = write_scenario(tmp_path)
    grid = write_grid(tmp_path, scenario=scenario_data(), vary={"policy": [str(policy)], "seed": [1]})
    arguments = {
        "run": ("run", scenario, "--policy", policy, "--out", out),
        "sweep": ("sweep", grid, "--out", out, "--jobs", "1"),
    }
    command = [sys.executable, "-m", "sim", *map(str, arguments[verb])]

    def program(*more: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *more], cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, **environment}
        )

    done = program(HUNGRY="1")
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "out of memory" in line
    if verb == "run":
        assert "nothing was kept" in line
        assert not out.exists()
        assert [name for name in names(tmp_path) if name.startswith(".")] == []
    else:
        assert "fewer --jobs" in line
        assert program("--retry-errors").returncode == 0
        assert len(Store(out).run_ids()) == 1
