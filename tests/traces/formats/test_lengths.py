"""The importers of lengths alone and of conversations as text, whose arrivals are drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from sim.common.errors import ConfigError
from sim.traces.formats import guess_format, json_items
from sim.traces.formats.json_items import json_items as items_of
from sim.traces.stream import TurnOrder
from tests.support.format_files import gaps_cv, imported, made, refused


def turns(*texts: str, start: str = "human") -> list[dict[str, str]]:
    speakers = ("human", "gpt") if start == "human" else ("gpt", "human")
    return [{"from": speakers[number % 2], "value": text} for number, text in enumerate(texts)]


def conversations(folder: Path, *items: Any, name: str = "sg.json") -> Path:
    return made(folder, json.dumps(items), name)


# --- lengths


def test_lengths_from_any_container(tmp_path: Path) -> None:
    rows = [(10, 3), (20, 4), (30, 5)]
    csv = made(tmp_path, "input_len,output_len\n" + "".join(f"{a},{b}\n" for a, b in rows), "a.csv.gz")
    lines = "".join(json.dumps({"prompt_tokens": a, "completion_tokens": b}) + "\n" for a, b in rows)
    jsonl = made(tmp_path, lines, "b.jsonl")
    table = tmp_path / "c.parquet"
    parquet.write_table(pa.table({"p": [a for a, _ in rows], "q": [b for _, b in rows]}), table)
    first = imported(csv, "lengths", strict=True, rate=2)
    assert first.prompt_tokens.tolist() == [10, 20, 30]
    assert first.output_tokens.tolist() == [3, 4, 5]
    assert first.models == ("lengths",)
    assert imported(jsonl, "lengths", rate=2).digest() == first.digest()
    chosen = imported(table, "lengths", rate=2, prompt_column="p", output_column="q")
    assert chosen.digest() == first.digest()
    assert imported(csv, "lengths", rate=2, model="big").models == ("big",)
    both = imported([csv, jsonl], "lengths", rate=2)
    assert both.models == ("a", "b")
    assert len(set(both.arrival_s.tolist())) == 6  # each file has arrivals of its own


def test_lengths_with_models(tmp_path: Path) -> None:
    path = made(tmp_path, "model,prompt_tokens,output_tokens,note\nb,1,2,x\na,3,4,y\n", "a.csv")
    trace = imported(path, "lengths", rate=1)
    assert [trace.models[code] for code in trace.model] == ["b", "a"]
    assert trace.notices[0].startswith("ignored the column 'note'")
    assert imported(path, "lengths", rate=1, model="c").models == ("c",)


@pytest.mark.parametrize(
    ("text", "options", "problem"),
    [
        ("a,b\n1,2\n", {}, "prompt_column: none is called prompt_tokens or the like; give --option prompt_column="),
        ("prompt_len,input_len,output_len\n1,1,2\n", {}, "columns prompt_len and input_len could both be it"),
        ("p,output_len\n1,2\n", {"prompt_column": "q"}, "row 1: column 'q' is missing; known: p"),
        ("p,q\n1,2\n", {"prompt_column": "p", "output_column": "p"}, "column 'p' cannot be both"),
        ("prompt_len,output_len\n1,0\n", {}, "row 2: column 'output_len' is '0'"),
        ("prompt_len,output_len,model\n1,1,\n", {}, "row 2: column 'model' is empty"),
        ("prompt_len,output_len\n1,1\n", {"rate": None}, "has no times of arrival; give --option rate="),
    ],
)
def test_lengths_mistakes(tmp_path: Path, text: str, options: dict[str, Any], problem: str) -> None:
    assert problem in refused(made(tmp_path, text, "a.csv"), "lengths", **{"rate": 1, **options})


# --- conversations


def test_conversations_are_closed_loops(tmp_path: Path) -> None:
    path = conversations(
        tmp_path,
        {"id": "x", "conversations": turns("a" * 8, "b" * 9, "c" * 4, "d")},
        {"id": "x", "conversations": turns("the rest", "e" * 40, "q" * 12, "f" * 5, start="gpt")},
        {"conversations": turns("never answered")},
        {"conversations": turns("a" * 3, "b", "and then")},
    )
    trace = imported(path, rate=0.5, think_s=20, seed=3)
    assert [trace.sessions[code] for code in trace.session] == ["x", "x", "x#2", "conversation-4"]
    # a: 8 characters; then 8 + 9 + 4; a first answer is context of what follows it: 8 + 40
    assert trace.prompt_tokens.tolist() == [2, 6, 12, 1]
    assert trace.output_tokens.tolist() == [3, 1, 3, 1]
    assert trace.extras["turn"].to_pylist() == [1, 2, 1, 1]
    assert trace.think_s is not None
    assert np.isnan(trace.think_s).tolist() == [True, False, True, True]
    assert trace.arrival_s[0] == trace.arrival_s[1] < trace.arrival_s[2]
    TurnOrder().check(trace, "the test")
    assert trace.notices == (
        "left out 1 conversation without any answer",
        "left out 2 questions without an answer",
        "took 4 characters as a token; no tokenizer was asked",
    )
    short = imported(path, "sharegpt", rate=0.5, history="false", chars_per_token="1", model="m")
    assert short.prompt_tokens.tolist() == [8, 4, 40, 3]
    assert short.models == ("m",)


def test_conversations_in_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [{"id": f"c{number}", "conversations": turns("ab", "cd", "ef", "gh")} for number in range(3000)]
    path = conversations(tmp_path, *items)
    trace = imported(path, rate=2.0, think_s=8)
    assert len(trace) == 6000
    starts = trace.select(np.arange(0, 6000, 2))
    assert 3000 / starts.arrival_s[-1] == pytest.approx(2, rel=0.06)
    assert gaps_cv(starts) == pytest.approx(1, abs=0.06)
    assert trace.think_s is not None
    assert np.nanmean(trace.think_s) == pytest.approx(8, rel=0.06)
    monkeypatch.setattr("sim.traces.formats.lengths.BLOCK_ROWS", 100)
    monkeypatch.setattr(json_items, "PIECE_BYTES", 33)
    lines = made(tmp_path, "\n".join(map(json.dumps, items[:200])), "sg.jsonl")
    pieces = imported(lines, "sharegpt", rate=2.0, think_s=8)
    assert pieces.digest() == trace.select(slice(0, 400)).digest()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[1]", "row 1: not a JSON object but 1"),
        ('[{"id": 1}]', "row 1: field 'conversations' is missing"),
        ('[{"conversations": 3}]', "row 1: field 'conversations' is 3; give a list of turns"),
        ('[{"conversations": [3]}]', "row 1: field 'conversations', turn 1: is 3"),
        ('[{"conversations": [{"from": "humn", "value": ""}]}]', "turn 1: 'from' is 'humn'; did you mean 'human'?"),
        ('[{"conversations": [{"from": "human", "value": 3}]}]', "turn 1: 'value' is 3; give text"),
        ('[{"conversations": []}, {"conversations": []]', "row 2: not valid JSON"),
        ('[{"conversations": []} {"conversations": []}]', "row 1: not followed by a comma"),
        ('[{"conversations": []}', "the array ends nowhere"),
        ('[{"conversations": []}] x', "something follows"),
        ('[{"conversations": [', "row 1: not valid JSON"),
        ("[]", "holds no items"),
        ("  ", "the file is empty"),
        ('[{"conversations": []}]', "no request is left (left out 1 conversation without any answer"),
        (
            '[{"id": "a\\u0000", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]',
            "'id'",
        ),
        ('[{"id": NaN}]', "NaN is no number"),
        ('{"a": ' + "[" * 100_000, "nesting too large"),
    ],
)
def test_conversations_mistakes(tmp_path: Path, text: str, problem: str) -> None:
    assert problem in refused(made(tmp_path, text, "sg.json"), "sharegpt", rate=1)


def test_conversations_need_a_rate_and_are_recognised(tmp_path: Path) -> None:
    path = conversations(tmp_path, {"id": "x", "conversations": turns("a", "b")}, name="sg.json.gz")
    assert "give --option rate=" in refused(path, "sharegpt")
    assert guess_format([path]).name == "sharegpt"
    with pytest.raises(ConfigError, match="chars_per_token"):
        imported(path, "sharegpt", rate=1, chars_per_token=0)


def test_openai_messages_are_conversations_too(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "s" * 4},
        {"role": "user", "content": "u" * 4},
        {"role": "assistant", "content": None},
        {"role": "tool", "content": "t" * 4},
        {"role": "assistant", "content": "a" * 4},
    ]
    trace = imported(made(tmp_path, json.dumps({"messages": messages}), "m.jsonl"), "sharegpt", rate=1)
    assert (trace.prompt_tokens.tolist(), trace.output_tokens.tolist()) == ([3], [1])


def test_json_items_whatever_the_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values: list[Any] = [{"a": "ü€" * 20}, [1, 2], 12345, "x", None, {}, 1.5e3]
    for text in (json.dumps(values, ensure_ascii=False), "\n".join(json.dumps(v, ensure_ascii=False) for v in values)):
        path = made(tmp_path, "\ufeff " + text + "\n", "v.json.gz")
        if not text.startswith("["):
            path = made(tmp_path, text, "v.json")
        for size in (1, 2, 7, 1 << 22):
            monkeypatch.setattr(json_items, "PIECE_BYTES", size)
            assert list(items_of(path)) == list(enumerate(values, 1))
