"""Drawn workloads depend on nothing beside them: chunks, windows, other streams; and any stream gives a valid trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.traces.trace import Trace
from sim.workload.generate import generate, generate_stream
from tests.support.generated import drawn, same, workload

POISSON = {"process": "poisson", "rate_per_s": 5.0}

BUSY: tuple[dict[str, Any], ...] = (
    {
        "models": ["a", "b", "c"],
        "arrivals": {"process": "gamma", "rate_per_s": 9, "cv": 3},
        "popularity": {"drift": {"sigma": 0.5, "half_life_s": 60, "every_s": 20}, "stay": 0.3},
        "rate_shape": {"wander": {"sigma": 0.3, "half_life_s": 60, "every_s": 5}},
    },
    {
        "models": ["b", "d"],
        "arrivals": {"process": "on-off", "rate_per_s": 3, "on_s": 5, "off_s": 9, "per": "model"},
        "popularity": {"regimes": {"mean_s": 100}},
    },
    {"arrivals": {"process": "frames", "period_s": 0.7, "jitter_s": 0.2, "sources": 3}, "deadline_s": 0.5},
    {
        "models": ["a", "b"],
        "arrivals": {"process": "weibull", "rate_per_s": 1, "cv": 2},
        "sessions": {
            "turns": {"law": "geometric", "mean": 4},
            "think_s": {"median": 5, "mean": 9},
            "switch_share": 0.5,
        },
        "prefix": {"block_tokens": 64, "shared_tokens": 200, "groups": 3},
    },
)


@pytest.mark.parametrize("chunk_rows", [1, 97, 5000, 10**9])
def test_the_size_of_chunks_changes_nothing(chunk_rows: int) -> None:
    of = workload(200, *BUSY)
    chunks = list(generate_stream(of, 3, ["default"], chunk_rows=chunk_rows).chunks)
    assert max(map(len, chunks)) <= chunk_rows
    assert same(drawn(of, 3, chunk_rows=chunk_rows), drawn(of, 3))


@pytest.mark.parametrize("window_rows", [3, 500, 10**7])
def test_the_length_of_windows_changes_nothing(window_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    of = workload(200, *BUSY)
    before = drawn(of, 3)
    monkeypatch.setattr("sim.workload.merge.WINDOW_ROWS", window_rows)
    monkeypatch.setattr("sim.workload.arrivals.MOST_AHEAD", window_rows)
    after = drawn(of, 3)
    # Sessions are numbered window by window; what they are called does not depend on it.
    assert before.digest() == after.digest()
    assert before.extras == after.extras


def of_stream(trace: Trace, models: str) -> list[tuple[float, str, int, int]]:
    rows = zip(
        trace.arrival_s.tolist(),
        [trace.models[code] for code in trace.model.tolist()],
        trace.prompt_tokens.tolist(),
        trace.output_tokens.tolist(),
        strict=True,
    )
    return [row for row in rows if row[1] in models.split()]


def test_streams_do_not_touch_each_other() -> None:
    apart = [{**stream, "name": f"n{number}", "models": [f"m{number}"]} for number, stream in enumerate(BUSY)]
    all_four = drawn(workload(150, *apart))
    assert drawn(workload(150, *reversed(apart))).digest() == all_four.digest()
    for number, stream in enumerate(apart):
        alone = drawn(workload(150, stream))
        assert of_stream(alone, f"m{number}") == of_stream(all_four, f"m{number}")
    changed = [{**apart[0], "arrivals": POISSON}, *apart[1:]]
    assert of_stream(drawn(workload(150, *changed)), "m1 m2 m3") == of_stream(all_four, "m1 m2 m3")
    renamed = drawn(workload(150, {**apart[0], "name": "other"}))
    assert of_stream(renamed, "m0") != of_stream(all_four, "m0"), "a name is a seed"


def test_purposes_do_not_touch_each_other() -> None:
    plain = drawn(workload(300, BUSY[0]))
    longer = drawn(workload(300, {**BUSY[0], "prompt": {"median": 5000, "mean": 6000}}))
    assert np.array_equal(plain.arrival_s, longer.arrival_s)
    assert np.array_equal(plain.model, longer.model)
    assert np.array_equal(plain.output_tokens, longer.output_tokens)
    assert not np.array_equal(plain.prompt_tokens, longer.prompt_tokens)
    assert drawn(workload(300, BUSY[0]), seed=2).digest() != plain.digest()


def test_a_longer_workload_begins_like_a_shorter_one() -> None:
    plain = [BUSY[0], BUSY[1], BUSY[2]]
    short, long = drawn(workload(100, *plain)), drawn(workload(400, *plain))
    assert same(long.select(slice(0, len(short))), short)
    some = drawn(workload(None, *plain, rows=321))
    assert same(long.select(slice(0, 321)), some)


def test_traffic_and_streams_go_together() -> None:
    traffic = [{"model": "t", "rate_per_s": 2.0, "burst_factor": 3.0}]
    both = drawn(workload(300, BUSY[1], traffic=traffic))
    alone = generate(workload(300, traffic=traffic), 1, ["default"])
    assert of_stream(both, "t") == of_stream(alone, "t")
    assert len(both) > len(alone)


LAWS = st.sampled_from(
    [1, 700, {"median": 5, "sigma": 3, "max": 1e6}, {"quantiles": {0: 0, 1: 9}}, {"law": "geometric", "mean": 1}]
)
PROCESSES = st.one_of(
    st.builds(lambda rate: {"process": "poisson", "rate_per_s": rate}, st.floats(0.01, 50)),
    st.builds(lambda cv: {"process": "gamma", "rate_per_s": 5, "cv": cv}, st.floats(0.01, 100)),
    st.builds(lambda cv: {"process": "weibull", "rate_per_s": 5, "cv": cv}, st.floats(0.05, 50)),
    st.builds(
        lambda on, off, heavy: {
            "process": "on-off", "rate_per_s": 5, "on_s": on, "off_s": off, "lengths": heavy, "cv": 2
        },
        st.floats(0.01, 1000), st.floats(0.01, 1000), st.sampled_from(["exponential", "pareto"]),
    ),
    st.builds(lambda period: {"process": "frames", "period_s": period, "jitter_s": period}, st.floats(0.01, 300)),
)  # fmt: skip
SESSIONS = st.builds(
    lambda turns, loop, grows, most, full: {
        "turns": turns, "think_s": {"median": 3, "sigma": 2}, "closed_loop": loop, "grows": grows,
        **({"context_max": most, "when_full": full, "restart_share": 0.2} if grows else {}),
    },
    LAWS.filter(lambda law: law != 700 and "sigma" not in str(law)), st.booleans(), st.booleans(),
    st.integers(1, 3000), st.sampled_from(["end", "restart"]),
)  # fmt: skip


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**63 - 1),
    duration_s=st.floats(0.5, 300),
    process=PROCESSES,
    prompt=LAWS,
    sessions=st.none() | SESSIONS,
    prefix=st.none()
    | st.builds(lambda size: {"block_tokens": size, "shared_tokens": 50, "groups": 2}, st.integers(1, 99)),
)
def test_any_stream_gives_a_valid_trace(
    seed: int, duration_s: float, process: Any, prompt: Any, sessions: Any, prefix: Any
) -> None:
    stream = {"arrivals": process, "prompt": prompt, "output": prompt, "sessions": sessions, "prefix": prefix}
    other = {"arrivals": {"process": "frames", "period_s": 0.4}}
    trace = drawn(workload(duration_s, stream, other), seed)
    assert 0 <= trace.arrival_s[0] <= trace.arrival_s[-1] < duration_s
    assert trace.prompt_tokens.min() >= 1
    assert trace.output_tokens.min() >= 1
    if trace.think_s is not None:
        waits = ~np.isnan(trace.think_s)
        assert (trace.think_s[waits] >= 0).all()
        first = np.unique(trace.session, return_index=True)[1]
        assert not waits[first].any()
    if prefix is not None:
        sizes = [len(ids or ()) for ids in trace.extras["prefix_blocks"].to_pylist()]
        blocks = -(-trace.prompt_tokens // prefix["block_tokens"])
        assert all(size in (0, int(block)) for size, block in zip(sizes, blocks, strict=True))
