"""Moves the KV of single sequences between a GPU and host memory: hold room for it, save, restore, drop.

A layer's KV lives where the layer lives, so only the part of the GPU's layers crosses the link on the same node.
Serving uses it to swap sequences, loading to preempt models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sim.core.state.instance import Instance
from sim.core.state.request import Request
from sim.core.transfers import Transfers
from sim.core.world import World


class KvMoves:
    """Saved KV of all nodes, and the transfers that carry it."""

    def __init__(self, world: World, transfers: Transfers) -> None:
        self.world = world
        self.transfers = transfers

    def hold(self, instance: Instance, request: Request) -> bool:
        """Take host memory for the sequence's whole KV; False (and counted) when there is none: it will recompute."""
        tokens = request.prompt_tokens + instance.tokens_of(request)
        size = instance.model.kv_layer_bytes(tokens) * instance.model.weights.layers
        if not instance.node.memory.take_saved_kv(size):
            self.world.recorder.counts["kv_dropped_for_lack_of_host_memory"] += 1
            return False
        request.kv_node = instance.node
        request.kv_node.saved[request.index] = request
        request.kv_tokens = tokens
        return True

    def drop(self, request: Request) -> None:
        """Give the host memory of a saved KV back."""
        if request.kv_node is not None:
            layers = request.model.weights.layers
            request.kv_node.memory.take_saved_kv(-request.model.kv_layer_bytes(request.kv_tokens) * layers)
            del request.kv_node.saved[request.index]
            request.kv_node = None
            request.kv_tokens = 0

    def save(self, instance: Instance, requests: list[Request], on_done: Callable[[], None]) -> None:
        """Copy the GPU part of these sequences' KV to host memory (the host part is there already)."""
        layer_bytes = sum([instance.model.kv_layer_bytes(request.kv_tokens) for request in requests])
        size = instance.residency.gpu_kv_bytes(layer_bytes)
        links = (instance.kv_links["kv_save"], *self.transfers.from_gpus(instance.placement))
        self._begin(instance, "kv_save")

        number = instance.save_count
        instance.save_count += 1

        def done() -> None:
            del instance.saves[number]
            self._end(instance, "kv_save", size)
            on_done()

        transfer = self.transfers.start(size, links, links[0].bytes_per_s, "kv_save", done)
        instance.saves[number] = (transfer, requests)

    def _begin(self, instance: Instance, cause: str) -> None:
        """One more transfer. Several at once count as one stretch of time, and get one row."""
        now_s = self.world.clock.now_s
        instance.placement.count_transfers(1, now_s)
        moving, begun_s, moved = instance.kv_moves[cause]
        instance.kv_moves[cause] = (moving + 1, begun_s if moving else now_s, moved)

    def _end(self, instance: Instance, cause: str, size: float) -> None:
        now_s = self.world.clock.now_s
        instance.placement.count_transfers(-1, now_s)
        moving, begun_s, moved = instance.kv_moves[cause]
        instance.kv_moves[cause] = (moving - 1, begun_s, moved + size)
        if moving == 1:
            if self.world.recorder.timeline is not None:
                self.world.recorder.timeline.moved(instance, cause, begun_s, now_s, moved + size)
            parts: dict[str, Any] = {f"{cause}_s": now_s - begun_s}
            self.world.recorder.switch(now_s, cause, instance, bytes=moved + size, **parts)
            instance.kv_moves[cause] = (0, 0.0, 0.0)

    def restore(self, instance: Instance, request: Request) -> None:
        """Bring saved KV back: over the link on the same node, from another over the network too.

        The KV of layers outside the GPU is in host memory already, or only crosses the network.
        """
        source, residency = request.kv_node, instance.residency
        assert source is not None
        layer_bytes = instance.model.kv_layer_bytes(request.kv_tokens)
        own = instance.kv_links["kv_restore"]
        ways = [(residency.gpu_kv_bytes(layer_bytes), (own, *self.transfers.to_gpus(instance.placement)))]
        if source is not instance.node:
            network = self.transfers.between(source, instance.node)
            ways = [(ways[0][0], (*ways[0][1], *network)), (residency.host_kv_bytes(layer_bytes), network)]
        left = len(ways)
        self._begin(instance, "kv_restore")

        def done() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self._end(instance, "kv_restore", sum([size for size, _ in ways], 0.0))
                self._restored(instance, request)

        instance.restores[request.index] = [
            self.transfers.start(size, links, min(link.bytes_per_s for link in links), "kv_restore", done)
            for size, links in ways
        ]

    def _restored(self, instance: Instance, request: Request) -> None:
        self.drop(request)
        instance.restores.pop(request.index)
        del instance.restoring[request.index]
        instance.joining.append(request)
        self.world.touch(instance)

    def cancel_saves(self, instance: Instance) -> list[Request]:
        """What is on its way out is lost with the GPU, and so is what came out of it so far; whose KV that was."""
        losers: list[Request] = []
        for transfer, requests in instance.saves.values():
            self.transfers.cancel(transfer)
            self._end(instance, "kv_save", transfer.size - transfer.remaining)
            losers += requests
        instance.saves = {}
        return losers

    def cancel_restore(self, instance: Instance, request: Request) -> None:
        """Stop bringing its KV back; the copy in host memory is whole until the last byte has moved."""
        moved = 0.0
        for transfer in instance.restores.pop(request.index):
            if transfer.under_way:
                self.transfers.cancel(transfer)
            moved += transfer.size - transfer.remaining
        self._end(instance, "kv_restore", moved)
