"""Plays a Case of swarm.py and checks it in every way there is; what fails says which check it was.

CHECKS are functions of a case: the laws at every instant and over the finished run, accounts of our own, and pairs of
runs that must agree (again, renamed, from its own script, token by token). test_machine.py, test_laws.py and
tests/tools/fuzz.py call `check_case`; shrinking.py calls single checks. `Counter`s of what was reached come back.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from math import inf
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

import sim
from sim.common.errors import ConfigError
from sim.conformance.hardware import columns
from sim.core.record.recorder import Recorder
from sim.core.record.series import Series
from sim.core.serving import Serving
from sim.core.state.request import COMPLETED, IMPOSSIBLE, OUTCOMES, REJECTED, TIMED_OUT
from sim.engine.build_cluster import build_cluster
from sim.engine.engine import Engine
from sim.engine.ideal_hardware import in_its_world
from sim.policy import Policy, load_policy
from sim.profiles.library import Library
from tests.support.fuzzing.random_policy import LOT, STUCK, RandomPolicy
from tests.support.fuzzing.reached import reached
from tests.support.fuzzing.swarm import Case
from tests.support.laws import assert_laws, assert_rankings, assert_settled, assert_work_conserving

RANDOM = str(Path(__file__).with_name("random_policy.py"))
NEAR_TIE_S = 1e-9  # which of two instants that close comes first is a matter of rounding
SHIPPED_S = 500.0  # until when a shipped policy plays: some serve nobody after they have placed what they could


class Refused(Exception):
    """The case is a user's mistake, and was told so: nothing to play."""


@cache
def _library(profiles: str | None) -> Library:
    return Library(Path(profiles) if profiles else None)


def policy_of(case: Case) -> Policy:
    """A fresh policy object."""
    parameters = {name: value for name, value in case.policy.items() if name != "name"}
    if case.policy["name"] == RANDOM:
        return RandomPolicy(RandomPolicy.Parameters(**parameters))
    return load_policy(case.policy["name"], parameters)[0]


def prepared(case: Case, policy: Policy, check: bool = True, recorder: Recorder | None = None) -> Engine:
    """An engine that has not run yet. Raises Refused."""
    try:
        of = in_its_world(case.scenario(), policy)
        cluster = build_cluster(of, _library(of.profiles))
    except ConfigError as error:
        raise Refused(str(error)) from error
    trace = case.trace()
    pieces = [trace.select(slice(at, at + case.pieces)) for at in range(0, len(trace), case.pieces)]
    return Engine(of, iter(pieces), cluster, policy, check, recorder)


class Watch:
    """Looks at the engine at the end of every instant: what a policy cannot see, and how close instants come."""

    def __init__(self, engine: Engine, checks: bool = True) -> None:
        self.engine = engine
        self.checks = checks
        self.closest_s = inf
        self.instants = 0
        engine.clock.watch(self._look)

    def _look(self, next_s: float) -> float:
        before_s = self.engine.clock.now_s
        if next_s > before_s:
            self.closest_s = min(self.closest_s, next_s - before_s)
            self.instants += 1
            if self.checks:
                self.look()
        return 0.0

    def look(self) -> None:
        """The instant that has just ended."""
        for gpu in self.engine.world.cluster.down.values():
            assert not gpu.instances, f"{gpu.name} is down and has {len(gpu.instances)} instances (law 6)"
            working = gpu.active or gpu.used_bytes or gpu.link_rates
            assert not working, f"{gpu.name} is down and at work (law 6)"
        assert_kv_in_one_place(self.engine)
        assert_work_conserving(self.engine)
        assert_rankings(self.engine)


def assert_kv_in_one_place(engine: Engine) -> None:
    """Law 3, by going through everybody: in a batch or saved, and host memory holds what is saved, to the byte."""
    saved: Counter[int] = Counter()
    for request in engine._in_flight.values():
        if request.kv_node is not None:
            tokens = request.prompt_tokens + request.produced
            assert request.kv_tokens == tokens, f"request {request.index}: KV of {request.kv_tokens} of {tokens} tokens"
            size = request.model.kv_layer_bytes(tokens) * request.model.weights.layers
            saved[request.kv_node.index] += size
    for node in engine.world.cluster.nodes:
        held, known = node.memory.saved_kv_bytes, saved[node.index]
        # KV of a client that has left may still be on its way out.
        assert held == known or (held > known and engine.faults is not None), f"{node.name} saves {held}, not {known}"
    batches = [
        request.index
        for instance in engine.world.cluster.instances.values()
        for request in [*instance.decoding.values(), *instance.prefilling, *instance.joining]
        if request.kv_node is None
    ]
    instances = engine.world.cluster.instances.values()
    everybody = sum(len(i.decoding) + len(i.prefilling) + len(i.joining) for i in instances)
    assert len(set(batches)) == everybody, "somebody runs whose KV is saved, or runs twice"


# --- over a finished run


def assert_everyone_was_served(engine: Engine) -> None:
    """The calm part of the random policy gets every feasible request to its end, whatever the wild part left behind."""
    recorder = engine.world.recorder
    if recorder.faults is not None:
        return  # a fault may end anybody
    if any(service_class.patience_s for service_class in engine.world.cluster.service_classes):
        return
    ours = [number for reason, number in recorder.reasons.items() if reason in (STUCK, LOT)]
    rejected = np.isin(columns(engine)["reason"], ours).sum()
    assert recorder.ended[REJECTED] == rejected
    assert recorder.ended[COMPLETED] + recorder.ended[IMPOSSIBLE] + rejected == recorder.arrived


def assert_own_accounts(engine: Engine, case: Case) -> None:
    """Requests are those of the case; each ended as its numbers say; bytes on links are those of what was switched."""
    rows, recorder = columns(engine), engine.world.recorder
    names = ("model", "prompt_tokens", "output_tokens", "priority", "service_class", "session")
    seen = sorted(zip(*(rows[name].tolist() for name in names), strict=True))
    sent = sorted(row[1:7] for row in case.rows)
    cluster = engine.world.cluster
    if engine.scenario.horizon_s is None and len(cluster.down) < len(cluster.gpus):
        assert seen == sent, "requests were lost or changed"
    assert not Counter(seen) - Counter(sent)
    assert np.bincount(rows["outcome"], minlength=len(OUTCOMES)).tolist() == list(recorder.ended)
    for number, model in enumerate(engine.world.cluster.models):
        own = rows["model"] == number
        too_long = rows["prompt_tokens"] + rows["output_tokens"] > model.max_context
        expected = own & (too_long | bool(model.fits_nowhere))
        assert np.array_equal(own & (rows["outcome"] == IMPOSSIBLE), expected)
    limits_s = np.array([one.patience_s or inf for one in engine.world.cluster.service_classes])
    patience_s = limits_s[rows["service_class"]]
    cancelled = [number for reason, number in recorder.reasons.items() if reason.startswith("the client cancelled")]
    left = (rows["outcome"] == TIMED_OUT) & ~np.isin(rows["reason"], cancelled)
    assert (rows["end_s"] - rows["arrival_s"] >= patience_s - 1e-9)[left].all()
    assert not rows["produced_tokens"][left].any()
    if engine.scenario.horizon_s is None and recorder.faults is None:
        _assert_bytes(engine)


def _assert_bytes(engine: Engine) -> None:
    by_kind: dict[str, float] = defaultdict(float)
    broken_off = False
    kinds = {number: kind for kind, number in engine.world.recorder.switch_texts["kind"].items()}
    store = engine.world.recorder.switch_columns
    for kind, size in zip(store["kind"].tolist(), store["bytes"].tolist(), strict=True):
        by_kind[kinds[kind]] += size
        broken_off |= kinds[kind] == "broken-off load"
    moved: dict[str, float] = defaultdict(float)
    for links in engine.transfers.links:
        for link in links.h2d.values():
            moved["load"] += link.bytes_by_cause["weights"]
            moved["kv_restore"] += link.bytes_by_cause["kv_restore"]
            moved["resize"] += link.bytes_by_cause["resize"]
        for link in links.d2h.values():
            moved["kv_save"] += link.bytes_by_cause["kv_save"]
            moved["resize"] += link.bytes_by_cause["resize"]
    if not broken_off:
        assert _close(moved["load"], by_kind["load"] + by_kind["wake"]), (moved, by_kind)
    assert _close(moved["kv_save"], by_kind["kv_save"]), (moved, by_kind)
    if not any(links.network.bytes_by_cause["kv_restore"] for links in engine.transfers.links):
        assert _close(moved["kv_restore"], by_kind["kv_restore"]), (moved, by_kind)


def _close(one: float, other: float) -> bool:
    return abs(one - other) <= 1e-6 * max(1.0, one, other)


def assert_same(one: Engine, other: Engine, within: float = 0.0) -> None:
    """Two runs saw the same; to the last bit, or relative to 1 and the value."""
    mine, theirs = columns(one), columns(other)
    for name in mine:
        a, b = mine[name], theirs[name]
        if within and a.dtype.kind == "f":
            assert len(a) == len(b), (name, len(a), len(b))
            assert np.allclose(a, b, rtol=within, atol=within, equal_nan=True), f"{name}: {a.tolist()} {b.tolist()}"
        else:
            assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), f"{name}: {a.tolist()}, then {b.tolist()}"
    recorders = one.world.recorder, other.world.recorder
    if within:
        return
    assert recorders[0].seconds == recorders[1].seconds
    assert recorders[0].counts == recorders[1].counts
    assert recorders[0].bytes_by_cause == recorders[1].bytes_by_cause
    for recorder in recorders:
        recorder.latencies.settle()
    assert np.array_equal(recorders[0].latencies.counts, recorders[1].latencies.counts)


# --- the checks


def watched(case: Case, check: bool = True) -> tuple[Engine, Watch]:
    """Played to the end, with everything looked at or nothing."""
    if not check:
        case = replace(case, policy={**case.policy, **_unheard(case)})
    engine = prepared(case, policy_of(case), check)
    watch = Watch(engine, check)
    engine.run()
    return engine, watch


def assert_after(engine: Engine, case: Case) -> None:
    """All that must hold over a finished run."""
    assert_laws(engine, len(case.rows))
    assert_own_accounts(engine, case)
    cluster = engine.world.cluster
    if engine.scenario.horizon_s is None and len(cluster.down) < len(cluster.gpus):
        assert_settled(engine)
        if not case.policy.get("inner"):
            assert_everyone_was_served(engine)


def _laws(case: Case) -> Counter[str]:
    engine, watch = watched(case)
    assert_after(engine, case)
    return reached(case, engine) + Counter({"instants": watch.instants})


def _again(case: Case) -> Counter[str]:
    """The same once more, unchecked, with requests in other pieces, and somebody who looks on: not a bit differs."""
    recorder = Recorder()
    recorder.series = Series()
    quiet = replace(case, pieces=2 if case.pieces > 2 else 10_000, policy={**case.policy, **_unheard(case)})
    other = prepared(quiet, policy_of(quiet), False, recorder)
    other.run()
    engine, _ = watched(case)
    assert_same(engine, other)
    assert engine.clock.events == other.clock.events
    return Counter()


def _unheard(case: Case) -> dict[str, Any]:
    return {"audit": False} if case.policy["name"] == RANDOM else {}


def _renamed(case: Case) -> Counter[str]:
    """What a model is called changes nothing (law 8). Some of the systems that shipped policies follow go by name where
    all else is equal: for these the names keep their order."""
    letters = "uvwxyz" if case.policy.get("inner") else "zyxwvu"
    models = [{**model, "name": f"{letters[i]}-{model['name']}"} for i, model in enumerate(case.data["models"])]
    other = replace(case, data={**case.data, "models": models})
    assert_same(watched(case, False)[0], watched(other, False)[0])
    return Counter()


def as_script(case: Case, policy: RandomPolicy) -> Case:
    """The same with the actions that the policy took, written down."""
    kept = {name: value for name, value in case.policy.items() if name not in ("stream", "actions")}
    return replace(case, policy={**kept, "actions": [list(entry) for entry in policy.log]})


def _scripted(case: Case) -> Counter[str]:
    """What the policy did, played from the list of its actions, is the same run: failures can be cut down."""
    if case.policy.get("inner") or case.policy["name"] != RANDOM:
        return Counter()
    engine, _ = watched(case, False)
    policy = engine.policy
    assert isinstance(policy, RandomPolicy)
    assert_same(engine, watched(as_script(case, policy), False)[0])
    return Counter({"actions": len(policy.log)})


@contextmanager
def stepping() -> Iterator[None]:
    """Every leap is one iteration long. Only an interpreted engine can be told so."""
    start: Callable[[Serving, Any], None] = Serving._start_leap

    def one_step(serving: Serving, instance: Any) -> None:
        start(serving, instance)
        if instance.leap is not None:
            instance.leap.steps = 1

    with patch.object(Serving, "_start_leap", one_step):
        yield


def _tied(one: Policy, other: Policy) -> bool:
    """Do two runs part within an instant, by how many decisions it takes? Then the end of an iteration falls on it: to
    who leaps it is a rounding away, within the leap, where no watch sees it."""
    assert isinstance(one, RandomPolicy)
    assert isinstance(other, RandomPolicy)
    for (early_s, number), (late_s, others_number) in zip(one.decided, other.decided, strict=False):
        if number != others_number or abs(early_s - late_s) > NEAR_TIE_S:
            return number > 0 or others_number > 0
    return False


def _stepped(case: Case) -> Counter[str]:
    """Leaping gives the numbers of stepping, whatever is done meanwhile, where no two instants nearly meet."""
    if sim.COMPILED or case.policy.get("inner"):
        return Counter()
    engine, watch = watched(case, False)
    with stepping():
        other, closer = watched(case, False)
    if min(watch.closest_s, closer.closest_s) < NEAR_TIE_S or _tied(engine.policy, other.policy):
        return Counter({"stepped: left out, near ties": 1})
    assert_same(engine, other, within=1e-9)
    return Counter({"stepped: compared": 1, "stepped: events saved": other.clock.events - engine.clock.events})


CHECKS: dict[str, Callable[[Case], Counter[str]]] = {
    "laws": _laws,
    "again": _again,
    "renamed": _renamed,
    "scripted": _scripted,
    "stepped": _stepped,
}


class CaseFailed(Exception):
    """A check failed; the cause says how."""

    def __init__(self, check: str, case: Case, cause: Exception) -> None:
        super().__init__(f"check '{check}': {type(cause).__name__}: {cause}")
        self.check = check
        self.case = case
        self.cause = cause


def check_case(case: Case, names: tuple[str, ...] = tuple(CHECKS)) -> Counter[str]:
    """Every check; what was reached. Raises CaseFailed, and Refused if there is nothing to play."""
    found: Counter[str] = Counter()
    for name in names:
        try:
            found += CHECKS[name](case)
        except Refused:
            raise
        except Exception as error:
            raise CaseFailed(name, case, error) from error
    return found
