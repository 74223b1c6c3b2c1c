"""What a report consists of, whatever it is written as: sentences, tiles, tables, charts. Plain data without behaviour.

Nothing here is escaped or formatted for a medium; page.py, markdown.py and document.py do that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sim.common.text import number, seconds, share
from sim.plots.style import Chart

Sortable = float | str | None


@dataclass(frozen=True)
class Cell:
    """What is shown, and what it is sorted by; None sorts last."""

    text: str
    sort: Sortable = None


@dataclass(frozen=True)
class Table:
    """Rows of cells under headers; the first `left` columns are text. `series`: for each row the series it is about."""

    key: str
    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    left: int = 1
    note: str = ""
    series: tuple[int | None, ...] = ()

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.headers) for row in self.rows), self.key
        assert len(self.series) in (0, len(self.rows)), self.key


@dataclass(frozen=True)
class Section:
    """A heading, what there is to say, and what shows it. `folded`: of second rank; a page may show it closed."""

    key: str
    title: str
    words: tuple[str, ...] = ()
    charts: tuple[Chart, ...] = ()
    tables: tuple[Table, ...] = ()
    folded: bool = False


@dataclass(frozen=True)
class Tile:
    """One number that should be seen first."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Report:
    """`headline`: the answer in one sentence. `words`: the rest of the summary. `cautions`: what could mislead."""

    title: str
    subtitle: str
    headline: str
    words: tuple[str, ...]
    tiles: tuple[Tile, ...] = ()
    cautions: tuple[str, ...] = ()
    sections: tuple[Section, ...] = ()
    overview: tuple[Chart, ...] = field(default=())


def text_cell(value: str) -> Cell:
    return Cell(value, value)


def seconds_cell(value: float | None) -> Cell:
    return Cell(seconds(value), value)


def share_cell(value: float | None) -> Cell:
    return Cell(share(value), value)


def number_cell(value: float | None) -> Cell:
    whole = isinstance(value, float) and value.is_integer()
    return Cell(number(int(value) if whole and value is not None else value), value)


def bytes_cell(value: float | None) -> Cell:
    return Cell("-" if value is None else f"{value / 1e9:,.1f}", value)


def numbered(names: Sequence[str]) -> dict[str, int]:
    """The place of each name, by which charts and tables mark what belongs to it."""
    return {name: place for place, name in enumerate(names)}
