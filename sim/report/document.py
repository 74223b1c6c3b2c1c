"""A report as a PDF document by fpdf2: text that can be searched and copied, tables, and figures. Called by write.py.

The same report gives the same bytes. The letters are those that come with matplotlib (DejaVu Sans), which lack East
Asian scripts; such letters are shown as boxes.
"""

from __future__ import annotations

import io
import logging
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sim.plots.style import font_folder, png
from sim.report.content import Report, Section, Table

if TYPE_CHECKING:
    from fpdf import FPDF

_MOST_ROWS = 60  # of a table; a document is read, not searched
_MOST_COLUMNS = 9
_MARGIN_MM, _PAGE_MM = 14.0, 210.0
_WIDTH_MM = _PAGE_MM - 2 * _MARGIN_MM
_GAP_MM = 4.0
_GREY = (89, 97, 110)


def pdf(report: Report) -> bytes:
    """The document: A4, two figures beside each other."""
    logging.getLogger("fontTools").setLevel(logging.ERROR)
    logging.getLogger("fpdf").setLevel(logging.ERROR)  # of letters that the font lacks
    page = _paper(report.title)
    page.add_page()
    _text(page, report.title, 16, bold=True)
    _text(page, report.subtitle, 9, colour=_GREY)
    page.ln(2)
    _text(page, report.headline, 12, bold=True)
    for sentence in report.words:
        _text(page, sentence, 10)
    if report.tiles:
        page.ln(1)
        _text(page, "; ".join(f"{t.label} {t.value}" + (f" ({t.note})" if t.note else "") for t in report.tiles), 10)
    if report.cautions:
        page.ln(2)
        _text(page, "Before you rely on it", 10, bold=True)
        for caution in report.cautions:
            _text(page, f"- {caution}", 9)
    for section in report.sections:
        _section(page, section)
    return bytes(page.output())


def _paper(title: str) -> FPDF:
    from fpdf import FPDF  # noqa: PLC0415

    class Paper(FPDF):
        """Numbered pages."""

        def footer(self) -> None:
            self.set_y(-11)
            self.set_font("body", size=8)
            self.set_text_color(*_GREY)
            self.cell(0, 5, f"{self.page_no()}", align="C")

        def file_id(self) -> str:
            return ""  # would be the time

    page = Paper(format="A4")
    page.set_creation_date(datetime(2000, 1, 1, tzinfo=UTC))
    page.set_producer("")
    page.set_title(title)
    page.set_lang("en")
    page.set_margins(_MARGIN_MM, _MARGIN_MM, _MARGIN_MM)
    page.set_auto_page_break(True, 15)
    folder = font_folder()
    page.add_font("body", "", str(folder / "DejaVuSans.ttf"))
    page.add_font("body", "B", str(folder / "DejaVuSans-Bold.ttf"))
    page.set_text_shaping(False)
    return page


def _text(page: Any, text: str, size: float, bold: bool = False, colour: tuple[int, int, int] = (27, 31, 39)) -> None:
    page.set_font("body", "B" if bold else "", size)
    page.set_text_color(*colour)
    page.multi_cell(0, size * 0.5, text, align="L", new_x="LMARGIN", new_y="NEXT")
    page.ln(1)


def _section(page: Any, section: Section) -> None:
    page.ln(3)
    if page.will_page_break(40 + (50 if section.charts else 0)):
        page.add_page()
    page.start_section(section.title)
    _text(page, section.title, 13, bold=True)
    for sentence in section.words:
        _text(page, sentence, 9.5)
    _charts(page, section)
    for table in section.tables:
        _table(page, table)


def _charts(page: Any, section: Section) -> None:
    """Two in a row; a row never breaks."""
    width = (_WIDTH_MM - _GAP_MM) / 2
    for at in range(0, len(section.charts), 2):
        row = section.charts[at : at + 2]
        pictures = [(chart, png(chart)) for chart in row]
        heights = [width * _ratio(data) for _, data in pictures]
        if page.will_page_break(max(heights) + 2):
            page.add_page()
        top = page.get_y()
        for place, (chart, data) in enumerate(pictures):
            left = _MARGIN_MM + place * (width + _GAP_MM)
            page.image(io.BytesIO(data), left, top, w=width, alt_text=f"{chart.title}. {chart.about}")
        page.set_y(top + max(heights) + 2)


def _ratio(data: bytes) -> float:
    """Height / width, as the PNG's head has them."""
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    return height / width


def _table(page: Any, table: Table) -> None:
    """Wide tables come in parts of a few columns, the first column in each."""
    _text(page, table.title, 10, bold=True)
    if not table.rows:
        _text(page, "There is nothing in it.", 9, colour=_GREY)
        return
    head, rest = list(range(table.left)), list(range(table.left, len(table.headers)))
    parts = -(-max(len(rest), 1) // max(_MOST_COLUMNS - len(head), 1))
    room = -(-max(len(rest), 1) // parts)
    for start in range(0, max(len(rest), 1), room):
        _part(page, table, [*head, *rest[start : start + room]])
        page.ln(2)
    more = len(table.rows) - _MOST_ROWS
    note = " ".join(
        filter(None, [table.note, f"The first {_MOST_ROWS} of {len(table.rows)} rows." if more > 0 else ""])
    )
    if note:
        _text(page, note, 8, colour=_GREY)


def _part(page: Any, table: Table, columns: list[int]) -> None:
    from fpdf.fonts import FontFace  # noqa: PLC0415

    rows = [[table.headers[at] for at in columns]]
    rows += [[row[at].text for at in columns] for row in table.rows[:_MOST_ROWS]]
    widths = [_column_width([row[place] for row in rows]) for place in range(len(columns))]
    page.set_font("body", "", 7)
    page.set_text_color(27, 31, 39)
    page.set_draw_color(200, 205, 212)
    align = tuple("L" if at < table.left else "R" for at in columns)
    style = FontFace(emphasis="BOLD")
    if page.will_page_break(12):
        page.add_page()
    width = min(_WIDTH_MM, 1.75 * sum(widths) + 3 * len(widths))
    with page.table(
        rows, col_widths=tuple(widths), text_align=align, line_height=3.6, headings_style=style,
        borders_layout="HORIZONTAL_LINES", padding=0.6, width=width, align="L",
    ):  # fmt: skip
        pass


def _column_width(texts: list[str]) -> float:
    """In letters: what a header's longest word and the longest cell need."""
    header = max(map(len, texts[0].split()), default=0) * 1.15
    return float(max(6.0, header, min(30, max(map(len, texts[1:]), default=0))))
