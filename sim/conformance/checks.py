"""What every policy must do in a run, as functions of the policy and of what the engine can (engine.resize).

Each returns a remark, mostly none; raises Failed with the runs that show why, or NotApplicable. Called by suite.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sim.common.errors import ConfigError
from sim.conformance.cases import FAULTS, FOUR, SCENARIOS, giants, large_cluster, requests, tight
from sim.conformance.hardware import Row, columns, nodes
from sim.conformance.laws import assert_settled
from sim.conformance.subject import Failed, NotApplicable, Play, Subject, run
from sim.conformance.watching import assert_alike
from sim.core.state.request import COMPLETED, REJECTED, UNFINISHED
from sim.engine.engine import Engine
from sim.policy.loader import policy_of
from sim.scenario.scenario import Scenario

_DRAWS = 24
_MAY_KEEP = "; a policy that keeps for good what it placed at the start says so (keeps_placement = True)"


def names_a_wrong_parameter(policy: Subject, _resize: str) -> str:
    """A parameter that it does not have is the user's mistake, and is told so."""
    try:
        policy_of(policy.cls, policy.name, {**policy.parameters, "nonsense": 1})
    except ConfigError as error:
        if "no parameter 'nonsense'" in str(error):
            return ""
        raise Failed(f"it was given a parameter 'nonsense', and says: {error}") from error
    raise Failed("it takes a parameter 'nonsense' that it does not have; its Parameters forbid no extra fields")


def acts_legally(policy: Subject, resize: str) -> str:
    """No action is refused, no law broken, in all sorts of trouble."""
    for title, changes in SCENARIOS.items():
        of = policy.scenario(resize, name=title, **changes)
        run(policy, of, requests([model.name for model in of.models], 30, 0.5))
    return ""


def is_repeatable(policy: Subject, resize: str) -> str:
    """The same requests twice, the same result to the last bit."""
    of = policy.scenario(resize, name="twice", **tight(FOUR))
    rows = requests(FOUR, 50, 0.3)
    one, other = (columns(run(policy, of, rows)) for _ in range(2))
    for column in one:
        if not np.array_equal(one[column], other[column], equal_nan=one[column].dtype.kind == "f"):
            reason = "two runs of the same requests differ; it draws without a seed, or keeps something between runs"
            raise Failed(f"{reason} (first in column {column})", Play(of, rows))
    return ""


def serves_everyone(policy: Subject, resize: str) -> str:
    """Where everybody can be served, everybody is, crowded or not; or is turned away by the policy's own rule."""
    models = {"a": "four", "b": "two"} if policy.cls.keeps_placement else FOUR
    refused: dict[str, None] = {}
    for title, gap_s in (("crowded", 0.05), ("unhurried", 2.0)):
        # Ample host memory, so that whatever is stopped can come back.
        changes: dict[str, Any] = {"models": models, "cluster": nodes(("small", 1)), "horizon_s": 50_000.0}
        of = policy.patient().scenario(resize, name=title, **changes)
        rows = requests(models, 100, gap_s)
        engine = run(policy, of, rows)
        some = engine.world.recorder.ended[COMPLETED] > 0 and not policy.cls.keeps_placement
        _assert_nobody_waits(engine, of, rows, _MAY_KEEP if some else "")
        _assert_settled(engine, of, rows)
        ended, reasons = engine.world.recorder.ended, engine.world.recorder.reasons
        if ended[COMPLETED] == 0:
            raise Failed("it serves nobody", Play(of, rows))
        if ended[REJECTED]:
            refused |= dict.fromkeys(reason for reason in reasons if reason)
    return f"it turns some away: {'; '.join(refused)}" if refused else ""


def leaves_nobody_waiting(policy: Subject, resize: str) -> str:
    """A few requests for models that fit in parts: no later event wakes a policy that waits for nothing."""
    for draw in range(_DRAWS):
        changes, rows = giants(draw)
        of = policy.scenario(resize, name=f"giants-{draw}", **changes)
        _assert_nobody_waits(run(policy, of, rows), of, rows)
    return ""


def knows_no_future(policy: Subject, resize: str) -> str:
    """Worlds that differ only in lengths, or only in later arrivals, get the same decisions until that shows."""
    if policy.cls.foresees:
        raise NotApplicable(f"an oracle: {policy.cls.oracle}")
    of = policy.scenario(resize, name="two-worlds", models=FOUR, cluster=nodes(("small", 2)))
    rows = requests(FOUR, 50, 0.3)
    acted = 0
    for other in (_other_lengths(rows), _longer_ones(rows), _other_arrivals(rows)):
        acted += assert_alike(policy, of, rows, other)
    if not acted:
        raise Failed("it does nothing before the first answer ends", Play(of, rows))
    return ""


def _other_lengths(rows: list[Row]) -> list[Row]:
    return [(*row[:3], 1 + (row[3] * 7 + 13) % 500) for row in rows]


def _longer_ones(rows: list[Row]) -> list[Row]:
    """The short ones are the same, so that many end before the worlds can be told apart."""
    return [(*row[:3], 300 + (row[3] * 7 + 13) % 200 if row[3] >= 300 else row[3]) for row in rows]


def _other_arrivals(rows: list[Row]) -> list[Row]:
    """From the middle on the models change places, and everybody comes later."""
    names = sorted(FOUR)
    middle = len(rows) // 2
    later = [(s + 0.1, names[-1 - names.index(model)], *rest) for s, model, *rest in rows[middle:]]
    return [*rows[:middle], *later]


def copes_with_many_gpus(policy: Subject, resize: str) -> str:
    """On a cluster with more GPUs than are worth a look each, of two kinds, it acts legally and serves everyone."""
    of = policy.patient().scenario(resize, name="many-gpus", horizon_s=50_000.0, **large_cluster())
    rows = requests([model.name for model in of.models], 40, 0.3)
    engine = run(policy, of, rows)
    if not policy.cls.keeps_placement:
        _assert_nobody_waits(engine, of, rows)
    return ""


def survives_faults(policy: Subject, resize: str) -> str:
    """GPUs, nodes, links, loads and clients fail under it: it acts legally, and goes on with what is left."""
    for title, changes in FAULTS.items():
        of = policy.patient().scenario(resize, name=title, horizon_s=50_000.0, **changes)
        rows = requests(FOUR, 40, 0.4)
        engine = run(policy, of, rows)
        if not policy.cls.keeps_placement:
            _assert_nobody_waits(engine, of, rows)
            _assert_settled(engine, of, rows)
    return ""


def _assert_nobody_waits(engine: Engine, of: Scenario, rows: Sequence[Row], hint: str = "") -> None:
    unfinished = engine.world.recorder.ended[UNFINISHED]
    if unfinished:
        ended = columns(engine)
        first = int(np.flatnonzero(ended["outcome"] == UNFINISHED)[0])
        at_s, model, *_ = rows[first]
        raise Failed(
            f"{unfinished} of {len(rows)} requests were neither served nor turned away in {of.horizon_s:,.0f} s, the"
            f" first of model {model} since t={at_s:.6f} s{hint}",
            Play(of, rows),
        )


def _assert_settled(engine: Engine, of: Scenario, rows: Sequence[Row]) -> None:
    try:
        assert_settled(engine)
    except AssertionError as error:
        raise Failed(f"somebody's KV is still saved after the end: {error}", Play(of, rows)) from error
