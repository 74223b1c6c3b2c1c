"""What a workload asks of each sort of model: totals that the fluid bound needs, and the same of each request.

A request with prompt p and answer n costs a prompt of p, and n - 1 decode iterations at contexts p + 1 to p + n - 1
(the first token comes with the prompt). Requests that are impossible (too long, or for a model that fits nowhere) are
counted and left out, as in a run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.bounds.machines import BoundMachines, Floats, Sort
from sim.common.errors import TraceError
from sim.workload.requests import Workload


@dataclass(frozen=True)
class Requests:
    """The requests that can be served, in order of arrival, one entry each. `left_out`: the impossible ones.

    closed_loop: requests that wait for the one before them in their session; their arrival is the earliest.
    """

    arrival_s: Floats
    model: NDArray[np.int64]
    sort: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    left_out: int
    closed_loop: int

    def __len__(self) -> int:
        return len(self.arrival_s)

    def select(self, counted: NDArray[np.bool_]) -> Requests:
        """Those where the mask is true. Raises TraceError: none."""
        if not counted.any():
            raise TraceError("no request is left to bound; is the warm-up as long as the workload?")
        columns = ("arrival_s", "model", "sort", "prompt_tokens", "output_tokens")
        picked: dict[str, Any] = {name: getattr(self, name)[counted] for name in columns}
        return replace(self, **picked)

    @property
    def span_s(self) -> float:
        """From the first arrival to the last."""
        return float(self.arrival_s[-1] - self.arrival_s[0])

    @property
    def decode_tokens(self) -> Floats:
        return (self.output_tokens - 1).astype(np.float64)

    @property
    def decode_contexts(self) -> Floats:
        """The sum of the contexts of each request's decode iterations."""
        tokens = self.decode_tokens
        return np.asarray(tokens * (self.prompt_tokens + self.output_tokens / 2))


def requests_of(machines: BoundMachines, workload: Workload) -> Requests:
    """The workload's requests in memory. Raises TraceError: none can be served; whatever the workload raises."""
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in ("arrival", "model", "prompt", "output")}
    left_out = closed_loop = 0
    sort_of = np.array(machines.sort_of)
    longest = np.array([model.max_context for model in machines.cluster.models])
    for chunk in workload.chunks():
        possible = (sort_of[chunk.model] >= 0) & (chunk.prompt_tokens + chunk.output_tokens <= longest[chunk.model])
        left_out += int((~possible).sum())
        if chunk.think_s is not None:
            closed_loop += int((~np.isnan(chunk.think_s[possible])).sum())
        taken: tuple[NDArray[Any], ...] = (chunk.arrival_s, chunk.model, chunk.prompt_tokens, chunk.output_tokens)
        for name, column in zip(columns, taken, strict=True):
            columns[name].append(column[possible])
    arrival_s, model, prompt, output = (np.concatenate(parts) for parts in columns.values())
    if not len(arrival_s):
        raise TraceError(f"scenario '{machines.scenario.name}': none of its requests can be served at all")
    model = model.astype(np.int64)
    return Requests(arrival_s, model, sort_of[model], prompt, output, left_out, closed_loop)


@dataclass(frozen=True)
class Demand:
    """One sort's work: what each of its requests asks for, one column a kind of work, and the totals.

    kinds: decode tokens; their contexts, summed; prompt iterations; and of prompts the weight of each knot.
    """

    knots: Floats
    longest: int  # the most tokens that any of them decodes
    contexts: Floats  # at which it decodes: ends, quartiles and the mean over its tokens
    each: Floats  # [request, 3 + knots]
    total: Floats  # [3 + knots]


def demand_of(machines: BoundMachines, sort: Sort, requests: Requests, rows: NDArray[np.intp]) -> Demand:
    """The work of the requests at `rows`, which are for models of this sort.

    A prompt of p tokens stands for the two knots of the tables around it, so that any table with these knots gives its
    time exactly. Prompt iterations are what the fixed cost of an iteration without decoding is paid for: with `chunked`
    prefill maybe never, with `first` at least once for so many prompts, or so many tokens, as one iteration takes.
    """
    options = machines.scenario.engine
    curves = [sort.profile(group).prefill_curve(sort.layers) for group in machines.groups]
    knots = np.unique(np.concatenate([np.array(curve.knots) for curve in curves]))
    prompts = requests.prompt_tokens[rows].astype(np.float64)
    high = np.clip(np.searchsorted(knots, prompts), 1, max(1, len(knots) - 1))
    low = high - 1
    each = np.zeros((len(rows), 3 + len(knots)))
    each[:, 0] = requests.decode_tokens[rows]
    each[:, 1] = requests.decode_contexts[rows]
    if options.prefill == "first":
        by_number = np.full(len(rows), 1.0 / options.max_sequences)
        by_tokens = np.minimum(1.0, prompts / options.prefill_tokens)
        each[:, 2] = by_tokens if by_tokens.sum() > by_number.sum() else by_number
    places = np.arange(len(rows))
    if len(knots) == 1:
        each[:, 3] = 1.0
    else:
        weight = np.clip((prompts - knots[low]) / (knots[high] - knots[low]), 0.0, 1.0)
        each[places, 3 + low] += 1.0 - weight
        each[places, 3 + high] += weight
    return Demand(knots, int(each[:, 0].max()), _contexts(each), each, each.sum(axis=0))


def _contexts(each: Floats) -> Floats:
    tokens, contexts = each[:, 0], each[:, 1]
    if not tokens.sum():
        return np.ones(1)
    means = contexts[tokens > 0] / tokens[tokens > 0]
    weights = np.cumsum(tokens[tokens > 0][np.argsort(means)]) / tokens.sum()
    quartiles = np.sort(means)[np.searchsorted(weights, (0.25, 0.75))]
    return np.unique([means.min(), *quartiles, contexts.sum() / tokens.sum(), means.max()])
