"""Scenarios: a mistake is one line with the field and the closest name; what is right comes back whole."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.common.errors import ConfigError
from sim.scenario.scenario import (
    GenerateWorkload,
    Scenario,
    TraceWorkload,
    load_scenario,
    override,
    parse_scenario,
    resolved,
    run_id,
)
from tests.support.fuzzing.random_cases import Seeded, random_case
from tests.support.scenarios import as_yaml

BASE: dict[str, Any] = {
    "name": "base",
    "cluster": {"nodes": [{"host": "box", "gpus": [{"gpu": "small", "count": 2}]}]},
    "models": [{"name": "a", "model": "four"}, {"name": "b", "model": "two", "quantization": "Q8_0"}],
    "workload": {"duration_s": 10, "traffic": [{"model": "a", "rate_per_s": 1}]},
}


def parsed(*assignments: str) -> Scenario:
    return parse_scenario(override(BASE, assignments), "file.yaml")


def test_the_base_is_right_and_its_defaults_are_filled_in() -> None:
    of = parsed()
    assert isinstance(of.workload, GenerateWorkload)
    assert of.policy.name == "residency-aware"
    assert [model.engine_name for model in of.models] == ["hf-transformers", "llama.cpp"]
    assert of.service_classes[0].name == "default"
    assert resolved(of)["engine"]["max_sequences"] == 32


def test_shorthands_mean_the_long_form() -> None:
    short = parse_scenario({**BASE, "workload": {"file": "x.csv"}, "policy": "lru-swap"}, "f")
    assert isinstance(short.workload, TraceWorkload)
    long = {**BASE, "workload": {"kind": "trace", "file": "x.csv"}, "policy": {"name": "lru-swap"}}
    assert short == parse_scenario(long, "f")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("nme=x", "unknown field 'nme'; did you mean 'name'?"),
        ("engine.max_sequence=3", "unknown field 'engine.max_sequence'; did you mean 'max_sequences'?"),
        ("cluster.nodes.0.gpus.0.cuont=3", "unknown field 'cluster.nodes.0.gpus.0.cuont'; did you mean 'count'?"),
        ("workload.traffic.0.rate=3", "unknown field 'workload.traffic.0.rate'; did you mean 'rate_per_s'?"),
        ("models.1.name=a", "model 'a' is listed twice"),
        ("models=[]", "a scenario needs at least one model"),
        ("cluster.nodes=[]", "a cluster needs at least one node"),
        ("cluster.nodes.0.gpus=[]", "a node needs at least one GPU"),
        ("cluster.nodes.0.count=0", "greater than or equal to 1 (given: 0)"),
        ("cluster.nodes.0.gpus.0.count=1000000", "100000"),
        ("cluster.nodes.0.memory_gib=.inf", "finite number"),
        ("cluster.nodes.0.memory_gib=.nan", "cluster.nodes.0.memory_gib"),
        ("cluster.nodes.0.name=../x", "use letters, digits"),
        ("name=", "field 'name'"),
        ("workload.traffic.0.model=c", "unknown model 'c'; known: a, b"),
        ("workload.traffic.0.service_class=gold", "unknown service class 'gold'; known: default"),
        ("workload.traffic.0.prompt_mean=3", "a mean of at least its median"),
        ("workload.traffic.0.idle_share=1", "idle_share must be below 1"),
        ("workload.traffic=[]", "at least one model's traffic"),
        ("engine.prefill=later", "'first' or 'chunked' (given: 'later')"),
        ("engine.watermark=1", "less than 1"),
        ("engine={prefill: chunked, prefill_tokens: 32}", "prefill_tokens must be above max_sequences"),
        ("horizon_s=0", "greater than 0"),
        ("horizon_s=.inf", "finite"),
        ("seed=-1", "greater than or equal to 0"),
        ("seed=1.5", "seed"),
        ("service_classes=[{name: x}, {name: x}]", "service class 'x' is listed twice"),
        ("models.0.max_context=0", "greater than or equal to 1"),
    ],
)
def test_a_mistake_is_one_line_with_its_field(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(assignment)
    text = str(caught.value)
    assert text.startswith("file.yaml: ")
    assert message in text
    assert "\n" not in text
    assert "pydantic" not in text


@pytest.mark.parametrize("data", [None, [], "text", 7])
def test_what_is_no_mapping_is_no_scenario(data: Any) -> None:
    with pytest.raises(ConfigError, match="a scenario is a mapping with name, cluster, models and workload"):
        parse_scenario(data, "f")


@pytest.mark.parametrize("field", ["name", "cluster", "models", "workload"])
def test_what_is_missing_is_named(field: str) -> None:
    data = {name: value for name, value in BASE.items() if name != field}
    with pytest.raises(ConfigError, match=f"field '{field}' is missing; add it"):
        parse_scenario(data, "f")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("seed", "write path=value"),
        ("=3", "write path=value"),
        ("cluster.nodes.3.count=1", "'cluster.nodes' has items 0 to 0, not '3'"),
        ("cluster.nodes.first.count=1", "'cluster.nodes' has items 0 to 0, not 'first'"),
        ("name.first=1", "'name' is a plain value, it has no 'first'"),
        ("seed=[1", "--set seed=[1"),
    ],
)
def test_an_override_that_leads_nowhere_is_named(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        override(BASE, [assignment])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_override_changes_a_copy() -> None:
    before = deepcopy(BASE)
    assert parsed("cluster.nodes.0.gpus.0.count=4", "policy.max_wait_s=3", "seed=9").cluster.nodes[0].gpus[0].count == 4
    assert before == BASE
    assert parsed("policy.max_wait_s=3").policy.parameters == {"max_wait_s": 3}


@settings(derandomize=True, deadline=None, print_blob=True, max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_a_resolved_scenario_is_the_same_scenario(seed: int) -> None:
    of, _ = random_case(Seeded(seed))
    again = parse_scenario(yaml.safe_load(as_yaml(of)), "again")
    assert again == of
    assert run_id(again, [("a", "1")]) == run_id(of, [("a", "1")])


def test_a_run_is_named_by_all_that_matters() -> None:
    names = [
        run_id(parsed(), []),
        run_id(parsed("seed=2"), []),
        run_id(parsed("policy.margin=2"), []),
        run_id(parsed("engine.block_tokens=32"), []),
        run_id(parsed(), [("trace", "x")]),
        run_id(parsed(), [("trace", "y")]),
        run_id(parsed(), [("trace", "x"), ("policy", "y")]),
    ]
    assert len(dict.fromkeys(names)) == len(names)
    assert all(len(name) == 16 for name in names)
    assert run_id(parsed(), [("a", "1"), ("b", "2")]) == run_id(parsed(), [("b", "2"), ("a", "1")])
    assert run_id(parsed(), []) == run_id(parsed("engine.max_sequences=32"), []), "a default said aloud is the same"


def test_a_scenario_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        parsed().seed = 3  # type: ignore[misc]


def test_a_trace_is_looked_for_beside_its_scenario(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "scenario.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump({**BASE, "workload": {"file": "../trace.csv"}}), encoding="utf-8")
    workload = load_scenario(path, ["seed=4"]).workload
    assert isinstance(workload, TraceWorkload)
    assert workload.file == str(tmp_path / "trace.csv")
