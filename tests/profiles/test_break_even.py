"""n*, the tokens that pay for loading the rest of a model: by hand, by a bandwidth model's formula, and printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sim.cli.main import main
from sim.common.errors import ProfileError
from sim.profiles.break_even import At, break_even
from tests.support.scenarios import step_s, synthetic


def test_by_hand() -> None:
    # `four` has 4 layers of 1 GB: start 1 s, fixed 0.5 s, 8 GB/s, wake 0.125 s (scenarios.py).
    half, *_ = break_even("four", "small", at=At(1, 1000, (0.5,)), folder=Path(synthetic()))
    slower_s = step_s(2, 4, 1, 1000) - step_s(4, 4, 1, 1000)
    assert half.layers == 2
    assert half.restart == pytest.approx((1.5 + 4 / 8) / slower_s)
    assert half.wake == pytest.approx((0.125 + 4 / 8) / slower_s)
    assert half.grow == pytest.approx(2 / 8 / slower_s)


def test_a_batch_shares_the_load() -> None:
    half, *_ = break_even("four", "small", at=At(8, 0, (0.5,)), folder=Path(synthetic()))
    slower_s = step_s(2, 4, 8, 0) - step_s(4, 4, 8, 0)
    assert half.grow == pytest.approx(8 * 2 / 8 / slower_s)


@pytest.mark.parametrize(("model", "gpu", "quantization"), [("Llama-3-8B", "rtx-4090", "Q4_K_M")])
def test_without_a_restart_it_hardly_depends_on_residency(model: str, gpu: str, quantization: str) -> None:
    # policies.md 5.2: moving only what is missing costs about CPU bandwidth over link bandwidth, whatever is missing.
    points = [point for point in break_even(model, gpu, quantization) if point.host == "i5-13600k"]
    assert len(points) == 5
    grows = [point.grow for point in points]
    assert max(grows) < 1.05 * min(grows)
    assert grows[0] == pytest.approx(53.3055 / 9, rel=0.15)  # the host's fitted bandwidth, the table's reload rate
    restarts = [point.restart for point in points]
    assert restarts == sorted(restarts)
    assert restarts[-1] > 4 * restarts[0]


def test_what_fits_nowhere_whole_has_none() -> None:
    assert not [p for p in break_even("Llama-3-70B") if p.gpu == "rtx-4090"]
    with pytest.raises(ProfileError, match="no GPU with tables for Llama-3-70B on rtx-4090 holds it whole"):
        break_even("Llama-3-70B", "rtx-4090")


def test_mistakes_are_named() -> None:
    with pytest.raises(ProfileError, match="unknown model 'Lama'"):
        break_even("Lama")
    with pytest.raises(ProfileError, match="unknown quantization 'Q4'; did you mean 'Q4_K_M'"):
        break_even("Llama-3-8B", quantization="Q4")
    with pytest.raises(ProfileError, match="do not go to a batch of 100000"):
        break_even("Llama-3-8B", at=At(batch=100_000))


def test_it_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["profile", "break-even", "Llama-3-8B", "--gpu", "rtx-4090"])
    assert not ended.value.code
    assert "elastic" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["profile", "break-even", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert {row["model"] for row in rows} > {"Llama-3-8B", "Qwen3-32B"}
    assert all(row["grow_tokens"] is None or row["grow_tokens"] < row["restart_tokens"] for row in rows)
