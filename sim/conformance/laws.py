"""What must hold after any run, whatever the policy did (model.md section 10), as assertions over an engine.

`assert_laws` reads the recorder's columns and the accounts that the run left behind; the checks of this package and
the tests of the engine call it. The laws of every instant are the engine's own (`check=True`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.conformance.hardware import columns
from sim.core.state.instance import ASLEEP, DRAINING, READY
from sim.core.state.ranking import Ranking
from sim.core.state.request import COMPLETED, PHASES, UNFINISHED
from sim.engine.engine import Engine

ROUNDING = 1e-9


def assert_laws(engine: Engine, arrivals: int) -> None:
    """Laws 1 to 7 over a finished run of a trace with so many requests."""
    recorder = engine.world.recorder
    rows = columns(engine)
    cluster = engine.world.cluster
    if engine.scenario.horizon_s is None and len(cluster.down) < len(cluster.gpus):  # else nobody is left to serve
        assert recorder.arrived == arrivals
        assert recorder.ended[UNFINISHED] == 0
    assert recorder.arrived == sum(recorder.ended) == len(rows["request"])
    assert rows["request"].tolist() == list(range(recorder.arrived))
    _assert_times(engine)
    _assert_tokens(engine)
    _assert_machines(engine)


def _assert_times(engine: Engine) -> None:
    rows = columns(engine)
    e2e_s = rows["end_s"] - rows["arrival_s"]
    parts_s = np.array([rows[f"{phase}_s"] for phase in PHASES])
    assert (e2e_s >= 0).all()
    assert (parts_s >= -ROUNDING).all(), parts_s.min()
    wrong_s = np.abs(parts_s.sum(axis=0) - e2e_s)
    assert (wrong_s <= ROUNDING * np.maximum(1.0, e2e_s)).all(), wrong_s.max()
    began = rows["produced_tokens"] > 0
    assert (rows["first_token_s"][began] > rows["arrival_s"][began]).all()
    assert (rows["end_s"][began] >= rows["first_token_s"][began]).all()
    assert np.isnan(rows["first_token_s"][~began]).all()
    assert (rows["end_s"] <= engine.clock.now_s).all()
    if engine.scenario.horizon_s is not None:
        assert engine.clock.now_s <= engine.scenario.horizon_s


def _assert_tokens(engine: Engine) -> None:
    rows, recorder = columns(engine), engine.world.recorder
    produced, completed = rows["produced_tokens"], rows["outcome"] == COMPLETED
    assert (produced <= rows["output_tokens"]).all()
    assert (produced[completed] == rows["output_tokens"][completed]).all()
    assert recorder.output_tokens == produced.sum()
    recorder.latencies.settle()
    # A sequence that was preempted, however often, has one latency before each token but its first.
    assert recorder.latencies.tokens == np.maximum(0, produced - 1).sum()
    assert recorder.latencies.counts.sum() == recorder.latencies.tokens
    between_s = rows["end_s"] - rows["first_token_s"]
    exact_s = between_s[completed].sum()
    if not (recorder.ended[UNFINISHED] or (produced[~completed] > 0).any()):
        assert abs(recorder.latencies.total_s - exact_s) <= 1e-7 * max(1.0, exact_s)
    residency = rows["mean_residency"][produced > 0]
    assert ((residency >= 0) & (residency <= 1 + ROUNDING)).all()


def _assert_machines(engine: Engine) -> None:
    cluster = engine.world.cluster
    for gpu in cluster.gpus:
        assert abs(sum(gpu.activity_s.values()) - engine.clock.now_s) <= ROUNDING * max(1.0, engine.clock.now_s)
        assert min(gpu.activity_s.values()) >= 0
        assert 0 <= gpu.peak_bytes <= gpu.capacity_bytes
    timed = [] if "switches" in engine.scenario.engine.ideal else engine.transfers.links
    for links in timed:
        for link in (links.disk, links.network, *links.h2d.values(), *links.d2h.values()):
            most = link.full_bytes_per_s * engine.clock.now_s
            running = sum(transfer.remaining for transfer in link.transfers.values())
            assert sum(link.bytes_by_cause.values()) - running <= most * (1 + ROUNDING) + 1.0, link.name
    if not engine.world.recorder.ended[UNFINISHED]:
        cluster.check()


def assert_rankings(engine: Engine) -> None:
    """The rankings that spare a policy a look at everybody say what that look would say, whenever they are asked."""
    cluster = engine.world.cluster
    pairs: list[tuple[Ranking, list[Any]]] = [(m.ranking, list(m.instances.values())) for m in cluster.models]
    for peers in cluster.peers.values():
        pairs += [(ranking, peers.gpus) for ranking in (peers.roomy, peers.quiet, peers.yielding)]
        pairs.append((peers.idle, [i for gpu in peers.gpus for i in gpu.instances.values()]))
    for ranking, everybody in pairs:
        rank_of = ranking._rank_of
        expected = sorted(rank for member in everybody if (rank := rank_of(member)) is not None)
        assert [rank_of(member) for member in ranking.first(len(everybody) + 1)] == expected, rank_of.__name__
        assert sorted(rank for _, rank in ranking._present.values()) == expected, rank_of.__name__


def assert_settled(engine: Engine) -> None:
    """Nobody holds saved KV once every request has ended."""
    for node in engine.world.cluster.nodes:
        assert node.memory.saved_kv_bytes == 0, (node.name, node.memory.saved_kv_bytes)


def assert_work_conserving(engine: Engine) -> None:
    """Law 7, at the end of an instant: nobody waits at an instance that does nothing."""
    for instance in engine.world.cluster.instances.values():
        if instance.leap is not None or instance.saving or instance.restoring:
            continue
        if instance.status == READY and instance.stop_mode is None:
            assert not instance.waiting, f"instance {instance.number} leaves {len(instance.waiting)} waiting"
        if instance.status == DRAINING:
            assert instance.sequences, f"instance {instance.number} drains nobody"
        assert instance.status != ASLEEP or not instance.waiting, f"instance {instance.number} sleeps on a queue"
