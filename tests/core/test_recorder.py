"""The histogram of inter-token latencies, which books whole series at once, against every single latency."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.core.record.recorder import BIN_WIDTH, SWITCH_COLUMNS, Recorder, TokenLatencies
from sim.core.state.instance import Instance
from sim.core.state.machines import Placement
from sim.engine.build_cluster import build_cluster
from sim.profiles.library import Library
from tests.support.scenarios import scenario, synthetic

QUICK = settings(derandomize=True, deadline=None, print_blob=True, max_examples=150)


def singles(rows: list[tuple[int, int, float, float]]) -> list[float]:
    return [
        value
        for sequences, number, first_s, last_s in rows
        for value in np.repeat(np.linspace(first_s, last_s, number), sequences).tolist()
    ]


@QUICK
@given(seed=st.integers(0, 2**32))
def test_a_series_counts_like_its_tokens(seed: int) -> None:
    draws = random.Random(seed)
    rows = []
    for _ in range(draws.randint(1, 12)):
        first_s = 10 ** draws.uniform(-4, 2)
        number = draws.choice((1, 1, 2, 7, 400))
        last_s = first_s if number == 1 else first_s * draws.choice((1.0, 1.0001, 1.3, 0.7, 5.0))
        rows.append((draws.randint(1, 9), number, first_s, last_s))
    latencies = TokenLatencies()
    for row in rows:
        latencies.add(*row)
    shares = [0.01, 0.5, 0.9, 0.99, 1.0]
    quantiles = latencies.quantiles(shares)
    values = np.sort(singles(rows))
    assert latencies.tokens == len(values) == latencies.counts.sum()
    assert latencies.total_s == pytest.approx(values.sum(), rel=1e-12)
    assert latencies.max_s == pytest.approx(values.max(), rel=1e-15)
    for share, quantile in zip(shares, quantiles, strict=True):
        exact = values[max(0, int(np.ceil(share * len(values) - 1e-9)) - 1)]
        assert exact * (1 - 1e-9) <= quantile <= exact * (1 + BIN_WIDTH) * (1 + 1e-9), (share, exact, quantile)


def test_no_tokens_have_no_quantiles() -> None:
    assert np.isnan(TokenLatencies().quantiles([0.5])).all()


def test_many_rows_are_counted_in_parts() -> None:
    # The buffer is emptied now and then; nothing is lost or counted twice.
    latencies = TokenLatencies()
    for _ in range(70_000):
        latencies.add(1, 2, 0.01, 0.02)
    latencies.settle()
    latencies.settle()
    assert latencies.tokens == 140_000 == latencies.counts.sum()
    assert latencies.total_s == pytest.approx(70_000 * 0.03)


def test_extreme_latencies_stay_in_the_histogram() -> None:
    latencies = TokenLatencies()
    latencies.add(1, 1, 0.0, 0.0)
    latencies.add(1, 1, 1e9, 1e9)
    assert latencies.quantiles([1.0])[0] <= 1e9
    assert latencies.counts.sum() == 2


def test_a_switch_has_every_column_and_no_other() -> None:
    of = scenario()
    cluster = build_cluster(of, Library(Path(synthetic())))
    model, placement = cluster.models[0], Placement((cluster.gpus[0],))
    instance = Instance(7, model, placement, model.residency(3), 64, 16, 8)
    recorder = Recorder()
    recorder.switch(1.0, "load", instance, reload_s=2.0, bytes=5.0, from_disk=True)
    row = dict(zip(SWITCH_COLUMNS, recorder.switches[0], strict=True))
    assert (row["model"], row["gpu"], row["instance"]) == ("a", cluster.gpus[0].name, 7)
    assert (row["layers"], row["reload_s"], row["kv_save_s"], row["mode"], row["from_disk"]) == (3, 2.0, 0.0, "", True)
    assert recorder.seconds["reload_s"] == 2.0
    with pytest.raises(AssertionError):
        recorder.switch(1.0, "load", instance, reloads=2.0)


def test_tokens_below_full_residency_are_counted_apart() -> None:
    recorder = Recorder()
    recorder.tokens(5, 1.0)
    recorder.tokens(3, 0.75)
    assert (recorder.output_tokens, recorder.tokens_below_full_residency) == (8, 3)
