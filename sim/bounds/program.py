"""The fluid bound's linear program: written as sparse rows, solved by HiGHS, with configurations generated as needed.

Variables: the load factor f; for each (sort, GPU group, level) tokens decoded at each point of its chains, prompts at
each knot and prompt iterations, per second; and seconds per second that a group's GPUs have each configuration. A
configuration that would help is found by a knapsack over the prices of instance time (packing.py); when none is left,
f is the optimum over all configurations. If the rounds run out before, Lagrange's bound still holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from sim.bounds.curves import decode_chains, drift, gpu_shares
from sim.bounds.demand import Demand
from sim.bounds.machines import BoundMachines, EqualGpus, Floats, Level, Sort
from sim.bounds.packing import QUANTA, best_packing

MOST_ROUNDS = 200
_EXACT = 1e-9  # relative: what a further configuration must bring
_GOOD = 0.005  # relative: so near to the optimum over all configurations the search may end
_FEW = 12  # sorts of models times GPU groups, up to which levels of residency may be fine
_SHOWN = 1e-6  # a share of time that is worth showing

Packed = dict[tuple[int, Level], int]  # (sort, level) -> copies


@dataclass(frozen=True)
class Options:
    """stay_s: how long an instance stays loaded; None: for ever. physical: a GPU or CPU gives at most a second of work
    a second, also where contention by shares gives a little more."""

    stay_s: float | None = None
    physical: bool = False


@dataclass(frozen=True)
class WorkWeights:
    """How a second of GPU work, and one of host work, counts: in the row of all work, and in that of work times the
    share that its instance asks for."""

    gpu: tuple[float, float]
    host: tuple[float, float]


_PLAIN = WorkWeights((1.0, 1.0), (1.0, 1.0))


def limits(node_gpus: int) -> tuple[float, float]:
    """Seconds of work a second that `proportional` contention, or `processor_sharing`, gives at most: a GPU (or its
    link), and a CPU that so many GPUs share. See fluid.py."""
    return (1 + sqrt(2)) / 2, (1 + sqrt(1 + node_gpus)) / 2


@dataclass(frozen=True)
class Solution:
    """factor: f. work_prices[sort]: of each kind of its work. prices, utilisation: of machines, by resource."""

    factor: float
    work_prices: dict[int, Floats]
    prices: dict[str, float]
    utilisation: dict[str, float]
    shares: list[tuple[EqualGpus, list[tuple[int, Level, int]], float]]
    rounds: int


class Program:
    """Maximise f such that f times the demand is served."""

    def __init__(
        self, machines: BoundMachines, rates: Mapping[int, Floats], demands: Mapping[int, Demand], options: Options
    ) -> None:
        self.machines = machines
        self.rates = rates
        self.demands = demands
        self.stay_s = options.stay_s
        self.by_share = machines.scenario.sharing.contention != "time_slice" and not options.physical
        self._rows: dict[Any, int] = {}
        self._names: list[str] = []
        self._limits: list[float] = []  # every row: sum of entries <= limit
        self._resources: dict[str, list[tuple[int, float]]] = {}  # rows that grow with it, and by how much
        self._entries: list[tuple[int, int, float]] = []
        self._columns = 1  # column 0 is f
        self._items: dict[int, list[tuple[int, Level]]] = {}  # by group: what may lie on its GPUs
        self._packed: list[tuple[int, Packed, int]] = []  # configurations: group, instances, column
        for number, rate in rates.items():
            for kind, amount in enumerate(rate.tolist()):
                if amount > 0:
                    self._enter(self._row(("work", number, kind), 0.0), 0, amount)
        fineness = 3 if len(rates) * len(machines.groups) <= _FEW else 1
        for place, group in enumerate(machines.groups):
            self._machine_rows(place, group)
            self._items[place] = []
            for number in rates:
                sort = machines.sorts[number]
                for level in sort.levels(group, fineness=fineness):
                    self._run(place, number, level)

    # --- rows

    def _row(self, key: Any, limit: float) -> int:
        if key not in self._rows:
            self._rows[key] = len(self._limits)
            self._names.append(str(key[0]))
            self._limits.append(limit)
        return self._rows[key]

    def _enter(self, row: int, column: int, value: float) -> None:
        if value:
            self._entries.append((row, column, value))

    def _column(self) -> int:
        self._columns += 1
        return self._columns - 1

    def _machine_rows(self, place: int, group: EqualGpus) -> None:
        """What a group's GPUs, their links and their nodes' CPUs can give."""
        count, nodes, host = float(group.count), group.nodes, group.gpu.node.kind.host
        most_gpu, most_cpu = limits(group.node_gpus) if self.by_share else (1.0, 1.0)
        names = [("time", 1.0), ("gpu", most_gpu), ("gpu own", 1.0), ("link", most_gpu), ("link own", 1.0)]
        self._resources[group.label] = [(self._row((name, place), count * most), most) for name, most in names]
        cpus = [("cpu", most_cpu), ("cpu own", 1.0)]
        rows = [(self._row((name, group.node_type), nodes * most), most) for name, most in cpus]
        self._resources[f"CPU of {host} (node type {group.node_type + 1})"] = rows

    # --- columns

    def _run(self, place: int, number: int, level: Level) -> None:
        """All that a sort can do at this level on this group."""
        group, sort = self.machines.groups[place], self.machines.sorts[number]
        whole = level.high == sort.layers
        decoding, prompting = self._weights(sort, group, level, self.demands[number].longest)
        gpu_chain, host_chain = decode_chains(sort, group, level, self.demands[number].contexts)
        if level.bytes > 0:
            self._items[place].append((number, level))
        for context, seconds in gpu_chain:
            column = self._column()
            self._work(number, column, {0: 1.0, 1: context})
            self._load(place, number, level, column, (seconds, 0.0), decoding)
            if not whole:
                for kind, amount in enumerate((1.0, context)):
                    self._enter(self._row(("tie", place, number, level.low, kind), 0.0), column, amount)
        for context, seconds in host_chain:
            column = self._column()
            self._load(place, number, level, column, (0.0, seconds), decoding)
            for kind, amount in enumerate((1.0, context)):
                self._enter(self._row(("tie", place, number, level.low, kind), 0.0), column, -amount)
        full, here = sort.profile(group).prefill_curve(sort.layers), sort.profile(group).prefill_curve(level.high)
        share = level.low / sort.layers
        fixed = (share * full.origin[0], here.origin[1])
        if self.rates[number][2] > 0:
            column = self._column()
            self._work(number, column, {2: 1.0})
            self._load(place, number, level, column, fixed, prompting)
        for kind, knot in enumerate(self.demands[number].knots.tolist(), start=3):
            if self.rates[number][kind] > 0:
                column = self._column()
                self._work(number, column, {kind: 1.0})
                prompt_s = (share * full.at(knot)[0] - fixed[0], here.at(knot)[1] - fixed[1])
                self._load(place, number, level, column, prompt_s, prompting)

    def _work(self, number: int, column: int, done: dict[int, float]) -> None:
        for kind, amount in done.items():
            if self.rates[number][kind] > 0:
                self._enter(self._rows["work", number, kind], column, -amount)

    def _weights(self, sort: Sort, group: EqualGpus, level: Level, longest: int) -> tuple[WorkWeights, WorkWeights]:
        """How a GPU second, and a host second, of decoding and of prompts count in each of the machines' rows."""
        if not self.by_share:
            return _PLAIN, _PLAIN
        rises, falls = drift(sort, group, level, longest)
        decode, prompt = (
            WorkWeights((1 / rises, least), (1 / falls, 1 - most)) for least, most in gpu_shares(sort, group, level)
        )
        return decode, prompt

    def _load(
        self, place: int, number: int, level: Level, column: int, seconds: tuple[float, float], weights: WorkWeights
    ) -> None:
        """An activity's (GPU, host) seconds weigh on the machines, and on its instance's own time."""
        gpu_s, host_s = seconds
        group = self.machines.groups[place]
        streams = self.machines.sorts[number].profile(group).offload == "stream"
        host = ("link", place) if streams else ("cpu", group.node_type)
        for kind, own in enumerate(("", " own")):
            self._enter(self._rows["gpu" + own, place], column, gpu_s * weights.gpu[kind])
            self._enter(self._rows[host[0] + own, host[1]], column, host_s * weights.host[kind])
        if level.bytes > 0:
            self._enter(self._row(("instance", place, number, level.low), 0.0), column, gpu_s + host_s)

    def _pack(self, place: int, packed: Packed) -> None:
        column = self._column()
        self._packed.append((place, packed, column))
        reloading = sum(copies * self._reload_share(place, *item) for item, copies in packed.items())
        self._enter(self._rows["time", place], column, 1.0 + reloading)
        for name in ("gpu", "gpu own"):
            self._enter(self._rows[name, place], column, reloading)
        for (number, level), copies in packed.items():
            self._enter(self._rows["instance", place, number, level.low], column, -float(copies))

    def _reload_share(self, place: int, number: int, level: Level) -> float:
        """Seconds of loading for each second that the instance is there."""
        if self.stay_s is None:
            return 0.0
        group, sort = self.machines.groups[place], self.machines.sorts[number]
        kind, host = group.gpu.kind, group.gpu.node.kind
        link = min(kind.h2d_bytes_per_s, host.h2d_cap_bytes_per_s)
        return sort.profile(group).load_s(level.low, link) / self.stay_s

    # --- solving

    def solve(self) -> Solution:
        for place, items in self._items.items():
            capacity = self.machines.groups[place].gpu.capacity_bytes
            for first in items:
                self._pack(place, {first: min(capacity // first[1].bytes, QUANTA)})
                left = capacity - first[1].bytes
                for other in items:
                    if other is not first and other[1].bytes <= left:
                        self._pack(place, {first: 1, other: min(left // other[1].bytes, QUANTA)})
        rounds = 0
        while True:
            rounds += 1
            found = self._solve_once()
            factor = -float(found.fun)
            bettering = self._price(found)
            gain = sum(self.machines.groups[place].count * more for place, _, more in bettering)
            if gain <= _GOOD * factor or rounds == MOST_ROUNDS:
                return self._solution(found, factor + gain, rounds)
            for place, packed, _ in bettering:
                self._pack(place, packed)

    def _solve_once(self) -> Any:
        from scipy.optimize import linprog  # noqa: PLC0415  heavy
        from scipy.sparse import coo_array  # noqa: PLC0415

        rows, columns, values = (np.array(part) for part in zip(*self._entries, strict=True))
        matrix = coo_array((values, (rows, columns)), shape=(len(self._limits), self._columns)).tocsr()
        cost = np.zeros(self._columns)
        cost[0] = -1.0
        found = linprog(cost, matrix, np.array(self._limits), method="highs")  # type: ignore[call-overload]  # sparse
        assert found.success, found.message
        return found

    def _price(self, found: Any) -> list[tuple[int, Packed, float]]:
        """Of each group the configuration that helps most, if any does: group, instances, gain per second of a GPU."""
        prices = -found.ineqlin.marginals
        bettering = []
        for place, items in self._items.items():
            if not items:
                continue
            time_price = float(prices[self._rows["time", place]])
            loading_price = sum(float(prices[self._rows[name, place]]) for name in ("time", "gpu", "gpu own"))
            time = np.array([prices[self._rows["instance", place, number, level.low]] for number, level in items])
            worth = time - loading_price * np.array([self._reload_share(place, *item) for item in items])
            capacity = self.machines.groups[place].gpu.capacity_bytes
            value, taken = best_packing([level.bytes for _, level in items], worth, capacity)
            if value > time_price * (1 + _EXACT):
                bettering.append((place, {items[item]: copies for item, copies in taken.items()}, value - time_price))
        return bettering

    def _solution(self, found: Any, factor: float, rounds: int) -> Solution:
        prices = -found.ineqlin.marginals
        used = np.array(self._limits) - found.ineqlin.residual
        work: dict[int, Floats] = {}
        for number, rate in self.rates.items():
            kinds = range(len(rate))
            work[number] = np.array([prices[self._rows["work", number, k]] if rate[k] > 0 else 0.0 for k in kinds])
        utilisation = {
            name: max(float(used[row] / self._limits[row]) for row, _ in rows if self._names[row] != "time")
            for name, rows in self._resources.items()
        }
        shares = []
        for place, packed, column in self._packed:
            group = self.machines.groups[place]
            share = float(found.x[column] / group.count)
            if share > _SHOWN:
                shares.append((group, [(number, level, n) for (number, level), n in packed.items()], share))
        costs = {
            name: float(sum(prices[row] * amount for row, amount in rows) / factor)
            for name, rows in self._resources.items()
        }
        return Solution(factor, work, costs, utilisation, shares, rounds)
