"""Recipes: what they may say, that they make the same bytes again, and that a file that changed is noticed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from sim.common.errors import ConfigError, SimError, TraceError
from sim.traces.compose.composition import compose, digest_of, settle
from sim.traces.compose.recipe import Recipe, as_data, parse_recipe
from sim.traces.compose.shorthand import Shorthand, recipe_from
from sim.traces.stream import read_trace
from sim.traces.write import write_stream
from sim.workload.trace_jobs import compose_files, follow_file, read_recipe_of, split_targets
from tests.support.trace_cases import Row, in_chunks, rows_of, trace_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two traces: one.csv with sessions and closed loops, two.parquet with blocks."""
    one = [Row(n * 1.0, "x", n + 1, 2, f"s{n % 3}", 0.5 if n >= 3 else None) for n in range(40)]
    two = [Row(n * 2.0, "yz"[n % 2], 500 + n, 3, blocks=(n, n + 1), client=n % 4) for n in range(30)]
    write_stream(in_chunks(trace_of(one)), tmp_path / "one.csv")
    write_stream(in_chunks(trace_of(two)), tmp_path / "two.parquet")
    return tmp_path


def followed(data: dict[str, Any], folder: Path) -> list[Row]:
    recipe, found = settle(parse_recipe(data, "test"), [folder])
    return rows_of(compose(recipe, found))


EVERYTHING: dict[str, Any] = {
    "seed": 7,
    "sources": [
        {
            "name": "conv",
            "file": "one.csv",
            "steps": [{"thin": 0.9}, {"map_models": {"models": ["a"], "law": "uniform"}}],
        },
        {"file": "two.parquet", "steps": [{"map_models": {"models": ["b", "c"], "law": "rank", "by": "client"}}]},
    ],
    "mix": {"shares": {"conv": 0.5, "2": 0.5}},
    "steps": [
        {"window": {"start_s": 2, "end_s": 50}},
        {"time_scale": 2},
        {"repeat": {"times": 2, "period_s": 40}},
        {"map_models": {"like": "two.parquet", "by": "session"}},
        {"shift": {"by_s": 1.5}},
        {"limit": 60},
        {"split": {"shares": [3, 1], "part": 0, "whole_sessions": True}},
    ],
}


def test_a_recipe_makes_the_same_bytes_again_and_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "r.yaml").write_text(yaml.safe_dump(EVERYTHING))
    first = follow_file(folder / "r.yaml", folder / "first.parquet")[0]
    assert first.rows == len(read_trace(first.path)) > 10
    kept = read_recipe_of(first.path)
    assert [len(source["sha256"][0]) for source in kept["sources"]] == [64, 64]
    for name, text in (("again.yaml", yaml.safe_dump(kept)), ("again.json", json.dumps(kept))):
        (folder / name).write_text(text)
        again = follow_file(folder / name, folder / f"{name}.parquet")[0]
        assert again.path.read_bytes() == first.path.read_bytes()
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "r.yaml").write_text(yaml.safe_dump(kept))
    monkeypatch.chdir(folder)  # the files are not beside the recipe, but here
    assert follow_file(elsewhere / "r.yaml", elsewhere / "t.parquet")[0].path.read_bytes() == first.path.read_bytes()
    other = follow_file(folder / "r.yaml", folder / "other.parquet", seed=8)[0]
    assert other.path.read_bytes() != first.path.read_bytes()
    assert read_recipe_of(other.path)["seed"] == 8


def test_a_parsed_recipe_is_its_own_data() -> None:
    recipe = parse_recipe(EVERYTHING, "test")
    assert parse_recipe(as_data(recipe), "again") == recipe
    assert parse_recipe(yaml.safe_load(yaml.safe_dump(as_data(recipe))), "again") == recipe


def test_a_file_that_changed_is_refused_with_its_digest(folder: Path) -> None:
    recipe, _ = settle(parse_recipe({"sources": ["one.csv"]}, "test"), [folder])
    said = digest_of(folder / "one.csv")
    with (folder / "one.csv").open("a") as file:
        file.write("99,x,1,1,,\n")
    with pytest.raises(TraceError) as caught:
        settle(recipe, [folder])
    assert f"one.csv: is not the file of the recipe: its sha256 is {digest_of(folder / 'one.csv')}, not {said}" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)
    like = {"sources": ["two.parquet"], "steps": [{"map_models": {"like": {"file": "one.csv", "sha256": said}}}]}
    with pytest.raises(TraceError, match="is not the file of the recipe"):
        settle(parse_recipe(like, "test"), [folder])


def test_a_folder_has_a_digest_of_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("1")
    first = digest_of(tmp_path / "a")
    os.rename(tmp_path / "a" / "x", tmp_path / "a" / "y")
    second = digest_of(tmp_path / "a")
    (tmp_path / "a" / "y").write_text("2")
    assert len({first, second, digest_of(tmp_path / "a")}) == 3


def test_mix_shares_are_those_of_the_requests(tmp_path: Path) -> None:
    for name, count in (("a", 30_000), ("b", 3_000)):
        text = "".join(f"{n * 0.1:.1f},{name},1,1\n" for n in range(count))
        (tmp_path / f"{name}.csv").write_text("arrival_s,model,prompt_tokens,output_tokens\n" + text)
    rows = followed({"sources": ["a.csv", "b.csv"], "mix": {"shares": {"1": 3, "2": 1}}}, tmp_path)
    counts = [sum(row.model == name for row in rows) for name in "ab"]
    assert counts[1] == 3000
    assert abs(counts[0] - 9000) < 4.5 * (30_000 * 0.3 * 0.7) ** 0.5


def test_one_sources_draws_do_not_depend_on_the_others(folder: Path) -> None:
    source = {"name": "x", "file": "one.csv", "steps": [{"thin": 0.5}]}
    alone = followed({"sources": [source]}, folder)
    beside = followed({"sources": ["two.parquet", source]}, folder)
    assert [row.prompt for row in beside if row.prompt <= 40] == [row.prompt for row in alone]


def test_tables_shares_and_their_default_laws(folder: Path) -> None:
    renamed = followed({"sources": ["two.parquet"], "steps": [{"map_models": {"table": {"y": "b", "z": "a"}}}]}, folder)
    assert [row.model for row in renamed[:3]] == ["b", "a", "b"]
    ranked = {"map_models": {"shares": {"small": 0.1, "big": 0.9}, "law": "rank", "by": "model"}}
    assert followed({"sources": ["one.csv"], "steps": [ranked]}, folder)[0].model == "big"
    drawn = followed({"sources": ["one.csv"], "steps": [{"map_models": {"shares": {"a": 1, "b": 0}}}]}, folder)
    assert {row.model for row in drawn} == {"a"}


STEP = {"sources": ["one.csv"]}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, "field 'sources' is missing"),
        ({"sources": []}, "'sources'"),
        ({"sources": ["one.csv"], "step": []}, "unknown field 'step'; did you mean 'steps'?"),
        ({**STEP, "recipe": 2}, "'recipe'"),
        ({**STEP, "seed": -1}, "'seed'"),
        ({**STEP, "steps": [{"thin": 1.5}]}, "'steps.0.thin.share'"),
        ({**STEP, "steps": [{"thin": {"share": 0.5, "whole_session": 1}}]}, "did you mean 'whole_sessions'?"),
        ({**STEP, "steps": [{"thn": 0.5}]}, "unknown field 'steps.0.thn'; did you mean 'thin'?"),
        ({**STEP, "steps": [{"thin": 0.5, "limit": 3}]}, "a step does one thing of"),
        ({**STEP, "steps": [{}]}, "a step does one thing of"),
        ({**STEP, "steps": [{"time_scale": 0}]}, "'steps.0.time_scale.factor'"),
        ({**STEP, "steps": [{"time_scale": ".nan"}]}, "'steps.0.time_scale.factor'"),
        ({**STEP, "steps": [{"window": {"start_s": 5, "end_s": 5}}]}, "end_s 5 is not after start_s 5"),
        ({**STEP, "steps": [{"split": {"shares": [1, 1], "part": 2}}]}, "there are parts 0 to 1, not 2"),
        ({**STEP, "steps": [{"split": {"part": 0}}]}, "give one of shares, at_s and models"),
        ({**STEP, "steps": [{"split": {"at_s": [2, 1], "part": 0}}]}, "at_s must rise"),
        ({**STEP, "steps": [{"split": {"models": [["a"], ["a"]], "part": 0}}]}, "model 'a' is in two parts"),
        ({**STEP, "steps": [{"split": {"shares": [1, 1]}}, {"limit": 3}]}, "steps.0.split: say which part"),
        ({**STEP, "steps": [{"map_models": {"law": "uniform"}}]}, "give one of models, shares, like and table"),
        ({**STEP, "steps": [{"map_models": {"models": ["a", "a"], "law": "uniform"}}]}, "a model is listed twice"),
        ({**STEP, "steps": [{"map_models": {"models": ["a"]}}]}, "'steps.0.map_models.law' is missing"),
        ({**STEP, "steps": [{"map_models": {"shares": {"a": 0}}}]}, "all shares are 0"),
        ({**STEP, "mix": {"shares": {"3": 1}}}, "no source '3'"),
        ({"sources": ["one.csv", "two.parquet"], "mix": {"shares": {"1": 1}}}, "source '2' has no share"),
        ({"sources": [{"name": "a", "file": "x"}, {"name": "a", "file": "y"}]}, "two sources are called 'a'"),
        ({"sources": [{"file": "x", "sha256": ["1", "2"]}]}, "1 files and 2 digests"),
        ({"sources": [{"fil": "x"}]}, "sources.0"),
        ({"sources": [{"name": "a/b", "file": "x"}]}, "use letters, digits"),
    ],
    ids=str,
)
def test_recipes_that_make_no_sense(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe(data, "r.yaml")
    assert words in str(caught.value)
    assert str(caught.value).startswith("r.yaml: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"sources": ["none.csv"]}, "none.csv: no such file"),
        ({"sources": ["one.csv"], "steps": [{"map_models": {"models": ["a"], "law": "zip:1"}}]}, "unknown law"),
        ({"sources": ["one.csv"], "steps": [{"window": {"start_s": 1e6, "end_s": 2e6}}]}, "no requests"),
        ({"sources": ["one.csv"], "steps": [{"shift": -5}]}, "would arrive at -5 s"),
        ({"sources": [{"file": "one.csv", "format": "nativ"}]}, "did you mean 'native'"),
        ({"sources": [{"file": "one.csv", "options": {"colour": 1}}]}, "colour"),
    ],
    ids=str,
)
def test_recipes_that_cannot_be_followed_leave_nothing_behind(folder: Path, data: dict[str, Any], words: str) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(SimError, match=words):
        compose_files(parse_recipe(data, "test"), [folder], folder / "out.parquet")
    assert sorted(folder.iterdir()) == before


def test_a_split_into_all_parts_makes_a_file_for_each(folder: Path) -> None:
    data = {"sources": ["two.parquet"], "steps": [{"split": {"models": "each"}}]}
    written = compose_files(parse_recipe(data, "test"), [folder], folder / "p.parquet")
    assert [(each.path.name, each.rows) for each in written] == [("p-1.parquet", 15), ("p-2.parquet", 15)]
    (folder / "again.yaml").write_text(yaml.safe_dump(read_recipe_of(written[1].path)))
    again = follow_file(folder / "again.yaml", folder / "again.parquet")[0]
    assert again.path.read_bytes() == written[1].path.read_bytes()
    assert split_targets(Path("x/y.csv.gz"), 2) == [Path("x/y-1.csv.gz"), Path("x/y-2.csv.gz")]


def test_a_split_that_fails_half_way_leaves_nothing_behind(folder: Path) -> None:
    data = {"sources": ["one.csv"], "steps": [{"split": {"at_s": [5, 1000]}}]}
    before = sorted(folder.iterdir())
    with pytest.raises(TraceError, match="no requests"):  # of the last part
        compose_files(parse_recipe(data, "test"), [folder], folder / "p.parquet")
    assert sorted(folder.iterdir()) == before


def test_text_cannot_carry_a_recipe_and_says_so(folder: Path) -> None:
    written = compose_files(parse_recipe({"sources": ["one.csv"]}, "test"), [folder], folder / "out.csv")
    assert "out.csv cannot carry its recipe" in " ".join(written[0].notices)
    with pytest.raises(TraceError, match="holds no recipe"):
        read_recipe_of(folder / "out.csv")


# --- the shorthand


def short(**asked: Any) -> Recipe:
    return recipe_from(Shorthand(files=[Path("a.csv"), Path("b.csv")], **asked))


def test_the_shorthand_is_a_recipe() -> None:
    recipe = short(
        assign="zipf:1.0",
        models="m1, m2",
        time_scale=2.0,
        thin=0.5,
        window="0:3600",
        seed=4,
        mix="0.7,0.3",
        split="1,1",
    )
    data = as_data(recipe)
    assert data["seed"] == 4
    assert [source["files"] for source in data["sources"]] == [["a.csv"], ["b.csv"]]
    assert data["mix"]["shares"] == {"1": 0.7, "2": 0.3}
    assert [next(iter(step)) for step in data["steps"]] == ["map_models", "window", "time_scale", "thin", "split"]
    assert data["steps"][0]["map_models"]["models"] == ["m1", "m2"]
    assert as_data(short(shares="a=0.5,b=0.5"))["steps"][0]["map_models"]["law"] == "shares"
    assert as_data(short(table="x=a", by="client"))["steps"][0]["map_models"]["by"] == "client"
    assert as_data(short(split_models="a,b:c"))["steps"][0]["split"]["models"] == [["a", "b"], ["c"]]
    assert as_data(short(shift="start"))["steps"] == [{"shift": {}}]
    [window] = as_data(short(window="60:"))["steps"]
    assert window["window"] == {"start_s": 60.0, "end_s": 1e12, "rebase": True}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"assign": "uniform"}, "which models? Give --models"),
        ({"by": "session"}, "which models?"),
        ({"models": "a,b"}, "by which law? Give --assign"),
        ({"models": "a", "like": Path("x")}, "--models and --like: the models come from one of them"),
        ({"models": "a,,b", "assign": "uniform"}, "a name is empty"),
        ({"shares": "a:1"}, "write NAME=VALUE"),
        ({"shares": "a=x"}, "'x' is not a number"),
        ({"shares": "a=1,a=2"}, "'a' is there twice"),
        ({"window": "3600"}, "write START:END"),
        ({"window": "0:x"}, "'x' is not a number"),
        ({"window": "9:3"}, "end_s 3 is not after start_s 9"),
        ({"thin": 0.0}, "steps.0.thin.share"),
        ({"mix": "1"}, "1 shares for 2 files"),
        ({"split": "1,1", "split_at": "5"}, "--split and --split-at: one way of splitting"),
        ({"split": ""}, "write numbers"),
        ({"split": "0.8"}, "--split 0.8: a share for each of at least two parts"),
        ({"whole_sessions": True}, "give --thin, --split or --mix with it"),
        ({"repeat": 0}, "steps.0.repeat.times"),
    ],
    ids=str,
)
def test_shorthands_that_make_no_sense(asked: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        short(**asked)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
