"""A finished run as an object for notebooks and scripts: tables as DataFrames, the summary, figures, a timeline.

api.simulate makes it. What it holds is what a run folder holds (results.py); figures are drawn by plots.run_figures
from these tables. Nothing here simulates, but that `timeline` plays the run once more, watched in detail.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sim.core.record.recorder import Recorder
from sim.core.state.request import PHASES
from sim.results.run_folder import check_target, summary_text, table_frame, write_run
from sim.results.timeline_file import DEFAULT_MB, TimelineOptions, check_timeline, new_timeline, write_timeline
from sim.scenario.scenario import Scenario

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from sim.engine.engine import Outcome

_MOST_GPUS = 8  # in one figure of what was on them


class Run:
    """A finished run. `outcome` is what the engine left behind, for who needs more than the tables."""

    def __init__(
        self,
        outcome: Outcome,
        summary: dict[str, Any],
        again: Callable[[Recorder], Outcome],
        trace: Path | None = None,
        home: TemporaryDirectory[str] | None = None,
    ) -> None:
        self.outcome = outcome
        self.summary = summary  # as in summary.json; see summary.summarize
        self.plot = Plots(self)
        self._again = again
        self._trace = trace  # a file of requests that were given as a DataFrame
        self._home = home  # its folder, which goes when the run does

    @property
    def scenario(self) -> Scenario:
        """What was played, with every default filled in."""
        return self.outcome.scenario

    @property
    def run_id(self) -> str:
        """The name of the run: a hash of all that affects its result."""
        return self.outcome.run_id

    @property
    def policy(self) -> str:
        """The name of its policy."""
        return self.outcome.policy_name

    @property
    def notices(self) -> list[str]:
        """What is to be known before believing the numbers."""
        return list(self.summary["notices"])

    @cached_property
    def requests(self) -> pd.DataFrame:
        """A row a request, in order of arrival: names, times, latencies, tokens, outcome, and its time budget in
        seconds (queued_s, load_wait_s, prefill_s, decode_s, stalled_s, preempted_s, kv_transfer_s, recompute_s)."""
        return table_frame(self.outcome, self.summary, "requests")

    @cached_property
    def switches(self) -> pd.DataFrame:
        """A row a load, stop, resize or KV copy, with its cost by part in seconds."""
        return table_frame(self.outcome, self.summary, "switches")

    @cached_property
    def gpus(self) -> pd.DataFrame:
        """A row a GPU: seconds and fractions computing, loading, transferring and idle, and its memory in bytes."""
        return table_frame(self.outcome, self.summary, "gpus")

    @cached_property
    def series(self) -> pd.DataFrame:
        """What was on the GPUs over time: status, layers, residency, gpu_bytes, running and waiting of each instance.

        A row without span_s holds from time_s until the next row of its instance (rows without GPU: of the requests of
        a model that are not routed yet). A row with span_s is a mean over so many seconds of a model on a GPU.
        """
        return table_frame(self.outcome, self.summary, "series")

    def save(self, folder: str | Path) -> Path:
        """Keep the run in a new folder, as `run --out` does. Raises ConfigError: it cannot go there."""
        folder = Path(folder)
        check_target(folder, lambda: self.run_id)
        write_run(folder, self.outcome, self.summary, self._trace)
        return folder

    def timeline(
        self, file: str | Path, *, max_mb: float = DEFAULT_MB, from_s: float = 0.0, until_s: float = math.inf
    ) -> str:
        """Write a trace for ui.perfetto.dev (.json or .json.gz); what is to be known about it, in words.

        The run is played once more for it. max_mb: of JSON; a longer run is drawn coarser. from_s, until_s: only that
        window of simulated time. Raises ConfigError.
        """
        options = TimelineOptions(Path(file), max_mb, from_s, until_s)
        check_timeline(options)
        recorder = Recorder()
        recorder.timeline = new_timeline(options)
        outcome = self._again(recorder)
        assert outcome.run_id == self.run_id, "files that the run is made of have changed since"
        return write_timeline(options, outcome)

    def to_json(self) -> str:
        """The summary as `run --json` prints it."""
        return summary_text(self.summary)

    def __repr__(self) -> str:
        told = ", ".join(f"{name} {value}" for name, value in self._facts())
        return f"<Run {self.run_id}: {told}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in self._facts()
        )
        notes = "".join(f"<li>{html.escape(notice)}</li>" for notice in self.notices[:5])
        more = f"<li>and {len(self.notices) - 5} more: run.notices</li>" if len(self.notices) > 5 else ""
        return f"<table>{rows}</table>" + (f"<ul>{notes}{more}</ul>" if notes else "")

    def _facts(self) -> list[tuple[str, str]]:
        from sim.common.text import number, seconds, share  # noqa: PLC0415  they need rich

        summary = self.summary
        counts, ttft, e2e = summary["requests"], summary["ttft_s"], summary["e2e_s"]
        oracle = " (oracle)" if summary["oracle"] else ""
        return [
            ("scenario", f"{summary['scenario']}, seed {summary['seed']}"),
            ("policy", f"{summary['policy']}{oracle}"),
            ("requests", f"{number(counts['arrived'])}, {number(counts['completed'])} completed"),
            ("TTFT p50 / p99", f"{seconds(ttft['p50'])} / {seconds(ttft['p99'])}"),
            ("E2E p50 / p99", f"{seconds(e2e['p50'])} / {seconds(e2e['p99'])}"),
            ("SLO kept", share(summary["slo"]["attainment"])),
            ("model loads", number(summary["switching"]["loads"])),
        ]


class Plots:
    """Figures of a run: matplotlib Figures, to be shown by a notebook, changed, or kept with savefig."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def _counted(self) -> pd.DataFrame:
        """The requests that the summary counts: those that arrived after the warm-up."""
        requests = self._run.requests
        return requests[requests["arrival_s"] >= self._run.scenario.warm_up_s]

    def latency(self, by: str = "model") -> Figure:
        """The share of requests with a first token, and with all of the answer, within so many seconds; a curve for
        all and one for each `by` (model, service_class, outcome). What has no answer keeps a curve below 100 %."""
        from sim.plots.run_figures import latency  # noqa: PLC0415

        return latency(self._counted(), by)

    def budget(self, by: str = "model") -> Figure:
        """Where the time of the requests went, in seconds a request; a bar for each `by`."""
        from sim.plots.run_figures import budget  # noqa: PLC0415

        return budget(self._counted(), by, PHASES)

    def gpus(self) -> Figure:
        """What each GPU did, as shares of the time."""
        from sim.plots.run_figures import gpus  # noqa: PLC0415

        return gpus(self._run.gpus, list(self._run.outcome.cluster.gpus[0].activity_s))

    def residency(self, gpus: Sequence[str] | None = None) -> Figure:
        """Memory and residency of every model over time, on the GPUs of these names; None: on the first 8."""
        from sim.common.errors import ConfigError, did_you_mean  # noqa: PLC0415
        from sim.plots.run_figures import residency  # noqa: PLC0415

        usable = dict(zip(self._run.gpus["name"], self._run.gpus["usable_memory_bytes"], strict=True))
        for name in gpus or ():
            if name not in usable:
                raise ConfigError(f"gpus: there is no GPU '{name}'; {did_you_mean(name, usable)}")
        chosen = list(usable)[:_MOST_GPUS] if gpus is None else list(gpus)
        models = [model.name for model in self._run.scenario.models]
        memory = {name: usable[name] for name in chosen}
        return residency(self._run.series, models, memory, len(usable), self._run.outcome.end_s)

    def timeline(self, file: str | Path) -> str:
        """As Run.timeline."""
        return self._run.timeline(file)
