"""The real side of instances: tensors, threads, KV slots, token ids of requests. Made and closed by server.py."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

from sim.core.state.instance import Instance
from sim.core.state.request import Request
from sim.core.world import World
from sim.hardware.model.device import Device
from sim.hardware.model.transformer import Transformer
from sim.hardware.model.weights import HostWeights

Post = Callable[[Callable[[], None]], None]  # from any thread: have the control thread make this call


class WorkerThread:
    """A thread with a queue of jobs, bound to the device's core or to the host's; results go to the control thread."""

    def __init__(self, device: Device, post: Post, name: str, on_host: bool) -> None:
        self.device, self.post = device, post
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
        device = self.device
        device.bind(self.on_host)
        with device.stream():
            while (entry := self._jobs.get()) is not None:
                job, then = entry
                begin_s = perf_counter()
                try:
                    result = job()
                except BaseException as error:  # of this thread: the control thread raises it
                    self.post(_raiser(error))
                    return
                seconds = perf_counter() - begin_s
                self.post(partial(then, result, seconds))


def _raiser(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


class LiveInstance:
    """The real side of an instance: its tensors, its threads, and which sequence has which KV slot."""

    def __init__(self, instance: Instance, device: Device, weights: HostWeights, offload: str, post: Post) -> None:
        model = instance.model
        kv_tokens = instance.blocks.total * instance.blocks.tokens
        slots = min(instance.max_sequences, kv_tokens // model.max_context)
        self.real = Transformer(weights, device, instance.residency.layers, slots, model.max_context, offload)
        self.compute = WorkerThread(device, post, f"computes {instance.number}", on_host=False)
        self.mover = WorkerThread(device, post, f"moves {instance.number}", on_host=True)
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


class LiveInstances:
    """The real sides of all instances. `texts`: token ids of each request in flight, its prompt, then its answer."""

    def __init__(self, world: World, device: Device, weights: dict[str, HostWeights], offload: str) -> None:
        self.world = world
        self.posts: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.sides: dict[int, LiveInstance] = {}
        self.texts: dict[int, list[int]] = {}
        self._device, self._weights, self._offload = device, weights, offload

    def side(self, instance: Instance) -> LiveInstance:
        """The real side of an instance, made with its threads when it is first asked for."""
        if instance.number not in self.sides:
            weights = self._weights[instance.model.name]
            self.sides[instance.number] = LiveInstance(instance, self._device, weights, self._offload, self.posts.put)
        return self.sides[instance.number]

    def forget(self, instance: Instance) -> None:
        """The instance's memory is given back: nothing real is left of it."""
        self.sides.pop(instance.number).close()
