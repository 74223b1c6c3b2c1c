"""How a trace is made from others, as data: sources with the digests of their files, how they are mixed, and steps.

A recipe is YAML or JSON; the command line's shorthand makes one too. It is kept in the Parquet file that it makes, and
the same recipe gives the same bytes. What the steps do is in traces/shape.py, traces/overlay.py and traces/models.py;
composition.py follows it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator

from sim.common.errors import ConfigError, did_you_mean
from sim.scenario.fields import Frozen, Name, NonNegative, Positive, first_problem

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Shares = Annotated[dict[str, NonNegative], Field(min_length=1)]
Apart = Literal["apart", "shared"]


class Source(Frozen):
    """The files of one trace. `sha256`: of each file, filled in when the recipe is first followed."""

    files: Annotated[tuple[str, ...], Field(min_length=1)]
    sha256: tuple[str, ...] | None = None
    format: str | None = None  # None: the one that the files are unmistakably of
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)
    strict: bool = False

    @model_validator(mode="before")
    @classmethod
    def _one_file(cls, data: Any) -> Any:
        if isinstance(data, str):
            data = {"file": data}
        if isinstance(data, dict) and "file" in data and "files" not in data:
            data = {"files": [data["file"]], **{name: value for name, value in data.items() if name != "file"}}
        if isinstance(data, dict) and isinstance(data.get("sha256"), str):
            data = {**data, "sha256": [data["sha256"]]}
        return data

    @model_validator(mode="after")
    def _digests_match(self) -> Source:
        if self.sha256 is not None and len(self.sha256) != len(self.files):
            raise ValueError(f"{len(self.files)} files and {len(self.sha256)} digests; give one each, or none")
        return self


class MapModels(Frozen):
    """trace_models.Deal. Models come from `models`, from `shares` or from the models of another trace, `like`."""

    law: str
    models: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    shares: Shares | None = None
    like: Source | None = None
    by: str = "request"
    alternate: bool = False
    table: dict[str, str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _law_of_shares(cls, data: Any) -> Any:
        if isinstance(data, dict) and "law" not in data:
            if data.get("table"):
                return {"law": "table", "by": "model", **data}
            if data.get("shares") or data.get("like"):
                return {"law": "shares", **data}
        return data

    @model_validator(mode="after")
    def _one_list(self) -> MapModels:
        given = [name for name in ("models", "shares", "like", "table") if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"not {' and '.join(given)}" if given else "none is there"
            raise ValueError(f"give one of models, shares, like and table; {found}")
        if self.models is not None and len(dict.fromkeys(self.models)) < len(self.models):
            raise ValueError("a model is listed twice")
        if self.shares is not None and not any(self.shares.values()):
            raise ValueError("all shares are 0")
        return self


class TimeScale(Frozen):
    factor: Positive
    think: bool = True  # think times of sessions shrink along


class Thin(Frozen):
    share: Annotated[Positive, Field(le=1)]
    whole_sessions: bool = False


class Shift(Frozen):
    by_s: Annotated[float, Field(allow_inf_nan=False)] | None = None  # None: the first request comes at 0


class Window(Frozen):
    start_s: NonNegative
    end_s: Positive
    rebase: bool = True

    @model_validator(mode="after")
    def _has_length(self) -> Window:
        if self.end_s <= self.start_s:
            raise ValueError(f"end_s {self.end_s:g} is not after start_s {self.start_s:g}")
        return self


class Limit(Frozen):
    rows: Annotated[int, Field(ge=1)]


class Repeat(Frozen):
    times: Annotated[int, Field(ge=1, le=1_000_000)]
    period_s: Positive | None = None
    sessions: Apart = "apart"


class Split(Frozen):
    """One part of several, from 0: by random `shares`, by times `at_s`, or by groups of `models`.

    Without a part, as the last step of a recipe, it stands for all of them, a file each; `each` is a part per model.
    """

    part: Annotated[int, Field(ge=0)] | None = None
    shares: Annotated[tuple[Positive, ...], Field(min_length=2)] | None = None
    at_s: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    models: Literal["each"] | Annotated[tuple[tuple[str, ...], ...], Field(min_length=1)] | None = None
    whole_sessions: bool = False
    rebase: bool = True

    @property
    def parts(self) -> int:
        return len(self.shares or self.models or ()) if self.at_s is None else len(self.at_s) + 1

    @model_validator(mode="after")
    def _one_way(self) -> Split:
        if sum(way is not None for way in (self.shares, self.at_s, self.models)) != 1:
            raise ValueError("give one of shares, at_s and models")
        if self.part is not None and self.models == "each":
            raise ValueError("models: each makes all parts; leave part out")
        if self.part is not None and self.part >= self.parts:
            raise ValueError(f"there are parts 0 to {self.parts - 1}, not {self.part}")
        if self.at_s is not None and any(b <= a for a, b in zip(self.at_s, self.at_s[1:], strict=False)):
            raise ValueError("at_s must rise")
        names = [name for group in self.models or () for name in group if self.models != "each"]
        if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
            raise ValueError(f"model '{twice}' is in two parts")
        return self


def _short(field: str) -> BeforeValidator:
    """A plain value in place of a mapping stands for its main field: `thin: 0.5`."""
    return BeforeValidator(lambda data: data if isinstance(data, dict | BaseModel) else {field: data})


class Step(Frozen):
    """One thing done to a trace: exactly one of these."""

    map_models: MapModels | None = None
    time_scale: Annotated[TimeScale, _short("factor")] | None = None
    thin: Annotated[Thin, _short("share")] | None = None
    shift: Annotated[Shift, _short("by_s")] | None = None
    window: Window | None = None
    limit: Annotated[Limit, _short("rows")] | None = None
    repeat: Annotated[Repeat, _short("times")] | None = None
    split: Split | None = None

    @model_validator(mode="after")
    def _one_thing(self) -> Step:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"a step does one thing of {', '.join(type(self).model_fields)}")
        return self


class NamedSource(Source):
    """A source of the trace, with what is done to it before it is mixed with the others."""

    name: Name
    steps: tuple[Step, ...] = ()


class Mix(Frozen):
    """How the sources come together. `shares` thins them so that their requests come in these proportions."""

    shares: Shares | None = None
    whole_sessions: bool = False
    sessions: Apart = "apart"


class Recipe(Frozen):
    """A trace made from others: the sources, each after its own steps, overlaid, and then the steps for all."""

    recipe: Literal[1] = 1
    seed: Seed = 1
    sources: Annotated[tuple[NamedSource, ...], Field(min_length=1)]
    mix: Mix = Mix()
    steps: tuple[Step, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _names(cls, data: Any) -> Any:
        """Sources without a name are called by their number; a bare path is a source."""
        if not isinstance(data, dict) or not isinstance(data.get("sources"), list | tuple):
            return data
        named = []
        for number, source in enumerate(data["sources"], 1):
            whole = {"file": source} if isinstance(source, str) else source
            named.append({"name": str(number), **whole} if isinstance(whole, dict) else whole)
        return {**data, "sources": named}

    @model_validator(mode="after")
    def _parts_named(self) -> Recipe:
        """Only the last of all steps may make several traces."""
        places = [(f"sources.{n}.steps", source.steps) for n, source in enumerate(self.sources)]
        for place, steps in (*places, ("steps", self.steps[:-1])):
            for number, step in enumerate(steps):
                if step.split is not None and step.split.part is None:
                    raise ValueError(f"{place}.{number}.split: say which part; only the last step makes all of them")
        return self

    @model_validator(mode="after")
    def _names_agree(self) -> Recipe:
        names = [source.name for source in self.sources]
        if (twice := next((name for name in names if names.count(name) > 1), None)) is not None:
            raise ValueError(f"two sources are called '{twice}'")
        if self.mix.shares is not None:
            for name in self.mix.shares:
                if name not in names:
                    raise ValueError(f"mix.shares: no source '{name}'; {did_you_mean(name, names)}")
            for name in names:
                if not self.mix.shares.get(name):
                    raise ValueError(f"mix.shares: source '{name}' has no share; give it one, or leave the source out")
        return self


class Generated(Frozen):
    """How a drawn trace was made, as `generate.stream_from_file` says it: the workload, the names in it, the seed."""

    generate: dict[str, Any]
    models: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    service_classes: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] = ("default",)
    seed: Seed = 1


def parse_generated(data: Any, where: str) -> dict[str, Any]:
    """Checked plain data for `generate.from_recipe`, in the order in which it is kept. Raises ConfigError."""
    try:
        return Generated.model_validate(data).model_dump(mode="json")
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_problem(error, Generated, 'recipe')}") from None


def parse_recipe(data: Any, where: str) -> Recipe:
    """A validated recipe from plain data. Raises ConfigError naming the field."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: a recipe is a mapping with sources and steps")
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_problem(error, Recipe, 'recipe')}") from None


def as_data(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data for YAML or JSON; `parse_recipe` of it gives the same recipe."""
    return recipe.model_dump(mode="json", exclude_none=True)
