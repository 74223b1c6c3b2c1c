"""Engines driven by a script of decisions at given times, and what they recorded of switches: for tests of loading."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from sim.core.record.recorder import SWITCH_COLUMNS
from sim.engine.engine import Engine
from sim.policy import Action, Load, View, Wake
from tests.support.scenarios import Script, serve_all

Decide = Callable[[View], Iterator[Action]]


def switches(engine: Engine, kind: str) -> list[dict[str, Any]]:
    rows = [dict(zip(SWITCH_COLUMNS, row, strict=True)) for row in engine.world.recorder.switches]
    return [row for row in rows if row["kind"] == kind]


def script(times: dict[float, Decide], start: Decide, otherwise: Decide = serve_all) -> Script:
    """Decide by the clock: `start` at 0, what `times` says at its times, once each; and always route."""
    done: list[float] = []

    def decide(view: View) -> Iterator[Action]:
        if view.now_s in times and view.now_s not in done:
            done.append(view.now_s)
            yield from times[view.now_s](view)
        yield from otherwise(view)

    def begin(view: View) -> Iterator[Action]:
        yield from start(view)
        yield from (Wake(time_s) for time_s in times)

    return Script(decide, begin)


def load(*what: tuple[int, int, int]) -> Decide:
    """Loads of (model, GPU, layers)."""
    return lambda view: iter([Load(view.models[model], view.gpus[gpu], layers) for model, gpu, layers in what])
