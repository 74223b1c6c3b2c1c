"""The verb `profile measure`: the whole chain on the CPU with tiny models, stopped and gone on with; mistakes; laws.

Runs that bind threads to cores are processes of their own. Without torch (the extra `profile`) all are skipped.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.support.places import ROOT

pytest.importorskip("torch", reason="torch is not installed: pip install '.[profile]'")
pytest.importorskip("safetensors", reason="safetensors is not installed: pip install '.[profile]'")


import torch

from sim.cli.main import main
from sim.common.errors import ProfileError
from sim.hardware.measure import measurement_run
from sim.hardware.measure.contention import _slow_down, closest_law
from sim.hardware.measure.contradictions import contradictions
from sim.hardware.measure.measurement_folder import MeasurementFolder
from sim.hardware.measure.plan import GRIDS, PAPER, affordable, decode_points
from sim.hardware.measure.timing import RepeatedTiming, repeated
from sim.hardware.measure.write_tables import scenario
from sim.hardware.model.weights import architectures
from sim.profiles.library import Library
from sim.profiling.measured import PROVENANCE, read_measured
from sim.profiling.points import COLUMNS, BandwidthPoint, ContentionPoint, DecodePoint, ModelRow, SwitchPoint

ARCHITECTURES = """model,layers,hidden,heads,kv_heads,head_dim,intermediate,vocab,tied,max_context
small,4,128,4,2,32,256,500,yes,512
large,8,256,4,2,64,512,900,no,512
"""
DECODE_COLUMNS = COLUMNS[DecodePoint]
BUDGET_GIB = 0.011  # holds `small` twice, and not all of `large`


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("profiled")
    (path / "architectures.csv").write_text(ARCHITECTURES)
    return path


def arguments(folder: Path, *more: str) -> list[str]:
    return [
        "--device", "cpu", "--quick", "--models", "small,large", "--architectures",
        str(folder / "architectures.csv"), "--out", str(folder / "out"), "--into", str(folder / "profiles"),
        "--budget-gib", str(BUDGET_GIB), "--limit-s", "0.05", *more,
    ]  # fmt: skip


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sim", "profile", "measure", *arguments(folder, *more)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT)


@pytest.fixture(scope="module")
def stopped(folder: Path) -> tuple[int, str, dict[str, bytes]]:
    """A run that is interrupted after its first steps: exit status, what it printed, what was on disk."""
    process = start(folder)
    decode = folder / "out" / "decode.csv"
    end_s = time.monotonic() + 120
    while not (decode.exists() and decode.read_bytes().count(b"\n") > 5):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end_s
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=60)[0]
    return process.returncode, text, {path.name: path.read_bytes() for path in (folder / "out").glob("*.csv")}


@pytest.fixture(scope="module")
def whole(folder: Path, stopped: tuple[int, str, dict[str, bytes]]) -> str:
    """The same command again, to the end, after the last row on disk was cut in half."""
    decode = folder / "out" / "decode.csv"
    decode.write_bytes(decode.read_bytes()[:-9])
    text = ""
    for _ in range(3):  # a busy machine can spoil steps so that no table fits them; the same command mends that
        process = start(folder)
        text += process.communicate(timeout=240)[0]
        if process.returncode != 1:
            break
    assert process.returncode == 0, text
    return text


# --- the chain


def test_a_stopped_run_keeps_what_it_measured_and_says_how_to_go_on(
    stopped: tuple[int, str, dict[str, bytes]], folder: Path
) -> None:
    status, text, files = stopped
    assert status == 130, text
    assert "go on with: python -m sim profile measure --device cpu --quick" in text
    assert files["decode.csv"].endswith(b"\n")
    assert not (folder / "out" / ".weights").exists()


def test_the_same_command_goes_on(whole: str, stopped: tuple[int, str, dict[str, bytes]], folder: Path) -> None:
    assert "decode.csv: dropped its half-written last row" in whole
    before = [line.split(",") for line in stopped[2]["decode.csv"].decode().splitlines()[1:-1]]
    after = [line.split(",") for line in (folder / "out" / "decode.csv").read_text().splitlines()[1:]]
    repeats = DECODE_COLUMNS.index("repeats")
    for old, new in zip(before, after, strict=False):  # in later passes more is measured, and nothing forgotten
        assert old[:7] == new[:7]
        assert int(old[repeats]) < int(new[repeats])
    facts = yaml.safe_load((folder / "out" / PROVENANCE).read_text())
    assert facts["finished"] is True
    assert facts["left_out"] == 0
    assert facts["device"] == "cpu"


def test_everything_is_measured(whole: str, folder: Path) -> None:
    measured = read_measured(folder / "out")
    fits = {"small": 4, "large": max(row.layers for row in measured.decode if row.model == "large")}
    assert 0 < fits["large"] < 8, "the budget holds a part of it"
    assert f"large: {fits['large']} of 8 layers fit" in whole
    for model, most in fits.items():
        steps = [row for row in measured.decode if row.model == model]
        assert {0, most} <= {row.layers for row in steps if row.offload == "cpu"}
        assert 0 in {row.layers for row in steps if row.offload == "stream"}
        assert {row.batch for row in steps} == {1, 4}
        assert {row.context for row in steps if row.batch == 1} == {64.0, 512.0}
        assert all(row.p10_s <= row.step_s <= row.p90_s and row.repeats >= 2 for row in steps)  # type: ignore[operator]
        prompts = [row for row in measured.prefill if row.model == model]
        assert {row.chunk_tokens for row in prompts} == {None, 128}
        parts = {(row.part, row.path) for row in measured.switch if row.model == model}
        assert parts == {
            ("start", ""), ("reserve", ""), ("free", ""),
            *((part, path) for part in ("kv_save", "kv_restore") for path in ("pinned", "pageable")),
            *(("reload", path) for path in ("pinned", "pageable", "disk")),
        }  # fmt: skip
    shape = architectures(folder / "architectures.csv")["small"]
    reloads = {row.bytes for row in measured.switch if row.model == "small" and row.part == "reload"}
    assert {shape.weight_bytes(4), shape.weight_bytes(2)} <= reloads
    assert {row.direction for row in measured.bandwidth} == {"h2d", "d2h", "both", "cpu", "disk"}
    assert {row.memory for row in measured.bandwidth if row.direction == "both"} == {"pinned", "pageable"}
    assert {(row.what, row.beside) for row in measured.contention} >= {
        ("decode", "decode"), ("cpu_decode", "cpu_decode"), ("decode", "load"), ("load", "decode"),
    }  # fmt: skip
    used = {row.layers: row.bytes_used for row in measured.memory if row.model == "small"}
    assert used[4] > shape.weight_bytes(4)


def test_tables_and_a_scenario_are_made(whole: str, folder: Path) -> None:
    library = Library(folder / "profiles")
    assert [key[2] for key in library.table_keys()] == ["torch", "torch-stream"]
    assert whole.splitlines()[-1] == f"python -m sim run {folder / 'out' / 'scenario.yaml'}"
    done = subprocess.run(
        [sys.executable, "-m", "sim", "run", str(folder / "out" / "scenario.yaml")],
        capture_output=True, text=True, cwd=ROOT, env={**os.environ, "SIM_INTERPRETED": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "small" in done.stdout


# --- mistakes


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """A Device that stands for a CPU core makes torch use one thread."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def refused(capsys: pytest.CaptureFixture[str], *given: str) -> str:
    """The one line that a mistake is answered with."""
    with pytest.raises(SystemExit) as stopped:
        main(["profile", "measure", *given])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_without_torch_one_line_says_how_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "profile measure needs torch: pip install 'residency-sim[profile]'" in refused(capsys, "--quick")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_one_line_names_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--device cpu" in refused(capsys, "--quick")


def test_mistakes_are_told_before_anything_is_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "new"
    base = [each if each != str(folder / "out") else str(out) for each in arguments(folder)]
    assert "did you mean 'small'?" in refused(capsys, *base, "--models", "smal")
    assert "are free" in refused(capsys, *base, "--budget-gib", "1e6")
    assert "one layer with the KV of 512 tokens needs" in refused(capsys, *base, "--budget-gib", "0.0001")
    monkeypatch.setattr(measurement_run, "free_host_bytes", lambda: 10**8)
    assert "GB of host memory, 0.1 GB are free" in refused(capsys, *base)
    assert not out.exists()


def store(folder: Path, fresh: bool = False, **facts: object) -> tuple[MeasurementFolder, list[str]]:
    said: list[str] = []
    known = {"gpu": "g", "host": "h", "engine": "torch"} | facts
    return MeasurementFolder(folder, known, fresh, said.append), said


def row(tokens: int, seconds: float = 1.0) -> DecodePoint:
    return DecodePoint(
        model="m", quantization="BF16", offload="cpu", layers=1, batch=1, context=float(tokens), step_s=seconds,
        kind="measured", source="here",
    )  # fmt: skip


def test_a_folder_of_another_machine_or_with_a_wrong_row_is_refused(tmp_path: Path) -> None:
    first, _ = store(tmp_path, gpu_name="A")
    first.add([row(1), row(2)])
    first.save(1.0, False)
    with pytest.raises(ProfileError, match=r"gpu_name was A, now it is B.*--out"):
        store(tmp_path, gpu_name="B")
    path = tmp_path / "decode.csv"
    path.write_text(path.read_text().replace("1,1,1", "1,x,1", 1).replace(",1,,1,", ",1,,none,", 1))
    with pytest.raises(ProfileError, match=r"decode.csv, row 2"):
        store(tmp_path, gpu_name="A")
    again, said = store(tmp_path, fresh=True, gpu_name="B")
    assert not again.rows[DecodePoint]
    assert len(said) == 1
    assert (tmp_path.with_name(f"{tmp_path.name}.1") / "decode.csv").exists()


@pytest.mark.parametrize("cut", range(1, 90, 8))
def test_no_cut_loses_a_whole_row(tmp_path: Path, cut: int) -> None:
    first, _ = store(tmp_path)
    first.add([row(1)])
    first.add([row(2), row(2), row(3)])
    path = tmp_path / "decode.csv"
    text = path.read_bytes()
    path.write_bytes(text[:-cut])
    again, said = store(tmp_path)
    kept = text[:-cut].count(b"\n")
    assert len(again.rows[DecodePoint]) == max(0, kept - 1)
    assert len(said) == (0 if text[:-cut].endswith(b"\n") else 1)
    again.add([row(1), row(2), row(3)])
    assert path.read_bytes() == text


def test_a_store_knows_bandwidths_and_switches(tmp_path: Path) -> None:
    first, _ = store(tmp_path)
    first.add([BandwidthPoint(direction="disk", bytes=5, h2d_gb_s=1.0, kind="measured", source="here")])
    first.add([SwitchPoint(model="m", quantization="BF16", part="start", seconds=1.0, kind="measured", source="here")])
    again, _ = store(tmp_path)
    assert again.has(BandwidthPoint, direction="disk", bytes=5)
    assert not again.has(BandwidthPoint, direction="disk", bytes=6)
    assert again.has(SwitchPoint, model="m", quantization="BF16", part="start")


def test_what_is_measured_again_becomes_a_mean(tmp_path: Path) -> None:
    kept, _ = store(tmp_path)
    kept.blend([replace(row(1, 1.0), p10_s=0.9, p90_s=1.1, repeats=1), row(2, 5.0)])
    kept.blend([replace(row(1, 2.0), p10_s=1.5, p90_s=2.5, repeats=3)])
    again, said = store(tmp_path)
    assert not said
    mean, other = again.rows[DecodePoint]
    assert (mean.step_s, mean.p10_s, mean.p90_s, mean.repeats) == (1.75, 0.9, 2.5, 4)
    assert other.step_s == 5.0


@pytest.mark.parametrize(("offload", "engine"), [(["stream"], "torch-stream"), (["cpu", "stream"], "torch")])
def test_the_scenario_names_tables_that_were_measured(tmp_path: Path, offload: list[str], engine: str) -> None:
    kept, _ = store(tmp_path, offload=offload, device="cpu")
    size = {"layers": 1, "layer_bytes": 8, "head_bytes": 8, "kv_bytes_per_token_layer": 8, "max_context": 128}
    kept.add([ModelRow(model="m", quantization="BF16", **size, kind="measured", source="here"), row(64)])
    content = yaml.safe_load(scenario(kept, tmp_path / "profiles").read_text())
    assert [model["engine"] for model in content["models"]] == [engine]


# --- its laws


def test_repeats_end_when_they_are_steady_or_time_is_up() -> None:
    assert repeated(lambda: 1.0, 10.0, 20).repeats == 5
    noisy = iter([1.0, 2.0] * 20)
    assert repeated(lambda: next(noisy), 10.0, 12).repeats == 12
    slow = repeated(lambda: time.sleep(0.02) or 1.0, 0.001, 20)
    assert slow.repeats == 2
    timing = RepeatedTiming.of([3.0, 1.0, 2.0])
    assert timing.median_s == 2.0
    assert timing.p10_s < 2.0 < timing.p90_s


def test_steps_that_cannot_both_be_right_are_found_and_measured_again(tmp_path: Path) -> None:
    first, _ = store(tmp_path)
    good = [replace(row(1, seconds), layers=layers) for layers, seconds in ((0, 0.1), (2, 0.5), (4, 1.0))]
    bad = [replace(row(2, seconds), layers=layers) for layers, seconds in ((2, 0.46), (3, 0.9), (4, 1.0))]
    first.add([*good, *bad])
    wrong = contradictions(first, {"m": 4}, "BF16")
    assert [(each.layers, each.context) for each in wrong] == [(2, 2.0), (4, 2.0)]  # type: ignore[attr-defined]
    first.drop(wrong)
    again, said = store(tmp_path)
    assert [(each.layers, each.context) for each in again.rows[DecodePoint]] == [(0, 1), (2, 1), (4, 1), (3, 2)]
    assert not said
    assert not contradictions(again, {"m": 4}, "BF16")


def test_a_larger_batch_that_took_clearly_less_is_measured_again(tmp_path: Path) -> None:
    kept, _ = store(tmp_path)
    one = row(1, 0.1)
    steps_s = {1: 0.1, 2: 0.2, 3: 0.15}
    kept.add([replace(one, batch=batch, step_s=seconds) for batch, seconds in steps_s.items()])
    wrong = contradictions(kept, {"m": 4}, "BF16")
    assert sorted(each.batch for each in wrong) == [2, 3]  # type: ignore[attr-defined]


def test_less_time_leaves_out_the_least_important_first() -> None:
    shape = architectures()["Qwen3-8B"]
    grid = GRIDS["cuda", True]
    points = [replace(point, seconds=1.0) for point in decode_points(shape, grid, "cpu", shape.layers)]
    layers = {point.layers for point in points}
    assert {0, 18, 36} | {round(36 * share) for share in PAPER} == layers
    chosen = [affordable(points, lambda group, pool: 2.0, left_s) for left_s in (0, 15, 30, 1e9)]
    assert [len(each) for each in chosen] == sorted(len(each) for each in chosen)
    assert {point.rank for point in chosen[0]} == {0}
    assert {(point.layers, point.batch) for point in chosen[0]} == {(0, 1), (36, 1), (0, 16), (36, 16)}
    assert chosen[3] == sorted(points, key=lambda point: point.rank) or len(chosen[3]) == len(points)
    spent = len(chosen[2]) + 2 * len({point.group for point in chosen[2]})
    assert spent <= 30


@pytest.mark.parametrize("offload", ["cpu", "stream"])
@pytest.mark.parametrize("law", ["proportional", "processor_sharing", "time_slice"])
def test_slow_downs_tell_the_contention_model(law: str, offload: str) -> None:
    step_s = {8: 1.0, 4: 2.5, 0: 4.0}
    rows = []
    for mine, theirs in ((8, 8), (8, 4), (4, 8), (4, 4), (0, 0)):
        # Streamed layers are computed by the GPU too.
        shares = [(each / 8 if offload == "cpu" else 1) / step_s[each] for each in (mine, theirs)]
        slow = _slow_down(law, *shares)
        rows.append(
            ContentionPoint(
                what="decode" if mine else "cpu_decode", model="m", quantization="BF16", offload=offload, layers=mine,
                batch=1,
                context=64.0, beside="decode", beside_model="m", beside_layers=theirs, alone_s=step_s[mine],
                beside_s=step_s[mine] * slow, slow_down=slow, kind="measured", source="here",
            )
        )  # fmt: skip
    found = closest_law(rows)
    assert found is not None
    assert found["closer"] == law
    assert found[f"{law}_error"] == pytest.approx(0, abs=1e-9)
    assert closest_law([]) is None
