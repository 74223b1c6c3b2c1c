"""What preempting a model costs in whole runs, against what arXiv 2605.19593 measured: through the shipped profiles."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sim.policy import Action, Load, Route, Stop, View
from tests.support.loading_cases import load, script, switches
from tests.support.scenarios import columns, nodes, play, scenario, trace

# --- the paper's preemption costs

PAPER_S = {
    "rtx-5000-ada": {"Qwen2.5-3B": 2.98, "Qwen3-8B": 5.16, "Qwen2.5-14B": 7.31},
    "rtx-a6000": {"Qwen2.5-3B": 2.62, "Qwen3-8B": 4.06, "Qwen2.5-14B": 5.73},
}
PAPER = [(gpu, model) for gpu, models in PAPER_S.items() for model in models]
MEAN_TOKENS = 2500  # about the paper's mean context at preemption


def preemption(gpu: str, model: str, tokens: int) -> dict[str, float]:
    """A job with so many tokens of context leaves the GPU for another model, comes back and goes on: cost by part."""
    of = scenario(
        models=[
            {"name": name, "model": model, "quantization": "FP16", "engine": "hf-transformers", "max_context": 8192}
            for name in ("job", "other")
        ],
        cluster=nodes((gpu, 1), host="tr-pro-5995wx"),
        profiles=None,
    )

    def route(view: View) -> Iterator[Action]:
        yield from (Route(request, view.instances[0]) for request in view.arrived)

    def leave(view: View) -> Iterator[Action]:
        assert next(iter(view.instances[0].requests)).produced_tokens >= 1
        yield Stop(view.instances[0], "preempt")
        yield Load(view.models[1], view.gpus[0], layers)

    def come_back(view: View) -> Iterator[Action]:
        yield Stop(view.instances[0])
        back = Load(view.models[0], view.gpus[0], layers)
        yield back
        yield Route(next(iter(view.models[0].waiting)), back)

    layers = {"Qwen2.5-14B": 48}.get(model, 36)
    policy = script({60.0: leave, 120.0: come_back}, load((0, 0, layers)), route)
    # Its long output is still under way at 60 s, with few tokens yet: the context is nearly all prompt.
    engine = play(of, policy, trace(of, [(58.0, "job", tokens, 400)]))
    rows = columns(engine)
    assert rows["produced_tokens"][0] == 400
    assert rows["model_preemptions"][0] == 1
    (save,), (restore,) = switches(engine, "kv_save"), switches(engine, "kv_restore")
    first, other, again = switches(engine, "load")
    assert (first["model"], other["model"], again["model"]) == ("job", "other", "job")
    frees = switches(engine, "free")
    seconds = engine.world.recorder.seconds
    assert seconds["kv_save_s"] == save["kv_save_s"]
    assert seconds["kv_restore_s"] == restore["kv_restore_s"]
    assert seconds["reload_s"] == pytest.approx(first["reload_s"] + other["reload_s"] + again["reload_s"])
    return {
        "kv_save": save["kv_save_s"],
        "free": frees[0]["free_s"],
        "reload": again["start_s"] + again["reload_s"],
        "kv_restore": restore["kv_restore_s"],
    }


@pytest.mark.parametrize(("gpu", "model"), PAPER)
@pytest.mark.parametrize("tokens", [100, MEAN_TOKENS])
def test_a_preemption_costs_what_the_paper_measured(gpu: str, model: str, tokens: int) -> None:
    parts = preemption(gpu, model, tokens)
    assert sum(parts.values()) == pytest.approx(PAPER_S[gpu][model], rel=0.05), parts
    # The weight swap (reload and free) is nearly all of it.
    assert (parts["reload"] + parts["free"]) / sum(parts.values()) >= 0.98, parts


@pytest.mark.parametrize(("gpu", "model"), PAPER)
def test_a_preemption_costs_nearly_the_same_at_any_context(gpu: str, model: str) -> None:
    short, long = preemption(gpu, model, 100), preemption(gpu, model, 5000)
    assert sum(long.values()) == pytest.approx(sum(short.values()), rel=0.03), (short, long)
    # At 5,000 tokens the published KV times themselves leave 97 to 99 % for the weights: Qwen2.5-14B on the A6000
    # saves and restores in 0.16 s of 5.8 s. The 98 % hold at the paper's mean of about 2,500 tokens.
    assert (long["reload"] + long["free"]) / sum(long.values()) >= 0.97, long
