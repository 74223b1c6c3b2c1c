"""The shape that arXiv 2605.19593 found must hold in the tables; where they disagree, that is known and written down.

profiles/README.md ("The paper's shape") tells the same; a table that joins or leaves the exceptions changes both.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.profiles.catalogue import profile_catalogue
from sim.profiles.library import Library
from sim.profiles.profile import Profile
from sim.profiling.fill import fill
from tests.support.profile_cases import ROWS, Plan, folder

TABLES = Library().table_keys()
CONTEXT = 1000
# Transformers on server GPUs: launching kernels bounds small models whole, so they lose less than large ones.
LARGE_LOSE_MORE = [("a100-80gb", "hf-transformers"), ("h100", "hf-transformers"), ("l40s", "hf-transformers")]


def profiles(library: Library, key: tuple[str, str, str]) -> list[Profile]:
    """All models of a table, small ones first."""
    rows = (library.table_folder(key) / "switch.csv").read_text(encoding="utf-8").splitlines()[1:]
    models = [row.split(",")[:2] for row in rows]
    found = [library.profile(model, quantization, *key) for model, quantization in models]
    return sorted(found, key=lambda profile: profile.weights.total_bytes)


def speed(profile: Profile, share: float, context: float = CONTEXT) -> float:
    layers = round(share * profile.weights.layers)
    return 1 / profile.step_s(layers, 1, min(context, profile.longest_context))


def assert_convex(profile: Profile) -> None:
    """The curve lies below each chord to the full model, and rises most at its end."""
    for share in (0.25, 0.5, 0.75):
        left = 0.5 * (speed(profile, 2 * share - 1) if share > 0.5 else speed(profile, 0.0))
        middle = speed(profile, share if share > 0.5 else 0.5)
        assert middle < left + 0.5 * speed(profile, 1.0)
    gains = [
        speed(profile, high) - speed(profile, low) for low, high in ((0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1))
    ]
    assert gains == sorted(gains)


@pytest.mark.parametrize("key", TABLES, ids="--".join)
def test_throughput_is_convex_and_falls_with_context(key: tuple[str, str, str]) -> None:
    for profile in profiles(Library(), key):
        assert_convex(profile)
        for share in (0.0, 0.5, 1.0):
            assert speed(profile, share, 1000) > speed(profile, share, 8000)


@pytest.mark.parametrize("key", TABLES, ids="--".join)
def test_small_models_lose_more_at_90_per_cent(key: tuple[str, str, str]) -> None:
    found = {profile.weights.model: profile for profile in profiles(Library(), key)}
    small = found["Llama-3-8B"]
    large = found.get("Llama-3-70B") or found["Qwen3-32B"]
    lost = [1 - speed(profile, 0.9) / speed(profile, 1.0) for profile in (small, large)]
    assert (lost[0] > lost[1]) == ((key[0], key[2]) not in LARGE_LOSE_MORE), lost


@pytest.mark.parametrize("gpu", ["rtx-a6000", "rtx-5000-ada"])
@pytest.mark.parametrize("model", ["Qwen2.5-3B", "Qwen3-8B", "Qwen2.5-14B"])
def test_reloading_is_nearly_all_of_a_preemption_on_the_papers_machines(gpu: str, model: str) -> None:
    facts = next(each for each in profile_catalogue(model, gpu, "FP16") if each.table.engine == "hf-transformers")
    for at, least in ((facts.contexts.index(1000), 0.98), (facts.contexts.index(5000), 0.96)):
        parts = {name: seconds[at] for name, seconds in facts.preemption_s.items()}
        assert parts["reload"] / sum(parts.values()) >= least


def test_an_engine_that_starts_anew_spends_more_on_that_than_on_the_weights() -> None:
    facts = next(each for each in profile_catalogue("Llama-3-8B", "rtx-a6000", "Q4_K_M"))
    assert facts.preemption_s["engine start"][0] > facts.preemption_s["reload"][0]


def test_filled_tables_have_the_shape_too(tmp_path: Path) -> None:
    fill([folder(tmp_path / "measured", Plan(ROWS, noise=0.01))], tmp_path / "profiles")
    library = Library(tmp_path / "profiles")
    found = profiles(library, library.table_keys()[0])
    for profile in found:
        assert_convex(profile)
        assert speed(profile, 1.0, 500) > speed(profile, 1.0, 8000)
    lost = [1 - speed(profile, 0.9) / speed(profile, 1.0) for profile in found]
    assert lost == sorted(lost, reverse=True)
