"""Presets against the files that they are calibrated to: the figures stored here, and the files themselves.

The stored figures are those of the public files (named in each preset), so that the tests say something where the files
are not at hand. Each preset is drawn several times and the median compared: one hour is little of a bursty process.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.traces.stream import gather
from sim.traces.trace import Trace
from sim.workload.generate import stream_from_file
from tests.support.generated import counts, cv, prefix_hits, window_cvs
from tests.support.places import SHARED

FILES = SHARED / "traces"
Figures = dict[str, float]

# Of the real files, as `azure_figures` and the like below compute them. PROBABILITIES of the lengths.
PROBABILITIES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
STORED: dict[str, Figures] = {
    "azure-code-like": {
        "rate": 2.567, "cv": 13.15, "minute cv p50": 3.16, "minute cv p90": 6.43,
        "per minute cv": 1.04, "empty minutes": 0.21, "empty seconds": 0.734,
        "prompt mean": 2048, "prompt 0.1": 147, "prompt 0.25": 578, "prompt 0.5": 1469, "prompt 0.75": 2745,
        "prompt 0.9": 5194, "prompt 0.99": 7436, "output mean": 27.9, "output 0.1": 7, "output 0.25": 9,
        "output 0.5": 13, "output 0.75": 24, "output 0.9": 55, "output 0.99": 252, "rank correlation": -0.02,
    },
    "azure-conv-like": {
        "rate": 5.530, "cv": 1.09, "minute cv p50": 1.02, "minute cv p90": 1.08,
        "per minute cv": 0.22, "empty minutes": 0.0, "empty seconds": 0.011,
        "prompt mean": 1155, "prompt 0.1": 207, "prompt 0.25": 396, "prompt 0.5": 1020, "prompt 0.75": 1189,
        "prompt 0.9": 2735, "prompt 0.99": 4142, "output mean": 211, "output 0.1": 54, "output 0.25": 85,
        "output 0.5": 129, "output 0.75": 395, "output 0.9": 424, "output 0.99": 601, "rank correlation": 0.073,
    },
    "mooncake-like": {
        "rate": 3.284, "per minute cv": 0.127, "hits": 0.351,
        "prompt mean": 12396, "prompt 0.1": 973, "prompt 0.25": 2402, "prompt 0.5": 7216, "prompt 0.75": 15662,
        "prompt 0.9": 27939, "prompt 0.99": 89867, "output mean": 347, "output 0.1": 24, "output 0.25": 156,
        "output 0.5": 356, "output 0.75": 476, "output 0.9": 605, "output 0.99": 1166,
    },
    "servegen-like": {
        "rate": 209.5, "top 1": 0.169, "top 5": 0.472, "top 10": 0.696, "slope of 50": -1.27,
        "window cv p50": 1.15, "window cv p90": 4.78,
        "prompt mean": 907, "prompt 0.1": 74, "prompt 0.25": 83, "prompt 0.5": 635, "prompt 0.75": 988,
        "prompt 0.9": 2379, "prompt 0.99": 3455, "output mean": 174, "output 0.1": 2, "output 0.25": 8,
        "output 0.5": 52, "output 0.75": 412, "output 0.9": 472, "output 0.99": 725,
    },
    "agents": {
        "turns 0.1": 7, "turns 0.5": 38, "turns 0.9": 94, "turns mean": 45,
        "think 0.1": 4, "think 0.25": 5, "think 0.5": 12, "think 0.75": 48, "think 0.9": 218,
        "first 0.25": 17512, "first 0.5": 21266, "first 0.75": 95960,
        "prompt mean": 97279, "prompt 0.1": 35327, "prompt 0.25": 56836, "prompt 0.5": 89290, "prompt 0.75": 122177,
        "prompt 0.9": 143218, "output mean": 457, "output 0.1": 110, "output 0.25": 141, "output 0.5": 223,
        "output 0.75": 425, "output 0.9": 953, "output 0.99": 3981,
    },
}  # fmt: skip

# How far the preset may be from the file: relative, or absolute where the name ends so.
TOLERANCE: dict[str, Figures] = {
    "azure-code-like": {"rate": 0.12, "cv": 0.15, "minute cv p50": 0.15, "minute cv p90": 0.2, "per minute cv": 0.12,
                        "empty minutes": 0.3, "empty seconds": 0.05},
    "azure-conv-like": {"rate": 0.12, "cv": 0.05, "minute cv p50": 0.03, "minute cv p90": 0.04, "per minute cv": 0.25},
    "mooncake-like": {"rate": 0.1, "per minute cv": 0.3, "hits": 0.15, "prompt mean": 0.15, "prompt 0.1": 0.1,
                      "prompt 0.25": 0.25, "prompt 0.5": 0.15, "prompt 0.75": 0.15, "prompt 0.9": 0.15,
                      "prompt 0.99": 0.15},
    "servegen-like": {"rate": 0.15, "top 1": 0.2, "top 5": 0.15, "top 10": 0.1, "slope of 50": 0.08,
                      "window cv p50": 0.15, "window cv p90": 0.3},
    "agents": {"turns 0.1": 0.15, "turns 0.5": 0.1, "turns 0.9": 0.1, "turns mean": 0.1, "first 0.75": 0.15,
               "prompt mean": 0.2, "prompt 0.1": 0.4, "prompt 0.25": 0.3, "prompt 0.5": 0.25, "prompt 0.75": 0.15,
               "prompt 0.9": 0.15},
}  # fmt: skip
LENGTHS, ABSOLUTE = 0.06, {"empty minutes": 0.07, "empty seconds": 0.05, "rank correlation": 0.05}


def lengths(prompt: Any, output: Any) -> Figures:
    found = {}
    for name, tokens in (("prompt", prompt), ("output", output)):
        found[f"{name} mean"] = float(np.mean(tokens))
        for probability in PROBABILITIES:
            found[f"{name} {probability}"] = float(np.quantile(tokens, probability))
    return found


def azure_figures(times_s: Any, prompt: Any, output: Any) -> Figures:
    from scipy.stats import spearmanr  # noqa: PLC0415

    times_s = times_s - times_s[0]
    minutes, seconds = (counts(times_s, width, times_s[-1]) for width in (60, 1))
    p50, p90 = np.quantile(window_cvs(times_s, 60.0), (0.5, 0.9))
    return {
        "rate": len(times_s) / times_s[-1],
        "cv": cv(np.diff(times_s)),
        "minute cv p50": p50,
        "minute cv p90": p90,
        "per minute cv": cv(minutes),
        "empty minutes": float(np.mean(minutes == 0)),
        "empty seconds": float(np.mean(seconds == 0)),
        "rank correlation": float(spearmanr(prompt, output)[0]),
        **lengths(prompt, output),
    }


def mooncake_figures(times_s: Any, prompt: Any, output: Any, blocks: list[list[int]]) -> Figures:
    minutes = counts(times_s, 60, times_s[-1])
    rate = len(times_s) / times_s[-1]
    return {"rate": rate, "per minute cv": cv(minutes), "hits": prefix_hits(blocks), **lengths(prompt, output)}


def popularity(uses: Any) -> Figures:
    shares = np.sort(uses)[::-1] / np.sum(uses)
    slope = np.polyfit(np.log(np.arange(1, 51)), np.log(shares[:50]), 1)[0]
    return {"top 1": shares[0], "top 5": shares[:5].sum(), "top 10": shares[:10].sum(), "slope of 50": float(slope)}


def agent_figures(turns: Any, think_s: Any, first: Any, prompt: Any, output: Any) -> Figures:
    found = {"turns mean": float(np.mean(turns)), **lengths(prompt, output)}
    for name, values, probabilities in (
        ("turns", turns, (0.1, 0.5, 0.9)),
        ("think", think_s, (0.1, 0.25, 0.5, 0.75, 0.9)),
        ("first", first, (0.25, 0.5, 0.75)),
    ):
        found |= {f"{name} {probability}": float(np.quantile(values, probability)) for probability in probabilities}
    return found


# --- what the presets give


def of_trace(name: str, trace: Trace) -> Figures:
    prompt, output, times_s = trace.prompt_tokens, trace.output_tokens, trace.arrival_s
    if name.startswith("azure"):
        return azure_figures(times_s, prompt, output)
    if name == "mooncake-like":
        return mooncake_figures(times_s, prompt, output, trace.extras["prefix_blocks"].to_pylist())
    if name == "servegen-like":
        each = [times_s[trace.model == code] for code in range(len(trace.models))]
        cvs = np.concatenate([window_cvs(part, 600.0, 30) for part in each if len(part) > 30])
        p50, p90 = np.quantile(cvs[np.isfinite(cvs)], (0.5, 0.9))
        rate = len(times_s) / times_s[-1]
        both = {"rate": rate, "window cv p50": p50, "window cv p90": p90}
        return {**both, **popularity(np.bincount(trace.model)), **lengths(prompt, output)}
    assert trace.think_s is not None
    turn = trace.extras["turn"].to_numpy()
    ended = turn[np.unique(trace.session[::-1], return_index=True)[1] * -1 - 1]  # the last turn of each session
    return agent_figures(ended, trace.think_s[turn > 1], prompt[turn == 1], prompt, output)


@cache
def drawn_figures(name: str) -> Figures:
    more = {"agents": ["duration_s=2000000", "rate_per_s=0.0005", "prefix=null"], "servegen-like": ["duration_s=3600"]}
    seeds = range(1, 4 if name in ("agents", "mooncake-like", "servegen-like") else 12)
    each = [of_trace(name, gather(stream_from_file(name, more.get(name, []), seed)[0])) for seed in seeds]
    return {figure: float(np.median([found[figure] for found in each])) for figure in each[0]}


def compare(name: str, real: Figures, preset: Figures) -> None:
    far = []
    for figure, value in real.items():
        if figure not in STORED[name]:
            continue
        relative = TOLERANCE[name].get(figure, LENGTHS)
        allowed = ABSOLUTE.get(figure, max(relative * abs(value), 1.0 if value < 20 and "0." in figure else 0.0))
        if abs(preset[figure] - value) > allowed:
            far.append(f"{figure}: {preset[figure]:.4g}, not within {allowed:.3g} of {value:.4g}")
    assert not far, f"{name}: " + "; ".join(far)


@pytest.mark.parametrize("name", list(STORED))
def test_a_preset_is_like_what_it_is_called_after(name: str) -> None:
    compare(name, STORED[name], drawn_figures(name))


@pytest.mark.parametrize("name", list(STORED))
def test_the_comparison_can_fail(name: str) -> None:
    """Another preset's figures must not pass."""
    for other, figures in STORED.items():
        if other == name:
            continue
        shared = {figure: value for figure, value in figures.items() if figure in STORED[name]}
        with pytest.raises(AssertionError, match="not within"):
            compare(name, STORED[name] | shared, drawn_figures(name))


# --- the files themselves


def file_figures(name: str) -> Figures:
    if name.startswith("azure"):
        path = FILES / "azure_llm_2023" / f"AzureLLMInferenceTrace_{name.split('-')[1]}.csv.gz"
        with gzip.open(needed(path), "rt", newline="") as file:
            rows = list(csv.DictReader(file))
        times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
        prompt, output = ([int(row[column]) for row in rows] for column in ("ContextTokens", "GeneratedTokens"))
        return azure_figures(np.array(times), prompt, output)
    if name == "mooncake-like":
        with gzip.open(needed(FILES / "mooncake_fast25" / "conversation_trace.first8000.jsonl.gz"), "rt") as file:
            items = [json.loads(line) for line in file]
        times_s = np.array([item["timestamp"] / 1000 for item in items])
        prompt, output = ([item[field] for item in items] for field in ("input_length", "output_length"))
        return mooncake_figures(times_s, prompt, output, [item["hash_ids"] for item in items])
    if name == "servegen-like":
        return servegen_file()
    return agents_file()


def needed(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"the public trace {path.name} is not here; the stored figures are compared all the same")
    return path


def servegen_file() -> Figures:
    rates, cvs = [], []
    with tarfile.open(needed(FILES / "servegen" / "language_m-large.week1.tar.gz")) as tar:
        for member in tar.getmembers():
            if member.name.endswith("trace.csv"):
                file = tar.extractfile(member)
                assert file is not None
                rows = [row for row in csv.reader(io.TextIOWrapper(file)) if row]
                rates.append(np.array([float(row[1]) for row in rows]))
                cvs += [float(row[2]) for row in rows if float(row[1]) * 600 > 30]
    p50, p90 = np.quantile(cvs, (0.5, 0.9))
    each = np.array(rates)
    found = {"rate": float(each.mean(axis=1).sum()), "window cv p50": p50, "window cv p90": p90}
    return {**found, **popularity(each.mean(axis=1))}


def agents_file() -> Figures:
    turns, think_s, first, prompt, output = [], [], [], [], []
    with tarfile.open(needed(FILES / "agentic_coding" / "traces_73_sessions.tar.gz")) as tar:
        for member in tar.getmembers():
            if not member.name.endswith(".json"):
                continue
            file = tar.extractfile(member)
            assert file is not None
            requests = json.load(file)["requests"]
            own = [request for request in requests if request["type"] != "subagent"]
            inner = [part for request in requests if request["type"] == "subagent" for part in request["requests"]]
            turns.append(len(own))
            first += [request["in"] for request in own[:1]]
            think_s += [request["think_time"] for request in own[1:] if request.get("think_time") is not None]
            prompt += [request["in"] for request in own + inner]
            output += [request["out"] for request in own + inner]
    return agent_figures(turns, think_s, first, prompt, output)


@pytest.mark.parametrize("name", list(STORED))
def test_a_preset_is_like_its_file(name: str) -> None:
    real = file_figures(name)
    for figure, value in real.items():
        if figure in STORED[name]:
            assert STORED[name][figure] == pytest.approx(value, rel=0.03, abs=0.02), f"stored {figure}"
    compare(name, real, drawn_figures(name))
