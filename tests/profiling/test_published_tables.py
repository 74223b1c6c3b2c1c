"""The shipped profile tables: complete grids, physical laws, provenance, and the published numbers they stand for."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from sim.profiling.fitting import MeasuredSeries
from sim.profiling.physics import Prompts, Rates, Shape, Steps, prefill_s, rounded_maximum
from sim.profiling.physics import decode_s as law_s
from sim.profiling.published.fits import fit_knee, fit_prompt, fit_speeds, misses, worst
from sim.profiling.published.sources import FILES
from tests.support.places import ROOT, SHARED

PROFILES = ROOT / "profiles"
PARTS = ("decode", "prefill", "switch")
TABLES = sorted(path.name for path in (PROFILES / "tables").iterdir())
KINDS = {"measured", "published", "fitted", "analytic"}
MODEL_KEY = ["model", "quantization"]
MODELS: Any = pd.read_csv(PROFILES / "models.csv").set_index(MODEL_KEY)

# XiongjieDai's llama.cpp speeds, Llama-3-8B Q4_K_M: tokens/s at mean contexts of 512 and 4,096 tokens.
LLAMA_SPEEDS = {
    "rtx-a6000--tr-pro-5995wx": (102.22, 86.73),
    "rtx-4090--tr-pro-5995wx": (127.74, 110.66),
    "rtx-4090--i5-13600k": (127.74, 110.66),
    "l40s--epyc-9654": (113.60, 97.98),
    "rtx-5000-ada--tr-pro-5995wx": (89.87, 80.0),
    "a100-80gb--epyc-7453": (138.31, 117.6),
    "h100--xeon-8480": (144.49, 126.83),
}
# arXiv 2605.19593: total seconds of a preemption.
PREEMPTIONS = {
    "rtx-5000-ada": {"Qwen2.5-3B": 2.98, "Qwen3-8B": 5.16, "Qwen2.5-14B": 7.31},
    "rtx-a6000": {"Qwen2.5-3B": 2.62, "Qwen3-8B": 4.06, "Qwen2.5-14B": 5.73},
}
BASELINES = {
    "rtx-a6000": {"Qwen2.5-3B": 46.0, "Qwen3-8B": 32.1, "Qwen2.5-14B": 19.7},
    "rtx-5000-ada": {"Qwen2.5-3B": 47.9, "Qwen3-8B": 28.6, "Qwen2.5-14B": 16.8},
}
# InventiveHQ: tokens/s of Qwen2.5-Coder-14B Q4_K_M on an RTX 5060 Ti and an i7-8700, by layers on the GPU.
SWEEP = {0: 2.89, 8: 3.58, 16: 4.24, 24: 5.61, 32: 7.26, 40: 12.5, 48: 43.18}


def read(table: str, part: str) -> Any:
    return pd.read_csv(PROFILES / "tables" / table / f"{part}.csv")


def grids(table: str, part: str) -> list[tuple[tuple[str, str], Any]]:
    return [((str(key[0]), str(key[1])), rows) for key, rows in read(table, part).groupby(MODEL_KEY)]


def cube(rows: Any) -> tuple[list[Any], Any]:
    """Knots and step times of one model's decode grid, indexed [layers, batch, context]."""
    axes = ["layers", "batch", "context"]
    ordered = rows.sort_values(axes)
    knots = [np.sort(ordered[axis].unique()) for axis in axes]
    return knots, ordered["step_s"].to_numpy().reshape([len(knot) for knot in knots])


def decode_s(table: str, key: tuple[str, str], at: tuple[float, float, float]) -> float:
    """Trilinear in time, as the simulator reads the table."""
    knots, times = cube(dict(grids(table, "decode"))[key])
    for knot, value in zip(knots, at, strict=True):
        above = min(max(int(np.searchsorted(knot, value)), 1), len(knot) - 1)
        share = (value - knot[above - 1]) / (knot[above] - knot[above - 1])
        times = times[above - 1] + share * (times[above] - times[above - 1])
    return float(times)


@pytest.mark.parametrize("table", TABLES)
def test_every_grid_is_full_and_reaches_the_models_limit(table: str) -> None:
    for part, axes in (("decode", ["layers", "batch", "context"]), ("prefill", ["layers", "prompt_tokens"])):
        for key, rows in grids(table, part):
            model = MODELS.loc[key]
            knots = [sorted(rows[axis].unique()) for axis in axes]
            have = sorted(rows[axes].itertuples(index=False, name=None))
            assert have == list(itertools.product(*knots)), (part, key)
            assert knots[0][0] == 0, (part, key)
            assert knots[0][-1] == model["layers"], (part, key)
            assert knots[0][-2] == model["layers"] - 1, "the output head moves with the last layer"
            assert (knots[-1][0], knots[-1][-1]) == (0, model["max_context"]), (part, key)
    assert set(read(table, "decode")["batch"]) >= {1, 256}


@pytest.mark.parametrize("table", TABLES)
def test_decode_obeys_the_laws(table: str) -> None:
    for key, rows in grids(table, "decode"):
        (layers, _, _), times = cube(rows)
        assert (times > 0).all(), key
        assert (np.diff(times, axis=0) < 0).all(), f"{key}: more layers on the GPU must be faster"
        assert (np.diff(times, axis=1) >= 0).all(), f"{key}: a larger batch must not be faster"
        assert (np.diff(times, axis=2) >= 0).all(), f"{key}: a longer context must not be faster"
        slopes = np.diff(1 / times, axis=0) / np.diff(layers)[:, None, None]
        # Six significant digits in a time are a relative rounding of 1e-6 in a speed.
        rounding = 4e-6 * (1 / times).max(axis=0)
        assert (np.diff(slopes, axis=0) >= -rounding).all(), f"{key}: throughput must be convex in residency"


@pytest.mark.parametrize("table", TABLES)
def test_prefill_obeys_the_laws(table: str) -> None:
    for key, rows in grids(table, "prefill"):
        times = rows.pivot_table(index="layers", columns="prompt_tokens", values="prefill_s").to_numpy()
        assert (times > 0).all(), f"{key}: even an empty prompt reads the weights"
        assert (np.diff(times, axis=1) >= 0).all(), f"{key}: a longer prompt must not be faster"
        assert (np.diff(times, axis=0) < 0).all(), f"{key}: more layers on the GPU must be faster"


@pytest.mark.parametrize("table", TABLES)
def test_every_row_says_where_it_is_from(table: str) -> None:
    readme = (PROFILES / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load((PROFILES / "tables" / table / "table.yaml").read_text(encoding="utf-8"))
    assert f"{header['gpu']}--{header['host']}--{header['engine']}" == table
    assert header["offload"] == "cpu"
    seen: set[str] = set()
    for part in ("decode", "prefill", "switch"):
        rows = read(table, part)
        assert set(rows["kind"]) <= KINDS
        assert rows["source"].notna().all()
        assert (rows["error"].dropna() >= 0).all()
        assert rows.loc[rows["kind"] == "published", "error"].dropna().le(0.05).all()
        seen |= set(rows["source"])
    assert seen == set(header["sources"])
    assert all(f"`{source}`" in readme for source in seen), "a source id without an entry in profiles/README.md"


def test_specifications_cover_the_tables() -> None:
    readme = (PROFILES / "README.md").read_text(encoding="utf-8")
    gpus: Any = pd.read_csv(PROFILES / "gpus.csv")
    nodes: Any = pd.read_csv(PROFILES / "nodes.csv")
    for frame in (gpus, nodes, MODELS):
        assert frame.notna().all().all()
        assert set(frame["kind"]) <= KINDS
        assert all(f"`{part}`" in readme for source in frame["source"] for part in source.split("+"))
    for table in TABLES:
        gpu, host, _ = table.split("--")
        assert gpu in set(gpus["gpu"])
        assert host in set(nodes["host"])
    assert MODELS.loc[("Qwen2.5-3B", "FP16"), "max_context"] == 32768
    full = MODELS["layers"] * MODELS["layer_bytes"] + MODELS["head_bytes"]
    for model, size in (
        ("Qwen2.5-3B", 6_171_877_376),
        ("Qwen3-8B", 16_381_470_720),
        ("Qwen2.5-14B", 29_540_067_328),
    ):
        assert full[(model, "FP16")] == size
    # A GGUF quantisation leaves the token embedding on the host: layers and output head only.
    assert full[("Llama-3-8B", "Q4_K_M")] == 32 * 130_826_240 + 430_940_160


def test_required_tables_exist() -> None:
    pairs = [*LLAMA_SPEEDS, "rtx-5060-ti-16gb--i7-8700", "rtx-5060-ti-16gb--i5-13600k"]
    for pair in pairs:
        keys = {key for key, _ in grids(f"{pair}--llama.cpp", "decode")}
        assert keys == {key for key in MODELS.index if key != ("Llama-3-70B", "FP16")}
    for pair in ("rtx-a6000--tr-pro-5995wx", "rtx-5000-ada--tr-pro-5995wx", "rtx-4090--tr-pro-5995wx"):
        keys = {key for key, _ in grids(f"{pair}--hf-transformers", "decode")}
        assert {("Qwen2.5-3B", "FP16"), ("Qwen3-8B", "FP16"), ("Qwen2.5-14B", "FP16")} <= keys
    for table in TABLES:
        decode, prefill, switch = ({tuple(k) for k in read(table, p)[MODEL_KEY].to_numpy()} for p in PARTS)
        assert decode == prefill == switch


@pytest.mark.parametrize("pair", LLAMA_SPEEDS)
def test_llama_speeds_at_full_residency(pair: str) -> None:
    for context, speed in zip((512, 4096), LLAMA_SPEEDS[pair], strict=True):
        step_s = decode_s(f"{pair}--llama.cpp", ("Llama-3-8B", "Q4_K_M"), (32, 1, context))
        assert 1 / step_s == pytest.approx(speed, rel=0.05)


@pytest.mark.parametrize("gpu", BASELINES)
def test_transformers_baselines(gpu: str) -> None:
    for model, speed in BASELINES[gpu].items():
        layers = int(MODELS.loc[(model, "FP16"), "layers"])
        step_s = decode_s(f"{gpu}--tr-pro-5995wx--hf-transformers", (model, "FP16"), (layers, 1, 3500))
        assert 1 / step_s == pytest.approx(speed, rel=0.01)


@pytest.mark.parametrize("gpu", PREEMPTIONS)
def test_preemption_totals(gpu: str) -> None:
    switch = read(f"{gpu}--tr-pro-5995wx--hf-transformers", "switch").set_index(MODEL_KEY)
    for model, total_s in PREEMPTIONS[gpu].items():
        shape, cost = MODELS.loc[(model, "FP16")], switch.loc[(model, "FP16")]
        assert cost["kind"] == "published"
        assert cost["reload_fixed_s"] > 0
        weight_bytes = shape["layers"] * shape["layer_bytes"] + shape["head_bytes"]
        kv_gb = 2500 * shape["layers"] * shape["kv_bytes_per_token_layer"] / 1e9
        reload_s = cost["start_s"] + cost["reload_fixed_s"] + weight_bytes / cost["reload_gb_s"] / 1e9
        kv_s = kv_gb / cost["kv_save_gb_s"] + kv_gb / cost["kv_restore_gb_s"]
        assert reload_s + kv_s + cost["free_s"] == pytest.approx(total_s, rel=0.05)


def test_published_sweep_over_layers() -> None:
    """Only the end points were used, so the interior shows what a table is worth where nobody measured."""
    key = ("Qwen2.5-14B", "Q4_K_M")
    for layers, speed in SWEEP.items():
        step_s = decode_s("rtx-5060-ti-16gb--i7-8700--llama.cpp", key, (layers, 1, 128))
        assert 1 / step_s == pytest.approx(speed, rel=0.01 if layers in (0, 48) else 0.25)
    # Linear in throughput would be far off: half the layers are nowhere near half the speed.
    step_s = decode_s("rtx-5060-ti-16gb--i7-8700--llama.cpp", key, (24, 1, 128))
    assert 1 / step_s < 0.2 * (SWEEP[0] + SWEEP[48])


def test_switch_costs_are_usable() -> None:
    for table in TABLES:
        rows = read(table, "switch").drop(columns=["model", "quantization", "kind", "source", "error"])
        assert (rows >= 0).all().all()
        assert (rows[["reload_gb_s", "kv_save_gb_s", "kv_restore_gb_s"]] > 0).all().all()


def test_the_tables_stay_small() -> None:
    assert sum(path.stat().st_size for path in PROFILES.rglob("*") if path.is_file()) < 4_000_000


def cells(path: Path) -> list[list[str]]:
    return [line.split(",") for line in path.read_text(encoding="utf-8").splitlines()]


def same_cell(built: str, shipped: str) -> bool:
    """Equal, or numbers whose last of six digits differs: the fits' linear algebra rounds by the kind of processor."""
    try:
        return built == shipped or float(built) == pytest.approx(float(shipped), rel=1e-4)
    except ValueError:
        return False


def test_rebuilding_gives_the_same_tables(tmp_path: Path) -> None:
    published = SHARED / "profiles"
    if not published.is_dir():
        pytest.skip("the published measurements (../shared/profiles) are not part of the project")
    command = [sys.executable, "-m", "sim.profiling.published", str(published), "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=300, cwd=ROOT)
    built = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    shipped = [path.relative_to(PROFILES) for path in PROFILES.rglob("*") if path.is_file()]
    by_hand = {Path("README.md"), Path("architectures.csv")}
    assert set(shipped) - set(built) == by_hand
    for path in built:
        for built_row, shipped_row in zip(cells(tmp_path / path), cells(PROFILES / path), strict=True):
            assert all(map(same_cell, built_row, shipped_row)), (path, built_row, shipped_row)
            assert len(built_row) == len(shipped_row), (path, built_row)


# --- the laws and the fits behind them


TINY = Shape(4, 1e9, 0.5e9, 1000, 5e8, 2.5e8, 1024)
RATES = Rates(
    gpu_gb_s=1000.0, host_gb_s=50.0, kv_share=0.1, host_kv_share=0.1, gpu_intensity=0.1, host_intensity=1 / 50,
    layer_s=0.0, launch_s=0.0, hop_s=20e-6, hop_sequence_s=3e-7, base_s=0.0, sharpness=2.0, prompt_intensity=0.05,
    host_prompt_intensity=1 / 50, attention_share=0.2, host_attention_share=1.0, stream_gb_s=20.0,
)  # fmt: skip


def step(layers: int, batch: int, context: int) -> float:
    return float(law_s(TINY, RATES, Steps.of(np.array([[layers, batch, context]], float), 4), "cpu")[0])


def prompt(layers: int, tokens: int, rates: Rates = RATES) -> float:
    return float(prefill_s(TINY, rates, Prompts.of(np.array([[layers, tokens]], float), 4), "cpu")[0])


def test_decode_by_hand() -> None:
    assert step(4, 1, 0) == pytest.approx(4.5e-3)
    assert step(0, 1, 0) == pytest.approx(4.5 / 50)
    assert step(3, 1, 0) == pytest.approx(3e-3 + 1.5 / 50 + 20e-6 + 3e-7)
    assert step(3, 2, 0) > step(3, 1, 0) + 3e-7
    assert step(4, 2, 1000) - step(4, 2, 0) == pytest.approx(4 * 2 * 1000 * 1000 / 100e9)
    # KV is read at a tenth of 50 GB/s by the CPU.
    assert step(0, 1, 1000) - step(0, 1, 0) == pytest.approx(4 * 1000 * 1000 / 5e9)
    # 101 sequences: 1 ms of weights against 1 ms of compute per layer (and for the head half of both).
    assert step(4, 101, 0) == pytest.approx(4.5e-3 * 2**0.5)


def test_prefill_by_hand() -> None:
    assert prompt(4, 0) == pytest.approx(4.5e-3)
    layer_s = float(rounded_maximum(1e-3, 4096 * 1e9 / 50e12 + 2 * 1024 * 4096**2 / 10e12, 4.0))
    assert prompt(4, 4096) == pytest.approx(4 * layer_s + 0.5e-3)
    # Streaming 1 GB per layer at 20 GB/s in 8 micro-batches is far cheaper than 4.1 s of CPU compute.
    assert prompt(0, 4096) == pytest.approx(4 * (layer_s + 8 / 20) + 0.5 / 50)
    assert prompt(0, 4096, replace(RATES, micro_batch_tokens=4096)) == pytest.approx(4 * (layer_s + 1 / 20) + 0.5 / 50)
    # Without a link worth the name the CPU computes: 1 TFLOP/s, attention at the same rate.
    host_s = float(rounded_maximum(1 / 50, 4096 * 1e9 / 1e12 + 2 * 1024 * 4096**2 / 1e12, 4.0))
    assert prompt(0, 4096, replace(RATES, stream_gb_s=0.1)) == pytest.approx(4 * host_s + 0.5 / 50)


def series(layers: int, size: float, places: list[tuple[int, int]], truth: Rates) -> MeasuredSeries:
    """Steps of one sequence at (layers on the GPU, context), as the laws have them."""
    shape = Shape(layers, size, 3 * size, 2000, 5e8)
    at = Steps.of(np.array([(n, 1, context) for n, context in places], float), layers)
    return MeasuredSeries(shape, at, law_s(shape, truth, at, "cpu"), np.full(len(places), 0.01))


def test_fits_recover_what_they_are_given() -> None:
    truth = replace(RATES, host_gb_s=40.0, gpu_gb_s=800.0, layer_s=5e-5, kv_share=0.25, hop_s=0.0, hop_sequence_s=0.0)
    points = [
        series(10, 1e8, [(10, 0), (10, 3000)], truth), series(20, 2e8, [(0, 0), (7, 0), (20, 500)], truth),
    ]  # fmt: skip
    fit = fit_speeds(points)
    assert fit.host_gb_s == pytest.approx(40)
    assert fit.gpu_gb_s == pytest.approx(800)
    assert fit.layer_s == pytest.approx(5e-5)
    assert fit.kv_share * fit.gpu_gb_s == pytest.approx(200)
    lengths = (100, 1000, 8000)
    compute = fit_prompt(TINY, [(p, 4 * (p * 1e9 / 50e12 + 2 * 1024 * p**2 / 10e12)) for p in lengths])
    assert (compute.tflops, compute.attention_tflops) == pytest.approx((50, 10))
    assert compute.error < 1e-9
    batches = [1, 8, 64, 256, 1024]
    knee = fit_knee(batches, [float(rounded_maximum(0.01, 1e-4 * (b - 1), 3.0)) for b in batches])
    assert knee.sharpness == pytest.approx(3.0, rel=1e-3)
    assert knee.sequence_s == pytest.approx(1e-4, rel=1e-3)


def test_a_fit_of_two_points_leaves_unneeded_terms_out() -> None:
    """scipy's own solver breaks with fewer points than terms; ours must not."""
    truth = replace(RATES, gpu_gb_s=500.0)
    points = [series(10, 1e8, [(10, 0)], truth), series(40, 1e8, [(40, 0)], truth)]
    fit = fit_speeds(points)
    assert [fit.gpu_gb_s, fit.layer_s] == pytest.approx([500, 0])
    assert fit.host_gb_s == float("inf")
    assert worst(misses(points, fit)) < 1e-9


@pytest.mark.parametrize(
    ("files", "words"),
    [({}, "gpus.csv is missing; give the folder that holds it"), (dict.fromkeys(FILES, "a,b\n1\n"), "wrong number of")],
)
def test_the_maker_refuses_a_folder_that_is_not_whole(tmp_path: Path, files: dict[str, str], words: str) -> None:
    for name, text in files.items():
        (tmp_path / f"{name}.csv").write_text(text)
    command = [sys.executable, "-m", "sim.profiling.published", str(tmp_path), "--out", str(tmp_path / "out")]
    found = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (found.returncode, (tmp_path / "out").exists()) == (2, False)
    assert words in found.stderr
