"""`python -m sim.profiling.published`: writes tables from published measurements, and prints how far off fits are."""

from __future__ import annotations

import argparse
from pathlib import Path

from sim.common.errors import ProfileError
from sim.profiling.published.sources import FILES
from sim.profiling.published.tables import build


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m sim.profiling.published",
        description="Build the shipped profile tables from published measurements. The same input gives the same bytes "
        "on one kind of processor (linear algebra rounds differently on another).",
    )
    parser.add_argument("published", type=Path, help="folder with gpus.csv, published_*.csv, ...")
    parser.add_argument("--out", type=Path, required=True, help="folder to write, laid out like profiles/")
    options = parser.parse_args()
    missing = [name for name in FILES if not (options.published / f"{name}.csv").is_file()]
    if missing:
        parser.error(f"{options.published}: {missing[0]}.csv is missing; give the folder that holds it")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out {options.out}: is a file; profiles are a folder")
    try:
        report = build(options.published, options.out)
    except ProfileError as error:
        parser.error(str(error))
    print("\n".join(report))


if __name__ == "__main__":
    main()
