"""The verbs that run real models: what they say without torch, and of mistakes; where they write. Without torch."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from sim.common.data_files import data_folder
from sim.common.errors import ConfigError, ProfileError
from sim.hardware import options
from sim.hardware.options import MeasureOptions, counts, default_profiles, words
from sim.hardware.validate.experiment import LINK_GB_S, MODELS, ValidateOptions
from tests.support.cli_cases import invoke
from tests.support.places import ROOT


@pytest.mark.parametrize("verb", ["profile measure", "validate"])
def test_without_torch_one_line_says_how_to_get_it(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = invoke(*verb.split())
    assert result.exit_code == 2
    assert result.stderr == f"error: {verb} needs torch: pip install 'residency-sim[profile]'\n"


def test_the_command_line_begins_without_torch_and_what_else_is_slow() -> None:
    code = "import sys, sim.cli; print([n for n in ('torch', 'safetensors', 'numpy', 'pandas') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"


def test_the_script_is_the_verb() -> None:
    texts = [
        subprocess.run(
            [sys.executable, *command, "--help"], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout
        for command in (["scripts/profile_gpu.py"], ["-m", "sim", "profile", "measure"])
    ]
    assert texts[0] == texts[1]
    assert "--budget-gib" in texts[0]


def test_lists_are_split_at_commas() -> None:
    assert words(" a, b,,c ") == ("a", "b", "c")
    assert words(None) == counts("--batches", None) == ()
    assert counts("--batches", "1,16") == (1, 16)


@pytest.mark.parametrize("text", ["0", "1,-2", "x", "1.5"])
def test_a_count_is_a_whole_number_above_0(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--batches .*: not a whole number above 0$"):
        counts("--batches", text)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"device": "gpu"}, "--device gpu: "),
        ({"dtype": "float8"}, "--dtype float8: did you mean 'float16'"),
        ({"offload": ("cpu", "disk")}, "--offload disk: "),
        ({"budget_gib": 0.0}, "--budget-gib 0: not a number above 0"),
        ({"max_minutes": float("nan")}, "--max-minutes nan: not a number above 0"),
        ({"gpu": "a--b"}, "--gpu is 'a--b'"),
    ],
)
def test_a_wrong_option_of_measuring_is_named(given: dict[str, object], says: str) -> None:
    with pytest.raises((ConfigError, ProfileError), match=says.replace("(", r"\(")):
        MeasureOptions(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"workloads": ("stedy",)}, "--workloads stedy: did you mean 'steady'"),
        ({"offload": "disk"}, "--offload disk: "),
        ({"duration": -1.0}, "--duration -1: not a number above 0"),
        ({"max_context": 100}, "--max-context: give 400 tokens or more"),
        ({"link_gb_s": 1.0}, "--link-gb-s: give a number above 0, with --device cpu"),
    ],
)
def test_a_wrong_option_of_validating_is_named(given: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        ValidateOptions(**given).complete()  # type: ignore[arg-type]


def test_validating_has_models_and_a_link_that_suit_the_device() -> None:
    chosen = ValidateOptions(device="cpu").complete()
    assert (chosen.models, chosen.link_gb_s) == (MODELS["cpu"], LINK_GB_S["cpu"])
    chosen = ValidateOptions(device="cpu", models=("A",), link_gb_s=2.0).complete()
    assert (chosen.models, chosen.link_gb_s) == (("A",), 2.0)


def test_tables_never_go_into_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_profiles() == data_folder("profiles") == MeasureOptions().tables_into
    monkeypatch.setattr(options, "is_source_tree", lambda: False)
    assert default_profiles() == Path("profiles")
    assert MeasureOptions(into=Path("here")).tables_into == Path("here")


def test_validating_leaves_the_compiled_engine_for_its_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server puts its own parts where the engine has compiled ones: the same command begins anew without them."""
    begun: list[tuple[list[str], str]] = []

    def replace_process(_: str, command: list[str], environment: dict[str, str]) -> None:
        begun.append((command, environment["SIM_INTERPRETED"]))
        raise SystemExit(0)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr("sim.common.compiled.runs_compiled", lambda: True)
    monkeypatch.setattr("os.execve", replace_process)
    assert invoke("validate", "--device", "cpu").exit_code == 0
    assert begun == [(sys.orig_argv, "1")]
