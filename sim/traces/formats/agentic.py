"""The agentic-coding traces: sessions of coding agents, one JSON file each, with models, sub-agents and think times.

Sessions have no common clock, so their starts are drawn, as a Poisson process in the order of the files. Within a
session each request follows the answer to the one before it after its think time (closed loop), unless `open_loop`.

Source: callanjfox/kv-cache-tester, `traces/`.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from sim.common.errors import TraceError
from sim.common.lazy import pa
from sim.common.rng import stream
from sim.common.text import counted
from sim.traces.columns import FURTHEST_S, MOST_TOKENS, name_problem
from sim.traces.formats.assembly import Block, Clock, EmptyChoice, assembled
from sim.traces.formats.base import Entry, Format, FormatOptions, Sample, json_value
from sim.traces.formats.json_rows import JsonRow, gathered, list_of_ids
from sim.traces.formats.members import Member, members
from sim.traces.stream import TraceStream

NAME = "agentic-coding"
BLOCK_TOKENS = 64
DEEPEST = 50  # sub-agents of sub-agents

_COMMON = ("models", "requests", "tool_tokens", "system_tokens")
_FIELDS = (*_COMMON, "id", "block_size", "hash_id_scope", "totals")
_TIMES = ("t", "type", "api_time", "ttft", "think_time")
_REQUEST = (*_TIMES, "model", "in", "out", "hash_ids", "input_types", "output_types", "stop")
_AGENT = (*_COMMON, "t", "type", "agent_id", "subagent_type", "duration_ms", "total_tokens", "tool_use_count", "status")


class AgenticOptions(FormatOptions):
    sessions_per_s: float = Field(0.01, gt=0, le=1e6, description="sessions that start a second, a Poisson process")
    seed: int = Field(0, ge=0, description="seed of the sessions' starts")
    open_loop: bool = Field(False, description="send every request at its recorded time, whatever became of the others")
    subagents: Literal["entry", "spawn"] = Field(
        "entry",
        description="what a sub-agent's times count from: the time of its entry, or, since that seems to be recorded "
        "when the sub-agent returns, that time less its duration_ms",
    )
    prefix_blocks: bool = Field(True, description="keep the hash ids of the prompts' 64-token blocks")
    zero_tokens: EmptyChoice = Field(
        "drop", description="requests without prompt or output tokens: drop, keep (as 1 token) or refuse"
    )


@dataclass
class _Found:
    """What is counted over all files for the notices, and what must be unique among them."""

    names: Counter[str] = field(default_factory=Counter)
    ignored: dict[str, None] = field(default_factory=dict)
    scope: str | None = None
    next_id: int = 0
    sessions: int = 0
    agents: int = 0
    zeros: int = 0
    unnamed: int = 0
    no_think: int = 0
    late: int = 0
    empty: int = 0

    def session(self, name: str) -> str:
        """The name, or, where another session had it already, one made from it."""
        self.names[name] += 1
        if self.names[name] == 1:
            return name
        return self.session(f"{name}#{self.names[name]}")

    def notices(self, options: AgenticOptions) -> Iterator[str]:
        yield (
            f"drew the starts of {counted(self.sessions, 'session')}, {options.sessions_per_s:g} a second "
            f"(--option sessions_per_s): the files have no common clock"
        )
        yield from (f"ignored the field '{name}'" for name in self.ignored)
        again = sum(count - 1 for count in self.names.values())
        if again:
            yield f"{counted(again, 'session')} had the name of another and got a number behind it"
        if self.agents:
            own = "a session of its own" if self.agents == 1 else "sessions of their own"
            yield f"{counted(self.agents, 'sub-agent')} became {own}"
        if self.empty:
            yield f"left out {counted(self.empty, 'session')} without requests"
        zeros = f"{counted(self.zeros, 'request')} without prompt or output tokens"
        if self.zeros and options.zero_tokens == "drop":
            yield f"left out {zeros}; --option zero_tokens=keep counts such a number as 1"
        elif self.zeros:
            yield f"kept {zeros}, counted as 1"
        if self.unnamed:
            yield f"{counted(self.unnamed, 'request')} without a model got that of the session"
        if self.no_think:
            yield f"{counted(self.no_think, 'request')} without think_time: sent at the recorded time (open loop)"
        if self.late:
            yield f"sorted {counted(self.late, 'request')} that stood after a later one of the same session"


def _read(files: Sequence[Path], options: AgenticOptions) -> TraceStream:
    """arrival_s is the drawn start plus the recorded time, also in a closed loop, where it is the earliest time.

    Extras: turn (from 1 within a session), prefix_blocks and prefix_block_tokens, recorded_api_s and recorded_ttft_s
    (what the request took where it was recorded).
    """
    where = ", ".join(map(str, files))
    return assembled({where: lambda notices: _blocks(files, where, options, notices)}, options, Clock(origin=0))


def _blocks(files: Sequence[Path], where: str, options: AgenticOptions, notices: list[str]) -> Iterator[Block]:
    kinds = {"turn": pa.int64(), "recorded_api_s": pa.float64(), "recorded_ttft_s": pa.float64()}
    if options.prefix_blocks:
        kinds |= {"prefix_blocks": list_of_ids(), "prefix_block_tokens": pa.int64()}
    found = _Found()
    yield from gathered(_in_order(files, options, found), where, kinds, closed=not options.open_loop)
    notices += found.notices(options)


def _in_order(files: Sequence[Path], options: AgenticOptions, found: _Found) -> Iterator[JsonRow]:
    """All requests by arrival; held back are only those that may still be overtaken by a session not yet read."""
    starts = stream(options.seed, "formats", NAME, "starts")
    start_s, count = 0.0, 0
    waiting: list[tuple[float, int, JsonRow]] = []
    for member in members(files, lambda name: name.endswith((".json", ".json.gz"))):
        start_s += float(starts.standard_exponential()) / options.sessions_per_s
        if start_s > FURTHEST_S:
            raise TraceError(f"{member.where}: starts after {FURTHEST_S:.0e} s; raise sessions_per_s")
        while waiting and waiting[0][0] < start_s:
            yield heapq.heappop(waiting)[2]
        for row in _session(member, start_s, options, found):
            heapq.heappush(waiting, (row.time, count, row))
            count += 1
    while waiting:
        yield heapq.heappop(waiting)[2]


def _session(member: Member, start_s: float, options: AgenticOptions, found: _Found) -> Iterator[JsonRow]:
    """The requests of a file, those of its sub-agents after its own."""
    top = Entry(member.where, json_value(member.read(), member.where))
    found.ignored.update(dict.fromkeys(top.ignored(_FIELDS, options.strict)))
    name = top.text("id")
    if problem := name_problem(name, "session"):
        raise top.error_here(f"field 'id' {problem}")
    scope = top.values.get("hash_id_scope", "local")
    if scope not in ("local", "global"):
        raise top.error("hash_id_scope", "it is local or global")
    if found.scope not in (None, scope):
        differs = f"is '{scope}', of the files before '{found.scope}'"
        raise top.error_here(f"field 'hash_id_scope' {differs}; import them apart")
    found.scope = scope
    shift = found.next_id if scope == "local" else 0
    found.sessions += 1
    agent = _Agent(top, start_s, options, found)
    yield from agent.rows(found.session(name), shift)
    found.next_id = max(found.next_id, agent.highest_id + 1)


class _Agent:
    """The requests of one session or sub-agent, and of the sub-agents below it."""

    def __init__(
        self, top: Entry, start_s: float, options: AgenticOptions, found: _Found, above: _Agent | None = None
    ) -> None:
        self._top = top
        self._start_s = start_s
        self._options = options
        self._found = found
        self._depth: int = 0 if above is None else above._depth + 1
        self.highest_id = -1
        models = top.values.get("models")
        self._models = [name for name in models if isinstance(name, str)] if isinstance(models, list) else []
        self._block_tokens: int = BLOCK_TOKENS if above is None else above._block_tokens
        if "block_size" in top.values:
            self._block_tokens = top.whole("block_size")

    def rows(self, session: str, shift: int) -> Iterator[JsonRow]:
        """In order of time, then the sub-agents'; `shift` is added to the hash ids, which are local to a file."""
        own: list[Entry] = []
        agents: list[Entry] = []
        for entry in self._entries():
            (agents if entry.values.get("type") == "subagent" else own).append(entry)
        times_s = [self._time_s(entry) for entry in own]
        late = int((np.array(times_s) < np.maximum.accumulate(times_s)).sum()) if own else 0
        if late and self._options.strict:
            raise self._top.error_here("its requests are not in order of t; sort them")
        self._found.late += late
        self._found.empty += not own and not agents
        order = sorted(range(len(own)), key=times_s.__getitem__)
        yield from self._turns([(own[place], times_s[place]) for place in order], session, shift)
        for entry in agents:
            yield from self._below(entry, session, shift)

    def _entries(self) -> Iterator[Entry]:
        requests = self._top.values.get("requests")
        if not isinstance(requests, list):
            raise self._top.error("requests", "give a list of requests")
        for number, item in enumerate(requests, 1):
            yield Entry(f"{self._top.where}: request {number}", item, number)

    def _time_s(self, entry: Entry) -> float:
        time_s = self._start_s + entry.number("t")
        if time_s > FURTHEST_S:
            raise entry.error("t", f"with the session's start it is after {FURTHEST_S:.0e} s")
        return time_s

    def _turns(self, entries: list[tuple[Entry, float]], session: str, shift: int) -> Iterator[JsonRow]:
        turn, pause_s = 0, 0.0  # what requests that were left out would have taken
        for entry, time_s in entries:
            if entry.values.get("type") not in ("n", "s"):
                raise entry.error("type", "it is n, s or subagent")
            self._found.ignored.update(dict.fromkeys(entry.ignored(_REQUEST, self._options.strict)))
            api_s, ttft_s, think_s = (self._seconds(entry, name) for name in ("api_time", "ttft", "think_time"))
            low = 1 if self._options.zero_tokens == "refuse" else 0
            prompt_tokens, output_tokens = (entry.whole(name, low, MOST_TOKENS) for name in ("in", "out"))
            extras: tuple[Any, ...] = (turn + 1, api_s, ttft_s)
            if self._options.prefix_blocks:
                extras += (self._ids(entry, shift), self._block_tokens)
            if not prompt_tokens or not output_tokens:
                self._found.zeros += 1
                if self._options.zero_tokens == "drop":
                    pause_s += (think_s or 0.0) + (api_s or 0.0)
                    continue
            closed = turn > 0 and not self._options.open_loop
            self._found.no_think += closed and think_s is None
            turn += 1
            yield JsonRow(
                row=entry.row,
                time=time_s,
                prompt_tokens=max(prompt_tokens, 1),
                output_tokens=max(output_tokens, 1),
                model=self._model(entry),
                session=session,
                think_s=math.nan if not closed or think_s is None else think_s + pause_s,
                extras=extras,
            )
            pause_s = 0.0

    @staticmethod
    def _seconds(entry: Entry, name: str) -> float | None:
        return None if entry.values.get(name) is None else entry.number(name)

    def _model(self, entry: Entry) -> str:
        if entry.values.get("model") in (None, "") and len(self._models) == 1:
            self._found.unnamed += 1
            return self._models[0]
        name = entry.text("model")
        if problem := name_problem(name, "model"):
            raise entry.error_here(f"field 'model' {problem}")
        return name

    def _ids(self, entry: Entry, shift: int) -> NDArray[np.int64] | None:
        if entry.values.get("hash_ids") is None:
            return None
        ids = np.array(entry.wholes("hash_ids"), dtype=np.int64)
        if not len(ids):
            return ids
        if int(ids.max()) > 2**62 - shift:
            raise entry.error("hash_ids", "give ids below 2^62")
        ids += shift
        self.highest_id = max(self.highest_id, int(ids.max()))
        return ids

    def _below(self, entry: Entry, session: str, shift: int) -> Iterator[JsonRow]:
        self._found.ignored.update(dict.fromkeys(entry.ignored(_AGENT, self._options.strict)))
        if self._depth == DEEPEST:
            raise entry.error_here(f"sub-agents are nested more than {DEEPEST} deep")
        start_s = self._time_s(entry)
        if self._options.subagents == "spawn":
            start_s = max(self._start_s, start_s - entry.number("duration_ms") / 1000)
        self._found.agents += 1
        label = entry.text("agent_id") if "agent_id" in entry.values else "agent"
        agent = _Agent(entry, start_s, self._options, self._found, self)
        yield from agent.rows(self._found.session(f"{session}/{label}"), shift)
        self.highest_id = max(self.highest_id, agent.highest_id)


def _is(sample: Sample) -> bool:
    marks = (b'"block_size"', b'"tool_tokens"', b'"system_tokens"', b'"requests"', b'"hash_ids"')
    return sample.head.lstrip()[:1] == b"{" and all(mark in sample.head for mark in marks)


_ABOUT = "agentic coding (kv-cache-tester): sessions of coding agents, a tar, a folder or .json files"
FORMATS = (Format(NAME, _ABOUT, _read, _is, AgenticOptions),)
