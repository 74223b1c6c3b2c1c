"""What the tests of timelines and series share: random runs that are watched, and a reader of Chrome traces.

The reader knows nothing of sim.results.timeline_file: it takes the published format, and says what is in a file.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.core.record.recorder import Recorder
from sim.core.record.series import Series
from sim.core.record.timeline import Timeline
from sim.engine.build_cluster import build_cluster
from sim.engine.engine import Engine
from sim.profiles.library import Library
from tests.support.fuzzing.random_cases import Seeded, random_case
from tests.support.fuzzing.random_policy import RandomPolicy
from tests.support.scenarios import trace


def play_watched(seed: int, series: Series | None, timeline: Timeline | None, **changes: Any) -> Engine:
    """A random case under the random policy; the same seed gives the same run."""
    draws = Seeded(seed)
    of, rows = random_case(draws, **changes)
    policy = RandomPolicy(RandomPolicy.Parameters(stream=draws.number(0, 10_000), calm_s=draws.pick((5.0, 30.0))))
    recorder = Recorder()
    recorder.series, recorder.timeline = series, timeline
    library = Library(Path(of.profiles) if of.profiles else None)
    engine = Engine(of, iter([trace(of, rows)]), build_cluster(of, library), policy, True, recorder)
    engine.run()
    return engine


@dataclass(frozen=True)
class Shown:
    """One slice of a file: where it is, and when in whole nanoseconds."""

    process: str
    thread: str
    name: str
    begin_ns: int
    end_ns: int
    arguments: dict[str, Any]

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.begin_ns) / 1e9


@dataclass(frozen=True)
class ChromeTrace:
    """What a file shows."""

    about: dict[str, Any]
    slices: list[Shown]
    counters: dict[tuple[str, str, str], list[tuple[int, float]]]  # process, name, key: (ns, value)
    instants: list[tuple[str, str, str, int, dict[str, Any]]]  # process, thread, name, ns, arguments


def _ns(microseconds: float) -> int:
    """As Perfetto reads it: what is below a nanosecond is cut off."""
    return int(microseconds * 1000)


def read_chrome_trace(path: Path) -> ChromeTrace:
    """Reads a file, and asserts what every such file keeps to."""
    data = path.read_bytes()
    found = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
    processes: dict[int, str] = {}
    threads: dict[tuple[int, int], str] = {}
    for event in found["traceEvents"]:
        if event["ph"] == "M" and event["name"] == "process_name":
            assert event["pid"] not in processes
            processes[event["pid"]] = event["args"]["name"]
        elif event["ph"] == "M" and event["name"] == "thread_name":
            assert (event["pid"], event["tid"]) not in threads
            threads[event["pid"], event["tid"]] = event["args"]["name"]
    slices, instants = [], []
    counters: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    for event in found["traceEvents"]:
        if event["ph"] == "M":
            continue
        process, at_ns = processes[event["pid"]], _ns(event["ts"])
        assert at_ns >= 0
        if event["ph"] == "X":
            thread = threads[event["pid"], event["tid"]]
            slices.append(Shown(process, thread, event["name"], at_ns, at_ns + _ns(event["dur"]), event["args"]))
        elif event["ph"] == "C":
            ((key, value),) = event["args"].items()
            counters.setdefault((process, event["name"], key), []).append((at_ns, value))
        else:
            assert event["ph"] == "i", event
            thread = threads[event["pid"], event["tid"]]
            instants.append((process, thread, event["name"], at_ns, event["args"]))
    for values in counters.values():
        assert values == sorted(values, key=lambda pair: pair[0])
    ends: dict[tuple[str, str], int] = {}
    for part in slices:  # lanes are flat: nothing lies within, or across, another slice
        place = (part.process, part.thread)
        assert part.begin_ns >= ends.get(place, 0), (place, part)
        ends[place] = part.end_ns
    return ChromeTrace(found["otherData"], slices, counters, instants)
