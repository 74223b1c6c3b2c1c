"""Records that were measured under different settings are no one curve: choosing among them, and refusing a mix.

Threads, flash attention, KV type, build and the like change a time, but have no column in tables. `importing` calls it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from sim.common.errors import ProfileError, did_you_mean
from sim.profiles.library import grouped
from sim.profiling.imports.record import Trial

_TRUTHS = {"true": "1", "false": "0"}


def parse_where(options: Iterable[str]) -> dict[str, str]:
    """NAME=VALUE texts. Raises ProfileError."""
    found: dict[str, str] = {}
    for option in options:
        name, sign, value = option.partition("=")
        if not sign or not name.strip():
            raise ProfileError(f"--where {option}: write NAME=VALUE, with a field of the records")
        if name.strip() in found:
            raise ProfileError(f"--where {option}: '{name.strip()}' is given twice; drop one")
        found[name.strip()] = value.strip()
    return found


@dataclass
class Chosen:
    """The records that --where asks for, and whether its fields exist at all."""

    where: Mapping[str, str]
    seen: dict[str, dict[str, None]] = field(default_factory=dict)  # the values of each field that is asked for
    fields: dict[str, None] = field(default_factory=dict)

    def wants(self, fields: Mapping[str, Any]) -> bool:
        self.fields |= dict.fromkeys(fields)
        for name in self.where:
            if name in fields:
                self.seen.setdefault(name, {})[_plain(fields[name])] = None
        return all(name in fields and _plain(fields[name]) == _plain(value) for name, value in self.where.items())

    def check(self, left: int) -> None:
        """Raises ProfileError: a field that no record has, or nothing left."""
        for name in self.where:
            if name not in self.seen:
                raise ProfileError(f"--where {name}: no record has this field; {did_you_mean(name, self.fields)}")
        if self.where and not left:
            values = "; ".join(f"{name} is {', '.join(self.seen[name])}" for name in self.where)
            raise ProfileError(f"--where: no record is left; in the records {values}")


def _plain(value: Any) -> str:
    text = str(value).strip().lower()
    text = _TRUTHS.get(text, text)
    try:
        number = float(text)
    except ValueError:
        return text
    return f"{number:g}" if abs(number) < 1e15 else text


def refuse_mixed(label: str, trials: Sequence[Trial], free: Sequence[str]) -> None:
    """Raises ProfileError: trials of one curve that differ in a setting, other than those that are `free`."""
    names = dict.fromkeys(name for trial in trials for name in trial.settings)
    differing = []
    for name in names:
        counts = Counter(trial.settings.get(name, "(not said)") for trial in trials)
        if len(counts) > 1 and name not in free:
            differing.append((name, counts))
    if not differing:
        return
    told = "; ".join(
        f"{name} is {', '.join(f'{value} in {number}' for value, number in counts.items())}"
        for name, counts in differing
    )
    name, counts = differing[0]
    value = next((value for value in counts if value != "(not said)"), "")
    raise ProfileError(
        f"{label}: records differ in settings: {told}; choose with --where {name}={value}, or take all as they are "
        f"with {' '.join(f'--any {each}' for each, _ in differing)}"
    )


def common_settings(trials: Sequence[Trial]) -> dict[str, str]:
    """The settings that all trials which have them agree in, for the provenance."""
    found = grouped((pair for trial in trials for pair in trial.settings.items()), itemgetter(0))
    return {name: pairs[0][1] for name, pairs in sorted(found.items()) if len(dict.fromkeys(pairs)) == 1}
