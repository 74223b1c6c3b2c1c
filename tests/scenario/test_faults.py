"""What a user may say of faults, and how a mistake is told."""

from __future__ import annotations

from typing import Any

import pytest

from sim.common.errors import ConfigError
from sim.policy import load_policy
from sim.scenario.scenario import parse_scenario, resolved
from tests.support.scenarios import play, scenario, trace

GPU = "box-1/small-0"
DOWN: dict[str, Any] = {"kind": "gpu_failure", "at_s": 1.0, "gpu": GPU}
LOST: dict[str, Any] = {"kind": "node_loss", "at_s": 1.0, "node": "box-1"}
MISTAKES = {
    "events.0.kind': unknown 'gpu_fail'; did you mean 'gpu_failure'?": {"events": [{"kind": "gpu_fail", "at_s": 1}]},
    "give a mapping with 'kind': one of gpu_failure, node_loss": {"events": [{"at_s": 1, "gpu": GPU}]},
    "give either repair_s": {"random": {"gpu_failure": {"mean_between_s": 5}}},
    "give either for_s": {"random": {"slow_link": {"mean_between_s": 5, "factor": 0.5}}},
    "disk is a node's": {"events": [{"kind": "slow_link", "at_s": 1, "factor": 0.5, "gpu": GPU, "links": ["disk"]}]},
    "give one of the two": {"events": [{"kind": "slow_link", "at_s": 1, "factor": 0.5}]},
    "faults.events.0.factor': input should be greater": {
        "events": [{"kind": "slow_link", "at_s": 1, "factor": 0, "gpu": GPU}]
    },
    "faults.random.load_failure.probability': input should be less than 1": {
        "random": {"load_failure": {"probability": 1}}
    },
    "faults.retries'": {"retries": -1},
    "unknown field 'faults.retry'; did you mean 'retries'?": {"retry": 1},
    "faults.events.0.at_s'": {"events": [{"kind": "gpu_failure", "at_s": float("inf"), "gpu": GPU}]},
    "faults.events.0.gpu: the cluster has no GPU 'box-1/smal-0'; did you mean 'box-1/small-0'?": {
        "events": [{**DOWN, "gpu": "box-1/smal-0"}]
    },
    "faults.events.1.node: the cluster has no node 'boxx'; did you mean 'box-1'?": {
        "events": [LOST, {**LOST, "node": "boxx"}]
    },
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistakes_are_told_in_one_line(text: str) -> None:
    with pytest.raises(ConfigError) as told:
        play(of := scenario(faults=MISTAKES[text]), load_policy("lru-swap")[0], trace(of, [(0.0, "a", 1, 1)]))
    assert text in str(told.value)
    assert "\n" not in str(told.value)


def test_a_scenario_without_faults_is_as_before() -> None:
    assert "faults" not in resolved(scenario())
    of = scenario(faults={"random": {"gpu_failure": {"mean_between_s": 5, "repair_s": 1}}})
    assert parse_scenario(resolved(of), "again") == of
