"""After all is measured: what was found in a few lines, tables of it, and a scenario that uses them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import yaml
from rich.table import Table

from sim.common.data_files import data_folder
from sim.common.errors import SimError
from sim.hardware.measure.contention import LAWS, closest_law
from sim.hardware.measure.measurement_folder import MeasurementFolder
from sim.hardware.measure.measurement_run import MeasurementRun, short
from sim.hardware.measure.model_measurements import QUANTIZATIONS
from sim.profiling.fill import Filled, fill
from sim.profiling.measured import write_text
from sim.profiling.points import ContentionPoint, DecodePoint, ModelRow, PrefillPoint

_OUTPUT = 100  # tokens of a usual answer
_BUSY = 0.4  # share of the time that the scenario's requests would keep the device busy, were they served one by one


def report(session: MeasurementRun) -> None:
    """What was found, in a few lines."""
    quantization = QUANTIZATIONS[session.dtype]
    table = Table(
        "model", "on device", "ms a token", "with none there", "streamed", title="batch 1", title_justify="left"
    )
    for name, shape in session.shapes.items():
        steps = {
            (row.offload, row.layers): row.step_s
            for row in sorted(session.store.rows[DecodePoint], key=lambda r: -r.context)
            if (row.model, row.quantization, row.batch) == (name, quantization, 1)
        }
        whole = (session.options.offload[0], session.most[name])
        cells = [steps.get(key) for key in (whole, ("cpu", 0), ("stream", 0))]
        words = [f"{1e3 * cell:.1f}" if cell else "" for cell in cells]
        table.add_row(name, f"{session.most[name]}/{shape.layers}", *words)
    session.console.print(table)
    found = closest_law(session.store.rows[ContentionPoint])
    if found:
        session.say(
            f"two instances at a time: `contention: {found['closer']}` is closest (mean error "
            + ", ".join(f"{found[f'{law}_error']:.0%} {law}" for law in LAWS)
            + ")"
        )


def filled(session: MeasurementRun, into: Path) -> bool:
    """Make tables of the measurements; False when they cannot be made, and it was said why.

    Tables of an earlier run on the same machine give way to the new ones.
    """
    store = session.store
    stem = f"{store.facts['gpu']}--{store.facts['host']}--torch"
    old = [into / "tables" / name for name in (stem, f"{stem}-stream")]
    aside = [path.with_name(f".{path.name}.before") for path in old]
    for path, kept in zip(old, aside, strict=True):
        shutil.rmtree(kept, ignore_errors=True)
        if path.exists():
            path.rename(kept)
    try:
        made: Filled = fill([store.folder], into)
    except SimError as error:
        session.say(f"no tables were filled: {error}; the same command measures what is missing or contradicts itself")
        for path, kept in zip(old, aside, strict=True):
            if kept.exists() and not path.exists():
                kept.rename(path)
        return False
    for kept in aside:
        shutil.rmtree(kept, ignore_errors=True)
    for table in made.tables:
        rows = ", ".join(f"{number} {kind}" for kind, number in table.rows.items())
        miss = "" if table.decode_error is None else f", steps left out are predicted within {table.decode_error:.1%}"
        session.say(f"filled {short(table.folder)}: {rows} rows from {table.points} points{miss}")
    for notice in made.notices:
        session.say(notice)
    return True


def scenario(store: MeasurementFolder, into: Path) -> Path:
    """Write scenario.yaml beside the measurements: the measured models on the measured machine."""
    models: Sequence[ModelRow] = store.rows[ModelRow]
    offload = store.facts["offload"]
    longest = int(max(row.context for row in store.rows[DecodePoint]))
    prompts = [row.prompt_tokens for row in store.rows[PrefillPoint]] or [longest // 2]
    limit = max(64, longest)
    seconds = [_request_s(store, row) for row in models]
    prompt = max(8, min(limit // 3, sorted(prompts)[len(prompts) // 2]))
    output = max(4, min(limit // 3, _OUTPUT))
    rate = _BUSY / mean(seconds)
    content = {
        "name": "measured",
        "seed": 1,
        "cluster": {
            "nodes": [{"name": "here", "host": store.facts["host"], "gpus": [{"gpu": store.facts["gpu"]}]}],
            "gpu_reserve_gib": 0.5 if store.facts["device"] == "cuda" else 0,
        },
        "models": [
            {
                "name": row.model.lower(),
                "model": row.model,
                "quantization": row.quantization,
                "engine": "torch" if "cpu" in offload else "torch-stream",
                "max_context": min(limit, row.max_context),
            }
            for row in models
        ],
        "engine": {"max_sequences": 8},
        "workload": {
            "duration_s": round(300 / rate),
            "streams": [
                {
                    "name": "people",
                    "models": [row.model.lower() for row in models],
                    "popularity": {"law": "zipf", "exponent": 1.0},
                    "arrivals": {"process": "poisson", "rate_per_s": float(f"{rate:.3g}")},
                    "prompt": {"median": prompt, "sigma": 0.6, "max": limit // 2},
                    "output": {"median": output, "sigma": 0.6, "max": limit // 2},
                }
            ],
        },
        "policy": "residency-aware",
    }
    if into.resolve() != data_folder("profiles").resolve():
        content["profiles"] = str(into.resolve())
    head = (
        "# The machine that was measured serves the models that were measured. With engine `torch` the CPU computes\n"
        "# layers outside the GPU; with `torch-stream` their weights cross the link, and the CPU computes nothing.\n"
    )
    path = store.folder / "scenario.yaml"
    write_text(path, head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120))
    return path


def _request_s(store: MeasurementFolder, model: ModelRow) -> float:
    """About how long one request takes alone, with as many layers on the device as were measured."""
    key = (model.model, model.quantization)
    steps = [row for row in store.rows[DecodePoint] if (row.model, row.quantization, row.batch) == (*key, 1)]
    prompts = [row for row in store.rows[PrefillPoint] if (row.model, row.quantization) == key]
    most = max(row.layers for row in steps)
    step_s: float = mean(row.step_s for row in steps if row.layers == most)
    prompt_s = [row.prefill_s for row in prompts if row.layers == max(each.layers for each in prompts)]
    return _OUTPUT * step_s + (mean(prompt_s) if prompt_s else 0.0)
