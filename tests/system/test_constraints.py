"""constraints.txt holds one version of every dependency for Python 3.11 to 3.14, and lets a newer one be."""

from __future__ import annotations

import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.places import ROOT

LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINS = [Requirement(line) for line in LINES]
PLATFORMS = {
    "linux": {"os_name": "posix", "sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"},
    "darwin": {"os_name": "posix", "sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
    "win32": {"os_name": "nt", "sys_platform": "win32", "platform_system": "Windows", "platform_machine": "AMD64"},
}


def pinned(python: str, platform: str) -> list[Requirement]:
    """The lines that apply to CPython of a version on a platform."""
    world = PLATFORMS[platform] | {
        "python_version": ".".join(python.split(".")[:2]),
        "python_full_version": python,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    return [pin for pin in PINS if pin.marker is None or pin.marker.evaluate(world)]


def dependencies() -> list[Requirement]:
    """What pyproject.toml asks for, without the extra that is left out."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    groups = [project["dependencies"], *(extras[name] for name in extras if name != "notebooks")]
    return [Requirement(line) for group in groups for line in group]


def test_every_line_is_one_version_with_a_marker() -> None:
    for pin in PINS:
        assert pin.marker is not None, pin
        assert pin.url is None, pin
        (clause,) = pin.specifier
        assert clause.operator == "==", pin
        assert not clause.version.endswith(".*"), pin
    assert sorted(LINES, key=lambda line: line.partition("==")[0]) == LINES


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", ["3.11.0", "3.12.4", "3.13.9", "3.14.0", "3.14.12"])
def test_every_dependency_has_one_version_that_is_allowed(python: str, platform: str) -> None:
    pins = pinned(python, platform)
    names = [canonicalize_name(pin.name) for pin in pins]
    assert len(names) == len(set(names))
    versions = {name: next(iter(pin.specifier)).version for name, pin in zip(names, pins, strict=True)}
    wanted = dependencies()
    assert len(wanted) > 30
    for wish in wanted:
        assert wish.specifier.contains(versions[canonicalize_name(wish.name)], prereleases=True), wish


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", ["3.15.0a1", "3.15.0", "3.16.2", "4.0.0"])
def test_a_newer_python_is_left_free(python: str, platform: str) -> None:
    assert not pinned(python, platform)
