"""Kills runs and sweeps at random moments, many times, and looks at what is left.

    python -m tests.tools.crash 200

Each kill is a SIGKILL to the program and all its workers. Afterwards every folder must be whole or refused in one line
by `report`, and once a command is let go to its end it must leave the same bytes as one that nobody disturbed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from sim.results.run_folder import FILES, IDENTITY, SERIES, finished_run
from tests.support.places import ROOT

_PATIENCE_S = 300.0
# What differs between two runs of the same name: how long they took.
_OF_THE_MACHINE = ("summary.json", "timings.csv")
_SCENARIO = {
    "name": "crash",
    "cluster": {"nodes": [{"name": "a", "host": "tr-pro-5995wx", "gpus": [{"gpu": "rtx-a6000"}]}]},
    "models": [{"name": "chat", "model": "Qwen2.5-3B"}, {"name": "code", "model": "Llama-3-8B"}],
    "workload": {
        "duration_s": 600,
        "traffic": [{"model": "chat", "rate_per_s": 1.0}, {"model": "code", "rate_per_s": 0.5}],
    },
    "policy": "lru-swap",
}


@dataclass(frozen=True)
class Command:
    """Something to be killed. whole: is all that it keeps there?"""

    name: str
    arguments: tuple[str, ...]
    out: Path
    whole: Callable[[Path], bool]


class Broken(Exception):
    """A kill that was not survived; says what was found."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", metavar="N", type=int, help="how many kills to survive")
    parser.add_argument("--seed", type=int, default=1, help="of the moments (default: 1)")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="crash-") as folder:
        try:
            print(survived(Path(folder), asked.kills, asked.seed, lambda line: print(line, flush=True)))
        except Broken as broken:
            print(f"error: {broken} (seed {asked.seed})", file=sys.stderr)
            raise SystemExit(1) from None


def survived(folder: Path, kills: int, seed: int, tell: Callable[[str], None]) -> str:
    """Kill so often, by turns each of the commands; what came of it, in words. Raises Broken."""
    chance = np.random.default_rng(seed)
    told = []
    jobs = commands(folder)
    for number, command in enumerate(jobs):
        share = kills // len(jobs) + (number < kills % len(jobs))
        if share:
            told.append(_killed(command, share, chance))
            tell(told[-1])
    return f"{kills} kills survived"


def commands(folder: Path) -> list[Command]:
    """A run, a run into a folder that is there already, a run with a timeline, a sweep and a comparison."""
    scenario, grid = folder / "scenario.yaml", folder / "grid.yaml"
    scenario.write_text(yaml.safe_dump(_SCENARIO))
    vary = {"policy": ["lru-swap", "least-loaded"], "seed": "1..3"}
    grid.write_text(yaml.safe_dump({"scenario": _SCENARIO, "vary": vary}))
    run, there, timed, swept, compared = (folder / name for name in ("run", "there", "timed", "sweep", "compare"))
    there.mkdir()
    timeline = ("--timeline", str(timed / "t.json.gz"))
    study = ("--policies", "lru-swap,least-loaded", "--seeds", "2", "--jobs", "2", "--no-bounds")
    return [
        Command("run", ("run", str(scenario)), run, _whole_run),
        Command("run into an empty folder", ("run", str(scenario)), there, _whole_run),
        Command("run --timeline", ("run", str(scenario), *timeline), timed / "run", _whole_run),
        Command(
            "sweep", ("sweep", str(grid), "--jobs", "2"), swept, lambda out: len(list((out / "runs").glob("*"))) == 6
        ),
        Command(
            "compare", ("compare", str(scenario), *study), compared, lambda out: (out / "comparison.csv").is_file()
        ),
    ]


def _whole_run(out: Path) -> bool:
    return finished_run(out) is not None


def _killed(command: Command, kills: int, chance: np.random.Generator) -> str:
    """One undisturbed command, and then kills between its begin and its end."""
    fresh = command.out.exists()
    took_s = _to_the_end(command)
    expected = contents(command.out)
    whole = 0
    _clear(command.out, fresh)
    for number in range(kills):
        if number % 2:
            _strike(command, _writing, chance.uniform(0.0, 0.1))
        else:
            _strike(command, None, chance.uniform(0.0, 1.1 * took_s))
        whole += _check(command, expected)
        if command.whole(command.out) and chance.random() < 0.5:
            _clear(command.out, fresh)
    _to_the_end(command)
    if contents(command.out) != expected:
        raise Broken(f"{command.name}: what is there in the end is not what an undisturbed command leaves")
    if left := [path.name for path in command.out.parent.iterdir() if path.name.endswith(".partial")]:
        raise Broken(f"{command.name}: {left} is left over")
    return f"{command.name}: {kills} kills survived, half of them while it wrote; {whole} times all was there already"


def _start(command: Command) -> subprocess.Popen[bytes]:
    _before(command)
    line = [sys.executable, "-m", "sim", *command.arguments, "--out", str(command.out)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(line, cwd=ROOT, start_new_session=True, **quiet)  # type: ignore[call-overload,no-any-return]


def _before(command: Command) -> None:
    command.out.parent.mkdir(exist_ok=True)
    for path in _timelines(command):  # it is not written over
        path.unlink(missing_ok=True)


def _timelines(command: Command) -> Iterator[Path]:
    return (Path(word) for word in command.arguments if word.endswith(".json.gz"))


def _to_the_end(command: Command) -> float:
    begin_s = time.monotonic()
    process = _start(command)
    said = process.communicate(timeout=_PATIENCE_S)[1].decode()
    if process.returncode != 0:
        raise Broken(f"{command.name}: does not go on after kills: {said.strip()[-300:]}")
    return time.monotonic() - begin_s


def _writing(command: Command) -> bool:
    """Is something under a hidden name, where it is made before it is moved?"""
    homes = (command.out.parent, command.out, command.out / ".work")
    return any(path.name.startswith(".") or home.name == ".work" for home in homes for path in home.glob("*"))


def _strike(command: Command, when: Callable[[Command], bool] | None, after_s: float) -> None:
    """A kill, so long after the begin or after it is `when`."""
    process = _start(command)
    while when is not None and process.poll() is None and not when(command):
        time.sleep(0.001)
    time.sleep(after_s)
    os.killpg(process.pid, signal.SIGKILL)  # also if it has ended: not yet waited for, its number is still its own
    said = process.communicate()[1].decode()
    if process.returncode not in (0, -signal.SIGKILL):
        raise Broken(f"{command.name}: ended by itself with {process.returncode}: {said.strip()[-300:]}")


def _check(command: Command, expected: dict[str, bytes]) -> bool:
    """What is there is right as far as it goes, and where it is not all, nobody takes it for that."""
    whole = command.whole(command.out)
    found = contents(command.out)
    wrong = [name for name, data in found.items() if _final(name, whole) and expected.get(name) != data]
    if wrong:
        raise Broken(f"{command.name}: {wrong[0]} is not what it should be")
    for path in _timelines(command):
        if path.exists() and subprocess.run(["gzip", "-t", str(path)], check=False).returncode:
            raise Broken(f"{command.name}: {path.name} is cut off")
    report = subprocess.run(
        [sys.executable, "-m", "sim", "report", str(command.out), "--out", str(command.out.parent / "r.md")],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=_PATIENCE_S,
    )  # fmt: skip
    shutil.rmtree(command.out.parent / "r-figures", ignore_errors=True)
    (command.out.parent / "r.md").unlink(missing_ok=True)
    if report.returncode not in (0, 2) or report.stderr.count("\n") > 1 or "Traceback" in report.stderr:
        raise Broken(f"{command.name}: report: {report.stderr.strip()[-300:]}")
    if report.returncode == 0 and command.whole is _whole_run and not whole:
        raise Broken(f"{command.name}: a report of half a run")
    return whole


def _final(name: str, whole: bool) -> bool:
    """A run that is there is there for good; tables of runs grow with them."""
    return whole if "/" not in name and name not in (*FILES, IDENTITY, SERIES) else True


def contents(out: Path) -> dict[str, bytes]:
    """Every file that others may look at, by its path, without what depends on the machine."""
    if not out.is_dir():
        return {}
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    named = {str(path.relative_to(out)): path for path in files}
    seen = {name: path for name, path in named.items() if not any(part.startswith(".") for part in Path(name).parts)}
    return {name: path.read_bytes() for name, path in seen.items() if path.name not in _OF_THE_MACHINE}


def _clear(out: Path, fresh: bool) -> None:
    shutil.rmtree(out)
    if fresh:
        out.mkdir()


if __name__ == "__main__":
    main()
