"""Nothing that has passed stays in memory, nobody who only waits is looked at, and what spares a look hides nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.common.errors import PolicyError
from sim.core.state.ranking import Line
from sim.core.state.request import COMPLETED, TIMED_OUT
from sim.engine.engine import Engine
from sim.policy import Load, Preempt, Resize, Route, Stop, View, Wake
from tests.support.places import ROOT
from tests.support.scenarios import (
    FREE_OF_COST,
    Script,
    columns,
    load_all,
    nodes,
    play,
    scenario,
    serve_all,
    synthetic,
    trace,
)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), max_size=120))
def test_a_line_is_what_a_sorted_list_would_be(steps: list[tuple[int, int]]) -> None:
    line, expected = Line(), {}
    for number, urgency in steps:
        if number in expected:
            line.remove(number)
            del expected[number]
        else:
            line.push(urgency, number, f"member {number}")
            expected[number] = urgency
        order = sorted(expected, key=lambda member: (expected[member], member))
        assert line.in_order() == [f"member {member}" for member in order]
        assert len(line) == line.size == len(order)
        assert line.has(number) == (number in expected)
        assert not order or line.first() == f"member {order[0]}"


def test_who_leaves_a_line_from_the_middle_is_forgotten() -> None:
    line = Line()
    line.push(0, 0, "first")
    for number in range(1, 5000):
        line.push(0, number, "another")
        line.remove(number)
    assert len(line._heap) < 100


def impatient(count: int) -> Engine:
    """One slow instance, and so many clients who all leave before their turn."""
    of = scenario(
        profiles=synthetic(FREE_OF_COST),
        engine={"max_sequences": 1},
        service_classes=[{"name": "default", "patience_s": 5.0}],
    )
    rows = [(1.0 + n / count, "a", 10, 900 if n == 0 else 2) for n in range(count)]
    return play(of, Script(serve_all, load_all), trace(of, rows), check=False)


def test_who_runs_out_of_patience_leaves_a_long_queue_without_a_look_at_the_others() -> None:
    looked = 0

    class Counting(dict[int, int]):
        def get(self, *arguments: Any) -> Any:
            nonlocal looked
            looked += 1
            return super().get(*arguments)

    line = Line()
    line._present = Counting()
    count = 4000
    for number in range(count):
        line.push(0, number, number)
    for number in range(count - 1, -1, -1):
        line.remove(number)
    assert looked < 20 * count
    engine = impatient(300)
    assert engine.world.recorder.ended[TIMED_OUT] == 299
    assert engine.world.recorder.ended[COMPLETED] == 1


def test_an_instance_whose_last_waiting_client_left_has_fallen_idle() -> None:
    """Policies wait for that: whoever finished last saw the other still waiting."""
    of = scenario(
        profiles=synthetic(FREE_OF_COST),
        engine={"max_sequences": 1},
        service_classes=[{"name": "default", "patience_s": 5.0}],
    )
    idle_s: list[float] = []

    def decide(view: View) -> Iterator[Any]:
        idle_s.extend(view.now_s for _ in view.idled)
        yield from serve_all(view)

    rows = [(1.0, "a", 10, 100)]
    end_s = float(columns(play(of, Script(decide, load_all), trace(of, rows)))["end_s"][0])
    assert idle_s == [end_s]
    idle_s.clear()
    # The other's patience ends at the very instant of the finish.
    rows.append((end_s - 5.0, "a", 10, 100)) if end_s > 6.0 else rows.insert(0, (1.0, "a", 10, 100))
    engine = play(of, Script(decide, load_all), trace(of, sorted(rows)))
    ends = columns(engine)["end_s"]
    assert max(ends) in idle_s


@pytest.mark.parametrize("policy", ["exclusive-swap", "lru-swap"])
def test_instances_that_are_gone_leave_nothing_in_the_rankings(policy: str) -> None:
    from sim.policy import load_policy  # noqa: PLC0415

    models = {"a": "four", "b": "four", "c": "four"}
    of = scenario(models=models, profiles=synthetic(FREE_OF_COST))
    rows = [(2.0 * n, "abc"[n % 3], 10, 2) for n in range(150)]
    engine = play(of, load_policy(policy)[0], trace(of, rows))
    assert engine.world.recorder.counts["loads"] > 100
    kept: dict[int, bool] = {}
    cluster = engine.world.cluster
    for ranking in [*(m.ranking for m in cluster.models), *(p.idle for p in cluster.peers.values())]:
        kept |= dict.fromkeys((*ranking._marked, *ranking._present), True)
    assert set(kept) <= set(cluster.instances)


def test_sessions_that_are_over_leave_eight_bytes() -> None:
    of = scenario(profiles=synthetic(FREE_OF_COST))
    count = 300
    requests = replace(
        trace(of, [(0.5 * n, "a", 10, 2) for n in range(count)]),
        session=np.arange(count, dtype=np.int64),
        sessions=tuple(f"s{n}" for n in range(count)),
    )
    engine = play(of, Script(serve_all, load_all), requests)
    assert engine.world.recorder.ended[COMPLETED] == count
    assert not engine._feed._sessions
    assert not engine._feed._turns
    assert len(engine._feed._ended_s) == count


def test_a_restart_of_an_idle_instance_is_marked_though_it_was_looked_at_in_between() -> None:
    of = scenario(cluster=nodes(("large", 20)), models={"a": "four"})
    seen: list[int] = []

    def decide(view: View) -> Iterator[Any]:
        ready = [i for i in view.instances if i.idle and not i.resizing]
        if ready and not seen:
            yield Resize(ready[0], 2)
            view.shortlist(3)
            yield Wake(view.now_s + 0.1)  # while it is being freed
            seen.append(0)
        elif seen:
            of_cluster = next(iter(view._world.cluster.peers.values()))
            assert all(instance.idle for instance in of_cluster.idle.first(9))
            seen.append(1)
        yield from serve_all(view)

    play(of, Script(decide, load_all), trace(of, [(30.0, "a", 10, 2)]))
    assert len(seen) > 2


def test_a_refused_action_is_shown_with_its_fields() -> None:
    of = scenario()

    def decide(view: View) -> Iterator[Any]:
        yield Load(view.models[0], view.gpus[0], 99)

    with pytest.raises(
        PolicyError,
        match=r"Load\(model=model a, gpu=.*, layers=99, kv_tokens=None, max_sequences=None\) refused: layers",
    ):
        play(of, Script(decide), trace(of, [(1.0, "a", 10, 2)]))


@pytest.mark.parametrize(
    "mistake",
    [
        lambda view: Load(view.models[0], view.gpus[0], 4.0),
        lambda view: Load(view.models[0], view.gpus[0], np.int64(4)),
        lambda view: Load(None, view.gpus[0], 4),
        lambda view: Route(view.waiting[0], view.gpus[0]),
        lambda view: Stop(view.instances[0], 3),
        lambda view: Preempt(view.waiting[0], None),
        lambda view: Wake("5"),
        lambda view: Wake(10**400),
        lambda view: Wake(float("nan")),
        lambda view: None,
    ],
)
def test_a_field_of_the_wrong_type_is_the_policys_mistake_compiled_or_not(mistake: Any) -> None:
    of = scenario()

    def decide(view: View) -> Iterator[Any]:
        yield mistake(view)

    with pytest.raises(PolicyError, match=r"^policy 'lru-swap' (failed )?at t=1\.0") as error:
        play(of, Script(decide, load_all), trace(of, [(1.0, "a", 10, 2)]))
    assert "<string>" not in str(error.value)


def test_running_requests_show_their_tokens_compiled_or_not() -> None:
    """Tokens of the leap under way are counted without moving it."""
    of = scenario(
        profiles=synthetic(FREE_OF_COST), engine={"max_sequences": 8, "prefill": "chunked", "prefill_tokens": 64}
    )
    seen: list[tuple[int, int]] = []

    def decide(view: View) -> Iterator[Any]:
        for instance in view.instances:
            tokens = [request.produced_tokens for request in instance.requests]
            seen.extend((n, instance.free_kv_tokens) for n in tokens)
        yield from serve_all(view)

    rows = [(1.0 + 0.37 * n, "a", 200, 300) for n in range(8)]
    looked = columns(play(of, Script(decide, load_all), trace(of, rows)))
    alone = columns(play(of, Script(serve_all, load_all), trace(of, rows)))
    assert max(n for n, _ in seen) > 100
    assert looked["end_s"].tolist() == alone["end_s"].tolist()


def test_compiling_without_what_it_needs_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "mypyc").mkdir()
    (tmp_path / "mypyc" / "__init__.py").write_text("raise ModuleNotFoundError('No module named mypyc')\n")
    code = "from pathlib import Path; from tests.support.scripts import script; "
    code += f"script('compile').build(Path({str(tmp_path / 'built')!r}), False)"
    for environment, words in (({"PYTHONPATH": str(tmp_path)}, "pip install"), ({"CC": "/no/such/cc"}, "C compiler")):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, **environment},
            check=False,
        )
        assert done.returncode == 1
        if "mypy" not in done.stderr or environment.get("PYTHONPATH"):
            assert words in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
