"""feed.py: who arrives when. Closed loops wait for answers, nothing is read early, and what was sent is summed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.engine.build_cluster import build_cluster
from sim.engine.engine import Engine
from sim.policy import Reject, View
from sim.profiles.library import Library
from sim.traces.trace import Trace
from tests.support.scenarios import FREE_OF_COST, Script, columns, load_all, play, scenario, serve_all, synthetic, trace

NAN = float("nan")
OF = scenario(profiles=synthetic(FREE_OF_COST))
LIBRARY = Library(Path(synthetic(FREE_OF_COST)))


def sessions(rows: list[tuple[Any, ...]], session: list[int], think_s: list[float]) -> Trace:
    names = tuple(f"s{code}" for code in range(max(session) + 1))
    return replace(
        trace(OF, rows),
        session=np.array(session, dtype=np.int64),
        sessions=names,
        think_s=np.array(think_s, dtype=np.float64),
    )


def arrivals(requests: Trace, **changes: Any) -> Any:
    return columns(play(OF, Script(serve_all, load_all), requests, **changes))


def test_a_turn_waits_for_the_answer_before_it_and_its_think_time() -> None:
    rows = [(1.0, "a", 100, 50), (1.0, "a", 100, 5), (1.0, "a", 100, 5)]
    seen = arrivals(sessions(rows, [0, 0, 0], [NAN, 2.0, 0.5]))
    assert seen["arrival_s"][0] == 1.0
    assert seen["arrival_s"][1] == seen["end_s"][0] + 2.0
    assert seen["arrival_s"][2] == seen["end_s"][1] + 0.5


def test_a_turn_is_never_sent_before_its_own_time() -> None:
    rows = [(1.0, "a", 100, 5), (500.0, "a", 100, 5), (500.0, "a", 100, 5)]
    seen = arrivals(sessions(rows, [0, 0, 0], [NAN, 2.0, 3.0]))
    assert seen["arrival_s"][1] == 500.0
    assert seen["arrival_s"][2] == seen["end_s"][1] + 3.0


def test_an_open_turn_waits_for_nobody_but_the_one_after_it_does() -> None:
    rows = [(1.0, "a", 100, 900), (1.5, "a", 100, 5), (1.5, "a", 10, 5), (1.5, "a", 100, 5)]
    seen = arrivals(sessions(rows, [0, 0, 1, 0], [NAN, NAN, NAN, 1.0]))
    by_end = dict(zip(seen["request"].tolist(), seen["end_s"].tolist(), strict=True))
    assert seen["arrival_s"][:3].tolist() == [1.0, 1.5, 1.5]
    assert seen["arrival_s"][3] == by_end[1] + 1.0 < by_end[0]


def test_a_turn_that_failed_ends_too() -> None:
    def decide(view: View) -> Iterator[Any]:
        yield from (Reject(request, "no") for request in view.waiting)

    impossible = (3.0, "a", 2000, 5)
    rows = [(1.0, "a", 100, 5), (1.0, "a", 100, 5), impossible, (3.0, "a", 100, 5)]
    seen = columns(play(OF, Script(decide), sessions(rows, [0, 0, 0, 0], [NAN, 4.0, 1.0, 0.25])))
    assert seen["arrival_s"].tolist() == [1.0, 5.0, 6.0, 6.25]
    assert seen["prompt_tokens"].tolist() == [100, 100, 2000, 100]


def test_the_run_ends_when_the_last_turn_has_and_a_horizon_cuts_what_is_thought_about() -> None:
    rows = [(1.0, "a", 100, 5), (1.0, "a", 100, 5)]
    engine = play(OF, Script(serve_all, load_all), sessions(rows, [0, 0], [NAN, 1000.0]))
    assert engine.world.recorder.arrived == 2
    assert engine.clock.now_s > 1000
    cut = scenario(profiles=synthetic(FREE_OF_COST), horizon_s=500)
    engine = play(cut, Script(serve_all, load_all), sessions(rows, [0, 0], [NAN, 1000.0]))
    assert engine.world.recorder.arrived == engine.world.recorder.ended[0] == 1


@st.composite
def closed_loops(draw: st.DrawFn) -> Trace:
    count = draw(st.integers(1, 30))
    gaps = draw(st.lists(st.sampled_from([0.0, 0.1, 3.0]), min_size=count, max_size=count))
    session = draw(st.lists(st.integers(-1, 3), min_size=count, max_size=count))
    think = draw(st.lists(st.sampled_from([NAN, 0.0, 0.7, 20.0]), min_size=count, max_size=count))
    lengths = draw(st.lists(st.sampled_from([1, 7, 200]), min_size=count, max_size=count))
    known: list[int] = []
    for place, code in enumerate(session):
        if code < 0 or code not in known:
            think[place] = NAN
        known.append(code)
    # Every row can be told by its prompt.
    rows = [(t, "a", 1 + place, n) for place, (t, n) in enumerate(zip(np.cumsum(gaps), lengths, strict=True))]
    return sessions(rows, [max(code, -1) for code in session] if max(session) >= 0 else [-1] * count, think)


@given(closed_loops(), st.integers(1, 40))
def test_the_contract_holds_for_any_closed_loop_and_any_chunks(requests: Trace, chunk: int) -> None:
    engine = Engine(
        OF,
        (requests.select(slice(start, start + chunk)) for start in range(0, len(requests), chunk)),
        build_cluster(OF, LIBRARY),
        Script(serve_all, load_all),
    )
    engine.run()
    seen = columns(engine)
    row_of = {int(prompt) - 1: place for place, prompt in enumerate(seen["prompt_tokens"])}
    assert sorted(row_of) == list(range(len(requests)))
    assert requests.think_s is not None
    last: dict[int, int] = {}
    for row in range(len(requests)):
        session, think_s = int(requests.session[row]), float(requests.think_s[row])
        expected_s = float(requests.arrival_s[row])
        if think_s >= 0:
            expected_s = max(expected_s, float(seen["end_s"][row_of[last[session]]]) + think_s)
        assert seen["arrival_s"][row_of[row]] == expected_s
        if session >= 0:
            last[session] = row
    assert (np.diff(seen["arrival_s"]) >= 0).all(), "requests are numbered as they arrive"


def test_the_trace_is_read_as_time_passes() -> None:
    requests = trace(OF, [(10.0 * place, "a", 10, 5) for place in range(40)])
    ahead: list[int] = []
    read = 0

    def chunks() -> Iterator[Trace]:
        nonlocal read
        for start in range(0, 40, 4):
            read = start + 4
            yield requests.select(slice(start, start + 4))

    def decide(view: View) -> Iterator[Any]:
        ahead.extend(read - request.number for request in view.arrived)
        yield from serve_all(view)

    Engine(OF, chunks(), build_cluster(OF, LIBRARY), Script(decide, load_all)).run()
    assert len(ahead) == 40
    assert max(ahead) <= 8  # its own chunk, and the one that the next arrival is taken from


def test_changed_requests_are_noticed() -> None:
    def decide(view: View) -> Iterator[Any]:
        for request in view.arrived:
            request._of.output_tokens = 1
        yield from serve_all(view)

    with pytest.raises(Exception, match="behind its views"):
        play(OF, Script(decide, load_all), trace(OF, [(0.0, "a", 10, 50)]), check=False)
