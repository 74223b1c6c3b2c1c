"""Lookups of times: knots give their own number, between them time is linear, beyond them there is no answer.

And the tables on disk: whatever is missing, doubled, negative or unreadable is one line that names file and row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.common.errors import ProfileError
from sim.profiles.library import Library
from sim.profiles.profile import Curve, Grid, Profile
from tests.support.scenarios import GB, prefill_s, step_s, synthetic, write_profiles

QUICK = settings(derandomize=True, deadline=None, print_blob=True)


def profile(model: str = "four", folder: str | None = None) -> Profile:
    return Library(Path(folder or synthetic())).profile(model, "FP16", "small", "box", "quick")


# --- lookups


@QUICK
@given(layers=st.integers(0, 4), batch=st.integers(1, 8), context=st.floats(0, 4096))
def test_times_are_linear_between_knots(layers: int, batch: int, context: float) -> None:
    # The synthetic tables are linear in each of the three, with one product: batch x context, and that x residency.
    assert profile().step_s(layers, batch, context) == pytest.approx(step_s(layers, 4, batch, context), rel=1e-9)
    assert profile().prefill_s(layers, context) == pytest.approx(prefill_s(layers, 4, context), rel=1e-9)


@QUICK
@given(layers=st.integers(0, 4), batch=st.integers(1, 8), context=st.floats(0, 4096))
def test_the_gpu_part_is_its_share_of_the_full_time(layers: int, batch: int, context: float) -> None:
    gpu_s, host_s = profile().decode_curve(layers, batch).at(context)
    assert gpu_s == pytest.approx(layers / 4 * step_s(4, 4, batch, context), rel=1e-9, abs=1e-15)
    assert host_s >= 0
    assert (host_s == 0) == (layers == 4)


@QUICK
@given(layers=st.integers(0, 4), batch=st.integers(1, 8), context=st.floats(0, 4096), prompt=st.integers(1, 4096))
def test_with_streamed_layers_the_gpu_computes_them_all(layers: int, batch: int, context: float, prompt: int) -> None:
    computed = profile()
    streamed = Profile(computed.weights, computed._decode, computed._prefill, computed.switch, "stream", "streamed")
    gpu_s, host_s = streamed.decode_curve(layers, batch).at(context)
    assert gpu_s + host_s == pytest.approx(computed.step_s(layers, batch, context), rel=1e-12)
    full_s = [step_s(4, 4, batch, knot) for knot in computed._decode.axes[2]]
    here_s = [step_s(layers, 4, batch, knot) for knot in computed._decode.axes[2]]
    assert gpu_s / (gpu_s + host_s) == pytest.approx(sum(full_s) / sum(here_s), rel=1e-9)
    assert (host_s == 0) == (layers == 4)
    curve = streamed.prefill_curve(layers)
    for less, more in zip(curve.at(0.0), curve.at(float(prompt)), strict=True):
        assert 0 <= less <= more  # so a chunk of a prompt never costs less than nothing


def test_a_curve_is_flat_below_its_first_knot_and_ends_at_its_last() -> None:
    curve = Curve((10.0, 20.0, 40.0), (1.0, 2.0, 2.0), (0.0, 0.0, 4.0))
    assert curve.at(0.0) == curve.at(10.0) == (1.0, 0.0)
    assert curve.at(15.0) == (1.5, 0.0)
    assert curve.at(30.0) == pytest.approx((2.0, 2.0))
    assert curve.at(40.0) == pytest.approx((2.0, 4.0))
    with pytest.raises(AssertionError, match="above the table's last knot"):
        curve.at(40.1)


def test_a_grid_with_one_knot_answers_there_and_below() -> None:
    grid = Grid(((4.0,), (0.0, 10.0)), (1.0, 3.0))
    assert grid.slice(4.0) == (1.0, 3.0)
    assert grid.slice(1.0) == (1.0, 3.0)
    with pytest.raises(AssertionError):
        grid.slice(4.5)


@pytest.mark.parametrize(("model", "layers", "gpu_bytes"), [("four", 3, 3 * GB), ("two", 2, 2.5 * GB), ("two", 1, GB)])
def test_weights_are_layers_and_the_head_with_the_last(model: str, layers: int, gpu_bytes: float) -> None:
    weights = profile(model).weights
    assert weights.gpu_bytes(layers) == gpu_bytes
    assert weights.gpu_bytes(layers) + weights.host_bytes(layers) == weights.total_bytes


@pytest.mark.parametrize(("rate", "seconds"), [(1e9, 4.0), (8e9, 0.5), (1e12, 0.5)])
def test_a_load_goes_at_the_slower_of_engine_and_link(rate: float, seconds: float) -> None:
    assert profile().load_s(4, rate) == pytest.approx(1.5 + seconds)


# --- the shipped tables


def test_every_shipped_table_can_be_opened_and_is_plausible() -> None:
    library = Library()
    count = 0
    for gpu, host, engine in library.table_keys():
        for model, quantization in library.weights:
            try:
                one = library.profile(model, quantization, gpu, host, engine)
            except ProfileError:
                continue  # not every table has every model
            count += 1
            layers = one.weights.layers
            steps = [one.step_s(k, 1, 100.0) for k in range(one.fewest_layers, layers + 1)]
            assert all(step > 0 for step in steps), one.label
            assert steps[-1] == min(steps), f"{one.label}: fewer layers on the GPU are faster"
            assert one.prefill_s(layers, 1000) > one.prefill_s(layers, 1) > 0, one.label
            assert one.step_s(layers, 8, 1000.0) >= one.step_s(layers, 1, 1000.0), one.label
            for context in (0.0, 5.0, one.longest_context):
                for k in (one.fewest_layers, layers // 2, layers):
                    assert min(one.decode_curve(k, 1).at(context)) >= 0, one.label
    assert count > 50


# --- tables that are wrong


def edited(folder: Path, name: str, change: Callable[[str], str]) -> Path:
    path = write_profiles(folder) / name
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
    return folder


TABLE = "tables/small--box--quick/"
WRONG: dict[str, tuple[str, Callable[[str], str], str]] = {
    "no number": ("gpus.csv", lambda t: t.replace("small,small,8,", "small,small,much,"), "row 2: column 'memory_gib'"),
    "negative": ("gpus.csv", lambda t: t.replace("8,10.0,5.0", "8,-1,5.0", 1), "'h2d_gb_s' is '-1', not a number"),
    "nan": ("nodes.csv", lambda t: t.replace("40.0", "nan", 1), "row 2: column 'cpu_bandwidth_gb_s' is 'nan'"),
    "infinite": ("models.csv", lambda t: t.replace("2500", "inf", 1), "'kv_bytes_per_token_layer' is 'inf'"),
    "no such column": ("gpus.csv", lambda t: t.replace("memory_gib", "memory", 1), "column 'memory_gib' is missing"),
    "cut off": ("models.csv", lambda t: t[:-20], "wrong number of columns; is the file cut off"),
    "kind": ("models.csv", lambda t: t.replace("analytic", "guessed", 1), "row 2: kind 'guessed' is none of"),
    "a hole": (TABLE + "decode.csv", lambda t: drop_row(t, "four,FP16,4,8,1000,"), "no step_s at layers 4, batch 8"),
    "twice": (TABLE + "prefill.csv", lambda t: t + "four,FP16,4,0,7.5,analytic\n", "a second, different prefill_s"),
    "ends early": (TABLE + "decode.csv", lambda t: drop_row(t, "four,FP16,4,"), "the tables end below 4 layers"),
    "no model": (TABLE + "switch.csv", lambda t: drop_row(t, "four,"), "no profile tables for four FP16 on small"),
    "no name": (TABLE + "switch.csv", lambda t: t.replace("model", "mdl", 1), "column 'model' is missing"),
    "nul": (TABLE + "switch.csv", lambda t: "\0" + t, "switch.csv"),
    "header": (TABLE + "table.yaml", lambda t: "host: box\n", "'gpu' is missing; a table.yaml names"),
    "header no YAML": (TABLE + "table.yaml", lambda t: "gpu: [\n", "table.yaml"),
    "offload": (TABLE + "table.yaml", lambda t: t.replace("cpu", "cloud"), "cloud"),
    "a step in no time": (
        TABLE + "decode.csv",
        lambda t: t.replace(f"four,FP16,0,1,0,{step_s(0, 4, 1, 0)!r}", "four,FP16,0,1,0,0.0"),
        "row 2: column 'step_s' is '0.0', not a number above 0",
    ),
    "no bandwidth": ("gpus.csv", lambda t: t.replace("8,10.0,5.0", "8,0,5.0", 1), "h2d_gb_s"),
    "no engine speed": (TABLE + "switch.csv", lambda t: t.replace("0.5,8.0", "0.5,0"), "reload_gb_s"),
    "no layers": ("models.csv", lambda t: t.replace("four,FP16,4,", "four,FP16,0,"), "layers"),
    "no time": (
        TABLE + "prefill.csv",
        lambda t: (
            "\n".join(
                ",".join((*row.split(",")[:-2], "0.0", "analytic")) if row.startswith("four") else row
                for row in t.splitlines()
            )
            + "\n"
        ),
        "prefill",
    ),
}


def drop_row(text: str, start: str) -> str:
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(start))


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_table_is_one_line_that_says_where(name: str, tmp_path: Path) -> None:
    file, change, message = WRONG[name]
    folder = edited(tmp_path / "profiles", file, change)
    before = write_profiles(tmp_path / "right")
    assert (folder / file).read_text(encoding="utf-8") != (before / file).read_text(encoding="utf-8"), "no change made"
    with pytest.raises(ProfileError, match=message) as caught:
        profile(folder=str(folder)).decode_curve(0, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("fuor", "FP16", "small", "box", "quick"), "unknown model 'fuor'; did you mean 'four'"),
        (("four", "FP8", "small", "box", "quick"), "model 'four' has no quantization 'FP8'; did you mean 'FP16'"),
        (("four", "FP16", "small", "box", "vllm"), "no profile tables for four FP16 on small in box with vllm"),
    ],
)
def test_an_unknown_name_gets_a_hint(asked: tuple[str, str, str, str, str], message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        Library(Path(synthetic())).profile(*asked)
