"""Failures written down, for `python -m sim run` to play again: scenarios, their requests, and the hardware.

Called by `policies check --keep`.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from sim.common.errors import ConfigError
from sim.conformance.hardware import as_yaml, synthetic, trace
from sim.conformance.subject import Play
from sim.conformance.suite import Verdict
from sim.scenario.scenario import TraceWorkload
from sim.traces.write import write_trace


class Keeper:
    """A new folder for them. Raises ConfigError: it is there already and not empty, or cannot be made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise ConfigError(f"--keep {folder}: not empty; give a new folder")
        except OSError as error:
            raise ConfigError(f"--keep {folder}: cannot write there ({error.strerror}); give a new folder") from None

    def keep(self, verdict: Verdict) -> list[Path]:
        """Write the runs that show a failure; the scenario files, each for `run FILE --check`."""
        words = re.sub("[^a-z]+", "-", f"{verdict.check} {verdict.engine}".strip().lower())
        names = [words if number == 0 else f"{words}-{number + 1}" for number in range(len(verdict.plays))]
        return [self._write(name, play) for name, play in zip(names, verdict.plays, strict=True)]

    def _write(self, name: str, play: Play) -> Path:
        profiles = self.folder / "profiles"
        if not profiles.exists():
            shutil.copytree(synthetic(), profiles)
        requests = self.folder / f"{name}.csv"
        write_trace(trace(play.scenario, play.rows), requests)
        workload = TraceWorkload(kind="trace", file=requests.name)
        of = play.scenario.model_copy(update={"workload": workload, "profiles": str(profiles.absolute())})
        path = self.folder / f"{name}.yaml"
        path.write_text(as_yaml(of), encoding="utf-8")
        return path
