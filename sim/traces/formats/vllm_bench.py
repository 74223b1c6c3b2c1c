"""Result files of vLLM's serving benchmark, `vllm bench serve --save-result --save-detailed`: what it sent, and saw.

One JSON object with a list per column; a file to which results were appended holds several.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sim.common.errors import TraceError
from sim.common.lazy import pa
from sim.common.text import counted
from sim.traces.columns import FURTHEST_S, MOST_TOKENS, name_problem
from sim.traces.formats import tabular
from sim.traces.formats.assembly import Block, Clock, assembled
from sim.traces.formats.base import Entry, Format, Sample, shown
from sim.traces.formats.json_items import json_items
from sim.traces.stream import TraceStream

NAME = "vllm-bench"


class VllmOptions(tabular.ArrivalOptions):
    """`rate` and `seed` are for results without start times, as older versions wrote them; others refuse a rate."""

    run: int | None = Field(None, ge=1, description="which of the file's results, from 1, where it has several")
    failures: tabular.Failures = Field("drop", description=tabular.FAILURES)
    model: tabular.ModelName | None = Field(None, description="the model; the result's model_id by default")


def _read(files: Sequence[Path], options: VllmOptions) -> TraceStream:
    """arrival_s counts from the first request sent, of each file. Extras: measured_ttft_s, measured_latency_s."""
    readers = {
        where: partial(_blocks, path, number, options)
        for number, (where, path) in enumerate(tabular.by_path(files).items())
    }
    return assembled(readers, options, Clock(origin=0.0, scattered=True))


def _blocks(path: Path, number: int, options: VllmOptions, notices: list[str]) -> Iterator[Block]:
    result = _one_result(path, options.run)
    prompts = _numbers(result, "input_lens", None, whole=True)
    assert prompts is not None
    count = len(prompts)
    outputs = _numbers(result, "output_lens", count, whole=True)
    if not count or outputs is None:
        raise TraceError(f"{result.where}: has no single requests; save it with --save-detailed")
    starts_s = _numbers(result, "start_times", count)
    failed = (outputs == 0) | (prompts == 0) | _errors(result, count)
    extras = _measured(result, count)
    kept = np.ones(count, dtype=bool) if options.failures == "keep" else ~failed
    if starts_s is None:
        clock = tabular.PoissonClock(NAME, path, number, options)
        starts_s = np.zeros(count)
        starts_s[kept] = clock.next(int(kept.sum()))
    elif options.rate is not None:
        raise TraceError(f"{result.where}: field 'start_times' has the arrivals; leave out --option rate")
    else:
        unsent = failed & (starts_s == 0)  # their clock never began
        if (starts_s > 0).any() and unsent.any():
            kept &= ~unsent
            failed &= ~unsent
            notices.append(f"left out {counted(int(unsent.sum()), 'request')} that never went out")
        starts_s = starts_s - (starts_s[kept].min() if kept.any() else 0.0)
        most = result.values.get("max_concurrency")
        if most is not None:
            notices.append(f"at most {shown(most)} requests were under way at once, so arrivals waited for answers")
    notices += tabular.failure_notice(int(failed.sum()), options.failures)
    given = options.model or result.values.get("model_id") or NAME
    problem = name_problem(given, "model") if isinstance(given, str) else f"is {shown(given)}; give a name"
    if problem:
        raise TraceError(f"{result.where}: field 'model_id' {problem}; or give --option model=<name>")
    tokens = [np.maximum(column, 1).astype(np.int64) for column in (prompts, outputs)]
    arrays, model = {name: pa.array(column) for name, column in extras.items()}, tabular.same_name(given, count)
    yield Block(str(path), np.arange(1, count + 1), starts_s, tokens[0], tokens[1], model, extras=arrays).select(kept)


def _one_result(path: Path, run: int | None) -> Entry:
    found: Entry | None = None
    count = 0
    for count, item in json_items(path):
        if count == (run or 1):
            found = Entry(f"{path}: result {count}", item)
    if run is None and count > 1:
        raise TraceError(f"{path}: holds {count} results; give --option run=<1 to {count}>")
    if found is None:
        raise TraceError(f"{path}: has no result {run}; it holds {count}")
    return found


def _numbers(result: Entry, field: str, count: int | None, whole: bool = False) -> NDArray[np.float64] | None:
    """A list of numbers of at least 0, float64[count]; None when it is absent and not the first that is asked for."""
    values = result.values.get(field)
    if values is None and count is not None:
        return None
    if not isinstance(values, list):
        missing = "; save the result with --save-detailed" if field not in result.values else ""
        raise TraceError(f"{result.where}: field '{field}' is {shown(values)}, not a list{missing}")
    if count is not None and len(values) != count:
        lengths = f"has {len(values)} entries, input_lens {count}"
        raise TraceError(f"{result.where}: field '{field}' {lengths}; mend the file")
    highest = MOST_TOKENS if whole else FURTHEST_S
    for index, value in enumerate(values):
        good = type(value) in (int, float) and 0 <= value <= highest and (not whole or value == int(value))
        if not good:
            kind = f"a whole number from 0 to {highest:,}" if whole else "a number of at least 0"
            raise TraceError(f"{result.where}: field '{field}', entry {index + 1}: is {shown(value)}; give {kind}")
    return np.array(values, dtype=np.float64)


def _errors(result: Entry, count: int) -> NDArray[np.bool_]:
    return np.array([bool(error) for error in _listed(result, "errors", count) or [False] * count], dtype=bool)


def _listed(result: Entry, field: str, count: int) -> list[Any] | None:
    """A list of `count` entries, or None."""
    values = result.values.get(field)
    if values is not None and (not isinstance(values, list) or len(values) != count):
        raise TraceError(f"{result.where}: field '{field}' is no list of {count} entries, as input_lens; mend the file")
    return values


def _measured(result: Entry, count: int) -> dict[str, NDArray[np.float64]]:
    """What the benchmark saw, to hold a simulation against."""
    ttfts_s = _numbers(result, "ttfts", count)
    if ttfts_s is None:
        return {}
    gaps = _listed(result, "itls", count)
    if gaps is None:
        return {"measured_ttft_s": ttfts_s}
    sums_s = np.zeros(count)
    for index, one in enumerate(gaps):
        if not isinstance(one, list) or not all(type(gap) in (int, float) and 0 <= gap <= FURTHEST_S for gap in one):
            entry = f"field 'itls', entry {index + 1}: is {shown(one)}"
            raise TraceError(f"{result.where}: {entry}; give a list of seconds")
        sums_s[index] = sum(one)
    return {"measured_ttft_s": ttfts_s, "measured_latency_s": ttfts_s + sums_s}


def _sniff(sample: Sample) -> bool:
    head = sample.head
    return not sample.members and head.lstrip()[:1] == b"{" and b'"model_id"' in head and b'"request_rate"' in head


FORMATS = (Format(NAME, "vLLM's serving benchmark, results with --save-detailed, JSON", _read, _sniff, VllmOptions),)
