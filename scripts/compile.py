"""Compiles the engine with mypyc: the same source as machine code, the same results, about three times as fast.

It needs a C compiler and the extra `compile` (pip install -e '.[compile]'), takes a minute or two, and puts the result
into sim/_compiled, where it is used as long as it fits the source. Run it again after changing the engine.

    python scripts/compile.py
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import shutil
import sys
import sysconfig
import tempfile
from pathlib import Path

from sim.common.compiled import LIBRARY, MODULES, PACKAGE, build_folder, source

ROOT = PACKAGE.parent
SETTINGS = Path(__file__).resolve().parent.parent / "pyproject.toml"


def build(folder: Path, verbose: bool) -> None:
    """Compile into a folder beside `folder`, then move it there, so that nothing half made is ever used."""
    try:
        import mypyc.build  # noqa: F401, PLC0415  only this script needs it
        import setuptools  # noqa: F401, PLC0415
    except ImportError as error:
        raise SystemExit(f"error: {error}; install what compiling needs: pip install -e '.[compile]'") from None
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        raise SystemExit(f"error: there is no C compiler '{compiler}'; install one, or name yours in CC")
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        fresh.mkdir(parents=True)
    except OSError as error:
        raise SystemExit(f"error: {fresh.parent}: cannot be written ({error.strerror}); nothing was compiled") from None
    try:
        _compile_into(fresh, verbose)
        if build_folder() != folder:
            raise SystemExit("error: the engine's source was changed while it was compiled; run this again")
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    for old in folder.parent.glob(f"{sys.implementation.cache_tag}-*"):
        if old != folder:
            shutil.rmtree(old, ignore_errors=True)


def _compile_into(fresh: Path, verbose: bool) -> None:
    from mypyc.build import mypycify  # noqa: PLC0415  only this script needs it
    from setuptools import Distribution  # noqa: PLC0415
    from setuptools.errors import CompileError, LinkError  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(ROOT):
        extensions = mypycify(
            [*(str(source(name).relative_to(ROOT)) for name in MODULES), "--config-file", str(SETTINGS)],
            group_name=LIBRARY.removesuffix("__mypyc"),
            target_dir=scratch,
            opt_level="3",
            verbose=verbose,
        )
        for extension in extensions:
            # A multiplication and an addition stay two operations on every processor: results are the interpreter's.
            extension.extra_compile_args.append("-ffp-contract=off")
        distribution = Distribution({"name": "residency-sim-engine", "ext_modules": extensions})
        command = distribution.get_command_obj("build_ext")
        command.build_lib, command.build_temp, command.parallel = str(fresh), scratch, os.cpu_count()
        command.ensure_finalized()
        try:
            command.run()
        except (CompileError, LinkError) as error:
            raise SystemExit(f"error: the C compiler failed ({error}); --verbose shows more") from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verbose", action="store_true", help="show what mypyc and the compiler do")
    parser.add_argument("--remove", action="store_true", help="go back to the interpreted engine")
    arguments = parser.parse_args()
    folder = build_folder()
    if arguments.remove:
        shutil.rmtree(folder.parent, ignore_errors=True)
        print("the engine is interpreted now")
    elif folder.is_dir():
        print(f"{folder.relative_to(ROOT)} is there already")
    else:
        build(folder, arguments.verbose)
        print(f"{folder.relative_to(ROOT)}: compiled {len(MODULES)} modules")


if __name__ == "__main__":
    main()
