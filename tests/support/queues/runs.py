"""Plays queues of the textbooks on the real simulator, and measures them.

A GPU becomes a server by its tables: a token takes one tick, whatever the context; an `engine` says how a batch shares.
Service is a prompt of n tokens with an answer of one (n ticks in one iteration), or a prompt of one token with an
answer of n (n ticks in a leap of iterations). The queues are in cases.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.core.record.recorder import Recorder
from sim.core.record.series import Series
from sim.core.state.instance import Instance
from sim.core.state.machines import Cluster
from sim.core.state.request import COMPLETED, REJECTED
from sim.engine.engine import simulate
from sim.policy import Policy, load_policy
from sim.scenario.scenario import Scenario, parse_scenario
from tests.support.queues.formulas import (
    Controls,
    Estimate,
    Floats,
    Service,
    crowd_controls,
    estimate,
    plain_controls,
    rounded,
    window_controls,
)

TICK_S = {"coarse": 0.01, "fine": 1e-4, "shared": 1e-4, "set-up": 0.01}  # of a token, by engine
SET_UP_S = 0.8
# Of control variates. Longer ones explain so much that what is left is the rare long queue, which a run of this length
# may not see: its interval would then be far too narrow.
WINDOWS = (1, 2, 4, 8)
OWN_WINDOWS = (1, 4, 8)  # of each class
MOST_TICKS = 1500


# --- hardware


def write_hardware(folder: Path) -> str:
    """A profiles folder: one GPU with room for everything, one model, and the engines of TICK_S."""

    def write(path: Path, header: str, *rows: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([header, *rows, ""]))

    write(
        folder / "gpus.csv",
        "gpu,name,memory_gib,h2d_gb_s,d2h_gb_s,usd_per_hour,kind,source",
        "server,server,80,1e9,1e9,1,analytic,test",
    )
    write(
        folder / "nodes.csv",
        "host,cpu,memory_gib,cpu_bandwidth_gb_s,disk_gb_s,network_gb_s,h2d_cap_gb_s,d2h_cap_gb_s,kind,source",
        "host,host,4000,100,1e9,1e9,1e9,1e9,analytic,test",
    )
    write(
        folder / "models.csv",
        "model,quantization,layers,layer_bytes,head_bytes,kv_bytes_per_token_layer,max_context,kind,source",
        "job,FP16,1,1000000,0,1,2000000,analytic,test",
    )
    for engine, tick_s in TICK_S.items():
        table = folder / "tables" / f"server--host--{engine}"
        steps = [(batch, tick_s * (batch if engine == "shared" else 1)) for batch in (1, 512)]
        write(table / "table.yaml", f"gpu: server\nhost: host\nengine: {engine}\noffload: cpu")
        write(
            table / "decode.csv",
            "model,quantization,layers,batch,context,step_s,kind",
            *(f"job,FP16,1,{b},{at},{step_s!r},analytic" for b, step_s in steps for at in (0, 2_000_000)),
        )
        write(
            table / "prefill.csv",
            "model,quantization,layers,prompt_tokens,prefill_s,kind",
            *(f"job,FP16,1,{tokens},{max(1e-12, tokens * tick_s)!r},analytic" for tokens in (0, 2_000_000)),
        )
        set_up_s = SET_UP_S if engine == "set-up" else 0
        write(
            table / "switch.csv",
            "model,quantization,start_s,reload_fixed_s,reload_gb_s,kv_save_gb_s,kv_restore_gb_s,free_s,wake_fixed_s,"
            "kind,source",
            f"job,FP16,{set_up_s},0,1e9,1e9,1e9,0,0,analytic,test",
        )
    return str(folder)


# --- the runs


class Integrals(Series):
    """How many requests were where, multiplied by how long: looked at before every event of a run."""

    def __init__(self) -> None:
        super().__init__()
        self.next_s = 0.0
        self.recorder: Recorder | None = None
        self.of: dict[tuple[str, Any], float] = {}
        self._since_s = 0.0

    def sample(self, now_s: float, cluster: Cluster) -> None:
        """What holds since the event before; the next event is looked at too."""
        assert self.recorder is not None
        seconds, self._since_s = now_s - self._since_s, now_s
        if seconds <= 0:
            return
        self._count(("system", ""), seconds * (self.recorder.arrived - self.recorder.all_ended))
        for model in cluster.models:
            self._count(("not routed", model.name), seconds * len(model.waiting))
        for number, instance in cluster.instances.items():
            if instance.waiting.size:
                self._count(("waits at instance", number), seconds * instance.waiting.size)
                self._count(("waits at model", instance.model.name), seconds * instance.waiting.size)
            if instance.sequences:
                self._count(("in the batch of instance", number), seconds * instance.sequences)
                self._count(("in a batch of model", instance.model.name), seconds * instance.sequences)

    def note(self, instance: Instance, now_s: float) -> None:
        """What an instance is does not matter, only who is there."""

    def _count(self, key: tuple[str, Any], amount: float) -> None:
        self.of[key] = self.of.get(key, 0.0) + amount


@dataclass
class Played:
    """A finished run: when it ended, the columns of its requests in order of arrival, the integrals of its queues."""

    scenario: Scenario
    end_s: float
    rows: dict[str, NDArray[Any]]
    integrals: dict[tuple[str, Any], float]

    @property
    def served_s(self) -> Floats:
        """What each request asked for, in service time on a server of its own."""
        tick_s = TICK_S[self.scenario.models[0].engine_name]
        return np.asarray((self.rows["prompt_tokens"] + self.rows["output_tokens"] - 1) * tick_s)

    @property
    def sojourn_s(self) -> Floats:
        return np.asarray(self.rows["end_s"] - self.rows["arrival_s"])


def play(case: Case, profiles: str, requests: int, seed: int = 1) -> Played:
    """The case with so many requests."""
    streams = [
        {
            "name": f"s{number}",
            "models": [name for name, _ in stream.models],
            "popularity": {"law": "shares", "shares": dict(stream.models)},
            "arrivals": {"process": "poisson", "rate_per_s": stream.rate},
            "prompt": stream.law if case.by == "prompt" else 1,
            "output": stream.law if case.by == "output" else 1,
            "priority": stream.priority,
        }
        for number, stream in enumerate(case.streams)
    ]
    names = list(dict.fromkeys(name for stream in case.streams for name, _ in stream.models))
    served = [{"name": name, "model": "job", "engine": case.engine, "max_context": 2_000_000} for name in names]
    data = {
        "name": re.sub(r"[^\w.]+", "-", case.name),
        "seed": seed,
        "profiles": profiles,
        "cluster": {"nodes": [{"host": "host", "gpus": [{"gpu": "server", "count": case.gpus}]}]},
        "models": [{**model, "kv_tokens": 1_000_000_000} for model in served],
        "workload": {"streams": streams, "rows": requests},
        "policy": case.policy if isinstance(case.policy, str) else case.policy.__name__,
        "engine": {
            "max_sequences": 1,
            "watermark": 0,
            "prefill_tokens": 10_000_000,
            "ideal": [] if case.engine == "set-up" else ["switches"],
            **case.options,
        },
    }
    scenario = parse_scenario(data, case.name)
    recorder = Recorder()
    series = Integrals()
    recorder.series, series.recorder = series, recorder
    if isinstance(case.policy, str):
        chosen: tuple[Policy, str] = load_policy(case.policy)
    else:
        chosen = case.policy(case.policy.Parameters(**case.parameters)), "tests"
    outcome = simulate(scenario, recorder=recorder, chosen=chosen)
    return Played(scenario, outcome.end_s, in_order(recorder), series.of)


def in_order(recorder: Recorder) -> dict[str, NDArray[Any]]:
    """The columns of the requests of a run, in order of arrival."""
    found = {name: np.array(values) for name, values in recorder.columns.items()}
    order = np.argsort(found["request"], kind="stable")
    return {name: values[order] for name, values in found.items()}


# --- the cases


@dataclass(frozen=True)
class Stream:
    """Poisson arrivals at `rate` a second, of tokens by `law`, for models by share."""

    rate: float
    law: dict[str, Any]
    models: tuple[tuple[str, float], ...] = (("job", 1.0),)
    priority: int = 0


@dataclass(frozen=True)
class Measure:
    """A mean of the run, and what theory says it is."""

    name: str
    theory: float
    values: Callable[[Played], Floats]
    among: Callable[[Played], NDArray[np.bool_]] | None = None


@dataclass(frozen=True)
class Case:
    """A scenario that is a textbook's queue. `requests`: enough for 1 % with control variates."""

    name: str
    streams: tuple[Stream, ...]
    measures: tuple[Measure, ...]
    requests: int
    policy: str | type[Policy] = "lru-swap"
    parameters: dict[str, Any] = field(default_factory=dict)
    engine: str = "coarse"
    by: str = "prompt"
    gpus: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    servers: int = 1
    switch_s: float = 0.0  # of each request whose model is not that of the one before it, known beforehand

    @property
    def rate(self) -> float:
        return sum(stream.rate for stream in self.streams)

    @property
    def service(self) -> Service:
        """Of a request of any stream."""
        mixed, rate = self.law_of(0), self.streams[0].rate
        for number, stream in enumerate(self.streams[1:], start=1):
            rate += stream.rate
            mixed = mixed.mixed(1 - stream.rate / rate, self.law_of(number))
        return mixed

    def law_of(self, stream: int) -> Service:
        return rounded(self.streams[stream].law, TICK_S[self.engine])

    def controls(self, played: Played) -> Controls:
        """Means of the run's own arrivals and services that are known: of one server as fast as all, and of servers
        without number."""
        arrival_s, work_s, rate, service = played.rows["arrival_s"], played.served_s, self.rate, self.service
        found = plain_controls(arrival_s, work_s, rate, service)
        taken = completed(played)
        if not taken.all():  # who is turned away has no say in the service of the others
            found.append((np.where(taken, work_s, service.mean_s), service.mean_s))
        if self.switch_s:
            changes = np.diff(played.rows["model"], prepend=-1) != 0
            work_s = work_s + self.switch_s * changes
            service = service.with_extra(round(self.switch_s / service.tick_s), 0.5)
        found += crowd_controls(arrival_s, work_s, rate * service.mean_s, range(1, 2 * self.servers + 3))
        faster = Service(service.chances, service.tick_s / self.servers)
        windows = window_controls(arrival_s, work_s / self.servers, rate, _coarser(faster), WINDOWS)
        found += windows
        if len(self.streams) > 1:
            for number, stream in enumerate(self.streams):
                own = played.rows["priority"] == stream.priority
                found += [(np.where(own, values, mean), mean) for values, mean in windows[-3:]]
                found += self._own_controls(arrival_s[own], work_s[own], number, own)
        return found

    def _own_controls(self, arrival_s: Floats, work_s: Floats, stream: int, own: NDArray[np.bool_]) -> Controls:
        """Those of one class as if it were alone, by its own requests."""
        rate, service = self.streams[stream].rate, self.law_of(stream)
        alone = plain_controls(arrival_s, work_s, rate, service)
        alone += window_controls(arrival_s, work_s, rate, _coarser(service), OWN_WINDOWS)
        found: Controls = []
        for values, mean in alone:
            column = np.full(len(own), mean)
            column[own] = values
            found.append((column, mean))
        return found


def _coarser(service: Service) -> Service:
    """The same law on fewer ticks, each token at the nearest: the means of windows hardly feel it."""
    factor = -(-len(service.chances) // MOST_TICKS)
    nearest = np.rint(np.arange(len(service.chances)) / factor).astype(int)
    return Service(np.bincount(nearest, weights=service.chances).astype(np.float64), service.tick_s * factor)


@dataclass(frozen=True)
class Finding:
    """One measured mean beside theory; `plain`: without control variates."""

    case: str
    measure: str
    theory: float
    found: Estimate
    plain: Estimate
    requests: int

    @property
    def half_width(self) -> float:
        """Of the 95 % confidence interval, relative to theory."""
        return self.found.half_width / self.theory

    @property
    def error(self) -> float:
        return self.found.mean / self.theory - 1

    @property
    def inside(self) -> bool:
        """Is theory within the 95 % confidence interval?"""
        return abs(self.error) <= self.half_width

    def agrees(self, among: int) -> bool:
        """Is theory within the interval that is so wide that, of so many findings like this one, all are within theirs
        with 95 %? (Bonferroni.) A tick's rounding at boundaries is allowed for."""
        return abs(self.error) <= max(self.found.wide(0.05 / among) / self.theory, 2e-4)


def findings(case: Case, played: Played, controls: Controls) -> list[Finding]:
    """Every measure of the case, estimated from one run; controls: the case's own, of this run."""
    result = []
    for measure in case.measures:
        among = measure.among(played) if measure.among is not None else None
        values = measure.values(played)
        found, plain = estimate(values, controls, among), estimate(values, among=among)
        result.append(Finding(case.name, measure.name, measure.theory, found, plain, len(values)))
    return result


def furthest(controls: Controls) -> float:
    """How many standard errors the worst of a run's own arrivals and services lies from its known mean."""
    found = [(estimate(values), mean) for values, mean in controls]
    return max(abs(own.mean - mean) / max(own.error, 1e-9 * mean) for own, mean in found)


def little(played: Played) -> None:
    """Little's law for every queue of the run: requests there on average = those that came a second x their mean time.

    The averages are integrals taken while the run lasted, the times are those that each request was told.
    """
    rows, span_s = played.rows, played.end_s
    names = [model.name for model in played.scenario.models]
    at = {key: integral / span_s for key, integral in played.integrals.items()}

    def check(queue: str, average: float, times_s: Floats) -> None:
        expected = len(times_s) / span_s * times_s.mean() if len(times_s) else 0.0
        assert abs(average - expected) <= 1e-7 * max(1.0, expected), (queue, average, expected)

    check("the whole system", at.get(("system", ""), 0.0), played.sojourn_s)
    for index, name in enumerate(names):
        own = rows["model"] == index
        waits_s = (rows["queued_s"] + rows["load_wait_s"] + rows["preempted_s"])[own]
        waiting = at.get(("not routed", name), 0.0) + at.get(("waits at model", name), 0.0)
        check(f"who waits for {name}", waiting, waits_s)
        batch_s = (played.sojourn_s - rows["kv_transfer_s"])[own] - waits_s
        in_batch = at.get(("in a batch of model", name), 0.0)
        if rows["model_preemptions"][own].any():  # a model that is unloaded sends KV away that is in no batch any more
            most = (rows["kv_transfer_s"][own].sum() + batch_s.sum()) / span_s
            assert batch_s.sum() / span_s - 1e-7 <= in_batch <= most + 1e-7, (name, in_batch, most)
        else:
            check(f"the batches of {name}", in_batch, batch_s + rows["kv_transfer_s"][own])


def sojourn(played: Played) -> Floats:
    return played.sojourn_s


def wait(played: Played) -> Floats:
    """From arrival to the begin of service."""
    return np.asarray(played.rows["queued_s"] + played.rows["load_wait_s"])


def of_priority(priority: int) -> Callable[[Played], NDArray[np.bool_]]:
    return lambda played: np.asarray(played.rows["priority"] == priority)


def completed(played: Played) -> NDArray[np.bool_]:
    return np.asarray(played.rows["outcome"] == COMPLETED)


def turned_away(played: Played) -> Floats:
    return np.asarray(played.rows["outcome"] == REJECTED, dtype=float)
