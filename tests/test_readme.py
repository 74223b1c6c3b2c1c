"""The README keeps its word: its commands are those that `.ci/run` executes, its examples run, its links lead
somewhere.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sim.policy.loader import policy_class

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def run_python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


def test_the_first_two_commands_are_one_line_each_and_complete() -> None:
    main_job, tests = (block.strip() for block in blocks("sh")[:2])
    for command in (main_job, tests):
        assert "\n" not in command
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt ")
    assert main_job.endswith("-m sim run --policy residency-aware")
    assert tests.endswith("-m pytest -n auto")
    screen = README.split("## What it is for")[0]
    assert main_job in screen
    assert tests in screen


def test_the_main_job_prints_its_tables() -> None:
    arguments = blocks("sh")[0].strip().split(".venv/bin/python ")[1].split()
    result = run_python(*arguments)
    assert result.returncode == 0, result.stderr
    for word in ("Latency", "TTFT", "Switching", "GPUs", "unfinished"):
        assert word in result.stdout


def test_the_policy_of_the_readme_runs(tmp_path: Path) -> None:
    path = tmp_path / "round_robin.py"
    path.write_text(blocks("python")[0], encoding="utf-8")
    result = run_python("-m", "sim", "run", "traces/scenarios/desktop.yaml", "--policy", str(path), "--check")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "verb", ["run", "compare", "sweep", "capacity", "bounds", "report", "policies", "trace", "profile"]
)
def test_the_verbs_of_the_readme_exist(verb: str) -> None:
    usage = "\n".join(blocks("text"))
    assert f"python -m sim {verb}" in usage
    help_text = run_python("-m", "sim", verb, "--help").stdout
    for inner in re.findall(r"^  ([a-z]+)  ", help_text.partition("Commands:")[2], flags=re.MULTILINE):
        help_text += run_python("-m", "sim", verb, inner, "--help").stdout
    options = set(re.findall(r"--[a-z]+", help_text))
    lines = re.sub(r"\n {10,}", " ", usage).splitlines()
    for option in re.findall(r"--[a-z]+", " ".join(line for line in lines if f"sim {verb}" in line)):
        assert option in options, option


def test_links_to_files_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_policies_of_the_tables_are_those_there_are() -> None:
    tiers: dict[str, list[str]] = {}
    for path in sorted((ROOT / "policies").glob("[a-z]*.py")):
        name = path.stem.replace("_", "-")
        tiers.setdefault(policy_class(name)[0].tier, []).append(name)
    for tier, names in tiers.items():
        (row,) = re.findall(rf"^\| (?:{tier}|{tier}s) \| (.+) \|$", README, flags=re.MULTILINE)
        assert sorted(re.findall(r"`([a-z-]+)`", row)) == names
    told = (ROOT / "policies" / "README.md").read_text(encoding="utf-8").partition("## The ladder")[0]
    listed = re.findall(r"^\| `([a-z-]+)` \|", told, flags=re.MULTILINE)
    assert sorted(listed) == sorted(name for names in tiers.values() for name in names)
