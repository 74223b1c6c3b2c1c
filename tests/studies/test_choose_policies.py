"""choice.py and measures.py: which policies and which numbers of theirs a study is about, and wrong names of both."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import sim
from sim.common.errors import ConfigError, SimError
from sim.engine.engine import simulate
from sim.policy import policy_names
from sim.results.metrics import known_measures, measure_named
from sim.results.summary import summarize
from sim.runs.run_one import RunOptions, run
from sim.runs.task import Machines
from sim.scenario.scenario import load_scenario, parse_scenario
from sim.studies.choose_policies import choose
from sim.studies.compare import CompareOptions, compare
from sim.studies.study import StudyOptions
from sim.studies.sweep import SweepOptions, sweep
from tests.support.cli_cases import scenario_data, write_scenario
from tests.support.sweep_cases import write_grid

OWN = "from sim.policy import Policy\nclass Own(Policy):\n    def decide(self, view):\n        return ()\n"


# --- what is compared


def test_all_is_every_policy_but_oracles() -> None:
    of = parse_scenario(scenario_data(), "test")
    labels = [choice.label for choice in choose("all", of)]
    assert labels == [name for name in policy_names() if name in labels]
    assert all(not choice.oracle for choice in choose("all", of))
    missing = [name for name in policy_names() if name not in labels]
    assert all(choose(name, of)[0].oracle for name in missing)


def test_policies_can_be_mixed_and_are_taken_once(tmp_path: Path) -> None:
    own = tmp_path / "my_own.py"
    own.write_text(OWN)
    of = parse_scenario(scenario_data(policy={"name": "residency-aware"}), "test")
    found = choose(f"lru-swap, {own},lru-swap,{{name: lru-swap}},all", of)
    labels = [choice.label for choice in found]
    assert labels[:2] == ["lru-swap", "my-own"]
    assert len(labels) == len(dict.fromkeys(labels))
    assert {choice.label for choice in choose("all", of)} <= set(labels)


def test_parameters_in_line_make_policies_of_their_own(tmp_path: Path) -> None:
    own = tmp_path / "tuned.py"
    own.write_text(
        "from sim.policy import Policy, PolicyParameters\nclass Tuned(Policy):\n"
        "    class Parameters(PolicyParameters):\n        wait_s: float = 1.0\n        names: list[str] = []\n"
    )
    of = parse_scenario(scenario_data(policy={"name": str(own), "wait_s": 7}), "test")
    found = choose(f"{own},{own}:wait_s=2,{own}:wait_s=3:names=[a, b],{{name: '{own}', wait_s: 2}}", of)
    assert [choice.label for choice in found] == ["tuned", "tuned:wait_s=2", "tuned:wait_s=3:names=['a', 'b']"]
    assert [choice.spec.parameters.get("wait_s") for choice in found] == [7, 2, 3]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lru-swop", "did you mean 'lru-swap'"),
        ("al", "did you mean"),
        ("", "names no policy"),
        (" , ", "names no policy"),
        ("lru-swap,{name: x", "not closed"),
        ("{policy: lru-swap}", "give {name: NAME"),
        ("[lru-swap]", "unknown policy"),
        ("lru-swap:nonsense=1", "no parameter 'nonsense'"),
        ("./nowhere.py", "no such policy file"),
    ],
)
def test_a_wrong_choice_says_what_to_mend(text: str, words: str) -> None:
    with pytest.raises(SimError, match=words.replace("{", r"\{").replace("[", r"\[")):
        choose(text, parse_scenario(scenario_data(), "test"))


def test_two_files_of_one_name_cannot_be_told_apart(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "same.py").write_text(OWN)
    with pytest.raises(ConfigError, match="already stands for"):
        choose(f"{tmp_path}/a/same.py,{tmp_path}/b/same.py", parse_scenario(scenario_data(), "test"))


# --- measures


def test_every_measure_is_in_a_summary(tmp_path: Path) -> None:
    summary = summarize(simulate(load_scenario(write_scenario(tmp_path))))
    for measure in known_measures().values():
        assert measure.of(summary) is not None, measure.key
        assert measure_named(measure.key).key == measure.key


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("slo", "slo.attainment"),
        ("ttft", "ttft_s.mean"),
        ("ttft.p99", "ttft_s.p99"),
        ("e2e_all.p50", "e2e_all_s.p50"),
        ("starved", "switching.starved"),
        ("longest_wait", "longest_wait_s"),
        ("cost", "cost.usd_per_million_tokens"),
        ("lost", "requests.lost"),
        ("models.qwen2.5-3b.ttft.p99", "models.qwen2.5-3b.ttft_s.p99"),
        ("classes.default.slo", "classes.default.slo.attainment"),
    ],
)
def test_short_names(name: str, key: str) -> None:
    assert measure_named(name, ["qwen2.5-3b"], ["default"]).key == key


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ttft.p98", "did you mean 'ttft.p9"),
        ("sloo", "'slo'"),
        ("models.chat.cost", "there are ttft"),
        ("x", "unknown"),
    ],
)
def test_an_unknown_measure_says_what_there_is(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        measure_named(name, ["chat"])


def test_measures_of_models_with_dots_and_what_follows_from_others() -> None:
    summary = {
        "models": {"a.b": {"ttft_s": {"mean": 2.0}}, "a": {"b": {"ttft_s": {"mean": 3.0}}}},
        "requests": {"rejected": 1, "timed_out": 2, "failed": 3},
        "cost": {"usd": 5.0, "output_tokens_per_usd": 2e5},
        "slo": {"attained": 100},
    }
    assert measure_named("models.a.b.ttft", ["a.b"]).of(summary) == 3.0
    assert measure_named("lost").of(summary) == 6
    assert measure_named("cost").of(summary) == 5.0
    assert measure_named("cost_kept").of(summary) == 50.0
    assert measure_named("cost").of({"cost": {"output_tokens_per_usd": None}}) is None


# --- what choosing costs


COUNTS = """
import os
from pathlib import Path
from sim.policy import Load, Policy, Route

with open(Path(__file__).with_suffix(".count"), "a") as file:
    file.write(f"{os.getpid()}\\n")


class Counts(Policy):
    def start(self, view):
        for model in view.models:
            gpu = max(view.gpus, key=lambda gpu: gpu.available_bytes)
            yield Load(model, gpu, model.layers_within(gpu.available_bytes // 2))

    def decide(self, view):
        for request in view.waiting:
            if request.model.instances:
                yield Route(request, request.model.instances[0])
"""


def executions(file: Path) -> tuple[int, int]:
    """How often a policy's file was executed in this process, and in others; the count begins anew."""
    count = file.with_suffix(".count")
    found = [int(line) for line in count.read_text().splitlines()]
    count.unlink()
    return found.count(os.getpid()), len(found) - found.count(os.getpid())


def test_a_policy_file_is_executed_once_a_run(tmp_path: Path) -> None:
    file, path = tmp_path / "counts.py", write_scenario(tmp_path)
    file.write_text(COUNTS)
    run(RunOptions(path, str(file), out=tmp_path / "run"))
    assert executions(file) == (1, 0)
    run(RunOptions(path, str(file), out=tmp_path / "run"))  # its folder is there, so its name is asked for first
    assert executions(file) == (1, 0)
    sim.simulate(path, policy=file)
    assert executions(file) == (1, 0)


def test_a_policy_file_is_executed_once_a_task_and_once_to_ask_it(tmp_path: Path) -> None:
    file, path = tmp_path / "counts.py", write_scenario(tmp_path)
    file.write_text(COUNTS)
    study = StudyOptions(RunOptions(path), ["lru-swap", file], seeds=3, machines=Machines(1))
    made = compare(CompareOptions(study, bounds=False))
    assert not any(policy.errors for policy in made.policies)
    assert executions(file) == (1, 3)
    grid = write_grid(tmp_path, vary={"policy": [str(file)], "engine.max_sequences": [4, 8]})
    made_sweep = sweep(SweepOptions(tmp_path / "sweep", grid, Machines(1)))
    assert not any(result.error for result in made_sweep.results)
    assert executions(file) == (0, 2)  # this process knows it already
    file.write_text(COUNTS + "\n# another\n")
    sweep(SweepOptions(tmp_path / "sweep", grid, Machines(0)))
    assert executions(file) == (3, 0)
