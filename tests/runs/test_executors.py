"""Sweeps on real local Dask and Ray clusters, a worker killed in the middle: the same files as on this machine."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from sim.common.errors import ConfigError
from sim.runs.execute import identified, play
from sim.runs.store import Store
from sim.runs.task import Machines, Progress
from sim.runs.worker import RunJob, job_of, play_one, version
from sim.studies.grid import read_grid
from tests.support.cli_cases import invoke, scenario_data
from tests.support.sweep_cases import ROOT, contents, tasks_of, write_grid, write_policy

has_dask = pytest.mark.skipif(find_spec("distributed") is None, reason="needs the extra dask")
has_ray = pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
in_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds Ray's workers in /proc")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight runs: by name, and by the path of a file, which takes a while."""
    folder = tmp_path_factory.mktemp("grid")
    write_policy(folder, "slow", "if not hasattr(self, 'begun'):\n    self.begun = time.sleep(0.3)")
    workload = {**scenario_data()["workload"], "duration_s": 120}
    return write_grid(folder, scenario=scenario_data(workload=workload), vary={
        "policy": ["slow.py", "lru-swap"], "seed": "1..4"
    })  # fmt: skip


@pytest.fixture(scope="module")
def expected(grid: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    store = Store(tmp_path_factory.mktemp("expected") / "store")
    play(read_grid(grid).tasks, store, Machines(0))
    return contents(store.folder)


class Cluster:
    """Processes of ours, in groups of their own; all of them end with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = ""
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_DISABLE_IMPORT_WARNING": "1"}
        with (self.folder / f"log-{len(self.processes)}").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments], cwd=self.folder, env=environment, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def stop(self) -> None:
        everyone = [child for process in self.processes for child in descendants(process.pid)]
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for child in everyone:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue


def descendants(process: int) -> list[int]:
    """All processes that a process and its children have started."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    found, level = [], [process]
    while level:
        level = [child for child, parent in parents.items() if parent in level]
        found += level
    return found


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("dask"))
    told = cluster.folder / "scheduler.json"
    common = ("--no-dashboard",)
    cluster.start(
        "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(told), *common
    )
    try:
        until_s = time.monotonic() + 60
        while not cluster.address and time.monotonic() < until_s:
            time.sleep(0.1)
            try:
                cluster.address = json.loads(told.read_text())["address"]
            except (OSError, ValueError):
                continue
        assert cluster.address, (cluster.folder / "log-0").read_text()
        for _ in range(2):
            dask_worker(cluster)
        yield cluster
    finally:
        cluster.stop()


def dask_worker(cluster: Cluster) -> subprocess.Popen[bytes]:
    return cluster.start(
        "distributed.cli.dask_worker", cluster.address, "--nthreads", "1", "--no-nanny", "--no-dashboard",
        "--memory-limit", "1GiB", "--local-directory", str(cluster.folder),
    )  # fmt: skip


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("ray"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    cluster.address = f"127.0.0.1:{port}"
    head = cluster.start(
        "ray.scripts.scripts", "start", "--head", "--block", "--port", str(port), "--node-ip-address", "127.0.0.1",
        "--num-cpus", "2", "--object-store-memory", "80000000", "--include-dashboard=false", "--disable-usage-stats",
    )  # fmt: skip
    try:
        until_s = time.monotonic() + 90
        while b"Ray runtime started" not in (cluster.folder / "log-0").read_bytes() and time.monotonic() < until_s:
            assert head.poll() is None, (cluster.folder / "log-0").read_text()
            time.sleep(0.2)
        yield cluster
    finally:
        cluster.stop()


def kept(grid: Path, out: Path, machines: Machines, strike: Callable[[], None]) -> dict[str, bytes]:
    """What a sweep leaves, with a strike after its second run."""
    struck: list[int] = []

    def follow(progress: Progress) -> None:
        if progress.done >= 2 and not struck:
            struck.append(progress.done)
            strike()

    results = play(read_grid(grid).tasks, Store(out), machines, follow)
    assert struck
    assert [result.error for result in results] == [None] * 8
    return contents(out)


@has_dask
def test_dask_with_a_worker_killed(dask: Cluster, grid: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    def strike() -> None:
        dask.processes[1].kill()
        dask.processes[1].wait()
        dask_worker(dask)

    machines = Machines(engine="dask", address=dask.address)
    assert kept(grid, tmp_path / "out", machines, strike) == expected
    for path in (tmp_path / "out" / "runs").iterdir():
        assert json.loads((path / "summary.json").read_text())["run_id"] == path.name


@has_dask
def test_dask_as_a_command(dask: Cluster, tmp_path: Path) -> None:
    write_policy(tmp_path, "bad", "print('printed')\nraise ValueError('no idea')")
    path = write_grid(tmp_path, vary={"policy": ["bad.py", "lru-swap"], "seed": [1]})
    arguments = ("sweep", path, "--out", tmp_path / "out", "--engine", "dask", "--scheduler", dask.address)
    first = invoke(*arguments, "--keep", "summary", "--json")
    assert first.exit_code == 1
    assert "no idea" in first.stderr
    assert [row["error"] is None for row in json.loads(first.stdout)["rows"]] == [False, True]
    again = invoke(*arguments, "--keep", "summary")
    assert "2 different runs, 2 there already" in again.stderr


@has_ray
@in_proc
def test_ray_with_a_worker_killed(ray: Cluster, grid: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    killed: list[int] = []

    def strike() -> None:
        for process in descendants(ray.processes[0].pid):
            if b"ray::play_one" in Path(f"/proc/{process}/cmdline").read_bytes():
                os.kill(process, signal.SIGKILL)
                killed.append(process)
                return

    machines = Machines(engine="ray", address=ray.address)
    assert kept(grid, tmp_path / "out", machines, strike) == expected
    assert killed


@pytest.mark.parametrize(
    ("engine", "mark"), [pytest.param("dask", "Dask", marks=has_dask), pytest.param("ray", "Ray", marks=has_ray)]
)
def test_a_cluster_must_be_named(engine: str, mark: str, tmp_path: Path) -> None:
    result = invoke("sweep", write_grid(tmp_path, vary={"seed": [1]}), "--out", tmp_path / "out", "--engine", engine)
    assert result.exit_code == 2
    assert f"--engine {engine}: give the address" in result.stderr.splitlines()[-1]


@has_dask
def test_a_scheduler_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.runs.dask_executor.PATIENCE_S", 1)
    with pytest.raises(ConfigError, match="no Dask scheduler answers at tcp://127"):
        play(tasks_of(("lru-swap",), 1), Store(tmp_path / "out"), Machines(engine="dask", address="tcp://127.0.0.1:9"))


def test_bad_machines_are_refused(tmp_path: Path) -> None:
    path = write_grid(tmp_path, vary={"seed": [1]})
    for given, message in (
        (("--engine", "dusk"), "did you mean 'dask'?"),
        (("--address", "127.0.0.1:1"), "needs --engine dask or --engine ray"),
        (("--keep", "some"), "known: all, summary"),
        (("--jobs", "-1"), "--jobs"),
    ):
        result = invoke("sweep", path, "--out", tmp_path / "out", *given)
        assert result.exit_code == 2, result.output
        assert message in result.stderr.splitlines()[-1]


# --- a worker on another machine, played here


def job(tmp_path: Path, **changes: object) -> RunJob:
    """A job as a cluster gets it, there and back through pickle."""
    path = write_policy(tmp_path, "mine", "if False:\n    raise ValueError")
    (one,) = identified(tasks_of((str(path),), 1, **changes))
    assert one.error is None
    made: RunJob = pickle.loads(pickle.dumps(job_of(one.run_id, one.task.scenario, version(), None, True)))
    return made


def test_a_policy_by_path_travels_as_its_source(tmp_path: Path) -> None:
    one = job(tmp_path)
    at_home = play_one(one)
    (tmp_path / "mine.py").unlink()
    away = play_one(one)
    assert away.error is away.fault is None
    assert away.run_id == one.run_id
    assert {**away.files, "summary.json": b""} == {**at_home.files, "summary.json": b""}
    assert away.summary is not None
    assert away.summary["policy"] == str(tmp_path / "mine.py")
    (tmp_path / "mine.py").write_text("raise ValueError('another file in its place')\n")
    assert play_one(one).files.keys() == at_home.files.keys()


def test_an_error_names_the_users_own_file(tmp_path: Path) -> None:
    path = write_policy(tmp_path, "bad", "raise ValueError('no idea')")
    (one,) = identified(tasks_of((str(path),), 1))
    made = job_of(one.run_id, one.task.scenario, version(), None, True)
    there = play_one(made)
    path.unlink()
    assert play_one(made).error == there.error
    assert str(path) in str(there.error)


def test_what_does_not_travel_is_told(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,model,prompt_tokens,output_tokens\n1,chat,10,10\n")
    one = job(tmp_path, workload={"file": str(trace)})
    assert play_one(one).fault is None
    trace.write_text("arrival_s,model,prompt_tokens,output_tokens\n1,chat,10,11\n")
    assert "are not what they were" in str(play_one(one).fault)
    trace.unlink()
    fault = str(play_one(one).fault)
    assert str(trace) in fault
    assert "put it at the same path on every machine" in fault
    assert socket.gethostname() in fault
