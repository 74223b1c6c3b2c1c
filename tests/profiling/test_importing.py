"""`profile import`: what other tools timed comes out as points of layers, batch and context, with the same seconds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sim.profiling.architectures import named
from sim.profiling.heads import head_goes_first, layers_of
from sim.profiling.importing import Imported, ImportOptions, import_files, write_parts
from sim.profiling.measured import Measured, read_measured
from sim.profiling.models import ModelFlags
from sim.profiling.points import ModelRow
from tests.support.cli_cases import invoke
from tests.support.places import SHARED
from tests.support.profile_records import (
    PUBLISHED,
    batched_bench,
    llama_bench,
    ollama,
    published_records,
    vllm_serve,
    write_csv,
    write_json,
    write_jsonl,
)

SAMPLE = SHARED / "profiles" / "llama_bench_sample.json"
PLACE = {"gpu": "rtx-4090", "host": "i5-13600k"}


def imported(path: Path, form: str = "llama-bench", **options: object) -> Imported:
    return import_files([path], ImportOptions(form, **options))  # type: ignore[arg-type]


def only(path: Path, form: str = "llama-bench", **options: object) -> Measured:
    parts = imported(path, form, **options).parts
    assert len(parts) == 1
    return parts[0]


# --- llama-bench


@pytest.mark.parametrize("write", [write_json, write_jsonl, write_csv])
def test_a_sweep_in_any_of_its_outputs(tmp_path: Path, write: object) -> None:
    speeds = {0: 5.0, 8: 6.3, 16: 8.5, 24: 13.1, 33: 120.0}
    records = [llama_bench(speed, layers) for layers, speed in speeds.items()]
    records.append(llama_bench(4000.0, 99, prompt=512, generated=0))
    part = only(write(tmp_path / "sweep", records))  # type: ignore[operator]
    assert (part.gpu, part.host, part.engine, part.offload) == ("rtx-4090", "i5-13600k", "llama.cpp", ("cpu",))
    assert {row.layers: round(1 / row.step_s, 6) for row in part.decode} == {min(n, 32): s for n, s in speeds.items()}
    assert {(row.batch, row.context, row.head, row.kind) for row in part.decode} == {(1, 64.0, "", "measured")}
    assert [(row.layers, row.prompt_tokens, row.prefill_s) for row in part.prefill] == [(32, 512, 0.128)]
    assert [(row.model, row.quantization, row.layers) for row in part.models] == [("Llama-3-8B", "Q4_K_M", 32)]


def test_repeats_give_a_median_and_a_spread(tmp_path: Path) -> None:
    record = llama_bench(10.0, 99, generated=10, samples_ns=[int(1e9), int(0.9e9), int(1.3e9)], avg_ns=int(1.0667e9))
    (row,) = only(write_json(tmp_path / "a.json", [record])).decode
    assert (row.step_s, row.repeats) == (0.1, 3)
    assert row.p10_s == pytest.approx(0.092)
    assert row.p90_s == pytest.approx(0.124)


def test_a_depth_and_half_of_what_was_generated_are_the_mean_context(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", [llama_bench(50.0, 99, n_depth=4096), llama_bench(60.0, 99, n_depth=...)])
    assert [row.context for row in only(path).decode] == [4096 + 64, 64]


@pytest.mark.parametrize("layers", [-1, 99, 33, 999])
def test_minus_one_and_too_many_mean_all_layers_and_the_head(tmp_path: Path, layers: int) -> None:
    (row,) = only(write_json(tmp_path / "a.json", [llama_bench(100.0, layers)])).decode
    assert (row.layers, row.head_on_gpu(32)) == (32, True)


@pytest.mark.parametrize(
    ("count", "build", "expected"),
    [
        (32, 6000, (32, "host")),  # the head followed the last layer
        (31, 6000, (31, "")),
        (0, 6000, (0, "")),
        (32, 9789, (31, "gpu")),  # the head goes first
        (1, 9789, (0, "gpu")),
        (0, 9789, (0, "")),
        (33, 9789, (32, "")),
    ],
)
def test_the_build_says_when_the_head_went(tmp_path: Path, count: int, build: int, expected: tuple[int, str]) -> None:
    record = llama_bench(7.0, count, build_number=build, test_time="2026-10-01T00:00:00Z")
    (row,) = only(write_json(tmp_path / "a.json", [record])).decode
    assert (row.layers, row.head) == expected


def model_row() -> ModelRow:
    return ModelRow(
        model="Llama-3-8B", quantization="Q4_K_M", layers=32, layer_bytes=130826240, head_bytes=430940160,
        kv_bytes_per_token_layer=4096, max_context=8192, kind="analytic", source="x",
    )  # fmt: skip


def step_s(count: int, first: bool, host_gb_s: float = 50.0, gpu_gb_s: float = 700.0) -> float:
    model = model_row()
    layers, head = layers_of(count, model.layers, first)
    on_gpu = layers * model.layer_bytes
    if head == "gpu" or (layers == model.layers and not head):
        on_gpu += model.head_bytes
    total = model.layers * model.layer_bytes + model.head_bytes
    return on_gpu / gpu_gb_s / 1e9 + (total - on_gpu) / host_gb_s / 1e9


@pytest.mark.parametrize("first", [True, False])
def test_without_a_build_the_sweep_says_when_the_head_went(tmp_path: Path, first: bool) -> None:
    sweep = [(count, step_s(count, first)) for count in (0, 10, 20, 30, 99)]
    assert head_goes_first(sweep, model_row()) is first
    records = [llama_bench(1 / s, count, build_number=..., test_time=...) for count, s in sweep]
    found = imported(write_json(tmp_path / "a.json", records))
    assert [row.layers for row in found.parts[0].decode] == ([0, 9, 19, 29, 32] if first else [0, 10, 20, 30, 32])
    assert any("the sweep itself says" in notice for notice in found.notices)


def test_end_points_alone_say_nothing_of_the_head_and_it_is_told(tmp_path: Path) -> None:
    assert head_goes_first([(0, 0.3), (99, 0.02)], model_row()) is None
    records = [llama_bench(5.0, 0, build_number=1, test_time=...), llama_bench(6.0, 8, build_number=1, test_time=...)]
    found = imported(write_json(tmp_path / "a.json", records))
    assert [row.layers for row in found.parts[0].decode] == [0, 8]
    assert (
        "Llama-3-8B: no build says otherwise, so the output head goes to the GPU last, as before December 2025; "
        in (found.notices[0])
    )
    assert [row.layers for row in only(tmp_path / "a.json", head="first").decode] == [0, 7]


def test_all_layers_cannot_be_faster_than_the_head_on_the_host(tmp_path: Path) -> None:
    found = imported(write_json(tmp_path / "a.json", [llama_bench(2.0, 0), llama_bench(100.0, 32)]))
    assert [(row.layers, row.head) for row in found.parts[0].decode] == [(0, ""), (32, "")]
    assert "record 2: 32 layers of Llama-3-8B were faster" in found.notices[0]
    slow = only(write_json(tmp_path / "b.json", [llama_bench(2.0, 0), llama_bench(15.0, 32)]))
    assert [(row.layers, row.head) for row in slow.decode] == [(0, ""), (32, "host")]


def test_a_run_on_the_cpu_alone_counts_as_no_layers(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", [llama_bench(5.0, 99, gpu_info="", backends="CPU")])
    (row,) = only(path, gpu="rtx-4090").decode
    assert row.layers == 0


def test_one_of_several_gpus_can_be_told(tmp_path: Path) -> None:
    both = "NVIDIA GeForce RTX 4090, NVIDIA RTX A6000"
    for changes, slug in [
        ({"split_mode": "none", "main_gpu": 1}, "rtx-a6000"),
        ({"devices": "CUDA0"}, "rtx-4090"),
        ({"tensor_split": "0.00/1.00"}, "rtx-a6000"),
    ]:
        path = write_json(tmp_path / "a.json", [llama_bench(50.0, 99, gpu_info=both, **changes)])
        assert only(path).gpu == slug


def test_two_machines_become_two_folders(tmp_path: Path) -> None:
    (tmp_path / "runs" / "deep").mkdir(parents=True)
    write_json(tmp_path / "runs" / "a.json", [llama_bench(50.0, 99)])
    write_csv(tmp_path / "runs" / "deep" / "b.csv", [llama_bench(60.0, 99, gpu_info="NVIDIA RTX A6000")])
    found = imported(tmp_path / "runs")
    folders = write_parts(found.parts, tmp_path / "out")
    names = ["rtx-4090--i5-13600k--llama.cpp", "rtx-a6000--i5-13600k--llama.cpp"]
    assert [folder.relative_to(tmp_path / "out").as_posix() for folder in folders] == names
    for folder, part in zip(folders, found.parts, strict=True):
        assert read_measured(folder) == part


def test_settings_that_differ_can_be_chosen_or_taken_together(tmp_path: Path) -> None:
    records = [llama_bench(50.0, 99), llama_bench(51.0, 99, flash_attn=True), llama_bench(30.0, 20, flash_attn=True)]
    path = write_json(tmp_path / "a.json", records)
    assert [row.layers for row in only(path, where=["flash_attn=1"]).decode] == [32, 20]
    together = only(path, free=["flash_attn"])
    assert [(row.layers, row.repeats) for row in together.decode] == [(32, 6), (20, 3)]
    assert together.decode[0].step_s == pytest.approx((1 / 50 + 1 / 51) / 2)


def test_a_setting_of_prompts_does_not_part_decodes(tmp_path: Path) -> None:
    records = [llama_bench(50.0, 99, n_ubatch=256), llama_bench(50.0, 10, n_ubatch=512)]
    assert len(only(write_json(tmp_path / "a.json", records)).decode) == 2


def test_a_bad_record_is_left_out_when_asked_and_told(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", [llama_bench(9.0, 99, prompt=64), llama_bench(50.0, 99)])
    found = imported(path, skip_bad=True)
    assert len(found.parts[0].decode) == 1
    assert found.skipped == [
        f"{path}, record 1: mixed test: 64 prompt and 128 generated tokens in one time; use -p or -n alone"
    ]


def test_another_model_by_its_shape_and_by_flags(tmp_path: Path) -> None:
    shape = named("Mistral-Nemo-12B")
    assert shape is not None
    known = llama_bench(
        40.0, 99, model_filename="mistral-nemo-12b.Q8_0.gguf", model_type="llama 13B Q8_0",
        model_n_params=shape.parameters + 500_000, model_size=13_022_372_864,
    )  # fmt: skip
    (row,) = only(write_json(tmp_path / "a.json", [known])).models
    assert (row.model, row.quantization, row.layers, row.head_bytes) == ("Mistral-Nemo-12B", "Q8_0", 40, 713_031_680)
    assert row.layers * row.layer_bytes + 2 * row.head_bytes == pytest.approx(13_022_372_864, abs=40)
    strange = llama_bench(
        40.0, 99, model_filename="x.gguf", model_type="ernie 4B Q5_K - Small", model_n_params=4 * 10**9
    )
    flags = ModelFlags("Ernie-4B", None, 24, 10**8, 10**7, 2048, 4096)
    (row,) = only(write_json(tmp_path / "b.json", [strange]), model=flags).models
    assert (row.model, row.quantization, row.layers, row.layer_bytes) == ("Ernie-4B", "Q5_K_S", 24, 10**8)


def test_kv_types_are_told(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", [llama_bench(50.0, 99, type_k="q8_0", type_v="q8_0")])
    label = "Llama-3-8B Q4_K_M on rtx-4090 in i5-13600k, decode"
    expected = [f"{label}: {name} is q8_0; tables count KV bytes at f16" for name in ("type_k", "type_v")]
    assert imported(path).notices == expected


def test_the_fields_that_a_record_needs_are_few(tmp_path: Path) -> None:
    needed = ("avg_ts", "n_prompt", "n_gen", "n_gpu_layers", "model_filename", "model_type", "cpu_info", "gpu_info")
    records = [llama_bench(speed, layers) for speed, layers in ((5.0, 0), (7.0, 16), (100.0, 99))]
    part = only(write_json(tmp_path / "a.json", [{name: row[name] for name in needed} for row in records]))
    assert [(row.layers, row.step_s, row.repeats) for row in part.decode] == [
        (0, 0.2, None), (16, pytest.approx(1 / 7), None), (32, 0.01, None),
    ]  # fmt: skip


@pytest.mark.skipif(not SAMPLE.exists(), reason="the shared folder with a real record is not here")
def test_a_real_record() -> None:
    flags = ModelFlags("Random-0.7B", None, 28, 9397248, 127626240, 4096, 40960)
    found = imported(SAMPLE, model=flags, gpu="none")
    part = found.parts[0]
    assert [(row.layers, row.context, row.repeats) for row in part.decode] == [(0, 8, 3), (0, 264, 3)]
    assert part.decode[0].step_s == pytest.approx(1135971127e-9 / 16)
    assert [row.prompt_tokens for row in part.prefill] == [64]
    assert "1 not used: prefill on top of a context" in found.notices[0]


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the shared folder with published sweeps is not here")
def test_a_published_sweep_comes_back_and_says_itself_when_its_head_went(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", published_records("inventivehq", "Qwen2.5-Coder-14B", 9789))
    part = only(path, kind="published", source="inventivehq")
    speeds = {row.layers: round(1 / row.step_s, 4) for row in part.decode}
    assert speeds == {0: 2.89, 7: 3.58, 15: 4.24, 23: 5.61, 31: 7.26, 39: 12.5, 48: 43.18}
    assert (part.gpu, part.host, part.models[0].model) == ("rtx-5060-ti-16gb", "i7-8700", "Qwen2.5-14B")
    assert {(row.kind, row.source) for row in part.decode} == {("published", "inventivehq")}
    blind = imported(write_json(path, published_records("inventivehq", "Qwen2.5-Coder-14B", 0)))
    assert [row.layers for row in blind.parts[0].decode] == list(speeds)
    # Two bandwidths from the end points: with the head where the newer rule has it the interior is met within 7 %.
    host, gpu = (next(row.step_s for row in part.decode if row.layers == layers) for layers in (0, 48))
    model = part.models[0]
    total = model.layers * model.layer_bytes + model.head_bytes
    for row in part.decode:
        share = (row.layers * model.layer_bytes + model.head_bytes * row.head_on_gpu(48)) / total
        assert host * (1 - share) + gpu * share == pytest.approx(row.step_s, rel=0.07)


# --- the other tools


def test_batched_bench(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [batched_bench(n) for n in (1, 4, 16)])
    path.write_text("\n" + path.read_text())
    flags = ModelFlags("Llama-3-8B", "Q4_K_M")
    found = imported(path, "llama-batched-bench", model=flags, **PLACE)
    part = found.parts[0]
    expected = [(32, 1, 192.0, 0.011), (32, 4, 192.0, 0.014), (32, 16, 192.0, 0.026)]
    assert [(row.layers, row.batch, row.context, round(row.step_s, 9)) for row in part.decode] == expected
    assert [(row.prompt_tokens, row.prefill_s) for row in part.prefill] == [(128, 0.032)]
    assert "2 not used: the prompts of several sequences in one time" in found.notices[0]


def test_ollama(tmp_path: Path) -> None:
    records = [ollama(n, prompt, step_s=s) for n, prompt, s in ((0, 100, 0.2), (20, 100, 0.1), (33, 300, 0.01))]
    part = only(write_jsonl(tmp_path / "a.jsonl", records), "ollama", **PLACE)
    assert part.engine == "ollama"
    expected = [(0, 150.0, 0.2), (20, 150.0, 0.1), (32, 350.0, 0.01)]
    assert [(row.layers, row.context, round(row.step_s, 9)) for row in part.decode] == expected
    assert [(row.layers, row.prompt_tokens, row.prefill_s) for row in part.prefill] == [
        (0, 100, 0.1), (20, 100, 0.1), (32, 300, 0.3),
    ]  # fmt: skip


def test_ollama_pairs_of_request_and_response_and_pieces_of_a_stream(tmp_path: Path) -> None:
    pair = {"request": {"options": {"num_gpu": 8}}, "response": ollama(None)}
    piece = {"model": "llama3:8b", "created_at": "x", "response": "Hel", "done": False}
    part = only(write_json(tmp_path / "a.json", [pair, piece]), "ollama", **PLACE, model=ModelFlags(None, "Q4_K_M"))
    assert [(row.layers, row.model) for row in part.decode] == [(8, "Llama-3-8B")]


def test_single_answers_of_one_point_become_their_median(tmp_path: Path) -> None:
    records = [ollama(20, step_s=s) for s in (0.1, 0.12, 0.09)]
    (row,) = only(write_jsonl(tmp_path / "a.jsonl", records), "ollama", **PLACE).decode
    assert (round(row.step_s, 9), row.repeats) == (0.1, 3)


def test_vllm(tmp_path: Path) -> None:
    for n, ms in ((1, 10.0), (8, 12.0), (32, 18.0)):
        write_json(tmp_path / f"c{n}.json", vllm_serve(n, ms))
    found = imported(tmp_path, "vllm-bench", model=ModelFlags(None, "FP16"), **PLACE)
    part = found.parts[0]
    assert sorted((row.batch, row.context, row.step_s, row.layers) for row in part.decode) == [
        (1, 640.0, 0.01, 32), (8, 640.0, 0.012, 32), (30, 640.0, 0.018, 32),
    ]  # fmt: skip
    assert [(row.prompt_tokens, row.prefill_s) for row in part.prefill] == [(512, 0.04)]
    assert part.facts["date"] == "2025-07-01"


# --- the verb


def test_the_verb_writes_a_folder_that_can_be_read(tmp_path: Path) -> None:
    path = write_json(
        tmp_path / "a.json", [llama_bench(5.0, 0), llama_bench(100.0, 99), llama_bench(9.0, 99, prompt=8)]
    )
    out = tmp_path / "out"
    result = invoke("profile", "import", str(path), "--format", "llama-bench", "--out", str(out), "--skip-bad")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == (
        f"{out}: rtx-4090--i5-13600k--llama.cpp: 2 decode and 0 prefill points of Llama-3-8B Q4_K_M\n"
        "read 3 records; 1 left out\n"
    )
    assert "left out: " in result.stderr
    assert [row.layers for row in read_measured(out).decode] == [0, 32]
    again = invoke("profile", "import", str(path), "--format", "llama-bench", "--out", str(out), "--skip-bad")
    assert (again.exit_code, again.stderr) == (2, f"error: {out}: is there already; name a new folder with --out\n")


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", [llama_bench(5.0, 0), llama_bench(100.0, 99)])
    texts = []
    for name in ("one", "two"):
        (folder,) = write_parts(imported(path).parts, tmp_path / name)
        texts.append({each.name: each.read_bytes() for each in folder.iterdir()})
    assert texts[0] == texts[1]
    assert json.loads(path.read_text())  # the file itself is left as it was
