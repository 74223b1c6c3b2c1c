"""Bounds against simulations that nobody tuned to them, against theory, and against brute force where it can be had."""

from __future__ import annotations

import json
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.bounds.alone import alone_of
from sim.bounds.curves import decode_chains
from sim.bounds.demand import requests_of
from sim.bounds.fluid import FluidBound, fluid_capacity, fluid_of
from sim.bounds.machines import BoundMachines, decode_seconds
from sim.bounds.packing import best_packing
from sim.bounds.pooled import mean_bound, srpt_mean_s
from sim.bounds.program import Options, limits
from sim.bounds.together import bounds_of
from sim.cli.main import main
from sim.common.errors import SimError
from sim.conformance import hardware
from sim.core.state.request import COMPLETED
from sim.engine.engine import simulate
from sim.policy import Policy, load_policy
from sim.results.summary import summarize
from sim.scenario.scenario import Scenario, load_scenario
from sim.workload.requests import workload_of
from tests.support.fuzzing.random_cases import Seeded, random_case
from tests.support.fuzzing.random_policy import RandomPolicy
from tests.support.places import ROOT
from tests.support.scenarios import (
    FREE_OF_COST,
    Row,
    Script,
    columns,
    load_all,
    nodes,
    play,
    scenario,
    serve_all,
    trace,
    write_profiles,
)

NAMES = ("lru-swap", "exclusive-swap", "least-loaded", "static-split", "residency-aware", "random")


def drawn(draws: Seeded) -> Policy:
    name = draws.pick(NAMES)
    if name != "random":
        return load_policy(name)[0]
    return RandomPolicy(RandomPolicy.Parameters(stream=draws.number(0, 999), calm_s=5.0, rejects=False))


# --- no run passes them


@pytest.mark.parametrize("seed", range(60))
def test_no_run_passes_a_bound(seed: int) -> None:
    # Random machines, models, engines, links, requests and policies; half of them come all at once, four times over.
    draws = Seeded(seed)
    of, rows = random_case(draws)
    if draws.pick((True, False)):
        rows = [(0.0, *row[1:]) for row in rows * 4]
    engine = play(of, drawn(draws), trace(of, rows), check=False)
    ended = columns(engine)
    done = ended["outcome"] == COMPLETED
    if not done.any():
        return
    machines = BoundMachines(of)
    requests = requests_of(machines, workload_of(trace(of, rows).select(done)))
    assert len(requests) == done.sum()
    alone, fluid = alone_of(machines, requests), fluid_of(machines, requests)
    e2e_s = (ended["end_s"] - ended["arrival_s"])[done]
    ttft_s = (ended["first_token_s"] - ended["arrival_s"])[done]
    assert (e2e_s >= alone.e2e_s * (1 - 1e-9)).all()
    assert (ttft_s >= alone.ttft_s * (1 - 1e-9)).all()
    assert ended["end_s"][done].max() - requests.arrival_s[0] >= fluid.least_span_s * (1 - 1e-9)
    assert e2e_s.mean() >= mean_bound(alone, fluid.each_s).e2e_s * (1 - 1e-9)
    assert fluid.each_s.sum() == pytest.approx(fluid.least_span_s)
    assert (fluid.each_s >= -1e-12).all()


@pytest.mark.parametrize("name", ["lru-swap", "residency-aware", "least-loaded", "zero-switch-cost"])
@pytest.mark.parametrize("which", ["desktop", "street-crossing"])
def test_no_policy_sustains_more_than_the_fluid_bound(name: str, which: str) -> None:
    # A bundled scenario at many times its load: what is completed per second stays below the bound.
    settings = [f"policy={{name: {name}}}", "horizon_s=150"]
    if which == "desktop":
        settings.append("workload.time_scale=50")
    of = load_scenario(ROOT / "traces" / "scenarios" / f"{which}.yaml", settings)
    if which == "street-crossing":
        of = of.model_copy(update={"workload": of.workload.model_copy(update={"duration_s": 60.0}), "horizon_s": 60.0})
    run = simulate(of)
    rows = columns_of(run)
    done = rows["outcome"] == COMPLETED
    assert done.sum() > 20
    machines = BoundMachines(of)
    played = requests_of(machines, workload_of(played_trace(of, rows, done)))
    fluid = fluid_of(machines, played)
    assert fluid.least_span_s <= rows["end_s"][done].max() - played.arrival_s[0]


def columns_of(run: Any) -> dict[str, Any]:
    found = {name: np.array(values) for name, values in run.recorder.columns.items()}
    order = np.argsort(found["request"], kind="stable")
    return {name: values[order] for name, values in found.items()}


def played_trace(of: Scenario, rows: dict[str, Any], done: Any) -> Any:
    names = [model.name for model in of.models]
    names_of = ("arrival_s", "model", "prompt_tokens", "output_tokens")
    picked = zip(*(rows[name][done].tolist() for name in names_of), strict=True)
    return trace(of, [(arrival_s, names[model], prompt, output) for arrival_s, model, prompt, output in picked])


# --- theory


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Tables by hand: a token takes 10 ms, 1 ms more for each further sequence; a prompt 10 ms; the CPU is no use."""
    monkeypatch.setattr(
        hardware, "step_s", lambda layers, of, batch, context: 0.010 + 0.001 * (batch - 1) + 1e4 * (layers < of)
    )
    monkeypatch.setattr(hardware, "prefill_s", lambda layers, of, tokens: 0.010 + 1e4 * (layers < of))
    return str(write_profiles(tmp_path / "plain", switch=FREE_OF_COST))


def by_hand(profiles: str, rows: list[Row], **changes: Any) -> FluidBound:
    of = scenario(**{"profiles": profiles, "engine": {"max_sequences": 1}, **changes})
    return fluid_capacity(of, workload_of(trace(of, rows)))


ROWS: list[Row] = [(float(second), "a", 1, 100) for second in range(11)]


def test_one_at_a_time_the_capacity_is_one_over_the_service_time(plain: str) -> None:
    # M/D/1: 10 ms for the prompt and its token, 99 tokens of 10 ms; 1.1 requests a second are offered over 10 s.
    fluid = by_hand(plain, ROWS)
    assert fluid.requests_per_s == pytest.approx(1.0, rel=1e-4)
    assert fluid.load_factor == pytest.approx(10 / 11, rel=1e-4)
    assert fluid.least_span_s == pytest.approx(11.0, rel=1e-4)
    assert fluid.each_s == pytest.approx(np.full(11, 1.0), rel=1e-4)
    assert fluid.prices["small in box"] == pytest.approx(1.0, abs=1e-3)
    assert fluid.model_shares == {"a": pytest.approx(1.0)}


def test_a_full_batch_is_what_decides(plain: str) -> None:
    # Eight sequences: a step of 17 ms for 8 tokens; each prompt adds nothing but its part of an iteration of 10 ms.
    fluid = by_hand(plain, ROWS, engine={"max_sequences": 8})
    assert 1 / fluid.requests_per_s == pytest.approx(99 * 0.017 / 8 + 0.010 / 8, rel=1e-4)


def test_equal_gpus_are_counted(plain: str) -> None:
    one = by_hand(plain, ROWS)
    many = by_hand(
        plain, ROWS, cluster={"nodes": [{"host": "box", "count": 150, "gpus": [{"gpu": "small", "count": 2}]}]}
    )
    assert many.requests_per_s == pytest.approx(300 * one.requests_per_s, rel=1e-3)
    assert len(many.utilisation) == 2


def test_a_simulation_comes_close_to_the_capacity(plain: str) -> None:
    # The bound is no idle one: 300 requests at once on a loaded instance take what it says, but for the last batch.
    of = scenario(profiles=plain, engine={"max_sequences": 8}, models={"a": "four"})
    rows: list[Row] = [(10.0, "a", 1, 100)] * 320
    ended = columns(play(of, Script(serve_all, load_all), trace(of, rows), check=False))
    fluid = fluid_capacity(of, workload_of(trace(of, rows)))
    assert 1.0 <= (ended["end_s"].max() - 10.0) / fluid.least_span_s < 1.02


def test_a_request_alone_takes_what_the_bound_says() -> None:
    of = scenario(models={"a": "four", "b": "giant"}, cluster=nodes(("small", 1), ("large", 1)))
    rows: list[Row] = [(20.0, "a", 300, 200), (60.0, "b", 17, 1)]

    def start(view: Any) -> Any:
        from sim.policy import Load  # noqa: PLC0415

        for model, gpu in zip(view.models, view.gpus, strict=True):
            yield Load(model, gpu, model.layers)

    ended = columns(play(of, Script(serve_all, start), trace(of, rows)))
    machines = BoundMachines(of)
    alone = alone_of(machines, requests_of(machines, workload_of(trace(of, rows))))
    assert ended["end_s"] - ended["arrival_s"] == pytest.approx(alone.e2e_s, rel=1e-12)
    assert ended["first_token_s"] - ended["arrival_s"] == pytest.approx(alone.ttft_s, rel=1e-12)


@pytest.mark.parametrize("gpus", [1, 2, 8])
def test_contention_gives_no_more_than_the_constants_say(gpus: int) -> None:
    # Any mix of instances that alternate between their GPU and the node's CPU, under proportional contention.
    draws = np.random.default_rng(gpus)
    most_gpu = most_cpu = most_own = 0.0
    for _ in range(12_000 // gpus):
        low, width = draws.uniform(0, 1), draws.uniform(0, 0.5)
        shares = [np.clip(draws.uniform(low, low + width, draws.integers(1, 20)), 0, 1) for _ in range(gpus)]
        host = max(1.0, sum(float((1 - s).sum()) for s in shares))
        given = [(s, 1 / (max(1.0, s.sum()) * s + host * (1 - s))) for s in shares]
        most_gpu = max(most_gpu, *(float((s * rate).sum()) for s, rate in given))
        most_own = max(most_own, *(float((s * s * rate).sum()) for s, rate in given))
        most_own = max(most_own, sum(float(((1 - s) ** 2 * rate).sum()) for s, rate in given))
        most_cpu = max(most_cpu, sum(float(((1 - s) * rate).sum()) for s, rate in given))
    assert most_own <= 1 + 1e-9
    limit_gpu, limit_cpu = limits(gpus)
    assert most_gpu <= limit_gpu + 1e-9
    assert gpus > 1 or most_gpu > 0.95 * limit_gpu
    assert 0.9 * limit_cpu < most_cpu <= limit_cpu + 1e-9


def test_shares_and_prices_agree_with_the_optimum() -> None:
    of = scenario(models={"a": "four", "b": "two", "c": "eight"}, cluster=nodes(("small", 2), ("large", 1)))
    rows: list[Row] = [(0.1 * i, "abc"[i % 3], 50 + i, 100 + i) for i in range(60)]
    for options in (Options(), Options(physical=True), Options(stay_s=20.0)):
        fluid = fluid_capacity(of, workload_of(trace(of, rows)), options)
        # No resource is free beyond the optimum: at its prices the machines are worth exactly what they give.
        worth = sum(fluid.prices[name] * count for name, count in machine_counts(fluid).items())
        assert worth == pytest.approx(1.0, rel=0.01)
        assert sum(fluid.model_shares.values()) == pytest.approx(1.0)
        for group in ("small in box", "large in box"):
            assert sum(share.share for share in fluid.shares if share.group == group) <= 1 + 1e-6
    hard, physical, estimate = (
        fluid_capacity(of, workload_of(trace(of, rows)), o).requests_per_s
        for o in (Options(), Options(physical=True), Options(stay_s=20.0))
    )
    assert physical <= hard * (1 + 1e-9)
    assert estimate < hard


def machine_counts(fluid: FluidBound) -> dict[str, int]:
    counts = {"small in box": 2, "large in box": 1}
    return {name: counts.get(name, 1) for name in fluid.prices}


# --- pure parts, by brute force


@pytest.mark.parametrize("seed", range(8))
def test_a_chain_lies_below_every_mixture(seed: int) -> None:
    draws = Seeded(seed)
    of, _ = random_case(draws)
    machines = BoundMachines(of)
    for sort, group in product(machines.sorts, machines.groups):
        for level in sort.levels(group):
            gpu_chain, host_chain = decode_chains(sort, group, level, np.array([3.0, 40.0]))
            pool, profile = sort.pool_tokens(group, level), sort.profile(group)
            for batch in range(1, of.engine.max_sequences + 1):
                most = min(pool / batch, sort.model.max_context)
                if most < 1:
                    continue
                contexts = np.linspace(1, most, 9)
                for layers in range(level.low, level.high + 1):
                    gpu_s, host_s = decode_seconds(profile, layers, np.full(9, float(batch)), contexts)
                    for chain, seconds in ((gpu_chain, gpu_s), (host_chain, host_s)):
                        if chain:
                            below = np.interp(contexts, *zip(*chain, strict=True))
                            assert (below <= seconds / batch * (1 + 1e-9)).all()


def test_the_best_packing_is_the_best() -> None:
    draws = np.random.default_rng(4)
    for _ in range(20):
        sizes = draws.integers(10, 60, 4).tolist()
        values = draws.uniform(0, 1, 4)
        best, taken = best_packing(sizes, values, 100)
        counts = product(*(range(100 // size + 1) for size in sizes))
        brute = max(np.dot(c, values) for c in counts if np.dot(c, sizes) <= 100)
        assert best >= brute - 1e-12
        assert best == pytest.approx(sum(values[item] * count for item, count in taken.items()))
        assert sum(sizes[item] * count for item, count in taken.items()) <= 100 * 1.002


def test_srpt_is_the_best_of_all_orders() -> None:
    draws = np.random.default_rng(7)
    for _ in range(20):
        work_s = draws.uniform(0.1, 3, 5)
        at_once = min(np.cumsum(order).mean() for order in permutations(work_s.tolist()))
        assert srpt_mean_s(np.zeros(5), work_s) == pytest.approx(at_once)
    # One that is nearly through is not put off; a shorter one interrupts.
    assert srpt_mean_s(np.array([0.0, 1.0]), np.array([3.0, 1.0])) == pytest.approx((4 + 1) / 2)
    assert srpt_mean_s(np.array([0.0, 2.5]), np.array([3.0, 1.0])) == pytest.approx((3 + 1.5) / 2)


# --- together, and the verb


def test_a_run_keeps_to_every_bound() -> None:
    of = load_scenario(ROOT / "traces" / "scenarios" / "desktop.yaml", ["policy=lru-swap", "workload.limit=80"])
    bounds = bounds_of(of)
    played = summarize(simulate(of))
    assert played["requests"]["completed"] == played["requests"]["arrived"]
    for name, limit in bounds.limits().items():
        group, _, key = name.partition(".")
        assert played[group][key] >= limit > 0, name
    later = bounds_of(of, since_s=30.0)
    assert 0 < len(later.alone.e2e_s) < 80
    with pytest.raises(SimError, match="no request is left"):
        bounds_of(of, since_s=1e9)


def test_a_closed_loop_has_no_pooled_bound() -> None:
    of = load_scenario(ROOT / "traces" / "scenarios" / "desktop-agent.yaml", ["workload.duration_s=300"])
    bounds = bounds_of(of)
    assert bounds.mean.pooled_s is None
    assert bounds.mean.e2e_s == pytest.approx(bounds.alone.e2e_s.mean())
    assert bounds.fluid.requests.closed_loop > 0


def test_the_verb_prints_a_table_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    desktop = str(ROOT / "traces" / "scenarios" / "desktop.yaml")
    few = ["--set", "workload.limit=6"]
    with pytest.raises(SystemExit) as ended:
        main(["bounds", desktop, *few, "--milp", "--slot", "2", "--limit", "5"])
    assert not ended.value.code
    text = capsys.readouterr().out
    for part in ("what no policy can do better", "Largest load", "Least latency", "The best plan", "one pooled server"):
        assert part in text
    with pytest.raises(SystemExit):
        main(["bounds", desktop, *few, "--json"])
    data = json.loads(capsys.readouterr().out)
    assert data["requests"] == 6
    assert data["plan"] is None
    assert data["capacity"]["requests_per_s"] >= data["capacity_physical"]["requests_per_s"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--milp"], "333 requests, at most 40"), (["--set", "workload.file=nowhere.csv"], "nowhere.csv")],
)
def test_the_verb_says_mistakes_in_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bounds", str(ROOT / "traces" / "scenarios" / "desktop.yaml"), *arguments])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert message in captured.err
