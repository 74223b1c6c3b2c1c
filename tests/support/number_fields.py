"""Every field of numbers in the whole scenario, wherever it stands, found by walking its models."""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from sim.scenario.scenario import Scenario


def models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not Literal:
        for part in get_args(annotation):
            yield from models_of(part)


def all_models() -> list[type[BaseModel]]:
    found: dict[type[BaseModel], None] = {}
    todo: list[type[BaseModel]] = [Scenario]
    while todo:
        model = todo.pop()
        if model not in found:
            found[model] = None
            todo += [inner for field in model.model_fields.values() for inner in models_of(field.annotation)]
    return list(found)


def kinds(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType):
        return [kind for part in get_args(annotation) for kind in kinds(part)]
    if get_origin(annotation) is Annotated:
        return kinds(get_args(annotation)[0])
    return [annotation]


NUMBERS = [
    (model, name)
    for model in all_models()
    for name, field in model.model_fields.items()
    if {int, float} & set(kinds(field.annotation)) and not {bool, str} & set(kinds(field.annotation))
]
