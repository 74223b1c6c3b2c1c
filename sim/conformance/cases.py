"""The scenarios and requests that every policy is played on: small, varied, and unkind in one way each.

Plain data for checks.py; the machines are those of hardware.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sim.common.rng import stream
from sim.conformance.hardware import GB, Row, nodes

RESIZES = ("none", "sleep", "elastic")  # what an engine can: engine.resize
FOUR = {"a": "four", "b": "two", "c": "eight", "d": "giant"}
_SEED = 1


def requests(models: Iterable[str], count: int, gap_s: float) -> list[Row]:
    """Poisson arrivals of all the models in no order."""
    draws = stream(_SEED, "conformance", "requests")
    names = list(models)
    gaps_s = draws.exponential(gap_s, count).cumsum().tolist()
    return [
        (arrival_s, names[draws.integers(len(names))], int(draws.integers(1, 500)), int(draws.integers(1, 500)))
        for arrival_s in gaps_s
    ]


def tight(models: dict[str, str], **fields: Any) -> dict[str, Any]:
    """One small GPU, and host memory for one copy of everything."""
    return {"models": models, "cluster": nodes(("small", 1), **fields)}


def large_cluster() -> dict[str, Any]:
    """More GPUs than a policy need look at for one load (decision.LOOKED_AT), of two kinds, in several nodes."""
    few = nodes(("small", 7), ("large", 1))["nodes"][0]
    return {"models": {**FOUR, "e": "two", "f": "eight"}, "cluster": {"nodes": [{**few, "count": 8}]}}


SCENARIOS: dict[str, dict[str, Any]] = {
    "one-model": {},
    "one-model-in-part": {"models": {"a": "giant"}},
    "memory-pressure": tight(FOUR),
    "disk": tight(FOUR, cache_at_start="none"),
    "small-weight-cache": tight(FOUR, weight_cache_gib=17.0),
    "small-host": tight({"a": "four", "b": "two", "c": "eight"}, memory_gib=7.0 * GB / 2**30),
    "hardly-any-host-memory": tight({"a": "four", "b": "two"}, memory_gib=0.5),
    "impossible": tight({"a": "four", "b": "giant"}, memory_gib=5.0 * GB / 2**30),
    "two-nodes": {
        "models": FOUR,
        "cluster": {
            "nodes": [{"host": "box", "gpus": [{"gpu": "small"}, {"gpu": "fast"}]}, *nodes(("large", 1))["nodes"]]
        },
    },
    "streaming": {"models": FOUR, "cluster": nodes(("small-s", 2), host="wide")},
    "two-of-one": {"models": {"a": "four", "b": "four", "c": "four"}},
    "impatient": {**tight(FOUR), "service_classes": [{"name": "default", "patience_s": 5.0}]},
    "known-lengths": {**tight(FOUR), "predictor": {"kind": "oracle"}},
}


_TWO_NODES = {
    "nodes": [*nodes(("small", 1), ("fast", 1))["nodes"], *nodes(("large", 1))["nodes"]],
    "gpu_reserve_gib": 0,
}
_HARD_TIMES = {
    "gpu_failure": {"mean_between_s": 40.0, "mean_repair_s": 8.0},
    "node_loss": {"mean_between_s": 90.0, "repair_s": 9.0},
    "slow_link": {"mean_between_s": 10.0, "mean_for_s": 10.0, "factor": 0.05},
    "load_failure": {"probability": 0.2},
    "cancellation": {"probability": 0.2, "mean_after_s": 20.0},
}
# What fails is back after a while, or others can take its place: nobody needs to wait for ever.
FAULTS: dict[str, dict[str, Any]] = {
    "the-only-gpu-fails": {
        **tight(FOUR),
        "faults": {"events": [{"kind": "gpu_failure", "at_s": 4.0, "gpu": "box-1/small-0", "repair_s": 10.0}]},
    },
    "a-gpu-is-gone-for-good": {
        "models": FOUR,
        "cluster": nodes(("small", 2)),
        "faults": {"events": [{"kind": "gpu_failure", "at_s": 4.0, "gpu": "box-1/small-0"}]},
    },
    "hard-times": {"models": FOUR, "cluster": _TWO_NODES, "faults": {"retries": 5, "random": _HARD_TIMES}},
}


def giants(draw: int) -> tuple[dict[str, Any], list[Row]]:
    """Models that fit in parts, on one or two GPUs that are not alike, and so few requests that no later event wakes a
    policy which decided to wait for nothing."""
    draws = stream(draw, "conformance", "giants")
    gpus = [(str(draws.choice(["small", "fast", "small-s"])), 1) for _ in range(draws.integers(1, 3))]
    gaps_s = draws.choice([0.0, 0.05, 0.7, 3.0], draws.integers(2, 7))
    prompts = draws.choice([1, 60, 400], len(gaps_s)).tolist()
    outputs = draws.choice([[1, 1], [1, 20], [20, 400]][draw % 3], len(gaps_s)).tolist()
    arrivals_s = gaps_s.cumsum().tolist()
    rows: list[Row] = [(s, "a", *both) for s, *both in zip(arrivals_s, prompts, outputs, strict=True)]
    return {"models": {"a": "giant"}, "cluster": nodes(*gpus, host="wide")}, rows
