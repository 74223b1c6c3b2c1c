"""What fill refuses: tables that exist, names that stand for something else, points that cannot be, broken files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sim.cli.main import main
from sim.common.errors import ConfigError, ProfileError
from sim.profiling.fill import fill, parse_models
from sim.profiling.measured import Measured
from tests.support.profile_cases import FACTS, ROWS, Plan, filled, folder, links, measured, rows_of, switches, written


def test_a_table_that_exists_is_kept(tmp_path: Path) -> None:
    into = filled(tmp_path)
    before = {path: path.read_bytes() for path in into.rglob("*.csv")}
    other = written(tmp_path, replace(measured(Plan(noise=0.05)), switch=switches(), bandwidth=links()), "again")
    with pytest.raises(ProfileError, match=r"is there already; --replace"):
        fill([other], into)
    assert {path: path.read_bytes() for path in into.rglob("*.csv")} == before
    fill([other], into, replace_tables=True)
    changed = {path: path.read_bytes() for path in into.rglob("*.csv")}
    assert changed != before
    assert sorted(changed) == sorted(before)
    assert not list(into.rglob(".*"))


def test_another_weight_or_memory_for_a_known_name_is_refused(tmp_path: Path) -> None:
    into = filled(tmp_path)
    heavier = replace(ROWS[1], layer_bytes=300_000_000)
    content = replace(measured(Plan((heavier,))), engine="other")
    with pytest.raises(ProfileError, match="layer_bytes of Small-8B Q8_0 is 300,000,000, but 230,000,000"):
        fill([written(tmp_path, content, "heavy")], into)
    bigger = replace(measured(), engine="other", facts={**FACTS, "gpu_memory_gib": 80})
    with pytest.raises(ProfileError, match="test-gpu has 48 GiB there, but 80 GiB"):
        fill([written(tmp_path, bigger, "big")], into)
    assert [path.name for path in (into / "tables").iterdir()] == ["test-gpu--test-host--torch"]


def with_slow_full(factor: float) -> Measured:
    """The full model, in one test, slower than it is by this factor."""
    content = measured(Plan(ROWS[1:2], (0.0, 0.5, 0.97, 1.0), (1,), (256.0,), ()))
    decode = [replace(row, step_s=row.step_s * factor) if row.layers == 32 else row for row in content.decode]
    return replace(content, decode=tuple(decode))


def test_layers_quicker_than_their_share_are_mended_or_refused(tmp_path: Path) -> None:
    truth_s = {row.layers: row.step_s for row in with_slow_full(1.0).decode}
    just = truth_s[31] / (31 / 32) / truth_s[32]
    fill([written(tmp_path, with_slow_full(just * 1.05), "noise")], tmp_path / "mended")
    row = next(r for r in rows_of(tmp_path / "mended") if (r["layers"], r["batch"], r["context"]) == ("31", "1", "256"))
    assert row["kind"] == "fitted"
    assert "raised to its share of the full model" in row["source"]
    assert float(row["error"]) == pytest.approx(0.05, abs=0.005)
    with pytest.raises(ProfileError, match="less than their share"):
        fill([written(tmp_path, with_slow_full(just * 1.6), "wrong")], tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_points_that_overflow_the_memory_are_left_out_and_named(tmp_path: Path) -> None:
    content = measured(Plan(ROWS[2:], (0.0, 0.5, 1.0), (1,), (256.0,), ()))
    small = replace(content, facts={**FACTS, "gpu_memory_gib": 24})  # the full model takes 32 GB
    made = fill([written(tmp_path, small)], tmp_path / "profiles")
    assert any("60 layers of Big-30B Q8_0 fill 1" in notice for notice in made.notices)
    rows = [r for r in rows_of(tmp_path / "profiles") if r["layers"] == "60" and r["batch"] == "1"]
    assert "measured" not in {row["kind"] for row in rows}


@pytest.mark.parametrize("given_models", ["Llama-3-8B", ":Q4", "x:", "a:b,c"])
def test_models_are_named_with_their_quantization(given_models: str) -> None:
    with pytest.raises(ConfigError, match="write NAME:QUANT"):
        parse_models(given_models)


def test_an_unknown_model_is_refused_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="did you mean 'Small-8B:Q8_0'"):
        filled(tmp_path, models=[("Smal-8B", "Q8_0")])


def test_a_folder_without_decode_steps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="no decode step to fill"):
        fill([written(tmp_path, replace(measured(), decode=()))], tmp_path / "profiles")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("decode.csv", "model,quantization\nx,y\n"),
        ("decode.csv", "not,a,table"),
        ("provenance.yaml", "gpu: [\n"),
        ("provenance.yaml", "gpu: a\nhost: b\nengine: c\ngpu_memory_gib: lots\n"),
    ],
)
def test_bad_folders_are_one_line_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    source = folder(tmp_path / "measured")
    (source / name).write_text(text)
    with pytest.raises(SystemExit) as stopped:
        main(["profile", "fill", str(source), "--into", str(tmp_path / "profiles")])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert not (tmp_path / "profiles").exists()
