"""What the verbs `profile measure` and `validate` may be asked for, checked; and what both need installed.

Nothing here imports torch, so that a mistake is told at once. Raises ConfigError.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from pathlib import Path

from sim.common.data_files import data_folder, is_source_tree
from sim.common.errors import ConfigError, did_you_mean
from sim.profiling.measured import check_slug

OFFLOADS = ("cpu", "stream")


def check_torch(verb: str) -> None:
    """Raises ConfigError: what runs real models is not installed."""
    for package in ("torch", "safetensors"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"{verb} needs {package}: pip install 'residency-sim[profile]'")


def words(text: str | None) -> tuple[str, ...]:
    """The parts of A,B,..."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def counts(flag: str, text: str | None) -> tuple[int, ...]:
    """The numbers of N,N,..."""
    for part in words(text):
        if not part.isdecimal() or not int(part):
            raise ConfigError(f"{flag} {part}: not a whole number above 0")
    return tuple(int(part) for part in words(text))


def check_known(flag: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Each of `given` must be among `known`."""
    for word in given:
        if word not in known:
            raise ConfigError(f"{flag} {word}: {did_you_mean(word, known)}")


def check_above_0(**values: float | None) -> None:
    """Each value that is given must be a number above 0; names are those of the flags."""
    for name, value in values.items():
        if value is not None and not 0 < value < inf:
            raise ConfigError(f"--{name.replace('_', '-')} {value:g}: not a number above 0")


def default_profiles() -> Path:
    """Where tables go by default: the profiles of a source tree, else the folder `profiles` where the user is."""
    return data_folder("profiles") if is_source_tree() else Path("profiles")


@dataclass(frozen=True)
class MeasureOptions:
    """What to measure, on which device, and where it goes. Empty and None: what suits the device."""

    quick: bool = False
    models: tuple[str, ...] = ()
    device: str = "cuda"
    dtype: str = "bfloat16"
    out: Path | None = None
    budget_gib: float | None = None
    link_gb_s: float | None = None
    passes: int | None = None
    again: bool = False
    max_minutes: float | None = None
    batches: tuple[int, ...] = ()
    contexts: tuple[int, ...] = ()
    prompts: tuple[int, ...] = ()
    pools: tuple[int, ...] = ()
    offload: tuple[str, ...] = OFFLOADS
    seed: int = 1
    fresh: bool = False
    gpu: str | None = None
    host: str | None = None
    fill: bool = True
    into: Path | None = None
    limit_s: float | None = None  # of the repeats of one point
    architectures: Path | None = None

    def __post_init__(self) -> None:
        check_known("--device", (self.device,), ("cuda", "cpu"))
        check_known("--dtype", (self.dtype,), ("bfloat16", "float16"))
        check_known("--offload", self.offload, OFFLOADS)
        check_above_0(budget_gib=self.budget_gib, link_gb_s=self.link_gb_s, max_minutes=self.max_minutes)
        check_above_0(limit_s=self.limit_s)
        for flag, name in (("--gpu", self.gpu), ("--host", self.host)):
            if name is not None:
                check_slug(name, flag)

    @property
    def tables_into(self) -> Path:
        """The profiles that tables are put into."""
        return self.into or default_profiles()
