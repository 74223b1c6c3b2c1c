"""Checking profiles: what is wrong is found and named, what is sound is not, and ends predict published sweeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sim.cli.main import main
from sim.common.errors import ProfileError
from sim.profiles.library import Library
from sim.profiling.check import CheckReport, check, is_sound
from sim.profiling.fill import fill
from sim.profiling.measured import Measured, write_measured
from tests.support.places import ROOT, SHARED
from tests.support.profile_cases import FACTS, ROWS, Plan, folder, measured

PUBLISHED = SHARED / "profiles" / "published_residency.csv"
PLAN = Plan(ROWS[1:2], batches=(1, 8), noise=0.005)
# Why these cannot be predicted from their ends: the record contradicts itself, or memory is one for both sides.
UNPREDICTABLE = ("Gemma-3-1B", "OLMoE-7B-A1B")


def report(tmp_path: Path, content: Measured) -> CheckReport:
    write_measured(content, tmp_path / "measured")
    return check(tmp_path / "measured", Library())


def changed(content: Measured, layers: int, factor: float, batch: int = 1, context: float = 256.0) -> Measured:
    """One step's time times a factor."""
    decode = [
        replace(row, step_s=row.step_s * factor)
        if (row.layers, row.batch, row.context) == (layers, batch, context)
        else row
        for row in content.decode
    ]
    assert tuple(decode) != content.decode
    return replace(content, decode=tuple(decode))


def test_sound_points_have_no_findings(tmp_path: Path) -> None:
    found = report(tmp_path, measured(PLAN))
    assert not found.findings
    assert is_sound([found])
    assert len(found.sweeps) == 6  # two batches at two contexts, two prompts
    for sweep in found.sweeps:
        assert sweep.points == 6
        assert (sweep.fit_error or 1.0) < 0.03
        assert (sweep.left_out_error or 1.0) < 0.05
        assert (sweep.ends_error or 1.0) < 0.08


def test_more_layers_that_are_slower_are_found(tmp_path: Path) -> None:
    found = report(tmp_path, changed(measured(PLAN), 16, 2.0))
    breaks = [line for line in found.findings if "slower with layers 16 than with 8" in line]
    assert len(breaks) == 1
    assert "decode.csv, row" in breaks[0]
    assert not is_sound([found])


@pytest.mark.parametrize(
    ("batch", "context", "words"),
    [(8, 256.0, "faster with batch 8 than with 1"), (1, 2048.0, "faster with context 2048 than with 256")],
)
def test_longer_and_larger_that_are_faster_are_found(tmp_path: Path, batch: int, context: float, words: str) -> None:
    found = report(tmp_path, changed(measured(PLAN), 8, 0.5, batch, context))
    assert any(words in line for line in found.findings)


def test_an_outlier_is_named_with_what_the_others_say(tmp_path: Path) -> None:
    content = measured(PLAN)
    true_s = next(row.step_s for row in content.decode if (row.layers, row.batch, row.context) == (24, 1, 256.0))
    found = report(tmp_path, changed(content, 24, 1.3))
    lines = [line for line in found.findings if "the others say" in line]
    assert any("layers 24, batch 1, context 256" in line for line in lines)
    said_s = float(next(line for line in lines if "layers 24" in line).split("say ")[1].split(" s")[0])
    assert said_s == pytest.approx(true_s, rel=0.12)


def test_holes_are_noted_and_are_no_fault(tmp_path: Path) -> None:
    content = measured(PLAN)
    decode = [row for row in content.decode if (row.layers, row.batch) != (16, 8)]
    found = report(tmp_path, replace(content, decode=tuple(decode)))
    assert any("2 of 24 decode points missing (layers 16, batch 8, context 256" in note for note in found.notes)
    assert is_sound([found])


def test_a_full_gpu_that_swaps_is_found(tmp_path: Path) -> None:
    content = changed(measured(replace(PLAN, batches=(1,), contexts=(256.0,))), 32, 4.0)
    found = report(tmp_path, replace(content, facts={**FACTS, "gpu_memory_gib": 8}))
    assert any(
        "32 layers of Small-8B Q8_0 fill 9" in line and "slower than with fewer" in line for line in found.findings
    )


def test_ends_that_do_not_predict_are_found(tmp_path: Path) -> None:
    content = measured(replace(PLAN, batches=(1,), contexts=(256.0,), prompts=()))
    bent = [replace(row, step_s=row.step_s * (1 + 1.2 * (0 < row.layers < 32))) for row in content.decode]
    found = report(tmp_path, replace(content, decode=tuple(bent)))
    assert any("its two ends predict what lies between" in line for line in found.findings)


# --- tables


def test_filled_tables_are_sound(tmp_path: Path) -> None:
    fill([folder(tmp_path / "measured")], tmp_path / "profiles")
    found = check(tmp_path / "profiles" / "tables" / "test-gpu--test-host--torch", Library())
    assert not found.findings
    assert [name for name, _, _ in found.models] == ["Tiny-1B Q8_0", "Small-8B Q8_0"]
    kinds = found.models[0][1]
    assert kinds["measured"] == 48
    assert kinds["fitted"] > 100


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "profiles" / "tables").iterdir())[::4])
def test_shipped_tables_are_sound(name: str) -> None:
    assert not check(ROOT / "profiles" / "tables" / name, Library()).findings


def test_a_hole_and_a_break_in_a_table_are_found(tmp_path: Path) -> None:
    fill([folder(tmp_path / "measured")], tmp_path / "profiles")
    table = tmp_path / "profiles" / "tables" / "test-gpu--test-host--torch"
    lines = (table / "decode.csv").read_text().splitlines(keepends=True)
    (table / "decode.csv").write_text("".join(lines[:5] + lines[6:]))
    assert any("must be a full grid" in line for line in check(table, Library()).findings)
    slow = [line if ",32,1,0," not in line else line.replace("32,1,0,0.0", "32,1,0,9.0") for line in lines]
    assert slow != lines
    (table / "decode.csv").write_text("".join(slow))
    assert check(table, Library()).findings


# --- published sweeps


def published() -> CheckReport:
    if not PUBLISHED.is_file():
        pytest.skip("the published sweeps lie outside the repository and are not here")
    return check(PUBLISHED, Library())


def test_ends_predict_published_sweeps() -> None:
    sweeps = published().sweeps
    assert len(sweeps) >= 20
    sensible = [sweep for sweep in sweeps if not any(name in sweep.label for name in UNPREDICTABLE)]
    errors = [sweep.ends_error for sweep in sensible if sweep.ends_error is not None]
    assert len(errors) == len(sensible) >= 18
    assert max(errors) <= 0.10
    assert sum(errors) / len(errors) <= 0.05
    assert not [sweep for sweep in sweeps if sweep not in sensible and (sweep.ends_error or 0) <= 0.10]


def test_the_order_of_the_head_explains_new_builds(tmp_path: Path) -> None:
    if not PUBLISHED.is_file():
        pytest.skip("the published sweeps lie outside the repository and are not here")
    old = tmp_path / "published.csv"
    old.write_text(
        PUBLISHED.read_text(encoding="utf-8").replace("llama.cpp b9789", "llama.cpp b4000"), encoding="utf-8"
    )
    (tmp_path / "models.csv").write_text(
        (PUBLISHED.parent / "models.csv").read_text(encoding="utf-8"), encoding="utf-8"
    )

    def error(path: Path) -> float:
        sweep = next(each for each in check(path, Library()).sweeps if "Coder-14B" in each.label)
        return sweep.ends_error or 0.0

    assert error(PUBLISHED) < 0.03
    assert error(old) > 2 * error(PUBLISHED)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (",tok_s,", ",speed,", "column 'tok_s' is missing"),
        (",12.5,", ",fast,", "column 'tok_s' is 'fast', not a number above 0"),
        (",12.5,", ",-1,", "column 'tok_s' is '-1', not a number above 0"),
        (",12.5,", ",", "row 3: wrong number of columns"),
        (",40,", ",most,", "'gpu_layers' is 'most', neither a whole number nor all"),
    ],
)
def test_bad_sweeps_are_named_by_row(tmp_path: Path, old: str, new: str, words: str) -> None:
    header = (
        "source,gpu,software,model,quant,weights_gb,n_layers,gpu_layers,exec_mode,metric,prompt_tokens,gen_tokens,"
        "context_depth,batch,tok_s,note\n"
    )
    rows = [
        f"s,G,t,M,Q4_K_M,8.99,48,{n},cpu_hybrid,decode,,256,,1,{v},\n" for n, v in ((0, 2.89), (40, 12.5), (48, 30))
    ]
    path = tmp_path / "sweeps.csv"
    path.write_text((header + "".join(rows)).replace(old, new))
    with pytest.raises(ProfileError, match=words):
        check(path, Library())


# --- the command


def test_the_command_ends_with_1_when_something_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_measured(measured(PLAN), tmp_path / "good")
    write_measured(changed(measured(PLAN), 16, 2.0), tmp_path / "bad")
    for name, status in (("good", (0, None)), ("bad", (1,))):
        with pytest.raises(SystemExit) as stopped:
            main(["profile", "check", str(tmp_path / name)])
        assert stopped.value.code in status
    printed = capsys.readouterr().out
    assert "nothing is broken" in printed
    assert "slower with layers 16" in printed


def test_a_path_that_is_none_of_the_three_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["profile", "check", str(tmp_path / "nothing")])
    assert stopped.value.code == 2
    assert "neither a measured folder, a table nor a CSV" in capsys.readouterr().err
