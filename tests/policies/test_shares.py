"""What makes fair-share and gavel themselves: counters and rounds; and all six of this tier under any engine.

Real engine, synthetic hardware of scenarios.py: on a `small` GPU a load of `four` takes 1.5 s + 4 GB / 8 GB/s = 2 s.
"""

from __future__ import annotations

import numpy as np
import pytest

from sim.policy import Action, View
from sim.policy.kit.fairness import max_min_shares
from tests.support.policy_cases import LOAD_S, Told, classes, completed, made
from tests.support.scenarios import Row, columns, nodes, play, scenario, step_s, trace

TWO = {"a": "four", "b": "eight"}
# --- fair-share

# Six of the eight GiB each: only one of them is in memory at a time.
LARGE = [{"name": n, "model": "four", "engine": "quick", "max_context": 1024, "kv_tokens": 200_000} for n in "abc"]


def unfairness(lead: float) -> float:
    """The largest difference of two counters while both models had requests waiting."""
    of = scenario(models=LARGE[:2], engine={"max_sequences": 4})
    policy = made("fair-share", lead=lead)
    worst = [0.0]

    def tell(view: View, actions: list[Action]) -> None:
        if all(model.waiting_count for model in view.models):
            worst[0] = max(worst[0], abs(policy.counters["a"] - policy.counters["b"]))

    rows: list[Row] = [(0.0, "ab"[n % 2], 20, 60 + n * 37 % 80) for n in range(160)]
    assert completed(play(of, Told(policy, tell), trace(of, rows))) == 160
    return worst[0]


def test_fair_share_bounds_how_unequal_backlogged_models_are_served() -> None:
    # VTC's bound is 2 max(w_p L_in, w_q M) with M tokens in a batch; a swap is worth `lead` more, and charged 2 s.
    in_batch = 2 * 4 * 160
    for lead in (0.0, 2000.0):
        assert unfairness(lead) <= lead + 2 * in_batch + 50 * LOAD_S
    assert unfairness(0.0) < unfairness(2000.0)
    assert unfairness(1e9) > 2000 + 2 * in_batch + 50 * LOAD_S


def test_fair_share_lifts_who_comes_back() -> None:
    of = scenario(models=TWO, engine={"max_sequences": 4})
    policy = made("fair-share", settle_s=0)
    seen: dict[str, float] = {}

    def tell(view: View, actions: list[Action]) -> None:
        if any(request.model.name == "b" for request in view.arrived):
            seen.update(a=policy.counters["a"], b=policy.counters["b"])

    rows: list[Row] = [*((0.0, "a", 20, 200) for _ in range(40)), (20.0, "b", 20, 5)]
    play(of, Told(policy, tell), trace(of, rows))
    charge = 20 + 50 * (1.5 + 4.25 / 8)  # its own prompt, and the load of `eight`
    assert seen["a"] > 1000
    assert seen["b"] == pytest.approx(seen["a"] + charge)


def test_fair_share_is_between_classes_where_asked() -> None:
    # One class floods the model; the other's request comes in with the next free place.
    of = scenario(engine={"max_sequences": 2}, service_classes=[{"name": "flood"}, {"name": "few"}])
    rows: list[Row] = [*((0.0, "a", 20, 100) for _ in range(40)), (10.0, "a", 20, 100)]
    requests = classes(of, rows, ["flood"] * 40 + ["few"])
    ends_s = {
        over: columns(play(of, made("fair-share", over=over), requests))["end_s"].tolist()
        for over in ("model", "class")
    }
    assert ends_s["model"][-1] == max(ends_s["model"])
    assert ends_s["class"][-1] < sorted(ends_s["class"])[20]


# --- gavel


def test_gavel_divides_time_on_one_gpu_in_rounds() -> None:
    of = scenario(models=LARGE, engine={"max_sequences": 2})
    rows: list[Row] = [(0.0, "abc"[n % 3], 20, 300) for n in range(120)]
    policy = made("gavel", round_s=20, lend=False)
    held: list[tuple[float, str]] = []

    def tell(view: View, actions: list[Action]) -> None:
        name = next(iter(policy.holds.values())).name
        if not held or held[-1][1] != name:
            held.append((view.now_s, name))
        if all(model.waiting_count for model in view.models):
            assert list(policy.shares.values()) == pytest.approx([1 / 3] * 3)

    engine = play(of, Told(policy, tell), trace(of, rows))
    assert completed(engine) == 120
    assert [name for _, name in held[:6]] == ["a", "b", "c", "a", "b", "c"]
    assert np.diff([time_s for time_s, _ in held[:6]]) == pytest.approx([20] * 5)


def test_gavel_shares_are_those_of_the_programme_over_measured_throughputs() -> None:
    of = scenario(
        models={"a": "four", "b": "giant"}, cluster=nodes(("small", 1), ("large", 1)), engine={"max_sequences": 2}
    )
    policy = made("gavel", round_s=30)
    rows: list[Row] = [(0.0, "ab"[n % 2], 20, 300) for n in range(60)]
    shares: dict[tuple[str, str], float] = {}

    def tell(view: View, actions: list[Action]) -> None:
        if view.now_s == 0.0:
            shares.update({(model.name, kind): share for (model, kind), share in policy.shares.items()})

    play(of, Told(policy, tell), trace(of, rows))
    # a is as fast on both kinds; of the giant the small one holds 8 of 16 layers.
    speeds = 2 / np.array([[step_s(4, 4, 2, 1024)] * 2, [step_s(8, 16, 2, 1024), step_s(16, 16, 2, 1024)]])
    expected = max_min_shares(speeds, [1, 1])
    assert list(shares.values()) == pytest.approx(expected.ravel().tolist())
    assert shares["b", "large"] > 0.3


def test_gavel_lends_what_nobody_uses() -> None:
    of = scenario(models=LARGE[:2])
    rows: list[Row] = [(0.0, "a", 10, 5), (10.0, "b", 10, 5)]
    for lend, after_s in ((True, 10.0), (False, 360.0)):
        engine = play(of, made("gavel", lend=lend), trace(of, rows))
        assert columns(engine)["end_s"][1] == pytest.approx(after_s + 0.25 + LOAD_S, abs=0.5)


# --- all of them


@pytest.mark.parametrize("name", ["qlm", "prism", "aegaeon", "fastserve", "fair-share", "gavel"])
@pytest.mark.parametrize("draw", range(6))
def test_they_serve_whatever_comes_under_any_engine(name: str, draw: int) -> None:
    draws = np.random.default_rng([draw, 7])
    engine = {
        "max_sequences": int(draws.integers(1, 6)),
        "prefill": str(draws.choice(["first", "chunked"])),
        "prefill_tokens": 128,
        "sequence_preemption": str(draws.choice(["recompute", "swap"])),
        "resize": ["none", "sleep", "elastic"][draw % 3],
    }
    gpus = [(str(draws.choice(["small", "fast", "large"])), int(draws.integers(1, 3))) for _ in range(2)]
    of = scenario(
        models={"a": "four", "b": "two", "c": "eight", "d": "giant"},
        cluster=nodes(*gpus, host=str(draws.choice(["box", "wide"]))),
        engine=engine,
        sharing={"contention": str(draws.choice(["proportional", "processor_sharing", "time_slice"]))},
        service_classes=[{"name": "default"}, {"name": "fast", "ttft_s": 3.0}],
    )
    arrivals_s = np.cumsum(draws.exponential(float(draws.choice([0.05, 0.5, 3.0])), 60)).tolist()
    rows: list[Row] = [
        (at_s, "abcd"[int(draws.integers(4))], int(draws.integers(1, 500)), int(draws.integers(1, 300)))
        for at_s in arrivals_s
    ]
    promised = [str(draws.choice(["default", "fast"])) for _ in rows]
    assert completed(play(of, made(name), classes(of, rows, promised))) == 60
