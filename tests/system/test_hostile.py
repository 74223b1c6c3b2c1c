"""Hostile input is refused with one line, status 2, quickly, and nothing is written: the cases of hostile_cases.py."""

from __future__ import annotations

import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import process_time
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from sim.common.errors import SimError
from sim.common.yaml_files import parse_value, read_yaml
from sim.policy.loader import policies_folder
from sim.profiles.library import Library
from sim.scenario.fields import Frozen
from sim.scenario.scenario import load_scenario
from tests.support.bad_policies import GOOD, first
from tests.support.cli_cases import invoke, scenario_data, write_scenario
from tests.support.hostile_cases import CODE, FIELDS, HEADER, POLICIES, SCENARIOS, TABLES, TRACES, Hostile
from tests.support.number_fields import NUMBERS, all_models
from tests.support.places import ROOT

LONGEST_S = 2.0  # of computing, for any refusal


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIM_DECISION_LIMIT_S", "1")


def refused(folder: Path, *arguments: object, words: tuple[str, ...], longest_s: float = LONGEST_S) -> str:
    """The one line; asserts that it came quickly and that nothing was written."""
    before = sorted(folder.rglob("*"))
    begin_s = process_time()
    result = invoke(*arguments, "--out", folder / "out")
    assert process_time() - begin_s < longest_s
    assert result.exit_code == 2, (result.exit_code, result.output)
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert len(lines[0]) < 2100
    assert lines[0].isprintable()
    for word in words:
        assert word in lines[0], (word, lines[0][:600])
    assert sorted(folder.rglob("*")) == before
    return lines[0]


def named(cases: list[Hostile]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


def test_the_tables_are_long() -> None:
    assert len(SCENARIOS) + len(FIELDS) + len(CODE) + len(POLICIES) + len(TRACES) + len(TABLES) >= 200


# --- scenarios


@pytest.mark.parametrize("of_library", [True, False], ids=["a parser with a limit", "a parser without"])
def test_depth_is_refused_in_our_words(of_library: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whether and where the library's parser has a limit of its own changes from version to version.
    parse = yaml.parse

    def limited(text: str, Loader: object) -> Iterator[yaml.Event]:
        if of_library and "[" * 1000 in text:
            begin = yaml.Mark("", 0, 0, 0, None, None)
            yield yaml.StreamStartEvent(begin, begin)
            raise yaml.scanner.ScannerError(None, None, "words of its own", yaml.Mark("", 1000, 0, 1000, None, None))
        yield from parse(text, Loader=yaml.SafeLoader)

    monkeypatch.setattr(yaml, "parse", limited)
    refused(tmp_path, "run", put(tmp_path / "bad.yaml", "[" * 1100), words=("bad.yaml", "nested too deeply"))
    words = refused(tmp_path, "run", put(tmp_path / "bad.yaml", "a: [1, 2\nb: 3"), words=("bad.yaml", "not valid YAML"))
    assert "nested" not in words


@named(SCENARIOS)
def test_scenarios(case: Hostile, tmp_path: Path) -> None:
    refused(tmp_path, "run", put(tmp_path / "bad.yaml", case.content), words=("bad.yaml", *case.words))


@pytest.mark.parametrize(("setting", "words"), FIELDS, ids=[setting[:40] for setting, _ in FIELDS])
def test_fields(setting: str, words: tuple[str, ...], tmp_path: Path) -> None:
    refused(tmp_path, "run", write_scenario(tmp_path), "--set", setting, words=words)


def test_what_yaml_1_1_takes_for_something_else_is_what_it_looks_like(tmp_path: Path) -> None:
    text = "[no, yes, on, off, y, 1:30, 017, 0o17, 1_000, 2020-01-01, .5, -3, 0x1F, ~, true, 1.5e+3, '1']"
    assert read_yaml(put(tmp_path / "y.yaml", f"\ufeff{text}")) == [
        *("no", "yes", "on", "off", "y", "1:30", "017", "0o17", "1_000", "2020-01-01", 0.5, -3, 31, None, True, 1500.0),
        "1",
    ]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.text(max_size=8) | st.from_regex(r"\A[-+.0-9_eExob:]{1,6}\Z") | st.floats(allow_nan=False), max_size=4)
)
def test_what_is_kept_is_read_as_it_was(data: list[Any]) -> None:
    """A run folder's YAML is written by yaml.safe_dump."""
    assert parse_value(yaml.safe_dump(data), "test") == data


def test_there_are_many_such_fields() -> None:
    assert len(NUMBERS) > 90
    assert all(issubclass(model, Frozen) or model.__name__ == "PolicySpec" for model in all_models())


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, "nan", "1e999", True, [], {}, "x", 10**400, -(10**400)]
)
def test_no_number_is_anything_else(value: Any) -> None:
    """NaN, infinities, truths, lists and numbers without an end, in every field of every part of a scenario."""
    for model, name in NUMBERS:
        with pytest.raises(ValidationError) as caught:
            model.model_validate({name: value})
        assert any(error["loc"][:1] == (name,) for error in caught.value.errors()), (model.__name__, name, value)


# --- only the command line runs code


@pytest.mark.parametrize(("policy", "first_words", "mend"), CODE, ids=lambda part: str(part)[:30])
def test_a_scenario_runs_no_code(policy: Any, first_words: str, mend: str, tmp_path: Path) -> None:
    evil = "from pathlib import Path\nPath('ran').write_text('')\n"
    for name in ("evil.py", "evil"):
        put(tmp_path / name, evil)
    path = write_scenario(tmp_path, policy=policy)
    refused(tmp_path, "run", path, words=("mini.yaml", first_words, mend))
    with pytest.raises(SimError, match="a file of code"):
        load_scenario(path)
    for verb in ("bounds", "compare", "capacity"):
        result = invoke(verb, path)
        assert (result.exit_code, "is a file of code" in result.stderr) == (2, True), verb
    grid = put(tmp_path / "grid.yaml", yaml.safe_dump({"scenario": "mini.yaml", "vary": {"seed": [1]}}))
    result = invoke("sweep", grid, "--out", tmp_path / "swept")
    assert (result.exit_code, "is a file of code" in result.stderr) == (2, True)
    assert not (tmp_path / "ran").exists()
    assert not Path("ran").exists()


def test_the_user_may_run_it(tmp_path: Path) -> None:
    own = put(tmp_path / "mine.py", GOOD)
    path = write_scenario(tmp_path, policy={"name": "elsewhere/mine.py", "longest_first": False})
    shown = [invoke("run", path, *how, "--json") for how in (("--policy", own), ("--set", f"policy.name={own}"))]
    assert [result.exit_code for result in shown] == [0, 0]
    kept = invoke("run", path, "--policy", own, "--out", tmp_path / "kept", "--json")
    again = invoke("run", tmp_path / "kept" / "scenario.yaml", "--policy", own, "--json")
    ids = [re.search(r'"run_id": "(\w+)"', result.stdout) for result in (*shown, kept, again)]
    assert len({found[1] for found in ids if found is not None}) == 1
    assert None not in ids
    assert f"--policy {own}" in (tmp_path / "kept" / "scenario.yaml").read_text().splitlines()[0]
    inner = f"policy={{name: zero-switch-cost, inner: {own}}}"
    assert invoke("run", write_scenario(tmp_path), "--set", inner, "--json").exit_code == 0


# --- policies


@named(POLICIES)
def test_policies(case: Hostile, tmp_path: Path) -> None:
    path = put(tmp_path / "mine.py", case.content)
    words = ("mine.py", *case.words)
    refused(tmp_path, "run", write_scenario(tmp_path), "--policy", path, words=words, longest_s=6.0)


@pytest.mark.parametrize(
    "name", ["p\u00f6licy.py", "a b.py", "e\u0301.py", "\U0001f4a5.py", "<script>.py", "-.py", "my.own.py"]
)
def test_policies_may_be_called_anything(name: str, tmp_path: Path) -> None:
    put(tmp_path / name, GOOD)
    result = invoke("run", write_scenario(tmp_path), f"--policy={tmp_path / name}", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert all(line.isprintable() for line in result.stdout.splitlines())
    if name.startswith("<"):
        assert invoke("report", tmp_path / "out").exit_code == 0
        assert name not in (tmp_path / "out" / "report.html").read_text()


def test_what_a_policy_may_look_at_cannot_be_changed(tmp_path: Path) -> None:
    """Whatever lists and mappings it gets, clearing them changes nothing."""
    clear = first(
        "things = [view, *view.models, *view.gpus, *view.nodes, *view.waiting, *view.instances]\n"
        "for thing in things:\n"
        "    for name in dir(type(thing)):\n"
        "        if not name.startswith('_') and isinstance(getattr(type(thing), name), property):\n"
        "            try:\n"
        "                value = getattr(thing, name)\n"
        "            except PolicyError:\n"
        "                continue\n"
        "            if hasattr(value, 'clear'):\n"
        "                value.clear()",
        "from sim.common.errors import PolicyError",
    )
    told = []
    for text in (GOOD, clear):
        path = put(tmp_path / "mine.py", text)
        result = invoke("run", write_scenario(tmp_path), "--policy", path, "--json", "--check")
        assert result.exit_code == 0, result.stderr
        told.append(re.sub(r'"(run_id|\w*wall_s|peak_rss_bytes)": .*', "", result.stdout))
    assert told[0] == told[1]


def test_ctrl_c_says_who_was_deciding(tmp_path: Path) -> None:
    path = put(
        tmp_path / "mine.py", first("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nwhile True:\n    pass")
    )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # who is started in the background ignores it
    try:
        result = invoke("run", write_scenario(tmp_path), "--policy", path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert result.exit_code == 130
    [line] = result.stderr.splitlines()
    assert "mine.py' was deciding at t=" in line
    assert " s (mine.py, line " in line
    assert "nothing was kept" in line


def test_what_will_not_be_stopped_ends_with_the_process(tmp_path: Path) -> None:
    stubborn = (
        "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        continue"
    )
    path = put(tmp_path / "mine.py", first(stubborn))
    command = [
        sys.executable,
        "-m",
        "sim",
        "run",
        write_scenario(tmp_path),
        "--policy",
        path,
        "--decision-limit",
        "0.4",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: policy '")
    assert line.endswith("and would not be stopped")


def test_the_limit_of_a_decision_changes_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = []
    for limit in ("0", "0.02", "100"):
        monkeypatch.setenv("SIM_DECISION_LIMIT_S", limit)
        result = invoke("run", write_scenario(tmp_path), "--json")
        told.append(re.sub(r'"(\w*wall_s|peak_rss_bytes)": .*', "", result.stdout))
    assert told[0] == told[1] == told[2] != ""
    for limit in ("x", "-1", "nan", "inf"):
        monkeypatch.setenv("SIM_DECISION_LIMIT_S", limit)
        refused(tmp_path, "run", write_scenario(tmp_path), words=(f"SIM_DECISION_LIMIT_S={limit}: give seconds",))


# --- traces


@named(TRACES)
def test_traces(case: Hostile, tmp_path: Path) -> None:
    path = put(tmp_path / case.name.partition(":")[0], case.content)
    refused(tmp_path, "run", write_scenario(tmp_path), "--trace", path, words=case.words)


# --- files that are none


@pytest.fixture
def strange(tmp_path: Path) -> dict[str, Path]:
    """A folder, a pipe, a device, links in a circle, a link to nowhere, a name too long for a file."""
    places = {name: tmp_path / f"{name}.csv" for name in ("folder", "pipe", "device", "circle", "nowhere")}
    places["folder"].mkdir()
    os.mkfifo(places["pipe"])
    places["device"].symlink_to("/dev/zero")
    places["circle"].symlink_to(places["circle"])
    places["nowhere"].symlink_to(tmp_path / "gone")
    return {**places, "long": tmp_path / ("x" * 300)}


@pytest.mark.parametrize("what", ["folder", "pipe", "device", "circle", "nowhere", "long"])
def test_what_is_no_file_is_said_at_once(what: str, strange: dict[str, Path], tmp_path: Path) -> None:
    path = strange[what]
    scenario = write_scenario(tmp_path)
    refused(tmp_path, "run", path, words=(what if what != "long" else "",))
    refused(tmp_path, "run", scenario, "--trace", path, words=())
    refused(tmp_path, "run", scenario, "--trace", path, "--format", "mooncake", words=())
    policy = path.with_suffix(".py")
    if what not in ("long", "nowhere"):
        policy.symlink_to(path)
    refused(tmp_path, "run", scenario, "--policy", policy, words=("no such policy file",) if what != "long" else ())
    assert invoke("trace", "describe", path).exit_code == 2


def test_a_scenario_may_come_through_a_pipe(tmp_path: Path) -> None:
    text = write_scenario(tmp_path).read_text()
    command = [sys.executable, "-m", "sim", "run", "/dev/stdin", "--json"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


# --- tables


@pytest.mark.parametrize(("name", "old", "new", "words"), TABLES, ids=lambda part: str(part)[:24])
def test_tables(name: str, old: str, new: str, words: tuple[str, ...], tmp_path: Path) -> None:
    home = tmp_path / "profiles"
    folder = "rtx-a6000--tr-pro-5995wx--hf-transformers"
    shutil.copytree(ROOT / "profiles" / "tables" / folder, home / "tables" / folder)
    for table in ("gpus.csv", "nodes.csv", "models.csv"):
        shutil.copyfile(ROOT / "profiles" / table, home / table)
    place = next(path for path in (home / name, home / "tables" / folder / name) if path.exists())
    text = place.read_text(encoding="utf-8")
    assert old in text
    place.write_text(text.replace(old, new, 1), encoding="utf-8")
    refused(tmp_path, "run", write_scenario(tmp_path, profiles=str(home)), words=words)


def test_a_few_rows_may_span_a_grid_without_end(tmp_path: Path) -> None:
    from sim.profiles.library import _grid  # noqa: PLC0415

    rows = [
        {"layers": str(n), "batch": str(n), "context": str(n), "step_s": "1", "_where": f"row {n}"} for n in range(9000)
    ]
    begin_s = process_time()
    with pytest.raises(SimError, match="no step_s at layers 0, batch 0, context 1; a table must be a full grid"):
        _grid(rows, ("layers", "batch", "context"), "step_s", "t")
    assert process_time() - begin_s < LONGEST_S


def test_two_folders_for_one_machine_are_refused(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "profiles", tmp_path / "p")
    folder = next((tmp_path / "p" / "tables").iterdir())
    shutil.copytree(folder, folder.with_name("zz-again"))
    with pytest.raises(SimError, match=f"zz-again/table.yaml: tables for .* are in {folder.name} already; keep one"):
        Library(tmp_path / "p")


# --- memory


@pytest.mark.parametrize("bomb", ["yaml", "csv.gz", "jsonl.gz"])
def test_a_bomb_takes_little_time_and_memory(bomb: str, tmp_path: Path) -> None:
    path = tmp_path / f"bomb.{bomb}"
    if bomb == "yaml":
        put(path, SCENARIOS[0].content)
        arguments = [str(path)]
    else:
        import gzip  # noqa: PLC0415

        with gzip.open(path, "wb", compresslevel=1) as file:
            for _ in range(600):
                file.write(b"0" * (1 << 20))
        arguments = [str(write_scenario(tmp_path)), "--trace", str(path)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    code = (
        "import sys\nfrom sim.cli.main import main\ntry:\n    main(sys.argv[1:])\nfinally:\n"
        "    lines = open('/proc/self/status').read().splitlines()\n"  # getrusage's peak is that of who started it, too
        "    print(int(next(line for line in lines if line.startswith('VmHWM')).split()[1]) >> 10)"
    )
    command = [sys.executable, "-c", code, "run", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert int(done.stdout) < 500
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 4.0


def test_the_cases_start_from_what_is_good(tmp_path: Path) -> None:
    assert invoke("run", write_scenario(tmp_path), "--policy", put(tmp_path / "mine.py", GOOD)).exit_code == 0
    good = put(tmp_path / "t.csv", HEADER + "0,chat,1,1\n")
    assert invoke("run", write_scenario(tmp_path), "--trace", good).exit_code == 0
    assert scenario_data()["name"] == "mini"
    assert policies_folder().is_dir()
