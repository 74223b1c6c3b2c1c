"""What a play of a Case reached, counted by name, and all there is to reach, so that unvisited corners are seen.

checks.py counts, tools/fuzz.py adds up and names what was never reached. Nothing here plays or asserts anything.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from sim.conformance.hardware import columns
from sim.core.record.recorder import Recorder
from sim.core.state.request import OUTCOMES
from sim.engine.engine import Engine
from sim.policy import policy_names
from tests.support.fuzzing.random_policy import RandomPolicy
from tests.support.fuzzing.swarm import FEATURES, Case


def reached(case: Case, engine: Engine) -> Counter[str]:
    """Features, outcomes, switches and actions of a run, so that corners nobody was in are seen."""
    recorder = engine.world.recorder
    found: Counter[str] = Counter({f"feature {name}": 1 for name in case.features})
    found += Counter({f"outcome {name}": number for name, number in zip(OUTCOMES, recorder.ended, strict=True)})
    found += Counter({f"count {name}": number for name, number in recorder.counts.items()})
    found += Counter({f"bytes {cause}": 1 for cause, size in recorder.bytes_by_cause.items() if size})
    kinds = {number: kind for kind, number in recorder.switch_texts["kind"].items()}
    store = recorder.switch_columns
    for kind, from_disk in zip(store["kind"].tolist(), store["from_disk"].tolist(), strict=True):
        found[f"switch {kinds[kind]}{' from disk' if from_disk else ''}"] += 1
    if any(links.network.bytes_by_cause["kv_restore"] for links in engine.transfers.links):
        found["KV over the network"] += 1
    if len(engine.world.cluster.gpus) > 4:
        found["more than 4 GPUs"] += 1
    if recorder.faults is not None:
        found += Counter({f"fault {kind}": number for kind, number in recorder.faults.events.items()})
        found += Counter({"fault cancellation": recorder.faults.cancelled, "retries": recorder.faults.retries})
        found["KV lost to a fault"] += bool(recorder.faults.kv_tokens)
    policy = engine.policy
    if isinstance(policy, RandomPolicy):
        found += Counter({f"action {what}": number for what, number in policy.hand.seen.items()})
    found += Counter({f"budget {name[:-2]}": 1 for name in _phases(engine)})
    return found + Counter(tokens=recorder.output_tokens, events=engine.clock.events, requests=recorder.arrived)


def _phases(engine: Engine) -> list[str]:
    rows = columns(engine)
    names = ("load_wait_s", "stalled_s", "preempted_s", "kv_transfer_s", "recompute_s")
    return [name for name in names if (rows[name] > 0).any()]


def _corners() -> Iterator[str]:
    yield from (f"feature {name}" for name in FEATURES)
    yield from (f"outcome {name}" for name in OUTCOMES)
    yield from (f"count {name}" for name in Recorder().counts)
    yield from (f"bytes {cause}" for cause in Recorder().bytes_by_cause)
    for kind in ("load", "load from disk", "wake", "wake from disk", "resize", "free", "kv_save", "kv_restore"):
        yield f"switch {kind}"
    yield from ("switch broken-off load", "switch broken-off load from disk", "KV over the network", "more than 4 GPUs")
    for where in ("whole", "in part", "outside the GPU"):
        yield f"action load {where}"
    for status in ("pending", "starting", "loading", "ready", "asleep"):
        yield from (f"action stop {mode}, {status}" for mode in ("drain", "preempt", "abort"))
        if status != "asleep":
            yield from (f"action route {again}to {status}" for again in ("", "again "))
    yield from (f"action stop {mode}, ready with sequences" for mode in ("drain", "preempt", "abort"))
    for way in ("dropped", "on its node", "from another node"):
        yield f"action route with saved KV, {way}"
    for what in ("none: more", "none: fewer", "elastic: more", "elastic: fewer"):
        yield f"action resize {what}"
    for what in ("fewer", "fewer, weights dropped", "wake"):
        yield f"action resize sleep: {what}"
    yield from ("action resize of a running instance", "action route to a load of the same decision")
    for mode in ("save", "recompute"):
        yield from (f"action preempt {mode}, {when}" for when in ("decoding", "in its prompt"))
    yield from ("action reject somebody", "action reject with saved KV")
    yield from (f"budget {name}" for name in ("load_wait", "stalled", "preempted", "kv_transfer", "recompute"))
    yield from (f"shipped {name}" for name in policy_names())
    yield from ("fault gpu_failure", "fault node_loss", "fault slow_link", "fault load_failure", "fault cancellation")
    yield from ("retries", "KV lost to a fault", "stepped: compared")


CORNERS = tuple(_corners())
