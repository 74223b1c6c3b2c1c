"""The verbs below `policies`: list, show, begin and check, as a person uses them, from any folder, installed or not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sim.common.errors import SimError
from sim.policy import policy_names
from sim.policy.catalogue import TIERS
from sim.policy.loader import policy_class
from tests.support.bad_policies import BAD, GOOD, THINKS, first
from tests.support.cli_cases import invoke, write_scenario
from tests.support.places import ROOT


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def one_line(text: str) -> str:
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    return text


# --- list and show


def test_the_list_has_every_policy_under_its_tier() -> None:
    lines = invoke("policies").stdout.splitlines()
    tier, found = "", {}
    for line in lines[2:-2]:
        words = line.split()
        if words and words[0] in TIERS and line.startswith(words[0]):
            tier, words = words[0], words[1:]
        if words and words[0] in policy_names():
            found[words[0]] = tier
            assert ("[oracle]" in line) == bool(policy_class(words[0])[0].oracle)
    assert found == {name: policy_class(name)[0].tier for name in policy_names()}
    assert [TIERS.index(tier) for tier in found.values()] == sorted(TIERS.index(tier) for tier in found.values())


def test_one_is_shown_by_name_and_by_path() -> None:
    Path("mine.py").write_text(GOOD)
    assert invoke("policies", "ollama").stdout.startswith("ollama (production)\n")
    shown = invoke("policies", "mine.py").stdout
    assert shown.startswith("mine.py (other)\n")
    assert "longest_first" in shown


@pytest.mark.parametrize("verb", [[], ["check"]])
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("olama", "unknown policy 'olama'; did you mean 'ollama'?"),
        ("no/such.py", "no/such.py: no such policy file"),
        ("empty.py", "exactly one subclass of sim.policy.Policy, not 0"),
        ("broken.py", "cannot import the policy (SyntaxError"),
        ("unmade.py", "cannot be made (TypeError: mine)"),
        (".", "unknown policy '.'"),
    ],
)
def test_what_is_no_policy_is_said_in_one_line(verb: list[str], name: str, words: str) -> None:
    Path("empty.py").write_text("")
    Path("broken.py").write_text("def")
    unmade = "    def __init__(self, parameters):\n        raise TypeError('mine')\n\n    class "
    Path("unmade.py").write_text(GOOD.replace("    class ", unmade, 1))
    result = invoke("policies", *verb, name)
    if name == "unmade.py" and not verb:
        assert result.exit_code == 0  # it can be shown
        return
    assert result.exit_code == 2
    assert result.stdout == ""
    assert words in one_line(result.stderr)


# --- new


def test_a_new_policy_is_short_runs_and_passes() -> None:
    result = invoke("policies", "new", "my-own-policy")
    assert result.exit_code == 0
    path = Path("my_own_policy.py")
    text = path.read_text()
    assert f"python -m sim policies check {path}" in result.stdout
    assert "class MyOwnPolicy(Policy):" in text
    assert len(text.splitlines()) <= 35
    assert text.isascii()
    run = invoke("run", write_scenario(Path()), "--policy", path, "--check")
    assert run.exit_code == 0
    checked = invoke("policies", "check", path)
    assert checked.exit_code == 0, checked.stdout
    assert checked.stdout.splitlines()[-1] == "19 passed"


@pytest.mark.parametrize("name", ["My", "1st", "a b", "../a", "a.py", "", "-a", "a--b", "ä", "a/b", "class_"])
def test_a_bad_name_writes_nothing(name: str) -> None:
    result = invoke("policies", "new", "--", name)
    assert result.exit_code == 2
    assert "cannot be a policy's name" in one_line(result.stderr)
    assert not list(Path().iterdir())


def test_nothing_is_overwritten() -> None:
    Path("mine.py").write_text("precious")
    result = invoke("policies", "new", "mine")
    assert result.exit_code == 2
    assert "mine.py: there already" in one_line(result.stderr)
    assert Path("mine.py").read_text() == "precious"


@pytest.mark.parametrize("folder", ["missing", "a_file", "/proc"])
def test_where_nothing_can_be_written_it_says_so(folder: str) -> None:
    Path("a_file").write_text("")
    result = invoke("policies", "new", "mine", "--in", folder)
    assert result.exit_code == 2
    assert "cannot write the policy" in one_line(result.stderr)


# --- check


@pytest.mark.parametrize("bad", ["raises", "goes_on_and_on", "imports_the_engine", "peeks_and_is_seen", "never_serves"])
def test_a_failure_is_status_one_and_names_the_check(bad: str) -> None:
    source, title, words = BAD[bad]
    Path(f"{bad}.py").write_text(source)
    result = invoke("policies", "check", f"{bad}.py")
    assert result.exit_code == 1
    assert f"FAILED          {title}" in result.stdout
    assert words in " ".join(result.stdout.split())
    assert "failed" in result.stdout.splitlines()[-1 if bad == "imports_the_engine" else -2]
    assert not result.stderr


def test_a_decision_without_an_end_is_broken_off_and_nothing_played_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.conformance.subject.LONGEST_S", 0.5)
    Path("thinks.py").write_text(THINKS)
    result = invoke("policies", "check", "thinks.py")
    assert result.exit_code == 1
    assert "it computed for 0.5 s without coming to an end (it was at thinks.py, line " in " ".join(
        result.stdout.split()
    )
    assert result.stdout.splitlines()[-2] == "3 passed, 1 failed, 15 not played"


def test_an_import_without_an_end_is_broken_off_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sim.conformance.subject.LONGEST_S", 0.5)
    Path("mine.py").write_text(f"{GOOD}\n\nwhile True:\n    pass\n")
    result = invoke("policies", "check", "mine.py")
    assert result.exit_code == 2
    assert "it was at mine.py, line " in one_line(result.stderr)


def test_parameters_are_set_with_and_without_the_word_policy() -> None:
    Path("mine.py").write_text(first("assert self.parameters.longest_first, 'as set'"))
    for prefix in ("", "policy."):
        result = invoke("policies", "check", "mine.py", "--set", f"{prefix}longest_first=false")
        assert result.exit_code == 1
        assert "AssertionError: as set" in result.stdout
    for setting, words in (
        ("longest=1", "did you mean 'longest_first'?"),
        ("longest_first=7x", "parameter 'longest_first'"),
    ):
        result = invoke("policies", "check", "mine.py", "--set", setting)
        assert result.exit_code == 2
        assert words in one_line(result.stderr)


def test_what_a_policy_prints_is_not_among_the_verdicts() -> None:
    Path("mine.py").write_text(first("print('hello')\nraise ValueError"))
    result = invoke("policies", "check", "mine.py")
    assert "hello" not in result.stdout
    assert "hello" in result.stderr


def test_what_does_not_apply_says_why() -> None:
    result = invoke("policies", "check", "belady")
    assert result.exit_code == 0
    line = next(line for line in result.stdout.splitlines() if line.startswith("not applicable"))
    assert line.endswith("an oracle: it knows when each model is asked for next")


def test_a_kept_failure_can_be_played_again() -> None:
    Path("illegal.py").write_text(BAD["illegal"][0])
    result = invoke("policies", "check", "illegal.py", "--keep", "kept/here")
    assert result.exit_code == 1
    commands = [line.split("python -m sim ")[1] for line in result.stdout.splitlines() if "see it: " in line]
    assert len(commands) == 3
    again = invoke(*commands[-1].split())
    assert again.exit_code == 2
    assert "layers=99" in again.stderr
    assert "elastic" in Path(commands[-1].split()[1]).read_text()
    # Another time would mix with the first: a new folder is asked for.
    second = invoke("policies", "check", "illegal.py", "--keep", "kept/here")
    assert second.exit_code == 2
    assert "not empty" in one_line(second.stderr)
    assert second.stdout == ""


def test_requests_are_kept_to_the_last_bit() -> None:
    from sim.conformance.keeping import Keeper  # noqa: PLC0415
    from sim.conformance.subject import Play, subject  # noqa: PLC0415
    from sim.conformance.suite import FAILED, Verdict  # noqa: PLC0415
    from sim.scenario.scenario import load_scenario  # noqa: PLC0415
    from sim.workload.requests import build_trace  # noqa: PLC0415

    of = subject("lru-swap").scenario("none")
    rows = [(0.1 + 0.2, "a", 3, 4), (1 / 3, "a", 5, 6)]
    (path,) = Keeper(Path("kept")).keep(Verdict("Some check", "none", FAILED, "", (Play(of, rows),)))
    found = build_trace(load_scenario(path))
    assert found.arrival_s.tolist() == [row[0] for row in rows]
    assert found.output_tokens.tolist() == [4, 6]


@pytest.mark.parametrize("folder", ["a_file", "/proc/no-such-folder"])
def test_a_folder_that_cannot_be_kept_in_is_said_before_anything_is_played(folder: str) -> None:
    Path("a_file").write_text("")
    result = invoke("policies", "check", "lru-swap", "--keep", folder)
    assert result.exit_code == 2
    assert f"--keep {folder}" in one_line(result.stderr)
    assert result.stdout == ""


def test_an_installed_copy_checks_entry_points_without_tests_or_data(tmp_path: Path) -> None:
    site = tmp_path / "site"
    for package in ("sim", "policies"):
        shutil.copytree(ROOT / package, site / package, ignore=shutil.ignore_patterns("__pycache__", "_compiled"))
    (site / "their_policy.py").write_text(GOOD)
    about = site / "theirs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[sim.policies]\ntheir-own = their_policy:Template\n")
    command = [sys.executable, "-m", "sim", "policies", "check", "their-own"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "19 passed"


def test_the_library_says_the_same() -> None:
    from sim.conformance.suite import PASSED, conformance  # noqa: PLC0415

    with pytest.raises(SimError, match="unknown policy"):
        conformance("no-such")
    verdict = next(conformance("lru-swap"))
    assert (verdict.check, verdict.engine, verdict.status) == ("imports what a policy may", "", PASSED)
