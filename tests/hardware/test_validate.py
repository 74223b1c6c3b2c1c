"""The verb `validate`: the closed loop from profile to table of errors, on tiny models, as its user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

from tests.support.places import ROOT

pytest.importorskip("torch", reason="torch is not installed: pip install '.[profile]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install '.[profile]'")


from sim.common.errors import ConfigError
from sim.hardware.validate.closed_loop import compare, pace_of, paced
from sim.hardware.validate.error_table import orders
from sim.hardware.validate.experiment import ValidateOptions, keep_settings
from sim.profiles.library import Library
from sim.profiles.profile import Profile

ARCHITECTURES = """model,layers,hidden,heads,kv_heads,head_dim,intermediate,vocab,tied,max_context
Small,6,192,4,2,48,512,500,yes,512
Large,8,256,4,2,64,768,900,no,512
"""


def validate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sim", "validate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)


def test_from_a_profile_to_a_table_of_errors(tmp_path: Path) -> None:
    """How large the errors are depends on who else uses this machine, so it is not asked here."""
    shapes = tmp_path / "architectures.csv"
    shapes.write_text(ARCHITECTURES)
    out = tmp_path / "out"
    arguments = ["--device", "cpu", "--architectures", str(shapes), "--models", "Small,Large", "--out", str(out)]
    arguments += ["--workloads", "steady", "--policies", "lru-swap,exclusive-swap", "--repeats", "2"]
    arguments += ["--slots", "2", "--max-context", "128", "--profile-minutes", "0.3"]
    done = validate(*arguments, "--duration", "2")
    assert done.returncode == 0, done.stderr + done.stdout
    data = json.loads((out / "validation.json").read_text())
    assert [row["policy"] for row in data["rows"]] == ["lru-swap", "exclusive-swap"]
    for row in data["rows"]:
        assert row["completed"] == row["requests"] > 5
        assert row["e2e_s.mean.measured"] > 0
        assert row["e2e_s.mean.predicted"] > 0
        assert row["loads.measured"] > 0
        assert row["pace"] > 0
    text = (out / "validation.md").read_text()
    assert text.startswith("| workload | policy |")
    assert "steady: measured" in text
    assert "|error|" in done.stdout
    told = yaml.safe_load((out / "measured" / "provenance.yaml").read_text())
    assert told["passes_done"] == 2, "the device is profiled before each repeat"
    first, second = (pd.read_csv(out / "runs" / f"live-steady-lru-swap-{repeat}.csv") for repeat in range(2))
    assert list(first.arrival_s) != list(second.arrival_s), "each repeat has requests of its own"
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = validate(*arguments, "--duration", "2")  # everything is there: nothing is measured again
    assert again.returncode == 0, again.stderr
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    other = validate(*arguments, "--duration", "3")
    assert other.returncode == 2
    assert other.stderr == f"error: {out}: begun with duration 2.0, now it is 3.0; say it as before, or choose " + (
        "another --out\n"
    )


@pytest.mark.parametrize(
    ("given", "says"),
    [(["--policies", "lru-swop"], "lru-swap"), (["--max-context", "399"], "--max-context: give 400 tokens or more")],
)
def test_mistakes_are_told_before_anything_is_measured(given: list[str], says: str, tmp_path: Path) -> None:
    done = validate("--device", "cpu", "--out", str(tmp_path / "out"), *given)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert says in done.stderr
    assert not (tmp_path / "out").exists()


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


def row(policy: str, measured: float, predicted: float) -> dict[str, object]:
    return {"workload": "w", "policy": policy, **compare(requests([measured]), requests([predicted]))}


def test_orders_say_by_how_much() -> None:
    found = orders(pd.DataFrame([row("a", 1.0, 1.5), row("b", 1.1, 1.0)]))
    assert found.to_dict("records") == [
        {"workload": "w", "measured": "a < b (+10%)", "predicted": "b < a (+50%)", "same": False}
    ]
    assert orders(pd.DataFrame([row("a", 1.0, 1.5), row("b", 1.1, 1.6)])).same.tolist() == [True]


def test_the_pace_of_a_run_is_that_of_its_steps() -> None:
    library = Library(ROOT / "profiles")
    gpu, host, engine = key = library.table_keys()[0]
    model, quantization = pd.read_csv(library.table_folder(key) / "decode.csv").loc[0, ["model", "quantization"]]

    def profile(folder: Path) -> Profile:
        return Library(folder).profile(model, quantization, gpu, host, engine)

    layers = profile(ROOT / "profiles").weights.layers
    tables = SimpleNamespace(profile=lambda _: profile(ROOT / "profiles"))
    believed = [profile(ROOT / "profiles").step_s(layers, batch, 100.0) for batch in (1, 1)]
    steps = pd.DataFrame({"model": model, "layers": layers, "batch": 1, "context": 100.0, "step_s": believed})
    assert pace_of(steps, tables) == pytest.approx(1.0)
    assert pace_of(steps.assign(step_s=steps.step_s * [1.0, 1.4]), tables) == pytest.approx(1.2)
    assert pace_of(steps.iloc[:0], tables) == 1.0
    with paced(ROOT / "profiles", 1.2) as folder:
        assert profile(folder).step_s(layers, 1, 100.0) == pytest.approx(1.2 * believed[0])
        assert profile(folder).prefill_s(layers, 100.0) == pytest.approx(
            1.2 * profile(ROOT / "profiles").prefill_s(layers, 100.0)
        )
    assert not folder.exists()


def test_an_experiment_is_not_mixed_with_another(tmp_path: Path) -> None:
    options = ValidateOptions(out=tmp_path / "v", slots=1)
    settings, runs = tmp_path / "v" / "settings.json", tmp_path / "v" / "runs"
    keep_settings(options)
    options = replace(options, slots=3)
    keep_settings(options)  # nothing was played yet: a mistake may be mended
    runs.mkdir()
    (runs / "live-steady-lru-swap-0.csv").touch()
    keep_settings(options)
    options = replace(options, slots=2)
    with pytest.raises(ConfigError, match="begun with slots 3, now it is 2"):
        keep_settings(options)
    settings.write_text("[1")
    with pytest.raises(ConfigError, match=r"settings\.json: not the settings of a validation"):
        keep_settings(options)
    settings.unlink()
    with pytest.raises(ConfigError, match=r"no settings\.json says of what"):
        keep_settings(options)
