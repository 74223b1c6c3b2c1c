"""Which model a benchmark record is of, and what it weighs: from the record, profiles/models.csv and flags.

The tables of profiles come first, then the known shapes of `architectures`, then what the user says. Nothing is
guessed: what is missing is named, with the flag that gives it. `importing` calls it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sim.common.errors import ProfileError
from sim.profiles.profile import Weights
from sim.profiling.architectures import Architecture, by_name, by_parameters, known_architectures, named
from sim.profiling.imports.record import Trial
from sim.profiling.points import ModelRow

_SIZES = {"Small": "_S", "Medium": "_M", "Large": "_L"}
_PLAIN = {"F16": "FP16", "F32": "FP32"}
_TYPE = re.compile(r"\b(I?Q\d\w*|BF16|FP?16|F32|MXFP4|TQ\d_\d)(?: - (Small|Medium|Large))?")
_FILE = re.compile(r"(?<![A-Z0-9])(IQ\d_[A-Z]+|Q\d_K(?:_(?:XS|S|M|L|XL))?|Q\d_\d|BF16|FP?16|F32|MXFP4)(?![A-Z0-9])")


@dataclass(frozen=True)
class ModelFlags:
    """What the user says about the model: all records are then of this one."""

    model: str | None = None
    quantization: str | None = None
    layers: int | None = None
    layer_bytes: int | None = None
    head_bytes: int | None = None
    kv_bytes: int | None = None
    max_context: int | None = None


_FLAGS = {
    "layers": "--layers (transformer layers, without the head)",
    "layer_bytes": "--layer-bytes (weight bytes of one layer)",
    "head_bytes": "--head-bytes (weight bytes of the output head)",
    "kv_bytes": "--kv-bytes (KV-cache bytes of one token in one layer at FP16: 4 x KV heads x head width)",
    "max_context": "--max-context (tokens)",
}
_COLUMNS = {"kv_bytes": "kv_bytes_per_token_layer"}


def identify(
    trial: Trial, flags: ModelFlags, weights: Mapping[tuple[str, str], Weights], source: str
) -> tuple[ModelRow, str | None]:
    """The model's row, and what there is to say about how it was told.

    Raises ProfileError: the record and the flags do not say what the model is or weighs.
    """
    notice = None
    quantization = flags.quantization or quantization_of(trial)
    name, shape = _name(trial, flags, [model for model, _ in weights])
    if not quantization:
        raise ProfileError(f"{trial.where}: names no quantization; give it: --quantization Q4_K_M, FP16, ...")
    known = weights.get((name, quantization))
    given: dict[str, int | None] = {field: getattr(flags, field) for field in _FLAGS}
    found: dict[str, int | None]
    if known is not None:
        found = {field: getattr(known, _COLUMNS.get(field, field)) for field in _FLAGS}
        for field, value in given.items():
            if value is not None and value != found[field]:
                option = _FLAGS[field].partition(" ")[0]
                raise ProfileError(
                    f"{option} {value}: {name} {quantization} has {found[field]} in profiles/models.csv; "
                    "drop the option, or name the model otherwise"
                )
    else:
        found = _derived(shape, quantization, trial.model_size) if shape else {}
        found |= {field: value for field, value in given.items() if value is not None}
        missing = [text for field, text in _FLAGS.items() if not found.get(field)]
        if missing:
            raise ProfileError(
                f"{trial.where}: {name} {quantization} is not in profiles/models.csv and its record does not say "
                f"enough; give {', '.join(missing)}"
            )
    if not flags.model and by_name(trial.model_file, [name]) is None:
        told = trial.model_file or trial.model_type
        notice = f"'{told}' has the shape of {name} and is imported as that; --model names it otherwise"
    row = ModelRow(
        model=name,
        quantization=quantization,
        **{_COLUMNS.get(field, field): found[field] or 0 for field in _FLAGS},
        kind="analytic",
        source="profiles/models.csv" if known else source,
        where=trial.where,
    )
    return row, notice


def _derived(shape: Architecture, quantization: str, model_size: int | None) -> dict[str, int | None]:
    parts = (shape.bytes_of(quantization, model_size) if model_size else None) or (None, None)
    values = (shape.layers, *parts, shape.kv_bytes_per_token_layer(), shape.max_context)
    return dict(zip(_FLAGS, values, strict=True))


def _name(trial: Trial, flags: ModelFlags, known: Sequence[str]) -> tuple[str, Architecture | None]:
    text = trial.model_file or trial.model_type
    family = trial.model_type.partition(" ")[0].lower()
    families = {each.family for each in known_architectures()}
    shape = None
    if trial.model_parameters:
        shape = by_parameters(family if family in families else "", trial.model_parameters, text)
    if flags.model:
        return flags.model, shape or named(flags.model)
    if shape is not None:
        return shape.model, shape
    shapes = [each.model for each in known_architectures()]  # a parameter count that fits none of them: it is none
    name = by_name(text, [each for each in known if each not in shapes] + ([] if trial.model_parameters else shapes))
    if name is not None:
        return name, named(name)
    told = f"'{text}'" if text else "no model"
    raise ProfileError(f"{trial.where}: names {told}, which is not known; give --model NAME, and --layers L")


def quantization_of(trial: Trial) -> str | None:
    """As llama.cpp's file names write it, FP16 for 16 bits; None where the record does not say."""
    found = _TYPE.search(trial.model_type)
    if found:
        name = found[1] + _SIZES.get(found[2] or "", "")
        return _PLAIN.get(name, name)
    in_file = _FILE.findall(trial.model_file.upper())
    return _PLAIN.get(in_file[-1], in_file[-1]) if in_file else None
