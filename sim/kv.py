"""Moves the KV of single sequences between a GPU and host memory: hold room for it, save, restore, drop.

A layer's KV lives where the layer lives, so only the part of the GPU's layers crosses the link on the same node.
Serving uses it to swap sequences, loading to preempt models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sim.state import Instance, Request
from sim.transfers import Transfers
from sim.world import World


class KvMoves:
    """Saved KV of all nodes, and the transfers that carry it."""

    def __init__(self, world: World, transfers: Transfers) -> None:
        self.world = world
        self.transfers = transfers

    def hold(self, instance: Instance, request: Request) -> bool:
        """Take host memory for the sequence's whole KV; False (and counted) when there is none: it will recompute."""
        tokens = request.prompt_tokens + instance.tokens_of(request)
        size = instance.model.kv_layer_bytes(tokens) * instance.model.weights.layers
        if not instance.gpu.node.memory.take_saved_kv(size):
            self.world.recorder.counts["kv_dropped_for_lack_of_host_memory"] += 1
            return False
        request.kv_node = instance.gpu.node
        request.kv_tokens = tokens
        return True

    def drop(self, request: Request) -> None:
        """Give the host memory of a saved KV back."""
        if request.kv_node is not None:
            layers = request.model.weights.layers
            request.kv_node.memory.take_saved_kv(-request.model.kv_layer_bytes(request.kv_tokens) * layers)
            request.kv_node = None
            request.kv_tokens = 0

    def save(self, instance: Instance, requests: list[Request], on_done: Callable[[], None]) -> None:
        """Copy the GPU part of these sequences' KV to host memory (the host part is there already)."""
        size = sum(instance.model.kv_layer_bytes(request.kv_tokens) for request in requests) * instance.layers
        start_s = self.world.clock.now_s
        gpu = instance.gpu
        gpu.account(start_s)
        gpu.transfers += 1

        def done() -> None:
            now_s = self.world.clock.now_s
            gpu.account(now_s)
            gpu.transfers -= 1
            self._record(instance, "kv_save", size, kv_save_s=now_s - start_s)
            on_done()

        limit = instance.profile.switch.kv_save_bytes_per_s
        self.transfers.start(size, self.transfers.from_gpu(gpu), limit, "kv_save", done)

    def _record(self, instance: Instance, kind: str, size: float, **parts: Any) -> None:
        now_s = self.world.clock.now_s
        names = instance.model.name, instance.gpu.name
        self.world.recorder.switch(now_s, kind, *names, layers=instance.layers, bytes=size, **parts)

    def restore(self, instance: Instance, request: Request) -> None:
        """Bring saved KV back: over the link on the same node, over the network too from another."""
        source, gpu = request.kv_node, instance.gpu
        assert source is not None
        size = instance.model.kv_layer_bytes(request.kv_tokens) * instance.layers
        links = self.transfers.to_gpu(gpu)
        if source is not gpu.node:
            links = (*self.transfers.between(source, gpu.node), *links)
            size = instance.model.kv_layer_bytes(request.kv_tokens) * instance.model.weights.layers
        start_s = self.world.clock.now_s
        gpu.account(start_s)
        gpu.transfers += 1

        def done() -> None:
            now_s = self.world.clock.now_s
            gpu.account(now_s)
            gpu.transfers -= 1
            self._record(instance, "kv_restore", size, kv_restore_s=now_s - start_s)
            self.drop(request)
            instance.restores.pop(request.index)
            del instance.restoring[request.index]
            instance.joining.append(request)
            self.world.touch(instance)

        limit = instance.profile.switch.kv_restore_bytes_per_s
        instance.restores[request.index] = self.transfers.start(size, links, limit, "kv_restore", done)

    def cancel_restore(self, instance: Instance, request: Request) -> None:
        """Stop bringing its KV back; the copy in host memory is whole until the last byte has moved."""
        gpu = instance.gpu
        gpu.account(self.world.clock.now_s)
        gpu.transfers -= 1
        self.transfers.cancel(instance.restores.pop(request.index))
