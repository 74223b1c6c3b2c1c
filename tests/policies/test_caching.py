"""What makes greedy-dual and clockwork themselves: values and clocks, shed layers; latest starts, drops, demand.

Synthetic hardware (scenarios.py): one `small` GPU of 8.59 GB unless a test says more; `four` takes 4.01 GB with its KV
and 2 s to load, `two` 2.51 GB and 1.8125 s, `eight` 4.26 GB; a prompt of n tokens takes 10 ms + n x 0.1 ms.
"""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from sim.core.record.recorder import SWITCH_COLUMNS
from sim.core.state.request import COMPLETED, REJECTED
from sim.engine.engine import Engine
from sim.policy import load_policy
from tests.support.laws import assert_laws
from tests.support.scenarios import GB, Row, columns, nodes, play, prefill_s, scenario, trace

THREE = {"a": "four", "b": "four", "c": "four"}
FOUR_GB = (4 * GB + 1024 * 2500 * 4) / 1e9
WORTH = 2.0 / FOUR_GB  # of one use of `four`: seconds to load per GB
CLOCKWORK = "clockwork"


def run(
    policy: dict[str, Any], rows: list[Row], classes: list[int] | None = None, **changes: Any
) -> tuple[Engine, Any]:
    """The engine after the run, and the policy. `classes`: the service class of each request."""
    of = scenario(**{"models": THREE, **changes, "policy": policy})
    asked, made = trace(of, rows), load_policy(of.policy.name, of.policy.parameters)[0]
    if classes is not None:
        asked = dataclasses.replace(asked, service_class=np.array(classes, dtype=np.int32))
    engine = play(of, made, asked)
    assert_laws(engine, len(rows))
    return engine, made


def switches(engine: Engine, *kinds: str) -> list[dict[str, Any]]:
    rows = [dict(zip(SWITCH_COLUMNS, row, strict=True)) for row in engine.world.recorder.switches]
    return [row for row in rows if row["kind"] in kinds]


def names(engine: Engine, kind: str) -> str:
    return " ".join(row["model"] for row in switches(engine, kind))


def dual(**parameters: Any) -> dict[str, Any]:
    return {"name": "greedy-dual", **parameters}


# --- greedy-dual


def test_the_clock_rises_to_the_value_of_the_victim() -> None:
    _, policy = run(dual(), [(0, "a", 10, 10), (10, "b", 10, 10), (20, "c", 10, 10)])
    # `a` and `b` are worth the same, so the older goes; what comes after it begins from where it stood.
    assert list(policy.clock.values()) == [pytest.approx(WORTH)]
    assert [(i.model.name, value) for i, value in policy.value.items()] == [
        ("b", pytest.approx(WORTH)),
        ("c", pytest.approx(2 * WORTH)),
    ]


def test_who_stays_unused_is_overtaken_by_the_clock() -> None:
    # `a` is worth 3 uses. The clock is at 1 when `c` takes the place of `b`, and at 2 when `b` takes that of `c`: both
    # are then worth 3 as well, and `a` is the oldest.
    rows = [(0, "a", 10, 10), (5, "a", 10, 10), (10, "a", 10, 10)]
    rows += [(20.0 + 10 * number, "bc"[number % 2], 10, 10) for number in range(6)]
    engine, _ = run(dual(), rows)
    assert names(engine, "free") == "b c a"


@pytest.mark.parametrize(("rule", "victim"), [("faascache", "b"), ("greedy-dual-size", "a")])
def test_a_frequent_model_outlives_a_recent_one(rule: str, victim: str) -> None:
    rows = [(0, "a", 10, 10), (5, "a", 10, 10), (10, "a", 10, 10), (20, "b", 10, 10), (30, "c", 10, 10)]
    engine, _ = run(dual(rule=rule), rows)
    assert names(engine, "free") == victim


def test_cost_for_size_goes_before_recency() -> None:
    # A GB of `two` (0.72 s) is worth more than one of `four` (0.50 s), though `b` was used last.
    rows = [(0, "a", 10, 10), (10, "b", 10, 10), (20, "c", 10, 10)]
    engine, _ = run(dual(rule="greedy-dual-size"), rows, models={"a": "two", "b": "four", "c": "four"})
    assert names(engine, "free") == "b"


def test_running_work_is_never_stopped() -> None:
    rows = [(0, "a", 10, 900), (0, "b", 10, 900), (5, "c", 10, 10)]
    engine, _ = run(dual(), rows)
    ends_s = columns(engine)["end_s"]
    assert engine.world.recorder.counts["model_preemptions"] == 0
    assert switches(engine, "load")[2]["time_s"] == pytest.approx(min(ends_s[:2]) + 0.25 + 2.0)


def test_a_full_batch_is_a_miss_too() -> None:
    rows = [(0, "a", 10, 500)] * 5
    engine, _ = run(dual(), rows, cluster=nodes(("small", 2)), engine={"max_sequences": 4})
    assert [row["gpu"] for row in switches(engine, "load")] == ["box-1/small-0", "box-1/small-1"]


def test_victims_shed_only_the_layers_that_are_needed() -> None:
    # `a` and `b` leave 0.57 GB; `two` lacks 1.94 GB, which are two layers of `a`, whose value is least.
    rows = [(0, "a", 10, 10), (10, "b", 10, 10), (20, "c", 10, 10), (40, "a", 10, 300)]
    models = {"a": "four", "b": "four", "c": "two"}
    engine, _ = run(dual(granularity="layer"), rows, models=models, engine={"max_sequences": 8, "resize": "elastic"})
    moved = [(row["model"], row["layers"]) for row in switches(engine, "resize") if row["time_s"] < 40]
    assert moved == [("a", 2)]
    assert [row["model"] for row in switches(engine, "free") if row["time_s"] < 40] == []
    # When it is used again it grows back, at the cost of what is now worth least.
    assert ("a", 4) in [(row["model"], row["layers"]) for row in switches(engine, "resize") if row["time_s"] > 40]
    whole, _ = run(dual(), rows[:3], models=models, engine={"max_sequences": 8, "resize": "elastic"})
    assert names(whole, "free") == "a"
    assert not switches(whole, "resize")


@pytest.mark.parametrize(("granularity", "layers", "victims"), [("layer", 1, ""), ("model", 8, "a")])
def test_without_an_elastic_engine_the_newcomer_gets_fewer_layers(granularity: str, layers: int, victims: str) -> None:
    # One layer of `eight` fits beside the others: 256 tokens at 45 ms take 11.5 s; to put out `a` costs its 4 layers,
    # each worth 10 ms a token, and 2.6 s for the tokens: 12.8 s.
    rows = [(0, "a", 10, 10), (10, "b", 10, 10), (20, "c", 10, 10)]
    models = {"a": "four", "b": "four", "c": "eight"}
    engine, _ = run(dual(granularity=granularity), rows, models=models, predictor={"prior_tokens": 256})
    oracle = switches(engine, "load")[2]
    assert (oracle["model"], oracle["layers"], names(engine, "free")) == ("c", layers, victims)


# --- clockwork

WARM: list[Row] = [(0, "a", 10, 1), (0, "b", 10, 1)]


def promised(**limits: float) -> dict[str, Any]:
    return {"service_classes": [{"name": "default", **limits}]}


@pytest.mark.parametrize("prompt", [10, 500])
def test_what_cannot_meet_its_deadline_is_dropped_at_its_latest_start(prompt: int) -> None:
    # The GPU runs one model at a time, so those of `b` wait for the 900 tokens of `a`: it ends after 29 s.
    rows = [*WARM, (20, "a", 10, 900), (21, "b", prompt, 10), (25.5, "b", prompt, 10)]
    engine, _ = run({"name": CLOCKWORK}, rows, **promised(ttft_s=5))
    found = columns(engine)
    assert found["outcome"].tolist() == [COMPLETED] * 3 + [REJECTED, COMPLETED]
    assert found["end_s"][3] == pytest.approx(21 + 5 - 0.005 - prefill_s(4, 4, prompt), abs=1e-9)
    assert found["end_s"][2] > found["end_s"][3]
    assert found["first_token_s"][4] == pytest.approx(found["end_s"][2] + prefill_s(4, 4, prompt), abs=1e-9)


def test_a_promise_of_the_whole_answer_counts_its_tokens() -> None:
    # 200 tokens at 10 ms and a little: with 2 s in all the request is late before it starts; the oracle knows.
    rows = [*WARM, (20, "a", 10, 200), (30, "a", 10, 100)]
    engine, _ = run({"name": CLOCKWORK}, rows, predictor={"kind": "oracle"}, **promised(e2e_s=2.2))
    outcomes = columns(engine)["outcome"].tolist()
    assert outcomes[2:] == [COMPLETED, COMPLETED]
    engine, _ = run({"name": CLOCKWORK}, rows, predictor={"kind": "oracle"}, **promised(e2e_s=2.0))
    assert engine.world.recorder.ended[REJECTED] == 4 - engine.world.recorder.ended[COMPLETED] > 0


def test_nothing_is_dropped_without_a_promise_but_with_slo_s() -> None:
    rows = [*WARM, (20, "a", 10, 900), (21, "b", 10, 10)]
    assert run({"name": CLOCKWORK}, rows)[0].world.recorder.ended[REJECTED] == 0
    assert run({"name": CLOCKWORK, "slo_s": 5}, rows)[0].world.recorder.ended[REJECTED] == 1


def test_the_earliest_latest_start_goes_first() -> None:
    # `b` came first, with a minute to its first token; `c` came later and has 20 s.
    classes = [{"name": "slow", "ttft_s": 60}, {"name": "fast", "ttft_s": 20}]
    rows = [(0, "a", 10, 1), (0, "b", 10, 1), (0, "c", 10, 1)]
    rows += [(20, "a", 10, 900), (21, "b", 10, 100), (22, "c", 10, 100), (23, "a", 10, 100)]
    models = {"a": "two", "b": "two", "c": "two"}
    engine, _ = run({"name": CLOCKWORK}, rows, [0, 0, 0, 0, 0, 1, 0], models=models, service_classes=classes)
    found = columns(engine)
    order = [rows[number][1] for number in found["first_token_s"].argsort()[3:]]
    # The second of `a` may not join the batch: others have the earlier latest start.
    assert order == ["a", "c", "b", "a"]
    for before, after in ((3, 5), (5, 4), (4, 6)):
        assert found["first_token_s"][after] > found["end_s"][before]


def test_the_same_model_joins_the_batch_up_to_its_limit() -> None:
    rows = [(0, "a", 10, 1), *[(20, "a", 10, 100)] * 5]
    engine, _ = run({"name": CLOCKWORK, "max_batch": 2}, rows)
    first_s, ends_s = columns(engine)["first_token_s"][1:], columns(engine)["end_s"][1:]
    running = [sum(1 for s, e in zip(first_s, ends_s, strict=True) if s <= at < e) for at in first_s]
    assert max(running) == 2


def test_the_model_with_the_most_unmet_demand_is_loaded_first() -> None:
    # While `a` is on its way, which takes the link, one request comes for `b` and then three for `c`.
    rows = [(0, "a", 10, 10), (0.1, "b", 10, 10), *[(0.2, "c", 10, 10)] * 3]
    engine, _ = run({"name": CLOCKWORK}, rows, models={"a": "two", "b": "two", "c": "two"})
    assert names(engine, "load") == "a c b"
    times_s = [row["time_s"] for row in switches(engine, "load")]
    assert all(later - before >= 1.8 for before, later in pairwise(times_s)), "one load a link"


def test_demand_is_unmet_where_its_gpus_are_busy_beyond_the_promise() -> None:
    rows: list[Row] = [(0, "a", 10, 10), *[(20 + 0.01 * number, "a", 10, 500) for number in range(16)]]
    spread = {"models": {"a": "four"}, "cluster": nodes(("small", 2)), "engine": {"max_sequences": 2}}
    busy, _ = run({"name": CLOCKWORK, "capacity_s": 1.0}, rows, **spread)
    calm, _ = run({"name": CLOCKWORK, "capacity_s": 1000.0}, rows, **spread)
    assert len(switches(busy, "load")) == 2
    assert len(switches(calm, "load")) == 1


def test_the_least_recently_used_model_is_evicted() -> None:
    rows = [*WARM, (20, "a", 10, 10), (30, "c", 10, 10)]
    engine, _ = run({"name": CLOCKWORK}, rows)
    assert names(engine, "free") == "b"


def test_a_cold_model_is_loaded_for_those_who_come_after() -> None:
    # Nobody can have a token within a second of asking for a model that takes two to load; but it is loaded.
    rows = [(0, "a", 10, 10), (10, "a", 10, 10)]
    engine, _ = run({"name": CLOCKWORK}, rows, **promised(ttft_s=1))
    found = columns(engine)
    assert found["outcome"].tolist() == [REJECTED, COMPLETED]
    assert not math.isnan(found["first_token_s"][1])
