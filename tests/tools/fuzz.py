"""Attacks the simulator at length: random scenarios, under a policy that does anything legal and under shipped ones.

Each seed is one scenario with whole features on or off (support/fuzzing/swarm.py). It is played with every law checked
at every instant and with accounts of our own; again, unchecked and watched; with other names of models; from the list
of its actions; token by token instead of leaping (interpreted engine only); and under one of the shipped policies.
Every 25th seed also plays 20 static cases against the stepping reference engine of the tests. A failure prints its
seed, is cut down to what it needs, and is written to a folder: `python -m sim run FOLDER/scenario.yaml --policy
FOLDER/random_policy.py --check` shows it again where a law or the policy's own accounts fail, `python -m
tests.tools.fuzz --replay FOLDER/case.json` in any case. The run goes on, says at the end what was reached and what
never was, and exits with 1 if anything failed.

    python -m tests.tools.fuzz 17 18 19                  these seeds
    python -m tests.tools.fuzz --scenarios 10000         seeds 0 to 9999, on all processors
    python -m tests.tools.fuzz --hours 1 --start 500000  as many as an hour allows

Needs what the tests need: pip install -e '.[test]'. SIM_INTERPRETED=1 leaves a compiled engine out.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sim.common.time_limit import limited

LONGEST_S = 60.0  # of one play: a hundred times what the slowest takes
EVERY_REFERENCE, REFERENCE_EXAMPLES = 25, 20
SHIPPED_CHECKS = ("laws", "again", "renamed")
KEPT_EACH = 2  # failures of one kind that are cut down and written; further ones are counted


@dataclass
class Found:
    """What came of one seed. failures: (check, place, message, the case as JSON)."""

    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str, str, str]] = field(default_factory=list)


class TooLongError(Exception):
    """A play that goes on and on."""


def case_of_seed(seed: int) -> tuple[Any, Any]:
    """The scenario of a seed under the random policy, and under one of the shipped ones."""
    from sim.policy import policy_names  # noqa: PLC0415
    from tests.support.fuzzing.checks import RANDOM, SHIPPED_S  # noqa: PLC0415  after the workers have begun
    from tests.support.fuzzing.random_cases import Seeded  # noqa: PLC0415
    from tests.support.fuzzing.swarm import swarm_case  # noqa: PLC0415

    draws = Seeded(seed)
    calm_s, rejects = draws.pick((5.0, 30.0, 100.0)), draws.pick((True, False))
    case = swarm_case(draws, name=RANDOM, stream=seed, calm_s=calm_s, rejects=rejects)
    horizon_s = case.data.get("horizon_s") or SHIPPED_S
    other = replace(case, data={**case.data, "horizon_s": horizon_s})
    return case, other.with_policy(name=RANDOM, inner=draws.pick(policy_names()))


def attack(seed: int) -> Found:
    """Everything that is done with one seed. Called in a worker."""
    from tests.support.fuzzing.checks import CHECKS, CaseFailed, Refused, check_case  # noqa: PLC0415
    from tests.support.fuzzing.shrinking import place_of  # noqa: PLC0415

    found = Found(seed)
    wild, shipped = case_of_seed(seed)
    for case, checks in ((wild, tuple(CHECKS)), (shipped, SHIPPED_CHECKS)):
        inner = case.policy.get("inner")
        try:
            with limited(LONGEST_S, TooLongError):
                counts = check_case(case, checks)
            found.counts += Counter({f"shipped {inner}": 1}) if inner else counts
        except Refused:
            found.counts["refused as a user's mistake"] += 1
        except CaseFailed as failure:
            place = " ".join(map(str, place_of(failure.cause)))
            found.failures.append((failure.check, place, str(failure), case.to_json()))
    if seed % EVERY_REFERENCE == 0:
        found.failures += _reference(seed)
        found.counts["reference cases"] += REFERENCE_EXAMPLES
    return found


def _reference(seed: int) -> list[tuple[str, str, str, str]]:
    """Static cases against the engine that steps every token."""
    import hypothesis  # noqa: PLC0415

    from tests.laws.test_reference import test_the_engine_agrees_with_stepping as test  # noqa: PLC0415
    from tests.support.fuzzing.shrinking import place_of  # noqa: PLC0415
    from tests.support.reference.cases import cases  # noqa: PLC0415

    chosen = hypothesis.settings(
        max_examples=REFERENCE_EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    play = hypothesis.seed(seed)(chosen(hypothesis.given(cases())(test.hypothesis.inner_test)))
    try:
        with limited(10 * LONGEST_S, TooLongError):
            play()
    except Exception as error:
        told = "\n".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])
        return [("reference", " ".join(map(str, place_of(error))), told, "")]
    return []


def cut_down(check: str, text: str, message: str, folder: Path) -> str:
    """Shrink a failure and write it; what to type to see it again. Called in a worker."""
    from tests.support.fuzzing.checks import CHECKS, CaseFailed  # noqa: PLC0415
    from tests.support.fuzzing.shrinking import Shrinker, commands, keep  # noqa: PLC0415
    from tests.support.fuzzing.swarm import case_of  # noqa: PLC0415

    case = case_of(text)
    try:
        with limited(LONGEST_S, TooLongError):
            CHECKS[check](case)
        return "it did not fail a second time: something is not repeatable\n" + commands(keep(case, folder, message))
    except Exception as error:
        failure = CaseFailed(check, case, error)
    smallest = case
    try:
        with limited(2 * LONGEST_S, TooLongError):
            smallest = Shrinker(failure).smallest(case)
    except TooLongError:
        message += "\n(not cut down: that took too long)"
    size = f"{len(smallest.rows)} requests, {len(smallest.policy.get('actions') or ())} actions"
    return f"cut down to {size}\n{commands(keep(smallest, folder, message))}"


@dataclass
class Tally:
    """All that was found so far."""

    folder: Path
    begin_s: float = field(default_factory=time.monotonic)
    seeds: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    told_s: float = 0.0

    def add(self, found: Found) -> list[tuple[str, str, str]]:
        """Count what came of a seed; the failures that are to be cut down: (check, case, message)."""
        self.seeds += 1
        self.counts += found.counts
        chosen = []
        for check, place, message, text in found.failures:
            kind = f"{check}: {place}"
            self.failures[kind] += 1
            print(f"FAILED seed {found.seed}, {message[:2000]}", flush=True)
            if text and self.failures[kind] <= KEPT_EACH:
                chosen.append((check, text, f"seed {found.seed}, {message}"))
        now_s = time.monotonic()
        if now_s - self.told_s > 30:
            self.told_s = now_s
            print(f"{self.summary()}", file=sys.stderr, flush=True)
        return chosen

    def summary(self) -> str:
        seconds = time.monotonic() - self.begin_s
        failed = sum(self.failures.values())
        rate = 3600 * self.seeds / max(seconds, 1e-9)
        return f"{self.seeds} scenarios in {seconds:.0f} s ({rate:,.0f} an hour), {failed} failures"

    def report(self) -> None:
        import sim  # noqa: PLC0415
        from tests.support.fuzzing.reached import CORNERS  # noqa: PLC0415

        print(f"{self.summary()}; the engine was {'compiled' if sim.COMPILED else 'interpreted'}")
        print("\nWhat was reached (times; tokens and events as sums):")
        wide = max(map(len, self.counts), default=0)
        for name in sorted(self.counts):
            print(f"  {name:{wide}}  {self.counts[name]:>12,}")
        missing = [name for name in CORNERS if not self.counts[name]]
        print(f"\nNever reached, of {len(CORNERS)} corners: {', '.join(missing) or 'none'}")
        for kind, number in self.failures.most_common():
            print(f"FAILED {number} times at {kind}")


def fuzz(seeds: Iterator[int], until_s: float, jobs: int, tally: Tally) -> None:
    """Seeds until there are no more, or until that time."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(jobs) as pool:
        waiting: dict[Future[Any], str] = {}
        while True:
            while len(waiting) < 3 * jobs and time.monotonic() < until_s:
                seed = next(seeds, None)
                if seed is None:
                    break
                waiting[pool.submit(attack, seed)] = f"seed {seed}"
            if not waiting:
                return
            done, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                what = waiting.pop(future)
                try:
                    found = future.result()
                except BrokenProcessPool:  # a worker died: none of the others can go on
                    print(f"FAILED: a process died at {what} or at {', '.join(waiting.values())}", flush=True)
                    tally.failures["a process died"] += 1
                    return
                except Exception as error:  # of this program itself: no less a failure
                    tally.failures[f"{type(error).__name__}: {error}"] += 1
                    print(f"FAILED {what}: {type(error).__name__}: {error}", flush=True)
                    continue
                if isinstance(found, str):
                    print(f"{what}: {found}", flush=True)
                    continue
                for failure in tally.add(found):
                    task = pool.submit(cut_down, *failure, tally.folder)
                    waiting[task] = f"failure of {failure[2].partition(',')[0]}"


def replay(file: Path) -> int:
    """A case that was kept, through every check."""
    from tests.support.fuzzing.checks import CaseFailed, Refused, check_case  # noqa: PLC0415
    from tests.support.fuzzing.swarm import case_of  # noqa: PLC0415

    try:
        counts = check_case(case_of(file.read_text(encoding="utf-8")))
    except CaseFailed as failure:
        print(f"FAILED {failure}")
        return 1
    except Refused as reason:
        print(f"refused as a user's mistake: {reason}")
        return 1
    print(f"nothing fails: {counts['requests']} requests, {counts['events']} events")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="*", type=int, metavar="SEED")
    parser.add_argument("--scenarios", type=int, metavar="N", help="so many seeds")
    parser.add_argument("--hours", type=float, metavar="H", help="as many seeds as so many hours allow")
    parser.add_argument("--start", type=int, default=0, metavar="SEED", help="the first of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (all processors)")
    parser.add_argument("--out", type=Path, default=Path("results/fuzz"), metavar="DIR", help="where failures go")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="play a kept case.json instead")
    asked = parser.parse_args()
    if asked.replay is not None:
        return replay(asked.replay)
    if not asked.seeds and asked.scenarios is None and asked.hours is None:
        parser.error("give seeds, --scenarios N or --hours H")
    seeds: Iterator[int] = iter(asked.seeds)
    if not asked.seeds:
        ends = itertools.count(asked.start)
        seeds = ends if asked.scenarios is None else itertools.islice(ends, asked.scenarios)
    tally = Tally(asked.out)
    until_s = float("inf") if asked.hours is None else time.monotonic() + 3600 * asked.hours
    try:
        fuzz(seeds, until_s, max(1, asked.jobs), tally)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    tally.report()
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())
