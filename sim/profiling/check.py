"""Reports on measured folders, tables and published sweeps: what contradicts itself, and how well it can be predicted.

`check` looks at one path and knows by what it holds which of the three it is. It changes nothing; check_tables draws
what it found.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from sim.common.errors import ProfileError
from sim.profiles.library import Library, csv_rows, grouped, model_of, table_rows
from sim.profiles.profile import Profile
from sim.profiling.collect import Collected, Point, collect, offloads, row_seconds, spread
from sim.profiling.fill import Fits, fit_table, gpu_memory_bytes, table_name
from sim.profiling.fitting import Fit, Key, predicted
from sim.profiling.measured import read_measured
from sim.profiling.nearest import expected
from sim.profiling.physics import Rates, Shape, shape_of
from sim.profiling.points import DecodePoint
from sim.profiling.published.sources import shape_in
from sim.profiling.sweeps import Ends, LayerSweep, from_ends, measured_sweeps, published_sweeps

TARGET = 0.10  # mean error of a sweep's interior, predicted from its ends
# What is a break and what is noise: three times the spread of two medians, and what a clock's drift does anyway.
DRIFT, SPREADS = 0.03, 3.0
TABLE_BREAK = 0.08  # a table does not say how its measured rows spread
OUTLIER, OUTLIER_SPREADS = 0.15, 4.0
_MOST_HOLES = 3


@dataclass(frozen=True)
class SweepFacts:
    """One line of the report; errors are relative, None where there are too few points."""

    label: str
    what: str
    points: int
    fit_error: float | None
    left_out_error: float | None
    ends_error: float | None
    ends_worst: float | None
    remark: str = ""


@dataclass
class CheckReport:
    """What was found at one path. `findings` are broken and want mending; `notes` are good to know."""

    path: Path
    kind: str  # measured | table | published
    title: str
    findings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sweeps: list[SweepFacts] = field(default_factory=list)
    models: list[tuple[str, dict[str, int], float | None]] = field(default_factory=list)  # of a table


def check(path: Path, library: Library) -> CheckReport:
    """Raises ProfileError: the path is none of the three, or cannot be read at all."""
    if path.is_file() and path.suffix == ".csv":
        return _published(path, library)
    if (path / "table.yaml").is_file():
        return _table(path)
    if path.is_dir():
        return _measured(path, library)
    raise ProfileError(f"{path}: neither a measured folder, a table nor a CSV of published sweeps; check the path")


# --- measured folders


def _measured(path: Path, library: Library) -> CheckReport:
    measured = read_measured(path, library.weights)
    report = CheckReport(path, "measured", measured.name)
    for offload in offloads(measured, library.weights):
        found = collect(measured, offload, library.weights, gpu_memory_bytes(measured, library))
        report.findings += [each for each in found.left_out if "of the GPU" in each]
        report.notes += [each for each in found.left_out if "of the GPU" not in each]
        if not found.keys:
            continue
        start, _, _ = expected(library, table_name(measured, offload))
        fits = fit_table(found, start)
        for transfer, what in ((fits.decode_transfer, "decode"), (fits.prefill_transfer, "prefill")):
            if transfer is not None:
                report.notes.append(f"{offload}, {what}: a model that is left out is predicted {transfer:.1%} off")
        report.findings += _breaks(found)
        report.findings += _outliers(found, fits)
        report.notes += list(_holes(found))
        _add_sweeps(report, found, fits, start)
    return report


def _add_sweeps(report: CheckReport, found: Collected, fits: Fits, start: Rates) -> None:
    for sweep in measured_sweeps(found):
        fit = fits.decode if sweep.what == "decode" else fits.prefill
        ends, own = from_ends(sweep, start), sweep.ordered()
        guess_s = predicted(own.shape, fit.rates(sweep.key), own.at, fit.offload, fit.way)
        errors = (
            float(np.mean(np.abs(guess_s / own.seconds - 1))),
            _left_out(found, fit, sweep),
            ends.mean,
            ends.worst,
        )
        label = sweep.label + (", streamed" if found.offload == "stream" else "")
        report.sweeps.append(SweepFacts(label, sweep.what, len(own), *errors))
        _judge(report, ends)


def _judge(report: CheckReport, ends: Ends) -> None:
    if ends.mean > TARGET:
        report.findings.append(
            f"{ends.sweep.label} ({ends.sweep.what}): its two ends predict what lies between {ends.mean:.0%} off on "
            f"average ({ends.worst:+.0%} at worst); measure more of its points"
        )


def _left_out(found: Collected, fit: Fit, sweep: LayerSweep) -> float | None:
    """Mean left-out error of the sweep's own points, which are some of its model's."""
    residuals = fit.residuals.get(sweep.key)
    if residuals is None or len(residuals.values) < 3:
        return None
    every = (found.decode() if sweep.what == "decode" else found.prefill())[sweep.key]
    chosen = [sweep.holds(every, place) for place in range(len(every))]
    return float(np.mean(np.abs(residuals.left_out()[chosen])))


def _breaks(found: Collected) -> Iterator[str]:
    """Points that are slower or faster than they can be beside their neighbours."""
    everything: list[Sequence[Point]] = [*found.decode_rows.values(), *found.prefill_rows.values()]
    for rows in everything:
        for axis in ("layers", "context", "batch", "prompt_tokens"):
            if hasattr(rows[0], axis):
                yield from _breaks_along(rows, axis, found)


def _breaks_along(rows: Sequence[Point], axis: str, found: Collected) -> Iterator[str]:
    more_is_faster = axis == "layers"

    def head(row: Point) -> bool:
        return row.head_on_gpu(found.shapes[row.model_key].layers)

    def test(row: Point) -> tuple[object, ...]:
        key = tuple(getattr(row, column) for column in row.key if column not in (axis, "head"))
        return key if more_is_faster else (*key, head(row))

    for line in grouped(rows, test).values():
        line.sort(key=lambda row: (getattr(row, axis), head(row)))
        for less, more in pairwise(line):
            ratio = row_seconds(more) / row_seconds(less)
            off = ratio if more_is_faster else 1 / ratio
            if off > 1 + DRIFT + SPREADS * (spread(less) + spread(more)):
                word = "slower" if more_is_faster else "faster"
                a, b = (f"{getattr(row, axis):g}" for row in (less, more))
                told = f"{off - 1:.0%} {word} with {axis} {b} than with {a} ({_test(more, axis)}); measure both again"
                yield f"{_at(more)} is {told}"


def _at(row: Point) -> str:
    return f"{row.where}: {row.model} {row.quantization}" if row.where else f"{row.model} {row.quantization}"


def _test(row: Point, besides: str) -> str:
    names = ("layers", "batch", "context") if isinstance(row, DecodePoint) else ("layers", "prompt_tokens")
    words = [f"{name.replace('_', ' ')} {getattr(row, name):g}" for name in names if name != besides]
    return ("decode" if isinstance(row, DecodePoint) else "prefill") + ", " + ", ".join(words)


def _outliers(found: Collected, fits: Fits) -> Iterator[str]:
    """Points far from what all others say, by more than the others are."""
    tables: list[tuple[Fit, Mapping[Key, Sequence[Point]]]]
    tables = [(fits.decode, found.decode_rows), (fits.prefill, found.prefill_rows)]
    for fit, rows in tables:
        errors = {key: each.left_out() for key, each in fit.residuals.items() if len(each.values) > 4}
        if not errors:
            continue
        usual = 1.4826 * float(np.median(np.abs(np.concatenate(list(errors.values())))))
        for key, own in errors.items():
            for row, error in zip(rows[key], own, strict=True):
                if abs(error) > max(OUTLIER, OUTLIER_SPREADS * usual):
                    took_s, others_s = row_seconds(row), row_seconds(row) * (1 + error)
                    told = f"took {took_s:.4g} s, the others say {others_s:.4g} s; measure again"
                    yield f"{_at(row)}, {_test(row, '')}: {told}"


def _holes(found: Collected) -> Iterator[str]:
    """Tests that were run at some layers and not at others."""
    for key, rows in found.decode_rows.items():
        layers = sorted({row.layers for row in rows})
        have = {(row.layers, row.batch, row.context) for row in rows}
        tests = sorted({(row.batch, row.context) for row in rows})
        missing = [(n, *test) for n in layers for test in tests if (n, *test) not in have]
        if missing:
            first = "; ".join(f"layers {n}, batch {b}, context {c:g}" for n, b, c in missing[:_MOST_HOLES])
            more = ", ..." if len(missing) > _MOST_HOLES else ""
            every = len(layers) * len(tests)
            yield f"{key[0]} {key[1]}: {len(missing)} of {every} decode points missing ({first}{more})"


# --- tables


def _table(path: Path) -> CheckReport:
    library = Library(path.parent.parent)
    key = next((key for key in library.table_keys() if library.table_folder(key).resolve() == path.resolve()), None)
    if key is None:
        raise ProfileError(f"{path}: not in a folder of profiles; it should be PROFILES/tables/{path.name}")
    report = CheckReport(path, "table", "--".join(key))
    for model, (kinds, errors) in _known_how(path).items():
        report.models.append((" ".join(model), kinds, float(np.mean(errors)) if errors else None))
        try:
            profile = library.profile(*model, *key)
            for layers in profile.knots[0]:
                profile.prefill_curve(layers)
                for batch in profile.knots[1]:
                    profile.decode_curve(layers, batch)
        except ProfileError as error:
            report.findings.append(str(error))
            continue
        report.findings += list(_table_breaks(profile, " ".join(model)))
    return report


def _known_how(path: Path) -> dict[Key, tuple[dict[str, int], list[float]]]:
    """How many rows of each model are of each kind, and the errors that they give."""
    found: dict[Key, tuple[dict[str, int], list[float]]] = {}
    for name in ("decode.csv", "prefill.csv"):
        for row in table_rows(path / name):
            kinds, errors = found.setdefault(model_of(row), ({}, []))
            kinds[row["kind"]] = kinds.get(row["kind"], 0) + 1
            try:
                errors += [float(row["error"])] if row.get("error") else []
            except ValueError:
                raise ProfileError(f"{row['_where']}: column 'error' is '{row['error']}', not a number") from None
    return found


def _table_breaks(profile: Profile, model: str) -> Iterator[str]:
    grids = (
        ("decode", profile._decode, ("layers", "batch", "context")),
        ("prefill", profile._prefill, ("layers", "prompt")),
    )
    for what, grid, names in grids:
        seconds = np.array(grid.seconds).reshape([len(axis) for axis in grid.axes])
        for axis, name in enumerate(names):
            low = np.take(seconds, range(seconds.shape[axis] - 1), axis)
            high = np.take(seconds, range(1, seconds.shape[axis]), axis)
            off = high / low if name == "layers" else low / high
            wrong = np.argwhere(off > 1 + TABLE_BREAK)
            if len(wrong):
                place = tuple(int(each) for each in wrong[0])
                at = ", ".join(f"{n} {grid.axes[a][place[a]]:g}" for a, n in enumerate(names))
                word = "slower" if name == "layers" else "faster"
                much = f"{off[place] - 1:.0%}; {len(wrong)} such places"
                yield f"{model}, {what}: {word} with more {name} after {at} ({much})"


# --- published sweeps


def _published(path: Path, library: Library) -> CheckReport:
    report = CheckReport(path, "published", path.name)
    for sweep in published_sweeps(path, _shapes(path.parent, library)):
        ends = from_ends(sweep)
        facts = (None, None, ends.mean, ends.worst, sweep.remark)
        report.sweeps.append(SweepFacts(sweep.label, sweep.what, len(sweep.series), *facts))
        _judge(report, ends)
    if not report.sweeps:
        raise ProfileError(
            f"{path}: no sweep of three numbers of layers or more in it; add points or give another file"
        )
    return report


def _shapes(folder: Path, library: Library) -> dict[Key, Shape]:
    """Known models, and those of a models.csv beside the file that tells the head's share of what is read."""
    found = {key: shape_of(each, library.weights) for key, each in library.weights.items()}
    beside = folder / "models.csv"
    if beside.is_file():
        for row in csv_rows(beside):
            if row.get("q4km_bytes_per_layer") and row.get("q4km_output_head_bytes"):
                found[row["model"], "Q4_K_M"] = shape_in(row, "Q4_K_M")
    return found


def is_sound(reports: Sequence[CheckReport]) -> bool:
    return not any(report.findings for report in reports)
