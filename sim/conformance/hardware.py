"""Hardware with round numbers, and scenarios, requests and runs on it, made by hand.

The tables are written to a temporary folder that goes when the process does, so that checks run anywhere, without data
files. Nothing here asserts anything. Called by the checks of this package and by the tests of the engine.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from sim.engine.build_cluster import build_cluster
from sim.engine.engine import Engine
from sim.engine.ideal_hardware import in_its_world
from sim.policy.interface.policy import Policy
from sim.profiles.library import Library
from sim.scenario.scenario import Scenario, parse_scenario, resolved
from sim.traces.trace import Trace

GB = 10**9

# gpu, memory_gib, h2d_gb_s, d2h_gb_s
GPUS = (("small", 8, 10.0, 5.0), ("large", 24, 10.0, 5.0), ("fast", 8, 20.0, 10.0), ("small-s", 8, 10.0, 5.0))
# host, memory_gib, cpu_bandwidth, disk, network, h2d cap, d2h cap; all GB/s
HOSTS = (("box", 256, 40.0, 2.0, 1.0, 12.0, 6.0), ("wide", 256, 1000.0, 4.0, 8.0, 100.0, 100.0))
# model, layers, layer_bytes, head_bytes, KV bytes per token and layer, longest context
MODELS = (
    ("four", 4, GB, 0, 2500, 4096),
    ("two", 2, GB, GB // 2, 5000, 4096),
    ("eight", 8, GB // 2, GB // 4, 1000, 4096),
    ("giant", 16, GB, 0, 2500, 4096),
)
CONTEXTS = (0, 1000, 4096)
BATCHES = (1, 4, 8)


def step_s(layers: int, of: int, batch: float, context: float) -> float:
    """Seconds of a decode iteration in the synthetic tables: 10 ms on the GPU, up to 40 ms more on the CPU."""
    outside = (of - layers) / of
    return 0.010 + 0.040 * outside + 0.001 * (batch - 1) + batch * context * 1e-6 * (1 + outside)


def prefill_s(layers: int, of: int, tokens: float) -> float:
    """Seconds of an iteration that computes a prompt in the synthetic tables."""
    outside = (of - layers) / of
    return (0.010 + tokens * 1e-4) * (1 + 3 * outside)


def write_profiles(folder: Path, offload: str = "cpu", switch: str = "1.0,0.5,8.0,4.0,6.0,0.25,0.125") -> Path:
    """A profiles folder with the hardware above; engine `quick`. Returns the folder.

    `switch`: start_s, reload_fixed_s, reload, KV save and KV restore in GB/s, free_s, wake_fixed_s.
    """
    _write(
        folder / "gpus.csv",
        "gpu,name,memory_gib,h2d_gb_s,d2h_gb_s,usd_per_hour,kind,source",
        (f"{g},{g},{memory},{h2d},{d2h},1,analytic,test" for g, memory, h2d, d2h in GPUS),
    )
    _write(
        folder / "nodes.csv",
        "host,cpu,memory_gib,cpu_bandwidth_gb_s,disk_gb_s,network_gb_s,h2d_cap_gb_s,d2h_cap_gb_s,kind,source",
        (",".join(map(str, (h, h, *rest, "analytic", "test"))) for h, *rest in HOSTS),
    )
    _write(
        folder / "models.csv",
        "model,quantization,layers,layer_bytes,head_bytes,kv_bytes_per_token_layer,max_context,kind,source",
        (",".join(map(str, (m, "FP16", *rest, "analytic", "test"))) for m, *rest in MODELS),
    )
    for (gpu, *_), (host, *_) in product(GPUS, HOSTS):
        table = folder / "tables" / f"{gpu}--{host}--quick"
        table.mkdir(parents=True)
        way = "stream" if gpu.endswith("-s") else offload
        (table / "table.yaml").write_text(f"gpu: {gpu}\nhost: {host}\nengine: quick\noffload: {way}\n")
        _write_tables(table, switch)
    return folder


def _write_tables(table: Path, switch: str) -> None:
    parts = [(name, layers, of) for name, of, *_ in MODELS for layers in (0, of)]
    decode = (
        f"{name},FP16,{layers},{batch},{context},{step_s(layers, of, batch, context)!r},analytic"
        for (name, layers, of), batch, context in product(parts, BATCHES, CONTEXTS)
    )
    _write(table / "decode.csv", "model,quantization,layers,batch,context,step_s,kind", decode)
    prefill = (
        f"{name},FP16,{layers},{tokens},{prefill_s(layers, of, tokens)!r},analytic"
        for (name, layers, of), tokens in product(parts, CONTEXTS)
    )
    _write(table / "prefill.csv", "model,quantization,layers,prompt_tokens,prefill_s,kind", prefill)
    _write(
        table / "switch.csv",
        "model,quantization,start_s,reload_fixed_s,reload_gb_s,kv_save_gb_s,kv_restore_gb_s,free_s,wake_fixed_s,kind,source",
        (f"{name},FP16,{switch},analytic,test" for name, *_ in MODELS),
    )


def _write(path: Path, header: str, rows: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows, ""]), encoding="utf-8")


@cache
def synthetic(switch: str = "1.0,0.5,8.0,4.0,6.0,0.25,0.125") -> str:
    """The synthetic profiles, written once a process."""
    folder = Path(tempfile.mkdtemp(prefix="profiles-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return str(write_profiles(folder, switch=switch))


FREE_OF_COST = "0,0,8.0,4.0,6.0,0,0"


def scenario(**changes: Any) -> Scenario:
    """One `small` GPU in a `box` that serves `four` as model `a`; every argument replaces a field of the scenario."""
    models = changes.pop("models", {"a": "four"})
    if isinstance(models, dict):
        models = [{"name": name, "model": of, "engine": "quick", "max_context": 1024} for name, of in models.items()]
    data = {
        "name": "test",
        "cluster": {"nodes": [{"host": "box", "gpus": [{"gpu": "small"}]}], "gpu_reserve_gib": 0},
        "models": models,
        "workload": {"kind": "trace", "file": "unused.csv"},
        "engine": {"max_sequences": 8},
        "policy": {"name": "lru-swap"},
        "profiles": synthetic(),
        **changes,
    }
    return parse_scenario(data, "test")


def nodes(*gpus: tuple[str, int], host: str = "box", **fields: Any) -> dict[str, Any]:
    """A cluster of one node with so many GPUs of each kind."""
    node = {"host": host, "gpus": [{"gpu": gpu, "count": count} for gpu, count in gpus], **fields}
    return {"nodes": [node], "gpu_reserve_gib": 0}


Row = tuple[Any, ...]


def trace(of: Scenario, rows: Iterable[Row]) -> Trace:
    """Requests as (arrival_s, model, prompt tokens, output tokens[, priority]) in order of arrival."""
    rows = [(*row, 0) for row in rows]
    names = tuple(model.name for model in of.models)
    count = len(rows)
    return Trace(
        arrival_s=np.array([row[0] for row in rows], dtype=np.float64),
        model=np.array([names.index(row[1]) for row in rows], dtype=np.int32),
        models=names,
        prompt_tokens=np.array([row[2] for row in rows], dtype=np.int64),
        output_tokens=np.array([row[3] for row in rows], dtype=np.int64),
        service_class=np.zeros(count, dtype=np.int32),
        service_classes=tuple(c.name for c in of.service_classes),
        session=np.full(count, -1, dtype=np.int64),
        sessions=(),
        priority=np.array([row[4] for row in rows], dtype=np.int32),
    )


@cache
def _library(profiles: str | None) -> Library:
    """Tables are read once a process; they do not change."""
    return Library(Path(profiles) if profiles else None)


def play(of: Scenario, policy: Policy, requests: Trace, check: bool = True) -> Engine:
    """Run to the end with a policy object, in the world that it asks for; the laws are checked at every instant."""
    library = _library(of.profiles)
    of = in_its_world(of, policy)
    engine = Engine(of, iter([requests]), build_cluster(of, library), policy, check)
    engine.run()
    return engine


def columns(engine: Engine) -> dict[str, NDArray[Any]]:
    """The rows of all requests, in order of arrival."""
    found = {name: np.array(values) for name, values in engine.world.recorder.columns.items()}
    order = np.argsort(found["request"], kind="stable")
    return {name: values[order] for name, values in found.items()}


def as_yaml(of: Scenario) -> str:
    """The scenario as text that load_scenario reads, to play a failure again."""
    return yaml.safe_dump(resolved(of), sort_keys=False)
