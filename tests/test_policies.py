"""What every file in policies/ must do, whatever it schedules by: each new policy gets these tests free.

Legal actions only, the same result from the same seed, nothing read that no scheduler can know, progress under load,
and imports of sim.policy, the standard library, numpy and scipy alone.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from laws import assert_laws, assert_settled
from scenarios import GB, Row, as_yaml, columns, nodes, play, scenario, trace

from sim.engine import Engine
from sim.errors import PolicyError
from sim.policy import Action, GpuView, InstanceView, ModelView, Policy, RequestView, View, load_policy, policy_names
from sim.request import COMPLETED, UNFINISHED
from sim.spec import Scenario

ROOT = Path(__file__).parent.parent
FILES = sorted(path for path in (ROOT / "policies").glob("*.py") if not path.stem.startswith("_"))
# These keep what they placed at the start: a model that found no room then is never served.
STATIC = ("least-loaded", "static-split")
FOUR = {"a": "four", "b": "two", "c": "eight", "d": "giant"}

every_policy = pytest.mark.parametrize("name", policy_names())


def requests(models: Iterable[str], count: int, gap_s: float, seed: int = 1) -> list[Row]:
    """Poisson arrivals, the models in turn with some luck."""
    draws = np.random.default_rng(seed)
    names = list(models)
    arrivals_s = np.cumsum(draws.exponential(gap_s, count)).tolist()
    return [
        (arrival_s, names[draws.integers(len(names))], int(draws.integers(1, 500)), int(draws.integers(1, 500)))
        for arrival_s in arrivals_s
    ]


def tight(models: dict[str, str], **fields: Any) -> dict[str, Any]:
    """One small GPU, and host memory for one copy of everything."""
    return {"models": models, "cluster": nodes(("small", 1), **fields)}


SCENARIOS: dict[str, dict[str, Any]] = {
    "one model": {},
    "one model, part of it": {"models": {"a": "giant"}},
    "memory pressure": tight(FOUR),
    "disk": tight(FOUR, cache_at_start="none"),
    "small weight cache": tight(FOUR, weight_cache_gib=17.0),
    "small host": tight({"a": "four", "b": "two", "c": "eight"}, memory_gib=7.0 * GB / 2**30),
    "no host memory to speak of": tight({"a": "four", "b": "two"}, memory_gib=0.5),
    "impossible": tight({"a": "four", "b": "giant"}, memory_gib=5.0 * GB / 2**30),
    "two nodes": {
        "models": FOUR,
        "cluster": {
            "nodes": [{"host": "box", "gpus": [{"gpu": "small"}, {"gpu": "fast"}]}, *nodes(("large", 1))["nodes"]]
        },
    },
    "streaming": {"models": FOUR, "cluster": nodes(("small-s", 2), host="wide")},
    "two of one": {"models": {"a": "four", "b": "four", "c": "four"}},
    "impatient": {**tight(FOUR), "service_classes": [{"name": "default", "patience_s": 5.0}]},
    "oracle": {**tight(FOUR), "predictor": {"kind": "oracle"}},
}
RESIZES = ("none", "sleep", "elastic")


def prepared(name: str, resize: str, **changes: Any) -> Scenario:
    engine = {"max_sequences": 4, "resize": resize}
    return scenario(**{"engine": engine, "horizon_s": 5000.0, "policy": {"name": name}, **changes})


def run(of: Scenario, rows: list[Row], policy: Policy | None = None) -> Engine:
    try:
        engine = play(of, policy or load_policy(of.policy.name, of.policy.parameters)[0], trace(of, rows))
        assert_laws(engine, len(rows))
    except Exception as error:
        error.add_note(f"rows = {rows}\n{as_yaml(of)}")
        raise
    return engine


@every_policy
@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("which", SCENARIOS)
def test_it_asks_for_legal_actions_only(name: str, which: str, resize: str) -> None:
    of = prepared(name, resize, **SCENARIOS[which])
    run(of, requests([model.name for model in of.models], 40, 0.5))


@every_policy
def test_the_same_seed_gives_the_same_result(name: str) -> None:
    of = prepared(name, "elastic", **tight(FOUR))
    rows = requests(FOUR, 60, 0.3)
    one, other = (columns(run(of, rows)) for _ in range(2))
    for column in one:
        assert np.array_equal(one[column], other[column], equal_nan=one[column].dtype.kind == "f"), column


@every_policy
@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("gap_s", [0.05, 2.0])
def test_every_feasible_request_completes(name: str, resize: str, gap_s: float) -> None:
    # Ample host memory, so that whatever is stopped can come back. A static placement serves what it placed.
    models = {"a": "four", "b": "two"} if name in STATIC else FOUR
    of = prepared(name, resize, models=models, cluster=nodes(("small", 1)), horizon_s=50_000.0)
    engine = run(of, requests(models, 120, gap_s))
    assert engine.world.recorder.ended[UNFINISHED] == 0
    assert engine.world.recorder.ended[COMPLETED] == 120
    assert_settled(engine)


# --- what it may not know


class Watched(Policy):
    """Another policy's decisions, written down."""

    def __init__(self, inner: Policy) -> None:
        super().__init__()
        self.inner = inner
        self.decisions: list[tuple[float, list[str]]] = []

    def start(self, view: View) -> Iterator[Action]:
        yield from self._noted(view, self.inner.start(view))

    def decide(self, view: View) -> Iterator[Action]:
        yield from self._noted(view, self.inner.decide(view))

    def _noted(self, view: View, actions: Iterable[Action]) -> Iterator[Action]:
        noted: list[str] = []
        self.decisions.append((view.now_s, noted))
        for action in actions:
            values = (str(getattr(action, field.name)) for field in fields(action))
            noted.append(f"{type(action).__name__}({', '.join(values)})".split(" object")[0])
            yield action


@every_policy
@pytest.mark.parametrize("resize", ["none", "elastic"])
def test_it_does_not_see_lengths_before_they_show(name: str, resize: str) -> None:
    # Two worlds that differ in the output lengths alone: until the first sequence ends in one of them, nobody can
    # tell which of them it is, so all decisions are the same.
    of = prepared(name, resize, models=FOUR, cluster=nodes(("small", 2)))
    rows = requests(FOUR, 60, 0.3)
    other_rows = [(*row[:3], 1 + (row[3] * 7 + 13) % 500) for row in rows]
    seen = []
    ends_s = []
    for these in (rows, other_rows):
        policy = Watched(load_policy(name)[0])
        end_s = columns(run(of, these, policy))["end_s"]
        seen.append(policy.decisions)
        ends_s.append(end_s.min())
    first_s = min(ends_s)
    one, other = ([entry for entry in decisions if entry[0] < first_s] for decisions in seen)
    assert one == other
    assert len(one) > 2
    assert any(actions for _, actions in one)


def test_the_two_worlds_do_tell_a_policy_that_peeks() -> None:
    # The test above can fail: this policy reads the true length and routes by it.
    of = prepared("lru-swap", "none", models={"a": "four"})
    rows: list[Row] = [(3.0, "a", 9, 400), (3.1, "a", 9, 100)]
    seen = []
    for these in (rows, [(*row[:3], 500 - row[3]) for row in rows]):
        policy = Watched(Peeking())
        run(of, these, policy)
        seen.append([entry for entry in policy.decisions if entry[0] < 3.2])
    assert seen[0] != seen[1]


class Peeking(Policy):
    def start(self, view: View) -> Iterator[Action]:
        from sim.policy import Load  # noqa: PLC0415

        yield Load(view.models[0], view.gpus[0], 4)

    def decide(self, view: View) -> Iterator[Action]:
        from sim.policy import Route, Wake  # noqa: PLC0415

        for request in list(view.waiting):
            if view.now_s > 3.15 or request._of.output_tokens > 200:
                yield Route(request, view.instances[0])
            else:
                yield Wake(3.2)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_file_imports_what_a_policy_may(path: Path) -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "scipy"}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: a policy is one file"
            names = [node.module or ""]
        else:
            continue
        for name in names:
            assert name == "sim.policy" or name.split(".")[0] in allowed, f"{path.name}:{node.lineno} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_its_file_does_not_reach_behind_the_views(path: Path) -> None:
    # A view's own fields begin with an underscore; a policy has no business with those of others.
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            owner = node.value
            assert isinstance(owner, ast.Name), f"{path.name}:{node.lineno}: {ast.unparse(node)}"
            assert owner.id == "self", f"{path.name}:{node.lineno}: {ast.unparse(node)}"


def test_every_file_is_a_policy_that_can_be_chosen() -> None:
    assert [path.stem.replace("_", "-") for path in FILES] == policy_names()


@every_policy
def test_a_wrong_parameter_is_named(name: str) -> None:
    with pytest.raises(Exception, match=rf"policy '{name}' has no parameter 'nonsense'"):
        load_policy(name, {"nonsense": 1})


# --- views


class Keeper(Policy):
    """Keeps the first view, and every kind of facade."""

    def __init__(self) -> None:
        super().__init__()
        self.view: View | None = None
        self.facades: list[Any] = []
        self.refused: list[str] = []

    def decide(self, view: View) -> Iterator[Action]:
        if self.view is None:
            self.view = view
            self.facades = [view.models[0], view.gpus[0], view.nodes[0], next(iter(view.waiting))]
            for facade in (view, *self.facades):
                self._try_to_change(facade)
        else:
            for attribute in ("now_s", "models", "gpus", "nodes", "instances", "waiting", "arrived", "loaded", "freed"):
                with pytest.raises(PolicyError, match="a view is valid for one decision only"):
                    list(value) if isinstance(value := getattr(self.view, attribute), Iterator) else None
                self.refused.append(attribute)
        yield from load_policy("lru-swap")[0].decide(view)

    def _try_to_change(self, facade: Any) -> None:
        for attribute in (name for name in dir(type(facade)) if not name.startswith("_")):
            with pytest.raises((PolicyError, AttributeError)):
                setattr(facade, attribute, 0)
        with pytest.raises((PolicyError, AttributeError)):
            facade.of_my_own = 1


def test_views_end_with_their_decision_and_cannot_be_set() -> None:
    of = prepared("lru-swap", "none")
    policy = Keeper()
    engine = run(of, [(0.0, "a", 10, 20), (1.0, "a", 10, 20)], policy)
    assert engine.world.recorder.ended[COMPLETED] == 2
    assert len(policy.refused) >= 9
    kinds = (ModelView, GpuView, RequestView, InstanceView)
    assert sum(isinstance(facade, kinds) for facade in policy.facades) == 3


@every_policy
@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("draw", range(40))
def test_nobody_waits_for_ever_where_memory_is_ample(name: str, resize: str, draw: int) -> None:
    # Few requests, so that no later event wakes a policy that decided to wait for nothing: giants that fit in parts,
    # on one or two GPUs that are not alike.
    draws = np.random.default_rng(draw)
    gpus = [(str(draws.choice(["small", "fast", "small-s"])), 1) for _ in range(draws.integers(1, 3))]
    of = prepared(name, resize, models={"a": "giant"}, cluster=nodes(*gpus, host="wide"))
    gaps_s = draws.choice([0.0, 0.05, 0.7, 3.0], draws.integers(2, 7))
    prompts = draws.choice([1, 60, 400], len(gaps_s)).tolist()
    outputs = draws.choice([[1, 1], [1, 20], [20, 400]][draw % 3], len(gaps_s)).tolist()
    rows = [(float(s), "a", *both) for s, *both in zip(np.cumsum(gaps_s), prompts, outputs, strict=True)]
    assert run(of, rows).world.recorder.ended[UNFINISHED] == 0
