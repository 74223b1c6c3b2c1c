"""report: every kind of folder and format, what is refused, escaping, the same bytes, and what a reader is told."""

from __future__ import annotations

import html
import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sim.plots.style import pens
from sim.report.content import Report, Section, Table
from sim.report.markdown import escaped, markdown
from sim.report.page import html as page_of
from sim.report.result_folder import open_folder
from sim.report.write import _files as files_of
from sim.report.write import made
from tests.support.cli_cases import invoke
from tests.support.report_cases import make_capacity, make_comparison, make_run, make_sweep, relabelled

KINDS = ("run", "sweep", "comparison", "capacity")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    makers = {"run": make_run, "sweep": make_sweep, "comparison": make_comparison, "capacity": make_capacity}
    return {kind: makers[kind](tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.fixture(scope="module")
def reports(folders: dict[str, Path]) -> dict[str, Report]:
    return {kind: made(open_folder(folder)) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def pages(reports: dict[str, Report]) -> dict[str, str]:
    return {kind: page(found) for kind, found in reports.items()}


def page(found: Report) -> str:
    return page_of(found, "0")


def sections(found: Report) -> dict[str, Section]:
    return {section.key: section for section in found.sections}


def table(found: Report, key: str) -> Table:
    return next(table for section in found.sections for table in section.tables if table.key == key)


def column(found: Table, header: str) -> list[Any]:
    at = found.headers.index(header)
    return [row[at].sort for row in found.rows]


# --- every kind of folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_is_told_by_looking(kind: str, folders: dict[str, Path]) -> None:
    assert open_folder(folders[kind]).kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_needs_nothing_else(kind: str, pages: dict[str, str]) -> None:
    text = pages[kind]
    assert not re.search(r"https?:|url\((?!#)|@import|<iframe|<object", text)
    assert not re.search(r'(?:src|href)="(?!#|data:,)', text)
    assert '<meta name="viewport"' in text
    assert "default-src 'none'" in text
    assert len(text) < 1_000_000
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)), "an id is there twice"
    used = re.findall(r'(?:url\(#|href="#)([^")]+)', text)
    assert set(used) <= set(ids)


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_opens_on_a_summary(kind: str, reports: dict[str, Report], pages: dict[str, str]) -> None:
    found, text = reports[kind], html.unescape(pages[kind])
    assert text.index(found.headline) < text.index(found.sections[0].title + "</h2>")
    assert "mini" in found.title
    assert any("2 models on 1 GPU (1 rtx-a6000)" in sentence for sentence in found.words)
    if kind in ("run", "comparison", "sweep"):
        assert any(re.search("complete|without an answer", sentence) for sentence in found.words)


def test_a_run_says_what_its_summary_says(folders: dict[str, Path], reports: dict[str, Report]) -> None:
    summary = json.loads((folders["run"] / "summary.json").read_text())
    found = reports["run"]
    latencies = table(found, "latency-table")
    keys = ("ttft_s", "itl_s", "tpot_s", "e2e_s", "e2e_all_s", "queue_s")
    assert column(latencies, "p99") == [summary[key]["p99"] for key in keys]
    budget = table(found, "budget-table")
    assert budget.rows[0][0].text == "all requests"
    spent = [cell.sort for cell in budget.rows[0][1:-1]]
    assert spent == pytest.approx(
        [value / summary["requests"]["arrived"] for value in summary["time_budget_s"].values()]
    )
    by_model = {row[0].text: row[1].sort for row in table(found, "models").rows}
    assert by_model == {name: row["requests"]["arrived"] for name, row in summary["models"].items()}
    assert {"latency", "promises", "time", "gpus", "switching", "over-time", "break-even", "about"} == set(
        sections(found)
    )
    assert any("chance" in sentence for sentence in found.words), "one run is no proof"


def test_a_comparison_says_verdict_and_differences(folders: dict[str, Path], reports: dict[str, Report]) -> None:
    data = json.loads((folders["comparison"] / "comparison.json").read_text())
    found = reports["comparison"]
    assert (found.headline, *found.words[: len(data["verdict"]) - 1]) == tuple(data["verdict"])
    ranking = table(found, "ranking-table")
    means = dict(zip([row[0].text for row in ranking.rows], column(ranking, "E2E of all, mean"), strict=True))
    gaps = dict(zip([row[0].text for row in ranking.rows], column(ranking, "minus lru-swap"), strict=True))
    for policy in data["policies"]:
        assert means[policy["label"]] == pytest.approx(policy["measured"]["e2e_all_s.mean"]["estimate"]["mean"])
        if policy["label"] != "lru-swap":
            expected = policy["versus"]["slo.attainment"]["difference"]["estimate"]["mean"]
            assert gaps[policy["label"]] == pytest.approx(expected)
    assert {"ranking", "latency", "trade-offs", "time", "gpus", "switching", "runs", "about"} <= set(sections(found))


def test_a_sweep_is_drawn_against_what_it_varied(reports: dict[str, Report]) -> None:
    found = reports["sweep"]
    load = sections(found)["load"]
    assert load.title == "Against load"
    assert [chart.title.split(":")[0] for chart in load.charts] == ["SLO kept", "E2E of all, mean", "goodput"]
    assert sorted(set(column(load.tables[0], "load"))) == [0.5, 1.0, 2.0]
    assert {"setting-0", "setting-1", "setting-2"} <= set(sections(found))
    failed = sections(found)["failed"].tables[0]
    assert [("no-such-policy" in row[0].text, "no-such-policy" in row[1].text) for row in failed.rows] == [(True, True)]
    assert any("1 run failed" in caution for caution in found.cautions)


def test_a_capacity_says_what_each_policy_carries(folders: dict[str, Path], reports: dict[str, Report]) -> None:
    data = json.loads((folders["capacity"] / "capacity.json").read_text())
    found = reports["capacity"]
    assert found.headline == data["verdict"][0]
    answers = {row[0].text: row[1].sort for row in table(found, "capacity-table").rows}
    assert answers == {policy["label"]: policy["found"]["value"] for policy in data["policies"]}
    points = sum(len(policy["found"]["points"]) for policy in data["policies"])
    assert len(table(found, "points").rows) == points


def test_a_store_of_summaries_has_no_curves_and_says_so(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["comparison"], tmp_path / "store")
    for name in ("requests", "gpus", "switches", "series"):
        for path in (tmp_path / "store" / "runs").glob(f"*/{name}.parquet"):
            path.unlink()
    latency = sections(made(open_folder(tmp_path / "store")))["latency"]
    assert [chart.key for chart in latency.charts] == ["percentiles-ttft", "percentiles-e2e"]
    assert "summaries only" in latency.words[0]


# --- formats


@pytest.mark.parametrize("kind", ["run", "comparison", "capacity"])
def test_the_same_folder_gives_the_same_bytes(kind: str, folders: dict[str, Path], pages: dict[str, str]) -> None:
    assert page(made(open_folder(folders[kind]))) == pages[kind]


@pytest.mark.parametrize(("form", "head"), [("md", b"# mini"), ("pdf", b"%PDF-"), ("png", b"\x89PNG")])
def test_other_formats(form: str, head: bytes, reports: dict[str, Report], tmp_path: Path) -> None:
    found = replace(reports["run"], sections=reports["run"].sections[:2], overview=reports["run"].overview[:2])
    target = tmp_path / f"r.{form}"
    files = files_of(found, form, target)
    assert files == files_of(found, form, target), "the same bytes"
    assert list(files)[-1] == target, "the report itself comes last"
    assert files[target].startswith(head)
    if form == "md":
        linked = re.findall(r"\]\((r-figures/[^)]+)\)", files[target].decode())
        assert linked == [path.relative_to(tmp_path).as_posix() for path in list(files)[:-1]]
        assert all(data.startswith(b"\x89PNG") for data in list(files.values())[:-1])
    else:
        assert len(files) == 1
        assert len(files[target]) > 20_000


def test_the_command_line(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["run"], tmp_path / "run")
    (tmp_path / "run" / "report.html").write_text("an earlier report is replaced")
    result = invoke("report", tmp_path / "run")
    assert (result.exit_code, result.stdout.strip()) == (0, str(tmp_path / "run" / "report.html"))
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!doctype html>")
    assert open_folder(tmp_path / "run").kind == "run", "a report within does not change what the folder is"
    (tmp_path / "x.png").write_text("mine")
    for arguments, words in (
        (["--out", tmp_path / "x.png"], "exists already"),
        (["--out", tmp_path / "x.gif"], "its name ends in none of .html, .md, .pdf, .png"),
        (["--out", tmp_path / "no" / "x.html"], "there is no folder"),
        (["--out", tmp_path / "run"], "its name ends in none"),
        (["--format", "htm"], "did you mean 'html'?"),
    ):
        result = invoke("report", tmp_path / "run", *arguments)
        assert result.exit_code == 2
        assert words in result.stderr
        assert result.stderr.count("\n") == 1


# --- folders that are none


def spoilt(kind: str, folder: Path, good: Path) -> Path:
    """A folder with one thing wrong."""
    target = folder / "spoilt"
    if kind in ("empty", "interrupted", "foreign"):
        target.mkdir()
        if kind != "empty":
            (target / (".run.1.partial" if kind == "interrupted" else "holiday.jpg")).write_text("")
        return target
    if kind == "missing":
        return target
    if kind == "file":
        return good / "summary.json"
    if kind == "no runs":
        (target / "runs").mkdir(parents=True)
        return target
    if kind == "broken comparison":
        target.mkdir()
        (target / "comparison.json").write_text("{")
        return target
    shutil.copytree(good, target)
    path = target / "summary.json"
    if kind == "half":
        (target / "gpus.parquet").unlink()
    elif kind == "no json":
        path.write_text("{")
    elif kind == "a list":
        path.write_text("[]")
    elif kind == "other version":
        data = json.loads(path.read_text())
        del data["slo"]
        path.write_text(json.dumps(data))
    elif kind == "broken table":
        (target / "requests.parquet").write_bytes(b"PAR1 and no more")
    else:
        import pandas as pd  # noqa: PLC0415

        pd.DataFrame({"other": [1]}).to_parquet(target / "requests.parquet")
    return target


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "there is no such folder"),
        ("file", "is a file; give the folder that it lies in"),
        ("empty", "is empty; make results with run, compare, sweep or capacity"),
        ("interrupted", "a run was interrupted there and kept nothing"),
        ("foreign", "holds no results (there is holiday.jpg"),
        ("half", "half a run, gpus.parquet is missing; run it again"),
        ("no json", "summary.json: is no JSON"),
        ("a list", "summary.json: is not an object"),
        ("other version", "summary.json: has no 'slo'; it is of another version"),
        ("broken table", "requests.parquet: cannot be read"),
        ("another table", "requests.parquet: has no column 'model'"),
        ("no runs", "no run has finished there"),
        ("broken comparison", "comparison.json: is no JSON"),
    ],
)
def test_a_bad_folder_is_one_line(kind: str, words: str, folders: dict[str, Path], tmp_path: Path) -> None:
    folder = spoilt(kind, tmp_path, folders["run"])
    out = tmp_path / "out.html"
    result = invoke("report", folder, "--out", out)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not out.exists()
    assert not list(tmp_path.glob(".*partial"))


# --- names from data


EVIL = [
    "<script>alert(1)</script>",
    "a\"b'&amp;",
    "]]></style><img src=x onerror=alert(1)>",
    "שלום \u202eevil",
    "日本",
    "$x^$",
]


@pytest.fixture(scope="module")
def evil(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Report:
    return made(
        open_folder(relabelled(folders["comparison"], tmp_path_factory.mktemp("evil"), EVIL, oracle="sees all"))
    )


@pytest.fixture(scope="module")
def evil_page(evil: Report) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return page(evil)


def test_no_name_becomes_markup(evil_page: str) -> None:
    assert evil_page.count("<script") == 1, "only our own"
    assert evil_page.count("</style") == 1
    assert "<img" not in evil_page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in evil_page
    assert "\u202e" not in evil_page
    assert "שלום \\u202eevil" in evil_page


def test_an_oracle_is_never_without_its_mark(evil: Report, evil_page: str) -> None:
    text = html.unescape(evil_page)
    assert re.findall(r"\$x\^\$(?! \(oracle\))", text) == []
    assert "$x^$ (oracle)" in text
    assert not any("$x^$" in tile.note for tile in evil.tiles), "an oracle wins nothing"
    assert "$x^$" not in evil.headline
    assert any("is an oracle" in caution for caution in evil.cautions)


def test_markdown_is_escaped(evil: Report) -> None:
    text, _ = markdown(replace(evil, sections=tuple(replace(each, charts=()) for each in evil.sections)), "figures")
    assert r"\<script\>alert(1)\</script\>" in text
    assert not re.search(r"(?<!\\)<", text)
    assert escaped("a|b\n*c* [d](e) `f`") == r"a\|b \*c\* \[d\](e) \`f\`"


# --- many


def test_many_policies_stay_readable(folders: dict[str, Path], tmp_path: Path) -> None:
    names = [f"policy-{number:02d}" for number in range(28)]
    found = made(open_folder(relabelled(folders["comparison"], tmp_path, names)))
    assert len(table(found, "ranking-table").rows) == 28
    text = page(found)
    assert len(text) < 2_000_000
    curves = next(chart for chart in sections(found)["latency"].charts if chart.key == "cdf-ttft")
    assert f"{28 - 7} others" in page(Report("t", "", "h", (), sections=(Section("s", "s", (), (curves,)),)))
    used = pens(names, names[:7])
    assert len({pen.colour for pen in used.values() if pen.strong}) == 7
    assert len({(pen.colour, pen.strong) for pen in used.values() if not pen.strong}) == 1
