"""The engine that leaps against the reference that steps, on random placements, tables, arrivals and options.

Every number of every request agrees to 1e-9 relative. REFERENCE_EXAMPLES=10000 draws that many new scenarios; without
it the same 300 are played each time. Scenarios with two instants closer than 1 ns are left out: which comes first there
is a matter of rounding.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from math import inf, isclose, isnan, nan
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, assume, given, note, settings
from reference_cases import Case, cases, scenario_of, trace_of, write_profiles
from reference_engine import PHASES, Job, ReferenceEngine, Site
from reference_links import Machine

from sim.build import build_cluster
from sim.engine import Engine
from sim.library import Library
from sim.policy import Action, Load, Policy, Route, View

EXAMPLES = int(os.environ.get("REFERENCE_EXAMPLES", "0"))
NEAR_TIE_S = 1e-9


class Fixed(Policy):
    """Loads a placement at time 0 and routes requests in turn to the instances of their model."""

    def __init__(self, placement: list[tuple[int, int, int, int]]) -> None:
        super().__init__()
        self.placement = placement

    def start(self, view: View) -> Iterator[Action]:
        for model, gpu, layers, kv_tokens in self.placement:
            yield Load(view.models[model], view.gpus[gpu], layers, kv_tokens)

    def decide(self, view: View) -> Iterator[Action]:
        for request in view.waiting:
            instances = request.model.instances
            yield Route(request, instances[request.number % len(instances)])


def run_real(case: Case) -> Engine:
    """The engine under test; it asserts its laws at every instant."""
    scenario = scenario_of(case)
    cluster = build_cluster(scenario, Library(case.folder))
    engine = Engine(scenario, trace_of(case), cluster, Fixed(case.placement), check=True)
    engine.run()
    return engine


def run_reference(case: Case) -> ReferenceEngine:
    scenario, library = scenario_of(case), Library(case.folder)
    gpus = [(node, library.gpu("g")) for node, count in enumerate(case.nodes) for _ in range(count)]
    reference = ReferenceEngine(Machine(gpus, [library.host("h")] * len(case.nodes)), scenario.engine, scenario.sharing)
    homes: dict[int, list[Site]] = {}
    for model, gpu, layers, kv_tokens in case.placement:
        profile = library.profile(f"m{model}", "FP16", "g", "h", f"e{model}")
        site = Site(gpus[gpu][0], gpu, layers, -(-kv_tokens // scenario.engine.block_tokens), profile)
        homes.setdefault(model, []).append(site)
        reference.sites.append(site)
    for index, (arrival_s, model, prompt, output, priority) in enumerate(case.requests):
        if case.horizon_s is None or arrival_s < case.horizon_s:
            site = homes[model][index % len(homes[model])]
            reference.jobs.append(Job(index, site, arrival_s, prompt, output, priority))
    reference.run(inf if case.horizon_s is None else case.horizon_s)
    return reference


# --- comparing


def expected_row(job: Job, now_s: float) -> dict[str, float]:
    produced = len(job.token_times_s)
    return {
        "produced_tokens": produced,
        "outcome": 0 if job.completed else 5,
        "arrival_s": job.arrival_s,
        "first_token_s": job.token_times_s[0] if produced else nan,
        "end_s": job.end_s if job.completed else now_s,
        **{f"{phase}_s": job.seconds[phase] for phase in PHASES},
        "mean_residency": job.site.layers / job.site.profile.weights.layers if produced else nan,
        "sequence_preemptions": job.preemptions,
        "model_preemptions": 0,
        "cold": int(job.cold),
    }


def agree(real: float, expected: float) -> bool:
    return (isnan(real) and isnan(expected)) or isclose(real, expected, rel_tol=1e-9, abs_tol=1e-9)


def differences(real: Engine, reference: ReferenceEngine) -> list[str]:
    """What the two engines saw differently, one line each."""
    recorder = real.world.recorder
    rows = {name: np.array(values) for name, values in recorder.columns.items()}
    rows = {name: values[np.argsort(rows["request"])] for name, values in rows.items()}
    found = [] if len(rows["request"]) == len(reference.jobs) else [f"{len(rows['request'])} rows"]
    pairs: list[tuple[str, float, float]] = []
    for position, job in enumerate(reference.jobs):
        for name, expected in expected_row(job, reference.now_s).items():
            pairs.append((f"request {job.index} {name}", float(rows[name][position]), expected))
    gaps_s = np.concatenate([np.diff(job.token_times_s) for job in reference.jobs] or [np.zeros(0)])
    latencies = recorder.latencies
    latencies.settle()
    tokens = [len(job.token_times_s) for job in reference.jobs]
    outside = [job.site.layers < job.site.profile.weights.layers for job in reference.jobs]
    pairs += [
        ("ITL count", latencies.tokens, len(gaps_s)),
        ("ITL counted", int(latencies.counts.sum()), len(gaps_s)),
        ("ITL mean", latencies.total_s / max(1, latencies.tokens), float(gaps_s.sum()) / max(1, len(gaps_s))),
        ("ITL max", latencies.max_s, float(gaps_s.max(initial=0.0))),
        ("output tokens", recorder.output_tokens, sum(tokens)),
        ("tokens outside", recorder.tokens_below_full_residency, sum(np.compress(outside, tokens))),
        ("preemptions", recorder.counts["sequence_preemptions"], sum(job.preemptions for job in reference.jobs)),
        ("end of the run", real.clock.now_s, reference.now_s),
    ]
    pairs += [(f"bytes of {cause}", recorder.bytes_by_cause[cause], n) for cause, n in reference.links.moved.items()]
    for gpu, activity_s in zip(real.world.cluster.gpus, reference.activity_s, strict=True):
        pairs += [(f"{gpu.name} {name}", gpu.activity_s[name], seconds) for name, seconds in activity_s.items()]
    found += [f"{name}: {real!r}, not {expected!r}" for name, real, expected in pairs if not agree(real, expected)]
    return found


@settings(
    max_examples=EXAMPLES or 300,
    derandomize=not EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(cases())
def test_the_engine_agrees_with_stepping(case: Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        case.folder = Path(folder)
        write_profiles(case.folder, case)
        reference = run_reference(case)
        assume(reference.closest_s > NEAR_TIE_S)
        real = run_real(case)
        found = differences(real, reference)
        note("\n".join(found))
        assert not found
