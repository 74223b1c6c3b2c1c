"""Prism's placement by KV pressure as plain data: GPUs as rooms, and models put into them by demand.

The KV pressure ratio of a GPU is sum(rate / promise) / (memory - sum of weights). Rates, promises and when to plan are
the policy's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import inf

from sim.policy import GpuView, ModelView


@dataclass(eq=False)
class PressureRoom:
    """A GPU in a placement: the demand put on it, and what weights (and their KV pools) leave of its memory."""

    gpu: GpuView
    left_bytes: int
    free_bytes: int
    demand: float = 0.0

    @property
    def pressure(self) -> float:
        """KVPR: requests per second and second of promise, per byte that is left for KV."""
        return self.demand / self.left_bytes if self.left_bytes > 0 else inf

    def rank(self) -> tuple[float, int]:
        return self.pressure, self.gpu.index

    def takes(self, model: ModelView) -> bool:
        layers = self.gpu.layers_when_empty(model)
        return layers is not None and model.gpu_bytes(layers) <= self.free_bytes

    def add(self, model: ModelView, demand: float) -> None:
        layers = self.gpu.layers_when_empty(model) or 0
        self.left_bytes -= layers * model.layer_bytes if layers < model.layers else model.total_bytes
        self.free_bytes -= model.gpu_bytes(layers)
        self.demand += demand


def pressure_rooms(
    gpus: Iterable[GpuView], homes: Mapping[ModelView, GpuView], demands: Mapping[ModelView, float]
) -> list[PressureRoom]:
    """These GPUs with the models that have their home there."""
    found = {gpu: PressureRoom(gpu, gpu.capacity_bytes, gpu.capacity_bytes) for gpu in gpus}
    for model, home in homes.items():
        if home in found:
            found[home].add(model, demands[model])
    return list(found.values())


def least_pressed(rooms: list[PressureRoom], model: ModelView) -> PressureRoom | None:
    """Of those that still take the model the one with the lowest pressure."""
    return min([room for room in rooms if room.takes(model)], key=PressureRoom.rank, default=None)


def pressure_moves(
    gpus: Iterable[GpuView], homes: Mapping[ModelView, GpuView], demands: Mapping[ModelView, float], tau: float
) -> list[tuple[ModelView, GpuView]]:
    """Place all models anew, the most demanding first; those move whose ratio falls by more than `tau` of it, or that
    do not fit where they are."""
    moves = []
    rooms = {room.gpu: room for room in pressure_rooms(gpus, {}, {})}
    for model in sorted([m for m, gpu in homes.items() if gpu in rooms], key=lambda model: -demands[model]):
        home = rooms[homes[model]]
        best = least_pressed(list(rooms.values()), model)
        if best is not None and best is not home:
            gain = home.pressure - best.pressure
            if not home.takes(model) or gain > tau * home.pressure:
                moves.append((model, best.gpu))
                home = best
        home.add(model, demands[model])
    return moves
