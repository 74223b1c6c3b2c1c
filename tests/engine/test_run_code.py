"""What names a run is what it is played with: files of sim as the imports say, its policy, its tables, and no more."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sim.engine.engine import prepare
from sim.engine.run_code import ROOTS, code_digests, run_files
from sim.policy.loader import part_files
from sim.runs.run_one import RunOptions, compose, run
from tests.support.cli_cases import scenario_data, write_scenario
from tests.support.places import ROOT

SIM = ROOT / "sim"


def file_of(module: str) -> Path | None:
    """The file of a dotted name below `sim.`, if that is a module."""
    base = SIM / module.replace(".", "/")
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """All within a node but what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from executed(child)


def imported(path: Path) -> Iterator[str]:
    """The modules of sim that a file imports, those inside functions too, with the packages on the way to them."""
    for node in executed(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            steps = name.split(".")
            if steps[0] == "sim":
                yield from (".".join(steps[1 : end + 1]) for end in range(1, len(steps)))


def reached(roots: tuple[str, ...]) -> dict[Path, str]:
    """Every file that is imported on the way from the roots, and who asked for it first."""
    found: dict[Path, str] = {}
    waiting = [(f"sim.{root}", root) for root in roots]
    while waiting:
        asker, module = waiting.pop()
        path = file_of(module)
        if path is not None and path not in found:
            found[path] = asker
            waiting += [(str(path.relative_to(ROOT)), name) for name in imported(path)]
    return found


def test_the_list_is_what_the_imports_of_a_run_say() -> None:
    needed, listed = reached(ROOTS), set(run_files())
    wrong = [f"add {path.relative_to(SIM)} (imported by {needed[path]})" for path in sorted(needed.keys() - listed)]
    wrong += [f"remove {path.relative_to(SIM)} (no run imports it)" for path in sorted(listed - needed.keys())]
    assert not wrong, "sim/engine/run_code.py, _NAMES: " + "; ".join(wrong)


def test_no_import_of_a_run_is_hidden_from_the_list() -> None:
    """Only names of policies' second halves are imported by a text; these are hashed with their policy."""
    hidden = [path for path in run_files() if "import_module" in path.read_text(encoding="utf-8")]
    assert hidden == [SIM / "policy" / "__init__.py"]


def test_what_shows_and_sends_runs_is_not_among_what_plays_them() -> None:
    packages = {name.split("/")[1] for name, _ in code_digests()}
    needed = {"common", "core", "engine", "policy", "profiles", "results", "scenario", "traces", "workload"}
    assert packages == needed


def test_a_part_counts_that_is_imported_from_the_face() -> None:
    by_home = part_files(b"from policies._parts.prism_slack import SlackQueue\n")
    by_face = part_files(b"from sim.policy import (\n    Policy,\n    SlackQueue,\n)\n")
    assert [path.stem for path in by_home] == ["moore_hodgson", "prism_slack"]  # the one imports the other
    assert by_face == by_home == part_files(b"from sim import policy\n\npolicy.SlackQueue(due_s)\n")
    assert part_files(b"from sim.policy import Policy, Route\n") == []


# --- what is in the folder of a run


def test_the_list_stands_in_the_folder_of_a_run(tmp_path: Path) -> None:
    summary = run(RunOptions(scenario=write_scenario(tmp_path), out=tmp_path / "run"))
    kept = json.loads((tmp_path / "run" / "identity.json").read_text())
    found = kept["ingredients"]
    assert kept["run_id"] == summary["run_id"]
    assert dict(code_digests()).items() < found.items()
    assert {
        "trace",
        "policy",
        "sim/core/serving.py",
        "sim/results/summary.py",
        "sim/policy/kit/prices.py",
    } < found.keys()
    assert not [name for name in found if name.startswith(("sim/cli", "sim/report", "sim/runs", "/"))]


@pytest.mark.parametrize(
    ("file", "row", "column", "used"),
    [
        ("gpus.csv", "rtx-a6000,", "memory_gib", True),
        ("gpus.csv", "rtx-a6000,", "usd_per_hour", True),
        ("gpus.csv", "h100,", "memory_gib", False),
        ("nodes.csv", "tr-pro-5995wx,", "disk_gb_s", True),
        ("nodes.csv", "i7-8700,", "disk_gb_s", False),
        ("models.csv", "Qwen2.5-3B,FP16,", "layer_bytes", True),
        ("models.csv", "Qwen2.5-3B,Q8_0,", "layer_bytes", False),
        ("tables/rtx-a6000--tr-pro-5995wx--hf-transformers/decode.csv", "Llama-3-8B,FP16,", "step_s", True),
        ("tables/rtx-a6000--tr-pro-5995wx--hf-transformers/switch.csv", "Llama-3-8B,FP16,", "free_s", True),
        ("tables/rtx-a6000--tr-pro-5995wx--hf-transformers/decode.csv", "Qwen3-8B,FP16,", "step_s", False),
        ("tables/rtx-a6000--tr-pro-5995wx--llama.cpp/decode.csv", "Llama-3-8B,FP16,", "step_s", False),
    ],
)
def test_the_numbers_that_a_run_takes_from_tables_name_it(
    tmp_path: Path, file: str, row: str, column: str, used: bool
) -> None:
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    path = tmp_path / "profiles" / file
    scenario = compose(RunOptions(scenario=scenario_data(profiles=str(tmp_path / "profiles"))))
    before = prepare(scenario)[2]
    lines = path.read_text(encoding="utf-8").splitlines()
    place = lines[0].split(",").index(column)
    number = next(number for number, line in enumerate(lines) if line.startswith(row))
    cells = lines[number].split(",")
    cells[place] = f"{int(cells[place]) + 1}" if cells[place].isdigit() else f"{float(cells[place]) * 1.001!r}"
    lines[number] = ",".join(cells)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert (prepare(scenario)[2] != before) is used


# --- what an edit does to a store, in a copy of the tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a sweep needs, and a grid of two policies, one of which has parts."""
    copy = tmp_path / "tree"
    for name in ("sim", "policies"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "_compiled"))
    for name in ("profiles", "traces", "pyproject.toml"):
        (copy / name).symlink_to(ROOT / name)
    grid = {"scenario": scenario_data(), "vary": {"policy": ["lru-swap", "prism"]}}
    (copy / "grid.yaml").write_text(yaml.safe_dump(grid))
    return copy


def sweep(tree: Path) -> dict[str, dict[str, int]]:
    """Run the sweep in the tree; by policy, its runs in the store with the inode of their summary."""
    command = [sys.executable, "-m", "sim", "sweep", "grid.yaml", "--out", "store", "--jobs", "0"]
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, int]] = {}
    for path in sorted(tree.glob("store/runs/*/summary.json")):
        policy = json.loads(path.read_text())["policy"]
        found.setdefault(policy, {})[path.parent.name] = path.stat().st_ino
    return found


def edit(path: Path) -> None:
    """Another word in a module's docstring."""
    text = path.read_text(encoding="utf-8")
    assert text.startswith('"""')
    path.write_text('"""Edited. ' + text[3:], encoding="utf-8")


def test_only_edits_of_what_plays_a_run_begin_it_anew(tree: Path) -> None:
    first = sweep(tree)
    assert {policy: len(runs) for policy, runs in first.items()} == {"lru-swap": 1, "prism": 1}
    for name in ("report/page.py", "cli/sweep.py", "cli/main.py", "runs/execute.py", "studies/sweep.py", "__init__.py"):
        edit(tree / "sim" / name)
    assert sweep(tree) == first, "nothing was played"
    edit(tree / "policies" / "_parts" / "moore_hodgson.py")
    second = sweep(tree)
    assert second["lru-swap"] == first["lru-swap"]
    assert len(second["prism"]) == 2
    edit(tree / "sim" / "core" / "serving.py")
    third = sweep(tree)
    assert {policy: len(runs) for policy, runs in third.items()} == {"lru-swap": 2, "prism": 3}
