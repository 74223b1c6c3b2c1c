"""The numbers behind the page of figures of a table: curves with error bands, measured points, bars, n*.

Plain data for plots.profile_figures, from the tables as the simulator reads them and from the measured folders that
they were filled from. It draws nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sim.common.errors import ProfileError, did_you_mean
from sim.profiles.break_even import At, break_even
from sim.profiles.catalogue import profile_catalogue
from sim.profiles.library import Library, grouped, model_of, table_rows
from sim.profiles.profile import Profile
from sim.profiling.collect import collect, offloads
from sim.profiling.fill import gpu_memory_bytes, read_folders, table_name
from sim.profiling.fitting import Key
from sim.profiling.grids import evenly
from sim.profiling.measured import Measured

MOST_TABLES, MOST_MODELS = 3, 8
CONTEXT = 1000.0  # where nobody measured
PROMPT = 8192.0  # prefill is drawn so far, or as far as it was measured
EXACT = ("measured", "published")
PARTS = ("KV save", "free", "engine start", "reload", "KV restore")
RESIDENCIES = (*(round(0.05 * step, 2) for step in range(19)), 0.92, 0.94, 0.96, 0.98)
TableKey = tuple[str, str, str]


@dataclass(frozen=True)
class ProfileCurve:
    """x and y of a line, the relative error of y (0: none known), and measured points (x, y)."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    error: tuple[float, ...]
    points: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class ModelPortrait:
    """One model: tokens/s against residency, seconds of preemption by part, prefill seconds by prompt, n*."""

    name: str
    context: float
    throughput: ProfileCurve
    preemption: dict[str, float]
    preemption_context: int
    prefill: ProfileCurve
    worth: tuple[tuple[float, float], ...]  # (residency, tokens); empty where the model does not fit the GPU


@dataclass(frozen=True)
class TablePortrait:
    """One table. `left_out`: models that would have made the panels too full."""

    title: str
    models: tuple[ModelPortrait, ...]
    left_out: int


@dataclass(frozen=True)
class TableChoice:
    """Which tables and models to draw; None: all. `folders`: measured points to put over the curves."""

    folders: tuple[Path, ...] = ()
    gpu: str | None = None
    engine: str | None = None
    quantization: str | None = None
    profiles: Path | None = None


def portraits(choice: TableChoice) -> list[TablePortrait]:
    """Raises ProfileError: nothing to draw, unknown names, more tables than fit a page, folders that are not filled."""
    library = Library(choice.profiles)
    measured = _measured(choice, library)
    keys = _tables(choice, library, [key for key, _ in measured])
    return [_portrait(library, key, [each for name, each in measured if name == key], choice) for key in keys]


def _measured(choice: TableChoice, library: Library) -> list[tuple[TableKey, Measured]]:
    return [
        (table_name(measured, word), replace(measured, offload=(word,)))
        for measured in read_folders(choice.folders, dict(library.weights))
        for word in offloads(measured, library.weights)
    ]


def _tables(choice: TableChoice, library: Library, named: Sequence[TableKey]) -> list[TableKey]:
    have = library.table_keys()
    for key in named:
        if key not in have:
            raise ProfileError(f"no tables for {'--'.join(key)} yet: run profile fill with its folder first")
    if choice.gpu is not None:
        library.gpu(choice.gpu)
    engines = sorted({engine for _, _, engine in have})
    if choice.engine is not None and choice.engine not in engines:
        raise ProfileError(f"unknown engine '{choice.engine}'; {did_you_mean(choice.engine, engines)}")
    chosen = [key for key in (named or have) if choice.gpu in (None, key[0]) and choice.engine in (None, key[2])]
    chosen = list(dict.fromkeys(chosen))
    if not chosen:
        raise ProfileError("no tables for this GPU and engine together; see: sim profile list")
    if len(chosen) > MOST_TABLES:
        names = ", ".join("--".join(key) for key in chosen)
        raise ProfileError(f"{len(chosen)} tables do not fit a page ({names}); choose with --gpu and --engine")
    return chosen


def _portrait(library: Library, key: TableKey, measured: Sequence[Measured], choice: TableChoice) -> TablePortrait:
    folder = library.table_folder(key)
    rows = {name: grouped(table_rows(folder / f"{name}.csv"), model_of) for name in ("decode", "prefill")}
    models, left_out = _chosen(library, key, rows["decode"], measured, choice)
    drawn = tuple(_model(library, key, model, rows, measured) for model in models)
    gpu = library.gpu(key[0])
    return TablePortrait(f"{gpu.name}, {key[1]}, {key[2]}", drawn, left_out)


def _chosen(
    library: Library,
    key: TableKey,
    rows: dict[Key, list[dict[str, Any]]],
    measured: Sequence[Measured],
    choice: TableChoice,
) -> tuple[list[Key], int]:
    """The models to draw, by size: those measured first, else one quantisation, the one that most models have."""
    offered = [model for model in rows if choice.quantization in (None, model[1])]
    if not offered:
        known = sorted({quantization for _, quantization in rows})
        raise ProfileError(
            f"no {choice.quantization} in {'--'.join(key)}; {did_you_mean(choice.quantization or '', known)}"
        )
    own = {row.model_key for each in measured for row in each.decode}
    wanted = [model for model in offered if model in own]
    if not wanted:
        counts = Counter(quantization for _, quantization in offered)
        common = max(counts.values())
        first = next(quantization for _, quantization in reversed(offered) if counts[quantization] == common)
        wanted = [model for model in offered if model[1] == first]
    ordered = sorted(wanted, key=lambda model: (library.weights[model].total_bytes, model))
    drawn = evenly(ordered, MOST_MODELS)
    return drawn, len(offered) - len(drawn)


def _model(
    library: Library,
    key: TableKey,
    model: Key,
    rows: dict[str, dict[Key, list[dict[str, Any]]]],
    measured: Sequence[Measured],
) -> ModelPortrait:
    profile = library.profile(*model, *key)
    context = _context(rows["decode"][model], profile)
    catalogue = profile_catalogue(model[0], key[0], model[1], library.folder)
    facts = next(each for each in catalogue if (each.table.host, each.table.engine) == key[1:])
    last = len(facts.contexts) - 1
    parts = {part: facts.preemption_s[part][last] if facts.contexts else 0.0 for part in PARTS}
    return ModelPortrait(
        " ".join(model) if len({quantization for _, quantization in rows["decode"]}) > 1 else model[0],
        context,
        _throughput(library, profile, context, rows["decode"][model], measured),
        parts,
        facts.contexts[last] if facts.contexts else 0,
        _prefill(library, profile, rows["prefill"][model], measured),
        _worth(library, key, model, context),
    )


def _context(rows: Sequence[dict[str, Any]], profile: Profile) -> float:
    """The context that most measured points of one sequence have."""
    exact = [float(row["context"]) for row in rows if row["kind"] in EXACT and float(row["batch"]) == 1]
    if not exact:
        return min(CONTEXT, profile.longest_context)
    return Counter(sorted(exact)).most_common(1)[0][0]


def _throughput(
    library: Library, profile: Profile, context: float, rows: Sequence[dict[str, Any]], measured: Sequence[Measured]
) -> ProfileCurve:
    total, batch = profile.weights.layers, profile.knots[1][0]
    layers = range(profile.fewest_layers, total + 1)
    near = min((float(row["context"]) for row in rows), key=lambda each: (abs(each - context), each))
    line = [row for row in rows if float(row["batch"]) == batch and float(row["context"]) == near]
    points = [
        (row.layers / total, row.batch / row.step_s)
        for each in measured
        for row in _decode_rows(library, each, profile)
        if row.batch == batch and round(row.context) == context
    ]
    if not points and near == context:
        exact = [row for row in line if row["kind"] in EXACT]
        points = [(float(row["layers"]) / total, batch / float(row["step_s"])) for row in exact]
    speeds = tuple(batch / profile.step_s(n, batch, context) for n in layers)
    errors = tuple(_errors(line, "layers", layers))
    return ProfileCurve(tuple(n / total for n in layers), speeds, errors, tuple(sorted(points)))


def _decode_rows(library: Library, measured: Measured, profile: Profile) -> Sequence[Any]:
    found = collect(measured, measured.offload[0], library.weights, gpu_memory_bytes(measured, library))
    return [row for row in found.decode_rows.get(profile.weights.key, []) if found.on_grid(row)]


def _errors(line: Sequence[dict[str, Any]], axis: str, at: Sequence[float]) -> list[float]:
    """The rows' errors between their knots; a row without one counts as exact."""
    known = sorted((float(row[axis]), float(row.get("error") or 0.0)) for row in line)
    return [float(each) for each in np.interp(at, [x for x, _ in known], [e for _, e in known])]


def _prefill(
    library: Library, profile: Profile, rows: Sequence[dict[str, Any]], measured: Sequence[Measured]
) -> ProfileCurve:
    total = profile.weights.layers
    line = [row for row in rows if float(row["layers"]) == total]
    points = [
        (float(row.prompt_tokens), row.prefill_s)
        for each in measured
        for row in each.prefill
        if row.model_key == profile.weights.key
        and (row.layers, row.chunk_tokens) == (total, None)
        and row.prompt_tokens
        and row.head != "host"
    ] or [
        (float(row["prompt_tokens"]), float(row["prefill_s"]))
        for row in line
        if row["kind"] in EXACT and float(row["prompt_tokens"]) > 0
    ]
    longest = min(profile.longest_context, max([PROMPT, *(x for x, _ in points)]))
    tokens = [float(each) for each in np.geomspace(min(64, longest), longest, 40)]
    tokens[-1] = float(longest)
    seconds = tuple(profile.prefill_s(total, each) for each in tokens)
    return ProfileCurve(tuple(tokens), seconds, tuple(_errors(line, "prompt_tokens", tokens)), tuple(sorted(points)))


def _worth(library: Library, key: TableKey, model: Key, context: float) -> tuple[tuple[float, float], ...]:
    gpu = library.gpu(key[0])
    if library.weights[model].total_bytes > gpu.memory_bytes:
        return ()
    points = break_even(model[0], key[0], model[1], At(1, int(context), RESIDENCIES), library.folder)
    here = [each for each in points if (each.host, each.engine) == key[1:]]
    return tuple((each.residency, each.restart) for each in here if each.restart < float("inf"))
