"""Native trace files written as the requests come, whole or not at all.

The name's ending says the format. Called by the command line, by whoever composes traces, and by tests.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from sim.common.atomic_files import whole_file, why
from sim.common.errors import TraceError
from sim.common.lazy import pa, parquet
from sim.traces.blocks import check_file
from sim.traces.columns import name_problem
from sim.traces.extras import EXTRAS, EXTRAS_KEY, arrow_type, metadata_json
from sim.traces.files import suffix_of
from sim.traces.order import Held
from sim.traces.stream import TraceStream, stream_of
from sim.traces.trace import DEFAULT_CLASS, OPTIONAL, REQUIRED, Trace, join

RECIPE_KEY = b"recipe"
GROUP_ROWS = 1 << 17  # of a Parquet file: what a reader has in memory at a time

_Columns = tuple[str, ...]


def write_trace(trace: Trace, path: Path, recipe: dict[str, Any] | None = None) -> None:
    """`write_stream` of a trace at hand."""
    write_stream(stream_of(trace), path, recipe)


def write_stream(stream: TraceStream, path: Path, recipe: dict[str, Any] | None = None) -> int:
    """Write the native format that the name's ending asks for, and return the number of requests.

    Reading it back gives the same requests. Optional columns appear only when they say something, and in traces too
    long to hold also when they may. The file appears whole or not at all; equal traces give equal bytes. `recipe`, how
    the trace was made, is kept by Parquet alone (`read_recipe`). Raises TraceError: unknown ending, a name that cannot
    be read back, an extra column that text cannot keep, no requests, a folder that cannot be written; whatever the
    stream raises.
    """
    path = Path(path)
    suffix = suffix_of(path)
    writer = _write_parquet if suffix == ".parquet" else _write_jsonl if "jsonl" in suffix else _write_csv
    columns, chunks = _decided(stream, path)
    try:
        with whole_file(path) as partial, partial.open("xb") as file:
            if not suffix.endswith(".gz"):
                return writer(file, chunks, columns, recipe)
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as zipped:
                return writer(cast(IO[bytes], zipped), chunks, columns, recipe)
    except OSError as error:
        raise TraceError(f"{path}: cannot write the file ({why(error)}); nothing of it was kept") from None


def read_recipe(path: Path) -> dict[str, Any] | None:
    """How a Parquet trace was made, as `write_stream` kept it; None for others. Raises TraceError: no such file."""
    path = Path(path)
    check_file(path)
    recipe = metadata_json(path, RECIPE_KEY) if suffix_of(path) == ".parquet" else None
    return recipe if isinstance(recipe, dict) else None


def _decided(stream: TraceStream, path: Path) -> tuple[_Columns, Iterator[Trace]]:
    """The columns to write, and the chunks, checked as they pass."""
    held = Held()
    whole = held.holds(stream.chunks)
    if not held.rows:
        raise TraceError(f"{path}: the trace has no requests to write")
    optional = tuple(
        name for name in OPTIONAL if not whole or any(_says_something(chunk, name) for chunk in held.chunks)
    )
    extras = tuple(dict.fromkeys(name for chunk in held.chunks for name in chunk.extras))
    if suffix_of(path) != ".parquet":
        for name in extras:
            if name not in EXTRAS:
                raise TraceError(f"{path}: a text file cannot keep the extra column '{name}'; write .parquet")
    rest = iter(()) if whole else stream.chunks
    return (*REQUIRED, *optional, *extras), _checked(chain(held.handed_out(), rest), path, extras)


def _says_something(chunk: Trace, name: str) -> bool:
    if name == "service_class":
        used = np.unique(chunk.service_class).tolist()
        return [chunk.service_classes[code] for code in used] != [DEFAULT_CLASS]
    if name == "session":
        return bool((chunk.session >= 0).any())
    if name == "priority":
        return bool((chunk.priority != 0).any())
    numbers = getattr(chunk, name)
    return numbers is not None and not bool(np.isnan(numbers).all())


def _checked(chunks: Iterator[Trace], path: Path, extras: _Columns) -> Iterator[Trace]:
    seen = {"model": 0, "service_class": 0, "session": 0}
    count = 0
    for chunk in chunks:
        for column, (_, names) in chunk.named().items():
            fresh = names[seen[column] :]
            problem = next((problem for name in fresh if (problem := name_problem(name, column))), None)
            if problem:
                raise TraceError(f"{path}: a name in column '{column}' {problem}")
            seen[column] = len(names)
        for name in chunk.extras:
            assert name not in (*REQUIRED, *OPTIONAL), f"an extra column named like the trace's own: {name}"
            if name not in extras:
                raise TraceError(f"{path}: the extra column '{name}' begins after {count:,} rows; begin it earlier")
        count += len(chunk)
        yield chunk


# --- text


def _write_csv(file: IO[bytes], chunks: Iterator[Trace], columns: _Columns, recipe: Any) -> int:
    file.write((",".join(columns) + "\n").encode())
    count = 0
    for chunk in chunks:
        rows = zip(*_texts(chunk, columns, _quoted, ""), strict=True)
        file.write("\n".join([*map(",".join, rows), ""]).encode())
        count += len(chunk)
    return count


def _write_jsonl(file: IO[bytes], chunks: Iterator[Trace], columns: _Columns, recipe: Any) -> int:
    pattern = "{{" + ", ".join(f'"{name}": {{}}' for name in columns) + "}}\n"
    count = 0
    for chunk in chunks:
        file.write("".join(map(pattern.format, *_texts(chunk, columns, json.dumps, "null"))).encode())
        count += len(chunk)
    return count


def _quoted(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return '"' + text.replace('"', '""') + '"' if "," in text or '"' in text else text


def _texts(chunk: Trace, columns: _Columns, quoted: Callable[[Any], str], nothing: str) -> list[Iterator[str]]:
    """Each column as text: numbers by repr, which round-trips, names by `quoted`, -1, NaN and null as `nothing`."""
    named = chunk.named()
    texts: list[Iterator[str]] = []
    for name in columns:
        if name in named:
            texts.append(_named_texts(*named[name], quoted, nothing))
            continue
        if name in (*REQUIRED, *OPTIONAL):
            numbers = getattr(chunk, name)
            if numbers is None:
                texts.append(iter([nothing] * len(chunk)))
            elif name in ("think_s", "deadline_s"):
                texts.append(nothing if math.isnan(value) else repr(value) for value in numbers.tolist())
            else:
                texts.append(map(repr, numbers.tolist()))
        else:
            values = chunk.extras[name].to_pylist() if name in chunk.extras else [None] * len(chunk)
            texts.append(nothing if value is None else quoted(value) for value in values)
    return texts


def _named_texts(codes: Any, names: Sequence[str], quoted: Callable[[Any], str], nothing: str) -> Iterator[str]:
    used, places = np.unique(codes, return_inverse=True)
    written = [nothing if code < 0 else quoted(names[code]) for code in used.tolist()]
    return map(written.__getitem__, places.tolist())


# --- Parquet


def _write_parquet(file: IO[bytes], chunks: Iterator[Trace], columns: _Columns, recipe: dict[str, Any] | None) -> int:
    count = 0
    writer: Any = None
    try:
        for group in _groups(chunks):
            if writer is None:
                schema = pa.schema([(name, _arrow_column(group, name).type) for name in columns])
                writer = parquet.ParquetWriter(file, schema.with_metadata(_metadata(columns, recipe)))
            arrays = [_arrow_column(group, name).cast(schema.field(name).type) for name in columns]
            writer.write_table(pa.table(arrays, schema=writer.schema), row_group_size=GROUP_ROWS)
            count += len(group)
    finally:
        if writer is not None:
            writer.close()
    return count


def _groups(chunks: Iterator[Trace]) -> Iterator[Trace]:
    """The same requests, GROUP_ROWS at a time: the file's bytes do not tell how the trace came."""
    waiting: list[Trace] = []
    for chunk in chunks:
        waiting.append(chunk)
        while sum(map(len, waiting)) >= GROUP_ROWS:
            together = join(waiting)
            yield together.select(slice(0, GROUP_ROWS))
            waiting = [together.select(slice(GROUP_ROWS, None))]
    if sum(map(len, waiting)):
        yield join(waiting)


def _arrow_column(group: Trace, name: str) -> Any:
    named = group.named()
    if name in named:
        codes, names = named[name]
        used, places = np.unique(codes, return_inverse=True)
        texts = pa.array([None if code < 0 else names[code] for code in used.tolist()], pa.string())
        return texts.take(pa.array(places))
    if name in ("think_s", "deadline_s"):
        numbers = getattr(group, name)
        return pa.nulls(len(group), pa.float64()) if numbers is None else pa.array(numbers, from_pandas=True)
    if name in (*REQUIRED, *OPTIONAL):
        return pa.array(getattr(group, name))
    column = group.extras[name] if name in group.extras else pa.nulls(len(group))
    return column.cast(arrow_type(EXTRAS[name])) if name in EXTRAS else column


def _metadata(columns: _Columns, recipe: dict[str, Any] | None) -> dict[bytes, bytes]:
    extras = [name for name in columns if name not in (*REQUIRED, *OPTIONAL)]
    metadata = {EXTRAS_KEY: json.dumps(extras).encode()} if extras else {}
    if recipe is not None:
        metadata[RECIPE_KEY] = json.dumps(recipe, ensure_ascii=False, allow_nan=False).encode()
    return metadata
