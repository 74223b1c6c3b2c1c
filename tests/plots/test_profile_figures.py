"""The page of figures: drawn from filled and shipped tables, true to them, and refused where it cannot be."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from sim.cli.main import main
from sim.common.errors import ConfigError, ProfileError
from sim.plots.profile_figures import _GAP, _apart, plot_profiles
from sim.profiles.break_even import At, break_even
from sim.profiles.library import Library
from sim.profiling.figure_data import PARTS, TableChoice, portraits
from sim.profiling.fill import fill
from tests.support.profile_cases import ROWS, Plan, folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("plot")
    fill([folder(base / "measured", Plan(ROWS, noise=0.02))], base / "profiles")
    return base


def test_curves_bars_and_points_are_those_of_the_tables(place: Path) -> None:
    (page,) = portraits(TableChoice((place / "measured",), profiles=place / "profiles"))
    assert [model.name for model in page.models] == ["Tiny-1B", "Small-8B", "Big-30B"]
    assert page.left_out == 0
    small = page.models[1]
    profile = Library(place / "profiles").profile("Small-8B", "Q8_0", "test-gpu", "test-host", "torch")
    assert small.throughput.x[0] == 0
    assert small.throughput.x[-1] == 1
    assert small.throughput.y[16] == pytest.approx(1 / profile.step_s(16, 1, small.context))
    assert [x for x, _ in small.throughput.points] == pytest.approx([n / 32 for n in (0, 8, 16, 24, 29, 32)])
    for x, y in small.throughput.points:  # measured points lie on the filled curve
        assert y == pytest.approx(1 / profile.step_s(round(32 * x), 1, small.context), rel=0.01)
    assert set(small.preemption) == set(PARTS)
    assert small.preemption["reload"] == pytest.approx(0.5 + profile.weights.total_bytes / 20e9)
    assert small.preemption["KV save"] == pytest.approx(5000 * 32 * 4096 / 10e9)
    (at_half,) = break_even("Small-8B", "test-gpu", "Q8_0", At(1, int(small.context), (0.5,)), place / "profiles")
    assert dict(small.worth)[0.5] == pytest.approx(at_half.restart)
    assert [x for x, _ in small.prefill.points] == [256, 2048]
    assert max(small.throughput.error) > 0


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_page_is_drawn(place: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / f"page.{ending}"
    arguments = ["profile", "plot", str(place / "measured"), "--profiles", str(place / "profiles"), "--out", str(out)]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code in (0, None)
    assert out.stat().st_size > 10_000
    assert "drawn in" in capsys.readouterr().out
    if ending == "svg":
        text = out.read_text(encoding="utf-8")
        for words in ("Small-8B", "KV restore", "Test GPU", "n*"):
            assert words in text
    with pytest.raises(SystemExit) as stopped:  # never over a file that exists
        main(arguments)
    assert stopped.value.code == 2


def test_shipped_tables_of_a_gpu_stand_beside_each_other() -> None:
    pages = portraits(TableChoice(gpu="l40s"))
    assert [page.title.rsplit(", ", 1)[1] for page in pages] == ["hf-transformers", "llama.cpp"]
    assert all(len(page.models) <= 8 for page in pages)
    assert pages[1].left_out == 20 - len(pages[1].models)
    assert len({model.name.split()[-1] for model in pages[1].models}) == 1  # one quantization


def test_the_same_numbers_make_the_same_picture(place: Path, tmp_path: Path) -> None:
    pages = portraits(TableChoice(profiles=place / "profiles"))
    plot_profiles(pages, tmp_path / "one.png")
    plot_profiles(pages, tmp_path / "two.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_names_are_moved_apart_and_stay_in_order() -> None:
    heights = _apart([0.1, 0.11, 0.12, 0.5, 0.98, 1.0])
    assert all(b - a >= _GAP - 1e-9 for a, b in pairwise(heights))
    assert heights[3] == 0.5
    assert min(heights) >= 0
    assert max(heights) <= 1


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (TableChoice(), "tables do not fit a page"),
        (TableChoice(gpu="rtx-600"), "unknown GPU"),
        (TableChoice(engine="lama.cpp"), "did you mean 'llama.cpp'"),
        (TableChoice(gpu="rtx-a6000", engine="vllm"), "no tables for this GPU and engine"),
        (TableChoice(gpu="l40s", quantization="Q5"), "no Q5 in"),
    ],
)
def test_what_cannot_be_drawn_is_refused(choice: TableChoice, words: str) -> None:
    with pytest.raises(ProfileError, match=words):
        portraits(choice)


def test_a_folder_must_be_filled_first(place: Path) -> None:
    with pytest.raises(ProfileError, match="run profile fill"):
        portraits(TableChoice((place / "measured",)))


def test_a_figure_has_an_ending(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown kind of figure"):
        plot_profiles(portraits(TableChoice((place / "measured",), profiles=place / "profiles")), tmp_path / "page.bmp")
