"""The ten laws of model.md section 10, as properties over random clusters, options, requests and policies.

A random policy that does anything legal, and every shipped one, play small experiments with the laws of each instant
checked; what must hold afterwards is in laws.py. A failure prints the scenario as YAML, its rows and its seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from laws import assert_laws, assert_rankings, assert_settled, assert_work_conserving
from random_cases import Seeded, random_case
from random_policy import STUCK, RandomPolicy
from scenarios import (
    FREE_OF_COST,
    Row,
    Script,
    as_yaml,
    columns,
    load_all,
    nodes,
    play,
    scenario,
    serve_all,
    trace,
    write_profiles,
)

from sim.conformance import hardware
from sim.engine import Engine
from sim.gate import Gate
from sim.policy import Load, Policy, View, load_policy, policy_names
from sim.request import COMPLETED, IMPOSSIBLE, REJECTED
from sim.spec import Scenario

QUICK = settings(
    derandomize=True,
    deadline=None,
    print_blob=True,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=(Phase.explicit, Phase.generate),  # a seed has no smaller one
)
SEEDS = st.integers(0, 2**32)


@contextmanager
def told(of: Scenario, rows: list[Row], **more: Any) -> Iterator[None]:
    """A failure inside says how to play it again."""
    try:
        yield
    except Exception as error:
        error.add_note(f"{more}\nrows = {rows}\n{as_yaml(of)}")
        raise


@pytest.fixture(autouse=True)
def _every_instant(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's own check of every instant, and with it law 7 and the rankings; these also after every action."""
    own: Callable[[Engine], None] = Engine._check_laws
    engines: list[Engine] = []

    def check(engine: Engine) -> None:
        engines[:] = [engine]
        own(engine)
        assert_work_conserving(engine)
        assert_rankings(engine)

    act: Callable[[Gate, object], None] = Gate.apply

    def apply(gate: Gate, action: object) -> None:
        act(gate, action)
        if engines and engines[0].world is gate.world:
            assert_rankings(engines[0])

    monkeypatch.setattr(Engine, "_check_laws", check)
    monkeypatch.setattr(Gate, "apply", apply)


def drawn_policy(draws: Seeded) -> RandomPolicy:
    parameters = RandomPolicy.Parameters(
        stream=draws.number(0, 10_000), calm_s=draws.pick((5.0, 30.0, 100.0)), rejects=draws.pick((True, False))
    )
    return RandomPolicy(parameters)


def play_random(draws: Seeded, real: bool = False, **changes: Any) -> Engine:
    of, rows = random_case(draws, real, **changes)
    policy = drawn_policy(draws)
    with told(of, rows, policy=policy.parameters):
        engine = play(of, policy, trace(of, rows))
        assert_laws(engine, len(rows))
        if of.horizon_s is None:
            assert_settled(engine)
            assert_everyone_was_served(engine)
    return engine


def assert_everyone_was_served(engine: Engine) -> None:
    """The calm part of the random policy gets every feasible request to its end, whatever the wild part left behind."""
    recorder = engine.world.recorder
    if any(service_class.patience_s for service_class in engine.world.cluster.service_classes):
        return
    lots = [number for reason, number in recorder.reasons.items() if reason in (STUCK, "drawn by lot")]
    rejected = np.isin(columns(engine)["reason"], lots).sum()
    assert recorder.ended[REJECTED] == rejected
    assert recorder.ended[COMPLETED] + recorder.ended[IMPOSSIBLE] + rejected == recorder.arrived


# --- laws 1 to 7


@settings(QUICK, max_examples=600)
@given(seed=SEEDS)
def test_laws_hold_whatever_is_done(seed: int) -> None:
    play_random(Seeded(seed))


@QUICK
@given(seed=SEEDS, horizon_s=st.sampled_from((0.5, 4.0, 20.0)))
def test_laws_hold_for_a_run_that_is_cut_off(seed: int, horizon_s: float) -> None:
    play_random(Seeded(seed), horizon_s=horizon_s)


@settings(QUICK, max_examples=40)
@given(seed=SEEDS)
def test_laws_hold_with_measured_tables(seed: int) -> None:
    play_random(Seeded(seed), real=True)


@pytest.mark.parametrize("name", policy_names())
@settings(QUICK, max_examples=60)
@given(seed=SEEDS)
def test_laws_hold_under_every_shipped_policy(name: str, seed: int) -> None:
    draws = Seeded(seed)
    of, rows = random_case(draws, policy={"name": name}, horizon_s=500.0)
    with told(of, rows):
        assert_laws(play(of, load_policy(name)[0], trace(of, rows)), len(rows))


# --- law 8


@settings(QUICK, max_examples=60)
@given(seed=SEEDS)
def test_the_same_seed_gives_the_same_run(seed: int) -> None:
    draws = Seeded(seed)
    of, rows = random_case(draws)
    policy = drawn_policy(draws)
    again = RandomPolicy(policy.parameters)
    with told(of, rows, policy=policy.parameters):
        one, other = (play(of, chosen, trace(of, rows)) for chosen in (policy, again))
        assert_same(one, other)


def assert_same(one: Engine, other: Engine) -> None:
    mine, theirs = columns(one), columns(other)
    assert all(np.array_equal(mine[name], theirs[name], equal_nan=mine[name].dtype.kind == "f") for name in mine)
    assert one.clock.events == other.clock.events
    assert one.world.recorder.seconds == other.world.recorder.seconds
    assert np.array_equal(one.world.recorder.latencies.counts, other.world.recorder.latencies.counts)


@settings(QUICK, max_examples=60)
@given(seed=SEEDS, name=st.sampled_from(["random", *policy_names()]))
def test_what_a_model_is_called_changes_nothing(seed: int, name: str) -> None:
    draws = Seeded(seed)
    of, rows = random_case(draws, horizon_s=300.0)
    seeded = drawn_policy(draws).parameters
    called = {model.name: f"{'zyxw'[index]}-{model.name}" for index, model in enumerate(of.models)}
    renamed = of.model_copy(update={"models": tuple(m.model_copy(update={"name": called[m.name]}) for m in of.models)})
    moved = [(row[0], called[row[1]], *row[2:]) for row in rows]

    def chosen() -> Policy:
        return RandomPolicy(seeded) if name == "random" else load_policy(name)[0]

    with told(of, rows, policy=name, parameters=seeded):
        assert_same(play(of, chosen(), trace(of, rows)), play(renamed, chosen(), trace(renamed, moved)))


# --- law 9


def static(of: Scenario, rows: list[Row], layers: int) -> Engine:
    """Every model with so many of its layers on its own GPU, for ever; the KV pool is as large as memory allows."""

    def start(view: View) -> Iterator[Load]:
        for model, gpu in zip(view.models, view.gpus, strict=True):
            most = min(layers, model.layers)
            left = gpu.capacity_bytes - model.gpu_bytes(most)
            yield Load(
                model, gpu, most, model.max_context + int(left // max(1, model.kv_layer_bytes * most)) // 16 * 16
            )

    return play(of, Script(serve_all, start), trace(of, rows))


@settings(QUICK, max_examples=60)
@given(seed=SEEDS, layers=st.sampled_from((4, 1)))
def test_a_faster_link_makes_no_static_placement_slower(seed: int, layers: int) -> None:
    # `small` and `fast` differ in their links alone. Every instance has its own GPU, so none waits for another.
    draws = Seeded(seed)
    models = {"a": "four", "b": "two"}
    slow, fast = (scenario(models=models, cluster=nodes((gpu, 2))) for gpu in ("small", "fast"))
    rows = simultaneous_rows(draws)
    with told(fast, rows):
        before, after = (columns(static(of, rows, layers))["end_s"] for of in (slow, fast))
        assert (after <= before + 1e-9).all(), after - before


@settings(QUICK, max_examples=60)
@given(seed=SEEDS)
def test_more_gpu_memory_makes_no_static_placement_slower(seed: int) -> None:
    # Memory beyond the weights is KV: with more of it nobody is preempted or kept out for longer. The batch is
    # bounded by max_sequences in both, and one sequence at a time runs at equal speed, so only memory differs.
    draws = Seeded(seed)
    rows = simultaneous_rows(draws)
    small, large = (
        scenario(models={"a": "four", "b": "two"}, cluster=nodes((gpu, 2)), engine={"max_sequences": 1})
        for gpu in ("small", "large")
    )
    with told(large, rows):
        before, after = (columns(static(of, rows, 4))["end_s"] for of in (small, large))
        assert (after <= before + 1e-9).all(), after - before


def simultaneous_rows(draws: Seeded) -> list[Row]:
    """All at time 0: who comes later than the faster instance is ready would meet another batch."""
    return [
        (0.0, draws.pick(("a", "b")), draws.number(1, 400), draws.number(1, 400)) for _ in range(draws.number(1, 12))
    ]


# --- law 10

STEP_S = 0.01
COUNT = 20_000


@pytest.fixture
def constant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Profiles in which each token, the first of a prompt too, takes 10 ms a sequence, whatever its context."""
    monkeypatch.setattr(hardware, "step_s", lambda layers, of, batch, context: STEP_S * batch)
    monkeypatch.setattr(hardware, "prefill_s", lambda layers, of, tokens: STEP_S)
    monkeypatch.setattr(hardware, "BATCHES", (1, 512))
    return str(write_profiles(tmp_path / "constant", switch=FREE_OF_COST))


def queue(profiles: str, tokens: list[int], load: float, seed: int, max_sequences: int) -> dict[str, Any]:
    """Poisson arrivals at a ready instance; the rows of their requests."""
    of = scenario(
        profiles=profiles,
        models=[{"name": "a", "model": "four", "engine": "quick", "max_context": 4096, "kv_tokens": 400_000}],
        engine={"max_sequences": max_sequences, "watermark": 0},
    )
    gaps_s = np.random.default_rng(seed).exponential(np.mean(tokens) * STEP_S / load, len(tokens))
    arrivals_s = (10.0 + np.cumsum(gaps_s)).tolist()
    rows = [(arrival_s, "a", 1, count) for arrival_s, count in zip(arrivals_s, tokens, strict=True)]
    return columns(play(of, Script(serve_all, load_all), trace(of, rows), check=False))


@pytest.mark.parametrize("law", ["M/M/1", "M/D/1"])
def test_one_sequence_at_a_time_waits_as_theory_says(law: str, constant: str) -> None:
    # Load 0.5. Exponential service is a geometric number of tokens with a mean of 150, which has 0.3 % less variance.
    load, mean = 0.5, 150
    tokens = [mean] * COUNT if law == "M/D/1" else np.random.default_rng(1).geometric(1 / mean, COUNT).tolist()
    rows = queue(constant, tokens, load, 2, max_sequences=1)
    waits_s = rows["queued_s"]
    # Request by request it is the Lindley recursion: it waits for what the one before it waits and is served.
    expected_s, longest_error_s = 0.0, 0.0
    for index in range(1, COUNT):
        gap_s = rows["arrival_s"][index] - rows["arrival_s"][index - 1]
        expected_s = max(0.0, expected_s + tokens[index - 1] * STEP_S - gap_s)
        longest_error_s = max(longest_error_s, abs(waits_s[index] - expected_s))
    assert longest_error_s < 1e-6
    # The mean wait, in service times: rho/(1-rho) or half of it. Its asymptotic variance for M/M/1 is
    # rho(2 + 5rho - 4rho^2 + rho^3)/(1-rho)^4 per request, and less for M/D/1: 99.9 % lie within 3.3 deviations.
    variance = load * (2 + 5 * load - 4 * load**2 + load**3) / (1 - load) ** 4
    theory = load / (1 - load) / (1 if law == "M/M/1" else 2)
    measured = waits_s.mean() / (mean * STEP_S)
    assert abs(measured - theory) < 3.3 * (variance / COUNT) ** 0.5, (measured, theory)


def test_a_batch_that_shares_a_constant_rate_is_processor_sharing(constant: str) -> None:
    # An iteration takes 10 ms a sequence, so that all share one rate: the mean time is S/(1-rho) for any service law.
    # A newcomer waits for an iteration boundary, and its prompt for nobody: 2 % of 200 tokens at most. 4,000 requests
    # know the mean to about 4 % (one deviation); 99 % lie within 10 %.
    rows = queue(constant, [200] * 4000, 0.5, 3, max_sequences=400)
    mean_s = (rows["end_s"] - rows["arrival_s"]).mean()
    assert mean_s == pytest.approx(200 * STEP_S / (1 - 0.5), rel=0.12)
