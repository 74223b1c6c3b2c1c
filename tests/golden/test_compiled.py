"""compiled.py: machine code is used if and only if it was made from the source that stands here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sim
from sim.common import compiled
from tests.support.places import ROOT


def test_every_module_of_the_list_exists_and_what_runs_per_event_is_on_it() -> None:
    for name in compiled.MODULES:
        assert compiled.source(name).is_file(), name
    assert sorted(compiled.MODULES) == list(dict.fromkeys(sorted(compiled.MODULES)))
    assert {"engine.engine", "core.serving", "core.state.instance", "core.state.leap"} <= set(compiled.MODULES)


def test_a_build_of_another_source_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = {name: compiled.source(name).read_bytes() for name in compiled.MODULES}
    monkeypatch.setattr(compiled, "PACKAGE", tmp_path)
    for name, text in sources.items():
        compiled.source(name).parent.mkdir(parents=True, exist_ok=True)
        compiled.source(name).write_bytes(text)
    monkeypatch.delenv("SIM_INTERPRETED", raising=False)
    found = list(sys.meta_path)
    assert not compiled.use_compiled()  # none at all
    fits = compiled.build_folder()
    fits.mkdir(parents=True)
    compiled.source("core.state.instance").write_text("# edited\n", encoding="utf-8")
    assert compiled.build_folder() != fits
    (fits / f"{compiled.LIBRARY}.so").write_bytes(b"would crash if it were loaded")
    assert not compiled.use_compiled()
    assert sys.meta_path == found


def test_it_can_be_left_out() -> None:
    code = "import sim, sim.core.state.instance; print(sim.COMPILED, sim.core.state.instance.__file__)"
    environment = {**os.environ, "SIM_INTERPRETED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert done.stdout.split()[0] == "False", done.stderr
    assert done.stdout.strip().endswith("instance.py")


@pytest.mark.skipif(not sim.COMPILED, reason="the engine is interpreted here: python scripts/compile.py compiles it")
def test_the_compiled_modules_are_those_in_use() -> None:
    for name in compiled.MODULES:
        module = __import__(f"sim.{name}", fromlist=["x"])
        assert Path(str(module.__file__)).suffix != ".py", name
