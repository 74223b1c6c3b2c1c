"""A discrete-event simulator of many language models that share few GPUs.

Start with these three files: scenario/scenario.py says what an experiment is, core/state/instance.py what is true while
it runs, and engine/engine.py plays it. A package imports only from those below it:

    cli                            verbs, tables for the terminal
    api | report                   the simulator as a library | pages made of folders of results
    studies                        questions over many runs: comparisons, capacity, sweeps
    runs | hardware                runs played and kept | real devices: measured, served on, compared with
    results | bounds | conformance what is kept of a run | what no policy can beat | what every policy must do
    engine                         the loop: arrivals, decisions, checked actions, faults
    policy | workload | plots      what a policy sees, asks for and is made of | requests | figures
    core | traces | profiling      the simulated world | traces of requests | profile tables made of measurements
    scenario | profiles            what the user says | look-ups of times and bytes
    common                         errors, files, random streams, statistics

    import sim

    run = sim.simulate("traces/scenarios/default.yaml", policy="lru-swap")
    print(run.summary["ttft_s"])
    run.requests.groupby("model").ttft_s.median()  # a pandas DataFrame, as are run.switches, run.gpus and run.series
    run.plot.latency().savefig("latency.png")

`simulate` is the same way that the command line goes (api/simulate.py); engine.engine.simulate is the engine alone.

The names below are loaded when they are first used, so that the command line starts quickly. Nothing inside `sim`
imports from here.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sim.common.compiled import use_compiled
from sim.common.version import VERSION

if TYPE_CHECKING:
    from sim.api.run import Run
    from sim.api.simulate import simulate
    from sim.api.studies import CapacitySearch, PolicyComparison, compare_policies, find_capacity
    from sim.common.data_files import scenario_file
    from sim.common.errors import ConfigError, PolicyError, ProfileError, SimError, TraceError
    from sim.conformance.suite import check_policy
    from sim.engine.engine import Outcome
    from sim.plots.charts import Axis
    from sim.plots.figures import draw_bars, draw_differences, draw_lines
    from sim.policy.interface.policy import Policy, PolicyParameters
    from sim.policy.loader import load_policy, policy_names
    from sim.policy.template import new_policy
    from sim.profiles.break_even import At, break_even
    from sim.profiles.catalogue import profile_catalogue
    from sim.profiles.library import Library
    from sim.results.request_table import request_table
    from sim.results.run_folder import finished_run, write_run
    from sim.results.summary import summarize
    from sim.runs.run_one import RunOptions, compose
    from sim.scenario.scenario import Scenario, load_scenario, parse_scenario
    from sim.traces.describe.trace_statistics import describe
    from sim.traces.stream import read_trace
    from sim.traces.trace import Trace
    from sim.traces.write import write_trace
    from sim.workload.requests import build_trace

__version__ = VERSION
COMPILED = use_compiled()  # before any module of the engine is imported

_HOMES = {
    "sim.api.simulate": ("simulate",),
    "sim.policy.template": ("new_policy",),
    "sim.profiles.break_even": ("At", "break_even"),
    "sim.profiles.catalogue": ("profile_catalogue",),
    "sim.conformance.suite": ("check_policy",),
    "sim.engine.engine": ("Outcome",),
    "sim.common.errors": ("ConfigError", "PolicyError", "ProfileError", "SimError", "TraceError"),
    "sim.policy": ("Policy", "PolicyParameters", "load_policy", "policy_names"),
    "sim.profiles.library": ("Library",),
    "sim.common.data_files": ("scenario_file",),
    "sim.plots.charts": ("Axis",),
    "sim.plots.figures": ("draw_bars", "draw_differences", "draw_lines"),
    "sim.results.request_table": ("request_table",),
    "sim.results.run_folder": ("finished_run", "write_run"),
    "sim.api.run": ("Run",),
    "sim.runs.run_one": ("RunOptions", "compose"),
    "sim.scenario.scenario": ("Scenario", "load_scenario", "parse_scenario"),
    "sim.api.studies": ("CapacitySearch", "PolicyComparison", "compare_policies", "find_capacity"),
    "sim.results.summary": ("summarize",),
    "sim.traces.trace": ("Trace",),
    "sim.traces.describe.trace_statistics": ("describe",),
    "sim.traces.stream": ("read_trace",),
    "sim.traces.write": ("write_trace",),
    "sim.workload.requests": ("build_trace",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "At", "Axis", "CapacitySearch", "ConfigError", "Library", "Outcome", "Policy", "PolicyComparison", "PolicyError",
    "PolicyParameters", "ProfileError", "Run", "RunOptions", "Scenario", "SimError", "Trace", "TraceError",
    "break_even", "build_trace", "check_policy", "compare_policies", "compose", "describe", "draw_bars",
    "draw_differences", "draw_lines", "find_capacity", "finished_run", "load_policy", "load_scenario", "new_policy",
    "parse_scenario", "policy_names", "profile_catalogue", "read_trace", "request_table", "scenario_file", "simulate",
    "summarize", "write_run", "write_trace",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'sim' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
