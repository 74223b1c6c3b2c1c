"""The Azure importers: made-up files for their quirks, and the published files where they are at hand."""

from __future__ import annotations

import csv
import gzip
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.common.errors import ConfigError
from sim.traces import blocks as trace_blocks
from sim.traces.formats import guess_format
from sim.traces.stream import read_trace
from sim.traces.write import write_trace
from tests.support.format_files import counts_per_minute, gaps_cv, imported, made, published, refused, spread

LLM_2023, LLM_2024, LMM_2025 = "azure-llm-2023", "azure-llm-2024", "azure-lmm-2025"
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
ROWS = [
    "2023-11-16 23:59:59.9999999,374,44",
    "2023-11-17 00:00:00.0000000,396,109",
    "2023-11-17 00:00:00.0000001,879,55",
    "2023-11-17 10:00:00.5,91,16",
    "2023-11-18 00:00:00,1,1",
]
HEADER_2024 = HEADER.replace("\r", "")
ROWS_2024 = [
    "2024-05-11 23:59:59.999999+00:00,10,5",
    "2024-05-12 00:00:00+00:00,20,6",
    "2024-05-12 00:00:00.5+00:00,30,7",
    "2024-05-12 02:00:01.000001+02:00,40,8",
]
HEADER_2025 = "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"
ROWS_2025 = ["2024-10-15T12:00:00.269Z,0,770,491", "2024-10-15T12:00:05.819Z,3,949,126", "2024-10-15T12:00:06Z,1,9,1"]


@pytest.mark.parametrize("name", ["azure.csv", "azure.csv.gz"])
@pytest.mark.parametrize("end", ["", "\r\n"])
def test_quirks_and_exact_time_of_2023(tmp_path: Path, name: str, end: str) -> None:
    trace = imported(made(tmp_path, HEADER + "\r\n".join(ROWS) + end, name), LLM_2023, strict=True)
    ticks = [0, 1, 2, 36_000 * 10**7 + 5_000_001, 86_400 * 10**7 + 1]  # of 100 ns
    assert trace.arrival_s.tolist() == [float(Fraction(tick, 10**7)) for tick in ticks]
    assert trace.models == (LLM_2023,)
    assert trace.service_classes == ("default",)
    assert trace.prompt_tokens.tolist() == [374, 396, 879, 91, 1]
    assert trace.output_tokens.tolist() == [44, 109, 55, 16, 1]
    assert set(trace.session.tolist()) == {-1}
    assert trace.notices == ()


def test_zones_and_rows_without_decimals_of_2024(tmp_path: Path) -> None:
    path = made(tmp_path, HEADER_2024 + "\n".join(ROWS_2024) + "\n", "week.csv")
    trace = imported(path, strict=True)  # unmistakable
    assert trace.arrival_s.tolist() == [float(Fraction(us, 10**6)) for us in (0, 1, 500_001, 1_000_002)]
    assert trace.models == (LLM_2024,)
    assert trace.output_tokens.tolist() == [5, 6, 7, 8]


def test_images_of_2025(tmp_path: Path) -> None:
    path = made(tmp_path, HEADER_2025 + "\n".join(ROWS_2025) + "\n", "images.csv")
    plain = imported(path, strict=True)
    assert plain.models == (LMM_2025,)
    assert plain.arrival_s.tolist() == [0.0, 5.55, 5.731]
    assert plain.prompt_tokens.tolist() == [770, 949, 9]
    assert plain.extras["images"].to_pylist() == [0, 3, 1]
    assert "took ContextTokens to include the images of 2 requests" in plain.notices[0]
    counted = imported(path, LMM_2025, image_tokens="85")
    assert counted.prompt_tokens.tolist() == [770, 949 + 3 * 85, 94]
    assert counted.notices == ()
    with pytest.raises(ConfigError, match="image_tokens=-1"):
        imported(path, LMM_2025, image_tokens="-1")


def test_rows_out_of_order(tmp_path: Path) -> None:
    path = made(tmp_path, HEADER + "\r\n".join([ROWS[1], ROWS[0], ROWS[2]]), "azure.csv")
    trace = imported(path, LLM_2023)
    assert trace.prompt_tokens.tolist() == [374, 396, 879]
    assert trace.arrival_s.tolist() == [0.0, 1e-7, 2e-7]
    assert trace.notices == ("sorted 1 row that was out of order",)
    assert "row 3: arrives 1e-07 s before a row above it" in refused(path, LLM_2023, strict=True)


def test_several_files_share_one_clock(tmp_path: Path) -> None:
    first = made(tmp_path, HEADER + "\r\n".join(ROWS[1:]), "a b.csv")
    second = made(tmp_path, HEADER + "\r\n".join([ROWS[0], ROWS[2]]), "c.csv.gz")
    trace = imported([first, second], LLM_2023)
    names = [trace.models[code] for code in trace.model]
    assert names == ["c", "a-b", "a-b", "c", "a-b", "a-b"]
    assert trace.arrival_s[0] == 0
    assert trace.arrival_s[1] == 1e-7
    assert imported([first, second], LLM_2023, model="one").models == ("one",)
    other = tmp_path / "other"
    other.mkdir()
    assert "a second file would be the model 'c'" in refused([second, made(other, HEADER + ROWS[0], "c.csv")], LLM_2023)
    assert "is given twice" in refused([first, first], LLM_2023)


def test_the_size_of_blocks_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.Generator(np.random.PCG64(5))
    clock = np.datetime64("2024-05-10T00:00:00", "us") + np.sort(draw.integers(0, 10**9, 3000))
    order = np.arange(3000)
    order[[10, 2500]] = order[[2500, 10]]  # far out of order, over many small blocks
    times = [str(time).replace("T", " ") for time in clock[order]]
    text = HEADER_2024 + "".join(f"{time}+00:00,{row + 1},{row % 7}\n" for row, time in enumerate(times))
    path = made(tmp_path, text, "week.csv")
    whole = imported(path, LLM_2024)
    assert np.array_equal(np.sort(whole.prompt_tokens), [row + 1 for row in range(3000) if row % 7])
    monkeypatch.setattr(trace_blocks, "BLOCK_BYTES", 500)
    pieces = imported(path, LLM_2024)
    assert pieces.digest() == whole.digest()
    assert pieces.notices == whole.notices
    assert imported(path, LLM_2024, sort="true").digest() == whole.digest()
    assert imported([path], LLM_2024, zero_tokens="keep").prompt_tokens.sum() == 3000 * 3001 // 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (HEADER, "has a header but no rows"),
        (HEADER.replace("Context", "Contxt") + ROWS[0], "row 1: column 'ContextTokens' is missing; did you mean"),
        (HEADER + ROWS[0] + "\r\n17:00:01,1,1", "row 3: column 'TIMESTAMP' is '17:00:01'; write it as"),
        (HEADER + ROWS[0] + "\r\n,1,1", "row 3: column 'TIMESTAMP' is empty"),
        (HEADER + ROWS[0] + "\r\n2023-02-30 00:00:00,1,1", "row 3: column 'TIMESTAMP' is '2023-02-30 00:00:00'"),
        (HEADER + ROWS[0] + "\r\n2023-11-16 25:00:00,1,1", "row 3: column 'TIMESTAMP' is '2023-11-16 25"),
        (HEADER + ROWS[0] + "\r\n3023-11-16 00:00:00,1,1", "row 3: column 'TIMESTAMP' is '3023"),
        (HEADER + ROWS[0] + "\r\n1969-11-16 00:00:00,1,1", "row 3: column 'TIMESTAMP' is '1969"),
        (HEADER + ROWS_2024[0], "row 2: column 'TIMESTAMP' is '2024-05-11 23:59:59.999999+00:00'; write"),
        (HEADER + ROWS[0] + "\r\n" + ROWS[1].replace("396", "0"), "row 3: column 'ContextTokens' is '0'"),
        (HEADER + ROWS[0] + "\r\n" + ROWS[1].replace("396", "-3"), "row 3: column 'ContextTokens' is '-3'"),
        (HEADER + ROWS[0] + "\r\n" + ROWS[1].replace("396", "3.5"), "row 3: column 'ContextTokens' is '3.5'"),
        (HEADER + ROWS[0] + "\r\n2023-11-17 00:00:00", "row 3: has 1 field"),
        (HEADER + ROWS[0].replace("374", '"374'), "a quote is opened but not closed"),
        (HEADER + ROWS[0] + "\r\nyesterday,1,1\r\nnow,1", "row 3: column 'TIMESTAMP' is 'yesterday'"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, problem: str) -> None:
    assert problem in refused(made(tmp_path, text, "azure.csv"), LLM_2023)


def test_the_other_years_are_named(tmp_path: Path) -> None:
    assert "or give --format azure-llm-2024" in refused(made(tmp_path, HEADER + ROWS_2024[1], "a.csv"), LLM_2023)
    assert "or give --format azure-llm-2023" in refused(made(tmp_path, HEADER + ROWS[1], "a.csv"), LLM_2024)
    zeros = made(tmp_path, HEADER + ROWS[0] + "\r\n" + ROWS[1].replace("109", "0"), "zeros.csv")
    assert "row 3: column 'GeneratedTokens' is '0'; give at least 1, or --option zero_tokens=drop" in refused(
        zeros, LLM_2023
    )
    assert imported(zeros, LLM_2023, zero_tokens="keep").output_tokens.tolist() == [44, 1]
    dropped = imported(zeros, LLM_2023, zero_tokens="drop")
    assert dropped.output_tokens.tolist() == [44]
    assert dropped.notices[0].startswith("left out 1 row without prompt or output tokens")


def test_columns_in_any_order_quoted_or_beside_others_are_recognised(tmp_path: Path) -> None:
    rows = ("GeneratedTokens,TIMESTAMP,ContextTokens\n20,2024-05-12 00:00:00+00:00,100\n",)
    rows += ('"TIMESTAMP","ContextTokens","GeneratedTokens","Region"\n"2024-05-12 00:00:00+00:00","100","20","x"\n',)
    for text in rows:
        path = made(tmp_path, text, "a.csv")
        assert guess_format([path]).name == LLM_2024
        trace = imported(path, None)
        assert (trace.prompt_tokens.tolist(), trace.output_tokens.tolist()) == ([100], [20])


def test_nothing_left(tmp_path: Path) -> None:
    path = made(tmp_path, HEADER_2024 + "2024-05-12 00:00:00+00:00,0,1\n", "a.csv")
    assert "no request is left (left out 1 row" in refused(path, LLM_2024)


def test_truncated_gzip(tmp_path: Path) -> None:
    path = made(tmp_path, HEADER + "\r\n".join(ROWS), "azure.csv.gz")
    path.write_bytes(path.read_bytes()[:-10])
    assert "cut off" in refused(path, LLM_2023)


@pytest.mark.parametrize(
    ("header", "row", "form"),
    [(HEADER, ROWS[0], LLM_2023), (HEADER_2024, ROWS_2024[1], LLM_2024), (HEADER_2025, ROWS_2025[0], LMM_2025)],
)
def test_each_year_is_told_from_the_others(tmp_path: Path, header: str, row: str, form: str) -> None:
    assert guess_format([made(tmp_path, header + row, "a.csv.gz")]).name == form


# Figures of the data's own README: rows, span s, rate, IAT CV; per minute mean, max, CV, empty %; prompt and
# output mean, p50, p90, p99, max, min; each rounded as printed there.
STATISTICS: dict[str, dict[str, Any]] = {
    "code": {
        "basic": (8819, 3436, 2.567, 13.15),
        "minute": (151, 632, 1.04, 21),
        "prompt": (2048, 1469, 5188, 7436, 7437, 3),
        "output": (27.9, 13, 55, 251, 1899, 6),
    },
    "conv": {
        "basic": (19366, 3502, 5.530, 1.09),
        "minute": (333, 507, 0.22, 0),
        "prompt": (1155, 1020, 2734, 4142, 14050, 2),
        "output": (211, 129, 424, 601, 1000, 7),
    },
}


def published_2023(kind: str) -> Path:
    return published(f"azure_llm_2023/AzureLLMInferenceTrace_{kind}.csv.gz")


@pytest.mark.parametrize("kind", ["code", "conv"])
def test_published_statistics(kind: str) -> None:
    expected, trace = STATISTICS[kind], imported(published_2023(kind), strict=True)
    rows, span_s, rate, variation = expected["basic"]
    assert len(trace) == rows
    assert trace.arrival_s[0] == 0
    assert trace.arrival_s[-1] == pytest.approx(span_s, abs=0.5)
    assert rows / trace.arrival_s[-1] == pytest.approx(rate, abs=0.0006)
    assert gaps_cv(trace) == pytest.approx(variation, abs=0.0051)
    minute = counts_per_minute(trace)
    found = (
        round(minute.mean()),
        minute.max(),
        round(minute.std() / minute.mean(), 2),
        round(100 * (minute == 0).mean()),
    )
    assert found == expected["minute"]
    assert spread(trace.prompt_tokens) == pytest.approx(expected["prompt"], abs=0.51)
    assert spread(trace.output_tokens) == pytest.approx(expected["output"], abs=0.51)


@pytest.mark.parametrize("kind", ["code", "conv"])
def test_published_requests_equal_the_other_encoding_bit_for_bit(kind: str) -> None:
    """Vidur's copy of the same requests: its own decimals are off by up to 5e-13 s in 10 rows of 28,185."""
    other = published(f"vidur_processed/splitwise_{kind}.csv.gz")
    here, there = imported(published_2023(kind), LLM_2023, model="m"), imported(other, "vidur", strict=True, model="m")
    assert here.arrival_s.tobytes() == there.arrival_s.tobytes()
    assert here.digest() == there.digest()
    with gzip.open(other, "rt", encoding="utf-8") as file:
        raw_s = np.array([float(row["arrived_at"]) for row in csv.DictReader(file)])
    assert np.abs(raw_s - here.arrival_s).max() < 1e-12


def test_published_code_and_conv_overlaid() -> None:
    trace = imported([published_2023("code"), published_2023("conv")], strict=True)
    assert len(trace) == 8819 + 19366
    by_model = {name: np.flatnonzero(trace.model == code) for code, name in enumerate(trace.models)}
    code = by_model["AzureLLMInferenceTrace_code"]
    # conv begins at 18:15:46.68059, code at 18:17:03.97996
    assert trace.arrival_s[code[0]] == 77.29937
    alone = imported(published_2023("code"))
    assert trace.prompt_tokens[code].tolist() == alone.prompt_tokens.tolist()
    assert np.abs(trace.arrival_s[code] - alone.arrival_s - 77.29937).max() < 1e-9


def test_published_excerpts_of_the_other_years() -> None:
    code, conv = (
        published(f"format_samples/azure_llm_2024_{kind}_1week.first5_last5.csv.gz") for kind in ("code", "conv")
    )
    trace = imported([code, conv], strict=True)
    assert (len(trace), trace.notices) == (20, ())
    assert trace.arrival_s[:5].tolist() == [0.0, 0.007405, 0.012384, 0.027915, 0.07396]
    images = imported(published("format_samples/azure_lmm_2025_multimodal.first5_last5.csv.gz"), strict=True)
    assert images.extras["images"].to_pylist() == [0, 1, 1, 0, 1, 16, 1, 1, 1, 0]
    assert images.arrival_s[-1] == 604_799.695


def test_published_requests_survive_every_native_format(tmp_path: Path) -> None:
    trace = imported(published_2023("code"))
    for suffix in (".csv", ".parquet", ".jsonl.gz"):
        write_trace(trace, tmp_path / f"t{suffix}")
        assert read_trace(tmp_path / f"t{suffix}", strict=True).digest() == trace.digest()
