"""The simulator against queueing theory, as a table: what the books say, what was simulated, how sure, how far off.

Plays the queues of tests/support/queues/cases.py: M/M/1, M/D/1, M/G/1, M/M/c, M/M/1/K, loss systems, processor sharing,
priorities, set-up times, polling. `controlled` takes out by regression what the run's own arrivals and services explain
(control variates with known means); `plain` does not. Half-widths are of 95 % intervals, all relative to theory.
Exit status 1: a mean lies outside the interval that all of them together would stay within with 95 %.

    python -m tests.tools.theory                      as many requests as the tests play
    python -m tests.tools.theory --requests 1000000   plain means to 1 %: an hour on one core
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from time import process_time

from tests.support.queues.cases import CASES
from tests.support.queues.runs import Finding, findings, furthest, little, play, write_hardware

HEAD = (
    f"{'queue':32} {'mean of':30} {'requests':>9} {'theory':>9} {'simulated':>9} {'error':>8} {'+-':>7}"
    f" {'plain':>8} {'+-':>7}"
)


def line(found: Finding) -> str:
    plain = found.plain.mean / found.theory - 1
    return (
        f"{found.case:32} {found.measure:30} {found.requests:9,} {found.theory:9.5f} {found.found.mean:9.5f}"
        f" {found.error:+8.3%} {found.half_width:7.3%} {plain:+8.2%} {found.plain.half_width / found.theory:7.2%}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, help="of each queue; default: as in the tests, enough for 1 %%")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and services (default: 1)")
    parser.add_argument("--only", default="", help="queues with this in their name")
    options = parser.parse_args()
    cases = [case for case in CASES if options.only in case.name]
    if not cases:
        parser.error(f"no queue is named like '{options.only}'; there are: {', '.join(case.name for case in CASES)}")
    if options.requests is not None and options.requests < 5000:
        parser.error("--requests: at least 5000, or nothing can be said of a mean")
    number = sum(len(case.measures) for case in CASES)
    print(HEAD)
    every: list[Finding] = []
    worst, begin_s = 0.0, process_time()
    with tempfile.TemporaryDirectory() as folder:
        hardware = write_hardware(Path(folder))
        for case in cases:
            played = play(case, hardware, options.requests or case.requests, options.seed)
            little(played)
            controls = case.controls(played)
            worst = max(worst, furthest(controls))
            for found in findings(case, played, controls):
                every.append(found)
                print(line(found), "" if found.agrees(number) else "  <-- outside", flush=True)
    inside, outside = sum(found.inside for found in every), sum(not found.agrees(number) for found in every)
    widest = max(found.half_width for found in every)
    print(
        f"{inside} of {len(every)} within their own 95 % interval, {outside} outside the interval of all together; "
        f"half-width at most {widest:.2%}; worst drawn mean {worst:.1f} standard errors off; Little's law holds in "
        f"every queue of {len(cases)} runs; {process_time() - begin_s:.0f} CPU seconds"
    )
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())
