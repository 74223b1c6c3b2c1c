"""What makes each production policy itself: its victims, its queues, its timers, on machines with round numbers.

Synthetic hardware (scenarios.py): one `small` GPU of 8.59 GB unless a test says more; `four` takes 4.01 GB with its KV,
`two` 2.51, `eight` 4.26, `giant` 16.04; a load takes 1.5 s and 8 GB/s, a token 10 ms.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from sim.core.state.request import COMPLETED
from sim.scenario.scenario import ModelSpec
from tests.support.production_cases import ROUND, TWOS, freed, in_order, loads, reasons, run, served, steady, switches
from tests.support.scenarios import GB, Row, columns, nodes

# --- llama-swap


def test_llama_swap_serves_a_round_model_by_model() -> None:
    engine = run("llama-swap", ROUND)
    assert served(engine, ROUND) == "a a b b c c"
    assert loads(engine) == "a b c"


def test_llama_swap_takes_the_queue_by_priority() -> None:
    assert served(run({"name": "llama-swap", "priorities": {"c": 1}}, ROUND), ROUND) == "a a c c b b"


@pytest.mark.parametrize("persistent", [True, False])
def test_llama_swap_never_evicts_a_persistent_group(persistent: bool) -> None:
    groups = {"kept": {"members": ["a"], "exclusive": False, "persistent": persistent}}
    rows: list[Row] = [(10.0 * number, model, 10, 20) for number, model in enumerate("abcbcb")]
    engine = run({"name": "llama-swap", "groups": groups}, rows)
    assert ("a" in freed(engine)) is not persistent
    assert loads(engine) == "a b c b c b"


def test_llama_swap_keeps_a_group_together_that_does_not_swap() -> None:
    groups = {"all": {"members": ["a", "b"], "swap": False}}
    assert freed(run({"name": "llama-swap", "groups": groups}, ROUND)) == "a b"  # for c, which is in no group


def test_llama_swap_refuses_more_in_flight_than_its_limit() -> None:
    engine = run({"name": "llama-swap", "concurrency_limit": 2}, [(0.1 * n, "a", 10, 200) for n in range(5)])
    assert len(reasons(engine)) == 3
    assert reasons(engine)[0].startswith("too many requests (429)")


def test_llama_swap_unloads_after_its_ttl_and_sleeps_till_then() -> None:
    rows: list[Row] = [(0, "a", 10, 20), (3, "b", 10, 20), (8e4, "a", 10, 20)]
    engine = run({"name": "llama-swap", "ttl_s": 100, "ttl_by_model": {"a": 7}}, rows)
    row = switches(engine, "free")[1]
    assert row["time_s"] == pytest.approx(columns(engine)["end_s"][1] + 100, abs=1e-6)
    assert engine.clock.events < 60


# --- its matrix

SETS = {"one": "a & c", "two": "b & c", "both": "a & b"}


@pytest.mark.parametrize(
    ("policy", "victim"),
    [
        ({"sets": SETS}, "b"),  # equal costs: the first set that is written
        ({"sets": SETS, "evict_costs": {"b": 5}}, "a"),
        ({"sets": SETS, "evict_costs": {"a": 5}}, "b"),
        ({"sets": {"two": SETS["two"], "one": SETS["one"], "both": SETS["both"]}}, "a"),
        ({"sets": {"all": "(a | b) & c", "both": "a & b"}}, "b"),
        ({"sets": {"all": "(b | a) & +last", "last": "c", "both": "a & b"}}, "a"),
        ({"sets": {"both": "a & b"}}, "a b"),  # c is in no set: alone
        ({"sets": {"all": "a & b & c"}}, ""),
        ({}, ""),  # all three fit
    ],
)
def test_the_matrix_takes_the_cheapest_set(policy: dict[str, Any], victim: str) -> None:
    rows: list[Row] = [(0, "a", 10, 20), (10, "b", 10, 20), (20, "c", 10, 20)]
    assert freed(run({"name": "llama-swap-matrix", **policy}, rows, models=TWOS)) == victim


def test_the_automatic_matrix_evicts_what_is_cheapest_to_load_again() -> None:
    # Either makes room; `a` is smaller, though it was used last.
    rows: list[Row] = [(0, "b", 10, 20), (10, "a", 10, 20), (20, "c", 10, 20)]
    of = {"a": "two", "b": "eight", "c": "four"}
    assert freed(run("llama-swap-matrix", rows, models=of)) == "a"
    assert freed(run("lru-swap", rows, models=of)) == "b"
    assert freed(run({"name": "llama-swap-matrix", "evict_costs": {"a": 99}}, rows, models=of)) == "b"


# --- Ollama


def test_ollama_evicts_by_name_among_equal_idle_models() -> None:
    rows: list[Row] = [(0, "zeta", 10, 20), (10, "alpha", 10, 20), (20, "new", 10, 20)]
    of = {"new": "four", "zeta": "two", "alpha": "two"}
    assert freed(run("ollama", rows, models=of)) == "alpha"  # used last
    by_model = {"zeta": 200.0}
    assert freed(run({"name": "ollama", "keep_alive_by_model": by_model}, rows, models=of)) == "zeta"
    assert freed(run({"name": "ollama", "keep_alive_by_model": {"alpha": -1}}, rows, models=of)) == "zeta"


@pytest.mark.parametrize("resurrect", [True, False])
def test_ollama_starves_a_load_behind_a_busy_victim_unless_repaired(resurrect: bool) -> None:
    rows = in_order(*steady("a", 60.0), (5.2, "b", 10, 20))
    engine = run({"name": "ollama", "num_parallel": 8, "resurrect": resurrect}, rows)
    waited_s = columns(engine)["first_token_s"][[row[1] for row in rows].index("b")] - 5.2
    assert waited_s > 50 if resurrect else waited_s < 5


def test_ollama_waits_out_a_keep_alive_that_requests_renew() -> None:
    rows = in_order(*steady("a", 10.0), (5.2, "b", 10, 20), (5.3, "a", 10, 300))
    engine = run({"name": "ollama", "num_parallel": 8, "keep_alive_s": 40, "renew": True}, rows)
    end_s = max(columns(engine)["end_s"][[row[1] == "a" for row in rows]])
    assert switches(engine, "free")[0]["time_s"] == pytest.approx(end_s + 40, abs=1e-6)


def test_ollama_loads_a_part_only_when_nothing_else_is_loaded() -> None:
    engine = run("ollama", [(0, "a", 10, 20), (10, "d", 10, 20), (20, "a", 10, 20)], models={"a": "four", "d": "giant"})
    assert [(row["model"], row["layers"]) for row in switches(engine, "load")] == [("a", 4), ("d", 8), ("a", 4)]
    assert freed(engine) == "a d"


def test_ollama_fills_at_most_80_percent_of_what_is_free() -> None:
    rows: list[Row] = [(0, "a", 10, 20), (10, "b", 10, 20)]  # 4.01 GB beside 4.01 of 8.59
    assert freed(run("ollama", rows)) == "a"
    assert freed(run({"name": "ollama", "fill": 0.9}, rows)) == ""


def test_ollama_holds_up_a_load_that_fits_behind_one_that_does_not() -> None:
    of = {"a": "four", "b": "four", "c": "two"}
    others = [(0, "a", 10, 900), (3, "b", 10, 20)]  # `a` is busy until 11 s, and `b` has to wait for it
    with_b = columns(run("ollama", [*others, (4, "c", 10, 20)], models=of))["first_token_s"]
    without = columns(run("ollama", [others[0], (4, "c", 10, 20)], models=of))["first_token_s"]
    assert without[1] < 8
    assert with_b[2] > with_b[1] > 11


def test_ollama_runs_one_at_a_time_and_refuses_beyond_its_queue() -> None:
    engine = run({"name": "ollama", "max_queue": 2}, [(0, "a", 10, 900), *[(3 + n, "b", 10, 20) for n in range(5)]])
    assert reasons(engine) == ["server busy, please try again; maximum pending requests exceeded"] * 2
    first_s = columns(run("ollama", [(0, "a", 10, 100), (0, "a", 10, 100)]))["first_token_s"]
    assert first_s[1] - first_s[0] > 1.0


def test_ollama_keeps_at_most_three_models_a_gpu() -> None:
    of = dict.fromkeys("abcd", "two")
    rows: list[Row] = [(10.0 * number, model, 10, 20) for number, model in enumerate("abcd")]
    changes = {"models": of, "cluster": nodes(("large", 1))}
    assert freed(run("ollama", rows, **changes)) == "a"
    assert freed(run({"name": "ollama", "max_loaded": 4}, rows, **changes)) == ""


# --- llama.cpp's router


def test_the_router_evicts_by_count_the_one_asked_for_longest_ago() -> None:
    rows: list[Row] = [(0, "a", 10, 20), (5, "b", 10, 20), (10, "a", 10, 20), (15, "c", 10, 20)]
    assert freed(run({"name": "llama-cpp-router", "models_max": 2}, rows, models=TWOS)) == "b"
    assert freed(run("llama-cpp-router", rows, models=TWOS)) == ""


@pytest.mark.parametrize("skip_active", [True, False])
def test_the_router_evicts_a_busy_model_unless_told(skip_active: bool) -> None:
    policy = {"name": "llama-cpp-router", "models_max": 1, "skip_active": skip_active}
    engine = run(policy, [(0, "a", 10, 900), (5, "b", 10, 20)], models=TWOS)
    assert reasons(engine) == ([] if skip_active else ["its model was unloaded while it was served"])
    assert bool(columns(engine)["first_token_s"][1] > 11) is skip_active


def test_the_router_fits_layers_into_what_is_free_at_the_load() -> None:
    of = {"a": "four", "b": "eight", "c": "giant"}
    rows: list[Row] = [(0, "a", 10, 20), (10, "b", 10, 20), (20, "c", 10, 20), (30, "b", 10, 20)]
    engine = run("llama-cpp-router", rows, models=of)
    # 1 GiB stays free: 3.5 GB for `eight` (0.5 GB a layer), and next to nothing for `giant`.
    assert [row["layers"] for row in switches(engine, "load")] == [4, 6, 0]
    assert freed(engine) == ""


def test_the_router_shrinks_a_pool_before_it_drops_layers() -> None:
    model = {"name": "a", "model": "four", "engine": "quick", "max_context": 1024, "kv_tokens": 400_000}  # 4 GB of KV
    engine = run("llama-cpp-router", [(0, "a", 10, 20)], models=[ModelSpec(**model).model_dump()])
    (instance,) = engine.world.cluster.instances.values()
    assert instance.residency.layers == 4
    assert 4096 < instance.blocks.total * instance.blocks.tokens < 400_000
    assert instance.placement.first.capacity_bytes - instance.gpu_bytes == pytest.approx(2**30, abs=10_000 * 256)


# --- LM Studio


def test_lm_studio_keeps_one_model_and_waits_for_it() -> None:
    engine = run("lm-studio", ROUND, models=TWOS)
    assert served(engine, ROUND) == "a b c a b c"  # in order of arrival, though all three would fit
    assert loads(engine) == "a b c a b c"
    assert engine.world.recorder.counts["model_preemptions"] == 0
    assert loads(run({"name": "lm-studio", "auto_evict": False}, ROUND, models=TWOS)) == "a b c"


def test_lm_studio_may_cut_answers_off() -> None:
    engine = run({"name": "lm-studio", "interrupt": True}, [(0, "a", 10, 900), (5, "b", 10, 20)])
    assert reasons(engine) == ["its model was unloaded while it answered"]
    assert columns(engine)["first_token_s"][1] < 10


def test_lm_studio_never_evicts_what_was_loaded_by_hand() -> None:
    engine = run({"name": "lm-studio", "manual": ["b"], "ttl_s": 5}, [*ROUND, (100, "a", 10, 20)])
    assert loads(engine).startswith("b a c")
    assert "b" not in freed(engine)
    assert freed(engine).split().count("a") == 2  # once for `c`, once after its time to live


# --- Lemonade


@pytest.mark.parametrize(("weights", "victim"), [({}, "a"), ({"a": 10.0}, "b"), ({"a": 10.0, "b": 10.0}, "a")])
def test_lemonade_evicts_by_idle_time_over_reload_time(weights: dict[str, float], victim: str) -> None:
    rows: list[Row] = [(0, "a", 10, 20), (10, "b", 10, 20), (20, "c", 10, 20)]
    policy = {"name": "lemonade", "threshold": 1.0, "weights": weights}
    assert freed(run(policy, rows, models={"a": "two", "b": "eight", "c": "four"})) == victim


def test_lemonade_weighs_reload_time_against_idle_time() -> None:
    # `b` has been idle a little longer, but reading it from disk took 2.1 s, and `a` 1.3 s.
    rows: list[Row] = [(0, "b", 10, 20), (5.0, "a", 10, 20), (40, "c", 10, 20)]
    changes = {"models": {"a": "two", "b": "eight", "c": "four"}, "cluster": nodes(("small", 1), cache_at_start="none")}
    assert freed(run({"name": "lemonade", "threshold": 1.0}, rows, **changes)) == "a"
    assert freed(run("lru-swap", rows, **changes)) == "b"


def test_lemonade_unloads_in_its_passes() -> None:
    engine = run("lemonade", [(0.3, "a", 10, 20), (8e4, "a", 10, 20)])
    end_s = columns(engine)["end_s"][0]
    assert switches(engine, "free")[0]["time_s"] == pytest.approx(5 * math.ceil((end_s + 300) / 5), abs=1e-6)
    assert engine.clock.events < 60
    # One that fills the GPU beyond the threshold goes in the next pass, and never while it is in use or pinned.
    big = run("lemonade", [(0.3, "a", 10, 900), (100, "a", 10, 1)], models={"a": "giant"})
    assert switches(big, "free")[0]["time_s"] == pytest.approx(5 * math.ceil(columns(big)["end_s"][0] / 5))
    assert freed(run({"name": "lemonade", "pinned": ["a"]}, [(0.3, "a", 10, 9), (900, "a", 10, 1)])) == ""


# --- ModelMesh


def test_modelmesh_refuses_to_churn() -> None:
    rows: list[Row] = [(0, "a", 10, 20), (10, "b", 10, 20), (20, "c", 10, 20), (630, "c", 10, 20)]
    engine = run("modelmesh", rows)
    assert len(reasons(engine)) == 1
    assert reasons(engine)[0].startswith("cache churn threshold exceeded")
    assert freed(engine) == "a"  # by 630 s it is 600 s old
    assert not reasons(run({"name": "modelmesh", "min_churn_age_s": 5}, rows))


@pytest.mark.parametrize(("again_s", "copies"), [(300, 1), (500, 2), (3000, 1)])
def test_modelmesh_makes_a_second_copy_of_what_is_used_regularly(again_s: float, copies: int) -> None:
    changes = {"cluster": nodes(("small", 2))}
    engine = run("modelmesh", [(0, "a", 10, 20), (again_s, "a", 10, 20), (3600, "b", 10, 1)], **changes)
    assert loads(engine).count("a") == copies


def test_modelmesh_scales_a_model_with_its_rate() -> None:
    rows: list[Row] = [(0.5 * n, "a", 10, 5) for n in range(60)]
    engine = run({"name": "modelmesh", "scale_up_rpm": 30}, rows, cluster=nodes(("small", 3)))
    assert loads(engine).count("a") > 1
    assert loads(run("modelmesh", rows, cluster=nodes(("small", 3)))) == "a"


# --- vLLM

SLEEPS = {"resize": "sleep", "max_sequences": 8}


def wake_s(level: int, **host: Any) -> float:
    rows: list[Row] = [(0, "a", 10, 20), (20, "b", 10, 20), (40, "a", 10, 20)]
    changes = {"models": {"a": "four", "b": "eight"}, "engine": SLEEPS}
    cluster = nodes(("small", 1), **host)
    cluster["gpu_reserve_gib"] = 1
    engine = run({"name": "vllm-sleep", "level": level}, rows, cluster=cluster, **changes)
    (row,) = switches(engine, "wake")
    return float(row["reload_s"])


def test_vllm_wakes_faster_from_host_memory_than_from_disk() -> None:
    # Fixed 0.125 s; 4 GB at 8 GB/s from host memory, at 2 GB/s from disk.
    assert wake_s(1) == pytest.approx(0.625)
    assert wake_s(2) == pytest.approx(0.625)  # the page cache still has them
    assert wake_s(2, weight_cache_gib=5 * GB / 2**30) == pytest.approx(2.125)


def test_vllm_stops_who_slept_longest_when_host_memory_runs_out() -> None:
    rows: list[Row] = [(20.0 * n, model, 10, 20) for n, model in enumerate("abca")]
    cluster = nodes(("small", 1), memory_gib=9 * GB / 2**30)
    cluster["gpu_reserve_gib"] = 3
    of = {"a": "four", "b": "eight", "c": "two"}  # 10.8 GB of weights
    engine = run("vllm-sleep", rows, models=of, cluster=cluster, engine=SLEEPS)
    assert loads(engine) == "a b c a"
    assert not switches(engine, "wake")
    cluster["nodes"][0]["memory_gib"] = 12 * GB / 2**30
    assert len(switches(run("vllm-sleep", rows, models=of, cluster=cluster, engine=SLEEPS), "wake")) == 1


def test_vllm_without_sleep_mode_starts_again() -> None:
    rows: list[Row] = [(10.0 * n, model, 10, 20) for n, model in enumerate("abca")]
    assert loads(run("vllm-sleep", rows)) == "a b c a"
    assert loads(run("vllm-sleep", rows, engine=SLEEPS)) == "a b c"


# --- turn hold


@pytest.mark.parametrize(("policy", "after_s"), [({}, 10.0), ({"hold_s": 3.0}, 3.0), ({"hold_s": 0.0}, 2.0)])
def test_turn_hold_keeps_a_model_between_turns(policy: dict[str, Any], after_s: float) -> None:
    # `a` ends at about 1.8 s, `b` runs for long; `c` comes 2 s after the end of `a`.
    alone = run("turn-hold", [(0, "a", 10, 20), (0, "b", 10, 999)])
    end_s = float(columns(alone)["end_s"][0])
    engine = run({"name": "turn-hold", **policy}, [(0, "a", 10, 20), (0, "b", 10, 999), (end_s + 2, "c", 10, 20)])
    assert switches(engine, "free")[0]["model"] == "a"
    assert switches(engine, "free")[0]["time_s"] == pytest.approx(end_s + after_s)


def test_patience_overrides_the_hold() -> None:
    rows: list[Row] = [(0, "a", 10, 20), (0, "b", 10, 999), (5, "c", 10, 20)]
    for policy in ({"patience_s": 2.0}, {"patience_by_class": {"default": 2.0}}):
        engine = run({"name": "turn-hold", **policy}, rows)
        assert switches(engine, "free")[0]["time_s"] == pytest.approx(7.0)
        assert columns(engine)["outcome"].tolist() == [COMPLETED] * 3
