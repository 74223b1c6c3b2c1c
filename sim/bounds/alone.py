"""The least time that each request needs: alone, on the GPU that serves it fastest, with nothing to load.

It holds for every policy and every load, request by request, so also for each mean and percentile over all requests.
It knows nothing of queues: pooled.py bounds what they add.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.bounds.demand import Requests
from sim.bounds.machines import BoundMachines, EqualGpus, Floats, Sort, decode_seconds

_PLACES = 33  # contexts at which a batch is compared with a sequence alone
_MOST_BATCHES = 512


@dataclass(frozen=True)
class AloneBound:
    """Lower bounds in seconds, one of each request that can be served, in order of arrival.

    No policy gives request i its first token within ttft_s[i], nor its answer within e2e_s[i], of its arrival.
    Assumes of the tables what holds of all that come with the project (and is checked where it decides): time grows
    with context. The prompt and each token are taken on whichever GPU and residency is fastest for it, so this holds
    for policies that move requests too. Means and percentiles bound those of a run in which all requests complete.
    """

    requests: Requests
    ttft_s: Floats
    e2e_s: Floats

    def spreads(self) -> dict[str, dict[str, float]]:
        """mean, p50, p90, p95, p99 and max of both."""
        shares = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "max": 1.0}
        return {
            name: {"mean": float(values.mean()), **{key: float(np.quantile(values, at)) for key, at in shares.items()}}
            for name, values in (("ttft_s", self.ttft_s), ("e2e_s", self.e2e_s))
        }


def alone_of(machines: BoundMachines, requests: Requests) -> AloneBound:
    """The same of requests at hand."""
    ttft_s, decode_s = np.empty(len(requests)), np.empty(len(requests))
    for number, sort in enumerate(machines.sorts):
        rows = np.flatnonzero(requests.sort == number)
        if len(rows):
            ttft_s[rows] = _least_prompt_s(machines, sort, requests.prompt_tokens[rows])
            steps_s = least_steps_s(machines, sort)
            until = np.concatenate([[0.0], np.cumsum(steps_s)])  # until[c]: of the contexts 1 to c
            first = requests.prompt_tokens[rows]
            decode_s[rows] = until[first + requests.output_tokens[rows] - 1] - until[first]
    return AloneBound(requests, ttft_s, ttft_s + decode_s)


def residencies(machines: BoundMachines, sort: Sort) -> list[tuple[EqualGpus, int]]:
    """Every group with the layers at which a time can be least: the tables' own and the most that fit."""
    found = []
    for group in machines.groups:
        fitting = sort.fitting(group)
        if fitting:
            own = [layers for layers in sort.profile(group).knots[0] if layers in fitting]
            found += [(group, layers) for layers in dict.fromkeys([*own, fitting[-1]])]
    return found


def _least_prompt_s(machines: BoundMachines, sort: Sort, prompts: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Floats:
    least = np.full(len(prompts), np.inf)
    for group, layers in residencies(machines, sort):
        profile = sort.profile(group)
        curve = profile.prefill_curve(layers)
        seconds = np.interp(prompts, np.array(curve.knots), np.array(curve.gpu_s) + np.array(curve.host_s))
        if machines.scenario.engine.prefill == "chunked":
            # Beside decoding sequences a prompt pays their iteration in place of its own fixed cost.
            fixed_s = sum(curve.origin)
            seconds = seconds - fixed_s + min(fixed_s, float(_batched_s(machines, sort, group, layers).min()))
        least = np.minimum(least, seconds)
    return least


def least_steps_s(machines: BoundMachines, sort: Sort) -> Floats:
    """Seconds of the fastest iteration that gives a sequence with context 1, 2, ... its token."""
    contexts = np.arange(1, sort.model.max_context + 1, dtype=np.float64)
    least = np.full(len(contexts), np.inf)
    for group, layers in residencies(machines, sort):
        curve = sort.profile(group).decode_curve(layers, 1)
        alone_s = np.interp(contexts, np.array(curve.knots), np.array(curve.gpu_s) + np.array(curve.host_s))
        places = _places(sort)
        batched_s = _batched_s(machines, sort, group, layers)
        if (batched_s < np.interp(places, contexts, alone_s) * (1 - 1e-12)).any():
            # A batch of shorter sequences is faster than this one alone: count the fastest from each place on.
            fastest_s = np.minimum.accumulate(batched_s[::-1])[::-1]
            alone_s = np.minimum(alone_s, fastest_s[np.searchsorted(places, contexts, side="right") - 1])
        least = np.minimum(least, alone_s)
    return least


def _places(sort: Sort) -> Floats:
    return np.unique(np.geomspace(1, sort.model.max_context, _PLACES).round())


def _batched_s(machines: BoundMachines, sort: Sort, group: EqualGpus, layers: int) -> Floats:
    """Of each of _places(sort): seconds of the fastest iteration of a batch in which a sequence has that context."""
    profile, places = sort.profile(group), _places(sort)
    most = machines.scenario.engine.max_sequences
    sizes = np.unique(np.linspace(1, most, min(most, _MOST_BATCHES)).round())
    found = np.full(len(places), np.inf)
    for size in sizes.tolist():
        batches = np.full(len(places), size)
        gpu_s, host_s = decode_seconds(profile, layers, batches, (places + size - 1) / size)
        found = np.minimum(found, gpu_s + host_s)
    return found
