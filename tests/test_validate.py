"""scripts/validate.py: the closed loop from profile to table of errors, on tiny models, as its user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("torch", reason="torch is not installed: pip install '.[profile]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install '.[profile]'")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from real.closed_loop import averaged, compare, orders  # noqa: E402

ARCHITECTURES = """model,layers,hidden,heads,kv_heads,head_dim,intermediate,vocab,tied,max_context
Small,6,192,4,2,48,512,500,yes,512
Large,8,256,4,2,64,768,900,no,512
"""


def validate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "validate.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env={**os.environ})


def test_from_a_profile_to_a_table_of_errors(tmp_path: Path) -> None:
    """How large the errors are depends on who else uses this machine, so it is not asked here."""
    shapes = tmp_path / "architectures.csv"
    shapes.write_text(ARCHITECTURES)
    out = tmp_path / "out"
    arguments = ["--device", "cpu", "--architectures", str(shapes), "--models", "Small", "Large", "--out", str(out)]
    arguments += ["--duration", "2", "--workloads", "steady", "--policies", "lru-swap", "exclusive-swap"]
    arguments += ["--slots", "2", "--max-context", "128", "--profile-minutes", "0.3"]
    done = validate(*arguments)
    assert done.returncode == 0, done.stderr + done.stdout
    data = json.loads((out / "validation.json").read_text())
    assert [row["policy"] for row in data["rows"]] == ["lru-swap", "exclusive-swap"]
    for row in data["rows"]:
        assert row["completed"] == row["requests"] > 5
        assert row["e2e_s.mean.measured"] > 0
        assert row["e2e_s.mean.predicted"] > 0
        assert row["loads.measured"] > 0
    text = (out / "validation.md").read_text()
    assert text.startswith("| workload | policy |")
    assert "steady: measured" in text
    runs = sorted(path.name for path in (out / "runs").iterdir())
    before = (out / "runs" / runs[0]).read_bytes()
    again = validate(*arguments)  # everything is there: nothing is measured again
    assert again.returncode == 0, again.stderr
    assert (out / "runs" / runs[0]).read_bytes() == before


@pytest.mark.parametrize("given", [["--link-gb-s", "0"], ["--link-gb-s=-1"], ["--device", "cuda", "--link-gb-s", "2"]])
def test_a_link_is_imposed_on_the_cpu_only_and_is_above_0(given: list[str]) -> None:
    done = validate("--device", "cpu", *given)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--link-gb-s" in done.stderr


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    done = validate("--device", "cpu", "--profiles", str(tmp_path / "none"), "--out", str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def requests(e2e_s: list[float]) -> pd.DataFrame:
    return pd.DataFrame({"outcome": 0, "ttft_s": 1.0, "tpot_s": 0.1, "e2e_s": e2e_s})


def test_errors_are_those_of_the_prediction() -> None:
    found = compare(requests([1.0, 2.0, 3.0]), requests([1.1, 2.2, 3.3]))
    assert found["e2e_s.mean.error"] == pytest.approx(0.1)
    assert found["e2e_s.p90.measured"] == pytest.approx(2.8)
    assert found["ttft_s.mean.error"] == 0
    assert found["completed"] == found["requests"] == 3


def test_repeats_are_averaged_before_they_are_compared() -> None:
    rows = pd.DataFrame(
        [
            {"workload": "w", "policy": policy, "run": run, **compare(requests([measured]), requests([predicted]))}
            for policy, measured, predicted, run in (("a", 1.0, 1.5, 0), ("a", 2.0, 1.5, 1), ("b", 1.6, 1.4, 0))
        ]
    )
    mean = averaged(rows)
    assert mean["e2e_s.mean.error"].tolist() == pytest.approx([0.0, -0.125])
    assert orders(rows).to_dict("records") == [
        {"workload": "w", "measured": "a < b", "predicted": "b < a", "same": False}
    ]
