"""Sessions: turns that belong together, with think time, growing prompts and models that alternate.

A closed-loop turn carries its think time; the engine sends it when the answer before it has ended. Its `arrival_s` is
the earliest it could be sent (if answers took no time), which is also its place in the trace. Called by `generate`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sim.common.errors import ConfigError
from sim.scenario.workload import StreamSpec
from sim.workload import draws
from sim.workload.arrivals import ArrivalSource
from sim.workload.flows import Floats, Ints, Parts
from sim.workload.prefixes import Blocks, Rows

MOST_TURNS = 100_000
MOST_THINK_S = 1e9
_RUNS = 24  # sorted runs of turns still to come, before some are merged


class Conversations:
    """The turns of a stream's sessions, window by window in order of arrival; holds those that are still to come."""

    def __init__(self, stream: StreamSpec, arrivals: ArrivalSource, parts: Parts, end_s: float) -> None:
        assert stream.sessions is not None
        self._stream, self._law = stream, stream.sessions
        self._arrivals, self._parts = arrivals, parts
        self._end_s = min(end_s, stream.until_s or end_s)
        self._draw = {name: parts.streams(name) for name in ("turns", "think", "switch", "restart")}
        self._blocks = None if stream.prefix is None else Blocks(stream.prefix, parts.streams)
        self._mean_turns = max(draws.mean(self._law.turns), 1.0)
        self._begun = 0  # sessions so far
        self._waiting: list[Rows] = []  # sorted runs of turns that nobody has asked for yet
        if self._law.pattern:
            names = list(parts.shares.models)
            self._pattern = np.array([names.index(name) for name in self._law.pattern])

    def expected(self, end_s: float) -> float:
        return self._arrivals.expected(end_s) * self._mean_turns

    def until(self, end_s: float) -> Rows | None:
        starts_s = self._arrivals.until(end_s)
        if len(starts_s):
            self._waiting.append(in_order(self._turns(starts_s)))
        ready, waiting = [], []
        for run in self._waiting:
            cut = int(np.searchsorted(run["arrival_s"], end_s))
            if cut:
                ready.append(part(run, slice(0, cut)))
            if cut < len(run["arrival_s"]):
                waiting.append(part(run, slice(cut, None)))
        if len(waiting) > _RUNS:
            waiting.sort(key=lambda run: -len(run["arrival_s"]))
            waiting = [*waiting[: _RUNS // 2], in_order(joined(waiting[_RUNS // 2 :]))]
        self._waiting = waiting
        return in_order(joined(ready)) if ready else None

    def _turns(self, starts_s: Floats) -> Rows:
        """All turns of the sessions that begin at these times, session by session."""
        law, parts = self._law, self._parts
        count = len(starts_s)
        drawn = np.maximum(np.rint(draws.values(law.turns, self._draw["turns"].standard_normal(count))), 1)
        if drawn.max() > MOST_TURNS:
            most = f"{drawn.max():.3g} turns were drawn"
            raise ConfigError(f"{self._where()}: sessions.turns: {most}; give the law a max")
        turns = drawn.astype(np.int64)
        session = np.repeat(np.arange(count), turns)
        first = np.concatenate([[0], np.cumsum(turns)[:-1]])
        turn = np.arange(len(session)) - first[session]
        model = self._models(starts_s, session, turn)
        fresh = turn == 0
        if law.restart_share:
            fresh |= self._draw["restart"].random(len(turn)) < law.restart_share
        prompt, output, fresh, kept = self._said(model, fresh, turn, session)
        think_us, arrival_s = self._times(starts_s[session], first[session], turn, output)
        kept &= arrival_s < self._end_s
        classes = parts.classes(count)[session]
        rows: Rows = {
            "arrival_s": arrival_s,
            "model": parts.codes[model],
            "prompt_tokens": prompt,
            "output_tokens": output,
            **parts.promised(classes, output),
            "session": self._begun + session,
            "turn": turn + 1,
        }
        if law.closed_loop:
            rows["think_s"] = np.where(turn == 0, np.nan, think_us * 1e-6)
        rows = part(rows, kept)
        if self._blocks is not None:
            begins = fresh if law.grows else np.ones(len(fresh), dtype=bool)
            # Planned for all turns, so that ids do not depend on which of them take place.
            plan = self._blocks.plan(prompt, self._blocks.groups(count)[session], begins)
            rows |= part(plan, kept)
        self._begun += count
        return rows

    def _models(self, starts_s: Floats, session: Ints, turn: Ints) -> Ints:
        """The model of every turn. Shares of models are those at the session's start."""
        law = self._law
        chosen = self._parts.models(starts_s)
        if law.pattern:
            return np.asarray(self._pattern[turn % len(self._pattern)])
        if not law.switch_share:
            return np.asarray(chosen[session])
        uniforms = self._draw["switch"].random((len(turn), 2))
        anew = self._parts.shares.choose(starts_s[session], uniforms[:, 1])
        new = (turn == 0) | (uniforms[:, 0] < law.switch_share)
        since = np.maximum.accumulate(np.where(new, np.arange(len(turn)), 0))
        return np.asarray(np.where(turn == 0, chosen[session], anew)[since])

    def _said(self, model: Ints, fresh: Any, turn: Ints, session: Ints) -> tuple[Ints, Ints, Any, Any]:
        """Prompts, outputs, where a conversation begins afresh, and which turns take place."""
        law = self._law
        added, output, firsts = self._parts.lengths(model, law.first_prompt)
        kept = np.ones(len(turn), dtype=bool)
        if not law.grows:
            return np.where(fresh, firsts, added), output, fresh, kept
        prompt = _grown(np.where(fresh, firsts, added), output, fresh)
        if law.context_max is not None:
            while (over := (prompt > law.context_max) & ~fresh & kept).any():
                where = np.flatnonzero(over)
                earliest = where[np.unique(session[where], return_index=True)[1]]
                if law.when_full == "restart":
                    fresh = fresh.copy()
                    fresh[earliest] = True
                    prompt = _grown(np.where(fresh, firsts, added), output, fresh)
                else:
                    last = np.full(int(session[-1]) + 1, len(turn))
                    last[session[earliest]] = earliest
                    kept = np.arange(len(turn)) < last[session]
            prompt = np.minimum(prompt, law.context_max)
        if prompt[kept].max() > draws.MOST_TOKENS:
            raise ConfigError(f"{self._where()}: a prompt grew to {prompt.max():,} tokens; give sessions.context_max")
        return prompt, output, fresh, kept

    def _times(self, starts_s: Floats, first: Ints, turn: Ints, output: Ints) -> tuple[Ints, Floats]:
        """Think times in us, and the earliest moment of every turn in s."""
        law = self._law
        think_s = draws.values(law.think_s, self._draw["think"].standard_normal(len(turn)))
        if not think_s.max() <= MOST_THINK_S:
            most = f"{think_s.max():.3g} s were drawn"
            raise ConfigError(f"{self._where()}: sessions.think_s: {most}; give the law a max")
        # Whole microseconds: sums are exact, whatever else is summed with them.
        think_us = np.where(turn == 0, 0, np.rint(think_s * 1e6)).astype(np.int64)
        waits_us = think_us.copy()
        if not law.closed_loop:
            answers_s = law.answer_s + law.answer_per_token_s * output[:-1]
            waits_us[1:] += np.where(turn[1:] == 0, 0, np.rint(answers_s * 1e6)).astype(np.int64)
        since_us = np.cumsum(waits_us)
        return think_us, starts_s + (since_us - since_us[first]) * 1e-6

    def _where(self) -> str:
        return f"workload: stream '{self._stream.name}'"


def _grown(added: Ints, output: Ints, fresh: Any) -> Ints:
    """Prompts that hold all that was added and answered since the last fresh start."""
    more = added.copy()
    more[1:] += np.where(fresh[1:], 0, output[:-1])
    total = np.cumsum(more)
    start = np.maximum.accumulate(np.where(fresh, np.arange(len(added)), 0))
    return np.asarray(total - total[start] + added[start])


def part(rows: Rows, which: Any) -> Rows:
    """Some of the rows: a slice, a mask, or positions."""
    return {name: column[which] for name, column in rows.items()}


def joined(parts: list[Rows]) -> Rows:
    """Rows of equal columns, one after the other."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([rows[name] for rows in parts]) for name in parts[0]}


def in_order(rows: Rows) -> Rows:
    """By arrival, then session, then turn."""
    return part(rows, np.lexsort((rows["turn"], rows["session"], rows["arrival_s"])))
