"""The Azure importer: made-up files for its quirks, and the published files where they are at hand."""

from __future__ import annotations

import csv
import gzip
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.errors import TraceError
from sim.importers import AZURE_2023, FORMATS, import_trace
from sim.trace import Trace, describe, read_trace, write_trace

PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "traces"
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
ROWS = [
    "2023-11-16 23:59:59.9999999,374,44",
    "2023-11-17 00:00:00.0000000,396,109",
    "2023-11-17 00:00:00.0000001,879,55",
    "2023-11-17 10:00:00.5,91,16",
    "2023-11-18 00:00:00,1,1",
]


def azure(folder: Path, text: str, name: str = "azure.csv") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["azure.csv", "azure.csv.gz"])
@pytest.mark.parametrize("end", ["", "\r\n"])
def test_azure_quirks_and_exact_time(tmp_path: Path, name: str, end: str) -> None:
    path = azure(tmp_path, HEADER + "\r\n".join(ROWS) + end, name)
    trace = import_trace(path, AZURE_2023, strict=True)
    ticks = [0, 1, 2, 36_000 * 10**7 + 5_000_001, 86_400 * 10**7 + 1]  # of 100 ns
    assert trace.arrival_s.tolist() == [float(Fraction(tick, 10**7)) for tick in ticks]
    assert trace.models == (AZURE_2023,)
    assert trace.service_classes == ("default",)
    assert trace.prompt_tokens.tolist() == [374, 396, 879, 91, 1]
    assert trace.output_tokens.tolist() == [44, 109, 55, 16, 1]
    assert set(trace.session.tolist()) == {-1}
    assert trace.notices == ()


def test_azure_rows_out_of_order(tmp_path: Path) -> None:
    path = azure(tmp_path, HEADER + "\r\n".join([ROWS[1], ROWS[0], ROWS[2]]))
    trace = import_trace(path, AZURE_2023)
    assert trace.prompt_tokens.tolist() == [374, 396, 879]
    assert trace.arrival_s.tolist() == [0.0, 1e-7, 2e-7]
    assert trace.notices == ("sorted 1 row that was out of order",)
    with pytest.raises(TraceError, match=r"row 3: arrives at 0\.0 s"):
        import_trace(path, AZURE_2023, strict=True)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (HEADER, "has a header but no rows"),
        (
            HEADER.replace("Context", "Contxt") + ROWS[0],
            "row 1: column 'ContextTokens' is missing; did you mean",
        ),
        (HEADER + ROWS[0] + "\r\n17:00:01,1,1", "row 3: column 'TIMESTAMP' is '17:00:01'; write it as"),
        (HEADER + ROWS[0] + "\r\n,1,1", "row 3: column 'TIMESTAMP' is empty"),
        (
            HEADER + ROWS[0] + "\r\n2023-02-30 00:00:00,1,1",
            "row 3: column 'TIMESTAMP' is '2023-02-30 00:00:00'",
        ),
        (HEADER + ROWS[0] + "\r\n2023-11-16 25:00:00,1,1", "row 3: column 'TIMESTAMP' is '2023-11-16 25"),
        (HEADER + ROWS[0] + "\r\n3023-11-16 00:00:00,1,1", "row 3: column 'TIMESTAMP' is '3023"),
        (HEADER + ROWS[0] + "\r\n" + ROWS[1].replace("396", "0"), "row 3: column 'ContextTokens' is '0'"),
        (HEADER + ROWS[0] + "\r\n2023-11-17 00:00:00", "row 3: has 1 field"),
    ],
)
def test_azure_mistakes(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(TraceError) as caught:
        import_trace(azure(tmp_path, text), AZURE_2023)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_gzip(tmp_path: Path) -> None:
    path = azure(tmp_path, HEADER + "\r\n".join(ROWS), "azure.csv.gz")
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(TraceError, match="cut off"):
        import_trace(path, AZURE_2023)


def test_formats_by_name(tmp_path: Path) -> None:
    path = azure(tmp_path, HEADER + ROWS[0])
    with pytest.raises(TraceError, match=r"unknown trace format 'azure-llm-2032'; did you mean 'azure-llm-2023'\?"):
        import_trace(path, "azure-llm-2032")
    with pytest.raises(TraceError, match="give --format azure-llm-2023"):
        import_trace(path, None)
    native = tmp_path / "native.csv"
    write_trace(import_trace(path, AZURE_2023), native)
    digests = {import_trace(native, name).digest() for name in (None, "native")}
    assert digests == {import_trace(path, AZURE_2023).digest()}
    assert list(FORMATS) == ["native", AZURE_2023]


def published(name: str) -> Path:
    path = PUBLISHED / name
    if not path.is_file():
        pytest.skip(f"the published trace {name} is not beside this checkout (../shared/traces)")
    return path


def published_trace(kind: str) -> Trace:
    path = published(f"azure_llm_2023/AzureLLMInferenceTrace_{kind}.csv.gz")
    return import_trace(path, AZURE_2023, strict=True)


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


@pytest.mark.parametrize("kind", ["code", "conv"])
def test_published_azure_statistics(kind: str) -> None:
    expected, numbers = STATISTICS[kind], describe(published_trace(kind))
    rows, span_s, rate, variation = expected["basic"]
    assert numbers["rows"] == rows
    assert numbers["span_s"] == pytest.approx(span_s, abs=0.5)
    assert numbers["rate_per_s"] == pytest.approx(rate, abs=0.0006)
    assert numbers["iat_cv"] == pytest.approx(variation, abs=0.0051)
    minute = numbers["per_minute"]
    assert (round(minute["mean"]), minute["max"], round(minute["cv"], 2)) == expected["minute"][:3]
    assert round(100 * minute["empty_share"]) == expected["minute"][3]
    for side in ("prompt", "output"):
        found = [numbers[f"{side}_tokens"][key] for key in ("mean", "p50", "p90", "p99", "max", "min")]
        assert found == pytest.approx(expected[side], abs=0.51)


@pytest.mark.parametrize("kind", ["code", "conv"])
def test_published_azure_equals_the_other_encoding_row_by_row(kind: str) -> None:
    """Another project's copy of the same requests; 1 ns on times below 3,600 s is rounding only."""
    trace = published_trace(kind)
    with gzip.open(published(f"vidur_processed/splitwise_{kind}.csv.gz"), "rt", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(trace)
    assert [int(row["num_prefill_tokens"]) for row in rows] == trace.prompt_tokens.tolist()
    assert [int(row["num_decode_tokens"]) for row in rows] == trace.output_tokens.tolist()
    other_s = np.array([float(row["arrived_at"]) for row in rows])
    assert np.abs(other_s - trace.arrival_s).max() <= 1e-9


def test_published_azure_survives_every_native_format(tmp_path: Path) -> None:
    trace = published_trace("code")
    for suffix in (".csv", ".parquet", ".jsonl.gz"):
        write_trace(trace, tmp_path / f"t{suffix}")
        assert read_trace(tmp_path / f"t{suffix}", strict=True).digest() == trace.digest()
