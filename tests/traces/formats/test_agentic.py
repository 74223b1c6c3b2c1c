"""The agentic-coding importer: made-up sessions for its quirks, and the published ones where they are at hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.common.errors import ConfigError, TraceError
from sim.traces.formats import import_stream
from sim.traces.stream import gather, read_trace
from sim.traces.trace import Trace
from sim.traces.write import write_trace
from tests.support.format_cases import packed
from tests.support.places import SHARED

PUBLISHED = SHARED / "traces"


def asked(time_s: float, prompt: int = 100, output: int = 5, **others: Any) -> dict[str, Any]:
    item = {
        "t": time_s,
        "type": "n",
        "model": "opus",
        "in": prompt,
        "out": output,
        "hash_ids": [1, 2],
        "think_time": 2.0,
    }
    return item | {"input_types": [], "output_types": [], "stop": "", "api_time": 1.0} | others


def agent(time_s: float, *requests: dict[str, Any], **others: Any) -> dict[str, Any]:
    item = {"t": time_s, "type": "subagent", "agent_id": "agent_001", "duration_ms": 4000, "requests": list(requests)}
    return item | others


def session(name: str, *requests: dict[str, Any], **others: Any) -> dict[str, Any]:
    item: dict[str, Any] = {"id": name, "models": ["opus"], "block_size": 64, "hash_id_scope": "local"}
    return item | {"tool_tokens": 1, "system_tokens": 2, "requests": list(requests), "totals": {}} | others


def folder(path: Path, *sessions: dict[str, Any]) -> Path:
    path.mkdir(exist_ok=True)
    for number, item in enumerate(sessions):
        (path / f"trace_{number:04d}.json").write_text(json.dumps(item, indent=1))
    return path


def read(path: Path, **options: Any) -> tuple[Trace, list[str]]:
    stream = import_stream([path], "agentic-coding", options)
    return gather(stream), stream.notices


def rows(trace: Trace) -> list[tuple[str, float, float]]:
    """(session, seconds since its first request, think_s), in order of arrival."""
    firsts: dict[str, float] = {}
    found = []
    for arrival_s, code, think_s in zip(
        trace.arrival_s.tolist(),
        trace.session.tolist(),
        trace.think_s.tolist() if trace.think_s is not None else [math.nan] * len(trace),
        strict=True,
    ):
        name = trace.sessions[code]
        firsts.setdefault(name, arrival_s)
        found.append((name, round(arrival_s - firsts[name], 6), think_s))
    return found


def test_a_session_is_a_closed_loop_unless_told_otherwise(tmp_path: Path) -> None:
    path = folder(tmp_path / "t", session("a", asked(0.0, think_time=0.0), asked(9.0, think_time=7.0), asked(9.5)))
    trace, notices = read(path)
    assert [row[1:] for row in rows(trace)] == [(0.0, pytest.approx(math.nan, nan_ok=True)), (9.0, 7.0), (9.5, 2.0)]
    assert trace.extras["turn"].to_pylist() == [1, 2, 3]
    assert trace.extras["recorded_api_s"].to_pylist() == [1.0] * 3
    assert trace.extras["recorded_ttft_s"].to_pylist() == [None] * 3
    assert trace.extras["prefix_block_tokens"].to_pylist() == [64] * 3
    assert notices == [
        "drew the starts of 1 session, 0.01 a second (--option sessions_per_s): the files have no common clock"
    ]
    opened, _ = read(path, open_loop="true", prefix_blocks="false")
    assert opened.think_s is None
    assert "prefix_blocks" not in opened.extras
    assert opened.arrival_s.tolist() == trace.arrival_s.tolist()


def test_starts_are_a_poisson_process_of_the_rate_and_seed(tmp_path: Path) -> None:
    path = folder(tmp_path / "t", *(session(f"s{number}", asked(0.0)) for number in range(400)))
    starts = read(path, sessions_per_s="2")[0].arrival_s
    gaps = np.diff(starts, prepend=0.0)
    assert gaps.mean() == pytest.approx(0.5, rel=0.15)
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, abs=0.15)
    assert read(path)[0].arrival_s == pytest.approx(200 * starts)
    assert read(path, sessions_per_s="2", seed="1")[0].arrival_s[0] != starts[0]
    assert read(path, sessions_per_s="2")[0].arrival_s.tolist() == starts.tolist()


def test_sessions_overlap_in_order_of_arrival(tmp_path: Path) -> None:
    long = [asked(float(second)) for second in range(0, 1000, 10)]
    path = folder(tmp_path / "t", *(session(f"s{number}", *long) for number in range(5)))
    trace, _ = read(path)
    assert len(trace) == 500
    for code in range(5):
        own = trace.arrival_s[trace.session == code]
        assert own - own[0] == pytest.approx(np.arange(0, 1000, 10))
    assert np.diff(np.flatnonzero(trace.session == 0)).max() > 1


def test_sub_agents_are_sessions_in_their_place(tmp_path: Path) -> None:
    inner = agent(1.0, asked(0.0, model="haiku"), agent_id="deep")
    path = folder(
        tmp_path / "t",
        session("a", asked(0.0), agent(10.0, asked(0.0, model="haiku"), asked(5.0), inner), asked(20.0)),
        session("b", asked(0.0), agent(1.0, asked(0.0)), agent(1.0, asked(0.0))),
    )
    trace, notices = read(path, sessions_per_s="0.00001")
    start_s = trace.arrival_s[0]
    named = [
        (trace.sessions[code], round(at - start_s, 6)) for code, at in zip(trace.session, trace.arrival_s, strict=True)
    ]
    assert named[:3] == [("a", 0.0), ("a/agent_001", 10.0), ("a/agent_001/deep", 11.0)]
    assert named[3:5] == [("a/agent_001", 15.0), ("a", 20.0)]
    assert [name for name, _ in named[5:]] == ["b", "b/agent_001", "b/agent_001#2"]
    assert [trace.models[code] for code in trace.model[:3]] == ["opus", "haiku", "haiku"]
    assert "4 sub-agents became sessions of their own" in notices
    spawned, _ = read(path, sessions_per_s="0.00001", subagents="spawn")
    assert spawned.arrival_s[1] - start_s == pytest.approx(6.0)  # 10 s less the 4 s that it took


def test_ids_of_blocks_are_made_unique_across_files(tmp_path: Path) -> None:
    two = [
        session("a", asked(0.0, hash_ids=[0, 5]), agent(1.0, asked(0.0, hash_ids=[0, 9]))),
        session("b", asked(0.0, hash_ids=[0, 3])),
    ]
    trace, _ = read(folder(tmp_path / "t", *two), sessions_per_s="0.00001")
    assert trace.extras["prefix_blocks"].to_pylist() == [[0, 5], [0, 9], [10, 13]]
    whole = [item | {"hash_id_scope": "global"} for item in two]
    trace, _ = read(folder(tmp_path / "g", *whole), sessions_per_s="0.00001")
    assert trace.extras["prefix_blocks"].to_pylist() == [[0, 5], [0, 9], [0, 3]]
    with pytest.raises(TraceError, match="'hash_id_scope' is 'global', of the files before 'local'; import them apart"):
        read(folder(tmp_path / "m", two[0], whole[1]))


def test_requests_without_tokens_leave_their_time_behind(tmp_path: Path) -> None:
    requests = [asked(0.0, output=0), asked(3.0), asked(9.0, output=0, think_time=4.0, api_time=1.5), asked(12.0)]
    path = folder(tmp_path / "t", session("a", *requests))
    trace, notices = read(path)
    assert trace.arrival_s.tolist() == pytest.approx([trace.arrival_s[0], trace.arrival_s[0] + 9.0])
    assert trace.think_s is not None
    assert np.isnan(trace.think_s[0])
    assert trace.think_s[1] == 2.0 + 4.0 + 1.5
    assert notices[1:] == [
        "left out 2 requests without prompt or output tokens; --option zero_tokens=keep counts such a number as 1"
    ]
    kept, notices = read(path, zero_tokens="keep")
    assert kept.output_tokens.tolist() == [1, 5, 1, 5]
    assert notices[1:] == ["kept 2 requests without prompt or output tokens, counted as 1"]
    with pytest.raises(TraceError, match=r"trace_0000\.json: request 1: field 'out' is 0"):
        read(path, zero_tokens="refuse")


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    bare = asked(5.0)
    for name in ("think_time", "api_time", "hash_ids", "model"):
        del bare[name]
    path = folder(
        tmp_path / "t", session("a", asked(0.0), bare, asked(4.0), new=1), session("a", asked(0.0)), session("c")
    )
    trace, notices = read(path)
    first = [row for row in rows(trace) if row[0] == "a"]
    assert [row[1] for row in first] == [0.0, 4.0, 5.0]
    assert math.isnan(first[2][2])
    assert trace.sessions == ("a", "a#2")
    assert notices[1:] == [
        "ignored the field 'new'",
        "1 session had the name of another and got a number behind it",
        "left out 1 session without requests",
        "1 request without a model got that of the session",
        "1 request without think_time: sent at the recorded time (open loop)",
        "sorted 1 request that stood after a later one of the same session",
    ]
    with pytest.raises(TraceError, match="unknown field 'new'"):
        read(path, strict="true")
    with pytest.raises(TraceError, match="its requests are not in order of t"):
        read(folder(tmp_path / "s", session("a", asked(5.0), asked(0.0))), strict="true")


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ({"id": "a"}, "field 'requests' is missing"),
        ([], "not a JSON object but []"),
        (session(" \n"), "field 'id' is empty"),
        (session("-1", asked(0.0)), "field 'id' is '-1', which stands for no session"),
        (session("a", asked(0.0), asked(-1.0)), "request 2: field 't' is -1.0; give a number from 0"),
        (session("a", asked(0.0, type="x")), "request 1: field 'type' is 'x'; it is n, s or subagent"),
        (session("a", asked(0.0, model="", models=[]), models=["x", "y"]), "request 1: field 'model' is empty"),
        (session("a", asked(0.0, prompt=10**12)), "request 1: field 'in' is 1000000000000; give a whole number from 0"),
        (session("a", asked(0.0, think_time=-2)), "request 1: field 'think_time' is -2"),
        (session("a", asked(0.0, hash_ids=[1, "x"])), "request 1: field 'hash_ids' is [1, "),
        (
            session("a", asked(0.0, hash_ids=[2**63 - 1])),
            "request 1: field 'hash_ids' is [9223372036854775807]; give ids below 2^62",
        ),
        (session("a", agent(0.0, asked(0.0), asked("x"))), "request 1: request 2: field 't' is 'x'"),
        (session("a", asked(0.0), block_size=0), "field 'block_size' is 0"),
        (session("a", hash_id_scope="galaxy"), "field 'hash_id_scope' is 'galaxy'; it is local or global"),
        (session("a"), "no request is left"),
    ],
)
def test_mistakes_name_file_request_and_field(tmp_path: Path, item: Any, problem: str) -> None:
    path = packed(tmp_path / "t.tar.gz", {"traces/trace_0001.json": json.dumps(item)})
    with pytest.raises(TraceError) as caught:
        read(path)
    assert problem in str(caught.value)
    assert "no request is left" in problem or ".tar.gz: traces/trace_0001.json: " in str(caught.value)


def test_nested_without_end_and_starts_without_end(tmp_path: Path) -> None:
    item = agent(0.0, asked(0.0))
    for _ in range(60):
        item = agent(0.0, item)
    with pytest.raises(TraceError, match="nested more than 50 deep"):
        read(folder(tmp_path / "t", session("a", item)))
    with pytest.raises(TraceError, match="starts after 1e\\+12 s; raise sessions_per_s"):
        read(folder(tmp_path / "u", session("a", asked(0.0))), sessions_per_s="1e-15")
    with pytest.raises(ConfigError, match="sessions_per_s=0: input should be greater than 0"):
        read(tmp_path / "u", sessions_per_s="0")
    with pytest.raises(TraceError, match="no file of this format is inside"):
        read(packed(tmp_path / "x.tar", {"README.md": "hello"}))
    path = packed(tmp_path / "cut.tar.gz", {"a.json": json.dumps(session("a", *[asked(float(n)) for n in range(500)]))})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(TraceError, match=r"cut\.tar\.gz: the gzip file is cut off"):
        read(path)


def test_published_sessions(tmp_path: Path) -> None:
    path = PUBLISHED / "agentic_coding" / "traces_73_sessions.tar.gz"
    if not path.is_file():
        pytest.skip("the published sessions are not beside this checkout (../shared/traces)")
    trace, notices = read(path, zero_tokens="keep")
    assert len(trace) == 3361
    uses = {name: int((trace.model == code).sum()) for code, name in enumerate(trace.models)}
    assert sorted(uses.values()) == [83, 102, 156, 412, 557, 2051]
    assert uses["claude-opus-4-5-20251101"] == 2051
    prompts = [trace.prompt_tokens.mean(), *np.percentile(trace.prompt_tokens, (50, 90, 99)), trace.prompt_tokens.max()]
    assert prompts == pytest.approx([97_279, 89_290, 143_218, 454_800, 775_962], abs=0.51)
    outputs = [trace.output_tokens.mean(), *np.percentile(trace.output_tokens, (50, 90, 99)), trace.output_tokens.max()]
    assert outputs == pytest.approx([457, 223, 953, 3_981, 12_162], abs=0.51)
    assert len(trace.sessions) == 73 + 7
    api_s = trace.extras["recorded_api_s"]
    assert api_s.null_count / len(trace) == pytest.approx(0.16, abs=0.01)
    assert trace.extras["recorded_ttft_s"].null_count / len(trace) == pytest.approx(0.85, abs=0.01)
    assert len(notices) == 4
    blocks = trace.extras["prefix_blocks"].to_pylist()
    homes: dict[int, str] = {}
    for code, ids in zip(trace.session.tolist(), blocks, strict=True):
        home = trace.sessions[code].split("/")[0]
        assert all(homes.setdefault(block, home) == home for block in ids)
    write_trace(trace, tmp_path / "t.parquet")
    again = read_trace(tmp_path / "t.parquet", strict=True)
    assert again.digest() == trace.digest()
    assert again.extras["prefix_blocks"].to_pylist() == blocks
    assert np.array_equal(again.think_s, trace.think_s, equal_nan=True)
