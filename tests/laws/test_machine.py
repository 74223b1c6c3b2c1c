"""A state machine that plays the cluster: anything legal at any time, the laws and accounts of our own after each rule.

Hypothesis chooses the world (swarm.py), when to act, and what. A failure is cut down (shrinking.py) and written to a
folder: its scenario, requests and actions, for `python -m sim run` to play again. tests/tools/fuzz.py does the same at
length with seeds. The last tests break the engine on purpose and see both find it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisException
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import sim
from sim.core.world import Changes
from sim.engine.engine import Engine
from sim.policy import View
from tests.support.fuzzing.checks import (
    CHECKS,
    RANDOM,
    CaseFailed,
    Refused,
    Watch,
    as_script,
    assert_after,
    assert_same,
    prepared,
    watched,
)
from tests.support.fuzzing.random_cases import Seeded
from tests.support.fuzzing.random_policy import KINDS, Intent, RandomPolicy
from tests.support.fuzzing.shrinking import MOST_PLAYS, Shrinker, commands, keep, place_of
from tests.support.fuzzing.swarm import Case, case_of, swarm_case
from tests.support.places import ROOT

CALM_S = 30.0
Choice = TypeVar("Choice")
NUMBERS = st.integers(0, 999)
INTENTS = st.lists(st.tuples(st.sampled_from(KINDS), NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=4)
MOMENTS = st.sampled_from((0.001, 1e-9, 0.0137, 0.11, 0.7, 3.3))


class Drawn:
    """Choices of Hypothesis: the first of the options is the simplest."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw

    def pick(self, options: Sequence[Choice]) -> Choice:
        return self.draw(st.sampled_from(options))

    def number(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))


@st.composite
def worlds(draw: st.DrawFn) -> Case:
    """Cases that are no mistake of the user."""
    case = swarm_case(Drawn(draw), name=RANDOM, calm_s=CALM_S, rejects=True)
    try:
        prepared(case, Puppet(case))
    except Refused:
        assume(False)
    return case


class Puppet(RandomPolicy):
    """Does what the machine wants, from the time on at which it wants it; then it is calm."""

    def __init__(self, case: Case) -> None:
        parameters = {name: value for name, value in case.policy.items() if name != "name"}
        super().__init__(RandomPolicy.Parameters(**parameters))
        self.due_s = 0.0
        self.wanted: list[Intent] = []

    def intents(self, view: View) -> Iterable[Intent]:
        if view.now_s < self.due_s:
            return ()
        wanted, self.wanted = self.wanted, []
        return wanted


class Machine(RuleBasedStateMachine):
    """One run, moved on by rules."""

    folder = Path(tempfile.gettempdir()) / "sim-machine"  # where failures go

    engine: Engine | None = None
    failed = False
    place: tuple[str, str, int] | None = None  # where it failed last,
    told = ""  # and how to see that again
    most_plays = MOST_PLAYS  # to cut it down

    @initialize(case=worlds(), wanted=INTENTS)
    def begin(self, case: Case, wanted: list[Intent]) -> None:
        self.case = case
        self.wakes: list[float] = []
        self.puppet = Puppet(case)
        self.puppet.wanted = wanted
        self.engine = prepared(case, self.puppet)
        self.watch = Watch(self.engine)
        with self._kept():
            self.engine.begin()

    @precondition(lambda self: self.engine is not None and self.engine.clock.now_s < CALM_S - 5)
    @rule(wanted=INTENTS, after_s=MOMENTS)
    def act(self, wanted: list[Intent], after_s: float) -> None:
        """So much later, these: as far as they are legal then."""
        assert self.engine is not None
        at_s = self.engine.clock.now_s + after_s
        self.puppet.wanted, self.puppet.due_s = wanted, at_s
        self.wakes.append(at_s)
        self.engine._wake_at(at_s)
        self._until(at_s)

    @precondition(lambda self: self.engine is not None and self.engine.clock.now_s < CALM_S - 5)
    @rule(wanted=INTENTS)
    def react(self, wanted: list[Intent]) -> None:
        """These at whatever happens next."""
        assert self.engine is not None
        self.puppet.wanted = wanted
        queue = self.engine.clock._queue
        if queue:
            self._until(queue[0][0])

    @precondition(lambda self: self.engine is not None)
    @rule(seconds=MOMENTS)
    def wait(self, seconds: float) -> None:
        assert self.engine is not None
        self._until(self.engine.clock.now_s + seconds)

    def _until(self, time_s: float) -> None:
        assert self.engine is not None
        clock = self.engine.clock
        with self._kept():
            while clock._queue and clock._queue[0][0] <= time_s:
                clock.step()

    @invariant()
    def holds(self) -> None:
        """The laws, and what the views say adds up."""
        if self.engine is None or self.failed:
            return
        with self._kept():
            cluster = self.engine.world.cluster
            cluster.check()
            self.watch.look()
            if len(cluster.down) < len(cluster.gpus):
                self.puppet.audit.look(View(self.engine.world, self.engine.views, Changes()), follows=False)

    def teardown(self) -> None:
        """To the end, where everybody has been served; and all of it once more, from the list of its actions."""
        if self.engine is None or self.failed:
            return
        with self._kept():
            self.engine.clock.run()
            self.engine.finish()
            assert_after(self.engine, self.case)
            assert_same(self.engine, watched(self.script(), False)[0])

    def script(self) -> Case:
        """What was done, to be played without the machine."""
        case = as_script(self.case, self.puppet)
        return replace(case, policy={**case.policy, "wakes": self.wakes})

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """A failure inside is cut down and written: faster than Hypothesis could, which draws all of it anew."""
        try:
            yield
        except HypothesisException:
            raise
        except Exception as error:
            self.failed = True
            if self.place != place_of(error):  # else it is the same example, played again for the report
                Machine.place = place_of(error)
                shrinker = Shrinker(CaseFailed("laws", self.script(), error), self.most_plays)
                Machine.told = commands(keep(shrinker.smallest(self.script()), self.folder, repr(error)))
            error.add_note(self.told)
            raise


QUICK = settings(
    derandomize=True,
    deadline=None,
    max_examples=40,
    stateful_step_count=30,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
TestMachine = Machine.TestCase
TestMachine.settings = QUICK


# --- from seeds


@pytest.mark.parametrize("check", CHECKS)
def test_cases_of_seeds_pass_every_check(check: str) -> None:
    for seed in range(6):
        case = swarm_case(Seeded(seed), name=RANDOM, stream=seed, calm_s=20.0)
        try:
            CHECKS[check](case)
        except Refused:
            continue


def test_a_case_is_plain_data() -> None:
    case = swarm_case(Seeded(4), name=RANDOM, stream=1, actions=[[0.1, 0, "load", 1, 2, 3]])
    assert case_of(case.to_json()).to_json() == case.to_json()


@pytest.mark.parametrize("seed", range(3))
def test_what_is_kept_is_the_same_run(seed: int, tmp_path: Path) -> None:
    case = swarm_case(Seeded(seed), name=RANDOM, stream=seed, calm_s=20.0)
    engine, _ = watched(case)
    policy = engine.policy
    assert isinstance(policy, RandomPolicy)
    file = keep(as_script(case, policy), tmp_path, "nothing")
    kept = sim.simulate(file, policy=str(file.with_name("random_policy.py")), check=True)
    names = ("arrival_s", "first_token_s", "end_s", "produced_tokens", "decode_s", "queued_s")
    columns = kept.outcome.recorder.columns
    for name in names:
        mine = engine.world.recorder.columns[name]
        assert mine.tolist() == pytest.approx(columns[name].tolist(), rel=0, abs=0, nan_ok=True), name


# --- an engine that is broken on purpose

# Each loses something small, and only where several things come together.
BREAKS = {
    "a token of a preempted sequence": """
from sim.core.state.instance import Instance
leave = Instance.leave_decoding
def broken(instance, request, phase, now_s):
    leave(instance, request, phase, now_s)
    if phase == 5 and request.produced > 4:
        request.produced -= 1
Instance.leave_decoding = broken
""",
    "a block of saved KV that is dropped": """
from sim.core.kv import KvMoves
drop = KvMoves.drop
def broken(moves, request):
    node = request.kv_node
    drop(moves, request)
    if node is not None:
        node.memory.saved_kv_bytes += 1
KvMoves.drop = broken
""",
}
needs_source = pytest.mark.skipif(sim.COMPILED, reason="a compiled engine cannot be broken from outside")


def python(breaking: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A module of ours as a program with a broken engine, in a process of its own."""
    run = f"runpy.run_module({arguments[0]!r}, run_name='__main__', alter_sys=True)"
    code = f"{breaking}\nimport runpy, sys\nsys.argv = {list(arguments)!r}\n{run}"
    environment = {**os.environ, "SIM_INTERPRETED": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )


def replays(breaking: str, scenario: Path) -> bool:
    """Does `python -m sim run` show the failure, and a whole engine none?"""
    words = commands(scenario).splitlines()[0].split()[2:]
    whole, broken = (python(text, *words, "--json") for text in ("", breaking))
    assert whole.returncode == 0, whole.stderr
    return broken.returncode != 0


@needs_source
@pytest.mark.parametrize("what", BREAKS)
def test_the_machine_finds_what_is_broken(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sim.core.kv import KvMoves  # noqa: PLC0415
    from sim.core.state.instance import Instance  # noqa: PLC0415

    for owner, name in ((Instance, "leave_decoding"), (KvMoves, "drop")):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back at the end, whatever is set meanwhile
    for name, value in (("folder", tmp_path), ("place", None), ("told", ""), ("most_plays", 300)):
        monkeypatch.setattr(Machine, name, value)
    exec(BREAKS[what], {})
    with pytest.raises(Exception) as failure:  # noqa: PT011  whichever law notices first
        run_state_machine_as_test(Machine, settings=settings(QUICK, max_examples=300))
    monkeypatch.undo()
    (command,) = re.findall(r"python -m sim run (\S+/scenario.yaml) ", "\n".join(failure.value.__notes__))
    case = case_of(Path(command).with_name("case.json").read_text())
    assert len(case.rows) <= 3
    assert len(case.policy["actions"]) <= 8
    assert replays(BREAKS[what], Path(command))


@needs_source
def test_the_script_finds_what_is_broken(tmp_path: Path) -> None:
    breaking, tool = BREAKS["a token of a preempted sequence"], "tests.tools.fuzz"
    done = python(breaking, tool, "--scenarios", "4", "--start", "1", "--jobs", "1", "--out", str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"FAILED seed \d+, check 'laws'", done.stdout)
    found = re.findall(r"python -m sim run (\S+/scenario.yaml) ", done.stdout)
    assert any(replays(breaking, Path(file)) for file in found)
    case = Path(found[0]).with_name("case.json")
    assert python(breaking, tool, "--replay", str(case)).returncode == 1
    assert python("", tool, "--replay", str(case)).returncode == 0
    assert "Never reached" in done.stdout
