"""Moves bytes: keeps the running transfers of all links, and calls back when one is done.

Rates come from links.py and change only when a transfer starts or ends; only the first end is timed. Loads also take
their share of the node's DRAM bandwidth, which serving reads as `Node.load_rates`.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from sim.core.state.links import Link, Transfer, neighbours, rates
from sim.core.state.machines import Node, Placement
from sim.core.world import World


class NodeLinks:
    """The links of one node and its GPUs."""

    def __init__(self, node: Node) -> None:
        kind = node.kind
        self.disk = Link(f"{node.name}.disk", kind.disk_bytes_per_s)
        self.network = Link(f"{node.name}.network", kind.network_bytes_per_s)
        self.h2d_cap = Link(f"{node.name}.h2d", kind.h2d_cap_bytes_per_s, shared=True)
        self.d2h_cap = Link(f"{node.name}.d2h", kind.d2h_cap_bytes_per_s, shared=True)
        self.h2d = {gpu.index: Link(f"{gpu.name}.h2d", gpu.kind.h2d_bytes_per_s) for gpu in node.gpus}
        self.d2h = {gpu.index: Link(f"{gpu.name}.d2h", gpu.kind.d2h_bytes_per_s) for gpu in node.gpus}


class Transfers:
    """All transfers of a run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.links = [NodeLinks(node) for node in world.cluster.nodes]
        self._free = "switches" in world.options.ideal  # an ideal world, in which bytes arrive at once
        self._number = 0
        self._open: dict[int, Transfer] = {}
        self._node_of = {links.h2d_cap.name: node for links, node in zip(self.links, world.cluster.nodes, strict=True)}
        self._gpu_of = {self.links[gpu.node.index].h2d[gpu.index].name: gpu for gpu in world.cluster.gpus}

    def to_gpus(self, placement: Placement) -> tuple[Link, ...]:
        links = self.links[placement.node.index]
        return *[links.h2d[gpu.index] for gpu in placement.gpus], links.h2d_cap

    def from_gpus(self, placement: Placement) -> tuple[Link, ...]:
        links = self.links[placement.node.index]
        return *[links.d2h[gpu.index] for gpu in placement.gpus], links.d2h_cap

    def disk(self, node: Node) -> tuple[Link, ...]:
        return (self.links[node.index].disk,)

    def between(self, source: Node, target: Node) -> tuple[Link, ...]:
        return self.links[source.index].network, self.links[target.index].network

    def bytes_by_link(self) -> dict[str, dict[str, float]]:
        """What crossed each link, by cause; links and causes that moved nothing are left out."""
        found = {}
        for links in self.links:
            for link in (
                links.disk,
                links.network,
                links.h2d_cap,
                links.d2h_cap,
                *links.h2d.values(),
                *links.d2h.values(),
            ):
                moved = {cause: size for cause, size in link.bytes_by_cause.items() if size > 0}
                if moved:
                    found[link.name] = moved
        return found

    def start(
        self, size: float, links: tuple[Link, ...], limit: float, cause: str, on_done: Callable[[], None]
    ) -> Transfer:
        """Begin to move `size` bytes; `on_done` is called at the instant of the last byte.

        Weights on their way to a GPU also read the DRAM of its node: they count among the node's `load_rates`.
        """
        self._number += 1
        transfer = Transfer(self._number, size, links, limit, cause)
        transfer.on_done = on_done
        transfer.settled_s = self.world.clock.now_s
        self.world.recorder.moved(cause, size)
        for link in links:
            link.bytes_by_cause[cause] += size
        transfer.join()
        self._open[transfer.number] = transfer
        if self._free:
            transfer.remaining = 0.0
            transfer.end_s = transfer.timer_s = self.world.clock.now_s
            self.world.clock.at(transfer.end_s, self._on_timer, transfer, 0)
        else:
            self._change_rates(links)
        return transfer

    def cancel(self, transfer: Transfer) -> None:
        """Stop a transfer; it never calls back. The bytes that did not move are taken off the record."""
        self._settle(transfer)
        self.world.recorder.moved(transfer.cause, -transfer.remaining)
        for link in transfer.links:
            link.bytes_by_cause[transfer.cause] -= transfer.remaining
        self._leave(transfer)

    def set_speed(self, link: Link, factor: float) -> None:
        """The link has this part of its full rate from now on; what is under way on it goes on at the new rates."""
        link.bytes_per_s = factor * link.full_bytes_per_s
        gpu, outward = self._gpu_of.get(link.name), self._gpu_of.get(f"{link.name.removesuffix('.d2h')}.h2d")
        if gpu is not None:
            gpu.h2d_factor = factor
            self.world.shaken_gpus[gpu.index] = gpu  # streamed weights cross it too
        elif outward is not None:
            outward.d2h_factor = factor
        if not self._free:
            self._change_rates((link,))

    def close(self) -> None:
        """The run ends here: what has not moved by now never did."""
        for transfer in list(self._open.values()):
            self.cancel(transfer)

    def _leave(self, transfer: Transfer) -> None:
        transfer.leave()
        del self._open[transfer.number]
        self._set_rate(transfer, 0.0)
        if not self._free:
            self._change_rates(transfer.links)

    def _settle(self, transfer: Transfer) -> None:
        now_s = self.world.clock.now_s
        transfer.remaining = max(0.0, transfer.remaining - transfer.rate * (now_s - transfer.settled_s))
        transfer.settled_s = now_s

    def _change_rates(self, links: tuple[Link, ...]) -> None:
        """Set the rates of all who are connected over these links anew; without a transfer, links may part company."""
        seen: dict[int, bool] = {}
        for link in links:
            number = next(iter(link.transfers), None)
            if number is not None and number not in seen:
                connected = neighbours((link,))
                seen.update((transfer.number, True) for transfer in connected)
                self._change_rates_of(connected)

    def _change_rates_of(self, connected: list[Transfer]) -> None:
        """Who is connected has one timer, that of the first to end: its end sets the rates of the others anew."""
        new_rates = rates(connected, self.world.sharing.links)
        first = connected[0]
        for transfer in connected:
            rate = new_rates[transfer.number]
            if rate != transfer.rate or not transfer.end_s:
                self._settle(transfer)
                self._set_rate(transfer, rate)
                transfer.end_s = transfer.settled_s + transfer.remaining / rate if rate > 0 else inf
            if transfer.end_s < first.end_s:
                first = transfer
        if first.end_s != first.timer_s:
            assert first.end_s < inf, "nothing moves on these links"
            first.timer_s = first.end_s
            self.world.clock.at(first.end_s, self._on_timer, first, 0)

    def _set_rate(self, transfer: Transfer, rate: float) -> None:
        transfer.rate = rate
        for link in transfer.links:
            node, gpu = self._node_of.get(link.name), self._gpu_of.get(link.name)
            if node is not None and transfer.cause in ("weights", "resize"):
                _note_rate(node.load_rates, transfer)
                self.world.shaken_nodes[node.index] = node
            if gpu is not None:
                _note_rate(gpu.link_rates, transfer)
                self.world.shaken_gpus[gpu.index] = gpu

    def _on_timer(self, subject: Any, _: int) -> None:
        transfer: Transfer = subject
        if not transfer.under_way or transfer.end_s != self.world.clock.now_s:
            transfer.timer_s = -1.0
            return  # cancelled, or its end has moved
        transfer.remaining = 0.0
        transfer.settled_s = self.world.clock.now_s
        self._leave(transfer)
        on_done: Any = transfer.on_done
        on_done()


def _note_rate(rates_of: dict[int, float], transfer: Transfer) -> None:
    rates_of.pop(transfer.number, None)
    if transfer.rate > 0:
        rates_of[transfer.number] = transfer.rate
