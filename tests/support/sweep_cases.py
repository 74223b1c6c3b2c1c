"""What the tests of sweeps share: small grids and tasks, and the program as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from sim.runs.task import Task
from sim.scenario.scenario import parse_scenario
from tests.support.cli_cases import scenario_data
from tests.support.places import ROOT


def tasks_of(policies: tuple[str, ...] = ("lru-swap", "least-loaded"), seeds: int = 2, **changes: Any) -> list[Task]:
    """A minute of two models for each policy and seed."""
    return [
        Task(
            parse_scenario(scenario_data(seed=seed, policy={"name": policy}, **changes), "test"),
            {"policy": Path(policy).name, "seed": seed},
        )
        for policy in policies
        for seed in range(1, seeds + 1)
    ]


def write_grid(folder: Path, **parts: Any) -> Path:
    """A grid of the small scenario as folder/grid.yaml."""
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({"scenario": scenario_data(), **parts}, sort_keys=False))
    return path


def write_policy(folder: Path, name: str, decide: str) -> Path:
    """A policy whose decide does this."""
    path = folder / f"{name}.py"
    body = "\n        ".join(decide.splitlines())
    path.write_text(
        f"import os\nimport time\nfrom pathlib import Path\nfrom sim.policy import Policy\n\n\nclass Mine(Policy):\n"
        f'    """For a test."""\n\n    def decide(self, view):\n        {body}\n        return ()\n'
    )
    return path


def start_sweep(*arguments: object, **more: Any) -> subprocess.Popen[str]:
    """python -m sim sweep ..., as a process of its own, in a group of its own."""
    command = [sys.executable, "-m", "sim", "sweep", *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **more
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a store that does not depend on the machine: the table, and all of every run but its summary."""
    names = [folder / "runs.csv", folder / "points.json", *sorted((folder / "runs").rglob("*"))]
    files = [path for path in names if path.is_file() and path.name != "summary.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def workers_of(process: int) -> list[int]:
    """The processes that a process has started and that play runs, oldest first."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if not folder.name.isdigit() or int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1]) != process:
                continue
            if b"popen_loky" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has ended meanwhile
            continue
    return sorted(found)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
