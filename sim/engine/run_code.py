"""Which of the simulator's own source plays a run: these files are among what names it, and no others.

They are all that ROOTS import, directly or not: an edit to a report or to the command line leaves the names of runs as
they are. The list is kept here, since following imports takes longer than many a run; tests/engine/test_run_code.py
follows them and says what to add or to remove. `sim/__init__.py` is left out: it only forwards names.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

ROOTS = ("engine.engine", "results.summary", "results.run_folder")
# Modules, and with `.*` all of a folder's, but not those of folders in it.
_NAMES = """
    common.atomic_files common.column_store common.data_files common.errors common.lazy common.rng common.safe_open
    common.statistics common.text common.time_limit common.yaml_files
    core.* core.record.recorder core.record.series core.state.*
    engine.*
    policy.interface.* policy.kit.* policy.loader
    profiles.library profiles.profile
    results.diagnosis results.fault_summary results.request_table results.run_folder results.summary
    scenario.*
    traces.blocks traces.columns traces.compose.assign traces.extras traces.files traces.formats.* traces.order
    traces.overlay traces.shape traces.stream traces.trace
    workload.arrivals workload.draws workload.flows workload.generate workload.merge workload.popularity
    workload.prefixes workload.rates workload.requests workload.sessions
"""
_PACKAGE = Path(__file__).resolve().parent.parent
_DIGITS = 16  # of a hash, as in the name of a run


def run_files(package: Path = _PACKAGE) -> list[Path]:
    """The files in order, with the `__init__.py` of every package on the way to them."""
    found: dict[Path, None] = {}
    for name in _NAMES.split():
        for path in package.glob(f"{name.replace('.', '/')}.py"):
            found[path] = None
            for folder in path.relative_to(package).parents[:-1]:
                found[package / folder / "__init__.py"] = None
    return sorted(found)


@cache
def code_digests() -> tuple[tuple[str, str], ...]:
    """(path, hash) of each file, such as ("sim/core/kv.py", "0f..."): of the source that this process has loaded, so
    they are taken only once."""
    return tuple(
        (f"sim/{path.relative_to(_PACKAGE).as_posix()}", hashlib.sha256(path.read_bytes()).hexdigest()[:_DIGITS])
        for path in run_files()
    )
