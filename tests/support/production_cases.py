"""What the tests of the production policies share: short runs on synthetic hardware, and what happened as words.

Nothing here asserts anything but the laws.
"""

from __future__ import annotations

import math
from typing import Any

from sim.core.record.recorder import SWITCH_COLUMNS
from sim.core.state.request import REJECTED
from sim.engine.engine import Engine
from sim.policy import load_policy
from tests.support.laws import assert_laws
from tests.support.scenarios import Row, columns, play, scenario, trace

TWOS = {"a": "two", "b": "two", "c": "two"}
THREE = {"a": "four", "b": "four", "c": "four"}


def run(policy: dict[str, Any] | str, rows: list[Row], **changes: Any) -> Engine:
    policy = {"name": policy} if isinstance(policy, str) else policy
    of = scenario(**{"models": THREE, **changes, "policy": policy})
    engine = play(of, load_policy(of.policy.name, of.policy.parameters)[0], trace(of, rows))
    assert_laws(engine, len(rows))
    return engine


def switches(engine: Engine, *kinds: str) -> list[dict[str, Any]]:
    rows = [dict(zip(SWITCH_COLUMNS, row, strict=True)) for row in engine.world.recorder.switches]
    return [row for row in rows if row["kind"] in kinds]


def loads(engine: Engine) -> str:
    """The models in the order in which they were ready."""
    return " ".join(row["model"] for row in switches(engine, "load"))


def freed(engine: Engine) -> str:
    return " ".join(row["model"] for row in switches(engine, "free"))


def served(engine: Engine, rows: list[Row]) -> str:
    """The models of the requests in the order of their first tokens."""
    first_s = columns(engine)["first_token_s"]
    return " ".join(rows[number][1] for number in first_s.argsort(kind="stable") if not math.isnan(first_s[number]))


def reasons(engine: Engine) -> list[str]:
    """Why requests were refused, in order of arrival."""
    rows, text = columns(engine), {code: reason for reason, code in engine.world.recorder.reasons.items()}
    return [text[code] for code, end in zip(rows["reason"], rows["outcome"], strict=True) if end == REJECTED]


def steady(model: str, until_s: float, every_s: float = 0.5, tokens: int = 100) -> list[Row]:
    """Requests that overlap, so that the model is never idle."""
    return [(number * every_s, model, 10, tokens) for number in range(int(until_s / every_s))]


def in_order(*rows: Row) -> list[Row]:
    return sorted(rows, key=lambda row: row[0])


ROUND: list[Row] = [(0.1 * number, model, 10, 50) for number, model in enumerate("abcabc")]
