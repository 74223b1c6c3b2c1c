"""Fitting traces to scenarios: names, classes, limits, scaling, assignment, and rows that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.errors import ConfigError, SimError, TraceError
from sim.generate import assign_models, generate
from sim.spec import GenerateWorkload, Scenario, parse_scenario
from sim.trace import read_trace
from sim.workload import build_trace

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
    expected = assign_models(read_trace(Path(file)), "zipf:0.5", ["x", "y", "z"], 7)
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
