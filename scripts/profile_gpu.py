"""Measures this machine for the simulator: how fast a GPU and its host run models of which some layers are outside it.

Real transformers with random weights (nothing is downloaded) run on the GPU: decode steps and prompts by layers on the
GPU, batch and length, the others computed by the CPU or streamed over PCIe; every part of a preemption by itself; two
instances at a time; bandwidths. The rows go to profiles/measured/, tables and a scenario are made of them. What is
measured stays when a run is stopped: the same command goes on. Clocks, power and modes are looked at, never changed.

    pip install '.[profile]'
    python scripts/profile_gpu.py --quick
    python scripts/profile_gpu.py --models Qwen2.5-14B Qwen3-14B --max-minutes 30
    python scripts/profile_gpu.py --device cpu --quick        # without a GPU: one core is the accelerator
"""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from profiler.arguments import count, positive, slug  # noqa: E402

OFFLOADS = ("cpu", "stream")


def parser() -> argparse.ArgumentParser:
    what, _, rest = (__doc__ or "").partition("\n\n")
    found = argparse.ArgumentParser(
        description=what, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = found.add_argument
    add("--quick", action="store_true", help="three models, few knots: under 8 minutes on a server's GPU")
    add("--models", nargs="+", metavar="M", help="models of profiles/architectures.csv")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: one core is the accelerator")
    add("--dtype", choices=("bfloat16", "float16"), default="bfloat16", help="type of the weights and KV")
    add("--out", type=Path, metavar="DIR", help="default profiles/measured/<gpu>-<host>-torch-<date>")
    add("--budget-gib", type=positive, metavar="GIB", help="device memory to use; default: what is free")
    add(
        "--link-gb-s",
        type=positive,
        metavar="GB/S",
        help="with --device cpu: slow copies to and from the device to this",
    )
    add("--passes", type=count, metavar="N", help="how often, at different times, all is measured (default: 1, cpu: 3)")
    add("--again", action="store_true", help="measure once more what is in the folder, and keep the means")
    add("--max-minutes", type=positive, metavar="MIN", help="leave out what matters less to end in time")
    add("--batches", nargs="+", type=count, metavar="N", help="sequences in a decode step")
    add("--contexts", nargs="+", type=count, metavar="N", help="tokens of context of a decode step")
    add("--prompts", nargs="+", type=count, metavar="N", help="tokens of a prompt")
    add("--pools", nargs="+", type=count, metavar="N", help="tokens of KV that an instance takes when it is loaded")
    add("--offload", nargs="+", choices=OFFLOADS, default=list(OFFLOADS), help="how layers outside the device run")
    add("--seed", type=int, default=1, help="of random tokens and KV")
    add("--fresh", action="store_true", help="begin anew; the folder that is there is renamed")
    add("--gpu", type=slug, metavar="NAME", help="what to call the GPU in the tables")
    add("--host", type=slug, metavar="NAME", help="what to call the host in the tables")
    add("--no-fill", action="store_true", help="measure only; make no tables and no scenario")
    add("--into", type=Path, default=ROOT / "profiles", metavar="DIR", help="profiles to put the tables in")
    add("--limit-s", type=positive, help=argparse.SUPPRESS)  # of the repeats of one point, for tests
    add("--architectures", type=Path, default=ROOT / "profiles" / "architectures.csv", help=argparse.SUPPRESS)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 2 a mistake that the printed line says how to mend, 130 stopped."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    for package in ("torch", "safetensors"):
        if importlib.util.find_spec(package) is None:
            print(f"error: {package} is not installed; pip install '.[profile]'", file=sys.stderr)
            return 2
    from sim.common.errors import SimError  # noqa: PLC0415

    try:
        return _run(options, given)
    except SimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace, given: list[str]) -> int:
    from profiler.session import Session, short  # noqa: PLC0415
    from rich.console import Console  # noqa: PLC0415

    console = Console()
    session = Session(options, console)
    try:
        session.plan()
        session.measure()
    except KeyboardInterrupt:
        session.close(False)
        again = shlex.join(["python", "scripts/profile_gpu.py", *(each for each in given if each != "--fresh")])
        session.say(f"stopped; what was measured is kept in {short(session.store.folder)}\ngo on with: {again}")
        return 130
    except BaseException:
        session.close(False)
        raise
    from profiler.finish import filled, report, scenario  # noqa: PLC0415

    session.close(True)
    report(session)
    session.say(f"measured: {short(session.store.folder)}")
    if options.no_fill:
        return 0
    if not filled(session, options.into):
        return 1
    path = scenario(session.store, options.into)
    session.say(f"simulate with it:\npython -m sim run {shlex.quote(short(path))}")
    return 0


def _stop(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    sys.exit(main())
