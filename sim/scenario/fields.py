"""What every part of a scenario is made of: kinds of numbers and names, and one line for what pydantic refuses.

`Frozen` is the base of all that a user may say. `first_problem` turns a validation error into the field's path, what is
wrong and the closest known name. Knows no scenario and no workload; `spec` and `workloads.spec` are built on it.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from sim.common.errors import did_you_mean

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1, le=10**12)]

TAGS = ("kind", "law", "process")  # the fields by which the members of a union are told apart


def _plain_name(name: str) -> str:
    """Names end up in file names and tables, so they are kept to characters that are safe in both."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,99}", name):
        raise ValueError("use letters, digits and . _ : + - only, at most 100, the first a letter or a digit")
    return name


Name = Annotated[str, AfterValidator(_plain_name)]


class Checked(BaseModel):
    """Refuses fields that it does not know, NaN and infinities, and true and false where a number is meant."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_no_truths(cls, data: Any) -> Any:
        for name in _number_fields(cls) if isinstance(data, dict) else ():
            if name in data and _holds_truth(data[name]):
                wrong = PydanticCustomError("no_number", "give a number, not true or false")
                raise ValidationError.from_exception_data(
                    cls.__name__, [InitErrorDetails(type=wrong, loc=(name,), input=data[name])]
                )
        return data


class Frozen(Checked):
    """Cannot be changed once made; what a scenario, a recipe or a grid is made of."""


@cache
def _number_fields(model: type[BaseModel]) -> tuple[str, ...]:
    """The fields of plain numbers, alone or in lists and mappings, that no true or false may stand for."""
    found = []
    for name, field in model.model_fields.items():
        kinds = _leaves(field.annotation)
        if (int in kinds or float in kinds) and bool not in kinds:
            found.append(name)
    return tuple(found)


def _leaves(annotation: Any) -> list[Any]:
    """The kinds of which values an annotation is made."""
    if get_origin(annotation) is Literal:
        return [type(value) for value in get_args(annotation)]
    inside = get_args(annotation)[:1] if get_origin(annotation) is Annotated else get_args(annotation)
    return [leaf for part in inside for leaf in _leaves(part)] if inside else [annotation]


def _holds_truth(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds_truth(item) for item in value)
    if isinstance(value, dict):
        return any(_holds_truth(item) for item in value.values())
    return isinstance(value, bool)


def first_problem(error: ValidationError, root: type[BaseModel], whole: str) -> str:
    """The first problem of an error raised by `root`, in one line; `whole` names the thing when no field can be."""
    problem = error.errors()[0]
    steps, known, tags = _path(root, problem["loc"])
    field = ".".join(steps) or whole
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown field '{field}'; " + did_you_mean(steps[-1], known)
    if kind == "missing":
        return f"field '{field}' is missing; add it"
    if kind == "union_tag_not_found":
        return f"field '{field}': give a mapping with {context['discriminator']}: one of {', '.join(tags)}"
    if kind == "union_tag_invalid":
        tag = context["discriminator"].strip("'")
        return f"field '{field}.{tag}': unknown '{context['tag']}'; {did_you_mean(str(context['tag']), tags)}"
    if kind in ("model_type", "model_attributes_type"):
        return f"field '{field}': give a mapping of fields, not {problem['input']!r:.60}"
    text = problem["msg"].removeprefix("Value error, ")
    return f"field '{field}': {text[:1].lower()}{text[1:]}{_given(kind, problem.get('input'))}"


def _given(kind: str, value: Any) -> str:
    """What stands there, where that helps and is short."""
    if not isinstance(value, str | int | float | bool | None):
        return ""
    if isinstance(value, int) and not -(10**30) < value < 10**30:  # thousands of digits take long to write
        return " (given: a number of more than 30 digits)"
    text = repr(value if not isinstance(value, str) else value[:80])
    hint = "; put it in quotes" if kind == "string_type" and isinstance(value, bool | int | float) else ""
    return f" (given: {text if len(text) <= 60 else text[:57] + '...'}){hint}"


def _path(root: type[BaseModel], loc: Iterable[str | int]) -> tuple[list[str], list[str], list[str]]:
    """The steps that a user wrote, without the names that pydantic gives to the branches of a union.

    Also what could be there: the fields of the mapping that holds the last step, and the tags of a union at the end.
    """
    here: list[Any] = [root]
    steps: list[str] = []
    known: list[str] = []
    for step in loc:
        models = [kind for kind in here if isinstance(kind, type) and issubclass(kind, BaseModel)]
        owners = [model for model in models if step in model.model_fields]
        branches = [model for model in models if step in _tags_of(model)]
        inside = [get_args(kind) for kind in here if get_origin(kind) in (tuple, list, dict)]
        if owners:
            known = [name for model in owners for name in model.model_fields]
            here = [part for model in owners for part in _parts(model.model_fields[str(step)].annotation)]
        elif branches and len(models) > 1:
            here = list(branches)
            continue
        elif inside:
            here = [part for arguments in inside for part in _parts(arguments[1 if len(arguments) > 1 else 0])]
            if isinstance(step, int):
                here = [part for arguments in inside for part in _parts(arguments[0])]
        elif step == "[key]" or not models:
            continue
        else:
            known = [name for model in models for name in model.model_fields]
        steps.append(str(step))
    models = [kind for kind in here if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return steps, known, [str(tag) for model in models for tag in _tags_of(model)]


def _tags_of(model: type[BaseModel]) -> tuple[Any, ...]:
    """The values by which a union tells this model from the others."""
    fields = [model.model_fields[name] for name in TAGS if name in model.model_fields]
    return next((get_args(field.annotation) for field in fields if get_origin(field.annotation) is Literal), ())


def _parts(annotation: Any) -> list[Any]:
    """The plain kinds that an annotation allows, unions and annotations opened."""
    if get_origin(annotation) in (Union, types.UnionType):
        return [part for one in get_args(annotation) for part in _parts(one)]
    if get_origin(annotation) is Annotated:
        return _parts(get_args(annotation)[0])
    return [annotation]
