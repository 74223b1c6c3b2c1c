"""Comparisons and searches for capacity as a library: the same ones as the command line's, with tables and figures.

`compare_policies` and `find_capacity` take what `sim.simulate` takes, and give back what a notebook shows by itself.
Nothing here plays or measures: compare.py and capacity.py do.
"""

from __future__ import annotations

import html
import io
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from sim.api.simulate import settings_of
from sim.common.errors import ConfigError, did_you_mean
from sim.results.format_estimate import amount, with_half
from sim.runs.run_one import RunOptions
from sim.runs.task import Machines
from sim.scenario.scenario import Scenario
from sim.studies.capacity import CapacityOptions, capacity, capacity_csv
from sim.studies.capacity_result import Capacity, Find
from sim.studies.compare import CompareOptions, compare
from sim.studies.comparison import Comparison, comparison_csv
from sim.studies.study import StudyOptions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from sim.results.metrics import Measure

Given = Scenario | Mapping[str, Any] | str | Path | None


class CompareMore(TypedDict, total=False):
    """Further options of a comparison, those of compare.CompareOptions."""

    metrics: tuple[str, ...]
    warm_up: str | None
    out: Path | None
    confidence: float


class CapacityMore(TypedDict, total=False):
    """Further options of a search for capacity, those of capacity.CapacityOptions."""

    metric: str
    attainment: float
    limit: float | None
    load: float
    grow: str | None
    most: float
    out: Path | None
    confidence: float


def compare_policies(
    scenario: Given = None,
    policies: str | Sequence[str | Path] = "all",
    *,
    seeds: int = 10,
    settings: Mapping[str, Any] | Sequence[str] = (),
    baseline: str | None = None,
    bounds: bool = False,
    jobs: int | None = None,
    **more: Unpack[CompareMore],
) -> PolicyComparison:
    """Play several policies on the same requests, seed by seed, as `python -m sim compare` does.

    scenario, settings: as for simulate. policies: names, tiers, files, or all. bounds: also play the oracles and work
    out what no scheduler can beat. jobs: processes; None: one for each processor, 0: all in this process. Raises
    SimError for what the caller can mend; a run that fails is in the result's errors.
    """
    options = CompareOptions(_study(scenario, policies, seeds, settings, jobs), baseline, bounds=bounds, **more)
    return PolicyComparison(compare(options))


def find_capacity(
    scenario: Given = None,
    policies: str | Sequence[str | Path] = "all",
    *,
    find: Find = "rate",
    seeds: int = 5,
    settings: Mapping[str, Any] | Sequence[str] = (),
    tolerance: float = 0.05,
    jobs: int | None = None,
    **more: Unpack[CapacityMore],
) -> CapacitySearch:
    """The largest load within a goal (`rate`), the fewest nodes (`cluster`) or $ per million tokens (`cost`).

    As `python -m sim capacity`; the other arguments are those of compare_policies. Raises SimError.
    """
    if find not in ("rate", "cluster", "cost"):
        raise ConfigError(f"find: unknown '{find}'; {did_you_mean(find, ('rate', 'cluster', 'cost'))}")
    study = _study(scenario, policies, seeds, settings, jobs)
    return CapacitySearch(capacity(CapacityOptions(study, find, tolerance=tolerance, **more)))


def _study(
    scenario: Given,
    policies: str | Sequence[str | Path],
    seeds: int,
    settings: Mapping[str, Any] | Sequence[str],
    jobs: int | None,
) -> StudyOptions:
    source = Path(scenario) if isinstance(scenario, str) else scenario
    return StudyOptions(RunOptions(source, settings=settings_of(settings)), policies, seeds, machines=Machines(jobs))


class _Displayed:
    """What a comparison and a search for capacity have in common: a verdict in words above a table."""

    verdict: list[str]

    @property
    def table(self) -> pd.DataFrame:
        raise NotImplementedError

    def _repr_html_(self) -> str:
        said = "".join(f"<li>{html.escape(line)}</li>" for line in self.verdict)
        return f"<ul>{said}</ul>{self.table.to_html()}"

    def __repr__(self) -> str:
        return "\n".join([*self.verdict, "", self.table.to_string()])


class PolicyComparison(_Displayed):
    """A comparison. `result`: all of it, as plain data."""

    def __init__(self, result: Comparison) -> None:
        self.result = result
        self.verdict = list(result.verdict)
        self.plot = ComparisonPlots(self)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """comparison.csv: a row for each policy and metric, with means, differences, their intervals, and counts."""
        return _frame(comparison_csv(self.result))

    @property
    def means(self) -> pd.DataFrame:
        """The mean over seeds: a row for each policy, the best first, a column for each metric's key."""
        import pandas as pd  # noqa: PLC0415  heavy

        rows = {
            policy.label: {key: measured.estimate.mean for key, measured in policy.measured.items()}
            for policy in self.result.policies
        }
        return pd.DataFrame.from_dict(rows, orient="index").loc[self._order()]

    @property
    def table(self) -> pd.DataFrame:
        """For people: means and half of their intervals, and how many requests were completed."""
        import pandas as pd  # noqa: PLC0415

        shown = [measure for measure in self.result.metrics if measure.key != "switching.starved"][:7]
        rows = {}
        for label in self._order():
            policy = self.result.policy(label)
            done = f"{policy.counts['completed']:,} of {policy.counts['arrived']:,}"
            cells = {measure.title: with_half(measure.unit, policy.measured[measure.key].estimate) for measure in shown}
            rows[label + (" (oracle)" if policy.oracle else "")] = {**cells, "completed": done}
        return pd.DataFrame.from_dict(rows, orient="index")

    def measure(self, metric: str | None) -> Measure:
        """The measure of this key; None: the one that decides. Raises ConfigError."""
        if metric is None:
            return self.result.decisive
        known = {measure.key: measure for measure in self.result.metrics}
        if metric not in known:
            raise ConfigError(f"metric: '{metric}' was not measured; {did_you_mean(metric, known)}")
        return known[metric]

    def _order(self) -> list[str]:
        """As the deciding metric ranks them; those that it does not rank after them."""
        decisive = self.result.decisive.key
        ranked = next(ranking.order for ranking in self.result.rankings if ranking.key == decisive)
        return [*ranked, *(policy.label for policy in self.result.policies if policy.label not in ranked)]


class ComparisonPlots:
    """Figures of a comparison: matplotlib Figures, to be shown by a notebook, changed, or kept with savefig."""

    def __init__(self, of: PolicyComparison) -> None:
        self._of = of

    def differences(self, metric: str | None = None) -> Figure:
        """Each policy less the baseline within seeds, with intervals; None: the metric that decides. Raises
        ConfigError: no such metric, or one seed alone, which has no intervals."""
        from sim.plots.charts import Axis  # noqa: PLC0415  heavy
        from sim.plots.figures import draw_differences  # noqa: PLC0415

        made, measure = self._of.result, self._of.measure(metric)
        rows = {}
        for policy in made.policies:
            versus = policy.versus.get(measure.key)
            seen = versus.difference.estimate if versus is not None else None
            if seen is not None and seen.mean is not None and seen.t is not None:
                rows[policy.label] = (seen.mean, seen.t.low, seen.t.high)
        if not rows:
            raise ConfigError("differences: there are none with intervals; compare two policies with several seeds")
        side = "left" if measure.better == "less" else "right"
        better = f", better to the {side}" if measure.better else ""
        title = f"{measure.title}, less that of {made.baseline} on the same requests"
        unit, text = _unit(measure, signed=True)
        label = f"{unit}, mean and {made.confidence:.0%} interval over {len(made.seeds)} seeds{better}"
        return draw_differences(rows, title, Axis(label, text=text))


class CapacitySearch(_Displayed):
    """A search for capacity. `result`: all of it, as plain data."""

    def __init__(self, result: Capacity) -> None:
        self.result = result
        self.verdict = list(result.verdict)
        self.plot = CapacityPlots(self)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """capacity.csv: a row for each policy and load (or number of nodes) that was played."""
        return _frame(capacity_csv(self.result))

    @property
    def answers(self) -> pd.DataFrame:
        """A row for each policy: the answer, what the next that was tried misses, and $ per million tokens there."""
        import pandas as pd  # noqa: PLC0415  heavy

        rows = {}
        for policy in self.result.policies:
            found, usd = policy.found, policy.usd_per_million_tokens
            rows[policy.label] = {
                "answer": None if found is None else found.value,
                "missed_at": None if found is None else found.missed,
                "usd_per_million_tokens": None if usd is None else usd.mean,
            }
        return pd.DataFrame.from_dict(rows, orient="index", dtype="float64")

    @property
    def table(self) -> pd.DataFrame:
        """The answers for people."""
        import pandas as pd  # noqa: PLC0415

        head = {"rate": "largest load", "cluster": "fewest nodes", "cost": "at load"}[self.result.find]
        rows = {
            label: {
                head: _written(row["answer"]),
                "missed at": _written(row["missed_at"]),
                "$/Mtoken there": amount("usd", None if pd.isna(usd := row["usd_per_million_tokens"]) else usd),
            }
            for label, row in self.answers.iterrows()
        }
        table = pd.DataFrame.from_dict(rows, orient="index")
        whys = [
            policy.error or (policy.found.why if policy.found is not None else "") for policy in self.result.policies
        ]
        return table.assign(why=whys) if any(whys) else table


class CapacityPlots:
    """Figures of a search for capacity: matplotlib Figures, to be shown by a notebook, changed, or kept."""

    def __init__(self, of: CapacitySearch) -> None:
        self._of = of

    def goal(self) -> Figure:
        """The goal's metric at every load (or number of nodes) that was played, and what it has to keep."""
        from sim.plots.charts import Axis  # noqa: PLC0415  heavy
        from sim.plots.figures import draw_lines  # noqa: PLC0415

        made = self._of.result
        at, goal = ("nodes" if made.find == "cluster" else "load"), made.goal
        frame = self._of.frame.dropna(subset=[at]).pivot_table(index=at, columns="policy", values=goal.metric.key)
        shown = frame[[policy.label for policy in made.policies if policy.label in frame.columns]]
        unit, text = _unit(goal.metric)
        x = Axis("nodes" if at == "nodes" else "load, times that of the scenario", log=at == "load", text="{:g}".format)
        most = 1.02 if goal.metric.unit == "share" else None
        y = Axis(f"{unit} (dashed: the goal)", text=text, low=0.0, high=most, line=goal.target)
        return draw_lines(shown, f"{goal.metric.title} against {at}", x, y, dots=True)


def _unit(measure: Measure, signed: bool = False) -> tuple[str, Any]:
    """What an axis of it is called, and how its numbers are written."""
    sign, mark = ("+", "") if signed else ("", "%")
    if measure.unit == "share":
        return (
            "points" if signed else "share"
        ), lambda value: f"{value * 100:{sign}.3g}{mark}" if value else f"0{mark}"
    name = {"s": "seconds", "usd": "$", "rate": "per second"}.get(measure.unit, "number")
    return name, lambda value: f"{value:{sign},.4g}" if value else "0"


def _written(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def _frame(text: str) -> pd.DataFrame:
    import pandas as pd  # noqa: PLC0415  heavy

    return pd.read_csv(io.StringIO(text))
