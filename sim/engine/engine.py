"""The simulated world in motion: arrivals, the decision turn, the end of a run.

`simulate` builds the world of a scenario, feeds arrivals one at a time, and after all events of an instant lets the
policy decide once and serving plan. Read `Engine._on_arrival`, `Engine._turn` and then serving.py to follow a request.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from sim.common.errors import PolicyError
from sim.common.time_limit import not_for_ever
from sim.core.core import SimulatedCore
from sim.core.record.recorder import Recorder
from sim.core.state.machines import Cluster
from sim.core.state.request import PREFILL, TIMED_OUT, Request
from sim.core.world import Changes
from sim.engine.arrival_feed import Feed, request_of
from sim.engine.ask_policy import Asking
from sim.engine.build_cluster import build_cluster
from sim.engine.faults import make_faults
from sim.engine.ideal_hardware import in_its_world, marks
from sim.engine.run_code import code_digests
from sim.engine.stall_guard import StallGuard
from sim.engine.validate_action import Gate
from sim.policy.interface.estimates import Estimates
from sim.policy.interface.future import Future
from sim.policy.interface.models import Views
from sim.policy.interface.policy import Policy
from sim.policy.loader import load_policy, why_not_marked
from sim.profiles.library import Library
from sim.scenario.scenario import Scenario, TraceWorkload, run_id
from sim.traces.trace import Row, Signs, Trace
from sim.workload.requests import Workload, open_workload

# So many decisions in one instant, each of which changed something at once: it goes round in circles.
_MOST_DECISIONS = 1_000
_REPORT_EVERY = 4_096  # events, to whoever follows the run


@dataclass(frozen=True)
class Outcome:
    """A finished run: what was asked, what was seen."""

    scenario: Scenario
    run_id: str
    policy_name: str
    oracle: str
    notices: tuple[str, ...]  # what is to be known about the requests that were played
    cluster: Cluster
    recorder: Recorder
    link_bytes: dict[str, dict[str, float]]  # by link, then by cause
    events: int
    end_s: float
    wall_s: float
    ingredients: tuple[tuple[str, str], ...] = ()  # (name, hash) of all that names the run beside the scenario


class Engine:
    """One run."""

    def __init__(
        self,
        scenario: Scenario,
        chunks: Iterator[Trace],
        cluster: Cluster,
        policy: Policy,
        check: bool = False,
        recorder: Recorder | None = None,
    ) -> None:
        self.scenario = scenario
        self.policy = policy
        self.check = check
        self.core = core = SimulatedCore(cluster, scenario.engine, scenario.sharing, recorder or Recorder(), self._turn)
        self.clock, self.world, self.transfers = core.clock, core.world, core.transfers  # for who looks at a run
        self.estimates = Estimates(scenario.predictor, scenario.seed, len(cluster.models))
        self.views = Views(core.world, self.estimates)
        gate = Gate(core, scenario.policy.name, self._wake_at)
        self.asking = Asking(core, self.views, gate, scenario.policy.name)
        self.progress = StallGuard(core, self.asking)
        self.on_progress: Callable[[int, float], None] | None = None
        self.on_events: Callable[[int], None] | None = None
        self._feed = Feed(chunks, self.clock, self._on_arrival)
        self._in_flight: dict[int, Request] = {}
        self._report_at = _REPORT_EVERY
        self._spare = Changes()  # to be used in turn with the world's
        self._wake_times: dict[float, bool] = {}
        self.faults = make_faults(scenario, core, self._in_flight.get)
        self._missed: Changes | None = None  # what happened since no GPU has been up

    # --- arrivals

    def _on_arrival(self, row: Row) -> Request:
        """The request of a row arrives now."""
        request = request_of(row, self.core.recorder.arrived, self.core.cluster.models, self.clock.now_s)
        self.estimates.arrived(request)
        if self.core.arrive(request):
            self._in_flight[request.index] = request
            self._be_patient(request)
        else:
            self.estimates.ended(request)
        if self.faults is not None:
            self.faults.arrived(request)
        return request

    def _be_patient(self, request: Request) -> None:
        """Its client looks again after a while; only its number is kept, so that who has long ended is not."""
        patience_s = self.core.cluster.service_classes[request.service_class].patience_s
        if patience_s is not None:
            self.clock.at(self.clock.now_s + patience_s, self._on_impatience, None, request.index)

    def _on_impatience(self, _: Any, number: int) -> None:
        """The client leaves if no token has come; while its prompt is computed it looks again after a while."""
        request = self._in_flight.get(number)
        if request is None or request.outcome >= 0 or request.started:
            return
        if request.phase == PREFILL:
            self._be_patient(request)
            return
        waited = self.core.take_back(request)
        assert waited, request.index
        self.core.end(request, TIMED_OUT, "client patience ran out")

    # --- the decision turn

    def _wake_at(self, time_s: float) -> None:
        if time_s not in self._wake_times:
            self._wake_times[time_s] = True
            self.clock.at(time_s, self._on_wake, time_s, 0)

    def _on_wake(self, time_s: Any, _: int) -> None:
        del self._wake_times[time_s]
        self.core.wake()

    def _turn(self) -> None:
        """After all events of an instant: one decision, then plans; again if these changed something at once."""
        core = self.core
        decisions = 0
        changing = core.changed
        while changing or core.unplanned:
            if changing:
                changes = core.take_changes(self._spare)
                if not self.progress.look(changes, self._feed.done, len(self._in_flight)):
                    self.clock.stop()
                for request in changes.finished:
                    del self._in_flight[request.index]
                    self.estimates.ended(request)
                    self._feed.ended(request)
                if core.cluster.down or self._missed is not None:
                    changes = self._put_off(changes)
                if self._missed is None and self._concerns_policy(changes):
                    self.asking.ask(self.policy.decide, changes)
                for request in changes.finished:
                    request.view = None  # else view and request keep each other alive until the garbage collector comes
                changes.clear()
                self._spare = changes
                decisions += 1
                if decisions > _MOST_DECISIONS:
                    reason = f"it decided {_MOST_DECISIONS} times within one instant without an end"
                    raise PolicyError(self.asking.blame(reason))
            core.plan()
            changing = core.changed
        if self.check:
            self._check_laws()
        if self._feed.done and (not self._in_flight or self._only_faults_to_come()):
            self.clock.stop()
        if self.clock.events >= self._report_at:
            self._report_at = self.clock.events + _REPORT_EVERY
            if self.on_progress is not None:
                self.on_progress(core.recorder.all_ended, self.clock.now_s)
            if self.on_events is not None:
                self.on_events(self.clock.pending)

    def _put_off(self, changes: Changes) -> Changes:
        """While no GPU is up there is nothing to decide on; when one comes back, all that happened since is told."""
        none_up = len(self.core.cluster.down) == len(self.core.cluster.gpus)
        if self._missed is None and not none_up:
            return changes
        missed = self._missed if self._missed is not None else Changes()
        missed.add(changes)
        if not none_up:
            self._missed = None
            return missed
        self._missed = missed
        return Changes()

    def _only_faults_to_come(self) -> bool:
        """Is all that is still to happen of no use to who waits: that more fails by chance?"""
        return self.faults is not None and self.clock.pending <= self.faults.idle_timers

    def _concerns_policy(self, changes: Changes) -> bool:
        """Not if requests only finished, nobody waits, and the policy said that it does not follow that."""
        if self.policy.follows_every_finish or self.core.cluster.waiting_models or changes.woken:
            return True
        return bool(changes.loaded or changes.idled or changes.freed or changes.failed or changes.lost)

    def _check_laws(self) -> None:
        try:
            self.core.check(len(self._in_flight))
        except AssertionError as error:
            raise AssertionError(
                f"a law is broken at t={self.clock.now_s!r} s, scenario '{self.scenario.name}', "
                f"seed {self.scenario.seed}, policy '{self.scenario.policy.name}': {error}"
            ) from error

    # --- the run

    def run(self) -> None:
        """Until every request has ended, or the horizon. What has not ended then is unfinished."""
        self.begin()
        self.clock.run()
        self.finish()

    def begin(self) -> None:
        """What the policy does before the first arrival; from here on the clock may run, or be stepped."""
        if reason := why_not_marked(self.policy):
            raise PolicyError(self.asking.blame(reason))
        if self.policy.foresees:
            chunks = self._feed.all_chunks()
            future = Future(chunks, [model.name for model in self.core.cluster.models])
            self.policy.foresee(future)
        self.asking.ask(self.policy.start, Changes())
        self.core.plan()
        if self.faults is not None:
            self.faults.start()
        self._feed.next()
        if self.scenario.horizon_s is not None:
            self.clock.at(self.scenario.horizon_s, lambda _subject, _version: self.clock.stop(), None, 0)

    def finish(self) -> None:
        """The run is over: book what is under way, and end who has not ended."""
        self.core.close(self._in_flight.values())
        self._assert_trace_was_kept()

    def _assert_trace_was_kept(self) -> None:
        """Requests are as their clients sent them; only a policy that reached behind its views changes them."""
        if self.core.recorder.digest_sum != self._feed.checksum():
            raise PolicyError(self.asking.blame("it changed tokens of requests behind its views"))


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Nearly nothing here is cyclic garbage, so the collector need not look at all objects in flight so often."""
    before = gc.get_threshold()
    gc.set_threshold(200_000, 20, 20)
    gc.freeze()  # what was there before the run need not be looked at
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def prepare(
    scenario: Scenario, library: Library | None = None, chosen: tuple[Policy, str] | None = None
) -> tuple[Policy, Cluster, list[tuple[str, str]]]:
    """What a run needs: its policy, its cluster at time 0, and the hashes of all that affects the result but the trace.

    `library`: the scenario's tables, if they are open already. `chosen`: the policy and the hash of its source, when it
    is not the one that the scenario's name for it means. Raises SimError for what the user can mend.
    """
    library = library or Library(Path(scenario.profiles) if scenario.profiles else None)
    policy, digest = chosen or load_policy(scenario.policy.name, scenario.policy.parameters)
    cluster = build_cluster(in_its_world(scenario, policy), library)
    nodes, gpus = (node.kind for node in cluster.nodes), (gpu.kind for gpu in cluster.gpus)
    profiles = (profile for model in cluster.models for profile in model.profiles.values())
    parts = [(f"policy part {number}", part) for number, part in enumerate(policy.parts(), 1)]
    tables = library.digests([*nodes, *gpus, *profiles])
    return policy, cluster, [("policy", digest), *parts, *tables, *code_digests()]


def identify(scenario: Scenario, workload: Workload, chosen: tuple[Policy, str] | None = None) -> str:
    """The name of the run that this would be: a hash of the scenario, the trace, the policy's file, the tables that it
    uses and the source that plays it. Reads the whole trace if nobody has yet. Raises SimError."""
    policy, _, ingredients = prepare(scenario, None, chosen)
    return run_id(in_its_world(scenario, policy), [("trace", workload.digest()), *ingredients])


def simulate(
    scenario: Scenario,
    check: bool = False,
    workload: Workload | None = None,
    on_progress: Callable[[int, float], None] | None = None,
    on_events: Callable[[int], None] | None = None,
    recorder: Recorder | None = None,
    chosen: tuple[Policy, str] | None = None,
) -> Outcome:
    """Run a scenario to its end.

    `check` asserts the laws of the model at every instant. `workload`: the scenario's own, if it is open already.
    `on_progress(ended, now_s)` and `on_events(pending)`, with the number of events to come, are called now and then.
    `recorder`: a fresh one, if it is to follow more than the default, or to set things aside elsewhere. `chosen`: as
    for `prepare`. Raises SimError for what the user can mend.
    """
    workload = workload if workload is not None else open_workload(scenario)
    policy, cluster, parts = prepare(scenario, None, chosen)
    scenario = in_its_world(scenario, policy)
    signs = Signs()

    def watched() -> Iterator[Trace]:
        for chunk in workload.chunks():
            signs.add(chunk)
            yield chunk

    engine = Engine(scenario, watched(), cluster, policy, check, recorder)
    engine.on_progress, engine.on_events = on_progress, on_events
    begin_s = perf_counter()
    with _rare_collections(), not_for_ever(engine.asking.running, engine.asking.blame):
        engine.run()
    wall_s = perf_counter() - begin_s
    played = isinstance(scenario.workload, TraceWorkload)
    ingredients = (("trace", workload.digest()), *parts)
    return Outcome(
        scenario=scenario,
        run_id=run_id(scenario, ingredients),
        policy_name=scenario.policy.name,
        oracle=marks(scenario, policy),
        notices=(*workload.notices, *(signs.remarks() if played else ())),
        cluster=cluster,
        recorder=engine.core.recorder,
        link_bytes=engine.core.transfers.bytes_by_link(),
        events=engine.clock.events,
        end_s=engine.clock.now_s,
        wall_s=wall_s,
        ingredients=ingredients,
    )
