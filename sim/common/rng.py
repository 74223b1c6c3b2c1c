"""Named random streams of one seed: the only place that makes a generator.

A stream depends on the seed and its own name alone, so that adding a consumer changes nobody else's numbers and every
policy sees the same arrivals and lengths (common random numbers).
"""

from __future__ import annotations

import hashlib

import numpy as np


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """The generator of the stream `names` under `seed`; equal arguments give equal numbers on every machine."""
    text = "\x1f".join([str(seed), *(str(name) for name in names)])
    digest = hashlib.sha256(text.encode()).digest()
    words = [int.from_bytes(digest[start : start + 4], "little") for start in range(0, 32, 4)]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(words)))
