"""What a policy may know of a request: a read-only facade. models.py has the rest and makes them all.

The true output length is not here; an estimate is.
"""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING

from sim.core.state.facade import Facade
from sim.core.state.request import DECODE, PREFILL, RECOMPUTE, Request

if TYPE_CHECKING:
    from sim.policy.interface.machines import NodeView
    from sim.policy.interface.models import InstanceView, ModelView, Views


class RequestView(Facade):
    """A request as its client sent it, and how far it is."""

    __slots__ = ()
    _of: Request
    _views: Views

    def __repr__(self) -> str:
        return f"request {self._of.index} for {self._of.model.name}"

    @property
    def number(self) -> int:
        """Its place in the order of arrival, which is also its name."""
        return self._of.index

    @property
    def model(self) -> ModelView:
        return self._views.model(self._of.model)

    @property
    def arrival_s(self) -> float:
        return self._of.arrival_s

    @property
    def prompt_tokens(self) -> int:
        return self._of.prompt_tokens

    @property
    def priority(self) -> int:
        """Smaller is more urgent."""
        return self._of.priority

    @property
    def ttft_slo_s(self) -> float | None:
        """Seconds after arrival by which its service class promises the first token; None: no promise."""
        return self._views.cluster.service_classes[self._of.service_class].ttft_s

    @property
    def tpot_slo_s(self) -> float | None:
        """The promised seconds per token after the first, on average."""
        return self._views.cluster.service_classes[self._of.service_class].tpot_s

    @property
    def e2e_slo_s(self) -> float | None:
        """Seconds after arrival by which its service class promises the whole answer."""
        return self._views.cluster.service_classes[self._of.service_class].e2e_s

    @property
    def patience_s(self) -> float | None:
        """Seconds after arrival at which its client leaves if its prompt is not even being computed."""
        return self._views.cluster.service_classes[self._of.service_class].patience_s

    @property
    def first_token_s(self) -> float | None:
        """When it got its first token; None before."""
        return self._of.first_token_s if self._of.started else None

    @property
    def served_s(self) -> float:
        """Seconds in which its prompt was computed or it decoded, so far; those in which it was held up left out."""
        request, instance = self._of, self._of.instance
        served_s = sum([request.budget_s[phase] for phase in (PREFILL, DECODE, RECOMPUTE)], 0.0)
        if not self.running:
            return served_s
        elapsed_s = self._views.clock.now_s - request.since_s
        stalled_s = 0.0
        if instance is not None and request.phase == DECODE:
            stalled_s = min(elapsed_s, instance.stalled_s - request.stalled_mark_s)
        return served_s + elapsed_s - stalled_s

    @property
    def deadline_s(self) -> float | None:
        """Seconds after its arrival by which its client needs the whole answer."""
        return None if isnan(self._of.deadline_s) else self._of.deadline_s

    @property
    def service_class(self) -> str:
        return self._views.cluster.service_classes[self._of.service_class].name

    @property
    def weight(self) -> float:
        """The weight of its service class times that of its model."""
        return self._views.cluster.service_classes[self._of.service_class].weight * self._of.model.spec.weight

    @property
    def instance(self) -> InstanceView | None:
        return None if self._of.instance is None else self._views.instance(self._of.instance)

    @property
    def produced_tokens(self) -> int:
        request, instance = self._of, self._of.instance
        if instance is None or request.index not in instance.decoding:
            return request.produced
        return instance.tokens_of(request) + instance.ahead(self._views.clock.now_s)

    @property
    def context_tokens(self) -> int:
        return self._of.prompt_tokens + self.produced_tokens

    @property
    def running(self) -> bool:
        """Is it in a batch, computing its prompt or decoding?"""
        return self._of.phase in (PREFILL, DECODE, RECOMPUTE)

    @property
    def expected_output_tokens(self) -> float:
        """The predictor's estimate of its whole output."""
        return self._views.estimates.output_tokens(self._of)

    @property
    def expected_remaining_tokens(self) -> float:
        return self._views.estimates.remaining_tokens(self._of, self.produced_tokens)

    @property
    def saved_on(self) -> NodeView | None:
        """The node whose host memory holds its saved KV."""
        return None if self._of.kv_node is None else self._views.node(self._of.kv_node)
