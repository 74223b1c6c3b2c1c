"""Popularity over time, sessions and prompt blocks of drawn workloads."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from sim.common.errors import ConfigError
from sim.traces.trace import Trace
from tests.support.generated import cv, drawn, prefix_hits, workload

MODELS = [f"m{number}" for number in range(10)]
BUSY = {"process": "poisson", "rate_per_s": 20.0}


def popular(duration_s: float = 5000, arrivals: Any = BUSY, seed: int = 1, **popularity: Any) -> Trace:
    return drawn(workload(duration_s, {"models": MODELS, "arrivals": arrivals, "popularity": popularity}), seed)


def shares(trace: Trace, start_s: float = 0, stop_s: float = math.inf) -> np.ndarray:
    here = trace.model[(trace.arrival_s >= start_s) & (trace.arrival_s < stop_s)]
    return np.bincount(here, minlength=len(MODELS)) / len(here)


@pytest.mark.parametrize("per", ["stream", "model"])
@pytest.mark.parametrize(("exponent", "shift"), [(0.0, 0.0), (1.0, 0.0), (1.5, 3.0)])
def test_zipf_has_its_slope(per: str, exponent: float, shift: float) -> None:
    trace = popular(arrivals={**BUSY, "per": per}, exponent=exponent, shift=shift)
    weights = (np.arange(1, 11) + shift) ** -exponent
    assert shares(trace) == pytest.approx(weights / weights.sum(), abs=0.01)
    assert len(trace) == pytest.approx(100_000, rel=0.02)


def test_shares_as_given() -> None:
    assert shares(popular(shares={"m3": 3, "m1": 1}))[[1, 3]] == pytest.approx([0.25, 0.75], abs=0.01)


def test_each_model_may_have_its_own_process() -> None:
    """Thinning a bursty stream makes each model's share of it less bursty; a process of its own keeps its CV."""
    found = []
    for per in ("stream", "model"):
        trace = popular(20_000, {"process": "gamma", "rate_per_s": 10, "cv": 6, "per": per}, law="uniform")
        found.append(np.mean([cv(np.diff(trace.arrival_s[trace.model == code])) for code in range(10)]))
    assert found[1] == pytest.approx(6, rel=0.15)
    assert found[0] < 3.5


def test_stay_makes_runs_of_one_model_and_leaves_the_shares() -> None:
    trace = popular(stay=0.8)
    weights = 1 / np.arange(1, 11)
    weights /= weights.sum()
    assert shares(trace) == pytest.approx(weights, abs=0.02)
    same = np.mean(trace.model[1:] == trace.model[:-1])
    assert same == pytest.approx(0.8 + 0.2 * float((weights**2).sum()), abs=0.01)


@pytest.mark.parametrize("per", ["stream", "model"])
def test_a_schedule_changes_shares_at_its_time(per: str) -> None:
    schedule = [{"from_s": 1000, "shares": {"m5": 1}}, {"from_s": 3000, "shares": {"m0": 1, "m9": 1}}]
    trace = popular(arrivals={**BUSY, "per": per}, law="uniform", schedule=schedule)
    assert shares(trace, 0, 1000) == pytest.approx([0.1] * 10, abs=0.02)
    assert shares(trace, 1000, 3000)[5] == 1
    assert shares(trace, 3000)[[0, 9]] == pytest.approx([0.5, 0.5], abs=0.02)


def test_regimes_change_the_ranks_now_and_then() -> None:
    trace = popular(20_000, exponent=2.0, regimes={"mean_s": 500})
    tops = [int(np.argmax(shares(trace, start, start + 50))) for start in range(0, 20_000, 50)]
    changes = np.sum(np.diff(tops) != 0)
    assert 40 * 0.9 * 0.55 < changes < 40 * 0.9 * 1.6, "about one in 500 s, a tenth of which keep the top"
    assert len(dict.fromkeys(tops)) >= 8
    once = popular(20_000, exponent=2.0, regimes={"mean_s": 5000, "change": "rotate"})
    order = list(dict.fromkeys(int(np.argmax(shares(once, start, start + 50))) for start in range(0, 20_000, 50)))
    assert order == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9][: len(order)], "the second takes the place of the first"
    assert len(order) > 1


def test_drift_moves_shares_slowly() -> None:
    drift = {"sigma": 1.0, "half_life_s": 2000, "every_s": 50}
    trace = popular(100_000, law="uniform", drift=drift)
    logs = np.log([shares(trace, start, start + 250) + 1e-3 for start in range(0, 100_000, 250)])
    spread = (logs - logs.mean(axis=1, keepdims=True)).std()
    assert 0.7 < spread < 1.2
    near = np.mean([np.corrcoef(logs[1:, code], logs[:-1, code])[0, 1] for code in range(10)])
    far = np.mean([np.corrcoef(logs[80:, code], logs[:-80, code])[0, 1] for code in range(10)])
    assert near > 0.85
    assert abs(far) < 0.3


# --- sessions

TURNS = {"law": "geometric", "mean": 4}
THINK = {"median": 10, "mean": 20}


def talk(duration_s: float = 20_000, prefix: Any = None, models: Any = ("a", "b", "c"), **sessions: Any) -> Trace:
    stream = {
        "models": list(models),
        "arrivals": {"process": "poisson", "rate_per_s": 0.5},
        "prompt": {"median": 50, "mean": 80},
        "output": {"median": 100, "mean": 150},
        "sessions": {"turns": TURNS, "think_s": THINK, **sessions},
        "prefix": prefix,
    }
    return drawn(workload(duration_s, stream))


def by_session(trace: Trace) -> list[np.ndarray]:
    order = np.argsort(trace.session, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(trace.session[order])) + 1)


def test_sessions_have_turns_and_think_times() -> None:
    trace = talk(40_000)
    talks = by_session(trace)
    assert len(talks) == pytest.approx(20_000, rel=0.04)
    inside = [rows for rows in talks if trace.arrival_s[rows[0]] < 35_000]
    sizes = np.array(list(map(len, inside)))
    assert sizes.mean() == pytest.approx(4, rel=0.04)
    assert np.mean(sizes == 1) == pytest.approx(0.25, abs=0.02)
    assert trace.think_s is not None
    think_s = trace.think_s[~np.isnan(trace.think_s)]
    assert np.median(think_s) == pytest.approx(10, rel=0.03)
    assert think_s.mean() == pytest.approx(20, rel=0.1)
    turn = trace.extras["turn"].to_numpy()
    for rows in talks:
        assert turn[rows].tolist() == list(range(1, len(rows) + 1))
        assert np.isnan(trace.think_s[rows[0]])
        # The earliest moment: as if answers took no time.
        assert np.allclose(np.diff(trace.arrival_s[rows]), trace.think_s[rows[1:]])
    assert trace.sessions[trace.session[0]] == "s1/1"


def test_an_open_loop_reckons_with_the_answers() -> None:
    closed, opened = talk(), talk(closed_loop=False, answer_s=3, answer_per_token_s=0.1)
    assert opened.think_s is None
    assert closed.think_s is not None
    pairs = dict(zip(zip(closed.session, closed.extras["turn"].to_pylist(), strict=True), closed.think_s, strict=True))
    turn = opened.extras["turn"].to_pylist()
    for rows in by_session(opened)[:500]:
        for before, after in pairwise(rows):
            waited = opened.arrival_s[after] - opened.arrival_s[before] - 3 - 0.1 * opened.output_tokens[before]
            assert waited == pytest.approx(pairs[opened.session[after], turn[after]], abs=1e-5)


def test_prompts_hold_the_conversation_so_far() -> None:
    trace, alone = talk(), talk(grows=False)
    added = dict(
        zip(zip(alone.session, alone.extras["turn"].to_pylist(), strict=True), alone.prompt_tokens, strict=True)
    )
    for rows in by_session(trace):
        said = 0
        for turn, row in enumerate(rows, start=1):
            assert trace.prompt_tokens[row] == said + added[trace.session[row], turn]
            said = trace.prompt_tokens[row] + trace.output_tokens[row]
    assert np.median(alone.prompt_tokens) == pytest.approx(50, rel=0.05)


def test_a_full_context_ends_the_session_or_begins_it_afresh() -> None:
    free = talk(first_prompt=200)
    assert free.prompt_tokens.max() > 1500
    ended = talk(first_prompt=200, context_max=1000)
    assert ended.prompt_tokens.max() <= 1000
    assert len(ended) < len(free)
    whole = by_session(free)
    for number, rows in enumerate(by_session(ended)):
        prompts = free.prompt_tokens[whole[number]]
        assert ended.prompt_tokens[rows].tolist() == prompts[: int(np.argmax(np.append(prompts, 1001) > 1000))].tolist()
    again = talk(first_prompt=200, context_max=1000, when_full="restart")
    assert len(again) == len(free)
    assert again.prompt_tokens.max() <= 1000
    falls = [again.prompt_tokens[row] for rows in by_session(again) for row in rows[1:]]
    fresh = np.mean(np.array(falls) == 200)
    assert 0.05 < fresh < 0.3
    often = talk(first_prompt=200, restart_share=0.4)
    share = np.mean([often.prompt_tokens[row] == 200 for rows in by_session(often) for row in rows[1:]])
    assert share == pytest.approx(0.4, abs=0.02)


def test_models_alternate_within_a_session() -> None:
    kept = talk()
    assert all(len(np.unique(kept.model[rows])) == 1 for rows in by_session(kept))
    pattern = ["c", "a", "a"]
    in_turn = talk(pattern=pattern)
    for rows in by_session(in_turn):
        assert [in_turn.models[code] for code in in_turn.model[rows]] == [pattern[k % 3] for k in range(len(rows))]
    drawn_anew = talk(switch_share=0.5)
    pairs = [(drawn_anew.model[a], drawn_anew.model[b]) for r in by_session(drawn_anew) for a, b in pairwise(r)]
    weights = np.array([1, 1 / 2, 1 / 3]) / (11 / 6)
    other = np.mean([one != two for one, two in pairs])
    assert other == pytest.approx(0.5 * (1 - (weights**2).sum()), abs=0.02)


def test_classes_hold_for_a_session() -> None:
    stream = {
        "arrivals": {"process": "poisson", "rate_per_s": 1},
        "sessions": {"turns": 5, "think_s": 1},
        "service_class": {"default": 1, "gold": 1},
    }
    trace = drawn(workload(500, stream), classes=("default", "gold"))
    talks = by_session(trace)
    assert all(len(np.unique(trace.service_class[rows])) == 1 for rows in talks)
    assert np.mean(trace.service_class) == pytest.approx(0.5, abs=0.1)


# --- prompt blocks


def common(one: list[int], other: list[int]) -> int:
    length = 0
    while length < min(len(one), len(other)) and one[length] == other[length]:
        length += 1
    return length


def test_prompts_of_a_group_begin_alike_and_no_others_do() -> None:
    prefix = {"block_tokens": 16, "shared_tokens": {"law": "uniform", "low": 100, "high": 900}, "groups": 4}
    stream = {"arrivals": BUSY, "prompt": {"median": 400, "mean": 600}, "prefix": prefix}
    trace = drawn(workload(30, stream, {**stream, "name": "two"}))
    blocks = trace.extras["prefix_blocks"].to_pylist()
    assert trace.extras["prefix_block_tokens"].to_pylist() == [16] * len(trace)
    assert [len(ids) for ids in blocks] == (-(-trace.prompt_tokens // 16)).tolist()
    uses: dict[int, int] = {}
    for ids in blocks:
        assert len(dict.fromkeys(ids)) == len(ids)
        for block in ids:
            uses[block] = uses.get(block, 0) + 1
    for ids, tokens in zip(blocks, trace.prompt_tokens.tolist(), strict=True):
        repeated = [uses[block] > 1 for block in ids]
        assert repeated == sorted(repeated, reverse=True), "what is shared comes first"
        if tokens % 16:
            assert uses[ids[-1]] == 1, "a block that is not full is its own"
    firsts = [ids[0] for ids, tokens in zip(blocks, trace.prompt_tokens.tolist(), strict=True) if tokens >= 16]
    assert len(dict.fromkeys(firsts)) == 8, "four groups in each of two streams"
    counts = np.sort(np.unique(firsts, return_counts=True)[1])[::-1] / len(firsts)
    assert counts[:2] == pytest.approx([0.24, 0.24], abs=0.05), "zipf of four groups, in two streams"


def test_a_turn_begins_with_what_was_said_before() -> None:
    trace = talk(prefix={"block_tokens": 16, "shared_tokens": 40, "groups": 1}, first_prompt=100, restart_share=0.1)
    blocks = trace.extras["prefix_blocks"].to_pylist()
    fresh = 0
    for rows in by_session(trace):
        for before, after in pairwise(rows):
            kept = common(blocks[before], blocks[after])
            if trace.prompt_tokens[after] == 100:
                fresh += 1
                assert kept == 2, "only the shared beginning is left"
            else:
                assert kept == trace.prompt_tokens[before] // 16
    assert fresh > 100
    talks = by_session(trace)
    assert common(blocks[talks[0][0]], blocks[talks[1][0]]) == 2
    assert prefix_hits(blocks) > 0.4


def test_without_growth_turns_share_only_the_beginning() -> None:
    trace = talk(prefix={"block_tokens": 8, "shared_tokens": 40}, grows=False)
    blocks = trace.extras["prefix_blocks"].to_pylist()
    ids = [block for each in blocks for block in each[5:]]
    assert len(dict.fromkeys(ids)) == len(ids)


@pytest.mark.parametrize(
    ("sessions", "problem"),
    [
        ({"turns": {"law": "exponential", "mean": 1e7}}, "turns were drawn; give the law a max"),
        ({"think_s": {"median": 1e9, "sigma": 1}}, "s were drawn; give the law a max"),
        ({"turns": 90_000, "first_prompt": 100_000}, "a prompt grew to"),
    ],
)
def test_what_no_session_can_have_is_said_in_one_line(sessions: dict[str, Any], problem: str) -> None:
    stream = {
        "arrivals": {"process": "poisson", "rate_per_s": 1},
        "output": 90_000,
        "sessions": {"turns": 3, "think_s": 1, **sessions},
    }
    with pytest.raises(ConfigError, match=problem) as caught:
        drawn(workload(20, stream))
    assert "\n" not in str(caught.value)
