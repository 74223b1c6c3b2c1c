"""What a policy sees of requests and instances, against what the synthetic tables say by hand (scenarios.py)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sim.policy import Action, Load, RequestView, View, Wake
from tests.support.scenarios import Script, columns, nodes, play, prefill_s, scenario, serve_all, step_s, trace


def test_an_instance_may_run_fewer_sequences_than_the_engine_could() -> None:
    of = scenario()
    seen: list[tuple[int, int, int]] = []

    def decide(view: View) -> Iterator[Action]:
        yield from serve_all(view)
        if instances := view.instances:
            (one,) = instances
            seen.append((len(one.running), len(one.waiting), one.max_sequences))
        if view.now_s == 10.0:
            yield Wake(10.1)

    def start(view: View) -> Iterator[Action]:
        yield Load(view.models[0], view.gpus[0], 4, max_sequences=2)

    rows = [(10.0, "a", 10, 20)] * 5
    engine = play(of, Script(decide, start), trace(of, rows))
    assert max(running for running, _, _ in seen) == 2
    assert max(waiting for _, waiting, _ in seen) == 5  # before the first iteration
    assert {most for *_, most in seen} == {2}
    ends_s = sorted(columns(engine)["end_s"].tolist())
    assert ends_s[0] == ends_s[1] < ends_s[2] == ends_s[3] < ends_s[4]


def test_a_request_shows_its_promises_and_how_far_it_is() -> None:
    classes = [
        {"name": "default", "ttft_s": 2.0, "patience_s": 9.0},
        {"name": "other", "tpot_s": 0.1, "e2e_s": 30.0, "weight": 3.0},
    ]
    of = scenario(service_classes=classes, cluster=nodes(("small", 1)))
    seen: dict[float, tuple[Any, ...]] = {}
    kept: list[RequestView] = []

    def decide(view: View) -> Iterator[Action]:
        kept.extend(view.arrived)
        yield from serve_all(view)
        for request in kept[:1]:
            seen[view.now_s] = (request.first_token_s, request.served_s)
        if view.now_s == 10.0:
            (request,) = kept
            limits = (request.ttft_slo_s, request.tpot_slo_s, request.e2e_slo_s, request.patience_s)
            assert limits == (2.0, None, None, 9.0)
            yield from (Wake(10.0 + later) for later in (0.005, 0.5, 1.0))

    rows = [(10.0, "a", 10, 100)]
    start = Script(decide, lambda view: [Load(view.models[0], view.gpus[0], 4)])
    play(of, start, trace(of, rows))
    first_s = prefill_s(4, 4, 10)
    assert first_s < step_s(4, 4, 1, 0) + 0.005
    assert seen[10.0] == (None, 0.0)
    assert seen[10.005] == (None, pytest.approx(0.005))
    assert seen[10.5] == (pytest.approx(10.0 + first_s), pytest.approx(0.5))
    assert seen[11.0] == (pytest.approx(10.0 + first_s), pytest.approx(1.0))


def test_what_is_held_up_by_anothers_prompt_is_not_served() -> None:
    of = scenario(cluster=nodes(("small", 1)))
    kept: list[RequestView] = []
    served_s: dict[float, float] = {}

    def decide(view: View) -> Iterator[Action]:
        kept.extend(view.arrived)
        yield from serve_all(view)
        for request in kept[:1]:
            served_s[view.now_s] = request.served_s
        if view.now_s == 10.0:
            yield Wake(13.0)

    rows = [(10.0, "a", 10, 400), (11.0, "a", 800, 2)]
    play(of, Script(decide, lambda view: [Load(view.models[0], view.gpus[0], 4)]), trace(of, rows))
    assert served_s[13.0] == pytest.approx(3.0 - prefill_s(4, 4, 800), abs=1e-9)


def test_machines_show_their_links() -> None:
    of = scenario(cluster=nodes(("small", 1)), sharing={"contention": "time_slice"})

    def start(view: View) -> Iterator[Action]:
        gpu = view.gpus[0]
        assert (gpu.h2d_bytes_per_s, gpu.d2h_bytes_per_s) == (10e9, 5e9)
        assert gpu.node.disk_bytes_per_s == 2e9
        assert view.contention == "time_slice"
        yield Load(view.models[0], gpu, 4)

    play(of, Script(serve_all, start), trace(of, [(1.0, "a", 1, 1)]))
