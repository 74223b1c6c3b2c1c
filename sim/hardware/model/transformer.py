"""A real decoder-only transformer in torch that can be partly on the GPU: what is profiled, and what is served.

Llama and Qwen architectures (RMSNorm, rotary positions, grouped-query attention, gated MLP) with random weights, layer
by layer: the last k layers are on the device, the output head with the last of them; the others are computed by the
CPU (`cpu`) or their weights cross the link in every step (`stream`). One forward pass takes whole prompts, chunks of
prompts and decoding sequences together. It has no tokeniser and no sampling: the next token is the likeliest.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open

from sim.common.rng import stream
from sim.hardware.model.device import Device
from sim.hardware.model.weights import HostWeights, random_numbers, views
from sim.profiling.architectures import Architecture

_EPSILON = 1e-6


@dataclass
class Item:
    """Tokens of one sequence in a forward pass: `tokens` follow the `start` tokens that are in its KV slot already."""

    slot: int
    tokens: Sequence[int]
    start: int


class _Batch:
    """What the layers of one side need to know of a forward pass, brought there once and not once a layer."""

    def __init__(self, items: list[Item], positions: torch.Tensor, where: torch.device) -> None:
        self.items = items
        self.positions = positions.to(where)
        self.decoding = all(len(item.tokens) == 1 for item in items)
        self.slots = torch.tensor([item.slot for item in items]).to(where)
        self.longest = max(item.start + len(item.tokens) for item in items)
        # A GPU decodes a batch in one call, padded to the longest: launches, not work, are what costs there.
        padded = self.decoding and len(items) > 1 and where.type == "cuda"
        self.mask: torch.Tensor | None = self.padding(positions).to(where) if padded else None

    def padding(self, positions: torch.Tensor) -> torch.Tensor:
        """(sequence, 1, 1, position): which positions up to the longest are a decoding sequence's own."""
        return (torch.arange(self.longest) <= positions[:, None])[:, None, None]


class Streamer:
    """Brings the weights of layers that are not on the device there, one ahead of the computing."""

    def __init__(self, device: Device, layers: list[torch.Tensor]) -> None:
        self.device = device
        self.layers = layers
        self.size = layers[0].numel() * layers[0].element_size()
        self._block = device.allocate(2 * self.size)
        self.staging = list(self._block.view(layers[0].dtype).chunk(2))
        self.copies = ThreadPoolExecutor(1, "link", self._prepare)
        self.under_way: dict[int, Future[None]] = {}

    def _prepare(self) -> None:
        self.device.bind(to_host=True)
        self.cuda_stream = torch.cuda.Stream() if self.device.is_cuda else None

    def _copy(self, number: int) -> None:
        with torch.cuda.stream(self.cuda_stream):
            self.device.copy(self.staging[number % 2], self.layers[number])
            self.device.synchronize()

    def ahead(self, number: int) -> None:
        """Begin to bring a layer."""
        if number < len(self.layers) and number not in self.under_way:
            self.under_way[number] = self.copies.submit(self._copy, number)

    def layer(self, number: int) -> torch.Tensor:
        """The layer, on the device; the next one is on its way."""
        self.ahead(number)
        self.under_way.pop(number).result()
        self.device.synchronize()  # the other buffer's last reader is done
        self.ahead(number + 1)
        return self.staging[number % 2]

    def close(self) -> None:
        self.copies.shutdown()
        self.staging = []
        blocks = [self._block]
        del self._block
        self.device.give_back(blocks)


class Transformer:
    """A model with `layers` of its layers on the device and KV slots for `slots` sequences of `max_context` tokens.

    A layer's KV lies where the layer is computed. Raises DeviceMemoryError when device memory does not hold it.
    """

    def __init__(
        self, weights: HostWeights, device: Device, layers: int, slots: int, max_context: int, offload: str = "cpu"
    ) -> None:
        self.weights, self.device, self.layers, self.slots = weights, device, layers, slots
        self.shape, self.max_context, self.offload = weights.shape, max_context, offload
        self.first = self.shape.layers - layers  # the first layer on the device
        self.full = layers == self.shape.layers
        self._blocks: list[torch.Tensor] = []
        self._streamer: Streamer | None = None
        self._rotations: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    # --- load and free

    def reserve(self) -> None:
        """Take device memory for weights and KV, host memory for the KV of host layers; write to all KV once."""
        shape, item = self.shape, self.weights.dtype.itemsize
        self._flat = self._take(shape.weight_bytes(self.layers, item))
        per_layer = 2 * self.slots * shape.kv_heads * self.max_context * shape.head_dim
        on_device = shape.layers if self.offload == "stream" else self.layers
        dims = (2, self.slots, shape.kv_heads, self.max_context, shape.head_dim)
        self._device_kv = self._take(on_device * per_layer * item).view(on_device, *dims)
        host = self.device.host_empty((shape.layers - on_device) * per_layer * item, pinned=False)
        self._host_kv = host.view(self.weights.dtype).view(shape.layers - on_device, *dims)
        self._layer_elements, self.pool_tokens = per_layer, self.slots * self.max_context
        self._device_kv.zero_()
        self._host_kv.zero_()
        self._host_layers = self.shape.layers - on_device
        angles = _angles(shape, self.max_context)
        for kind in dict.fromkeys(("cpu", self.device.kind)):
            table = angles.to(self.weights.dtype).to(self.device.torch if kind == self.device.kind else "cpu")
            self._rotations[kind] = (table[0], table[1])
        if self.first and self.offload == "stream":
            self._streamer = Streamer(self.device, self.weights.layers[: self.first])
        self.device.synchronize()

    def _take(self, size: int) -> torch.Tensor:
        tensor = self.device.allocate(size)
        self._blocks.append(tensor)
        return tensor.view(self.weights.dtype)

    def copy_weights(self, source: Path | None = None) -> None:
        """Bring the device's part of the weights there, from host memory or from a safetensors file."""
        moving = [*self.weights.layers[self.first :], *([self.weights.head] if self.full else [])]
        targets: Sequence[torch.Tensor] = self._flat.split([tensor.numel() for tensor in moving]) if moving else ()
        if source is None:
            for target, tensor in zip(targets, moving, strict=True):
                self.device.copy(target, tensor)
        else:
            names = [f"layer.{number}" for number in range(self.first, self.shape.layers)]
            with safe_open(source, "pt") as file:
                for target, name in zip(targets, [*names, "head"], strict=False):
                    self.device.copy(target, file.get_tensor(name))
        self.device.synchronize()
        shapes = self.shape.layer_shapes
        here = dict(zip(range(self.first, self.shape.layers), targets, strict=False))
        self._layers = [views(here.get(n, self.weights.layers[n]), shapes) for n in range(self.shape.layers)]
        self._head = views(targets[-1] if self.full else self.weights.head, self.shape.head_shapes)

    def load(self) -> None:
        """Reserve memory and copy the weights from host memory."""
        self.reserve()
        self.copy_weights()

    def free(self) -> None:
        """Give all memory back."""
        self._layers, self._head, self._rotations = [], {}, {}
        self._flat = self._device_kv = self._host_kv = torch.empty(0)
        if self._streamer is not None:
            self._streamer.close()
            self._streamer = None
        self.device.give_back(self._blocks)

    # --- KV

    def fill_kv(self, seed: int) -> None:
        """Random numbers in all KV; their period is odd, so that no two layers are alike."""
        noise = random_numbers((1 << 20) - 1, seed, "kv").to(self.weights.dtype)
        for kv in (self._device_kv, self._host_kv):
            flat, there = kv.view(-1), noise.to(kv.device)
            for start in range(0, flat.numel(), noise.numel()):
                part = flat[start : start + noise.numel()]
                part.copy_(there[: part.numel()])

    def recut(self, slots: int, max_context: int) -> None:
        """The same KV memory as `slots` of `max_context` tokens; what was in it means nothing any more."""
        shape = self.shape
        dims = (2, slots, shape.kv_heads, max_context, shape.head_dim)
        assert slots * max_context <= self.pool_tokens, "more tokens than were reserved"
        for name in ("_device_kv", "_host_kv"):
            kv = getattr(self, name)
            elements = len(kv) * torch.Size(dims).numel()
            flat = torch.as_strided(kv, (len(kv) * self._layer_elements,), (1,))
            setattr(self, name, flat[:elements].view(len(kv), *dims))
        self.slots, self.max_context = slots, max_context

    def _kv(self, layer: int) -> torch.Tensor:
        """(key or value, slot, KV head, position, dimension) of a layer."""
        return self._host_kv[layer] if layer < self._host_layers else self._device_kv[layer - self._host_layers]

    def kv_buffer(self, tokens: int, pinned: bool = True) -> torch.Tensor:
        """Host memory for the KV of one sequence of so many tokens, in all layers."""
        shape = self.shape
        size = shape.layers * 2 * shape.kv_heads * tokens * shape.head_dim * self.weights.dtype.itemsize
        buffer = self.device.host_empty(size, pinned, reused=True).view(self.weights.dtype)
        return buffer.view(shape.layers, 2, shape.kv_heads, tokens, shape.head_dim)

    def save_kv(self, slot: int, tokens: int, buffer: torch.Tensor) -> None:
        """Copy a sequence's KV into `buffer`: the device's part crosses the link, the host's is in host memory."""
        for number, saved in enumerate(buffer):  # one layer at a time: a copy of KV that is no one piece needs room
            self._cross(number, saved, self._kv(number)[:, slot, :, :tokens], "d2h")
        self.device.synchronize()

    def restore_kv(self, slot: int, tokens: int, buffer: torch.Tensor) -> None:
        """Copy a saved KV back into a slot, of this instance or of another of the model with other layers here."""
        for number, saved in enumerate(buffer):
            self._cross(number, self._kv(number)[:, slot, :, :tokens], saved, "h2d")
        self.device.synchronize()

    def _cross(self, layer: int, target: torch.Tensor, source: torch.Tensor, way: str) -> None:
        """Copy KV of a layer, over the link only where it lies on the device."""
        if layer < self._host_layers:
            target.copy_(source)
        else:
            self.device.copy(target, source, way)

    # --- computing

    def forward(self, items: list[Item]) -> list[int]:
        """One iteration; the next token of each item, in order."""
        with torch.inference_mode():
            return self._forward(items)

    def _forward(self, items: list[Item]) -> list[int]:
        shape, device = self.shape, self.device
        lengths = [len(item.tokens) for item in items]
        ids = torch.tensor([token for item in items for token in item.tokens])
        positions = torch.tensor([item.start + i for item in items for i in range(len(item.tokens))])
        on_host = not self.full
        table = self._head.get("embedding", self._head["head"])
        where = "cpu" if on_host else device.kind
        x = F.embedding(ids.to(table.device), table)
        if self.offload == "stream" or not self.first:
            x, where = x.to(device.torch), device.kind
        elif self.first:
            device.bind(to_host=True)
        places = {kind: torch.device("cpu") if kind == "cpu" else device.torch for kind in self._rotations}
        at = {kind: _Batch(items, positions, place) for kind, place in places.items()}
        for number in range(shape.layers):
            if number == self.first and where == "cpu" and self.offload == "cpu":
                x, where = x.to(device.torch), device.kind
                device.bind()
            weights = self._layers[number]
            if number < self.first and self._streamer is not None:
                weights = views(self._streamer.layer(number), shape.layer_shapes)
            x = self._layer(x, weights, self._kv(number), at[where], self._rotations[where])
        last = torch.tensor(lengths).cumsum(0) - 1
        x = x[last.to(x.device)]
        if on_host:
            x = x.cpu()
            if self.offload == "cpu":
                device.bind(to_host=True)
        logits = F.linear(_norm(x, self._head["norm"]), self._head["head"])
        tokens: list[int] = logits.argmax(-1).tolist()  # waits for the device
        if self._streamer is not None:
            self._streamer.ahead(0)  # for the next step
        device.bind()
        return tokens

    def _layer(
        self,
        x: torch.Tensor,
        weights: dict[str, torch.Tensor],
        kv: torch.Tensor,
        batch: _Batch,
        rotation: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        shape, count = self.shape, len(x)
        qkv = F.linear(_norm(x, weights["norm1"]), weights["qkv"]).view(count, -1, shape.head_dim)
        q, k, v = qkv.split((shape.heads, shape.kv_heads, shape.kv_heads), dim=1)
        cos, sin = rotation[0][batch.positions, None], rotation[1][batch.positions, None]
        attended = _attend(_rotate(q, cos, sin), _rotate(k, cos, sin), v, kv, batch)
        x = x + F.linear(attended.reshape(count, -1), weights["out"])
        gate, up = F.linear(_norm(x, weights["norm2"]), weights["gate_up"]).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, weights["down"])


def _norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return F.rms_norm(x, weight.shape, weight, _EPSILON)


def _angles(shape: Architecture, positions: int) -> torch.Tensor:
    """(cos or sin, position, dimension)."""
    frequencies = 1e-4 ** (torch.arange(0, shape.head_dim, 2) / shape.head_dim)
    angles = torch.outer(torch.arange(positions), frequencies)
    return torch.stack((torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()))


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kv: torch.Tensor, batch: _Batch) -> torch.Tensor:
    """(tokens, heads, dimension) of q against all that is in the slots; k and v are put there first."""
    if batch.decoding:
        kv[0, batch.slots, :, batch.positions] = k
        kv[1, batch.slots, :, batch.positions] = v
        if batch.mask is not None:
            keys, values = kv[:, batch.slots, :, : batch.longest]
            return _grouped(q[:, None], keys, values, batch.mask).flatten(0, 1)
    outputs, begin = [], 0
    for item in batch.items:
        number, end = len(item.tokens), item.start + len(item.tokens)
        part = slice(begin, begin + number)
        begin += number
        keys, values = kv[0, item.slot, :, :end], kv[1, item.slot, :, :end]
        if not batch.decoding:
            keys[:, item.start :] = k[part].transpose(0, 1)
            values[:, item.start :] = v[part].transpose(0, 1)
        if number > 1 and not item.start:
            heads = F.scaled_dot_product_attention(
                q[part].transpose(0, 1)[None], keys[None], values[None], is_causal=True, enable_gqa=True
            )
            outputs.append(heads[0].transpose(0, 1))
            continue
        mask = None
        if number > 1:
            mask = torch.ones(number, end, dtype=torch.bool, device=kv.device).tril(item.start)
        outputs.append(_grouped(q[part][None], keys[None], values[None], mask)[0])
    return torch.cat(outputs)


def _grouped(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention of q (batch, tokens, heads, dimension) to keys and values (batch, KV heads, positions, dimension).

    Heads of one KV head stand beside each other as if they were tokens: with a mask, kernels that know grouped heads
    are few, and the general one copies all keys and values in float32. mask: (batch or tokens..., positions).
    """
    count, tokens, heads, width = q.shape
    groups = heads // keys.shape[1]
    rows = q.reshape(count, tokens, keys.shape[1], groups, width).permute(0, 2, 3, 1, 4)
    rows = rows.reshape(count, keys.shape[1], groups * tokens, width)
    if mask is not None and tokens > 1:
        mask = mask.repeat(groups, 1)
    out = F.scaled_dot_product_attention(rows, keys, values, mask)
    return out.reshape(count, keys.shape[1], groups, tokens, width).permute(0, 3, 1, 2, 4).reshape(q.shape)


def random_tokens(shape: Architecture, count: int, seed: int) -> list[int]:
    """Prompt tokens for measurements."""
    tokens: list[int] = stream(seed, "prompt").integers(shape.vocab, size=count).tolist()
    return tokens
