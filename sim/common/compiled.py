"""Finds the compiled engine: the same modules of this package, made into machine code by scripts/compile.py.

It is used only if it was made from exactly the source that stands here, so an edited file is never shadowed by an old
build; SIM_INTERPRETED=1 leaves it out. Called once, when the package is imported.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).resolve().parent.parent
# All that runs per event, but for what policies make themselves (actions) and what knows pydantic or files.
_NAMES = """
    core.clock core.core core.kv core.lifecycle core.loading core.preemption core.record.recorder core.resizing
    core.serving core.sharing core.state.facade core.state.host_memory core.state.in_progress core.state.instance
    core.state.kv_blocks core.state.leap core.state.links core.state.machines core.state.memory_fit
    core.state.ranking core.state.request core.state.residency core.transfers core.world engine.arrival_feed
    engine.ask_policy engine.engine engine.stall_guard engine.validate_action policy.interface.estimates
    policy.interface.machines policy.interface.models policy.interface.requests policy.interface.view
    policy.kit.costs policy.kit.knapsack policy.kit.prices profiles.profile
"""
MODULES = tuple(_NAMES.split())
LIBRARY = "sim_engine__mypyc"  # what the modules share


def source(name: str) -> Path:
    """The file of one of MODULES."""
    return PACKAGE / f"{name.replace('.', '/')}.py"


def build_folder() -> Path:
    """Where the machine code for this source and this Python belongs."""
    digest = hashlib.sha256()
    for name in MODULES:
        digest.update(name.encode())
        digest.update(source(name).read_bytes())
    return PACKAGE / "_compiled" / f"{sys.implementation.cache_tag}-{digest.hexdigest()[:16]}"


class _CompiledFinder(MetaPathFinder):
    """Answers for the compiled modules, in whatever package they are; all others are found as usual."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        if package != "sim" or name not in MODULES:
            return None
        file = self._folder / f"{fullname.replace('.', '/')}{EXTENSION_SUFFIXES[0]}"
        return spec_from_file_location(fullname, file, loader=ExtensionFileLoader(fullname, str(file)))


def use_compiled() -> bool:
    """Have the compiled modules found first, if there are any; say whether they are."""
    if not (PACKAGE / "_compiled").is_dir() or os.environ.get("SIM_INTERPRETED"):
        return False
    folder = build_folder()
    library = folder / f"{LIBRARY}{EXTENSION_SUFFIXES[0]}"  # with the machine in its name: others may share the folder
    if not library.is_file():
        return False
    spec = spec_from_file_location(LIBRARY, library, loader=ExtensionFileLoader(LIBRARY, str(library)))
    assert spec is not None, library
    assert spec.loader is not None, library
    sys.modules[LIBRARY] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[LIBRARY])
    sys.meta_path.insert(0, _CompiledFinder(folder))
    return True


def runs_compiled() -> bool:
    """Whether this process has the compiled engine."""
    return LIBRARY in sys.modules
