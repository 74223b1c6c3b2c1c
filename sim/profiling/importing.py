"""Files of other benchmark programs become folders of measurements, one for each GPU, host and engine.

A record that cannot be used stops the import, named with its reason; with `skip_bad` it is told and left out. Where a
record leaves something open that matters, the user is asked for the option that says it. `profile import` calls it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sim.common.errors import ConfigError, ProfileError
from sim.profiles.library import Library
from sim.profiling.device_names import gpu_slug, host_slug, known_hosts
from sim.profiling.heads import fastest_head_s, head_goes_first, layers_of
from sim.profiling.imports.files import find_files, read_records
from sim.profiling.imports.formats import RecordFormat, format_named
from sim.profiling.imports.record import ALL_LAYERS, BadRecord, Record, Trial, Unused, timing_of
from sim.profiling.measured import Measured, check_slug, checked, write_measured
from sim.profiling.models import ModelFlags, identify
from sim.profiling.points import KINDS, DecodePoint, ModelRow, PrefillPoint
from sim.profiling.settings import Chosen, common_settings, parse_where, refuse_mixed

# Single runs of the same test (no medians of repeats) may be so far apart, as a ratio.
SINGLES_WITHIN = 1.5
_SHORTEST_S, _LONGEST_S = 1e-7, 1e5
_HEADS = {"first": True, "last": False}


@dataclass(frozen=True)
class ImportOptions:
    """What the user says beside the files. None and empty: as the records have it."""

    format: str | None
    gpu: str | None = None
    host: str | None = None
    engine: str | None = None
    model: ModelFlags = field(default_factory=ModelFlags)
    gpu_layers: int | None = None
    head: str | None = None
    where: Sequence[str] = ()
    free: Sequence[str] = ()
    skip_bad: bool = False
    kind: str = "measured"
    source: str | None = None
    profiles: Path | None = None


@dataclass
class Imported:
    """The folders to be written, what was left out, and what the user should know."""

    parts: list[Measured] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    records: int = 0

    def tell(self, notice: str) -> None:
        if notice not in self.notices:
            self.notices.append(notice)


@dataclass(frozen=True)
class _Known:
    """A trial with all that tables need. `count`: layers as the tool counts; `_settled` makes the last two of it."""

    trial: Trial
    model: ModelRow
    gpu: str
    host: str
    engine: str
    count: int
    head_first: bool | None
    layers: int = 0
    head: str = ""


def import_files(paths: Sequence[Path], options: ImportOptions) -> Imported:
    """Read the files (and folders of files). Raises ProfileError: one line, what, where and how to mend it."""
    chosen_format = format_named(options.format)
    _check_options(options)
    imported = Imported()
    trials, files = _read(find_files(paths), chosen_format, options, imported)
    library = Library(options.profiles)
    hosts = known_hosts(library.folder / "nodes.csv")
    _one_of_each(trials, options)
    known = [_say_all(trial, options, library, hosts, imported) for trial in trials]
    groups: dict[tuple[str, str, str], list[_Known]] = {}
    for each in known:
        groups.setdefault((each.gpu, each.host, each.engine), []).append(each)
    for group in groups.values():
        imported.parts.append(_measured(_settled(group, imported), chosen_format, options, files, imported))
    return imported


def _check_options(options: ImportOptions) -> None:
    for name in ("gpu", "host", "engine"):
        value = getattr(options, name)
        if value is not None:
            check_slug(value, f"--{name}")
    if options.kind not in KINDS:
        raise ProfileError(f"--kind {options.kind}: write {' or '.join(KINDS)}")
    if options.head is not None and options.head not in _HEADS:
        raise ProfileError(f"--head {options.head}: write first or last: when the output head goes to the GPU")
    if options.gpu_layers is not None and options.gpu_layers < -1:
        raise ProfileError(f"--gpu-layers {options.gpu_layers}: write the layers on the GPU, or -1 for all")


def _read(
    files: Sequence[Path], chosen_format: RecordFormat, options: ImportOptions, imported: Imported
) -> tuple[list[Trial], list[str]]:
    chosen = Chosen(parse_where(options.where))
    trials: list[Trial] = []
    unused: dict[str, int] = {}

    def bad(where: str, reason: str) -> None:
        if not options.skip_bad:
            raise ProfileError(f"{where}: {reason}; --skip-bad leaves such records out")
        imported.skipped.append(f"{where}: {reason}")

    wanted = 0

    def unreadable(where: str, reason: str) -> None:
        nonlocal wanted
        wanted += 1
        bad(where, reason)

    for path in files:
        for where, fields in read_records(path, chosen_format.csv_too, unreadable):
            if not chosen.wants(fields):
                continue
            wanted += 1
            try:
                found = chosen_format.trials(Record(where, fields, chosen_format.understood))
            except BadRecord as error:
                bad(where, str(error))
                continue
            for each in found:
                if isinstance(each, Unused):
                    unused[each.why] = unused.get(each.why, 0) + 1
                elif not _SHORTEST_S < each.timing.median_s < _LONGEST_S:
                    bad(where, f"took {each.timing.median_s:.3g} s a token or prompt, which cannot be")
                else:
                    trials.append(each)
    chosen.check(wanted)
    imported.records = wanted
    imported.notices += [f"{number} not used: {why}" for why, number in unused.items()]
    if not trials:
        raise ProfileError(f"{files[0]}: {_nothing(imported, unused)}")
    return trials, list(dict.fromkeys(path.name for path in files))


def _nothing(imported: Imported, unused: Mapping[str, int]) -> str:
    if imported.skipped:
        return f"nothing is left to import; the first record left out: {imported.skipped[0]}"
    if unused:
        return f"nothing to import: {next(iter(unused))}"
    return "holds no records; did the benchmark finish?"


def _one_of_each(trials: Sequence[Trial], options: ImportOptions) -> None:
    """An option that names something must not rename several things at once."""
    models = dict.fromkeys(trial.model_key for trial in trials)
    if options.model.model and len(models) > 1:
        names = ", ".join((file or kind)[:40] for file, kind, _, _ in list(models)[:4])
        raise ProfileError(f"--model: the records are of {len(models)} models ({names}); choose with --where")
    for option, column in (("gpu", "gpu_name"), ("host", "cpu_name")):
        names_of = dict.fromkeys(getattr(trial, column) for trial in trials if getattr(trial, column))
        if getattr(options, option) and len(names_of) > 1:
            field_of = {"gpu": "gpu_info", "host": "cpu_info"}[option]
            told = ", ".join(names_of)
            raise ProfileError(f"--{option}: the records are of several ({told}); choose with --where {field_of}=...")


def _say_all(
    trial: Trial, options: ImportOptions, library: Library, hosts: Mapping[str, str], imported: Imported
) -> _Known:
    gpus = {slug: kind.name for slug, kind in library.gpus.items()}
    chosen_format = format_named(options.format)
    gpu = options.gpu or gpu_slug(trial.gpu_name, gpus)
    host = options.host or host_slug(trial.cpu_name, hosts)
    if not gpu:
        alone = " (it ran on the CPU alone, which counts as 0 layers on it)" if trial.gpu_layers == 0 else ""
        raise ProfileError(f"{trial.where}: names no GPU{alone}; give its name in profiles: --gpu rtx-4090")
    if not host:
        raise ProfileError(f"{trial.where}: names no processor; give the host's name in profiles: --host i7-8700")
    check_slug(gpu, f"{trial.where}: the GPU's name (give --gpu)")
    check_slug(host, f"{trial.where}: the host's name (give --host)")
    source = options.source or chosen_format.name
    model, notice = identify(trial, options.model, library.weights, source)
    if notice:
        imported.tell(notice)
    first = _HEADS[options.head] if options.head else trial.head_first
    return _Known(trial, model, gpu, host, options.engine or chosen_format.engine, _count(trial, options), first)


def _count(trial: Trial, options: ImportOptions) -> int:
    """Layers on the GPU as the tool counts them."""
    if trial.gpu_layers is not None:
        return trial.gpu_layers
    if options.gpu_layers is None:
        raise ProfileError(
            f"{trial.where}: does not say how many layers were on the GPU; give --gpu-layers N (-1: all)"
        )
    return ALL_LAYERS if options.gpu_layers < 0 else options.gpu_layers


def _settled(group: Sequence[_Known], imported: Imported) -> list[_Known]:
    """The same with layers and head told from the counts, for each model by its own sweep where no build says it."""
    models: dict[ModelRow, list[_Known]] = {}
    for each in group:
        models.setdefault(each.model, []).append(each)
    found = []
    for model, known in models.items():
        sweep = _sweep(known)
        partial = [each for each in known if 0 < each.count <= model.layers]
        told = None
        if any(each.head_first is None for each in partial):
            told = head_goes_first(sweep, model)
            how = "the sweep itself says" if told is not None else "no build says otherwise, so"
            when = "first, as since" if told else "last, as before"
            imported.tell(
                f"{model.model}: {how} the output head goes to the GPU {when} December 2025; --head overrides"
            )
        least = fastest_head_s(sweep, model)
        for each in known:
            first = bool(told) if each.head_first is None else each.head_first
            layers, head = layers_of(each.count, model.layers, first)
            trial = each.trial
            if head == "host" and trial.decode and least is not None and trial.timing.median_s < least:
                imported.tell(
                    f"{trial.where}: {each.count} layers of {model.model} were faster than the host could read the "
                    "output head alone, so the head is taken to have been on the GPU too"
                )
                head = ""
            found.append(replace(each, layers=layers, head=head))
    return found


def _sweep(known: Sequence[_Known]) -> list[tuple[int, float]]:
    """(count, seconds) of the decodes of one sequence, at the context that most of them have."""
    singles = [each for each in known if each.trial.decode and each.trial.batch == 1]
    contexts = [each.trial.context for each in singles]
    common = max(contexts, key=contexts.count, default=0.0)
    return [(each.count, each.trial.timing.median_s) for each in singles if each.trial.context == common]


def _measured(
    group: Sequence[_Known], chosen_format: RecordFormat, options: ImportOptions, files: list[str], imported: Imported
) -> Measured:
    first = group[0]
    curves: dict[tuple[str, str, bool], list[_Known]] = {}
    for each in group:
        curves.setdefault((each.model.model, each.model.quantization, each.trial.decode), []).append(each)
    decode: list[DecodePoint] = []
    prefill: list[PrefillPoint] = []
    for (model, quantization, decodes), curve in curves.items():
        label = f"{model} {quantization} on {first.gpu} in {first.host}, {'decode' if decodes else 'prefill'}"
        refuse_mixed(label, [each.trial for each in curve], options.free)
        _tell_kv_types(label, curve, imported)
        for each in _pooled(curve):
            row = _row_values(each, chosen_format, options)
            if decodes:
                timing = each.trial.timing
                decode.append(
                    DecodePoint(**row, batch=each.trial.batch, context=each.trial.context, step_s=timing.median_s)
                )
            else:
                prefill.append(
                    PrefillPoint(**row, prompt_tokens=each.trial.prompt_tokens, prefill_s=each.trial.timing.median_s)
                )
    models = tuple(dict.fromkeys(each.model for each in group))
    offload = (chosen_format.offload,)
    facts = _facts(group, chosen_format, files)
    part = Measured(
        first.gpu, first.host, first.engine, offload, facts, models, decode=tuple(decode), prefill=tuple(prefill)
    )
    return checked(part, {})


def _row_values(each: _Known, chosen_format: RecordFormat, options: ImportOptions) -> dict[str, Any]:
    trial = each.trial
    build = f"-{trial.build}" if trial.build and options.source is None else ""
    return {
        "model": each.model.model,
        "quantization": each.model.quantization,
        "offload": chosen_format.offload,
        "layers": each.layers,
        "head": each.head,
        "p10_s": trial.timing.p10_s,
        "p90_s": trial.timing.p90_s,
        "repeats": trial.timing.repeats,
        "kind": options.kind,
        "source": options.source or f"{chosen_format.name}{build}",
        "where": trial.where,
    }


def _tell_kv_types(label: str, curve: Sequence[_Known], imported: Imported) -> None:
    for name in ("type_k", "type_v"):
        kinds = sorted({each.trial.settings.get(name, "f16") for each in curve})
        if kinds != ["f16"]:
            imported.tell(f"{label}: {name} is {', '.join(kinds)}; tables count KV bytes at f16")


def _pooled(curve: Sequence[_Known]) -> list[_Known]:
    """Single runs of one point become their median and spread."""
    points: dict[tuple[Any, ...], list[_Known]] = {}
    for each in curve:
        trial = each.trial
        point = (each.layers, each.head, trial.batch, trial.context, trial.prompt_tokens)
        points.setdefault(point, []).append(each)
    pooled = []
    for same in points.values():
        if len(same) == 1 or not same[0].trial.single:
            pooled += same
            continue
        low = min(same, key=lambda each: each.trial.timing.median_s)
        high = max(same, key=lambda each: each.trial.timing.median_s)
        if high.trial.timing.median_s > SINGLES_WITHIN * low.trial.timing.median_s:
            raise ProfileError(
                f"{high.trial.where}: took {high.trial.timing.median_s:.4g} s, but {low.trial.timing.median_s:.4g} s "
                f"in {low.trial.where}, for the same point; one was cached or disturbed: leave that record out"
            )
        timing = timing_of([each.trial.timing.median_s for each in same])
        pooled.append(replace(same[0], trial=replace(same[0].trial, timing=timing)))
    return pooled


def _facts(group: Sequence[_Known], chosen_format: RecordFormat, files: list[str]) -> dict[str, Any]:
    trials = [each.trial for each in group]
    facts: dict[str, Any] = {
        "gpu_name": next((trial.gpu_name for trial in trials if trial.gpu_name), ""),
        "cpu": next((trial.cpu_name for trial in trials if trial.cpu_name), ""),
        "date": max(trial.date for trial in trials),
        "tool": chosen_format.name,
        "build": list(dict.fromkeys(trial.build for trial in trials if trial.build)),
        "files": files,
        "settings": common_settings(trials),
        "head": "first" if any(each.head == "gpu" or each.head_first for each in group) else "last",
    }
    return {name: value for name, value in facts.items() if value}


def write_parts(parts: Sequence[Measured], out: Path | None) -> list[Path]:
    """One folder: `out` itself; several: folders in it, named by GPU, host and engine. Raises ConfigError."""
    base = out or Path("measured")
    folders = [base] if out is not None and len(parts) == 1 else [base / part.name for part in parts]
    for folder in folders:
        if folder.exists():
            raise ConfigError(f"{folder}: is there already; name a new folder with --out")
    for part, folder in zip(parts, folders, strict=True):
        write_measured(part, folder)
    return folders
