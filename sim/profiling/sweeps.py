"""Sweeps over layers on the GPU, and how well their two ends predict what lies between.

A sweep is one model at one batch and context (or prompt), at different numbers of layers. It comes from a measured
folder, or from a CSV of published speeds with the columns of `published_residency.csv`. `check` reports on them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sim.common.errors import ProfileError, did_you_mean
from sim.profiles.library import csv_rows, grouped
from sim.profiling.collect import Collected
from sim.profiling.fitting import LEAST_NOISE, Key, MeasuredSeries, fit_rates
from sim.profiling.heads import HEAD_FIRST_BUILD, placed
from sim.profiling.physics import Array, Prompts, Rates, Shape, Steps, weight_bytes

# Where nothing is known of a model: the head of a quantised 7B-14B model weighs about as much as three layers.
USUAL_HEAD_LAYERS = 3.0
_KV_BYTES = 4096.0
_PUBLISHED = (
    "source", "gpu", "software", "model", "quant", "weights_gb", "n_layers", "gpu_layers", "exec_mode", "metric",
    "prompt_tokens", "gen_tokens", "context_depth", "batch", "tok_s", "note",
)  # fmt: skip
_TEST = (
    "source", "gpu", "software", "model", "quant", "metric", "prompt_tokens", "gen_tokens", "context_depth", "batch",
)  # fmt: skip
_OUTSIDE_MODES = ("cpu_only", "cpu_hybrid", "stream_prefill", "full_gpu")
_NOT_FEASIBLE = ("oversubscribed", "swapping")


@dataclass(frozen=True)
class LayerSweep:
    """Points of one test at different numbers of layers. `what`: decode or prefill; `label` tells sweeps apart."""

    label: str
    key: Key
    what: str
    offload: str
    series: MeasuredSeries
    remark: str = ""

    @property
    def layers(self) -> Array:
        return self.series.at.layers

    def holds(self, every: MeasuredSeries, place: int) -> bool:
        """Whether a point of all of the model's is of this sweep: at the same batch and context, or prompt."""
        names = ("batch", "context") if self.what == "decode" else ("tokens",)
        return all(getattr(every.at, name)[place] == getattr(self.series.at, name)[0] for name in names)

    def ordered(self) -> MeasuredSeries:
        """The points from the fewest weights on the GPU to the most."""
        return self.series.only(np.lexsort((self.series.at.head_on_gpu, self.layers)))


@dataclass(frozen=True)
class Ends:
    """Relative errors of a sweep's interior points, predicted from the two ends alone; and the points themselves."""

    sweep: LayerSweep
    layers: Array
    errors: Array

    @property
    def mean(self) -> float:
        return float(np.mean(np.abs(self.errors)))

    @property
    def worst(self) -> float:
        return float(self.errors[np.argmax(np.abs(self.errors))])


def from_ends(sweep: LayerSweep, expected: Rates | None = None) -> Ends:
    """Predict the interior of a sweep of at least three points as `fill` would, had it only the two ends."""
    series = sweep.ordered()
    count = len(series)
    assert count > 2, "a sweep without an interior"
    ends = np.zeros(count, dtype=bool)
    ends[[0, -1]] = True
    key = ("model", "quantization")
    fit = fit_rates({key: series.only(ends)}, expected or Rates(), sweep.offload)
    guess_s, _ = fit.seconds(key, series.shape, series.at)
    return Ends(sweep, series.at.layers[1:-1], (guess_s / series.seconds - 1)[1:-1])


def measured_sweeps(found: Collected) -> list[LayerSweep]:
    """The sweeps of a measured folder with at least three points, decode first."""
    sweeps = []
    for what, points in (("decode", found.decode()), ("prefill", found.prefill())):
        for key, series in points.items():
            at = series.at
            tests = np.column_stack([at.batch, at.context] if isinstance(at, Steps) else [at.tokens])
            for test in np.unique(tests, axis=0):
                own = series.only((tests == test).all(axis=1))
                if len(own) > 2:
                    where = f"batch {test[0]:g}, context {test[1]:g}" if what == "decode" else f"{test[0]:,.0f} tokens"
                    sweeps.append(LayerSweep(f"{key[0]} {key[1]}, {where}", key, what, found.offload, own))
    return sweeps


# --- published speeds


def published_sweeps(path: Path, shapes: Mapping[Key, Shape]) -> list[LayerSweep]:
    """The sweeps with at least three feasible points of a CSV of published speeds.

    Points whose note says that GPU memory was oversubscribed, or the host swapping, are left out. `shapes`: known
    models, by (name, quantization); others get an ordinary shape of their weights' size. Raises ProfileError.
    """
    every = csv_rows(path)
    for column in _PUBLISHED:
        if column not in every[0]:
            raise ProfileError(f"{path}: column '{column}' is missing; {did_you_mean(column, every[0])}")
    placed_rows = [row for row in every if row["exec_mode"] in _OUTSIDE_MODES and row["gpu_layers"] and row["n_layers"]]
    usable = [row for row in placed_rows if not _infeasible(row)]
    groups, whole = (
        grouped((row for row in usable if (row["exec_mode"] == "full_gpu") == full), _group) for full in (False, True)
    )
    sweeps = []
    for name, rows in groups.items():
        # A full model is the same test however the layers of the others ran, unless two tests are told apart by notes.
        same = [row for other in whole for row in whole[other] if other[:-2] == name[:-2] and other[-1] == name[-1]]
        notes = {row["note"] for row in same}
        same = [row for row in same if len(notes) == 1 or row["note"] in {each["note"] for each in rows}]
        sweep = _published_sweep(name, [*rows, *same], shapes)
        if len({*zip(sweep.layers, sweep.series.at.head_on_gpu, strict=True)}) > 2:
            sweeps.append(sweep)
    return sweeps


def _infeasible(row: Mapping[str, str]) -> bool:
    """Whether the note says so of this row: it may name the layers that it is about ("swapping at ngl 30")."""
    if not any(word in row["note"].lower() for word in _NOT_FEASIBLE):
        return False
    named = re.search(r"(?:ngl )?(\d+)(?::|$)", row["note"])
    return named is None or named[1] == row["gpu_layers"]


def _number(row: Mapping[str, str], column: str, default: float | None = None) -> float:
    """A number above 0, `default` where the cell is empty. Raises ProfileError."""
    if default is not None and not row[column]:
        return default
    try:
        value = float(row[column])
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ProfileError(f"{row['_where']}: column '{column}' is '{row[column]}', not a number above 0; correct it")
    return value


def _group(row: Mapping[str, str]) -> tuple[str, ...]:
    """What the points of a sweep share: the test, how layers outside ran, and the build where the note names one."""
    mode = "streamed" if row["exec_mode"] == "stream_prefill" else ""
    build = row["note"].split(" (")[0] if re.search(r"\b(build|PR)\b", row["note"]) and ";" not in row["note"] else ""
    return (*(row[name] for name in _TEST), mode if row["metric"] == "prefill" else "", build)


def _published_sweep(name: Sequence[str], rows: Sequence[Mapping[str, str]], shapes: Mapping[Key, Shape]) -> LayerSweep:
    first = rows[0]
    total = int(_number(first, "n_layers"))
    if any(row["gpu_layers"].isdigit() and total + 1 < int(row["gpu_layers"]) < total + 4 for row in rows):
        # Builds of 2023 moved the KV cache after head and layers, in two more slots: above L is another machine.
        rows = [row for row in rows if row["gpu_layers"].isdigit() and int(row["gpu_layers"]) <= total]
    shape, known = _shape(first, total, shapes)
    build = re.search(r"\bb(\d{4,5})\b", first["software"])
    head_first = build is not None and int(build[1]) >= HEAD_FIRST_BUILD
    layers, heads = zip(*(_placed(row, total, head_first) for row in rows), strict=True)
    decode = first["metric"] == "decode"
    tokens = _number(first, "prompt_tokens", 1.0)
    seconds = np.array([(1.0 if decode else tokens) / _number(row, "tok_s") for row in rows])
    placed, on_gpu = np.array(layers, dtype=float), np.array(heads)
    context = _number(first, "context_depth", 0.0) + _number(first, "gen_tokens", 128.0) / 2
    if decode:
        at: Steps | Prompts = Steps(placed, on_gpu, np.ones(len(rows)), np.full(len(rows), context))
    else:
        at = Prompts(placed, on_gpu, np.full(len(rows), tokens))
    model = (first["model"], first["quant"])
    words = [name[1], name[2], " ".join(model), *filter(None, name[-2:])]
    words += [] if decode else [f"{tokens:,.0f} tokens"]
    series = MeasuredSeries(shape, at, seconds, np.full(len(rows), LEAST_NOISE))
    return LayerSweep(", ".join(words), model, "decode" if decode else "prefill", "cpu", series, known)


def _placed(row: Mapping[str, str], total: int, head_first: bool) -> tuple[int, bool]:
    """(layers, whether the head is there) on the GPU for what the tool calls so many GPU layers."""
    text = row["gpu_layers"]
    if text != "all" and not text.isdigit():
        raise ProfileError(f"{row['_where']}: column 'gpu_layers' is '{text}', neither a whole number nor all")
    return placed(total + 1 if text == "all" else int(text), total, head_first)


def _shape(row: Mapping[str, str], total: int, shapes: Mapping[Key, Shape]) -> tuple[Shape, str]:
    size = _number(row, "weights_gb", 0.0) * 1e9
    plain = row["model"].replace("-Coder", "")
    for (name, _), known in shapes.items():
        if name == plain and known.layers == total:
            share = known.head_bytes / known.read_bytes
            size = size or known.read_bytes
            layer = size * (1 - share) / total
            return Shape(total, layer, size * share, known.kv_bytes, layer / weight_bytes(row["quant"])), ""
    layer = (size or 4e9) / (total + USUAL_HEAD_LAYERS)
    shape = Shape(total, layer, USUAL_HEAD_LAYERS * layer, _KV_BYTES, layer / weight_bytes(row["quant"]))
    return shape, "shape assumed"
