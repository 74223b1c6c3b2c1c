"""What can be said of a trace: rate, burstiness, lengths, popularity, sessions, tokens and concurrency, in one pass.

`Description` reads a stream chunk by chunk in bounded memory; curves for plots come from its parts. What the load means
for a cluster is `sim.bounds.offered_load`'s business. Called by `workload.trace_jobs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.traces.columns import grown
from sim.traces.describe.streaming_statistics import Concurrency, Histogram, Moments, Spread, TimeBins, Windows
from sim.traces.stream import TraceStream, stream_of
from sim.traces.trace import Trace

DAY_S, HOUR_S = 86_400.0, 3600.0
MOST_BLOCKS = 2_000_000  # different prefix blocks that are remembered: about 200 MB


@dataclass(frozen=True)
class Service:
    """How long a request is assumed to be in service: its prompt and its answer at these speeds, tokens/s.

    Only for concurrency. The default is one sequence of a model of medium size on one data-centre GPU.
    """

    prompt_per_s: float = 5000.0
    output_per_s: float = 50.0

    def seconds(self, chunk: Trace) -> NDArray[np.float64]:
        return chunk.prompt_tokens / self.prompt_per_s + chunk.output_tokens / self.output_per_s


class Description:
    """A trace's numbers, gathered chunk by chunk; None where a number needs more requests than there are."""

    def __init__(self, service: Service | None = None) -> None:
        self.service = service or Service()
        self.rows = 0
        self.first_s = self.last_s = 0.0
        self.gaps = Spread()
        self.prompts, self.outputs = Histogram(), Histogram()
        self.minutes, self.five_minutes = Windows(60.0), Windows(300.0)
        self.over_time = TimeBins()
        self.concurrency = Concurrency()
        self.sessions = SessionFacts()
        self.prefixes = Prefixes()
        self.models: tuple[str, ...] = ()
        self.uses = np.zeros(0, dtype=np.int64)
        self.model_tokens = np.zeros((0, 2), dtype=np.int64)
        self._correlation = _Correlation()
        self._hours = np.zeros(24, dtype=np.int64)
        self._same_model = 0
        self._last_model = -1
        self.deadlines = Spread()

    def add(self, chunk: Trace) -> None:
        """The next chunk of the stream."""
        if not self.rows:
            self.first_s = self.last_s = float(chunk.arrival_s[0])
            gaps = np.diff(chunk.arrival_s)
        else:
            gaps = np.diff(chunk.arrival_s, prepend=self.last_s)
        self.rows += len(chunk)
        self.last_s = float(chunk.arrival_s[-1])
        self.gaps.add(gaps)
        self.prompts.add(chunk.prompt_tokens)
        self.outputs.add(chunk.output_tokens)
        since_s = chunk.arrival_s - self.first_s
        tokens = chunk.prompt_tokens + chunk.output_tokens
        self.minutes.add(since_s, tokens)
        self.five_minutes.add(since_s, tokens)
        self.over_time.add(since_s)
        self._hours += np.bincount((chunk.arrival_s % DAY_S // HOUR_S).astype(np.int64), minlength=24)[:24]
        self.concurrency.add(chunk.arrival_s, self.service.seconds(chunk))
        self.sessions.add(chunk)
        self.prefixes.add(chunk)
        self._add_models(chunk)
        self._correlation.add(chunk.prompt_tokens.astype(np.float64), chunk.output_tokens.astype(np.float64))
        if chunk.deadline_s is not None:
            self.deadlines.add(chunk.deadline_s[~np.isnan(chunk.deadline_s)])

    def _add_models(self, chunk: Trace) -> None:
        self.models = chunk.models
        size = len(chunk.models)
        fresh = size - len(self.uses)
        self.uses = np.pad(self.uses, (0, fresh))
        self.model_tokens = np.pad(self.model_tokens, ((0, fresh), (0, 0)))
        self.uses += np.bincount(chunk.model, minlength=size)
        for column, tokens in enumerate((chunk.prompt_tokens, chunk.output_tokens)):
            # Sums of a chunk stay below 2^53, where the float64 weights are exact.
            self.model_tokens[:, column] += np.bincount(chunk.model, weights=tokens, minlength=size).astype(np.int64)
        self._same_model += int((chunk.model[1:] == chunk.model[:-1]).sum()) + int(chunk.model[0] == self._last_model)
        self._last_model = int(chunk.model[-1])

    @property
    def span_s(self) -> float:
        return self.last_s - self.first_s

    def ranked(self) -> list[tuple[str, int]]:
        """Models and their requests, from most to least used; ties by name."""
        pairs = sorted(zip((-self.uses).tolist(), self.models, strict=True))
        return [(name, -less) for less, name in pairs]

    def facts(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON.

        rows, span_s (last minus first arrival), rate_per_s (rows / span), iat_cv (standard deviation / mean of the gaps
        between arrivals), prompt_tokens and output_tokens {mean, p50, p90, p99, max, min}, models {name: {requests,
        share}} from most to least used, popularity_slope (least squares of log share against log rank, of the models
        that are used), per_minute {mean, max, cv, empty_share} of the requests in each whole minute from the first
        arrival on.

        Then: first_s; iat {.., zero_share, stamps: different arrival times}; burstiness {per_minute_iod: variance /
        mean of the counts, window_iat_cv: {60, 300: spread of the gaps' variation inside each whole window with at
        least 10 gaps}}; tokens {prompt and output sums and rates, busiest_minute_per_s, correlation};
        popularity {top_1, top_5, top_10, slope_top_20, same_model_share: requests for the same model as the one
        before}; model_tokens {name: mean prompt and output}; concurrency {mean, p50, p99, max as arrivals see it,
        themselves included, when all are served at once at the assumed speeds}; sessions; prefixes; deadlines; day
        {quietest and busiest hour of the day, share}, from two days on.
        """
        if not self.rows:
            return {"rows": 0}
        span_s = self.span_s
        timed = span_s > 0
        ranked = self.ranked()
        used = np.array([uses for _, uses in ranked if uses], dtype=np.float64)
        return {
            "rows": self.rows,
            "span_s": span_s,
            "rate_per_s": self.rows / span_s if timed else None,
            "iat_cv": self.gaps.moments.variation if timed else None,
            "prompt_tokens": self.prompts.facts(),
            "output_tokens": self.outputs.facts(),
            "models": {name: {"requests": uses, "share": uses / self.rows} for name, uses in ranked if uses},
            "popularity_slope": _slope(used),
            "per_minute": self.minutes.per_window(span_s),
            "first_s": self.first_s,
            "iat": self._iat(),
            "burstiness": self._burstiness(),
            "tokens": self._tokens(),
            "popularity": {
                **{f"top_{count}": float(used[:count].sum()) / self.rows for count in (1, 5, 10)},
                "slope_top_20": _slope(used[:20]),
                "same_model_share": self._same_model / (self.rows - 1) if self.rows > 1 else None,
            },
            "model_tokens": self._model_tokens(),
            "concurrency": self._concurrency(),
            "sessions": self.sessions.facts(),
            "prefixes": self.prefixes.facts(),
            "deadlines": self.deadlines.facts(),
            "day": self._day(),
        }

    def _iat(self) -> dict[str, Any] | None:
        found = self.gaps.facts()
        if found is None:
            return None
        zeros = self.gaps.zeros
        return {**found, "zero_share": zeros / found["count"], "stamps": self.rows - zeros}

    def _burstiness(self) -> dict[str, Any]:
        minute = self.minutes.per_window(self.span_s)
        spreads = {str(int(each.width_s)): each.variations.facts() for each in (self.minutes, self.five_minutes)}
        return {
            "per_minute_iod": None if minute is None else minute["cv"] ** 2 * minute["mean"],
            "window_iat_cv": spreads,
        }

    def _tokens(self) -> dict[str, Any]:
        prompt, output, timed = self.prompts.total, self.outputs.total, self.span_s > 0
        whole = self.minutes.whole(self.span_s)
        return {
            "prompt": prompt,
            "output": output,
            "prompt_per_s": prompt / self.span_s if timed else None,
            "output_per_s": output / self.span_s if timed else None,
            "busiest_minute_per_s": self.minutes.most_tokens / 60 if whole else None,
            "correlation": self._correlation.value(),
        }

    def _model_tokens(self) -> dict[str, Any]:
        means = {}
        for name, uses in self.ranked():
            if uses:
                prompt, output = self.model_tokens[self.models.index(name)].tolist()
                means[name] = {"prompt_mean": prompt / uses, "output_mean": output / uses}
        return means

    def _concurrency(self) -> dict[str, Any]:
        p50, p99 = self.concurrency.seen.quantiles(0.5, 0.99)
        most = int(self.concurrency.seen.table()[0][-1])
        mean = self.concurrency.service_s / self.span_s if self.span_s > 0 else None
        speeds = {"prompt_per_s": self.service.prompt_per_s, "output_per_s": self.service.output_per_s}
        return {"mean": mean, "p50": p50, "p99": p99, "max": most, "assumed": speeds}

    def _day(self) -> dict[str, Any] | None:
        if self.span_s < 2 * DAY_S:
            return None
        quiet, busy = int(self._hours.argmin()), int(self._hours.argmax())
        ratio = float(self._hours[quiet] / self._hours[busy])
        return {"quietest_hour": quiet, "busiest_hour": busy, "quietest_of_busiest": ratio}


class SessionFacts:
    """How many, of how many turns, and how far apart; memory: a few numbers a session."""

    def __init__(self) -> None:
        self.rows = 0
        self.think = Spread()
        self.gaps = Spread()
        self._turns, self._last_s = np.zeros(0, dtype=np.int64), np.zeros(0)

    def add(self, chunk: Trace) -> None:
        if chunk.think_s is not None:
            self.think.add(chunk.think_s[~np.isnan(chunk.think_s)])
        rows = np.flatnonzero(chunk.session >= 0)
        if not len(rows):
            return
        self.rows += len(rows)
        codes, arrival_s = chunk.session[rows], chunk.arrival_s[rows]
        self._turns = grown(self._turns, len(chunk.sessions), 0)
        self._last_s = grown(self._last_s, len(chunk.sessions), np.nan)
        order = np.argsort(codes, kind="stable")
        ordered, times_s = codes[order], arrival_s[order]
        first = np.append(True, ordered[1:] != ordered[:-1])
        before_s = np.where(first, self._last_s[ordered], np.append(np.nan, times_s[:-1]))
        gaps = times_s - before_s
        self.gaps.add(gaps[~np.isnan(gaps)])
        last = np.append(first[1:], True)
        self._last_s[ordered[last]] = times_s[last]
        self._turns += np.bincount(codes, minlength=len(self._turns))

    def facts(self) -> dict[str, Any] | None:
        """sessions, requests in them, turns {mean, p50, ..}, gap_s between a session's arrivals, think_s; or None."""
        turns = self._turns[self._turns > 0]
        if not len(turns):
            return None
        histogram = Histogram()
        histogram.add(turns)
        return {
            "sessions": len(turns),
            "requests": self.rows,
            "turns": histogram.facts(),
            "gap_s": self.gaps.facts(),
            "closed_loop_requests": self.think.moments.count,
            "think_s": self.think.facts(),
        }


class Prefixes:
    """How much of the prompts a cache without limits would have seen before: leading blocks that are known."""

    def __init__(self) -> None:
        self.rows = self.blocks = self.hits = 0
        self._seen: dict[int, None] | None = {}

    def add(self, chunk: Trace) -> None:
        column = chunk.extras.get("prefix_blocks")
        if column is None:
            return
        sizes = np.diff(np.asarray(column.offsets))
        self.rows += int((sizes > 0).sum())
        self.blocks += int(sizes.sum())
        for ids in column.to_pylist() if self._seen is not None else ():
            seen = self._seen
            if not ids or seen is None:
                continue
            hits = next((number for number, block in enumerate(ids) if block not in seen), len(ids))
            self.hits += hits
            seen.update(dict.fromkeys(ids[hits:]))
            if len(seen) > MOST_BLOCKS:
                self._seen = None

    def facts(self) -> dict[str, Any] | None:
        """requests with block ids, blocks, hit_share; the share is None beyond MOST_BLOCKS different blocks."""
        if not self.rows:
            return None
        known = self._seen is not None
        return {"requests": self.rows, "blocks": self.blocks, "hit_share": self.hits / self.blocks if known else None}


class _Correlation:
    """Pearson's, merged chunk by chunk like Moments."""

    def __init__(self) -> None:
        self._x, self._y = Moments(), Moments()
        self._products = 0.0

    def add(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> None:
        count, before = len(x), self._x.count
        dx, dy = float(x.mean()) - self._x.mean, float(y.mean()) - self._y.mean
        self._products += float(((x - x.mean()) * (y - y.mean())).sum()) + dx * dy * before * count / (before + count)
        self._x.add(x)
        self._y.add(y)

    def value(self) -> float | None:
        scale = np.sqrt(self._x.squares) * np.sqrt(self._y.squares)
        return float(np.clip(self._products / scale, -1, 1)) if scale > 0 else None


def _slope(used: NDArray[np.float64]) -> float | None:
    if len(used) < 2:
        return None
    return float(np.polyfit(np.log(np.arange(1, len(used) + 1)), np.log(used / used.sum()), 1)[0])


def describe_stream(stream: TraceStream, service: Service | None = None) -> Description:
    """The description of a whole stream, which is read to its end."""
    description = Description(service)
    for chunk in stream.chunks:
        description.add(chunk)
    return description


def describe(trace: Trace) -> dict[str, Any]:
    """`Description.facts` of a trace in memory."""
    return describe_stream(stream_of(trace)).facts()
