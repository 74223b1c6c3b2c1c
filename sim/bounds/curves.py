"""Pure: the cheapest way to decode at each mean context, over all batches that fit, as a convex chain of points.

A point is what an iteration of one batch costs each of its tokens. Any mixture of iterations lies above the chain, so
the chain is a lower bound for whatever a scheduler puts together, and the fluid bound mixes its points.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from sim.bounds.machines import EqualGpus, Floats, Level, Sort, decode_seconds

_PLACES = 65  # contexts at which the drift is looked at

Chain = list[tuple[float, float]]  # (mean context, seconds per token), contexts rising, slopes too


def decode_chains(sort: Sort, group: EqualGpus, level: Level, touching: Floats) -> tuple[Chain, Chain]:
    """GPU seconds and host seconds per decoded token against mean context; the second is empty at full residency.

    Every whole batch up to max_sequences is looked at, at the contexts of the tables and where the KV memory ends.
    Between them times are linear in the context, so nothing lies below the chain of these. To keep the program small,
    it is then replaced by the lines that touch it at the contexts `touching`, which lie nowhere above it.
    """
    profile, most = sort.profile(group), sort.options.max_sequences
    longest = float(sort.model.max_context)
    pool = sort.pool_tokens(group, level)
    knots = np.unique(np.clip([1.0, *profile.decode_curve(sort.layers, 1).knots, longest], 1.0, longest))
    sizes = np.arange(1, most + 1, dtype=np.float64)
    batches = np.concatenate([np.repeat(sizes, len(knots)), sizes])
    contexts = np.concatenate([np.tile(knots, most), np.clip(pool / sizes, 1.0, longest)])
    fits = batches * contexts <= pool * (1 + 1e-9)
    fits |= batches == 1  # one longest request always fits: that is the smallest pool
    batches, contexts = batches[fits], contexts[fits]
    full_s, _ = decode_seconds(profile, sort.layers, batches, contexts)
    gpu_s = full_s * (level.low / sort.layers)
    on_gpu = _below(_lower_chain(contexts, gpu_s / batches), touching)
    if level.high == sort.layers:
        return on_gpu, []
    _, host_s = decode_seconds(profile, level.high, batches, contexts)
    return on_gpu, _below(_lower_chain(contexts, host_s / batches), touching)


def _below(chain: Chain, touching: Floats) -> Chain:
    """The chain of the lines that touch this one at these contexts; both ends stay where they are."""
    if len(chain) <= len(touching) + 1:
        return chain
    contexts = np.array([context for context, _ in chain])
    places = np.clip(np.searchsorted(contexts, touching), 1, len(chain) - 1)
    lines = []
    for place in dict.fromkeys([1, *places.tolist(), len(chain) - 1]):
        (left, low), (right, high) = chain[place - 1], chain[place]
        slope = (high - low) / (right - left)
        lines.append((slope, low - slope * left))
    found = [chain[0]]
    lines.sort()
    for (slope, base), (other_slope, other_base) in pairwise(lines):
        if other_slope > slope:
            context = (base - other_base) / (other_slope - slope)
            found.append((context, base + slope * context))
    return [*found, chain[-1]]


def _lower_chain(contexts: Floats, seconds: Floats) -> Chain:
    """The lower convex hull of the points, from left to right."""
    order = np.lexsort((seconds, contexts))
    chain: Chain = []
    for x, y in zip(contexts[order].tolist(), seconds[order].tolist(), strict=True):
        if chain and chain[-1][0] == x:
            continue
        while len(chain) > 1 and _above(chain[-2], chain[-1], (x, y)):
            chain.pop()
        chain.append((x, y))
    return chain


def _above(left: tuple[float, float], middle: tuple[float, float], right: tuple[float, float]) -> bool:
    """Is the middle point on or above the line between the others?"""
    return (middle[1] - left[1]) * (right[0] - left[0]) >= (right[1] - left[1]) * (middle[0] - left[0])


def drift(sort: Sort, group: EqualGpus, level: Level, tokens: int) -> tuple[float, float]:
    """How far an instance can have more of the GPU, and of the host, than it seems to: two factors of at least 1.

    Instances share by the shares of GPU and host that their batches began with, and no batch stays as it is for more
    than `tokens` iterations, the longest answer. The factors are the most by which the ratio of GPU to host seconds
    rises, and falls, while a context grows by so much.
    """
    if level.high in (sort.layers, 0):
        return 1.0, 1.0
    profile, longest, most = sort.profile(group), float(sort.model.max_context), sort.options.max_sequences
    pool = sort.pool_tokens(group, level)
    rises = falls = 1.0
    for layers in dict.fromkeys((max(1, level.low), level.high)):
        for size in [*(knot for knot in profile.knots[1] if knot < most), most]:
            places = np.linspace(1.0, max(1.0, min(longest, pool / size)), _PLACES)
            sizes, later = np.full(_PLACES, float(size)), np.minimum(places + tokens, longest)
            parts = (decode_seconds(profile, layers, sizes, contexts) for contexts in (places, later))
            before, after = (gpu_s / host_s for gpu_s, host_s in parts)
            rises = max(rises, float((after / before).max()))
            falls = max(falls, float((before / after).max()))
    return rises, falls


def gpu_shares(sort: Sort, group: EqualGpus, level: Level) -> tuple[tuple[float, float], tuple[float, float]]:
    """The least and the greatest share of the GPU in an iteration's time: of those that decode, of those that prefill.

    Linear pieces are compared at their ends, where their ratios are least and greatest.
    """
    if level.high == sort.layers:
        return (1.0, 1.0), (1.0, 1.0)
    profile, longest, most = sort.profile(group), float(sort.model.max_context), sort.options.max_sequences
    sizes = np.unique([1.0, float(most), *(knot for knot in profile.knots[1] if knot < most)])
    knots = np.unique(np.clip([1.0, *profile.decode_curve(sort.layers, 1).knots, longest], 1.0, longest))
    batches, contexts = np.repeat(sizes, len(knots)), np.tile(knots, len(sizes))
    decode, prefill = [], []
    for layers in dict.fromkeys((level.low, level.high)):
        gpu_s, host_s = decode_seconds(profile, layers, batches, contexts)
        decode += (gpu_s / (gpu_s + host_s)).tolist()
        curve = profile.prefill_curve(layers)
        points = [curve.origin, *zip(curve.gpu_s, curve.host_s, strict=True)]
        parts = [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(points)]
        prefill += [gpu / (gpu + host) for gpu, host in (curve.origin, *parts) if gpu + host > 0]
    if sort.options.prefill == "chunked":  # prompts share iterations with those that decode
        decode = prefill = [*decode, *prefill]
    return (max(0.0, min(decode)), min(1.0, max(decode))), (max(0.0, min(prefill)), min(1.0, max(prefill)))
