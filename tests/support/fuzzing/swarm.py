"""Random experiments of every kind: each one has whole features on or off, so that rare corners are reached.

`swarm_case` draws a Case, plain data that can be cut down and written down: a scenario, its requests, and its policy.
Choices come from a seed (random_cases.Seeded), or from Hypothesis (test_machine.py). Nothing here plays anything.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import nan
from typing import Any, Protocol, TypeVar

import numpy as np

from sim.scenario.scenario import GIB, Scenario, parse_scenario
from sim.traces.trace import Trace
from tests.support.fuzzing.random_cases import REAL_GPUS, REAL_HOST, REAL_MODELS, SIZES, SWITCHES
from tests.support.scenarios import GB, MODELS, synthetic

Choice = TypeVar("Choice")

# Each is on in every second case, but for those that change everything else.
RARE = {"real": 0.05, "ideal": 0.15, "cut": 0.15, "huge": 0.1, "patience": 0.25, "faults": 0.3, "random_faults": 0.1}
FEATURES = (
    *("many", "nodes", "uneven", "crowd", "small_host", "cold", "cache_limit", "own_weights", "tight_pool", "chunked"),
    *("swap", "priority", "resizes", "one_by_one", "time_slice", "serial", "classes", "sessions", "ties"),
    *("long", "burst", "impossible", "oracle", "watermark", "blocks", "pieces", "slow", "free", "spread"),
    *RARE,
)


class Draws(Protocol):
    """Where choices come from."""

    def pick(self, options: Sequence[Choice]) -> Choice: ...

    def number(self, low: int, high: int) -> int: ...


# arrival_s, model, prompt, output, priority, class, session (-1: none), think_s (NaN: not waiting for an answer)
CaseRow = tuple[float, int, int, int, int, int, int, float]


@dataclass(frozen=True)
class Case:
    """An experiment. data: a scenario's, but for its profiles; switch: which synthetic tables, None: the measured ones;
    policy: a scenario's; pieces: how many requests the engine is given at once."""

    data: dict[str, Any]
    switch: str | None
    rows: tuple[CaseRow, ...]
    policy: dict[str, Any]
    pieces: int = 10_000
    features: tuple[str, ...] = field(default=())

    def scenario(self) -> Scenario:
        """As the engine plays it. Raises ConfigError."""
        profiles = None if self.switch is None else synthetic(self.switch)
        return parse_scenario({**self.data, "profiles": profiles, "policy": self.policy}, "case")

    def trace(self) -> Trace:
        """Its requests. The first of a session waits for nobody."""
        of = self.data
        seen: dict[int, float] = {}
        think_s = []
        for arrival_s, *_, session, think in self.rows:
            think_s.append(nan if session < 0 or session not in seen else think)
            seen[session] = arrival_s
        columns: list[Any] = [*zip(*self.rows, strict=True)] if self.rows else [()] * 8
        sessions = max([*columns[6], -1]) + 1
        return Trace(
            arrival_s=np.array(columns[0], dtype=np.float64),
            model=np.array(columns[1], dtype=np.int32),
            models=tuple(model["name"] for model in of["models"]),
            prompt_tokens=np.array(columns[2], dtype=np.int64),
            output_tokens=np.array(columns[3], dtype=np.int64),
            priority=np.array(columns[4], dtype=np.int32),
            service_class=np.array(columns[5], dtype=np.int32),
            service_classes=tuple(one["name"] for one in of.get("service_classes", [{"name": "default"}])),
            session=np.array(columns[6], dtype=np.int64),
            sessions=tuple(f"s{number}" for number in range(sessions)),
            think_s=np.array(think_s, dtype=np.float64) if sessions else None,
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    def with_policy(self, **policy: Any) -> Case:
        return replace(self, policy=policy)


def case_of(text: str) -> Case:
    """The case that to_json wrote."""
    data = json.loads(text)
    return Case(**{**data, "rows": tuple(tuple(row) for row in data["rows"]), "features": tuple(data["features"])})


def swarm_case(draws: Draws, **policy: Any) -> Case:
    """A case for this policy, a scenario's `policy`. Its data may be refused as a user's mistake (ConfigError)."""
    on = {name: draws.number(0, 99) >= 100 - 100 * RARE.get(name, 0.5) for name in FEATURES}
    real = on["real"]
    models = _models(draws, on)
    classes = _classes(draws, on)
    data: dict[str, Any] = {
        "name": "swarm",
        "cluster": {"nodes": _nodes(draws, on, models), "gpu_reserve_gib": draws.pick((0, 0.5)) if on["many"] else 0},
        "models": models,
        "workload": {"kind": "trace", "file": "unused.csv"},
        "engine": _engine(draws, on),
        "sharing": {
            "contention": _contention(on),
            "links": "serial" if on["serial"] else "fair",
        },
        "predictor": {"kind": draws.pick(("oracle", "noisy-oracle")) if on["oracle"] else "running-mean"},
        "service_classes": classes,
        "seed": draws.number(0, 99),
        "horizon_s": draws.pick((0.5, 4.0, 20.0)) if on["cut"] else None,
    }
    data["faults"] = _faults(draws, on, data) if on["faults"] or on["random_faults"] else None
    slow, free = SWITCHES[2], SWITCHES[1]
    switch = None if real else free if on["free"] and not on["slow"] else slow if on["slow"] else SWITCHES[0]
    rows = _rows(draws, on, data)
    pieces = draws.number(1, 3) if on["pieces"] else 10_000
    return Case(data, switch, rows, policy, pieces, tuple(name for name in FEATURES if on[name]))


def _models(draws: Draws, on: dict[str, bool]) -> list[dict[str, Any]]:
    found = []
    for index in range(draws.number(1, 6 if on["crowd"] else 3)):
        max_context = draws.pick((64, 256, 1024) if on["long"] else (64, 256))
        spec: dict[str, Any] = {"name": f"m{index}", "max_context": max_context}
        if on["real"]:
            spec["model"], spec["quantization"] = draws.pick(REAL_MODELS)
        else:
            spec["model"], spec["engine"] = draws.pick([name for name, *_ in MODELS]), "quick"
        if on["own_weights"]:
            spec["own_weights"] = draws.pick((False, True))
        if not on["small_host"]:  # a pool that fits nowhere is a mistake of the user
            spec["kv_tokens"] = max_context + (draws.number(0, 8) if on["tight_pool"] else draws.number(0, 900))
        if on["priority"]:
            spec["weight"] = draws.pick((1.0, 3.0))
        found.append(spec)
    return found


def _contention(on: dict[str, bool]) -> str:
    """Without a draw of its own: what a seed has been drawing after this stays as it is."""
    if not on["time_slice"]:
        return "proportional"
    return "processor_sharing" if on["spread"] else "time_slice"


def _nodes(draws: Draws, on: dict[str, bool], models: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Up to 8 GPUs. Host memory is ample, or room for some of the weights and a little KV."""
    kinds: tuple[str, ...] = REAL_GPUS if on["real"] else ("small", "large", "fast", "small-s")
    nodes: list[dict[str, Any]] = []
    left = 8
    for _ in range(draws.number(2, 3) if on["nodes"] else 1):
        groups = []
        for _ in range(draws.number(1, 2) if on["uneven"] else 1):
            count = draws.number(1, min(left, 4) if on["many"] else 1) if left > 0 else 0
            left -= count
            if count:
                groups.append({"gpu": draws.pick(kinds) if on["uneven"] else kinds[0], "count": count})
        if not groups:
            break
        host = REAL_HOST if on["real"] else draws.pick(("box", "wide"))
        node: dict[str, Any] = {"name": f"n{len(nodes)}", "host": host, "gpus": groups}
        node["cache_at_start"] = "none" if on["cold"] else "all"
        if on["small_host"] and not on["real"]:
            chosen = sum(SIZES[model["model"]] for model in models[: draws.number(1, len(models))])
            node["memory_gib"] = (chosen + draws.pick((0.0, 0.005, 0.02, 1.0)) * GB) / GIB
        if on["cache_limit"]:
            node["weight_cache_gib"] = draws.pick((5.0, 20.0))
        nodes.append(node)
    return nodes


def _engine(draws: Draws, on: dict[str, bool]) -> dict[str, Any]:
    ideal = draws.pick((("memory",), ("switches",), ("memory", "switches"))) if on["ideal"] else ()
    return {
        "max_sequences": 1 if on["one_by_one"] and draws.number(0, 1) else draws.pick((8, 4, 2)),
        "prefill": "chunked" if on["chunked"] else "first",
        "prefill_tokens": draws.pick((8192, 64, 9)),
        "watermark": draws.pick((0.01, 0.3, 0.9)) if on["watermark"] else 0.0,
        "block_tokens": draws.pick((16, 5, 100)) if on["blocks"] else 1,
        "sequence_preemption": "swap" if on["swap"] else "recompute",
        "sequence_order": "priority" if on["priority"] else "arrival",
        "resize": draws.pick(("sleep", "elastic")) if on["resizes"] else "none",
        "ideal": list(ideal),
    }


def _classes(draws: Draws, on: dict[str, bool]) -> list[dict[str, Any]]:
    found = []
    for name in ("default", "batch", "live")[: draws.number(2, 3) if on["classes"] else 1]:
        one: dict[str, Any] = {"name": name}
        if on["patience"]:
            one["patience_s"] = draws.pick((None, 0.3, 2.0, 20.0))
        if on["classes"]:
            one |= {"ttft_s": draws.pick((0.5, 5.0)), "e2e_s": draws.pick((None, 9.0))}
            one["weight"] = draws.pick((1.0, 5.0))
        found.append(one)
    return found


def _faults(draws: Draws, on: dict[str, bool], data: dict[str, Any]) -> dict[str, Any]:
    """Faults at drawn times, while things are going on, of GPUs, nodes, links, loads and clients; and random ones."""
    nodes = data["cluster"]["nodes"]
    gpus = [name for node in nodes for name in gpu_names(node)]
    events: list[dict[str, Any]] = []
    for _ in range(draws.number(1, 6) if on["faults"] else 0):
        kind = draws.pick(("gpu_failure", "node_loss", "slow_link", "load_failure", "cancellation"))
        event: dict[str, Any] = {"kind": kind, "at_s": draws.number(0, 30_000) / 1000}
        lasts_s = draws.pick((0.5, 3.0, 20.0))
        if kind == "cancellation":
            event["request"] = draws.number(0, 12)
        elif kind == "node_loss":
            event |= {"node": draws.pick(nodes)["name"], "repair_s": lasts_s}
        else:
            event["gpu"] = draws.pick(gpus)
        if kind == "gpu_failure":
            event["repair_s"] = None if len(gpus) > 1 and draws.number(0, 3) == 0 else lasts_s
        elif kind == "slow_link":
            event |= {"factor": draws.pick((0.01, 0.5)), "for_s": lasts_s}
            if draws.number(0, 1):
                del event["gpu"]
                event |= {"node": draws.pick(nodes)["name"], "links": [draws.pick(("disk", "network", "h2d", "d2h"))]}
        events.append(event)
    random: dict[str, Any] = {}
    if on["random_faults"]:
        random = {
            "gpu_failure": {"mean_between_s": 20, "mean_repair_s": 3} if draws.number(0, 1) else None,
            "node_loss": {"mean_between_s": 60, "repair_s": 5} if draws.number(0, 1) else None,
            "slow_link": {"mean_between_s": 20, "factor": 0.1, "mean_for_s": 5} if draws.number(0, 1) else None,
            "load_failure": {"probability": 0.2} if draws.number(0, 1) else None,
            "cancellation": {"probability": 0.2, "mean_after_s": 5} if draws.number(0, 1) else None,
        }
    return {"retries": draws.pick((None, 3, 1, 0)), "events": events, "random": random}


def gpu_names(node: dict[str, Any]) -> list[str]:
    """As tables of results call them."""
    kinds = [group["gpu"] for group in node["gpus"] for _ in range(group["count"])]
    return [f"{node['name']}/{kind}-{place}" for place, kind in enumerate(kinds)]


def _rows(draws: Draws, on: dict[str, bool], data: dict[str, Any]) -> tuple[CaseRow, ...]:
    """Requests that come at the same time or at no round time, long and short, in sessions or not."""
    rows: list[CaseRow] = []
    now_s = 0.0
    pace = 3.0 if on["spread"] else 1.0
    gaps_s = (0.0, 0.0, 0.05, 0.7, 3.0) if on["ties"] else None
    for _ in range(draws.number(1, 60 if on["huge"] else 24)):
        gap_s = draws.pick(gaps_s) if gaps_s else draws.number(1, 999_983) / 1e6 * draws.pick((0.1, 1.0, pace))
        now_s += 0.0 if on["burst"] and draws.number(0, 3) else gap_s
        model = draws.number(0, len(data["models"]) - 1)
        longest = data["models"][model]["max_context"]
        prompt = draws.pick((1, draws.number(1, longest // 2), longest - 1))
        output = draws.pick((1, draws.number(1, longest // 2), longest - prompt))
        if not (on["impossible"] and draws.number(0, 9) == 0):
            output = min(output, longest - prompt)
        session, think_s = -1, nan
        if on["sessions"] and draws.number(0, 2):
            session = draws.number(0, 3)
            think_s = draws.pick((0.0, 0.5, 4.0, nan))
        rank = draws.number(0, len(data["service_classes"]) - 1)
        rows.append((now_s, model, prompt, output, draws.number(0, 2), rank, session, think_s))
    return tuple(rows)
