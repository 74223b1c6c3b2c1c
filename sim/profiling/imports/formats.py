"""The formats that `profile import` reads: their names, their engines, and the function that reads a record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sim.common.errors import ProfileError, did_you_mean
from sim.profiling.imports.llama_batched_bench import UNDERSTOOD as BATCHED
from sim.profiling.imports.llama_batched_bench import trials as batched_trials
from sim.profiling.imports.llama_bench import UNDERSTOOD as BENCH
from sim.profiling.imports.llama_bench import trials as bench_trials
from sim.profiling.imports.ollama import UNDERSTOOD as OLLAMA
from sim.profiling.imports.ollama import trials as ollama_trials
from sim.profiling.imports.record import Record, Trial, Unused
from sim.profiling.imports.vllm_bench import UNDERSTOOD as VLLM
from sim.profiling.imports.vllm_bench import trials as vllm_trials


@dataclass(frozen=True)
class RecordFormat:
    """`trials` raises BadRecord. `offload`: how layers outside the GPU ran."""

    name: str
    engine: str
    offload: str
    csv_too: bool
    understood: str
    trials: Callable[[Record], list[Trial | Unused]]


FORMATS = {
    each.name: each
    for each in (
        RecordFormat("llama-bench", "llama.cpp", "cpu", True, BENCH, bench_trials),
        RecordFormat("llama-batched-bench", "llama.cpp", "cpu", False, BATCHED, batched_trials),
        RecordFormat("ollama", "ollama", "cpu", False, OLLAMA, ollama_trials),
        RecordFormat("vllm-bench", "vllm", "stream", False, VLLM, vllm_trials),
    )
}


def format_named(name: str | None) -> RecordFormat:
    """Raises ProfileError for an unknown format."""
    if name is None:
        raise ProfileError(f"--format is missing: say which tool wrote the files: {', '.join(FORMATS)}")
    if name not in FORMATS:
        raise ProfileError(f"--format {name}: unknown; {did_you_mean(name, FORMATS)}")
    return FORMATS[name]
