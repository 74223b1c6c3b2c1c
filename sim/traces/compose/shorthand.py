"""The command line's short way to say a recipe: files and options in, a Recipe out.

Whatever the order of the options, the files are overlaid (or mixed) first, and then the steps follow in the order of
Shorthand's fields; a recipe in a file can have any order. Called by `trace_cli`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sim.common.errors import ConfigError
from sim.scenario.scenario import load_scenario
from sim.traces.columns import FURTHEST_S
from sim.traces.compose.recipe import Recipe, parse_recipe


@dataclass(frozen=True)
class Shorthand:
    """What was asked, as texts where a value has parts; None: not asked for."""

    files: Sequence[Path]
    format: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    strict: bool = False
    mix: str | None = None
    assign: str | None = None
    models: str | None = None
    scenario: Path | None = None
    shares: str | None = None
    like: Path | None = None
    table: str | None = None
    by: str | None = None
    alternate: bool = False
    window: str | None = None
    shift: str | None = None
    time_scale: float | None = None
    thin: float | None = None
    whole_sessions: bool = False
    shared_sessions: bool = False
    repeat: int | None = None
    limit: int | None = None
    split: str | None = None
    split_at: str | None = None
    split_models: str | None = None
    seed: int = 1


def recipe_from(asked: Shorthand) -> Recipe:
    """Raises ConfigError: a text that cannot be read, options that do not go together."""
    sources: list[dict[str, Any]] = [
        {"file": str(file), "format": asked.format, "options": dict(asked.options), "strict": asked.strict}
        for file in asked.files
    ]
    sessions = "shared" if asked.shared_sessions else "apart"
    mix: dict[str, Any] = {"sessions": sessions}
    if asked.mix is not None:
        shares = _numbers("--mix", asked.mix, "0.7,0.3")
        if len(shares) != len(sources):
            raise ConfigError(f"--mix {asked.mix}: {len(shares)} shares for {len(sources)} files; give one each")
        mix["shares"] = {str(number): share for number, share in enumerate(shares, 1)}
        mix["whole_sessions"] = asked.whole_sessions
    elif asked.whole_sessions and asked.thin is None and asked.split is None:
        raise ConfigError("--whole-sessions: give --thin, --split or --mix with it")
    steps: list[dict[str, Any]] = [
        *_assigned(asked),
        *_timed(asked),
        *_one("thin", asked.thin, lambda share: {"share": share, "whole_sessions": asked.whole_sessions}),
        *_one("repeat", asked.repeat, lambda times: {"times": times, "sessions": sessions}),
        *_one("limit", asked.limit, lambda rows: {"rows": rows}),
        *_split(asked),
    ]
    data = {"seed": asked.seed, "sources": sources, "mix": mix, "steps": steps}
    return parse_recipe(data, "trace compose")


def _one(name: str, value: Any, fields: Callable[[Any], dict[str, Any]]) -> list[dict[str, Any]]:
    return [] if value is None else [{name: fields(value)}]


def _assigned(asked: Shorthand) -> list[dict[str, Any]]:
    lists = ("models", "scenario", "shares", "like", "table")
    given = [f"--{name}" for name in lists if getattr(asked, name) is not None]
    if not given:
        alone = [f"--{name} {value}" for name in ("assign", "by") if (value := getattr(asked, name)) is not None]
        alone += ["--alternate"] if asked.alternate else []
        if alone:
            raise ConfigError(f"{alone[0]}: which models? Give --models M1,M2,... or --scenario")
        return []
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)}: the models come from one of them; drop the others")
    step: dict[str, Any] = {"alternate": asked.alternate}
    if asked.assign is not None:
        step["law"] = asked.assign
    if asked.by is not None:
        step["by"] = asked.by
    if asked.models is not None:
        step["models"] = _names("--models", asked.models)
    elif asked.scenario is not None:
        step["models"] = [model.name for model in load_scenario(asked.scenario).models]
    elif asked.shares is not None:
        step["shares"] = {
            name: _number("--shares", text) for name, text in _pairs("--shares", asked.shares, "chat=0.7,code=0.3")
        }
    elif asked.like is not None:
        step["like"] = {"file": str(asked.like)}
    elif asked.table is not None:
        step["table"] = dict(_pairs("--table", asked.table, "function-1=chat,function-2=code"))
    if "models" in step and asked.assign is None:
        raise ConfigError(f"{given[0]}: by which law? Give --assign, for example --assign zipf:1.0")
    return [{"map_models": step}]


def _timed(asked: Shorthand) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if asked.window is not None:
        start, colon, end = asked.window.partition(":")
        if not colon:
            raise ConfigError(f"--window {asked.window}: write START:END in seconds, for example 0:3600")
        # Either side may be left open: no trace goes on for longer.
        start_s, end_s = _number("--window", start or "0"), _number("--window", end) if end else FURTHEST_S
        steps.append({"window": {"start_s": start_s, "end_s": end_s}})
    if asked.shift is not None:
        by_s = None if asked.shift == "start" else _number("--shift", asked.shift)
        steps.append({"shift": {} if by_s is None else {"by_s": by_s}})
    return [*steps, *_one("time_scale", asked.time_scale, lambda factor: {"factor": factor})]


def _split(asked: Shorthand) -> list[dict[str, Any]]:
    given = [name for name in ("split", "split_at", "split_models") if getattr(asked, name) is not None]
    if len(given) > 1:
        names = " and ".join("--" + name.replace("_", "-") for name in given)
        raise ConfigError(f"{names}: one way of splitting at a time; compose again for the other")
    if asked.split is not None:
        shares = _numbers("--split", asked.split, "0.8,0.2")
        if len(shares) < 2:
            raise ConfigError(f"--split {asked.split}: a share for each of at least two parts, for example 0.8,0.2")
        return [{"split": {"shares": shares, "whole_sessions": asked.whole_sessions}}]
    if asked.split_at is not None:
        return [{"split": {"at_s": _numbers("--split-at", asked.split_at, "600,1200")}}]
    if asked.split_models is not None:
        groups = asked.split_models.split(":")
        each = asked.split_models == "each"
        return [{"split": {"models": "each" if each else [_names("--split-models", group) for group in groups]}}]
    return []


def _names(option: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ConfigError(f"{option} {text}: a name is empty; write M1,M2,...")
    return names


def _pairs(option: str, text: str, example: str) -> list[tuple[str, str]]:
    pairs = [part.rpartition("=") for part in _names(option, text)]
    if not all(name.strip() and sign and value.strip() for name, sign, value in pairs):
        raise ConfigError(f"{option} {text}: write NAME=VALUE,..., for example {example}")
    names = [name.strip() for name, _, _ in pairs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"{option} {text}: '{twice}' is there twice; drop one")
    return [(name, value.strip()) for name, (_, _, value) in zip(names, pairs, strict=True)]


def _numbers(option: str, text: str, example: str) -> list[float]:
    if not text.strip():
        raise ConfigError(f"{option}: write numbers, for example {example}")
    return [_number(option, part) for part in text.split(",")]


def _number(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"{option}: '{text}' is not a number") from None
