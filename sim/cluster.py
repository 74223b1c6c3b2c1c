"""What is true now of the machines: GPUs, nodes, the cluster, and who waits in its queue.

Memory accounts and activity clocks are kept by their mutators; `Cluster.check` asserts the laws that hold at every
instant (model.md section 10). Nothing here knows SimPy.
"""

from __future__ import annotations

from sim.memory import HostMemory
from sim.profiles import GpuKind, HostKind
from sim.spec import ServiceClass
from sim.state import ASLEEP, GONE, PENDING, Instance, Model, Request


class Gpu:
    """A GPU: its memory account, and who computes on it."""

    def __init__(self, index: int, name: str, kind: GpuKind, node: Node, reserve_bytes: int) -> None:
        self.index = index
        self.name = name
        self.kind = kind
        self.node = node
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
        self.view: object = None

    @property
    def available_bytes(self) -> int:
        """What a load may ask for now: free memory and memory being given back, less what others wait for."""
        return self.capacity_bytes - self.used_bytes + self.releasing_bytes - self.claimed_bytes

    def take(self, size: int, now_s: float) -> None:
        """Take (or with a negative size give back) bytes."""
        self.byte_seconds += self.used_bytes * (now_s - self.memory_since_s)
        self.memory_since_s = now_s
        self.used_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.used_bytes)
        assert 0 <= self.used_bytes <= self.capacity_bytes, (self.name, self.used_bytes, self.capacity_bytes)

    def account(self, now_s: float) -> None:
        """Book the time since the last change; call before changing `active`, a share, `loads` or `transfers`."""
        if self.active:
            name = "computing"
        elif self.loads:
            name = "loading"
        elif self.transfers:
            name = "transferring"
        else:
            name = "idle"
        elapsed_s = now_s - self.activity_since_s
        self.activity_s[name] += elapsed_s
        if self.active:
            self.work_s += elapsed_s * min(1.0, sum(instance.gpu_share for instance in self.active.values()))
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
        self.view: object = None


class Cluster:
    """Everything that is true now."""

    def __init__(self, nodes: list[Node], models: list[Model], service_classes: tuple[ServiceClass, ...]) -> None:
        self.nodes = nodes
        self.gpus = [gpu for node in nodes for gpu in node.gpus]
        self.models = models
        self.service_classes = service_classes
        self.waiting_models: dict[int, Model] = {}  # with requests that are not routed
        self.instances: dict[int, Instance] = {}

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
            held = [i for i in gpu.instances.values() if i.status not in (PENDING, GONE)]
            growth = sum(getattr(i.resizing, "extra_gpu_bytes", 0) for i in held)
            used = sum(i.gpu_bytes if i.status != ASLEEP else 0 for i in held) + growth
            assert gpu.used_bytes == used, (gpu.name, gpu.used_bytes, used)
            assert gpu.used_bytes <= gpu.capacity_bytes, (gpu.name, gpu.used_bytes, gpu.capacity_bytes)
            claimed = sum(instance.claimed_bytes for instance in gpu.instances.values())
            assert gpu.claimed_bytes == claimed, (gpu.name, gpu.claimed_bytes, claimed)
        for node in self.nodes:
            node.memory.check()
        for instance in self.instances.values():
            instance.check()
