"""Pure: which instances together make the best of a GPU's memory: an unbounded knapsack, by dynamic programming.

Sizes are rounded down to whole shares of the memory, so a set that really fits is never missed; a few that just do not
fit may count as fitting, which keeps a bound a bound.
"""

from __future__ import annotations

import numpy as np

from sim.bounds.machines import Floats

QUANTA = 2048  # shares of the memory; also the most instances on a GPU that are thought of


def best_packing(sizes: list[int], values: Floats, capacity: int) -> tuple[float, dict[int, int]]:
    """The greatest sum of values of items that fit together, each as often as one likes, and how often each is taken.

    sizes: bytes, all above 0.
    """
    useful = [item for item in np.flatnonzero(values > 0).tolist() if sizes[item] <= capacity]
    if not useful:
        return 0.0, {}
    quanta = np.array([max(1, sizes[item] * QUANTA // capacity) for item in useful])
    worth = values[useful]
    best = np.zeros(QUANTA + 1)
    choice = np.full(QUANTA + 1, -1)
    for room in range(1, QUANTA + 1):
        reached = np.where(quanta <= room, worth + best[np.maximum(room - quanta, 0)], -1.0)
        item = int(reached.argmax())
        if reached[item] > best[room - 1]:
            best[room], choice[room] = reached[item], item
        else:
            best[room] = best[room - 1]
    taken: dict[int, int] = {}
    room = QUANTA
    while room > 0:
        if choice[room] < 0:
            room -= 1
            continue
        item = useful[choice[room]]
        taken[item] = taken.get(item, 0) + 1
        room -= int(quanta[choice[room]])
    return float(best[QUANTA]), taken
