"""llama-batched-bench of llama.cpp: `--output-format jsonl`.

A record is `pl` sequences of `pp` prompt tokens that then generate `tg` tokens each. It names no model, no hardware and
no build: those come from the command line. Prompts of several sequences are computed in one go, which is no prefill of
one prompt; they are left out.
"""

from __future__ import annotations

from typing import Any

from sim.profiling.imports.record import BadRecord, Record, Timing, Trial, Unused

UNDERSTOOD = "llama-batched-bench --output-format jsonl, builds b3300 (2024) to b10400 (2026)"
_ALWAYS = ("n_threads", "flash_attn")
_FOR_PROMPTS = ("n_batch", "n_ubatch", "n_threads_batch")
_AGREE = 1.1  # times have six decimals, speeds too


def trials(record: Record) -> list[Trial | Unused]:
    """Raises BadRecord: incomplete, or times that are not what the speeds say."""
    prompt, generated, sequences = record.whole("pp"), record.whole("tg"), record.whole("pl", least=1)
    shared = record.flag("is_pp_shared")
    if not prompt and not generated:
        raise BadRecord("incomplete: pp and tg are both 0, so nothing was timed")
    common: dict[str, Any] = {"where": record.where, "head_first": None, "single": True}
    common["gpu_layers"] = record.layers("n_gpu_layers")
    found: list[Trial | Unused] = []
    if generated:
        timing = Timing(_seconds(record, "t_tg", "speed_tg", sequences * generated) / generated)
        settings = record.texts(_ALWAYS)
        context = prompt + generated / 2
        found.append(Trial(**common, decode=True, timing=timing, batch=sequences, context=context, settings=settings))
    if prompt and (sequences == 1 or shared):
        timing = Timing(_seconds(record, "t_pp", "speed_pp", prompt))
        settings = record.texts(_ALWAYS + _FOR_PROMPTS)
        found.append(Trial(**common, decode=False, timing=timing, prompt_tokens=prompt, settings=settings))
    elif prompt:
        found.append(Unused("the prompts of several sequences in one time: tables know single prompts"))
    return found


def _seconds(record: Record, time: str, speed: str, tokens: int) -> float:
    seconds = record.number(time, above=0)
    if record.has(speed):
        says = tokens / record.number(speed, above=0)
        if not 1 / _AGREE < says / seconds < _AGREE:
            raise BadRecord(f"{time} is {seconds:.4g} s, but {speed} means {says:.4g} s; one of them is wrong")
    return seconds
