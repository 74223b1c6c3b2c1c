"""Filling tables: the truth behind noisy points comes out, measured points stay, laws hold, nothing is overwritten."""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.cli.main import main
from sim.profiling.collect import collect
from sim.profiling.fill import fill
from sim.profiling.fitting import fit_rates
from sim.profiling.grids import FittedGrid, _obeying, table_rows
from sim.profiling.physics import Prompts, Rates, decode_s, prefill_s, shape_of, weight_bytes
from sim.scenario.scenario import load_scenario
from tests.support.profile_cases import (
    ROWS,
    TRUTH,
    Plan,
    filled,
    folder,
    measured,
    rows_of,
    shape,
    steps,
    table,
    written,
)

QUICK = settings(derandomize=True, deadline=None, max_examples=12, print_blob=True)
SMALL = ROWS[1]


# --- the truth comes out


@QUICK
@given(
    gpu_gb_s=st.floats(200, 3000),
    ratio=st.floats(4, 60),
    kv_share=st.floats(0.15, 0.8),
    layer_us=st.floats(10, 300),
    seed=st.integers(0, 99),
)
def test_a_fit_finds_the_speeds_behind_noisy_points(
    gpu_gb_s: float, ratio: float, kv_share: float, layer_us: float, seed: int
) -> None:
    truth = replace(TRUTH, gpu_gb_s=gpu_gb_s, host_gb_s=gpu_gb_s / ratio, kv_share=kv_share, layer_s=layer_us * 1e-6)
    plan = Plan(noise=0.02, seed=seed)
    found = collect(measured(plan, truth), "cpu", {}, None)
    fit = fit_rates(found.decode(), Rates(), "cpu")
    # Where nothing was measured: other layers, batches and contexts.
    at = steps([(n, b, c) for n in (3, 13, 22, 30, 32) for b in (1, 3, 20) for c in (0, 900, 6000)], SMALL.layers)
    seconds, error = fit.seconds((SMALL.model, "Q8_0"), shape(SMALL), at)
    off = np.abs(seconds / decode_s(shape(SMALL), truth, at, "cpu") - 1)
    assert off.mean() < 0.05
    assert off.max() < 0.25
    assert (error > 0.005).all()


@QUICK
@given(seed=st.integers(0, 50), noise=st.sampled_from([0.0, 0.02]), offload=st.sampled_from(["cpu", "stream"]))
def test_two_ends_of_one_model_predict_what_lies_between(seed: int, noise: float, offload: str) -> None:
    generator = np.random.RandomState(seed)
    truth = replace(TRUTH, gpu_gb_s=generator.uniform(300, 2000), host_gb_s=generator.uniform(12, 60), overlap=1.0)
    plan = Plan(ROWS[1:2], (0.0, 1.0), (1,), (256.0,), (), offload, noise, seed)
    found = collect(measured(plan, truth), offload, {}, None)
    fit = fit_rates(found.decode(), replace(Rates(), overlap=1.0), offload)
    at = steps([(n, 1, 256) for n in range(2, 32, 3)], SMALL.layers)
    seconds, _ = fit.seconds((SMALL.model, "Q8_0"), shape(SMALL), at)
    assert np.abs(seconds / decode_s(shape(SMALL), truth, at, offload) - 1).mean() < 0.08


@pytest.mark.parametrize("head_gb_s", [0.5, 40.0])
def test_points_tell_whether_a_head_outside_is_streamed_or_read_by_the_host(head_gb_s: float) -> None:
    """The slower the link, the more it matters: near L layers a step is little else than the head."""
    truth = replace(TRUTH, host_gb_s=0.5, head_gb_s=head_gb_s, overlap=1.0)
    found = collect(measured(Plan(ROWS, (0.0, 0.5, 1.0), (1,), (256.0,), (), "stream"), truth), "stream", {}, None)
    fit = fit_rates(found.decode(), Rates(), "stream")
    for row in ROWS:
        at = steps([(n, 1, 256) for n in range(row.layers)], row.layers)
        seconds, _ = fit.seconds((row.model, "Q8_0"), shape(row), at)
        assert np.abs(seconds / decode_s(shape(row), truth, at, "stream") - 1).max() < 0.1


def test_few_points_leave_few_rates_free() -> None:
    def free(plan: Plan) -> tuple[str, ...]:
        return fit_rates(collect(measured(plan), "cpu", {}, None).decode(), Rates(), "cpu").free

    assert free(Plan(ROWS[1:2], (0.0, 1.0), (1,), (256.0,), ())) == ("gpu_gb_s", "host_gb_s")
    assert free(Plan(ROWS[1:2], (1.0,), (1,), (256.0,), ())) == ("gpu_gb_s",)
    assert "kv_share" in free(Plan(ROWS[1:2], (1.0,), (1,), (256.0, 1024.0), ()))
    assert {"gpu_intensity", "host_intensity", "layer_s", "hop_s"} <= set(free(Plan()))


def test_the_head_first_rule_is_told_from_the_points(tmp_path: Path) -> None:
    into = filled(tmp_path, Plan(ROWS[1:2], batches=(1,), contexts=(256.0,), prompts=(), head_first=True))
    header = (into / "tables" / "test-gpu--test-host--torch" / "table.yaml").read_text()
    assert "head: first" in header
    exact = decode_s(shape(SMALL), TRUTH, steps([(20, 1, 256)], SMALL.layers, head_first=True), "cpu")[0]
    assert table(into).step_s(20, 1, 256.0) == pytest.approx(exact, rel=0.02)


# --- what is written


def test_measured_points_stay_as_they_were_measured(tmp_path: Path) -> None:
    into = filled(tmp_path, Plan(noise=0.03))
    content = measured(Plan(noise=0.03))
    rows = {(r["model"], r["layers"], r["batch"], r["context"]): r for r in rows_of(into)}
    for point in content.decode:
        row = rows[point.model, str(point.layers), str(point.batch), f"{point.context:g}"]
        if row["kind"] == "measured":
            assert float(row["step_s"]) == point.step_s
            assert row["source"] == "test-run"
        else:
            assert "raised to its share" in row["source"]
    kinds = [row["kind"] for row in rows.values()]
    assert kinds.count("measured") >= 0.95 * len(content.decode)
    assert kinds.count("fitted") > 100
    assert all(0 < float(row["error"]) < 0.3 for row in rows.values() if row["kind"] == "fitted")


@pytest.mark.parametrize("offload", ["cpu", "stream"])
def test_every_table_is_one_that_the_simulator_takes(tmp_path: Path, offload: str) -> None:
    into = filled(tmp_path, Plan(noise=0.08, seed=3, offload=offload))
    engine = "torch" if offload == "cpu" else "torch-stream"
    for model in ("Tiny-1B", "Small-8B"):
        profile = table(into, engine, model)
        assert profile.offload == offload
        assert profile.fewest_layers == 0
        assert profile.largest_batch == 256
        assert profile.longest_context == 8192
        for layers in range(profile.weights.layers + 1):
            for batch in (1, 5, 256):
                gpu_s, host_s = profile.decode_curve(layers, batch).at(3000)
                assert gpu_s > 0 or layers == 0
                assert host_s >= 0
            assert min(profile.prefill_curve(layers).host_s) >= 0


def test_interpolation_between_the_knots_loses_little(tmp_path: Path) -> None:
    profile = table(filled(tmp_path))
    for layers in (0, 5, 20, 31, 32):
        for batch, context in ((3, 1000), (6, 5000), (24, 700), (48, 100), (100, 3000)):
            at = steps([(layers, batch, context)], 32)
            exact = decode_s(shape(SMALL), TRUTH, at, "cpu")[0]
            assert profile.step_s(layers, batch, context) == pytest.approx(exact, rel=0.06), (layers, batch, context)
        for tokens in (200, 700, 3000):
            at_prompt = Prompts(np.array([float(layers)]), np.array([layers == 32]), np.array([float(tokens)]))
            exact = prefill_s(shape(SMALL), TRUTH, at_prompt, "cpu")[0]
            assert profile.prefill_s(layers, tokens) == pytest.approx(exact, rel=0.10), (layers, tokens)


def test_what_was_not_measured_is_analytic(tmp_path: Path) -> None:
    into = filled(tmp_path, Plan(ROWS[1:2], (0.0, 0.5, 1.0), (1,), (256.0,), ()))
    kinds = {(r["batch"] == "1", float(r["context"]) <= 512): r["kind"] for r in rows_of(into) if r["layers"] == "1"}
    assert kinds == {
        (True, True): "fitted", (True, False): "analytic", (False, True): "analytic", (False, False): "analytic",
    }  # fmt: skip
    assert {row["kind"] for row in rows_of(into, "prefill")} == {"analytic"}
    assert all(row["error"] == "" for row in rows_of(into, "prefill"))


def test_two_ends_alone_carry_the_error_of_published_sweeps(tmp_path: Path) -> None:
    into = filled(tmp_path, Plan(ROWS[1:2], (0.0, 1.0), (1,), (256.0,), ()))
    between = [r for r in rows_of(into) if 0 < int(r["layers"]) < 32 and r["kind"] == "fitted"]
    assert between
    assert all(float(row["error"]) >= 0.04 for row in between)


def test_models_that_were_not_measured_carry_the_error_of_one_left_out(tmp_path: Path) -> None:
    source = folder(tmp_path / "measured", Plan(ROWS[:2], noise=0.01))
    known = written(tmp_path, replace(measured(Plan(ROWS[2:], (1.0,), (1,), (256.0,))), gpu="other-gpu"), "other")
    into = tmp_path / "profiles"
    fill([known], into)
    key = ("Big-30B", "Q8_0")
    made = fill([source], into, [key])
    assert made.tables[0].transfer is not None
    rows = [row for row in rows_of(into) if row["model"] == "Big-30B"]
    assert {row["kind"] for row in rows} == {"fitted"}
    assert {row["error"] for row in rows} == {f"{made.tables[0].transfer:.3g}"}
    at = steps([(n, 1, 256) for n in (0, 30, 60)], 60)
    truth = decode_s(shape(ROWS[2]), TRUTH, at, "cpu")
    guess = [table(into, model="Big-30B").step_s(n, 1, 256.0) for n in (0, 30, 60)]
    assert np.abs(np.array(guess) / truth - 1).max() < 0.2


def test_one_model_alone_says_nothing_sure_of_another(tmp_path: Path) -> None:
    other = written(tmp_path, measured(Plan(ROWS[2:], (1.0,), (1,), (256.0,)), gpu="other-gpu"), "other")
    fill([other], tmp_path / "profiles")
    fill([folder(tmp_path / "measured", Plan(ROWS[1:2]))], tmp_path / "profiles", [("Big-30B", "Q8_0")])
    rows = [row for row in rows_of(tmp_path / "profiles") if row["model"] == "Big-30B"]
    assert {(row["kind"], row["error"]) for row in rows} == {("analytic", "")}


def test_switch_costs_are_lines_through_what_was_timed(tmp_path: Path) -> None:
    row = rows_of(filled(tmp_path), "switch")[0]
    got = {name: float(row[name]) for name in row if name.endswith("_s")}
    assert got["reload_fixed_s"] == pytest.approx(0.5)
    assert (got["reload_gb_s"], got["kv_save_gb_s"], got["kv_restore_gb_s"]) == pytest.approx((20, 10, 12))
    assert got["free_s"] == pytest.approx(0.04)
    assert (row["kind"], row["source"]) == ("fitted", "test-run")


def test_without_timed_switches_they_are_analytic(tmp_path: Path) -> None:
    fill([written(tmp_path, measured())], tmp_path / "profiles")
    row = rows_of(tmp_path / "profiles", "switch")[0]
    assert row["kind"] == "analytic"
    assert float(row["reload_gb_s"]) > 0


def test_a_mean_context_need_not_be_whole(tmp_path: Path) -> None:
    # The simulator's tables know whole tokens; a benchmark of 33 tokens has a mean context of 16.5.
    into = filled(tmp_path, Plan(ROWS[1:2], (0.0, 1.0), (1,), (16.5, 700.0), ()))
    assert {row["context"] for row in rows_of(into)} == {"0", "16", "700", "8192"}
    exact = [row for row in rows_of(into) if row["kind"] == "measured"]
    assert len(exact) == 4
    assert table(into).step_s(32, 1, 16) == next(
        float(r["step_s"]) for r in exact if (r["layers"], r["context"]) == ("32", "16")
    )


def test_streaming_and_cpu_layers_are_two_tables_of_one_folder(tmp_path: Path) -> None:
    parts = [measured(Plan(offload=word)) for word in ("cpu", "stream")]
    full = {
        row.key and (row.model, row.layers, row.batch, row.context) for row in parts[0].decode if row.layers in (16, 32)
    }
    streamed = [row for row in parts[1].decode if (row.model, row.layers, row.batch, row.context) not in full]
    both = replace(parts[0], decode=(*parts[0].decode, *streamed), offload=("cpu", "stream"))
    made = fill([written(tmp_path, both)], tmp_path / "profiles")
    assert [each.engine for each in made.tables] == ["torch", "torch-stream"]
    assert table(tmp_path / "profiles").step_s(0, 1, 0.0) != table(tmp_path / "profiles", "torch-stream").step_s(
        0, 1, 0.0
    )


def test_the_same_points_make_the_same_bytes(tmp_path: Path) -> None:
    source = folder(tmp_path / "measured", Plan(noise=0.02))
    for name in ("one", "two"):
        fill([source], tmp_path / name)
    for path in sorted((tmp_path / "one").rglob("*.*")):
        if path.is_file():
            assert filecmp.cmp(path, tmp_path / "two" / path.relative_to(tmp_path / "one"), shallow=False), path


# --- sizes


def test_heads_are_told_apart_from_embeddings() -> None:
    untied = replace(ROWS[1].weights, quantization="FP16", layer_bytes=436_000_000, head_bytes=2_101_000_000)
    other = replace(ROWS[1].weights, head_bytes=558_170_112)
    assert shape_of(untied, {("Small-8B", "Q8_0"): other}).head_bytes == pytest.approx(558_170_112 * 64 / 34)
    assert shape_of(untied, {}).head_bytes == pytest.approx(2_101_000_000 / 2)
    assert shape_of(other, {}).head_bytes == 558_170_112


@pytest.mark.parametrize(
    ("name", "size"),
    [("FP16", 2.0), ("BF16", 2.0), ("Q8_0", 1.075), ("Q4_K_M", 0.575), ("IQ2_XXS", 0.2875), ("?", 2.0)],
)
def test_quantizations_say_their_bytes(name: str, size: float) -> None:
    assert weight_bytes(name) == pytest.approx(size)


# --- to the end


def test_a_simulation_runs_on_a_filled_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    filled(tmp_path, Plan(noise=0.02))
    scenario = tmp_path / "scenario.yaml"
    scenario.write_text(_scenario(tmp_path / "profiles", ("Tiny-1B", "Small-8B")))
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(scenario), "--check", "--policy", "residency-aware"])
    assert stopped.value.code in (0, None)
    assert "completed" in capsys.readouterr().out


def _scenario(profiles: Path, models: Sequence[str]) -> str:
    served = "".join(f"  - {{name: {name}, model: {name}, quantization: Q8_0, engine: torch}}\n" for name in models)
    traffic = "".join(f"    - {{model: {name}, rate_per_s: 0.4, prompt_max: 4096}}\n" for name in models)
    return (
        f"name: filled\nprofiles: {profiles}\nseed: 1\n"
        "cluster:\n  nodes:\n    - {name: box, host: test-host, gpus: [{gpu: test-gpu, count: 1}]}\n"
        f"models:\n{served}workload:\n  duration_s: 60\n  traffic:\n{traffic}"
    )


def test_relative_profiles_of_a_scenario_begin_at_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But those of --set where the person is who types it."""
    filled(tmp_path, Plan(noise=0.02))
    scenario, elsewhere = tmp_path / "scenario.yaml", tmp_path / "elsewhere"
    scenario.write_text(_scenario(Path("profiles"), ("Tiny-1B", "Small-8B")))
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert load_scenario(scenario).profiles == str(tmp_path / "profiles")
    assert load_scenario(scenario, ["profiles=mine"]).profiles == "mine"
    with pytest.raises(SystemExit) as stopped:
        main(["run", str(scenario), "--policy", "lru-swap"])
    assert stopped.value.code in (0, None)


@QUICK
@given(seconds=st.floats(1e-4, 10.0), share=st.floats(0.5, 1.2))
def test_a_full_model_that_was_never_run_is_written_as_no_slower_than_a_part_allows(
    seconds: float, share: float
) -> None:
    """Also where its seconds are rounded and the part's, as measured, are not."""
    kinds = np.array([["measured"], ["measured"], ["fitted"]])
    times = np.array([[2 * seconds], [seconds], [seconds / (7 / 8) / share]])
    sources = np.full((3, 1), "here", dtype=object)
    grid = _obeying(FittedGrid(((0.0, 7.0, 8.0), (0.0,)), times, np.full((3, 1), 0.1), kinds, sources), [])
    rows = table_rows(("M", "BF16"), grid)
    found = {row["layers"]: float(row["prefill_s"]) for row in rows}
    assert found["7"] - 7 / 8 * found["8"] >= 0
    assert found["7"] == seconds
