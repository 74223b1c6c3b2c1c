"""A user's mistakes through the command line: exit status 2, nothing on stdout, one line that says what to mend."""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sim.cli.main import main
from tests.support.cli_cases import invoke, scenario_data, write_scenario

HEADER = "arrival_s,model,prompt_tokens,output_tokens\n"


@dataclass(frozen=True)
class Case:
    """`arguments` follow `run mini.yaml` ({} is the test's folder); `words` must all be in the one line."""

    name: str
    arguments: tuple[str, ...]
    words: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)
    scenario: dict[str, Any] = field(default_factory=dict)


def trace_case(name: str, rows: str, *words: str, strict: bool = False) -> Case:
    """A trace file t.csv with these rows."""
    flags = ("--strict",) if strict else ()
    return Case(f"trace: {name}", ("--trace", "{}/t.csv", *flags), ("t.csv", *words), {"t.csv": rows})


def set_case(name: str, setting: str, *words: str) -> Case:
    return Case(f"set: {name}", ("--set", setting), words)


def policy_case(name: str, source: str, *words: str) -> Case:
    return Case(f"policy file: {name}", ("--policy", "{}/mine.py"), ("mine.py", *words), {"mine.py": source})


def _nodes(*gpus: dict[str, Any], **node: Any) -> dict[str, Any]:
    return {"nodes": [{"host": "tr-pro-5995wx", "gpus": list(gpus), **node}]}


_ONE_ROW = {"t.csv": HEADER + "0,x,1,1\n"}
_POLICY = "from sim.policy import Policy, Route, Load\nclass Mine(Policy):\n    def decide(self, view):\n        "

CASES = [
    # --- the scenario
    Case("no GPU", (), ("cluster.nodes.0", "at least one GPU"), scenario={"cluster": _nodes()}),
    Case("no node", (), ("at least one node",), scenario={"cluster": {"nodes": []}}),
    Case("no model", (), ("at least one model",), scenario={"models": []}),
    set_case("unknown GPU", "cluster.nodes.0.gpus.0.gpu=rtx-a600", "unknown GPU", "did you mean 'rtx-a6000'"),
    set_case("unknown host", "cluster.nodes.0.host=tr-pro", "unknown host", "did you mean 'tr-pro-5995wx'"),
    set_case("unknown model", "models.0.model=Qwen2.5-3", "unknown model", "did you mean 'Qwen2.5-3B'"),
    set_case("unknown quantization", "models.0.quantization=Q4_K", "no quantization", "did you mean 'Q4_K_M'"),
    set_case("no tables for the engine", "models.0.engine=vllm", "no profile tables", "with vllm", "there are"),
    set_case("context beyond the model", "models.0.max_context=100000", "models.0.max_context", "32768"),
    set_case("batch beyond the tables", "engine.max_sequences=50000", "batch of", "engine.max_sequences"),
    set_case("KV pool below one request", "models.0.kv_tokens=10", "models.0.kv_tokens", "max_context"),
    set_case("reserve takes all", "cluster.gpu_reserve_gib=48", "gpu_reserve_gib", "lower it"),
    set_case("a name twice", "models.1.name=chat", "'chat' is listed twice"),
    set_case("a name with blanks", "models.1.name=a b", "models.1.name", "letters"),
    set_case("traffic for nobody", "workload.traffic.0.model=chatt", "unknown model 'chatt'", "did you mean 'chat'"),
    set_case("traffic in no class", "workload.traffic.0.service_class=gold", "unknown service class 'gold'"),
    set_case("profiles nowhere", "profiles=/nonexistent", "/nonexistent", "no such folder"),
    # --- numbers
    set_case("NaN", "starvation_s=.nan", "starvation_s", "finite"),
    set_case("infinity", "horizon_s=.inf", "horizon_s", "finite"),
    set_case("written infinity", "horizon_s=1e999", "horizon_s", "finite"),
    set_case("negative", "horizon_s=-1", "horizon_s", "greater than 0"),
    set_case("a huge duration", "workload.duration_s=1e300", "duration_s", "less than"),
    set_case("a huge rate", "workload.traffic.0.rate_per_s=1.0e+300", "requests", "lower"),
    set_case("a huge memory", "cluster.nodes.0.memory_gib=1.0e+300", "memory_gib", "less than"),
    set_case("a huge count", "cluster.nodes.0.count=1000000", "count", "100000"),
    Case(
        "a huge product of counts",
        ("--set", "cluster.nodes.0.count=100000", "--set", "cluster.nodes.0.gpus.0.count=100000"),
        ("GPUs are too many",),
    ),
    set_case("a number of 5,000 digits", "seed=" + "9" * 5000, "not valid YAML"),
    set_case("text for a number", "seed=one", "seed", "integer", "'one'"),
    set_case("a fraction for a count", "engine.max_sequences=1.5", "max_sequences", "integer"),
    # --- --set and the other options
    set_case("no value", "seed", "--set seed", "path=value"),
    set_case("a path to nowhere", "cluster.nodes.5.count=2", "cluster.nodes", "items 0 to 0"),
    set_case("through a plain value", "name.first=x", "'name' is a plain value"),
    set_case("unknown field", "engine.max_sequence=4", "engine.max_sequence", "did you mean 'max_sequences'"),
    set_case("broken YAML", "seed=[1", "--set seed=[1", "not valid YAML"),
    set_case("a date for a number", "seed=2020-01-01", "'seed'", "integer", "2020-01-01"),
    Case("negative seed", ("--seed", "-1"), ("'seed'", "greater than or equal to 0")),
    Case("huge seed", ("--seed", "9" * 30), ("'seed'", "less than")),
    Case("--assign without a trace", ("--assign", "zipf:1.0"), ("--assign zipf:1.0", "give --trace")),
    Case("--strict without a trace", ("--strict",), ("--strict", "give --trace")),
    # --- policies
    Case("unknown policy", ("--policy", "lru-swop"), ("unknown policy 'lru-swop'", "did you mean 'lru-swap'")),
    Case("no policy file", ("--policy", "{}/none.py"), ("none.py", "no such policy file")),
    Case("a long policy name", ("--policy", "x" * 300), ("name too long",)),
    Case("a folder as policy", ("--policy", "{}"), ("no such policy file",)),
    set_case("unknown parameter", "policy.marginn=2", "policy 'lru-swap' has no parameter 'marginn'"),
    policy_case("syntax", "class :", "cannot import the policy", "SyntaxError"),
    policy_case("no policy in it", "x = 1\n", "exactly one subclass", "not 0"),
    policy_case("fails", _POLICY + "return [1 / 0]\n", "failed at t=", "ZeroDivisionError", "line 4"),
    policy_case("message of two lines", _POLICY + 'raise ValueError("one\\ntwo")\n', "ValueError: one two"),
    policy_case("no action", _POLICY + "return [3]\n", "3"),
    # --- traces
    Case("trace: missing", ("--trace", "{}/none.csv"), ("none.csv", "no such file")),
    Case("trace: a folder", ("--trace", "{}/t.csv"), ("is a folder",), {"t.csv/x": ""}),
    Case("trace: unknown ending", ("--trace", "{}/t.txt"), ("t.txt", ".csv, .csv.gz"), {"t.txt": "x"}),
    Case("trace: unknown format", ("--trace", "{}/t.csv", "--format", "azur"), ("'azur'", "azure-llm-2023"), _ONE_ROW),
    trace_case("empty", "", "the file is empty"),
    trace_case("only a header", HEADER, "no rows"),
    trace_case("no column", "arrival_s,model,prompt_tokens\n0,chat,1\n", "'output_tokens' is missing"),
    trace_case("negative time", HEADER + "-1,chat,1,1\n", "row 2", "arrival_s", "-1"),
    trace_case("NaN time", HEADER + "0,chat,1,1\nnan,chat,1,1\n", "row 3", "arrival_s", "nan"),
    trace_case("infinite time", HEADER + "inf,chat,1,1\n", "row 2", "arrival_s", "inf"),
    trace_case("zero tokens", HEADER + "0,chat,1,0\n", "row 2", "output_tokens"),
    trace_case("negative tokens", HEADER + "0,chat,-5,1\n", "row 2", "prompt_tokens", "-5"),
    trace_case("a fraction of a token", HEADER + "0,chat,1.5,1\n", "row 2", "prompt_tokens", "1.5"),
    trace_case("too many tokens", HEADER + "0,chat,1,99999999999999999999\n", "row 2", "output_tokens"),
    trace_case("a name for a number", HEADER + "0,chat,many,1\n", "row 2", "prompt_tokens", "many"),
    trace_case("a row cut off", HEADER + "0,chat,1\n", "row 2", "3 fields"),
    trace_case("unsorted under --strict", HEADER + "2,chat,1,1\n1,chat,1,1\n", "row 3", "before the row", strict=True),
    trace_case("extra column under --strict", "colour," + HEADER + "x,0,chat,1,1\n", "colour", strict=True),
    trace_case("unknown model", HEADER + "0,chatt,1,1\n", "row 2", "unknown model 'chatt'", "--assign zipf:1.0"),
    Case("bad --assign", ("--trace", "{}/t.csv", "--assign", "zip:1"), ("zip:1", "zipf"), _ONE_ROW),
    Case("bad --assign number", ("--trace", "{}/t.csv", "--assign", "zipf:nan"), ("zipf:nan",), _ONE_ROW),
    Case("trace: a long name", ("--trace", "{}/" + "x" * 300 + ".csv"), ("name too long",)),
    Case("truncated gzip", ("--trace", "{}/t.csv.gz"), ("t.csv.gz", "cut off"), {"t.csv.gz": "GZIP"}),
    # --- --out
    Case("out: a file", ("--out", "{}/file"), ("--out", "is a file"), {"file": "x"}),
    Case("out: below a file", ("--out", "{}/file/x"), ("--out", "cannot write there"), {"file": "x"}),
    Case("out: foreign", ("--out", "{}/mine"), ("--out", "holds other files"), {"mine/thesis.txt": "x"}),
    Case("out: a long name", ("--out", "{}/" + "x" * 300), ("--out", "cannot write there", "name too long")),
]  # fmt: skip


def one_line(result: Any, *words: str) -> str:
    """The only line of stderr; asserts status 2 and a silent stdout."""
    assert result.exit_code == 2, (result.exit_code, result.output)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word.lower() in lines[0].lower(), (word, lines[0])
    return str(lines[0])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_run(case: Case, tmp_path: Path) -> None:
    path = write_scenario(tmp_path, **case.scenario)
    for name, content in case.files.items():
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        if content == "GZIP":
            target.write_bytes(gzip.compress((HEADER + "1.5,chat,10,10\n" * 5000).encode())[:-12])
        else:
            target.write_text(content)
    before = sorted(tmp_path.rglob("*"))
    arguments = [argument.replace("{}", str(tmp_path)) for argument in case.arguments]
    one_line(invoke("run", path, *arguments), *case.words)
    after = [found for found in sorted(tmp_path.rglob("*")) if "__pycache__" not in found.parts]
    assert after == before


def test_the_table_is_long_and_its_names_differ() -> None:
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [", ("line 2", "not valid YAML")),
        ("name: a\nname: b\n", ("line 2", "'name' twice")),
        ("- a\n", ("a scenario is a mapping",)),
        ("", ("a scenario is a mapping",)),
        ("name: x\n", ("'cluster' is missing",)),
        ("nam: x\n", ("missing",)),
        ("? [a]\n: b\n", ("not valid YAML",)),
        ("a: &a [*a]\n", ("line 1", "'*a' is inside what it stands for")),
        ("a: !!python/object/apply:os.getcwd []\n", ("not valid YAML",)),
        ("[" * 5000, ("nested too deeply",)),
    ],
)
def test_a_broken_scenario(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    one_line(invoke("run", path), "broken.yaml", *words)


def test_a_scenario_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    one_line(invoke("run", tmp_path / "none.yaml"), "none.yaml", "cannot read", "check the path")
    one_line(invoke("run", tmp_path), "cannot read")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    one_line(invoke("run", tmp_path / "binary.yaml"), "UTF-8")


def test_an_unknown_field_in_a_scenario_names_the_known_one(tmp_path: Path) -> None:
    path = write_scenario(tmp_path, engin={"max_sequences": 4})
    one_line(invoke("run", path), "unknown field 'engin'", "did you mean 'engine'")


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    line = one_line(invoke("run", tmp_path / "a\x1b[31m\nb.yaml"))
    assert line.isprintable()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("policies", "lru-swop"), ("did you mean 'lru-swap'",)),
        (("profile", "show", "Llama-9"), ("unknown model", "did you mean")),
        (("profile", "show", "Llama-3-8B", "--gpu", "h1000"), ("unknown GPU", "did you mean 'h100'")),
        (("profile", "show", "Llama-3-8B", "--quantization", "Q9"), ("no quantization",)),
        (("profile", "show", "Llama-3-70B", "--gpu", "h100", "--quantization", "FP16"), ("70B",)),
        (("trace", "check", "none.csv"), ("none.csv", "no such file")),
        (("trace", "describe", "none.csv"), ("none.csv", "no such file")),
        (("trace", "import", "none.csv", "--out", "x.parquet"), ("none.csv", "no such file")),
    ],
)
def test_the_other_verbs(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    one_line(invoke(*arguments), *words)


def test_a_trace_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(HEADER + "0,a,1,1\n")
    one_line(invoke("trace", "import", path, "--out", path), "exists already")
    assert path.read_text() == HEADER + "0,a,1,1\n"
    one_line(invoke("trace", "import", path, "--out", tmp_path / "t.txt"), "unknown kind of file")
    one_line(invoke("trace", "import", path, "--out", tmp_path / "no" / "t.csv"), "cannot write")


@pytest.mark.parametrize(
    "arguments",
    [("run", "--seed", "x"), ("run", "--no-such-flag"), ("rum",), ("profile", "show"), ("trace", "import", "t.csv")],
    ids=" ".join,
)
def test_usage_errors_are_one_line_and_status_2_too(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1


def test_a_model_that_fits_nowhere_is_no_error(tmp_path: Path) -> None:
    path = write_scenario(tmp_path, cluster=_nodes({"gpu": "rtx-a6000"}, memory_gib=20))
    result = invoke("run", path, "--set", "models.1.model=Qwen3-32B")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "code fits nowhere" in " ".join(result.stdout.split())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write in a read-only folder")
def test_out_in_a_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "fixed"
    folder.mkdir()
    folder.chmod(0o555)
    try:
        one_line(invoke("run", write_scenario(tmp_path), "--out", folder / "x"), "--out", "Permission denied")
        one_line(invoke("run", write_scenario(tmp_path), "--out", folder), "--out", "Permission denied")
    finally:
        folder.chmod(0o755)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that takes no files, such as /proc")
def test_out_where_nobody_can_write(tmp_path: Path) -> None:
    one_line(invoke("run", write_scenario(tmp_path), "--out", "/proc/run"), "--out /proc/run", "cannot write there")


def test_our_own_fault_is_not_dressed_up_as_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AssertionError("a law is broken")

    monkeypatch.setattr("sim.runs.run_one.simulate", broken)
    with pytest.raises(AssertionError, match="a law is broken"):
        invoke("run", write_scenario(tmp_path))


def test_the_scenario_of_these_tests_is_good(tmp_path: Path) -> None:
    assert scenario_data()["name"] == "mini"
    assert invoke("run", write_scenario(tmp_path)).exit_code == 0
