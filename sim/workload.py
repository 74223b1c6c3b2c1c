"""From a scenario's workload to the trace that a run plays: read or draw it, then fit the names.

Called by whoever runs a scenario. The engine gets a trace whose codes are positions in the scenario's own
lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sim.errors import ConfigError, TraceError, did_you_mean
from sim.generate import assign_models, generate
from sim.importers import import_trace
from sim.spec import Scenario, TraceWorkload
from sim.trace import DEFAULT_CLASS, Trace
from sim.trace_columns import FURTHEST_S


def build_trace(scenario: Scenario) -> Trace:
    """The requests of a scenario; `models` and `service_classes` are exactly the scenario's, in its order.

    A file is read, cut to its first `limit` requests in time order, its times divided by `time_scale`, and
    its models replaced when `assign` is given. Requests of a file without classes belong to the scenario's
    class when it has just one. Raises TraceError: the file, or a row whose model or class the scenario does
    not have; ConfigError: a bad law.
    """
    models = tuple(model.name for model in scenario.models)
    classes = tuple(service_class.name for service_class in scenario.service_classes)
    workload = scenario.workload
    if not isinstance(workload, TraceWorkload):
        trace, where, hint = generate(workload, scenario.seed, classes), "workload", ""
    else:
        trace, where = _from_file(workload), workload.file
        if workload.assign is not None:
            trace = assign_models(trace, workload.assign, models, scenario.seed)
        hint = "; or give --assign zipf:1.0"
    if len(classes) == 1 and trace.service_classes == (DEFAULT_CLASS,):
        trace = replace(trace, service_classes=classes)
    model = _fitted(trace, (trace.model, trace.models), models, f"{where}: row {{}}: unknown model '{{}}'; {{}}{hint}")
    service_class = _fitted(
        trace,
        (trace.service_class, trace.service_classes),
        classes,
        f"{where}: row {{}}: unknown service class '{{}}'; {{}}; or add the class to the scenario",
    )
    return replace(trace, model=model, models=models, service_class=service_class, service_classes=classes)


def _from_file(workload: TraceWorkload) -> Trace:
    trace = import_trace(Path(workload.file), workload.format, workload.strict)
    if workload.limit is not None:
        trace = trace.select(slice(0, workload.limit))
    if workload.time_scale == 1:
        return trace
    with np.errstate(over="ignore"):
        arrival_s = trace.arrival_s / workload.time_scale
    if len(arrival_s) and not arrival_s[-1] <= FURTHEST_S:
        raise ConfigError(
            f"time_scale {workload.time_scale:g}: the last arrival comes at {arrival_s[-1]:.3g} s, after "
            f"{FURTHEST_S:g} s seconds lose their decimals; raise it"
        )
    return replace(trace, arrival_s=arrival_s)


def _fitted(
    trace: Trace, column: tuple[NDArray[np.int32], Sequence[str]], known: Sequence[str], message: str
) -> NDArray[np.int32]:
    """Codes into `known` for a column of (codes, names). Raises TraceError at the first unknown name."""
    codes, names = column
    remap = np.array([known.index(name) if name in known else -1 for name in names], dtype=np.int32)
    fitted = remap[codes]
    unknown = fitted < 0
    if unknown.any():
        rows = np.arange(1, len(codes) + 1) if trace.file_rows is None else trace.file_rows
        index = int(np.argmin(np.where(unknown, rows, rows.max() + 1)))
        name = names[codes[index]]
        raise TraceError(message.format(rows[index], name, did_you_mean(name, known)))
    return fitted
