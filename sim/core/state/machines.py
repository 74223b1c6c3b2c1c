"""What is true now of the machines: GPUs, nodes, who is placed on them, the cluster, and who waits in its queue.

Memory accounts and activity clocks are kept by their mutators; `Cluster.check` asserts the laws that hold at every
instant (model.md section 10). Nothing here knows SimPy.
"""

from __future__ import annotations

from typing import Protocol

from sim.core.state.facade import Facade
from sim.core.state.host_memory import HostMemory
from sim.core.state.instance import DRAINING, READY, STATUSES, STOPPING, Instance, Model
from sim.core.state.kv_blocks import sequence_blocks
from sim.core.state.ranking import Rank, Ranking
from sim.core.state.request import Request
from sim.profiles.profile import GpuKind, HostKind
from sim.scenario.scenario import ServiceClass


class ActivityLog(Protocol):
    """Who is told what a GPU did, in a run that is followed in detail."""

    def activity(self, gpu: Gpu, kind: str, begin_s: float, end_s: float) -> None: ...


class Peers:
    """The GPUs of one kind in hosts of one kind, ranked for those who must not look at all of them."""

    def __init__(self) -> None:
        self.gpus: list[Gpu] = []
        self.roomy = Ranking(_room_rank)  # the most available memory first
        self.quiet = Ranking(_crowd_rank)  # the fewest instances that compute first
        self.idle = Ranking(_idle_rank)  # idle instances on them, the longest unused first
        self.yielding = Ranking(_yield_rank)  # the most memory first, if all that is idle there were stopped

    def add(self, gpu: Gpu) -> None:
        self.gpus.append(gpu)
        gpu.peers = self
        gpu.changed()

    def shortlist(self, count: int) -> dict[int, Gpu]:
        """Of each ranking the first `count`, by index."""
        if len(self.gpus) <= 3 * count:
            return {gpu.index: gpu for gpu in self.gpus if not gpu.down}
        found = {gpu.index: gpu for gpu in self.roomy.first(count)}
        found.update((gpu.index, gpu) for gpu in self.quiet.first(count))
        found.update((gpu.index, gpu) for instance in self.idle.first(count) for gpu in instance.placement.gpus)
        # Without these a load that fits somewhere, once idle instances are stopped, might never be seen to fit.
        found.update((gpu.index, gpu) for gpu in self.yielding.first(1))
        return found


class Gpu:
    """A GPU: its memory account, and who computes on it."""

    def __init__(self, index: int, name: str, kind: GpuKind, node: Node, reserve_bytes: int) -> None:
        self.peers = Peers()  # until it is in a cluster
        self.index = index
        self.name = name
        self.kind = kind
        self.node = node
        self.kinds = (kind.gpu, node.kind.host)  # what its tables are for
        self.capacity_bytes = kind.memory_bytes - reserve_bytes
        self.used_bytes = 0
        self.claimed_bytes = 0  # of loads that wait for memory
        self.releasing_bytes = 0  # of instances that are on their way out
        self.instances: dict[int, Instance] = {}
        self.pending: list[Instance] = []
        self.active: dict[int, Instance] = {}
        self.stretch = 1.0  # of GPU parts, while several instances compute
        self.link_rates: dict[int, float] = {}  # bytes per second of each transfer to this GPU
        self.loads = 0
        self.transfers = 0
        self.activity_since_s = 0.0
        self.activity_s = {"computing": 0.0, "loading": 0.0, "transferring": 0.0, "idle": 0.0}
        self.work_s = 0.0  # seconds in which its own units computed: those of CPU layers are not among them
        self.byte_seconds = 0.0
        self.memory_since_s = 0.0
        self.peak_bytes = 0
        self.timeline: ActivityLog | None = None  # of a run that is followed in detail
        self.view: Facade | None = None
        self.down = 0  # faults that keep it down now
        self.h2d_factor = 1.0  # of its links' full rates; less while a fault slows them down
        self.d2h_factor = 1.0

    @property
    def available_bytes(self) -> int:
        """What a load may ask for now: free memory and memory being given back, less what others wait for."""
        if self.down:
            return 0
        return self.capacity_bytes - self.used_bytes + self.releasing_bytes - self.claimed_bytes

    @property
    def growth_bytes(self) -> int:
        """What an elastic resize may take now: memory that is free already and that no load waits for."""
        return max(0, min(self.capacity_bytes - self.used_bytes - self.claimed_bytes, self.available_bytes))

    def changed(self) -> None:
        """What it has available changed: who ranks GPUs by that must look again."""
        self.peers.roomy.mark(self.index, self)
        self.peers.quiet.mark(self.index, self)
        self.peers.yielding.mark(self.index, self)

    def crowd_changed(self) -> None:
        """How many compute on it changed."""
        self.peers.quiet.mark(self.index, self)

    def release_later(self, size: int) -> None:
        """So many bytes more (or with a negative size: less) are on their way out."""
        self.releasing_bytes += size
        self.changed()

    def take(self, size: int, now_s: float) -> None:
        """Take (or with a negative size give back) bytes."""
        self.byte_seconds += self.used_bytes * (now_s - self.memory_since_s)
        self.memory_since_s = now_s
        self.used_bytes += size
        self.changed()
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        assert 0 <= self.used_bytes <= self.capacity_bytes, (self.name, self.used_bytes, self.capacity_bytes)

    def account(self, now_s: float) -> None:
        """Book the time since the last change; call before changing `active`, a share, `loads` or `transfers`."""
        if self.active:
            name = "computing"
        elif self.down:
            name = "down"
        elif self.loads:
            name = "loading"
        elif self.transfers:
            name = "transferring"
        else:
            name = "idle"
        elapsed_s = now_s - self.activity_since_s
        if self.timeline is not None:
            self.timeline.activity(self, name, self.activity_since_s, now_s)
        self.activity_s[name] += elapsed_s
        if self.active:
            self.work_s += elapsed_s * min(1.0, sum([instance.gpu_share for instance in self.active.values()], 0.0))
        self.activity_since_s = now_s


class Node:
    """A host with GPUs: memory, CPU."""

    def __init__(self, index: int, name: str, kind: HostKind, memory: HostMemory) -> None:
        self.index = index
        self.name = name
        self.kind = kind
        self.memory = memory
        self.gpus: list[Gpu] = []
        self.stretch = 1.0  # of CPU parts, while several instances use the CPU
        self.load_rates: dict[int, float] = {}  # bytes per second of each running load, which reads the DRAM
        self.active: dict[int, Instance] = {}  # instances whose present iterations have a part for this CPU
        self.saved: dict[int, Request] = {}  # whose KV is in its memory
        self.view: Facade | None = None

    @property
    def up(self) -> list[Gpu]:
        """Its GPUs that no fault keeps down."""
        return [gpu for gpu in self.gpus if not gpu.down]


class Placement:
    """Where an instance is: on GPUs of one node, today on exactly one.

    What happens there happens on each of them, and sizes are bytes on each: whoever allows several begins here.
    """

    def __init__(self, gpus: tuple[Gpu, ...]) -> None:
        assert len(gpus) == 1, "no table says yet what an instance on several GPUs costs"
        self.gpus = list(gpus)  # machine code goes through a list without an iterator
        self.first = gpus[0]
        self.node = self.first.node
        self.name = "+".join([gpu.name for gpu in gpus])

    @property
    def available_bytes(self) -> int:
        return min([gpu.available_bytes for gpu in self.gpus])

    @property
    def growth_bytes(self) -> int:
        return min([gpu.growth_bytes for gpu in self.gpus])

    # --- who is there

    def add(self, instance: Instance) -> None:
        for gpu in self.gpus:
            gpu.instances[instance.number] = instance

    def remove(self, instance: Instance) -> None:
        for gpu in self.gpus:
            gpu.peers.idle.drop(instance.number)
            del gpu.instances[instance.number]

    def mark(self, instance: Instance) -> None:
        """It became idle, or is no more."""
        for gpu in self.gpus:
            gpu.peers.idle.mark(instance.number, instance)
            gpu.peers.yielding.mark(gpu.index, gpu)

    def wait(self, instance: Instance) -> None:
        """It waits for memory, behind those that wait already."""
        for gpu in self.gpus:
            gpu.pending.append(instance)

    def stop_waiting(self, instance: Instance) -> None:
        for gpu in self.gpus:
            gpu.pending.remove(instance)

    def is_free_for(self, instance: Instance) -> bool:
        """Is it the turn of this instance, which waits, and is its memory really free?"""
        size = instance.gpu_bytes
        for gpu in self.gpus:
            if gpu.down or gpu.pending[0] is not instance or size > gpu.capacity_bytes - gpu.used_bytes:
                return False
        return True

    # --- memory

    def claim(self, size: int) -> None:
        """Set so much more (or with a negative size: less) aside."""
        for gpu in self.gpus:
            gpu.claimed_bytes += size
            gpu.changed()

    def take(self, size: int, now_s: float) -> None:
        for gpu in self.gpus:
            gpu.take(size, now_s)

    def release_later(self, size: int) -> None:
        for gpu in self.gpus:
            gpu.release_later(size)

    # --- what they do

    def account(self, now_s: float) -> None:
        for gpu in self.gpus:
            gpu.account(now_s)

    def count_loads(self, more: int, now_s: float) -> None:
        for gpu in self.gpus:
            gpu.account(now_s)
            gpu.loads += more

    def count_transfers(self, more: int, now_s: float) -> None:
        for gpu in self.gpus:
            gpu.account(now_s)
            gpu.transfers += more

    def computes(self, instance: Instance) -> bool:
        return instance.number in self.first.active

    def start_computing(self, instance: Instance, now_s: float) -> None:
        for gpu in self.gpus:
            gpu.account(now_s)
            gpu.active[instance.number] = instance
            gpu.crowd_changed()

    def stop_computing(self, instance: Instance, now_s: float) -> None:
        for gpu in self.gpus:
            gpu.account(now_s)
            del gpu.active[instance.number]
            gpu.crowd_changed()

    @property
    def stretch(self) -> float:
        """The slowest sets the pace."""
        worst = 0.0
        for gpu in self.gpus:
            worst = max(worst, gpu.stretch)
        return worst


class Cluster:
    """Everything that is true now."""

    def __init__(self, nodes: list[Node], models: list[Model], service_classes: tuple[ServiceClass, ...]) -> None:
        self.nodes = nodes
        self.gpus = [gpu for node in nodes for gpu in node.gpus]
        self.largest_gpu = max(self.gpus, key=lambda gpu: gpu.capacity_bytes)
        self.peers: dict[tuple[str, str], Peers] = {}
        for gpu in self.gpus:
            self.peers.setdefault(gpu.kinds, Peers()).add(gpu)
        self.models = models
        self.service_classes = service_classes
        self.waiting_models: dict[int, Model] = {}  # with requests that are not routed
        self.down: dict[int, Gpu] = {}  # GPUs that a fault keeps down
        self.instances: dict[int, Instance] = {}

    @property
    def up(self) -> list[Gpu]:
        """The GPUs that no fault keeps down."""
        return [gpu for gpu in self.gpus if not gpu.down] if self.down else self.gpus

    def shortlist(self, count: int) -> list[Gpu]:
        """All GPUs that are up when there are at most `count`; else about so many, of every kind those that a load
        might go to: the roomiest, the quietest, and those of the instances that have been idle for longest."""
        if len(self.gpus) - len(self.down) <= count:
            return self.up
        each = max(2, count // (3 * len(self.peers)))
        found: dict[int, Gpu] = {}
        for peers in self.peers.values():
            found.update(peers.shortlist(each))
        return [found[index] for index in sorted(found)]

    def wait(self, request: Request) -> None:
        """Into the cluster's queue, which is read in order of arrival also where some came back."""
        model = request.model
        if model.waiting and next(reversed(model.waiting)) > request.index:
            model.in_order = False
        model.waiting[request.index] = request
        self.waiting_models[model.index] = model

    def unwait(self, request: Request) -> None:
        """Out of the cluster's queue."""
        model = request.model
        del model.waiting[request.index]
        if not model.waiting:
            del self.waiting_models[model.index]

    def check(self) -> None:
        """Assert the laws that hold at every instant (model.md section 10: 2, 3, 6)."""
        for gpu in self.gpus:
            used = sum([instance.held_gpu_bytes for instance in gpu.instances.values()])
            assert gpu.used_bytes == used, (gpu.name, gpu.used_bytes, used)
            assert gpu.used_bytes <= gpu.capacity_bytes, (gpu.name, gpu.used_bytes, gpu.capacity_bytes)
            claimed = sum(instance.claimed_bytes for instance in gpu.instances.values())
            assert gpu.claimed_bytes == claimed, (gpu.name, gpu.claimed_bytes, claimed)
            assert not (gpu.down and (gpu.instances or gpu.active)), f"{gpu.name} is down and in use (law 6)"
            assert bool(gpu.down) == (gpu.index in self.down), gpu.name
        for node in self.nodes:
            node.memory.check()
            saved = sum(_saved_bytes(request) for request in node.saved.values())
            assert node.memory.saved_kv_bytes == saved, (node.name, node.memory.saved_kv_bytes, saved)
        for instance in self.instances.values():
            _check_instance(instance)


def _check_instance(instance: Instance) -> None:
    """Laws 2 and 3 within an instance: blocks, contexts and tokens add up."""
    groups = (instance.decoding, instance.prefilling, instance.restoring, instance.joining, instance.saving)
    assert instance.sequences == sum(len(group) for group in groups), (instance.sequences, [len(g) for g in groups])
    contexts = [request.prompt_tokens + instance.tokens_of(request) for request in instance.decoding.values()]
    assert instance.context_sum == sum(contexts), (instance.context_sum, contexts)
    held = sum(sequence_blocks(context, instance.blocks.tokens) for context in contexts)
    others = [*instance.prefilling, *instance.restoring.values(), *instance.joining, *instance.saving.values()]
    held += sum(sequence_blocks(request.context, instance.blocks.tokens) for request in others)
    assert instance.blocks.used == held, (instance.blocks.used, held)
    fits = instance.blocks.used <= instance.blocks.total
    assert fits or instance.leap is None, (instance.blocks.used, instance.blocks.total)
    assert instance.status in (READY, DRAINING, STOPPING) or not instance.sequences, STATUSES[instance.status]
    assert instance.leap is None or instance.status in (READY, DRAINING, STOPPING), STATUSES[instance.status]


def _saved_bytes(request: Request) -> int:
    return request.model.kv_layer_bytes(request.kv_tokens) * request.model.weights.layers


# Ranks are floats, as the compiled engine has them: a byte of a memory without an end is no other rank there or here.


def _room_rank(gpu: Gpu) -> Rank | None:
    return None if gpu.down else (-float(gpu.available_bytes), 0.0, gpu.index)


def _crowd_rank(gpu: Gpu) -> Rank | None:
    return None if gpu.down else (float(len(gpu.active)), -float(gpu.available_bytes), gpu.index)


def _yield_rank(gpu: Gpu) -> Rank | None:
    if gpu.down:
        return None
    idle = [i.gpu_bytes for i in gpu.instances.values() if i.idle and i.stop_mode is None and i.resizing is None]
    return -float(gpu.available_bytes + sum(idle)), 0.0, gpu.index


def _idle_rank(instance: Instance) -> Rank | None:
    return (instance.last_used_s, 0, instance.number) if instance.idle else None
