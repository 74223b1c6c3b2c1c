"""What to expect of hardware before it is measured: from the most alike table that the profiles have.

A table is fitted like a measurement; its rates (and switch costs) are then where the fit of the new one starts from
and stays where its points say nothing. `fill` calls it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sim.common.errors import ProfileError
from sim.profiles.library import Library, model_of, table_rows
from sim.profiling.fitting import Key, MeasuredSeries, fit_rates
from sim.profiling.grids import evenly
from sim.profiling.physics import Prompts, Rates, Shape, Steps, shape_of
from sim.profiling.switching import ASSUMED, COSTS

_MOST_MODELS = 3
_NOISE = 0.02
# An engine that issues each layer from Python: what it takes hides behind large layers only.
_SLOW_ISSUE = ("torch", "transformers")


def expected(library: Library | None, table: tuple[str, str, str]) -> tuple[Rates, dict[str, float], str]:
    """Rates and switch costs to expect, and the table they come from; general ones where none is alike."""
    start = Rates()
    if any(word in table[2] for word in _SLOW_ISSUE):
        start = start.changed(["layer_s", "launch_s"], [200e-6, 300e-6])
    key = _nearest(library, table)
    if library is None or key is None:
        return start, dict(ASSUMED), ""
    return _rates_of(library, key, start), _costs_of(library, key), "--".join(key)


def _nearest(library: Library | None, table: tuple[str, str, str]) -> tuple[str, str, str] | None:
    """The table of the same engine that shares most with this one: its GPU, then its host."""
    if library is None:
        return None
    alike = [key for key in library.table_keys() if key[2] == table[2] and key != table]
    return max(alike, key=lambda key: (key[0] == table[0], key[1] == table[1], key), default=None)


def _rates_of(library: Library, key: tuple[str, str, str], start: Rates) -> Rates:
    decode, prefill, offload = {}, {}, "cpu"
    for model in evenly(_models(library.table_folder(key)), _MOST_MODELS):
        profile = library.profile(*model, *key)
        offload = profile.offload
        shape = shape_of(profile.weights, library.weights)
        (layers, batches), contexts = profile.knots, (0.0, profile.longest_context / 4)
        batches = tuple(batch for batch in batches if batch in (1, 8, 64))
        places = [(n, b, c) for n in layers[:: max(1, len(layers) // 4)] for b in batches for c in contexts]
        places += [(layers[-1], b, c) for b in batches for c in contexts]
        seconds = [profile.step_s(int(n), int(b), c) for n, b, c in places]
        decode[model] = _series(shape, Steps.of(np.array(places, float), shape.layers), seconds)
        prompts = [(n, p) for n in (layers[0], layers[-1]) for p in (512, 2048) if p <= profile.longest_context]
        if prompts:
            seconds = [profile.prefill_s(int(n), p) for n, p in prompts]
            prefill[model] = _series(shape, Prompts.of(np.array(prompts, float), shape.layers), seconds)
    rates = fit_rates(decode, start, offload).shared if decode else start
    return fit_rates(prefill, rates, offload).shared if prefill else rates


def _series(shape: Shape, at: Steps | Prompts, seconds: Sequence[float]) -> MeasuredSeries:
    return MeasuredSeries(shape, at, np.array(seconds), np.full(len(seconds), _NOISE))


def _models(folder: Path) -> list[Key]:
    return list(dict.fromkeys(map(model_of, table_rows(folder / "decode.csv"))))


def _costs_of(library: Library, key: tuple[str, str, str]) -> dict[str, float]:
    model = _models(library.table_folder(key))[0]
    costs = library.profile(*model, *key).switch
    rates = {name.replace("_gb_s", "_bytes_per_s"): name for name in COSTS if name.endswith("_gb_s")}
    found = {name: float(getattr(costs, name)) for name in COSTS if name not in rates.values()}
    return found | {name: getattr(costs, own) / 1e9 for own, name in rates.items()}


def library_of(folder: Path | None) -> Library | None:
    """The profiles in a folder, or None where there are none yet. Raises ProfileError: they cannot be read."""
    if folder is not None and not (folder / "gpus.csv").exists():
        if folder.exists() and not folder.is_dir():
            raise ProfileError(f"{folder}: is a file; profiles are a folder")
        return None
    return Library(folder)
