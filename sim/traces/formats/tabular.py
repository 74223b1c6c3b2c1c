"""What the formats that are tables, or lengths alone, have in common: columns, names of models, drawn arrivals.

Nothing here knows a particular format. Called by the modules beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from sim.common.errors import TraceError
from sim.common.lazy import pa, pc
from sim.common.rng import stream
from sim.common.text import counted
from sim.traces.columns import ColumnChecks, name_problem
from sim.traces.files import FileColumns, blank_notice
from sim.traces.formats.assembly import Named
from sim.traces.formats.base import FormatOptions, shown

Failures = Literal["drop", "keep"]
MODEL = "the model that all requests are for"
FAILURES = "requests that failed or have no token counts: drop, or keep (with 1 token where there is none)"


def _named(name: str) -> str:
    problem = name_problem(name, "model")
    if problem:
        raise ValueError(problem)
    return name


ModelName = Annotated[str, AfterValidator(_named)]


class ArrivalOptions(FormatOptions):
    """For formats whose files hold no times of arrival."""

    rate: float | None = Field(None, ge=1e-9, le=1e6, description="arrivals a second, drawn as a Poisson process")
    seed: int = Field(0, ge=0, description="seed of the drawn arrivals")


class PoissonClock:
    """Arrivals of a Poisson process for a file without any, drawn in pieces whose sizes do not change the numbers.

    number: of the file among those given. Raises TraceError when `options` name no rate.
    """

    def __init__(self, form: str, path: Path, number: int, options: ArrivalOptions) -> None:
        if options.rate is None:
            raise TraceError(f"{path}: has no times of arrival; give --option rate=<arrivals a second> to draw them")
        self._gap_s = 1 / options.rate
        self._draw = stream(options.seed, "formats", form, "arrivals", number)
        self._now_s = 0.0

    def next(self, count: int) -> NDArray[np.float64]:
        """The next arrivals, float64[count] seconds; the first of all is one gap after 0."""
        gaps_s = self._draw.standard_exponential(count) * self._gap_s
        if count:
            gaps_s[0] += self._now_s
            gaps_s = np.cumsum(gaps_s)
            self._now_s = float(gaps_s[-1])
        return gaps_s


def failure_notice(count: int, failures: Failures) -> tuple[str, ...]:
    """What was done with requests that failed or whose token counts are missing; nothing for none."""
    rows = f"{counted(count, 'request')} that failed or had no token counts"
    if failures == "drop":
        text = f"left out {rows}; --option failures=keep counts what is missing as 1 token"
    else:
        text = f"kept {rows}, what was missing as 1 token"
    return (text,) if count else ()


def checked_tables(
    tables: Iterator[FileColumns], required: Sequence[str], optional: Sequence[str], strict: bool, notices: list[str]
) -> Iterator[ColumnChecks]:
    """The tables of a file, ready to be read by column; none is empty.

    When all are read, `notices` has the columns that nobody reads and the blank rows. Raises TraceError: a required
    column that is missing; under `strict` also unknown columns.
    """
    ignored: dict[str, None] = {}
    blank_rows = 0
    for table in tables:
        checks = ColumnChecks(table)
        for notice in checks.require(required, optional):
            if strict:
                raise TraceError(f"{table.where}: {notice}".replace("ignored the column", "unknown column"))
            ignored[notice] = None
        blank_rows += table.blank_rows
        if len(table):
            yield checks
    notices += (*ignored, *blank_notice(blank_rows))


def extra_numbers(checks: ColumnChecks, name: str) -> Any:
    """A column that is only carried: float64 pyarrow array, null where the cell is empty; any finite number will do.

    What is no number is left to `checks.finish`.
    """
    texts = pc.utf8_trim_whitespace(checks.table.columns[name])
    texts = pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
    good = pc.match_substring_regex(texts, r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?$")
    good = np.asarray(pc.fill_null(good, True))
    if not good.all():
        index = int(np.argmin(good))
        checks.problem(index, f"column '{name}' is {shown(texts[index].as_py())}; give a number, or nothing")
        return pa.nulls(len(good), pa.float64())
    # Arrow's own parser takes no sign "+".
    return pc.replace_substring_regex(texts, r"^\+", "").cast(pa.float64())


def same_name(name: str, count: int) -> Named:
    """One name for `count` rows."""
    return np.zeros(count, dtype=np.int64), (name,)


def by_path(files: Sequence[Path]) -> dict[str, Path]:
    """The files by their paths as text. Raises TraceError when one is given twice."""
    found = [path.resolve() for path in files]
    for index, path in enumerate(files):
        if found[index] in found[:index]:
            raise TraceError(f"{path}: is given twice; give each file once")
    return {str(path): path for path in files}


def file_models(files: Sequence[Path], form: str, model: str | None) -> list[str]:
    """What each file's requests are for: the option `model`, else the format's name, or, for several, their own.

    Raises TraceError when a file is given twice, or two files would be one model.
    """
    by_path(files)
    if model is not None or len(files) == 1:
        return [model or form] * len(files)
    names = [re.sub(r"(\.(csv|json|jsonl|txt))?(\.gz)?$", "", path.name, flags=re.IGNORECASE) for path in files]
    # What a scenario's model may be called.
    names = [re.sub(r"[^A-Za-z0-9._:+-]", "-", name).lstrip("._:+-")[:100] or "file" for name in names]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise TraceError(f"{files[index]}: a second file would be the model '{name}'; give --option model=<name>")
    return names
