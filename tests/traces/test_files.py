"""Damaged files: a trace or a TraceError of one line, never anything else."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sim.common.errors import TraceError
from sim.traces.formats import import_stream
from sim.traces.stream import gather, read_trace
from sim.traces.trace import Trace
from sim.traces.write import write_trace

HEADER = "arrival_s,model,prompt_tokens,output_tokens\n"
GOOD = "0,a,1,1\n"


def save(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def test_mistakes_with_files(tmp_path: Path) -> None:
    def refuses(path: Path, problem: str) -> None:
        with pytest.raises(TraceError, match=problem):
            read_trace(path)

    refuses(tmp_path / "absent.csv", r"absent\.csv: no such file")
    (tmp_path / "folder.csv").mkdir()
    refuses(tmp_path / "folder.csv", r"folder\.csv: is a folder")
    refuses(save(tmp_path, HEADER + GOOD, "t.txt"), "unknown kind of file")
    whole = gzip.compress((HEADER + GOOD * 500).encode())
    (tmp_path / "cut.csv.gz").write_bytes(whole[:-12])
    refuses(tmp_path / "cut.csv.gz", "cut off")
    refuses(save(tmp_path, HEADER + GOOD, "not.csv.gz"), "not gzip")
    (tmp_path / "really_gzip.csv").write_bytes(whole)
    refuses(tmp_path / "really_gzip.csv", r"add \.gz")
    (tmp_path / "latin.csv").write_bytes((HEADER + GOOD + "1,caf\xe9,1,1\n").encode("latin-1"))
    refuses(tmp_path / "latin.csv", "row 3: not UTF-8")
    (tmp_path / "wide.csv").write_bytes((HEADER + GOOD).encode("utf-16"))
    refuses(tmp_path / "wide.csv", "row 1: not UTF-8")
    write_trace(read_trace(save(tmp_path, HEADER + GOOD)), tmp_path / "cut.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "cut.parquet").read_bytes()[:-20])
    refuses(tmp_path / "cut.parquet", "not a readable Parquet file")


AZURE = b"TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:17:03.9799600,4808,10\r\n"
SAMPLES = {
    "t.csv": (HEADER + '0,a,1,1\n1.5,"b,c",22,333\n3,a,4,5\n').encode(),
    "t.jsonl": b'{"arrival_s": 0.5, "model": "a", "prompt_tokens": 10, "output_tokens": 2, "session": "s"}\n' * 3,
    "azure.csv": AZURE + b"2023-11-16 18:17:04.0319600,3180,8",
}
EDITS = st.lists(
    st.tuples(
        st.integers(0, 400),  # where, modulo the length
        st.integers(0, 9),  # how many bytes go
        st.one_of(st.sampled_from([b"", b'"', b",", b"\n", b"\r", b";", b"-", b"nan", b"1e999", b"{", b"]", b"\x00"]))
        | st.binary(max_size=6),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("name", list(SAMPLES))
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS, zipped=st.booleans())
@example(edits=[(0, 9, b"")], zipped=False)
def test_any_edit_gives_a_trace_or_one_line(
    tmp_path: Path, name: str, edits: list[tuple[int, int, bytes]], zipped: bool
) -> None:
    data = SAMPLES[name]
    for where, gone, added in edits:
        start = where % (len(data) + 1)
        data = data[:start] + added + data[start + gone :]
    path = tmp_path / (name + ".gz" if zipped else name)
    path.write_bytes(gzip.compress(data) if zipped else data)
    trace = trace_or_problem(path, "azure-llm-2023" if name == "azure.csv" else None)
    if isinstance(trace, str):
        assert trace.startswith(f"{path}: ")
        assert len(trace.splitlines()) == 1
        return
    assert_sound(trace)
    write_trace(trace, tmp_path / "again.jsonl")
    assert read_trace(tmp_path / "again.jsonl", strict=True).digest() == trace.digest()


def trace_or_problem(path: Path, format_name: str | None) -> Trace | str:
    try:
        return gather(import_stream([path], format_name))
    except TraceError as error:
        return str(error)


def assert_sound(trace: Trace) -> None:
    assert len(trace) > 0
    assert np.isfinite(trace.arrival_s).all()
    assert trace.arrival_s[0] >= 0
    assert min(trace.prompt_tokens.min(), trace.output_tokens.min()) >= 1
    assert 0 <= trace.model.min() <= trace.model.max() < len(trace.models)
    assert -1 <= trace.session.min() <= trace.session.max() < len(trace.sessions)
