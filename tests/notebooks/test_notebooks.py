"""The notebooks run from top to bottom at reduced size, say nothing on stderr, and what their prose says holds there.

Each runs in a kernel of its own and an empty folder, without network. They are committed as they were written, without
outputs. With SIM_NOTEBOOKS=full in the environment they run at their own size, some minutes together.
"""

from __future__ import annotations

import ast
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from tests.support.places import ROOT

FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))
FULL = os.environ.get("SIM_NOTEBOOKS") == "full"

# What stands in the parameters cell of each, made smaller.
REDUCED: dict[str, dict[str, Any]] = {
    "01-first-comparison": {"DURATION_S": 400, "SEEDS": 2, "JOBS": 0},
    "02-residency-curves": {"REQUESTS": 60, "RATES_PER_S": (0.05, 0.2), "RESIDENCIES": (1.0, 0.8, 0.5)},
    "03-preemption-cost": {"ANSWER_TOKENS": (100, 400, 800), "N_STAR_TOKENS": (10, 50, 100, 150), "SHARES": 6},
    "04-write-your-own-policy": {"DURATION_S": 600, "SEEDS": 2, "PATIENCE_S": (30, 300), "JOBS": 0},
    "05-capacity-and-cost": {
        "DURATION_S": 400,
        "SEEDS": 2,
        "TOLERANCE": 0.5,
        "POLICIES": ["lru-swap", "residency-aware"],
        "BOXES": {"RTX 4090, desktop": ("rtx-4090", "i5-13600k"), "L40S, server": ("l40s", "epyc-9654")},
        "JOBS": 0,
    },
}

# What the prose says of the results, of any size.
CLAIMS = {
    "01-first-comparison": """
        assert sum(weights_gb.values()) < sum(memory_gb.values())
        assert runs["least-loaded"].summary["switching"]["share_below_full_residency"] > 0.05
        assert runs["exclusive-swap"].summary["switching"]["loads"] > runs["lru-swap"].summary["switching"]["loads"]
        assert budget["decode"].idxmin() in ("exclusive-swap", "residency-aware")
        assert budget["queued"].idxmin() == "residency-aware"
        assert comparison.means.index[0] == "residency-aware"
        assert len(comparison.result.seeds) == SEEDS
        """,
    "02-residency-curves": """
        half = len(layers) // 2
        assert 1 - step_s.iloc[-1] / step_s.iloc[-2] > 0.2, "the last layer"
        assert step_s.iloc[-1] / step_s.iloc[-1 - half] < 0.25, "far from linear"
        assert np.allclose(np.diff(step_s.iloc[1:-1]), np.diff(step_s.iloc[1:-1]).mean()), "time is a straight line"
        curves = {name: relative_speed(profile) for name, profile in profiles.items()}
        assert curves["RTX 4090 + workstation CPU"].iloc[half] > 1.5 * curves["RTX 4090 + desktop CPU"].iloc[half]
        for k in (0, half):
            slowed = [profile.step_s(k, b, 1000) / profile.step_s(layers[-1], b, 1000) for b in (1, 8, 32)]
            assert slowed == sorted(slowed)
        spread = waits_s.max(axis=1) / waits_s.min(axis=1)
        assert spread.loc[1.0] < 1.3 < 2 < spread.iloc[-1], "they fan out"
        assert (waits_s.diff().iloc[1:] > 0).all().all()
        """,
    "03-preemption-cost": """
        assert ((back / bill.sum(axis=1)) > 0.9).all()
        assert ((memories / bill.sum(axis=1)) < 0.06).all()
        assert list(run.switches.kind) == ["load", "kv_save", "free", "load", "free", "load", "kv_restore"]
        gap = sums["wait for the report"] - sums["preempt it"]
        assert gap.iloc[0] <= 0 < gap.iloc[-1]
        assert gap.min() < -5
        assert n_star["restart"].iloc[-1] > 3 * n_star["restart"].iloc[0]
        assert n_star["grow"].iloc[-1] < 2 * n_star["grow"].iloc[0]
        for way, found in crossings.items():
            assert 0.85 * getattr(half, way) < found < 1.05 * getattr(half, way), way
        """,
    "04-write-your-own-policy": """
        assert all(verdict.status in ("passed", "not applicable") for verdict in verdicts)
        by_label = {policy.label: policy for policy in comparison.result.policies}
        assert all(policy.counts["completed"] == policy.counts["arrived"] for policy in by_label.values())
        means = comparison.means
        assert means.loc["patient-swap", "longest_wait_s"] < means.loc["on-demand", "longest_wait_s"]
        assert means.loc["patient-swap", "e2e_all_s.mean"] > means.loc["on-demand", "e2e_all_s.mean"]
        assert means.loc["static-split", "e2e_all_s.mean"] < means.loc["patient-swap", "e2e_all_s.mean"]
        assert waits_s["summary"].is_monotonic_increasing
        assert waits_s["chat"].iloc[-1] < waits_s["chat"].iloc[0]
        """,
    "05-capacity-and-cost": """
        import numpy as np

        assert search.result.bound.value > search.answers["answer"].max()
        assert search.answers.loc["residency-aware", "answer"] >= search.answers.loc["lru-swap", "answer"]
        assert answers.loc["L40S, server", "largest load"] > answers.loc["RTX 4090, desktop", "largest load"]
        for name in prices:
            loads, usd = prices[name].dropna().index, prices[name].dropna()
            slope = np.log(usd.iloc[-1] / usd.iloc[0]) / np.log(loads[-1] / loads[0])
            assert -1.2 < slope < -0.7, f"{name}: twice the load, half the price"
        assert 1 <= nodes <= 16
        """,
}


def named(path: Path) -> str:
    return path.stem


def notebook(path: Path) -> Any:
    found = nbformat.read(path, as_version=4)
    nbformat.validate(found)
    return found


def parameters_cell(found: Any) -> Any:
    cells = [cell for cell in found.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(cells) == 1
    return cells[0]


def test_they_are_all_there() -> None:
    assert [path.stem for path in FILES] == list(REDUCED) == list(CLAIMS)
    readme = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    for path in FILES:
        assert f"({path.name})" in readme


@pytest.mark.parametrize("path", FILES, ids=named)
def test_it_is_committed_as_it_was_written(path: Path) -> None:
    """Without outputs, execution counts or what an editor leaves behind: see notebooks/README.md."""
    found = notebook(path)
    assert path.read_text(encoding="utf-8") == json.dumps(found, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    assert found.metadata.language_info == {"name": "python"}, "of no version"
    for cell in found.cells:
        kept = {"tags": ["parameters"]} if cell is parameters_cell(found) else {}
        assert cell.metadata == kept, f"{cell.id}: an editor has left something here"
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), f"{cell.id}: clear the outputs before you commit"


@pytest.mark.parametrize("path", FILES, ids=named)
def test_it_uses_the_library_as_anyone_can(path: Path) -> None:
    """Public names alone, and links that lead somewhere."""
    for cell in notebook(path).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\(([^)]+)\)", cell.source):
                assert (path.parent / target).is_file(), target
            continue
        source = cell.source.partition("\n")[2] if cell.source.startswith("%%") else cell.source
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom):
                assert node.module in ("sim.policy", "pathlib"), f"{cell.id}: {node.module}"
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
                assert [name for name in names if name not in ("sim", "pandas", "numpy", "tempfile")] == [], cell.id
            elif isinstance(node, ast.Attribute):
                assert not node.attr.startswith("_"), f"{cell.id}: {node.attr}"


@pytest.mark.parametrize("path", FILES, ids=named)
def test_it_runs_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = notebook(path)
    parameters = parameters_cell(found)
    given = [node.targets[0].id for node in ast.parse(parameters.source).body]  # type: ignore[attr-defined]
    assert [name for name in REDUCED[path.stem] if name not in given] == []
    if not FULL:
        parameters.source += "".join(f"\n{name} = {value!r}" for name, value in REDUCED[path.stem].items())
    lines = CLAIMS[path.stem].splitlines()
    found.cells.append(nbformat.v4.new_code_cell("\n".join(line[8:] for line in lines)))

    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    for name, value in {"PYTHONPATH": ROOT, "IPYTHONDIR": home, "JUPYTER_CONFIG_DIR": home}.items():
        monkeypatch.setenv(name, str(value))
    with tempfile.TemporaryDirectory(prefix="k") as sockets, (tmp_path / "stderr").open("w") as stderr:
        # Sockets in the file system, whose paths must be short: nothing listens on a network.
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/s")
        client = NotebookClient(found, km=kernel, timeout=600, resources={"metadata": {"path": str(work)}})
        client.execute(stderr=stderr)
    assert (tmp_path / "stderr").read_text() == ""
    outputs = [output for cell in found.cells if cell.cell_type == "code" for output in cell.outputs]
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) >= 3
    assert list(work.iterdir()) == [], "a notebook leaves nothing beside itself"
