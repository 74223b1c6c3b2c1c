"""Dealing models: every law against its own definition, units that stay together, and draws that ignore chunks."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from sim.common import rng
from sim.common.errors import ConfigError, TraceError
from sim.traces.compose.deal_models import Deal, map_models, shares_of, tally
from sim.traces.trace import Trace
from tests.support.trace_cases import SIZES, Row, in_chunks, rows_of, trace_of, traces

FEW = settings(deadline=None, max_examples=60)
MODELS = ("m1", "m2", "m3")


def dealt(trace: Trace, deal: Deal, sizes: list[int] | None = None, seed: int = 1) -> list[Row]:
    tallied = tally(in_chunks(trace), deal.by) if deal.needs_tally else None
    return rows_of(map_models(in_chunks(trace, sizes or ()), deal, rng.stream(seed, "test"), tallied))


def models(trace: Trace, deal: Deal) -> list[str]:
    return [row.model for row in dealt(trace, deal)]


def line(count: int) -> Trace:
    return trace_of([Row(float(number), "x", 1, 1) for number in range(count)])


DEALS = [
    Deal(MODELS, "zipf:1.5"),
    Deal(MODELS, "uniform", by="session"),
    Deal(MODELS, "round-robin", by="session", alternate=True),
    Deal(MODELS, "shares", by="model", shares=(0.5, 0.0, 0.5)),
    Deal(MODELS, "rank", by="model"),
    Deal(MODELS, "stripes"),
    Deal(MODELS, "stripes:2", by="session"),
    Deal(MODELS, "table", by="model", table={"a": "m1", "b": "m2", "c": "m1"}),
]


@pytest.mark.parametrize("deal", DEALS, ids=lambda deal: f"{deal.law} by {deal.by}")
@FEW
@given(trace=traces(), sizes=SIZES)
def test_only_the_model_changes_and_chunks_do_not_matter(deal: Deal, trace: Trace, sizes: list[int]) -> None:
    found = dealt(trace, deal, sizes)
    assert [replace(row, model="") for row in found] == [replace(row, model="") for row in rows_of(in_chunks(trace))]
    assert found == dealt(trace, deal)
    assert {row.model for row in found} <= set(MODELS)
    if deal.by == "session" and not deal.alternate:
        for session in {row.session for row in found} - {None}:
            assert len({row.model for row in found if row.session == session}) == 1


def test_round_robin_and_stripes() -> None:
    assert models(line(7), Deal(MODELS, "round-robin")) == ["m1", "m2", "m3", "m1", "m2", "m3", "m1"]
    assert models(line(7), Deal(MODELS, "stripes:2")) == ["m1", "m1", "m2", "m2", "m3", "m3", "m1"]
    assert models(line(6), Deal(MODELS, "stripes")) == ["m1", "m1", "m2", "m2", "m3", "m3"]
    assert Counter(models(line(100), Deal(MODELS, "stripes"))) == {"m1": 34, "m2": 33, "m3": 33}


@pytest.mark.parametrize(
    ("deal", "weights"),
    [
        (Deal(MODELS, "zipf:1.0"), [1, 1 / 2, 1 / 3]),
        (Deal(MODELS, "uniform"), [1, 1, 1]),
        (Deal(MODELS, "shares", shares=(0.2, 0.0, 0.6)), [0.2, 0, 0.6]),
    ],
    ids=lambda value: getattr(value, "law", ""),
)
def test_drawn_laws_have_their_shares(deal: Deal, weights: list[float]) -> None:
    count = 30_000
    counts = Counter(models(line(count), deal))
    for name, weight in zip(MODELS, weights, strict=True):
        share = weight / sum(weights)
        assert abs(counts[name] / count - share) <= 4.5 * np.sqrt(share * (1 - share) / count)


def test_rank_to_rank_by_model_and_by_client() -> None:
    rows = [
        Row(float(n), name, 1, 1, client=client)
        for n, (name, client) in enumerate(zip("babbc", [7, 8, 8, 8, 7], strict=True))
    ]
    trace = trace_of(rows)
    assert models(trace, Deal(("big", "mid", "small"), "rank", by="model")) == ["big", "mid", "big", "big", "small"]
    assert models(trace, Deal(("big", "mid"), "rank", by="client")) == ["mid", "big", "big", "big", "mid"]
    stream = in_chunks(trace)
    rows_of(
        map_models(stream, Deal(("one", "two"), "rank", by="model"), rng.stream(1), tally(in_chunks(trace), "model"))
    )
    assert stream.notices == ["map_models: 3 names of 'model' share 2 models; after the last one they begin anew"]


def test_a_session_alternates_from_where_it_began() -> None:
    rows = [Row(float(n), "x", 1, 1, session) for n, session in enumerate(["s", "s", "t", None, "s", "t", "s"])]
    found = models(trace_of(rows), Deal(MODELS, "round-robin", by="session", alternate=True))
    assert found == ["m1", "m2", "m2", "m3", "m3", "m3", "m1"]


def test_tally_counts_in_order_of_appearance() -> None:
    rows = [
        Row(float(n), name, 1, 1, session) for n, (name, session) in enumerate([("b", "s"), ("a", None), ("b", None)])
    ]
    assert tally(in_chunks(trace_of(rows), [1]), "model") == ({"b": 2, "a": 1}, 2)
    assert tally(in_chunks(trace_of(rows), [1]), "session") == ({"s": 1}, 3)
    assert tally(in_chunks(trace_of(rows), [1]), "request") == ({}, 3)
    assert shares_of({"b": 1, "a": 3}) == (("a", "b"), (0.75, 0.25))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"law": "zip:1"}, "unknown law 'zip:1'; the laws are zipf:S"),
        ({"law": "zipf"}, "'zipf' needs an exponent"),
        ({"law": "zipf:nan"}, "'zipf:nan' needs an exponent"),
        ({"law": "zipf:-1"}, "'zipf:-1' needs an exponent"),
        ({"law": "stripes:0"}, "'stripes:0' needs a whole width"),
        ({"law": "stripes:1.5"}, "'stripes:1.5' needs a whole width"),
        ({"law": "stripes:inf"}, "'stripes:inf' needs a whole width"),
        ({"law": "uniform:3"}, "'uniform:3': uniform takes no number"),
        ({"law": "shares"}, "the law 'shares' goes with shares"),
        ({"law": "rank"}, "the law 'rank' needs by: model"),
        ({"law": "uniform", "alternate": True}, "alternate needs by"),
        ({"law": "uniform", "models": ()}, "no models"),
    ],
    ids=str,
)
def test_deals_that_make_no_sense(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(").replace("[", r"\[")) as caught:
        Deal(**{"models": MODELS, **arguments})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_columns_and_names_that_are_not_there() -> None:
    trace = trace_of([Row(0.0, "x", 1, 1, client=1), Row(1.0, "y", 1, 1)])
    with pytest.raises(TraceError, match=r"no column 'clint' to go by; did you mean 'client'\?"):
        dealt(trace, Deal(MODELS, "uniform", by="clint"))
    with pytest.raises(TraceError, match="column 'client' is empty in some rows"):
        dealt(trace, Deal(MODELS, "uniform", by="client"))
    with pytest.raises(TraceError, match=r"'y' of 'model' is not in the table; add it"):
        dealt(trace, Deal(MODELS, "table", by="model", table={"x": "m1"}))
    lists = trace_of([Row(0.0, "x", 1, 1, blocks=(1,))])
    with pytest.raises(TraceError, match="holds lists"):
        dealt(lists, Deal(MODELS, "uniform", by="prefix_blocks"))
