"""Fitting traces to scenarios: names, classes, limits, scaling, assignment, and rows that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.common.errors import ConfigError, SimError, TraceError
from sim.scenario.scenario import GenerateWorkload, Scenario, parse_scenario
from sim.traces import blocks as trace_blocks
from sim.traces import order as trace_order
from sim.traces.compose.assign import Assignment
from sim.traces.stream import read_trace
from sim.traces.trace import join
from sim.traces.write import write_trace
from sim.workload.generate import generate
from sim.workload.requests import build_trace, open_workload

TEXT = """arrival_s,model,prompt_tokens,output_tokens,service_class
0,b,10,1,fast
1,a,11,2,
2,b,12,3,fast
8,a,13,4,default
"""


def scenario(workload: dict[str, Any], models: str = "a b", classes: str = "default fast", seed: int = 1) -> Scenario:
    data = {
        "name": "t",
        "seed": seed,
        "cluster": {"nodes": [{"host": "h", "gpus": [{"gpu": "g"}]}]},
        "models": [{"name": name, "model": "m"} for name in models.split()],
        "service_classes": [{"name": name} for name in classes.split()],
        "workload": workload,
    }
    return parse_scenario(data, "test")


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "t.csv"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def test_codes_are_positions_in_the_scenario(file: str) -> None:
    trace = build_trace(scenario({"file": file}, models="c a b", classes="slow fast default"))
    assert trace.models == ("c", "a", "b")
    assert trace.service_classes == ("slow", "fast", "default")
    assert trace.model.tolist() == [2, 1, 2, 1]
    assert trace.service_class.tolist() == [1, 2, 1, 2]
    assert trace.model.dtype == np.int32
    assert trace.service_class.dtype == np.int32
    assert trace.digest() == read_trace(Path(file)).digest()


def test_limit_and_time_scale(file: str) -> None:
    trace = build_trace(scenario({"file": file, "limit": 3, "time_scale": 2}))
    assert trace.arrival_s.tolist() == [0.0, 0.5, 1.0]
    assert trace.prompt_tokens.tolist() == [10, 11, 12]
    assert len(build_trace(scenario({"file": file, "limit": 100}))) == 4
    with pytest.raises(ConfigError, match="time_scale 1e-310: the last arrival comes at inf s"):
        build_trace(scenario({"file": file, "time_scale": 1e-310}))


def test_limit_counts_in_time_order(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(TEXT + "0.5,a,99,1,fast\n", encoding="utf-8")
    trace = build_trace(scenario({"file": str(path), "limit": 2}))
    assert trace.prompt_tokens.tolist() == [10, 99]
    with pytest.raises(TraceError, match="row 6"):
        build_trace(scenario({"file": str(path), "strict": True}))


def test_assign_replaces_the_models_by_the_scenarios_seed(file: str) -> None:
    fitted = build_trace(scenario({"file": file, "assign": "round-robin"}, models="x y z"))
    assert fitted.models == ("x", "y", "z")
    assert fitted.model.tolist() == [0, 1, 2, 0]
    drawn = build_trace(scenario({"file": file, "assign": "zipf:0.5"}, models="x y z", seed=7))
    expected = Assignment("zipf:0.5", ["x", "y", "z"], 7).apply(read_trace(Path(file)))
    assert drawn.digest() == expected.digest()
    with pytest.raises(ConfigError, match="unknown law 'zopf:1'; the laws are zipf:S"):
        build_trace(scenario({"file": file, "assign": "zopf:1"}))


def test_unknown_models_and_classes_are_named_with_their_row(file: str, tmp_path: Path) -> None:
    with pytest.raises(TraceError) as caught:
        build_trace(scenario({"file": file}, models="b aa"))
    assert str(caught.value) == (f"{file}: row 3: unknown model 'a'; did you mean 'aa'?; or give --assign zipf:1.0")
    with pytest.raises(TraceError, match=r"t\.csv: row 2: unknown service class 'fast'; did you mean 'faster'\?"):
        build_trace(scenario({"file": file}, classes="default faster"))
    unsorted = tmp_path / "unsorted.csv"
    unsorted.write_text(
        "arrival_s,model,prompt_tokens,output_tokens\n9,zeta,1,1\n\n5,a,1,1\n1,other,1,1\n", encoding="utf-8"
    )
    with pytest.raises(TraceError, match="row 2: unknown model 'zeta'"):
        build_trace(scenario({"file": str(unsorted)}))
    with pytest.raises(TraceError, match="row 5: unknown model 'other'"):
        build_trace(scenario({"file": str(unsorted), "limit": 2}))
    assert len(build_trace(scenario({"file": str(unsorted), "assign": "uniform"}))) == 3


def test_a_file_without_classes_takes_the_only_class(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,model,prompt_tokens,output_tokens\n0,a,1,1\n", encoding="utf-8")
    trace = build_trace(scenario({"file": str(path)}, classes="interactive"))
    assert trace.service_classes == ("interactive",)
    assert trace.service_class.tolist() == [0]
    with pytest.raises(TraceError, match="row 2: unknown service class 'default'"):
        build_trace(scenario({"file": str(path)}, classes="interactive batch"))


def test_an_azure_file_needs_a_law(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,374,44", encoding="utf-8")
    workload = {"file": str(path), "format": "azure-llm-2023"}
    with pytest.raises(TraceError, match=r"row 2: unknown model 'azure-llm-2023'.*--assign zipf:1\.0"):
        build_trace(scenario(workload))
    assert build_trace(scenario({**workload, "assign": "zipf:1.0"})).prompt_tokens.tolist() == [374]
    with pytest.raises(SimError, match="unknown trace format 'azure'"):
        build_trace(scenario({**workload, "format": "azure"}))


def test_generated_workloads_are_numbered_by_the_scenario() -> None:
    workload = {
        "duration_s": 200,
        "traffic": [
            {"model": "b", "rate_per_s": 1.0, "service_class": "fast"},
            {"model": "a", "rate_per_s": 2.0},
        ],
    }
    whole = scenario(workload, models="a b c", seed=5)
    trace = build_trace(whole)
    assert trace.models == ("a", "b", "c")
    assert trace.service_classes == ("default", "fast")
    assert isinstance(whole.workload, GenerateWorkload)
    assert trace.digest() == generate(whole.workload, 5, ["default", "fast"]).digest()
    pairs = set(zip(trace.model.tolist(), trace.service_class.tolist(), strict=True))
    assert pairs == {(0, 0), (1, 1)}


# --- streams


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Sets the bytes that are read at a time, and the rows that may be held."""

    def set_sizes(size: int, held: int) -> None:
        monkeypatch.setattr(trace_blocks, "BLOCK_BYTES", size)
        monkeypatch.setattr(trace_order, "MOST_ROWS_HELD", held)

    return set_sizes


LONG = "arrival_s,model,prompt_tokens,output_tokens,session,think_s\n" + "".join(
    f"{n / 2},{'ab'[n % 3 % 2]},{n + 1},{n % 7 + 1},s{n % 10},{0.5 if n >= 10 and n % 2 else ''}\n" for n in range(300)
)


@pytest.mark.parametrize(
    "more", [{}, {"limit": 77, "time_scale": 3}, {"assign": "zipf:0.7"}, {"assign": "round-robin"}]
)
def test_the_same_requests_whatever_is_held(
    tmp_path: Path, pieces: Callable[[int, int], None], more: dict[str, Any]
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(LONG, encoding="utf-8")
    asked = scenario({"file": str(path), **more}, classes="only", seed=4)
    whole = build_trace(asked)
    digests = {open_workload(asked).digest(), whole.digest()}
    for held in (0, 50, 1000):
        pieces(100, held)
        workload = open_workload(asked)
        assert workload.rows == (len(whole) if held == 1000 else None)
        first = list(workload.chunks())
        assert len(first) > 5
        assert all(chunk.models == ("a", "b") and chunk.service_classes == ("only",) for chunk in first)
        assert workload.rows == len(whole)
        digests |= {workload.digest(), join(first).digest(), open_workload(asked).digest()}
        assert join(list(workload.chunks())).digest() in digests, "a second pass"
        together = build_trace(asked)
        assert together.think_s is not None
        np.testing.assert_array_equal(together.think_s, whole.think_s)
    assert digests == {whole.digest()}
    assert len(whole) == more.get("limit", 300)
    expected = 0.5 / float(more.get("time_scale", 1))
    assert whole.think_s is not None
    assert np.nanmax(whole.think_s) == np.nanmin(whole.think_s) == expected


def test_parquet_says_how_many_will_come(tmp_path: Path, pieces: Callable[[int, int], None]) -> None:
    (tmp_path / "t.csv").write_text(LONG, encoding="utf-8")
    path = tmp_path / "t.parquet"
    write_trace(read_trace(tmp_path / "t.csv"), path)
    pieces(100, 0)
    assert open_workload(scenario({"file": str(path)})).rows == 300
    assert open_workload(scenario({"file": str(path), "limit": 20})).rows == 20
    assert open_workload(scenario({"file": str(path), "limit": 2000})).rows == 300


def test_mistakes_far_down_a_long_file(tmp_path: Path, pieces: Callable[[int, int], None]) -> None:
    path = tmp_path / "t.csv"
    pieces(100, 20)

    def refused(text: str, problem: str, **changes: Any) -> None:
        path.write_text(text, encoding="utf-8")
        workload = open_workload(scenario({"file": str(path)}, **changes))
        with pytest.raises(TraceError, match=problem) as caught:
            workload.digest()
        assert str(caught.value).startswith(f"{path}: row ")

    refused(LONG + "999,c,1,1,,\n", "row 302: unknown model 'c'")
    refused(LONG + "1,a,1,1,,\n", r"row 302: arrives at 1\.0 s, before the row above it.*trace import")
    refused(LONG + "999,a,1,1,new,2\n", "row 302: column 'think_s' is 2, but the request is the first")
    with_class = (
        LONG.replace("think_s\n", "think_s,service_class\n").replace("\n", ",\n").replace("class,\n", "class\n")
    )
    refused(with_class + "999,a,1,1,,,fast\n", "row 302: unknown service class 'fast'", classes="default")
    refused(with_class + "999,a,1,1,,,only\n", "row 2: unknown service class 'default'", classes="only")


def test_notices_are_complete_after_a_pass(tmp_path: Path, pieces: Callable[[int, int], None]) -> None:
    path = tmp_path / "t.csv"
    path.write_text(LONG + "\n\n", encoding="utf-8")
    expected = ["left out 2 blank rows"]
    assert open_workload(scenario({"file": str(path)})).notices == expected
    pieces(100, 20)
    workload = open_workload(scenario({"file": str(path)}))
    assert workload.notices == []
    workload.digest()
    assert workload.notices == expected
    assert list(build_trace(scenario({"file": str(path)})).notices) == expected
