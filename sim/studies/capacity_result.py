"""The answer of a search for capacity, as plain data: what the terminal, the report and capacity.json show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sim.common.statistics import Estimate
from sim.studies.choose_policies import StudiedPolicy
from sim.studies.plain_result import PlainResult
from sim.studies.ranking import PolicyRanking
from sim.studies.scale_load import NodeGroup
from sim.studies.search import Found, Goal
from sim.studies.study_bounds import FluidLimit

VERSION = 1
Find = Literal["rate", "cluster", "cost"]


@dataclass(frozen=True)
class PolicyCapacity(StudiedPolicy):
    """One policy. found: its search, or for `cost` the one point that was played.

    by_seed: the answer of each seed by itself (for `rate` read off between two loads); seen: their mean and intervals.
    usd_per_million_tokens: at the answer.
    """

    found: Found | None
    by_seed: tuple[float | None, ...]
    seen: Estimate
    usd_per_million_tokens: Estimate | None
    error: str


@dataclass(frozen=True)
class Capacity(PlainResult):
    """All of it; `as_data` is what capacity.json holds."""

    scenario: str
    find: Find
    seeds: tuple[int, ...]
    confidence: float
    goal: Goal
    load: float
    load_means: str
    tolerance: float
    most: float
    group: NodeGroup | None
    policies: tuple[PolicyCapacity, ...]
    ranking: PolicyRanking | None
    bound: FluidLimit
    notices: tuple[str, ...]
    verdict: tuple[str, ...] = ()
    kind: str = "capacity"
    version: int = VERSION
