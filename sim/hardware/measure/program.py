"""Measures this machine: how fast a GPU and its host run models of which some layers are outside it.

Real transformers with random weights (nothing is downloaded) run on the device: decode steps and prompts by layers
there, batch and length, the others computed by the CPU or streamed over PCIe; every part of a preemption by itself; two
instances at a time; bandwidths. Tables and a scenario are made of the rows. What is measured stays when a run is
stopped: the same command goes on. The verb `profile measure` calls it.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from rich.console import Console

from sim.hardware.measure.machine_facts import command
from sim.hardware.measure.measurement_run import MeasurementRun, short
from sim.hardware.measure.write_tables import filled, report, scenario
from sim.hardware.options import MeasureOptions


def measure(options: MeasureOptions, console: Console) -> int:
    """Measure, fill and say what was found. Exit status: 0 done, 1 no tables could be filled, 130 stopped.

    Raises SimError: a mistake of the user's.
    """
    run = MeasurementRun(options, console)
    try:
        with _stopped_by_sigterm():
            run.plan()
            run.measure()
    except KeyboardInterrupt:
        run.close(False)
        folder = short(run.store.folder)
        run.say(f"stopped; what was measured is kept in {folder}\ngo on with: {command('--fresh')}")
        return 130
    except BaseException:
        run.close(False)
        raise
    run.close(True)
    report(run)
    run.say(f"measured: {short(run.store.folder)}")
    if not options.fill:
        return 0
    if not filled(run, options.tables_into):
        return 1
    path = scenario(run.store, options.tables_into)
    run.say(f"simulate with it:\npython -m sim run {shlex.quote(short(path))}")
    return 0


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM stops the run as Ctrl-C does."""

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
