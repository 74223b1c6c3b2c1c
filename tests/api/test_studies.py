"""Comparisons and searches for capacity as a library: the results of the command line, in tables and figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

import sim
from sim.common.errors import ConfigError
from tests.support.cli_cases import invoke, scenario_data, write_scenario

POLICIES = ["lru-swap", "exclusive-swap"]


@pytest.fixture(scope="module")
def comparison() -> sim.PolicyComparison:
    return sim.compare_policies(scenario_data(), POLICIES, seeds=3, baseline="lru-swap", jobs=0)


@pytest.fixture(scope="module")
def search() -> sim.CapacitySearch:
    return sim.find_capacity(
        scenario_data(), POLICIES, seeds=2, tolerance=0.5, jobs=0, metric="e2e_all.p99", limit=60.0, most=4.0
    )


def is_drawn(figure: Figure) -> bool:
    return getattr(figure, "_repr_png_")().startswith(b"\x89PNG")  # noqa: B009  what notebooks ask for


def test_a_comparison_is_that_of_the_command_line(comparison: sim.PolicyComparison, tmp_path: Path) -> None:
    path = write_scenario(tmp_path)
    told = invoke("compare", path, "--policies", ",".join(POLICIES), "--seeds", "3", "--no-bounds", "--jobs", "0",
                  "--baseline", "lru-swap", "--json")  # fmt: skip
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout) == json.loads(comparison.result.as_json())


def test_its_tables_say_what_it_holds(comparison: sim.PolicyComparison) -> None:
    means, result = comparison.means, comparison.result
    assert sorted(means.index) == sorted(POLICIES)
    assert list(means.columns) == [measure.key for measure in result.metrics]
    decisive = means[result.decisive.key]
    assert decisive.iloc[0] == (decisive.max() if result.decisive.better == "more" else decisive.min())
    for policy in result.policies:
        seen = policy.measured["e2e_all_s.mean"]
        assert means.loc[policy.label, "e2e_all_s.mean"] == pytest.approx(pd.Series(seen.values).mean())
        row = comparison.frame.query("policy == @policy.label and metric == 'e2e_all_s.mean'").iloc[0]
        assert row["mean"] == pytest.approx(seen.estimate.mean)
        assert f"{policy.counts['completed']:,} of" in comparison.table.loc[policy.label, "completed"]
    assert comparison.verdict[0] in repr(comparison)


def test_what_a_notebook_shows_is_escaped(comparison: sim.PolicyComparison) -> None:
    rich = sim.PolicyComparison(comparison.result)
    rich.verdict = ["<script>"]
    assert "&lt;script&gt;" in rich._repr_html_()
    assert "<table" in rich._repr_html_()


def test_differences_are_drawn_against_the_baseline(comparison: sim.PolicyComparison) -> None:
    figure = comparison.plot.differences("e2e_all_s.mean")
    assert is_drawn(figure)
    panel = figure.axes[0]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["exclusive-swap"]
    mean = comparison.result.policy("exclusive-swap").versus["e2e_all_s.mean"].difference.estimate.mean
    dots = [line.get_xdata() for line in panel.lines if line.get_marker() == "o"]
    assert [float(dot[0]) for dot in dots] == [pytest.approx(mean)]  # type: ignore[index,arg-type]
    with pytest.raises(ConfigError, match=r"'e2e_all_s\.men' was not measured; did you mean 'e2e_all_s\.mean'"):
        comparison.plot.differences("e2e_all_s.men")


def test_one_seed_has_no_differences_to_draw() -> None:
    alone = sim.compare_policies(scenario_data(), "lru-swap,exclusive-swap", seeds=1, jobs=0)
    with pytest.raises(ConfigError, match="several seeds"):
        alone.plot.differences()


def test_a_search_is_that_of_the_command_line(search: sim.CapacitySearch, tmp_path: Path) -> None:
    path = write_scenario(tmp_path)
    told = invoke("capacity", path, "--policies", ",".join(POLICIES), "--seeds", "2", "--tolerance", "0.5",
                  "--jobs", "0", "--metric", "e2e_all.p99", "--limit", "60", "--most", "4", "--json")  # fmt: skip
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout) == json.loads(search.result.as_json())


def test_the_answers_of_a_search(search: sim.CapacitySearch) -> None:
    for policy in search.result.policies:
        assert policy.found is not None
        answer = search.answers.loc[policy.label, "answer"]
        assert answer == policy.found.value or (pd.isna(answer) and policy.found.value is None)
        assert len(search.frame.query("policy == @policy.label")) == len(policy.found.points)
    assert list(search.table.index) == POLICIES
    assert is_drawn(search.plot.goal())


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"policies": "lru-swop"}, "lru-swap"),
        ({"find": "price"}, "find: unknown 'price'"),
        ({"settings": "seed=2"}, "settings: give a mapping"),
        ({"tolerance": 7.0}, "tolerance"),
    ],
)
def test_a_mistake_is_told_in_one_line(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as found:
        sim.find_capacity(scenario_data(), jobs=0, **{"policies": "lru-swap", **asked})
    assert words in str(found.value)
    assert "\n" not in str(found.value)


def test_the_scenarios_that_ship_have_names() -> None:
    assert sim.load_scenario(sim.scenario_file("desktop")).name == "desktop"
    with pytest.raises(ConfigError, match="no scenario 'desktp' comes with the project; did you mean 'desktop'"):
        sim.scenario_file("desktp")


def test_lines_and_bars_draw_what_they_are_given() -> None:
    frame = pd.DataFrame({"a": [1.0, None, 3.0], "b": [2.0, 2.0, 2.0]}, index=[1, 2, 4])
    lines = sim.draw_lines(frame, "lines", "x", sim.Axis("y", low=0))
    drawn = {len(line.get_xdata()): list(line.get_xdata()) for line in lines.axes[0].lines}  # type: ignore[arg-type]
    assert drawn == {2: [1, 4], 3: [1, 2, 4]}
    bars = sim.draw_bars(frame, "bars", "seconds")
    assert [bar.get_width() for bar in bars.axes[0].patches] == [1.0, 0.0, 3.0, 2.0, 2.0, 2.0]  # type: ignore[attr-defined]
    assert len(bars.legends) == 1
    assert len(sim.draw_bars(frame[["b"]], "one column", "seconds").legends) == 0
    assert all(is_drawn(figure) for figure in (lines, bars, sim.draw_differences({"a": (1, 0.5, 1.5)}, "d", "s")))


def test_a_policy_is_checked_from_python(tmp_path: Path) -> None:
    whole = sim.check_policy(sim.new_policy("my-policy", tmp_path))
    assert whole
    assert {verdict.status for verdict in whole} <= {"passed", "not applicable"}
    path = tmp_path / "idle.py"
    path.write_text(
        "from sim.policy import Policy\n\n\nclass Idle(Policy):\n    def decide(self, view):\n        return ()\n"
    )
    assert "FAILED" in [verdict.status for verdict in sim.check_policy(path)]
