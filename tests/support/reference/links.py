"""The reference engine's links: transfers that share the way to and from each GPU; rates are all taken anew each time.

Fair sharing is done link by link (the tightest first), not by filling all at once as the real one does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from sim.profiles.profile import GpuKind, HostKind, SwitchCosts


@dataclass
class Machine:
    """The hardware: every GPU's node and kind, and every node's kind."""

    gpus: list[tuple[int, GpuKind]]
    hosts: list[HostKind]


@dataclass(eq=False)
class Transfer:
    """Bytes on their way over `links` (name: bytes per second)."""

    cause: str
    gpu: int
    remaining: float
    limit: float
    links: dict[str, float]
    on_done: Callable[[], None]
    rate: float = 0.0
    end_s: float = inf


class ReferenceLinks:
    """All transfers under way, oldest first. `moved`: bytes by cause."""

    def __init__(self, machine: Machine, mode: str) -> None:
        self.machine = machine
        self.mode = mode
        self.transfers: list[Transfer] = []
        self.sent = {"weights": 0.0, "kv_save": 0.0, "kv_restore": 0.0}
        self.now_s = 0.0

    @property
    def moved(self) -> dict[str, float]:
        """What set out, less what is still on its way."""
        under_way = {cause: sum(t.remaining for t in self.transfers if t.cause == cause) for cause in self.sent}
        return {cause: size - under_way[cause] for cause, size in self.sent.items()}

    def advance(self, to_s: float) -> None:
        """Time passes; no transfer ends before `to_s`."""
        for transfer in self.transfers:
            transfer.remaining -= transfer.rate * (to_s - self.now_s)
        self.now_s = to_s

    def end_transfers(self) -> bool:
        """Call back for all transfers that are through; False when there was none."""
        found = False
        while ended := [transfer for transfer in self.transfers if transfer.end_s <= self.now_s]:
            found = True
            self.transfers.remove(ended[0])
            self._set_rates()
            ended[0].on_done()
        return found

    def send(self, cause: str, gpu: int, size: float, by: tuple[int, SwitchCosts], on_done: Callable[[], None]) -> None:
        """Bytes set out to this GPU, or, of a kv_save, from it, for an instance (its number) with these costs."""
        number, switch = by
        node, kind = self.machine.gpus[gpu]
        host = self.machine.hosts[node]
        if cause == "kv_save":
            links = {f"gpu {gpu} out": kind.d2h_bytes_per_s, f"node {node} out": host.d2h_cap_bytes_per_s}
            limit = switch.kv_save_bytes_per_s
        else:
            links = {f"gpu {gpu} in": kind.h2d_bytes_per_s, f"node {node} in": host.h2d_cap_bytes_per_s}
            limit = switch.reload_bytes_per_s if cause == "weights" else switch.kv_restore_bytes_per_s
        if cause != "weights":
            links[f"instance {number} {cause}"] = limit  # all its KV together moves no faster
        self.sent[cause] += size
        self.transfers.append(Transfer(cause, gpu, size, limit, links, on_done))
        self._set_rates()

    def _set_rates(self) -> None:
        rates = self._serial_rates() if self.mode == "serial" else self._fair_rates(self.transfers)
        for transfer, rate in zip(self.transfers, rates, strict=True):
            if rate != transfer.rate:
                transfer.rate = rate
                transfer.end_s = self.now_s + transfer.remaining / rate if rate > 0 else inf

    def _serial_rates(self) -> list[float]:
        """A transfer goes when it is the oldest on each of its links but the node's, which bounds all that go."""
        going = []
        for position, transfer in enumerate(self.transfers):
            queues = [name for name in transfer.links if not name.startswith("node ")]
            if not any(name in older.links for older in self.transfers[:position] for name in queues):
                going.append(position)
        rates = [0.0] * len(self.transfers)
        for position, rate in zip(going, self._fair_rates([self.transfers[p] for p in going]), strict=True):
            rates[position] = rate
        return rates

    def _fair_rates(self, transfers: list[Transfer]) -> list[float]:
        """Max-min fair: the tightest link first; its users share what others left them. A limit is a link for one."""
        users: dict[str, list[int]] = {}
        left: dict[str, float] = {}
        for position, transfer in enumerate(transfers):
            for name, capacity in {**transfer.links, f"limit {position}": transfer.limit}.items():
                users.setdefault(name, []).append(position)
                left[name] = capacity
        rates = [0.0] * len(transfers)
        while users:
            tightest = min(users, key=lambda name: left[name] / len(users[name]))
            share = left[tightest] / len(users[tightest])
            for position in users[tightest]:
                rates[position] = share
            done = users.pop(tightest)
            for name in list(users):
                left[name] -= share * sum(1 for position in users[name] if position in done)
                users[name] = [position for position in users[name] if position not in done]
                if not users[name]:
                    del users[name]
        return rates
