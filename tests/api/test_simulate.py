"""Library use: the same runs as the command line's, policies as classes and objects, traces as DataFrames, figures."""

from __future__ import annotations

import hashlib
import io
import json
import linecache
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import sim
from sim.api.run import Run
from sim.api.simulate import simulate
from sim.common.errors import ConfigError, PolicyError, TraceError
from sim.policy import Action, Field, Load, Policy, PolicyParameters, Reject, Route, View
from tests.support.cli_cases import invoke, scenario_data, write_scenario
from tests.support.watched import read_chrome_trace

CELL = """
from sim.policy import Load, Policy, Route

class Everywhere(Policy):
    def start(self, view):
        for model in view.models:
            gpu = max(view.gpus, key=lambda gpu: gpu.available_bytes)
            yield Load(model, gpu, model.layers_within(gpu.available_bytes))

    def decide(self, view):
        for request in view.waiting:
            yield Route(request, request.model.least_loaded)
"""


class Whole(Policy):
    """Every model whole where there is most room; whoever comes goes there."""

    class Parameters(PolicyParameters):
        spare: int = Field(0, ge=0, description="layers to leave out")

    def __init__(self, parameters: Any = None) -> None:
        super().__init__(parameters)
        self.decided = 0

    def start(self, view: View) -> Iterable[Action]:
        for model in view.models:
            gpu = max(view.gpus, key=lambda gpu: gpu.available_bytes)
            yield Load(model, gpu, model.layers_within(gpu.available_bytes) - self.parameters.spare)

    def decide(self, view: View) -> Iterable[Action]:
        self.decided += 1
        for request in list(view.waiting):
            yield Route(request, request.model.instances[0])


class Lazy(Whole):
    """As its base."""


class Rude(Policy):
    """Turns everybody away."""

    def decide(self, view: View) -> Iterable[Action]:
        return [Reject(request, "<b>no</b>") for request in list(view.waiting)]


@pytest.fixture(scope="module")
def run() -> Run:
    return simulate(scenario_data())


def numbers(summary: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in summary.items() if name != "engine"}


def in_a_cell(text: str, name: str) -> type[Policy]:
    """The class that a notebook's cell defines: its text is in linecache, in no file."""
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, name, "exec"), namespace)
    found: type[Policy] = namespace["Everywhere"]
    return found


# --- the same as the command line


def test_a_library_run_is_the_command_lines_run(tmp_path: Path) -> None:
    path = write_scenario(tmp_path)
    options = ("--policy", "residency-aware", "--seed", "7", "--set", "engine.max_sequences=5", "--check")
    told = invoke("run", path, *options, "--json", "--out", tmp_path / "cli")
    played = sim.simulate(str(path), policy="residency-aware", seed=7, settings={"engine.max_sequences": 5}, check=True)
    assert numbers(json.loads(told.stdout)) == numbers(json.loads(played.to_json()))
    folder = played.save(tmp_path / "library")
    for name in ("requests.parquet", "gpus.parquet", "switches.parquet", "series.parquet", "scenario.yaml"):
        assert (folder / name).read_bytes() == (tmp_path / "cli" / name).read_bytes(), name
    for name in ("requests", "gpus", "switches", "series"):
        kept = pd.read_parquet(folder / f"{name}.parquet")
        pd.testing.assert_frame_equal(getattr(played, name), kept)


def test_every_way_to_give_a_scenario_gives_the_same_run(tmp_path: Path, run: Run) -> None:
    path = write_scenario(tmp_path)
    scenario = sim.load_scenario(path)
    for given in (path, str(path), scenario_data(), scenario):
        assert sim.simulate(given).run_id == run.run_id
    as_text = sim.simulate(scenario, settings=["engine.max_sequences=5", "seed=3"])
    assert as_text.run_id == sim.simulate(path, settings={"engine.max_sequences": 5}, seed=3).run_id != run.run_id
    assert as_text.scenario.engine.max_sequences == 5


def test_the_default_scenario_is_the_one_that_ships() -> None:
    assert sim.simulate(settings={"horizon_s": 3}).scenario.name == "default"


def test_a_policy_with_parameters_is_given_as_in_a_scenario(run: Run) -> None:
    own = sim.simulate(scenario_data(), policy={"name": "lru-swap"})
    assert own.run_id == run.run_id == sim.simulate(scenario_data(), policy="lru-swap").run_id


# --- what a run has


def test_requests_have_names_and_budgets_that_add_up(run: Run) -> None:
    requests = run.requests
    assert isinstance(requests, pd.DataFrame)
    assert len(requests) == run.summary["requests"]["arrived"]
    assert set(requests.model) == {"chat", "code"}
    assert set(requests.service_class) == {"default"}
    assert set(requests.outcome) == {"completed"}
    phases = [f"{name}_s" for name in run.summary["time_budget_s"]]
    assert np.allclose(requests[phases].sum(axis=1), requests.end_s - requests.arrival_s, atol=1e-9)
    assert run.requests is requests  # made once
    assert float(requests.ttft_s.mean()) == pytest.approx(run.summary["ttft_s"]["mean"])


def test_sessions_have_a_column_where_there_are_any(run: Run) -> None:
    frame = pd.DataFrame(
        {
            "arrival_s": [0.0, 1.5, 2.0],
            "model": "chat",
            "prompt_tokens": 100,
            "output_tokens": 5,
            "session": ["b", None, "b"],
        }
    )
    assert "session" not in run.requests
    sessions = sim.simulate(scenario_data(), trace=frame).requests.session
    assert sessions.isna().tolist() == [False, True, False]
    assert sessions[0] == sessions[2] == 0


def test_tables_agree_with_the_summary(run: Run) -> None:
    assert (run.switches.kind == "load").sum() == run.summary["switching"]["loads"]
    assert list(run.gpus.name) == [gpu["name"] for gpu in run.summary["gpus"]]
    assert set(run.series.gpu.dropna()) == set(run.gpus.name)
    assert run.series.gpu_bytes.max() <= run.gpus.peak_memory_bytes.max()


def test_it_is_pleasant_to_look_at(run: Run) -> None:
    text = repr(run)
    assert text.startswith(f"<Run {run.run_id}: scenario mini")
    assert "\n" not in text
    html = run._repr_html_()
    assert html.count("<tr>") == html.count("</tr>") == 7
    assert len(html) < 3000
    spoilt = sim.simulate(scenario_data(), policy=Rude)
    assert "&lt;b&gt;no&lt;/b&gt;" in spoilt._repr_html_()
    assert "<b>" not in spoilt._repr_html_()


def test_plots_are_figures_of_the_run(run: Run) -> None:
    for figure in (run.plot.latency(), run.plot.latency("outcome"), run.plot.budget(), run.plot.gpus()):
        assert isinstance(figure, Figure)
        assert figure._repr_png_()[:4] == b"\x89PNG"  # type: ignore[attr-defined]
    latency = run.plot.latency()
    ends = [line.get_ydata()[-1] for line in latency.subfigs[0].axes[0].lines]
    assert ends == [1.0, 1.0, 1.0]  # all got a first token
    bars = run.plot.budget().axes[0].patches
    mean_s = run.requests.e2e_s.mean()
    first = sum(bar.get_width() for bar in bars if bar.get_y() < 0)
    assert first == pytest.approx(mean_s)
    shares = sum(bar.get_width() for bar in run.plot.gpus().axes[0].patches)
    assert shares == pytest.approx(1.0)


def test_the_residency_plot_shows_the_memory_of_the_series(run: Run) -> None:
    figure = run.plot.residency()
    areas = figure.axes[0].collections
    top = max(path.vertices[:, 1].max() for area in areas for path in area.get_paths())
    assert top * 2**30 == pytest.approx(run.gpus.peak_memory_bytes[0])
    with pytest.raises(ConfigError, match="did you mean 'a/rtx-a6000-0'"):
        run.plot.residency(["a/rtx-a6000"])
    with pytest.raises(ConfigError, match="unknown column 'modle'; did you mean 'model'"):
        run.plot.latency("modle")


def test_a_plot_without_any_answer_can_be_drawn() -> None:
    nothing = sim.simulate(scenario_data(horizon_s=0.01))
    endless = sim.simulate(scenario_data(horizon_s=20), settings={"engine.ideal": ["memory"]})
    for figure in (
        nothing.plot.latency(),
        nothing.plot.budget(),
        nothing.plot.gpus(),
        nothing.plot.residency(),
        endless.plot.residency(),
    ):
        figure.savefig(io.BytesIO(), format="png")


def test_a_timeline_is_that_of_the_run(tmp_path: Path, run: Run) -> None:
    words = run.timeline(tmp_path / "t.json")
    assert "events" in words
    shown = read_chrome_trace(tmp_path / "t.json")
    assert shown.about["run_id"] == run.run_id
    computing = sum(part.seconds for part in shown.slices if (part.thread, part.name) == ("GPU", "computing"))
    assert computing == pytest.approx(run.gpus.computing_s[0], abs=1e-6)
    assert run.plot.timeline(tmp_path / "two.json")
    assert (tmp_path / "two.json").read_bytes() == (tmp_path / "t.json").read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        run.timeline(tmp_path / "t.json")


def test_a_run_is_not_kept_over_something_else(tmp_path: Path, run: Run) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds other files"):
        run.save(tmp_path)


# --- policies that are objects


@pytest.mark.parametrize("policy", [Whole, Whole(), Lazy], ids=["class", "object", "subclass"])
def test_a_policy_may_be_a_class_or_an_object(policy: Any) -> None:
    played = sim.simulate(scenario_data(), policy=policy, check=True)
    kind = policy if isinstance(policy, type) else type(policy)
    assert played.policy == kind.__name__
    assert played.summary["requests"]["completed"] == len(played.requests)
    assert played.notices == []  # its source can be read
    assert sim.simulate(scenario_data(), policy=policy).run_id == played.run_id


def test_an_object_is_not_used_up() -> None:
    policy = Whole(Whole.Parameters(spare=2))
    one, two = (sim.simulate(scenario_data(), policy=policy) for _ in range(2))
    assert policy.decided == 0
    assert numbers(one.summary) == numbers(two.summary)
    assert one.scenario.policy.parameters == {"spare": 2}
    by_class = sim.simulate(scenario_data(), policy=Whole, settings={"policy.spare": 2})
    assert by_class.run_id == one.run_id
    assert by_class.run_id != sim.simulate(scenario_data(), policy=Whole).run_id
    with pytest.raises(ConfigError, match=r"policy\.spare cannot be changed, the policy is an object already"):
        sim.simulate(scenario_data(), policy=policy, settings={"policy.spare": 1})
    with pytest.raises(ConfigError, match="has no parameter 'spar'; did you mean 'spare'"):
        sim.simulate(scenario_data(), policy=Whole, settings={"policy.spar": 1})


def test_a_policy_of_the_project_is_the_same_as_by_its_name(run: Run) -> None:
    kind = type(sim.load_policy("lru-swap")[0])
    assert sim.simulate(scenario_data(), policy=kind).policy in ("lru-swap", kind.__name__)
    from policies.lru_swap import LruSwap  # noqa: PLC0415  as a user would

    by_class = sim.simulate(scenario_data(), policy=LruSwap)
    assert by_class.run_id == run.run_id
    assert by_class.policy == "lru-swap"


def test_a_cell_is_hashed_and_a_changed_cell_is_another_run() -> None:
    one = sim.simulate(scenario_data(), policy=in_a_cell(CELL, "<cell-1>"))
    again = sim.simulate(scenario_data(), policy=in_a_cell(CELL, "<cell-2>"))
    other = sim.simulate(scenario_data(), policy=in_a_cell(CELL + "\n# changed\n", "<cell-3>"))
    assert one.policy == "Everywhere"
    assert one.run_id == again.run_id != other.run_id
    assert one.notices == []


def test_a_file_is_named_as_by_its_path(tmp_path: Path) -> None:
    """A class from a file has the hash that --policy with that file's path has."""
    path = tmp_path / "everywhere.py"
    path.write_text('"""Everywhere."""\n' + CELL)
    linecache.checkcache(str(path))
    text = path.read_text()
    namespace: dict[str, Any] = {"__name__": "everywhere"}
    exec(compile(text, str(path), "exec"), namespace)
    from sim.api.simulate import _given  # noqa: PLC0415

    chosen = _given(namespace["Everywhere"]).make(sim.parse_scenario(scenario_data(policy="Everywhere"), "test"))
    assert chosen[1] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_policy_whose_source_is_gone_is_marked() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(CELL, "<nowhere>", "exec"), namespace)
    played = sim.simulate(scenario_data(), policy=namespace["Everywhere"])
    (notice,) = played.notices
    assert notice == "policy Everywhere: its source cannot be read, so its versions share one run id"
    assert played.summary["requests"]["completed"] > 0


@pytest.mark.parametrize("policy", [int, 3, Policy, object()])
def test_what_is_no_policy_is_refused(policy: Any) -> None:
    with pytest.raises(PolicyError, match=r"is no subclass of sim\.Policy"):
        sim.simulate(scenario_data(), policy=policy)


# --- traces that are DataFrames


def test_a_frame_is_a_trace(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "arrival_s": [0.0, 1.5, 2.0],
            "model": ["chat", "code", "chat"],
            "prompt_tokens": 100,
            "output_tokens": [5, 6, 7],
        }
    )
    played = sim.simulate(scenario_data(), trace=frame)
    assert list(played.requests.output_tokens) == [5, 6, 7]
    frame.to_parquet(tmp_path / "t.parquet")
    from_file = sim.simulate(scenario_data(), trace=tmp_path / "t.parquet")
    assert from_file.run_id == played.run_id
    folder = played.save(tmp_path / "run")
    again = sim.simulate(folder / "scenario.yaml")
    assert again.run_id == played.run_id
    assert invoke("run", folder / "scenario.yaml", "--out", folder).exit_code == 0  # the same run
    assert "only" not in played.timeline(tmp_path / "t.json")  # the frame is still there to play


def test_mistakes_in_a_frame_are_told_without_a_file() -> None:
    frame = pd.DataFrame({"arrival_s": [0.0], "model": ["chta"], "prompt_tokens": 100, "output_tokens": [5]})
    with pytest.raises(TraceError, match=r"^trace \(a DataFrame\): row 1: unknown model 'chta'; did you mean 'chat'"):
        sim.simulate(scenario_data(), trace=frame)
    with pytest.raises(TraceError, match=r"^trace \(a DataFrame\): .*output_tokens"):
        sim.simulate(scenario_data(), trace=frame.drop(columns="output_tokens"))
    with pytest.raises(ConfigError, match="give a path or a DataFrame, not a list"):
        sim.simulate(scenario_data(), trace=[1, 2])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^trace \(a DataFrame\): "):
        sim.simulate(scenario_data(), trace=frame.assign(model=[{"a": object()}]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"settings": "seed=3"}, r"give a mapping or a list, \['seed=3'\]"),
        ({"settings": {"seed": object()}}, "settings: seed is no plain value"),
        ({"settings": {"starvation_s": float("nan")}}, "settings: starvation_s is no plain value"),
        ({"settings": {"engine.max_seqs": 3}}, "did you mean"),
        ({"policy": {"idle_s": 3}}, "a mapping needs a name"),
        ({"scenario": "no-such.yaml"}, "no-such.yaml"),
        ({"scenario": {"name": "x"}}, "scenario: "),
    ],
)
def test_mistakes_are_errors_in_one_line(arguments: dict[str, Any], words: str) -> None:
    given = {"scenario": scenario_data(), **arguments}
    with pytest.raises(ConfigError, match=words) as caught:
        sim.simulate(given.pop("scenario"), **given)
    assert "\n" not in str(caught.value)


def test_progress_is_told_on_stderr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from sim.runs import progress as showing  # noqa: PLC0415

    monkeypatch.setattr(showing, "QUIET_S", 0.0)
    traffic = [{"model": "chat", "rate_per_s": 4}, {"model": "code", "rate_per_s": 1}]
    busy = scenario_data(workload={"duration_s": 400, "traffic": traffic})
    sim.simulate(busy)
    assert capsys.readouterr() == ("", "")
    sim.simulate(busy, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "requests after" in err


def test_tables_outlive_the_run() -> None:
    requests = sim.simulate(scenario_data(horizon_s=20)).requests
    assert pickle.loads(pickle.dumps(requests)).equals(requests)
