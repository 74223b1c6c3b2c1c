"""How far can the simulation be believed? Real serving, and the simulation of the same, side by side.

Profiles this machine, fills the tables, replays workloads in real time on a small real server under policies of
`policies/`, simulates the same scenarios with those tables, and compares what was predicted with what was measured.
Profiling and serving take turns, so that a machine that is quicker at one time than at another is so in both.
The verb `validate` calls it.
"""

from __future__ import annotations

from rich.console import Console

from sim.hardware.validate.closed_loop import MeasuredRuns, measure_runs, predict, profiled
from sim.hardware.validate.error_table import facts_of, report
from sim.hardware.validate.experiment import DeviceTables, ValidateOptions, keep_settings
from sim.policy.loader import load_policy


def how_long(options: ValidateOptions) -> str:
    """What the experiment takes, in words."""
    minutes = len(options.workloads) * len(options.policies) * options.repeats * options.duration / 60
    profile = "" if options.profiles else f" and {options.profile_minutes:.0f} of profiling"
    return f"about {minutes:.0f} minutes of serving{profile}; keep the machine quiet meanwhile"


def validate(options: ValidateOptions, console: Console) -> None:
    """Measure what is not measured yet, predict, and write the table of errors. Raises SimError."""
    for name in options.policies:
        load_policy(name)
    keep_settings(options)
    store = MeasuredRuns(options.out / "runs")
    for repeat in range(options.repeats):
        tables = DeviceTables(profiled(options, repeat), options)
        measure_runs(options, tables, repeat, store, console)
    report(predict(options, tables, store), options.out, facts_of(options, tables), console)
