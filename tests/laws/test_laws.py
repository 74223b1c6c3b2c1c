"""The laws of model.md section 10 but the last (test_theory.py), over random clusters, options, requests, policies.

A random policy that does anything legal, and every shipped one, play small experiments of every kind (swarm.py), with
the laws of each instant checked and accounts of our own (fuzzing/checks.py). A failure prints its case, for
`python -m tests.tools.fuzz --replay`. Longer plays than these: test_machine.py with rules, tools/fuzz.py with seeds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from sim.engine.engine import Engine
from sim.policy import Load, View, policy_names
from sim.scenario.scenario import Scenario
from tests.support.fuzzing.checks import RANDOM, SHIPPED_S, CaseFailed, Refused, check_case
from tests.support.fuzzing.random_cases import Seeded
from tests.support.fuzzing.swarm import Case, swarm_case
from tests.support.scenarios import Row, Script, as_yaml, columns, nodes, play, scenario, serve_all, trace

QUICK = settings(
    derandomize=True,
    deadline=None,
    print_blob=True,
    max_examples=30,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),  # a seed has no smaller one; tests/tools/fuzz.py SEED cuts a failure down
)
SEEDS = st.integers(0, 2**32)


@contextmanager
def told(of: Scenario, rows: list[Row]) -> Iterator[None]:
    """A failure inside says how to play it again."""
    try:
        yield
    except Exception as error:
        error.add_note(f"rows = {rows}\n{as_yaml(of)}")
        raise


def random_play(seed: int, **changes: Any) -> Case:
    """A case of the random policy, with other fields of its scenario."""
    draws = Seeded(seed)
    calm_s, rejects = draws.pick((5.0, 30.0)), draws.pick((True, False))
    case = swarm_case(draws, name=RANDOM, stream=seed % 10_000, calm_s=calm_s, rejects=rejects)
    return Case({**case.data, **changes}, case.switch, case.rows, case.policy, case.pieces, case.features)


def check(case: Case, *names: str) -> None:
    try:
        check_case(case, names)
    except Refused:
        assume(False)
    except CaseFailed as failure:
        failure.add_note(case.to_json())
        raise


# --- laws 1 to 7


@settings(QUICK, max_examples=120)
@given(seed=SEEDS)
def test_laws_hold_whatever_is_done(seed: int) -> None:
    check(random_play(seed), "laws")


@settings(QUICK, max_examples=25)
@given(seed=SEEDS, horizon_s=st.sampled_from((0.5, 4.0, 20.0)))
def test_laws_hold_for_a_run_that_is_cut_off(seed: int, horizon_s: float) -> None:
    check(random_play(seed, horizon_s=horizon_s), "laws")


@pytest.mark.parametrize("name", policy_names())
@settings(QUICK, max_examples=8)
@given(seed=SEEDS)
def test_laws_hold_under_every_shipped_policy(name: str, seed: int) -> None:
    case = random_play(seed, horizon_s=SHIPPED_S).with_policy(name=RANDOM, inner=name)
    check(case, "laws")


# --- law 8


@QUICK
@given(seed=SEEDS)
def test_the_same_seed_gives_the_same_run(seed: int) -> None:
    check(random_play(seed), "again")


@QUICK
@given(seed=SEEDS, name=st.sampled_from(["random", *policy_names()]))
def test_what_a_model_is_called_changes_nothing(seed: int, name: str) -> None:
    case = random_play(seed, horizon_s=300.0)
    check(case if name == "random" else case.with_policy(name=RANDOM, inner=name), "renamed")


@QUICK
@given(seed=SEEDS)
def test_the_order_of_rows_of_one_instant_changes_nothing(seed: int) -> None:
    """Of different models, each with a node of its own: their requests have nothing to do with one another."""
    draws = Seeded(seed)
    names = ("a", "b", "c")
    of = scenario(
        models=dict(zip(names, ("four", "two", "eight"), strict=True)),
        cluster={"nodes": [nodes(("small", 1))["nodes"][0] for _ in names], "gpu_reserve_gib": 0},
        engine={"max_sequences": draws.pick((1, 2, 8)), "sequence_preemption": draws.pick(("swap", "recompute"))},
    )
    rows = [
        (2.5 * draws.number(0, 2), draws.pick(names), draws.number(1, 500), draws.number(1, 500)) for _ in range(16)
    ]
    rows.sort(key=lambda row: row[0])
    keys = {row: draws.number(0, 999) for row in rows}
    # Another order within an instant, in which those of one model keep theirs.
    mixed = sorted(rows, key=lambda row: (row[0], keys[next(other for other in rows if other[:2] == row[:2])]))
    with told(of, rows):
        assert by_model(static(of, rows, 2), of) == by_model(static(of, mixed, 2), of)


def by_model(engine: Engine, of: Scenario) -> list[list[tuple[Any, ...]]]:
    """What happened to the requests of each model, in their order."""
    rows = columns(engine)
    names = ("arrival_s", "prompt_tokens", "output_tokens", "first_token_s", "end_s", "queued_s", "decode_s")
    table = [*zip(rows["model"].tolist(), *(rows[name].tolist() for name in names), strict=True)]
    return [[row for row in table if row[0] == number] for number in range(len(of.models))]


@QUICK
@given(seed=SEEDS)
def test_a_leap_is_its_steps_whatever_is_done(seed: int) -> None:
    """Section 4, but in any play: test_reference.py has static ones against an engine written apart."""
    check(random_play(seed), "stepped")


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


@QUICK
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


@QUICK
@given(seed=SEEDS)
def test_a_faster_link_makes_no_swapping_slower(seed: int) -> None:
    # `fast` has twice the link of `small`; swapped KV crosses it too, where pools are tight.
    draws = Seeded(seed)
    models = [{"name": "a", "model": "giant", "engine": "quick", "max_context": 400, "kv_tokens": 400}]
    engine = {"sequence_preemption": "swap", "max_sequences": draws.pick((2, 4))}
    cluster = nodes(("small", 1))["nodes"][0]
    slow, fast = (
        scenario(models=models, engine=engine, cluster={"nodes": [{**cluster, "gpus": [{"gpu": gpu}]}]})
        for gpu in ("small", "fast")
    )
    tokens = draws.number(100, 200)
    rows = [(0.0, "a", tokens, tokens) for _ in range(2)]  # alike, so that the same one is swapped in both
    with told(fast, rows):
        before, after = (columns(static_swap(of, rows))["end_s"] for of in (slow, fast))
        assert after.max() <= before.max() + 1e-9


def static_swap(of: Scenario, rows: list[Row]) -> Engine:
    """The one model in part, with the smallest pool."""

    def start(view: View) -> Iterator[Load]:
        (model,), (gpu,) = view.models, view.gpus
        yield Load(model, gpu, 4, model.max_context)

    return play(of, Script(serve_all, start), trace(of, rows))


@QUICK
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
