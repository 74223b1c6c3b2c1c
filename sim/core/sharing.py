"""Contention: how much slower iterations run because others use the same GPU or CPU (model.md section 5).

Each active instance has a share of its GPU and of its host resource (the CPU, or the GPU's link when weights are
streamed): the uncontended demand of its iterations, read when its batch changes. `proportional` stretches a part by
the total demand where that exceeds one, as if parts never met by chance; `processor_sharing` by one and what the others
demand, since a part that meets others' shares with them and they are there for their share of the time; `time_slice` by
the number of instances. Of the same crowd each stretches more than the one before. Serving updates it once an instant.
"""

from __future__ import annotations

from collections.abc import Callable

from sim.core.state.instance import Instance
from sim.core.state.machines import Gpu, Node
from sim.core.world import World


class Sharing:
    """The stretches of all instances."""

    def __init__(self, world: World, settle: Callable[[Instance], None], schedule: Callable[[Instance], None]) -> None:
        self.world = world
        self._settle = settle
        self._schedule = schedule
        self._law: str = world.sharing.contention

    def activate(self, instance: Instance, demand_of: object) -> None:
        """The instance has a new leap; its shares are read anew only when its batch is another one than before."""
        assert instance.leap is not None
        instance.begun = True
        placement = instance.placement
        computes = placement.computes(instance)
        if computes and instance.demand_of == demand_of:
            self.world.begun[instance.number] = instance
            return
        instance.demand_of = demand_of
        gpu_s, host_s = instance.leap.first_work()
        gpu_share, host_share = gpu_s / (gpu_s + host_s), host_s / (gpu_s + host_s)
        if not computes:
            placement.start_computing(instance, self.world.clock.now_s)
            self._shake(instance, host_share)
        elif gpu_share != instance.gpu_share or host_share != instance.host_share:
            placement.account(self.world.clock.now_s)
            self._shake(instance, host_share)
        instance.gpu_share, instance.host_share = gpu_share, host_share
        if host_share > 0:
            instance.node.active[instance.number] = instance
        else:
            instance.node.active.pop(instance.number, None)
        self.world.begun[instance.number] = instance

    def deactivate(self, instance: Instance) -> None:
        """The instance runs nothing."""
        if instance.placement.computes(instance):
            instance.placement.stop_computing(instance, self.world.clock.now_s)
            self._shake(instance, 0.0)
            instance.node.active.pop(instance.number, None)
            instance.gpu_share = instance.host_share = 0.0
            instance.demand_of = None

    def _shake(self, instance: Instance, host_share: float) -> None:
        """Its demand is about to change, on the host to `host_share`."""
        for gpu in instance.placement.gpus:
            self.world.shaken_gpus[gpu.index] = gpu
        if host_share != instance.host_share:
            self.world.shaken_nodes[instance.node.index] = instance.node

    def update(self) -> None:
        """Set the stretches where demand changed, and the timers of all leaps that are new or changed speed."""
        world = self.world
        affected, world.begun = world.begun, {}
        if world.shaken_gpus:
            for gpu in world.shaken_gpus.values():
                gpu.stretch = self._gpu_stretch(gpu)
                affected.update(gpu.active)
            world.shaken_gpus = {}
        if world.shaken_nodes:
            for node in world.shaken_nodes.values():
                node.stretch = self._cpu_stretch(node)
                affected.update(node.active)
            world.shaken_nodes = {}
        for number in sorted(affected) if len(affected) > 1 else affected:
            instance = affected[number]
            if instance.leap is None:
                continue
            gpu_stretch = self._beside(instance.placement.stretch, instance.gpu_share)
            host_stretch = self._host_stretch(instance) if instance.host_share else 1.0
            if instance.begun:
                instance.begun = False
            elif gpu_stretch == instance.gpu_stretch and host_stretch == instance.host_stretch:
                continue
            else:
                self._settle(instance)
                if instance.leap is None:
                    continue
            instance.gpu_stretch, instance.host_stretch = gpu_stretch, host_stretch
            self._schedule(instance)

    def _beside(self, stretch: float, share: float) -> float:
        """The stretch of one of those who share a resource: itself it does not meet."""
        return max(1.0, stretch - share) if self._law == "processor_sharing" else stretch

    def _stretch(self, shares: list[float], demand: float) -> float:
        """Of those who ask for these shares of a resource of which others take `demand`; see `_beside`."""
        if self._law == "time_slice":
            return max(1.0, sum([1.0 for share in shares if share > 0], 0.0) + demand)
        total = sum(shares, 0.0) + demand
        return 1.0 + total if self._law == "processor_sharing" else max(1.0, total)

    def _gpu_stretch(self, gpu: Gpu) -> float:
        return self._stretch([instance.gpu_share for instance in gpu.active.values()], 0.0)

    def _cpu_stretch(self, node: Node) -> float:
        """Running loads read the same DRAM: they count with their share of its bandwidth, and are not slowed."""
        demand = sum(node.load_rates.values(), 0.0) / node.kind.cpu_bytes_per_s
        return self._stretch([i.host_share for i in node.active.values() if i.profile.offload == "cpu"], demand)

    def _host_stretch(self, instance: Instance) -> float:
        if instance.profile.offload == "cpu":
            return self._beside(instance.node.stretch, instance.host_share)
        return max([self._link_stretch(gpu, instance) for gpu in instance.placement.gpus])

    def _link_stretch(self, gpu: Gpu, instance: Instance) -> float:
        """Streamed weights share their GPU's link with one another and with the loads that run on the node."""
        streaming = [i.host_share for i in gpu.active.values() if i.profile.offload == "stream"]
        factor = gpu.h2d_factor  # of a link that is slow: all that it carries takes so much longer
        demand = sum(gpu.link_rates.values(), 0.0) / (gpu.kind.h2d_bytes_per_s * factor)
        return self._beside(self._stretch(streaming, demand), instance.host_share) / factor
