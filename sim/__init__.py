"""A discrete-event simulator of many language models that share few GPUs.

Start with these three files: spec.py says what an experiment is, state.py what is true while it runs, and engine.py
plays it. Then batch.py (one instance's iterations), serving.py and loading.py (what happens to requests and to models),
policy.py (all that a scheduler sees and may ask; the schedulers are in the package `policies`), profiles.py (where
times and bytes come from) and summary.py (what is reported). Requests come from the packages traces, formats and
workloads. `python -m sim --help` is the command line.

    import sim

    run = sim.simulate("traces/scenarios/default.yaml", policy="lru-swap")
    print(run.summary["ttft_s"])
    run.requests.groupby("model").ttft_s.median()  # a pandas DataFrame, as are run.switches, run.gpus and run.series
    run.plot.latency().savefig("latency.png")

`simulate` is the same way that the command line goes (api.py); engine.simulate is the engine alone.

The names below are loaded when they are first used, so that the command line starts quickly. Nothing inside `sim`
imports from here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sim.compiled import use_compiled

if TYPE_CHECKING:
    from sim.api import simulate
    from sim.authoring import check_policy, new_policy
    from sim.breakeven import At, break_even
    from sim.catalogue import profile_catalogue
    from sim.engine import Outcome
    from sim.errors import ConfigError, PolicyError, ProfileError, SimError, TraceError
    from sim.library import Library
    from sim.locate import scenario_file
    from sim.plots.charts import Axis
    from sim.plots.figures import draw_bars, draw_differences, draw_lines
    from sim.policy import Policy, PolicyParameters, load_policy, policy_names
    from sim.request_table import request_table
    from sim.results import finished_run, write_run
    from sim.run import Run
    from sim.runner import RunOptions, compose
    from sim.spec import Scenario, load_scenario, parse_scenario
    from sim.studies import CapacitySearch, PolicyComparison, compare_policies, find_capacity
    from sim.summary import summarize
    from sim.traces.facts import describe
    from sim.traces.stream import read_trace
    from sim.traces.trace import Trace
    from sim.traces.write import write_trace
    from sim.workload import build_trace

__version__ = "0.1.0"
COMPILED = use_compiled(__path__)  # before any module of the engine is imported

_HOMES = {
    "sim.api": ("simulate",),
    "sim.authoring": ("check_policy", "new_policy"),
    "sim.breakeven": ("At", "break_even"),
    "sim.catalogue": ("profile_catalogue",),
    "sim.engine": ("Outcome",),
    "sim.errors": ("ConfigError", "PolicyError", "ProfileError", "SimError", "TraceError"),
    "sim.policy": ("Policy", "PolicyParameters", "load_policy", "policy_names"),
    "sim.library": ("Library",),
    "sim.locate": ("scenario_file",),
    "sim.plots.charts": ("Axis",),
    "sim.plots.figures": ("draw_bars", "draw_differences", "draw_lines"),
    "sim.request_table": ("request_table",),
    "sim.results": ("finished_run", "write_run"),
    "sim.run": ("Run",),
    "sim.runner": ("RunOptions", "compose"),
    "sim.spec": ("Scenario", "load_scenario", "parse_scenario"),
    "sim.studies": ("CapacitySearch", "PolicyComparison", "compare_policies", "find_capacity"),
    "sim.summary": ("summarize",),
    "sim.traces.trace": ("Trace",),
    "sim.traces.facts": ("describe",),
    "sim.traces.stream": ("read_trace",),
    "sim.traces.write": ("write_trace",),
    "sim.workload": ("build_trace",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "At",
    "Axis",
    "CapacitySearch",
    "ConfigError",
    "Library",
    "Outcome",
    "Policy",
    "PolicyComparison",
    "PolicyError",
    "PolicyParameters",
    "ProfileError",
    "Run",
    "RunOptions",
    "Scenario",
    "SimError",
    "Trace",
    "TraceError",
    "break_even",
    "build_trace",
    "check_policy",
    "compare_policies",
    "compose",
    "describe",
    "draw_bars",
    "draw_differences",
    "draw_lines",
    "find_capacity",
    "finished_run",
    "load_policy",
    "load_scenario",
    "new_policy",
    "parse_scenario",
    "policy_names",
    "profile_catalogue",
    "read_trace",
    "request_table",
    "scenario_file",
    "simulate",
    "summarize",
    "write_run",
    "write_trace",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'sim' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
