"""ServeGen's pools of clients: requests drawn from the rates, burstiness and lengths of production clients.

The files are statistics, not requests: for each client and window of 600 s a rate and the CV of the gaps, and every
six hours the distributions of the lengths. Drawn windows keep both; see `_arrivals` for how.

Source: alibaba/ServeGen, published as "ServeGen: Workload Characterization and Generation of Large Language Model
Serving in Production", arXiv 2505.09999.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sim.common.errors import ConfigError
from sim.common.lazy import pa
from sim.common.rng import stream
from sim.common.text import counted
from sim.traces.formats.assembly import Block, Clock, EmptyTokens, assembled
from sim.traces.formats.base import Format, FormatOptions, Sample
from sim.traces.formats.servegen_pool import LAWS, MEDIA, Client, Lengths, Pool, is_member, read_pools
from sim.traces.stream import CHUNK_ROWS, TraceStream

NAME = "servegen"
MOST_PER_WINDOW = 20_000_000  # requests of one client in one window, which are held at a time
REGULAR_CV = 2e-5  # below, gaps are equal as far as a float64 can tell after their sum

Draws = NDArray[np.float64]
Table = dict[str, NDArray[Any]]


class ServegenOptions(FormatOptions):
    rate: float | None = Field(None, gt=0, le=1e6, description="mean requests a second of all that is drawn, together")
    scale: float | None = Field(None, gt=0, le=1e6, description="factor on all rates; 1 unless rate is given")
    clients: int | None = Field(None, ge=1, description="only so many clients of each pool, those with most requests")
    start_s: float | None = Field(
        None, ge=0, le=1e12, description="second of the files at which the trace starts; their first by default"
    )
    duration_s: float | None = Field(None, gt=0, le=1e12, description="seconds to draw; to the files' end by default")
    model_per: Literal["pool", "client"] = Field("pool", description="whether a pool is one model, or each client is")
    zero_tokens: Literal["keep", "drop"] = Field(
        "keep", description="requests drawn without prompt or output tokens: keep (as 1 token) or drop"
    )
    seed: int = Field(0, ge=0, description="seed of everything that is drawn")

    @model_validator(mode="after")
    def _one_of(self) -> ServegenOptions:
        if self.rate is not None and self.scale is not None:
            raise ValueError("rate and scale exclude each other; give one of them")
        return self


def _read(files: Sequence[Path], options: ServegenOptions) -> TraceStream:
    """arrival_s counts from `start_s`. Extras: client, and where a pool has them reason_tokens, image_tokens, ..."""
    where = ", ".join(map(str, files))
    return assembled({where: lambda notices: _blocks(files, where, options, notices)}, options, Clock(origin=0))


def _blocks(files: Sequence[Path], where: str, options: ServegenOptions, notices: list[str]) -> Iterator[Block]:
    pools = read_pools(files, options.strict)
    span_s = _span_s(pools, where, options)
    chosen = [(pool, client) for pool in pools for client in _top(pool, options, span_s)]
    published = sum(client.mean_rate(*span_s) for _, client in chosen)
    if not published:
        none = f"no client sends anything from {span_s[0]:g} to {span_s[1]:g} s"
        raise ConfigError(f"{where}: {none}; choose other times")
    scale = options.rate / published if options.rate is not None else options.scale or 1.0
    for pool in pools:
        notices += _about(pool, [client for owner, client in chosen if owner is pool], span_s)
    notices.append(
        f"drew requests at a mean of {scale * published:.4g}/s where {published:.4g}/s were measured "
        "(--option rate, scale)"
    )
    names = [pool.name if options.model_per == "pool" else f"{pool.name}/{client.number}" for pool, client in chosen]
    models = tuple(dict.fromkeys(names))
    lenders = {pool.name: _Lenders(pool) for pool in pools}
    sources = [
        _Source(client, models.index(name), lenders[pool.name], scale, options)
        for (pool, client), name in zip(chosen, names, strict=True)
    ]
    empty = EmptyTokens(options.zero_tokens, "zero_tokens")
    yield from _merged(sources, _DrawPlan(where, models, _extras([client for _, client in chosen]), span_s), empty)
    empty.finish(notices)
    strayed = sum(source.strayed for source in sources)
    if strayed:
        notices.append(f"{counted(strayed, 'window')} with traffic but no lengths: took the nearest in time")


def _span_s(pools: Sequence[Pool], where: str, options: ServegenOptions) -> tuple[float, float]:
    """From when to when to draw."""
    clients = [client for pool in pools for client in pool.clients.values()]
    start_s = min(float(client.start_s[0]) for client in clients) if options.start_s is None else options.start_s
    last_s = max(float(client.start_s[-1]) + client.window_s for client in clients)
    end_s = last_s if options.duration_s is None else start_s + options.duration_s
    if start_s >= last_s or end_s > last_s:
        raise ConfigError(f"{where}: ends at {last_s:,.0f} s; lower start_s or duration_s to stay within")
    return start_s, end_s


def _top(pool: Pool, options: ServegenOptions, span_s: tuple[float, float]) -> list[Client]:
    """The clients to draw, by number."""
    clients = list(pool.clients.values())
    if options.clients is None:
        return clients
    ranked = sorted(clients, key=lambda client: (-client.mean_rate(*span_s), client.number))
    return sorted(ranked[: options.clients], key=lambda client: client.number)


def _about(pool: Pool, chosen: Sequence[Client], span_s: tuple[float, float]) -> Iterator[str]:
    """What a reader should know of a pool."""
    first_s, end_s = span_s
    yield from (f"{pool.name}: ignored the field '{name}'" for name in pool.ignored)
    rates = {client.number: client.mean_rate(first_s, end_s) for client in chosen}
    borrowing = [client.number for client in chosen if not client.lengths]
    if borrowing and sum(rates.values()):
        share = sum(rates[number] for number in borrowing) / sum(rates.values())
        yield (
            f"{pool.name}: {len(borrowing)} of {counted(len(chosen), 'client')} ({share:.0%} of the rate) have no "
            "lengths of their own; each window draws those of another client of the pool"
        )
    busy: dict[float, float] = {}
    for client in chosen:
        for start_s, rate in zip(client.start_s.tolist(), client.rate.tolist(), strict=True):
            if first_s <= start_s < end_s:
                busy[start_s] = busy.get(start_s, 0.0) + rate
    silent = sum(1 for rate in busy.values() if rate == 0)
    if silent:
        yield f"{pool.name}: {silent} of {counted(len(busy), 'window')} without any request"
    last_s = max(float(client.start_s[-1]) + client.window_s for client in pool.clients.values())
    if last_s < end_s:
        yield f"{pool.name}: has no data after {last_s:,.0f} s, the others have"


def _has(client: Client, name: str) -> bool:
    return any(name in lengths and not lengths[name].is_zero for lengths in client.lengths.values())


def _extras(clients: Sequence[Client]) -> tuple[str, ...]:
    names = ["client"]
    for kind in MEDIA:
        if any(_has(client, f"{kind}_count") for client in clients):
            names += [f"{kind}s", f"{kind}_tokens"]
    if any(_has(client, "reason_ratio") for client in clients):
        names.append("reason_tokens")
    return tuple(names)


class _Lenders:
    """Whose lengths a client without any of its own draws from: in each window those of one other of the pool.

    Lenders are drawn by their rates at the time, so that what is borrowed is spread as the pool's known lengths are,
    and a request's prompt and answer are of one client.
    """

    def __init__(self, pool: Pool) -> None:
        self._others = [other for other in pool.clients.values() if other.lengths]
        self._edges: dict[float, Draws] = {}

    def at(self, time_s: float, uniform: float) -> Client:
        """The lender of a window for a number in [0, 1)."""
        if time_s not in self._edges:
            weights = [0.0 if other.lengths_at(time_s)[1] else other.rate_at(time_s) for other in self._others]
            if not any(weights):
                weights = [float(other.rate.mean()) for other in self._others]
            self._edges[time_s] = np.cumsum(weights if any(weights) else np.ones(len(self._others)))
        edges = self._edges[time_s]
        return self._others[min(int(np.searchsorted(edges, uniform * edges[-1], side="right")), len(edges) - 1)]


class _Source:
    """Draws one client's requests, window by window."""

    def __init__(self, client: Client, model: int, lenders: _Lenders, scale: float, options: ServegenOptions) -> None:
        self.client = client
        self.model = model
        self.strayed = 0
        names = (options.seed, "formats", NAME, client.pool, client.number)
        self._lenders = lenders
        self._lots = None if client.lengths else stream(*names, "lender").random(len(client.rate))
        self._gaps, self._lengths = stream(*names, "gaps"), stream(*names, "lengths")
        expected = client.rate * client.window_s * scale
        if expected.max() > MOST_PER_WINDOW:
            mend = f"lower --option rate or scale to at most {MOST_PER_WINDOW:,}"
            raise ConfigError(f"{client.where}: {expected.max():.3g} requests in one window; {mend}")
        # The expected number itself: what a window holds by chance is already in the measured rates.
        chance = stream(*names, "counts").random(len(expected))
        self.counts = (np.floor(expected) + (chance < expected - np.floor(expected))).astype(np.int64)

    def window(self, place: int) -> tuple[Draws, Table]:
        """(arrivals in s, columns) of a window that has requests."""
        client, count = self.client, int(self.counts[place])
        law = LAWS[int(client.law[place])]
        arrival_s = client.start_s[place] + client.window_s * _arrivals(law, float(client.cv[place]), count, self._gaps)
        start_s = float(client.start_s[place])
        owner = client if self._lots is None else self._lenders.at(start_s, float(self._lots[place]))
        lengths, strayed = owner.lengths_at(start_s)
        self.strayed += strayed
        return arrival_s, {
            "model": np.full(count, self.model),
            "client": np.full(count, client.number),
            **_drawn_lengths(lengths, count, self._lengths),
        }


def _arrivals(law: str, cv: float, count: int, generator: np.random.Generator) -> Draws:
    """`count` ordered arrivals in [0, 1) whose gaps follow a law of that CV.

    The gaps are rescaled to fill the window, whose rate is thereby met, and laid from a random point around it as on a
    circle, so that nothing gathers at the windows' ends. In logarithms: with a CV of 100, gaps differ by more than a
    float64 holds. The gaps' own CV is then cv * sqrt((count - 1) / (count + cv^2)) in the Gamma's case: the same
    for many arrivals, less where there are few, as in any sample of so few gaps.
    """
    if law in ("", "Exponential"):
        log_gaps = np.log(generator.standard_exponential(count))
    elif cv < REGULAR_CV:
        log_gaps = np.zeros(count)
    elif law == "Gamma":
        shape = 1 / cv**2
        log_gaps = np.log(generator.standard_gamma(shape + 1, count)) - generator.standard_exponential(count) / shape
    else:
        log_gaps = np.log(generator.standard_exponential(count)) / _weibull_shape(cv)
    gaps = np.exp(log_gaps - log_gaps.max())
    ends = generator.random() + np.cumsum(gaps) / gaps.sum()
    return np.sort(ends % 1.0)


@cache
def _weibull_table() -> tuple[Draws, Draws]:
    """log CV, rising, and the log shape that has it: CV^2 = gamma(1 + 2/k) / gamma(1 + 1/k)^2 - 1."""
    log_shape = np.linspace(math.log(1e5), math.log(0.02), 6000)
    inverse = np.exp(-log_shape)
    squares = [math.lgamma(1 + 2 * x) - 2 * math.lgamma(1 + x) for x in inverse.tolist()]
    return 0.5 * np.log(np.expm1(squares)), log_shape


def _weibull_shape(cv: float) -> float:
    log_cv, log_shape = _weibull_table()
    return math.exp(float(np.interp(math.log(cv), log_cv, log_shape)))


def _drawn_lengths(lengths: Lengths, count: int, generator: np.random.Generator) -> Table:
    """prompt_tokens and output_tokens, and what they hold of images or the like and of reasoning."""
    prompt = "input_tokens" if "input_tokens" in lengths else "text_tokens"
    drawn: Table = {
        "prompt_tokens": lengths[prompt].at(generator.random(count)),
        "output_tokens": lengths["output_tokens"].at(generator.random(count)),
    }
    for kind in MEDIA:
        number, tokens = lengths.get(f"{kind}_count"), lengths.get(f"{kind}_tokens")
        if number is None or tokens is None:
            continue
        parts = number.at(generator.random(count)).astype(np.int64)
        owners = np.repeat(np.arange(count), parts)
        sizes = np.bincount(owners, tokens.at(generator.random(len(owners))), minlength=count)
        drawn[f"{kind}s"], drawn[f"{kind}_tokens"] = parts, sizes
        drawn["prompt_tokens"] = drawn["prompt_tokens"] + sizes
    if "reason_ratio" in lengths:
        ratio = lengths["reason_ratio"].at(generator.random(count))
        drawn["reason_tokens"] = np.rint(ratio * drawn["output_tokens"])
    return drawn


@dataclass(frozen=True)
class _DrawPlan:
    """What all drawn blocks share: the file, the models, the extra columns, and the seconds to keep."""

    where: str
    models: tuple[str, ...]
    extras: tuple[str, ...]
    span_s: tuple[float, float]


def _merged(sources: Sequence[_Source], plan: _DrawPlan, empty: EmptyTokens) -> Iterator[Block]:
    """The requests of all clients by arrival, in blocks of at least half a chunk."""
    first_s, end_s = plan.span_s
    visits = sorted(
        (float(source.client.start_s[place]), number, int(place))
        for number, source in enumerate(sources)
        for place in np.flatnonzero(source.counts)
        if first_s - source.client.window_s < source.client.start_s[place] < end_s
    )
    pending: list[tuple[Draws, Table]] = []
    drawn, count, newest_s = 0, 0, -math.inf
    for start_s, number, place in [*visits, (math.inf, -1, -1)]:
        if pending and (start_s == math.inf or (count >= CHUNK_ROWS // 2 and start_s > newest_s)):
            # Nothing that is still to be drawn comes before this window.
            arrival_s, columns = _joined(pending)
            sure = int(np.searchsorted(arrival_s, start_s, side="left"))
            inside = slice(*np.searchsorted(arrival_s[:sure], plan.span_s).tolist())
            yield _block(
                plan, drawn, arrival_s[inside], {name: column[inside] for name, column in columns.items()}, empty
            )
            drawn += inside.stop - inside.start
            pending = [(arrival_s[sure:], {name: column[sure:] for name, column in columns.items()})]
            count = len(arrival_s) - sure
        if number >= 0:
            pending.append(sources[number].window(place))
            count, newest_s = count + len(pending[-1][0]), start_s


def _joined(pieces: Sequence[tuple[Draws, Table]]) -> tuple[Draws, Table]:
    """All pieces in order of arrival; a column that one does not have is -1 there."""
    arrival_s = np.concatenate([piece for piece, _ in pieces])
    order = np.argsort(arrival_s, kind="stable")
    names = dict.fromkeys(name for _, columns in pieces for name in columns)
    filled = [{**{name: np.full(len(piece), -1.0) for name in names}, **columns} for piece, columns in pieces]
    return arrival_s[order], {name: np.concatenate([columns[name] for columns in filled])[order] for name in names}


def _block(plan: _DrawPlan, before: int, arrival_s: Draws, columns: Table, empty: EmptyTokens) -> Block:
    nothing = np.full(len(arrival_s), -1.0)
    whole = {name: columns.get(name, nothing).astype(np.int64) for name in (*plan.extras, "model")}
    tokens = (columns[name].astype(np.int64) for name in ("prompt_tokens", "output_tokens"))
    prompt_tokens, output_tokens, kept = empty.applied(*tokens)
    rows, time_s = np.arange(before + 1, before + 1 + len(arrival_s), dtype=np.int64), arrival_s - plan.span_s[0]
    extras = {name: pa.array(whole[name], mask=whole[name] < 0) for name in plan.extras}
    model = whole["model"], plan.models
    block = Block(plan.where, rows, time_s, prompt_tokens, output_tokens, model, extras=extras)
    return block if kept is None else block.select(kept)


def _is(sample: Sample) -> bool:
    return any(is_member(name) for name in sample.members)


_ABOUT = "ServeGen client pools: requests drawn from rates and lengths, archives or folders"
FORMATS = (Format(NAME, _ABOUT, _read, _is, ServegenOptions),)
