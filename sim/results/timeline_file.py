"""Writes what a Timeline followed as a Chrome trace (JSON), which ui.perfetto.dev and chrome://tracing open.

A process is a GPU, a thread one of its lanes; the first process is the cluster, with its queues and those who left
without an answer. Times are whole nanoseconds. runner.py and api.py call it; format: the "Trace Event Format" of the
Chromium project, of which complete slices (X), counters (C), instants (i) and metadata (M) are used.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.common.atomic_files import whole_file, why
from sim.common.errors import ConfigError
from sim.core.record.timeline import BATCHES, CLUSTER, RESIZES, RESTORES, SAVES, WHAT, Slice, Timeline

if TYPE_CHECKING:
    from sim.engine.engine import Outcome

ENDINGS = (".json", ".json.gz")
DEFAULT_MB = 64.0
_BYTES_EACH = 140  # of an event, about
_LANES = {WHAT: "", BATCHES: ": batches", SAVES: ": KV to host", RESTORES: ": KV to GPU", RESIZES: ": resize"}
_CATEGORIES = {WHAT: "instance", BATCHES: "batch", SAVES: "kv", RESTORES: "kv", RESIZES: "resize"}
_LANES_EACH = len(_LANES)

Event = dict[str, Any]


@dataclass(frozen=True)
class TimelineOptions:
    """Where a timeline goes, how large it may be (MB of JSON, before gzip), and the window of simulated time in it."""

    file: Path
    max_mb: float = DEFAULT_MB
    from_s: float = 0.0
    until_s: float = math.inf


def timeline_options(
    file: Path | None, max_mb: float | None = None, from_s: float | None = None, until_s: float | None = None
) -> TimelineOptions | None:
    """What was asked, with defaults. Raises ConfigError: a window or a size of no timeline."""
    if file is not None:
        most_mb = DEFAULT_MB if max_mb is None else max_mb
        return TimelineOptions(file, most_mb, from_s or 0.0, math.inf if until_s is None else until_s)
    for name, value in (("max-mb", max_mb), ("from", from_s), ("until", until_s)):
        if value is not None:
            raise ConfigError(f"--timeline-{name} {value:g}: there is no timeline; give --timeline FILE with it")
    return None


def check_timeline(options: TimelineOptions) -> None:
    """Raises ConfigError: an ending that is not a timeline's, a file that exists, no such folder, an empty window."""
    path = options.file
    if not path.name.lower().endswith(ENDINGS):
        raise ConfigError(f"--timeline {path}: unknown kind of file; its name ends in {' or '.join(ENDINGS)}")
    if path.exists() or path.is_symlink():
        raise ConfigError(f"--timeline {path}: exists already; choose another name or remove it")
    if not path.parent.is_dir():
        raise ConfigError(f"--timeline {path}: there is no folder {path.parent}; make it first")
    if not 0.1 <= options.max_mb <= 10_000:
        raise ConfigError(f"--timeline-max-mb {options.max_mb:g}: give between 0.1 and 10,000 MB")
    if not 0 <= options.from_s < math.inf:
        raise ConfigError(f"--timeline-from {options.from_s:g}: give seconds of simulated time, from 0 on")
    if not options.from_s < options.until_s:
        raise ConfigError(f"--timeline-until {options.until_s:g}: is not after --timeline-from {options.from_s:g}")


def new_timeline(options: TimelineOptions) -> Timeline:
    """An empty timeline for a recorder."""
    return Timeline(int(options.max_mb * 1e6 / _BYTES_EACH), options.from_s, options.until_s)


def write_timeline(options: TimelineOptions, outcome: Outcome) -> str:
    """Write the timeline of a run, whole or not at all; what is to be known about it, in words.

    It is made coarser until it is no larger than asked. Raises ConfigError when the place cannot be written.
    """
    timeline, path = outcome.recorder.timeline, options.file
    assert timeline is not None
    most_bytes = options.max_mb * 1e6
    while (size := sum(map(len, _pieces(timeline, outcome)))) > most_bytes and timeline.coarsen():
        pass
    try:
        with whole_file(path) as partial, partial.open("wb") as file:
            if path.name.lower().endswith(".gz"):
                with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
                    packed.writelines(_pieces(timeline, outcome))
            else:
                file.writelines(_pieces(timeline, outcome))
    except OSError as error:
        raise ConfigError(f"--timeline {path}: cannot write there ({why(error)}); nothing of it was kept") from None
    return _remark(timeline, outcome.end_s, size, options)


def _remark(timeline: Timeline, end_s: float, size: int, options: TimelineOptions) -> str:
    text = f"timeline in {options.file}, for ui.perfetto.dev: {timeline.events:,} events, {size / 1e6:.1f} MB of JSON"
    from_s, until_s = options.from_s, min(options.until_s, end_s)
    if from_s > end_s:
        text += f"; nothing is in it, the run ended at {end_s:,.6g} s"
    elif from_s > 0 or until_s < end_s:
        text += f"; only {from_s:,.6g} s to {until_s:,.6g} s of {end_s:,.6g} s"
    if timeline.grain_s:
        text += (
            f"; neighbours shorter than {timeline.grain_s:.3g} s are merged (their seconds are in the slice), "
            "--timeline-max-mb or a window (--timeline-from, --timeline-until) shows more"
        )
    if size > options.max_mb * 1e6:
        text += f"; it is over the {options.max_mb:g} MB asked for, so many GPUs and models have no smaller one"
    return text


def _pieces(timeline: Timeline, outcome: Outcome) -> Iterator[bytes]:
    about = {
        "run_id": outcome.run_id,
        "scenario": outcome.scenario.name,
        "policy": outcome.policy_name,
        "seed": outcome.scenario.seed,
        "end_s": outcome.end_s,
        "from_s": timeline.from_s,
        "until_s": min(timeline.until_s, outcome.end_s),
        "merged_below_s": timeline.grain_s,
    }
    yield f'{{"displayTimeUnit":"ms","otherData":{_json(about)},"traceEvents":['.encode()
    separator = "\n"
    for event in _events(timeline, outcome):
        yield f"{separator}{_json(event)}".encode()
        separator = ",\n"
    yield b"\n]}\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def _process(gpu: int) -> int:
    return 1 if gpu == CLUSTER else gpu + 2


def _thread(slot: int, lane: int) -> int:
    return 1 if slot < 0 else 2 + slot * _LANES_EACH + lane


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _microseconds(nanoseconds: int) -> float:
    """The format's unit. Readers cut what is below a nanosecond, so a third of one keeps them from losing one."""
    return round(nanoseconds / 1000 + 0.0003, 4)


def _events(timeline: Timeline, outcome: Outcome) -> Iterator[Event]:
    yield from _names(timeline, outcome)
    for (gpu, slot, lane), slices in sorted(timeline.lanes.items()):
        category = "gpu" if slot < 0 else _CATEGORIES[lane]
        place = {"pid": _process(gpu), "tid": _thread(slot, lane)}
        for part in slices:
            begin, end = _nanoseconds(part.begin_s), _nanoseconds(part.end_s)
            times = {"ts": _microseconds(begin), "dur": _microseconds(end - begin)}
            name, arguments = _shown(part)
            yield {"ph": "X", "cat": category, "name": name, **place, **times, "args": arguments}
    for (gpu, name), values in sorted(timeline.counters.items()):
        base, _, unit = name.partition(" (")
        key = unit.rstrip(")") or "value"
        for time_s, value in values:
            event = {"ph": "C", "name": base, "pid": _process(gpu), "ts": _microseconds(_nanoseconds(time_s))}
            yield {**event, "args": {key: value}}
    for instant in timeline.instants:
        where: Event = {"pid": _process(instant.gpu), "tid": _thread(instant.slot, WHAT), "s": "t"}
        times = {"ts": _microseconds(_nanoseconds(instant.time_s))}
        arguments = instant.arguments if instant.times == 1 else {"times": instant.times}
        yield {"ph": "i", "cat": "event", "name": instant.kind, **where, **times, "args": arguments}


def _shown(part: Slice) -> tuple[str, Event]:
    """A slice's name and arguments."""
    if part.seconds is not None:
        shares = {f"{kind}_s": seconds for kind, seconds in part.seconds.items()}
        return f"{part.kind} and others", {"slices": part.parts, **shares}
    arguments = part.arguments or {}
    name = f"{part.kind} {arguments['batch']}" if part.kind == "decode" else part.kind
    return name, arguments


def _names(timeline: Timeline, outcome: Outcome) -> Iterator[Event]:
    """What processes and threads are called, in the order in which they are to be drawn."""
    names = {CLUSTER: "cluster"} | {gpu.index: f"{gpu.name} ({gpu.kind.gpu})" for gpu in outcome.cluster.gpus}
    for gpu, name in names.items():
        process = _process(gpu)
        yield {"ph": "M", "name": "process_name", "pid": process, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": process, "args": {"sort_index": process}}
    refused = {(CLUSTER, -1, 0): "left without an answer"}
    for gpu, slot, lane in sorted(refused | timeline.lanes):
        name = refused.get((gpu, slot, lane)) or ("GPU" if slot < 0 else f"slot {slot + 1}{_LANES[lane]}")
        place = {"pid": _process(gpu), "tid": _thread(slot, lane)}
        yield {"ph": "M", "name": "thread_name", **place, "args": {"name": name}}
        yield {"ph": "M", "name": "thread_sort_index", **place, "args": {"sort_index": place["tid"]}}
