"""What a benchmark record calls its GPU, processor and model, and what profiles call them."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.common.errors import ProfileError
from sim.profiles.library import Library
from sim.profiling.architectures import by_name, by_parameters, known_architectures, named, read_architectures
from sim.profiling.device_names import gpu_slug, host_slug, known_hosts
from tests.support.places import ROOT
from tests.support.profile_records import GPU


def test_names_of_hardware() -> None:
    gpus = {"rtx-4090": "RTX 4090 24GB", "a100-80gb": "A100 PCIe 80GB", "rtx-5000-ada": "RTX 5000 Ada 32GB"}
    for name, slug in {
        GPU: "rtx-4090",
        "NVIDIA GeForce RTX 4090 D": "rtx-4090-d",
        "NVIDIA GeForce RTX 4090 Laptop GPU": "rtx-4090-laptop-gpu",
        "NVIDIA A100 80GB PCIe": "a100-80gb",
        "NVIDIA A100-PCIE-40GB": "a100-40gb",
        "NVIDIA A100-SXM4-80GB": "a100-sxm4-80gb",
        "NVIDIA RTX 5000 Ada Generation": "rtx-5000-ada",
    }.items():
        assert gpu_slug(name, gpus) == slug, name
    hosts = known_hosts(ROOT / "profiles" / "nodes.csv")
    for name, slug in {
        "Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz": "i7-8700",
        "AMD Ryzen Threadripper PRO 5995WX 64-Cores": "tr-pro-5995wx",
        "Intel(R) Xeon(R) Platinum 8480+": "xeon-8480",
        "AMD Ryzen 9 7950X 16-Core Processor": "ryzen-9-7950x",
        "13th Gen Intel(R) Core(TM) i9-13900K": "i9-13900k",
    }.items():
        assert host_slug(name, hosts) == slug, name


def test_names_of_models() -> None:
    names = [each.model for each in known_architectures()]
    for text, name in {
        "Meta-Llama-3-8B-Instruct.Q4_K_M.gguf": "Llama-3-8B",
        "Meta-Llama-3.1-8B-Instruct": "Llama-3.1-8B",
        "llama3:8b-instruct-q4_K_M": "Llama-3-8B",
        "qwen2.5:14b": "Qwen2.5-14B",
        "Qwen2.5-Coder-14B": None,
        "llama-13b": None,
    }.items():
        assert by_name(text, names) == name, text
    twins = [each for each in known_architectures() if each.model in ("Qwen2.5-14B", "Qwen3-14B")]
    for shape in twins:  # 0.01 % apart
        assert by_parameters(shape.family, twins[0].parameters, "x.gguf") == shape


def test_shapes_have_as_many_parameters_as_their_files_say() -> None:
    counts = {  # of GGUF files, as llama.cpp reports them
        "Llama-3-8B": 8_030_261_248, "Qwen2.5-14B": 14_770_033_664, "Qwen3-30B-A3B": 30_532_122_624,
        "gpt-oss-20b": 20_914_757_184, "gpt-oss-120b": 116_829_156_672, "Mixtral-8x7B": 46_702_792_704,
        "Llama-2-7B": 6_738_415_616, "Gemma-2-9B": 9_241_705_984, "Phi-4": 14_659_507_200,
    }  # fmt: skip
    for name, count in counts.items():
        shape = named(name)
        assert shape is not None
        assert by_parameters(shape.family, count, "model.gguf") == shape, name


def test_known_shapes_agree_with_the_models_of_profiles() -> None:
    weights = Library().weights
    compared = 0
    for (model, quantization), row in weights.items():
        shape = named(model)
        assert shape is not None, model
        assert (shape.layers, shape.kv_bytes_per_token_layer()) == (row.layers, row.kv_bytes_per_token_layer)
        parts = shape.bytes_of(quantization, 10**12)
        if quantization != "FP16":  # there the head's bytes have the embedding in them
            assert parts is not None
            assert parts[1] == row.head_bytes
            compared += 1
    assert compared > 10


@pytest.mark.parametrize("content", [None, "", "model,layers\nM,x\n", "model,layers,tied\nM,3,no\n", "\xff"])
def test_a_file_of_shapes_that_cannot_be_read_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "architectures.csv"
    if content is not None:
        path.write_text(content, encoding="latin-1")
    if content == "":
        assert read_architectures(path) == ()
        return
    with pytest.raises(ProfileError, match=r"architectures\.csv: cannot be read as shapes of models"):
        read_architectures(path)
