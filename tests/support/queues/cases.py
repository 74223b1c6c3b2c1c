"""The queues of the textbooks that the simulator is held against, each with what the books say of its long run."""

from __future__ import annotations

from typing import Any

from tests.support.queues.formulas import (
    erlang_b,
    erlang_c_wait_s,
    finite_room,
    pollaczek_khinchine_s,
    polling_wait_s,
    preemptive_times_s,
    priority_waits_s,
    rounded,
    set_up_wait_s,
)
from tests.support.queues.policies import OffWhenIdle, Polling, PreemptivePriority, Servers
from tests.support.queues.runs import (
    SET_UP_S,
    TICK_S,
    Case,
    Measure,
    Stream,
    completed,
    of_priority,
    sojourn,
    turned_away,
    wait,
)

Law = dict[str, Any]


def exponential(mean: float) -> Law:
    return {"law": "exponential", "mean": mean}


COARSE, FINE = TICK_S["coarse"], TICK_S["fine"]
SECOND = exponential(100)  # of mean 1 s on the coarse engine
FIXED: Law = {"law": "fixed", "value": 100}
SPREAD: Law = {"law": "log-normal", "median": 80, "sigma": 0.8, "max": 4000}
EVEN: Law = {"law": "uniform", "low": 1, "high": 199}
FLAT: Law = {"law": "uniform", "low": 1, "high": 19_999}
LONG = exponential(10_000)  # of mean 1 s on the fine engine


def single(name: str, rate: float, law: Law, requests: int, **more: Any) -> Case:
    """M/G/1, first come first served, by a policy that ships."""
    service = rounded(law, FINE if more.get("engine") == "fine" else COARSE)
    measures = (Measure("time in system", pollaczek_khinchine_s(rate, service) + service.mean_s, sojourn),)
    return Case(name, (Stream(rate, law),), measures, requests, **more)


def many_servers(rate: float, servers: int, requests: int) -> Case:
    mean_s = rounded(SECOND, COARSE).mean_s
    measures = (Measure("time in system", erlang_c_wait_s(rate, mean_s, servers) + mean_s, sojourn),)
    name, parameters = f"M/M/{servers}", {"servers": servers}
    return Case(name, (Stream(rate, SECOND),), measures, requests, Servers, parameters, gpus=servers, servers=servers)


def finite(rate: float, room: int, requests: int) -> Case:
    mean_s = rounded(SECOND, COARSE).mean_s
    chances = finite_room(rate * mean_s, room)
    time_s = sum(n * chance for n, chance in enumerate(chances)) / (rate * (1 - chances[-1]))
    measures = (
        Measure("turned away", chances[-1], turned_away),
        Measure("time in system of the others", time_s, sojourn, completed),
    )
    return Case(f"M/M/1/{room}", (Stream(rate, SECOND),), measures, requests, Servers, {"room": room})


def loss(name: str, rate: float, law: Law, servers: int, requests: int) -> Case:
    blocked = erlang_b(rate * rounded(law, COARSE).mean_s, servers)
    measures = (Measure("turned away", blocked, turned_away),)
    parameters = {"servers": servers, "room": servers}
    return Case(name, (Stream(rate, law),), measures, requests, Servers, parameters, gpus=servers, servers=servers)


def sharing(name: str, rate: float, law: Law, requests: int, **more: Any) -> Case:
    """M/G/1 processor sharing: the mean time in the system knows the mean of the law only."""
    mean_s = rounded(law, TICK_S[more["engine"]]).mean_s
    measure = Measure("time in system", mean_s / (1 - rate * mean_s), sojourn)
    return Case(name, (Stream(rate, law),), (measure,), requests, by="output", **more)


def classes(name: str, preemptive: bool, rates: tuple[float, float], laws: tuple[Law, Law], requests: int) -> Case:
    services = [rounded(law, FINE if preemptive else COARSE) for law in laws]
    found = (preemptive_times_s if preemptive else priority_waits_s)(rates, services)
    times_s = found if preemptive else [wait + law.mean_s for wait, law in zip(found, services, strict=True)]
    measures = tuple(
        Measure(f"time in system, class {place}", theory, sojourn, of_priority(place))
        for place, theory in enumerate(times_s)
    )
    streams = tuple(
        Stream(rate, law, priority=place) for place, (rate, law) in enumerate(zip(rates, laws, strict=True))
    )
    if preemptive:
        return Case(name, streams, measures, requests, PreemptivePriority, engine="fine", by="output")
    return Case(name, streams, measures, requests, options={"sequence_order": "priority"})


def cold(rate: float, requests: int) -> Case:
    waits_s = set_up_wait_s(rate, rounded(SECOND, COARSE), SET_UP_S)
    measures = (Measure("wait", waits_s, wait),)
    return Case("M/G/1 with set-up", (Stream(rate, SECOND),), measures, requests, OffWhenIdle, engine="set-up")


def switching(rate: float, requests: int) -> Case:
    """In order of arrival, half of the requests for each of two models: each other one needs a load before it."""
    service = rounded(FIXED, COARSE).with_extra(round(SET_UP_S / COARSE), 0.5)
    measures = (Measure("time in system", pollaczek_khinchine_s(rate, service) + service.mean_s, sojourn),)
    streams = (Stream(rate, FIXED, (("one", 0.5), ("other", 0.5))),)
    return Case(
        "two models in order of arrival",
        streams,
        measures,
        requests,
        "exclusive-swap",
        engine="set-up",
        switch_s=SET_UP_S,
    )


def polling(name: str, rates: tuple[float, float], requests: int) -> Case:
    rate, service = sum(rates), rounded(EVEN, COARSE)
    loads = [own * service.mean_s for own in rates]
    time_s = polling_wait_s(loads, rate, service, SET_UP_S) + service.mean_s
    measures = (Measure("time in system, by load", time_s, sojourn),)
    streams = (Stream(rate, EVEN, (("one", rates[0] / rate), ("other", rates[1] / rate))),)
    return Case(name, streams, measures, requests, Polling, engine="set-up")


CASES = (
    single("M/M/1", 0.4, SECOND, 40_000),
    single("M/M/1, decoding", 0.4, LONG, 30_000, engine="fine", by="output"),
    single("M/D/1", 0.55, FIXED, 20_000),
    single("M/G/1, log-normal", 0.35, SPREAD, 40_000),
    many_servers(1.5, 3, 40_000),
    finite(3.0, 3, 40_000),
    loss("M/M/3/3 (Erlang B)", 4.0, SECOND, 3, 20_000),
    loss("M/D/3/3 (Erlang B)", 4.0, FIXED, 3, 20_000),
    sharing("M/M/1-PS in one batch", 0.4, LONG, 40_000, engine="shared", options={"max_sequences": 500}),
    sharing("M/G/1-PS in one batch", 0.5, FLAT, 20_000, engine="shared", options={"max_sequences": 500}),
    sharing("M/G/1-PS by contention", 0.5, FLAT, 20_000, engine="fine", policy=Servers, parameters={"servers": 40}),
    classes("priority, not preemptive", False, (0.2, 0.2), (SECOND, FIXED), 40_000),
    classes("priority, preemptive", True, (0.2, 0.2), (FLAT, FLAT), 40_000),
    cold(0.4, 40_000),
    switching(0.4, 20_000),
    polling("two queues in turn, alike", (0.25, 0.25), 20_000),
    polling("two queues in turn, unlike", (0.35, 0.15), 20_000),
)
