"""One run from what was asked on the command line to a summary: compose the scenario, run it, keep the results.

The verb `run` calls `run`, and api.simulate its parts: `compose` turns options into a Scenario, `play` plays it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sim.common.data_files import data_folder
from sim.common.errors import ConfigError
from sim.common.yaml_files import read_yaml
from sim.core.record.recorder import Recorder
from sim.core.record.series import Series
from sim.engine.engine import Outcome, identify, simulate
from sim.policy.interface.policy import Policy
from sim.policy.loader import load_policy
from sim.results.run_folder import check_target, home_of, what_is_kept, write_run
from sim.results.summary import summarize
from sim.results.timeline_file import TimelineOptions, check_timeline, new_timeline, write_timeline
from sim.scenario.scenario import PolicySpec, Scenario, Setting, is_code, path_set, refuse_code, resolved, scenario_of
from sim.traces.formats import told_format
from sim.workload.requests import Workload, open_workload


@dataclass(frozen=True)
class RunOptions:
    """What `run` was asked. A relative `trace` is taken from the current folder."""

    # A file, or its data, or what was made of that; None: the default scenario that comes with the project.
    scenario: Path | Mapping[str, Any] | Scenario | None = None
    policy: str | Mapping[str, Any] | None = None  # a name or path, or that and parameters, as in a scenario
    trace: Path | None = None
    trace_format: str | None = None
    assign: str | None = None
    settings: tuple[Setting, ...] = ()
    seed: int | None = None
    out: Path | None = None
    check: bool = False
    strict: bool = False
    timeline: TimelineOptions | None = None


def compose(options: RunOptions) -> Scenario:
    """The scenario that the options describe: the file, then policy, trace and seed, then --set in order.

    Another policy than the file's starts with its own default parameters. Raises ConfigError.
    """
    given_data, where, folder = _source(options.scenario)
    data = given_data if isinstance(given_data, dict) else {}
    settings: list[Setting] = []
    if isinstance(options.policy, Mapping):
        settings.append(("policy", dict(options.policy)))
    elif options.policy is not None:
        given = data.get("policy", PolicySpec().name)
        own = given.get("name", PolicySpec().name) if isinstance(given, dict) else given
        kept = given if isinstance(given, dict) and _same_policy(own, options.policy) else {}
        refuse_code({"policy": {**kept, "name": ""}}, where, map(path_set, options.settings))
        settings.append(("policy", {**kept, "name": options.policy}))
    elif isinstance(options.scenario, Scenario):  # not a file's text any more: its maker has answered for its policy
        settings.append(("policy", data["policy"]))
    if options.trace is not None:
        workload: dict[str, Any] = {"kind": "trace", "file": str(Path.cwd() / options.trace)}
        if options.trace_format is None and (told := told_format(options.trace)) is not None:
            workload["format"] = told
        settings.append(("workload", workload))
    elif not _plays_trace(data.get("workload")):
        for flag, value in (("--format", options.trace_format), ("--assign", options.assign)):
            if value is not None:
                raise ConfigError(f"{flag} {value}: the scenario's requests are generated; give --trace FILE with it")
        if options.strict:
            raise ConfigError("--strict: the scenario's requests are generated; give --trace FILE with it")
    for name, item in (("format", options.trace_format), ("assign", options.assign), ("strict", options.strict)):
        if item:
            settings.append((f"workload.{name}", item))
    if options.seed is not None:
        settings.append(("seed", options.seed))
    return scenario_of(given_data, where, folder, [*settings, *options.settings])


def _source(scenario: Path | Mapping[str, Any] | Scenario | None) -> tuple[Any, str, Path]:
    """A scenario's data, what messages call it, and where relative trace files are."""
    if isinstance(scenario, Scenario):
        return resolved(scenario), f"scenario '{scenario.name}'", Path.cwd()
    if isinstance(scenario, Mapping):
        return dict(scenario), "scenario", Path.cwd()
    path = scenario or data_folder("traces") / "scenarios" / "default.yaml"
    return read_yaml(path), str(path), path.parent


def _same_policy(own: Any, asked: str) -> bool:
    """Is this the policy that the scenario has already? A file is known by its name: where it lies changes no run."""
    if own == asked or not isinstance(own, str):
        return bool(own == asked)
    return is_code(own) and is_code(asked) and Path(own).name == Path(asked).name


def _plays_trace(workload: Any) -> bool:
    return isinstance(workload, dict) and ("file" in workload or workload.get("kind") == "trace")


def run(
    options: RunOptions,
    on_progress: Callable[[int, int | None, float], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run what was asked, keep it in `options.out` if given, and return its summary.

    `on_progress(ended, arriving, now_s)` is called now and then, `on_notice` with what is to be known about the files
    beside the run's own. Raises SimError; nothing is kept then.
    """
    if options.timeline is not None:
        check_timeline(options.timeline)
    scenario = compose(options)
    chosen = load_policy(scenario.policy.name, scenario.policy.parameters)  # before a long trace is read for nothing
    workload = open_workload(scenario)
    if options.out is not None:
        check_target(options.out, lambda: identify(scenario, workload, chosen))
    recorder = Recorder(None if options.out is None else home_of(options.out))
    recorder.series = None if options.out is None else Series()
    recorder.timeline = None if options.timeline is None else new_timeline(options.timeline)
    outcome = play(scenario, workload, recorder, options.check, on_progress, chosen)
    summary = summarize(outcome, peak_rss_bytes())
    if options.out is not None:
        write_run(options.out, outcome, summary)
    if options.timeline is not None:
        try:
            notice = write_timeline(options.timeline, outcome)
        except ConfigError as error:
            kept = f"; {what_is_kept(options.out)}" if options.out is not None else ""
            raise ConfigError(f"{error}{kept}") from None
        if on_notice is not None:
            on_notice(notice)
    return summary


def play(
    scenario: Scenario,
    workload: Workload,
    recorder: Recorder,
    check: bool = False,
    on_progress: Callable[[int, int | None, float], None] | None = None,
    chosen: tuple[Policy, str] | None = None,
) -> Outcome:
    """What the command line and the library run: the scenario with its requests; see engine.simulate."""

    def report(ended: int, now_s: float) -> None:
        if on_progress is not None:
            on_progress(ended, workload.rows, now_s)

    return simulate(scenario, check, workload, report, recorder=recorder, chosen=chosen)


def peak_rss_bytes() -> int | None:
    """The most memory that this process has had so far; None where the system does not say."""
    try:
        import resource  # noqa: PLC0415  not on every system
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
