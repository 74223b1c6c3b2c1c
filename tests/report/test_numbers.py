"""What the figures of a report show: distributions, means over time, colours; and odd runs: no answers, many of all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sim.common.errors import ConfigError
from sim.plots.style import COLOURS
from sim.report.content import Table, text_cell
from sim.report.groups import Cast
from sim.report.latency import by_code, distribution
from sim.report.over_time import _means, _stretches
from sim.report.page import html
from sim.report.result_folder import open_folder
from sim.report.write import made, report
from sim.runs.run_one import RunOptions, run
from tests.support.cli_cases import write_scenario
from tests.support.report_cases import contrast, make_run


def test_a_distribution_counts_those_without_an_answer() -> None:
    values = np.concatenate([np.linspace(1, 2, 50), np.full(50, np.nan)])
    found = distribution(values, 100)
    assert found is not None
    curve = found.curve("x")
    assert max(curve.y) == 0.5
    assert (curve.x[0], curve.x[-1]) == (1.0, 2.0)
    assert found.at(0.5) == pytest.approx(1.5)
    assert distribution(np.full(3, np.nan), 3) is None


def test_a_million_requests_are_as_small_as_a_hundred() -> None:
    values = np.linspace(0, 1, 1_000_000)
    codes = np.repeat(np.array(["a", "b"], dtype=object), [900_000, 100_000])
    found = by_code({"model": codes, "ttft_s": values}, "model", "ttft_s")
    assert list(found) == ["a", "b"], "the busiest first"
    assert len(found["a"].curve("a").x) < 100
    assert found["b"].at(0.5) == pytest.approx(0.95)


def test_means_over_time_are_integrals() -> None:
    edges = np.array([0.0, 1.0, 2.0, 4.0])
    begin, stop, values = np.array([0.0, 0.5, 1.5]), np.array([2.0, 1.0, 3.0]), np.array([2.0, 4.0, 6.0])
    assert _means(begin, stop, values, edges).tolist() == pytest.approx([2 + 4 * 0.5, 2 + 6 * 0.5, 6 * 1.0 / 2])


def test_a_row_holds_until_the_next_of_its_instance() -> None:
    columns = {
        "time_s": np.array([0.0, 1.0, 2.0, 3.0, 4.0]),
        "span_s": np.array([np.nan, np.nan, np.nan, np.nan, 0.5]),
        "instance": np.array([1.0, 2.0, 1.0, np.nan, np.nan]),
        "model": np.array(["a", "b", "a", "a", "b"], dtype=object),
    }
    begin, stop = _stretches(columns, 10.0)
    assert begin.tolist() == [0, 1, 2, 3, 4]
    assert stop.tolist() == [2, 10, 10, 10, 4.5]


def test_memory_over_time_adds_up_to_the_mean_of_the_summary(tmp_path: Path) -> None:
    (run,) = open_folder(make_run(tmp_path)).runs
    columns = run.columns("series.parquet", ["time_s", "span_s", "instance", "model", "gpu", "gpu_bytes"])
    if columns is None:
        pytest.skip("runs do not keep series.parquet yet")
    end_s = run.summary["engine"]["sim_s"]
    on = columns["gpu"] == run.summary["gpus"][0]["name"]
    begin_s, stop_s = _stretches(columns, end_s)
    means = _means(begin_s[on], stop_s[on], columns["gpu_bytes"][on], np.linspace(0, end_s, 50))
    assert means.mean() == pytest.approx(run.summary["gpus"][0]["mean_memory_bytes"], rel=1e-6)


def test_a_run_without_an_answer_is_a_report(tmp_path: Path) -> None:
    (tmp_path / "rejects_all.py").write_text(
        "from sim.policy import Policy, Reject\n\n\nclass RejectsAll(Policy):\n    def decide(self, view):\n"
        "        for request in list(view.waiting):\n            yield Reject(request, 'no <b>room</b>')\n"
    )
    run(RunOptions(write_scenario(tmp_path), str(tmp_path / "rejects_all.py"), out=tmp_path / "run"))
    found = made(open_folder(tmp_path / "run"))
    assert "no request got an answer" in found.headline
    assert any("(100.0%) did not complete" in sentence for sentence in found.words)
    assert "no &lt;b&gt;room&lt;/b&gt;" in html(found, "0")


def test_colours_differ_and_can_be_seen() -> None:
    for theme in (0, 1):
        shades = {
            name: np.array([int(pair[theme][at : at + 2], 16) for at in (1, 3, 5)], float)
            for name, pair in COLOURS.items()
        }
        assert len({pair[theme] for pair in COLOURS.values()}) == len(COLOURS)
        for name in ("ink", "muted"):
            assert contrast(shades[name], shades["paper"]) >= 4.5, name
        for name in [name for name in shades if name.startswith("c")]:
            assert contrast(shades[name], shades["paper"]) >= 2.2, name


def test_a_table_of_the_wrong_shape_is_our_bug() -> None:
    with pytest.raises(AssertionError):
        Table("t", "t", ("a", "b"), ((text_cell("x"),),))
    with pytest.raises(ConfigError, match="unknown"):
        report(Path(), None, "docx")


def test_the_same_policy_has_the_same_colour_everywhere() -> None:
    cast = Cast.of(["a", "b", "c"])
    assert [cast.pens[name].colour for name in "abc"] == [COLOURS[f"c{number}"][0] for number in range(3)]


def test_a_cluster_of_many_gpus_and_models_has_figures_of_few_rows(tmp_path: Path) -> None:
    folder = make_run(tmp_path)
    path = folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["gpus"] = [{**summary["gpus"][0], "name": f"a/gpu-{number}"} for number in range(1000)]
    summary["models"].update({f"m{number}": summary["models"]["chat"] for number in range(200)})
    path.write_text(json.dumps(summary))
    found = made(open_folder(folder))
    charts = [chart for section in found.sections for chart in section.charts]
    assert max(chart.height_in for chart in charts) < 9
    tables = {table.key: table for section in found.sections for table in section.tables}
    assert len(tables["gpu-memory"].rows) == 1000
    assert len(tables["models"].rows) == 202
    assert len(html(found, "0")) < 2_000_000
