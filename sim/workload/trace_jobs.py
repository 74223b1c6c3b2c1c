"""What the trace verbs do: traces in, a file or numbers out. No partial output, and no file is written over.

cli/trace.py parses and prints; these functions are for scripts as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sim.common.errors import ConfigError, TraceError
from sim.common.yaml_files import read_yaml
from sim.traces.compose.composition import compose, settle
from sim.traces.compose.deal_models import MODEL, tally
from sim.traces.compose.recipe import Recipe, Step, as_data, parse_generated, parse_recipe
from sim.traces.describe.trace_statistics import Description, Service
from sim.traces.files import SUFFIXES, suffix_of
from sim.traces.formats import import_stream
from sim.traces.stream import TraceStream
from sim.traces.trace import Signs, Trace
from sim.traces.write import read_recipe, write_stream
from sim.workload.generate import from_recipe, stream_from_file

Watch = Callable[[TraceStream, str], AbstractContextManager[TraceStream]]
MOST_RECIPE_BYTES = 1 << 22


def _unwatched(stream: TraceStream, doing: str) -> AbstractContextManager[TraceStream]:
    return nullcontext(stream)


@dataclass(frozen=True)
class Reading:
    """How trace files are read: their format (None: the one they are unmistakably of), its options, strictly or not."""

    format: str | None = None
    options: Mapping[str, Any] | None = None
    strict: bool = False

    def stream(self, *files: Path) -> TraceStream:
        return import_stream(files, self.format, self.options, self.strict)


@dataclass(frozen=True)
class Written:
    """A file that was made, its requests, and what is worth knowing about them."""

    path: Path
    rows: int
    notices: tuple[str, ...]


class ClusterLoad(Protocol):
    """What a trace asks of a cluster (sim.bounds.offered_load): chunks are added as they pass."""

    def add(self, chunk: Trace) -> None: ...

    def facts(self, span_s: float) -> dict[str, Any]: ...


def check_target(target: Path) -> None:
    """Raises TraceError: a file that exists, an ending that is no trace's. Before hours of work, not after."""
    if target.exists() or target.is_symlink():
        raise TraceError(f"--out {target}: exists already; choose another name or remove it")
    suffix_of(target)
    if not target.parent.is_dir():
        raise TraceError(f"{target}: cannot write the file (there is no folder {target.parent}); check the folder")


def convert_trace(
    files: Sequence[Path], target: Path, reading: Reading, watch: Watch = _unwatched
) -> tuple[int, list[str]]:
    """Write traces of any known format in the native one; the number of requests, and what reading noticed.

    Raises TraceError: a source that cannot be read, a target that exists or cannot be written; ConfigError: options.
    """
    check_target(target)
    with watch(reading.stream(*files), "import") as stream:
        return write_stream(stream, target), stream.notices


def check_file(file: Path, reading: Reading, watch: Watch = _unwatched) -> tuple[int, list[str]]:
    """The number of requests, and what a person should know: what reading noticed, signs of a wrong unit or clock."""
    signs, rows = Signs(), 0
    with watch(reading.stream(file), "check") as stream:
        for chunk in stream.chunks:
            signs.add(chunk)
            rows += len(chunk)
    return rows, [*stream.notices, *signs.remarks()]


def generate_file(
    what: str,
    settings: Sequence[str],
    target: Path,
    seed: int | None = None,
    rows: int | None = None,
    watch: Watch = _unwatched,
) -> Written:
    """Draw the requests of a preset or a workload file, and keep the recipe with them. Raises SimError."""
    check_target(target)
    stream, data = stream_from_file(what, settings, seed, rows)
    return _drawn(stream, data, target, watch)


def _drawn(stream: TraceStream, data: dict[str, Any], target: Path, watch: Watch) -> Written:
    with watch(stream, f"generate {target.name}") as watched:
        count = write_stream(watched, target, data)
    return Written(target, count, (*stream.notices, *_lost_recipe(target)))


def _lost_recipe(target: Path) -> tuple[str, ...]:
    if suffix_of(target) == ".parquet":
        return ()
    return (f"{target.name} cannot carry its recipe; keep the command, or write .parquet",)


# --- describing


def describe_file(
    file: Path, reading: Reading, service: Service, load: ClusterLoad | None, watch: Watch = _unwatched
) -> tuple[Description, dict[str, Any], list[str]]:
    """The description of a file, its facts (those of the load on a cluster under "load"), what reading noticed."""
    description = Description(service)
    with watch(reading.stream(file), "describe") as stream:
        for chunk in stream.chunks:
            description.add(chunk)
            if load is not None:
                load.add(chunk)
    if not description.rows:
        raise TraceError(f"{file}: the trace has no requests to describe")
    facts = description.facts()
    if load is not None:
        facts["load"] = load.facts(description.span_s)
    return description, facts, stream.notices


def short_names(files: Sequence[Path]) -> list[str]:
    """What to call the files side by side: their names without endings, or their paths where these are not enough."""
    names = [file.name for file in files]
    for ending in (*SUFFIXES, ".tar.gz", ".json"):
        names = [name.removesuffix(ending) or name for name in names]
    return names if len(dict.fromkeys(names)) == len(names) else [str(file) for file in files]


def parse_service(text: str) -> Service:
    """PROMPT:OUTPUT as in 5000:50: prompt and output tokens/s of one request. Raises ConfigError."""
    found = re.fullmatch(r"([0-9.eE+]+):([0-9.eE+]+)", text)
    try:
        speeds = [float(part) for part in found.groups()] if found else []
    except ValueError:
        speeds = []
    if len(speeds) != 2 or not all(0 < speed < 1e15 for speed in speeds):
        raise ConfigError(f"--service {text}: write PROMPT:OUTPUT tokens/s of one request, for example 5000:50")
    return Service(*speeds)


# --- composing


def is_recipe(file: Path) -> bool:
    """Whether a file is a recipe rather than a trace: YAML always is, JSON when it says so itself."""
    if file.suffix.lower() != ".json":
        return file.suffix.lower() in (".yaml", ".yml")
    try:
        data = json.loads(file.read_bytes()) if file.stat().st_size < MOST_RECIPE_BYTES else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and ("sources" in data or "generate" in data)


def follow_file(file: Path, target: Path, seed: int | None = None, watch: Watch = _unwatched) -> list[Written]:
    """Make the trace that a recipe file describes, composed or generated, with another seed if one is given.

    Its relative file names are looked for beside it, then in the current folder. Raises SimError.
    """
    data = read_recipe_of(file)
    if seed is not None:
        data = {**data, "seed": seed}
    if "generate" in data:
        check_target(target)
        whole = parse_generated(data, str(file))
        return [_drawn(from_recipe(whole), whole, target, watch)]
    return compose_files(parse_recipe(data, str(file)), [file.parent, Path()], target, watch)


def read_recipe_of(file: Path) -> dict[str, Any]:
    """The recipe kept in a trace, or written in a YAML or JSON file. Raises SimError."""
    if is_recipe(file):
        data = read_yaml(file)
        if not isinstance(data, dict):
            raise ConfigError(f"{file}: a recipe is a mapping with sources and steps")
        return data
    found = read_recipe(file)
    if found is None:
        raise TraceError(f"{file}: holds no recipe; only Parquet files made by `trace compose` or `trace generate` do")
    return found


def compose_files(recipe: Recipe, folders: Sequence[Path], target: Path, watch: Watch = _unwatched) -> list[Written]:
    """Follow a recipe, whose relative file names are looked for in `folders`.

    A recipe that ends with a split into all parts makes them as NAME-1.parquet and so on, each with the recipe of that
    part. Raises SimError: a file that is missing or has changed, a target that exists, a step that cannot be done;
    nothing is written then.
    """
    settled, found = settle(recipe, folders)
    split = settled.steps[-1].split if settled.steps else None
    if split is None or split.part is not None:
        check_target(target)
        return [_composed(settled, found, target, watch)]
    if split.models == "each":
        settled = _with_split(settled, models=_all_models(settled, found))
        split = settled.steps[-1].split
        assert split is not None
    targets = split_targets(target, split.parts)
    for each in targets:
        check_target(each)
    written: list[Written] = []
    try:
        for part, each in enumerate(targets):
            written.append(_composed(_with_split(settled, part=part), found, each, watch))
    except BaseException:
        for done in written:
            done.path.unlink(missing_ok=True)
        raise
    return written


def _composed(recipe: Recipe, found: Mapping[str, Path], target: Path, watch: Watch) -> Written:
    with watch(compose(recipe, found), f"compose {target.name}") as stream:
        rows = write_stream(stream, target, as_data(recipe))
    return Written(target, rows, (*stream.notices, *_lost_recipe(target)))


def _with_split(recipe: Recipe, **changes: Any) -> Recipe:
    last = recipe.steps[-1].split
    assert last is not None
    return recipe.model_copy(update={"steps": (*recipe.steps[:-1], Step(split=last.model_copy(update=changes)))})


def _all_models(recipe: Recipe, found: Mapping[str, Path]) -> tuple[tuple[str], ...]:
    before = recipe.model_copy(update={"steps": recipe.steps[:-1]})
    counts, _ = tally(compose(before, found), MODEL)
    return tuple((name,) for name in sorted(counts))


def split_targets(target: Path, parts: int) -> list[Path]:
    """NAME-1.parquet to NAME-k.parquet. Raises TraceError: an unknown ending."""
    suffix = suffix_of(target)
    stem, ending = target.name[: -len(suffix)], target.name[-len(suffix) :]
    return [target.with_name(f"{stem}-{number}{ending}") for number in range(1, parts + 1)]
