"""The trace verbs through the real program: what is printed where, with which status, and what is left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sim.traces.stream import read_trace
from tests.support.cli_cases import invoke, scenario_data, write_scenario
from tests.support.places import ROOT

SMALL = ROOT / "traces" / "small.csv"
HEADER = "arrival_s,model,prompt_tokens,output_tokens\n"


def error(*arguments: object) -> str:
    """The one line that the program says; asserts status 2 and a silent stdout."""
    result = invoke(*arguments)
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("error: ")
    return str(result.stderr)


def good(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return str(result.stdout)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "".join(f"{n * 0.5},svc,{n + 1},{n % 7 + 1}\n" for n in range(200)))
    return path


# --- compose and recipe


def test_a_composed_file_tells_how_it_was_made_and_can_be_made_again(text: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.parquet"
    options = ("--assign", "zipf:1.0", "--models", "m1,m2,m3", "--time-scale", 2, "--thin", 0.5, "--window", "0:90")
    said = good("trace", "compose", text, SMALL, *options, "--seed", 1, "--out", made)
    trace = read_trace(made)
    assert said == f"{made}: wrote {len(trace):,} requests\n"
    assert sorted(trace.models) == ["m1", "m2", "m3"]
    assert 45 > trace.arrival_s[-1] > 40
    recipe = good("trace", "recipe", made)
    assert yaml.safe_load(recipe)["seed"] == 1
    assert json.loads(good("trace", "recipe", made, "--json")) == yaml.safe_load(recipe)
    (tmp_path / "r.yaml").write_text(recipe)
    good("trace", "compose", tmp_path / "r.yaml", "--out", tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == made.read_bytes()
    shown = good("trace", "compose", text, SMALL, *options, "--show")
    (tmp_path / "shown.yaml").write_text(shown)
    good("trace", "compose", tmp_path / "shown.yaml", "--out", tmp_path / "shown.parquet")
    assert read_trace(tmp_path / "shown.parquet").digest() == trace.digest()
    good("trace", "compose", tmp_path / "r.yaml", "--seed", 2, "--out", tmp_path / "other.parquet")
    assert read_trace(tmp_path / "other.parquet").digest() != trace.digest()


def test_a_source_that_changed_is_refused_in_one_line(text: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.parquet"
    good("trace", "compose", text, "--limit", 5, "--out", made)
    (tmp_path / "r.yaml").write_text(good("trace", "recipe", made))
    text.write_text(text.read_text() + "200,svc,1,1\n")
    said = error("trace", "compose", tmp_path / "r.yaml", "--out", tmp_path / "again.parquet")
    assert "is not the file of the recipe: its sha256 is" in said
    assert not (tmp_path / "again.parquet").exists()


def test_parts_are_files_that_together_are_all(text: Path, tmp_path: Path) -> None:
    said = good("trace", "compose", text, "--split", "3,1", "--out", tmp_path / "p.csv")
    parts = [read_trace(tmp_path / f"p-{number}.csv") for number in (1, 2)]
    assert said.count("wrote") == 2
    assert sorted([*parts[0].prompt_tokens.tolist(), *parts[1].prompt_tokens.tolist()]) == list(range(1, 201))
    good("trace", "compose", SMALL, "--split-models", "each", "--out", tmp_path / "m.parquet")
    assert [read_trace(tmp_path / f"m-{number}.parquet").models for number in (1, 2, 3)] == [
        ("chat",),
        ("code",),
        ("summary",),
    ]


def test_the_models_of_a_scenario_and_of_another_trace(text: Path, tmp_path: Path) -> None:
    scenario = write_scenario(tmp_path)
    good("trace", "compose", text, "--scenario", scenario, "--assign", "uniform", "--out", tmp_path / "s.csv")
    assert sorted(read_trace(tmp_path / "s.csv").models) == ["chat", "code"]
    good("trace", "compose", text, "--like", SMALL, "--out", tmp_path / "l.csv")
    assert sorted(read_trace(tmp_path / "l.csv").models) == ["chat", "code", "summary"]
    run = json.loads(good("run", scenario, "--trace", tmp_path / "s.csv", "--json"))
    assert run["requests"]["arrived"] == 200


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--out", "{}/x.txt"), "unknown kind of file"),
        (("--out", "{}/t.csv"), "exists already"),
        (("--out", "{}/no/x.csv"), "there is no folder"),
        ((), "--out is missing"),
        (("--thin", "2", "--out", "{}/x.csv"), "steps.0.thin.share"),
        (("--assign", "zipf:1", "--out", "{}/x.csv"), "which models?"),
        (("--assign", "zip:1", "--models", "a", "--out", "{}/x.csv"), "unknown law 'zip:1'"),
        (("--assign", "rank", "--models", "a", "--by", "client", "--out", "{}/x.csv"), "no column 'client'"),
        (("--window", "500:600", "--out", "{}/x.parquet"), "no requests"),
        (("--like", "{}/none.csv", "--out", "{}/x.csv"), "none.csv: no such file"),
        (("--format", "nativ", "--out", "{}/x.csv"), "did you mean 'native'"),
        (("--option", "strict", "--out", "{}/x.csv"), "write NAME=VALUE"),
        (("--seed", "-1", "--out", "{}/x.csv"), "'seed'"),
        (("--mix", "1,2", "--out", "{}/x.csv"), "2 shares for 1 files"),
        (("--split", "1,1", "--split-at", "5", "--out", "{}/x.csv"), "one way of splitting"),
        (("{}/r.yaml", "--out", "{}/x.csv"), "give it alone"),
    ],
    ids=str,
)
def test_compose_mistakes(text: Path, tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    before = sorted(tmp_path.iterdir())
    given = [option.replace("{}", str(tmp_path)) for option in options]
    assert words in error("trace", "compose", text, *given)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("recipe", "options", "words"),
    [
        ("sources: [t.csv]\n", ("--thin", "0.5"), "--thin: "),
        ("sources: [t.csv]\n", ("--format", "native"), "--format: "),
        ("- a\n", (), "a recipe is a mapping"),
        ("sources: [none.csv]\n", (), "none.csv: no such file"),
        ("sources: [t.csv]\nsteps: [{thn: 1}]\n", (), "did you mean 'thin'?"),
        ("sources: [t.csv\n", (), "not valid YAML"),
        ("generate: 3\n", (), "field 'generate'"),
        ("generate: {preset: none}\n", (), "unknown preset 'none'"),
        ("generate: {preset: agents}\nseed: x\n", (), "r.yaml: field 'seed'"),
        ("generate: {preset: agents}\nmodels: 3\n", (), "r.yaml: field 'models'"),
        ("generate: {preset: agents}\nsteps: []\n", (), "unknown field 'steps'"),
    ],
    ids=str,
)
def test_recipe_mistakes(text: Path, tmp_path: Path, recipe: str, options: tuple[str, ...], words: str) -> None:
    (tmp_path / "r.yaml").write_text(recipe)
    before = sorted(tmp_path.iterdir())
    assert words in error("trace", "compose", tmp_path / "r.yaml", *options, "--out", tmp_path / "x.parquet")
    assert sorted(tmp_path.iterdir()) == before


def test_json_is_a_recipe_only_when_it_says_so(text: Path, tmp_path: Path) -> None:
    talks = [{"conversations": [{"from": "human", "value": "two words"}, {"from": "gpt", "value": "three more words"}]}]
    (tmp_path / "talks.json").write_text(json.dumps(talks))
    options = ("--format", "sharegpt", "--option", "rate=1")
    assert "wrote 1 request\n" in good(
        "trace", "compose", tmp_path / "talks.json", *options, "--out", tmp_path / "o.csv"
    )
    (tmp_path / "r.json").write_text(json.dumps({"sources": ["t.csv"], "steps": [{"limit": 3}]}))
    assert "wrote 3 requests" in good("trace", "compose", tmp_path / "r.json", "--out", tmp_path / "p.csv")


def test_recipes_that_are_not_there(text: Path, tmp_path: Path) -> None:
    assert "holds no recipe" in error("trace", "recipe", text)
    assert "no such file" in error("trace", "recipe", tmp_path / "none.parquet")


# --- describe


def test_several_traces_side_by_side(text: Path, tmp_path: Path) -> None:
    shown = good("trace", "describe", text, SMALL)
    header, first = shown.splitlines()[1:3]
    assert header.split() == ["t", "small"]
    assert first.split() == ["requests", "200", "333"]
    facts = json.loads(good("trace", "describe", text, SMALL, "--json"))
    assert {name: each["rows"] for name, each in facts.items()} == {"t": 200, "small": 333}
    assert facts["small"] == json.loads(good("trace", "describe", SMALL, "--json"))


def test_what_describing_leaves_out_or_shortens_is_said(tmp_path: Path) -> None:
    burst = tmp_path / "b.csv"
    rows = "".join(f"{second},model-{second},5,{0 if second == 3 else 7},12,API log\n" for second in range(20))
    burst.write_text("Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n" + rows)
    result = invoke("trace", "describe", burst)
    assert result.stderr.startswith("notice: left out 1 row without prompt or output tokens")
    assert "(the first 16 of 19; --json has all)" in " ".join(result.stdout.split())
    assert list(json.loads(invoke("trace", "describe", burst, "--json").stdout)["models"]).count("model-3") == 0
    assert "notice: b: left out 1 row" in invoke("trace", "describe", burst, SMALL).stderr
    one = tmp_path / "one.csv"
    one.write_text(HEADER + "0,a,1,1\n")
    assert good("trace", "import", one, "--out", tmp_path / "o.csv").endswith("wrote 1 request\n")
    assert "shift by at least 0\n" in error("trace", "compose", one, "--shift", "-5", "--out", tmp_path / "s.csv")


def test_offered_load_is_shown_and_given(text: Path, tmp_path: Path) -> None:
    models = [*scenario_data()["models"], {"name": "summary", "model": "Llama-3-8B"}]
    path = write_scenario(tmp_path, models=models)
    load = json.loads(good("trace", "describe", SMALL, "--scenario", path, "--json"))["load"]
    assert load["of_cluster"] > 0
    shown = " ".join(good("trace", "describe", SMALL, "--scenario", path).split())
    assert f"offered load {load['of_cluster']:.1%} of it" in shown
    assert "rtx-a6000 in tr-pro-5995wx" in shown
    half = ("--set", "cluster.nodes.0.gpus.0.count=2")
    double = json.loads(good("trace", "describe", SMALL, "--scenario", path, *half, "--json"))["load"]
    assert double["of_cluster"] == pytest.approx(load["of_cluster"] / 2)
    assert "model 'svc' is not in scenario 'mini'" in error("trace", "describe", text, "--scenario", path)


def test_a_figure_is_drawn_once(text: Path, tmp_path: Path) -> None:
    plot = tmp_path / "t.png"
    assert f"drawn in {plot}" in good("trace", "describe", text, SMALL, "--plot", plot)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "exists already" in error("trace", "describe", text, "--plot", plot)
    assert "unknown kind of figure" in error("trace", "describe", text, "--plot", tmp_path / "t.bmp")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--service", "5"), "write PROMPT:OUTPUT"),
        (("--service", "0:5"), "write PROMPT:OUTPUT"),
        (("--service", "e:."), "write PROMPT:OUTPUT"),
        (("--set", "seed=1"), "give --scenario"),
        (("--scenario", "none.yaml"), "none.yaml"),
        (("t.csv",), "no such file"),
    ],
    ids=str,
)
def test_describe_mistakes(text: Path, options: tuple[str, ...], words: str) -> None:
    assert words in error("trace", "describe", text, *options)


def test_the_same_file_twice_is_refused(text: Path) -> None:
    assert "a file is given twice" in error("trace", "describe", text, text)


def test_the_assumed_speeds_change_concurrency_alone(text: Path) -> None:
    first, second = (json.loads(good("trace", "describe", text, "--json", *o)) for o in ((), ("--service", "10:1")))
    assert second["concurrency"]["mean"] > first["concurrency"]["mean"]
    assert {**first, "concurrency": 0} == {**second, "concurrency": 0}


# --- import, check, formats


def test_import_says_what_it_noticed_and_writes_over_nothing(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(HEADER + "5,a,1,1\n1,b,2,2\n")
    result = invoke("trace", "import", tmp_path / "t.csv", "--out", tmp_path / "o.parquet")
    assert result.stdout == f"{tmp_path / 'o.parquet'}: wrote 2 requests\n"
    assert result.stderr.startswith("notice: sorted 1 row")
    assert "exists already" in error("trace", "import", tmp_path / "t.csv", "--out", tmp_path / "o.parquet")
    assert "before the row" in error("trace", "import", tmp_path / "t.csv", "--strict", "--out", tmp_path / "s.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.parquet", "t.csv"]


def test_an_import_that_fails_late_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(HEADER + "".join(f"{n},a,1,1\n" for n in range(200_000)) + "x,a,1,1\n")
    assert "row 200002" in error("trace", "import", tmp_path / "t.csv", "--out", tmp_path / "o.parquet")
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]


def test_options_of_a_format_are_checked_and_listed(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("num_prefill_tokens,num_decode_tokens\n5,6\n7,8\n")
    made = good(
        *("trace", "import", tmp_path / "l.csv", "--format", "lengths", "--option", "rate=2"),
        *("--out", tmp_path / "o.csv"),
    )
    assert "wrote 2 requests" in made
    assert "no such option" in error(
        *("trace", "import", tmp_path / "l.csv", "--format", "lengths", "--option", "rat=2"),
        *("--out", tmp_path / "p.csv"),
    )
    listed = good("trace", "formats")
    assert "azure-llm-2023" in listed
    assert "rate" in good("trace", "formats", "lengths")
    assert "did you mean 'mooncake'" in error("trace", "formats", "moonkake")


def test_check_reads_all_and_names_what_is_odd(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(HEADER + "".join(f"{1e5 + n // 4},a,1,1\n" for n in range(24)))
    said = good("trace", "check", tmp_path / "t.csv")
    assert "notice: the first request arrives at 100000 s" in said
    assert "is the clock coarse?" in said
    assert said.endswith("24 requests can be played\n")


# --- generate


def test_generated_traces_keep_their_recipe(tmp_path: Path) -> None:
    workload: dict[str, Any] = {"duration_s": 50, "traffic": [{"model": "chat", "rate_per_s": 2}]}
    (tmp_path / "w.yaml").write_text(yaml.safe_dump(workload))
    made = tmp_path / "g.parquet"
    assert "wrote" in good("trace", "generate", tmp_path / "w.yaml", "--seed", 3, "--out", made)
    (tmp_path / "r.yaml").write_text(good("trace", "recipe", made))
    good("trace", "compose", tmp_path / "r.yaml", "--out", tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == made.read_bytes()
    assert "exists already" in error("trace", "generate", tmp_path / "w.yaml", "--out", made)
    assert "--out is missing" in error("trace", "generate", tmp_path / "w.yaml")
    assert "neither a file nor a preset" in error("trace", "generate", "nothing", "--out", tmp_path / "n.csv")
    assert "Presets" in good("trace", "generate")
