"""sweep and play: every run once, kept whole, the same on any number of processes; errors are told and stop nothing."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock

from sim.common.errors import ConfigError
from sim.engine.engine import identify, simulate
from sim.results.run_folder import FILES, IDENTITY, SERIES
from sim.results.summary import summarize
from sim.runs import execute, identity, worker
from sim.runs.collect import flat, frame
from sim.runs.execute import play
from sim.runs.store import Store
from sim.runs.task import Machines, Progress, Result, Task
from sim.workload.requests import open_workload
from tests.support.cli_cases import invoke, scenario_data
from tests.support.sweep_cases import contents, tasks_of, write_grid, write_policy

HERE = Machines(0)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, list[Result]]:
    """Four runs, kept; not to be changed."""
    store = Store(tmp_path_factory.mktemp("done") / "store")
    return store, play(tasks_of(), store, HERE)


def copy_of(store: Store, target: Path) -> Store:
    shutil.copytree(store.folder, target)
    return Store(target)


def never(*_: object) -> None:
    raise AssertionError("a run has started")


# --- play


def test_results_are_those_of_single_runs(done: tuple[Store, list[Result]]) -> None:
    store, results = done
    assert [result.task for result in results] == tasks_of()
    for result in results:
        outcome = simulate(result.task.scenario)
        assert result.error is None
        assert result.run_id == outcome.run_id == identify(outcome.scenario, open_workload(outcome.scenario))
        assert result.summary is not None
        assert flat(result.summary) == flat(summarize(outcome))
        assert json.loads((store.folder_of(result.run_id) / "summary.json").read_text()) == result.summary
        there = [path.name for path in store.folder_of(result.run_id).iterdir()]
        assert sorted(there) == sorted([*FILES, IDENTITY, SERIES])


def test_the_same_on_any_number_of_processes(done: tuple[Store, list[Result]], tmp_path: Path) -> None:
    for jobs in (1, 2):
        store = Store(tmp_path / str(jobs))
        play(tasks_of(), store, Machines(jobs))
        assert contents(store.folder) == contents(done[0].folder)
        assert sorted(path.name for path in store.folder.iterdir()) == sorted(
            [".lock", "errors", "points.json", "runs", "runs.csv", "timings.csv"]
        )


def test_the_same_without_a_store(done: tuple[Store, list[Result]]) -> None:
    assert frame(play(tasks_of(), None, HERE)).equals(frame(done[1]))


def test_what_is_there_is_not_run_again(
    done: tuple[Store, list[Result]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = copy_of(done[0], tmp_path / "again")
    before = contents(store.folder)
    seen: list[Progress] = []
    monkeypatch.setattr(execute, "crew_of", never)
    assert frame(play(tasks_of(), store, HERE, seen.append)).equals(frame(done[1]))
    assert contents(store.folder) == before
    assert seen == [Progress(total=4, before=4, done=0, failed=0)]


def test_equal_tasks_are_one_run(tmp_path: Path) -> None:
    (task,) = tasks_of(("lru-swap",), 1)
    twin = Task(task.scenario, {"policy": "the same"})
    seen: list[Progress] = []
    store = Store(tmp_path / "store")
    results = play([task, twin, task], store, HERE, seen.append)
    assert [result.task for result in results] == [task, twin, task]
    assert len({result.run_id for result in results}) == 1
    assert seen[-1] == Progress(total=1, before=0, done=1, failed=0)
    assert len(store.run_ids()) == 1
    assert len(store.results()) == 2  # a row for each way to call it


def test_shared_work_is_done_once_and_names_stay_right(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    monkeypatch.setattr(identity, "open_workload", lambda scenario: opened.append(1) or open_workload(scenario))
    tasks = [*tasks_of(seeds=3), *tasks_of(("lru-swap",), 2, horizon_s=20), *tasks_of(("lru-swap",), 1, name="other")]
    named = execute.identified(tasks)
    assert len(opened) == 3
    assert [one.run_id for one in named] == [identify(t.scenario, open_workload(t.scenario)) for t in tasks]


def test_a_workload_stays_open_for_the_next_run_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    monkeypatch.setattr(worker, "_open", {})
    monkeypatch.setattr(worker, "open_workload", lambda scenario: opened.append(1) or open_workload(scenario))
    tasks = sorted(tasks_of(), key=lambda task: task.scenario.seed)
    play(tasks, None, HERE)
    assert len(opened) == 2


def test_a_changed_trace_is_another_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    head = "arrival_s,model,prompt_tokens,output_tokens\n"
    tasks = tasks_of(("lru-swap",), 1, workload={"file": str(trace)})
    found = []
    for tokens in (10, 20):
        trace.write_text(f"{head}1,chat,10,{tokens}\n")
        found += play(tasks, Store(tmp_path / "store"), HERE)
    one, other = found
    assert one.run_id != other.run_id
    assert [result.summary["tokens"]["output"] for result in found if result.summary] == [10, 20]
    assert Store(tmp_path / "store").run_ids() == sorted([one.run_id, other.run_id])


def test_a_file_that_changes_under_way_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_policy(tmp_path, "mine", "pass")
    make = worker.job_of

    def edited(*arguments: object) -> object:
        path.write_text(path.read_text() + "# edited\n")
        return make(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(execute, "job_of", edited)
    with pytest.raises(ConfigError, match="not what they were when the run was named"):
        play(tasks_of((str(path),), 1), Store(tmp_path / "store"), HERE)
    assert Store(tmp_path / "store").run_ids() == []


# --- errors


def test_a_bad_run_is_recorded_and_stops_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bad = write_policy(tmp_path, "bad", "print('to stdout')\nraise ValueError('no idea\\nat all')")
    broken = tmp_path / "broken.py"
    broken.write_text("def (:\n")
    deadly = write_policy(tmp_path, "deadly", "os.kill(os.getpid(), 9)")
    tasks = tasks_of((str(bad), "lru-swap", str(broken), str(deadly), "least-loaded"), 1)
    strange = [{**model, "quantization": "Q9"} for model in scenario_data()["models"]]
    nowhere = tasks_of(("lru-swap",), 1, models=strange)
    gone = tasks_of(("lru-swap",), 1, workload={"file": str(tmp_path / "gone.csv")})
    store = Store(tmp_path / "store")
    seen: list[Progress] = []
    results = play([*tasks, *nowhere, *gone], store, Machines(2), seen.append)
    errors = [result.error or "" for result in results]
    assert [bool(error) for error in errors] == [True, False, True, True, False, True, True]
    assert "ValueError: no idea at all" in errors[0]
    assert "cannot import the policy (SyntaxError" in errors[2]
    assert "the worker process died 3 times at it (by SIGKILL)" in errors[3]
    assert "quantization 'Q9'" in errors[5]
    assert "gone.csv" in errors[6]
    assert not any("\n" in error for error in errors)
    assert seen[-1].failed == 5
    assert capfd.readouterr().out == ""
    for result in results:
        kept = store.error(result.run_id)
        assert (None if kept is None else kept["error"]) == result.error
    table = pd.read_csv(store.folder / "runs.csv")
    assert list(table["error"].fillna("")) == errors
    assert frame(store.results())["run_id"].tolist() == [result.run_id for result in results]


def test_a_failure_stays_until_asked_or_mended(tmp_path: Path) -> None:
    count, go = tmp_path / "count", tmp_path / "go"
    path = write_policy(
        tmp_path, "moody", f"with open({str(count)!r}, 'a') as file:\n    file.write('x')\n"
        f"if not Path({str(go)!r}).exists():\n    raise ValueError('not today')",
    )  # fmt: skip
    tasks, store = tasks_of((str(path),), 1, horizon_s=0.001), Store(tmp_path / "store")
    write_policy(tmp_path, "unused", "pass")

    def once(**more: bool) -> str | None:
        (result,) = play(tasks, store, HERE, **more)
        return result.error

    tasks = tasks_of((str(path),), 1, horizon_s=20)
    assert "not today" in str(once())
    tried = count.read_text()
    assert "not today" in str(once())
    assert count.read_text() == tried
    go.touch()
    assert "not today" in str(once())
    assert once(retry_errors=True) is None
    assert list((store.folder / "errors").iterdir()) == []
    go.unlink()
    assert once() is None
    path.write_text(path.read_text() + "# mended\n")
    assert "not today" in str(once())  # another run, so it is tried


def test_a_fault_of_ours_is_recorded_with_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: object, **__: object) -> None:
        raise AssertionError("a law is broken")

    monkeypatch.setattr(worker, "simulate", faulty)
    store = Store(tmp_path / "store")
    (result,) = play(tasks_of(("lru-swap",), 1), store, HERE)
    assert result.error == "internal error: AssertionError: a law is broken"
    assert "in faulty" in (store.error(result.run_id) or {})["traceback"]


def test_a_full_disk_is_one_line_and_leaves_whole_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[object] = []
    write = worker.put_run

    def full(*arguments: object) -> None:
        if len(kept) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        kept.append(arguments)
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(worker, "put_run", full)
    store = Store(tmp_path / "store")
    said = rf"^{re.escape(str(store.folder))}: No space left on device; give it room; 2 of 4 runs are kept in "
    with pytest.raises(ConfigError, match=said):
        play(tasks_of(), store, HERE)
    assert len(store.run_ids()) == 2
    assert store.error_ids() == []
    assert len(pd.read_csv(store.folder / "runs.csv")) == 2
    monkeypatch.undo()
    play(tasks_of(), store, HERE)
    assert len(store.run_ids()) == 4


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a place where nobody may write, not even root")
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    result = invoke("sweep", write_grid(tmp_path), "--out", "/proc/self/sweep")
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    assert "cannot write there (" in result.stderr


# --- the folder


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text(""), "is a file"),
        (lambda path: path.symlink_to(path.parent / "nowhere"), "link to nowhere"),
        (lambda path: (path.mkdir(), (path / "thesis.txt").touch()), "holds other files"),
    ],
)
def test_a_foreign_folder_is_refused(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path / "out")  # type: ignore[operator]
    result = invoke("sweep", write_grid(tmp_path), "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with store.locked():
        with store.locked():  # by the same process it may be held twice
            pass
        other = FileLock(tmp_path / "store" / ".lock")
        assert other.is_locked is False
        result = invoke("sweep", write_grid(tmp_path), "--out", tmp_path / "store", "--jobs", 0)
    assert result.exit_code == 2
    assert "another process is writing there" in result.stderr
    with store.locked():
        pass


def test_leftovers_of_a_killed_sweep_go(done: tuple[Store, list[Result]], tmp_path: Path) -> None:
    store = copy_of(done[0], tmp_path / "store")
    (store.work / "abc").mkdir(parents=True)
    (store.work / "abc" / "summary.json").write_text("{")
    half, gone = store.run_ids()[:2]
    (store.folder_of(half) / "requests.parquet").unlink()
    (store.folder_of(gone) / "summary.json").write_text('{"run_id": "' + gone)
    play(tasks_of(), store, HERE)
    assert not store.work.exists()
    assert contents(store.folder) == contents(done[0].folder)


def test_summaries_alone_and_then_all(done: tuple[Store, list[Result]], tmp_path: Path) -> None:
    small = Store(tmp_path / "store", keep="summary")
    play(tasks_of(), small, Machines(1))
    for run_id in small.run_ids():
        kept = ["identity.json", "scenario.yaml", "summary.json"]
        assert sorted(path.name for path in small.folder_of(run_id).iterdir()) == kept
        for name in kept[:2]:
            assert (small.folder_of(run_id) / name).read_bytes() == (done[0].folder_of(run_id) / name).read_bytes()
    assert (small.folder / "runs.csv").read_bytes() == (done[0].folder / "runs.csv").read_bytes()
    assert len(Store(small.folder).run_ids()) == 4  # there, though without tables
    play(tasks_of(), Store(small.folder), HERE)
    assert contents(small.folder) == contents(done[0].folder)


def test_another_version_of_the_simulator_makes_other_runs(
    done: tuple[Store, list[Result]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = copy_of(done[0], tmp_path / "store")
    monkeypatch.setattr("sim.engine.engine.code_digests", lambda: (("sim/core/kv.py", "newer"),))
    results = play(tasks_of(("lru-swap",)), store, HERE)
    assert len(store.run_ids()) == 6
    assert [result.run_id for result in store.results()] == [result.run_id for result in results]
    assert len(store.results(every=True)) == 6
    assert len(pd.read_csv(store.folder / "runs.csv")) == 2


def test_an_old_worker_is_told_from_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "version", lambda: "older")
    with pytest.raises(ConfigError, match="another version of the simulator than the driver"):
        play(tasks_of(("lru-swap",), 1), None, HERE)
