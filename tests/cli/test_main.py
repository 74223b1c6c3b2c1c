"""cli.py and the tables: what is printed, where, with which status; and that two runs print the same."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import sim
from sim.cli.tables.run_tables import print_run
from sim.common.errors import PolicyError
from sim.common.text import number, seconds, share
from sim.engine.engine import simulate
from sim.policy import catalogue, policy_names
from sim.results.summary import summarize
from sim.runs import progress as showing
from sim.runs.run_one import RunOptions, compose
from sim.scenario.scenario import parse_scenario
from tests.support.cli_cases import invoke, scenario_data, write_scenario
from tests.support.places import ROOT

CLOCKS = ("wall_s", "requests_per_wall_s", "peak_rss_bytes")


def program(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """python -m sim in a process of its own."""
    command = [sys.executable, "-m", "sim", *map(str, arguments)]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    variables = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=120, check=False)


def without_clocks(text: str) -> str:
    """The text of a summary without the lines that tell of this machine's speed."""
    lines = [line for line in text.splitlines() if not line.strip().startswith(tuple(f'"{c}":' for c in CLOCKS))]
    assert len(lines) == len(text.splitlines()) - len(CLOCKS)
    return "\n".join(lines)


def test_two_processes_print_the_same_bytes(tmp_path: Path) -> None:
    path = write_scenario(tmp_path, horizon_s=55)
    runs = [program("run", path, "--json", "--check", PYTHONHASHSEED=seed) for seed in ("1", "2")]
    assert [(r.returncode, r.stderr) for r in runs] == [(0, "")] * 2
    assert without_clocks(runs[0].stdout) == without_clocks(runs[1].stdout)
    summary = json.loads(runs[0].stdout)
    assert summary["requests"]["unfinished"] > 0
    assert summary["engine"]["peak_rss_bytes"] > 10**6


def test_help_is_quick_because_it_loads_nothing() -> None:
    heavy = [
        "numpy",
        "pandas",
        "scipy",
        "pyarrow",
        "simpy",
        "pydantic",
        "yaml",
        "rich.table",
        "seaborn",
        "sim.engine.engine",
    ]
    code = f"import sys, sim.cli.main; print([name for name in {heavy!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert loaded.stdout.strip() == "[]"
    begin_s = time.monotonic()
    result = program("--help")
    assert result.returncode == 0
    assert time.monotonic() - begin_s < 5  # 0.2 s alone; this bound only catches an import gone wrong
    for verb in ("run", "policies", "trace", "profile"):
        assert verb in result.stdout


def test_json_is_all_that_is_on_stdout(tmp_path: Path) -> None:
    result = invoke("run", write_scenario(tmp_path), "--json", "--out", tmp_path / "kept")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout) == json.loads((tmp_path / "kept" / "summary.json").read_text())


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    """A run with two classes, unfinished requests and an oracle's mark."""
    classes = [{"name": "fast", "ttft_s": 1}, {"name": "slow"}]
    workload = scenario_data()["workload"]
    workload["traffic"] = [{**traffic, "service_class": "fast"} for traffic in workload["traffic"]]
    data = scenario_data(service_classes=classes, workload=workload, horizon_s=50)
    return {**summarize(simulate(parse_scenario(data, "test"))), "oracle": "it knows every length"}


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_and_say_what_matters(summary: dict[str, Any], width: int, capsys: Any) -> None:
    print_run(summary, Console(width=width, markup=False, emoji=False, highlight=False))
    text = capsys.readouterr().out
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width
    assert text.isascii()
    for words in (
        "ORACLE",
        f"{summary['requests']['unfinished']} requests did not complete",
        "first token (TTFT)",
        "SLO attainment",
        "goodput",
        "evictions",
        "waiting for a load",
        "rtx-a6000-0",
        "Service classes",
        "contention: proportional",
        "resize: none",
        "the horizon came first",
    ):
        assert words in " ".join(text.split()), words
    assert seconds(summary["ttft_s"]["p99"]) in text
    assert number(summary["requests"]["arrived"]) in text


def test_names_are_not_markup(summary: dict[str, Any], capsys: Any) -> None:
    odd = {**summary, "policy": "./[red]/x.py", "notices": ["[bold]:smile:"]}
    print_run(odd, Console(width=120, markup=False, emoji=False, highlight=False))
    text = capsys.readouterr().out
    assert "./[red]/x.py" in text
    assert "[bold]:smile:" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0, "0 s"),
        (0.0719, "71.9 ms"),
        (0.9996, "1.00 s"),
        (0.9994, "999 ms"),
        (12.34, "12.3 s"),
        (999.6, "1,000 s"),
        (3601.04, "3,601 s"),
    ],
)
def test_seconds(value: float | None, text: str) -> None:
    assert seconds(value) == text


def test_a_small_share_is_not_none_and_a_large_one_not_all() -> None:
    assert [share(x) for x in (0.0, 1e-9, 0.5, 1 - 1e-9, 1.0, None)] == [
        "0.0%",
        "<0.1%",
        "50.0%",
        ">99.9%",
        "100.0%",
        "-",
    ]


# --- what the options do


def test_the_default_scenario_and_policy_need_no_arguments() -> None:
    assert compose(RunOptions()).name == "default"


def test_another_policy_drops_the_parameters_of_the_first(tmp_path: Path) -> None:
    path = write_scenario(tmp_path, policy={"name": "residency-aware", "margin": 2.0})
    assert compose(RunOptions(scenario=path)).policy.parameters == {"margin": 2.0}
    assert compose(RunOptions(scenario=path, policy="residency-aware")).policy.parameters == {"margin": 2.0}
    assert compose(RunOptions(scenario=path, policy="lru-swap")).policy.parameters == {}
    options = RunOptions(scenario=path, policy="residency-aware", settings=("policy.margin=3",))
    assert compose(options).policy.parameters == {"margin": 3}


def test_a_policy_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text((ROOT / "policies" / "lru_swap.py").read_text())
    path = write_scenario(tmp_path)
    names = ("lru-swap", tmp_path / "mine.py")
    ours, mine = (json.loads(invoke("run", path, "--json", "--policy", name).stdout) for name in names)
    assert ours["e2e_s"] == mine["e2e_s"]
    assert mine["policy"].endswith("mine.py")


def test_seed_and_set_change_the_run(tmp_path: Path) -> None:
    path = write_scenario(tmp_path)
    runs = [
        json.loads(invoke("run", path, "--json", *extra).stdout)
        for extra in ((), ("--seed", 2), ("--set", "seed=2"), ("--seed", 9, "--set", "seed=2"))
    ]
    assert [run["seed"] for run in runs] == [1, 2, 2, 2]
    assert runs[0]["run_id"] != runs[1]["run_id"] == runs[2]["run_id"] == runs[3]["run_id"]
    assert runs[0]["requests"]["arrived"] != runs[1]["requests"]["arrived"]


def test_a_trace_replaces_the_workload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_scenario(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("t.csv").write_text("arrival_s,model,prompt_tokens,output_tokens\n0,chat,10,5\n2,code,10,5\n1,chat,10,5\n")
    named = json.loads(invoke("run", path, "--json", "--trace", "t.csv").stdout)
    assert {name: row["requests"]["arrived"] for name, row in named["models"].items()} == {"chat": 2, "code": 1}
    assert any("out of order" in notice for notice in named["notices"])
    assigned = json.loads(invoke("run", path, "--json", "--trace", "t.csv", "--assign", "round-robin").stdout)
    assert [row["requests"]["arrived"] for row in assigned["models"].values()] == [2, 1]


def test_the_format_of_a_trace_is_told_by_looking(tmp_path: Path) -> None:
    path, trace = write_scenario(tmp_path), tmp_path / "t.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-12 00:00:00+00:00,10,5\n")
    told = json.loads(invoke("run", path, "--json", "--trace", trace, "--assign", "round-robin").stdout)
    named = ("--format", "azure-llm-2024", "--assign", "round-robin")
    assert told["run_id"] == json.loads(invoke("run", path, "--json", "--trace", trace, *named).stdout)["run_id"]
    assert told["requests"]["arrived"] == 1


def test_flags_for_traces_reach_a_trace_that_the_scenario_names(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,model,prompt_tokens,output_tokens\n0,x,10,5\n1,y,10,5\n")
    path = write_scenario(tmp_path, workload={"file": "t.csv"})
    summary = json.loads(invoke("run", path, "--json", "--assign", "round-robin", "--strict").stdout)
    assert [row["requests"]["arrived"] for row in summary["models"].values()] == [1, 1]


def test_out_is_told(tmp_path: Path) -> None:
    result = invoke("run", write_scenario(tmp_path), "--out", tmp_path / "kept")
    assert result.exit_code == 0
    assert f"kept in {tmp_path / 'kept'}" in result.stdout


# --- interruption and progress

_INTERRUPTED = '''
import os, signal
from sim.policy import Policy

class Interrupted(Policy):
    """Presses Ctrl-C at the first decision, if the environment says so."""
    def decide(self, view):
        if "INTERRUPT" in os.environ:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job begins by ignoring it
            os.kill(os.getpid(), signal.SIGINT)
        return ()
'''


def test_ctrl_c_is_one_line_and_130(tmp_path: Path) -> None:
    policy, out = tmp_path / "interrupted.py", tmp_path / "kept"
    policy.write_text(_INTERRUPTED)
    command = ("run", write_scenario(tmp_path), "--policy", policy, "--out", out)
    result = program(*command, INTERRUPT="1")
    assert (result.returncode, result.stdout) == (130, "")
    deciding = f"policy '{policy}' was deciding at t="
    assert result.stderr.startswith(f"interrupted; {deciding}")
    assert result.stderr.endswith("); nothing was kept\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["interrupted.py", "mini.yaml"]
    assert program(*command).returncode == 0
    first = (out / "summary.json").read_bytes()
    result = program(*command, INTERRUPT="1")
    assert result.returncode == 130
    assert result.stderr.startswith(f"interrupted; {deciding}")
    assert result.stderr.endswith(f"; {out} holds a finished run\n")
    assert (out / "summary.json").read_bytes() == first


def test_progress_shows_only_at_a_terminal_and_only_when_it_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    progress = showing.RunProgress()
    progress(1, 10, 5.0)
    monkeypatch.setattr(showing, "LONG_S", -1.0)
    progress(2, 10, 6.0)
    progress.close()
    assert capsys.readouterr().err == ""
    assert str(progress) == "interrupted at t = 6 s after 2 of 10 requests"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    progress = showing.RunProgress()
    progress(3, 10, 7.0)
    progress.close()
    seen = capsys.readouterr()
    assert "t = 7 s" in seen.err
    assert seen.out == ""


def test_a_long_run_without_a_terminal_says_now_and_then_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(showing, "QUIET_S", -1.0)
    progress = showing.RunProgress()
    progress(30, 120, 7.0)
    progress(40, None, 8.0)
    known, unknown = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"30 requests after 0 s, [0-9,]+/s, t = 7 s; 0 s left for 90", known), known
    assert re.fullmatch(r"40 requests after 0 s, [0-9,]+/s, t = 8 s", unknown), unknown


# --- the other verbs


_POLICY = '''
"""The whole story, [with brackets]."""
from sim.policy import Field, Policy, PolicyParameters

class Mine(Policy):
    """Does nothing.

    More about that.
    """
    oracle = "it knows that nothing comes of it"
    class Parameters(PolicyParameters):
        margin: float = Field(1.25, ge=1, description="a load must be [much] cheaper")
        depth: int

    def decide(self, view):
        return ()
'''


def test_policies_are_listed_and_shown(tmp_path: Path) -> None:
    listed = invoke("policies").stdout
    for name in policy_names():
        assert name in listed
    assert "It has no parameters" in invoke("policies", "lru-swap").stdout
    (tmp_path / "mine.py").write_text(_POLICY)
    shown = " ".join(invoke("policies", tmp_path / "mine.py").stdout.split())
    for words in (
        "Does nothing. More about that.",
        "The whole story, [with brackets].",
        "it knows that nothing",
        "margin float, >= 1 1.25 a load must be [much] cheaper",
        "depth int required",
    ):
        assert words in shown, words


def test_a_broken_policy_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def facts(name: str) -> Any:
        if name == "lru-swap":
            raise PolicyError("lru_swap.py: cannot import the policy")
        return policy_facts(name)

    policy_facts = catalogue.policy_facts
    monkeypatch.setattr(catalogue, "policy_facts", facts)
    listed = invoke("policies").stdout
    assert "cannot import the policy" in listed
    assert "static-split" in listed


def test_trace_verbs(tmp_path: Path) -> None:
    source, target = ROOT / "traces" / "small.csv", tmp_path / "small.parquet"
    assert "333 requests can be played" in invoke("trace", "check", source).stdout
    assert "wrote 333 requests" in invoke("trace", "import", source, "--out", target).stdout
    facts = [json.loads(invoke("trace", "describe", path, "--json").stdout) for path in (source, target)]
    assert facts[0] == facts[1]
    assert facts[0]["rows"] == 333
    shown = invoke("trace", "describe", source).stdout
    assert "burstiness" in shown
    assert "summary" in shown


def test_trace_check_names_what_is_odd(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,model,prompt_tokens,output_tokens,colour\n100000,a,1,1,red\n")
    text = invoke("trace", "check", path).stdout
    assert "notice: ignored the column 'colour'" in text
    assert "notice: the first request arrives at 100000 s" in text


def test_a_short_trace_can_be_described(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,model,prompt_tokens,output_tokens\n0,[red]a,1,1\n")
    text = invoke("trace", "describe", path).stdout
    assert "[red]a" in text
    assert "100.0%" in text


def test_profiles_are_listed_and_shown() -> None:
    listed = invoke("profile", "list").stdout
    for words in ("rtx-a6000", "tr-pro-5995wx", "hf-transformers", "Llama-3-8B"):
        assert words in listed
    shown = invoke("profile", "show", "Qwen2.5-3B", "--gpu", "rtx-a6000", "--quantization", "Q8_0").stdout
    for words in ("36 of 36", "batch 8", "KV restore", "5,000 tokens", "analytic", "total"):
        assert words in shown
    overview = invoke("profile", "show", "Qwen2.5-3B").stdout
    assert "rtx-a6000 / tr-pro-5995wx / hf-transformers" in overview


def test_the_version_is_the_projects() -> None:
    declared = importlib.metadata.version("residency-sim")
    assert invoke("--version").stdout in [
        f"residency-sim {declared} (engine {kind})\n" for kind in ("compiled", "interpreted")
    ]


def test_every_public_name_is_there() -> None:
    for name in sim.__all__:
        assert getattr(sim, name) is not None
        assert name in dir(sim)
    with pytest.raises(AttributeError, match="simulat"):
        _ = sim.simulat
