"""What makes aegaeon and fastserve themselves: pools and turns, queues and quanta.

Real engine, synthetic hardware of scenarios.py: on a `small` GPU a load of `four` takes 1.5 s + 4 GB / 8 GB/s = 2 s.
"""

from __future__ import annotations

from typing import Any

import pytest

from policies._parts.aegaeon_turns import turn_lengths
from sim.policy import Action, GpuView, Preempt, View
from sim.scenario.scenario import Scenario
from tests.support.policy_cases import Told, completed, made
from tests.support.scenarios import Row, columns, nodes, play, prefill_s, scenario, trace

PAIR = nodes(("small", 2))
# --- aegaeon


def test_aegaeon_turns_are_as_long_as_its_formula_says() -> None:
    # Steps of 20 and 50 ms keep 100 ms 5 and 2 times: alpha = 3 / (2 * 4) + 0.7, so the slower gets all of QMAX.
    assert turn_lengths([0.02, 0.05], 3.0, 0.1, 4.0) == pytest.approx([3 / (5 * 0.375), 4.0])
    # Little to switch: alpha is held at a half.
    assert turn_lengths([0.01, 0.01], 0.4, 0.1, 4.0) == pytest.approx([0.4 / (10 * 0.3)] * 2)
    assert turn_lengths([0.06], 2.0, 0.1, 4.0) == pytest.approx([4.0])
    # Free switches: a token each while the promise can be kept, else the longest turns.
    assert turn_lengths([0.01, 0.02], 0.0, 0.1, 4.0) == [0.01, 0.02]
    assert turn_lengths([0.01, 0.02], 1e-12, 0.1, 4.0) == [0.01, 0.02]
    assert (
        turn_lengths([0.05, 0.1], 0.0, 0.1, 4.0)
        == turn_lengths([0.05, 0.1], 1e-30, 0.1, 4.0)
        == pytest.approx([2.0, 4.0])
    )


class Turning:
    """An aegaeon run, and what was seen of its pools. Two GPUs: the first decodes, the second computes prompts."""

    def __init__(self, of: Scenario, rows: list[Row], **parameters: Any) -> None:
        self.policy = made("aegaeon", **parameters)
        self.turns: list[tuple[float, float, float]] = []  # start, end and quota of each turn that was used up
        self.started: dict[Any, float] = {}
        self.prompts: list[tuple[GpuView, int]] = []  # where a prompt was left, and with how many tokens
        self.engine = play(of, Told(self.policy, self.look), trace(of, rows))

    def look(self, view: View, actions: list[Action]) -> None:
        prefill = [worker.gpu for worker in self.policy._pools[True]]
        for instance in view.instances:
            if instance.gpu in prefill and len(view.gpus) > 1:
                assert all(request.produced_tokens <= 1 for request in instance.requests), view.now_s
        for action in actions:
            if isinstance(action, Preempt) and action.request.instance is not None:
                self.prompts.append((action.request.instance.gpu, action.request.produced_tokens))
        for worker in self.policy._pools[False]:
            batch = worker.batches[0] if worker.batches else None
            if batch is not None and worker.turn_ends_s is not None and batch not in self.started:
                self.started = {batch: view.now_s}
                self.turns.append((view.now_s, worker.turn_ends_s, batch.quota_s))


def test_aegaeon_decodes_in_turns_of_exactly_that_length_and_never_on_prefill_gpus() -> None:
    of = scenario(models={"a": "four", "b": "eight"}, cluster=PAIR)
    rows: list[Row] = [(0.0, "a", 100, 380), (0.1, "b", 100, 380), (0.2, "a", 50, 380), (0.3, "b", 50, 380)]
    seen = Turning(of, rows)
    assert completed(seen.engine) == 4
    assert len(seen.turns) > 4
    for start_s, end_s, quota_s in seen.turns:
        assert end_s == pytest.approx(start_s + quota_s)
        assert 0 < quota_s <= 4.0 + 1e-9
    # Both models fit beside each other, so a turn follows the other without a gap while both have work.
    followed = [(one[1], other[0]) for one, other in zip(seen.turns, seen.turns[1:], strict=False)]
    assert sum(end_s == pytest.approx(next_s) for end_s, next_s in followed) > 2
    assert [produced for _, produced in seen.prompts[:1]] == [0]  # asked for while the prompt was computed
    assert seen.engine.world.recorder.counts["loads"] == 4  # both models on both GPUs, once


def test_aegaeon_groups_prompts_by_model_up_to_eight() -> None:
    # The first is served at once; then b, a, b, a in groups of 8, 8, 2 and 1, instead of nineteen changes.
    of = scenario(models={"a": "four", "b": "giant"}, cluster=nodes(("small", 2)))
    rows = [(0.001 * n, "ab"[n % 2], 10, 1) for n in range(20)]
    assert play(of, made("aegaeon"), trace(of, rows)).world.recorder.counts["loads"] == 5
    alone = play(of, made("aegaeon", group_size=1), trace(of, rows))
    assert alone.world.recorder.counts["loads"] > 15


@pytest.mark.parametrize("prefill", ["first", "chunked"])
def test_aegaeon_on_one_gpu_has_both_roles(prefill: str) -> None:
    engine = {"max_sequences": 4, "prefill": prefill, "prefill_tokens": 64}
    of = scenario(models={"a": "four", "b": "giant"}, engine=engine)
    rows: list[Row] = [(0.3 * n, "ab"[n % 2], 300, 60) for n in range(8)]
    seen = Turning(of, rows)
    assert completed(seen.engine) == 8


@pytest.mark.parametrize(("gpus", "prefills"), [(16, 6), (2, 1), (3, 1), (8, 3)])
def test_aegaeon_splits_its_gpus_six_to_ten(gpus: int, prefills: int) -> None:
    of = scenario(cluster=nodes(("small", gpus)))
    policy = made("aegaeon")
    play(of, policy, trace(of, [(0.0, "a", 10, 5)]))
    assert [len(policy._pools[True]), len(policy._pools[False])] == [prefills, gpus - prefills]


# --- fastserve

ONE_PLACE = {"max_sequences": 1}


@pytest.mark.parametrize(("parameters", "levels"), [({}, [8, 1, 4]), ({"charge_swaps": False}, [1, 1, 4])])
def test_fastserve_enters_by_prefill_and_the_switch_that_it_causes(
    parameters: dict[str, bool], levels: list[int]
) -> None:
    # 2 s of loading and 20 ms of prefill: 10 ms x 2^8 = 2.56 s. Then 20 ms: 2^1; then 100 ms: 2^4 = 160 ms.
    assert prefill_s(4, 4, 100) == pytest.approx(0.02)
    rows: list[Row] = [(0.0, "a", 100, 900), (5.0, "a", 100, 5), (5.1, "a", 900, 5)]
    assert entered(rows, **parameters) == levels
    assert entered(rows, charge_swaps=False, skip_join=False) == [0, 0, 0]


def entered(rows: list[Row], **parameters: bool) -> list[int]:
    """The levels at which the requests entered."""
    of, policy = scenario(), made("fastserve", **parameters)
    levels: dict[int, int] = {}

    def tell(view: View, actions: list[Action]) -> None:
        levels.update({request.number: policy.jobs[request.number][0].level for request in view.arrived})

    play(of, Told(policy, tell), trace(of, rows))
    return [levels[number] for number in sorted(levels)]


def test_fastserve_demotes_after_the_quantum_and_lets_the_new_pass() -> None:
    of = scenario(engine=ONE_PLACE)
    policy = made("fastserve")
    seen: list[tuple[float, int, float]] = []

    def tell(view: View, actions: list[Action]) -> None:
        if 0 in policy.jobs:
            job = policy.jobs[0][0]
            seen.append((view.now_s, job.level, job.request.served_s))

    engine = play(of, Told(policy, tell), trace(of, [(0.0, "a", 100, 900), (5.0, "a", 100, 5)]))
    served_s = next(served for now_s, _, served in seen if now_s == 5.0)
    level = next(level for now_s, level, _ in seen if now_s == 5.0)
    assert 2.56 < served_s < 2.56 + 5.12  # it entered at level 8, and used up that quantum
    assert level == 9
    ends_s = columns(engine)["end_s"]
    assert ends_s[1] < 5.5 < ends_s[0]
    assert columns(engine)["sequence_preemptions"][0] == 1
    assert not columns(engine)["sequence_preemptions"][1]


@pytest.mark.parametrize(("starvation_s", "promoted"), [(3.0, True), (1e6, False)])
def test_fastserve_promotes_who_was_not_run_for_three_seconds(starvation_s: float, promoted: bool) -> None:
    # One place, and short requests without a pause: without promotion the long one does not run until they end.
    of = scenario(engine=ONE_PLACE)
    rows: list[Row] = [(0.0, "a", 10, 900), *((5.0 + 0.12 * n, "a", 10, 14) for n in range(150))]
    policy = made("fastserve", starvation_s=starvation_s, starvation_period=1)
    waits_s: list[float] = []
    levels: list[int] = []

    def tell(view: View, actions: list[Action]) -> None:
        job, gpu = policy.jobs.get(0, (None, None))
        if job is not None and 0 not in policy.queues[gpu].routed:
            waits_s.append(view.now_s - job.last_run_s)
        levels.append(job.level if job is not None else -1)

    play(of, Told(policy, tell), trace(of, rows))
    assert (0 in levels) is promoted
    assert (max(waits_s) < 3.5) is promoted  # its turn comes when the one that runs has used up its quantum
    assert max(waits_s) > 2.9


def test_fastserve_pays_for_a_switch_before_it_switches_again() -> None:
    # Promoted after 3 s, with a switch of 2 s: it runs for 2 s at least, instead of one quantum of 10 ms.
    of = scenario(
        models=[
            {"name": n, "model": "four", "engine": "quick", "max_context": 1024, "kv_tokens": 200_000} for n in "ab"
        ]
    )
    rows: list[Row] = [(0.0, "a", 10, 900), (0.5, "b", 10, 900)]
    counts = {}
    for charge in (True, False):
        engine = play(of, made("fastserve", charge_swaps=charge, starvation_period=1), trace(of, rows))
        counts[charge] = engine.world.recorder.counts["loads"]
        assert completed(engine) == 2
    assert counts[True] < counts[False]
