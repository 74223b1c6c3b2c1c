"""Pure: the multiple-choice knapsack, by which policies share out memory among models (policies.md 5.4).

Each model offers options, one of which is taken: more layers for more value. Dynamic programming over memory in quanta,
exact for sizes rounded up to a quantum. Policies import it from sim.policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor

import numpy as np


def choose_options(
    options: Sequence[Sequence[tuple[float, float]]], capacity: float, quantum: float = 2**28
) -> list[int]:
    """The index of the option to take in each group, for the largest total value within `capacity`.

    options: for each group its (size, value) pairs, sizes in the unit of `capacity` and `quantum` (bytes). In every
    group some option must fit beside the smallest of the others (usually one of size 0). Ties go to the earlier option.
    Cost: number of options times capacity / quantum, or times all that the largest options need where that is less.
    """
    wanted = sum(max((ceil(size / quantum) for size, _ in group), default=0) for group in options)
    slots = min(max(0, floor(capacity / quantum)), wanted)
    best = np.zeros(slots + 1)
    choices: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
    for group in options:
        values = np.full(slots + 1, -np.inf)
        choice = np.full(slots + 1, -1, dtype=np.int64)
        for index, (size, value) in enumerate(group):
            needed = ceil(size / quantum)
            if needed > slots:
                continue
            candidate = np.full(slots + 1, -np.inf)
            candidate[needed:] = best[: slots + 1 - needed] + value
            better = candidate > values
            values[better] = candidate[better]
            choice[better] = index
        best = values
        choices.append(choice)
    assert best[slots] > -np.inf, "a group has no option that fits"
    taken: list[int] = []
    left = slots
    for group, choice in zip(reversed(options), reversed(choices), strict=True):
        index = int(choice[left])
        taken.append(index)
        left -= ceil(group[index][0] / quantum)
    return taken[::-1]
