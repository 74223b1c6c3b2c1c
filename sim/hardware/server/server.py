"""A small real server of many models on one device, under a policy of `policies/`: what `validate` measures.

Threads run real tensors (transformer.py): continuous batching, partial residency, loads and unloads within a memory
budget, KV saved and restored. The policy sees the same views and acts through the same gate as in the simulator; so
requests, instances and accounts are the simulator's plain records. Nothing here takes a time from a profile: every
clock is real. One thread decides, each instance has a thread that computes and one that moves bytes.
"""

from __future__ import annotations

import queue
from collections.abc import Callable
from heapq import heappop, heappush
from time import perf_counter
from typing import Any, cast

import torch

from sim.core.clock import SimClock
from sim.core.core import Core
from sim.core.record.recorder import Recorder
from sim.core.state.request import TIMED_OUT, Request
from sim.core.world import Changes, World
from sim.engine.arrival_feed import request_of
from sim.engine.ask_policy import Asking
from sim.engine.engine import Outcome, prepare
from sim.engine.validate_action import Gate
from sim.hardware.model.device import Device
from sim.hardware.model.weights import HostWeights
from sim.hardware.server.live_instances import LiveInstances
from sim.hardware.server.loading import LiveLoading
from sim.hardware.server.serving import LiveServing
from sim.policy.interface.estimates import Estimates
from sim.policy.interface.models import Views
from sim.scenario.scenario import Scenario
from sim.traces.trace import Row
from sim.workload.requests import build_trace

_PATIENCE_S = 600.0  # so long without any event: the run hangs


class LiveClock:
    """Seconds since the start. A decision sees one instant, so `now_s` only moves when the control thread looks."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.events = 0
        self._begin_s = perf_counter()
        self._timers: list[tuple[float, int, Callable[[Any, int], None], Any, int]] = []

    def start(self) -> None:
        self._begin_s = perf_counter()

    def look(self) -> float:
        """Move on to the real time, in seconds since the start."""
        self.now_s = max(self.now_s, perf_counter() - self._begin_s)
        return self.now_s

    def at(self, time_s: float, action: Callable[[Any, int], None], subject: object, version: int) -> None:
        """Call action(subject, version) when it is `time_s`."""
        self.events += 1
        heappush(self._timers, (time_s, self.events, action, subject, version))

    def fire(self) -> None:
        """Make the calls that are due."""
        while self._timers and self._timers[0][0] <= self.now_s:
            _, _, action, subject, version = heappop(self._timers)
            action(subject, version)

    @property
    def next_s(self) -> float | None:
        return self._timers[0][0] if self._timers else None


class LiveServer:
    """One run of a scenario in real time.

    `weights`: of each served model, in host memory; offload: cpu or stream; check: assert the laws over memory, KV and
    tokens after every decision; keep: `answers` keeps the tokens of those who completed, by request.
    """

    def __init__(
        self,
        scenario: Scenario,
        device: Device,
        weights: dict[str, HostWeights],
        offload: str,
        check: bool = False,
        keep: bool = False,
    ) -> None:
        self.scenario, self.device, self.weights, self.offload = scenario, device, weights, offload
        self.check, self.keep = check, keep
        self.answers: dict[int, list[int]] = {}
        self.policy, self.cluster, _ = prepare(scenario)
        # World and Gate name the engine's classes; the server's own do what those are asked for.
        self.clock = LiveClock()
        self.world = World(cast(SimClock, self.clock), self.cluster, scenario.engine, scenario.sharing, Recorder())
        self.live = LiveInstances(self.world, device, weights, offload)
        self.serving = LiveServing(self.live)
        self.loading = LiveLoading(self.live, self.serving)
        self.estimates = Estimates(scenario.predictor, scenario.seed, len(self.cluster.models))
        views = Views(self.world, self.estimates)
        self.core = Core(self.world, self.serving, self.loading)
        gate = Gate(self.core, scenario.policy.name, self._wake_at)
        self.asking = Asking(self.core, views, gate, scenario.policy.name)
        self._in_flight: dict[int, Request] = {}

    def run(self) -> Outcome:
        """Play the whole trace in real time."""
        rows = list(build_trace(self.scenario).rows())
        rows.reverse()
        self.device.bind(to_host=True)
        self.asking.ask(self.policy.start, Changes())
        self.clock.start()
        self._turn()
        while rows or self._in_flight:
            self._wait(rows[-1].arrival_s if rows else None)
            while rows and rows[-1].arrival_s <= self.clock.look():
                self._arrive(rows.pop())
            self.clock.fire()
            self._turn()
        end_s = self.clock.look()
        self._shut_down()
        return Outcome(
            scenario=self.scenario,
            run_id="live",
            policy_name=self.scenario.policy.name,
            oracle="",
            notices=(),
            cluster=self.cluster,
            recorder=self.world.recorder,
            link_bytes={},
            events=self.clock.events,
            end_s=end_s,
            wall_s=end_s,
        )

    def _wait(self, arrival_s: float | None) -> None:
        """Until a thread reports, an arrival or a timer; then make all calls that were posted."""
        times = [time_s for time_s in (arrival_s, self.clock.next_s) if time_s is not None]
        patience_s = max(0.0, min(times) - self.clock.look()) if times else _PATIENCE_S
        try:
            call = self.live.posts.get(timeout=patience_s) if patience_s else self.live.posts.get_nowait()
        except queue.Empty:
            if not times:
                raise AssertionError(f"nothing happened for {_PATIENCE_S} s while requests wait") from None
            self.clock.look()
            return
        while True:
            self.clock.look()
            call()
            try:
                call = self.live.posts.get_nowait()
            except queue.Empty:
                return

    def _arrive(self, row: Row) -> None:
        request = request_of(row, self.core.recorder.arrived, self.cluster.models, row.arrival_s)
        self.estimates.arrived(request)
        if not self.core.arrive(request):
            return
        self._in_flight[request.index] = request
        vocabulary = self.weights[request.model.name].shape.vocab
        prompt = torch.arange(row.prompt_tokens).add(request.index * 97).remainder(vocabulary)
        self.live.texts[request.index] = prompt.tolist()
        patience_s = self.cluster.service_classes[row.service_class].patience_s
        if patience_s is not None:
            self.clock.at(row.arrival_s + patience_s, self._lose_patience, request, 0)

    def _lose_patience(self, request: Request, _: int) -> None:
        if request.outcome < 0 and not request.started and self.core.take_back(request):
            self.core.end(request, TIMED_OUT, "client patience ran out")

    def _wake_at(self, time_s: float) -> None:
        self.clock.at(time_s, self._woken, None, 0)

    def _woken(self, _: Any, __: int) -> None:
        self.world.changes.woken = True

    def _turn(self) -> None:
        """Let the policy decide on what has happened, and start what can be started; until nothing changes."""
        world = self.world
        while world.changes.any() or world.touched:
            if world.changes.any():
                changes = self.core.take_changes(Changes())
                for request in changes.finished:
                    text = self.live.texts.pop(request.index)
                    if self.keep:
                        self.answers[request.index] = text[request.prompt_tokens :]
                    del self._in_flight[request.index]
                    self.estimates.ended(request)
                self.asking.ask(self.policy.decide, changes)
            touched, world.touched = world.touched, {}
            for number in sorted(touched):
                self.serving.begin(touched[number])
        if self.check:
            self.cluster.check()

    def _shut_down(self) -> None:
        """Every request has ended: give all memory back, whatever is still being loaded."""
        for side in self.live.sides.values():
            side.close()
        for side in self.live.sides.values():
            for worker in (side.compute, side.mover):
                worker._thread.join()
            side.real.free()
        self.live.sides.clear()
