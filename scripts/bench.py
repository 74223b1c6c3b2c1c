"""How fast the simulator is, beside the floor that bare SimPy sets for the same number of events.

Workloads are drawn from a seed: `--models` equally loaded models on `--gpus` GPUs of three kinds, about one request a
second and GPU. Each measurement is a process of its own; the median over the repeats is shown. The floor is measured in
the same process, right after: as many SimPy timeouts as the run had events, with as many pending. Policies:
`least-loaded` on a fixed placement, `lru-swap` (one instance a model, so its load counts only GPUs that it uses) and
`residency-aware`. By default sizes, GPUs and models vary one at a time around the middle; `--grid` measures all of
their combinations, which takes an hour or more.

    python scripts/bench.py --quick
    python scripts/bench.py --requests 1000000 --gpus 256 --models 32

Measures the `sim` that is installed: pip install -e '.[test]', and it is that of this checkout.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
from itertools import product
from time import perf_counter
from typing import Any

POLICIES = ("least-loaded", "lru-swap", "residency-aware")
KINDS = ("Llama-3.2-1B", "Qwen2.5-3B", "Llama-3-8B", "Qwen3-8B", "Qwen2.5-14B")
NODES = (("xeon-8480", "h100", 4), ("xeon-8480", "h100", 4), ("epyc-7453", "a100-80gb", 8))  # 16 GPUs
RATE_PER_S = 1.0  # of a GPU
COLUMNS = {
    "policy": "{policy}",
    "requests": "{requests:,}",
    "GPUs": "{gpus:,}",
    "models": "{models}",
    "requests/s": "{requests_per_s:,.0f}",
    "range": "{requests_per_s_range[0]:,.0f}-{requests_per_s_range[1]:,.0f}",
    "us/request": "{us_per_request:.1f}",
    "events/request": "{events_per_request:.2f}",
    "wall s": "{wall_s:.2f}",
    "over floor": "{over_floor:.1f}",
    "peak MiB": "{peak_mib:,.0f}",
    "B/request": "{bytes_per_request:,.0f}",
}


def scenario(policy: str, requests: int, gpus: int, models: int, seed: int) -> Any:
    """The scenario of one measurement. `gpus` is a multiple of 16."""
    from sim.scenario.scenario import parse_scenario  # noqa: PLC0415

    assert gpus % 16 == 0, gpus
    nodes = [
        {"name": f"n{place}", "host": host, "count": gpus // 16, "gpus": [{"gpu": gpu, "count": count}]}
        for place, (host, gpu, count) in enumerate(NODES)
    ]
    served = [
        {"name": f"m{index:03d}", "model": KINDS[index % len(KINDS)], "quantization": "Q4_K_M", "max_context": 8192}
        for index in range(models)
    ]
    load_per_s = RATE_PER_S * (min(gpus, models) if policy == "lru-swap" else gpus)
    weights = [1.0 if policy == "least-loaded" else (index + 1) ** -0.8 for index in range(models)]
    traffic = [
        {
            "model": model["name"],
            "rate_per_s": load_per_s * weight / sum(weights),
            "prompt_max": 4096,
            "output_max": 2048,
        }
        for model, weight in zip(served, weights, strict=True)
    ]
    chosen: Any = policy
    if policy == "least-loaded":
        chosen = {"name": policy, "placement": placement(gpus, [model["name"] for model in served])}
    return parse_scenario(
        {
            "name": "bench",
            "seed": seed,
            "cluster": {"nodes": nodes},
            "models": served,
            "workload": {"duration_s": requests / load_per_s, "traffic": traffic},
            "policy": chosen,
        },
        "bench",
    )


def placement(gpus: int, models: list[str]) -> dict[str, list[str]]:
    """GPUs dealt to models in turn, or models to GPUs where there are more of them."""
    sets = gpus // 16
    names = [
        f"n{place}{f'-{number + 1}' if sets > 1 else ''}/{gpu}-{index}"
        for place, (_, gpu, count) in enumerate(NODES)
        for number in range(sets)
        for index in range(count)
    ]
    assert len(names) == gpus
    if gpus >= len(models):
        return {name: [models[place % len(models)]] for place, name in enumerate(names)}
    return {name: models[place::gpus] for place, name in enumerate(names)}


def floor_s(events: int, pending: int) -> float:
    """Seconds that bare SimPy takes for so many timeouts, each of which sets the next, with so many pending."""
    import simpy  # noqa: PLC0415

    environment, draw, left = simpy.Environment(), random.Random(1).random, events

    def again(_: Any) -> None:
        nonlocal left
        if left > 0:
            left -= 1
            environment.timeout(draw()).callbacks.append(again)

    for _ in range(min(pending, events)):
        left -= 1
        environment.timeout(draw()).callbacks.append(again)
    begin_s = perf_counter()
    environment.run()
    return perf_counter() - begin_s


def measure(policy: str, requests: int, gpus: int, models: int, seed: int) -> dict[str, Any]:
    """One run in this process."""
    import sim  # noqa: PLC0415
    from sim.engine.engine import simulate  # noqa: PLC0415
    from sim.runs.run_one import peak_rss_bytes  # noqa: PLC0415
    from sim.workload.requests import open_workload  # noqa: PLC0415

    asked = scenario(policy, requests, gpus, models, seed)
    workload = open_workload(asked)
    before_bytes = peak_rss_bytes() or 0
    pending: list[int] = []
    outcome = simulate(asked, workload=workload, on_events=pending.append)
    arrived = outcome.recorder.arrived
    mean_pending = max(1, round(statistics.fmean(pending))) if pending else 1
    bare_s = floor_s(outcome.events, mean_pending)
    peak_bytes = peak_rss_bytes() or 0
    return {
        "policy": policy,
        "requests": arrived,
        "gpus": gpus,
        "models": models,
        "requests_per_s": arrived / outcome.wall_s,
        "us_per_request": outcome.wall_s / arrived * 1e6,
        "events_per_request": outcome.events / arrived,
        "pending": mean_pending,
        "wall_s": outcome.wall_s,
        "floor_s": bare_s,
        "over_floor": outcome.wall_s / bare_s,
        "peak_rss_bytes": peak_bytes,
        "bytes_per_request": (peak_bytes - before_bytes) / arrived,
        "compiled": sim.COMPILED,
    }


def cases(arguments: argparse.Namespace) -> list[tuple[str, int, int, int]]:
    """(policy, requests, GPUs, models) of every measurement."""
    sizes, gpus, models = arguments.requests, arguments.gpus, arguments.models
    if arguments.grid or min(len(sizes), len(gpus), len(models)) == 1:
        return list(product(arguments.policies, sizes, gpus, models))
    middle = [values[len(values) // 2] for values in (sizes, gpus, models)]
    found: dict[tuple[int, ...], None] = {}
    for axis, values in enumerate((sizes, gpus, models)):
        for value in values:
            found[*middle[:axis], value, *middle[axis + 1 :]] = None
    return [(policy, *case) for policy in arguments.policies for case in found]  # type: ignore[misc]


def run(case: tuple[str, int, int, int], seed: int, interpreted: bool) -> dict[str, Any]:
    """One measurement in a process of its own."""
    import os  # noqa: PLC0415

    environment = {**os.environ, "SIM_INTERPRETED": "1" if interpreted else ""}
    command = [sys.executable, __file__, "--one", json.dumps(case), "--seed", str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def median_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Every number's median over the repeats; the run-to-run spread of the speed beside it."""
    found = dict(runs[0])
    for name, value in runs[0].items():
        if isinstance(value, float):
            found[name] = statistics.median(run[name] for run in runs)
    speeds = [run["requests_per_s"] for run in runs]
    return {**found, "requests_per_s_range": [min(speeds), max(speeds)], "repeats": len(runs)}


def show(rows: list[dict[str, Any]]) -> None:
    """The table on stdout."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table()
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "policy" else "right")
    for row in rows:
        table.add_row(*(text.format(**row, peak_mib=row["peak_rss_bytes"] / 2**20) for text in COLUMNS.values()))
    console = Console(width=150 if not sys.stdout.isatty() else None)
    console.print(table)
    kind = "compiled" if rows[0]["compiled"] else "interpreted; python scripts/compile.py makes it faster"
    console.print(f"engine: {kind}; medians of {rows[0]['repeats']}", highlight=False)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.replace("_", "").split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=numbers, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--gpus", type=numbers, default=[16, 256, 1024], help="multiples of 16")
    parser.add_argument("--models", type=numbers, default=[8, 32, 128])
    parser.add_argument("--policies", type=lambda text: text.split(","), default=list(POLICIES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--grid", action="store_true", help="every combination of sizes, GPUs and models")
    parser.add_argument("--huge", action="store_true", help="ten million requests too")
    parser.add_argument("--quick", action="store_true", help="less than a minute: small sizes, once each")
    parser.add_argument("--interpreted", action="store_true", help="leave a compiled engine out")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        policy, requests, gpus, models = json.loads(arguments.one)
        print(json.dumps(measure(policy, requests, gpus, models, arguments.seed)))
        return
    if wrong := [gpus for gpus in arguments.gpus if gpus < 16 or gpus % 16]:
        parser.error(f"--gpus {wrong[0]}: give multiples of 16")
    if wrong_names := [name for name in arguments.policies if name not in POLICIES]:
        parser.error(f"--policies {wrong_names[0]}: choose from {', '.join(POLICIES)}")
    if arguments.quick:
        arguments.requests, arguments.gpus, arguments.models = [2_000, 10_000], [16, 256], [8, 32]
        arguments.repeats = 1
    if arguments.huge:
        arguments.requests = [*arguments.requests, 10_000_000]
    rows = []
    for place, case in enumerate(planned := cases(arguments), start=1):
        print(f"{place} of {len(planned)}: {case}", file=sys.stderr)
        rows.append(median_of([run(case, arguments.seed, arguments.interpreted) for _ in range(arguments.repeats)]))
    if arguments.json:
        print(json.dumps(rows, indent=2))
    else:
        show(rows)


if __name__ == "__main__":
    main()
