"""How instances that compute beside one another slow each other down: each law against its formula, and the policies'
view of it against the engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sim.policy import Action, Load, View, Wake
from tests.support.scenarios import Script, nodes, play, scenario, serve_all, trace

LAYERS = {"a": 4, "b": 1, "c": 2}


def beside(law: str, gpu: str = "large", names: str = "abc") -> dict[str, dict[str, Any]]:
    """Shares and stretches of models whole and in part that decode on one GPU, and what policies are told."""
    of = scenario(models=dict.fromkeys(names, "four"), cluster=nodes((gpu, 1)), sharing={"contention": law})
    seen: dict[str, dict[str, Any]] = {}

    def start(view: View) -> Iterator[Action]:
        for model in view.models:
            yield Load(model, view.gpus[0], LAYERS[model.name])
        yield Wake(60.0)

    def decide(view: View) -> Iterator[Action]:
        yield from serve_all(view)
        if view.now_s == 60.0:
            for each in view.instances:
                real = each._of
                seen[each.model.name] = {
                    "shares": (real.gpu_share, real.host_share),
                    "stretches": (real.gpu_stretch, real.host_stretch),
                    "told": view.gpus[0].crowd(each).stretch(*each.shares),
                }

    play(of, Script(decide, start), trace(of, [(50.0, name, 10, 900) for name in names]))
    assert len(seen) == len(names)
    return seen


def expected(law: str, shares: list[float], mine: float) -> float:
    others = sum(shares) - mine
    if law == "proportional":
        return max(1.0, mine + others)
    return 1.0 + (others if law == "processor_sharing" else sum(share > 0 for share in shares) - 1)


@pytest.mark.parametrize("law", ["proportional", "processor_sharing", "time_slice"])
def test_parts_are_stretched_by_the_law(law: str) -> None:
    found = beside(law)
    assert 0 < found["b"]["shares"][0] < found["c"]["shares"][0] < found["a"]["shares"][0] == 1.0
    for part, resource in enumerate(("GPU", "CPU")):
        shares = [each["shares"][part] for each in found.values()]
        for name, each in found.items():
            if each["shares"][part]:
                law_says = expected(law, shares, each["shares"][part])
                assert each["stretches"][part] == pytest.approx(law_says), (name, resource)
                assert each["told"][part] == pytest.approx(law_says), (name, resource)
                assert law_says > 1


@pytest.mark.parametrize("law", ["proportional", "processor_sharing", "time_slice"])
def test_who_is_alone_is_not_slowed(law: str) -> None:
    assert beside(law, names="b")["b"]["stretches"] == (1.0, 1.0)


@pytest.mark.parametrize("law", ["proportional", "processor_sharing", "time_slice"])
def test_streams_share_the_link_by_the_law(law: str) -> None:
    found = beside(law, "small-s", "bc")
    shares = [each["shares"][1] for each in found.values()]
    assert min(shares) > 0
    for each in found.values():
        assert each["stretches"][1] == pytest.approx(expected(law, shares, each["shares"][1]))


def test_the_laws_stretch_one_more_than_the_other() -> None:
    laws = [beside(law) for law in ("proportional", "processor_sharing", "time_slice")]
    for name in LAYERS:
        least, middle, most = (law[name]["stretches"][0] for law in laws)
        assert least <= middle + 1e-9
        assert middle <= most + 1e-9
        assert least < most - 0.1
