"""sim/hardware/model/transformer.py: textbook attention; tokens do not depend on where a layer or a KV is.

Without torch (the extra `profile`) all are skipped.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install '.[profile]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install '.[profile]'")

import torch

from sim.hardware.model import transformer
from sim.hardware.model.device import Device
from sim.hardware.model.weights import HostWeights, architectures
from sim.profiling.architectures import Architecture


@pytest.fixture(autouse=True)
def cores() -> Iterator[None]:
    """This thread may run where it could before, and torch with as many threads: a Device of the CPU takes one core."""
    threads, allowed = torch.get_num_threads(), os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, allowed)
    torch.set_num_threads(threads)


def shape_of(**changes: Any) -> Architecture:
    sizes = {"layers": 3, "hidden": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "intermediate": 96, "vocab": 300}
    return Architecture("random", **(sizes | {"tied": False, "max_context": 128} | changes))


def plain_attention(q: torch.Tensor, kv: torch.Tensor, items: list[transformer.Item]) -> torch.Tensor:
    """Softmax attention token by token, as it is written in textbooks."""
    rows, groups = [], q.shape[1] // kv.shape[2]
    queries = iter(q)
    for item in items:
        for place in range(len(item.tokens)):
            end, token = item.start + place + 1, next(queries)
            keys, values = (each.repeat_interleave(groups, 0) for each in kv[:, item.slot, :, :end])
            weights = (torch.einsum("hd,hnd->hn", token, keys) / math.sqrt(q.shape[2])).softmax(-1)
            rows.append(torch.einsum("hn,hnd->hd", weights, values))
    return torch.stack(rows)


@pytest.mark.parametrize("padded", [False, True], ids=["one by one", "padded, as on a GPU"])
@pytest.mark.parametrize("tokens", [(1, 1, 1), (5, 1, 7), (1,)])
@pytest.mark.parametrize("starts", [(0, 0, 0), (9, 0, 30), (17, 17, 17)])
def test_attention_is_what_textbooks_say(padded: bool, tokens: tuple[int, ...], starts: tuple[int, ...]) -> None:
    if padded and max(tokens) > 1:
        pytest.skip("only decoding is padded")
    generator = torch.Generator().manual_seed(3)
    slots = (2, 0, 3)
    items = [transformer.Item(slots[i], [1] * n, starts[i]) for i, n in enumerate(tokens)]
    q, k, v = (torch.randn(sum(tokens), heads, 16, generator=generator) for heads in (4, 2, 2))
    kv = torch.randn(2, 4, 2, 64, 16, generator=generator)
    positions = torch.tensor([item.start + i for item in items for i in range(len(item.tokens))])
    batch = transformer._Batch(items, positions, torch.device("cpu"))
    batch.mask = batch.padding(positions) if padded else None
    found = transformer._attend(q, k, v, kv, batch)
    assert torch.allclose(found, plain_attention(q, kv, items), atol=1e-5)


@pytest.mark.parametrize("offload", ["cpu", "stream"])
@pytest.mark.parametrize("layers", [0, 2, 3])
def test_where_layers_are_and_how_a_prompt_is_cut_changes_no_token(offload: str, layers: int) -> None:
    shape = shape_of()
    device = Device("cpu", 1 << 28)
    weights = HostWeights(shape, device, torch.float32)
    prompt, seen = transformer.random_tokens(shape, 40, 1), []
    for place, cuts in ((3, [40]), (layers, [16, 24])):
        instance = transformer.Transformer(weights, device, place, 2, 64, offload)
        instance.load()
        instance.recut(1, 128)
        instance.recut(2, 60)
        start, token = 0, -1
        for cut in cuts:
            (token,) = instance.forward([transformer.Item(1, prompt[start : start + cut], start)])
            start += cut
        tokens = [token]
        for step in range(6):
            tokens += instance.forward([transformer.Item(1, tokens[-1:], 40 + step)])
            if step == 2 and place:
                buffer = instance.kv_buffer(43)
                instance.save_kv(1, 43, buffer)
                instance._device_kv.zero_()
                instance.restore_kv(1, 43, buffer)
        seen.append(tokens)
        instance.free()
    assert device.used_bytes == 0
    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 1


def test_weights_are_random_and_no_two_layers_are_alike() -> None:
    weights = HostWeights(shape_of(), Device("cpu", 1 << 28), torch.bfloat16)
    assert not (weights.layers[0] == 0).any()
    assert not torch.equal(weights.layers[0], weights.layers[1])


def test_shapes_that_it_does_not_compute_are_not_offered() -> None:
    known = architectures()
    assert {"SmolLM2-135M", "Qwen3-8B", "Mistral-7B", "Llama-3-70B"} <= set(known)
    assert not {"Mixtral-8x7B", "Qwen3-30B-A3B", "Gemma-2-2B", "Phi-4"} & set(known)
