"""The simulator as a library: `sim.simulate(...)` plays one run and gives back a Run (run.py).

It takes what the command line takes and goes the same way (runner.compose, runner.play), plus what only Python has: a
scenario as data, a policy as a class or an object, a trace as a DataFrame.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import linecache
import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.api.run import Run
from sim.common.errors import ConfigError, PolicyError, SimError
from sim.core.record.recorder import Recorder
from sim.core.record.series import Series
from sim.engine.engine import Outcome
from sim.policy.interface.policy import Policy
from sim.policy.loader import load_policy, policy_class, policy_names, policy_of
from sim.results.summary import summarize
from sim.runs.progress import RunProgress
from sim.runs.run_one import RunOptions, compose, peak_rss_bytes, play
from sim.scenario.scenario import Scenario, Setting
from sim.workload.requests import Workload, open_workload

if TYPE_CHECKING:
    import pandas as pd

_FRAME = "trace.parquet"
_FRAME_WORDS = "trace (a DataFrame)"

Chosen = tuple[Policy, str]


def simulate(
    scenario: Scenario | Mapping[str, Any] | str | Path | None = None,
    *,
    policy: str | Path | Mapping[str, Any] | type[Policy] | Policy | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    trace: str | Path | pd.DataFrame | None = None,
    check: bool = False,
    progress: bool = False,
) -> Run:
    """Play a scenario to its end.

    scenario: the path of a YAML file, its data, or a Scenario; None: the one that ships with the project.
    policy: a name (sim.policy_names()), the path of a file, {"name": ..., parameter: ...}, or a subclass of Policy or
        an object of one, wherever it was written. None: the scenario's own.
    settings: fields of the scenario to change, {"cluster.nodes.0.count": 4} or ["cluster.nodes.0.count=4"], applied
        last; {"policy.NAME": value} sets a parameter of the policy.
    trace: requests to play in place of the scenario's own: a file as for `run --trace`, or a DataFrame with the columns
        of a native trace (arrival_s, model, prompt_tokens, output_tokens, ...; traces/README.md).
    check: assert the laws of the model at every instant (slow). progress: say on stderr how far it is.

    The same arguments give the same run. Raises SimError (ConfigError, TraceError, ProfileError, PolicyError) for what
    the caller can mend, in one line.
    """
    home = tempfile.TemporaryDirectory(prefix="sim-") if _is_frame(trace) else None
    file = Path(home.name) / _FRAME if home is not None else None
    with _in_words(file):
        if file is not None:
            _write_frame(trace, file)
        given = _given(policy)
        options = RunOptions(
            scenario=Path(scenario) if isinstance(scenario, str) else scenario,
            policy=given.spec,
            trace=file if file is not None else None if trace is None else Path(str(trace)),
            settings=settings_of(settings),
            seed=seed,
        )
        found = compose(options)
        chosen = given.checked(found)
        workload = open_workload(found)

    def played(chosen: Chosen, recorder: Recorder) -> Outcome:
        with _in_words(file):
            return _play(found, workload, chosen, recorder, check, progress)

    def again(recorder: Recorder) -> Outcome:
        return played(given.make(found), recorder)

    recorder = Recorder()
    recorder.series = Series()
    outcome = played(chosen, recorder)
    if given.unreadable:
        outcome = replace(outcome, notices=(*outcome.notices, given.unreadable))
    return Run(outcome, summarize(outcome, peak_rss_bytes()), again, file, home)


def _play(
    scenario: Scenario, workload: Workload, chosen: Chosen, recorder: Recorder, check: bool, progress: bool
) -> Outcome:
    shown = RunProgress() if progress else None
    try:
        return play(scenario, workload, recorder, check, shown, chosen)
    finally:
        if shown is not None:
            shown.close()


def settings_of(settings: Mapping[str, Any] | Sequence[str]) -> tuple[Setting, ...]:
    """Settings as a run takes them. Raises ConfigError: a value that no scenario can hold."""
    if isinstance(settings, str):
        raise ConfigError(f"settings: give a mapping or a list, [{settings!r}]")
    if not isinstance(settings, Mapping):
        return tuple(settings)
    found = []
    for path, value in settings.items():
        try:
            found.append((str(path), _plain(value)))
        except (TypeError, RecursionError) as error:
            raise ConfigError(f"settings: {path} is no plain value ({error})") from None
    return tuple(found)


def _plain(value: Any) -> Any:
    """A copy of what YAML can say. Raises TypeError."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    raise TypeError(f"{value!r:.60} of type {type(value).__name__}")


# --- policies that are objects


@dataclass(frozen=True)
class _Given:
    """The policy that a caller gave.

    spec: what the scenario says of it; None: the scenario's own. make: a fresh one and the hash of its source. fixed:
    the parameters of an object, which nothing can change. unreadable: what is to be known if its source is not.
    """

    spec: str | dict[str, Any] | None
    make: Callable[[Scenario], Chosen]
    fixed: dict[str, Any] | None = None
    unreadable: str = ""

    def checked(self, scenario: Scenario) -> Chosen:
        """The first of those that play, made before a long trace is read. Raises SimError."""
        if self.fixed is not None:
            asked = {"name": scenario.policy.name, **scenario.policy.parameters}
            changed = [key for key in {**self.fixed, **asked} if asked.get(key) != self.fixed.get(key)]
            if changed:
                raise ConfigError(
                    f"settings: policy.{changed[0]} cannot be changed, the policy is an object already; give its class"
                )
        return self.make(scenario)


def _given(policy: str | Path | Mapping[str, Any] | type[Policy] | Policy | None) -> _Given:
    """Raises PolicyError: no policy at all."""
    if policy is None or isinstance(policy, str | Path):
        return _Given(None if policy is None else str(policy), _by_name)
    if isinstance(policy, Mapping):
        if not isinstance(policy.get("name"), str):
            raise ConfigError('policy: a mapping needs a name, {"name": "lru-swap", ...}')
        return _Given(dict(policy), _by_name)
    kind = policy if isinstance(policy, type) else type(policy)
    if not issubclass(kind, Policy) or kind is Policy:
        raise PolicyError(f"policy: {kind.__name__} is no subclass of sim.Policy")
    digest = _digest(kind)
    name = _name_of(kind, digest)
    unreadable = "" if digest else f"policy {name}: its source cannot be read, so its versions share one run id"
    told = digest or hashlib.sha256(f"unread {kind.__module__}.{kind.__qualname__}".encode()).hexdigest()
    if isinstance(policy, Policy):
        spec = {"name": name, **policy.parameters.model_dump(mode="json")}
        return _Given(spec, lambda _: (copy.deepcopy(policy), told), spec, unreadable)
    return _Given(name, lambda scenario: (policy_of(kind, name, scenario.policy.parameters), told), None, unreadable)


def _by_name(scenario: Scenario) -> Chosen:
    return load_policy(scenario.policy.name, scenario.policy.parameters)


def _digest(kind: type[Policy]) -> str | None:
    """The hash of the files (or cells of a notebook) that a class and its own bases were written in; of one file it is
    that of `--policy` with its path. None: they cannot be read."""
    found: dict[str, str] = {}
    for base in kind.__mro__[: kind.__mro__.index(Policy)]:
        functions = [value for value in vars(base).values() if inspect.isfunction(value)]
        files = [value.__code__.co_filename for value in functions if value.__module__ == base.__module__]
        module = getattr(sys.modules.get(base.__module__), "__file__", None)
        for file in files or [module or ""]:
            found[file] = "".join(linecache.getlines(file))
            if not found[file]:
                return None
    return hashlib.sha256("".join(found.values()).encode()).hexdigest()


def _name_of(kind: type[Policy], digest: str | None) -> str:
    """The name by which the command line finds this very class; else the class's own."""
    name = kind.__module__.rpartition(".")[2].replace("_", "-")
    if name in policy_names() and policy_class(name)[1] == digest:
        return name
    return kind.__name__


# --- traces that are DataFrames


def _is_frame(trace: Any) -> bool:
    return trace is not None and not isinstance(trace, str | Path)


def _write_frame(trace: Any, file: Path) -> None:
    """Raises ConfigError: no DataFrame, or one that holds what no trace can."""
    import pandas as pd  # noqa: PLC0415  heavy
    import pyarrow as pa  # noqa: PLC0415

    if not isinstance(trace, pd.DataFrame):
        raise ConfigError(f"trace: give a path or a DataFrame, not a {type(trace).__name__}")
    try:
        trace.to_parquet(file, index=False)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise ConfigError(f"{_FRAME_WORDS}: {str(error).splitlines()[0]}") from None


@contextmanager
def _in_words(file: Path | None) -> Iterator[None]:
    """A mistake in a DataFrame is told without the file that it was written to."""
    try:
        yield
    except SimError as error:
        if file is None or str(file) not in str(error):
            raise
        raise type(error)(str(error).replace(str(file), _FRAME_WORDS)) from None
