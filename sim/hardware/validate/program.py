"""How far can the simulation be believed? Real serving, and the simulation of the same, side by side.

    python scripts/validate.py --device cpu --out validation

profiles this machine (profile_gpu.py), fills the tables, replays workloads in real time on a small real server
(real/server.py) under policies of `policies/`, simulates the same scenarios with those tables, and compares what was
predicted with what was measured. `--device cpu` needs no GPU: one core is the accelerator, a memory budget is imposed.
Keep the machine quiet while it runs; it takes as long as the workloads last (--plan prints how long). Profiling and
serving take turns, so that a machine that is quicker at one time than at another is so in both.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]
os.environ["SIM_INTERPRETED"] = "1"  # the live server puts its own parts where the engine has compiled ones

from profiler.arguments import count, positive  # noqa: E402


def parser(workloads: Sequence[str], policies: Sequence[str]) -> argparse.ArgumentParser:
    what, _, rest = (__doc__ or "").partition("\n\n")
    found = argparse.ArgumentParser(
        description=what, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    found.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: one core is the accelerator")
    found.add_argument(
        "--out", type=Path, default=Path("validation"), metavar="DIR", help="what is measured is kept here"
    )
    found.add_argument("--models", nargs="+", metavar="M", help="models of profiles/architectures.csv")
    found.add_argument("--workloads", nargs="+", default=list(workloads), choices=list(workloads), metavar="W")
    found.add_argument("--policies", nargs="+", default=list(policies), metavar="P")
    found.add_argument("--duration", type=positive, default=90.0, metavar="S", help="seconds of arrivals in each run")
    found.add_argument(
        "--repeats", type=count, default=3, metavar="N", help="times that all is played, each with its own requests"
    )
    found.add_argument("--offload", choices=("cpu", "stream"), default="stream", help="layers outside the device")
    found.add_argument("--slots", type=count, default=4, metavar="N", help="the largest batch")
    found.add_argument("--max-context", type=count, default=512, metavar="N", help="the longest prompt and answer")
    found.add_argument("--seed", type=int, default=1)
    found.add_argument("--profiles", type=Path, metavar="DIR", help="tables of this device that are there already")
    found.add_argument(
        "--profile-minutes",
        type=positive,
        default=18.0,
        metavar="MIN",
        help="for profiling, in parts before each repeat",
    )
    found.add_argument(
        "--link-gb-s", type=float, metavar="GB/S", help="with --device cpu: its link to the host (default: 0.5)"
    )
    found.add_argument("--architectures", type=Path, help=argparse.SUPPRESS)
    found.add_argument("--plan", action="store_true", help="print what would be run, and for how long")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 a mistake that the printed line says how to mend, 130 stopped."""
    for package in ("torch", "safetensors"):
        if importlib.util.find_spec(package) is None:
            print(f"error: {package} is not installed; pip install '.[profile]'", file=sys.stderr)
            return 2
    from real import closed_loop as loop  # noqa: PLC0415
    from real import experiment  # noqa: PLC0415

    from sim.common.errors import SimError  # noqa: PLC0415
    from sim.policy.loader import load_policy  # noqa: PLC0415

    options = parser(list(experiment.WORKLOADS), experiment.POLICIES).parse_args(arguments)
    options.models = options.models or list(experiment.MODELS[options.device])
    least = experiment.least_context(options.workloads)
    if options.max_context < least:
        print(f"error: --max-context: give {least} tokens or more for these workloads", file=sys.stderr)
        return 2
    if options.link_gb_s is not None and (options.device != "cpu" or not 0 < options.link_gb_s < float("inf")):
        print(
            "error: --link-gb-s: give a number above 0, with --device cpu; a GPU has a link of its own", file=sys.stderr
        )
        return 2
    if options.link_gb_s is None:
        options.link_gb_s = experiment.LINK_GB_S[options.device]
    minutes = len(options.workloads) * len(options.policies) * options.repeats * options.duration / 60
    profile = "" if options.profiles else f" and {options.profile_minutes:.0f} of profiling"
    print(f"about {minutes:.0f} minutes of serving{profile}; keep the machine quiet meanwhile")
    if options.plan:
        return 0
    try:
        for name in options.policies:
            load_policy(name)
        experiment.keep_settings(options)
        store = loop.Store(options.out / "runs")
        for repeat in range(options.repeats):
            tables = experiment.Tables(loop.profiled(options, repeat), options)
            loop.measure(options, tables, repeat, store)
        loop.report(loop.predict(options, tables, store), options.out, loop.facts(options, tables))
    except SimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; what was measured is kept in {options.out}; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
