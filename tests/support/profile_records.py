"""Records as benchmark programs write them, from numbers: for the tests of imports and of filling."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sim.profiling.architectures import by_name, named
from tests.support.places import SHARED

PUBLISHED = SHARED / "profiles" / "published_residency.csv"
GPU, CPU = "NVIDIA GeForce RTX 4090", "13th Gen Intel(R) Core(TM) i5-13600K"
_TYPES = {"Q4_K_M": "Q4_K - Medium", "Q5_K_M": "Q5_K - Medium", "Q3_K_M": "Q3_K - Medium", "FP16": "F16"}
_BITS = {"Q4_K_M": 4.9, "Q5_K_M": 5.7, "Q3_K_M": 3.9, "Q4_0": 4.6, "Q8_0": 8.5, "FP16": 16.0}


def llama_bench(
    tokens_per_s: float, layers: int, prompt: int = 0, generated: int = 128, **changes: Any
) -> dict[str, Any]:
    """A record of a current llama-bench, of Llama-3-8B Q4_K_M unless `changes` says otherwise."""
    tokens = prompt + generated
    seconds = tokens / tokens_per_s
    record = {
        "build_commit": "0c1e570",
        "build_number": 6000,
        "cpu_info": CPU,
        "gpu_info": GPU,
        "backends": "CUDA",
        "model_filename": "models/Meta-Llama-3-8B-Instruct.Q4_K_M.gguf",
        "model_type": "llama 8B Q4_K - Medium",
        "model_size": 4912898048,
        "model_n_params": 8030261248,
        "n_batch": 2048,
        "n_ubatch": 512,
        "n_threads": 8,
        "type_k": "f16",
        "type_v": "f16",
        "n_gpu_layers": layers,
        "split_mode": "layer",
        "main_gpu": 0,
        "no_kv_offload": False,
        "flash_attn": False,
        "devices": "auto",
        "tensor_split": "0.00",
        "tensor_buft_overrides": "none",
        "use_mmap": True,
        "embeddings": False,
        "n_prompt": prompt,
        "n_gen": generated,
        "n_depth": 0,
        "test_time": "2025-07-01T12:00:00Z",
        "avg_ns": round(seconds * 1e9),
        "stddev_ns": 1000,
        "avg_ts": tokens_per_s,
        "stddev_ts": 0.1,
        "samples_ns": [round(seconds * 1e9 * share) for share in (0.99, 1.0, 1.01)],
        "samples_ts": [tokens_per_s] * 3,
    }
    return {key: value for key, value in (record | changes).items() if value is not ...}


def ollama(layers: int | None, prompt: int = 100, generated: int = 100, step_s: float = 0.02) -> dict[str, Any]:
    """A final answer of /api/generate with the options of its request."""
    record: dict[str, Any] = {
        "model": "llama3:8b-instruct-q4_K_M",
        "created_at": "2025-07-01T12:00:00.5Z",
        "response": "",
        "done": True,
        "total_duration": 3_000_000_000,
        "load_duration": 20_000_000,
        "prompt_eval_count": prompt,
        "prompt_eval_duration": prompt * 1_000_000,
        "eval_count": generated,
        "eval_duration": round(generated * step_s * 1e9),
    }
    return record if layers is None else record | {"options": {"num_gpu": layers}}


def batched_bench(sequences: int, prompt: int = 128, generated: int = 128, layers: int = 99) -> dict[str, Any]:
    """A line of llama-batched-bench --output-format jsonl."""
    t_pp, t_tg = sequences * prompt / 4000, generated * 0.01 * (1 + sequences / 10)
    return {
        "n_kv_max": 8192, "n_batch": 2048, "n_ubatch": 512, "flash_attn": 0, "is_pp_shared": 0,
        "n_gpu_layers": layers, "n_threads": 8, "n_threads_batch": 8, "pp": prompt, "tg": generated,
        "pl": sequences, "n_kv": sequences * (prompt + generated), "t_pp": t_pp,
        "speed_pp": sequences * prompt / t_pp, "t_tg": t_tg, "speed_tg": sequences * generated / t_tg,
        "t": t_pp + t_tg, "speed": 1.0,
    }  # fmt: skip


def vllm_serve(sequences: int | None, step_ms: float = 10.0, **changes: Any) -> dict[str, Any]:
    """What `vllm bench serve --save-result` keeps."""
    requests, prompt, generated = 40 * (sequences or 1), 512, 256
    together = sequences or 1
    seconds = requests / together * generated * step_ms / 1e3 * 1.05
    record = {
        "date": "20250701-120000", "endpoint_type": "openai", "backend": "vllm", "label": None,
        "model_id": "meta-llama/Meta-Llama-3-8B-Instruct", "tokenizer_id": "meta-llama/Meta-Llama-3-8B-Instruct",
        "num_prompts": requests, "request_rate": "inf", "burstiness": 1.0, "max_concurrency": sequences,
        "duration": seconds, "completed": requests, "total_input_tokens": requests * prompt,
        "total_output_tokens": requests * generated, "request_throughput": requests / seconds,
        "output_throughput": requests * generated / seconds, "mean_ttft_ms": 41.0, "median_ttft_ms": 40.0,
        "p99_ttft_ms": 50.0, "mean_tpot_ms": step_ms, "median_tpot_ms": step_ms, "p99_tpot_ms": step_ms,
        "mean_itl_ms": step_ms, "median_itl_ms": step_ms, "p99_itl_ms": step_ms,
    }  # fmt: skip
    return {key: value for key, value in (record | changes).items() if value is not ...}


def write_json(path: Path, records: Any) -> Path:
    path.write_text(json.dumps(records, indent=2) + "\n", encoding="utf-8")
    return path


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def write_csv(path: Path, records: Iterable[Mapping[str, Any]]) -> Path:
    """As llama-bench writes CSV: every value quoted, truths as 1 and 0, no samples."""
    rows = [{k: v for k, v in record.items() if not k.startswith("samples")} for record in records]
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(",".join(rows[0]) + "\n")
        writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows([[int(v) if isinstance(v, bool) else v for v in row.values()] for row in rows])
    return path


def published_records(source: str, model: str, build_number: int, **changes: Any) -> list[dict[str, Any]]:
    """The decode rows of a published sweep as llama-bench would have written them."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == source and row["model"] == model]
    records = []
    for row in rows:
        name = by_name(row["model"].replace("-Coder", ""), [row["model"].replace("-Coder", "")])
        shape = named(name or "")
        if row["metric"] != "decode" or not row["gen_tokens"] or row["quant"] not in _TYPES or shape is None:
            continue
        records.append(
            llama_bench(
                float(row["tok_s"]),
                99 if row["gpu_layers"] == "all" else int(row["gpu_layers"]),
                generated=int(row["gen_tokens"]),
                gpu_info=row["gpu"],
                cpu_info=row["cpu"],
                build_number=build_number,
                model_filename=f"{row['model']}-{row['quant']}.gguf",
                model_type=f"{shape.family} 0B {_TYPES[row['quant']]}",
                model_n_params=shape.parameters,
                model_size=round(shape.parameters * _BITS[row["quant"]] / 8),
                test_time="2026-10-01T00:00:00Z",
                **changes,
            )
        )
    return records
