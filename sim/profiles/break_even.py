"""The break-even token count n*: how many tokens pay for loading the rest of a partly resident model (policies.md 5.2).

n*(r) = (seconds to full residency) / (seconds that a token is slower at residency r). Below n* tokens a batch is better
served as it is; above, by a reload first. Pure numbers from the profile tables, for `python -m sim profile break-even`
and reports; catalogue.py says which tables there are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from math import inf, isfinite
from pathlib import Path

from sim.common.errors import ProfileError, did_you_mean
from sim.profiles.catalogue import TableFacts, table_catalogue
from sim.profiles.library import Library
from sim.profiles.profile import Profile

RESIDENCIES = (0.0, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class At:
    """Where it is asked for: sequences in the batch, tokens of context, and shares of the layers (rounded to whole
    ones)."""

    batch: int = 1
    context: int = 1000
    residencies: tuple[float, ...] = RESIDENCIES


@dataclass(frozen=True)
class BreakEven:
    """One (model, GPU, host, engine) at one residency.

    step_s, whole_step_s: seconds of a decode iteration of the whole batch with `layers` and with all layers. restart_s,
    wake_s, grow_s: seconds until all layers are there, for an engine that restarts, that wakes from sleep (and then
    loads all layers), and that moves only the missing layers. `restart`, `wake`, `grow`: the tokens, over the whole
    batch, that pay for it; infinite where a partly resident model is not slower.
    """

    model: str
    quantization: str
    gpu: str
    host: str
    engine: str
    layers: int
    total_layers: int
    batch: int
    context: int
    step_s: float
    whole_step_s: float
    restart_s: float
    wake_s: float
    grow_s: float

    @property
    def residency(self) -> float:
        return self.layers / self.total_layers

    def tokens(self, seconds: float) -> float:
        """Tokens of the whole batch that are worth so many seconds of loading."""
        slower_s = (self.step_s - self.whole_step_s) / self.batch
        return seconds / slower_s if slower_s > 0 else inf

    @property
    def restart(self) -> float:
        return self.tokens(self.restart_s)

    @property
    def wake(self) -> float:
        return self.tokens(self.wake_s)

    @property
    def grow(self) -> float:
        return self.tokens(self.grow_s)


def break_even(
    model: str | None = None,
    gpu: str | None = None,
    quantization: str | None = None,
    at: At = At(),
    folder: Path | None = None,
) -> list[BreakEven]:
    """n* wherever there are tables for it and the whole model fits on the GPU, in order of GPU, host, engine, model.

    Raises ProfileError: an unknown model, GPU or quantization, no tables for that combination, or a batch or context
    beyond all of them.
    """
    library = Library(folder)
    _check(library, model, gpu, quantization)
    found: list[BreakEven] = []
    offered = beyond = 0
    for table in table_catalogue(folder):
        for name, quantizations in table.models.items():
            for own in quantizations:
                if gpu in (None, table.gpu) and model in (None, name) and quantization in (None, own):
                    profile = library.profile(name, own, table.gpu, table.host, table.engine)
                    if profile.weights.total_bytes > library.gpu(table.gpu).memory_bytes:
                        continue
                    offered += 1
                    if at.batch > profile.largest_batch or at.context > profile.longest_context:
                        beyond += 1
                        continue
                    found += _of(profile, library, table, (name, own), at)
    if not found:
        wanted = " ".join(part for part in (model, quantization, f"on {gpu}" if gpu else None) if part)
        if beyond:
            raise ProfileError(
                f"break-even: the tables of {wanted or 'all models'} do not go to a batch of {at.batch} with "
                f"{at.context:,} tokens of context; lower --batch or --context"
            )
        raise ProfileError(f"break-even: no GPU with tables for {wanted} holds it whole; see: sim profile list")
    return found


def _check(library: Library, model: str | None, gpu: str | None, quantization: str | None) -> None:
    if gpu is not None:
        library.gpu(gpu)
    names = sorted({name for name, _ in library.weights})
    if model is not None and model not in names:
        raise ProfileError(f"unknown model '{model}'; {did_you_mean(model, names)}")
    quantizations = sorted({own for name, own in library.weights if model in (None, name)})
    if quantization is not None and quantization not in quantizations:
        raise ProfileError(f"unknown quantization '{quantization}'; {did_you_mean(quantization, quantizations)}")


def _of(profile: Profile, library: Library, table: TableFacts, named: tuple[str, str], at: At) -> list[BreakEven]:
    weights, switch = profile.weights, profile.switch
    most = weights.layers
    link = min(library.gpu(table.gpu).h2d_bytes_per_s, library.host(table.host).h2d_cap_bytes_per_s)
    rate = min(switch.reload_bytes_per_s, link)
    found = []
    for layers in dict.fromkeys(round(share * most) for share in at.residencies):
        if profile.fewest_layers <= layers < most:
            step_s, whole_step_s = (profile.step_s(each, at.batch, at.context) for each in (layers, most))
            wake_s = switch.wake_fixed_s + weights.gpu_bytes(most) / rate
            grow_s = (weights.gpu_bytes(most) - weights.gpu_bytes(layers)) / rate
            place = (*named, table.gpu, table.host, table.engine, layers, most, at.batch, at.context)
            found.append(BreakEven(*place, step_s, whole_step_s, profile.load_s(most, link), wake_s, grow_s))
    return found


def as_json(points: Iterable[BreakEven]) -> str:
    """A JSON list with every field and n* of each engine; null where no number of tokens pays."""
    rows = []
    for point in points:
        counts = {f"{way}_tokens": getattr(point, way) for way in ("restart", "wake", "grow")}
        finite = {name: value if isfinite(value) else None for name, value in counts.items()}
        rows.append({**asdict(point), "residency": point.residency, **finite})
    return json.dumps(rows, indent=1) + "\n"
