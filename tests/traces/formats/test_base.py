"""What all trace formats share: options, guessing, reading of damaged files; and every published file, imported."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.common.errors import ConfigError, SimError, TraceError
from sim.traces.formats import FORMATS, guess_format, import_stream
from sim.traces.formats.base import parse_options, shown
from sim.traces.formats.members import sample_of
from sim.traces.stream import gather, read_trace
from sim.traces.write import write_trace
from tests.support.format_cases import AGENTIC, EXAMPLES, MOONCAKE, POOL, RAGPULSE, packed, text_file
from tests.support.places import SHARED

PUBLISHED = SHARED / "traces"


def unzipped(path: Path) -> bytes:
    data = path.read_bytes()
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


def problem(path: Path, name: str) -> str | None:
    """What the import of a file complains of, a line; None when it gives requests, which must then be good."""
    try:
        trace = gather(import_stream([path], name))
    except SimError as error:
        return str(error)
    assert (trace.prompt_tokens >= 1).all()
    assert (trace.output_tokens >= 1).all()
    assert np.isfinite(trace.arrival_s).all()
    assert trace.arrival_s[0] >= 0
    return None


def read(path: Path, name: str | None = None, **options: str) -> int:
    return len(gather(import_stream([path], name, options)))


@pytest.mark.parametrize("name", EXAMPLES)
def test_formats_are_guessed_and_read_under_another_name_too(tmp_path: Path, name: str) -> None:
    path = EXAMPLES[name](tmp_path)
    assert guess_format([path]).name == name
    assert read(path) == read(path, name) > 0
    plain = tmp_path / "plain"  # gzip and tar are told by their content
    plain.write_bytes(unzipped(path))
    squeezed = tmp_path / "squeezed"
    squeezed.write_bytes(gzip.compress(unzipped(path)))
    assert read(squeezed) == read(plain) == read(path)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".csv.gz"])
def test_native_files_are_guessed(tmp_path: Path, suffix: str) -> None:
    trace = gather(import_stream([EXAMPLES["mooncake"](tmp_path)]))
    path = tmp_path / f"native{suffix}"
    write_trace(trace, path)
    assert guess_format([path]).name == "native"
    assert gather(import_stream([path])).digest() == trace.digest() == read_trace(path).digest()


def test_what_cannot_be_told_is_said(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"cannot tell the format .* give --format, one of: native, azure-llm-2023,"):
        import_stream([text_file(tmp_path / "x.csv", "a,b\n1,2\n")])
    with pytest.raises(TraceError, match="no such file"):
        import_stream([tmp_path / "nothing.csv"])
    with pytest.raises(TraceError, match="the file is empty"):
        import_stream([text_file(tmp_path / "empty.csv", "")])
    with pytest.raises(TraceError, match="the file is empty"):
        import_stream([text_file(tmp_path / "blank.jsonl", "\n  \n")])
    (tmp_path / "wide.csv").write_bytes("a,b\n1,2\n".encode("utf-16"))
    with pytest.raises(TraceError, match="not UTF-8 text nor Parquet"):
        import_stream([tmp_path / "wide.csv"])
    (tmp_path / "folder").mkdir()
    with pytest.raises(TraceError, match="no files are inside"):
        import_stream([tmp_path / "folder"])
    mixed = [EXAMPLES["mooncake"](tmp_path), EXAMPLES["agentic-coding"](tmp_path)]
    with pytest.raises(TraceError, match=r"a\.json: is agentic-coding, but .*m\.jsonl is mooncake"):
        import_stream(mixed)
    with pytest.raises(TraceError, match="mooncake reads one file at a time"):
        import_stream([mixed[0], mixed[0]])


@pytest.mark.parametrize("name", FORMATS)
def test_a_wrong_format_is_told_from_what_the_file_looks_like(tmp_path: Path, name: str) -> None:
    path = EXAMPLES["mooncake"](tmp_path)
    if name == "mooncake":
        return
    with pytest.raises(TraceError, match=r"\(it looks like mooncake\)$"):
        read(path, name)


def test_more_fields_and_one_file_under_two_paths(tmp_path: Path) -> None:
    path = text_file(tmp_path / "m.jsonl", MOONCAKE.replace("{", '{"type": "x", '))
    assert guess_format([path]).name == "mooncake"
    lengths = text_file(tmp_path / "l.csv", "prompt_len,output_len\n1,1\n")
    (tmp_path / "a").mkdir()
    with pytest.raises(TraceError, match="is given twice"):
        import_stream([lengths, tmp_path / "a" / ".." / "l.csv"], "lengths", {"rate": 1, "model": "m"})
    for form in ("mooncake", "ragpulse"):
        with pytest.raises(ConfigError, match="--option model= "):
            read(EXAMPLES[form](tmp_path), model=" ")


def test_a_model_of_which_no_row_is_left_is_none_of_the_trace(tmp_path: Path) -> None:
    rows = "Timestamp,Model,Request tokens,Response tokens\n0,gone,1,0\n1,a,1,1\n2,b,1,1\n3,gone,1,0\n4,a,2,1\n"
    stream = import_stream([text_file(tmp_path / "b.csv", rows)])
    [chunk] = stream.chunks
    assert chunk.models == ("a", "b")
    assert chunk.model.tolist() == [0, 1, 0]


def test_options_are_checked_in_one_line(tmp_path: Path) -> None:
    path = EXAMPLES["mooncake"](tmp_path)
    with pytest.raises(ConfigError, match="mooncake has no such option; did you mean 'spread_batches'"):
        read(path, spread_batch="yes")
    with pytest.raises(ConfigError, match="--option spread_batches=often: input should be a valid boolean"):
        read(path, spread_batches="often")
    with pytest.raises(ConfigError, match="--option zero_tokens=maybe: input should be 'refuse', 'drop' or 'keep'"):
        read(path, zero_tokens="maybe")
    with pytest.raises(ConfigError, match="rate and scale exclude each other"):
        read(EXAMPLES["servegen"](tmp_path), rate="1", scale="2")
    with pytest.raises(ConfigError, match="--option rate=nan"):
        read(EXAMPLES["servegen"](tmp_path), rate="nan")


@pytest.mark.parametrize("name", FORMATS)
def test_every_option_has_a_default_and_is_described(name: str) -> None:
    form = FORMATS[name]
    assert parse_options(form, {}) is not None
    for option, field in form.options.model_fields.items():
        assert field.description, option
        assert not field.description.endswith("."), option


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    text = json.dumps(AGENTIC)
    path = packed(tmp_path / "mac.tar", {"__MACOSX/._a.json": "\0", "t/._a.json": "\0", "t/a.json": text})
    assert sample_of(path).members == ("t/a.json",)
    assert read(path) == 1


def damaged(data: bytes, how: int, seed: int) -> bytes:
    """The same bytes cut off, with one changed, or with some left out."""
    chance = random.Random(seed)
    at = chance.randrange(len(data))
    if how == 0:
        return data[:at]
    if how == 1:
        return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]
    return data[:at] + data[at + chance.randrange(1, 20) :]


@pytest.mark.parametrize("name", EXAMPLES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(how=st.integers(0, 2), seed=st.integers(0, 10**6), zipped=st.booleans())
def test_damage_gives_an_error_of_one_line_or_a_trace(
    tmp_path: Path, name: str, how: int, seed: int, zipped: bool
) -> None:
    data = unzipped(EXAMPLES[name](tmp_path))
    path = tmp_path / ("damaged.gz" if zipped else "damaged")
    path.write_bytes(damaged(gzip.compress(data) if zipped else data, how, seed))
    found = problem(path, name)
    assert found is None or ("\n" not in found and len(found) < 1000 and found.startswith(str(path)))


@pytest.mark.parametrize("name", ["agentic-coding", "servegen"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.95])
def test_archives_cut_off_anywhere_are_called_so(tmp_path: Path, name: str, kept: float) -> None:
    noise = {"pad": [random.Random(7).random() for _ in range(20_000)]}  # does not compress
    files = POOL if name == "servegen" else {"t/0.json": json.dumps(AGENTIC)}
    files = {"t/chunk-9-dataset.json": json.dumps(noise), **files, "t/9.json": json.dumps(noise)}
    for suffix in (".tar", ".tar.gz"):
        path = packed(tmp_path / f"cut{suffix}", files)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
        found = problem(path, name)
        assert found is not None
        assert found.startswith(str(path))
        assert "cut off" in found or "cut-off" in found or "chunk-9" in found or "t/9.json" in found


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def places(item: object, at: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """The way to every value within a JSON value."""
    inner = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
    return [at, *(place for key, value in inner for place in places(value, (*at, key)))]


@pytest.mark.parametrize("name", EXAMPLES)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_in_any_field_gives_an_error_of_one_line_or_a_trace(
    tmp_path: Path, name: str, data: st.DataObject
) -> None:
    dataset = "data/x/pool/chunk-0-dataset.json"
    originals = {"mooncake": MOONCAKE, "ragpulse": json.dumps(RAGPULSE), "servegen": POOL[dataset]}
    item = json.loads(originals.get(name, json.dumps(AGENTIC)))
    place = data.draw(st.sampled_from(places(item)[1:]))
    inner = item
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = data.draw(JSON)
    path = tmp_path / "changed"
    if name == "servegen":
        packed(path, POOL | {dataset: json.dumps(item)})
    else:
        path.write_text(json.dumps(item))
    found = problem(path, name)
    assert found is None or ("\n" not in found and found.startswith(str(path)))


@pytest.mark.parametrize(
    "number", ["1e999", "-1", "1" + "0" * 12, "1" + "0" * 400, "1" + "0" * 5000, "NaN", "true", '"9"', "2.5"]
)
@pytest.mark.parametrize("name", ["mooncake", "ragpulse", "agentic-coding"])
def test_numbers_that_are_none_are_refused_by_name(tmp_path: Path, name: str, number: str) -> None:
    text = {"mooncake": MOONCAKE, "ragpulse": json.dumps(RAGPULSE)}.get(name, json.dumps(AGENTIC))
    field = '"in": 9' if name == "agentic-coding" else '"input_length": '
    end = text.index(field) + (5 if name == "agentic-coding" else len(field))
    rest = text[end:].lstrip("0123456789 ")
    found = problem(text_file(tmp_path / "x", f"{text[:end]} {number}{rest}"), name)
    assert found is not None
    where = ": request 1: field 'in' is " if name == "agentic-coding" else ": row 1: field 'input_length' is "
    assert where in found or "not valid JSON" in found


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "empty"), ("  ", "empty"), (10**40, "a very large number"), (float("nan"), "nan"), ([1, 2], "[1, 2]")],
)
def test_values_are_shown_short(value: object, text: str) -> None:
    assert shown(value) == text
    assert len(shown("x" * 1000)) <= 40


# Notices that the data's own README foretells, by folder.
FORETOLD = {
    "agentic_coding": ("common clock", "sub-agents became", "without prompt or output", "without think_time"),
    "azure_functions_2021": ("functions have no tokens",),
    "format_samples": ("without prompt or output tokens", "images"),
    "mooncake_fast25": ("stamp of the one before",),
    "ragpulse": ("2 weeks end to end",),
    "servegen": ("drew requests", "no lengths of their own", "without any request", "took the nearest in time"),
}


def published_files() -> list[Path]:
    return sorted(PUBLISHED.glob("*/*.gz")) if PUBLISHED.is_dir() else []


@pytest.mark.skipif(not published_files(), reason="the published traces are not beside this checkout")
def test_every_published_file_imports_with_no_notice_that_is_not_foretold() -> None:
    for path in published_files():
        if path.parent.name == "ragpulse" and not path.name.startswith("0_"):
            with pytest.raises(TraceError, match="table of parts of prompts and holds no requests"):
                gather(import_stream([path]))
            continue
        drawn = {"rate": "0.5"} if path.parent.name == "servegen" or path.name.startswith("arxiv") else {}
        stream = import_stream([path], None, drawn)
        assert sum(len(chunk) for chunk in stream.chunks) > 0
        for notice in stream.notices:
            assert any(part in notice for part in FORETOLD.get(path.parent.name, ())), (path.name, notice)
