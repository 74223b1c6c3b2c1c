"""Keep-alive timers: what is idle goes at the second that the rule says, and comes back before it is asked for.

Synthetic hardware (scenarios.py): one `small` GPU of 8.59 GB; `four` takes 4.01 GB with its KV and 2 s to load, `two`
2.51 GB and 1.8125 s.
"""

from __future__ import annotations

from typing import Any

import pytest

from sim.common.errors import ConfigError
from sim.core.record.recorder import SWITCH_COLUMNS
from sim.engine.engine import Engine
from sim.policy import load_policy
from sim.policy.kit.keepalive import RANGE_S, IdleGaps
from tests.support.laws import assert_laws
from tests.support.scenarios import GB, Row, columns, play, scenario, trace

KV = 1024 * 2500 * 4  # bytes of the pool of `four`
FOUR, TWO, EIGHT = 4 * GB + KV, 2 * GB + GB // 2 + 1024 * 5000 * 2, 4 * GB + GB // 4 + 1024 * 1000 * 8
LATE = 500.0


def run(policy: dict[str, Any], rows: list[Row], models: dict[str, str] | None = None) -> Engine:
    of = scenario(models=models or {"a": "four", "b": "four"}, policy=policy)
    engine = play(of, load_policy(of.policy.name, of.policy.parameters)[0], trace(of, rows))
    assert_laws(engine, len(rows))
    return engine


def times(engine: Engine, kind: str, model: str) -> list[float]:
    """When this happened to the model; a load: when it was ready."""
    rows = [dict(zip(SWITCH_COLUMNS, row, strict=True)) for row in engine.world.recorder.switches]
    return [row["time_s"] for row in rows if row["kind"] == kind and row["model"] == model]


@pytest.mark.parametrize("policy", ["greedy-dual", "serverless-llm"])
@pytest.mark.parametrize("keep_alive_s", [0, 7.5])
def test_a_fixed_timer_runs_from_the_last_use(policy: str, keep_alive_s: float) -> None:
    rows = [(0, "a", 10, 100), (5, "a", 10, 100), (LATE, "b", 10, 1)]
    engine = run({"name": policy, "keep_alive": keep_alive_s}, rows)
    ends_s = columns(engine)["end_s"][:2].tolist()
    expected = ends_s if ends_s[0] + keep_alive_s < 5 else ends_s[1:]
    assert times(engine, "free", "a") == pytest.approx([end_s + keep_alive_s for end_s in expected], abs=1e-9)


@pytest.mark.parametrize("keep_alive", ["never", "ski-rental"])
def test_nothing_is_unloaded_while_nobody_wants_the_memory(keep_alive: str) -> None:
    engine = run({"name": "greedy-dual", "keep_alive": keep_alive}, [(0, "a", 10, 10), (LATE, "b", 10, 1)])
    assert times(engine, "free", "a") == []


@pytest.mark.parametrize(
    ("idle", "size", "reload_s", "waiting"), [("four", FOUR, 2.0, 1), ("four", FOUR, 2.0, 2), ("two", TWO, 1.8125, 1)]
)
def test_ski_rental_unloads_when_the_rent_equals_the_reload(
    idle: str, size: int, reload_s: float, waiting: int
) -> None:
    # serverless-llm gives each GPU to one instance, so `b` waits until the timer of `a` is over.
    rows = [(0, "a", 10, 10), *[(50, "b", 10, 10)] * waiting, (LATE, "b", 10, 1)]
    engine = run({"name": "serverless-llm", "keep_alive": "ski-rental", "loop_s": 0}, rows, {"a": idle, "b": "four"})
    worth = waiting / FOUR  # requests that wait per byte that they need
    assert times(engine, "free", "a") == pytest.approx([50 + reload_s / (worth * size)], rel=1e-6)


def test_rent_is_counted_only_while_somebody_waits() -> None:
    # `b` needs EIGHT bytes, so that `two` has paid after 3.07 s. The first client of `b` leaves after 3 s.
    rows = [(0, "a", 10, 10), (50, "b", 10, 10), (100, "b", 10, 10)]
    of = scenario(
        models={"a": "two", "b": "eight"},
        policy={"name": "serverless-llm", "keep_alive": "ski-rental", "loop_s": 0},
        service_classes=[{"name": "default", "patience_s": 3.0}],
    )
    engine = play(of, load_policy(of.policy.name, of.policy.parameters)[0], trace(of, rows))
    tau_s = 1.8125 * EIGHT / TWO
    assert 3.0 < tau_s < 3.1
    assert times(engine, "free", "a") == pytest.approx([100 + tau_s - 3.0], abs=1e-6)


def test_a_histogram_unloads_at_once_and_loads_before_the_next_request() -> None:
    rows: list[Row] = [(100.0 * number, "a", 10, 100) for number in range(6)]
    engine = run({"name": "greedy-dual", "keep_alive": "histogram", "histogram_bin_s": 10}, rows)
    found = columns(engine)
    ends_s = found["end_s"].tolist()
    # Of the first gap nothing is known. From the second on all are between 90 and 100 s: gone at once, loaded after
    # 90 s less a tenth.
    assert times(engine, "free", "a") == pytest.approx(ends_s[1:], abs=1e-9)
    assert times(engine, "load", "a") == pytest.approx([2.0, *(end_s + 81 + 2.0 for end_s in ends_s[1:5])], abs=1e-9)
    waited_s = (found["first_token_s"] - found["arrival_s"])[2:]
    assert waited_s.max() < 0.1


def test_a_histogram_knows_its_quantiles() -> None:
    gaps = IdleGaps(10.0)
    assert gaps.window() is None
    for gap_s in [12.0] * 2 + [55.0] * 97 + [205.0]:
        gaps.add(gap_s)
    # 5 % of the gaps end in the bin from 50 s on, 99 % in the same; a tenth of margin on either side.
    assert gaps.window() == pytest.approx((50 * 0.9, 60 * 1.1))
    gaps.add(205.0)
    assert gaps.window() == pytest.approx((50 * 0.9, 210 * 1.1))


def test_a_histogram_that_represents_nothing_says_so() -> None:
    beyond, flat = IdleGaps(60.0), IdleGaps(RANGE_S / 4)
    beyond.add(30.0)
    for _ in range(2):
        beyond.add(RANGE_S)
    for number in range(4):  # every bin alike: any time is as likely as any other
        flat.add((number + 0.5) * RANGE_S / 4)
    assert beyond.window() is None
    assert flat.window() is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("ski-rentl", "no keep-alive rule 'ski-rentl'; give seconds, or a rule: did you mean 'ski-rental'"),
        (-1, "give seconds from 0 up"),
        (True, "give (a number, not true or false|seconds from 0 up)"),
        (float("inf"), "give seconds from 0 up"),
        ([5], "give seconds from 0 up"),
    ],
)
@pytest.mark.parametrize("policy", ["greedy-dual", "serverless-llm"])
def test_a_wrong_rule_is_one_clear_line(policy: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_policy(policy, {"keep_alive": value})
    assert "\n" not in str(caught.value)
