"""Presets: named workloads in traces/presets, written out into the streams that they stand for.

A preset is a YAML file like any workload, with `models` (names for use outside a scenario) and `description` beside its
streams; a new file is a new preset. Works on plain data before it is checked; called by `workloads.spec`.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from sim.common.data_files import data_folder
from sim.common.errors import did_you_mean
from sim.common.yaml_files import read_yaml


def preset_names() -> list[str]:
    """The presets there are, sorted."""
    return sorted(path.stem for path in (data_folder("traces") / "presets").glob("*.yaml"))


def read_preset(name: str) -> dict[str, Any]:
    """A preset's data: description, models, duration_s, streams. Raises ValueError when there is none of that name."""
    if name not in preset_names():
        raise ValueError(f"unknown preset '{name}'; {did_you_mean(str(name), preset_names())}")
    data: dict[str, Any] = read_yaml(data_folder("traces") / "presets" / f"{name}.yaml")
    return data


def written_out(data: dict[str, Any], whole: Sequence[str], stream: Sequence[str]) -> dict[str, Any]:
    """The workload's data with presets replaced by their streams and every stream named.

    whole, stream: the fields of a workload and of a stream. Beside a workload's `preset` the fields of a stream (and
    `rate_per_s`, all arrivals of the preset together) change every stream of it. Raises ValueError.
    """
    data = dict(data)
    if "preset" in data:
        if data.get("streams"):
            raise ValueError("give preset or streams; a stream may itself be {preset: NAME, ...}")
        unknown = next((key for key in data if key not in (*stream, *whole, "preset", "rate_per_s")), None)
        if unknown is not None:
            hint = did_you_mean(str(unknown), [*stream, *whole, "rate_per_s"])
            raise ValueError(f"unknown field '{unknown}'; {hint}")
        beside = [key for key in data if key in stream or key in ("preset", "rate_per_s")]
        entry = {key: data.pop(key) for key in beside}
        if "rows" not in data:
            data.setdefault("duration_s", read_preset(entry["preset"]).get("duration_s"))
        data["streams"] = [entry]
    streams = data.get("streams")
    if not isinstance(streams, list | tuple):
        return data
    written: list[Any] = []
    for number, entry in enumerate(streams, start=1):
        if isinstance(entry, dict) and "preset" in entry:
            written += _of_preset(entry)
        elif isinstance(entry, dict) and entry.get("name") is None:
            written.append({**entry, "name": f"stream-{number}"})
        else:
            written.append(entry)
    return {**data, "streams": written}


def default_models(data: Any) -> tuple[str, ...]:
    """The models of the first preset in a workload's data: what `all` means where there is no scenario."""
    streams = data.get("streams") if isinstance(data, dict) else None
    for entry in [data, *(streams if isinstance(streams, list | tuple) else ())]:
        if isinstance(entry, dict) and "preset" in entry:
            return tuple(read_preset(entry["preset"])["models"])
    return ()


def _of_preset(entry: dict[str, Any]) -> list[dict[str, Any]]:
    """The streams of a preset with what stands beside its name merged in."""
    entry = dict(entry)
    streams: list[dict[str, Any]] = deepcopy(read_preset(entry.pop("preset"))["streams"])
    name, rate = entry.pop("name", None), entry.pop("rate_per_s", None)
    if rate is not None:
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < float("inf"):
            raise ValueError(f"rate_per_s of a preset is a number above 0, not {rate!r}")
        total = sum(stream["arrivals"]["rate_per_s"] for stream in streams)
        for stream in streams:
            stream["arrivals"]["rate_per_s"] *= rate / total
    for stream in streams:
        if name is not None:
            stream["name"] = name if len(streams) == 1 else f"{name}-{stream['name']}"
    return [_merged(stream, entry) for stream in streams]


def _merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it, mapping by mapping; another law or process replaces the whole."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        other = isinstance(value, dict) and any(
            tag in value and isinstance(old, dict) and old.get(tag) != value[tag] for tag in ("law", "process")
        )
        both = isinstance(old, dict) and isinstance(value, dict) and not other and not _is_law(value)
        merged[key] = _merged(old, value) if both and isinstance(old, dict) else value
    return merged


def _is_law(value: dict[str, Any]) -> bool:
    return any(mark in value for mark in ("quantiles", "median", "value", "shares"))
