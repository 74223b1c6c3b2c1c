"""Ids of prompt blocks: equal ids stand for equal content, so a common run of ids at the front is a shared prefix.

A prompt of n tokens has ceil(n / block_tokens) blocks; one that is not full is its own. Ids are planned as a few
numbers a request and written out only when a chunk of the trace is made: there may be thousands a request. Called by
`flows` and `sessions` (plan) and by `merging` (write out).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.common.errors import ConfigError
from sim.common.lazy import pa
from sim.scenario.workload import Prefix
from sim.workload import draws

Ints = NDArray[np.int64]
Rows = dict[str, NDArray[Any]]  # columns of equal length by name

# What a request's ids are planned as. block_tokens 0: the request has no ids.
PLAN = ("block_tokens", "shared_blocks", "shared_at", "text_at", "last_at")


class Blocks:
    """Gives out the ids of one process."""

    def __init__(self, law: Prefix, streams: Callable[[str], np.random.Generator]) -> None:
        self._law = law
        self._choose = streams("group")
        weights = np.arange(1, law.groups + 1, dtype=np.float64) ** -law.exponent
        self._edges = np.cumsum(weights) / weights.sum()
        scores = streams("shared").standard_normal(law.groups)
        shared = np.rint(draws.values(law.shared_tokens, scores))
        if not shared.max() <= draws.MOST_TOKENS:
            raise ConfigError(f"workload: prefix.shared_tokens: {shared.max():.3g} were drawn; give the law a max")
        self._shared = shared.astype(np.int64) // law.block_tokens
        # A place of its own for every process, so that ids of two do not meet.
        self._groups_at = int(streams("blocks").integers(0, 2**61))
        self._stride = int(self._shared.max()) + 1
        self._next = self._groups_at + law.groups * self._stride

    def groups(self, count: int) -> Ints:
        """Which shared beginning each of `count` prompts or sessions has."""
        drawn = np.searchsorted(self._edges, self._choose.random(count), side="right")
        return np.minimum(drawn, self._law.groups - 1)

    def alone(self, prompt: Ints) -> Rows:
        """The plan for prompts that share only their group's beginning."""
        return self.plan(prompt, self.groups(len(prompt)), np.ones(len(prompt), dtype=bool))

    def plan(self, prompt: Ints, group: Ints, fresh: NDArray[np.bool_]) -> Rows:
        """The plan for prompts of these lengths: each continues the one before it, or begins anew where `fresh`."""
        size = self._law.block_tokens
        full = prompt // size
        shared = np.minimum(self._shared[group], full)
        own = full - shared
        ragged = (prompt % size > 0).astype(np.int64)
        begins, which = np.flatnonzero(fresh), np.cumsum(fresh) - 1
        room = np.maximum.reduceat(own, begins)  # ids that a text needs beyond the shared ones
        # Text after text, so that nothing depends on how many come at once.
        used = room + np.add.reduceat(ragged, begins)
        text_at = self._next + np.cumsum(used) - used
        before = np.cumsum(ragged) - ragged
        last_at = (text_at + room - before[begins])[which] + before
        self._next += int(used.sum())
        return {
            "block_tokens": np.full(len(prompt), size, dtype=np.int64),
            "shared_blocks": shared,
            "shared_at": self._groups_at + group * self._stride,
            "text_at": text_at[which],
            "last_at": last_at,
        }


def block_counts(rows: Rows) -> Ints:
    """How many ids each request has."""
    size = rows["block_tokens"]
    counts: Ints = np.where(size > 0, -(-rows["prompt_tokens"] // np.maximum(size, 1)), 0)
    return counts


def written_out(rows: Rows) -> Any:
    """The ids of every request: a pyarrow list<int64>[n], null where there are none."""
    counts = block_counts(rows)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    position = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
    shared = np.repeat(rows["shared_blocks"], counts)
    at = np.where(position < shared, np.repeat(rows["shared_at"], counts), np.repeat(rows["text_at"], counts) - shared)
    ids = at + position
    ragged = rows["prompt_tokens"] % np.maximum(rows["block_tokens"], 1) > 0
    ids[offsets[1:][ragged] - 1] = rows["last_at"][ragged]
    mask = pa.array(rows["block_tokens"] == 0)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(ids, pa.int64()), mask=mask)
