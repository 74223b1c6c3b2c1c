"""Rows that cannot be requests: each mistake is one line with file, row, column and how to mend it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from sim.common.errors import TraceError
from sim.traces.stream import read_trace

HEADER = "arrival_s,model,prompt_tokens,output_tokens\n"
GOOD = "0,a,1,1\n"


def save(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


CSV_MISTAKES: list[tuple[str, str]] = [
    ("", "the file is empty"),
    ("\n  \n", "the file is empty"),
    (HEADER, "has a header but no rows"),
    (HEADER + "\n\n", "has a header but no rows"),
    (HEADER + ",,,\n", "has a header but no rows"),
    (
        "arrival_s,model,prompt_token,output_tokens\n" + GOOD,
        "row 1: column 'prompt_tokens' is missing; did you mean 'prompt_token'?",
    ),
    ("TIMESTAMP,ContextTokens,GeneratedTokens\nx,1,1\n", "if it is an Azure trace, `trace import` it"),
    ("arrival_s,model\n0,a\n", "row 1: column 'prompt_tokens' is missing; add it"),
    ("a\x0b" + HEADER + GOOD, r"row 1: a column is named 'a\x0barrival_s'; use printable"),
    (HEADER.replace(",", ";") + "0;a;1;1\n", "row 1: columns are separated by semicolons; use commas"),
    (HEADER.replace(",", "\t") + "0\ta\t1\t1\n", "row 1: columns are separated by tabs; use commas"),
    ("model," + HEADER + "a," + GOOD, "row 1: column 'model' is named twice"),
    (HEADER + GOOD + "1;a;1;1\n", "row 3: has 1 field, the header has 4; use commas, not semicolons"),
    (HEADER + GOOD + "\n" + GOOD + "1,a,1\n" + GOOD, "row 5: has 3 fields, the header has 4"),
    (HEADER + "1,a,1,1,1\n", "row 2: has 5 fields"),
    (HEADER + GOOD + '1,"a,1,1\n' + GOOD, "row 3: a quote is opened but not closed"),
    (
        HEADER + GOOD + "1,a,abc,1\n",
        "row 3: column 'prompt_tokens' is 'abc'; give a whole number from 1 to 1,000,000,000",
    ),
    (HEADER + GOOD + "1,a,1.5,1\n", "row 3: column 'prompt_tokens' is '1.5'"),
    (HEADER + GOOD + "1,a,nan,1\n", "row 3: column 'prompt_tokens' is 'nan'"),
    (HEADER + GOOD + "1,a,1,inf\n", "row 3: column 'output_tokens' is 'inf'"),
    (HEADER + GOOD + "1,a,0,1\n", "row 3: column 'prompt_tokens' is '0'"),
    (HEADER + GOOD + "1,a,1,-4\n", "row 3: column 'output_tokens' is '-4'"),
    (HEADER + GOOD + "1,a,1,1000000001\n", "row 3: column 'output_tokens' is '1000000001'"),
    (HEADER + GOOD + "1,a,1," + "9" * 60 + "\n", "row 3: column 'output_tokens' is '9999"),
    (HEADER + GOOD + "1,a,1,1e400\n", "row 3: column 'output_tokens' is '1e400'"),
    (HEADER + GOOD + "1,a,0x1F,1\n", "row 3: column 'prompt_tokens' is '0x1F'"),
    (HEADER + GOOD + "1,a,1_0,1\n", "row 3: column 'prompt_tokens' is '1_0'"),
    (HEADER + GOOD + "1,a,,1\n", "row 3: column 'prompt_tokens' is empty"),
    (HEADER + GOOD + "-0.5,a,1,1\n", "row 3: column 'arrival_s' is '-0.5'; give seconds from 0"),
    (HEADER + GOOD + "nan,a,1,1\n", "row 3: column 'arrival_s' is 'nan'"),
    (HEADER + GOOD + "inf,a,1,1\n", "row 3: column 'arrival_s' is 'inf'"),
    (HEADER + GOOD + "1e13,a,1,1\n", "row 3: column 'arrival_s' is '1e13'"),
    (HEADER + GOOD + "2023-11-16,a,1,1\n", "row 3: column 'arrival_s' is '2023-11-16'"),
    (HEADER + GOOD + "1, ,1,1\n", "row 3: column 'model' is empty; name the model"),
    (HEADER + GOOD + "1,a\x07b,1,1\n", r"row 3: column 'model' is 'a\x07b'; use printable"),
    (HEADER + GOOD + "1,a,x,1\n0,a,1,1\n-1,a,1,1\n", "row 3: column 'prompt_tokens'"),
    (HEADER + GOOD + "-1,a,1,1\n1,a,x,1\n", "row 3: column 'arrival_s'"),
    ("priority," + HEADER + "1.5," + GOOD, "row 2: column 'priority' is '1.5'"),
    ("priority," + HEADER + "3000000000," + GOOD, "row 2: column 'priority' is '3000000000'"),
]


@pytest.mark.parametrize(("text", "problem"), CSV_MISTAKES)
def test_mistakes_in_csv(tmp_path: Path, text: str, problem: str) -> None:
    path = save(tmp_path, text)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert problem in message
    assert "\n" not in message
    assert ";" in message, "no word on how to mend it"


def json_row(**changes: Any) -> str:
    row = {"arrival_s": 0.0, "model": "a", "prompt_tokens": 1, "output_tokens": 1, **changes}
    return json.dumps({key: value for key, value in row.items() if value != "gone"}) + "\n"


JSON_MISTAKES: list[tuple[str, str]] = [
    (json_row() + '{"arrival_s": 1,\n', "row 2: not valid JSON"),
    (json_row() + "\n[1, 2]\n", "row 3: not a JSON object"),
    (json_row() + '{"arrival_s": ' + "9" * 5000 + "}", "row 2: not valid JSON"),
    ("[" * 100000, "row 1: not valid JSON"),
    (
        json_row(prompt_tokens="gone", prompt_toks=1),
        "column 'prompt_tokens' is missing; did you mean 'prompt_toks'?",
    ),
    (json_row() + json_row(model="gone"), "row 2: column 'model' is empty"),
    (json_row() + json_row(model=7), "row 2: column 'model' is 7; give the model's name as text"),
    (json_row(model=7), "row 1: column 'model' is 7"),
    (json_row() + json_row(model="\ud800"), r"row 2: column 'model' is '\ud800'"),
    (json_row() + json_row(session=True), "row 2: column 'session' is True"),
    (json_row() + json_row(session="a\nb"), r"row 2: column 'session' is 'a\nb'"),
    (json_row() + json_row(prompt_tokens=True), "row 2: column 'prompt_tokens' is True"),
    (json_row() + json_row(prompt_tokens=None), "row 2: column 'prompt_tokens' is empty"),
    (json_row() + json_row(prompt_tokens=1.5), "row 2: column 'prompt_tokens' is 1.5"),
    (json_row() + json_row(prompt_tokens=[1]), "row 2: column 'prompt_tokens' is [1]"),
    (json_row() + json_row(prompt_tokens=10**30), "row 2: column 'prompt_tokens' is 1000"),
    (json_row() + json_row(arrival_s=math.nan), "row 2: column 'arrival_s' is nan"),
    (json_row() + json_row(arrival_s=-1), "row 2: column 'arrival_s' is -1"),
]


@pytest.mark.parametrize(("text", "problem"), JSON_MISTAKES)
def test_mistakes_in_jsonl(tmp_path: Path, text: str, problem: str) -> None:
    path = save(tmp_path, text, "t.jsonl")
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert problem in str(caught.value)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_mistakes_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    good: dict[str, Any] = {
        "arrival_s": [0, 1],
        "model": ["a", "b"],
        "prompt_tokens": [1, 2],
        "output_tokens": [3, 4],
    }

    def problem(**changes: Any) -> str:
        parquet.write_table(pa.table({**good, **changes}), path)
        with pytest.raises(TraceError) as caught:
            read_trace(path)
        return str(caught.value)

    assert "row 2: column 'prompt_tokens' is empty" in problem(prompt_tokens=[1, None])
    assert "row 2: column 'prompt_tokens' is nan" in problem(prompt_tokens=[1.0, math.nan])
    assert "row 1: column 'arrival_s' is -1" in problem(arrival_s=[-1, 2])
    assert "row 2: column 'model' is empty" in problem(model=["a", None])
    assert "has no rows" in problem(**{name: pa.array([], pa.int64()) for name in good})
    parquet.write_table(pa.table({**good, "model": pa.array(["a", "b"]).dictionary_encode()}), path)
    assert [row[:6] for row in read_trace(path).rows()] == [(0.0, 0, 1, 3, 0, 0), (1.0, 1, 2, 4, 0, 0)]
