"""What all figures of a report share: colours, a way to draw, and how a figure becomes SVG, PNG or a page.

A Chart draws itself on a matplotlib figure in the colours of light paper. In the SVG each of these colours becomes a
CSS variable, so one drawing serves light and dark. Equal charts give equal bytes. Called by sim.report.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

# Token: (on light paper, on dark). The c's are seaborn's "colorblind" palette in an order that keeps neighbours apart,
# without its yellow and pale pink, which cannot be seen on white.
COLOURS: dict[str, tuple[str, str]] = {
    "ink": ("#1b1f27", "#e8eaee"),
    "muted": ("#59616e", "#a3abb8"),
    "grid": ("#dfe3e8", "#353b46"),
    "paper": ("#fffffe", "#171a21"),
    "other": ("#a9b0ba", "#5d6675"),
    "c0": ("#0173b2", "#4aa8e8"),
    "c1": ("#de8f05", "#f2b13c"),
    "c2": ("#029e73", "#35c999"),
    "c3": ("#d55e00", "#ff8847"),
    "c4": ("#cc78bc", "#e39ad5"),
    "c5": ("#8c6239", "#cfa27a"),
    "c6": ("#56b4e9", "#9ad6fa"),
    "c7": ("#6b5fb5", "#a89df0"),
}
INK, MUTED, GRID, PAPER, OTHER = (COLOURS[name][0] for name in ("ink", "muted", "grid", "paper", "other"))
CATEGORIES = tuple(COLOURS[f"c{number}"][0] for number in range(8))
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
MOST_COLOURED = len(CATEGORIES)  # policies with a colour of their own; the rest is grey, and named where one points
WIDTH_IN, WIDE_IN = 4.8, 9.8


@dataclass(frozen=True)
class Chart:
    """A figure that is still to be drawn.

    key: its name in a file, [a-z0-9-]. title: what it shows, as a finding. about: what is drawn, for those who cannot
    see it. draw: puts it on an empty matplotlib figure or subfigure. series: what the groups that it marks with
    `marked` stand for.
    """

    key: str
    title: str
    about: str
    draw: Callable[[Any], None]
    series: tuple[str, ...] = ()
    width_in: float = WIDTH_IN
    height_in: float = 3.1

    @property
    def wide(self) -> bool:
        return self.width_in > WIDTH_IN


@dataclass(frozen=True)
class Pen:
    """How one series looks in every figure of a report."""

    name: str
    number: int
    colour: str
    dash: Any
    marker: str
    strong: bool  # False: one of many, grey and thin

    @property
    def width(self) -> float:
        return 1.7 if self.strong else 0.8

    @property
    def order(self) -> float:
        return 3 - self.number / 1000 if self.strong else 2


def pens(names: Sequence[str], strong: Sequence[str] = ()) -> dict[str, Pen]:
    """A pen for each name: colours for all when they suffice, else for the `strong` ones alone."""
    few = len(names) <= MOST_COLOURED
    coloured = list(names) if few else [name for name in names if name in strong][:MOST_COLOURED]
    found = {}
    for number, name in enumerate(names):
        found[name] = Pen(name, number, OTHER, "-", ".", False)
        if name in coloured:
            at = coloured.index(name)
            found[name] = Pen(name, number, CATEGORIES[at], DASHES[at % len(DASHES)], MARKERS[at], True)
    return found


def marked(artist: Any, number: int, part: str) -> Any:
    """Mark what is drawn for series `number`, so that the page can name it and pick it out."""
    artist.set_gid(f"series-{number}-{part}")
    return artist


@contextmanager
def drawing(salt: str) -> Iterator[None]:
    """Matplotlib and seaborn in our style. Names are drawn as they are, not as formulas."""
    import matplotlib as mpl  # noqa: PLC0415
    import seaborn as sns  # noqa: PLC0415

    ours: dict[str, Any] = {
        "svg.hashsalt": salt,
        "svg.fonttype": "none",
        "text.parse_math": False,
        "axes.unicode_minus": False,
        "font.size": 9,
        "axes.labelsize": 9,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "legend.fontsize": 8.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.facecolor": "none",
        "axes.edgecolor": MUTED,
        "axes.labelcolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "text.color": INK,
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "lines.solid_capstyle": "round",
    }
    look: dict[Any, Any] = {**sns.axes_style("whitegrid"), **ours}
    with mpl.rc_context(look), warnings.catch_warnings():
        # A name may have letters that the font of pictures lacks; a browser has others.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        yield


def _figure(chart: Chart, title: bool) -> Any:
    from matplotlib.figure import Figure  # noqa: PLC0415

    lines = textwrap.wrap(chart.title, round(chart.width_in * 12)) if title else []
    figure = Figure(figsize=(chart.width_in, chart.height_in + 0.2 * len(lines)), layout="constrained")
    if title:
        figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=10, fontweight="bold")
    chart.draw(figure)
    return figure


def png(chart: Chart, dpi: int = 170) -> bytes:
    """The chart on white paper, its title on top."""
    buffer = io.BytesIO()
    with drawing(chart.key):
        figure = _figure(chart, title=True)
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def overview_png(title: str, words: str, charts: Sequence[Chart], dpi: int = 150) -> bytes:
    """Several charts in one picture, two beside each other, under a title and a few words."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    rows = [charts[at : at + 2] for at in range(0, len(charts), 2)]
    heights_in = [0.45 + max(chart.height_in for chart in row) for row in rows]
    lines = textwrap.wrap(words, 150)
    head_in = 0.6 + 0.19 * len(lines)
    buffer = io.BytesIO()
    with drawing("overview"):
        whole = Figure(figsize=(2 * WIDTH_IN + 0.6, head_in + sum(heights_in)), layout="constrained")
        parts = whole.subfigures(1 + len(rows), 1, height_ratios=[head_in, *heights_in], squeeze=False)[:, 0]
        parts[0].text(0.012, 1 - 0.1 / head_in, title, fontsize=14, fontweight="bold", va="top")
        parts[0].text(0.012, 1 - 0.5 / head_in, "\n".join(lines), fontsize=9, va="top", color=MUTED, linespacing=1.4)
        for part, row in zip(parts[1:], rows, strict=True):
            for place, chart in zip(part.subfigures(1, 2), row, strict=False):
                place.suptitle(textwrap.fill(chart.title, 58), x=0.02, ha="left", fontsize=10, fontweight="bold")
                chart.draw(place)
        whole.savefig(buffer, format="png", dpi=dpi, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


# --- SVG for a page


def svg(chart: Chart) -> str:
    """The chart as an element to put into HTML: colours are CSS variables, and its ids are its own."""
    buffer = io.BytesIO()
    with drawing(chart.key):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        _figure(chart, title=False).savefig(buffer, format="svg", transparent=True, metadata=nothing)
    root = ET.fromstring(buffer.getvalue())
    used = re.findall(r"#([\w.-]+)[\")]", buffer.getvalue().decode())
    _clean(root, chart, dict.fromkeys(used))
    box = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update({"viewBox": box, "role": "img", "aria-label": f"{chart.title}. {chart.about}"})
    return ET.tostring(root, encoding="unicode")


def _clean(element: Any, chart: Chart, used: Mapping[str, None]) -> None:
    """Names without a namespace, no metadata, numbers of two digits, colours as variables; and so all below it."""
    element.tag = _local(element.tag)
    attributes = {_local(name): value for name, value in element.attrib.items()}
    own = attributes.pop("id", "")
    if own in used:
        attributes["id"] = f"{chart.key}-{own}"
    for name, value in attributes.items():
        attributes[name] = _value(name, value, chart.key)
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]
    element.attrib.clear()
    element.attrib.update(attributes)
    for child in list(element):
        if _local(child.tag) in ("metadata", "style"):
            element.remove(child)
        else:
            _clean(child, chart, used)
    for attribute in ("text", "tail"):
        if not (getattr(element, attribute) or "").strip():
            setattr(element, attribute, None)
    match = re.match(r"series-(\d+)-", own)
    if match and int(match[1]) < len(chart.series):
        element.set("class", f"series s{match[1]}")
        tip = ET.Element("title")
        tip.text = chart.series[int(match[1])]
        element.insert(0, tip)


def _local(name: str) -> str:
    return name.rpartition("}")[2]


_VARIABLES = {light: f"var(--{token},{light})" for token, (light, _) in COLOURS.items()}


def _value(name: str, value: str, key: str) -> str:
    if name == "style":
        value = re.sub(r"font-family:[^;]*(;|$)", "", value)
        value = re.sub(r"#[0-9a-f]{6}\b", lambda found: _VARIABLES.get(found[0], found[0]), value)
    elif name in ("d", "x", "y", "transform", "points", "width", "height"):
        value = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}".rstrip("0").rstrip("."), value)
        value = re.sub(r"\s+", " ", value).strip()
    value = re.sub(r"url\(#", f"url(#{key}-", value)
    return f"#{key}-{value[1:]}" if name == "href" and value.startswith("#") else value


def font_folder() -> Path:
    """Where the fonts are that come with matplotlib."""
    import matplotlib as mpl  # noqa: PLC0415

    return Path(mpl.get_data_path()) / "fonts" / "ttf"
