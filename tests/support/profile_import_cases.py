"""Bad input for `profile import`: how to write it, the options to read it with, and the line that it must give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import profile_records
from tests.support.profile_records import batched_bench, llama_bench, ollama, vllm_serve

BENCH = "understood: llama-bench of llama.cpp, builds b1300 (2023) to b10400 (2026)"
SKIP = "; --skip-bad leaves such records out"
GOOD = llama_bench(50.0, 99)
PLACE = ("--gpu", "rtx-4090", "--host", "i5-13600k")
TWO_GPUS = "NVIDIA GeForce RTX 4090, NVIDIA RTX A6000"
STRANGE = {"model_filename": "m.gguf", "model_type": "ernie 4B Q4_K - Medium", "model_n_params": 4 * 10**9}
STILL = ("--layers (transformer layers, without the head)", "--layer-bytes (weight bytes of one layer)")


def text(content: str | bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def records(*items: Any) -> Callable[[Path], Path]:
    return lambda path: profile_records.write_json(path, list(items))


def lines(*items: Any) -> Callable[[Path], Path]:
    return lambda path: profile_records.write_jsonl(path, items)


def one(item: Any) -> Callable[[Path], Path]:
    return lambda path: profile_records.write_json(path, item)


def cut(writer: Callable[[Path], Path], characters: int) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        whole = writer(path).read_text()
        path.write_text(whole[:-characters])
        return path

    return write


def bad(**changes: Any) -> Callable[[Path], Path]:
    """A good record, then one that is changed."""
    return records(GOOD, llama_bench(50.0, 99) | {k: v for k, v in changes.items() if v is not ...})


def without(*names: str) -> Callable[[Path], Path]:
    return records(GOOD, llama_bench(50.0, 99, **dict.fromkeys(names, ...)))


LLAMA_BENCH: dict[str, tuple[Callable[[Path], Path], tuple[str, ...], str]] = {
    "mixed": (
        records(GOOD, llama_bench(50.0, 99, prompt=512)),
        (),
        "F, record 2: mixed test: 512 prompt and 128 generated tokens in one time; use -p or -n alone" + SKIP,
    ),
    "nothing timed": (
        bad(n_gen=0),
        (),
        "F, record 2: incomplete: n_prompt and n_gen are both 0, so nothing was timed" + SKIP,
    ),
    "renamed field": (
        records(GOOD, llama_bench(50.0, 99, n_gpu_layers=..., n_gpu_layer=99)),
        (),
        f"F, record 2: field 'n_gpu_layers' is missing (did you mean 'n_gpu_layer'?); {BENCH}{SKIP}",
    ),
    "no time": (
        without("avg_ts", "avg_ns"),
        (),
        f"F, record 2: field 'avg_ts' is missing (did you mean 'stddev_ts'?); {BENCH}{SKIP}",
    ),
    "an empty field": (
        bad(n_gen=""),
        (),
        f"F, record 2: field 'n_gen' is missing (it is empty); {BENCH}{SKIP}",
    ),
    "not a number": (bad(avg_ts="fast"), (), "F, record 2: field 'avg_ts' is 'fast', not a number" + SKIP),
    "zero speed": (bad(avg_ts=0), (), "F, record 2: field 'avg_ts' is '0', not above 0" + SKIP),
    "a negative count": (
        bad(n_gen=-128),
        (),
        "F, record 2: field 'n_gen' is '-128', not a whole number at least 0" + SKIP,
    ),
    "half a layer": (
        bad(n_gpu_layers=3.5),
        (),
        "F, record 2: field 'n_gpu_layers' is '3.5', not a whole number" + SKIP,
    ),
    "a truth": (
        bad(no_kv_offload="maybe"),
        (),
        "F, record 2: field 'no_kv_offload' is 'maybe', neither true nor false" + SKIP,
    ),
    "an object for a text": (
        bad(gpu_info={"name": "x"}),
        (),
        f"F, record 2: field 'gpu_info' is a list or an object, not a text; {BENCH}{SKIP}",
    ),
    "time and speed disagree": (
        bad(avg_ts=500.0),
        (),
        "F, record 2: avg_ts says 500 tokens/s, but avg_ns 50; one of them is wrong" + SKIP,
    ),
    "samples of another test": (
        bad(samples_ns=[10**9] * 3),
        (),
        "F, record 2: samples_ns has a mean of 1 s, but the record says 2.56 s; it was edited" + SKIP,
    ),
    "samples that are no list": (
        bad(samples_ns=5),
        (),
        "F, record 2: field 'samples_ns' is '5', not a list of numbers" + SKIP,
    ),
    "two GPUs": (
        bad(gpu_info=TWO_GPUS),
        (),
        f"F, record 2: ran on 2 GPUs ({TWO_GPUS}); a table is of one: use -sm none or -dev" + SKIP,
    ),
    "tensors by hand": (
        bad(tensor_buft_overrides="ffn=CPU"),
        (),
        "F, record 2: tensor_buft_overrides places single tensors by hand; layers are then not what ngl says" + SKIP,
    ),
    "experts on the host": (
        bad(n_cpu_moe=4),
        (),
        "F, record 2: n_cpu_moe keeps experts on the host; layers are then not what ngl says" + SKIP,
    ),
    "KV on the host": (
        bad(no_kv_offload=1),
        (),
        "F, record 2: no_kv_offload keeps the KV cache on the host; here it lives with its layer" + SKIP,
    ),
    "a cut list": (
        cut(records(GOOD), 30),
        (),
        "F, record 1: is not whole JSON (expecting value); the file may be cut off there" + SKIP,
    ),
    "a list without its end": (
        cut(records(GOOD, GOOD), 3),
        (),
        "F, after record 2: neither another record nor the end; the file may be cut off there" + SKIP,
    ),
    "a cut line": (
        cut(lines(GOOD, GOOD), 30),
        (),
        "F, line 2: is not a whole JSON object (unterminated string starting at); the file may be cut off there" + SKIP,
    ),
    "a cut row": (
        cut(lambda path: profile_records.write_csv(path, [GOOD, GOOD]), 20),
        (),
        "F, row 3: has 30 of 32 columns; the file may be cut off there" + SKIP,
    ),
    "a short row": (
        text("n_prompt,n_gen,avg_ts\n0,128\n"),
        (),
        "F, row 2: has 2 of 3 columns; the file may be cut off there" + SKIP,
    ),
    "a column twice": (text("n_gen,n_gen\n1,1\n"), (), "F: column 'n_gen' is there twice; drop one"),
    "a field twice": (
        text('[{"n_gen": 1, "n_gen": 2}]'),
        (),
        "F, record 1: is not whole JSON (field 'n_gen' twice); the file may be cut off there" + SKIP,
    ),
    "NaN": (
        text('{"avg_ts": NaN}\n'),
        (),
        "F, line 1: is not a whole JSON object (nan is not a number); the file may be cut off there" + SKIP,
    ),
    "Markdown": (
        text("| model | size |\n"),
        (),
        "F: a Markdown table has too few fields; run the tool again with its JSON output",
    ),
    "SQL": (
        text("CREATE TABLE IF NOT EXISTS test (\n"),
        (),
        "F: SQL is not read; run the tool again with -o jsonl, json or csv",
    ),
    "empty": (text(""), (), "F: is empty; did the benchmark fail, or print elsewhere?"),
    "no records": (text("[]"), (), "F: holds no records; did the benchmark finish?"),
    "a log": (
        text("error: failed to load model\n"),
        (),
        "F: starts with 'error: failed to load model', which is not JSON, JSON lines or CSV; check --format and the "
        "file",
    ),
    "UTF-16": (
        text('[{"n_gen": 1}]'.encode("utf-16")),
        (),
        "F: not UTF-8 text; save it as UTF-8 (a PowerShell redirection writes UTF-16)",
    ),
    "numbers for records": (text("[1, 2]"), (), "F, record 1: is int, not an object of fields" + SKIP),
    "another tool's file": (
        one(vllm_serve(1)),
        (),
        f"F, record 1: field 'n_prompt' is missing (did you mean 'num_prompts'?); {BENCH}{SKIP}",
    ),
    "settings differ": (
        records(GOOD, llama_bench(20.0, 9, n_threads=16)),
        (),
        "Llama-3-8B Q4_K_M on rtx-4090 in i5-13600k, decode: records differ in settings: n_threads is 8 in 1, 16 in 1; "
        "choose with --where n_threads=8, or take all as they are with --any n_threads",
    ),
    "twice and different": (
        records(GOOD, llama_bench(60.0, 99)),
        (),
        "F, record 1: step_s is 0.02, but 0.0166667 for the same point in F, record 2, more than 5% apart; keep one, "
        "or measure again",
    ),
    "no such setting": (
        records(GOOD),
        ("--where", "n_thread=8"),
        "--where n_thread: no record has this field; did you mean 'n_threads'?",
    ),
    "no such value": (
        records(GOOD),
        ("--where", "n_threads=9"),
        "--where: no record is left; in the records n_threads is 8",
    ),
    "half a choice": (
        records(GOOD),
        ("--where", "n_threads"),
        "--where n_threads: write NAME=VALUE, with a field of the records",
    ),
    "an unknown model": (
        records(GOOD | STRANGE),
        (),
        "F, record 1: names 'm.gguf', which is not known; give --model NAME, and --layers L",
    ),
    "an unknown model with a name": (
        records(GOOD | STRANGE),
        ("--model", "Ernie", "--head-bytes", "9", "--kv-bytes", "9", "--max-context", "9"),
        "F, record 1: Ernie Q4_K_M is not in profiles/models.csv and its record does not say enough; "
        f"give {', '.join(STILL)}",
    ),
    "a model that is known otherwise": (
        records(GOOD),
        ("--layers", "31"),
        "--layers 31: Llama-3-8B Q4_K_M has 32 in profiles/models.csv; drop the option, or name the model otherwise",
    ),
    "two models under one name": (
        records(GOOD, GOOD | {"model_filename": "other.gguf"}),
        ("--model", "Llama-3-8B"),
        "--model: the records are of 2 models (Meta-Llama-3-8B-Instruct.Q4_K_M.gguf, other.gguf); choose with --where",
    ),
    "two cards under one name": (
        records(GOOD, GOOD | {"gpu_info": "NVIDIA RTX A6000"}),
        ("--gpu", "rtx-4090"),
        "--gpu: the records are of several (NVIDIA GeForce RTX 4090, NVIDIA RTX A6000); choose with --where "
        "gpu_info=...",
    ),
    "no quantization": (
        records(GOOD | {"model_type": "llama 8B", "model_filename": "x.gguf"}),
        (),
        "F, record 1: names no quantization; give it: --quantization Q4_K_M, FP16, ...",
    ),
    "the CPU alone": (
        records(GOOD | {"gpu_info": ""}),
        (),
        "F, record 1: names no GPU (it ran on the CPU alone, which counts as 0 layers on it); give its name in "
        "profiles: --gpu rtx-4090",
    ),
    "no processor": (
        records(GOOD | {"cpu_info": ""}),
        (),
        "F, record 1: names no processor; give the host's name in profiles: --host i7-8700",
    ),
    "a slug that is a path": (
        records(GOOD),
        ("--gpu", "../x"),
        "--gpu is '../x'; write a short name of letters, digits, '-', '.', '_' and no '--'",
    ),
    "an unknown kind": (records(GOOD), ("--kind", "guessed"), "--kind guessed: write measured or published"),
    "an unknown order": (
        records(GOOD),
        ("--head", "middle"),
        "--head middle: write first or last: when the output head goes to the GPU",
    ),
    "only bad records": (
        records(llama_bench(9.0, 99, prompt=1)),
        ("--skip-bad",),
        "F: nothing is left to import; the first record left out: F, record 1: mixed test: 1 prompt and 128 generated "
        "tokens in one time; use -p or -n alone",
    ),
    "only what tables do not know": (
        records(llama_bench(900.0, 99, prompt=512, generated=0, n_depth=512)),
        (),
        "F: nothing to import: prefill on top of a context (n_depth above 0): tables know whole prompts only",
    ),
}

OTHERS: dict[str, tuple[str, Callable[[Path], Path], tuple[str, ...], str]] = {
    "batched: no place": (
        "llama-batched-bench",
        lines(batched_bench(1)),
        ("--model", "Llama-3-8B"),
        "F, record 1: names no GPU; give its name in profiles: --gpu rtx-4090",
    ),
    "batched: no model": (
        "llama-batched-bench",
        lines(batched_bench(1)),
        PLACE,
        "F, record 1: names no model, which is not known; give --model NAME, and --layers L",
    ),
    "batched: a time that is not its speed": (
        "llama-batched-bench",
        lines(batched_bench(1) | {"t_tg": 9.0}),
        PLACE,
        "F, record 1: t_tg is 9 s, but speed_tg means 1.408 s; one of them is wrong" + SKIP,
    ),
    "ollama: layers unknown": (
        "ollama",
        lines(ollama(None)),
        PLACE,
        "F, record 1: does not say how many layers were on the GPU; give --gpu-layers N (-1: all)",
    ),
    "ollama: cached prompt": (
        "ollama",
        one({key: value for key, value in ollama(9).items() if key != "prompt_eval_count"}),
        PLACE,
        "F, record 1: incomplete: prompt_eval_count is missing (the prompt was cached), so its context is not known"
        + SKIP,
    ),
    "ollama: too few tokens": (
        "ollama",
        one(ollama(9, generated=3)),
        PLACE,
        "F, record 1: incomplete: only 3 generated tokens; a time per token needs at least 8" + SKIP,
    ),
    "ollama: an error": (
        "ollama",
        one({"error": "model 'x' not found"}),
        PLACE,
        "F, record 1: an error in place of an answer: model 'x' not found" + SKIP,
    ),
    "ollama: disturbed": (
        "ollama",
        lines(ollama(9, step_s=0.1), ollama(9, step_s=0.3)),
        PLACE,
        "F, line 2: took 0.3 s, but 0.1 s in F, line 1, for the same point; one was cached or disturbed: leave that "
        "record out",
    ),
    "vllm: latency": (
        "vllm-bench",
        one({"avg_latency": 2.0, "latencies": [2.0], "percentiles": {"50": 2.0}}),
        PLACE,
        "F, record 1: mixed: vllm bench latency times prefill and decode together; use `vllm bench serve "
        "--max-concurrency 1`" + SKIP,
    ),
    "vllm: throughput": (
        "vllm-bench",
        one({"elapsed_time": 2.0, "num_requests": 9, "total_num_tokens": 99, "tokens_per_second": 49.5}),
        PLACE,
        "F, record 1: mixed: vllm bench throughput adds prefill and decode; use `vllm bench serve --max-concurrency "
        "N`" + SKIP,
    ),
    "vllm: an open loop": (
        "vllm-bench",
        one(vllm_serve(None)),
        PLACE,
        "F, record 1: max_concurrency is not set, so nobody knows how many sequences ran together; run with "
        "--max-concurrency 1, 2, 4, ..." + SKIP,
    ),
    "vllm: failures": (
        "vllm-bench",
        one(vllm_serve(4, completed=100)),
        PLACE,
        "F, record 1: incomplete: 100 of 160 requests completed" + SKIP,
    ),
    "vllm: half empty": (
        "vllm-bench",
        one(vllm_serve(4) | {"mean_tpot_ms": 5.0}),
        PLACE,
        "F, record 1: on average 1.9 of 4 sequences decoded; the rest waited or prefilled, so the batch is not known: "
        "lengthen outputs or use more requests" + SKIP,
    ),
    "vllm: speculation": (
        "vllm-bench",
        one(vllm_serve(1, spec_decode_acceptance_rate=70.0)),
        PLACE,
        "F, record 1: speculative decoding: a gap between tokens is then no decode iteration" + SKIP,
    ),
    "an unknown format": (
        "llamabench",
        records(GOOD),
        (),
        "--format llamabench: unknown; did you mean 'llama-bench'?",
    ),
}
CASES = {name: ("llama-bench", *case) for name, case in LLAMA_BENCH.items()} | OTHERS
