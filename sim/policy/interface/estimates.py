"""Estimates of output length, all that a policy may know of it (model.md section 3).

`running-mean`: the mean of a model's finished requests; `oracle`: the truth; `noisy-oracle`: the truth times a
log-normal error, drawn once a request from its own stream. The engine tells it who arrived and who finished; views ask.
"""

from __future__ import annotations

import numpy as np

from sim.common.rng import stream
from sim.core.state.request import COMPLETED, Request
from sim.scenario.scenario import PredictorOptions

# What is left of a sequence that already outgrew its estimate, as a share of that estimate: it may end at any time.
OVERTIME_SHARE = 0.25


class Estimates:
    """Expected output tokens of requests and models."""

    def __init__(self, options: PredictorOptions, seed: int, models: int) -> None:
        self._options = options
        self._errors = stream(seed, "predictor")
        self._guesses: dict[int, float] = {}
        self._sums = [0.0] * models
        self._counts = [0] * models

    def arrived(self, request: Request) -> None:
        """Draw this request's error; called once a request in order of arrival."""
        if self._options.kind == "noisy-oracle":
            error = float(np.exp(self._errors.normal(0.0, self._options.sigma)))
            self._guesses[request.index] = max(1.0, request.output_tokens * error)

    def ended(self, request: Request) -> None:
        """Learn from a completed request; the length of one that did not complete was never seen."""
        self._guesses.pop(request.index, None)
        if request.outcome == COMPLETED:
            self._sums[request.model.index] += request.output_tokens
            self._counts[request.model.index] += 1

    def model_tokens(self, model: int) -> float:
        """Mean output tokens of a model's finished requests; the prior before the first."""
        if not self._counts[model]:
            return self._options.prior_tokens
        return self._sums[model] / self._counts[model]

    def output_tokens(self, request: Request) -> float:
        """Expected output tokens of this request, those already produced included."""
        if self._options.kind == "oracle":
            return float(request.output_tokens)
        guess = self._guesses.get(request.index)
        return self.model_tokens(request.model.index) if guess is None else guess

    def remaining_tokens(self, request: Request, produced: int) -> float:
        """Expected tokens still to come; at least one."""
        expected = self.output_tokens(request)
        return max(1.0, expected - produced, OVERTIME_SHARE * expected if produced >= expected else 0.0)
