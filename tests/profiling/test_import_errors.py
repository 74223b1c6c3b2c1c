"""`profile import` and bad input: one line that names the file, the record and how to mend it, and nothing written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.common.errors import SimError
from sim.profiling.importing import ImportOptions, import_files
from sim.profiling.models import ModelFlags
from tests.support.cli_cases import invoke
from tests.support.profile_import_cases import CASES, GOOD
from tests.support.profile_records import batched_bench, llama_bench, ollama, vllm_serve, write_json, write_jsonl


@pytest.mark.parametrize("name", CASES)
def test_a_bad_input_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    form, write, options, expected = CASES[name]
    monkeypatch.chdir(tmp_path)
    write(Path("F"))
    result = invoke("profile", "import", "F", "--format", form, *options)
    assert result.stderr == f"error: {expected}\n"
    assert (result.exit_code, result.stdout) == (2, "")
    assert [path.name for path in tmp_path.iterdir()] == ["F"]


def test_the_format_must_be_said(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", [GOOD])
    result = invoke("profile", "import", path)
    assert result.stderr == (
        "error: --format is missing: say which tool wrote the files: llama-bench, llama-batched-bench, ollama, "
        "vllm-bench\n"
    )


def test_files_that_are_not_there_or_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(Path("a.json"), [GOOD])
    Path("empty").mkdir()
    for names, expected in [
        (["b.json"], "b.json: no such file; check the path"),
        (["a.json", "./a.json"], "a.json: is given twice; name each file once"),
        (["empty"], "empty: no file in this folder ends in .json, .jsonl, .csv, .ndjson, .txt, .log; name the files"),
    ]:
        assert invoke("profile", "import", *names, "--format", "llama-bench").stderr == f"error: {expected}\n"


def test_skipping_keeps_the_rest_and_counts(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [GOOD, llama_bench(9.0, 99, prompt=1)])
    path.write_text(path.read_text() + json.dumps(llama_bench(5.0, 0))[:-9] + "\n")
    out = tmp_path / "out"
    result = invoke("profile", "import", path, "--format", "llama-bench", "--out", out, "--skip-bad")
    assert result.exit_code == 0
    told = result.stderr.splitlines()
    assert told[0] == (
        f"left out: {path}, line 2: mixed test: 1 prompt and 128 generated tokens in one time; use -p or -n alone"
    )
    assert told[1].startswith(f"left out: {path}, line 3: is not a whole JSON object (")
    assert result.stdout.splitlines()[-1] == "read 3 records; 2 left out"


def test_what_a_stopped_benchmark_has_measured_is_not_lost(tmp_path: Path) -> None:
    path = write_json(tmp_path / "a.json", [GOOD, llama_bench(5.0, 0), llama_bench(6.0, 8)])
    path.write_text(path.read_text()[:-200])
    result = invoke("profile", "import", path, "--format", "llama-bench", "--out", tmp_path / "out", "--skip-bad")
    assert result.stdout.splitlines()[-1] == "read 3 records; 1 left out"


ODD = st.sampled_from(
    [
        None,
        "",
        "x",
        -1,
        0,
        1,
        3.5,
        1e308,
        -(10**30),
        10**400,
        True,
        [],
        [0],
        {},
        {"a": 1},
        "nan",
        "99",
        "a, b",
        "\u2028",
    ]
)
FORMATS = {
    "llama-bench": llama_bench(50.0, 99),
    "llama-batched-bench": batched_bench(1),
    "ollama": ollama(20),
    "vllm-bench": vllm_serve(1),
}


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(list(FORMATS)), st.data())
def test_any_record_is_imported_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject
) -> None:
    record = dict(FORMATS[form])
    for name in data.draw(st.lists(st.sampled_from(sorted(record)), min_size=1, max_size=3, unique=True)):
        record[name] = data.draw(ODD)
    path = write_json(tmp_path_factory.mktemp("odd") / "a.json", [record])
    flags = ModelFlags(None, None) if form == "llama-bench" else ModelFlags("Llama-3-8B", "Q4_K_M")
    options = ImportOptions(form, gpu="rtx-4090", host="i5-13600k", model=flags, skip_bad=data.draw(st.booleans()))
    message = ""
    try:
        found = import_files([path], options)
    except SimError as error:
        message = str(error)
    else:
        for part in found.parts:
            assert all(0 < row.step_s < float("inf") and 0 <= row.layers <= 32 for row in part.decode)
    assert len(message.splitlines()) <= 1
