"""The simulator against queueing theory: law 10 of model.md, and Little's law for every queue of every run.

Each case of queues/cases.py is played by the real simulator. Its means lie within their confidence intervals of what
theory says, and the intervals are narrow: half of a 95 % interval is at most 1 % of the mean. tools/theory.py prints
the table, for more requests and other seeds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sim.core.record.recorder import Recorder
from sim.engine.build_cluster import build_cluster
from sim.engine.engine import Engine
from sim.profiles.library import Library
from tests.support.fuzzing.random_cases import Seeded, random_case
from tests.support.fuzzing.random_policy import RandomPolicy
from tests.support.queues.cases import CASES, EVEN, FIXED, SECOND
from tests.support.queues.formulas import (
    Service,
    erlang_b,
    erlang_c_wait_s,
    estimate,
    finite_room,
    pollaczek_khinchine_s,
    polling_wait_s,
    preemptive_times_s,
    priority_waits_s,
    rounded,
    set_up_wait_s,
    window_controls,
)
from tests.support.queues.runs import (
    Case,
    Integrals,
    Played,
    findings,
    furthest,
    in_order,
    little,
    play,
    wait,
    write_hardware,
)
from tests.support.scenarios import trace

MEASURES = sum(len(case.measures) for case in CASES)


@pytest.fixture(scope="module")
def hardware(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_hardware(tmp_path_factory.mktemp("queues"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_queue_is_what_the_books_say(case: Case, hardware: str) -> None:
    played = play(case, hardware, case.requests)
    assert len(played.sojourn_s) == case.requests
    little(played)
    # What is taken out by regression is drawn as it should be: else it would hide what is wrong with the arrivals.
    controls = case.controls(played)
    assert furthest(controls) < 4.5
    for found in findings(case, played, controls):
        assert found.half_width <= 0.01, found
        assert found.agrees(MEASURES), found
        assert abs(found.plain.mean - found.theory) <= found.plain.wide(0.05 / MEASURES), found


def test_an_error_of_two_per_cent_would_be_seen(hardware: str) -> None:
    (case,) = (case for case in CASES if case.name == "M/M/1")
    played = play(case, hardware, case.requests)
    for found in findings(case, played, case.controls(played)):
        for factor in (0.98, 1.02):
            assert abs(found.found.mean - factor * found.theory) > found.found.wide(0.05 / MEASURES), found


@pytest.mark.parametrize("name", ["M/M/1", "M/M/1, decoding", "M/D/1"])
def test_each_request_waits_for_those_before_it(name: str, hardware: str) -> None:
    # Request by request it is the Lindley recursion: it waits for what the one before it waits and is served.
    (case,) = (case for case in CASES if case.name == name)
    played = play(case, hardware, 5000)
    gaps_s, served_s, waits_s = np.diff(played.rows["arrival_s"]), played.served_s, wait(played)
    expected_s = 0.0
    for index, gap_s in enumerate(gaps_s):
        expected_s = max(0.0, expected_s + served_s[index] - gap_s)
        assert abs(waits_s[index + 1] - expected_s) < 1e-6, index


# --- Little's law wherever requests are: random machines, models, options, and a policy that does anything legal


@settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=(Phase.explicit, Phase.generate),
)
@given(seed=st.integers(0, 2**32))
def test_little_holds_in_random_runs(seed: int) -> None:
    draws = Seeded(seed)
    of, rows = random_case(draws)
    recorder, series = Recorder(), Integrals()
    recorder.series, series.recorder = series, recorder
    policy = RandomPolicy(RandomPolicy.Parameters(stream=draws.number(0, 10_000)))
    library = Library(Path(of.profiles) if of.profiles else None)
    engine = Engine(of, iter([trace(of, rows)]), build_cluster(of, library), policy, False, recorder)
    engine.run()
    little(Played(of, engine.clock.now_s, in_order(recorder), series.of))


# --- the formulas themselves, where two of them meet


def test_formulas_agree_where_they_meet() -> None:
    rate, second, fixed = 0.6, rounded(SECOND, 0.001), rounded(FIXED, 0.01)
    load = rate * second.mean_s
    assert second.moment(2) == pytest.approx(2 * second.mean_s**2, rel=1e-4)  # rounding to whole tokens adds little
    waits_s = load / (1 - load) * second.mean_s
    assert pollaczek_khinchine_s(rate, second) == pytest.approx(waits_s, rel=1e-4)
    assert erlang_c_wait_s(rate, second.mean_s, 1) == pytest.approx(waits_s)
    assert pollaczek_khinchine_s(0.6, fixed) == pytest.approx(0.6 / 0.4 / 2)
    assert finite_room(load, 400)[-1] == pytest.approx(0, abs=1e-9)
    assert finite_room(2.0, 1)[-1] == pytest.approx(erlang_b(2.0, 1))
    assert set_up_wait_s(rate, second, 0.0) == pytest.approx(pollaczek_khinchine_s(rate, second))
    assert polling_wait_s([load], rate, second, 0.0) == pytest.approx(pollaczek_khinchine_s(rate, second))
    # Symmetric, exhaustive, N queues (Takagi): rate b2 / 2(1-load) + r (N - load) / 2(1-load).
    extra_s = polling_wait_s([load / 3] * 3, rate, second, 0.5) - pollaczek_khinchine_s(rate, second)
    assert extra_s == pytest.approx(0.5 * (3 - load) / (2 * (1 - load)))


def test_priorities_conserve_work() -> None:
    rates, laws = (0.2, 0.3), (rounded(SECOND, 0.01), rounded(EVEN, 0.01))
    loads = [rate * law.mean_s for rate, law in zip(rates, laws, strict=True)]
    waits_s = priority_waits_s(rates, laws)
    everybody = laws[0].mixed(0.4, laws[1])
    mean_s = sum(load * wait_s for load, wait_s in zip(loads, waits_s, strict=True)) / sum(loads)
    assert mean_s == pytest.approx(pollaczek_khinchine_s(sum(rates), everybody))  # Kleinrock's conservation law
    alone_s = pollaczek_khinchine_s(rates[0], laws[0]) + laws[0].mean_s
    assert preemptive_times_s(rates, laws)[0] == pytest.approx(alone_s)  # nobody else exists for the most urgent


def test_windows_grow_to_the_wait_of_the_queue() -> None:
    generator = np.random.default_rng(1)
    service = rounded({"law": "exponential", "mean": 10}, 0.1)
    arrival_s = np.cumsum(generator.exponential(1 / 0.3, 50_000))
    service_s = np.rint(generator.exponential(10, 50_000)).clip(1) * 0.1
    windows = window_controls(arrival_s, service_s, 0.3, service, (1, 4, 60))
    assert windows[-1][1] == pytest.approx(pollaczek_khinchine_s(0.3, service), rel=1e-6)
    for values, mean in windows:
        own = estimate(values)
        assert abs(own.mean - mean) < 4 * own.error
    assert isinstance(service, Service)
