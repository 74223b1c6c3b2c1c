"""A report as Markdown with its figures as PNG files beside it. Called by write.py.

Text from data is escaped, so that no name becomes markup, a link or HTML where the text is rendered.
"""

from __future__ import annotations

import re

from sim.plots.style import png
from sim.report.content import Report

_MOST_ROWS = 200  # of a table; a text is read, not searched


def markdown(report: Report, figures: str) -> tuple[str, dict[str, bytes]]:
    """The text, and the pictures that it expects in the folder `figures`, by name."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415

    from sim.report.page import TEMPLATES  # noqa: PLC0415

    world = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    world.filters["plain"] = escaped
    text = world.get_template("report.md.j2").render(report=report, figures=figures, most_rows=_MOST_ROWS)
    charts = [chart for section in report.sections for chart in section.charts]
    return re.sub(r"\n{3,}", "\n\n", text), {f"{chart.key}.png": png(chart) for chart in charts}


def escaped(text: str) -> str:
    """Text that Markdown shows as it is."""
    one_line = " ".join(text.split())
    return re.sub(r"([\\`*_{}\[\]<>#|~$&!])", r"\\\1", one_line)
