"""One run of the profiler: checks what fits, plans, measures in order of importance, and keeps all that is measured.

Time: what is estimated beforehand is compared with what it took, and before each instance the least important ranks
are left out until the rest ends in time. Raises SimError for a user's mistake; what was measured is never lost.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sim.common.errors import ConfigError, did_you_mean
from sim.hardware.measure import plan
from sim.hardware.measure.contention import ContentionPairs, closest_law, pairs_to_measure
from sim.hardware.measure.contradictions import contradictions
from sim.hardware.measure.machine_bandwidths import bandwidths, engine_start, rate
from sim.hardware.measure.machine_facts import clocks, facts, names, open_device
from sim.hardware.measure.measurement_folder import MeasurementFolder, default_folder
from sim.hardware.measure.model_measurements import QUANTIZATIONS, Bench, save
from sim.hardware.measure.plan import GRIDS, Group, MeasurementGrid, ModelPace, PlannedPoint, device_bytes
from sim.hardware.measure.progress_lines import clock, progress_bar
from sim.hardware.model.device import DeviceMemoryError, free_host_bytes
from sim.hardware.model.weights import HostWeights, architectures
from sim.hardware.options import MeasureOptions
from sim.profiling.architectures import Architecture
from sim.profiling.points import ContentionPoint, ModelRow
from sim.scenario.scenario import GIB

DEFAULT_MODELS = {
    ("cuda", True): ("Llama-3.2-1B", "Qwen2.5-3B", "Qwen3-8B"),
    ("cuda", False): ("Llama-3.2-1B", "Qwen2.5-3B", "Qwen3-8B", "Qwen2.5-14B"),
    ("cpu", True): ("SmolLM2-135M", "Qwen2.5-0.5B", "SmolLM2-360M"),
    ("cpu", False): ("SmolLM2-135M", "Qwen2.5-0.5B", "SmolLM2-360M"),
}
QUICK_MINUTES = {"cuda": 7.0, "cpu": 5.0}
PASSES = {"cuda": 1, "cpu": 3}  # a core that is shared with others is quicker at one time than at another
_ALWAYS_PAIRS = 4  # of the pairs that run beside one another, those that are measured whatever time is left


class MeasurementRun:
    """A device, the models to measure on it, and the folder that they are measured into."""

    def __init__(self, options: MeasureOptions, console: Console) -> None:
        self.options, self.console = options, console
        self.begin_s = monotonic()
        kind = options.device
        self.device = open_device(kind, options.budget_gib, options.link_gb_s)
        self.passes = options.passes or PASSES[kind]
        asked: dict[str, Any] = {
            name: tuple(sorted({*knots}))
            for name in ("batches", "contexts", "prompts", "pools")
            if (knots := getattr(options, name))
        }
        self.grid: MeasurementGrid = replace(GRIDS[kind, options.quick], **asked)
        limit_s = (options.limit_s or self.grid.limit_s) / self.passes
        self.grid = replace(self.grid, limit_s=limit_s, most=max(3, self.grid.most // self.passes))
        if kind == "cuda" and options.dtype == "bfloat16" and torch.cuda.get_device_capability(0)[0] < 8:
            raise ConfigError("this GPU computes no bfloat16 by itself; measure with --dtype float16")
        self.dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}[options.dtype]
        self.shapes = self._chosen(options.models or DEFAULT_MODELS[kind, options.quick])
        self.most = {name: self._most(shape) for name, shape in self.shapes.items()}
        self.host_bytes = free_host_bytes()
        self._check_host_memory()
        minutes = options.max_minutes or (QUICK_MINUTES[kind] if options.quick else None)
        self.end_s = self.begin_s + 60 * minutes if minutes else float("inf")
        gpu, host = names(self.device, options.gpu, options.host)
        self.known = facts(self.device, gpu, host) | {
            "budget_gib": round(options.budget_gib, 3) if options.budget_gib else "",
            "link_gb_s": options.link_gb_s or "",
            "passes": self.passes,
            "date": date.today().isoformat(),
            "dtype": options.dtype,
            "seed": options.seed,
            "offload": list(options.offload),
        }
        stem = f"{gpu}-{host}-torch"
        folder = options.out or default_folder(options.tables_into / "measured", stem, date.today().isoformat())
        self.store = MeasurementFolder(folder, self.known, options.fresh, self.say)
        if self.store.seconds:
            self.known["date"] = self.store.facts.get("date", self.known["date"])
        self.first = int(self.store.facts.get("passes_done", 0)) if options.again else 0
        self.last = self.first + self.passes  # the first pass that is not made
        self.bench = Bench(self.device, self.store, self.grid, self.dtype, options.seed)
        self.points: dict[str, list[PlannedPoint]] = {}
        self.left, self.done_before = list[PlannedPoint](), set[PlannedPoint]()
        self.paces: dict[str, ModelPace] = {}
        self.estimated_s = self.taken_s = self.later_s = 0.0  # the last: of the passes after this one
        self.pass_end_s = self.begin_s + (self.end_s - self.begin_s) / self.passes
        # For engine starts, and pairs that must be measured; both are there when all is measured again.
        self.kept_s = 0 if self.first else 15 + _ALWAYS_PAIRS * (6 * self.grid.limit_s + 1)

    def say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Say it, and keep it with the measurements."""
        self.say(text)
        self.store.note(text)

    # --- before the run

    def _chosen(self, wanted: Sequence[str]) -> dict[str, Architecture]:
        known = architectures(self.options.architectures)
        for name in wanted:
            if name not in known:
                raise ConfigError(f"--models {name}: no shape of it is known; {did_you_mean(name, known)}")
        return {name: known[name] for name in dict.fromkeys(wanted)}

    def _most(self, shape: Architecture) -> int:
        """The most layers that fit beside the KV of one long context."""
        pool = min(self.grid.contexts[-1], shape.max_context)
        most = plan.most_layers(shape, self.device.budget_bytes, pool)
        if not most:
            needs = device_bytes(shape, 1, "cpu", pool)
            raise ConfigError(
                f"{shape.model}: one layer with the KV of {pool:,} tokens needs {needs / 1e9:.2f} GB of device memory, "
                f"there are {self.device.budget_bytes / 1e9:.2f} GB; choose smaller --models, or a larger --budget-gib"
            )
        return most

    def _check_host_memory(self) -> None:
        for name, shape in self.shapes.items():
            least = PlannedPoint("decode", name, "cpu", 0, 0, tokens=min(self.grid.contexts[-1], shape.max_context))
            needs = self._host_bytes(least)
            if needs > self.host_bytes:
                how = "choose smaller --models" + ("" if self.device.is_cuda else ", or a smaller --budget-gib")
                lacks = f"needs {needs / 1e9:.1f} GB of host memory, {self.host_bytes / 1e9:.1f} GB are free"
                raise ConfigError(f"{name}: measuring it {lacks}; {how}")

    def _host_bytes(self, point: PlannedPoint) -> int:
        return plan.host_bytes(self.shapes[point.model], point, self.device.budget_bytes, self.device.is_cuda)

    def _candidates(self, shape: Architecture) -> list[PlannedPoint]:
        """All points of a model that fit."""
        most = self.most[shape.model]
        smallest = min(self.shapes.values(), key=lambda each: each.weight_bytes(each.layers)) is shape
        points = [*plan.switch_points(shape, self.grid, most, smallest)]
        for offload in self.options.offload:
            whole = offload == self.options.offload[0]
            points += plan.decode_points(shape, self.grid, offload, most, whole)
            points += plan.prefill_points(shape, self.grid, offload, most, whole)
        return [
            point
            for point in points
            if device_bytes(shape, point.layers, point.offload, point.pool) <= self.device.budget_bytes
            and self._host_bytes(point) <= self.host_bytes
        ]

    def plan(self) -> None:
        """Measure how quick copies and layers are, and say what will be measured and how long it will take."""
        self.store.save(0, False, clocks={"before": clocks(self.device)})
        for name, shape in self.shapes.items():
            if self.most[name] < shape.layers:
                has = f"{self.device.budget_bytes / GIB:.1f} GiB"
                self.note(f"{name}: {self.most[name]} of {shape.layers} layers fit in {has}; no more are measured")
        self.say("bandwidths, and how quick the models' layers are")
        bandwidths(self.bench, self.store.folder)
        rates = (rate(self.bench, "h2d"), rate(self.bench, "disk"))
        for name, shape in self.shapes.items():
            model = self.paces[name] = plan.pace(shape, self.device, self.dtype, self.grid, rates)
            self.points[name] = [replace(p, seconds=model.seconds(p, self.grid)) for p in self._candidates(shape)]
            self.left += [point for point in self.points[name] if not self.bench.done(point)]
            self.done_before |= {point for point in self.points[name] if self.bench.done(point)}
        columns = ("model", "layers", "decode", "prompts", "switching", "about")
        table = Table(*columns, title="to measure", title_justify="left")
        every = [point for points in self.points.values() for point in points]
        todo = [point for point in every if point in self.done_before] if self.first else self.left
        planned = self._affordable(todo)
        for name in self.shapes:
            mine = [p for p in planned if p.model == name]
            parts = [str(sum(p.part in part for p in mine)) for part in (("decode",), ("prefill",), ("cycle", "kv"))]
            layers = sorted({p.layers for p in mine})
            table.add_row(name, " ".join(map(str, layers)), *parts, clock(self.passes * self._cost(mine)))
        self.console.print(table)
        out = len(todo) - len(planned)
        limit = f" of at most {clock(self.end_s - self.begin_s)}" if self.end_s < float("inf") else ""
        total_s = self.passes * self._cost(planned) + self.kept_s
        more = f"; {out} points left out" if out else ""
        self.say(f"about {clock(total_s)}{limit} into {short(self.store.folder)}{more}")

    # --- time

    def _setup_s(self, points: Sequence[PlannedPoint]) -> float:
        pools: dict[Group, int] = {}
        for point in points:
            pools[point.group] = max(pools.get(point.group, 0), point.pool)
        return sum(self.paces[key[0]].setup_s(key, pool) for key, pool in pools.items())

    def _cost(self, points: Sequence[PlannedPoint]) -> float:
        return self._ratio * (sum(point.seconds for point in points) + self._setup_s(points))

    @property
    def _ratio(self) -> float:
        """How much longer things take than was estimated."""
        return min(4.0, max(0.4, (self.taken_s + 5) / (self.estimated_s + 5)))

    def _affordable(self, points: Sequence[PlannedPoint]) -> list[PlannedPoint]:
        left_s = (self.pass_end_s - monotonic() - self.kept_s) / self._ratio
        return plan.affordable(points, lambda group, pool: self.paces[group[0]].setup_s(group, pool), left_s)

    # --- the run

    def measure(self) -> None:
        """All that there is time for."""
        self.say("engine starts")
        engine_start(self.bench, list(self.shapes), 3 if self.options.quick else 5)
        self.kept_s = max(0, self.kept_s - 15)
        item = self.dtype.itemsize
        rows = [
            ModelRow(
                model=name, quantization=QUANTIZATIONS[self.dtype], layers=shape.layers,
                layer_bytes=shape.layer_bytes(item), head_bytes=shape.head_bytes(item),
                kv_bytes_per_token_layer=shape.kv_bytes_per_token_layer(item), max_context=shape.max_context,
                **self.bench.words,
            )
            for name, shape in self.shapes.items()
        ]  # fmt: skip
        self.store.add(rows)
        with progress_bar(self.console) as bar, self.device.awake():
            self.bar, self.task = bar, bar.add_task("", total=1.0, what="", left="")
            for number in range(self.first, self.last):
                self._pass(number)
            self.pass_end_s = self.end_s
            for name in self.shapes:
                self._again(name)
            bar.update(self.task, what="two at a time")
            self._beside()
        if self.left:
            self.say(f"{len(self.left)} points were left out for want of time; the same command again measures more")

    def _pass(self, number: int) -> None:
        """Measure all that there is time for; or, but in the first pass, once more what was not measured so often."""
        unmeasured = self.left
        if number:
            before = self.done_before if number < self.store.facts.get("passes_done", 0) else frozenset()
            mine = [point for points in self.points.values() for point in points if point not in before]
            self.left = [point for point in mine if self.bench.done(point)]
            if not self.left:
                self.left = unmeasured
                return
            self.say(f"pass {number + 1} of {self.last}")
        self.pass_end_s = monotonic() + (self.end_s - monotonic()) / (self.last - number)
        self.later_s = (self.last - number - 1) * self._cost(self._affordable(self.left))
        try:
            for name in self.shapes:
                for pinned in (True, False):
                    self._model(name, pinned)
        finally:
            if number:
                self.left = unmeasured
        self.store.facts["passes_done"] = max(number + 1, self.store.facts.get("passes_done", 0))

    def _model(self, name: str, pinned: bool) -> None:
        """Groups of a model whose weights are pinned in host memory, or are not."""
        word = "pinned" if pinned else "pageable"
        mine = [p for p in self._affordable(self.left) if p.model == name and p.group[1] == word]
        if not mine:
            return
        weights = HostWeights(self.shapes[name], self.device, self.dtype, pinned)
        for group in dict.fromkeys(sorted((p.group for p in mine), key=lambda g: (g[2] != "cpu", g[2], -g[3]))):
            points = [p for p in self._affordable(self.left) if p.group == group]
            if not points:
                continue
            begin_s = monotonic()
            where = f"{group[2]} {group[3]}/{self.shapes[name].layers}" if group[3] >= 0 else "switching"
            self._show(f"{name} {where}")
            try:
                run = self.bench.run(weights, points, self.bench.free_bytes())
                for point in self._cycles(weights, points) if group[3] < 0 else run:
                    self.left.remove(point)
                    self._show(None)
            except (DeviceMemoryError, torch.OutOfMemoryError) as error:
                self.note(f"{name}, {group[3]} layers, {group[2] or word}: left out, {str(error).splitlines()[0]}")
                self.left = [p for p in self.left if p.group != group]
            self.estimated_s += sum(p.seconds for p in points) + self._setup_s(points)
            self.taken_s += monotonic() - begin_s
        del weights
        gc.collect()

    def _again(self, name: str) -> None:
        """Measure once more what cannot be right, which other work on this machine may have spoilt."""
        layers = {name: self.shapes[name].layers}
        for _ in range(2):
            wrong = contradictions(self.store, layers, QUANTIZATIONS[self.dtype])
            if not wrong:
                return
            self.say(f"{name}: {len(wrong)} points contradict each other; they are measured again")
            again = [replace(point, rank=0) for point in self.points[name] if self.bench.row_of(point) in wrong]
            if self.passes == 1:
                self.store.drop(wrong)  # else they become means of what is measured now and before
            self.left += again
            self._model(name, True)
        if contradictions(self.store, layers, QUANTIZATIONS[self.dtype]):
            self.note(f"{name}: some points still contradict each other; run this again when nothing else runs here")

    def _cycles(self, weights: HostWeights, points: list[PlannedPoint]) -> Iterator[PlannedPoint]:
        scratch = self.store.folder / ".weights"
        size = weights.shape.weight_bytes(weights.shape.layers)
        try:
            for point in sorted(points, key=lambda p: (p.path == "disk", -p.layers)):
                file = scratch / "model.safetensors" if point.path == "disk" else None
                if file is not None and not file.exists():
                    shutil.rmtree(scratch, ignore_errors=True)
                    scratch.mkdir()
                    free = shutil.disk_usage(scratch).free
                    if free < 1.1 * size:
                        lacks = f"{size / 1e9:.1f} GB do not fit in {free / 1e9:.1f} GB"
                        self.note(f"{point.model}: no reload from disk; {lacks}")
                        self.left = [p for p in self.left if p.model != point.model or p.path != "disk"]
                        return
                    save(weights, file)
                self.bench.cycle(weights, point, file)
                yield point
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _beside(self) -> None:
        fitting = [
            shape
            for shape in self.shapes.values()
            if self.most[shape.model] == shape.layers
            and 2 * device_bytes(shape, shape.layers, "cpu", 256) <= self.device.budget_bytes
        ]
        if not fitting:
            self.note("no measured model fits twice on the device: how instances slow each other down is not measured")
            return
        shape = fitting[0]
        todo = pairs_to_measure(shape.layers, self.options.offload[0])
        weights = HostWeights(shape, self.device, self.dtype)
        pairs = ContentionPairs(self.bench, weights, self.options.offload[0])
        for number, pair in enumerate(todo):
            self.kept_s = max(0, _ALWAYS_PAIRS - number) * (6 * self.grid.limit_s + 1)
            if not pairs.has(*pair) and (number < _ALWAYS_PAIRS or monotonic() < self.end_s - 5):
                self._show(f"{shape.model}: {pair[0]} {pair[1]} beside {pair[2]} {pair[3]}")
                pairs.measure(*pair)

    def _show(self, what: str | None) -> None:
        left_s = self._cost(self._affordable(self.left)) + self.later_s + self.kept_s
        spent_s = monotonic() - self.begin_s
        if what is not None and not self.console.is_terminal:
            self.say(f"{clock(spent_s)} {what}; {clock(left_s)} left")
        words: dict[str, Any] = {"left": clock(left_s)} | ({"what": what} if what is not None else {})
        self.bar.update(self.task, completed=spent_s, total=spent_s + left_s, **words)

    # --- the end

    def close(self, finished: bool) -> None:
        """Write provenance; the one thing that an interrupted run still does."""
        told = dict(self.store.facts.get("clocks") or {})
        found = closest_law(self.store.rows[ContentionPoint])
        more: dict[str, object] = {"left_out": len(self.left)} | ({"contention": found} if found else {})
        told["after"] = clocks(self.device)
        self.store.save(monotonic() - self.begin_s, finished, clocks=told, **more)


def short(path: Path) -> str:
    """The path as it would be typed here."""
    here = path.resolve()
    return str(here.relative_to(Path.cwd())) if here.is_relative_to(Path.cwd()) else str(path)
