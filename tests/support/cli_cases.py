"""What the command line's tests share: a small scenario on disk, and a run of the program in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner, Result

from sim.cli.main import app


def scenario_data(**changes: Any) -> dict[str, Any]:
    """A minute of two models on one GPU, as plain data."""
    return {
        "name": "mini",
        "cluster": {"nodes": [{"name": "a", "host": "tr-pro-5995wx", "gpus": [{"gpu": "rtx-a6000"}]}]},
        "models": [{"name": "chat", "model": "Qwen2.5-3B"}, {"name": "code", "model": "Llama-3-8B"}],
        "service_classes": [{"name": "default", "ttft_s": 5, "tpot_s": 0.1}],
        "workload": {
            "duration_s": 60,
            "traffic": [{"model": "chat", "rate_per_s": 0.5}, {"model": "code", "rate_per_s": 0.2}],
        },
        "policy": {"name": "lru-swap"},
        **changes,
    }


def write_scenario(folder: Path, **changes: Any) -> Path:
    """The scenario as folder/mini.yaml."""
    path = folder / "mini.yaml"
    path.write_text(yaml.safe_dump(scenario_data(**changes)))
    return path


def invoke(*arguments: object) -> Result:
    """Run the program in this process; an AssertionError or any other fault of ours comes through."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
