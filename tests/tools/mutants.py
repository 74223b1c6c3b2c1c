"""Breaks the simulator on purpose, one way after the other, on a copy, and sees which tests notice.

The ways are in tests/tools/mutants.yaml: a text that stands exactly once in a file, and what becomes of it. Of each the
tests that are most likely to notice are played first, then those of the engine; the goldens are not among them, since
they notice any change whether it is wrong or not. A test that fails on the unbroken copy notices nothing. Exit status
1: a mutant survived, every test passes; 2: a text is not there once any more, or nothing can be played.

    python -m tests.tools.mutants --list
    python -m tests.tools.mutants --only "a leap goes" --only watermark
    python -m tests.tools.mutants --jobs 2                half an hour
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter
from typing import Any

import yaml

from tests.support.places import ROOT

MUTANTS = Path(__file__).with_suffix(".yaml")
PARTS = ("sim", "policies", "profiles", "traces", "tests", "scripts", "docs", "pyproject.toml", "README.md")
# Quick ones first: the first that fails is enough.
ENGINE = """
    core/test_leap.py core/test_links.py core/test_host_memory.py laws/test_survivors.py engine/test_validate_action.py
    engine/test_arrival_feed.py policy/test_view.py engine/test_ask_policy.py core/test_loading.py
    results/test_summary.py core/test_series.py core/test_ranking.py profiles/test_profile.py core/test_recorder.py
    engine/test_faults.py results/test_run_folder.py core/test_timeline.py workload/test_generate.py
    workload/test_requests.py workload/test_streams.py bounds/test_schedule.py system/test_scale.py
    laws/test_theory.py::test_each_request_waits_for_those_before_it
    laws/test_theory.py::test_little_holds_in_random_runs conformance/test_suite.py laws/test_laws.py
    laws/test_reference.py
"""
LIMIT_S = 900.0
# What fails need not be made small: that takes longer than all else.
PLUGIN, PLUGIN_TEXT = (
    "_without_shrinking",
    """
from hypothesis import Phase, settings

settings.register_profile("mutants", phases=(Phase.explicit, Phase.generate))
settings.load_profile("mutants")
""",
)


@dataclass(frozen=True)
class Mutant:
    """One way to break the simulator."""

    name: str
    file: str
    was: str
    now: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant. killer: the test that noticed, or how it went; empty: it survived."""

    mutant: Mutant
    killer: str
    seconds: float


def read_mutants(file: Path = MUTANTS) -> list[Mutant]:
    rows: list[dict[str, Any]] = yaml.safe_load(file.read_text(encoding="utf-8"))
    mutants = [Mutant(r["name"], r["file"], r["was"], r["is"], tuple(r.get("tests", ()))) for r in rows]
    names = [mutant.name for mutant in mutants]
    assert len(names) == len(dict.fromkeys(names)), "two mutants have one name"
    return mutants


def engine_tests() -> list[str]:
    """The engine's tests that are there."""
    return [test for test in ENGINE.split() if _exists(test, ROOT)]


def misfits(mutants: list[Mutant], root: Path = ROOT) -> list[str]:
    """What is wrong with the texts, a line each."""
    found = []
    for mutant in mutants:
        path = root / mutant.file
        count = path.read_text(encoding="utf-8").count(mutant.was) if path.is_file() else 0
        if count != 1 or mutant.was == mutant.now:
            found.append(f"{mutant.name}: its text stands {count} times in {mutant.file}, not once: {mutant.was!r}")
        found += [f"{mutant.name}: no test file {test}" for test in mutant.tests if not _exists(test, root)]
    return found


def _exists(test: str, root: Path) -> bool:
    return (root / "tests" / test.partition("::")[0]).is_file()


def copy_tree(target: Path, root: Path = ROOT) -> None:
    unwanted = shutil.ignore_patterns("__pycache__", "_compiled", ".hypothesis", "mutants.yaml")
    for part in PARTS:
        if (root / part).is_dir():
            shutil.copytree(root / part, target / part, ignore=unwanted)
        elif (root / part).is_file():
            shutil.copy(root / part, target / part)


class Bench:
    """Copies of the tree to break, one a job."""

    def __init__(self, home: Path, jobs: int, engine: list[str]) -> None:
        self.engine = engine
        self.unusable: list[str] = []  # tests that fail without any mutant
        self.copies: SimpleQueue[Path] = SimpleQueue()
        for job in range(jobs):
            copy = home / f"copy-{job}"
            copy_tree(copy)
            (copy / f"{PLUGIN}.py").write_text(PLUGIN_TEXT, encoding="utf-8")
            self.copies.put(copy)

    def begin(self, mutants: list[Mutant]) -> None:
        """Find out which tests cannot be used. Raises RuntimeError: none can."""
        wanted = dict.fromkeys([*self.engine, *(test for mutant in mutants for test in mutant.tests)])
        copy = self.copies.get()
        code, text, _ = play(copy, list(wanted), [], first=False)
        self.copies.put(copy)
        if code not in (0, 1):
            raise RuntimeError(f"the tests cannot be played on the unbroken copy:\n{text[-2000:]}")
        self.unusable = re.findall(r"^(?:FAILED|ERROR) (\S+)", text, re.MULTILINE)

    def judge(self, mutant: Mutant) -> Verdict:
        begin_s, copy = perf_counter(), self.copies.get()
        path = copy / mutant.file
        source = path.read_text(encoding="utf-8")
        path.write_text(source.replace(mutant.was, mutant.now), encoding="utf-8")
        try:
            rest = [test for test in self.engine if test not in mutant.tests]
            killer = ""
            for tests in (list(mutant.tests), rest):
                killer = killer or (self._killer(copy, tests) if tests else "")
        finally:
            path.write_text(source, encoding="utf-8")
            self.copies.put(copy)
        return Verdict(mutant, killer, perf_counter() - begin_s)

    def _killer(self, copy: Path, tests: list[str]) -> str:
        code, text, late = play(copy, tests, self.unusable, first=True)
        if code == 0:
            return ""
        if late:
            return f"no end within {LIMIT_S:.0f} s"
        found = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", text, re.MULTILINE)
        return found.group(1) if found else f"pytest ended with {code}"


def play(copy: Path, tests: list[str], but: list[str], first: bool) -> tuple[int, str, bool]:
    """Exit status and output of the tests, and whether they were stopped for taking too long."""
    command = [sys.executable, *f"-m pytest -q -n 0 -p no:cacheprovider -p {PLUGIN} --tb=no -rfE".split()]
    command += ["-x"] if first else []
    command += [f"--deselect={test}" for test in but] + [f"tests/{test}" for test in tests]
    environment = {**os.environ, "SIM_INTERPRETED": "1", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    limit_s = LIMIT_S if first else 10 * LIMIT_S
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return 1, "", True
    return done.returncode, done.stdout + done.stderr, False


def line(verdict: Verdict, width: int) -> str:
    return f"{verdict.mutant.name:{width}}  {verdict.killer or 'SURVIVED':70}  {verdict.seconds:6.1f} s"


def main(arguments: list[str] | None = None, file: Path = MUTANTS) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="say what there is, and whether its text still stands")
    parser.add_argument("--only", action="append", default=[], help="mutants with this in their name; again for more")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time (default: 1)")
    parser.add_argument("--file", type=Path, default=file, help="other mutants than those of tests/tools/mutants.yaml")
    parser.add_argument(
        "--tests", nargs="*", default=engine_tests(), help="what to play of tests/ after a mutant's own tests"
    )
    parser.add_argument("--trust", action="store_true", help="take it that every test passes without a mutant")
    options = parser.parse_args(arguments)
    mutants = read_mutants(options.file)
    if options.only:
        mutants = [mutant for mutant in mutants if any(part in mutant.name for part in options.only)]
    wrong = misfits(mutants)
    if wrong or not mutants:
        print("\n".join(wrong) or "no mutant has such a name", file=sys.stderr)
        return 2
    width = max(len(mutant.name) for mutant in mutants)
    if options.list:
        for mutant in mutants:
            print(f"{mutant.name:{width}}  {mutant.file}")
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as home:
        bench = Bench(Path(home), options.jobs, options.tests)
        if not options.trust:
            bench.begin(mutants)
        for test in bench.unusable:
            print(f"fails without any mutant, notices nothing: {test}")
        with ThreadPoolExecutor(options.jobs) as pool:
            verdicts = []
            for verdict in pool.map(bench.judge, mutants):
                verdicts.append(verdict)
                print(line(verdict, width), flush=True)
    survivors = [verdict.mutant.name for verdict in verdicts if not verdict.killer]
    print(f"{len(verdicts)} mutants, {len(verdicts) - len(survivors)} killed, {len(survivors)} survived")
    for name in survivors:
        print(f"survived: {name}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
