"""Figures: they are drawn, whole, the same again, for every odd trace; what they show is theirs to see."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sim.common.errors import ConfigError
from sim.plots.trace_figures import check_plot, plot_traces
from sim.traces.describe.trace_statistics import Description, describe_stream
from tests.support.trace_cases import Row, in_chunks, trace_of


def description(rows: list[Row]) -> Description:
    return describe_stream(in_chunks(trace_of(rows)))


def many(seed: int, count: int = 3000) -> Description:
    generator = np.random.Generator(np.random.PCG64(seed))
    times = np.cumsum(generator.exponential(0.5 * seed, count)).tolist()
    models = generator.zipf(1.8, count) % 40
    tokens = generator.lognormal(6, 1, count).astype(int) + 1
    rows = [Row(time, f"m{m}", int(t), int(t) % 300 + 1) for time, m, t in zip(times, models, tokens, strict=True)]
    return description(rows)


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_the_same_figure_twice_is_the_same_file(tmp_path: Path, ending: str) -> None:
    found = {"one": many(1), "two": many(2)}
    for name in ("a", "b"):
        plot_traces(found, tmp_path / f"{name}{ending}")
    first, second = ((tmp_path / f"{name}{ending}").read_bytes() for name in ("a", "b"))
    assert first == second
    assert len(first) > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"a{ending}", f"b{ending}"]


def test_a_figure_names_its_traces_and_panels(tmp_path: Path) -> None:
    import matplotlib as mpl  # noqa: PLC0415

    with mpl.rc_context({"svg.fonttype": "none"}):
        plot_traces({"one $x$": many(1), "_two<&>": many(2)}, tmp_path / "t.svg")
    text = (tmp_path / "t.svg").read_text()
    for words in (
        ">one $x$</text>",
        " _two&lt;&amp;&gt;</text>",
        "Arrivals over time",
        "Popularity of models",
        "Poisson",
        "min since the first request",
    ):
        assert words in text, words


@pytest.mark.parametrize(
    "rows",
    [
        [Row(0.0, "a", 1, 1)],
        [Row(5.0, "a", 1, 1), Row(5.0, "a", 7, 9)],
        [Row(0.0, "a", 1, 1), Row(1e9, "b", 10**9, 10**9)],
        [Row(0.0, "a", 1, 1), Row(1e-9, "b", 1, 1), Row(2e-9, "b", 1, 1)],
    ],
    ids=["one request", "all at once", "years", "nanoseconds"],
)
def test_odd_traces_are_drawn_without_a_warning(
    tmp_path: Path, rows: list[Row], recwarn: pytest.WarningsRecorder
) -> None:
    plot_traces({"odd": description(rows)}, tmp_path / "t.png")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    assert [str(warning.message) for warning in recwarn] == []


def test_more_traces_than_colours(tmp_path: Path) -> None:
    plot_traces(
        {f"t{n}": description([Row(0.0, "a", n + 1, 1), Row(1.0, "a", 1, 1)]) for n in range(12)}, tmp_path / "t.png"
    )


def test_names_that_cannot_be_drawn_to(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"t\.gif: unknown kind of figure; its name ends in \.png, \.svg, \.pdf"):
        check_plot(tmp_path / "t.gif")
    with pytest.raises(ConfigError, match="there is no folder"):
        check_plot(tmp_path / "no" / "t.png")
    (tmp_path / "t.png").write_text("x")
    with pytest.raises(ConfigError, match="exists already"):
        check_plot(tmp_path / "t.png")


def test_traces_of_other_lengths_and_rates_share_an_axis(tmp_path: Path) -> None:
    import matplotlib as mpl  # noqa: PLC0415

    with mpl.rc_context({"svg.fonttype": "none"}):
        plot_traces({"long": many(50, 1000), "short": many(1, 10_000)}, tmp_path / "t.svg")
    text = (tmp_path / "t.svg").read_text()
    for words in ("requests/s / their mean", "h since the first request"):
        assert words in text, words
    with mpl.rc_context({"svg.fonttype": "none"}):
        plot_traces({"long": many(50, 3000), "short": many(1, 300)}, tmp_path / "u.svg")
    assert "share of each trace's span" in (tmp_path / "u.svg").read_text()
