"""Pure lookups of times and bytes: what one model in one quantisation costs on one GPU of one host with one engine.

A `Profile` gives decode time against layers x batch x context, prefill time against layers x prompt, weight and KV
bytes, and switch costs. Interpolation is linear in time, never in throughput. library.py reads the tables; the engine
takes times from here and from nowhere else.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

from sim.common.errors import ProfileError


@dataclass(frozen=True)
class GpuKind:
    """A kind of GPU. `h2d`: host to GPU, `d2h`: GPU to host; both in bytes per second."""

    gpu: str
    name: str
    memory_bytes: int
    h2d_bytes_per_s: float
    d2h_bytes_per_s: float
    usd_per_hour: float


@dataclass(frozen=True)
class HostKind:
    """A kind of host. The caps bound the sum over its GPUs, per direction; all bandwidths in bytes per second."""

    host: str
    memory_bytes: int
    cpu_bytes_per_s: float
    disk_bytes_per_s: float
    network_bytes_per_s: float
    h2d_cap_bytes_per_s: float
    d2h_cap_bytes_per_s: float


@dataclass(frozen=True)
class Weights:
    """What a model in one quantisation weighs. The output head goes to the GPU with the last layer."""

    model: str
    quantization: str
    layers: int
    layer_bytes: int
    head_bytes: int
    kv_bytes_per_token_layer: int
    max_context: int
    owner: str = ""  # the served model whose own they are; empty: all of this kind share them

    @property
    def key(self) -> tuple[str, str]:
        """What names these weights in a host's cache."""
        return (f"{self.model}/{self.owner}" if self.owner else self.model), self.quantization

    @property
    def total_bytes(self) -> int:
        return self.layers * self.layer_bytes + self.head_bytes

    def gpu_bytes(self, layers: int) -> int:
        """Weight bytes on the GPU with `layers` of the model's layers there."""
        return layers * self.layer_bytes + (self.head_bytes if layers == self.layers else 0)

    def host_bytes(self, layers: int) -> int:
        """Weight bytes that stay in host memory."""
        return self.total_bytes - self.gpu_bytes(layers)


@dataclass(frozen=True)
class SwitchCosts:
    """What changing a loaded model costs: seconds that do not depend on bytes, and effective bytes per second."""

    start_s: float
    reload_fixed_s: float
    reload_bytes_per_s: float
    kv_save_bytes_per_s: float
    kv_restore_bytes_per_s: float
    free_s: float
    wake_fixed_s: float
    kind: str
    source: str


class Curve:
    """Seconds against one variable, linear between `knots` and split into a GPU part and a host part.

    Below the first knot a time is the first knot's; above the last it is an error of the caller. `segments`: the upper
    end, GPU intercept, GPU slope, host intercept and host slope of each. `origin`: (GPU seconds, host seconds) at 0; of
    a prefill curve that is the cost of an iteration that computes no prompt.
    """

    __slots__ = ("gpu_s", "host_s", "knots", "origin", "segments")

    def __init__(self, knots: tuple[float, ...], gpu_s: tuple[float, ...], host_s: tuple[float, ...]) -> None:
        self.knots = knots
        self.gpu_s = gpu_s
        self.host_s = host_s
        segments = [(knots[0], gpu_s[0], 0.0, host_s[0], 0.0)]
        for low in range(len(knots) - 1):
            left, right = knots[low], knots[low + 1]
            gpu_slope = (gpu_s[low + 1] - gpu_s[low]) / (right - left)
            host_slope = (host_s[low + 1] - host_s[low]) / (right - left)
            segments.append(
                (right, gpu_s[low] - gpu_slope * left, gpu_slope, host_s[low] - host_slope * left, host_slope)
            )
        self.segments = tuple(segments)
        self.origin = self.at(0.0)

    def at(self, value: float) -> tuple[float, float]:
        """(GPU seconds, host seconds) at `value`, which is at most the last knot."""
        assert value <= self.knots[-1], f"{value} is above the table's last knot {self.knots[-1]}"
        _, gpu, gpu_slope, host, host_slope = self.segments[bisect_left(self.knots, value)]
        return gpu + gpu_slope * value, host + host_slope * value


@dataclass(frozen=True)
class Grid:
    """A full rectangular table: knots of each axis, and seconds in row-major order."""

    axes: tuple[tuple[float, ...], ...]
    seconds: tuple[float, ...]

    def slice(self, *point: float) -> tuple[float, ...]:
        """Seconds along the last axis, multilinearly interpolated in time at `point` of the axes before it."""
        corners: list[tuple[int, float]] = [(0, 1.0)]
        for axis, value in zip(self.axes, point, strict=False):
            low, weight = _bracket(axis, value)
            corners = [
                (start * len(axis) + knot, share * part)
                for start, share in corners
                for knot, part in ((low, 1.0 - weight), (low + 1, weight))
                if part > 0.0
            ]
        width = len(self.axes[-1])
        return tuple(
            sum([share * self.seconds[start * width + column] for start, share in corners], 0.0)
            for column in range(width)
        )


def _bracket(axis: tuple[float, ...], value: float) -> tuple[int, float]:
    """The knot at or below `value` and the weight of the next one; the first knot below the table."""
    assert value <= axis[-1], f"{value} is above the table's last knot {axis[-1]}"
    if value <= axis[0]:
        return 0, 0.0
    low = bisect_right(axis, value) - 1
    if low == len(axis) - 1:
        return low, 0.0
    return low, (value - axis[low]) / (axis[low + 1] - axis[low])


class Profile:
    """One (model, quantisation, GPU, host, engine): all the times and bytes that a run asks for.

    An iteration's GPU part is layers/L of the full-residency time, its host part is the rest (model.md section 5).
    `offload` says who has the layers outside the GPU: `cpu` computes them, `stream` sends their weights over the link.
    """

    def __init__(
        self, weights: Weights, decode: Grid, prefill: Grid, switch: SwitchCosts, offload: str, label: str
    ) -> None:
        self.weights = weights
        self.switch = switch
        self.offload = offload
        self.label = label
        self._decode = decode
        self._prefill = prefill
        self._decode_curves: dict[tuple[int, int], Curve] = {}
        self._prefill_curves: dict[int, Curve] = {}
        self._known_steps: dict[tuple[int, int, float], float] = {}
        if min(decode.axes[0][-1], prefill.axes[0][-1]) < weights.layers:
            raise ProfileError(f"{label}: the tables end below {weights.layers} layers; add the full model")

    @property
    def fewest_layers(self) -> int:
        """The least residency that the tables cover."""
        return int(max(self._decode.axes[0][0], self._prefill.axes[0][0]))

    @property
    def largest_batch(self) -> int:
        return int(self._decode.axes[1][-1])

    @property
    def longest_context(self) -> int:
        return int(min(self._decode.axes[2][-1], self._prefill.axes[1][-1]))

    @property
    def knots(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The layers (of both tables) and the batches between which times are interpolated."""
        layers = sorted({int(knot) for knot in (*self._decode.axes[0], *self._prefill.axes[0])})
        return tuple(layers), tuple(int(batch) for batch in self._decode.axes[1])

    def with_switch(self, switch: SwitchCosts) -> Profile:
        """The same tables with other switch costs."""
        return Profile(self.weights, self._decode, self._prefill, switch, self.offload, self.label)

    def decode_curve(self, layers: int, batch: int) -> Curve:
        """Seconds of one decode iteration of `batch` sequences against their mean context."""
        curve = self._decode_curves.get((layers, batch))
        if curve is None:
            here, full = (self._decode.slice(each, batch) for each in (layers, self.weights.layers))
            curve = self._decode_curves[layers, batch] = self._split(layers, self._decode.axes[2], here, full)
        return curve

    def prefill_curve(self, layers: int) -> Curve:
        """Seconds of an iteration that computes a prompt against its tokens; at 0 the iteration's fixed cost."""
        curve = self._prefill_curves.get(layers)
        if curve is None:
            here, full = (self._prefill.slice(each) for each in (layers, self.weights.layers))
            curve = self._prefill_curves[layers] = self._split(layers, self._prefill.axes[1], here, full)
        return curve

    def _split(
        self, layers: int, knots: tuple[float, ...], seconds: tuple[float, ...], full: tuple[float, ...]
    ) -> Curve:
        if self.offload == "cpu":
            share = layers / self.weights.layers
            gpu = tuple(share * whole for whole in full)
        else:
            # The GPU computes every layer; what is longer, it waits for weights on the link. Its share of all the
            # curve's times is taken of each, so that both parts grow together and a prompt costs the same in chunks.
            share = min(1.0, sum(full, 0.0) / sum(seconds, 0.0))
            gpu = tuple([share * here for here in seconds])
        host = tuple(here - there for here, there in zip(seconds, gpu, strict=True))
        if layers == self.weights.layers:
            host = tuple(0.0 for _ in host)
        elif min(host) < 0:
            faster = f"{layers} layers on the GPU are faster than their share of the full model"
            raise ProfileError(f"{self.label}: {faster}; mend those rows")
        return Curve(knots, gpu, host)

    def step_s(self, layers: int, batch: int = 1, context: float = 0.0) -> float:
        """Seconds of one decode iteration with nobody else on the GPU or the CPU."""
        gpu_s, host_s = self.decode_curve(layers, batch).at(context)
        return gpu_s + host_s

    def known_step_s(self, layers: int, batch: int, context: float) -> float:
        """`step_s` for who asks for the same few contexts over and over: looked up once."""
        seconds = self._known_steps.get((layers, batch, context))
        if seconds is None:
            seconds = self._known_steps[layers, batch, context] = self.step_s(layers, batch, context)
        return seconds

    def prefill_s(self, layers: int, prompt_tokens: float) -> float:
        """Seconds to compute a prompt alone in one iteration."""
        gpu_s, host_s = self.prefill_curve(layers).at(prompt_tokens)
        return gpu_s + host_s

    def load_s(self, layers: int, link_bytes_per_s: float) -> float:
        """Seconds to load `layers` from host memory on an idle link, engine start included."""
        rate = min(self.switch.reload_bytes_per_s, link_bytes_per_s)
        return self.switch.start_s + self.switch.reload_fixed_s + self.weights.gpu_bytes(layers) / rate
