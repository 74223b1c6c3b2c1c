"""llama-bench of llama.cpp: `-o json`, `-o jsonl` and `-o csv`, of builds from 2023 on.

A test with only prompt tokens is a prefill, one with only generated tokens a decode at batch 1. Its mean context is the
depth plus half of what was generated. What a record cannot say: the layer count, and whether GPU memory ran over.
"""

from __future__ import annotations

import re

from sim.profiling.heads import HEAD_FIRST_BUILD
from sim.profiling.imports.record import BadRecord, Record, Timing, Trial, Unused, timing_of

UNDERSTOOD = "llama-bench of llama.cpp, builds b1300 (2023) to b10400 (2026)"
# HEAD_FIRST_BUILD's change is of 2025-12-17. b7394 is of 2025-12-14 and b7571 of 2025-12-29; which build of the days
# between was the first is not recorded.
_HEAD_LAST_UNTIL, _CHANGED = 7400, "2025-12-17"
_FORKS_BELOW = 1000  # a build number from a shallow clone, or of a fork, says nothing
# What a test's time depends on besides its point; names of older builds too.
_ALWAYS = (
    "backends", "n_threads", "cpu_mask", "cpu_strict", "poll", "type_k", "type_v", "flash_attn", "load_mode",
    "use_mmap", "no_host", "repack", "lazy_mode", "mul_mat_q", "f16_kv", "low_vram", "build_commit",
)  # fmt: skip
_PLAIN = {"True": "1", "true": "1", "False": "0", "false": "0"}  # JSON and CSV write them apart
_FOR_PROMPTS = ("n_batch", "n_ubatch", "no_op_offload")
_AGREE = 1.5  # avg_ts and avg_ns of one record: means of speeds and of times, which differ, but not by so much


def trials(record: Record) -> list[Trial | Unused]:
    """Raises BadRecord: mixed, incomplete, on several GPUs, or with parts of layers placed by hand."""
    prompt, generated = record.whole("n_prompt"), record.whole("n_gen")
    depth = record.whole("n_depth", 0)
    if prompt and generated:
        raise BadRecord(f"mixed test: {prompt} prompt and {generated} generated tokens in one time; use -p or -n alone")
    if not prompt and not generated:
        raise BadRecord("incomplete: n_prompt and n_gen are both 0, so nothing was timed")
    _refuse_placements(record)
    timing = _timing(record, prompt + generated)
    if prompt and depth:
        return [Unused("prefill on top of a context (n_depth above 0): tables know whole prompts only")]
    gpu = _gpu(record)
    names = _ALWAYS + (_FOR_PROMPTS if prompt else ())
    return [
        Trial(
            where=record.where,
            decode=not prompt,
            timing=timing if prompt else timing.per(generated),
            model_file=re.split(r"[/\\]", record.text("model_filename", ""))[-1],
            model_type=record.text(record.first_of("model_type", "model_filename")),
            model_size=record.whole("model_size", 0) or None,
            model_parameters=record.whole("model_n_params", 0) or None,
            gpu_name=gpu or "",
            cpu_name=record.text("cpu_info", "").split(", ")[0],
            gpu_layers=record.layers("n_gpu_layers") if gpu else 0,
            head_first=_head_first(record),
            context=depth + generated / 2,
            prompt_tokens=prompt,
            settings={name: _PLAIN.get(value, value) for name, value in record.texts(names).items()},
            build=record.text("build_number", "") or record.text("build_commit", ""),
            date=record.text("test_time", "")[:10],
        )
    ]


def _timing(record: Record, tokens: int) -> Timing:
    speed = record.number("avg_ts", above=0) if record.has("avg_ts") or not record.has("avg_ns") else 0.0
    if record.has("avg_ns"):
        seconds = record.number("avg_ns", above=0) / 1e9
        if speed and not 1 / _AGREE < seconds * speed / tokens < _AGREE:
            raise BadRecord(
                f"avg_ts says {speed:.4g} tokens/s, but avg_ns {tokens / seconds:.4g}; one of them is wrong"
            )
    else:
        seconds = tokens / speed
    samples = [nanoseconds / 1e9 for nanoseconds in record.numbers("samples_ns")]
    if not samples:
        return Timing(seconds)
    timing = timing_of(samples)
    mean = sum(samples) / len(samples)
    if not 1 / _AGREE < mean / seconds < _AGREE:
        raise BadRecord(f"samples_ns has a mean of {mean:.4g} s, but the record says {seconds:.4g} s; it was edited")
    return timing


def _head_first(record: Record) -> bool | None:
    build = record.whole("build_number", 0)
    if build >= HEAD_FIRST_BUILD:
        return True
    if "" < record.text("test_time", "")[:10] < _CHANGED or _FORKS_BELOW <= build < _HEAD_LAST_UNTIL:
        return False
    return None


def _refuse_placements(record: Record) -> None:
    if record.text("tensor_buft_overrides", "none") != "none":
        raise BadRecord("tensor_buft_overrides places single tensors by hand; layers are then not what ngl says")
    if record.whole("n_cpu_moe", 0):
        raise BadRecord("n_cpu_moe keeps experts on the host; layers are then not what ngl says")
    if record.flag("no_kv_offload"):
        raise BadRecord("no_kv_offload keeps the KV cache on the host; here it lives with its layer")
    if record.whole("fit_target", 0):
        raise BadRecord("fit_target let the tool choose the layers itself; set -ngl instead")


def _gpu(record: Record) -> str | None:
    """The one GPU of the test; None: it ran on the CPU alone."""
    names = [name.strip() for name in record.text("gpu_info", "").split(", ") if name.strip()]
    devices = record.text("devices", "auto")
    if not names or devices == "none":
        return None
    if len(names) == 1:
        return names[0]
    index: int | None = None
    shares = [not re.fullmatch(r"[0.]*", share) for share in record.text("tensor_split", "").split("/")]
    if devices != "auto" and "/" not in devices:
        number = re.search(r"(\d+)$", devices)
        index = int(number[1]) if number else None
    elif record.text("split_mode", "layer") == "none":
        index = record.whole("main_gpu", 0)
    elif sum(shares) == 1:
        index = shares.index(True)
    if index is None or index >= len(names):
        raise BadRecord(f"ran on {len(names)} GPUs ({', '.join(names)}); a table is of one: use -sm none or -dev")
    return names[index]
