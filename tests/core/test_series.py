"""Series of what is on the GPUs: rows agree with the GPUs' own accounts, also as means; bounded, and the same again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sim.core.record.recorder import Recorder
from sim.core.record.series import COLUMNS, Series
from sim.core.state.instance import ASLEEP, GONE, PENDING, READY, STATUSES
from sim.engine.engine import Engine, Outcome, simulate
from sim.results.run_folder import write_run
from sim.results.summary import summarize
from sim.scenario.scenario import parse_scenario
from tests.support.cli_cases import invoke, scenario_data, write_scenario
from tests.support.watched import play_watched

QUICK = settings(
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=(Phase.explicit, Phase.generate),
)
SEEDS = st.integers(0, 2**32)


def frame(engine: Engine) -> pd.DataFrame:
    series = engine.world.recorder.series
    assert series is not None
    return pd.DataFrame(series.columns(engine.clock.now_s))[list(COLUMNS)]


def byte_seconds(rows: pd.DataFrame, end_s: float) -> pd.Series:
    """Of each GPU, from rows that hold until the next of their instance, or are means over span_s."""
    rows = rows[rows.gpu >= 0].copy()
    until_s = rows.groupby("instance").time_s.shift(-1).fillna(end_s)
    rows["seconds"] = rows.span_s.where(rows.span_s.notna(), until_s - rows.time_s)
    return (rows.gpu_bytes * rows.seconds).groupby(rows.gpu).sum()


@QUICK
@given(seed=SEEDS, horizon_s=st.sampled_from((None, 6.0)))
def test_rows_add_up_to_the_memory_account(seed: int, horizon_s: float | None) -> None:
    engine = play_watched(seed, Series(), None, horizon_s=horizon_s)
    rows = frame(engine)
    assert rows.span_s.isna().all()
    found = byte_seconds(rows, engine.clock.now_s)
    for gpu in engine.world.cluster.gpus:
        assert found.get(gpu.index, 0.0) == pytest.approx(gpu.byte_seconds, rel=1e-9, abs=1.0)
    assert (rows.time_s.diff().dropna() >= 0).all()
    assert not rows[rows.gpu >= 0].duplicated(["instance", "time_s"]).any()
    held = rows[rows.gpu_bytes > 0]
    assert not held.status.isin([PENDING, ASLEEP, GONE]).any()
    assert (rows.layers[rows.status.isin([ASLEEP, GONE])] == 0).all()
    layers = {model.index: model.weights.layers for model in engine.world.cluster.models}
    assert np.allclose(rows.residency, rows.layers / rows.model.map(layers))
    # An instance comes once and goes once; whoever is still there at the end has not gone.
    last = rows[rows.gpu >= 0].groupby("instance").status.last()
    assert sorted(last.index[last != GONE]) == sorted(engine.world.cluster.instances)


@QUICK
@given(seed=SEEDS, most_rows=st.sampled_from((4, 12, 60)))
def test_means_add_up_to_the_same(seed: int, most_rows: int) -> None:
    full = play_watched(seed, Series(), None)
    engine = play_watched(seed, Series(most_rows), None)
    rows, exact = frame(engine), frame(full)
    series, end_s = engine.world.recorder.series, engine.clock.now_s
    assert series is not None
    found = byte_seconds(rows, end_s)
    for gpu in engine.world.cluster.gpus:
        assert found.get(gpu.index, 0.0) == pytest.approx(gpu.byte_seconds, rel=1e-9, abs=1.0)
    if series.means is None:
        pd.testing.assert_frame_equal(rows, exact)
        return
    pairs = exact[["gpu", "model"]].drop_duplicates()
    assert len(rows) <= max(most_rows, len(pairs))
    assert rows.span_s.notna().all()
    assert (rows.instance == -1).all()
    assert (rows.time_s + rows.span_s).max() <= end_s * (1 + 1e-12)
    assert not rows.duplicated(["time_s", "gpu", "model"]).any()
    exact["seconds"] = exact.groupby(["gpu", "model", "instance"]).time_s.shift(-1).fillna(end_s) - exact.time_s
    for name in ("running", "waiting"):  # of whom the same instants know, as time goes by
        one = (rows[name] * rows.span_s).groupby(rows.model).sum()
        two = (exact[name] * exact.seconds).groupby(exact.model).sum()
        assert np.allclose(one.reindex(two.index, fill_value=0.0), two, rtol=1e-9, atol=1e-6), name
    held = exact[exact.gpu_bytes > 0]
    mean = (held.residency * held.seconds).groupby(held.model).sum() / held.seconds.groupby(held.model).sum()
    for model, residency in rows[rows.residency.notna()].groupby("model").residency:
        assert residency.min() >= held.residency[held.model == model].min() - 1e-9
        assert residency.max() <= held.residency[held.model == model].max() + 1e-9
        if len(residency) == 1:
            assert residency.iloc[0] == pytest.approx(mean[model])


def followed(**changes: object) -> Outcome:
    recorder = Recorder()
    recorder.series = Series()
    return simulate(parse_scenario(scenario_data(**changes), "test"), recorder=recorder)


def test_batches_and_queues_are_those_of_each_instant() -> None:
    """On the grid, all who have arrived and not ended are running or waiting somewhere, and the rows say where."""
    traffic = [{"model": "chat", "rate_per_s": 1.5}, {"model": "code", "rate_per_s": 0.5}]
    outcome = followed(workload={"duration_s": 400, "traffic": traffic}, engine={"max_sequences": 4})
    rows = pd.DataFrame(outcome.recorder.series.columns(outcome.end_s))  # type: ignore[union-attr]
    arrival_s, end_s = (outcome.recorder.columns[name] for name in ("arrival_s", "end_s"))
    rows["key"] = np.where(rows.instance >= 0, rows.instance, -1 - rows.model)
    seen = 0
    for at_s in np.arange(2.0, outcome.end_s, 2.0):
        now = rows[rows.time_s <= at_s].groupby("key")[["running", "waiting"]].last()
        inside = int((arrival_s < at_s).sum() - (end_s < at_s).sum())
        assert now.to_numpy().sum() == inside, at_s
        seen = max(seen, inside)
    assert seen > 4


def test_an_instance_goes_through_its_life() -> None:
    outcome = followed(models=[{"name": "chat", "model": "Qwen2.5-14B"}, {"name": "code", "model": "Qwen2.5-14B"}])
    rows = pd.DataFrame(outcome.recorder.series.columns(outcome.end_s))  # type: ignore[union-attr]
    first = rows[rows.instance == 1]
    lives = [STATUSES[code] for code in dict.fromkeys(first.status)]
    assert lives == [name for name in STATUSES if name in lives]  # in the order of a life
    assert {"starting", "loading", "ready", "gone"} <= set(lives)
    ready = first[first.status == READY]
    assert (ready.residency == 1).all()
    loads = [row for row in outcome.recorder.switches if row[1] == "load"]
    assert ready.time_s.iloc[0] == loads[0][0]


def test_a_folder_has_the_series(tmp_path: Path) -> None:
    path = write_scenario(tmp_path)
    for name in ("one", "two"):
        assert invoke("run", path, "--out", tmp_path / name).exit_code == 0
    first, second = (tmp_path / name / "series.parquet" for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    rows = pd.read_parquet(first)
    assert list(rows.columns) == list(COLUMNS)
    assert set(rows.model) == {"chat", "code"}
    assert set(rows.gpu.dropna()) == {"a/rtx-a6000-0"}
    assert rows.status.dropna().isin(STATUSES).all()
    assert rows.instance.dropna().min() == 1


def test_a_run_that_was_not_followed_has_none(tmp_path: Path) -> None:
    outcome = simulate(parse_scenario(scenario_data(), "test"))
    write_run(tmp_path / "run", outcome, summarize(outcome))
    assert not (tmp_path / "run" / "series.parquet").exists()


def test_a_series_of_nothing_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("arrival_s,model,prompt_tokens,output_tokens\n5,chat,40000,40000\n")
    path = write_scenario(tmp_path, workload={"file": "none.csv"})
    assert invoke("run", path, "--out", tmp_path / "run").exit_code == 0
    assert len(pd.read_parquet(tmp_path / "run" / "series.parquet")) == 0
