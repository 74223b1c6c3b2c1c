"""The folder that is measured into: rows are on disk as soon as they are known, and none is measured twice.

A row counts once its line has ended. What an interruption left of a line is dropped, with a notice; anything else that
is wrong with a file is a ProfileError of sim/profiling/measured.py. No measuring here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from sim.common.errors import ProfileError
from sim.common.yaml_files import read_yaml
from sim.profiling.measured import PROVENANCE, read_rows, rows_text, write_text
from sim.profiling.merging import mean_row
from sim.profiling.points import COLUMNS, FILES, MeasuredRow

NAMES = {kind: name for name, kind in FILES.items()}
# What must be the same when a folder is gone on with, or its rows would not be of one machine.
SAME = ("gpu", "host", "engine", "device", "gpu_name", "cpu", "budget_gib", "link_gb_s", "torch")


def default_folder(parent: Path, stem: str, date: str) -> Path:
    """`parent`/`stem`-`date`; or the newest folder of that stem whose measurements were not finished."""
    for folder in sorted(parent.glob(f"{stem}-????-??-??"), reverse=True):
        if read_facts(folder).get("finished") is False:
            return folder
    return parent / f"{stem}-{date}"


def read_facts(folder: Path) -> dict[str, Any]:
    """What its provenance.yaml says; nothing where there is none. Raises ProfileError: it cannot be read."""
    path = folder / PROVENANCE
    facts = read_yaml(path, ProfileError) if path.is_file() else {}
    if not isinstance(facts, dict):
        raise ProfileError(f"{path}: not a list of `key: value` lines; mend it, or begin anew with --fresh")
    return facts


class MeasurementFolder:
    """Rows that are measured already, and the way to add more. `facts` says which machine and engine they are of.

    Raises ProfileError: a file that cannot be read, or measurements of another machine or torch.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], fresh: bool, notice: Callable[[str], None]) -> None:
        self.folder, self.facts = folder, dict(facts)
        if fresh and folder.exists():
            number = next(n for n in range(1, 1000) if not folder.with_name(f"{folder.name}.{n}").exists())
            folder.rename(folder.with_name(f"{folder.name}.{number}"))
            notice(f"what was in {folder.name} is kept as {folder.name}.{number}")
        folder.mkdir(parents=True, exist_ok=True)
        before = read_facts(folder)
        for key in SAME:
            if before and before.get(key) != self.facts.get(key):
                raise ProfileError(
                    f"{folder / PROVENANCE}: {key} was {before.get(key)}, now it is {self.facts.get(key)}; "
                    "measure into another folder (--out), or begin anew (--fresh)"
                )
        self.seconds = float(before.get("seconds") or 0.0)
        self.notes: list[str] = list(before.get("notes") or [])
        self.facts = {**before, **self.facts}
        self.rows: dict[type[MeasuredRow], list[Any]] = {kind: self._read(kind, notice) for kind in NAMES}
        self._known = {self._key(row) for rows in self.rows.values() for row in rows}

    def _read(self, kind: type[MeasuredRow], notice: Callable[[str], None]) -> list[Any]:
        path = self.folder / NAMES[kind]
        if not path.exists():
            return []
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            notice(f"{path.name}: dropped its half-written last row; it is measured again")
            write_text(path, whole.decode("utf-8", "surrogateescape")) if whole else path.unlink()
        if not whole:
            return []
        rows = read_rows(path, kind)
        header = whole.decode("utf-8-sig").splitlines()[0].split(",")
        if tuple(header) != COLUMNS[kind]:
            raise ProfileError(
                f"{path}: its columns are {','.join(header)}; rows with {','.join(COLUMNS[kind])} cannot be added. "
                "Measure into another folder (--out), or begin anew (--fresh)"
            )
        return rows

    @staticmethod
    def _key(row: MeasuredRow) -> tuple[object, ...]:
        return (NAMES[type(row)], *(getattr(row, column) for column in row.key))

    def has(self, kind: type[MeasuredRow], **columns: object) -> bool:
        """Whether there is a row with these values in its key columns; what is not named has its default."""
        defaults = {each.name: each.default for each in fields(kind)}
        key = (NAMES[kind], *(columns.get(column, defaults[column]) for column in kind.key))
        return key in self._known

    def add(self, rows: Sequence[MeasuredRow]) -> None:
        """Append rows, file by file, each file's in one write. A row that is there already is not added again."""
        for kind, name in NAMES.items():
            unique = {self._key(row): row for row in rows if type(row) is kind}
            new = [row for key, row in unique.items() if key not in self._known]
            if not new:
                continue
            path = self.folder / name
            text = rows_text(new, header=not path.exists())
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, text.encode())
                os.fsync(handle)
            finally:
                os.close(handle)
            self.rows[kind] += new
            self._known |= unique.keys()

    def blend(self, rows: Sequence[MeasuredRow]) -> None:
        """Add timings; one that is there already becomes the mean of both, each with its repeats for a weight."""
        self.add(rows)
        for kind, name in NAMES.items():
            again = {self._key(row): row for row in rows if type(row) is kind and getattr(row, "repeats", None)}
            places = [n for n, row in enumerate(self.rows[kind]) if self._key(row) in again]
            changed = False
            for place in places:
                old = self.rows[kind][place]
                new = again[self._key(old)]
                if old is not new:
                    self.rows[kind][place] = mean_row([old, new])
                    changed = True
            if changed:
                write_text(self.folder / name, rows_text(self.rows[kind]))

    def drop(self, rows: Sequence[MeasuredRow]) -> None:
        """Take rows out again, to measure them anew."""
        keys = {self._key(row) for row in rows}
        for kind, name in NAMES.items():
            kept = [row for row in self.rows[kind] if self._key(row) not in keys]
            if len(kept) < len(self.rows[kind]):
                self.rows[kind] = kept
                write_text(self.folder / name, rows_text(kept)) if kept else (self.folder / name).unlink()
        self._known -= keys

    def note(self, text: str) -> None:
        """Something that a reader of the measurements should know; kept in provenance.yaml."""
        if text not in self.notes:
            self.notes.append(text)

    def save(self, seconds: float, finished: bool, **facts: object) -> None:
        """Write provenance.yaml; `seconds` is added to those of earlier runs."""
        self.facts |= facts
        content = {**self.facts, "seconds": round(self.seconds + seconds, 1), "finished": finished, "notes": self.notes}
        write_text(self.folder / PROVENANCE, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))
