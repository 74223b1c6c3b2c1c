"""llama-batched-bench of llama.cpp: `--output-format jsonl`.

A record is `pl` sequences of `pp` prompt tokens that then generate `tg` tokens each. It names no model, no hardware and
no build: those come from the command line. Prompts of several sequences are computed in one go, which is no prefill of
one prompt; they are left out.
"""

from __future__ import annotations

from sim.profiling.imports.record import ALL_LAYERS, BadRecord, Record, Timing, Trial, Unused

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
    layers = record.whole("n_gpu_layers", least=None)
    layers = ALL_LAYERS if layers < 0 else layers
    found: list[Trial | Unused] = []
    if generated:
        seconds = _seconds(record, "t_tg", "speed_tg", sequences * generated)
        found.append(
            Trial(
                where=record.where,
                decode=True,
                timing=Timing(seconds / generated),
                gpu_layers=layers,
                head_first=None,
                batch=sequences,
                context=prompt + generated / 2,
                settings={name: record.text(name) for name in _ALWAYS if record.has(name)},
                single=True,
            )
        )
    if prompt and (sequences == 1 or shared):
        seconds = _seconds(record, "t_pp", "speed_pp", prompt)
        found.append(
            Trial(
                where=record.where,
                decode=False,
                timing=Timing(seconds),
                gpu_layers=layers,
                head_first=None,
                prompt_tokens=prompt,
                settings={name: record.text(name) for name in _ALWAYS + _FOR_PROMPTS if record.has(name)},
                single=True,
            )
        )
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
