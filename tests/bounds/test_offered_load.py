"""Offered load: work by the tables against a slow sum over requests, and the best division over kinds of GPU."""

from __future__ import annotations

from typing import Any

import pytest

from sim.bounds.offered_load import OfferedLoad, _least_share
from sim.common.errors import ConfigError
from sim.engine.build_cluster import build_cluster
from sim.profiles.library import Library
from sim.scenario.scenario import parse_scenario
from tests.support.cli_cases import scenario_data
from tests.support.trace_cases import Row, in_chunks, trace_of


def scenario(**changes: Any) -> Any:
    return parse_scenario(scenario_data(**changes), "test")


def load_of(rows: list[Row], span_s: float, **changes: Any) -> dict[str, Any]:
    load = OfferedLoad(scenario(**changes), "t")
    for chunk in in_chunks(trace_of(rows), [3]).chunks:
        load.add(chunk)
    return load.facts(span_s)


ROWS = [Row(float(n), "chat", 100 + 37 * n, 10 + n) for n in range(20)] + [Row(30.0, "code", 900, 50)]


@pytest.mark.parametrize("most", [1, 6, 32])
def test_work_is_that_of_the_tables(most: int) -> None:
    facts = load_of(ROWS, 100.0, engine={"max_sequences": most})
    cluster = build_cluster(scenario(engine={"max_sequences": most}), Library())
    kind = "rtx-a6000 in tr-pro-5995wx"
    assert facts["gpus"] == {kind: 1}
    total = 0.0
    for model in cluster.models:
        row = facts["models"][model.name]["on"][kind]
        profile = model.profiles["rtx-a6000", "tr-pro-5995wx"]
        layers, batch = profile.weights.layers, row["batch"]
        own = [each for each in ROWS if each.model == model.name]
        prefill_s = sum(profile.prefill_s(layers, each.prompt) for each in own)
        steps = ((each.output, profile.step_s(layers, batch, each.prompt + each.output / 2)) for each in own)
        decode_s = sum(output * step_s / batch for output, step_s in steps)
        assert batch == most  # short contexts on a large GPU: memory for all of them
        assert row["gpus"] == pytest.approx((prefill_s + decode_s) / 100)
        assert row["prefill_tokens_per_s"] == pytest.approx(sum(each.prompt for each in own) / prefill_s)
        assert row["decode_tokens_per_s"] == pytest.approx(sum(each.output for each in own) / decode_s)
        total += row["gpus"]
    assert facts["of_cluster"] == pytest.approx(total)
    assert facts["left_out"] == 0


def test_twice_the_gpus_are_half_the_load_and_twice_the_time_too() -> None:
    one = load_of(ROWS, 100.0)["of_cluster"]
    gpus = {"nodes": [{"name": "a", "host": "tr-pro-5995wx", "gpus": [{"gpu": "rtx-a6000", "count": 2}]}]}
    assert load_of(ROWS, 100.0, cluster=gpus)["of_cluster"] == pytest.approx(one / 2)
    assert load_of(ROWS, 200.0)["of_cluster"] == pytest.approx(one / 2)


def test_long_contexts_leave_room_for_smaller_batches() -> None:
    nodes = [{"name": "a", "host": "tr-pro-5995wx", "gpus": [{"gpu": "rtx-a6000"}]}]
    cluster = {"nodes": nodes, "gpu_reserve_gib": 20}
    short = load_of([Row(0.0, "code", 100, 10)], 10.0, cluster=cluster)
    long = load_of([Row(0.0, "code", 7_000, 1_000)], 10.0, cluster=cluster)
    kind = "rtx-a6000 in tr-pro-5995wx"
    assert short["models"]["code"]["on"][kind]["batch"] == 32
    assert long["models"]["code"]["on"][kind]["batch"] < 32


def test_what_cannot_run_is_counted_and_left_out() -> None:
    rows = [Row(0.0, "chat", 10, 10), Row(1.0, "chat", 10**8, 1), Row(2.0, "code", 10, 10)]
    nodes = {"nodes": [{"name": "a", "host": "tr-pro-5995wx", "gpus": [{"gpu": "rtx-a6000"}]}]}
    facts = load_of(
        rows,
        10.0,
        cluster=nodes,
        models=[{"name": "chat", "model": "Qwen2.5-3B"}, {"name": "code", "model": "Qwen3-32B"}],
    )
    assert facts["models"]["chat"]["impossible"] == 1
    assert facts["models"]["code"]["on"] == {}  # 64 GB of weights on 48 GB
    assert facts["left_out"] == 2
    assert facts["of_cluster"] == pytest.approx(facts["models"]["chat"]["on"]["rtx-a6000 in tr-pro-5995wx"]["gpus"])


def test_a_model_that_the_scenario_lacks_is_named() -> None:
    with pytest.raises(ConfigError, match=r"t: model 'caht' is not in scenario 'mini'; did you mean 'chat'\?"):
        load_of([Row(0.0, "caht", 1, 1)], 1.0)


def test_no_span_no_load() -> None:
    facts = load_of([Row(0.0, "chat", 10, 10)], 0.0)
    assert facts["of_cluster"] is None
    assert facts["models"]["code"] == {
        "requests": 0,
        "impossible": 0,
        "prompt_tokens_per_s": None,
        "output_tokens_per_s": None,
        "on": {},
    }


def test_requests_are_divided_as_well_as_can_be() -> None:
    # One model, 2 GPUs' worth on "slow" or 1 on "fast": u = 2(1 - x) = x, so x = 2/3 of them on the fast one.
    assert _least_share({"m": {"slow": 2.0, "fast": 1.0}}, {"slow": 1, "fast": 1}) == pytest.approx(2 / 3)
    # A model that runs on one kind only pushes the other model off it.
    loads = {"m": {"slow": 2.0, "fast": 1.0}, "n": {"fast": 1.0}}
    assert _least_share(loads, {"slow": 1, "fast": 1}) == pytest.approx(4 / 3)
    assert _least_share({}, {"slow": 1}) == 0.0
