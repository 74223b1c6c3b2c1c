"""The engine that leaps against the reference that steps, on random placements, tables, arrivals and options.

Every number of every request agrees to 1e-9 relative. REFERENCE_EXAMPLES=10000 draws that many new scenarios; without
it the same 500 are played each time. Scenarios with two instants closer than 1 ns are left out: which comes first there
is a matter of rounding.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from math import inf, isclose, isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, note, settings

from sim.engine.build_cluster import build_cluster
from sim.engine.engine import Engine
from sim.policy import Action, Load, Policy, Route, View
from sim.profiles.library import Library
from tests.support.reference.cases import Case, Table, cases, scenario_of, trace_of, write_profiles
from tests.support.reference.engine import PHASES, Job, ReferenceEngine, Site
from tests.support.reference.links import Machine

EXAMPLES = int(os.environ.get("REFERENCE_EXAMPLES", "0"))
NEAR_TIE_S = 1e-9
BUDGET_ROWS = [(1, 1), (1, 1), (1, 1), (1, 1), (1, 4), (1, 7), (1, 6), (4, 1), (1, 13)]


class Fixed(Policy):
    """Loads a placement at time 0 and routes requests in turn to the instances of their model."""

    def __init__(self, placement: list[tuple[int, int, int, int]]) -> None:
        super().__init__()
        self.placement = placement

    def start(self, view: View) -> Iterator[Action]:
        for model, gpu, layers, kv_tokens in self.placement:
            yield Load(view.models[model], view.gpus[gpu], layers, kv_tokens)

    def decide(self, view: View) -> Iterator[Action]:
        for request in list(view.waiting):
            instances = request.model.instances
            yield Route(request, instances[request.number % len(instances)])


def run_real(case: Case) -> Engine:
    """The engine under test; it asserts its laws at every instant."""
    scenario = scenario_of(case)
    cluster = build_cluster(scenario, Library(case.folder))
    engine = Engine(scenario, iter([trace_of(case)]), cluster, Fixed(case.placement), check=True)
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
    jobs = [job for job in reference.jobs if job.arrival_s < reference.now_s]
    found = [] if len(rows["request"]) == len(jobs) else [f"{len(rows['request'])} rows, not {len(jobs)}"]
    pairs: list[tuple[str, float, float]] = []
    for position, job in enumerate(jobs[: len(rows["request"])]):
        for name, expected in expected_row(job, reference.now_s).items():
            pairs.append((f"request {job.index} {name}", float(rows[name][position]), expected))
    gaps_s = np.concatenate([np.diff(job.token_times_s) for job in jobs] or [np.zeros(0)])
    latencies = recorder.latencies
    latencies.settle()
    tokens = [len(job.token_times_s) for job in jobs]
    outside = [job.site.layers < job.site.profile.weights.layers for job in jobs]
    pairs += [
        ("ITL count", latencies.tokens, len(gaps_s)),
        ("ITL counted", int(latencies.counts.sum()), len(gaps_s)),
        ("ITL mean", latencies.total_s / max(1, latencies.tokens), float(gaps_s.sum()) / max(1, len(gaps_s))),
        ("ITL max", latencies.max_s, float(gaps_s.max(initial=0.0))),
        ("output tokens", recorder.output_tokens, sum(tokens)),
        ("tokens outside", recorder.tokens_below_full_residency, sum(np.compress(outside, tokens))),
        ("preemptions", recorder.counts["sequence_preemptions"], sum(job.preemptions for job in jobs)),
        ("end of the run", real.clock.now_s, reference.now_s),
    ]
    pairs += [(f"bytes of {cause}", recorder.bytes_by_cause[cause], n) for cause, n in reference.links.moved.items()]
    for gpu, activity_s in zip(real.world.cluster.gpus, reference.activity_s, strict=True):
        pairs += [(f"{gpu.name} {name}", gpu.activity_s[name], seconds) for name, seconds in activity_s.items()]
    found += [f"{name}: {real!r}, not {expected!r}" for name, real, expected in pairs if not agree(real, expected)]
    return found


@settings(
    max_examples=EXAMPLES or 500,
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


# --- by hand


def hand_made(tokens: int, pool: int, engine: dict[str, Any], requests: list[tuple[float, int, int, int, int]]) -> Case:
    """One model of one layer, which is outside the GPU (`pool` KV tokens there), up to `tokens` of context."""
    table = Table(
        layers=1,
        layer_knots=[0, 1],
        batch_knots=[1, 4],
        context_knots=[0, tokens],
        prompt_knots=[0, tokens],
        decode={
            (k, batch, context): (0.0051 if k else 0.0102) * (1 + 0.1 * batch) + context * batch * 1e-5
            for k in (0, 1)
            for batch in (1, 4)
            for context in (0, tokens)
        },
        prefill={(k, prompt): (0.0041 if k else 0.0051) + prompt * 0.0023 for k in (0, 1) for prompt in (0, tokens)},
        layer_bytes=1,
        kv_bytes=182691,
        switch=[0.0, 0.0, 13.4, 6.1, 19.2],
        offload="cpu",
    )
    options = {"prefill": "first", "watermark": 0.0, "block_tokens": 1, **engine}
    sharing = {"contention": "proportional", "links": "fair"}
    return Case(
        [1], [50.0, 16.7, 12.4, 16.6, 12.4], [table], [(0, 0, 0, pool)], requests, options, sharing, None, tokens
    )


def compare(case: Case, folder: Path) -> tuple[Engine, ReferenceEngine]:
    case.folder = folder
    write_profiles(folder, case)
    reference, real = run_reference(case), run_real(case)
    assert differences(real, reference) == []
    return real, reference


@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("prefill", ["first", "chunked"])
def test_a_swap_takes_no_more_sequences_than_it_must(prefill: str, layers: int, tmp_path: Path) -> None:
    """Blocks of a sequence whose KV is on its way out are already spoken for: three run, one leaves."""
    engine = {"max_sequences": 3, "prefill_tokens": 40, "sequence_preemption": "swap", "prefill": prefill}
    case = hand_made(30, 40, engine, [(0.01 * i, 0, 10 + i, 5 + i, 0) for i in range(1, 4)])
    case.placement = [(0, 0, layers, 40)]
    real, reference = compare(case, tmp_path)
    assert [job.preemptions for job in reference.jobs] == [0, 0, 1]
    assert real.world.recorder.bytes_by_cause["kv_save"] == layers * 182691 * 14


def test_nobody_enters_at_a_boundary_that_preempts(tmp_path: Path) -> None:
    """The urgent request 3 pushes 0 out; 4, which would fit in its place, enters one iteration later."""
    engine = {"max_sequences": 2, "prefill_tokens": 3, "sequence_order": "priority"}
    rows = [
        (0.0041, 0, 2, 4, 1),
        (0.0057, 0, 1, 1, 0),
        (0.0081, 0, 1, 1, 0),
        (0.0084, 0, 1, 3, 0),
        (0.0097, 0, 1, 1, 0),
    ]
    _, reference = compare(hand_made(6, 6, engine, rows), tmp_path)
    pushed_out, urgent, next_one = reference.jobs[0], reference.jobs[3], reference.jobs[4]
    assert pushed_out.preemptions == 1
    assert urgent.seconds["stalled"] > 0, "it decodes once, then stands by while the next one's prompt runs"
    assert next_one.token_times_s[0] > urgent.token_times_s[1]


def test_a_restore_without_bytes_does_not_renew_the_prompt_budget(tmp_path: Path) -> None:
    """No layer is on the GPU: a restored sequence is there at once, and the boundary at which it came is still on."""
    engine = {"max_sequences": 3, "prefill_tokens": 4, "sequence_preemption": "swap"}
    rows = [(0.004 + 0.0013 * i, 0, prompt, output, 0) for i, (prompt, output) in enumerate(BUDGET_ROWS)]
    _, reference = compare(hand_made(14, 14, engine, rows), tmp_path)
    assert sum(job.preemptions for job in reference.jobs) == 2


def test_leaping_makes_an_event_a_change_not_a_token(tmp_path: Path) -> None:
    """80,000 tokens in 18 events: 2 of the load; 4 arrivals, prompts and ends each; before each but the first prompt
    the boundary that lets it in, 3; and one timer that an earlier end overtook (the other two serve later ends)."""
    engine = {"max_sequences": 4, "prefill_tokens": 1000, "block_tokens": 16}
    rows = [(0.5 + 1.37 * i, 0, 100 + 10 * i, 20_000, 0) for i in range(4)]
    real, reference = compare(hand_made(20_130, 90_000, engine, rows), tmp_path)
    assert sum(len(job.token_times_s) for job in reference.jobs) == real.world.recorder.output_tokens == 80_000
    assert real.clock.events == 18
