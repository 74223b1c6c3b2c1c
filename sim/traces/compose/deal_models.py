"""Which model each request of a trace asks for: models dealt to requests, sessions, clients or functions by a law.

A unit (a request, a session, or all rows of one name in a column) gets one model; units count from 0 in the order in
which they appear. Some laws need a look at the whole trace first: `tally` is that look. Called by `recipe`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from sim.common.errors import ConfigError, TraceError, did_you_mean
from sim.common.lazy import pa
from sim.traces.columns import grown
from sim.traces.shape import after, first_of
from sim.traces.stream import TraceStream
from sim.traces.trace import Trace

LAWS = "zipf:S (for example zipf:1.0), uniform, shares, round-robin, stripes, stripes:W, rank, table"
REQUEST, SESSION, MODEL = "request", "session", "model"
_Tally = tuple[dict[str, int], int]


@dataclass(frozen=True)
class Deal:
    """How models are dealt out.

    law: "zipf:S" draws model i (from 0) with weight 1 / (i + 1)^S, "uniform" each alike, "shares" by `shares`;
    "round-robin" deals in turn; "stripes:W" deals W neighbours in turn to each model, "stripes" as many as make one
    stripe per model; "rank" gives the unit with the most requests the first model, the second the second, and so on,
    beginning anew after the last; "table" looks the unit's name up in `table`. by: "request", "session" (requests of no
    session stand alone), "model", or the name of a column. alternate: the next request of a unit gets the next model.
    Raises ConfigError: an unknown law, no models, or what the law needs is missing.
    """

    models: tuple[str, ...]
    law: str
    by: str = REQUEST
    alternate: bool = False
    shares: tuple[float, ...] = ()
    table: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name, _, text = self.law.partition(":")
        if not self.models:
            raise ConfigError("map_models: there are no models to assign; give at least one")
        if name not in ("zipf", "uniform", "shares", "round-robin", "stripes", "rank", "table"):
            raise ConfigError(f"map_models: unknown law '{self.law}'; the laws are {LAWS}")
        if name == "zipf":
            self._number(text, 0, 100, "an exponent from 0 to 100, for example zipf:1.0")
        elif name == "stripes" and ":" in self.law:
            self._number(text, 1, 1e12, "a whole width, for example stripes:10")
        elif ":" in self.law:
            raise ConfigError(f"map_models: '{self.law}': {name} takes no number; the laws are {LAWS}")
        if (name == "shares") != bool(self.shares):
            raise ConfigError("map_models: the law 'shares' goes with shares: {MODEL: SHARE}, or like: {file: TRACE}")
        if name in ("rank", "table") and self.by in (REQUEST, SESSION):
            raise ConfigError(f"map_models: the law '{name}' needs by: model, or the name of a column such as client")
        if self.alternate and self.by == REQUEST:
            raise ConfigError("map_models: alternate needs by: session, model, or the name of a column")

    def _number(self, text: str, low: float, high: float, what: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or (self.law.startswith("stripes") and value != int(value)):
            raise ConfigError(f"map_models: '{self.law}' needs {what}")
        return value

    @property
    def needs_tally(self) -> bool:
        return self.law in ("stripes", "rank")

    @property
    def weights(self) -> NDArray[np.float64] | None:
        """The law's weights of the models, float64[models]; None when it does not draw."""
        if self.law == "uniform":
            return np.ones(len(self.models))
        if self.law == "shares":
            return np.array(self.shares)
        if self.law.startswith("zipf:"):
            exponent = float(self.law.removeprefix("zipf:"))
            return np.exp(-exponent * np.log(np.arange(1, len(self.models) + 1)))
        return None


class Units:
    """Codes of the unit of every row: int64[n], -1 for a row that is a unit of its own; `names` grow."""

    def __init__(self, by: str, where: str) -> None:
        self.by = by
        self.names: list[str] = []
        self._where = where
        self._codes: dict[str, int] = {}

    def of(self, chunk: Trace) -> NDArray[np.int64]:
        """Raises TraceError: no such column, or a row with nothing in it."""
        if self.by == REQUEST:
            return np.full(len(chunk), -1, dtype=np.int64)
        if self.by in (SESSION, MODEL):
            codes, names = chunk.named()[self.by]
            self.names += names[len(self.names) :]
            return codes.astype(np.int64)
        return self._of_column(chunk)

    def _of_column(self, chunk: Trace) -> NDArray[np.int64]:
        if self.by not in chunk.extras:
            known = (REQUEST, SESSION, MODEL, *chunk.extras)
            hint = did_you_mean(self.by, known)
            raise TraceError(f"{self._where}: map_models: no column '{self.by}' to go by; {hint}")
        column = chunk.extras[self.by]
        if (nested := pa.types.is_nested(column.type)) or column.null_count:
            problem = "holds lists, not names" if nested else "is empty in some rows"
            raise TraceError(f"{self._where}: map_models: column '{self.by}' {problem}; choose another")
        encoded = column.cast(pa.string()).dictionary_encode()
        own = [self._codes.setdefault(name, len(self._codes)) for name in encoded.dictionary.to_pylist()]
        self.names += list(self._codes)[len(self.names) :]
        codes: NDArray[np.int64] = np.array(own, dtype=np.int64)[np.asarray(encoded.indices)]
        return codes


def tally(stream: TraceStream, by: str) -> _Tally:
    """Requests of every unit's name in the order in which they appear, and the number of units."""
    units, counts, order = Units(by, stream.where), np.zeros(0, dtype=np.int64), [np.zeros(0, dtype=np.int64)]
    total = 0
    for chunk in stream.chunks:
        codes = units.of(chunk)
        counts = grown(counts, len(units.names), 0)
        first = first_of(codes, counts == 0)
        total += int(first.sum())
        order.append(codes[first & (codes >= 0)])
        counts += np.bincount(codes[codes >= 0], minlength=len(counts))
    seen = np.concatenate(order)
    return dict(zip([units.names[code] for code in seen.tolist()], counts[seen].tolist(), strict=True)), total


def map_models(
    stream: TraceStream, deal: Deal, generator: np.random.Generator, tallied: _Tally | None = None
) -> TraceStream:
    """The same requests with their models replaced; arrivals, lengths and sessions stay as they are.

    `tallied`: what `tally(..., deal.by)` says of this very trace, for a deal that `needs_tally`. Raises TraceError: a
    column or a name that cannot be dealt for.
    """
    assert (tallied is None) != deal.needs_tally

    def chunks() -> Iterator[Trace]:
        units = Units(deal.by, stream.where)
        choice, turns = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        choose = _Chooser(deal, generator, tallied, stream)
        for chunk in stream.chunks:
            codes = units.of(chunk)
            choice, turns = grown(choice, len(units.names), -1), grown(turns, len(units.names), 0)
            first = first_of(codes, choice < 0)
            dealt = np.zeros(len(chunk), dtype=np.int64)
            dealt[first] = choose(codes[first], units)
            named = codes >= 0
            choice[codes[first & named]] = dealt[first & named]
            dealt[named] = choice[codes[named]]
            if deal.alternate:
                turn = _turns(codes[named])
                dealt[named] = (dealt[named] + turns[codes[named]] + turn) % len(deal.models)
                turns += np.bincount(codes[named], minlength=len(turns))
            yield replace(chunk, model=dealt.astype(np.int32), models=deal.models)

    return after(stream, chunks(), stream.rows)


class _Chooser:
    """The models of new units, in the order in which they appear."""

    def __init__(self, deal: Deal, generator: np.random.Generator, tallied: _Tally | None, stream: TraceStream) -> None:
        self.deal, self.generator, self.stream = deal, generator, stream
        self.dealt = 0
        counts, self.total = tallied or ({}, 0)
        ranked = sorted(counts, key=lambda name: -counts[name])  # stable: ties in order of appearance
        self.rank_of = {name: rank for rank, name in enumerate(ranked)}
        models, what = len(deal.models), f"map_models: {len(ranked):,} names of '{deal.by}'"
        if deal.law == "rank" and len(ranked) > models:
            stream.notices.append(f"{what} share {models:,} models; after the last one they begin anew")
        elif deal.law == "rank" and len(ranked) < models:
            stream.notices.append(f"{what} leave {models - len(ranked):,} of {models:,} models without requests")

    def __call__(self, codes: NDArray[np.int64], units: Units) -> NDArray[np.int64]:
        count, deal = len(self.deal.models), self.deal
        numbers = np.arange(self.dealt, self.dealt + len(codes))
        self.dealt += len(codes)
        weights = deal.weights
        if weights is not None:
            edges = np.cumsum(weights)
            drawn = np.searchsorted(edges, self.generator.random(len(codes)) * edges[-1], side="right")
            # A draw that rounds up to the very end belongs to the last model that has any weight.
            last = int(np.flatnonzero(weights)[-1])
            return np.asarray(np.minimum(drawn, last))
        if deal.law == "round-robin":
            return np.asarray(numbers % count)
        if deal.law == "stripes":
            return np.asarray(numbers * count // max(self.total, 1))
        if deal.law.startswith("stripes:"):
            return np.asarray(numbers // int(float(deal.law.removeprefix("stripes:"))) % count)
        names = [units.names[code] for code in codes.tolist()]
        if deal.law == "rank":
            return np.array([self.rank_of[name] % count for name in names], dtype=np.int64)
        position = {name: number for number, name in enumerate(deal.models)}
        for name in names:
            if name not in deal.table:
                problem = f"'{name}' of '{deal.by}' is not in the table; add it ({did_you_mean(name, deal.table)})"
                raise TraceError(f"{self.stream.where}: map_models: {problem}")
        return np.array([position[deal.table[name]] for name in names], dtype=np.int64)


def _turns(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many earlier entries have the same code, int64[n]."""
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(codes) else np.zeros(0, dtype=np.int64)
    lengths = np.diff(np.append(starts, len(codes)))
    turn = np.empty(len(codes), dtype=np.int64)
    turn[order] = np.arange(len(codes)) - np.repeat(starts, lengths)
    return turn


def shares_of(counts: Mapping[str, int]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Names from most to least used, and their shares of all requests. Raises ConfigError when there are none."""
    total = sum(counts.values())
    if not total:
        raise ConfigError("map_models: like: the trace has no requests to take shares from")
    ranked: Sequence[str] = sorted(counts, key=lambda name: -counts[name])
    return tuple(ranked), tuple(counts[name] / total for name in ranked)
