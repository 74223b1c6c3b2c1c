"""Oracles: what they know and where they live, that they are marked, and that they are as good as they claim."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from sim.bounds.pooled import srpt_mean_s
from sim.common.errors import ConfigError, PolicyError
from sim.conformance import hardware
from sim.core.state.request import COMPLETED
from sim.engine.engine import Engine, identify, simulate
from sim.engine.ideal_hardware import UNBOUNDED_BYTES, in_its_world
from sim.policy import Action, Policy, View, load_policy
from sim.policy.catalogue import policy_catalogue
from sim.policy.interface.future import Future
from sim.results.summary import summarize
from sim.scenario.scenario import Scenario, load_scenario, parse_scenario, resolved
from sim.workload.requests import open_workload
from tests.support.fuzzing.random_cases import Seeded, random_case
from tests.support.fuzzing.random_policy import RandomPolicy
from tests.support.laws import assert_laws
from tests.support.places import ROOT
from tests.support.scenarios import Row, columns, nodes, play, scenario, trace, write_profiles

ORACLES = ("belady", "infinite-memory", "infinite-memory-srpt", "zero-switch-cost")
PAIR = {"models": {"a": "four", "b": "eight"}, "cluster": nodes(("small", 1))}


def bundled(name: str, *settings: str) -> Scenario:
    return load_scenario(ROOT / "traces" / "scenarios" / f"{name}.yaml", settings)


def mean_s(engine: Engine) -> float:
    ended = columns(engine)
    assert (ended["outcome"] == COMPLETED).all()
    return float((ended["end_s"] - ended["arrival_s"]).mean())


# --- marks


@pytest.mark.parametrize("name", ORACLES)
def test_an_oracle_is_marked_wherever_it_appears(name: str) -> None:
    summary = summarize(simulate(bundled("desktop", f"policy={name}", "workload.limit=40"), check=True))
    assert summary["oracle"]
    assert any("no real scheduler can do it" in notice for notice in summary["notices"])
    facts = {policy.name: policy for policy in policy_catalogue()}
    assert facts[name].oracle
    assert load_policy(name)[0].tier == "oracle"


def test_an_ideal_world_is_marked_under_any_policy() -> None:
    of = bundled("desktop", "policy=lru-swap", "workload.limit=40", "engine.ideal=[switches, memory]")
    summary = summarize(simulate(of, check=True))
    assert "memory have no end" in summary["oracle"]
    assert "take no time" in summary["oracle"]
    assert summary["factors"]["ideal"] == "memory and switches"
    assert summary["gpus"][0]["usable_memory_bytes"] is None
    real = summarize(simulate(bundled("desktop", "policy=lru-swap", "workload.limit=40")))
    assert real["oracle"] is None
    assert "ideal" not in real["factors"]


def test_how_an_ideal_world_is_written_does_not_matter() -> None:
    one, other, real = (
        bundled("desktop", "policy=lru-swap", *ideal)
        for ideal in (["engine.ideal=[switches, memory]"], ["engine.ideal=[memory, switches, memory]"], [])
    )
    workload = open_workload(one)
    assert identify(one, workload) == identify(other, workload) != identify(real, workload)
    with pytest.raises(ConfigError, match="ideal"):
        bundled("desktop", "engine.ideal=[speed]")


def test_the_world_of_a_policy_is_part_of_its_run() -> None:
    of = bundled("desktop", "policy=infinite-memory", "workload.limit=20")
    run = simulate(of)
    assert run.scenario.engine.ideal == ("memory", "switches")
    again = parse_scenario(resolved(run.scenario), "again")
    assert identify(again, open_workload(again)) == run.run_id == identify(of, open_workload(of))


# --- the future


class Seer(Policy):
    foresees = True
    oracle = "everything"

    def decide(self, view: View) -> Iterator[Action]:
        self.seen = getattr(self, "seen", {})
        for request in view.arrived:
            self.seen[request.number] = self.future.output_tokens(request)
        yield from load_policy("lru-swap")[0].decide(view)


class Unmarked(Seer):
    oracle = ""


class Curious(Policy):
    def decide(self, view: View) -> Iterator[Action]:
        if self.future.requests:
            yield from ()


def test_whoever_foresees_says_so(tmp_path: Path) -> None:
    of = scenario(**PAIR)
    with pytest.raises(PolicyError, match="foresees, but has no `oracle` text"):
        play(of, Unmarked(), trace(of, [(0.0, "a", 10, 10)]))
    with pytest.raises(PolicyError, match="the future is for policies whose class says"):
        play(of, Curious(), trace(of, [(0.0, "a", 10, 10)]))
    for lines in ("foresees = True", "ideal = ('memory',)"):
        file = tmp_path / "secret.py"
        file.write_text(f"from sim.policy import Policy\n\n\nclass Secret(Policy):\n    {lines}\n")
        with pytest.raises(PolicyError, match="has no `oracle` text"):
            load_policy(str(file))


def test_the_future_is_what_comes() -> None:
    of = scenario(**PAIR)
    draws = np.random.default_rng(3)
    rows = [
        (float(at), str(draws.choice(["a", "b"])), 10, int(draws.integers(1, 50))) for at in np.cumsum(draws.random(60))
    ]
    policy = Seer()
    engine = play(of, policy, trace(of, rows))
    assert policy.seen == {number: row[3] for number, row in enumerate(rows)}
    assert policy.future.requests == 60
    assert policy.future.closed_loop == 0
    views = {model.name: model for model in (engine.views.model(m) for m in engine.world.cluster.models)}
    for name, after_s in product(("a", "b"), [-1.0, 0.0, *(row[0] for row in rows), 1e9]):
        later = [row[0] for row in rows if row[1] == name and row[0] > after_s]
        assert policy.future.next_arrival_s(views[name], after_s) == min(later, default=float("inf"))
    assert list(policy.future.arrivals_s(views["a"])) == [row[0] for row in rows if row[1] == "a"]


def test_in_a_closed_loop_lengths_are_true_and_times_the_earliest() -> None:
    of = bundled("desktop-agent", "workload.duration_s=400")
    policy, workload = Seer(), open_workload(of)
    run = simulate(of, workload=workload, chosen=(policy, "seer"))
    rows = {name: np.array(values) for name, values in run.recorder.columns.items()}
    lengths = dict(zip(rows["request"].tolist(), rows["output_tokens"].tolist(), strict=True))
    assert policy.seen == {number: lengths[number] for number in policy.seen}
    assert policy.future.closed_loop > 0
    earliest = np.sort(np.concatenate([chunk.arrival_s for chunk in policy.future.chunks]))
    assert (np.sort(rows["arrival_s"]) >= earliest[: len(rows["arrival_s"])] - 1e-9).all()


def test_an_empty_future_is_infinity() -> None:
    future = Future([], ["a"])
    assert future.requests == 0


# --- ideal worlds


@pytest.mark.parametrize("seed", range(60))
def test_the_laws_hold_in_ideal_worlds(seed: int) -> None:
    draws = Seeded(seed)
    of, rows = random_case(draws)
    ideal = draws.pick((("switches",), ("memory",), ("memory", "switches")))
    of = of.model_copy(update={"engine": of.engine.model_copy(update={"ideal": ideal})})
    if "memory" in ideal:  # who was refused for lack of memory is served now
        of = of.model_copy(update={"horizon_s": 500.0})
    engine = play(of, RandomPolicy(RandomPolicy.Parameters(stream=seed, calm_s=20.0)), trace(of, rows))
    assert_laws(engine, len(rows))
    if "switches" in ideal:
        assert set(engine.world.recorder.seconds.values()) <= {0.0}, engine.world.recorder.seconds
        assert all(
            gpu.activity_s["loading"] == gpu.activity_s["transferring"] == 0 for gpu in engine.world.cluster.gpus
        )
    if "memory" in ideal:
        assert all(not model.fits_nowhere for model in engine.world.cluster.models)
        assert all(gpu.kind.memory_bytes == UNBOUNDED_BYTES for gpu in engine.world.cluster.gpus)


def test_free_switches_take_no_second_and_real_ones_do() -> None:
    rows: list[Row] = [(0.5 * i, "ab"[i % 2], 20, 30) for i in range(12)]
    real = scenario(**PAIR, policy={"name": "exclusive-swap"})
    free = real.model_copy(update={"engine": real.engine.model_copy(update={"ideal": ("switches",)})})
    slow, quick = (play(of, load_policy("exclusive-swap")[0], trace(of, rows)) for of in (real, free))
    assert sum(slow.world.recorder.seconds.values()) > 10
    assert sum(quick.world.recorder.seconds.values()) == 0
    assert quick.world.recorder.counts["loads"] > 5
    assert mean_s(quick) < mean_s(slow) / 2


# --- the policies


def test_zero_switch_cost_is_its_inner_policy_in_another_world() -> None:
    rows: list[Row] = [(0.7 * i, "ab"[i % 2], 20, 30 + i) for i in range(20)]
    of = scenario(**PAIR)
    free = of.model_copy(update={"engine": of.engine.model_copy(update={"ideal": ("switches",)})})
    for inner in ("exclusive-swap", "lru-swap", "residency-aware"):
        wrapped = play(of, load_policy("zero-switch-cost", {"inner": inner})[0], trace(of, rows))
        plain = play(free, load_policy(inner)[0], trace(of, rows))
        assert np.array_equal(columns(wrapped)["end_s"], columns(plain)["end_s"]), inner


def test_zero_switch_cost_names_its_inner_policy(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="belady is an oracle itself"):
        load_policy("zero-switch-cost", {"inner": "belady"})
    with pytest.raises(PolicyError, match="unknown policy 'lru-swop'; did you mean 'lru-swap'"):
        load_policy("zero-switch-cost", {"inner": "lru-swop"})
    with pytest.raises(ConfigError, match="policy 'static-split' has no parameter 'slices'"):
        load_policy("zero-switch-cost", {"inner": "static-split", "parameters": {"slices": 3}})
    file = tmp_path / "mine.py"
    source = "from sim.policy import Policy\n\n\nclass Mine(Policy):\n    def decide(self, view):\n        return ()\n"
    runs = []
    for text in (source, f"{source}\n# another\n"):
        file.write_text(text)
        of = scenario(**PAIR, policy={"name": "zero-switch-cost", "inner": str(file)})
        of = of.model_copy(update={"workload": bundled("desktop").workload, "models": bundled("desktop").models})
        of = of.model_copy(update={"cluster": bundled("desktop").cluster, "profiles": None})
        runs.append(identify(of, open_workload(of)))
    assert runs[0] != runs[1]


def test_running_all_at_once_is_beaten_by_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Trap 1: two equal jobs of two models. Shared evenly both end at 2; in turn they end at 1 and 2, loads included.
    monkeypatch.setattr(hardware, "step_s", lambda layers, of, batch, context: 0.1 + 0.4 * (layers < of))
    of = scenario(**PAIR, profiles=str(write_profiles(tmp_path / "slow")))
    rows: list[Row] = [(0.0, "a", 10, 900), (0.0, "b", 10, 900)]
    shared, turns, best = (
        mean_s(play(of, load_policy(name)[0], trace(of, rows)))
        for name in ("infinite-memory", "exclusive-swap", "infinite-memory-srpt")
    )
    assert shared == pytest.approx(180, rel=0.01)
    assert best == pytest.approx(135, rel=0.01)
    assert best < turns < shared


def test_one_at_a_time_srpt_is_srpt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One GPU, one sequence at a time, tokens of 10 ms, prompts next to nothing: the optimum is known.
    monkeypatch.setattr(hardware, "step_s", lambda layers, of, batch, context: 0.01)
    monkeypatch.setattr(hardware, "prefill_s", lambda layers, of, tokens: 0.0001)
    profiles = str(write_profiles(tmp_path / "flat"))
    of = scenario(**PAIR, profiles=profiles, engine={"max_sequences": 1})
    draws = np.random.default_rng(5)
    arrivals_s = np.cumsum(draws.exponential(2.0, 200))
    tokens = draws.integers(2, 400, 200)
    rows: list[Row] = [
        (float(s), "ab"[i % 2], 5, int(n)) for i, (s, n) in enumerate(zip(arrivals_s, tokens, strict=True))
    ]
    found = mean_s(play(of, load_policy("infinite-memory-srpt")[0], trace(of, rows)))
    optimum = srpt_mean_s(arrivals_s, (tokens - 1) * 0.01 + 0.0001)
    # It waits for the end of an iteration before it changes, and then both run: a step or so each time.
    assert optimum <= found <= optimum * 1.02
    shared = mean_s(play(of, load_policy("infinite-memory")[0], trace(of, rows)))
    assert found < shared * 0.8


@pytest.mark.parametrize("seed", range(6))
def test_srpt_is_a_strong_reference_under_batching(seed: int) -> None:
    # Never behind processor sharing, nor behind first come first served, on random loads with both knees of a batch.
    draws = np.random.default_rng(seed)
    of = scenario(models={"a": "four", "b": "two", "c": "eight"}, cluster=nodes(("small", int(draws.integers(1, 3)))))
    count, gap_s = 150, float(draws.choice([0.15, 0.4, 1.0]))
    rows: list[Row] = [
        (
            float(s),
            str(draws.choice(["a", "b", "c"])),
            int(draws.integers(1, 300)),
            int(draws.lognormal(4, 1)) % 700 + 1,
        )
        for s in np.cumsum(draws.exponential(gap_s, count))
    ]
    names = ("infinite-memory-srpt", "infinite-memory", "zero-switch-cost", "residency-aware")
    means = {name: mean_s(play(of, load_policy(name)[0], trace(of, rows))) for name in names}
    assert means["infinite-memory-srpt"] <= min(means.values()) * 1.001, means


def loads_of(order: str, name: str, room: int = 2) -> int:
    """Loads of one-at-a-time requests for equal models, so many of which fit together."""
    kinds = dict.fromkeys(sorted(set(order)), "two")
    reserve_gib = 8 - (room * 2.6 * 1e9) / 2**30
    of = scenario(models=kinds, cluster={**nodes(("small", 1)), "gpu_reserve_gib": reserve_gib})
    rows: list[Row] = [(30.0 * place, letter, 10, 20) for place, letter in enumerate(order)]
    return play(of, load_policy(name)[0], trace(of, rows)).world.recorder.counts["loads"]


def least_loads(order: str, room: int) -> int:
    """By going through every choice of whom to evict."""
    states = {frozenset[str](): 0}
    for letter in order:
        after: dict[frozenset[str], int] = {}
        for held, loads in states.items():
            options = (
                [held]
                if letter in held
                else [held | {letter}]
                if len(held) < room
                else [held - {v} | {letter} for v in sorted(held)]
            )
            for option in options:
                cost = loads + (letter not in held)
                after[option] = min(cost, after.get(option, cost))
        states = after
    return min(states.values())


@pytest.mark.parametrize("seed", range(10))
def test_belady_loads_as_seldom_as_can_be(seed: int) -> None:
    order = "".join(np.random.default_rng(seed).choice(list("pqrs"), 14).tolist())
    assert loads_of(order, "belady") == least_loads(order, 2) <= loads_of(order, "lru-swap")


def test_belady_weighs_cost_size_and_time() -> None:
    # `four` (4 GB, 2.0 s to load) and `two` (2.5 GB, 1.81 s) lie there; `eight` (4.25 GB) needs one of them to go.
    def stopped(order: str) -> str:
        of = scenario(models={"f": "four", "t": "two", "e": "eight"}, cluster=nodes(("small", 1)))
        rows: list[Row] = [(30.0 * place, letter, 10, 20) for place, letter in enumerate(order)]
        engine = play(of, load_policy("belady")[0], trace(of, rows))
        codes = {code: text for text, code in engine.world.recorder.switch_texts["model"].items()}
        kinds = {code: text for text, code in engine.world.recorder.switch_texts["kind"].items()}
        switches = engine.world.recorder.switch_columns
        freed = [
            codes[m]
            for m, k in zip(switches["model"].tolist(), switches["kind"].tolist(), strict=True)
            if kinds[k] == "free"
        ]
        return freed[0]

    assert stopped("ftet") == "f"  # never asked for again
    # Both come again, the large one sooner; what counts is seconds for each byte and second: 2.0/(4.0 x 90) against
    # 1.81/(2.5 x 120), then 2.0/(4.0 x 60) against 1.81/(2.5 x 90).
    assert stopped("fteeeft") == "f"
    assert stopped("fteeft") == "t"


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("which", ["desktop-agent", "street-crossing"])
def test_oracles_run_bundled_scenarios(name: str, which: str) -> None:
    of = bundled(which, f"policy={name}", "workload.duration_s=120")
    summary = summarize(simulate(of, check=True))
    assert summary["requests"]["unfinished"] == 0
    assert summary["requests"]["completed"] > 0
    assert in_its_world(of, load_policy(name)[0]).engine.ideal == load_policy(name)[0].ideal
