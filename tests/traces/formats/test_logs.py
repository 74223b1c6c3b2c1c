"""The importers of benchmark results and request logs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sim.traces.formats import guess_format
from sim.traces.stream import TurnOrder
from tests.support.format_files import imported, made, refused

# As vLLM's benchmark writes it; the second request failed, the fourth was never sent.
RESULT: dict[str, Any] = {
    "date": "20250101-000000",
    "backend": "vllm",
    "model_id": "meta-llama/Llama-3.1-8B",
    "tokenizer_id": "meta-llama/Llama-3.1-8B",
    "num_prompts": 4,
    "request_rate": 2.0,
    "burstiness": 1.0,
    "max_concurrency": None,
    "duration": 3.0,
    "completed": 2,
    "input_lens": [100, 50, 30, 20],
    "output_lens": [3, 0, 2, 0],
    "ttfts": [0.5, 0.0, 0.25, 0.0],
    "itls": [[0.25, 0.25], [], [0.5], []],
    "start_times": [5000.5, 5000.0, 5000.25, 0.0],
    "generated_texts": ["a b c", "", "d e", ""],
    "errors": ["", "timed out", "", "refused"],
}


def result(folder: Path, **changed: Any) -> Path:
    values = {name: value for name, value in {**RESULT, **changed}.items() if value != "absent"}
    return made(folder, json.dumps(values), "result.json")


def test_vllm_results(tmp_path: Path) -> None:
    trace = imported(result(tmp_path))
    assert trace.models == ("meta-llama/Llama-3.1-8B",)
    assert trace.arrival_s.tolist() == [0, 0.25]
    assert trace.prompt_tokens.tolist() == [30, 100]
    assert trace.output_tokens.tolist() == [2, 3]
    assert trace.extras["measured_ttft_s"].to_pylist() == [0.25, 0.5]
    assert trace.extras["measured_latency_s"].to_pylist() == [0.75, 1.0]
    assert trace.notices[0] == "left out 1 request that never went out"
    assert trace.notices[1].startswith("left out 1 request that failed")
    kept = imported(result(tmp_path), "vllm-bench", failures="keep", model="m")
    assert kept.arrival_s.tolist() == [0, 0.25, 0.5]
    assert kept.output_tokens.tolist() == [1, 2, 3]
    assert kept.models == ("m",)


def test_vllm_results_without_start_times(tmp_path: Path) -> None:
    path = result(tmp_path, start_times="absent", itls="absent", max_concurrency=8)
    assert "give --option rate=" in refused(path, "vllm-bench")
    trace = imported(path, "vllm-bench", rate="2", seed="4")
    assert trace.prompt_tokens.tolist() == [100, 30]
    assert 0 < trace.arrival_s[0] < trace.arrival_s[1]
    assert list(trace.extras) == ["measured_ttft_s"]
    assert "leave out --option rate" in refused(result(tmp_path), "vllm-bench", rate=2)
    assert "at most 8 requests were under way at once" in " ".join(
        imported(result(tmp_path, max_concurrency=8)).notices
    )


def test_several_vllm_results_in_a_file(tmp_path: Path) -> None:
    both = json.dumps(RESULT) + "\n" + json.dumps({**RESULT, "model_id": "other"})
    path = made(tmp_path, both, "appended.json")
    assert "holds 2 results; give --option run=<1 to 2>" in refused(path, "vllm-bench")
    assert imported(path, "vllm-bench", run="2").models == ("other",)
    assert "has no result 3" in refused(path, "vllm-bench", run=3)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"input_lens": "absent"}, "field 'input_lens' is empty, not a list; save the result with --save-detailed"),
        ({"output_lens": "absent"}, "save it with --save-detailed"),
        ({"output_lens": [1]}, "field 'output_lens' has 1 entries, input_lens 4"),
        ({"output_lens": [3, 0, 2.5, 0]}, "field 'output_lens', entry 3: is 2.5; give a whole number"),
        ({"output_lens": [3, 0, True, 0]}, "field 'output_lens', entry 3: is True"),
        ({"input_lens": [1, 2, -3, 4]}, "field 'input_lens', entry 3: is -3"),
        ({"start_times": [1, 2, "x", 3]}, "field 'start_times', entry 3: is 'x'"),
        ({"start_times": [1, 2, 1e300, 3]}, "field 'start_times', entry 3"),
        ({"errors": ["x"]}, "field 'errors' is no list of 4 entries"),
        ({"itls": [[1], [2], 3, [4]]}, "field 'itls', entry 3: is 3"),
        ({"ttfts": [1, 2, 3]}, "field 'ttfts' has 3 entries"),
        ({"model_id": 7}, "field 'model_id' is 7; give a name; or give --option model="),
        ({"input_lens": [], "output_lens": []}, "has no single requests"),
        ({"output_lens": [0, 0, 0, 0]}, "no request is left"),
    ],
)
def test_vllm_mistakes(tmp_path: Path, changed: dict[str, Any], problem: str) -> None:
    assert problem in refused(result(tmp_path, **changed), "vllm-bench")


# --- request logs


def completion(when: Any, prompt: Any = 10, output: Any = 5, **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": 15}
    return {"id": "c", "object": "chat.completion", "created": when, "model": "gpt", "usage": usage, **more}


def log(folder: Path, *rows: Any) -> Path:
    return made(folder, "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), "log.jsonl")


def test_openai_completions(tmp_path: Path) -> None:
    path = log(
        tmp_path,
        completion(1_700_000_003, 30, 3, user="ann", priority=-2),
        completion(1_700_000_001, 10, 1, model="other", session_id=7, user="bob"),
        "",
        completion(1_700_000_002.5, 20, 2),
        completion(1_700_000_002, 0, 2),
        completion(1_700_000_002, error={"code": 500}),
        {"created": 1_700_000_004, "model": "gpt"},
        completion(1_700_000_002, status="503"),
        completion(1_700_000_002, success=False),
    )
    trace = imported(path)
    assert trace.arrival_s.tolist() == [0, 1.5, 2]
    assert [trace.models[code] for code in trace.model] == ["other", "gpt", "gpt"]
    assert [trace.sessions[code] if code >= 0 else None for code in trace.session] == ["7", None, "ann"]
    assert trace.prompt_tokens.tolist() == [10, 20, 30]
    assert trace.output_tokens.tolist() == [1, 2, 3]
    assert trace.priority.tolist() == [0, 0, -2]
    assert [notice.split(";")[0] for notice in trace.notices] == [
        "left out 5 requests that failed or had no token counts",
        "sorted 2 rows that were out of order",
    ]
    kept = imported(path, "openai-log", failures="keep")
    assert kept.arrival_s.tolist() == [0, 1, 1, 1, 1, 1.5, 2, 3]
    assert kept.prompt_tokens.tolist() == [10, 1, 10, 10, 10, 20, 30, 1]
    TurnOrder().check(kept, "the test")
    assert "row 2: arrives 2 s before a row above it" in refused(path, "openai-log", strict=True)


@pytest.mark.parametrize(
    "times",
    [
        (1_700_000_000, 1_700_000_001.25),
        (1_700_000_000_000, 1_700_000_001_250),
        (1_700_000_000_000_000, 1_700_000_001_250_000),
        (1_700_000_000_000_000_000, 1_700_000_001_250_000_000),
        ("2023-11-14T22:13:20Z", "2023-11-14T22:13:21.25Z"),
        ("2023-11-14 22:13:20", "2023-11-14 23:13:21.250000+01:00"),
        ("1700000000", "1700000001.250"),
        (0, 1.25),
    ],
)
def test_openai_times(tmp_path: Path, times: tuple[Any, Any]) -> None:
    path = log(tmp_path, *(completion(time) for time in times))
    assert imported(path, "openai-log").arrival_s.tolist() == [0, 1.25]
    renamed = [{"at": row.pop("created"), **row} for row in map(completion, times)]
    assert imported(log(tmp_path, *renamed), "openai-log", time_field="at").arrival_s.tolist() == [0, 1.25]


def test_openai_relative_milliseconds_need_the_unit(tmp_path: Path) -> None:
    path = log(tmp_path, completion(0), completion(1250))
    assert imported(path, "openai-log").arrival_s.tolist() == [0, 1250]
    assert imported(path, "openai-log", unit="ms").arrival_s.tolist() == [0, 1.25]


def test_openai_wrapped_and_flat_rows(tmp_path: Path) -> None:
    batch = {"custom_id": "1", "response": {"status_code": 200, "body": completion(1_700_000_000)}, "error": None}
    failed = {"custom_id": "2", "response": {"status_code": 429, "body": completion(1_700_000_000)}, "error": None}
    responses = {"created_at": 1_700_000_001, "model": "gpt", "usage": {"input_tokens": 6, "output_tokens": 7}}
    flat = {"timestamp": "2023-11-14T22:13:22Z", "model": "gpt", "prompt_tokens": 8, "completion_tokens": 9}
    path = log(tmp_path, batch, failed, responses, {**flat, "status": "success"}, {**flat, "status": "failed"})
    trace = imported(path, "openai-log")
    assert trace.arrival_s.tolist() == [0, 1, 2]
    assert trace.prompt_tokens.tolist() == [10, 6, 8]
    assert trace.output_tokens.tolist() == [5, 7, 9]
    assert trace.notices[0].startswith("left out 2 requests")
    assert guess_format([path]).name == "openai-log"
    assert guess_format([log(tmp_path, completion(1, session="a", priority=1))]).name == "openai-log"
    assert guess_format([result(tmp_path)]).name == "vllm-bench"


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([completion("soon")], "row 1: field 'created' is 'soon'; give seconds"),
        ([completion(None)], "row 1: field 'timestamp' is empty; give seconds"),
        ([completion("1969-12-31T00:00:00Z")], "row 1: field 'created' is '1969-12-31T00:00:00Z'; give seconds"),
        ([completion(True)], "row 1: field 'created' is True"),
        ([completion(-5)], "row 1: field 'created' is -5"),
        ([completion(1e30)], "row 1: field 'created' is 1e+30"),
        ([completion(1_700_000_000), completion(1_700_000_000_000)], "row 2: field 'created' is 1700000000000, which"),
        ([completion(1, prompt="many")], "row 1: field 'prompt_tokens' is 'many'; give a whole number"),
        ([completion(1, output=-1)], "row 1: field 'completion_tokens' is -1"),
        ([completion(1, output=1.5)], "row 1: field 'completion_tokens' is 1.5"),
        ([completion(1, model=None)], "row 1: field 'model' is empty; give the model's name"),
        ([completion(1, model=["a"])], "row 1: field 'model' is"),
        ([completion(1, user={"a": 1})], "row 1: field 'user' is"),
        ([completion(1, priority="high")], "row 1: field 'priority' is 'high'"),
        ([completion(1), "{"], "row 2: not valid JSON"),
        ([completion(1), "3"], "row 2: not a JSON object"),
        ([completion(1, error="x")], "no request is left"),
    ],
)
def test_openai_mistakes(tmp_path: Path, rows: list[Any], problem: str) -> None:
    assert problem in refused(log(tmp_path, *rows), "openai-log")


def test_openai_time_field_that_is_not_there(tmp_path: Path) -> None:
    problem = refused(log(tmp_path, completion(1, sent_at=5)), "openai-log", time_field="sent")
    assert "row 1: field 'sent' is missing; did you mean 'sent_at'" in problem


def test_openai_unit_that_cannot_be(tmp_path: Path) -> None:
    assert "s, which is no date" in refused(log(tmp_path, completion(1e15)), "openai-log", unit="s")
