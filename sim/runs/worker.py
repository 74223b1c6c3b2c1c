"""What a worker does: play one run, and hand back its summary and files, or in one line why there are none.

Runs in a process of this machine or of a cluster, whose disk need not be the driver's: a policy given by its path
travels as source, results travel as bytes unless both share a folder. Sent there by crews.py.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from sim.common.atomic_files import why
from sim.common.errors import ConfigError, MachineError, PolicyError, SimError, out_of_memory
from sim.common.time_limit import end_process
from sim.core.record.recorder import Recorder
from sim.core.record.series import Series
from sim.engine.engine import Outcome, simulate
from sim.engine.run_code import code_digests
from sim.policy.interface.policy import Policy
from sim.policy.loader import policy_of, read_policy
from sim.results.run_folder import put_run
from sim.results.summary import summarize
from sim.runs.identity import workload_key
from sim.runs.run_one import peak_rss_bytes
from sim.scenario.scenario import Scenario, TraceWorkload, is_code
from sim.workload.requests import Workload, open_workload


@dataclass(frozen=True)
class RunJob:
    """A run to be played. desk: a folder that driver and worker share, "" if none. tables: are files wanted?

    policy_source: of a policy that is given by path. version: that of the driver.
    """

    run_id: str
    scenario: Scenario
    version: str
    policy_source: bytes | None = None
    desk: str = ""
    tables: bool = False


@dataclass(frozen=True)
class Played:
    """What came of a job. error: why the run failed. fault: why this machine could not play it; no run's mistake.

    files: of the run, when there is no shared desk; else the folder <desk>/<run_id> is whole.
    """

    run_id: str
    summary: dict[str, Any] | None = None
    error: str | None = None
    traceback: str = ""
    fault: str | None = None
    files: dict[str, bytes] = field(default_factory=dict)


# Dask's workers may have several threads. Runs are plain Python, which gains nothing from them.
_one_at_a_time = threading.Lock()
_LOOK_S = 0.5


class _Fault(Exception):
    """This machine cannot play the run."""


def job_of(name: str, scenario: Scenario, version: str, desk: Path | None, tables: bool) -> RunJob:
    """The job of a run that has been identified; raises ConfigError if its policy's file has gone since."""
    policy = scenario.policy.name
    source = None
    if is_code(policy):
        try:
            source = Path(policy).read_bytes()
        except OSError as error:
            raise ConfigError(f"{policy}: cannot read the policy ({error.strerror}); check the path") from None
    if scenario.profiles is not None:  # a worker has another current folder
        scenario = scenario.model_copy(update={"profiles": str(Path(scenario.profiles).resolve())})
    return RunJob(name, scenario, version, source, "" if desk is None else str(desk), tables)


def play_one(job: RunJob) -> Played:
    """Play a job. Never raises but for what ends the process."""
    mark = Path(job.desk) / f"{job.run_id}.begun" if job.desk else None
    try:
        if mark is not None:
            mark.touch()
        with _one_at_a_time:
            return _play(job)
    except _Fault as fault:
        return Played(job.run_id, fault=f"{socket.gethostname()}: {fault}")
    except MachineError as error:
        return Played(job.run_id, fault=str(error))
    except SimError as error:
        return Played(job.run_id, error=" ".join(str(error).split()))
    except Exception as error:
        return _failed(job, error)
    finally:
        if mark is not None:
            mark.unlink(missing_ok=True)


def _failed(job: RunJob, error: Exception) -> Played:
    """What is said of a run that the machine could not play, or in which we have failed ourselves."""
    if out_of_memory(error):
        traceback.clear_frames(error.__traceback__)
        hint = "make it smaller or use fewer --jobs, and play it again with --retry-errors"
        return Played(job.run_id, error=f"out of memory; {hint}")
    if isinstance(error, OSError):
        where = error.filename or (Path(job.desk).parent if job.desk else f"{socket.gethostname()}: {_temporary()}")
        return Played(job.run_id, fault=f"{where}: {why(error)}; give it room")
    # A fault of ours in one run must not end the others; it is kept with its traceback.
    reason = f"internal error: {type(error).__name__}: {' '.join(str(error).split())}"
    return Played(job.run_id, error=reason, traceback="".join(traceback.format_exception(error)))


def _temporary() -> str:
    try:
        return tempfile.gettempdir()
    except OSError:
        return "no folder for temporary files"


def _play(job: RunJob) -> Played:
    if job.version != version():
        raise _Fault("the worker has another version of the simulator than the driver; install the same on both")
    if not job.desk:
        _look_for_files(job.scenario)
    desk = job.desk or None
    with tempfile.TemporaryDirectory(prefix="sim-", dir=desk) as folder, _policy_here(job, Path(folder)) as scenario:
        recorder = Recorder(Path(folder))
        recorder.series = Series() if job.tables else None
        try:
            chosen = _chosen(scenario, job)
            outcome = simulate(scenario, workload=_workload(scenario), recorder=recorder, chosen=chosen)
        except SimError as error:
            text = str(error).replace(scenario.policy.name, job.scenario.policy.name)
            raise type(error)(text) from None
        outcome = replace(outcome, scenario=job.scenario, policy_name=job.scenario.policy.name)
        if outcome.run_id != job.run_id:
            raise _Fault("trace, tables, policy or simulator are not what they were when the run was named; run again")
        summary = summarize(outcome, peak_rss_bytes())
        return Played(job.run_id, summary, files=_keep(job, outcome, summary, Path(folder)))


def _keep(job: RunJob, outcome: Outcome, summary: dict[str, Any], own: Path) -> dict[str, bytes]:
    """Write the run's files to the desk, or hand them back."""
    if not job.tables:
        return {}
    folder = (Path(job.desk) if job.desk else own) / job.run_id
    shutil.rmtree(folder, ignore_errors=True)
    put_run(folder, outcome, summary)
    return {} if job.desk else {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _look_for_files(scenario: Scenario) -> None:
    """Raises _Fault if the trace or the tables are not on this machine."""
    needed = [scenario.workload.file] if isinstance(scenario.workload, TraceWorkload) else []
    for path in (*needed, *([scenario.profiles] if scenario.profiles else [])):
        if not Path(path).exists():
            raise _Fault(f"{path} is not there; put it at the same path on every machine of the cluster")


def _chosen(scenario: Scenario, job: RunJob) -> tuple[Policy, str]:
    """The policy that plays. Raises _Fault if it should be installed on this machine and is not; SimError."""
    try:
        cls, digest = read_policy(scenario.policy.name)
    except PolicyError as error:
        if job.desk or is_code(scenario.policy.name):
            raise
        raise _Fault(f"{error}; install the same policies on every machine of the cluster") from None
    return policy_of(cls, scenario.policy.name, scenario.policy.parameters), digest


@contextmanager
def _policy_here(job: RunJob, folder: Path) -> Iterator[Scenario]:
    """The job's scenario, its policy's file made anew where this machine does not have the same."""
    scenario = job.scenario
    if job.policy_source is not None and not _same_file(Path(scenario.policy.name), job.policy_source):
        path = folder / Path(scenario.policy.name).name
        path.write_bytes(job.policy_source)
        policy = scenario.policy.model_copy(update={"name": str(path)})
        scenario = scenario.model_copy(update={"policy": policy})
    yield scenario


def _same_file(path: Path, content: bytes) -> bool:
    try:
        return path.read_bytes() == content
    except OSError:
        return False


@cache
def version() -> str:
    """Of the source that this process has loaded: what plays runs, and how they travel (this file)."""
    return hashlib.sha256(repr(code_digests()).encode() + Path(__file__).read_bytes()).hexdigest()


_open: dict[str, Workload] = {}


def _workload(scenario: Scenario) -> Workload:
    """The requests of a scenario; the last workload of this process stays open, for the next run that plays it."""
    key = workload_key(scenario)
    if isinstance(scenario.workload, TraceWorkload) and Path(scenario.workload.file).exists():
        facts = os.stat(scenario.workload.file)
        key += f"-{facts.st_size}-{facts.st_mtime_ns}"
    if key not in _open:
        _open.clear()
        _open[key] = open_workload(scenario)
    return _open[key]


def begin_worker(driver: int) -> None:
    """In a process that belongs to a driver on this machine: leave stdout and Ctrl-C to it, and go when it goes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver says when to stop
    end_process()
    os.dup2(2, 1)  # what a policy prints is not among the results
    threading.Thread(target=_go_with, args=(driver,), daemon=True).start()


def _go_with(driver: int) -> None:
    """Nobody wants the results of the workers of a killed sweep, nor their memory kept."""
    while os.getppid() == driver:
        time.sleep(_LOOK_S)
    os._exit(1)
