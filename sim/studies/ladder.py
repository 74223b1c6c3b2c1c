"""Plays families of scenarios under every realisable policy and says where each stands, with intervals.

A family is a scenario and cells that change it (traces/families.yaml). Every cell is played under every policy with the
same seeds; differences are taken within a seed. With --screen, all policies are played on the first few seeds, and on
all seeds only those that came near the best of the cell. The tables in policies/README.md come from here:

    python -m sim.studies.ladder --store ladder --out ladder.md

A finished run is kept in the store and never done again, so a run that was cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sim.common.data_files import data_folder
from sim.common.errors import ConfigError, SimError
from sim.common.statistics import Difference, difference
from sim.common.yaml_files import read_yaml
from sim.policy import policy_names
from sim.policy.loader import policy_class
from sim.runs.execute import play
from sim.runs.store import Store
from sim.runs.task import Machines, Progress, Task
from sim.scenario.scenario import Scenario, override, parse_scenario

OURS, COMMON = "residency-aware", "lru-swap"
NEAR = 1.2  # who is slower than the best of a cell by more than this is not its rival
# Each switches one part of the policy off.
ABLATIONS: dict[str, dict[str, Any]] = {
    "no partial residency": {"partial": False},
    "no preemption": {"preempt": False},
    "no interference": {"interference": False},
    "no second copies": {"replicate": False},
    "joins what is there, without a second thought": {"tolerance": 1e9},
    "no preloading": {"preload": False},
    "no expected arrivals": {"horizon_s": 1e-9},
    "waits taken to last as long again": {"theta": 1.0},
    "no margins": {"preempt_margin": 1.0, "partial_margin": 1.0},
    "no redirection": {"redirect": False},
    "no set-up index": {"index": False},
}


@dataclass(frozen=True)
class LadderCell:
    """One scenario of a family. `shaped`: it was looked at while a policy was written."""

    family: str
    name: str
    data: dict[str, Any]
    shaped: bool

    def scenario(self, policy: dict[str, Any], seed: int) -> Scenario:
        data = override(self.data, [("policy", policy), ("seed", seed)])
        return parse_scenario(data, f"{self.family}: {self.name}")


@dataclass(frozen=True)
class Seen:
    """What came of a cell under a policy, an entry a seed; `lost`: requests that were not completed, over all seeds."""

    mean_s: list[float]
    p99_s: list[float]
    lost: int
    error: str


def read_cells(path: Path, families: list[str] | None) -> list[LadderCell]:
    """The cells of a file of families, in its order. Raises ConfigError."""
    data = read_yaml(path)
    given = data.get("families") if isinstance(data, dict) else None
    if not isinstance(given, dict):
        raise ConfigError(f"{path}: a mapping 'families' of name -> scenario and cells is missing")
    for name in families or ():
        if name not in given:
            raise ConfigError(f"--families {name}: {path} has {', '.join(given)}")
    cells = []
    for family, parts in given.items():
        if families and family not in families:
            continue
        for cell, changes in parts["cells"].items():
            changed = override(parts["scenario"], (changes or {}).items())
            cells.append(LadderCell(family, cell, changed, bool(parts.get("shaped"))))
    return cells


def chosen(text: str) -> dict[str, dict[str, Any]]:
    """Policies by the name that tables call them."""
    found: dict[str, dict[str, Any]] = {}
    for word in text.split(","):
        if word == "realisable":
            found.update((name, {"name": name}) for name in policy_names() if not policy_class(name)[0].oracle)
        elif word == "ablations":
            found.update((name, {"name": OURS, **changes}) for name, changes in ABLATIONS.items())
        else:
            policy_class(word)
            found[word] = {"name": word}
    return {OURS: {"name": OURS}, COMMON: {"name": COMMON}, **found}


Where = tuple[str, str, str]  # family, cell, what the policy is called


class Playing:
    """Plays cells, and keeps what came of each under each policy, an entry a seed."""

    def __init__(self, policies: dict[str, dict[str, Any]], store: Store | None, machines: Machines) -> None:
        self.policies = policies
        self.store = store
        self.machines = machines

    def seen(self, keys: list[tuple[LadderCell, str]], seeds: range) -> dict[Where, Seen]:
        """What came of these."""
        tasks = [
            Task(
                cell.scenario(self.policies[name], seed),
                {"family": cell.family, "cell": cell.name, "as": name, "seed": seed},
            )
            for cell, name in keys
            for seed in seeds
        ]
        results = play(tasks, self.store, self.machines, _report)
        print(file=sys.stderr)
        found = {}
        for place, (cell, name) in enumerate(keys):
            of = results[place * len(seeds) : (place + 1) * len(seeds)]
            error = next((result.error for result in of if result.error), "")
            known = [result.summary for result in of if result.summary is not None]
            counts = [summary["requests"] for summary in known]
            found[cell.family, cell.name, name] = Seen(
                [summary["e2e_all_s"]["mean"] for summary in known],
                [summary["e2e_all_s"]["p99"] for summary in known],
                sum(count["arrived"] - count["completed"] - count["impossible"] for count in counts),
                error,
            )
        return found

    def contenders(self, cells: list[LadderCell], seen: dict[Where, Seen]) -> list[tuple[LadderCell, str]]:
        """Who came within NEAR of the best of a cell, and those that every table is about."""
        keys = []
        for cell in cells:
            means = {name: seen[cell.family, cell.name, name] for name in self.policies if name not in ABLATIONS}
            known = {name: float(np.mean(of.mean_s)) for name, of in means.items() if not of.error}
            near = NEAR * min(known.values())
            keys += [(cell, name) for name, mean_s in known.items() if mean_s <= near or name in (OURS, COMMON)]
        return keys


def _report(progress: Progress) -> None:
    print(f"\r{progress.before + progress.done} of {progress.total} runs", end="", file=sys.stderr)


def verdict(gap: Difference) -> str:
    """What an interval of (ours - another's) says."""
    interval = gap.estimate.t
    if interval is None or interval.low <= 0 <= interval.high:
        return "level"
    return "better" if interval.high < 0 else "worse"


def signed(gap: Difference) -> str:
    interval, mean = gap.estimate.t, gap.estimate.mean
    if mean is None:
        return "-"
    return f"{mean:+.2f}" if interval is None else f"{mean:+.2f} ± {interval.half:.2f}"


def standing(cells: list[LadderCell], names: Iterable[str], seen: dict[Where, Seen]) -> list[list[str]]:
    """A row a cell: ours, the best of all policies, and the paired differences to it and to the common one."""
    rows = []
    for cell in cells:
        here = {name: seen[cell.family, cell.name, name] for name in names if name not in ABLATIONS}
        ours, common = here[OURS], here[COMMON]
        whole = {name: of for name, of in here.items() if not of.error and len(of.mean_s) == len(ours.mean_s)}
        best = min((name for name in whole if name != OURS), key=lambda name: float(np.mean(whole[name].mean_s)))
        gap = difference(ours.mean_s, whole[best].mean_s)
        tail = difference(ours.p99_s, common.p99_s)
        rows.append(
            [
                cell.family + ("" if cell.shaped else " *"),
                cell.name,
                f"{np.mean(ours.mean_s):.2f}",
                best,
                f"{np.mean(whole[best].mean_s):.2f}",
                signed(gap),
                verdict(gap),
                f"{np.mean(ours.p99_s):.1f}",
                f"{np.mean(common.p99_s):.1f}",
                signed(tail),
                verdict(tail),
            ]
        )
    return rows


def overall(
    cells: list[LadderCell], names: Iterable[str], seen: dict[Where, Seen], of: Callable[[Seen], list[float]]
) -> dict[str, dict[str, float]]:
    """By policy and family the geometric mean over cells of (its mean / ours)."""
    table: dict[str, dict[str, float]] = {}
    for name in names:
        for family in dict.fromkeys(cell.family for cell in cells):
            logs = []
            for cell in cells:
                here = seen[cell.family, cell.name, name]
                if cell.family == family and not here.error:
                    ours = float(np.mean(of(seen[cell.family, cell.name, OURS])))
                    logs.append(math.log(float(np.mean(of(here))) / ours))
            table.setdefault(name, {})[family] = math.exp(sum(logs) / len(logs)) if logs else math.nan
    return table


def worth(cells: list[LadderCell], seen: dict[Where, Seen]) -> list[list[str]]:
    """A row an ablation: its mean and p99 over those of the whole policy, and in how many cells it is worse or better
    beyond the interval."""
    rows = []
    means = overall(cells, ABLATIONS, seen, lambda of: of.mean_s)
    tails = overall(cells, ABLATIONS, seen, lambda of: of.p99_s)
    for name in ABLATIONS:
        words = [
            verdict(difference(seen[c.family, c.name, OURS].mean_s, seen[c.family, c.name, name].mean_s)) for c in cells
        ]
        lost = sum(seen[c.family, c.name, name].lost for c in cells)
        rows.append(
            [
                name,
                *(f"{means[name][family]:.3f}" for family in means[name]),
                *(f"{tails[name][family]:.3f}" for family in tails[name]),
                str(words.count("better")),
                str(words.count("worse")),
                str(lost),
            ]
        )
    return rows


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows]]
    return "\n".join(lines) + "\n"


def report(
    cells: list[LadderCell], names: list[str], first: dict[Where, Seen], seen: dict[Where, Seen], seeds: range
) -> str:
    """The tables, as Markdown: `first` has everybody on the first seeds, `seen` the contenders on all."""
    policies = [name for name in names if name not in ABLATIONS]
    families = list(dict.fromkeys(cell.family for cell in cells))
    few = len(next(iter(first.values())).mean_s)
    rows = standing(cells, policies, {**first, **seen})
    good = sum(row[6] != "worse" for row in rows)
    tails = sum(row[10] != "worse" for row in rows)
    parts = [
        f"Seeds {seeds.start} to {seeds.stop - 1}, {len(cells)} cells, {len(policies)} policies. End-to-end seconds of "
        "all that arrived (who got no answer counts until the end of the run); differences within a seed, mean ± 95 %; "
        "families with a * were not looked at while the policy was written.\n",
        f"{OURS} is best, or level with the best of the others, in {good} of {len(cells)} cells on the mean, and not "
        f"worse than {COMMON} on the 99th percentile in {tails}.\n",
        markdown(
            [
                "family",
                "cell",
                "ours",
                "best other",
                "its mean",
                "ours - it",
                "",
                "our p99",
                "p99 of lru-swap",
                "ours - it",
                "",
            ],
            rows,
        ),
        f"\nEverybody, on {few} seeds: mean over ours, geometric mean over a family's cells (and requests not "
        "completed):\n",
    ]
    means = overall(cells, policies, first, lambda of: of.mean_s)
    lost = {name: sum(first[c.family, c.name, name].lost for c in cells) for name in policies}
    order = sorted(policies, key=lambda name: math.prod(means[name].values()))
    parts.append(
        markdown(
            ["policy", *families, "not completed"],
            [[name, *(f"{means[name][family]:.2f}" for family in families), f"{lost[name]:,}"] for name in order],
        )
    )
    if all(name in names for name in ABLATIONS):
        heads = [
            "switched off",
            *(f"mean, {family}" for family in families),
            *(f"p99, {family}" for family in families),
        ]
        parts.append(
            f"\nWhat each part of it is worth, on {few} seeds (over the whole policy; above 1: the part helps):\n"
        )
        parts.append(markdown([*heads, "cells worse", "cells better", "not completed"], worth(cells, first)))
    errors = {of.error for of in first.values() if of.error}
    parts += [f"\nFailed: {error}\n" for error in sorted(errors)]
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, default=data_folder("traces") / "families.yaml")
    parser.add_argument("--policies", default="realisable,ablations", help="names, realisable, ablations")
    parser.add_argument("--families", help="only these, comma separated")
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--screen", type=int, help="play all policies on so many seeds, the best on all; default: all")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--store", type=Path, help="keep runs here, and take from here what is there")
    parser.add_argument("--out", type=Path, help="write the tables here")
    parser.add_argument("--jobs", type=int, help="processes; default: one for each processor")
    asked = parser.parse_args()
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
    try:
        cells = read_cells(asked.file, asked.families.split(",") if asked.families else None)
        policies = chosen(asked.policies)
        store = None if asked.store is None else Store(asked.store, "summary")
        playing = Playing(policies, store, Machines(asked.jobs))
        few = range(seeds.start, min(seeds.stop, seeds.start + (asked.screen or asked.seeds)))
        first = playing.seen([(cell, name) for cell in cells for name in policies], few)
        seen = first if few == seeds else playing.seen(playing.contenders(cells, first), seeds)
    except SimError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    text = report(cells, list(policies), first, seen, seeds)
    if asked.out is None:
        print(text)
    else:
        asked.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
