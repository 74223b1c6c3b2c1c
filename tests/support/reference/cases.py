"""Random scenarios for the comparison with the reference engine: hardware, tables, placement, requests, options.

Structure and sizes come from Hypothesis, so that failures shrink; times are noise of a drawn seed, so that no two
events meet by construction. `write_profiles` and `scenario_of` say the same to the real engine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from hypothesis import strategies as st

from sim.scenario.scenario import Scenario, parse_scenario
from sim.traces.trace import Trace


@dataclass
class Table:
    """A random profile: seconds at every knot, and costs. `offload`: cpu or stream."""

    layers: int
    layer_knots: list[int]
    batch_knots: list[int]
    context_knots: list[int]
    prompt_knots: list[int]
    decode: dict[tuple[int, int, int], float]
    prefill: dict[tuple[int, int], float]
    layer_bytes: int
    kv_bytes: int
    switch: list[float]
    offload: str


@dataclass
class Case:
    """A scenario with its placement, (model, GPU, layers, KV tokens) each, and its requests."""

    nodes: list[int]  # GPUs of each
    hardware: list[float]  # GB/s: CPU, h2d and d2h of a GPU, their caps per node
    tables: list[Table]
    placement: list[tuple[int, int, int, int]]
    requests: list[tuple[float, int, int, int, int]]  # arrival_s, model, prompt, output, priority
    engine: dict[str, Any]
    sharing: dict[str, str]
    horizon_s: float | None
    max_context: int
    folder: Path = field(default_factory=Path)


# --- drawing


def _rising(noise: Random, knots: list[int], start: float, step: float) -> list[float]:
    values = [start]
    for _ in knots[1:]:
        values.append(values[-1] + step * noise.random())
    return values


def _inner(draw: st.DrawFn, low: int, high: int) -> list[int]:
    return sorted(draw(st.sets(st.integers(low, high), max_size=2))) if low <= high else []


@st.composite
def _tables(draw: st.DrawFn, noise: Random, max_context: int, max_sequences: int) -> Table:
    """Times rise with batch and context and fall with the layers on the GPU; the host's part is never negative."""
    layers = draw(st.integers(1, 6))
    free_prompts = draw(st.booleans())  # nothing for the host to do in prompts
    fewest = draw(st.integers(0, min(1, layers - 1)))
    middle = range(1, layers) if free_prompts else _inner(draw, fewest + 1, layers - 1)
    layer_knots = [*dict.fromkeys([fewest, *middle, layers])]
    batch_knots = [1, *_inner(draw, 2, max_sequences), max_sequences + 1]
    first = draw(st.sampled_from([0, 0, 40]))
    context_knots = [first, *_inner(draw, first + 1, max_context - 1), max(max_context, first + 1) + 1]
    prompt_knots = [first, *_inner(draw, first + 1, max_context - 1), max(max_context, first + 1) + 1]
    outside = dict(zip(layer_knots, reversed(_rising(noise, layer_knots, 0.0, 1.0)), strict=True))
    parts = []
    for scale in (0.004, 0.012):  # of the whole model on the GPU, and of the host without any layer there
        by_batch = _rising(noise, batch_knots, scale * (0.5 + noise.random()), scale)
        by_context = _rising(noise, context_knots, 0.0, scale)
        parts.append((by_batch, by_context))
    decode = {}
    for k in layer_knots:
        for i, batch in enumerate(batch_knots):
            for j, context in enumerate(context_knots):
                whole, host = (a[i] + b[j] * (1 + 0.3 * batch) for a, b in parts)
                decode[k, batch, context] = k / layers * whole + outside[k] * host
    whole_s = _rising(noise, prompt_knots, 0.003 + 0.003 * noise.random(), 0.05)
    host_s = _rising(noise, prompt_knots, 0.01 * noise.random(), 0.0 if free_prompts else 0.05)
    prefill = {
        (k, tokens): k / layers * whole_s[j] + (0.0 if free_prompts and k else outside[k] * host_s[j])
        for k in layer_knots
        for j, tokens in enumerate(prompt_knots)
    }
    slow_start = draw(st.booleans())
    return Table(
        layers, layer_knots, batch_knots, context_knots, prompt_knots, decode, prefill,
        layer_bytes=round(1e9 * noise.random()) if slow_start else 1,
        kv_bytes=round(10 ** noise.uniform(4, 6.5)),
        switch=[*(0.2 * noise.random() * slow_start for _ in range(2)), *(1 + 20 * noise.random() for _ in range(3))],
        offload=draw(st.sampled_from(["cpu", "cpu", "stream"])),
    )  # fmt: skip


@st.composite
def _engines(draw: st.DrawFn) -> dict[str, Any]:
    """Small batches, budgets and blocks, so that everything that can be full is."""
    max_sequences = draw(st.integers(1, 3) | st.integers(4, 8))
    prefill = draw(st.sampled_from(["first", "chunked"]))
    return {
        "max_sequences": max_sequences,
        "prefill": prefill,
        "prefill_tokens": max_sequences + draw(st.integers(1, 3) | st.integers(1, 50) | st.integers(50, 600)),
        "watermark": draw(st.sampled_from([0.0, 0.01, 0.2])),
        "block_tokens": draw(st.sampled_from([1, 3, 16, 50])),
        "sequence_preemption": draw(st.sampled_from(["recompute", "swap"])),
        "sequence_order": draw(st.sampled_from(["arrival", "priority"])),
    }


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Structure and sizes are drawn, times are noise of a drawn seed, so that no two events meet by construction."""
    noise = Random(draw(st.integers(0, 2**32)))
    engine = draw(_engines())
    nodes = draw(st.lists(st.integers(1, 2), min_size=1, max_size=2))
    count = draw(st.integers(1, 18))
    longest = draw(st.sampled_from([12, 60, 250]))
    prompts, outputs = st.integers(1, longest), st.integers(1, longest)
    models = draw(st.integers(1, 3))
    drawn = draw(
        st.lists(
            st.tuples(st.integers(0, models - 1), prompts, outputs, st.integers(0, 2)), min_size=count, max_size=count
        )
    )
    max_context = max(prompt + output for _, prompt, output, _ in drawn)
    found = [draw(_tables(noise, max_context, engine["max_sequences"])) for _ in range(models)]
    rooms = st.sampled_from([0, max_context // 8, max_context // 3, 3 * max_context])
    extra = draw(st.lists(st.integers(0, models - 1), max_size=4 - models))
    placement = [
        (
            model,
            draw(st.integers(0, sum(nodes) - 1)),
            draw(st.integers(found[model].layer_knots[0], found[model].layers)),
            max_context + draw(rooms),
        )
        for model in (*range(models), *extra)
    ]
    gap_s = draw(st.sampled_from([0.001, 0.01, 0.1]))
    arrival_s = 0.0
    requests = []
    for model, prompt, output, priority in drawn:
        arrival_s += noise.expovariate(1 / gap_s)
        requests.append((arrival_s, model, prompt, output, priority))
    return Case(
        nodes,
        [20 + 80 * noise.random(), *(3 + 20 * noise.random() for _ in range(4))],
        found,
        placement,
        requests,
        engine,
        {
            "contention": draw(st.sampled_from(["proportional", "processor_sharing", "time_slice"])),
            "links": draw(st.sampled_from(["fair", "serial"])),
        },
        draw(st.none() | st.none() | st.floats(0.01, 3.0).map(lambda s: s * (1 + 1e-3 * noise.random()))),
        max_context,
    )


# --- playing


def write_profiles(folder: Path, case: Case) -> None:
    """One kind of GPU and host; each model has an engine of its own, so that offload may differ."""
    cpu, *links = case.hardware
    _write(
        folder / "gpus.csv",
        ["gpu,name,memory_gib,h2d_gb_s,d2h_gb_s,usd_per_hour,kind,source", f"g,g,10000,{links[0]!r},{links[1]!r},1,,"],
    )
    _write(
        folder / "nodes.csv",
        [
            "host,cpu,memory_gib,cpu_bandwidth_gb_s,disk_gb_s,network_gb_s,h2d_cap_gb_s,d2h_cap_gb_s,kind,source",
            f"h,h,10000,{cpu!r},1,1,{links[2]!r},{links[3]!r},,",
        ],
    )
    models = ["model,quantization,layers,layer_bytes,head_bytes,kv_bytes_per_token_layer,max_context,kind,source"]
    for number, table in enumerate(case.tables):
        name = f"m{number},FP16"
        models.append(f"{name},{table.layers},{table.layer_bytes},{table.layer_bytes},{table.kv_bytes},100000,,")
        home = folder / "tables" / str(number)
        home.mkdir(parents=True)
        _write(home / "table.yaml", [f"{{gpu: g, host: h, engine: e{number}, offload: {table.offload}}}"])
        decode = [f"{name},{k},{batch},{context},{s!r}" for (k, batch, context), s in table.decode.items()]
        _write(home / "decode.csv", ["model,quantization,layers,batch,context,step_s", *decode])
        prefill = [f"{name},{k},{prompt},{s!r}" for (k, prompt), s in table.prefill.items()]
        _write(home / "prefill.csv", ["model,quantization,layers,prompt_tokens,prefill_s", *prefill])
        switch = "start_s,reload_fixed_s,reload_gb_s,kv_save_gb_s,kv_restore_gb_s,free_s,wake_fixed_s,kind,source"
        costs = ",".join(map(repr, table.switch))
        _write(home / "switch.csv", [f"model,quantization,{switch}", f"{name},{costs},0,0,,"])
    _write(folder / "models.csv", models)


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join([*[line.replace(",,", ",analytic,test") for line in lines], ""]), encoding="utf-8")


def scenario_of(case: Case) -> Scenario:
    """What the real engine is told; the policy's name in it is not used."""
    models = [
        {"name": f"m{i}", "model": f"m{i}", "engine": f"e{i}", "max_context": case.max_context}
        for i in range(len(case.tables))
    ]
    nodes = [{"host": "h", "gpus": [{"gpu": "g", "count": gpus}]} for gpus in case.nodes]
    data = {
        "name": "random",
        "cluster": {"nodes": nodes},
        "models": models,
        "workload": {"file": "none.csv"},
        "engine": case.engine,
        "sharing": case.sharing,
        "profiles": str(case.folder),
        "horizon_s": case.horizon_s,
    }
    return parse_scenario(data, "random")


def trace_of(case: Case) -> Trace:
    """The requests as the real engine reads them."""
    arrival_s, model, prompt, output, priority = zip(*case.requests, strict=True)
    none = np.zeros(len(model), dtype=np.int32)
    return Trace(
        arrival_s=np.array(arrival_s, dtype=np.float64),
        model=np.array(model, dtype=np.int32),
        models=tuple(f"m{i}" for i in range(len(case.tables))),
        prompt_tokens=np.array(prompt, dtype=np.int64),
        output_tokens=np.array(output, dtype=np.int64),
        service_class=none,
        service_classes=("default",),
        session=none - np.int64(1),
        sessions=(),
        priority=np.array(priority, dtype=np.int32),
    )
