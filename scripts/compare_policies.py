"""Runs several policies on the same scenario with the same seeds and prints how they differ, pair by pair.

Every policy sees the same arrivals and lengths under one seed, so differences are taken within a seed: their mean
with a 95 % interval (Student's t) says how sure the ranking is. The tables in the README come from here.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sim.engine import simulate
from sim.errors import SimError
from sim.locate import data_folder
from sim.request import COMPLETED, UNFINISHED
from sim.spec import load_scenario

Row = tuple[float, float, float, int, int]


def play(scenario: str, settings: list[str], policy: str, seed: int) -> Row:
    """One run: mean and p99 end-to-end seconds over all that arrived, mean TTFT, loads, unfinished."""
    named = [*settings, f"policy={policy}" if policy.startswith("{") else f"policy.name={policy}", f"seed={seed}"]
    outcome = simulate(load_scenario(Path(scenario), named))
    columns = outcome.recorder.columns
    ended = np.asarray(columns["outcome"])
    e2e_s = (np.asarray(columns["end_s"]) - np.asarray(columns["arrival_s"]))[np.isin(ended, (COMPLETED, UNFINISHED))]
    ttft_s = np.asarray(columns["first_token_s"]) - np.asarray(columns["arrival_s"])
    return (
        float(e2e_s.mean()),
        float(np.quantile(e2e_s, 0.99)),
        float(np.nanmean(ttft_s)),
        outcome.recorder.counts["loads"],
        outcome.recorder.ended[UNFINISHED],
    )


def interval(values: NDArray[np.float64]) -> str:
    """Mean and half-width of its 95 % interval."""
    if len(values) < 2:
        return f"{values.mean():.2f}"
    half = float(stats.t.ppf(0.975, len(values) - 1)) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.2f} ± {half:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="?", default=str(data_folder("traces") / "scenarios" / "default.yaml"))
    parser.add_argument("--policies", default="residency-aware,exclusive-swap,lru-swap,least-loaded,static-split")
    parser.add_argument("--seeds", type=int, default=10, help="how many")
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="change a scenario field")
    asked = parser.parse_args()
    policies: list[str] = asked.policies.split(",")
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
    jobs = [(asked.scenario, asked.set, policy, seed) for policy in policies for seed in seeds]
    try:
        with ProcessPoolExecutor(asked.jobs) as pool:
            rows = list(pool.map(play, *zip(*jobs, strict=True)))
    except SimError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    results = np.array(rows).reshape(len(policies), len(seeds), 5)
    table = Table(title=f"{asked.seeds} paired seeds, seconds, mean ± 95 %; differences to {policies[0]}")
    for column in ("policy", "E2E mean", "difference", "E2E p99", "difference", "TTFT mean", "loads", "unfinished"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    for policy, result in zip(policies, results, strict=True):
        difference = result - results[0]
        table.add_row(
            policy,
            interval(result[:, 0]),
            interval(difference[:, 0]),
            interval(result[:, 1]),
            interval(difference[:, 1]),
            f"{result[:, 2].mean():.2f}",
            f"{result[:, 3].mean():.0f}",
            f"{result[:, 4].sum():.0f}",
        )
    Console(width=130 if not sys.stdout.isatty() else None).print(table)


if __name__ == "__main__":
    main()
