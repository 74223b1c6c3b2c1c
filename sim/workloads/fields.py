"""What every part of a scenario is made of: kinds of numbers and names, and one line for what pydantic refuses.

`Frozen` is the base of all that a user may say. `first_problem` turns a validation error into the field's path, what is
wrong and the closest known name. Knows no scenario and no workload; `spec` and `workloads.spec` are built on it.
"""

from __future__ import annotations

import re
import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from sim.errors import did_you_mean

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


class Frozen(BaseModel):
    """Cannot be changed once made, and refuses fields that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
    given = problem.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) or given is None else ""
    return f"field '{field}': {text[:1].lower()}{text[1:]}{shown}"


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
