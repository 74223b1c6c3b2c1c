"""Pure: transfers over shared links, fair (max-min) or serial (first come, first served).

A link is one direction of a GPU's PCIe, a node's cap per direction, its disk or its network. A transfer crosses one or
more links at one rate, at most its own limit. `rates` says how fast each transfer may go; transfers.py moves the clock.
"""

from __future__ import annotations

from collections.abc import Iterable

CAUSES = ("weights", "kv_save", "kv_restore", "resize")


class Link:
    """One direction of a shared connection; `transfers` on it, in order of arrival."""

    __slots__ = ("bytes_by_cause", "bytes_per_s", "full_bytes_per_s", "name", "shared", "transfers")

    def __init__(self, name: str, bytes_per_s: float, shared: bool = False) -> None:
        assert bytes_per_s > 0, name
        self.name = name
        self.shared = shared  # also where links are serial: the cap over several GPUs
        self.bytes_per_s = self.full_bytes_per_s = bytes_per_s  # less than full while a fault slows it down
        self.transfers: dict[int, Transfer] = {}
        self.bytes_by_cause = dict.fromkeys(CAUSES, 0.0)


class Transfer:
    """`size` bytes over `links`, at most at `limit` bytes per second."""

    __slots__ = (
        "cause",
        "end_s",
        "limit",
        "links",
        "number",
        "on_done",
        "rate",
        "remaining",
        "settled_s",
        "size",
        "timer_s",
    )

    def __init__(self, number: int, size: float, links: tuple[Link, ...], limit: float, cause: str) -> None:
        assert links
        assert limit > 0
        self.number = number
        self.size = size
        self.remaining = size
        self.links = links
        self.limit = limit
        self.cause = cause
        self.rate = 0.0
        self.settled_s = 0.0
        self.end_s = 0.0  # when it is through at its present rate; 0 before it has one
        self.timer_s = -1.0  # when it is looked at
        self.on_done: object = None

    def join(self) -> None:
        for link in self.links:
            link.transfers[self.number] = self

    @property
    def under_way(self) -> bool:
        """Is it still on its links, moving or waiting for them?"""
        return self.number in self.links[0].transfers

    def leave(self) -> None:
        for link in self.links:
            del link.transfers[self.number]


def neighbours(links: Iterable[Link]) -> list[Transfer]:
    """Every transfer whose rate may depend on these links, in order of number."""
    found: dict[int, Transfer] = {}
    frontier = list(links)
    seen: list[Link] = []
    while frontier:
        link = frontier.pop()
        if any(link is other for other in seen):
            continue
        seen.append(link)
        for transfer in link.transfers.values():
            if transfer.number not in found:
                found[transfer.number] = transfer
                frontier += transfer.links
    return [found[number] for number in sorted(found)]


def rates(transfers: list[Transfer], mode: str) -> dict[int, float]:
    """Bytes per second of each transfer, by number. The list is closed: nobody else uses their links."""
    return _serial_rates(transfers) if mode == "serial" else _fair_rates(transfers)


def _serial_rates(transfers: list[Transfer]) -> dict[int, float]:
    """A transfer runs once it is the oldest on each of its links; a node's cap has no queue, it only bounds the sum."""
    moving = [
        transfer
        for transfer in transfers
        if all(link.shared or next(iter(link.transfers)) == transfer.number for link in transfer.links)
    ]
    return {**{transfer.number: 0.0 for transfer in transfers}, **_fair_rates(moving)}


def _alone(transfer: Transfer) -> float:
    return min(transfer.limit, *(link.bytes_per_s for link in transfer.links))


def _fair_rates(transfers: list[Transfer]) -> dict[int, float]:
    """Max-min fairness by progressive filling: raise all rates together, freeze who meets a full link or its limit."""
    if len(transfers) == 1:
        return {transfers[0].number: _alone(transfers[0])}
    found: dict[int, float] = {}
    left: dict[str, float] = {}
    users: dict[str, int] = {}
    for transfer in transfers:
        for link in transfer.links:
            left[link.name] = link.bytes_per_s
            users[link.name] = users.get(link.name, 0) + 1
    active = list(transfers)
    level = 0.0
    while active:
        rises = [min(left[link.name] / users[link.name] for link in transfer.links) for transfer in active]
        rise = min(*rises, min(transfer.limit for transfer in active) - level)
        level += rise
        for name, count in users.items():
            left[name] -= rise * count
        frozen = [
            transfer
            for transfer in active
            if transfer.limit <= level * (1 + 1e-12)
            or any(left[link.name] <= 1e-9 * link.bytes_per_s for link in transfer.links)
        ]
        for transfer in frozen:
            found[transfer.number] = min(level, transfer.limit)
            for link in transfer.links:
                users[link.name] -= 1
        users = {name: count for name, count in users.items() if count}
        active = [transfer for transfer in active if transfer.number not in found]
    return found
