"""Where a model's output head was when llama.cpp had so many "layers" on the GPU: a count that takes the head for one.

Until December 2025 the head followed the last layer, since then it goes first; all counts above the layers mean
everything. Where no build tells, a sweep often does: both readings are fitted to it. `importing` calls it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sim.profiling.points import ModelRow

_CLEARLY = 0.6  # of the other reading's error: a sweep then tells the two apart
_FEWEST_PARTIAL = 2


# llama.cpp pull request 18148 (December 2025): from about this build on, the output head goes to the GPU first.
HEAD_FIRST_BUILD = 7560


def layers_of(count: int, layers: int, first: bool) -> tuple[int, str]:
    """(layers on the GPU, where the head is: "gpu", "host", or empty where the rule of the tables says it)."""
    if count == 0 or count > layers:
        return min(count, layers), ""
    if first:
        return count - 1, "gpu"
    return count, "host" if count == layers else ""


def placed(count: int, layers: int, first: bool) -> tuple[int, bool]:
    """(layers on the GPU, whether the head is there)."""
    there, head = layers_of(count, layers, first)
    return there, head == "gpu" or (not head and there == layers)


def head_goes_first(sweep: Sequence[tuple[int, float]], model: ModelRow) -> bool | None:
    """Whether decode times against counts, of one batch and context, say so; None: they do not tell."""
    partial = {count for count, _ in sweep if 0 < count <= model.layers}
    if len(partial) < _FEWEST_PARTIAL or len({min(count, model.layers + 1) for count, _ in sweep}) < 4:
        return None
    last, first = (_misfit(sweep, model, reading) for reading in (False, True))
    if min(last, first) > _CLEARLY * max(last, first):
        return None
    return first < last


def _misfit(sweep: Sequence[tuple[int, float]], model: ModelRow, first: bool) -> float:
    """The root mean square relative error of time as bytes over two bandwidths."""
    total = model.layers * model.layer_bytes + model.head_bytes
    rows = []
    for count, seconds in sweep:
        layers, on_gpu = placed(count, model.layers, first)
        share = (layers * model.layer_bytes + on_gpu * model.head_bytes) / total
        rows.append(((1 - share) / seconds, share / seconds))
    sides_s, _, rank, _ = np.linalg.lstsq(np.array(rows), np.ones(len(rows)))
    if rank < 2 or (sides_s < 0).any():
        return float("inf")
    return float(np.sqrt(np.mean((np.array(rows) @ sides_s - 1) ** 2)))


def fastest_head_s(sweep: Sequence[tuple[int, float]], model: ModelRow) -> float | None:
    """Seconds in which the host reads the head alone, by its time for everything; None where that is not in the sweep.

    All layers on the GPU with the head on the host cannot be faster.
    """
    alone = [seconds for count, seconds in sweep if count == 0]
    if not alone:
        return None
    return max(alone) * model.head_bytes / (model.layers * model.layer_bytes + model.head_bytes)
