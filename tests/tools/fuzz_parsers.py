"""Feeds spoilt files to the parsers, until time is up: scenarios, traces of every format, profile tables and imports.

Files that are good (those of this project and small ones made here; where the published traces lie beside the checkout,
their beginnings too) are changed in a few places, by value and by byte, or replaced by noise. A parser may take a file
or refuse it with a SimError of one line; anything else (another exception, more than 20 s, more than 3 GB) is a find.
Each find is made as small as hypothesis can make it, printed with its seed, and written into --out.

    python -m tests.tools.fuzz_parsers --minutes 20 --seed 1
    python -m tests.tools.fuzz_parsers --only trace --minutes 2
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import random
import resource
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from sim.common.errors import SimError
from sim.common.time_limit import limited
from tests.support.places import ROOT, SHARED
from tests.tools.spoilt_files import LINES, TABLES, Change, Good, spoilt

LONGEST_S, MOST_BYTES = 20, 3 << 30
PUBLISHED = SHARED / "traces"
_BEGINNING = 3_000  # bytes of a published file


@dataclass
class Target:
    """A parser: the files that it takes, and what to do with one. Raises whatever the parser raises."""

    name: str
    goods: list[Good]
    parse: Callable[[Path], None]
    tried: int = 0
    taken: int = 0
    finds: dict[str, str] = field(default_factory=dict)


# --- the parsers


def scenario_target() -> Target:
    from sim.engine.engine import prepare  # noqa: PLC0415
    from sim.scenario.scenario import load_scenario  # noqa: PLC0415

    def parse(path: Path) -> None:
        scenario = load_scenario(path)
        if scenario.profiles is None:
            prepare(scenario)

    files = sorted((ROOT / "traces").rglob("*.yaml"))
    goods = [Good("scenario.yaml", file.read_bytes()) for file in files if file.parent.name == "scenarios"]
    return Target("scenario", goods, parse)


def trace_target() -> Target:
    from sim.traces.formats import FORMATS, guess_format, import_stream  # noqa: PLC0415

    def parse(path: Path) -> None:
        """Under the format that it looks like, else under one that its bytes choose."""
        drawn = {"rate": 1.0}
        try:
            form = guess_format([path])
        except SimError:
            form = list(FORMATS.values())[len(path.read_bytes()) % len(FORMATS)]
        options = drawn if "rate" in form.options.model_fields else {}
        for chunk in import_stream([path], form.name, options).chunks:
            assert (chunk.prompt_tokens >= 1).all()
            assert (chunk.output_tokens >= 1).all()
            assert (chunk.arrival_s >= 0).all()

    goods = [Good(name, text.encode()) for name, text in TABLES.items()]
    goods += [Good(name, json.dumps(item).encode() + b"\n") for name, item in LINES.items()]
    goods += [Good(f"{good.name}.gz", gzip.compress(good.data)) for good in goods[:3]]
    goods.append(Good("native.parquet", _parquet()))
    for file in sorted(PUBLISHED.glob("*/*.gz")) if PUBLISHED.is_dir() else []:
        with gzip.open(file) as opened:
            data = opened.read(_BEGINNING)
        name = file.name.removesuffix(".gz")
        if not name.endswith(".tar"):
            goods.append(Good(name, data[: data.rfind(b"\n") + 1] or data))
    return Target("trace", goods, parse)


def _parquet() -> bytes:
    import pandas as pd  # noqa: PLC0415

    file = io.BytesIO()
    pd.read_csv(io.StringIO(TABLES["native.csv"])).to_parquet(file, index=False)
    return file.getvalue()


def tables_target(scratch: Path) -> Target:
    """One file of a small folder of profiles is spoilt at a time."""
    from sim.profiles.library import Library  # noqa: PLC0415

    home, table = scratch / "profiles", "rtx-a6000--tr-pro-5995wx--llama.cpp"
    folder = home / "tables" / table
    folder.mkdir(parents=True)
    goods, wanted = [], ("Llama-3-8B", "Q4_K_M")
    for name in ("gpus.csv", "nodes.csv", "models.csv"):
        shutil.copyfile(ROOT / "profiles" / name, home / name)
        goods.append(Good(name, (home / name).read_bytes()))
    for name in ("decode.csv", "prefill.csv", "switch.csv", "table.yaml"):
        text = (ROOT / "profiles" / "tables" / table / name).read_text(encoding="utf-8")
        if name != "table.yaml":
            rows = list(csv.reader(io.StringIO(text)))
            kept = [row for row in rows if tuple(row[:2]) in (wanted, ("model", "quantization"))]
            text = "".join(",".join(row) + "\n" for row in kept)
        (folder / name).write_text(text, encoding="utf-8")
        goods.append(Good(name, text.encode()))

    def parse(path: Path) -> None:
        place = (home if path.name in ("gpus.csv", "nodes.csv", "models.csv") else folder) / path.name
        before = place.read_bytes()
        try:
            place.write_bytes(path.read_bytes())
            profile = Library(home).profile(*wanted, "rtx-a6000", "tr-pro-5995wx", "llama.cpp")
            profile.step_s(profile.weights.layers)
        finally:
            place.write_bytes(before)

    return Target("tables", goods, parse)


def import_target() -> Target:
    """Outputs of benchmark tools, brought to profile tables."""
    from sim.profiling.importing import ImportOptions, import_files  # noqa: PLC0415
    from sim.profiling.imports.formats import FORMATS  # noqa: PLC0415

    llama = json.loads(
        """{"build_commit": "b1", "cpu_info": "Intel Core i5-13600K", "gpu_info": "NVIDIA GeForce RTX 4090",
        "backends": "CUDA", "model_filename": "llama-3-8b-q4_k_m.gguf", "model_type": "llama 8B Q4_K - Medium",
        "model_size": 4912898048, "model_n_params": 8030261248, "n_batch": 2048, "n_ubatch": 512, "n_gpu_layers": 16,
        "n_prompt": 0, "n_gen": 128, "n_depth": 0, "avg_ns": 1000000000, "stddev_ns": 1000000, "avg_ts": 128.0,
        "stddev_ts": 1.0, "samples_ns": [1000000000], "samples_ts": [128.0], "type_k": "f16", "type_v": "f16"}"""
    )
    goods = [Good("bench.json", json.dumps([llama]).encode()), Good("bench.jsonl", json.dumps(llama).encode())]
    rows = io.StringIO()
    writer = csv.writer(rows)
    writer.writerows([llama.keys(), [str(value) for value in llama.values()]])
    goods.append(Good("bench.csv", rows.getvalue().replace("\r\n", "\n").encode()))
    shared = SHARED / "profiles"
    goods += [Good(file.name, file.read_bytes()[:40_000]) for file in sorted(shared.glob("*bench*.json*"))]

    def parse(path: Path) -> None:
        name = list(FORMATS)[len(path.read_bytes()) % 4 * (len(path.read_bytes()) % 3 == 0)]
        import_files([path], ImportOptions(name))

    return Target("import", goods, parse)


# --- the loop


def attempt(target: Target, good: Good, data: bytes, folder: Path) -> None:
    """One file. Raises AssertionError, or what the parser raised: that is a find."""
    path = folder / good.name
    path.write_bytes(data)
    target.tried += 1
    try:
        with limited(LONGEST_S, TimeoutError):
            target.parse(path)
        target.taken += 1
    except SimError as error:
        text = str(error)
        assert text, "an error without words"
        assert "\n" not in text, f"an error of several lines: {text!r}"
    finally:
        path.unlink(missing_ok=True)


def play(target: Target, number: int, until_s: float, folder: Path, out: Path) -> None:
    """Some hundreds of files under one seed; a find is made small, printed and written."""
    last: list[tuple[Good, bytes]] = []
    change = st.tuples(st.integers(0, 63), st.integers(0, 2**20), st.integers(0, 2**12))

    @seed(number)
    @settings(
        max_examples=300,
        deadline=None,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(good=st.integers(0, len(target.goods) - 1), changes=st.lists(change, max_size=5), noise=st.booleans())
    def files(good: int, changes: list[Change], noise: bool) -> None:
        if time.monotonic() > until_s:
            return
        chosen = target.goods[good]
        data = spoilt(chosen, changes)
        if noise and len(changes) == 5:
            data = random.Random(changes[0][1]).randbytes(changes[0][2])
        last[:] = [(chosen, data)]
        attempt(target, chosen, data, folder)

    try:
        files()
    except Exception as error:
        chosen, data = last[0]
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
        if what in target.finds:
            return
        out.mkdir(parents=True, exist_ok=True)
        file = out / f"{target.name}-{number}-{chosen.name}"
        file.write_bytes(data)
        target.finds[what] = f"{what}: {str(error)[:200]!r}; seed {number}, file {file}"
        print(f"FIND {target.name}: {target.finds[what]}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long, in all (default: 1)")
    parser.add_argument(
        "--seed", type=int, default=1, help="the first seed; each 300 files have their own (default: 1)"
    )
    parser.add_argument("--only", choices=("scenario", "trace", "tables", "import"), help="only this parser")
    parser.add_argument("--out", type=Path, default=Path("fuzz-finds"), help="where finds go (default: fuzz-finds)")
    asked = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    begin_s, number = time.monotonic(), asked.seed
    until_s = begin_s + asked.minutes * 60
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        made = [scenario_target(), trace_target(), tables_target(Path(scratch)), import_target()]
        targets = [target for target in made if asked.only in (None, target.name)]
        for target in targets:
            for good in target.goods:
                attempt(target, good, good.data, Path(scratch))
        while time.monotonic() < until_s:
            for target in targets:
                play(target, number, until_s, Path(scratch), asked.out)
            number += 1
    print(f"seeds {asked.seed} to {number - 1}, {time.monotonic() - begin_s:.0f} s")
    for target in targets:
        print(f"{target.name}: {target.tried:,} files tried, {target.taken:,} taken, {len(target.finds)} finds")
    return 1 if any(target.finds for target in targets) else 0


if __name__ == "__main__":
    raise SystemExit(main())
