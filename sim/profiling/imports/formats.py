"""The formats that `profile import` reads: their names, their engines, and the function that reads a record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sim.common.errors import ProfileError, did_you_mean
from sim.profiling.imports import llama_batched_bench as batched
from sim.profiling.imports import llama_bench, ollama, vllm_bench
from sim.profiling.imports.record import Record, Trial, Unused


@dataclass(frozen=True)
class RecordFormat:
    """`trials` raises BadRecord. `offload`: how layers outside the GPU ran."""

    name: str
    engine: str
    offload: str
    csv_too: bool
    understood: str
    trials: Callable[[Record], list[Trial | Unused]]


_FORMATS = (
    RecordFormat("llama-bench", "llama.cpp", "cpu", True, llama_bench.UNDERSTOOD, llama_bench.trials),
    RecordFormat("llama-batched-bench", "llama.cpp", "cpu", False, batched.UNDERSTOOD, batched.trials),
    RecordFormat("ollama", "ollama", "cpu", False, ollama.UNDERSTOOD, ollama.trials),
    RecordFormat("vllm-bench", "vllm", "stream", False, vllm_bench.UNDERSTOOD, vllm_bench.trials),
)
FORMATS = {each.name: each for each in _FORMATS}


def format_named(name: str | None) -> RecordFormat:
    """Raises ProfileError for an unknown format."""
    if name is None:
        raise ProfileError(f"--format is missing: say which tool wrote the files: {', '.join(FORMATS)}")
    if name not in FORMATS:
        raise ProfileError(f"--format {name}: unknown; {did_you_mean(name, FORMATS)}")
    return FORMATS[name]
