"""What the engine's tests share: the synthetic hardware of sim.conformance, and policies as functions.

Nothing here asserts anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from sim.conformance.hardware import (
    BATCHES,
    CONTEXTS,
    FREE_OF_COST,
    GB,
    GPUS,
    HOSTS,
    MODELS,
    Row,
    as_yaml,
    columns,
    nodes,
    play,
    prefill_s,
    scenario,
    step_s,
    synthetic,
    trace,
    write_profiles,
)
from sim.policy import Action, InstanceView, Load, ModelView, Policy, Route, View

__all__ = [
    "BATCHES",
    "CONTEXTS",
    "FREE_OF_COST",
    "GB",
    "GPUS",
    "HOSTS",
    "MODELS",
    "Row",
    "Script",
    "accepting",
    "as_yaml",
    "columns",
    "load_all",
    "nodes",
    "play",
    "prefill_s",
    "scenario",
    "serve_all",
    "step_s",
    "synthetic",
    "trace",
    "write_profiles",
]


class Script(Policy):
    """A policy from a function of the view; `at_start` decides before the first arrival."""

    def __init__(
        self,
        decide: Callable[[View], Iterable[Action]],
        at_start: Callable[[View], Iterable[Action]] | None = None,
    ) -> None:
        super().__init__()
        self._decide = decide
        self._start = at_start

    def start(self, view: View) -> Iterable[Action]:
        return self._start(view) if self._start else ()

    def decide(self, view: View) -> Iterable[Action]:
        return self._decide(view)


def serve_all(view: View) -> Iterator[Action]:
    """Route every waiting request to the first instance of its model that takes it; load nothing."""
    for model in view.waiting_models:
        target = accepting(model)
        if target is not None:
            yield from (Route(request, target) for request in list(model.waiting))


def accepting(model: ModelView) -> InstanceView | None:
    return next((instance for instance in model.instances if instance.accepts), None)


def load_all(view: View) -> Iterator[Action]:
    """Each model whole on the GPU of its own number (modulo their count)."""
    for index, model in enumerate(view.models):
        yield Load(model, view.gpus[index % len(view.gpus)], model.layers)
