"""What makes alpaserve, serverless-llm and muxserve themselves: where they place, what they move, what they turn away.

Synthetic hardware (scenarios.py): a `small` GPU has 8.59 GB, a `large` one 25.77 GB; `four` takes 4.01 GB with its KV,
`two` 2.51, `eight` 4.26, `giant` 16.04; a load takes 1.5 s and 8 GB/s from host memory or 2 GB/s from disk.
"""

from __future__ import annotations

from itertools import chain, combinations, combinations_with_replacement
from typing import Any

import numpy as np
import pytest

from sim.common.errors import PolicyError
from sim.core.record.recorder import SWITCH_COLUMNS
from sim.core.state.request import COMPLETED, REJECTED
from sim.engine.engine import Engine
from sim.policy import load_policy
from tests.support.laws import assert_laws
from tests.support.scenarios import Row, columns, nodes, play, prefill_s, scenario, trace

GIANTS = {"a": "giant", "b": "giant"}
FOURS = {"a": "four", "b": "four"}


def roomy(models: dict[str, str], **fields: Any) -> list[dict[str, Any]]:
    """Models with more context, or larger KV pools, than the other tests give them."""
    return [
        {"name": name, "model": of, "engine": "quick", "max_context": 1024, **fields} for name, of in models.items()
    ]


def run(
    policy: dict[str, Any], rows: list[Row], placement: dict[str, list[str]] | None = None, **changes: Any
) -> tuple[Engine, Any]:
    """The engine after the run, and the policy; `placement` (GPU -> models) replaces what alpaserve's search finds."""
    of = scenario(**{"models": GIANTS, **changes, "policy": policy})
    made = load_policy(of.policy.name, of.policy.parameters)[0]
    if placement is not None:

        def given(view: Any, queues: Any) -> Any:
            return {gpu: [model for model in view.models if model.name in placement[gpu.name]] for gpu in view.gpus}

        made._search = given  # type: ignore[attr-defined]
    engine = play(of, made, trace(of, rows))
    assert_laws(engine, len(rows))
    return engine, made


def switches(engine: Engine, *kinds: str) -> list[dict[str, Any]]:
    rows = [dict(zip(SWITCH_COLUMNS, row, strict=True)) for row in engine.world.recorder.switches]
    return [row for row in rows if row["kind"] in kinds]


def loaded(engine: Engine) -> list[str]:
    """The models that were loaded, in alphabetical order."""
    return sorted(row["model"] for row in switches(engine, "load"))


def ended(engine: Engine, outcome: int) -> int:
    return int(engine.world.recorder.ended[outcome])


LATE: list[Row] = [(100.0, "a", 10, 1)]

# --- alpaserve


def alpa(**parameters: Any) -> dict[str, Any]:
    return {"name": "alpaserve", "window_s": "never", **parameters}


@pytest.mark.parametrize(
    ("rates", "copies"), [({"a": 0.5, "b": 0.25}, "aab"), ({"a": 0.25, "b": 0.5}, "abb"), ({"a": 9, "b": 0.1}, "aaa")]
)
def test_alpaserve_adds_replicas_to_the_most_unserved_model(rates: dict[str, float], copies: str) -> None:
    # Each large GPU holds one giant, whose KV pool serves one request after the other, 0.37 a second. Goodput is all
    # that counts, so an unpopular model may get none.
    engine, _ = run(alpa(rates=rates), LATE, cluster=nodes(("large", 3)))
    assert "".join(loaded(engine)) == copies


@pytest.mark.parametrize(
    ("rates", "share"),
    [({"a": 1.0, "b": 0.2, "c": 3.0}, 1.0), ({"a": 3.0, "b": 0.3, "c": 1.0}, 0.97)],
)
def test_alpaserve_places_as_well_as_brute_force(rates: dict[str, float], share: float) -> None:
    """Two small GPUs and three models of which two fit on each: no placement serves (much) more when it is played."""
    draws = np.random.default_rng(7)
    rows: list[Row] = []
    for name, rate in rates.items():
        rows += [(float(s), name, 500, 100) for s in 5 + np.cumsum(draws.exponential(1 / rate, int(30 * rate)))]
    rows.sort(key=lambda row: row[0])
    world = {
        "models": roomy({"a": "four", "b": "two", "c": "eight"}, kv_tokens=4096),
        "cluster": nodes(("small", 2)),
        "engine": {"max_sequences": 8},
        "predictor": {"kind": "oracle", "prior_tokens": 100},
        "service_classes": [{"name": "default", "e2e_s": 5}],
    }
    sizes = {"a": 4.05, "b": 2.55, "c": 4.29}
    subsets = chain.from_iterable(combinations("abc", count) for count in range(4))
    groups = [group for group in subsets if sum(sizes[name] for name in group) <= 8.589]
    served = []
    for one, other in combinations_with_replacement(groups, 2):
        placement = {"box-1/small-0": list(one), "box-1/small-1": list(other)}
        served.append(ended(run(alpa(), rows, placement, **world)[0], COMPLETED))
    greedy = ended(run(alpa(rates=rates), rows, **world)[0], COMPLETED)
    assert greedy >= share * max(served)
    assert greedy > 1.1 * sorted(served)[len(served) // 2]


def test_alpaserve_sends_to_the_shortest_queue_and_drops_what_would_be_late() -> None:
    world: dict[str, Any] = {
        "models": {"a": "four"},
        "cluster": nodes(("small", 2)),
        "engine": {"max_sequences": 1},
        "predictor": {"kind": "oracle"},
        "service_classes": [{"name": "default", "e2e_s": 5}],
    }
    # An answer takes 2.03 s, so each of the two GPUs can begin two in time: at 0 and at 2.03 s.
    engine, _ = run(alpa(), [(0, "a", 10, 1), *[(50, "a", 10, 200)] * 9], **world)
    found = columns(engine)
    kept = found["outcome"][1:] == COMPLETED
    assert kept.tolist() == [True] * 4 + [False] * 5
    assert (found["end_s"] - found["arrival_s"])[1:][kept].max() <= 5
    starts_s = np.sort(found["first_token_s"][1:5])
    assert starts_s[1] - starts_s[0] < 0.1 < starts_s[2] - starts_s[1]
    assert (found["end_s"] == found["arrival_s"])[1:][~kept].all(), "dropped when it comes, not when it is late"


def test_alpaserve_without_a_promise_takes_slo_scale_latencies() -> None:
    rows: list[Row] = [(10, "a", 10, 1), *[(50, "a", 10, 200)] * 9]
    world: dict[str, Any] = {"models": {"a": "four"}, "engine": {"max_sequences": 1}, "predictor": {"kind": "oracle"}}
    kept = [ended(run(alpa(slo_scale=scale), rows, **world)[0], COMPLETED) - 1 for scale in (1.5, 3.5, 5.0, None)]
    assert kept[0] == 1
    assert kept[1:] == [3, 4, 9], "a fifth would end 4 ms too late for 5 latencies"


@pytest.mark.parametrize(("window_s", "models"), [("never", ["a"]), (20, ["a", "b"])])
def test_alpaserve_places_anew_for_the_traffic_of_the_last_window(window_s: Any, models: list[str]) -> None:
    rows: list[Row] = [(50.0 + number, "b", 10, 50) for number in range(60)]
    engine, _ = run(
        {"name": "alpaserve", "window_s": window_s, "rates": {"a": 1, "b": 0.5}}, rows, cluster=nodes(("large", 1))
    )
    outcomes = columns(engine)["outcome"]
    assert loaded(engine) == models
    assert set(outcomes[:19].tolist()) == {REJECTED}, "nothing holds `b`"
    assert set(outcomes[30:].tolist()) == ({REJECTED} if window_s == "never" else {COMPLETED})


# --- serverless-llm


def serverless(**parameters: Any) -> dict[str, Any]:
    return {"name": "serverless-llm", "loop_s": 0, **parameters}


def two_nodes(first: str, second: str, gpu: str = "small", count: int = 1) -> dict[str, Any]:
    """Nodes whose host memory holds `all` models at the start, or `none`."""
    machines = [
        {"host": "box", "name": name, "gpus": [{"gpu": gpu, "count": count}], "cache_at_start": cached}
        for name, cached in (("one", first), ("two", second))
    ]
    return {"nodes": machines, "gpu_reserve_gib": 0}


@pytest.mark.parametrize(("first", "second", "node"), [("none", "all", "two"), ("all", "none", "one")])
def test_serverless_starts_where_the_weights_are_in_memory(first: str, second: str, node: str) -> None:
    engine, _ = run(serverless(), [(0, "a", 10, 10)], models={"a": "four"}, cluster=two_nodes(first, second))
    (row,) = switches(engine, "load")
    assert row["gpu"] == f"{node}/small-0"
    assert row["time_s"] == pytest.approx(2.0)


def test_serverless_counts_the_wait_for_a_disk() -> None:
    # Node one has a second free GPU, but its disk is read for `a` for 2 s.
    rows: list[Row] = [(0, "a", 10, 10), (0, "b", 10, 10)]
    engine, _ = run(serverless(), rows, models={"a": "four", "b": "four"}, cluster=two_nodes("none", "none", count=2))
    assert [row["gpu"] for row in switches(engine, "load")] == ["one/small-0", "two/small-0"]


@pytest.mark.parametrize(("parameters", "instances"), [({}, 3), ({"max_instances": 2}, 2), ({"target": 5}, 1)])
def test_serverless_scales_with_the_requests(parameters: dict[str, Any], instances: int) -> None:
    engine, _ = run(
        serverless(**parameters), [(0, "a", 10, 300)] * 5, models={"a": "four"}, cluster=nodes(("small", 6))
    )
    assert len(switches(engine, "load")) == instances


def test_serverless_gives_an_instance_a_whole_gpu_and_takes_it_back_at_once() -> None:
    # Two of `two` would fit together.
    rows: list[Row] = [(0, "a", 10, 100), (1, "b", 10, 100)]
    engine, _ = run(serverless(), rows, models={"a": "two", "b": "two"})
    end_s = columns(engine)["end_s"][0]
    assert switches(engine, "free")[0]["time_s"] == pytest.approx(end_s)
    assert switches(engine, "load")[1]["time_s"] == pytest.approx(end_s + 0.25 + 1.8125)


def test_serverless_looks_at_its_line_once_a_loop() -> None:
    rows: list[Row] = [(0, "a", 10, 10), (0.25, "b", 10, 10)]
    engine, _ = run(serverless(loop_s=1.0), rows, models={"a": "four", "b": "four"}, cluster=nodes(("small", 2)))
    assert [row["time_s"] for row in switches(engine, "load")] == pytest.approx([2.0, 3.0])


# `v` runs on the large GPU of node one. `u`, a giant, is in host memory there alone: 3.5 s from there, 9.5 s from the
# disk of node two, whose GPU is free. To move `v` there takes 2.0 s, and 0.1 s + alpha x tokens to resume.
MIGRATION: dict[str, Any] = {
    "models": roomy({"v": "four", "u": "giant"}, max_context=2048),
    "cluster": two_nodes("all", "none", "large"),
}
THRESHOLD = 9.5 - 3.5 - 2.0 - 0.1


def migrating(alpha: float) -> Engine:
    # Two of `v` at first, so that node two has its weights; then one alone, with a long prompt.
    rows: list[Row] = [(0, "v", 10, 10), (0, "v", 10, 10), (50, "v", 601, 1300), (60, "u", 10, 10)]
    return run(serverless(target=1, alpha=alpha), rows, **MIGRATION)[0]


def tokens_at_60() -> int:
    """Of `v` when `u` comes: what a run without migration has produced by then."""
    seen: list[int] = []
    of = scenario(**MIGRATION, policy=serverless(target=1, migration=False))
    made = load_policy("serverless-llm", of.policy.parameters)[0]
    decide = made.decide

    def watched(view: Any) -> Any:
        if view.now_s == 60.0:
            seen.append(sum(r.context_tokens for i in view.instances for r in i.running))
        return decide(view)

    made.decide = watched  # type: ignore[method-assign]
    play(of, made, trace(of, [(0, "v", 10, 10), (0, "v", 10, 10), (50, "v", 601, 1300), (60, "u", 10, 10)]))
    return seen[0]


def test_serverless_migrates_exactly_when_the_formula_says_that_it_is_sooner() -> None:
    tokens = tokens_at_60()
    assert tokens > 601 + 300
    engine = migrating(THRESHOLD / tokens * 0.999)
    found = columns(engine)
    assert [(row["model"], row["gpu"]) for row in switches(engine, "load")[2:]] == [
        ("v", "one/large-0"),
        ("v", "two/large-0"),
        ("u", "one/large-0"),
    ]
    # `v` served on until its new instance was up after 2 s, lost its KV, and computed its tokens again over there. The
    # large GPU has room for `u` while `v` still leaves.
    assert switches(engine, "load")[3]["time_s"] == pytest.approx(62.0)
    assert found["model_preemptions"].tolist() == [0, 0, 1, 0]
    assert found["recompute_s"][2] > prefill_s(4, 4, 601 + 300)
    assert switches(engine, "load")[4]["time_s"] == pytest.approx(62.0 + 3.5)
    assert found["produced_tokens"].tolist() == [10, 10, 1300, 10]


def test_serverless_takes_the_disk_when_the_formula_says_that_it_is_sooner() -> None:
    engine = migrating(THRESHOLD / tokens_at_60() * 1.001)
    assert [(row["model"], row["gpu"]) for row in switches(engine, "load")[3:]] == [("u", "two/large-0")]
    assert columns(engine)["model_preemptions"].sum() == 0


def test_serverless_refuses_to_keep_for_ever_what_others_need() -> None:
    with pytest.raises(PolicyError, match="keep_alive: never leaves models without a GPU for ever; set reclaim: true"):
        run(serverless(keep_alive="never"), [(0, "a", 10, 10)])
    engine, _ = run(serverless(keep_alive="never", reclaim=True), [(0, "a", 10, 10), (50, "b", 10, 10)], models=FOURS)
    assert ended(engine, COMPLETED) == 2


# --- muxserve


def mux(**parameters: Any) -> dict[str, Any]:
    return {"name": "muxserve", **parameters}


def test_muxserve_takes_prefills_in_turn() -> None:
    # Ten of `a`, then ten of `b`, each prompt a batch of its own: the GPU alternates, one prompt at a time.
    rows: list[Row] = [(50, "a", 1000, 20)] * 8 + [(50.001, "b", 1000, 20)] * 8
    engine, _ = run(mux(prefill_tokens=1), rows, models=FOURS, engine={"max_sequences": 8})
    first_s = columns(engine)["first_token_s"]
    order = [rows[number][1] for number in first_s.argsort(kind="stable")]
    assert "".join(order) == "ab" * 8
    assert np.diff(np.sort(first_s)).min() >= prefill_s(4, 4, 1000) - 1e-9


def test_muxserve_batches_prompts_up_to_their_tokens() -> None:
    rows: list[Row] = [(50, "a", 900, 5)] * 4
    engine, _ = run(mux(prefill_tokens=2048), rows, models=FOURS, engine={"max_sequences": 8})
    first_s = columns(engine)["first_token_s"]
    assert first_s[0] == first_s[1] < first_s[2] == first_s[3]


def test_muxserve_divides_kv_memory_by_rate_and_bytes_of_a_token() -> None:
    _, policy = run(mux(rates={"a": 3, "b": 1}), LATE, models=FOURS)
    quota = {instance.model.name: size for instance, size in policy.quota.items()}
    pools = {instance.model.name: instance.kv_tokens for instance in policy.quota}
    least = 1024 * 10_000  # bytes of the pool that everybody gets
    assert (2 * quota["a"] - least) / (2 * quota["b"] - least) == pytest.approx(3, rel=0.01)
    assert pools["a"] * 10_000 == pytest.approx(2 * quota["a"], rel=1e-3)


def test_muxserve_moves_quota_to_who_needs_it() -> None:
    # Both begin with quotas for 5 sequences of 1,000 tokens, and pools for 25; `a` alone has something to do.
    world: dict[str, Any] = {"models": FOURS, "engine": {"max_sequences": 8}}
    setting = {"sequence_tokens": 1000.0, "headroom": 5.0}
    rows: list[Row] = [(0.0, "a", 900, 100)] * 150
    _, policy = run(mux(**setting), LATE, **world)
    before = {instance.model.name: size for instance, size in policy.quota.items()}
    engine, policy = run(mux(**setting), rows, **world)
    after = {instance.model.name: size for instance, size in policy.quota.items()}
    assert before["a"] == pytest.approx(before["b"], rel=0.01)
    assert after["a"] > 1.1 * before["a"]
    assert after["a"] + after["b"] == pytest.approx(before["a"] + before["b"])
    assert after["b"] >= 0.05 * before["b"] * 0.99, "who gives keeps what it uses and 5 %"
    found = columns(engine)
    first_s, end_s = found["first_token_s"], found["end_s"]
    at_once = [int(((first_s <= at) & (at < end_s)).sum()) for at in first_s.tolist()]
    assert max(at_once[:20]) == 5 < max(at_once)


def test_muxserve_keeps_a_model_within_its_quota() -> None:
    world: dict[str, Any] = {"models": FOURS, "engine": {"max_sequences": 8}}
    rows: list[Row] = [(50, "a", 500, 200)] * 8
    engine, policy = run(mux(sequence_tokens=700.0, headroom=20.0, adapt_s=1e6), rows, **world)
    limit = int(next(iter(policy.quota.values())) / (700 * 10_000))
    found = columns(engine)
    at_once = [
        int(((found["first_token_s"] <= at) & (at < found["end_s"])).sum()) for at in found["first_token_s"].tolist()
    ]
    assert max(at_once) == limit < 8


def test_muxserve_places_each_where_throughput_rises_most() -> None:
    # Two busy models that one GPU could hold go to two GPUs; copies are made while there are GPUs for them.
    engine, _ = run(mux(rates={"a": 5, "b": 5}, copies=1), LATE, models=FOURS, cluster=nodes(("small", 2)))
    assert sorted((row["model"], row["gpu"]) for row in switches(engine, "load")) == [
        ("a", "box-1/small-0"),
        ("b", "box-1/small-1"),
    ]
    engine, _ = run(mux(), LATE, models=FOURS, cluster=nodes(("small", 4)))
    assert "".join(loaded(engine)) == "aabb"


@pytest.mark.parametrize(("partial", "completed"), [(True, 2), (False, 1)])
def test_muxserve_gives_what_is_left_to_who_fits_nowhere_whole(partial: bool, completed: int) -> None:
    rows: list[Row] = [(50, "a", 10, 10), (50, "b", 10, 10)]
    engine, _ = run(mux(partial=partial), rows, models={"a": "four", "b": "giant"})
    assert [(row["model"], row["layers"]) for row in switches(engine, "load")] == [("a", 4), ("b", 4)][:completed]
    assert (ended(engine, COMPLETED), ended(engine, REJECTED)) == (completed, 2 - completed)


@pytest.mark.parametrize("policy", ["alpaserve", "muxserve"])
def test_rates_of_unknown_models_are_one_clear_line(policy: str) -> None:
    with pytest.raises(PolicyError, match="rates: no model 'aa'; did you mean 'a'") as caught:
        run({"name": policy, "rates": {"aa": 1.0}}, LATE)
    assert "\n" not in str(caught.value)
    with pytest.raises(PolicyError, match="rates: a must be"):
        run({"name": policy, "rates": {"a": -1.0}}, LATE)
