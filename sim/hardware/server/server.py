"""A small real server of many models on one device, under a policy of `policies/`: what `validate` measures.

Threads run real tensors (transformer.py): continuous batching, partial residency, loads and unloads within a memory
budget, KV saved and restored. The policy sees the same views and acts through the same gate as in the simulator; so
requests, instances and accounts are the simulator's plain records. Nothing here takes a time from a profile: every
clock is real. One thread decides, each instance has a thread that computes and one that moves bytes.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import partial
from heapq import heappop, heappush
from time import perf_counter
from typing import Any, cast

import torch

from sim.core.clock import SimClock
from sim.core.core import Core
from sim.core.record.recorder import Recorder
from sim.core.state.instance import Instance
from sim.core.state.request import TIMED_OUT, Request
from sim.core.world import Changes, World
from sim.engine.arrival_feed import request_of
from sim.engine.ask_policy import Asking
from sim.engine.engine import Outcome, prepare
from sim.engine.validate_action import Gate
from sim.hardware.model.device import Device
from sim.hardware.model.transformer import Transformer
from sim.hardware.model.weights import HostWeights
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


class WorkerThread:
    """A thread with a queue of jobs, bound to the device's core or to the host's; results go to the control thread."""

    def __init__(self, server: LiveServer, name: str, on_host: bool) -> None:
        self.server = server
        self.on_host = on_host
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Callable[[Any, float], None]] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, job: Callable[[], Any], then: Callable[[Any, float], None]) -> None:
        """Run job() here, and then(result, seconds it took) in the control thread."""
        self._jobs.put((job, then))

    def close(self) -> None:
        self._jobs.put(None)

    def _run(self) -> None:
        device = self.server.device
        device.bind(self.on_host)
        with device.stream():
            while (entry := self._jobs.get()) is not None:
                job, then = entry
                begin_s = perf_counter()
                try:
                    result = job()
                except BaseException as error:  # of this thread: the control thread raises it
                    self.server.post(_raiser(error))
                    return
                seconds = perf_counter() - begin_s
                self.server.post(partial(then, result, seconds))


def _raiser(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


class LiveInstance:
    """The real side of an instance: its tensors, its threads, and which sequence has which KV slot."""

    def __init__(self, server: LiveServer, instance: Instance) -> None:
        model = instance.model
        kv_tokens = instance.kv_blocks * instance.block_tokens
        slots = min(instance.max_sequences, kv_tokens // model.max_context)
        self.real = Transformer(
            server.weights[model.name],
            server.device,
            instance.residency.layers,
            slots,
            model.max_context,
            server.offload,
        )
        self.compute = WorkerThread(server, f"computes {instance.number}", on_host=False)
        self.mover = WorkerThread(server, f"moves {instance.number}", on_host=True)
        self.free_slots = list(range(slots))
        self.slots: dict[int, int] = {}  # by request
        self.busy = False

    def take_slot(self, request: Request) -> int:
        self.slots[request.index] = self.free_slots.pop()
        return self.slots[request.index]

    def drop_slot(self, request: Request) -> None:
        self.free_slots.append(self.slots.pop(request.index))

    def close(self) -> None:
        self.compute.close()
        self.mover.close()


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
        self.sides: dict[int, LiveInstance] = {}
        self.texts: dict[int, list[int]] = {}  # token ids of each request in flight: its prompt, then its answer
        self.serving, self.loading = LiveServing(self), LiveLoading(self)
        self.estimates = Estimates(scenario.predictor, scenario.seed, len(self.cluster.models))
        views = Views(self.world, self.estimates)
        self.core = Core(self.world, self.serving, self.loading)
        gate = Gate(self.core, scenario.policy.name, self._wake_at)
        self.asking = Asking(self.core, views, gate, scenario.policy.name)
        self._posts: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._in_flight: dict[int, Request] = {}

    def post(self, call: Callable[[], None]) -> None:
        """From any thread: have the control thread make this call."""
        self._posts.put(call)

    def side(self, instance: Instance) -> LiveInstance:
        """The real side of an instance, made with its threads when it is first asked for."""
        if instance.number not in self.sides:
            self.sides[instance.number] = LiveInstance(self, instance)
        return self.sides[instance.number]

    def forget(self, instance: Instance) -> None:
        """The instance's memory is given back: nothing real is left of it."""
        self.sides.pop(instance.number).close()

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
            call = self._posts.get(timeout=patience_s) if patience_s else self._posts.get_nowait()
        except queue.Empty:
            if not times:
                raise AssertionError(f"nothing happened for {_PATIENCE_S} s while requests wait") from None
            self.clock.look()
            return
        while True:
            self.clock.look()
            call()
            try:
                call = self._posts.get_nowait()
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
        self.texts[request.index] = prompt.tolist()
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
                    text = self.texts.pop(request.index)
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
        for side in self.sides.values():
            side.close()
        for side in self.sides.values():
            for worker in (side.compute, side.mover):
                worker._thread.join()
            side.real.free()
        self.sides.clear()
