"""A request, and the phases of its life: plain data. Its model and instance are in instance.py.

The engine makes it, serving and loading move it from phase to phase, metrics keep its row when it has ended.
"""

from __future__ import annotations

from math import nan
from typing import TYPE_CHECKING, Final

from sim.core.state.facade import Facade

if TYPE_CHECKING:
    from sim.core.state.instance import Instance, Model
    from sim.core.state.machines import Node

# A request's phase is the name of the part of its time budget that the clock is filling (model.md section 7).
QUEUED: Final = 0
LOAD_WAIT: Final = 1
PREFILL: Final = 2
DECODE: Final = 3
STALLED: Final = 4  # its batch was held up, by another's prompt or while another's KV is saved to make room
PREEMPTED: Final = 5
KV_TRANSFER: Final = 6
RECOMPUTE: Final = 7
PHASES = ("queued", "load_wait", "prefill", "decode", "stalled", "preempted", "kv_transfer", "recompute")

COMPLETED: Final = 0
REJECTED: Final = 1
IMPOSSIBLE: Final = 2
TIMED_OUT: Final = 3
FAILED: Final = 4
UNFINISHED: Final = 5
OUTCOMES = ("completed", "rejected", "impossible", "timed_out", "failed", "unfinished")


class Request:
    """One request and the sequence that serves it."""

    __slots__ = (
        "arrival_s",
        "budget_s",
        "cold",
        "computed_tokens",
        "deadline_s",
        "entry_iteration",
        "first_token_s",
        "index",
        "instance",
        "kv_node",
        "kv_tokens",
        "last_token_s",
        "model",
        "model_preemptions",
        "order",
        "outcome",
        "output_tokens",
        "phase",
        "priority",
        "produced",
        "prompt_tokens",
        "reason",
        "residency_tokens",
        "retries",
        "sequence_preemptions",
        "service_class",
        "session",
        "since_s",
        "stalled_mark_s",
        "view",
    )

    def __init__(self, index: int, model: Model, arrival_s: float, prompt_tokens: int, output_tokens: int) -> None:
        self.index = index
        self.model = model
        self.arrival_s = arrival_s
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.service_class = 0
        self.priority = 0
        self.session = -1  # its number in the trace; -1: none
        self.deadline_s = nan  # after its arrival, for the whole answer; NaN: none
        self.phase = QUEUED
        self.since_s = arrival_s
        self.budget_s = [0.0] * len(PHASES)
        self.produced = 0
        self.computed_tokens = 0  # of the prompt (or of a recompute) while chunks are under way
        self.instance: Instance | None = None
        self.kv_node: Node | None = None  # where saved KV lies; None: on its instance, or nowhere
        self.kv_tokens = 0  # tokens of the saved KV
        self.entry_iteration = 0
        self.order = 0
        self.stalled_mark_s = 0.0
        self.first_token_s = -1.0
        self.last_token_s = -1.0
        self.residency_tokens = 0.0
        self.retries = 0  # how often its GPU, its node or its load failed
        self.sequence_preemptions = 0
        self.model_preemptions = 0
        self.cold = False
        self.outcome = -1
        self.reason = ""
        self.view: Facade | None = None

    def enter(self, phase: int, now_s: float) -> None:
        """Close the running part of the time budget and open the next."""
        self.budget_s[self.phase] += now_s - self.since_s
        self.phase = phase
        self.since_s = now_s

    @property
    def started(self) -> bool:
        """Has it produced a token?"""
        return self.produced > 0

    @property
    def context(self) -> int:
        """Prompt and produced tokens; while it decodes, ask its instance for the tokens of the running leap."""
        return self.prompt_tokens + self.produced
