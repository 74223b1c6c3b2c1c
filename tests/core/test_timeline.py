"""Timelines: whatever is played, the slices add up to the GPU-time budget, in full, made coarser, or through a window.

Random runs hold the laws of what is followed; files are read by a reader of the published format, and by Perfetto's own
trace processor where its binary is at hand (nothing is downloaded for it).
"""

from __future__ import annotations

import importlib.util
import os
from itertools import pairwise
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import sim
from sim.core.record.recorder import Recorder
from sim.core.record.series import Series
from sim.core.record.timeline import BATCHES, CLUSTER, WHAT, Slice, Timeline
from sim.core.state.instance import STATUSES
from sim.engine.build_cluster import build_cluster
from sim.engine.engine import Engine
from sim.policy import Preempt, View
from sim.profiles.library import Library
from tests.support.cli_cases import invoke, scenario_data, write_scenario
from tests.support.scenarios import Script, load_all, nodes, scenario, serve_all, trace
from tests.support.watched import ChromeTrace, play_watched, read_chrome_trace

QUICK = settings(
    derandomize=True,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=(Phase.explicit, Phase.generate),
)
SEEDS = st.integers(0, 2**32)
MANY = 10**9


def budgets(timeline: Timeline, gpu: int) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in timeline.lanes.get((gpu, -1, 0), []):
        for kind, seconds in part.budget_s().items():
            found[kind] = found.get(kind, 0.0) + seconds
    return found


def union_s(parts: list[Slice]) -> float:
    """Seconds in which at least one of the slices is under way."""
    total, reached = 0.0, -inf
    for begin_s, end_s in sorted((part.begin_s, part.end_s) for part in parts):
        total += max(0.0, end_s - max(begin_s, reached))
        reached = max(reached, end_s)
    return total


def assert_budgets(engine: Engine) -> None:
    timeline = engine.world.recorder.timeline
    assert timeline is not None
    for gpu in engine.world.cluster.gpus:
        found = budgets(timeline, gpu.index)
        for name, seconds in gpu.activity_s.items():
            assert found.get(name, 0.0) == pytest.approx(seconds, abs=1e-9), (gpu.name, name)


@QUICK
@given(seed=SEEDS, horizon_s=st.sampled_from((None, 4.0, 20.0)))
def test_slices_add_up_to_the_time_of_every_gpu(seed: int, horizon_s: float | None) -> None:
    engine = play_watched(seed, None, Timeline(MANY), horizon_s=horizon_s)
    timeline, end_s = engine.world.recorder.timeline, engine.clock.now_s
    assert timeline is not None
    assert timeline.grain_s == 0
    assert_budgets(engine)
    for gpu in engine.world.cluster.gpus:
        lane = timeline.lanes.get((gpu.index, -1, 0), [])
        assert [part.begin_s for part in lane[1:]] == [part.end_s for part in lane[:-1]]  # without a gap
        assert (lane[0].begin_s, lane[-1].end_s) == (0.0, end_s) if lane else end_s == 0
        batches = [
            part for key, parts in timeline.lanes.items() if key[0] == gpu.index and key[2] == BATCHES for part in parts
        ]
        assert union_s(batches) == pytest.approx(gpu.activity_s["computing"], abs=1e-9)
    for key, parts in timeline.lanes.items():
        assert all(one.end_s <= two.begin_s for one, two in pairwise(parts)), key
        assert all(part.begin_s < part.end_s for part in parts)


@QUICK
@given(seed=SEEDS)
def test_the_lane_of_a_slot_says_what_is_loaded_and_its_batches_lie_within(seed: int) -> None:
    engine = play_watched(seed, None, Timeline(MANY))
    timeline = engine.world.recorder.timeline
    assert timeline is not None
    held: dict[int, float] = {gpu.index: 0.0 for gpu in engine.world.cluster.gpus}
    for (gpu, slot, lane), parts in timeline.lanes.items():
        if slot < 0 or lane != WHAT:
            continue
        for part in parts:
            assert part.arguments is not None
            held[gpu] += (part.end_s - part.begin_s) * part.arguments["gpu_bytes"]
        for batch in timeline.lanes.get((gpu, slot, BATCHES), []):
            assert batch.arguments is not None
            over = [
                part for part in parts if part.begin_s <= batch.begin_s + 1e-12 and batch.end_s <= part.end_s + 1e-12
            ]
            across = [part for part in parts if part.end_s > batch.begin_s and part.begin_s < batch.end_s]
            owners = {part.arguments["instance"] for part in over or across if part.arguments is not None}
            assert owners == {batch.arguments["instance"]}
    # Whoever is noted holds its memory exactly as long as the GPU's own account says.
    for gpu in engine.world.cluster.gpus:
        assert held[gpu.index] == pytest.approx(gpu.byte_seconds, rel=1e-9, abs=1.0)


@QUICK
@given(seed=SEEDS, most_events=st.sampled_from((5, 40, 200)))
def test_a_coarser_timeline_still_adds_up(seed: int, most_events: int) -> None:
    engine = play_watched(seed, None, Timeline(most_events))
    full = play_watched(seed, None, Timeline(MANY)).world.recorder.timeline
    timeline = engine.world.recorder.timeline
    assert timeline is not None
    assert full is not None
    assert_budgets(engine)
    events = [len(lane) for lane in timeline.lanes.values()] + [len(c) for c in timeline.counters.values()]
    assert timeline.events == sum(events) + len(timeline.instants)
    if full.events > 2 * most_events:
        assert timeline.grain_s > 0
        assert timeline.events < full.events
    # Each slice and each event is still in there, by number.
    assert sum(instant.times for instant in timeline.instants) == len(full.instants)
    for key, lane in full.lanes.items():
        if key[1] >= 0:
            assert sum(part.parts for part in timeline.lanes[key]) == len(lane), key
    while timeline.coarsen():
        assert_budgets(engine)
    assert all(len(lane) == 1 for lane in timeline.lanes.values())


@QUICK
@given(seed=SEEDS, cut_s=st.sampled_from((0.3, 2.0, 7.5)))
def test_windows_beside_each_other_show_all(seed: int, cut_s: float) -> None:
    whole, early, late = (
        play_watched(seed, None, timeline)
        for timeline in (Timeline(MANY), Timeline(MANY, 0.0, cut_s), Timeline(MANY, cut_s, inf))
    )
    timelines = [engine.world.recorder.timeline for engine in (whole, early, late)]
    assert timelines[0] is not None
    assert timelines[1] is not None
    assert timelines[2] is not None
    for gpu in whole.world.cluster.gpus:
        sums = [budgets(timeline, gpu.index) for timeline in timelines if timeline is not None]
        for name, seconds in sums[0].items():
            assert sums[1].get(name, 0.0) + sums[2].get(name, 0.0) == pytest.approx(seconds, abs=1e-9)
    for key, values in timelines[0].counters.items():
        # The value that holds when a window opens is its first.
        if values[0][0] <= cut_s:
            opening = [value for time_s, value in values if time_s <= cut_s][-1]
            assert timelines[2].counters[key][0] == (cut_s, opening), key
    at_cut = sum(instant.time_s == cut_s for instant in timelines[0].instants)
    shown = len(timelines[1].instants) + len(timelines[2].instants)
    assert shown == len(timelines[0].instants) + at_cut


@QUICK
@given(seed=SEEDS)
def test_watching_changes_nothing(seed: int) -> None:
    one = play_watched(seed, None, None)
    two = play_watched(seed, Series(50), Timeline(100))
    assert one.clock.events == two.clock.events
    assert one.clock.now_s == two.clock.now_s
    for name, values in one.world.recorder.columns.items():
        assert np.array_equal(values, two.world.recorder.columns[name], equal_nan=True), name
    assert one.world.recorder.switches == two.world.recorder.switches


def test_slices_and_events_are_what_the_policy_did() -> None:
    """One model whole on one GPU; of two requests, one is preempted by the policy while both decode."""
    of = scenario(cluster=nodes(("large", 1)))
    asked: list[bool] = []

    def decide(view: View) -> Any:
        running = [request for model in view.models for i in model.instances for request in i.running]
        if view.now_s >= 4.0 and len(running) == 2 and not asked:
            asked.append(True)
            yield Preempt(running[1], "save")
            return
        yield from serve_all(view)

    rows = [(0.0, "a", 100, 300, 0), (0.0, "a", 200, 300, 0), (4.0, "a", 10, 5, 0), (4.5, "a", 1000, 900, 0)]
    recorder = Recorder()
    recorder.timeline = Timeline(MANY)
    library = Library(Path(str(of.profiles)))
    policy = Script(decide, load_all)
    engine = Engine(of, iter([trace(of, rows)]), build_cluster(of, library), policy, True, recorder)
    engine.run()
    timeline = recorder.timeline
    what = [part.kind for part in timeline.lanes[0, 0, WHAT]]
    assert what == ["starting a", "loading a", "a 4/4"]
    assert all(f"{status} a" in what for status in STATUSES[1:3])
    batches = timeline.lanes[0, 0, BATCHES]
    assert batches[0].kind == "prefill"
    assert batches[0].arguments == {"model": "a", "instance": 1, "requests": [0, 1], "prompt_tokens": 300, "tokens": 2}
    assert batches[1].kind == "decode"
    assert batches[1].arguments is not None
    assert batches[1].arguments["batch"] == 2
    produced = sum((part.arguments or {}).get("tokens", 0) for part in batches)
    assert produced == recorder.output_tokens == 605
    (saved,) = timeline.lanes[0, 0, 2]
    (restored,) = timeline.lanes[0, 0, 3]
    assert (saved.kind, restored.kind) == ("kv_save", "kv_restore")
    kinds = [(instant.kind, instant.gpu) for instant in timeline.instants]
    assert kinds == [("sequence preempted", 0), ("impossible", CLUSTER)]
    preempted = next(instant for instant in timeline.instants if instant.gpu == 0)
    assert preempted.arguments["request"] in (0, 1)
    assert preempted.arguments["why"] == "policy: save"


# --- files


@pytest.fixture(scope="module")
def thousand(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ChromeTrace]:
    """A run of more than 1,000 requests with models that push each other out, kept with its timeline."""
    folder = tmp_path_factory.mktemp("thousand")
    models = [{"name": f"m{at}", "model": name} for at, name in enumerate(("Qwen2.5-3B", "Llama-3-8B", "Qwen2.5-14B"))]
    traffic = [{"model": model["name"], "rate_per_s": 0.7, "output_max": 200} for model in models]
    workload = {"duration_s": 520, "traffic": traffic}
    path = write_scenario(folder, models=models, workload=workload, policy={"name": "lru-swap"})
    result = invoke("run", path, "--out", folder / "run", "--timeline", folder / "run.json")
    assert result.exit_code == 0, result.output
    assert "run.json, for ui.perfetto.dev" in result.stderr
    return folder, read_chrome_trace(folder / "run.json")


def assert_file_adds_up(shown: ChromeTrace, gpus: pd.DataFrame) -> None:
    for gpu in gpus.to_dict("records"):
        process = f"{gpu['name']} ({gpu['kind']})"
        found: dict[str, float] = {}
        for part in shown.slices:
            if (part.process, part.thread) != (process, "GPU"):
                continue
            if "slices" in part.arguments:
                for name, seconds in part.arguments.items():
                    if name != "slices":
                        found[name] = found.get(name, 0.0) + seconds
            else:
                found[f"{part.name}_s"] = found.get(f"{part.name}_s", 0.0) + part.seconds
        for name in ("computing_s", "loading_s", "transferring_s", "idle_s"):
            assert found.get(name, 0.0) == pytest.approx(gpu[name], abs=1e-6), (process, name)


def test_a_file_adds_up_to_the_summary(thousand: tuple[Path, ChromeTrace]) -> None:
    folder, shown = thousand
    gpus = pd.read_parquet(folder / "run" / "gpus.parquet")
    requests = pd.read_parquet(folder / "run" / "requests.parquet")
    switches = pd.read_parquet(folder / "run" / "switches.parquet")
    assert len(requests) >= 1000
    assert_file_adds_up(shown, gpus)
    loads = switches[switches.kind == "load"]
    loading = [part for part in shown.slices if part.name.startswith("loading ")]
    assert len(loading) >= len(loads) > 5
    tokens = sum(part.arguments.get("tokens", 0) for part in shown.slices if ": batches" in part.thread)
    assert tokens == requests.produced_tokens.sum()
    memory = shown.counters[f"{gpus.name[0]} ({gpus.kind[0]})", "weights", "bytes"]
    assert max(value for _, value in memory) < gpus.usable_memory_bytes[0]
    assert {name for process, name, _ in shown.counters if process == "cluster"} == {
        "running sequences", "waiting requests", "waiting m0", "waiting m1", "waiting m2",
    }  # fmt: skip


def test_a_file_is_no_larger_than_asked(thousand: tuple[Path, ChromeTrace]) -> None:
    folder, whole = thousand
    path = folder / "small.json"
    small = invoke("run", folder / "mini.yaml", "--timeline", path, "--timeline-max-mb", "0.1", "--json")
    assert small.exit_code == 0
    assert "are merged" in small.stderr
    assert path.stat().st_size <= 100_000 < (folder / "run.json").stat().st_size
    shown = read_chrome_trace(path)
    assert shown.about["merged_below_s"] > 0 == whole.about["merged_below_s"]
    assert_file_adds_up(shown, pd.read_parquet(folder / "run" / "gpus.parquet"))


def test_a_window_is_cut_and_said(thousand: tuple[Path, ChromeTrace]) -> None:
    folder, _ = thousand
    path = folder / "window.json.gz"
    window = ("--timeline-from", "100", "--timeline-until", "150.5")
    result = invoke("run", folder / "mini.yaml", "--timeline", path, *window)
    assert "only 100 s to 150.5 s of" in result.stderr
    shown = read_chrome_trace(path)
    assert min(part.begin_ns for part in shown.slices) == 100 * 10**9
    assert max(part.end_ns for part in shown.slices) == 150_500_000_000
    gpu = [part.seconds for part in shown.slices if part.thread == "GPU"]
    assert sum(gpu) == pytest.approx(50.5, abs=1e-6)


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    path = write_scenario(tmp_path)
    for name in ("one.json", "two.json", "one.json.gz", "two.json.gz"):
        assert invoke("run", path, "--timeline", tmp_path / name).exit_code == 0
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert (tmp_path / "one.json.gz").read_bytes() == (tmp_path / "two.json.gz").read_bytes()
    assert read_chrome_trace(tmp_path / "one.json") == read_chrome_trace(tmp_path / "one.json.gz")


def test_a_run_without_requests_has_a_timeline(tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("arrival_s,model,prompt_tokens,output_tokens\n5,chat,40000,40000\n")
    path = write_scenario(tmp_path, workload={"file": "none.csv"})
    result = invoke("run", path, "--timeline", tmp_path / "t.json")
    assert result.exit_code == 0, result.output
    shown = read_chrome_trace(tmp_path / "t.json")
    assert [(name, at_ns) for _, _, name, at_ns, _ in shown.instants] == [("impossible", 5 * 10**9)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--timeline", "x.txt"], "its name ends in .json or .json.gz"),
        (["--timeline", "no/such/x.json"], "there is no folder no"),
        (["--timeline", "mini.yaml.json"], "exists already"),
        (["--timeline", "x.json", "--timeline-from", "9", "--timeline-until", "9"], "is not after"),
        (["--timeline", "x.json", "--timeline-from", "-1"], "from 0 on"),
        (["--timeline", "x.json", "--timeline-from", "nan"], "from 0 on"),
        (["--timeline", "x.json", "--timeline-until", "nan"], "is not after"),
        (["--timeline", "x.json", "--timeline-max-mb", "0"], "between 0.1 and 10,000"),
        (["--timeline", "x.json", "--timeline-max-mb", "nan"], "between 0.1 and 10,000"),
        (["--timeline-from", "3"], "give --timeline FILE with it"),
        (["--timeline-max-mb", "3"], "give --timeline FILE with it"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str) -> None:
    monkeypatch.chdir(tmp_path)
    write_scenario(tmp_path)
    (tmp_path / "mini.yaml.json").write_text("mine")
    result = invoke("run", "mini.yaml", *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mini.yaml", "mini.yaml.json"]


def test_a_failed_run_leaves_no_timeline(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(
        "from sim.policy import Policy\n\n\nclass Bad(Policy):\n    def decide(self, view):\n        return [1]\n"
    )
    path = write_scenario(tmp_path)
    assert invoke("run", path, "--policy", tmp_path / "bad.py", "--timeline", tmp_path / "t.json").exit_code == 2
    assert not (tmp_path / "t.json").exists()


# --- Perfetto's own reader


def trace_processor_binary() -> str | None:
    """The trace processor's binary if it is on this machine; the package perfetto would fetch it otherwise."""
    given_path = os.environ.get("TRACE_PROCESSOR_BIN")
    if given_path:
        return given_path
    home = Path.home() / ".local" / "share" / "perfetto" / "prebuilts"
    found = sorted(path for path in home.glob("trace_processor_shell*") if os.access(path, os.X_OK))
    return str(found[-1]) if found else None


def test_perfettos_trace_processor_reads_it(thousand: tuple[Path, ChromeTrace]) -> None:
    binary = trace_processor_binary()
    if importlib.util.find_spec("perfetto") is None:
        pytest.skip("the package perfetto is not installed")
    if binary is None:
        pytest.skip("there is no trace_processor_shell here (TRACE_PROCESSOR_BIN), and tests download nothing")
    from perfetto.trace_processor import TraceProcessor, TraceProcessorConfig  # noqa: PLC0415

    folder, shown = thousand
    with TraceProcessor(str(folder / "run.json"), config=TraceProcessorConfig(bin_path=binary)) as processor:
        query = (
            "select process.name as gpu, slice.name as kind, sum(slice.dur) / 1e9 as seconds from slice "
            "join thread_track on slice.track_id = thread_track.id join thread using (utid) "
            "join process using (upid) where thread.name = 'GPU' group by 1, 2"
        )
        found = {(row.gpu, row.kind): row.seconds for row in processor.query(query)}
        (errors,) = processor.query("select sum(value) as bad from stats where severity = 'error'")
        (number,) = processor.query("select count(*) as slices from slice where dur >= 0")
    assert not errors.bad
    assert number.slices >= len(shown.slices)
    for gpu in pd.read_parquet(folder / "run" / "gpus.parquet").to_dict("records"):
        for kind in ("computing", "loading", "transferring", "idle"):
            seconds = found.get((f"{gpu['name']} ({gpu['kind']})", kind), 0.0)
            assert seconds == pytest.approx(gpu[f"{kind}_s"], abs=1e-6)


def test_the_engine_is_asked_for_nothing_unless_it_is_followed() -> None:
    outcome = sim.engine.engine.simulate(sim.parse_scenario(scenario_data(), "test"))  # type: ignore[attr-defined]
    assert outcome.recorder.timeline is None
    assert outcome.recorder.series is None
    assert all(gpu.timeline is None for gpu in outcome.cluster.gpus)
