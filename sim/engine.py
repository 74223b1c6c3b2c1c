"""The simulated world in motion, and the only file that imports SimPy: arrivals, the decision turn, the end of a run.

`simulate` builds the world of a scenario, feeds arrivals one at a time, and after all events of an instant lets the
policy decide once and serving plan. Read `Engine._on_arrival`, `Engine._turn` and then serving.py to follow a request.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heappush
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import simpy

from sim.asking import Asking
from sim.build import build_cluster
from sim.cluster import Cluster
from sim.errors import PolicyError
from sim.estimates import Estimates
from sim.gate import Gate
from sim.library import Library
from sim.loading import Loading
from sim.locate import code_digest
from sim.metrics import Recorder
from sim.policy import Policy, load_policy
from sim.serving import Serving
from sim.spec import Scenario, run_id
from sim.state import IMPOSSIBLE, PREFILL, READY, TIMED_OUT, UNFINISHED, Request
from sim.trace import Trace
from sim.transfers import Transfers
from sim.views import Views
from sim.workload import build_trace
from sim.world import Changes, World

# So many wake-ups in a row, asked for by the policy, with no other event in between: it waits for nothing.
_IDLE_WAKES = 10_000
# So long without a token after the last arrival, with work left and something always going on: loads without an end.
_STALLED_S = 86_400.0
# So many decisions in one instant, each of which changed something at once: it goes round in circles.
_MOST_DECISIONS = 1_000


class _Timer(simpy.Event):
    """An event that calls action(subject, version) when its time comes. It is made by the million, so it is bare:
    what SimPy keeps in each event and is the same for all of these stands in the class."""

    _ok = True
    _value = None

    def __init__(
        self, fire: Callable[[Any], None], action: Callable[[Any, int], None], subject: Any, version: int
    ) -> None:
        self.callbacks = [fire]
        self.action = action
        self.subject = subject
        self.version = version


class SimClock(simpy.Environment):
    """SimPy's environment with calls at absolute times, so that an arrival happens exactly at its trace's time."""

    def __init__(self, turn: Callable[[], None]) -> None:
        super().__init__(0.0)
        self._now: float
        self._turn = turn
        self._fire = self.fire  # bound once
        self._sequence = count()
        self._stopped = False
        self.events = 0
        self.now_s = 0.0

    def at(self, time_s: float, action: Callable[[Any, int], None], subject: Any, version: int) -> None:
        """Call action(subject, version) at `time_s`, in the order of the calls of that instant."""
        assert time_s >= self._now, (time_s, self._now)
        if self._stopped:
            return
        heappush(self._queue, (time_s, 1, next(self._sequence), _Timer(self._fire, action, subject, version)))  # type: ignore[misc]

    def fire(self, timer: Any) -> None:
        """One event: what it does, and the turn if it was the last of its instant."""
        self.events += 1
        self.now_s = self._now
        timer.action(timer.subject, timer.version)
        if not self._queue or self._queue[0][0] > self._now:
            self._turn()

    def stop(self) -> None:
        """Nothing that is still to come matters: `run` ends after this event, whatever its turn still asks for."""
        self._stopped = True
        self._queue.clear()


@dataclass(frozen=True)
class Outcome:
    """A finished run: what was asked, what was seen."""

    scenario: Scenario
    run_id: str
    policy_name: str
    oracle: str
    trace: Trace
    cluster: Cluster
    recorder: Recorder
    link_bytes: dict[str, dict[str, float]]  # by link, then by cause
    events: int
    end_s: float
    wall_s: float


class Engine:
    """One run."""

    def __init__(self, scenario: Scenario, trace: Trace, cluster: Cluster, policy: Policy, check: bool) -> None:
        self.scenario = scenario
        self.policy = policy
        self.check = check
        self.clock = SimClock(self._turn)
        self.world = World(self.clock, cluster, scenario.engine, scenario.sharing, Recorder())
        self.transfers = Transfers(self.world)
        self.serving = Serving(self.world, self.transfers)
        self.loading = Loading(self.world, self.transfers, self.serving)
        self.estimates = Estimates(scenario.predictor, scenario.seed, len(cluster.models))
        self.views = Views(self.world, self.estimates)
        gate = Gate(self.world, self.serving, self.loading, scenario.policy.name, self._wake_at)
        self.asking = Asking(self.world, self.views, gate, scenario.policy.name)
        self.on_progress: Callable[[int, float], None] | None = None
        self._trace = trace
        self._rows = trace.rows()
        self._in_flight: dict[int, Request] = {}
        self._wakes = 0
        self._progress = (0, 0.0)  # tokens and ends so far, and since when there are no more
        self._wake_times: dict[float, bool] = {}
        self._fed = False  # the last arrival has come

    # --- arrivals

    def _feed(self) -> None:
        """Set the timer of the next arrival; there is only ever one."""
        row = next(self._rows, None)
        if row is None:
            self._fed = True
        else:
            self.clock.at(row[0], self._on_arrival, row, 0)

    def _on_arrival(self, row: Any, _: int) -> None:
        arrival_s, model_index, prompt_tokens, output_tokens, service_class, priority = row
        recorder = self.world.recorder
        model = self.world.cluster.models[model_index]
        request = Request(recorder.arrived, model, arrival_s, prompt_tokens, output_tokens)
        request.service_class = service_class
        request.priority = priority
        recorder.arrived += 1
        self.estimates.arrived(request)
        reason = self._impossible(request)
        if reason:
            request.reason = reason
            recorder.end(request, IMPOSSIBLE, arrival_s)
        else:
            self._in_flight[request.index] = request
            self.world.cluster.wait(request)
            self.world.changes.arrived.append(request)
            patience_s = self.world.cluster.service_classes[service_class].patience_s
            if patience_s is not None:
                self.clock.at(arrival_s + patience_s, self._on_impatience, request, 0)
        self._feed()

    def _impossible(self, request: Request) -> str:
        model = request.model
        if model.fits_nowhere:
            return model.fits_nowhere
        tokens = request.prompt_tokens + request.output_tokens
        if tokens > model.max_context:
            return f"needs more than {model.name}'s max_context of {model.max_context} tokens"
        return ""

    def _on_impatience(self, subject: Any, _: int) -> None:
        """The client leaves if no token has come; while its prompt is computed it looks again after a while."""
        request: Request = subject
        if request.outcome >= 0 or request.started:
            return
        if request.phase == PREFILL:
            patience_s = self.world.cluster.service_classes[request.service_class].patience_s
            assert patience_s is not None
            self.clock.at(self.clock.now_s + patience_s, self._on_impatience, request, 0)
            return
        if request.index in request.model.waiting:
            self.world.cluster.unwait(request)
        else:
            self.serving.withdraw(request)
        request.reason = "client patience ran out"
        self.world.recorder.end(request, TIMED_OUT, self.clock.now_s)
        self.world.changes.finished.append(request)

    # --- the decision turn

    def _wake_at(self, time_s: float) -> None:
        if time_s not in self._wake_times:
            self._wake_times[time_s] = True
            self.clock.at(time_s, self._on_wake, time_s, 0)

    def _on_wake(self, time_s: Any, _: int) -> None:
        del self._wake_times[time_s]
        self.world.changes.woken = True

    def _turn(self) -> None:
        """After all events of an instant: one decision, then plans; again if these changed something at once."""
        world = self.world
        decisions = 0
        changing = world.changes.any()
        while changing or world.unplanned():
            if changing:
                changes, world.changes = world.changes, Changes()
                self._watch_progress(changes)
                for request in changes.finished:
                    del self._in_flight[request.index]
                    self.estimates.ended(request)
                if self._concerns_policy(changes):
                    self.asking.ask(self.policy.decide, changes)
                for request in changes.finished:
                    request.view = None  # else view and request keep each other alive until the garbage collector comes
                decisions += 1
                if decisions > _MOST_DECISIONS:
                    reason = f"it decided {_MOST_DECISIONS} times within one instant without an end"
                    raise PolicyError(self.asking.blame(reason))
            self.serving.plan()
            changing = world.changes.any()
        if self.check:
            self._check_laws()
        if self._fed and not self._in_flight:
            self.clock.stop()
        if self.on_progress is not None and self.clock.events % 4096 == 0:
            self.on_progress(sum(world.recorder.ended), self.clock.now_s)

    def _concerns_policy(self, changes: Changes) -> bool:
        """Not if requests only finished, nobody waits, and the policy said that it does not follow that."""
        if self.policy.follows_every_finish or self.world.cluster.waiting_models or changes.woken:
            return True
        return bool(changes.loaded or changes.idled or changes.freed)

    def _watch_progress(self, changes: Changes) -> None:
        recorder = self.world.recorder
        progress = recorder.output_tokens + sum(recorder.ended)
        if progress != self._progress[0] or not self._fed:
            self._progress = (progress, self.clock.now_s)
        elif self.clock.now_s - self._progress[1] > _STALLED_S:
            waiting = len(self._in_flight)
            raise PolicyError(self.asking.blame(f"no token in a simulated day while {waiting} requests wait"))
        only_woken = changes.woken and not (changes.arrived or changes.finished or changes.loaded or changes.freed)
        self._wakes = self._wakes + 1 if only_woken else 0
        if self._wakes > _IDLE_WAKES:
            raise PolicyError(
                self.asking.blame(f"it asked to be woken {_IDLE_WAKES} times in a row while nothing else happened")
            )

    def _check_laws(self) -> None:
        try:
            self.world.cluster.check()
            arrived, ended = self.world.recorder.arrived, sum(self.world.recorder.ended)
            assert arrived == ended + len(self._in_flight), (arrived, ended, len(self._in_flight))
            for instance in self.world.cluster.instances.values():
                if instance.leap is None and instance.status == READY and not instance.saving:
                    assert not instance.decoding, f"{instance.number} decodes nothing (law 7)"
        except AssertionError as error:
            raise AssertionError(
                f"a law is broken at t={self.clock.now_s!r} s, scenario '{self.scenario.name}', "
                f"seed {self.scenario.seed}, policy '{self.scenario.policy.name}': {error}"
            ) from error

    # --- the run

    def run(self) -> None:
        """Until every request has ended, or the horizon. What has not ended then is unfinished."""
        self.asking.ask(self.policy.start, Changes())
        self.serving.plan()
        self._feed()
        if self.scenario.horizon_s is not None:
            self.clock.at(self.scenario.horizon_s, lambda _subject, _version: self.clock.stop(), None, 0)
        self.clock.run()
        now_s = self.clock.now_s
        for instance in list(self.world.cluster.instances.values()):
            self.serving.close(instance)
        for request in list(self._in_flight.values()):
            if request.outcome < 0:
                self.world.recorder.end(request, UNFINISHED, now_s)
        self._assert_trace_was_kept()
        self.transfers.close()
        self.loading.close()
        for gpu in self.world.cluster.gpus:
            gpu.account(now_s)
            gpu.take(0, now_s)

    def _assert_trace_was_kept(self) -> None:
        """Requests are as their clients sent them; only a policy that reached behind its views changes them."""
        columns = self.world.recorder.columns
        rows = np.asarray(columns["request"])
        for name, truth in (("prompt_tokens", self._trace.prompt_tokens), ("output_tokens", self._trace.output_tokens)):
            if not np.array_equal(np.asarray(columns[name]), truth[rows]):
                raise PolicyError(self.asking.blame(f"it changed {name} of requests behind its views"))


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Nearly nothing here is cyclic garbage, so the collector need not look at all objects in flight so often."""
    before = gc.get_threshold()
    gc.set_threshold(50_000, 20, 20)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def prepare(scenario: Scenario, trace: Trace) -> tuple[str, Policy, Cluster]:
    """The name of the run that this would be, and what it needs: its policy, and its cluster at time 0.

    The name is a hash of all that affects the result: scenario, trace, policy file, tables, and the simulator's source.
    Raises SimError for what the user can mend.
    """
    library = Library(Path(scenario.profiles) if scenario.profiles else None)
    policy, digest = load_policy(scenario.policy.name, scenario.policy.parameters)
    cluster = build_cluster(scenario, library)
    profiles = [profile for model in cluster.models for profile in model.profiles.values()]
    ingredients = [("trace", trace.digest()), ("policy", digest), ("sim", code_digest()), *library.digests(profiles)]
    return run_id(scenario, ingredients), policy, cluster


def simulate(
    scenario: Scenario,
    check: bool = False,
    trace: Trace | None = None,
    on_progress: Callable[[int, float], None] | None = None,
) -> Outcome:
    """Run a scenario to its end.

    `check` asserts the laws of the model at every instant. `trace` replaces the scenario's workload (already built).
    `on_progress(ended, now_s)` is called now and then. Raises SimError for what the user can mend.
    """
    trace = trace if trace is not None else build_trace(scenario)
    identity, policy, built = prepare(scenario, trace)
    engine = Engine(scenario, trace, built, policy, check)
    engine.on_progress = on_progress
    begin_s = perf_counter()
    with _rare_collections():
        engine.run()
    return Outcome(
        scenario=scenario,
        run_id=identity,
        policy_name=scenario.policy.name,
        oracle=policy.oracle,
        trace=trace,
        cluster=built,
        recorder=engine.world.recorder,
        link_bytes=engine.transfers.bytes_by_link(),
        events=engine.clock.events,
        end_s=engine.clock.now_s,
        wall_s=perf_counter() - begin_s,
    )
