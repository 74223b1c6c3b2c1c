"""The small real server of `validate`: real tensors, so what comes out can be compared token by token."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sim.core.state.request import COMPLETED
from sim.results.request_table import request_table
from sim.scenario.scenario import parse_scenario
from tests.support.places import ROOT

torch = pytest.importorskip("torch", reason="torch is not installed (pip install '.[profile]')")
pytest.importorskip("safetensors", reason="safetensors is not installed (pip install '.[profile]')")

from sim.hardware.model.device import Device, DeviceMemoryError  # noqa: E402
from sim.hardware.model.transformer import Item, Transformer  # noqa: E402
from sim.hardware.model.weights import HostWeights  # noqa: E402
from sim.profiling.architectures import Architecture  # noqa: E402

SHAPE = Architecture("tiny", 4, 64, 4, 2, 16, 128, 256, True, 256)
UNTIED = Architecture("untied", 3, 32, 2, 1, 16, 64, 128, False, 256)
CONTEXT, SLOTS = 96, 3


@pytest.fixture
def device() -> Any:
    cores = os.sched_getaffinity(0)
    yield Device("cpu")
    os.sched_setaffinity(0, cores)  # the device binds threads that it is used from


def answer(weights: HostWeights, device: Device, prompt: list[int], tokens: int, **how: Any) -> list[int]:
    """The tokens that follow a prompt, computed alone; how: layers, offload."""
    instance = Transformer(weights, device, how["layers"], SLOTS, CONTEXT, how["offload"])
    instance.load()
    text = [*prompt, *instance.forward([Item(0, prompt, 0)])]
    while len(text) < len(prompt) + tokens:
        text += instance.forward([Item(0, text[-1:], len(text) - 1)])
    instance.free()
    return text[len(prompt) :]


@pytest.mark.parametrize("shape", [SHAPE, UNTIED])
def test_where_the_layers_are_does_not_change_what_comes_out(device: Device, shape: Architecture) -> None:
    weights = HostWeights(shape, device, torch.float32)
    prompt = [7, 3, 99, 12, 55, 4, 31]
    whole = answer(weights, device, prompt, 12, layers=shape.layers, offload="cpu")
    assert len(set(whole)) > 2  # it does not repeat itself, so tokens tell where it is
    for layers in range(shape.layers + 1):
        for offload in ("cpu", "stream"):
            assert answer(weights, device, prompt, 12, layers=layers, offload=offload) == whole, (layers, offload)
    assert device.used_bytes == 0


def test_chunks_batches_and_saved_kv_continue_where_they_were(device: Device) -> None:
    weights = HostWeights(SHAPE, device, torch.float32)
    prompt = list(range(10, 40))
    alone = answer(weights, device, prompt, 8, layers=4, offload="cpu")
    instance = Transformer(weights, device, 2, SLOTS, CONTEXT)
    instance.load()
    other = [5, 6, 7, *instance.forward([Item(1, [5, 6, 7], 0)])]
    instance.forward([Item(0, prompt[:13], 0)])
    first = instance.forward([Item(0, prompt[13:], 13), Item(1, other[-1:], 3)])  # a chunk beside a decoding sequence
    text = [*prompt, first[0]]
    text += instance.forward([Item(0, text[-1:], 30)])
    buffer = instance.kv_buffer(31)
    instance.save_kv(0, 31, buffer)
    instance.free()
    another = Transformer(weights, device, 3, SLOTS, CONTEXT, "stream")
    another.load()
    another.restore_kv(2, 31, buffer)
    while len(text) < 38:
        text += another.forward([Item(2, text[-1:], len(text) - 1), Item(1, [9], 0)])[:1]
    assert text[30:] == alone
    another.free()


def test_the_budget_holds(device: Device) -> None:
    device.budget_bytes = 200_000
    instance = Transformer(HostWeights(SHAPE, device, torch.float32), device, 4, SLOTS, CONTEXT)
    with pytest.raises(DeviceMemoryError, match=r"0.00 of 0.00 GB are used"):
        instance.load()


# --- the server


def write_profiles(folder: Path, memory_bytes: int) -> str:
    """What policies believe of this machine: any numbers will do, the server takes no time from them."""
    home = folder / "tables" / "t"
    home.mkdir(parents=True)
    gib = memory_bytes / 2**30
    (folder / "gpus.csv").write_text(
        f"gpu,name,memory_gib,h2d_gb_s,d2h_gb_s,usd_per_hour,kind,source\ncore,core,{gib!r},1,1,1,analytic,test\n"
    )
    (folder / "nodes.csv").write_text(
        "host,cpu,memory_gib,cpu_bandwidth_gb_s,disk_gb_s,network_gb_s,h2d_cap_gb_s,d2h_cap_gb_s,kind,source\n"
        "box,box,8,10,1,1,10,10,analytic,test\n"
    )
    item = torch.float32.itemsize
    models = "model,quantization,layers,layer_bytes,head_bytes,kv_bytes_per_token_layer,max_context,kind,source\n"
    decode = "model,quantization,layers,batch,context,step_s\n"
    prefill = "model,quantization,layers,prompt_tokens,prefill_s\n"
    switch = (
        "model,quantization,start_s,reload_fixed_s,reload_gb_s,kv_save_gb_s,kv_restore_gb_s,free_s,wake_fixed_s,"
        "kind,source\n"
    )
    for shape in SHAPES:
        key = f"{shape.model},FP32"
        sizes = (shape.layer_bytes(item), shape.head_bytes(item), shape.kv_bytes_per_token_layer(item))
        models += f"{key},{shape.layers},{','.join(map(str, sizes))},{shape.max_context},analytic,test\n"
        for layers in range(shape.layers + 1):
            seconds = 0.001 * (1 + shape.layers - layers)
            for batch in (1, SLOTS):
                decode += "".join(f"{key},{layers},{batch},{context},{seconds}\n" for context in (0, CONTEXT))
            prefill += f"{key},{layers},0,{seconds}\n{key},{layers},{CONTEXT},{seconds + 0.002}\n"
        switch += f"{key},0,0.001,1,1,1,0.001,0.001,analytic,test\n"
    (home / "table.yaml").write_text("{gpu: core, host: box, engine: torch, offload: cpu}\n")
    for path, text in (("decode", decode), ("prefill", prefill), ("switch", switch)):
        (home / f"{path}.csv").write_text(text)
    (folder / "models.csv").write_text(models)
    return str(folder)


SHAPES = [
    Architecture("tiny", 4, 64, 4, 2, 16, 128, 256, True, 256),
    Architecture("wide", 5, 96, 4, 4, 16, 160, 256, True, 256),
    Architecture("untied", 3, 64, 2, 1, 16, 64, 256, False, 256),
]


@pytest.fixture
def weights(device: Device) -> dict[str, HostWeights]:
    return {shape.model: HostWeights(shape, device, torch.float32) for shape in SHAPES}


def scenario(profiles: str, policy: dict[str, Any] | str, **engine: Any) -> Any:
    traffic = [
        {
            "model": shape.model,
            "rate_per_s": 8.0,
            "prompt_median": 12,
            "prompt_mean": 15,
            "prompt_max": 40,
            "output_median": 12,
            "output_mean": 16,
            "output_max": 50,
        }
        for shape in SHAPES
    ]
    return parse_scenario(
        {
            "name": "live",
            "profiles": profiles,
            "cluster": {"nodes": [{"host": "box", "gpus": [{"gpu": "core"}]}], "gpu_reserve_gib": 0},
            "models": [
                {
                    "name": shape.model,
                    "model": shape.model,
                    "quantization": "FP32",
                    "engine": "torch",
                    "max_context": CONTEXT,
                    "kv_tokens": CONTEXT * SLOTS,
                }
                for shape in SHAPES
            ],
            "engine": {"max_sequences": SLOTS, "watermark": 0, **engine},
            "workload": {"duration_s": 2.0, "traffic": traffic},
            "policy": policy,
        },
        "live",
    )


RANDOM = {"name": str(ROOT / "tests" / "support" / "fuzzing" / "random_policy.py"), "calm_s": 2.0}


@pytest.mark.parametrize(
    ("policy", "engine"),
    [
        ("exclusive-swap", {}),
        ("residency-aware", {"prefill": "chunked", "prefill_tokens": 16}),
        (RANDOM, {}),
        ({**RANDOM, "stream": 2}, {"prefill": "chunked", "prefill_tokens": 16}),
    ],
    ids=["exclusive", "residency-aware", "random", "random chunked"],
)
def test_swapped_preempted_and_restored_everybody_gets_the_tokens_that_they_get_alone(
    tmp_path: Path, device: Device, weights: dict[str, HostWeights], policy: Any, engine: dict[str, Any]
) -> None:
    """Real weights come and go within a budget that holds about one model and a half, KV is saved and restored, and
    after every decision the laws over memory and tokens hold. If a slot, a chunk or a byte of KV were mixed up, some
    answer would differ."""
    item = torch.float32.itemsize
    sizes = [
        s.weight_bytes(s.layers, item) + s.layers * s.kv_bytes_per_token_layer(item) * CONTEXT * SLOTS for s in SHAPES
    ]
    budget = int(max(sizes) * 1.5)
    device.budget_bytes = budget
    from sim.hardware.server.server import LiveServer  # noqa: PLC0415  # needs the sources of the engine, not its compiled form

    server = LiveServer(
        scenario(write_profiles(tmp_path, budget), policy, **engine), device, weights, "cpu", True, True
    )
    outcome = server.run()
    table = request_table(outcome)
    answered = [int(number) for number, how in zip(table["request"], table["outcome"], strict=True) if how == COMPLETED]
    assert len(answered) > 20
    assert device.used_bytes == 0
    assert outcome.recorder.counts["loads"] >= 3
    if policy is not RANDOM and isinstance(policy, dict):  # that one preempts much: KV goes out and comes back
        assert outcome.recorder.counts["sequence_preemptions"] > 3
        assert outcome.recorder.seconds["kv_restore_s"] > 0
    rows = {int(n): i for i, n in enumerate(table["request"])}
    for number in answered:
        row = rows[number]
        shape = SHAPES[int(table["model"][row])]
        prompt = [(token + number * 97) % shape.vocab for token in range(int(table["prompt_tokens"][row]))]
        tokens = int(table["output_tokens"][row])
        alone = answer(weights[shape.model], device, prompt, tokens, layers=shape.layers, offload="cpu")
        assert server.answers[number] == alone, number
        assert table["ttft_s"][row] > 0
