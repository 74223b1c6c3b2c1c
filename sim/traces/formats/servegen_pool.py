"""The files of a ServeGen pool of clients: rates and burstiness by window, and distributions of lengths.

It reads and checks them; what requests follow from them is `servegen`'s.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.common.errors import TraceError, did_you_mean
from sim.traces.columns import FURTHEST_S, MOST_TOKENS
from sim.traces.formats.base import Entry, json_value, shown
from sim.traces.formats.members import Member, members

WINDOW_S = 600.0
MOST_RATE = 1e6
MOST_PARTS = 10_000  # images or the like of one request
LAWS = ("", "Gamma", "Weibull", "Exponential")  # "" and the last are the same
MEDIA = ("image", "audio", "video")

_MEMBER = re.compile(r"chunk-([0-9]{1,9})-(trace\.csv|dataset\.json)(\.gz)?")
_PROMPTS = ("input_tokens", "text_tokens")
_MEDIA_FIELDS = [f"{kind}_{what}" for kind in MEDIA for what in ("tokens", "count")]
_FIELDS = (*_PROMPTS, "output_tokens", "reason_ratio", *_MEDIA_FIELDS)


@dataclass(frozen=True)
class PoolDistribution:
    """Values and, for each, the probability of it and all before."""

    values: NDArray[np.float64]
    upto: NDArray[np.float64]

    def at(self, uniform: NDArray[np.float64]) -> NDArray[np.float64]:
        """The value for each number in [0, 1)."""
        return self.values[np.searchsorted(self.upto, uniform, side="right")]

    @property
    def is_zero(self) -> bool:
        """Whether it can only give 0."""
        return not self.values[np.diff(self.upto, prepend=0.0) > 0].any()


Lengths = dict[str, PoolDistribution]  # by field


@dataclass
class Client:
    """One client: arrays of its windows, and its lengths from each time on.

    start_s, rate (requests a second), cv (of the gaps): float64[windows]; law: places in LAWS, int64[windows].
    lengths: by their start in s, only those that say something; empty when nothing is known. each_s: how long one
    holds.
    """

    pool: str
    number: int
    where: str
    start_s: NDArray[np.float64]
    rate: NDArray[np.float64]
    cv: NDArray[np.float64]
    law: NDArray[np.int64]
    window_s: float
    lengths: dict[float, Lengths] = field(default_factory=dict)
    each_s: float = math.inf

    def mean_rate(self, start_s: float, end_s: float) -> float:
        """Requests a second over a span; where there is no window there are none."""
        begins = np.maximum(self.start_s, start_s)
        covered_s = np.clip(np.minimum(self.start_s + self.window_s, end_s) - begins, 0.0, None)
        return float((self.rate * covered_s).sum() / (end_s - start_s))

    def rate_at(self, time_s: float) -> float:
        """Requests a second at a time; 0 where there is no window."""
        place = int(np.searchsorted(self.start_s, time_s, side="right")) - 1
        return float(self.rate[place]) if place >= 0 and time_s < self.start_s[place] + self.window_s else 0.0

    def lengths_at(self, time_s: float) -> tuple[Lengths, bool]:
        """The lengths of a time, and whether they are those of another because it has none of its own."""
        starts = sorted(self.lengths)
        place = bisect_right(starts, time_s) - 1
        if place >= 0 and time_s < starts[place] + self.each_s:
            return self.lengths[starts[place]], False
        away_s = {start: max(start - time_s, time_s - start - self.each_s) for start in starts}
        return self.lengths[min(starts, key=lambda start: (away_s[start], start))], True


@dataclass
class Pool:
    """The clients of one model, by number, and what its files hold that nobody reads."""

    name: str
    clients: dict[int, Client] = field(default_factory=dict)
    ignored: dict[str, None] = field(default_factory=dict)


def is_member(name: str) -> bool:
    """Whether a file within an archive or folder is named as those of a pool are."""
    return _MEMBER.fullmatch(PurePosixPath(name).name) is not None


def read_pools(files: Sequence[Path], strict: bool) -> list[Pool]:
    """All pools of clients in archives and folders, in the order in which they are met.

    Raises TraceError: files that are not what they should be, a client given twice or with lengths alone, a pool
    without any lengths.
    """
    pools: dict[str, Pool] = {}
    lengths: dict[tuple[str, int], tuple[str, dict[float, Lengths | None]]] = {}
    for path in files:
        for member in members([path], is_member):
            name, number, kind = _place(path, member)
            pool = pools.setdefault(name, Pool(name))
            known = number in pool.clients if kind == "trace.csv" else (name, number) in lengths
            if known:
                raise TraceError(f"{member.where}: client {number} of {name} is given twice; give each file once")
            if kind == "trace.csv":
                pool.clients[number] = _client(member, name, number)
            else:
                lengths[name, number] = member.where, dict(_dataset(member, pool, strict))
    for (name, number), (where, found) in lengths.items():
        client = pools[name].clients.get(number)
        if client is None:
            raise TraceError(f"{where}: there is no chunk-{number}-trace.csv beside it; add it, or remove this file")
        client.lengths = {start_s: known for start_s, known in found.items() if known is not None}
        client.each_s = min((later - start for start, later in pairwise(sorted(found))), default=math.inf)
    for pool in pools.values():
        pool.clients = dict(sorted(pool.clients.items()))
        if not any(client.lengths for client in pool.clients.values()):
            raise TraceError(f"{files[0]}: {pool.name} has no chunk-...-dataset.json with lengths; add at least one")
    return list(pools.values())


def _place(path: Path, member: Member) -> tuple[str, int, str]:
    """Pool, number and kind of file, from its name and folder."""
    inside = PurePosixPath(member.name or path.name)
    match = _MEMBER.fullmatch(inside.name)
    if match is None:
        raise TraceError(f"{path}: is not named like chunk-0-trace.csv; give the archive or the folder")
    name = inside.parent.name
    if not name:
        outer = path.resolve().parent if not member.name else path
        name = re.sub(r"\.(tar|tgz|gz)\b.*$", "", outer.name)
    if not name.isprintable() or not name.strip():
        raise TraceError(f"{member.where}: its folder's name cannot be a model's; rename it")
    return name.strip(), int(match[1]), match[2]


def _client(member: Member, pool: str, number: int) -> Client:
    try:
        text = member.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise TraceError(f"{member.where}: not UTF-8 text; save the file as UTF-8") from None
    columns: list[tuple[float, float, float, int]] = []
    for row, line in enumerate(text.splitlines(), 1):
        if line.strip():
            columns.append(_window(f"{member.where}: row {row}", line, columns[-1][0] if columns else -1.0))
    if not columns:
        raise TraceError(f"{member.where}: the file is empty; it has a row for each window")
    start_s, rate, cv, law = (np.array(column) for column in zip(*columns, strict=True))
    steps = np.diff(start_s)
    window_s = float(steps.min()) if len(steps) else WINDOW_S
    start_s, rate, cv = (column.astype(float) for column in (start_s, rate, cv))
    return Client(pool, number, member.where, start_s, rate, cv, law, window_s)


def _window(where: str, line: str, before_s: float) -> tuple[float, float, float, int]:
    """Start, rate, CV and law of a window."""
    cells = [cell.strip() for cell in line.split(",")]
    if len(cells) != 6:
        raise TraceError(f"{where}: has {len(cells)} fields; there are 6: start, rate, CV, law, shape, scale")
    start_s = _number(where, "start", cells[0], FURTHEST_S)
    if start_s <= before_s:
        raise TraceError(f"{where}: starts at {start_s:g} s, not after the row above it; sort the rows")
    rate, cv = _number(where, "rate", cells[1], MOST_RATE), _number(where, "CV", cells[2], 1e6)
    if cells[3] not in LAWS:
        known = [law for law in LAWS if law]
        raise TraceError(f"{where}: law is {shown(cells[3])}; {did_you_mean(cells[3], known)}")
    for name, cell in (("shape", cells[4]), ("scale", cells[5])):
        if cell:
            _number(where, name, cell, math.inf)
    return start_s, rate, cv, LAWS.index(cells[3])


def _number(where: str, name: str, cell: str, most: float) -> float:
    try:
        number = float(cell)
    except ValueError:
        number = math.nan
    if not 0 <= number <= most:
        upto = f" to {most:g}" if most < math.inf else ""
        raise TraceError(f"{where}: {name} is {shown(cell)}; give a number from 0{upto}")
    return number


def _dataset(member: Member, pool: Pool, strict: bool) -> Iterator[tuple[float, Lengths | None]]:
    """(start in s, lengths, or None when the client was idle) of every window of a dataset."""
    top = Entry(member.where, json_value(member.read(), member.where))
    for start in top.values:
        start_s = _number(f"{member.where}: window {shown(start)}", "start", start, FURTHEST_S)
        window = top.entry(start)
        pool.ignored.update(dict.fromkeys(window.ignored(_FIELDS, strict)))
        texts = {name: window.values[name] for name in _FIELDS if name in window.values}
        if all(isinstance(text, str) and text.strip() == "{}" for text in texts.values()) and texts:
            yield start_s, None
            continue
        if not any(name in texts for name in _PROMPTS):
            raise window.error("input_tokens", "give the distribution of prompt tokens")
        if "output_tokens" not in texts:
            raise window.error("output_tokens", "give the distribution of output tokens")
        yield start_s, {name: _distribution(window, name) for name in texts}


def _distribution(window: Entry, name: str) -> PoolDistribution:
    """A text with a dict in Python's notation, {tokens: probability, ...}: its keys are numbers, so it is not JSON."""
    text: Any = window.values[name]
    if isinstance(text, str):
        text = text.strip()
        items = text[1:-1].split(",") if text[:1] == "{" and text[-1:] == "}" else []
        if items and all(item.count(":") == 1 for item in items):
            try:
                pairs = np.array(":".join(items).split(":"), dtype=np.float64).reshape(-1, 2)
            except ValueError:
                pairs = np.full((1, 2), np.nan)
            return _checked(window, name, pairs)
    raise window.error(name, "give a text with {tokens: probability, ...}")


def _checked(window: Entry, name: str, pairs: NDArray[np.float64]) -> PoolDistribution:
    values, chances = pairs[:, 0], pairs[:, 1]
    most = 1.0 if name == "reason_ratio" else float(MOST_PARTS if name.endswith("_count") else MOST_TOKENS)
    whole = name == "reason_ratio" or bool((values == np.floor(values)).all())
    if not (whole and (values >= 0).all() and (values <= most).all()):
        raise window.error(name, f"its keys are {'' if most == 1.0 else 'whole '}numbers from 0 to {most:,.0f}")
    if not ((chances >= 0).all() and abs(chances.sum() - 1) <= 1e-3):
        raise window.error(name, "its probabilities are at least 0 and add up to 1")
    upto = np.cumsum(chances)
    return PoolDistribution(values, upto / upto[-1])
