"""Finds the compiled engine: the same modules of this package, made into machine code by scripts/compile.py.

It is used only if it was made from exactly the source that stands here, so an edited file is never shadowed by an old
build; SIM_INTERPRETED=1 leaves it out. Called once, when the package is imported.
"""

from __future__ import annotations

import hashlib
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
# All that runs per event, but for what policies make themselves (actions) and what knows pydantic or files.
_NAMES = """
    asking batch clock cluster costs decision engine estimates facade feed gate knapsack kv links loading
    machine_views memory metrics preemption prices profiles progress ranking request request_view resizing room serving
    sharing state transfers views world
"""
MODULES = tuple(_NAMES.split())
LIBRARY = "sim_engine__mypyc"  # what the modules share


def build_folder() -> Path:
    """Where the machine code for this source and this Python belongs."""
    digest = hashlib.sha256()
    for name in MODULES:
        digest.update((PACKAGE / f"{name}.py").read_bytes())
    return PACKAGE / "_compiled" / f"{sys.implementation.cache_tag}-{digest.hexdigest()[:16]}"


def use_compiled(search_path: list[str]) -> bool:
    """Let this package find its compiled modules first, if there are any; say whether it does."""
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
    search_path.insert(0, str(folder / "sim"))
    return True
