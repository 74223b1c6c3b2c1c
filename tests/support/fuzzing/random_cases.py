"""Random small experiments: clusters, models, engine options and requests, drawn so that memory is tight and times tie.

`random_case` gives a scenario and its rows for scenarios.trace, from `Seeded` choices: a case is named by one number,
so that thousands are quickly played and one is quickly played again.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

from sim.scenario.scenario import GIB, Scenario
from tests.support.scenarios import FREE_OF_COST, GB, MODELS, Row, scenario, synthetic

Choice = TypeVar("Choice")
SLOW_KV = "0.2,0.1,8.0,0.01,0.02,0.05,0.0"
SWITCHES = ("1.0,0.5,8.0,4.0,6.0,0.25,0.125", FREE_OF_COST, SLOW_KV)
SIZES = {name: layers * layer_bytes + head_bytes for name, layers, layer_bytes, head_bytes, *_ in MODELS}
REAL_HOST = "tr-pro-5995wx"
REAL_GPUS = ("rtx-a6000", "rtx-5000-ada", "rtx-4090")
REAL_MODELS = (("Qwen2.5-3B", "FP16"), ("Llama-3-8B", "FP16"), ("Qwen2.5-14B", "FP16"))


class Seeded:
    """Choices from a seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def pick(self, options: Sequence[Choice]) -> Choice:
        return self.random.choice(options)

    def number(self, low: int, high: int) -> int:
        return self.random.randint(low, high)


def random_case(draws: Seeded, real: bool = False, **changes: Any) -> tuple[Scenario, list[Row]]:
    """A scenario and its requests; `real` takes hardware and models from profiles/. `changes` replace fields."""
    models = _models(draws, real)
    gpu_kinds, hosts = (REAL_GPUS, (REAL_HOST,)) if real else (("small", "large", "fast", "small-s"), ("box", "wide"))
    nodes = [_node(draws, gpu_kinds, hosts, models, real) for _ in range(draws.number(1, 3))]
    if any(node.get("memory_gib") for node in nodes):
        models = [{**model, "kv_tokens": None} for model in models]  # a pool that fits nowhere is a mistake of the user
    fields: dict[str, Any] = {
        "cluster": {"nodes": nodes, "gpu_reserve_gib": draws.pick((0, 0.5))},
        "models": models,
        "engine": _engine(draws),
        "sharing": {
            "contention": draws.pick(("proportional", "processor_sharing", "time_slice")),
            "links": draws.pick(("fair", "serial")),
        },
        "predictor": {"kind": draws.pick(("running-mean", "oracle", "noisy-oracle"))},
        "service_classes": [{"name": "default", "patience_s": draws.pick((None, None, 2.0, 20.0))}],
        "profiles": None if real else synthetic(draws.pick(SWITCHES)),
        "seed": draws.number(0, 99),
    }
    of = scenario(**{**fields, **changes})
    return of, _rows(draws, of)


def _models(draws: Seeded, real: bool) -> list[dict[str, Any]]:
    found = []
    for index in range(draws.number(1, 4)):
        max_context = draws.pick((64, 256, 1024))
        spec: dict[str, Any] = {"name": f"m{index}", "max_context": max_context}
        if real:
            spec["model"], spec["quantization"] = draws.pick(REAL_MODELS)
        else:
            spec["model"], spec["engine"] = draws.pick([name for name, *_ in MODELS]), "quick"
        spec["kv_tokens"] = draws.pick((None, max_context + draws.number(0, 500)))
        found.append(spec)
    return found


def _node(
    draws: Seeded, gpus: Sequence[str], hosts: Sequence[str], models: list[dict[str, Any]], real: bool
) -> dict[str, Any]:
    """Host memory is ample, or room for some of the weights and a little KV."""
    node: dict[str, Any] = {
        "host": draws.pick(hosts),
        "gpus": [{"gpu": draws.pick(gpus), "count": draws.number(1, 2)} for _ in range(draws.number(1, 2))],
        "cache_at_start": draws.pick(("all", "none")),
    }
    if not real:
        chosen = sum(SIZES[model["model"]] for model in models[: draws.number(1, len(models))])
        spare = draws.pick((0.0, 0.005, 0.02, 1.0)) * GB
        node["memory_gib"] = draws.pick((None, (chosen + spare) / GIB))
    node["weight_cache_gib"] = draws.pick((None, None, 5.0, 20.0))
    return node


def _engine(draws: Seeded) -> dict[str, Any]:
    return {
        "max_sequences": draws.pick((8, 4, 1)),
        "prefill": draws.pick(("first", "chunked")),
        "prefill_tokens": draws.pick((8192, 64, 9)),
        "watermark": draws.pick((0.01, 0.0, 0.3)),
        "block_tokens": draws.pick((16, 1, 5)),
        "sequence_preemption": draws.pick(("recompute", "swap")),
        "sequence_order": draws.pick(("arrival", "priority")),
        "resize": draws.pick(("none", "sleep", "elastic")),
    }


def _rows(draws: Seeded, of: Scenario) -> list[Row]:
    """Requests that often come at the same time, long and short; a few are too long for their model."""
    rows: list[Row] = []
    now_s = 0.0
    for _ in range(draws.number(1, 24)):
        now_s += draws.pick((0.0, 0.0, 0.05, 0.7, 3.0))
        model = draws.pick(of.models)
        longest = model.max_context or 0
        prompt = draws.pick((1, draws.number(1, longest // 2), longest - 1))
        output = draws.pick((1, draws.number(1, longest // 2), longest - prompt))
        if draws.number(0, 9):
            output = min(output, longest - prompt)
        rows.append((now_s, model.name, prompt, output, draws.number(0, 2)))
    return rows
