"""What a trace asks of a scenario's cluster, by the profile tables: GPUs' worth of work, and the share of all GPUs.

Only arithmetic on tables: no queueing, no switching, no partial residency, so it is the least that any policy needs.
Called for `trace describe --scenario`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.common.errors import ConfigError, did_you_mean
from sim.core.state.instance import Model
from sim.core.state.machines import Gpu
from sim.core.state.memory_fit import need
from sim.engine.build_cluster import build_cluster
from sim.profiles.library import Library
from sim.profiles.profile import Curve, Profile
from sim.scenario.scenario import Scenario, load_scenario
from sim.traces.trace import Trace


@dataclass
class _Work:
    """One model on one kind of GPU at full residency: GPU-seconds so far, of prompts and, by batch size, of answers."""

    profile: Profile
    batches: tuple[int, ...]
    pool_tokens: int  # KV tokens beside the whole model on that GPU
    prefill_s: float
    decode_s: NDArray[np.float64]  # [batch]


class OfferedLoad:
    """The load of a trace on a scenario's cluster.

    The work of a request for a model on a kind of GPU is what the tables say of the model with all its layers there:
    prefill_s(prompt) + output * step_s(B, prompt + output / 2) / B GPU-seconds. B is the largest batch (a power of two,
    or engine.max_sequences) whose sequences of the model's mean length fit the KV memory that is left beside the
    weights. Work / span is the number of GPUs of that kind that the model keeps busy. `of_cluster` is the smallest
    share of time that the busiest kind of GPU must work when every model's requests are divided over the kinds as well
    as can be (a linear program), with nothing lost to loading, preempting, queueing or uneven arrivals. Above 1 no
    policy keeps up with all layers on GPUs. Requests longer than the model's max_context are impossible in a run and
    are counted, not added; so are those for models that fit no GPU whole.

    Raises ConfigError: a model that the scenario does not have; whatever build_cluster refuses.
    """

    def __init__(self, scenario: Scenario, where: str) -> None:
        self._scenario, self._where = scenario, where
        cluster = build_cluster(scenario, Library(Path(scenario.profiles) if scenario.profiles else None))
        self._kinds: dict[tuple[str, str], list[Gpu]] = {}
        for gpu in cluster.gpus:
            self._kinds.setdefault(gpu.kinds, []).append(gpu)
        self._models = {model.name: model for model in cluster.models}
        self._work: dict[str, dict[tuple[str, str], _Work]] = {}
        self._sums: dict[str, NDArray[np.int64]] = {}  # requests, prompt tokens, output tokens, impossible requests
        for model in cluster.models:
            each = {kind: self._one(model, gpus[0]) for kind, gpus in self._kinds.items()}
            self._work[model.name] = {kind: work for kind, work in each.items() if work is not None}
            self._sums[model.name] = np.zeros(4, dtype=np.int64)

    def _one(self, model: Model, gpu: Gpu) -> _Work | None:
        options, layers = self._scenario.engine, model.weights.layers
        room = gpu.capacity_bytes - need(model, model.residency(layers), 0, options).gpu
        token_bytes = model.weights.kv_bytes_per_token_layer * layers
        pool = room // token_bytes if token_bytes else 10**12
        if pool < 1:
            return None
        profile = model.profiles[gpu.kinds]
        most = options.max_sequences
        batches = tuple(sorted({most, *(1 << power for power in range(most.bit_length()) if 1 << power <= most)}))
        return _Work(profile, batches, int(pool), 0.0, np.zeros(len(batches)))

    def add(self, chunk: Trace) -> None:
        """The next chunk of the stream."""
        for code in np.unique(chunk.model).tolist():
            name = chunk.models[code]
            if name not in self._models:
                hint = did_you_mean(name, self._models)
                raise ConfigError(
                    f"{self._where}: model '{name}' is not in scenario '{self._scenario.name}'; {hint} "
                    "(trace compose --assign gives a trace other models)"
                )
            rows = chunk.model == code
            prompts, outputs = chunk.prompt_tokens[rows], chunk.output_tokens[rows]
            fits = prompts + outputs <= self._models[name].max_context
            prompts, outputs = prompts[fits], outputs[fits]
            self._sums[name] += (len(prompts), int(prompts.sum()), int(outputs.sum()), int((~fits).sum()))
            for work in self._work[name].values():
                layers = work.profile.weights.layers
                work.prefill_s += float(_along(work.profile.prefill_curve(layers), prompts).sum())
                for number, batch in enumerate(work.batches):
                    step_s = _along(work.profile.decode_curve(layers, batch), prompts + outputs / 2)
                    work.decode_s[number] += float((outputs * step_s).sum()) / batch

    def facts(self, span_s: float) -> dict[str, Any]:
        """scenario, gpus {kind: count}, of_cluster, left_out (requests) and models.

        Of each model: requests, impossible, prompt_tokens_per_s and output_tokens_per_s as offered, and on {kind:
        {batch, prefill_tokens_per_s and decode_tokens_per_s of one GPU, gpus: how many it keeps busy}}. None where
        there is no span or no request.
        """
        models = {name: self._model_facts(name, span_s) for name in self._models}
        used = {name: row["on"] for name, row in models.items() if row["on"]}
        whole = {name: {kind: each["gpus"] for kind, each in on.items()} for name, on in used.items()}
        left_out = sum(row["impossible"] + (0 if name in whole else row["requests"]) for name, row in models.items())
        counts = {_label(kind): len(gpus) for kind, gpus in self._kinds.items()}
        share = _least_share(whole, counts) if span_s > 0 else None
        name = self._scenario.name
        return {"scenario": name, "gpus": counts, "of_cluster": share, "left_out": left_out, "models": models}

    def _model_facts(self, name: str, span_s: float) -> dict[str, Any]:
        requests, prompt, output, impossible = self._sums[name].tolist()
        on = {}
        for kind, work in self._work[name].items():
            if not requests:
                continue
            length = prompt / requests + output / requests / 2
            fitting = [number for number, batch in enumerate(work.batches) if batch * length <= work.pool_tokens]
            number = fitting[-1] if fitting else 0
            decode_s = float(work.decode_s[number])
            on[_label(kind)] = {
                "batch": work.batches[number],
                "prefill_tokens_per_s": prompt / work.prefill_s,
                "decode_tokens_per_s": output / decode_s,
                "gpus": (work.prefill_s + decode_s) / span_s if span_s > 0 else None,
            }
        timed = span_s > 0
        return {
            "requests": requests,
            "impossible": impossible,
            "prompt_tokens_per_s": prompt / span_s if timed else None,
            "output_tokens_per_s": output / span_s if timed else None,
            "on": on,
        }


def _label(kind: tuple[str, str]) -> str:
    return f"{kind[0]} in {kind[1]}"


def _along(curve: Curve, values: NDArray[Any]) -> NDArray[np.float64]:
    seconds = np.array(curve.gpu_s) + np.array(curve.host_s)
    found: NDArray[np.float64] = np.interp(values, np.array(curve.knots), seconds)
    return found


def _least_share(loads: dict[str, dict[str, float]], counts: dict[str, int]) -> float:
    """The least u such that shares x[model, kind] >= 0, summing to 1 for each model, keep every kind within u.

    Variables are the x in order, then u: minimise u subject to sum over models of x * load <= u * count, for each kind.
    """
    from scipy.optimize import linprog  # noqa: PLC0415

    pairs = [(name, kind) for name, row in loads.items() for kind in row]
    if not pairs:
        return 0.0
    within = [
        [*(loads[name][kind] if own == kind else 0.0 for name, own in pairs), -count] for kind, count in counts.items()
    ]
    divided = [[*(float(name == model) for name, _ in pairs), 0.0] for model in loads]
    cost = [*[0.0] * len(pairs), 1.0]
    solved = linprog(cost, within, np.zeros(len(counts)), divided, np.ones(len(loads)))
    assert solved.success and solved.x is not None, solved.message  # noqa: PT018
    return float(solved.x[-1])


def load_on(scenario: Path, settings: Sequence[str], where: str) -> OfferedLoad:
    """An account of what a trace asks of the cluster of a scenario file. Raises SimError."""
    return OfferedLoad(load_scenario(scenario, settings), where)
