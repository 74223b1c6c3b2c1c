"""The language of workloads: shorthands, presets written out, plain data that remakes it, one-line mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sim.common.errors import ConfigError
from sim.scenario.distributions import Fixed, LogNormal, Quantiles
from sim.scenario.presets import preset_names, read_preset
from sim.scenario.scenario import override, parse_scenario
from sim.scenario.workload import GenerateWorkload, parse_workload
from sim.traces.stream import gather
from sim.workload.generate import from_recipe, stream_from_file
from sim.workload.requests import build_trace
from tests.support.generated import drawn, same

BASE: dict[str, Any] = {
    "duration_s": 100,
    "streams": [{"name": "chat", "models": ["a", "b"], "arrivals": {"process": "poisson", "rate_per_s": 5}}],
}
SCENARIO: dict[str, Any] = {
    "name": "base",
    "cluster": {"nodes": [{"host": "box", "gpus": [{"gpu": "small", "count": 2}]}]},
    "models": [{"name": "a", "model": "four"}, {"name": "b", "model": "two"}, {"name": "c", "model": "two"}],
}


def parsed(*assignments: str) -> GenerateWorkload:
    return parse_workload(override(BASE, assignments), "file.yaml")


def test_shorthands_mean_the_long_form() -> None:
    stream = parsed(
        "streams.0.prompt=512",
        "streams.0.output={median: 100, mean: 150}",
        "streams.0.arrivals={process: gamma, rate_per_s: 2, cv: 3}",
        "streams.0.service_class=gold",
        "streams.0.popularity={shares: {a: 1}}",
    ).streams[0]
    assert stream.prompt == Fixed(value=512)
    assert stream.output == LogNormal(median=100, mean=150)
    assert stream.service_class == {"gold": 1.0}
    assert stream.popularity.law == "shares"
    law = parsed("streams.0.prompt={quantiles: {1: 9, 0: 3, 0.5: 4}}").streams[0].prompt
    assert law == Quantiles(quantiles=((0, 3), (0.5, 4), (1, 9)))
    assert parsed("streams.0.models=3").streams[0].models == ("model-1", "model-2", "model-3")
    assert parsed("streams.0.models=all").streams[0].models is None
    assert parsed("streams.0.models=solo").streams[0].models == ("solo",)
    unnamed = parse_workload(
        {"duration_s": 1, "streams": [{"arrivals": {"process": "frames", "period_s": 1}}] * 2}, "f"
    )
    assert [stream.name for stream in unnamed.streams] == ["stream-1", "stream-2"]


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("streams.0.modles=[a]", "unknown field 'streams.0.modles'; did you mean 'models'?"),
        ("streams.0.arrivals.process=gama", "'streams.0.arrivals.process': unknown 'gama'; did you mean 'gamma'?"),
        (
            "streams.0.arrivals={rate_per_s: 3}",
            "'streams.0.arrivals': give a mapping with 'process': one of poisson, gamma",
        ),
        ("streams.0.arrivals=5", "field 'streams.0.arrivals'"),
        ("streams.0.arrivals.cv=3", "unknown field 'streams.0.arrivals.cv'"),
        ("streams.0.arrivals={process: gamma, rate_per_s: 1}", "field 'streams.0.arrivals.cv' is missing; add it"),
        ("streams.0.arrivals={process: gamma, rate_per_s: 1, cv: 0}", "cv: from 0.01 to 100, not 0"),
        ("streams.0.arrivals={process: weibull, rate_per_s: 1, cv: 60}", "cv: from 0.05 to 50, not 60"),
        (
            "streams.0.arrivals.rate_per_s=-1",
            "'streams.0.arrivals.rate_per_s': input should be greater than 0 (given: -1)",
        ),
        ("streams.0.arrivals={process: mmpp, states: [{rate_per_s: 1, dwell_s: 1}]}", "at least two states"),
        ("streams.0.arrivals={process: frames, period_s: 1, jitter_s: 2}", "jitter_s must not be above period_s"),
        ("streams.0.arrivals={process: on-off, rate_per_s: 1, on_s: 1, off_s: 1, off_share: 1}", "less than 1"),
        ("streams.0.prompt={law: lognormal, median: 3}", "unknown 'lognormal'; did you mean 'log-normal'?"),
        ("streams.0.prompt={median: 3}", "its mean or its sigma"),
        ("streams.0.prompt={median: 3, mean: 2}", "a mean of at least its median"),
        ("streams.0.prompt={median: 3, mean: 4, cap: 5}", "unknown field 'streams.0.prompt.cap'"),
        ("streams.0.prompt={mean: 3}", "give a mapping with 'law': one of fixed, uniform"),
        ("streams.0.prompt={quantiles: {0.1: 3, 1: 4}}", "the quantiles 0 (the least) and 1 (the most)"),
        ("streams.0.prompt={quantiles: {0: 3, 0.5: 2, 1: 4}}", "quantile 0.5 (2) must be above quantile 0 (3)"),
        ("streams.0.prompt={quantiles: {0: 3, half: 2, 1: 4}}", "field 'streams.0.prompt.quantiles"),
        ("streams.0.prompt={law: uniform, low: 5, high: 2}", "low must not be above high"),
        ("streams.0.prompt={median: 3, sigma: 1, min: 9, max: 2}", "min must not be above max"),
        ("streams.0.rate_shape={hourly: [1, 2]}", "hourly needs 24 factors"),
        ("streams.0.rate_shape={steps: [[5, 1], [5, 2]]}", "in order of time"),
        ("streams.0.rate_shape={diurnal: {peak_to_trough: 0.5}}", "greater than or equal to 1"),
        ("streams.0.popularity={exponnt: 2}", "unknown field 'streams.0.popularity.exponnt'; did you mean 'exponent'?"),
        ("streams.0.popularity={law: shares}", "give shares: {model: weight}"),
        ("streams.0.popularity={shares: {z: 1}}", "popularity.shares: the stream has no model 'z'; known: a, b"),
        ("streams.0.popularity={shares: {a: 0}}", "at least one weight above 0"),
        ("streams.0.popularity={schedule: [{from_s: 3, shares: {q: 1}}]}", "no model 'q'"),
        ("streams.0.popularity={stay: 1}", "less than 1"),
        ("streams.0.per_model={z: {prompt: 3}}", "per_model: the stream has no model 'z'"),
        ("streams.0.per_model={a: {promt: 3}}", "unknown field 'streams.0.per_model.a.promt'; did you mean 'prompt'?"),
        ("streams.0.sessions={turns: 3}", "field 'streams.0.sessions.think_s' is missing"),
        ("streams.0.sessions={turns: 3, think_s: 1, pattern: [x]}", "sessions.pattern: the stream has no model 'x'"),
        ("streams.0.sessions={turns: 3, think_s: 1, pattern: [a], switch_share: 0.2}", "pattern or switch_share"),
        ("streams.0.sessions={turns: 3, think_s: 1, grows: false, context_max: 9}", "need grows: true"),
        ("streams.0.prefix={block_tokens: 0}", "greater than or equal to 1"),
        ("streams.0.models=[a, a]", "not 'a' twice"),
        ("streams.0.models=[]", "models: give each of 1 to 10,000 models once"),
        (
            "streams.0.models=0",
            "field 'streams.0.models': give names, or a number of models from 1 to 10,000 (given: 0)",
        ),
        ("streams.0.prompt=long", "field 'streams.0.prompt': give a mapping of fields, not 'long'"),
        ("streams.0.service_class={}", "at least one class needs a weight above 0"),
        (
            "streams.0={name: x, arrivals: {process: poisson, rate_per_s: 1}, service_class: a, per_class: {b: {}}}",
            "no service",
        ),
        ("streams.0.deadline_per_token_s=1", "deadline_per_token_s adds to deadline_s"),
        ("streams.0.deadline_s=0", "greater than 0"),
        ("streams.0.correlation=2", "less than or equal to 1"),
        (
            "streams.0={name: x, arrivals: {process: poisson, rate_per_s: 1}, from_s: 5, until_s: 5}",
            "until_s must be above",
        ),
        ("streams.0={preset: azure}", "unknown preset 'azure'; did you mean 'azure-"),
        ("streams.0={preset: agents, rate_per_s: no}", "rate_per_s of a preset is a number above 0"),
        ("preset=agents", "give preset or streams"),
        ("streams=[]", "give at least one model's traffic, or one stream"),
        ("streams=7", "field 'streams'"),
        ("streams.0=7", "field 'streams.0'"),
        ("duration_s=0", "greater than 0"),
        ("duration_s=null", "give duration_s, or rows"),
        ("rows=0", "greater than or equal to 1"),
        ("rwos=1", "unknown field 'rwos'; did you mean 'rows'?"),
        ("kind=trace", "this workload plays a file"),
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


def test_two_streams_of_one_name() -> None:
    with pytest.raises(ConfigError, match="two streams are named 'chat'; rename one"):
        parse_workload({**BASE, "streams": BASE["streams"] * 2}, "f")


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ({"models": ["z"]}, "workload: stream 'chat': models: unknown model 'z'; known: a, b, c"),
        ({"models": None, "popularity": {"shares": {"z": 1}}}, "stream 'chat': popularity.shares: unknown model 'z'"),
        ({"service_class": "gold"}, "stream 'chat': service_class: unknown service class 'gold'; known: default"),
        ({"arrivals": {"process": "gama"}}, "field 'workload.streams.0.arrivals.process': unknown 'gama'"),
        ({"promt": 3}, "unknown field 'workload.streams.0.promt'; did you mean 'prompt'?"),
    ],
)
def test_a_scenario_says_where_its_workload_is_wrong(stream: dict[str, Any], message: str) -> None:
    workload = {**BASE, "streams": [{**BASE["streams"][0], **stream}]}
    with pytest.raises(ConfigError) as caught:
        parse_scenario({**SCENARIO, "workload": workload}, "file.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_models_are_the_scenarios() -> None:
    workload = {**BASE, "streams": [{**BASE["streams"][0], "models": "all"}]}
    trace = build_trace(parse_scenario({**SCENARIO, "workload": workload}, "f"))
    assert trace.models == ("a", "b", "c")
    assert sorted(dict.fromkeys(trace.model.tolist())) == [0, 1, 2]
    with pytest.raises(ConfigError, match="asks for all models of a scenario; give it models"):
        drawn(parse_workload(workload, "f"))


def test_a_short_workload_is_written_as_before_streams_existed() -> None:
    workload = {"kind": "generate", "duration_s": 9, "traffic": [{"model": "a", "rate_per_s": 1}]}
    data = parse_workload(workload, "f").model_dump(mode="json")
    assert list(data) == ["kind", "duration_s", "traffic"]


@pytest.mark.parametrize("name", preset_names())
def test_a_recipe_is_plain_data_that_remakes_the_trace(name: str) -> None:
    stream, recipe = stream_from_file(name, ["rows=500"], seed=3)
    again = json.loads(json.dumps(recipe))
    assert parse_workload(again["generate"], "again").model_dump(mode="json") == recipe["generate"]
    assert "preset" not in json.dumps(again), "a preset may change; what was drawn from it may not"
    assert same(gather(stream), gather(from_recipe(again)))


def test_a_preset_takes_the_fields_of_a_stream() -> None:
    data = {
        "duration_s": 50,
        "streams": [
            {"preset": "azure-code-like", "name": "mine", "rate_per_s": 9, "models": ["x"], "output": 5},
            {"preset": "azure-conv-like", "arrivals": {"cv": 2}, "rate_shape": {"steps": [[10, 2]]}},
            {"preset": "azure-conv-like", "name": "poisson", "arrivals": {"process": "poisson", "rate_per_s": 1}},
        ],
    }
    mine, other, poisson = parse_workload(data, "f").streams
    assert (mine.name, mine.models, mine.arrivals.process, mine.output) == ("mine", ("x",), "mmpp", Fixed(value=5))
    assert mine.model_dump()["arrivals"]["rate_per_s"] == pytest.approx(9)
    assert other.model_dump()["arrivals"]["cv"]["value"] == 2
    assert other.rate_shape.wander is not None, "what is not named stays"
    assert len(other.rate_shape.steps) == 1
    assert poisson.model_dump()["arrivals"] == {"per": "stream", "process": "poisson", "rate_per_s": 1.0}


def test_a_file_holds_a_workload_or_a_scenario(tmp_path: Path) -> None:
    alone, whole = tmp_path / "w.yaml", tmp_path / "s.yaml"
    alone.write_text(yaml.safe_dump(BASE), encoding="utf-8")
    whole.write_text(yaml.safe_dump({**SCENARIO, "seed": 7, "workload": BASE}), encoding="utf-8")
    stream, recipe = stream_from_file(str(whole))
    assert recipe["seed"] == 7
    assert gather(stream).models == ("a", "b", "c")
    trace = gather(stream_from_file(str(alone), seed=7)[0])
    assert trace.digest() == gather(stream_from_file(str(whole))[0]).digest()
    faster = gather(stream_from_file(str(alone), ["streams.0.arrivals.rate_per_s=50"], 7)[0])
    assert len(faster) > 5 * len(trace)
    assert len(gather(stream_from_file(str(alone), rows=12)[0])) == 12
    assert gather(stream_from_file("azure-code-like", ["duration_s=300"])[0]).models == ("code",)
    assert gather(stream_from_file("azure-code-like", ["duration_s=300", "models=4"])[0]).models[3] == "model-4"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "a workload is a mapping with duration_s and streams, or with preset"),
        ("{workload: 3}", "a workload is a mapping"),
        ("{file: x.csv}", "this workload plays a file"),
        ("{duration_s: 5, streams: [{arrivals: {process: poisson}}]}", "'streams.0.arrivals.rate_per_s' is missing"),
        ("{seed: no, workload: {preset: agents}}", "a seed is a whole number"),
        ("{preset: nothing}", "unknown preset 'nothing'; known: agents, azure-code-like"),
        ("{preset: agents, rows: 5, arivals: {}}", "unknown field 'arivals'; did you mean"),
    ],
)
def test_a_file_that_is_wrong_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        stream_from_file(str(path))
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_neither_a_file_nor_a_preset() -> None:
    with pytest.raises(ConfigError, match="'azure' is neither a file nor a preset; the presets are agents, azure-code"):
        stream_from_file("azure")
    with pytest.raises(ConfigError, match=r"no-such\.yaml: cannot read the file"):
        stream_from_file("no-such.yaml")


def test_every_field_of_a_stream_is_described() -> None:
    from sim.scenario import distributions, workload  # noqa: PLC0415
    from sim.scenario.fields import Frozen  # noqa: PLC0415

    older = ("TraceWorkload", "ModelTraffic")
    for module in (distributions, workload):
        for name, kind in vars(module).items():
            if isinstance(kind, type) and issubclass(kind, Frozen) and name not in older:
                for field, info in kind.model_fields.items():
                    assert info.description or field in ("kind", "law", "process"), f"{name}.{field}"


def test_presets_say_what_they_are() -> None:
    assert preset_names() == ["agents", "azure-code-like", "azure-conv-like", "mooncake-like", "servegen-like"]
    for name in preset_names():
        data = read_preset(name)
        assert data["description"]
        assert data["models"]
