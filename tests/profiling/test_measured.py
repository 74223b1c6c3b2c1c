"""Folders of measurements: what is written is read back exactly; what cannot be right is refused by row and column."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.common.errors import ConfigError, ProfileError
from sim.profiling.measured import Measured, merge, read_measured, read_rows, rows_text, write_measured
from sim.profiling.points import (
    COLUMNS,
    BandwidthPoint,
    ContentionPoint,
    DecodePoint,
    MemoryPoint,
    ModelRow,
    PrefillPoint,
    SwitchPoint,
)

NAMES = {"model": "M", "quantization": "Q4_K_M", "kind": "measured", "source": "s"}
MODEL = ModelRow(
    **{**NAMES, "kind": "analytic"}, layers=32, layer_bytes=10**8, head_bytes=4 * 10**8, kv_bytes_per_token_layer=4096,
    max_context=8192,
)  # fmt: skip
POINT = DecodePoint(**NAMES, offload="cpu", layers=8, batch=1, context=64.0, step_s=0.25, repeats=4)

seconds = st.floats(1e-9, 1e6, allow_nan=False)
texts = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12).filter(str.isprintable)
maybe = lambda values: st.none() | values  # noqa: E731
common = {"model": st.just("M"), "quantization": st.just("Q4_K_M"), "kind": st.sampled_from(["measured", "published"])}
common["source"] = texts
resident = {
    "offload": st.sampled_from(["cpu", "stream"]),
    "layers": st.integers(0, 32),
    "head": st.sampled_from(["", "gpu", "host"]),
    "repeats": maybe(st.integers(1, 1000)),
}


def spread(row: Any, column: str) -> Any:
    value = getattr(row, column)
    return replace(row, p10_s=value * 0.75, p90_s=value * 1.5)


decodes = st.builds(
    DecodePoint, **common, **resident, batch=st.integers(1, 512), context=st.floats(0, 1e6), step_s=seconds
)
prefills = st.builds(
    PrefillPoint, **common, **resident, prompt_tokens=st.integers(0, 10**6),
    chunk_tokens=maybe(st.integers(1, 8192)), prefill_s=seconds,
)  # fmt: skip
switches = st.builds(
    SwitchPoint, **common, part=st.sampled_from(["reload", "kv_save", "kv_restore"]),
    path=st.sampled_from(["pinned", "pageable", "disk"]), layers=maybe(st.integers(0, 32)),
    tokens=maybe(st.integers(0, 10**6)), bytes=st.integers(1, 2**60), seconds=seconds,
)  # fmt: skip
bandwidths = st.builds(
    BandwidthPoint, kind=st.just("measured"), source=texts, direction=st.just("both"), memory=st.just("pinned"),
    bytes=maybe(st.integers(1, 2**60)), h2d_gb_s=seconds, d2h_gb_s=seconds,
)  # fmt: skip
memories = st.builds(
    MemoryPoint, **common, layers=st.integers(0, 32), batch=st.integers(1, 512), context=st.floats(0, 1e6),
    bytes_used=st.integers(1, 2**60),
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def no_waiting_for_the_disk() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        yield


def lists(rows: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    """No two rows of one point; what merging does with those has tests of its own."""

    def point(row: Any) -> tuple[Any, ...]:
        key = [getattr(row, column) for column in row.key if column != "head"]
        return (*key, row.head_on_gpu(32) if hasattr(row, "head") else None)

    return st.lists(rows, max_size=4, unique_by=point).map(tuple)


@settings(max_examples=60, deadline=None)
@given(lists(decodes), lists(prefills), lists(switches), lists(bandwidths), lists(memories), texts)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    decode: Any,
    prefill: Any,
    switch: Any,
    bandwidth: Any,
    memory: Any,
    note: str,
) -> None:
    folder = tmp_path_factory.mktemp("measured") / "folder"
    decode = tuple(spread(row, "step_s") for row in decode)
    measured = Measured(
        "rtx-4090", "i7-8700", "llama.cpp", ("cpu",), {"notes": note, "versions": {"torch": "2.9"}}, (MODEL,), decode,
        prefill, switch, bandwidth, memory=memory,
    )  # fmt: skip
    write_measured(measured, folder)
    assert read_measured(folder) == measured
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_measured(read_measured(folder), folder.with_name("again"))
    assert {path.name: path.read_bytes() for path in folder.with_name("again").iterdir()} == first
    assert not list(folder.parent.glob(".*"))


@given(st.text(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_text_is_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, content: str) -> None:
    path = tmp_path_factory.mktemp("text") / "decode.csv"
    path.write_text(",".join(COLUMNS[DecodePoint]) + "\n" + content, encoding="utf-8", newline="")
    try:
        rows = read_rows(path, DecodePoint)
    except ProfileError as error:
        message = str(error)
    else:
        message = str(path)
        assert all(math.isfinite(row.step_s) and row.step_s > 0 for row in rows)
    assert message.startswith(str(path))
    assert len(message.splitlines()) == 1


@given(st.integers(0, 10_000))
@settings(max_examples=80, deadline=None)
def test_a_file_cut_anywhere_is_whole_rows_or_refused(
    tmp_path_factory: pytest.TempPathFactory, characters: int
) -> None:
    rows = [replace(POINT, layers=layers, step_s=1 / (layers + 3)) for layers in range(5)]
    whole = rows_text(rows)
    path = tmp_path_factory.mktemp("cut") / "decode.csv"
    path.write_text(whole[: characters % len(whole)])
    try:
        found = read_rows(path, DecodePoint)
    except ProfileError:
        return
    assert found == rows[: len(found)]  # nothing that was not measured


def test_rows_of_a_point_that_agree_become_one(tmp_path: Path) -> None:
    near = replace(POINT, step_s=0.26, repeats=1, source="t", p10_s=0.24, p90_s=0.27)
    part = Measured("g", "h", "e", ("cpu",), {}, (MODEL,), (POINT, POINT, near))
    write_measured(part, tmp_path / "a")
    (row,) = read_measured(tmp_path / "a").decode
    assert (row.step_s, row.repeats, row.source) == (pytest.approx((4 * 0.25 + 0.26) / 5), 5, "s+t")
    assert (row.p10_s, row.p90_s) == (0.24, 0.27)
    only_same = Measured("g", "h", "e", ("cpu",), {}, (MODEL,), (POINT, POINT))
    assert merge([only_same]).decode == (POINT,)


def test_a_measured_row_outweighs_a_published_one() -> None:
    published = replace(POINT, step_s=0.251, kind="published", source="paper")
    part = Measured("g", "h", "e", ("cpu",), {}, (MODEL,), (published, POINT))
    assert [(row.kind, row.step_s) for row in merge([part]).decode] == [("measured", 0.25)]


def test_the_head_is_part_of_a_point_and_its_rule_is_the_same_as_saying_it() -> None:
    top = replace(POINT, layers=32)
    part = Measured("g", "h", "e", ("cpu",), {}, (MODEL,), (top, replace(top, head="gpu")))
    assert merge([part]).decode == (top,) or len(merge([part]).decode) == 1
    apart = Measured("g", "h", "e", ("cpu",), {}, (MODEL,), (top, replace(top, head="host", step_s=9.0)))
    assert len(merge([apart]).decode) == 2


def test_merging_joins_and_keeps_hardware_apart() -> None:
    one = Measured("g", "h", "e", ("cpu",), {"files": ["a"]}, (MODEL,), (POINT,))
    two = Measured("g", "h", "e", ("stream",), {"files": ["b"], "date": "d"}, (MODEL,), (replace(POINT, layers=9),))
    both = merge([one, two])
    assert (both.offload, both.facts) == (("cpu", "stream"), {"files": ["a", "b"], "date": "d"})
    assert [row.layers for row in both.decode] == [8, 9]
    assert both.models == (MODEL,)
    with pytest.raises(ProfileError, match=r"^x--h--e and g--h--e are not the same hardware and engine"):
        merge([one, replace(two, gpu="x")])


def test_a_folder_is_not_overwritten_unasked(tmp_path: Path) -> None:
    part = Measured("g", "h", "e", ("cpu",), {}, (MODEL,), (POINT,))
    write_measured(part, tmp_path / "a")
    with pytest.raises(ConfigError, match=r"is there already; name a new folder$"):
        write_measured(part, tmp_path / "a")
    memory = MemoryPoint(**NAMES, layers=1, batch=1, context=9.0, bytes_used=7)
    write_measured(replace(part, decode=(), memory=(memory,)), tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["memory.csv", "models.csv", "provenance.yaml"]


HEAD = "model,quantization,offload,layers,batch,context,step_s,p10_s,p90_s,repeats,kind,source\n"
ROW = "M,Q4_K_M,cpu,8,1,64,0.25,,,4,measured,s\n"
COLUMN = "decode.csv, row 2: column "
SPREAD = "a median lies between p10_s and p90_s"
BAD_CELLS = {  # a change of the good row, and what is wrong with its second line then
    ("0.25", "fast"): COLUMN + "'step_s' is 'fast', not a number above 0; correct it",
    ("0.25", "nan"): COLUMN + "'step_s' is 'nan', not a number above 0; correct it",
    ("0.25", "inf"): COLUMN + "'step_s' is 'inf', not a number above 0; correct it",
    ("0.25", "-1"): COLUMN + "'step_s' is '-1', not a number above 0; correct it",
    ("0.25", "0"): COLUMN + "'step_s' is '0', not a number above 0; correct it",
    ("0.25", "1_0"): COLUMN + "'step_s' is '1_0', not a number above 0; correct it",
    ("0.25", ""): COLUMN + "'step_s' is empty; every row needs it",
    (",8,", ",8.5,"): COLUMN + "'layers' is '8.5', not a whole number at least 0; correct it",
    (",1,64", ",0,64"): COLUMN + "'batch' is '0', not a whole number at least 1; correct it",
    ("cpu", "gpu"): COLUMN + "'offload' is 'gpu', none of cpu, stream; correct it",
    ("measured", "guess"): COLUMN + "'kind' is 'guess', none of measured, published; correct it",
    (",s\n", ",a\u2028b\n"): COLUMN + "'source' has a character that cannot be shown; remove it",
    (",s\n", ",\n"): COLUMN + "'source' is empty; every row needs it",
    (",8,", ",33,"): COLUMN + "'layers' is 33, but M has 32; all layers with the head are written as that",
    ("0.25,,", "0.25,0.3,"): f"decode.csv, row 2: p10_s 0.3 is above step_s 0.25; {SPREAD}",
    ("0.25,,", "0.25,,0.2"): f"decode.csv, row 2: p90_s 0.2 is below step_s 0.25; {SPREAD}",
    ("M,Q", "m,Q"): "decode.csv, row 2: model 'm' Q4_K_M is not described; add a row to models.csv (known: M)",
    ("Q4_K_M", "FP16"): "decode.csv, row 2: model 'M' FP16 is not described; add a row to models.csv "
    "(its quantization is another)",
}
ALL_COLUMNS = "model,quantization,offload,layers,head,batch,context,step_s,p10_s,p90_s,repeats,kind,source"
BAD_FILES = {
    '"a\nb",' + HEAD + ROW: "decode.csv: column 'a\\nb' has a character that cannot be shown; rename it",
    "": f"decode.csv: has no header row; it starts with {ALL_COLUMNS}",
    HEAD.replace("step_s", "step_ms") + ROW: "decode.csv: unknown column 'step_ms'; did you mean 'step_s'?",
    HEAD.replace("batch,", "") + ROW: f"decode.csv: column 'batch' is missing; the columns are {ALL_COLUMNS}",
    HEAD.replace("p10_s", "p90_s") + ROW: "decode.csv: column 'p90_s' is there twice; drop one",
    HEAD + ROW + "M,Q4_K_M,cpu,8,1\n": "decode.csv, row 3: has 5 of 12 columns; it may be half written: complete it or "
    "delete it",
    HEAD + ROW + ROW[:-1]: "decode.csv, row 3: does not end its line, so it may be half written; delete the row, or "
    "end its line if it is whole",
    HEAD + ROW + ROW.replace("0.25", "0.27"): "decode.csv, row 3: step_s is 0.27, but 0.25 for the same point in "
    "F/decode.csv, row 2, more than 5% apart; keep one, or measure again",
    HEAD + '"M\n': "decode.csv: not a CSV file (unexpected end of data); save it as UTF-8 CSV",
}
BAD_DECODE = {HEAD + ROW.replace(*change): message for change, message in BAD_CELLS.items()} | BAD_FILES
BAD_SWITCH = {
    "reload,,8,,100,1.5": "path is empty; a reload goes over pinned, pageable or disk",
    "free,pinned,8,,,1.5": "path is 'pinned'; leave it empty for free",
    "kv_save,pinned,8,10,,1.5": "bytes is empty or 0; say how many bytes the kv_save moved",
}


def folder_with(tmp_path: Path, name: str, content: str) -> Path:
    folder = tmp_path / "F"
    write_measured(Measured("g", "h", "e", ("cpu",), {}, (MODEL,), (POINT,)), folder)
    (folder / name).write_text(content)
    return Path("F")


@pytest.mark.parametrize("content", BAD_DECODE, ids=range(len(BAD_DECODE)))
def test_a_bad_row_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProfileError) as caught:
        read_measured(folder_with(tmp_path, "decode.csv", content))
    assert str(caught.value) == f"F/{BAD_DECODE[content]}"


@pytest.mark.parametrize("cells", BAD_SWITCH)
def test_a_switch_row_whose_cells_do_not_go_together(tmp_path: Path, cells: str) -> None:
    content = ",".join(COLUMNS[SwitchPoint]) + f"\nM,Q4_K_M,{cells},,,,measured,s\n"
    with pytest.raises(ProfileError) as caught:
        read_measured(
            folder_with(tmp_path, "switch.csv", content)
            if False
            else tmp_path / folder_with(tmp_path, "switch.csv", content)
        )
    assert str(caught.value) == f"{tmp_path}/F/switch.csv, row 2: {BAD_SWITCH[cells]}"


BAD_PROVENANCE = {
    "gpu: [": "line 2, column 1: not valid YAML (did not find expected node content); mend that line",
    "- a\n": "not a list of `key: value` lines; it names gpu, host and engine",
    "gpus: x\nhost: h\nengine: e\n": "'gpu' is missing; did you mean 'gpus'?",
    "gpu: a/b\nhost: h\nengine: e\n": "'gpu' is 'a/b'; write a short name of letters, digits, '-', '.', '_' and no "
    "'--'",
    "gpu: g\nhost: h\nengine: e\noffload: [disk]\n": "offload 'disk' is neither cpu nor stream; write a list of those "
    "measured",
}


@pytest.mark.parametrize("content", BAD_PROVENANCE)
def test_a_bad_provenance_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProfileError) as caught:
        read_measured(folder_with(tmp_path, "provenance.yaml", content))
    assert str(caught.value) == f"F/provenance.yaml: {BAD_PROVENANCE[content]}"


def test_folders_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ProfileError, match=r"^E: no such folder of measurements; check the path$"):
        read_measured(Path("E"))
    folder = folder_with(tmp_path, "decodes.csv", HEAD)
    with pytest.raises(ProfileError, match=r"^F/decodes.csv: no file of measurements; did you mean 'decode.csv'\?$"):
        read_measured(folder)
    (folder / "provenance.yaml").unlink()
    with pytest.raises(ProfileError, match=r"^F/provenance.yaml: missing; it names gpu, host and engine"):
        read_measured(folder)


def test_contention_says_its_own_quotient(tmp_path: Path) -> None:
    row = ContentionPoint(**NAMES, what="decode", beside="load", alone_s=0.1, beside_s=0.15, slow_down=1.5)
    path = tmp_path / "contention.csv"
    path.write_text(rows_text([row]))
    assert read_rows(path, ContentionPoint) == [row]
    path.write_text(rows_text([replace(row, slow_down=2.0)]))
    with pytest.raises(ProfileError, match=r"slow_down is 2, but beside_s / alone_s is 1.5; mend one of the"):
        read_rows(path, ContentionPoint)
