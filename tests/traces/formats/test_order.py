"""Order of arrival, clocks and names across blocks and files, whatever the format; and random damage to files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.common.errors import TraceError
from sim.traces.formats import FORMATS, assembly, import_stream
from sim.traces.formats.assembly import Block, Clock, assembled
from sim.traces.formats.base import FormatOptions
from sim.traces.stream import TraceStream, TurnOrder
from sim.traces.trace import Trace
from tests.support.format_files import made

Times = list[list[int]]
T = TypeVar("T")


def blocks(times: Times, name: str, _notices: list[str]) -> Iterator[Block]:
    row = 0
    for part in times:
        rows = np.arange(row, row + len(part))
        row += len(part)
        yield Block(
            where=name,
            rows=rows,
            time=np.array(part, dtype=np.int64),
            prompt_tokens=rows + 1,
            output_tokens=rows + 1,
            model=(np.zeros(len(part), dtype=np.int64), (name,)),
            session=(np.arange(len(part)) % 3 - 1, (f"s{row % 2}", "s9")),
            extras={"row": pa.array(rows)},
        )


def stream_of(files: dict[str, Times], clock: Clock = Clock(1000), **options: Any) -> TraceStream:  # noqa: B008
    readers = {name: partial(blocks, times, name) for name, times in files.items()}
    return assembled(readers, FormatOptions(**options), clock)


def checked(stream: TraceStream) -> list[tuple[float, str, int, str | None]]:
    """(arrival, model, row, session) of every request, with the laws of a stream looked at on the way."""
    found: list[tuple[float, str, int, str | None]] = []
    before: Trace | None = None
    for chunk in stream.chunks:
        assert len(chunk)
        if before is not None:
            assert chunk.arrival_s[0] >= before.arrival_s[-1]
            for kind in ("models", "service_classes", "sessions"):
                assert getattr(chunk, kind)[: len(getattr(before, kind))] == getattr(before, kind)
        before = chunk
        assert (chunk.prompt_tokens == np.array(chunk.extras["row"]) + 1).all()
        for place in range(len(chunk)):
            session = int(chunk.session[place])
            found.append(
                (
                    float(chunk.arrival_s[place]),
                    chunk.models[chunk.model[place]],
                    int(chunk.prompt_tokens[place]) - 1,
                    chunk.sessions[session] if session >= 0 else None,
                )
            )
    return found


def expected(files: dict[str, Times], per_s: int) -> list[tuple[float, str, int, str | None]]:
    """The same by sorting everything at once."""
    earliest = min(time for times in files.values() for part in times for time in part)
    rows: list[tuple[float, str, int, str | None]] = []
    for name, times in files.items():
        row = 0
        for part in times:
            last = row + len(part)
            names = [None, f"s{last % 2}", "s9"]
            rows += [((time - earliest) / per_s, name, row + i, names[i % 3]) for i, time in enumerate(part)]
            row = last
    return sorted(rows, key=lambda request: request[0])


TIMES = st.lists(st.lists(st.integers(0, 60) | st.integers(10**6, 10**12), max_size=6), min_size=1, max_size=6)
FILES = st.dictionaries(st.sampled_from(["a", "b", "c"]), TIMES.filter(any), min_size=1)


@settings(max_examples=300, deadline=None)
@given(FILES, st.booleans(), st.sampled_from([1, 1000, 10**9]))
def test_any_order_of_any_files(files: dict[str, Times], scattered: bool, per_s: int) -> None:
    found = checked(stream_of(files, Clock(per_s, scattered=scattered)))
    assert found == expected(files, per_s)


@settings(max_examples=200, deadline=None)
@given(TIMES.filter(any), st.integers(1, 8))
def test_a_window_sorts_or_says_that_it_cannot(times: Times, held: int) -> None:
    """With a small window: either the order is right, or the row is named; with sort, always right."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "MOST_ROWS_HELD", held)
        found, problem = outcome(lambda: checked(stream_of({"a": times})))
        if problem:
            assert "--option sort=true" in problem
            assert problem.startswith("a: row ")
            flat = [time for part in times for time in part]
            assert flat != sorted(flat)
        else:
            assert found == expected({"a": times}, 1000)
        assert checked(stream_of({"a": times}, sort=True)) == expected({"a": times}, 1000)


def test_strict_names_the_first_row_out_of_order() -> None:
    stream = stream_of({"a": [[1, 2], [5, 6], [7, 3, 2]]}, strict=True)
    with pytest.raises(TraceError, match=r"a: row 5: arrives 0\.004 s before a row above it"):
        list(stream.chunks)
    late = stream_of({"a": [[5, 6], [7, 3, 2]]})
    assert len(checked(late)) == 5
    assert late.notices == ["sorted 2 rows that were out of order"]


def test_nothing_left_and_far_off_times() -> None:
    with pytest.raises(TraceError, match="a: no request is left"):
        list(stream_of({"a": [[]]}).chunks)
    with pytest.raises(TraceError, match=r"a: row 1: arrives 2e\+15 s after the first request"):
        list(stream_of({"a": [[0, 2 * 10**15]]}, Clock(1)).chunks)


# --- damage


def outcome(what: Callable[[], T]) -> tuple[T | None, str]:
    """What it gives, or the message with which it refuses."""
    try:
        return what(), ""
    except TraceError as error:
        return None, str(error) or "an empty message"


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
CONVERSATION = {"id": "x", "conversations": [{"from": "human", "value": "a b"}, {"from": "gpt", "value": "c"}] * 2}
COMPLETION = {
    "created": 1_700_000_000,
    "model": "m",
    "user": "u",
    "usage": {"prompt_tokens": 3, "completion_tokens": 4},
}
RESULT = {
    "model_id": "m",
    "request_rate": 1,
    "input_lens": [3, 4],
    "output_lens": [5, 0],
    "start_times": [1.5, 2.5],
    "ttfts": [0.1, 0.2],
    "itls": [[0.1], []],
    "errors": ["", "x"],
}
GOOD: dict[str, tuple[str, dict[str, Any], str]] = {
    "azure-llm-2023": ("a.csv", {}, AZURE + "2023-11-16 23:59:59.9999999,374,44\r\n2023-11-17 00:00:00.5,9,1"),
    "azure-llm-2024": ("a.csv", {}, AZURE + "2024-05-12 00:00:00+00:00,1,2\n2024-05-12 00:00:00.5+00:00,0,2\n"),
    "azure-lmm-2025": (
        "a.csv",
        {},
        "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n2024-10-15T12:00:00.269Z,1,7,4\n",
    ),
    "burstgpt": (
        "a.csv",
        {"service_class": "log"},
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5.0,1722ac82,43,GPT-4,906,446,1352,Conversation log\n7.0,,,ChatGPT,36,0,65,API log\n",
    ),
    "vidur": ("a.csv", {}, "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,4808,10\n0.052,3180,8\n"),
    "azure-functions-2021": ("a.csv", {}, "app,func,end_timestamp,duration\na1,f1,0.5,0.25\na2,f1,1.5,1.25\n"),
    "lengths": ("a.csv", {"rate": 1}, "model,prompt_len,output_len\nm,5,6\nn,7,8\n"),
    "sharegpt": ("a.json", {"rate": 1}, json.dumps([CONVERSATION, CONVERSATION])),
    "vllm-bench": ("a.json", {}, json.dumps(RESULT)),
    "openai-log": ("a.jsonl", {}, json.dumps(COMPLETION) + "\n" + json.dumps(COMPLETION) + "\n"),
}
SNIPPETS = st.sampled_from(
    [
        "",
        ",",
        '"',
        "\n",
        "\r",
        "\0",
        "0",
        "-1",
        "1e400",
        "NaN",
        "null",
        "9" * 25,
        "é",
        "\ufeff",
        "[",
        "}",
        " ",
        "x",
        "+",
    ]
)
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), SNIPPETS | st.text(max_size=4)), max_size=4)


def damaged(text: str, edits: list[tuple[float, int, str]]) -> str:
    for place, length, snippet in edits:
        at = int(place * len(text))
        text = text[:at] + snippet + text[at + length :]
    return text


@pytest.mark.parametrize("form", GOOD)
def test_damage_is_told_in_one_line(form: str, tmp_path: Path) -> None:
    name, options, good = GOOD[form]
    path = made(tmp_path, good, name)
    assert count_requests(import_stream([path], form, options))

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(EDITS, st.booleans())
    def check(edits: list[tuple[float, int, str]], strict: bool) -> None:
        data = damaged(good, edits).encode("utf-8", "surrogatepass")
        path.write_bytes(data)
        rows, problem = outcome(lambda: count_requests(import_stream([path], form, options, strict)))
        assert "\n" not in problem
        assert rows or problem

    check()


def count_requests(stream: TraceStream) -> int:
    """How many there are; all are lawful."""
    turns, rows, latest_s = TurnOrder(), 0, 0.0
    for chunk in stream.chunks:
        turns.check(chunk, "the test")
        assert float(chunk.arrival_s[0]) >= latest_s
        latest_s = float(chunk.arrival_s[-1])
        assert chunk.prompt_tokens.min() >= 1
        assert chunk.output_tokens.min() >= 1
        rows += len(chunk)
    assert np.isfinite(latest_s)
    return rows


def test_every_format_is_damaged() -> None:
    assert GOOD.keys() <= FORMATS.keys()
