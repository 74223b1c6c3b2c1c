"""The glossary, docs/names.md, against the code: every place that it names exists, and no word of the code is missing.

A new public class of the scenario, the state or the policies' interface needs a line there, and so does a new key of
summary.json.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from types import ModuleType
from typing import Any

import pytest

import sim
from tests.support.places import ROOT

GLOSSARY = (ROOT / "docs" / "names.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([^|`]+) \| ([^|]+) \| `(sim\.[\w.]+)` \|$", GLOSSARY, flags=re.MULTILINE)
PACKAGES = ("sim.scenario", "sim.core.state", "sim.policy.interface")


def place(name: str) -> tuple[Any, list[str]]:
    """The longest part of a dotted name that is a module, and the names that are left."""
    steps = name.split(".")
    for end in range(len(steps), 0, -1):
        try:
            return importlib.import_module(".".join(steps[:end])), steps[end:]
        except ModuleNotFoundError:
            continue
    raise AssertionError(f"{name}: no such module")


def has(owner: Any, name: str) -> bool:
    """Does a module or class have this name, as an attribute, a field, or something that its methods set?"""
    if hasattr(owner, name) or name in getattr(owner, "__annotations__", {}):
        return True
    return inspect.isclass(owner) and re.search(rf"self\.{name}\b.*=", inspect.getsource(owner)) is not None


def exists(name: str) -> bool:
    owner, left = place(name)
    for step in left[:-1]:
        owner = getattr(owner, step)
    return not left or has(owner, left[-1])


def public_classes(package: str) -> list[str]:
    """The classes that a package's own modules define."""
    inside = importlib.import_module(package)
    modules = [importlib.import_module(f"{package}.{info.name}") for info in pkgutil.iter_modules(inside.__path__)]
    return sorted(name for module in [inside, *modules] for name in _own(module))


def _own(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if inspect.isclass(value) and value.__module__ == module.__name__ and not name.startswith("_")
    ]


def test_the_glossary_has_words() -> None:
    words = [word for word, _, _ in ROWS]
    assert len(words) == len(dict.fromkeys(words)), "a word is explained twice"
    assert len(words) == len(re.findall(r"^\| .* \| `sim\.[\w.]+` \|$", GLOSSARY, flags=re.MULTILINE))
    assert 30 <= len(words) <= 90
    for word, sentence, _ in ROWS:
        assert sentence.endswith("."), word


@pytest.mark.parametrize("name", dict.fromkeys(where for _, _, where in ROWS))
def test_a_word_lives_where_the_glossary_says(name: str) -> None:
    assert exists(name), f"docs/names.md: {name} is not there (any more)"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_class_is_in_the_glossary(package: str) -> None:
    told = re.findall(r"`(?:sim\.[\w.]*?\.)?([A-Z]\w*)(?:\.\w+)?`", GLOSSARY)
    missing = [name for name in public_classes(package) if name not in told]
    assert not missing, f"docs/names.md lacks {', '.join(missing)} of {package}"


def test_the_classes_of_the_glossary_are_there() -> None:
    rows = re.findall(r"^\| `(sim\.[\w.]+)` \| (.*) \|$", GLOSSARY, flags=re.MULTILINE)
    assert rows
    for package, told in rows:
        module = importlib.import_module(package)
        there = public_classes(package) if hasattr(module, "__path__") else _own(module)
        for name in re.findall(r"`([A-Z]\w*)`", told):
            assert name in there, f"docs/names.md: {name} is not in {package}"


def test_every_key_of_a_summary_is_in_the_glossary() -> None:
    failures = {"kind": "gpu_failure", "at_s": 20, "gpu": "desktop/rtx-4090-0", "repair_s": 200}
    desktop = ROOT / "traces" / "scenarios" / "desktop.yaml"
    run = sim.simulate(desktop, policy="lru-swap", settings={"faults": {"events": [failures]}})
    assert "problems" in run.summary
    table = GLOSSARY.partition("## summary.json")[2]
    told = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`.*?) \|", table, flags=re.MULTILINE)))
    assert sorted(told) == sorted(run.summary)


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("sim.core.state.request.Request.arrival_s", True),
        ("sim.scenario.scenario.ServiceClass.ttft_s", True),
        ("sim.core.state.kv_blocks.KvBlocks.total", True),
        ("sim.core.state.instance.Instance.no_such_field", False),
        ("sim.core.state.instance.NoSuchClass", False),
    ],
)
def test_the_rule_finds_what_it_looks_for(name: str, there: bool) -> None:
    assert exists(name) == there
