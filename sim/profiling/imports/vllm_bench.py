"""vLLM: the JSON of `vllm bench serve --save-result` and of the older benchmark_serving.py.

Only a closed loop says how many sequences ran together: `max_concurrency` must be set. The median gap between tokens is
a decode iteration; the time to the first token is a prefill when requests came one by one. `vllm bench latency` and
`throughput` give prefill and decode in one number: a mixed record.
"""

from __future__ import annotations

from typing import Any

from sim.profiling.imports.record import ALL_LAYERS, BadRecord, Record, Timing, Trial, Unused

UNDERSTOOD = "vllm bench serve --save-result and benchmark_serving.py, vLLM 0.5 to 0.17"
_SETTINGS = ("backend", "endpoint_type", "tokenizer_id", "label")
_FEWEST = 3  # rounds of all sequences: with fewer the batch is rarely full
_FULL = 0.75  # of max_concurrency, on average


def trials(record: Record) -> list[Trial | Unused]:
    """Raises BadRecord: latency or throughput results, an open loop, too short a run, failed requests, speculation."""
    _refuse_mixed(record)
    completed = record.whole("completed", least=1)
    if record.has("num_prompts") and record.whole("num_prompts") != completed:
        raise BadRecord(f"incomplete: {completed} of {record.whole('num_prompts')} requests completed")
    if not record.has("max_concurrency"):
        raise BadRecord(
            "max_concurrency is not set, so nobody knows how many sequences ran together; "
            "run with --max-concurrency 1, 2, 4, ..."
        )
    if any(name.startswith("spec_decode") for name in record.fields):
        raise BadRecord("speculative decoding: a gap between tokens is then no decode iteration")
    sequences = record.whole("max_concurrency", least=1)
    if completed < _FEWEST * sequences and sequences > 1:
        raise BadRecord(f"too short: {completed} requests for {sequences} at a time; at least {_FEWEST} rounds")
    prompt = record.number("total_input_tokens", above=0) / completed
    generated = record.number("total_output_tokens", above=0) / completed
    batch = _batch(record, sequences)
    spread = record.first_of("median_itl_ms", "median_tpot_ms")
    date = record.text("date", "")
    known: dict[str, Any] = {
        "where": record.where,
        "model_file": record.text("model_id"),
        "date": f"{date[:4]}-{date[4:6]}-{date[6:8]}" if date else "",
        "gpu_layers": ALL_LAYERS,
        "settings": record.texts(_SETTINGS),
        "single": True,
    }
    timing = Timing(record.number(spread, above=0) / 1e3)
    found: list[Trial | Unused] = [
        Trial(**known, decode=True, timing=timing, batch=batch, context=prompt + generated / 2)
    ]
    if sequences == 1:
        first = Timing(record.number("median_ttft_ms", above=0) / 1e3)
        found.append(Trial(**known, decode=False, timing=first, prompt_tokens=round(prompt)))
    else:
        found.append(Unused("times to the first token of several requests at once: they wait for each other"))
    return found


def _refuse_mixed(record: Record) -> None:
    if record.has("avg_latency") and record.has("latencies"):
        raise BadRecord(
            "mixed: vllm bench latency times prefill and decode together; use `vllm bench serve --max-concurrency 1`"
        )
    if record.has("tokens_per_second") and record.has("elapsed_time"):
        raise BadRecord(
            "mixed: vllm bench throughput adds prefill and decode; use `vllm bench serve --max-concurrency N`"
        )


def _batch(record: Record, sequences: int) -> int:
    """How many sequences decoded together: those in decode, by Little's law, which the limit bounds."""
    if sequences == 1:
        return 1
    rate = record.number("total_output_tokens", above=0) / record.number("duration", above=0)
    together = rate * record.number("mean_tpot_ms", above=0) / 1e3
    if together < _FULL * sequences:
        raise BadRecord(
            f"on average {together:.1f} of {sequences} sequences decoded; the rest waited or prefilled, "
            "so the batch is not known: lengthen outputs or use more requests"
        )
    return min(sequences, max(1, round(together)))
