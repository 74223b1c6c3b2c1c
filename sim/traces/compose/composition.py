"""Following a recipe: find its files, check their digests, and string its steps together as one stream.

Every random step has a stream of its own, named by the recipe's seed, by whose step it is and by its place. Called by
`traces.jobs`; recipe.py says what a recipe is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sim.common import rng
from sim.common.errors import TraceError
from sim.traces.compose.deal_models import Deal, map_models, shares_of, tally
from sim.traces.compose.recipe import MapModels, Recipe, Source, Step
from sim.traces.formats import guess_format, import_stream
from sim.traces.overlay import Opener, mix_shares, overlay, repeat
from sim.traces.shape import Draws, limit, part_by_model, part_by_share, part_by_time, shift, thin, time_scale, window
from sim.traces.stream import TraceStream


def settle(recipe: Recipe, folders: Sequence[Path]) -> tuple[Recipe, dict[str, Path]]:
    """The recipe with every file's digest and format filled in, and where each file was found.

    Relative names are looked for in these folders in turn. Raises TraceError: a file that is nowhere, or that has
    another digest than the recipe says.
    """
    found: dict[str, Path] = {}

    def settled(source: Source) -> dict[str, Any]:
        paths = [found.setdefault(name, _find(name, folders)) for name in source.files]
        digests = tuple(map(digest_of, paths))
        for path, now, said in zip(paths, digests, source.sha256 or digests, strict=True):
            if now != said:
                raise TraceError(
                    f"{path}: is not the file of the recipe: its sha256 is {now}, not {said}; "
                    "find that file, or take sha256 out of the recipe to use this one"
                )
        return {"sha256": digests, "format": source.format or guess_format(paths).name}

    def step_settled(step: Step) -> Step:
        if step.map_models is None or step.map_models.like is None:
            return step
        like = step.map_models.like
        like = like.model_copy(update=settled(like))
        return Step(map_models=step.map_models.model_copy(update={"like": like}))

    sources = tuple(
        source.model_copy(update={**settled(source), "steps": tuple(map(step_settled, source.steps))})
        for source in recipe.sources
    )
    return recipe.model_copy(update={"sources": sources, "steps": tuple(map(step_settled, recipe.steps))}), found


def _find(name: str, folders: Sequence[Path]) -> Path:
    for folder in folders:
        if (folder / name).exists():
            return folder / name
    places = " or ".join(str(folder) for folder in dict.fromkeys(folders))
    raise TraceError(f"{name}: no such file in {places}; check the path in the recipe")


def digest_of(path: Path) -> str:
    """sha256 of a file's bytes, or of the names and bytes of all files in a folder. Raises TraceError."""
    try:
        if path.is_dir():
            inside = [file for file in sorted(path.rglob("*")) if file.is_file()]
            lines = [f"{file.relative_to(path).as_posix()} {digest_of(file)}\n" for file in inside]
            return hashlib.sha256("".join(lines).encode()).hexdigest()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise TraceError(f"{path}: cannot read the file ({error.strerror}); check its permissions") from None


# --- following it


def compose(recipe: Recipe, found: Mapping[str, Path]) -> TraceStream:
    """The trace that a settled recipe makes. Raises SimError, also while the stream is read."""
    openers: list[Opener] = []
    for source in recipe.sources:
        opener: Opener = partial(_opened, source, found)
        for number, step in enumerate(source.steps):
            opener = partial(_follow, step, opener, (recipe.seed, f"source {source.name}", number), found)
        openers.append(opener)
    opener = openers[0] if len(openers) == 1 else partial(_mixed, recipe, openers)
    for number, step in enumerate(recipe.steps):
        opener = partial(_follow, step, opener, (recipe.seed, "all", number), found)
    return opener()


def _opened(source: Source, found: Mapping[str, Path]) -> TraceStream:
    return import_stream([found[name] for name in source.files], source.format, source.options, source.strict)


def _mixed(recipe: Recipe, openers: Sequence[Opener]) -> TraceStream:
    streams = [opener() for opener in openers]
    shares = recipe.mix.shares
    if shares is not None:
        counts = [sum(len(chunk) for chunk in opener().chunks) for opener in openers]
        kept = mix_shares(counts, [shares[source.name] for source in recipe.sources])
        draws = [
            Draws(rng.stream(recipe.seed, "compose", f"source {source.name}", "mix"), recipe.mix.whole_sessions)
            for source in recipe.sources
        ]
        streams = [thin(*each) if each[1] < 1 else each[0] for each in zip(streams, kept, draws, strict=True)]
    return overlay(streams, [source.name for source in recipe.sources], recipe.mix.sessions == "apart")


def _follow(step: Step, opener: Opener, place: tuple[int, str, int], found: Mapping[str, Path]) -> TraceStream:
    """One step applied to a trace; `place` (seed, whose step, which) names its random stream."""
    seed, whose, number = place
    generator = partial(rng.stream, seed, "compose", whose, number)
    if step.map_models is not None:
        deal = _deal(step.map_models, found)
        tallied = tally(opener(), deal.by) if deal.needs_tally else None
        return map_models(opener(), deal, generator("map_models"), tallied)
    if step.repeat is not None:
        return repeat(opener, step.repeat.times, step.repeat.period_s, step.repeat.sessions == "apart")
    stream = opener()
    if step.time_scale is not None:
        return time_scale(stream, step.time_scale.factor, step.time_scale.think)
    if step.thin is not None:
        return thin(stream, step.thin.share, Draws(generator("thin"), step.thin.whole_sessions))
    if step.shift is not None:
        return shift(stream, step.shift.by_s)
    if step.window is not None:
        return window(stream, step.window.start_s, step.window.end_s, step.window.rebase)
    if step.limit is not None:
        return limit(stream, step.limit.rows)
    assert step.split is not None
    split = step.split
    assert split.part is not None, "only a file can be several"
    if split.shares is not None:
        return part_by_share(stream, split.shares, split.part, Draws(generator("split"), split.whole_sessions))
    if split.at_s is not None:
        return part_by_time(stream, split.at_s, split.part, split.rebase)
    assert split.models is not None
    assert split.models != "each"
    return part_by_model(stream, split.models, split.part)


def _deal(step: MapModels, found: Mapping[str, Path]) -> Deal:
    shares: tuple[float, ...] = ()
    models = step.models or tuple(dict.fromkeys((step.table or {}).values()))
    if step.like is not None:
        models, shares = shares_of(tally(_opened(step.like, found), "model")[0])
    elif step.shares is not None:
        models = tuple(sorted(step.shares, key=lambda name: -(step.shares or {})[name]))
        shares = tuple(step.shares[name] for name in models)
    drawn = shares if step.law == "shares" else ()
    return Deal(models, step.law, step.by, step.alternate, drawn, step.table or {})
