"""mutants.py: each way to break the simulator still applies; what breaks is noticed, what does not survives."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.tools import mutants

DIGEST = "    digest = hashlib.sha256(text.encode()).digest()\n"
ROWS = [
    {
        "name": "no seed",
        "file": "sim/common/rng.py",
        "was": DIGEST,
        "is": '    digest = bytes(32)\n    assert "\\x1f" in text\n',
    },
    {"name": "equivalent", "file": "sim/common/rng.py", "was": DIGEST, "is": DIGEST.replace("text", "str(text)")},
]


def test_every_mutant_still_applies() -> None:
    listed = mutants.read_mutants()
    assert len(listed) >= 40
    assert mutants.misfits(listed) == [], "the engine's text has changed: mend tests/tools/mutants.yaml"


def test_what_breaks_is_noticed_and_what_does_not_survives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mutants.yaml"
    file.write_text(yaml.safe_dump(ROWS))
    assert mutants.main(["--tests", "common/test_rng.py", "--file", str(file)]) == 1
    killed, survived, summary, named = capsys.readouterr().out.splitlines()
    assert killed.startswith("no seed     common/test_rng.py::test_")
    assert survived.startswith("equivalent  SURVIVED")
    assert summary == "2 mutants, 1 killed, 1 survived"
    assert named == "survived: equivalent"


def test_a_text_that_is_gone_is_no_mutant(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "mutants.yaml"
    file.write_text(yaml.safe_dump([{**ROWS[0], "was": "no such text"}]))
    assert mutants.main(["--file", str(file)]) == 2
    assert "stands 0 times in sim/common/rng.py" in capsys.readouterr().err
    assert mutants.main(["--only", "nothing like it"]) == 2
