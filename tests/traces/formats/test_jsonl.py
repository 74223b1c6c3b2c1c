"""The Mooncake and RAGPulse importers: made-up files for their quirks, and the published files where at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.common.errors import TraceError
from sim.traces.describe.trace_statistics import describe
from sim.traces.formats import import_stream
from sim.traces.stream import gather, read_trace
from sim.traces.trace import Trace
from sim.traces.write import write_trace
from tests.support.places import SHARED

PUBLISHED = SHARED / "traces"
WEEK_S = 604_800


def published(name: str) -> Path:
    path = PUBLISHED / name
    if not path.is_file():
        pytest.skip(f"the published trace {name} is not beside this checkout (../shared/traces)")
    return path


def lines(path: Path, items: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def read(path: Path, name: str | None = None, **options: Any) -> tuple[Trace, list[str]]:
    stream = import_stream([path], name, options)
    return gather(stream), stream.notices


# --- Mooncake


def batch(stamp: float, prompt: int = 600, output: int = 5, ids: list[int] | None = None) -> dict[str, Any]:
    hashes = list(range(-(-prompt // 512))) if ids is None else ids
    return {"timestamp": stamp, "input_length": prompt, "output_length": output, "hash_ids": hashes}


def test_mooncake_columns(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "m.jsonl", [batch(0, 512, 1, [0]), batch(1500, 513, 2000, [0, 7]), batch(2000, 1, 3, [2**62])]
    )
    trace, notices = read(path)
    assert trace.arrival_s.tolist() == [0.0, 1.5, 2.0]
    assert trace.prompt_tokens.tolist() == [512, 513, 1]
    assert trace.output_tokens.tolist() == [1, 2000, 3]
    assert trace.models == ("mooncake",)
    assert trace.sessions == ()
    assert trace.extras["prefix_blocks"].to_pylist() == [[0], [0, 7], [2**62]]
    assert trace.extras["prefix_block_tokens"].to_pylist() == [512] * 3
    assert notices == []
    bare, _ = read(path, prefix_blocks="false", model="Llama-3-8B")
    assert bare.extras == {}
    assert bare.models == ("Llama-3-8B",)


def test_mooncake_batches_are_spread_to_the_next_stamp_and_at_most_3_s(tmp_path: Path) -> None:
    stamps = [0, 0, 0, 3000, 3000, 60_000, 60_000, 60_100]
    path = lines(tmp_path / "m.jsonl", [batch(stamp) for stamp in stamps])
    trace, notices = read(path)
    assert trace.arrival_s.tolist() == [stamp / 1000 for stamp in stamps]
    assert notices == [
        "4 arrivals of 8 have the stamp of the one before: the clock has coarse steps; "
        "--option spread_batches=true spreads them"
    ]
    spread, notices = read(path, spread_batches="true")
    assert spread.arrival_s.tolist() == pytest.approx([0, 1, 2, 3, 4.5, 60, 60.05, 60.1])
    assert notices == ["spread 4 arrivals of 8 that had the stamp of the one before"]


def test_mooncake_odd_rows(tmp_path: Path) -> None:
    items = [batch(9000), batch(3000, ids=[1]), batch(4000, output=0), {**batch(5000), "extra": 1}]
    del items[3]["hash_ids"]
    path = lines(tmp_path / "m.jsonl", items)
    trace, notices = read(path, "mooncake")
    assert trace.arrival_s.tolist() == [3.0, 5.0, 9.0]
    assert trace.extras["prefix_blocks"].to_pylist() == [[1], None, [0, 1]]
    assert sorted(notices) == [
        "1 row where hash_ids are not one for each 512 prompt tokens",
        "ignored the field 'extra'",
        "left out 1 row without prompt or output tokens; --option zero_tokens=keep counts such a number as 1",
        "sorted 2 rows that were out of order",
    ]
    kept, _ = read(path, "mooncake", zero_tokens="keep")
    assert kept.output_tokens.tolist() == [5, 1, 5, 5]
    with pytest.raises(TraceError, match=r"m\.jsonl: row 3: field 'output_length' is 0; give a whole number from 1 to"):
        read(path, "mooncake", zero_tokens="refuse")
    with pytest.raises(TraceError, match=r"row 4: unknown field 'extra'; known: hash_ids,"):
        read(path, "mooncake", strict="true")
    with pytest.raises(TraceError, match=r"row 2: arrives 6 s before a row above it"):
        read(lines(tmp_path / "n.jsonl", items[:2]), "mooncake", strict="true")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"timestamp": 0}', "row 1: field 'input_length' is missing"),
        (
            '\n\n{"timestamp": 0, "input_lenght": 5}',
            "row 3: field 'input_length' is missing; did you mean 'input_lenght'",
        ),
        ("[1]", "row 1: not a JSON object but [1]"),
        ("{", "row 1: not valid JSON"),
        ('{"timestamp": NaN}', "row 1: not valid JSON (NaN is no number)"),
        ("\n \n", "the file is empty"),
        ('{"timestamp": -1, "input_length": 1}', "row 1: field 'timestamp' is -1; give a number from 0"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [1.5]}', "field 'hash_ids' is [1.5]"),
        ('{"timestamp": 0, "input_length": 1, "output_length": 1, "hash_ids": [-1]}', "field 'hash_ids' is [-1]"),
    ],
)
def test_mooncake_mistakes(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text(text)
    with pytest.raises(TraceError) as caught:
        read(path, "mooncake")
    assert problem in str(caught.value)


def test_text_that_is_not_utf8_is_found_by_row(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_bytes(json.dumps(batch(0)).encode() + b'\n{"a": "\xff"}\n')
    with pytest.raises(TraceError, match="row 2: not UTF-8"):
        read(path, "mooncake")


# As in the data's own README: rows, span, rate, CV of the gaps; prompts and outputs mean, p50, p90, p99, max.
MOONCAKE = {
    "conversation_trace.first8000": (
        (8000, 2436, 3.284, 2.98),
        (12_396, 7_216, 27_939, 89_867, 124_847),
        (347, 356, 605, 1_166, 2_000),
    ),
    "synthetic_trace": ((3993, 1022, 3.907, 1.01), (15_326, 11_587, 38_611, 66_456, 191_378), (149, 69, 389, 768, 893)),
}


@pytest.mark.parametrize("name", MOONCAKE)
def test_published_mooncake_statistics(name: str) -> None:
    (rows, span_s, rate, variation), prompts, outputs = MOONCAKE[name]
    trace, _ = read(published(f"mooncake_fast25/{name}.jsonl.gz"), strict="true")
    numbers = describe(trace)
    assert numbers["rows"] == rows
    assert numbers["span_s"] == pytest.approx(span_s, abs=0.5)
    assert numbers["rate_per_s"] == pytest.approx(rate, abs=0.0006)
    assert numbers["iat_cv"] == pytest.approx(variation, abs=0.0051)
    for side, expected in (("prompt_tokens", prompts), ("output_tokens", outputs)):
        found = [numbers[side][key] for key in ("mean", "p50", "p90", "p99", "max")]
        assert found == pytest.approx(expected, abs=0.6)  # one mean is printed as 15,326, and is 15,325.48
    lengths = np.array([len(ids) for ids in trace.extras["prefix_blocks"].to_pylist()])
    assert (lengths == -(-trace.prompt_tokens // 512)).all()


def test_published_mooncake_batches_can_be_spread() -> None:
    path = published("mooncake_fast25/conversation_trace.first8000.jsonl.gz")
    trace, notices = read(path, spread_batches="true")
    plain, _ = read(path)
    assert (trace.arrival_s >= plain.arrival_s).all()
    assert (trace.arrival_s - plain.arrival_s).max() < 3.0
    assert float((np.diff(trace.arrival_s) == 0).mean()) == 0
    assert describe(trace)["iat_cv"] < 0.5  # from 2.98: what is left is the batches' different sizes
    assert notices == ["spread 7,187 arrivals of 8,000 that had the stamp of the one before"]


# --- RAGPulse


def asked(stamp: Any, session: Any = "s", **others: Any) -> dict[str, Any]:
    ids = {"sys_prompt": [1, 2], "passages_ids": [30], "history": [], "web_search": [], "user_input": [9]}
    item = {"timestamp": stamp, "input_length": 10, "output_length": 2, "hash_ids": ids, "session_id": session}
    return item | others


def test_ragpulse_weeks_follow_each_other(tmp_path: Path) -> None:
    stamps = ["5", "604799", "0", "700", "604000", "3", "604000", "1"]
    path = lines(tmp_path / "r.jsonl", [asked(stamp, f"s{index % 2}") for index, stamp in enumerate(stamps)])
    path.write_text("\n" + path.read_text() + "\n\n")  # blank lines count as rows
    trace, notices = read(path)
    times = [int(stamp) + WEEK_S * week for stamp, week in zip(stamps, [0, 0, 1, 1, 1, 2, 2, 3], strict=True)]
    assert trace.arrival_s.tolist() == times
    assert trace.sessions == ("s0", "s1")
    assert trace.session.tolist() == [0, 1] * 4
    assert notices == [
        "the clock falls back at row 4, 7, 9: 4 weeks end to end, each laid 604,800 s after the one before"
    ]
    second, _ = read(path, week="2")
    assert second.arrival_s.tolist() == [0, 700, 604_000]
    with pytest.raises(TraceError, match="the file ends in week 4; --option week=5 asks for a later one"):
        read(path, week="5")


def test_ragpulse_small_falls_are_disorder_not_weeks(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [asked("302400"), asked("0"), asked(7)])
    trace, notices = read(path)
    assert trace.arrival_s.tolist() == [0, 7, 302_400]
    assert notices == ["sorted 2 rows that were out of order"]
    with pytest.raises(TraceError, match="row 2: arrives 302400 s before a row above it"):
        read(path, strict="true")


def test_ragpulse_a_part_longer_than_a_week_takes_the_weeks_it_needs(tmp_path: Path) -> None:
    path = lines(tmp_path / "r.jsonl", [asked("0"), asked(str(WEEK_S + 10)), asked("4")])
    assert read(path)[0].arrival_s.tolist() == [0, WEEK_S + 10, 2 * WEEK_S + 4]


def test_ragpulse_columns_and_other_files(tmp_path: Path) -> None:
    path = lines(tmp_path / "0_trace.jsonl", [asked("1", None), asked("2", "")])
    trace, _ = read(path)
    assert trace.session.tolist() == [-1, -1]
    assert {name: column.to_pylist()[0] for name, column in trace.extras.items()} == {
        "sys_prompt_ids": [1, 2],
        "passages_ids": [30],
        "history_ids": [],
        "web_search_ids": [],
        "user_input_ids": [9],
    }
    assert read(path, prompt_parts="false")[0].extras == {}
    lines(tmp_path / "1_sys_prompt.jsonl", [{"sys_prompt_id": 1, "token_length": 3}])
    assert read(tmp_path, "ragpulse")[0].digest() == trace.digest()
    with pytest.raises(TraceError, match="row 1: this file is a table of parts of prompts and holds no requests"):
        read(tmp_path / "1_sys_prompt.jsonl")


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        (asked("1.5"), "field 'timestamp' is '1.5'; give whole seconds"),
        (asked(True), "field 'timestamp' is True"),
        (asked("-3"), "field 'timestamp' is '-3'"),
        (asked("9" * 30), "field 'timestamp' is "),
        (asked("1", session=7), "field 'session_id' is 7; give a printable name"),
        (asked("1", hash_ids=[1]), "field 'hash_ids' is [1]; give a JSON object"),
        (asked("1", hash_ids={"sys_prompt": [1]}), "field 'hash_ids': field 'passages_ids' is missing"),
        (asked("1", input_length=10**12), "field 'input_length' is 1000000000000"),
    ],
)
def test_ragpulse_mistakes(tmp_path: Path, item: dict[str, Any], problem: str) -> None:
    with pytest.raises(TraceError) as caught:
        read(lines(tmp_path / "r.jsonl", [item]), "ragpulse")
    assert problem in str(caught.value)
    assert ": row 1: " in str(caught.value)


def test_published_ragpulse_statistics(tmp_path: Path) -> None:
    trace, notices = read(published("ragpulse/0_trace.first5500.jsonl.gz"), strict="true")
    numbers = describe(trace)
    assert (numbers["rows"], len(trace.sessions)) == (5500, 3116)
    assert numbers["rate_per_s"] == pytest.approx(0.0060, abs=0.00006)
    assert numbers["span_s"] / 86_400 == pytest.approx(10.5, abs=0.05)
    assert numbers["iat_cv"] == pytest.approx(3.1, abs=0.05)
    prompts = [numbers["prompt_tokens"][key] for key in ("mean", "p50", "p90", "p99", "max", "min")]
    assert prompts == pytest.approx([2956, 3147, 3946, 5373, 7712, 1052], abs=0.51)
    outputs = [numbers["output_tokens"][key] for key in ("mean", "p50", "p90", "p99", "max")]
    assert outputs == pytest.approx([271, 219, 541, 858, 2183], abs=0.51)
    assert trace.arrival_s[[3799, 3800]].tolist() == [604_453, 604_800]
    assert notices == [
        "the clock falls back at row 3,801: 2 weeks end to end, each laid 604,800 s after the one before"
    ]
    for suffix in (".csv", ".jsonl.gz", ".parquet"):
        write_trace(trace, tmp_path / f"t{suffix}")
        again = read_trace(tmp_path / f"t{suffix}", strict=True)
        assert again.digest() == trace.digest()
        assert {name: column.to_pylist() for name, column in again.extras.items()} == {
            name: column.to_pylist() for name, column in trace.extras.items()
        }
