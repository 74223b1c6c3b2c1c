"""Pure: what faults did to a run, for its summary and for people; nothing where the scenario has no faults.

summary.py puts it among its numbers, tables.py prints it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sim.core.state.machines import Gpu
from sim.core.state.request import FAILED

if TYPE_CHECKING:
    from sim.engine.engine import Outcome


def faults_summary(outcome: Outcome) -> dict[str, Any]:
    """{"faults": ...}, or nothing. availability: the share of GPU time that was up. requests: of the whole run. lost:
    KV tokens that were lost with a GPU or a node; the seconds of GPU work thrown away, by part: `recompute_s` is what
    the tables say these tokens take to compute again, each sequence alone where it was; output tokens of requests that
    were given up."""
    record = outcome.recorder.faults
    if record is None:
        return {}
    gpus = outcome.cluster.gpus
    parts = {"recompute_s": record.recompute_s, "unfinished_steps_s": record.step_s, "loads_s": record.load_s}
    return {
        "faults": {
            "events": dict(record.events),
            "availability": 1.0 - sum(_down_share(gpu, outcome.end_s) for gpu in gpus) / len(gpus),
            "down_gpu_s": sum(gpu.activity_s["down"] for gpu in gpus),
            "requests": {
                "retried": record.retried,
                "retries": record.retries,
                "failed": outcome.recorder.ended[FAILED],
                "cancelled": record.cancelled,
            },
            "lost": {
                "kv_tokens": record.kv_tokens,
                "gpu_s": sum(parts.values()),
                **parts,
                "output_tokens": record.wasted_tokens,
            },
        }
    }


def _down_share(gpu: Gpu, end_s: float) -> float:
    return gpu.activity_s["down"] / end_s if end_s else 0.0


def gpu_faults(gpu: Gpu, end_s: float) -> dict[str, float]:
    """down_fraction and availability of one GPU, or nothing."""
    if "down" not in gpu.activity_s:
        return {}
    return {"down_fraction": _down_share(gpu, end_s), "availability": 1.0 - _down_share(gpu, end_s)}
