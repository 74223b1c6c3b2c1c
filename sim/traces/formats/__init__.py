"""Other people's trace formats, brought to the native trace: one module per source, each with a tuple FORMATS.

Adding a format is adding a module and naming it here. Each keeps its files' quirks out of the rest of the project.
Called by `workload` and by the command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from sim.common.errors import TraceError, did_you_mean
from sim.traces.formats import (
    agentic,
    azure,
    burstgpt,
    functions,
    lengths,
    mooncake,
    openai_log,
    ragpulse,
    servegen,
    vidur,
    vllm_bench,
)
from sim.traces.formats.base import Format, FormatOptions, Sample, one_file, parse_options
from sim.traces.formats.members import sample_of
from sim.traces.stream import TraceStream, read_stream
from sim.traces.trace import REQUIRED, Trace

NATIVE = "native"


def _read_native(files: Sequence[Path], options: FormatOptions) -> TraceStream:
    return read_stream(one_file(files, NATIVE), options.strict, sort=True)


def _is_native(sample: Sample) -> bool:
    if sample.head.startswith(b"PAR1"):
        return True
    names = sample.json_object() or sample.columns()
    # A model and its tokens are also what a request log has; the name of the time is this project's own.
    return "arrival_s" in names or sum(name in names for name in REQUIRED) >= 3


_MODULES = (azure, burstgpt, mooncake, servegen, ragpulse, agentic, functions, vidur, lengths, vllm_bench, openai_log)
_ALL = (
    Format(NATIVE, "this project's own traces: .csv, .jsonl, .parquet", _read_native, _is_native),
    *(form for module in _MODULES for form in module.FORMATS),
)
FORMATS: dict[str, Format] = {form.name: form for form in _ALL}
assert len(FORMATS) == len(_ALL), "two formats of one name"


def format_named(name: str) -> Format:
    """The format of this name. Raises TraceError."""
    if name not in FORMATS:
        raise TraceError(f"unknown trace format '{name}'; {did_you_mean(name, FORMATS)}")
    return FORMATS[name]


def guess_format(files: Sequence[Path]) -> Format:
    """The format that all these files, archives or folders are unmistakably of.

    Raises TraceError: a file that is missing, unreadable or empty, or whose format cannot be told.
    """
    assert files, "no files"
    found: Format | None = None
    for path in files:
        sample = sample_of(path)
        fitting = [form for form in FORMATS.values() if form.sniff(sample)]
        if not fitting and not sample.members:
            _refuse_no_text(path, sample)
        if len(fitting) != 1:
            among = ", ".join(form.name for form in fitting or FORMATS.values())
            raise TraceError(f"{path}: cannot tell the format of this trace; give --format, one of: {among}")
        if found is not None and fitting[0] is not found:
            raise TraceError(f"{path}: is {fitting[0].name}, but {files[0]} is {found.name}; import them one by one")
        found = fitting[0]
    assert found is not None
    return found


def told_format(path: Path) -> str | None:
    """The name of the format that a file is unmistakably of; None: native, or nobody can tell. Never raises."""
    try:
        name = guess_format([path]).name
    except TraceError:
        return None  # who reads it as a native trace will say what is wrong
    return None if name == NATIVE else name


def _refuse_no_text(path: Path, sample: Sample) -> None:
    """What is wrong with a file that no format knows, where it is not even a table or JSON."""
    if b"\0" in sample.head:
        raise TraceError(f"{path}: not UTF-8 text nor Parquet; save it as UTF-8, or give the trace that is inside")
    if not sample.first_line():
        raise TraceError(f"{path}: the file is empty; a trace has at least one request")


def import_stream(
    files: Sequence[Path],
    format_name: str | None = None,
    options: Mapping[str, Any] | None = None,
    strict: bool = False,
) -> TraceStream:
    """The requests of these files as a stream; None means the format that the files are unmistakably of.

    `options` are the format's own, by name, as texts or values; `strict` (or the option of that name) refuses rows
    out of order and columns that nobody reads. Raises TraceError: an unknown or doubtful format, or, also while the
    stream is read, whatever the format's reader refuses; ConfigError: a wrong option.
    """
    paths = [Path(path) for path in files]
    form = guess_format(paths) if format_name is None else format_named(format_name)
    given = parse_options(form, {**(options or {}), **({"strict": True} if strict else {})})
    if format_name is None:
        return form.read(paths, given)
    with _hinting(paths, form):
        stream = form.read(paths, given)
    return replace(stream, chunks=_hinted(stream.chunks, paths, form))


def _hinted(chunks: Iterator[Trace], files: Sequence[Path], form: Format) -> Iterator[Trace]:
    """The chunks; where not even the first can be read, the error says what the files look like instead."""
    with _hinting(files, form):
        first = next(chunks, None)
    if first is not None:
        yield first
        yield from chunks


@contextmanager
def _hinting(files: Sequence[Path], form: Format) -> Iterator[None]:
    try:
        yield
    except TraceError as error:
        try:
            other = guess_format(files)
        except TraceError:
            raise error from None
        # Any Parquet file looks native.
        if other is form or other.name == NATIVE or other.name in str(error):
            raise
        raise TraceError(f"{error} (it looks like {other.name})") from None
