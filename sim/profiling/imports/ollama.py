"""Ollama: the final JSON of /api/generate and /api/chat, kept one a line, in a list, or alone.

Layers on the GPU are the option `num_gpu` of the request: a log that keeps it beside the answer (`options`, or
`request` and `response` of each) needs nothing else. Times are nanoseconds. Loads are left out: `load_duration` does
not say whether anything was loaded, or from where.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sim.profiling.imports.record import BadRecord, Record, Timing, Trial, Unused

UNDERSTOOD = "answers of Ollama's /api/generate and /api/chat, 0.1 to 0.21"
_SETTINGS = ("num_thread", "num_batch", "use_mmap", "low_vram", "main_gpu", "f16_kv")
_FEWEST = 8  # generated tokens: the time of fewer is mostly overhead


def trials(record: Record) -> list[Trial | Unused]:
    """Raises BadRecord: an error or an unfinished answer, without counts or times, or with too few tokens."""
    record, options = _parts(record)
    if record.has("error"):
        raise BadRecord(f"an error in place of an answer: {record.text('error')[:80]}")
    if record.fields.get("done") is False:
        return []  # a piece of a streamed answer; the last one has the times
    generated = record.whole("eval_count")
    prompt = record.whole("prompt_eval_count", 0)
    if not record.has("prompt_eval_count"):
        raise BadRecord("incomplete: prompt_eval_count is missing (the prompt was cached), so its context is not known")
    if generated < _FEWEST:
        raise BadRecord(f"incomplete: only {generated} generated tokens; a time per token needs at least {_FEWEST}")
    common: dict[str, Any] = {
        "where": record.where,
        "model_file": record.text("model"),
        "gpu_layers": options.layers("num_gpu") if options.has("num_gpu") else None,
        "head_first": None,  # it depends on the llama.cpp inside, which no answer names
        "settings": options.texts(_SETTINGS),
        "date": record.text("created_at", "")[:10],
        "single": True,
    }
    step_s = record.number("eval_duration", above=0) / 1e9 / generated
    found: list[Trial | Unused] = [Trial(decode=True, timing=Timing(step_s), context=prompt + generated / 2, **common)]
    if prompt and record.has("prompt_eval_duration"):
        seconds = record.number("prompt_eval_duration", above=0) / 1e9
        found.append(Trial(decode=False, timing=Timing(seconds), prompt_tokens=prompt, **common))
    return found


def _parts(record: Record) -> tuple[Record, Record]:
    """The answer, and the options of its request."""
    fields: dict[str, Any] = dict(record.fields)
    request = fields.get("request")
    if isinstance(fields.get("response"), Mapping):
        answer: dict[str, Any] = dict(fields["response"])
        fields = {key: value for key, value in fields.items() if key != "response"} | answer
    given = fields.get("options")
    if not isinstance(given, Mapping) and isinstance(request, Mapping):
        given = request.get("options")
    options: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {}
    if "num_gpu" not in options and "num_gpu" in fields:
        options["num_gpu"] = fields["num_gpu"]
    understood = record.understood
    return Record(record.where, fields, understood), Record(record.where, options, understood)
