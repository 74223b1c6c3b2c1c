"""What profiles call the GPU or the processor that a benchmark record names.

A name that profiles/gpus.csv or nodes.csv knows becomes its slug; of another a slug is made. Used by the importers;
sim/hardware uses it for the device it runs on.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from sim.common.errors import ProfileError
from sim.profiles.library import csv_rows

_MAKERS = ("nvidia", "geforce", "amd", "intel", "corporation", "generation", "ati", "tesla", "r", "tm")
_CPU_WORDS = ("core", "cpu", "processor", "with", "radeon", "graphics", "apu", "platinum", "gold", "silver")


def gpu_slug(name: str, known: Mapping[str, str]) -> str:
    """A GPU's slug; empty: the name says nothing. `known`: slug -> name, as in gpus.csv. "NVIDIA L40S" is l40s."""
    words, memory = _gpu_words(name)
    fitting = []
    for slug, known_name in known.items():
        own, own_memory = _gpu_words(slug.replace("-", " "))
        memory_too = own_memory or _gpu_words(known_name)[1]
        if own == words and (not memory or not memory_too or memory == memory_too):
            fitting.append(slug)
    if len(fitting) == 1:
        return fitting[0]
    return "-".join([*words, *([f"{memory}gb"] if memory and words else [])])


def _gpu_words(name: str) -> tuple[list[str], str]:
    """The words that tell cards apart, and the GB of memory if the name says so."""
    plain = re.sub(r"\(.*?\)", " ", name.lower())
    memory = re.search(r"(\d+)\s*gi?b\b", plain)
    plain = re.sub(r"\d+\s*gi?b\b", " ", plain)
    words = [word for word in re.findall(r"[a-z0-9]+", plain) if word not in (*_MAKERS, "pcie")]
    return words, memory[1] if memory else ""


def host_slug(name: str, known: Mapping[str, str]) -> str:
    """A host's slug by its processor; empty: the name says nothing. `known`: slug -> cpu, as in nodes.csv."""
    words = _cpu_words(name)
    for slug, cpu in known.items():
        models = [word for word in _cpu_words(cpu) if re.search(r"\d{3}", word)]
        if models and all(model in words for model in models):
            return slug
    return "-".join(word for word in words if word not in _CPU_WORDS)


def known_hosts(path: Path) -> dict[str, str]:
    """slug -> cpu of a nodes.csv that a Library has read. Raises ProfileError: it names no cpu."""
    rows = csv_rows(path)
    if "cpu" not in rows[0]:
        raise ProfileError(f"{path}: column 'cpu' is missing; it names the host's processor")
    return {row["host"]: row["cpu"] for row in rows}


def _cpu_words(name: str) -> list[str]:
    plain = re.sub(r"\(.*?\)|@.*|\bw/.*", " ", name.lower())
    plain = re.sub(r"\b\d+th gen\b|\b\d+rd gen\b|\b\S*-cores?\b|\b\d+ cores?\b", " ", plain)
    return [word for word in re.findall(r"[a-z0-9]+(?:-[a-z0-9]+)*", plain) if word not in _MAKERS]
