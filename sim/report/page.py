"""A report as one HTML file that needs nothing else: styles, a little script and figures are inside, in both themes.

Everything that comes from data passes through jinja2's escaping; besides it only our own script may run (the page's
content security policy names its hash). Called by write.py.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from markupsafe import Markup, escape

from sim.plots.style import COLOURS, svg
from sim.report.content import Report

TEMPLATES = Path(__file__).parent / "templates"
MOST_CAUTIONS = 5  # before the rest is folded away


def html(report: Report, version: str) -> str:
    """The page. Equal reports give equal text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415  heavy

    world = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    world.filters["code"] = _code
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    charts = [chart for section in report.sections for chart in section.charts]
    assert len({chart.key for chart in charts}) == len(charts), [chart.key for chart in charts]
    return world.get_template("report.html.j2").render(
        report=report,
        drawn={chart.key: Markup(svg(chart)) for chart in charts},
        colours=COLOURS,
        most_cautions=MOST_CAUTIONS,
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        version=version,
    )


def _code(text: str) -> Markup:
    """A sentence with what stands between backticks as code; everything else, and that too, is escaped."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
